"""Truncated SVD, against NumPy and the dense layer."""

import numpy as np
import pytest
import torch
from torch import nn

from compression_adapters.decompositions import (
    LowRankLinear,
    TruncatedSVD,
)

svd = TruncatedSVD()


def linear(in_features=30, out_features=20, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(in_features, out_features, **options)


@pytest.mark.parametrize("rank", [1, 5, 12, 19])
def test_truncation_error_is_the_tail_of_the_singular_values(rank):
    # Eckart and Young: no matrix of this rank is nearer in the Frobenius norm.
    layer = linear(dtype=torch.float64)
    weight = layer.weight.detach().numpy()
    tail = np.sqrt((np.linalg.svd(weight, compute_uv=False)[rank:] ** 2).sum())
    small = svd.truncate(svd.factorize(layer), rank)
    error = np.linalg.norm(weight - small.weight.detach().numpy())
    assert error == pytest.approx(tail, rel=1e-10)


def test_singular_values_are_numpys():
    layer = linear(dtype=torch.float64)
    values = svd.singular_values(svd.factorize(layer))
    expected = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)


def test_both_factors_have_the_same_scale():
    factors = svd.factorize(linear())
    torch.testing.assert_close(
        factors.left.norm(dim=0), factors.right.norm(dim=1), rtol=1e-5, atol=0.0
    )


def test_truncation_is_a_slice_and_not_a_copy():
    factors = svd.factorize(linear())
    small = svd.truncate(factors, 5)
    assert small.left.data_ptr() == factors.left.data_ptr()
    assert small.right.data_ptr() == factors.right.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decomposed_in_single_precision(dtype):
    layer = linear(dtype=dtype)
    small = svd.truncate(svd.factorize(layer), 20)
    assert small.left.dtype == small.right.dtype == small.bias.dtype == dtype
    # Two rounded factors of 20 terms each: a few roundings of the largest entry.
    weight = layer.weight.detach().float()
    bound = 20 * torch.finfo(dtype).eps * float(weight.abs().max())
    difference = small.left.float() @ small.right.float() - weight
    assert float(difference.abs().max()) < bound


def test_replacement_offers_what_code_around_linear_layers_reads():
    layer = linear()
    small = svd.truncate(svd.factorize(layer), 20)
    assert (small.in_features, small.out_features, small.rank) == (30, 20, 20)
    torch.testing.assert_close(small.weight, layer.weight)
    torch.testing.assert_close(small.bias, layer.bias)
    assert svd.truncate(svd.factorize(linear(bias=False)), 3).bias is None
    assert not isinstance(small, nn.Linear)


def test_replacement_describes_itself():
    small = LowRankLinear(torch.ones(3, 2), torch.ones(2, 4), None)
    assert repr(small) == (
        "LowRankLinear(in_features=4, out_features=3, rank=2, bias=False)"
    )


@pytest.mark.parametrize("rank", [-1, 0, 21])
def test_an_illegal_rank_is_refused_with_the_shape(rank):
    message = f"1 to 20 for a linear layer of shape 20 x 30; got {rank}"
    with pytest.raises(ValueError, match=message):
        svd.truncate(svd.factorize(linear()), rank)
    with pytest.raises(ValueError, match=message):
        svd.empty(linear(), rank)


def test_subclasses_of_linear_are_refused_by_name():
    projection = nn.MultiheadAttention(8, 2).out_proj
    assert not svd.supports(projection)
    with pytest.raises(ValueError, match="got NonDynamicallyQuantizableLinear"):
        svd.factorize(projection)


def num_weights_triangular(height: int, width: int, rank: int) -> int:
    """The saving that section 3.3 of the paper mentions and its tables do not use."""
    return height * rank + rank * width - rank * (rank - 1) // 2


def test_weights_of_fc3_are_counted_as_in_the_papers_tables():
    # The paper prints 2.62 %; with the triangular saving it would be 2.61 %.
    shapes, ranks = [(1000, 784), (1000, 1000), (10, 1000)], (10, 10, 9)
    total = sum(height * width for height, width in shapes)
    pairs = list(zip(shapes, ranks, strict=True))
    plain = sum(svd.num_weights(shape, rank) for shape, rank in pairs)
    triangular = sum(num_weights_triangular(*shape, rank) for shape, rank in pairs)
    assert total == 1_794_000
    assert plain == 46_930
    assert round(100 * plain / total, 2) == 2.62
    assert round(100 * triangular / total, 2) == 2.61
