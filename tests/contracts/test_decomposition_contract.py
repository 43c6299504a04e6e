"""What every decomposition in `DECOMPOSITIONS` promises."""

import copy
import itertools

import pytest
import torch
from torch import nn

from compression_adapters.decompositions import DECOMPOSITIONS

# Layers of every kind that some decomposition may support, with inputs for them.
LAYERS = {
    "wide": (lambda **o: nn.Linear(30, 20, **o), (4, 30)),
    "tall": (lambda **o: nn.Linear(9, 25, **o), (4, 9)),
    "square": (lambda **o: nn.Linear(16, 16, **o), (4, 16)),
    "no bias": (lambda **o: nn.Linear(12, 8, bias=False, **o), (4, 12)),
    "three-dimensional input": (lambda **o: nn.Linear(12, 8, **o), (2, 5, 12)),
    "least": (lambda **o: nn.Linear(2, 2, **o), (4, 2)),
}
CASES = [
    pytest.param(decomposition, make, shape, id=f"{name}-{case}")
    for name, decomposition in DECOMPOSITIONS.items()
    for case, (make, shape) in LAYERS.items()
    if decomposition.supports(make())
]


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def full_rank(decomposition, factors):
    return len(decomposition.singular_values(factors))


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_stored_name_is_the_key(name):
    assert DECOMPOSITIONS[name].name == name


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_some_layer_is_supported_and_foreign_ones_are_refused(name):
    decomposition = DECOMPOSITIONS[name]
    assert any(decomposition.supports(make()) for make, _ in LAYERS.values())
    for foreign in (nn.ReLU(), nn.Embedding(5, 3), nn.LSTM(3, 3)):
        assert not decomposition.supports(foreign)
        for use in (decomposition.max_rank, decomposition.factorize):
            with pytest.raises(ValueError, match=type(foreign).__name__):
                use(foreign)
        with pytest.raises(ValueError, match=type(foreign).__name__):
            decomposition.empty(foreign, 1)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_full_rank_reproduces_the_layer(decomposition, make, shape):
    layer, inputs = make(dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    factors = decomposition.factorize(layer)
    whole = decomposition.truncate(factors, full_rank(decomposition, factors))
    torch.testing.assert_close(whole(inputs), layer(inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_maximal_rank_is_the_last_that_adds_no_weights(decomposition, make, shape):
    weight = make().weight
    rank = decomposition.max_rank(make())
    assert rank >= 1
    count = decomposition.num_weights
    assert count(tuple(weight.shape), rank) <= weight.numel()
    assert count(tuple(weight.shape), rank + 1) > weight.numel()


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_counted_weights_are_those_the_module_has(decomposition, make, shape):
    layer = make()
    factors = decomposition.factorize(layer)
    for rank in range(1, full_rank(decomposition, factors) + 1):
        module = decomposition.truncate(factors, rank)
        stored = sum(p.numel() for p in module.parameters() if p.ndim >= 2)
        assert stored == decomposition.num_weights(tuple(layer.weight.shape), rank)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_error_falls_as_rank_grows(decomposition, make, shape):
    layer = make(dtype=torch.float64)
    factors = decomposition.factorize(layer)
    weight = layer.weight.detach()
    errors = [
        float((decomposition.truncate(factors, rank).weight - weight).norm())
        for rank in range(1, full_rank(decomposition, factors) + 1)
    ]
    assert all(a > b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_factors_survive_a_truncation(decomposition, make, shape):
    factors = decomposition.factorize(make())
    before = decomposition.truncate(factors, 2).weight.clone()
    decomposition.truncate(factors, 1)
    assert torch.equal(decomposition.truncate(factors, 2).weight, before)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_the_layer_is_neither_mutated_nor_aliased(decomposition, make, shape):
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    module = decomposition.truncate(decomposition.factorize(layer), 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def assert_kept(decomposition, make, shape, dtype, device):
    layer = make(dtype=dtype, device=device)
    module = decomposition.truncate(decomposition.factorize(layer), 1)
    empty = decomposition.empty(layer, 1)
    for parameter in (*module.parameters(), *empty.parameters()):
        assert parameter.dtype == dtype
        assert parameter.device.type == device
    assert module(torch.zeros(shape, dtype=dtype, device=device)).dtype == dtype


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_dtype_is_kept(decomposition, make, shape, dtype):
    assert_kept(decomposition, make, shape, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_device_is_kept(decomposition, make, shape):
    assert_kept(decomposition, make, shape, torch.float32, "cuda")


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_singular_values_are_descending_and_not_negative(decomposition, make, shape):
    values = decomposition.singular_values(decomposition.factorize(make()))
    assert bool((values[:-1] >= values[1:]).all())
    assert bool((values >= 0).all())
    assert len(values) >= decomposition.max_rank(make())


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_an_empty_module_takes_the_weights_of_a_truncated_one(
    decomposition, make, shape
):
    layer, inputs = make(), torch.randn(shape)
    module = decomposition.truncate(decomposition.factorize(layer), 2)
    empty = decomposition.empty(layer, 2)
    empty.load_state_dict(module.state_dict())
    assert type(empty) is type(module)
    torch.testing.assert_close(empty(inputs), module(inputs))


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_illegal_ranks_are_refused(decomposition, make, shape):
    factors = decomposition.factorize(make())
    for rank in (0, full_rank(decomposition, factors) + 1):
        with pytest.raises(ValueError, match=f"rank must lie in 1 to .*got {rank}"):
            decomposition.truncate(factors, rank)
        with pytest.raises(ValueError, match=f"rank must lie in 1 to .*got {rank}"):
            decomposition.empty(make(), rank)
