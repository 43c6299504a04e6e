"""Low-rank embeddings, against SVDs and token counts by hand."""

import copy

import pytest
import torch
from torch import nn

from compression_adapters.calibration.gather import gather_moments
from compression_adapters.decompositions import LowRankEmbedding, LowRankEmbeddings
from compression_adapters.decompositions.moments import RIDGE

embedding = LowRankEmbeddings()


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def frequencies(layer, tokens):
    return gather_moments(nn.Sequential(layer), {"0": "frequencies"}, tokens)["0"]


def test_without_frequencies_it_is_the_svd():
    layer = nn.Embedding(30, 8).double()
    factors = embedding.factorize(layer)
    u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    torch.testing.assert_close(embedding.singular_values(factors), s)
    small = embedding.truncate(factors, 3)
    torch.testing.assert_close(small.weight, (u[:, :3] * s[:3]) @ vh[:3])


def test_moments_are_the_share_of_each_token():
    layer = nn.Embedding(6, 4)
    tokens = torch.tensor([[0, 0, 0, 1], [1, 2, 0, 5]])
    moments = frequencies(layer, tokens)
    assert moments.second.tolist() == [[4 / 8, 2 / 8, 1 / 8, 0, 0, 1 / 8]]
    assert moments.count == 8
    short = frequencies(layer, tokens.int())
    assert torch.equal(short.second, moments.second)


def test_the_expected_error_is_the_least_by_the_frequencies_of_the_tokens():
    layer = nn.Embedding(40, 8).double()
    tokens = (torch.randn(50, 20).abs() * 10).long().clamp_max(29)  # 30 to 39 unseen
    factors = embedding.factorize(layer, frequencies(layer, tokens))
    counts = tokens.flatten().bincount(minlength=40).double()
    share = counts / counts.sum()
    rho = RIDGE / 40
    weights = (share + rho).sqrt()[:, None]
    best = torch.linalg.svdvals(weights * layer.weight.detach())
    torch.testing.assert_close(embedding.singular_values(factors), best)
    for rank in (1, 4, 8):
        small = embedding.truncate(factors, rank)
        with torch.no_grad():
            mean = (small(tokens) - layer(tokens)).square().sum(2).mean()
        lost = (small.weight - layer.weight).detach().square().sum()
        torch.testing.assert_close(
            mean + rho * lost, best[rank:].square().sum(), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padding_row_of_zeros_stays_zero(dtype):
    layer = nn.Embedding(20, 6, padding_idx=0, dtype=dtype)
    tokens = torch.tensor([[3, 4, 0, 0]])
    moments = frequencies(layer, tokens)
    small = embedding.truncate(embedding.factorize(layer, moments), 2)
    assert small.padding_idx == 0
    assert not bool(small(tokens)[0, 2:].any())
    trained = copy.deepcopy(small)
    trained.left.requires_grad_()
    trained(tokens).sum().backward()
    assert not bool(trained.left.grad[0].any())
    assert bool(trained.left.grad[3].any())


def test_the_module_has_the_attributes_of_an_embedding():
    small = LowRankEmbedding(torch.ones(5, 2), torch.ones(2, 3), 1)
    assert (small.num_embeddings, small.embedding_dim, small.rank) == (5, 3, 2)
    assert repr(small) == "LowRankEmbedding(5, 3, padding_idx=1, rank=2)"
    assert small.weight.tolist() == [[2.0] * 3] * 5


@pytest.mark.parametrize(
    "options", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}]
)
def test_embeddings_that_do_more_than_look_up_are_refused(options):
    layer = nn.Embedding(9, 4, **options)
    assert not embedding.supports(layer)
    with pytest.raises(ValueError, match="without max_norm, sparse or scale_grad"):
        embedding.factorize(layer)


@pytest.mark.parametrize("rank", [0, 5])
def test_an_illegal_rank_is_refused(rank):
    with pytest.raises(ValueError, match=f"1 to 4 for an embedding.*got {rank}"):
        embedding.truncate(embedding.factorize(nn.Embedding(9, 4)), rank)
