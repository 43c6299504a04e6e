"""What every decomposition in `DECOMPOSITIONS` promises."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from compression_adapters.calibration.gather import gather_moments
from compression_adapters.decompositions import DECOMPOSITIONS, Moments
from compression_adapters.decompositions.moments import RIDGE

# Said of the dense layer too.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Conv1D(nn.Module):
    """The linear layer of Hugging Face's GPT-2, with its weight `in x out`."""

    def __init__(self, nf, nx, **options):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf, **options) / nx**0.5)
        self.bias = nn.Parameter(torch.randn(nf, **options))

    def forward(self, x):
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(
            size
        )


def conv(*sizes, **geometry):
    return lambda **o: nn.Conv2d(*sizes, **geometry, **o)


def inputs_of(layer, shape, dtype=None, device=None):
    """Correlated entries that are not zero on average; rows of an embedding."""
    if isinstance(layer, nn.Embedding):
        # Some often, some never.
        rows = torch.randn(shape).abs() * len(layer.weight) / 3
        return rows.long().clamp_max(len(layer.weight) - 1).to(device)
    noise = torch.randn(shape, dtype=dtype, device=device)
    return noise + noise.roll(1, -1) + noise.roll(1, 1) + 0.5


# Layers of every kind that some decomposition may support, with inputs for them.
LAYERS = {
    "wide": (lambda **o: nn.Linear(30, 20, **o), (4, 30)),
    "tall": (lambda **o: nn.Linear(9, 25, **o), (4, 9)),
    "square": (lambda **o: nn.Linear(16, 16, **o), (4, 16)),
    "no bias": (lambda **o: nn.Linear(12, 8, bias=False, **o), (4, 12)),
    "three-dimensional input": (lambda **o: nn.Linear(12, 8, **o), (2, 5, 12)),
    "least": (lambda **o: nn.Linear(2, 2, **o), (4, 2)),
    "transposed, wide": (lambda **o: Conv1D(20, 12, **o), (2, 5, 12)),
    "transposed, tall": (lambda **o: Conv1D(9, 14, **o), (4, 14)),
    "embedding": (lambda **o: nn.Embedding(40, 12, **o), (3, 7)),
    "embedding, padding": (lambda **o: nn.Embedding(9, 6, padding_idx=0, **o), (2, 5)),
    "embedding, few rows": (lambda **o: nn.Embedding(5, 12, **o), (3, 7)),
    "3x3": (conv(4, 6, 3), (2, 4, 7, 8)),
    "conv without bias": (conv(5, 4, 3, padding=1, bias=False), (2, 5, 7, 7)),
    "more channels in": (conv(9, 3, 3, padding=1), (2, 9, 6, 6)),
    "stride": (conv(4, 6, 3, stride=2, padding=1), (2, 4, 8, 9)),
    "uneven stride and padding": (
        conv(4, 6, 3, stride=(2, 1), padding=(0, 2)),
        (2, 4, 9, 7),
    ),
    "same": (conv(4, 6, 3, padding="same"), (2, 4, 7, 6)),
    "same, even kernel": (conv(4, 6, (4, 2), padding="same"), (2, 4, 7, 6)),
    "valid": (conv(4, 6, 3, padding="valid"), (2, 4, 7, 6)),
    "dilation": (conv(4, 6, 3, dilation=(2, 3), padding=2), (2, 4, 9, 9)),
    "same, dilation": (conv(4, 6, 3, dilation=2, padding="same"), (2, 4, 9, 9)),
    "reflect": (
        conv(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
        (2, 4, 7, 8),
    ),
    "replicate": (conv(4, 6, 3, padding=1, padding_mode="replicate"), (2, 4, 7, 8)),
    "circular": (
        conv(4, 6, 3, padding="same", padding_mode="circular"),
        (2, 4, 7, 8),
    ),
    "3x5": (conv(4, 6, (3, 5), padding=(1, 2)), (2, 4, 7, 8)),
    "1x7": (conv(4, 6, (1, 7), padding=(0, 3)), (2, 4, 5, 8)),
    "7x1": (conv(4, 6, (7, 1), stride=(3, 1)), (2, 4, 9, 5)),
    "1x1": (conv(12, 10, 1), (2, 12, 4, 5)),
    "1x1 with stride": (conv(12, 10, 1, stride=2, bias=False), (2, 12, 5, 5)),
    "1x1 with padding": (conv(6, 8, 1, padding=1), (2, 6, 4, 4)),
    "1x1 in groups": (conv(12, 18, 1, groups=2), (2, 12, 4, 4)),
    "groups": (conv(8, 12, 3, groups=4, padding=1), (2, 8, 6, 6)),
    "groups, uneven": (
        conv(6, 4, (3, 5), groups=2, stride=(1, 2), padding="valid"),
        (2, 6, 6, 9),
    ),
    "depthwise": (conv(6, 6, 3, groups=6, padding=1), (2, 6, 6, 6)),
    "depthwise, two each": (conv(4, 8, 5, groups=4, padding=2), (2, 4, 6, 6)),
    "one image without a batch": (conv(4, 6, 3), (4, 7, 8)),
}
CASES = [
    pytest.param(decomposition, make, shape, id=f"{name}-{case}")
    for name, decomposition in DECOMPOSITIONS.items()
    for case, (make, shape) in LAYERS.items()
    if decomposition.supports(make())
]
# Each rank of CP is an iterative optimisation of its own: no theory says that its error
# falls as the rank grows, or what the error is.
NESTED = [case for case in CASES if case.values[0].searchable]


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def full_rank(decomposition, factors):
    if decomposition.searchable:
        return len(decomposition.singular_values(factors))
    return factors.weight.numel() // max(factors.weight.shape)


def some_ranks(decomposition, factors):
    """About a dozen where they are slices, a few where each is slow."""
    full = full_rank(decomposition, factors)
    if not decomposition.searchable:
        return sorted({1, 2, full})
    return sorted({1, 2, *range(3, full, 1 + full // 10), full - 1, full} - {0})


def stored(module):
    """Weights of a module; zeros do not count."""
    return sum(int(p.count_nonzero()) for p in module.parameters() if p.ndim >= 2)


def groups_of(layer):
    return getattr(layer, "groups", 1)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_stored_name_is_the_key(name):
    assert DECOMPOSITIONS[name].name == name


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_some_layer_is_supported_and_foreign_ones_are_refused(name):
    decomposition = DECOMPOSITIONS[name]
    assert any(decomposition.supports(make()) for make, _ in LAYERS.values())
    for foreign in (nn.ReLU(), nn.EmbeddingBag(5, 3), nn.LSTM(3, 3)):
        assert not decomposition.supports(foreign)
        for use in (decomposition.max_rank, decomposition.factorize):
            with pytest.raises(ValueError, match=type(foreign).__name__):
                use(foreign)
        with pytest.raises(ValueError, match=type(foreign).__name__):
            decomposition.empty(foreign, 1)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_full_rank_reproduces_the_layer(decomposition, make, shape):
    layer = make(dtype=torch.float64)
    inputs = inputs_of(layer, shape, torch.float64)
    factors = decomposition.factorize(layer)
    whole = decomposition.truncate(factors, full_rank(decomposition, factors))
    torch.testing.assert_close(whole(inputs), layer(inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_full_rank_reproduces_the_layer_in_single_precision(decomposition, make, shape):
    layer = make()
    inputs = inputs_of(layer, shape)
    factors = decomposition.factorize(layer)
    whole = decomposition.finalize(factors, full_rank(decomposition, factors))
    with torch.no_grad():
        error = (whole(inputs) - layer(inputs)).norm() / layer(inputs).norm()
    assert float(error) < 1e-5


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_the_dense_weight_of_a_module_is_what_it_computes_with(
    decomposition, make, shape
):
    layer = make(dtype=torch.float64)
    inputs = inputs_of(layer, shape, torch.float64)
    module = decomposition.truncate(decomposition.factorize(layer), 2)
    twin = copy.deepcopy(layer)
    twin.weight = nn.Parameter(module.weight.detach())
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), twin(inputs))
    for name in ("bias", "in_features", "out_features"):
        if hasattr(layer, name):
            assert hasattr(module, name)
    for name in ("in_channels", "kernel_size", "stride", "padding", "dilation"):
        if hasattr(layer, name):
            assert getattr(module, name) == getattr(layer, name)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_maximal_rank_is_the_last_that_adds_no_weights(decomposition, make, shape):
    layer = make()
    shape_and_groups = tuple(layer.weight.shape), groups_of(layer)
    rank = decomposition.max_rank(layer)
    assert rank >= 1

    def count(rank):
        return decomposition.num_weights(shape_and_groups[0], rank, shape_and_groups[1])

    assert count(rank) <= layer.weight.numel()
    factors = decomposition.factorize(layer)
    if rank < full_rank(decomposition, factors):
        assert count(rank + 1) > layer.weight.numel()


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_counted_weights_are_those_the_module_has(decomposition, make, shape):
    layer = make()
    factors = decomposition.factorize(layer)
    weight_shape = tuple(layer.weight.shape)
    for rank in some_ranks(decomposition, factors):
        count = decomposition.num_weights(weight_shape, rank, groups_of(layer))
        empty = decomposition.empty(layer, rank)
        shapes = [p.shape for p in empty.parameters()]
        module = decomposition.truncate(factors, rank)
        assert [p.shape for p in module.parameters()] == shapes
        final = decomposition.finalize(factors, rank)
        assert [p.shape for p in final.parameters()] == shapes
        if decomposition.name == "pruning":  # which stores its zeros
            assert stored(module) == count
        else:
            assert sum(p.numel() for p in module.parameters() if p.ndim >= 2) == count


@pytest.mark.parametrize(("decomposition", "make", "shape"), NESTED)
def test_error_falls_as_rank_grows(decomposition, make, shape):
    layer = make(dtype=torch.float64)
    factors = decomposition.factorize(layer)
    weight = layer.weight.detach()
    errors = [
        float((decomposition.truncate(factors, rank).weight - weight).norm())
        for rank in some_ranks(decomposition, factors)
    ]
    assert all(a > b - 1e-12 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-12 < errors[0]


@pytest.mark.parametrize(("decomposition", "make", "shape"), NESTED)
def test_truncation_error_is_the_tail_of_the_singular_values(
    decomposition, make, shape
):
    layer = make(dtype=torch.float64)
    weight = layer.weight.detach()
    factors = decomposition.factorize(layer)
    values = decomposition.singular_values(factors)
    assert bool((values >= 0).all())
    for rank in some_ranks(decomposition, factors):
        error = float((decomposition.truncate(factors, rank).weight - weight).norm())
        tail = float(values[rank:].square().sum().sqrt())
        assert error == pytest.approx(tail, rel=1e-6, abs=1e-7 * float(weight.norm()))


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_the_final_module_is_no_worse_than_the_slice(decomposition, make, shape):
    layer = make(dtype=torch.float64)
    factors = decomposition.factorize(layer)
    weight = layer.weight.detach()
    for rank in {1, 2, decomposition.max_rank(layer)}:
        slice_, final = (
            float((build(factors, rank).weight - weight).norm())
            for build in (decomposition.truncate, decomposition.finalize)
        )
        assert final <= slice_ * (1 + 1e-6)


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_factors_survive_a_truncation(decomposition, make, shape):
    factors = decomposition.factorize(make())
    before = decomposition.truncate(factors, 2).weight.clone()
    decomposition.truncate(factors, 1)
    decomposition.finalize(factors, 1)
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
    assert module(inputs_of(layer, shape, dtype, device)).dtype == dtype


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_dtype_is_kept(decomposition, make, shape):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert_kept(decomposition, make, shape, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_device_is_kept():
    for case in CASES:
        assert_kept(*case.values, torch.float32, "cuda")


@pytest.mark.parametrize(("decomposition", "make", "shape"), CASES)
def test_an_empty_module_takes_the_weights_of_a_truncated_one(
    decomposition, make, shape
):
    layer = make()
    inputs = inputs_of(layer, shape)
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


# What follows is of factors fitted to calibration inputs.
FITTED = [
    case for case in NESTED if case.values[0].moments_of(case.values[1]()) is not None
]
# Pruning takes inputs for uncorrelated, and has tests of its own below.
TAILS = [case for case in FITTED if case.values[0].name != "pruning"]
# The least expected squared error of all layers of their shape, at every rank.
EXACT = {"svd", "channel_conv", "embedding"}


def moments_of(decomposition, layer, inputs):
    kind = decomposition.moments_of(layer)
    return gather_moments(nn.Sequential(layer), {"0": kind}, inputs)["0"]


def fitted(decomposition, make, shape, **options):
    """A layer, its calibration inputs, and factors fitted to them."""
    layer = make(**{"dtype": torch.float64, **options})
    inputs = inputs_of(layer, shape, layer.weight.dtype)
    moments = moments_of(decomposition, layer, inputs)
    return layer, inputs, decomposition.factorize(layer, moments)


def in_groups(layer, weight):
    """A weight as a matrix of each group: `groups x out x p`."""
    if type(layer) is Conv1D:
        weight = weight.T
    return weight.detach().double().flatten(1).unflatten(0, (groups_of(layer), -1))


def trace(matrices):
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def ridge(decomposition, layer, inputs, lost):
    """What `Moments` adds to the expected squared error of weights that are lost."""
    centred = getattr(layer, "bias", None) is not None
    moments = moments_of(decomposition, layer, inputs)
    if moments.kind == "frequencies":
        return RIDGE / len(layer.weight) * float(lost.square().sum())
    second = moments.second
    if centred:
        second = second - moments.mean[:, :, None] * moments.mean[:, None, :]
    if moments.kind == "outputs":
        dense = in_groups(layer, layer.weight)
        rho = RIDGE * trace(second) / trace(dense @ dense.mT)
    else:
        rho = RIDGE * trace(second) / second.shape[1]
        rho = rho.where(rho > 0, 1.0)
    return float((rho[:, None, None] * lost.square()).sum())


@torch.no_grad()
def expected_error(decomposition, layer, cut, inputs):
    """Mean squared norm of the output's error over all positions, and the ridge."""
    error = cut(inputs).double() - layer(inputs).double()
    channels = -3 if isinstance(layer, nn.Conv2d) else -1
    found = error.square().sum(channels).mean()
    lost = in_groups(layer, cut.weight) - in_groups(layer, layer.weight)
    return float(found) + ridge(decomposition, layer, inputs, lost)


def ranks_in_play(decomposition, layer, factors):
    largest = decomposition.max_rank(layer)
    return [r for r in {*some_ranks(decomposition, factors), largest} if r <= largest]


@pytest.mark.parametrize(("decomposition", "make", "shape"), TAILS)
def test_expected_error_of_fitted_factors_is_the_tail(decomposition, make, shape):
    layer, inputs, factors = fitted(decomposition, make, shape)
    values = decomposition.singular_values(factors)
    assert bool((values >= 0).all())
    squares = values.square()
    for rank in ranks_in_play(decomposition, layer, factors):
        cut = decomposition.truncate(factors, rank)
        error = expected_error(decomposition, layer, cut, inputs)
        # Where no direction is left, rounding of the total is.
        rounding = 1e-9 * float(squares.sum())
        tail = float(squares[rank:].sum())
        assert error == pytest.approx(tail, rel=1e-6, abs=rounding)


@pytest.mark.parametrize(("decomposition", "make", "shape"), TAILS)
def test_all_singular_values_are_the_expected_norm_of_the_output(
    decomposition, make, shape
):
    layer, inputs, factors = fitted(decomposition, make, shape)
    none = copy.deepcopy(layer)
    with torch.no_grad():
        none.weight.zero_()
        bias = getattr(none, "bias", None)
        if bias is not None:  # the mean is no error: a bias makes up for it
            channels = -3 if isinstance(layer, nn.Conv2d) else -1
            bias.copy_(layer(inputs).movedim(channels, -1).flatten(0, -2).mean(0))
    total = float(decomposition.singular_values(factors).square().sum())
    assert expected_error(decomposition, layer, none, inputs) == pytest.approx(total)


@pytest.mark.parametrize(("decomposition", "make", "shape"), TAILS)
def test_expected_error_of_fitted_factors_falls_and_is_not_above_the_plain_ones(
    decomposition, make, shape
):
    layer, inputs, factors = fitted(decomposition, make, shape)
    plain = decomposition.factorize(layer)
    before = torch.inf
    for rank in sorted(ranks_in_play(decomposition, layer, factors)):
        error, of_plain = (
            expected_error(
                decomposition, layer, decomposition.truncate(some, rank), inputs
            )
            for some in (factors, plain)
        )
        total = float(decomposition.singular_values(factors).square().sum())
        assert error <= before + 1e-9 * total
        # No theorem says so of `low_rank_conv` and `tucker`: of 540 ranks of these
        # layers with three seeds each, one of tucker is above, by 4 %.
        slack = 1.0 if decomposition.name in EXACT else 1.1
        assert error <= slack * of_plain + 1e-9 * total
        before = error


@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_fitted_factors_of_full_rank_reproduce_the_layer(decomposition, make, shape):
    layer, inputs, factors = fitted(decomposition, make, shape)
    whole = decomposition.truncate(factors, full_rank(decomposition, factors))
    torch.testing.assert_close(whole(inputs), layer(inputs), rtol=1e-5, atol=1e-7)
    others = inputs_of(layer, shape, torch.float64)
    torch.testing.assert_close(whole(others), layer(others), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("decomposition", "make", "shape"), TAILS)
def test_the_final_fitted_module_is_no_worse_than_the_slice(decomposition, make, shape):
    layer, inputs, factors = fitted(decomposition, make, shape)
    for rank in {1, 2, decomposition.max_rank(layer)}:
        slice_, final = (
            expected_error(decomposition, layer, build(factors, rank), inputs)
            for build in (decomposition.truncate, decomposition.finalize)
        )
        assert final <= slice_ * (1 + 1e-6)


def zeros(layer, shape, dtype):
    inputs = inputs_of(layer, shape, dtype)
    return torch.zeros_like(inputs)


def one(layer, shape, dtype):
    return inputs_of(layer, shape, dtype)[:1]


def all_alike(layer, shape, dtype):
    inputs = inputs_of(layer, shape, dtype)
    return inputs.flatten()[0].expand(inputs.shape).clone()


def few_directions(layer, shape, dtype):
    inputs = inputs_of(layer, shape, dtype)
    return inputs[..., :1].expand(inputs.shape).clone()


def far_from_zero(layer, shape, dtype):
    """Whose moments rounding makes indefinite in single precision."""
    inputs = inputs_of(layer, shape, dtype)
    return inputs if isinstance(layer, nn.Embedding) else 1e4 + inputs


@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_inputs_that_say_little_do_no_harm(decomposition, make, shape):
    for make_inputs, dtype in itertools.product(
        (zeros, one, all_alike, few_directions), (torch.float32, torch.float64)
    ):
        if shape == (4, 7, 8) and make_inputs is one:
            continue  # an image without a batch is one input
        layer = make(dtype=dtype)
        moments = moments_of(decomposition, layer, make_inputs(layer, shape, dtype))
        assert_harmless(decomposition, layer, moments, inputs_of(layer, shape, dtype))


@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_rounded_moments_and_weights_of_zero_do_no_harm(decomposition, make, shape):
    layer = make()
    inputs = inputs_of(layer, shape)
    far = far_from_zero(layer, shape, torch.float32)
    moments = moments_of(decomposition, layer, far)
    assert_harmless(decomposition, layer, moments, inputs)
    with torch.no_grad():
        layer.weight[: len(layer.weight) // 2].zero_()
    moments = moments_of(decomposition, layer, inputs)
    assert_harmless(decomposition, layer, moments, inputs)
    with torch.no_grad():
        layer.weight.zero_()
    moments = moments_of(decomposition, layer, inputs)
    assert_harmless(decomposition, layer, moments, inputs)


@torch.no_grad()
def assert_harmless(decomposition, layer, moments, inputs):
    factors = decomposition.factorize(layer, moments)
    values = decomposition.singular_values(factors)
    assert bool(torch.isfinite(values).all())
    assert bool((values >= 0).all())
    for rank in {1, 2, decomposition.max_rank(layer)}:
        outputs = decomposition.truncate(factors, rank)(inputs)
        assert bool(torch.isfinite(outputs).all())
    whole = decomposition.truncate(factors, full_rank(decomposition, factors))
    expected = layer(inputs)
    scale = float(expected.abs().max().clamp_min(1e-30))
    tolerance = 1e-3 * scale
    torch.testing.assert_close(whole(inputs), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_fitted_factors_keep_the_dtype_and_stay_close(
    decomposition, make, shape, dtype
):
    layer, inputs, factors = fitted(decomposition, make, shape, dtype=dtype)
    rank = decomposition.max_rank(layer)
    cut = decomposition.truncate(factors, rank)
    assert {p.dtype for p in cut.parameters()} == {dtype}
    outputs = cut(inputs)
    assert outputs.dtype == dtype
    precise = copy.deepcopy(layer).double()
    known = moments_of(decomposition, layer, inputs)
    same = decomposition.truncate(decomposition.factorize(precise, known), rank)
    exact = same(inputs if isinstance(layer, nn.Embedding) else inputs.double())
    error = (outputs.double() - exact).norm() / exact.norm()
    # A few times the precision: the sums are in it too.
    assert float(error) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_neither_layer_nor_moments_are_mutated_or_aliased(decomposition, make, shape):
    layer = make()
    inputs = inputs_of(layer, shape)
    moments = moments_of(decomposition, layer, inputs)
    held = (*layer.state_dict().values(), moments.second, moments.mean)
    before = [tensor.clone() for tensor in held]
    module = decomposition.truncate(decomposition.factorize(layer, moments), 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(*pair) for pair in zip(held, before, strict=True))


@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_fitted_factors_survive_a_truncation_copying_and_pickling(
    decomposition, make, shape
):
    _, inputs, factors = fitted(decomposition, make, shape, dtype=torch.float32)
    before = decomposition.truncate(factors, 2)(inputs)
    decomposition.truncate(factors, 1)
    decomposition.finalize(factors, 1)
    for same in (factors, copy.deepcopy(factors), pickle.loads(pickle.dumps(factors))):
        assert torch.equal(decomposition.truncate(same, 2)(inputs), before)


@pytest.mark.parametrize(("decomposition", "make", "shape"), FITTED)
def test_fitted_modules_have_the_structure_of_plain_ones(decomposition, make, shape):
    layer, _, factors = fitted(decomposition, make, shape)
    for rank in ranks_in_play(decomposition, layer, factors):
        shapes = [p.shape for p in decomposition.empty(layer, rank).parameters()]
        for build in (decomposition.truncate, decomposition.finalize):
            assert [p.shape for p in build(factors, rank).parameters()] == shapes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_device_of_fitted_factors_is_kept():
    for case in FITTED:
        decomposition, make, shape = case.values
        layer = make(device="cuda")
        inputs = inputs_of(layer, shape, device="cuda")
        moments = moments_of(decomposition, layer, inputs)
        assert moments.second.device.type == "cuda"
        module = decomposition.truncate(decomposition.factorize(layer, moments), 1)
        assert {p.device.type for p in module.parameters()} == {"cuda"}
        assert module(inputs).device.type == "cuda"


PRUNED = [case for case in FITTED if case.values[0].name == "pruning"]


@pytest.mark.parametrize(("decomposition", "make", "shape"), PRUNED)
def test_pruned_weights_contribute_the_tail(decomposition, make, shape):
    """By hand: the squares of what is cut, times those of its inputs."""
    layer, inputs, factors = fitted(decomposition, make, shape)
    moments = gather_moments(nn.Sequential(layer), {"0": "inputs"}, inputs)["0"]
    squares = moments.second.diagonal(dim1=1, dim2=2)
    if layer.bias is not None:
        squares = squares - moments.mean.square()
    squares = squares + RIDGE * squares.mean(1, keepdim=True)
    values = decomposition.singular_values(factors)
    dense = in_groups(layer, layer.weight)
    for rank in some_ranks(decomposition, factors):
        cut = decomposition.truncate(factors, rank)
        lost = dense - in_groups(layer, cut.weight)
        tail = float(values[rank:].square().sum())
        cut_off = float((lost.square() * squares[:, None, :]).sum())
        assert cut_off == pytest.approx(tail, rel=1e-5, abs=1e-12)
        if layer.bias is not None:  # which makes up for the mean
            error = (cut(inputs) - layer(inputs)).detach()
            channels = -3 if isinstance(layer, nn.Conv2d) else -1
            mean = error.movedim(channels, -1).flatten(0, -2).mean(0)
            assert float(mean.abs().max()) < 1e-10


def test_moments_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="Moments of inputs must have shapes"):
        Moments("inputs", torch.ones(1, 3), torch.ones(1, 3), 1)
    with pytest.raises(ValueError, match="of at least one input"):
        Moments("squares", torch.ones(1, 3), torch.ones(1, 3), 0)
