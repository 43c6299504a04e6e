"""Targets in words: what is returned meets them, on inputs that chose nothing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from compression_adapters import compress
from compression_adapters.evaluation.bounds import share_at_least
from compression_adapters.evaluation.quality import (
    Agreement,
    Cosine,
    LossOf,
    QualityStatement,
    quality_without_target,
)
from compression_adapters.search.quality_target import largest_first
from tests.helpers.structured import Encoder, sentences


def trained():
    """Classes of points by a network that was trained for a moment."""
    rng = torch.Generator().manual_seed(0)
    centres = 2.0 * torch.randn(4, 12, generator=rng)
    labels = torch.randint(4, (6000,), generator=rng)
    inputs = centres[labels] + torch.randn(6000, 12, generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for index in torch.randperm(2000, generator=rng).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                network(inputs[index]), labels[index]
            ).backward()
            optimizer.step()
    return network.eval(), inputs[2000:], labels[2000:]


NETWORK, INPUTS, LABELS = trained()
FRESH, FRESH_LABELS = INPUTS[3000:], LABELS[3000:]
POOL, POOL_LABELS = INPUTS[:3000], LABELS[:3000]
QUICK = {"search": False, "progress": False}


def agreement(network, inputs=FRESH):
    with torch.no_grad():
        return float(
            (network(inputs).argmax(1) == NETWORK(inputs).argmax(1)).double().mean()
        )


def size(result):
    weights = result.layers[["weights", "weights_before"]].sum()
    return float(weights["weights"] / weights["weights_before"])


@pytest.mark.parametrize("target", [0.9, 0.97])
def test_the_network_agrees_as_often_as_was_asked_for(target):
    result = compress(NETWORK, POOL, agreement_at_least=target, **QUICK)
    statement = result.statement
    assert statement.holds
    assert statement.count == 1200
    assert statement.target == target
    assert target <= statement.bound < statement.estimate
    assert size(result) < 0.6
    # A thousand fresh inputs, three standard errors.
    assert agreement(result.network) > target - 3 * np.sqrt(
        target * (1 - target) / len(FRESH)
    )
    exact = round(statement.estimate * 1200)
    assert statement.bound == share_at_least(exact, 1200, 0.05)
    assert not result.certificate.holds


def test_what_is_compared_with_stays_the_original_network():
    result = compress(NETWORK, POOL, agreement_at_least=0.9, **QUICK)
    problem = result.problem
    for seed in range(40):
        batch = problem.batch_of(seed)
        with torch.no_grad():
            torch.testing.assert_close(batch.reference_outputs, NETWORK(batch.inputs))
    assert len(problem.reference) > 500


def test_a_looser_target_gives_a_smaller_network():
    sizes = [
        size(compress(NETWORK, POOL, agreement_at_least=target, **QUICK))
        for target in (0.85, 0.98)
    ]
    assert sizes[0] < sizes[1]


def test_a_search_for_agreement_has_a_statement_beside_its_certificate():
    result = compress(
        NETWORK,
        POOL,
        agreement_at_least=0.95,
        delta=0.2,
        level="pairwise",
        progress=False,
        max_trials=25,
    )
    assert result.statement.holds
    assert result.statement.bound >= 0.95
    assert len(result.gammas) > 1
    assert set(result.gammas["meets_target"]) == {True, False}
    assert size(result) < 0.7


def test_a_drop_in_accuracy_is_bounded_by_pairs():
    result = compress(
        NETWORK, POOL, labels=POOL_LABELS, accuracy_drop_at_most=0.02, **QUICK
    )
    assert result.statement.holds
    assert result.statement.quantity == "accuracy_drop"
    assert size(result) < 0.6
    with torch.no_grad():
        before, after = (
            float((one(FRESH).argmax(1) == FRESH_LABELS).double().mean())
            for one in (NETWORK, result.network)
        )
    assert before - after < 0.02 + 3 * np.sqrt(0.04 / len(FRESH))
    again = compress(
        NETWORK, TensorDataset(POOL, POOL_LABELS), accuracy_drop_at_most=0.02, **QUICK
    )
    assert again.ranks == result.ranks


def test_without_labels_a_drop_is_refused_with_the_remedy():
    with pytest.raises(
        ValueError, match=r"needs labels.*agreement_at_least needs none"
    ):
        compress(NETWORK, POOL, accuracy_drop_at_most=0.02, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"agreement_at_least": 0.98},
            "80 held-out inputs cannot show.*149 are needed",
        ),
        (
            {"accuracy_drop_at_most": 0.01, "labels": POOL_LABELS[:200]},
            r"80 held-out inputs cannot show.*are needed",
        ),
        ({"agreement_at_least": 0.9, "held_out": 0}, "leave held_out=0 out"),
        ({"agreement_at_least": 98}, "must be a share between 0 and 1; got 98"),
        ({"agreement_at_least": 0.9, "ratio": 0.5}, "ratio and agreement_at_least"),
        (
            {"agreement_at_least": 0.9, "held_out": -1},
            "held_out must be a whole number",
        ),
    ],
)
def test_targets_that_cannot_be_shown_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compress(NETWORK, POOL[:200], **QUICK, **options)


@pytest.mark.filterwarnings("ignore")
def test_if_no_network_meets_the_target_the_closest_is_returned_and_named():
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 200)).eval()
    inputs = torch.randn(3000, 12, generator=rng)
    with pytest.warns(UserWarning, match="No network that is smaller.*closest"):
        result = compress(
            network, inputs, agreement_at_least=0.995, min_rank=1, round_to=6, **QUICK
        )
    assert not result.statement.holds
    assert "NOT met" in result.statement.sentence()
    assert size(result) < 1.0


@pytest.mark.parametrize(
    ("network", "inputs", "kind", "quantity"),
    [
        (NETWORK, POOL, Agreement, "agreement"),
        (Encoder("hidden").eval(), sentences(300), Cosine, "cosine"),
        (nn.Sequential(NETWORK, nn.Linear(4, 1)).eval(), POOL, LossOf, "loss"),
    ],
)
def test_a_size_ends_with_a_statement_too(network, inputs, kind, quantity):
    result = compress(network, inputs, ratio="50%", **QUICK)
    assert isinstance(quality_without_target(result.problem), kind)
    assert result.statement.quantity == quantity
    assert result.statement.target is None
    assert not result.statement.holds
    assert "confidence 95 %" in result.statement.sentence()


def test_a_loss_ends_with_a_statement_and_a_gamma_only_if_inputs_are_held_out():
    result = compress(NETWORK, POOL, loss_at_most=3.0, **QUICK)
    assert result.statement.quantity == "loss"
    assert result.statement.holds == (result.statement.bound <= 3.0)
    assert compress(NETWORK, POOL, gamma=0.1, **QUICK).statement is None
    said = compress(NETWORK, POOL, gamma=0.1, held_out=500, **QUICK)
    assert said.statement.count == 500


class Fake:
    """A test whose networks are their true qualities, measured with noise."""

    def __init__(self, rng, count, target):
        self.rng, self.count, self.target = rng, count, target

    def statement(self, network, error):
        hits = int(self.rng.binomial(self.count, network))
        bound = share_at_least(hits, self.count, error)
        return QualityStatement(
            "agreement", hits / self.count, bound, 1 - error, self.count, self.target
        )


@pytest.mark.filterwarnings("ignore:No network that is smaller")
@pytest.mark.parametrize(
    "qualities",
    [
        # Many that are all but good enough: choosing the smallest that passes fails.
        [0.99, *[0.9499] * 30],
        [0.96, 0.955, 0.949, 0.94, 0.93],
        [0.9499, 0.99, 0.9499],
    ],
)
def test_the_sequence_returns_a_bad_network_no_more_often_than_allowed(qualities):
    rng, error, target, draws = np.random.default_rng(0), 0.05, 0.95, 1000
    wrong = naive = 0
    for _ in range(draws):
        test = Fake(rng, 400, target)
        found = largest_first(
            test, [(i, lambda q=q: (q, None)) for i, q in enumerate(qualities)], error
        )
        wrong += found.statement.holds and qualities[found.place] < target
        passed = [q for q in qualities if test.statement(q, error).holds]
        naive += bool(passed) and passed[-1] < target
    slack = 3 * np.sqrt(error * (1 - error) / draws)
    assert wrong / draws <= error + slack
    if len(qualities) > 20:
        assert naive / draws > 0.3  # what the sequence is for


def test_the_sequence_ends_at_the_first_failure():
    asked = []

    def made(quality):
        asked.append(quality)
        return quality, None

    test = Fake(np.random.default_rng(0), 10_000, 0.9)
    candidates = [
        (i, lambda q=q: made(q)) for i, q in enumerate([0.99, 0.95, 0.5, 0.99])
    ]
    found = largest_first(test, candidates, 0.05)
    assert asked == [0.99, 0.95, 0.5]
    assert (found.place, found.network, found.statement.tested) == (1, 0.95, 3)
