"""Channel convolutions, against SVDs and sums by hand."""

import pytest
import torch
from torch import nn

from compression_adapters.calibration.gather import gather_moments
from compression_adapters.decompositions import ChannelConv, ChannelConv2d, LowRankConv
from compression_adapters.network.macs import count_macs

channel = ChannelConv()


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("groups", [1, 2])
def test_error_is_that_of_the_best_matrices_of_the_rank(groups):
    layer = nn.Conv2d(8, 12, 3, groups=groups).double()
    factors = channel.factorize(layer)
    matrices = layer.weight.detach().unflatten(0, (groups, -1)).flatten(2)
    for rank in (1, 3, 6):
        cut = channel.truncate(factors, rank).weight
        tail = torch.linalg.svdvals(matrices)[:, rank:].square().sum()
        error = (cut - layer.weight).square().sum()
        torch.testing.assert_close(error, tail)


def test_with_moments_it_is_the_projection_on_the_principal_outputs():
    layer = nn.Conv2d(5, 7, 3, padding=1).double()
    images = torch.randn(6, 5, 8, 8, dtype=torch.float64) + 1.0
    network = nn.Sequential(layer)
    moments = gather_moments(network, {"0": "outputs"}, images)["0"]
    small = channel.truncate(channel.factorize(layer, moments), 3)
    with torch.no_grad():
        outputs = layer(images).movedim(1, -1).flatten(0, 2)
        _, _, vh = torch.linalg.svd(outputs - outputs.mean(0), full_matrices=False)
        projected = (outputs - outputs.mean(0)) @ vh[:3].T @ vh[:3] + outputs.mean(0)
        found = small(images).movedim(1, -1).flatten(0, 2)
    # The ridge, a thousandth of the moments, turns the directions a little.
    error, least = ((outputs - one).square().sum() for one in (found, projected))
    assert least <= error < 1.001 * least


def test_moments_are_of_the_smaller_side():
    assert channel.moments_of(nn.Conv2d(16, 32, 3)) == "outputs"
    assert channel.moments_of(nn.Conv2d(8, 32, 3, groups=8)) == "outputs"
    assert channel.moments_of(nn.Conv2d(2, 32, 3)) == "inputs"


def test_the_first_convolution_does_all_of_a_stride():
    layer, image = nn.Conv2d(16, 16, 3, stride=2, padding=1), torch.zeros(1, 16, 16, 16)
    small = channel.truncate(channel.factorize(layer), 4)
    assert isinstance(small, ChannelConv2d)
    assert (small.rank, small.stride) == (4, (2, 2))
    assert count_macs(small, image) == 64 * 4 * (16 * 9 + 16)
    tai = LowRankConv()
    separable = tai.truncate(tai.factorize(layer), 4)
    assert count_macs(separable, image) == 4 * (128 * 48 + 64 * 48)


def test_maximal_rank_and_weights_count_groups():
    layer = nn.Conv2d(8, 12, 3, groups=4)
    # In each group 3 outputs of 2 x 9 entries.
    assert channel.max_rank(layer) == 12 * 2 * 9 // (8 * 9 + 12)
    assert channel.num_weights((12, 2, 3, 3), 2, 4) == 2 * (8 * 9 + 12)


def test_a_layer_that_it_makes_larger_is_refused():
    layer = nn.Conv2d(4, 4, 3, groups=4)
    assert not channel.supports(layer)
    with pytest.raises(ValueError, match="ChannelConv supports exactly"):
        channel.max_rank(layer)
