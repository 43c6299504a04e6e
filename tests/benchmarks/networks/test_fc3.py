from __future__ import annotations

import itertools
from collections import OrderedDict

import pytest
import torch
from torch import nn

from benchmarks.networks import fc3
from compression_adapters import compression_problem, compression_ratio


@pytest.fixture
def problem_and_images():
    """A network with FC3's layer names, small enough to enumerate."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                fc1=nn.Linear(12, 10),
                relu1=nn.ReLU(),
                fc2=nn.Linear(10, 9),
                relu2=nn.ReLU(),
                fc3=nn.Linear(9, 4),
            )
        ).eval()
        images = torch.randn(300, 1, 3, 4)
    return compression_problem(network, images, gamma=0.5), images


def by_truncation(problem, images, ranks):
    """The full objective, through the network that a user would get."""
    point = {
        p.name: p.scales[0].unit_from_rank(ranks[p.layers[0]])
        for p in problem.parameters
    }
    with torch.inference_mode():
        gap = problem.compress(point)(images) - problem.network(images)
    loss = gap.double().square().sum(-1).mean().item()
    return problem.gamma * loss + compression_ratio(problem.layers, ranks)


def test_shared_work_gives_the_objective_of_the_truncated_network(problem_and_images):
    problem, images = problem_and_images
    for ranks in ((1, 2, 1), (3, "dense", 2), ("dense", 4, "dense"), (5, 4, 2)):
        named = dict(zip(("fc1", "fc2", "fc3"), ranks, strict=True))
        expected = by_truncation(problem, images, named)
        found = fc3.full_objective(problem, images, named)
        # float32 outputs of a few units.
        assert found == pytest.approx(expected, rel=1e-5)


def test_dense_search_finds_the_exhaustive_optimum(problem_and_images):
    problem, images = problem_and_images
    found = fc3._search_optimum(problem, images)
    choices = [[*range(1, layer.max_rank + 1), "dense"] for layer in problem.layers]
    best = min(
        by_truncation(problem, images, dict(zip(("fc1", "fc2", "fc3"), r, strict=True)))
        for r in itertools.product(*choices)
    )
    assert found["objective"] == pytest.approx(best, rel=1e-5)
