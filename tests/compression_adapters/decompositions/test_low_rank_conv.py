"""Low-rank convolutions, against NumPy and the paper's formula."""

import numpy as np
import pytest
import torch
from torch import nn

from compression_adapters.decompositions import LowRankConv, LowRankConv2d, TruncatedSVD

tai = LowRankConv()


def conv(*sizes, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(*sizes, **options)


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "size"),
    [(64, 64, 3), (256, 512, 3), (48, 24, 5), (3, 64, 3)],
)
def test_maximal_rank_is_the_papers(channels_in, channels_out, size):
    # k C_in C_out / (C_in + C_out), for square kernels and one group.
    expected = size * channels_in * channels_out // (channels_in + channels_out)
    layer = nn.Conv2d(channels_in, channels_out, size)
    full = min(size * channels_in, size * channels_out)
    assert tai.max_rank(layer) == min(expected, full)


def test_maximal_ranks_of_resnet18_are_those_of_the_paper():
    sizes = (64, 128, 256, 512)
    ranks = [tai.max_rank(nn.Conv2d(c, c, 3, bias=False)) for c in sizes]
    assert ranks == [96, 192, 384, 768]


def test_singular_values_are_numpys():
    layer = conv(4, 6, (3, 5), dtype=torch.float64)
    matrix = layer.weight.detach().numpy().transpose(1, 2, 0, 3).reshape(12, 30)
    values = tai.singular_values(tai.factorize(layer)).numpy()
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False))


def test_groups_are_separate_layers_side_by_side():
    layer = conv(8, 12, 3, groups=4, padding=1, dtype=torch.float64)
    small = tai.truncate(tai.factorize(layer), 2)
    for group in range(4):
        alone = conv(2, 3, 3, dtype=torch.float64)
        alone.weight = nn.Parameter(layer.weight[3 * group : 3 * group + 3])
        expected = tai.truncate(tai.factorize(alone), 2).weight
        torch.testing.assert_close(small.weight[3 * group : 3 * group + 3], expected)


def test_first_convolution_takes_the_rows_and_the_second_one_the_columns():
    layer = conv(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(4, 5))
    small = tai.truncate(tai.factorize(layer), 2)
    first, second = small.vertical, small.horizontal
    assert (first.stride, second.stride) == ((2, 1), (1, 3))
    assert (first.padding, second.padding) == ((1, 0), (0, 2))
    assert (first.dilation, second.dilation) == ((4, 1), (1, 5))
    assert first.bias is None
    assert torch.equal(second.bias, layer.bias)


def test_a_truncation_draws_no_random_numbers():
    factors = tai.factorize(conv(4, 6, 3))
    state = torch.get_rng_state()
    tai.truncate(factors, 2)
    tai.empty(conv(4, 6, 3), 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_truncation_without_groups_is_a_slice_and_not_a_copy():
    factors = tai.factorize(conv(4, 6, 3))
    small = tai.truncate(factors, 3)
    assert small.vertical.weight.data_ptr() == factors.vertical.data_ptr()
    assert small.horizontal.weight.data_ptr() == factors.horizontal.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decomposed_in_single_precision(dtype):
    layer = conv(8, 8, 3).to(dtype)
    small = tai.truncate(tai.factorize(layer), 24)
    assert isinstance(small, LowRankConv2d)
    weight = layer.weight.detach().float()
    error = (small.float().weight - weight).norm() / weight.norm()
    # Two rounded factors, whose errors add up as independent ones.
    assert float(error) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("rank", [-1, 0, 13])
def test_an_illegal_rank_is_refused_with_the_shape(rank):
    message = f"1 to 12 for a convolution with .* 6 x 4 x 3 x 3; got {rank}"
    with pytest.raises(ValueError, match=message):
        tai.truncate(tai.factorize(conv(4, 6, 3)), rank)
    with pytest.raises(ValueError, match=message):
        tai.empty(conv(4, 6, 3), rank)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv3d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3),
        nn.Conv2d(4, 4, 1, groups=4),  # rank 1 would double it
    ],
)
def test_other_layers_are_refused_by_name(layer):
    assert not tai.supports(layer)
    with pytest.raises(ValueError, match=f"got {type(layer).__name__}"):
        tai.factorize(layer)


def test_a_layer_that_rank_one_leaves_as_large_is_accepted():
    assert tai.max_rank(nn.Conv2d(1, 1, 2)) == 1


def test_a_pointwise_convolution_is_the_svd_of_its_matrix():
    layer = conv(12, 10, 1, dtype=torch.float64)
    svd = TruncatedSVD()
    small = svd.truncate(svd.factorize(layer), 4)
    u, s, vh = torch.linalg.svd(layer.weight.detach().flatten(1))
    expected = (u[:, :4] * s[:4]) @ vh[:4]
    torch.testing.assert_close(small.weight.flatten(1), expected)
    assert not svd.supports(conv(12, 10, 3))
