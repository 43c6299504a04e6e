"""Random small networks: trial, kept, saved and loaded agree; the original is left."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from compression_adapters import (
    choose_low_rank,
    choose_pruning,
    compression_problem,
    load_compressed,
    save_compressed,
    truncate_network,
)
from compression_adapters.network.modes import evaluation_mode

WIDTH = 6


class Branches(nn.Module):
    def __init__(self, one, other, how):
        super().__init__()
        self.one, self.other, self.how = one, other, how

    def forward(self, x):
        if self.how == "sum":
            return self.one(x) + self.other(x)
        if self.how == "product":
            return self.one(x) * torch.sigmoid(self.other(x))
        return x + 0.5 * self.other(self.one(x))


class Listed(nn.Module):
    """Runs its parts by references that are no registered modules."""

    def __init__(self, parts, way):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        if way == "list":
            self.steps = list(parts)
        elif way == "dict":
            self.steps = dict(enumerate(parts))
        elif way == "methods":
            self.steps = [part.__call__ for part in parts]
        elif way == "partial":
            self.steps = [functools.partial(part) for part in parts]
        else:
            self.steps = [lambda x, i=i: parts[i](x) for i in range(len(parts))]

    def forward(self, x):
        steps = self.steps.values() if isinstance(self.steps, dict) else self.steps
        for step in steps:
            x = step(x)
        return x


class ByKeyword(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(input=x)


class Convolutional(nn.Module):
    def __init__(self, groups, stride):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, stride, 1, groups=groups)
        self.head = nn.Conv2d(8, WIDTH, 1)

    def forward(self, x):
        image = (x[:, None, :, None] * x[:, None, None, :]).repeat(1, 2, 1, 1)
        return self.head(torch.tanh(self.conv(image))).mean((2, 3))


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(0.5).add_(1.0)


class Caching(nn.Module):
    def forward(self, x):
        self.last = x
        return x


def hooked(layer, kind):
    if kind == "forward":
        layer.register_forward_hook(lambda m, i, o: 1.5 * o)
    elif kind == "pre":
        layer.register_forward_pre_hook(lambda m, i: (i[0] - 0.1,))
    elif kind == "buffer":
        layer.register_buffer("scale", torch.full((1,), 2.0))
        layer.register_forward_hook(lambda m, i, o: m.scale * o)
    elif kind == "frozen":
        layer.requires_grad_(False)
    elif kind == "masked":
        prune.l1_unstructured(layer, "weight", 3)
    elif kind == "normed":
        parametrizations.weight_norm(layer)
    return layer


KINDS = ("plain", "plain", "forward", "pre", "buffer", "frozen", "masked", "normed")


@st.composite
def layers(draw):
    bias, kind = draw(st.booleans()), draw(st.sampled_from(KINDS))
    return hooked(nn.Linear(WIDTH, WIDTH, bias=bias), kind)


@st.composite
def networks(draw, depth=2):
    """A module from `WIDTH` to `WIDTH` features, and so on inside it."""
    kinds = [] if depth == 2 else ["layer", "keyword", "convolutional", "small"]
    if depth:
        kinds += ["sequence", "branches", "shared", "listed", "listed", "caching"]
    kind = draw(st.sampled_from(kinds))
    if kind == "layer":
        return draw(layers())
    if kind == "keyword":
        return ByKeyword(nn.Linear(WIDTH, WIDTH, bias=draw(st.booleans())))
    if kind == "convolutional":
        return Convolutional(draw(st.sampled_from((1, 2))), draw(st.integers(1, 2)))
    if kind == "small":
        return draw(st.sampled_from((nn.Tanh, nn.LayerNorm, InPlace)).map(small))
    inner = networks(depth=depth - 1)
    if kind == "sequence":
        return nn.Sequential(*draw(st.lists(inner, min_size=1, max_size=3)))
    if kind == "branches":
        how = draw(st.sampled_from(("sum", "product", "residual")))
        return Branches(draw(inner), draw(inner), how)
    if kind == "shared":
        one = draw(inner)
        return nn.Sequential(one, nn.Tanh(), one, draw(inner), one)
    if kind == "listed":
        way = draw(st.sampled_from(("list", "dict", "methods", "partial", "closure")))
        return Listed(draw(st.lists(inner, min_size=1, max_size=3)), way)
    return nn.Sequential(Caching(), draw(inner), Caching())


def small(kind):
    return kind(WIDTH) if kind is nn.LayerNorm else kind()


HEADS = ("vector", "scalar", "complex", "image")


class Whole(nn.Module):
    """A random body between a layer that is always there and an output of any kind."""

    def __init__(self, body, head, dtype, *, in_place=False):
        super().__init__()
        self.in_place = in_place
        self.first, self.body, self.head = nn.Linear(WIDTH, WIDTH), body, head
        self.to(dtype)

    def forward(self, x):
        if self.in_place:
            x.mul_(2.0)
        x = self.body(torch.tanh(self.first(x)))
        if self.head == "scalar":
            return (x * torch.arange(WIDTH)).sum(1)
        if self.head == "complex":
            return torch.complex(x.double(), x.double().square())
        return x[:, None, :, None] if self.head == "image" else x


def state_of(network):
    """Identities and values of everything that a network holds."""
    found = []
    for name, module in network.named_modules(remove_duplicate=False):
        found.append((name, id(module), type(module), sorted(vars(module))))
        found += map(tuple, (module._forward_hooks, module._forward_pre_hooks))
        for key, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None:
                values = t.detach().float().tolist()
                found.append((key, id(t), t.dtype, t.requires_grad, values))
    return found


def check(data, folder):
    seed = data.draw(st.integers(0, 1000), label="seed")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = data.draw(networks(), label="body")
        head = data.draw(st.sampled_from(HEADS), label="head")
        dtype = data.draw(
            st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
            label="dtype",
        )
        in_place = data.draw(st.booleans(), label="in place")
        network = Whole(body, head, dtype, in_place=in_place).eval()
        if data.draw(st.booleans(), label="training"):
            network.train()
        inputs = torch.randn(20, WIDTH).to(dtype)
    choose = data.draw(st.sampled_from((choose_low_rank, choose_pruning)))
    before, untouched = state_of(network), inputs.clone()
    problem = compression_problem(
        network, inputs, gamma=1.0, num_samples=8, choose=choose
    )
    assert state_of(network) == before
    full = {
        layer.name: len(
            layer.decomposition.singular_values(problem.factors[layer.name])
        )
        for layer in problem.layers
    }
    whole = truncate_network(problem.network, problem.factors, problem.layers, full)
    # Eight bits, through up to six layers whose differences may cancel.
    rough = 0.2 if dtype is torch.bfloat16 else 1e-3
    with evaluation_mode(whole), evaluation_mode(problem.network):
        expected = problem.network(inputs.clone())
        gap = (whole(inputs.clone()) - expected).abs().max()
        assert gap <= rough * expected.abs().max()
    point = {
        parameter.name: data.draw(st.sampled_from((0.0, 0.3, 0.7, 1.0)))
        for parameter in problem.parameters
    }
    trial = problem.evaluate(point, seed=1)["loss"].mean
    small = problem.compress(point)
    kept = problem.network_loss(small, seed=1).mean
    assert kept == pytest.approx(trial, rel=rough, abs=rough * 1e-2)
    assert state_of(network) == before
    assert torch.equal(inputs, untouched)
    save_compressed(small, problem.layers, problem.ranks(point), folder)
    loaded = load_compressed(folder, network)
    with evaluation_mode(small), evaluation_mode(loaded):
        assert torch.equal(loaded(inputs.clone()), small(inputs.clone()))
    assert state_of(network) == before


OPTIONS = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# A warning is an error: no layer of these networks is without effect.


@given(st.data())
@settings(max_examples=40, **OPTIONS)
def test_forty_random_networks(tmp_path_factory, data):
    check(data, tmp_path_factory.mktemp("network"))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=500, **OPTIONS)
def test_five_hundred_random_networks(tmp_path_factory, data):
    check(data, tmp_path_factory.mktemp("network"))
