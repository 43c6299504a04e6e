"""The gamma that the price path gives, against the best of its networks."""

import pytest
import torch
from torch import nn

from compression_adapters import compression_problem
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.search.first_gamma import (
    gamma_for,
    gamma_for_ratio,
    gamma_of,
)
from tests.helpers.networks import pool, small_network


def path_of(**options):
    return price_path(
        compression_problem(small_network(), pool(), gamma=1.0, **options)
    )


def best(path, gamma, size):
    values = gamma * path.table["predicted_loss"] + size
    return int(values.argmin())


def test_at_its_gamma_a_network_of_the_path_is_the_best_one():
    path = path_of()
    for position in range(1, len(path) - 1):
        gamma = gamma_of(path, position)
        assert best(path, gamma, path.table["compression_ratio"]) == position
    # The smallest network is the best for all smaller gammas.
    assert best(path, gamma_of(path, 0) * 0.9, path.table["compression_ratio"]) == 0


def test_a_ratio_allows_for_losses_that_add_to_more_than_their_sum():
    path = path_of()
    position = path.at_ratio(0.5)
    assert gamma_for_ratio(path, 0.5) == pytest.approx(gamma_of(path, position) / 1.5)


def test_a_condition_gives_the_gamma_of_the_smallest_network_that_meets_it():
    path = path_of()
    most = float(path.table["predicted_loss"].iloc[len(path) // 2])
    found = gamma_for(path, lambda p: path.table["predicted_loss"].iloc[p] <= most)
    assert found == gamma_of(path, len(path) // 2)


def test_a_rate_has_its_own_unit():
    path = path_of(objective="rate")
    rate = -1.0 / path.table["compression_ratio"]
    for position in (len(path) // 3, len(path) // 2):
        assert abs(best(path, gamma_of(path, position), rate) - position) <= 2


def test_a_network_that_loses_nothing_is_refused():
    silent = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5))
    with torch.no_grad():
        silent[1].weight.zero_()
    path = price_path(compression_problem(silent, pool(), gamma=1.0, include=["1"]))
    with pytest.raises(ValueError, match="zero at all ranks"):
        gamma_of(path, 0)
