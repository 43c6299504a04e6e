"""Calibration inputs and evaluation inputs have nothing in common."""

import pytest
import torch
from torch.utils.data import Dataset

from compression_adapters.evaluation.calibration_split import split_inputs

POOL = torch.arange(1000.0)[:, None]


class Items(Dataset):
    def __init__(self, size=1000):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index % 7


def drawn(sampler, draws=40, num_samples=50):
    rng = torch.Generator().manual_seed(5)
    return torch.cat([sampler(num_samples, rng).inputs for _ in range(draws)])


@pytest.mark.parametrize("inputs", [POOL, Items()])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_pool_is_divided_and_every_other_input_is_drawn(inputs, seed):
    sampler, known, *_ = split_inputs(
        inputs, None, num_samples=50, calibrate=150, seed=seed
    )
    assert (known.count, known.share, known.seed) == (150, 0.15, seed)
    assert len(set(known.inputs.flatten().tolist())) == 150
    evaluated = set(drawn(sampler, draws=200).flatten().tolist())
    assert not evaluated & set(known.inputs.flatten().tolist())
    assert evaluated == set(range(1000)) - set(known.inputs.flatten().tolist())


def test_indices_and_labels_are_those_of_the_whole_pool():
    labels = torch.arange(1000) * 3
    sampler, *_ = split_inputs(POOL, labels, num_samples=50, calibrate=100, seed=0)
    batch = sampler(50, torch.Generator().manual_seed(0))
    assert torch.equal(batch.inputs[:, 0].long(), batch.indices)
    assert torch.equal(batch.labels, 3 * batch.indices)


def test_a_seed_determines_which():
    def of(seed):
        return split_inputs(POOL, None, num_samples=50, calibrate=100, seed=seed)[1]

    assert of(0).digest() == of(0).digest()
    assert of(0).digest() != of(1).digest()


@pytest.mark.parametrize(
    ("size", "calibrate", "count"),
    [(1000, 500, 200), (100, 500, 20), (52, 500, 2), (51, 500, None), (50, 9, None)],
)
def test_a_pool_gives_at_most_a_fifth_and_keeps_the_samples_of_a_trial(
    size, calibrate, count
):
    sampler, known, *_ = split_inputs(
        POOL[:size], None, num_samples=50, calibrate=calibrate, seed=0
    )
    assert (None if known is None else known.count) == count
    assert len(sampler(50, torch.Generator()).inputs) == 50


def test_none_are_taken_on_request_and_trials_then_draw_as_before():
    sampler, known, *_ = split_inputs(POOL, None, num_samples=50, calibrate=0, seed=0)
    assert known is None
    rng = torch.Generator().manual_seed(3)
    same = torch.randint(1000, (50,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(sampler(50, rng).indices, same)


def test_generated_inputs_are_drawn_from_a_seed_of_their_own_by_trials_worth():
    sizes = []

    def generate(m, rng):
        sizes.append(m)
        return torch.randn(m, 2, generator=rng)

    _, known, *_ = split_inputs(generate, None, num_samples=40, calibrate=100, seed=7)
    assert sizes == [40, 40, 40]
    assert (known.count, known.share) == (100, None)
    _, same, *_ = split_inputs(generate, None, num_samples=40, calibrate=100, seed=7)
    assert known.digest() == same.digest()
