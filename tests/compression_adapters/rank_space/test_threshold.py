"""One threshold for all pruned layers, against sorting all their weights together."""

import numpy as np
import pytest
import torch
from torch import nn

from compression_adapters import (
    choose_low_rank,
    choose_pruning,
    compress,
    compression_problem,
    compression_ratio,
    load_compressed,
)
from tests.helpers.networks import pool, small_network


def network(seed=0):
    """Layers whose weights have different sizes: 1, 3 and 9 times as large."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 60), nn.Linear(60, 8)]
        with torch.no_grad():
            for position, size in ((0, 1), (2, 3), (3, 9)):
                layers[position].weight.normal_().mul_(size)
    return nn.Sequential(*layers).eval()


def problem_of(**options):
    inputs = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    settings = {"gamma": 1.0, "choose": choose_pruning, "tie": "threshold"}
    settings["calibrate"] = 0  # by the magnitude of the weights alone
    return compression_problem(network(), inputs, **settings | options)


def kept_by_threshold(share):
    """Sort all weights of the network together and keep the largest."""
    weights = [p.detach().abs().numpy() for p in network().parameters() if p.ndim == 2]
    sizes = np.sort(np.concatenate([w.ravel() for w in weights]))[::-1]
    threshold = sizes[round(share * len(sizes)) - 1]
    return [w >= threshold for w in weights]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.37, 0.8])
def test_a_threshold_keeps_the_largest_weights_of_all_layers(share):
    problem = problem_of(encoding="linear")
    assert [parameter.name for parameter in problem.parameters] == ["threshold"]
    small = problem.compress({"threshold": share})
    found = [p.detach().numpy() != 0 for p in small.parameters() if p.ndim == 2]
    expected = kept_by_threshold(share)
    for mask, wanted in zip(found, expected, strict=True):
        # A layer is off by its own step, 2 or 3 weights of the larger ones: with the
        # share fixed that is up to 5 of the smallest layer's 480 weights.
        assert (mask != wanted).sum() <= 5
    # Which is not what one share for all layers does.
    shares = [mask.mean() for mask in found]
    assert shares[2] - shares[0] > 0.05


@pytest.mark.parametrize("encoding", ["linear", "log", "energy"])
@pytest.mark.parametrize("options", [{}, {"at_max": "factor"}, {"round_to": 8}])
def test_the_ratio_rises_along_the_coordinate_to_all_weights(encoding, options):
    problem = problem_of(encoding=encoding, **options)
    ratios = [
        compression_ratio(problem.layers, problem.ranks({"threshold": u}))
        for u in np.linspace(0, 1, 40)
    ]
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.02
    assert ratios[-1] == 1.0


def test_the_logarithm_spreads_small_shares():
    for encoding, expected in (("linear", 0.5), ("log", 1001**0.5 / 1000)):
        problem = problem_of(encoding=encoding)
        ratio = compression_ratio(problem.layers, problem.ranks({"threshold": 0.5}))
        assert ratio == pytest.approx(expected, abs=0.004)


def test_a_smallest_rank_holds_for_each_layer():
    problem = problem_of(min_rank=200)
    ranks = problem.ranks({"threshold": 0.0})
    assert ranks == {"0": 200, "2": 200, "3": 200}


def test_weights_that_are_zero_are_the_last_to_be_kept():
    zeros = network()
    with torch.no_grad():
        zeros[0].weight[:25] = 0.0
    problem = compression_problem(
        zeros,
        torch.ones(60, 40),
        gamma=1.0,
        choose=choose_pruning,
        tie="threshold",
        encoding="linear",
    )
    total = sum(layer.num_weights for layer in problem.layers)
    for u in (0.2, 0.5, 0.79):
        small = problem.compress({"threshold": u})
        left = sum(int(p.count_nonzero()) for p in small.parameters() if p.ndim == 2)
        assert left / total == pytest.approx(u, abs=0.003)
    assert problem.ranks({"threshold": 1.0})["0"] == "dense"


def test_other_decompositions_have_no_threshold():
    with pytest.raises(ValueError, match=r"Layer '0': tie='threshold'.* is 'svd'"):
        problem_of(choose=choose_low_rank)
    with pytest.raises(ValueError, match=r"a function of a layer's name.*'thresh'"):
        problem_of(tie="thresh")
    with pytest.raises(ValueError, match="encoding must be one of log, energy"):
        problem_of(encoding="square")


def test_a_search_for_a_threshold_is_certified_and_reloads(tmp_path):
    result = compress(
        small_network(),
        pool(),
        gamma=1.0,
        delta=0.2,
        epsilon=0.1,
        level="pairwise",
        choose=choose_pruning,
        tie="threshold",
    )
    assert result.certificate.holds
    assert list(result.parameterization) == ["threshold"]
    result.save(tmp_path)
    loaded = load_compressed(tmp_path, small_network(seed=1)).eval()
    assert torch.equal(loaded(pool()), result.network(pool()))
