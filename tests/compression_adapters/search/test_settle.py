"""A target ends at the network of its size that loses the least, and says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compression_adapters import compress, compression_problem, price_path
from compression_adapters.options import SearchOptions
from compression_adapters.search import settle
from compression_adapters.search.settle import least_losses_within, replaced_network
from tests.helpers.networks import pool, small_network

FAST = {
    **{"delta": 0.2, "epsilon": 0.1, "level": "pairwise", "progress": False},
    "refit": False,
}


@pytest.fixture(scope="module")
def searched():
    """A search, and the price path of its problem."""
    found = compress(small_network(), pool(), gamma=0.5, **FAST)
    return found, price_path(found.problem)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_no_network_that_is_known_and_fits_loses_less(searched, ratio):
    found, path = searched
    points = least_losses_within(path, [found], ratio)
    problem = found.problem
    losses = [
        float(settle._losses(problem, problem.ranks(p), found.seed).mean())
        for p in points
    ]
    assert losses == sorted(losses)
    assert all(problem.ratio(problem.ranks(p)) <= ratio * (1 + 1e-9) for p in points)
    fitting = [
        ranks
        for ranks in (*path.networks, found.ranks)
        if problem.ratio(ranks) <= ratio
    ]
    largest = max(fitting, key=problem.ratio)
    assert losses[0] <= float(settle._losses(problem, largest, found.seed).mean())


def test_another_network_keeps_the_certificate_and_says_how_far_it_is(searched):
    found, path = searched
    ratio = 0.5 * (found.size_ratio + 1.0)
    (point, *_) = least_losses_within(path, [found], ratio)
    other = replaced_network(found, point, SearchOptions(refit=False))
    assert other.ranks == found.problem.ranks(point) != found.ranks
    assert other.certificate == found.certificate
    problem = found.problem

    def objectives(ranks):
        losses = settle._losses(problem, ranks, found.seed)
        return problem.gamma * losses + problem.ratio(ranks)

    gap = objectives(other.ranks) - objectives(found.ranks)
    assert other.beside_incumbent.mean == pytest.approx(float(gap.mean()))
    sem = float(gap.std() / len(gap) ** 0.5)
    assert other.beside_incumbent.sem == pytest.approx(sem)
    if found.certificate.holds:
        assert "to meet the target" in other.sentences()[2]
    with torch.no_grad():
        expected = problem.compress(point).eval()(pool(5))
        assert torch.equal(other.network(pool(5)), expected)


def test_the_incumbent_itself_is_left_as_it_is(searched):
    found, _ = searched
    same = replaced_network(found, found.parameterization, SearchOptions())
    assert same is found
    assert replace(same).beside_incumbent is None


def test_a_ratio_below_every_network_is_refused():
    problem = compression_problem(small_network(), pool(), gamma=0.5)
    path = price_path(problem)
    with pytest.raises(ValueError, match="smallest network on the path"):
        least_losses_within(path, [], 1e-6)
