"""Fresh samples from an explicit rng, and reference outputs computed once."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from compression_adapters.evaluation.sampling import (
    Batch,
    ReferenceCache,
    dataset_sampler,
    generator_sampler,
)
from compression_adapters.network.modes import forward

POOL = torch.arange(20.0).reshape(10, 2)
LABELS = torch.arange(10)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Counting(nn.Module):
    """Doubles its input and counts the samples it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return 2 * x


class InputsOnly(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return POOL[i]


def test_samples_come_from_the_pool_with_their_labels_and_indices():
    batch = dataset_sampler(POOL, LABELS)(50, rng())
    assert torch.equal(batch.inputs, POOL[batch.indices])
    assert torch.equal(batch.labels, LABELS[batch.indices])
    assert batch.reference_outputs is None


def test_samples_are_drawn_uniformly_and_with_replacement():
    indices = dataset_sampler(POOL)(10_000, rng()).indices
    counts = torch.bincount(indices, minlength=10)
    # Chi-square with 9 degrees of freedom: 27.9 is exceeded once in a thousand.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 27.9


def test_a_seed_repeats_the_samples_and_another_does_not():
    draw = dataset_sampler(POOL)
    first, again, other = (draw(50, rng(seed)).indices for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_state_is_not_touched():
    state = torch.get_rng_state()
    dataset_sampler(POOL)(50, rng())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dataset_of_pairs_gives_inputs_and_labels():
    from_dataset = dataset_sampler(TensorDataset(POOL, LABELS))(50, rng())
    from_tensors = dataset_sampler(POOL, LABELS)(50, rng())
    assert torch.equal(from_dataset.inputs, from_tensors.inputs)
    assert torch.equal(from_dataset.labels, from_tensors.labels)
    assert torch.equal(from_dataset.indices, from_tensors.indices)


def test_a_dataset_of_inputs_gives_no_labels():
    batch = dataset_sampler(InputsOnly())(5, rng())
    assert batch.labels is None
    assert torch.equal(batch.inputs, POOL[batch.indices])


def test_a_dataset_of_triples_is_refused():
    draw = dataset_sampler(TensorDataset(POOL, LABELS, LABELS))
    with pytest.raises(ValueError, match="a pair of input and label; got 3 parts"):
        draw(3, rng())


def test_integer_inputs_such_as_tokens_are_sampled():
    assert dataset_sampler(LABELS[:, None])(5, rng()).inputs.dtype == torch.int64


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (POOL[:1], None, "at least 2 samples; got 1"),
        (POOL[:0], None, "at least 2 samples; got 0"),
        (torch.tensor(1.0), None, "at least 2 samples; got 0"),
        (POOL, LABELS[:9], r"shape \(10,\).*got \(9,\)"),
        (POOL, LABELS[:, None], r"shape \(10,\).*got \(10, 1\)"),
        (torch.tensor([[1.0], [math.nan], [math.inf]]), None, "2 of 3 samples hold"),
        (TensorDataset(POOL, LABELS), LABELS, "labels must be None with a dataset"),
        (TensorDataset(POOL[:1]), None, "at least 2 samples; got 1"),
    ],
)
def test_a_pool_that_cannot_be_sampled_is_refused(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        dataset_sampler(inputs, labels)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(POOL)


@pytest.mark.parametrize("inputs", [POOL.numpy(), Stream(), [1.0, 2.0], "text", 3])
def test_what_is_neither_tensor_nor_dataset_is_refused_by_name(inputs):
    with pytest.raises(TypeError, match=f"got {type(inputs).__name__}"):
        dataset_sampler(inputs)


def test_dataset_items_that_are_not_finite_are_refused_when_drawn():
    draw = dataset_sampler(TensorDataset(torch.full((4, 1), math.nan)))
    with pytest.raises(ValueError, match="inputs must be finite; 3 of 3"):
        draw(3, rng())


@pytest.mark.parametrize(
    "draw", [dataset_sampler(POOL), generator_sampler(lambda m, rng: POOL[:m])]
)
def test_fewer_than_two_samples_are_refused(draw):
    with pytest.raises(ValueError, match=r"num_samples must be at least 2.*got 1"):
        draw(1, rng())


def test_generated_samples_have_no_labels_and_no_indices():
    draw = generator_sampler(lambda m, rng: torch.randn(m, 3, generator=rng))
    batch = draw(4, rng(5))
    assert torch.equal(batch.inputs, torch.randn(4, 3, generator=rng(5)))
    assert batch.labels is None
    assert batch.indices is None


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (torch.zeros(3, 2), r"a tensor of 4 samples.*got shape \(3, 2\)"),
        ([1.0] * 4, "got list"),
        (torch.full((4, 2), math.nan), "4 of 4 samples hold NaN"),
    ],
)
def test_generated_samples_that_cannot_be_used_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        generator_sampler(lambda m, rng: made)(4, rng())


def test_no_sample_is_evaluated_twice_by_the_reference():
    network = Counting()
    cache = ReferenceCache(network)
    draw = dataset_sampler(POOL)
    seen = set()
    for seed in range(30):
        batch = draw(6, rng(seed))
        seen |= set(batch.indices.tolist())
        assert torch.equal(cache.outputs(batch), 2 * batch.inputs)
        assert network.seen == len(cache) == len(seen)
    assert network.seen == 10


def test_reference_outputs_are_kept_across_inference_mode():
    cache = ReferenceCache(Counting())
    draw = dataset_sampler(POOL)
    with torch.inference_mode():
        cache.outputs(draw(3, rng(0)))
    for seed in range(1, 5):
        batch = draw(3, rng(seed))
        assert torch.equal(cache.outputs(batch), 2 * batch.inputs)


def test_generated_samples_are_evaluated_as_they_come():
    network = Counting()
    cache = ReferenceCache(network)
    batch = Batch(POOL)
    cache.outputs(batch)
    cache.outputs(batch)
    assert network.seen == 20
    assert len(cache) == 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Stream()), "over Stream"),
        (DataLoader(TensorDataset(POOL), batch_size=None), "batch_size=None"),
    ],
)
def test_a_loader_without_items_to_draw_from_is_refused(loader, message):
    with pytest.raises(TypeError, match=f"{message}.*Read the inputs into a list"):
        dataset_sampler(loader)


def test_a_network_whose_output_is_no_tensor_is_refused():
    class Words(nn.Module):
        def forward(self, inputs):
            return "words"

    with pytest.raises(ValueError, match=r"must return a tensor.*got str.*output="):
        forward(Words(), POOL)


def test_a_network_that_loses_the_batch_dimension_is_refused():
    with pytest.raises(ValueError, match=r"10 samples went in.*shape \(20,\)"):
        forward(nn.Flatten(0), POOL)
