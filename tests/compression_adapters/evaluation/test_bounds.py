"""Bounds hold with their confidence, by exact sums or by draws with a derived slack."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, multinomial

from compression_adapters.evaluation.bounds import (
    _drop_p_value,
    drop_at_most,
    fewest_for_share,
    mean_at_least,
    mean_at_most,
    share_at_least,
)


@pytest.mark.parametrize("count", [1, 7, 60, 400])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.98, 0.999])
@pytest.mark.parametrize("error", [0.05, 0.2])
def test_a_share_is_below_its_bound_no_more_often_than_allowed(count, share, error):
    found = [share_at_least(k, count, error) for k in range(count + 1)]
    wrong = sum(
        float(binom.pmf(k, count, share))
        for k, bound in enumerate(found)
        if bound > share
    )
    assert wrong <= error + 1e-12
    assert found == sorted(found)
    assert found[0] == 0.0


def test_the_fewest_inputs_are_those_with_which_no_failure_is_enough():
    for share in (0.9, 0.98, 0.995):
        few = fewest_for_share(share, 0.05)
        assert share_at_least(few, few, 0.05) >= share
        assert share_at_least(few - 1, few - 1, 0.05) < share


def is_refuted(lost, won, count, drop, error):
    """Whether the bound is below a drop, without the bisection that finds it."""
    return _drop_p_value(lost, won, count, drop, error) <= error


@pytest.mark.parametrize(("lost", "won"), [(5, 3), (0, 0), (12, 0), (3, 30), (40, 0)])
def test_the_bound_of_a_drop_is_where_its_test_begins_to_refute(lost, won):
    bound = drop_at_most(lost, won, 60, 0.05)
    assert is_refuted(lost, won, 60, min(bound + 1e-6, 1.0), 0.05) or bound > 1 - 1e-6
    for step in np.linspace(1e-6, bound - (lost - won) / 60, 7):
        assert not is_refuted(lost, won, 60, bound - step, 0.05)


@pytest.mark.parametrize(
    ("lost", "won"),
    [(0.05, 0.05), (0.2, 0.1), (0.02, 0.0), (0.0, 0.1), (0.3, 0.3), (0.5, 0.1)],
)
@pytest.mark.parametrize("count", [12, 30])
def test_a_drop_is_above_its_bound_no_more_often_than_allowed(lost, won, count):
    error, wrong = 0.1, 0.0
    for b in range(count + 1):
        for c in range(count + 1 - b):
            chance = float(
                multinomial.pmf(
                    [b, c, count - b - c], count, [lost, won, 1 - lost - won]
                )
            )
            if chance > 1e-7 and is_refuted(b, c, count, lost - won, error):
                wrong += chance
    # What was left out has less than 1e-7 for each of at most 861 pairs.
    assert wrong <= error + 1e-4


def test_the_paired_bound_is_closer_than_that_of_two_accuracies():
    """At two per cent discordant inputs, by a factor of three."""
    count, lost, won = 4000, 48, 32
    bound = drop_at_most(lost, won, count, 0.05)
    estimate = (lost - won) / count
    accuracy = 0.9
    two = 1.645 * np.sqrt(2 * accuracy * (1 - accuracy) / count)
    assert estimate < bound < estimate + two / 2
    normal = 1.645 * np.sqrt((lost + won) / count / count)
    assert bound - estimate < 1.25 * normal


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.beta(9, 1, n),
        lambda rng, n: (rng.random(n) < 0.97).astype(float),
        lambda rng, n: np.where(rng.random(n) < 0.05, rng.random(n), 1.0),
    ],
)
def test_a_mean_is_below_its_bound_no_more_often_than_allowed(draw):
    rng = np.random.default_rng(0)
    truth, draws, error = float(draw(rng, 10**6).mean()), 400, 0.1
    bounds = [
        mean_at_least(torch.from_numpy(draw(rng, 300)), error) for _ in range(draws)
    ]
    wrong = np.mean(np.array(bounds) > truth + 1e-3)
    # Three standard errors of a share of a tenth in 400 draws.
    assert wrong <= error + 3 * np.sqrt(error * (1 - error) / draws)
    # And it is of use: within four widths of a normal interval.
    spread = float(draw(rng, 10**5).std())
    assert truth - np.mean(bounds) < 4 * 1.28 * spread / np.sqrt(300) + 0.01


def test_values_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]; got -0.5 to 2.0"):
        mean_at_least(torch.tensor([-0.5, 2.0]), 0.05)


def test_students_bound_covers_a_normal_mean():
    rng = np.random.default_rng(1)
    above = [
        mean_at_most(torch.from_numpy(rng.normal(3.0, 2.0, 8)), 0.1) < 3.0
        for _ in range(2000)
    ]
    assert abs(np.mean(above) - 0.1) < 3 * np.sqrt(0.09 / 2000)
