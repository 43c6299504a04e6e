"""Layers become what replaces them, however the network reaches them."""

import copy
import functools
import re
import threading

import pytest
import torch
from torch import nn

from compression_adapters import (
    DECOMPOSITIONS,
    choose_pruning,
    compression_problem,
    factorize_network,
    find_layers,
    load_compressed,
    plain_layers,
    profile,
    save_compressed,
    truncate_network,
)
from compression_adapters.network.replacement import copy_network, replaced
from compression_adapters.network.truncation import truncated

RANKS = {"a": 1, "b": 3}
INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Alias(nn.Module):
    """Two layers that the forward pass reaches by another way than their names."""

    def __init__(self, way):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        way(self)
        self.eval()

    def forward(self, x):
        return self.run(x)


def plain_list(net):
    net.steps = [net.a, torch.tanh, net.b]
    net.run = functools.partial(run_all, net.steps)


def run_all(steps, x):
    for step in steps:
        x = step(x)
    return x


def dictionary(net):
    net.parts = {"first": [net.a], "second": (net.b,)}
    net.run = functools.partial(run_parts, net.parts)


def run_parts(parts, x):
    return parts["second"][0](torch.tanh(parts["first"][0](x)))


def closure(net):
    a, rest = net.a, [net.b]
    net.run = lambda x: rest[0](torch.tanh(a(x)))


def closure_on_itself(net):
    net.run = lambda x: net.b(torch.tanh(net.a(x)))


def default_argument(net):
    def run(x, a=net.a, *, b=net.b):
        return b(torch.tanh(a(x)))

    net.run = run


def bound_methods(net):
    net.first, net.second = net.a.__call__, net.b.__call__
    net.run = lambda x: net.second(torch.tanh(net.first(x)))


def decorated(net):
    def logged(function):
        calls = []

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            calls.append(len(args))
            return function(*args, **kwargs)

        return wrapper

    net.run = logged(lambda x: net.b(logged(torch.tanh)(net.a(x))))
    net.forward = logged(torch.no_grad()(net.forward))


def partial_of_a_closure(net):
    a, b = net.a.forward, net.b
    net.run = functools.partial(lambda x, scale: b(torch.tanh(a(x)) * scale), scale=1)


def recursive_closure(net):
    def run(x, left=2):
        if left == 2:
            return run(torch.tanh(net.a(x)), 1)
        return net.b(x)

    net.run = run


class Helper:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net.b(torch.tanh(self.net.a(x)))


def helper_object(net):
    net.run = Helper(net)


def compiled_layer(net):
    net.a = torch.compile(net.a, backend="eager")
    net.b.compile(backend="eager")
    net.run = Helper(net)


def registered_twice(net):
    net.blocks = nn.ModuleList([net.a, nn.Tanh(), net.b])
    net.run = functools.partial(run_all, net.blocks)


WAYS = [
    *(plain_list, dictionary, closure, closure_on_itself, default_argument),
    *(decorated, partial_of_a_closure, recursive_closure),
    *(bound_methods, helper_object, registered_twice, compiled_layer),
]


def best(layer, rank):
    """The linear layer's output at a rank, by hand."""
    u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    return lambda x: x @ ((u[:, :rank] * s[:rank]) @ vh[:rank]).T + layer.bias.detach()


@pytest.mark.parametrize("way", WAYS)
def test_trial_and_kept_network_follow_every_alias(way, tmp_path):
    network = Alias(way)
    layers = find_layers(network)
    ranks = {
        layer.name: RANKS[layer.name.removesuffix("._orig_mod")] for layer in layers
    }
    factors = factorize_network(network, layers)
    a, b = (network.get_submodule(layer.name) for layer in layers)
    expected = best(b, 3)(torch.tanh(best(a, 1)(INPUTS)))
    with torch.no_grad():
        dense = network(INPUTS)
        with truncated(network, factors, layers, ranks):
            torch.testing.assert_close(network(INPUTS), expected)
        assert torch.equal(network(INPUTS), dense)
        small = truncate_network(network, factors, layers, ranks)
        torch.testing.assert_close(small(INPUTS), expected)
        assert torch.equal(network(INPUTS), dense)
        save_compressed(small, layers, ranks, tmp_path)
        loaded = load_compressed(tmp_path, Alias(way))
        assert torch.equal(loaded(INPUTS), small(INPUTS))
        # The copies are independent of the original.
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(small(INPUTS), expected)
        torch.testing.assert_close(loaded(INPUTS), expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_of_a_search_is_that_of_the_network_that_is_kept(way):
    problem = compression_problem(Alias(way), INPUTS, gamma=1.0, num_samples=6)
    point = {parameter.name: 0.0 for parameter in problem.parameters}
    trial = problem.evaluate(point, seed=0)["loss"].mean
    assert trial > 1e-3
    kept = problem.network_loss(problem.compress(point), seed=0).mean
    assert kept == pytest.approx(trial, rel=1e-4)


GLOBAL = nn.Linear(8, 8)


class ByGlobalName(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), GLOBAL

    def forward(self, x):
        return GLOBAL(self.a(x))


class NotCopied(nn.Module):
    """Its layer is reached through an object that a copy shares."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        class Holder:
            def __init__(self, layer):
                self.layer = layer

            def __deepcopy__(self, memo):
                return self

        self.holder = Holder(self.b)

    def forward(self, x):
        return self.holder.layer(self.a(x))


@pytest.mark.parametrize("make", [ByGlobalName, NotCopied])
def test_a_layer_that_a_copy_does_not_follow_is_refused_by_name(make):
    # The search runs a copy, whose own layer is never called.
    with pytest.warns(UserWarning, match="take no part.*'b': .*does not call it"):
        problem = compression_problem(make(), INPUTS, gamma=1.0, num_samples=6)
    assert [layer.name for layer in problem.layers] == ["a"]


def test_a_trial_that_differs_from_its_copy_is_refused_by_the_name_of_the_layer():
    with pytest.raises(ValueError, match=r"Layer '0\.a': a trial and a copy"):
        compression_problem(nn.Sequential(Odd()), INPUTS, gamma=1.0, num_samples=6)


class Odd(nn.Module):
    """Copies of a factored layer have other biases than it has."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def __deepcopy__(self, memo):
        new = Odd()
        new.load_state_dict(self.state_dict(), strict=False)
        if type(self.a) is not nn.Linear:
            new.a = copy.deepcopy(self.a, memo)
            nn.init.constant_(new.a.bias, 7.0)
        return new

    def forward(self, x):
        return self.a(x)


def two_layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).eval()


FULL = {"0": 8, "2": "dense"}


def at_full_rank(network):
    layers = find_layers(network)
    return truncate_network(
        network, factorize_network(network, layers), layers, FULL
    ), layers


@pytest.mark.parametrize(
    "hang",
    [
        lambda m: m.register_forward_hook(lambda m, i, o: 3 * o),
        lambda m: m.register_forward_pre_hook(lambda m, i: (2 * i[0],)),
        lambda m: m.register_forward_hook(
            lambda m, i, k, o: o - 1, with_kwargs=True, always_call=True
        ),
        lambda m: m.register_forward_pre_hook(
            lambda m, i, k: ((i[0] + 1,), k), with_kwargs=True
        ),
    ],
)
def test_forward_hooks_run_in_trials_and_in_the_kept_network(hang):
    network = two_layers()
    hang(network[0])
    expected = network(INPUTS)
    assert not torch.allclose(expected, two_layers()(INPUTS))
    small, layers = at_full_rank(network)
    torch.testing.assert_close(small(INPUTS), expected)
    factors = factorize_network(network, layers)
    with truncated(network, factors, layers, FULL):
        torch.testing.assert_close(network(INPUTS), expected)


def test_backward_and_state_dict_hooks_buffers_and_attributes_are_kept():
    network = two_layers()
    seen = []
    layer = network[0]
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: seen.append("state"))
    layer.register_buffer("scale", torch.ones(2))
    layer.register_buffer("passing", torch.ones(1), persistent=False)
    layer.note = {"by": "me"}
    small, _ = at_full_rank(network)
    small(INPUTS.clone().requires_grad_()).sum().backward()
    small.state_dict()
    assert "backward" in seen
    assert "state" in seen
    assert torch.equal(small[0].scale, torch.ones(2))
    assert "0.scale" in small.state_dict()
    assert "0.passing" not in small.state_dict()
    assert small[0].note == {"by": "me"}
    assert small[0].note is not layer.note
    assert type(small[0]).__name__ == "LowRankLinear"
    assert dict(small.named_modules())["0"].in_features == 8


def test_hooks_on_the_parts_of_a_factored_layer_survive_pruning():
    network = nn.Sequential(nn.Conv2d(4, 8, 3)).eval()
    layers = find_layers(network)
    small = truncate_network(
        network, factorize_network(network, layers), layers, {"0": 3}
    )
    small[0].vertical.register_forward_hook(lambda m, i, o: 2 * o)
    images = torch.randn(2, 4, 6, 6)
    expected = small(images)
    again = find_layers(small, choose_pruning)
    factors = factorize_network(small, again)
    pruned = truncate_network(small, factors, again, {"0": again[0].max_rank})
    torch.testing.assert_close(pruned(images), expected)
    with truncated(small, factors, again, {"0": again[0].max_rank}):
        torch.testing.assert_close(small(images), expected)


def test_weights_and_biases_are_trainable_where_they_were():
    network = two_layers()
    network[0].weight.requires_grad_(False)
    network[2].bias.requires_grad_(False)
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"0": 2, "2": 2})
    grads = {name: p.requires_grad for name, p in small.named_parameters()}
    assert grads == {
        **{"0.left": False, "0.right": False, "0.bias": True},
        **{"2.left": True, "2.right": True, "2.bias": False},
    }


def test_after_a_trial_a_layer_is_the_same_object_with_the_same_state():
    network = two_layers()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    layer, state = network[0], vars(network[0])
    entries = dict(state)
    with truncated(network, factors, layers, {"0": 2, "2": 2}):
        layer.left_behind = 1
        assert vars(layer) is not state
    assert vars(layer) is state
    assert state == entries
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("name", ["svd", "low_rank_conv", "tucker", "cp", "pruning"])
def test_factored_layers_take_the_argument_names_of_what_they_replace(name):
    decomposition = DECOMPOSITIONS[name]
    layers = (nn.Linear(8, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    for layer in filter(decomposition.supports, layers):
        new = decomposition.truncate(decomposition.factorize(layer), 2)
        x = INPUTS if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
        assert torch.equal(new(input=x), new(x))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(input=torch.tanh(self.a(input=x)))


def test_a_layer_called_by_keyword_is_searched_and_profiled():
    problem = compression_problem(ByKeyword(), INPUTS, gamma=1.0, num_samples=6)
    assert problem.evaluate({"a": 0.0, "b": 0.0}, seed=0)["loss"].mean > 0
    assert profile(ByKeyword(), INPUTS).layers["macs"].tolist() == [64, 64]


def patched(layer):
    layer.forward = functools.partial(nn.functional.relu, inplace=False)


def adapted(layer):
    layer.register_parameter("extra", nn.Parameter(torch.ones(8)))


def with_a_part(layer):
    layer.adapter = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (patched, "its forward was replaced on the instance.*del layer.forward"),
        (adapted, "holds more than a weight and a bias: extra"),
        (with_a_part, "holds more than a weight and a bias: adapter"),
        (
            lambda m: nn.utils.parametrizations.weight_norm(m),
            "its weight is computed by a parametrization",
        ),
    ],
)
def test_what_cannot_be_carried_over_leaves_a_layer_out_with_a_reason(change, reason):
    network = two_layers()
    change(network[0])
    assert "0" not in {layer.name for layer in find_layers(network)}
    skipped = profile(network).skipped.set_index("layer")["reason"]
    assert re.search(reason, skipped["0"])
    with pytest.raises(ValueError, match=reason):
        find_layers(network, lambda n, m: DECOMPOSITIONS["svd"] if n == "0" else None)


class ListedWeights(nn.Module):
    """Uses the weight of a layer without calling the layer, from a plain list."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.weights = [self.a.weight]

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) @ self.weights[0]


class Functional(nn.Module):
    """Uses the transposed weight of a layer that it also calls, or only the weight."""

    def __init__(self, calls):
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(8, 8), nn.Linear(8, 8), calls

    def forward(self, x):
        x = self.b(x)
        if self.calls:
            x = self.a(x)
        return nn.functional.linear(x, self.a.weight.T)


def test_a_weight_that_is_used_without_its_layer_is_left_out_or_measured():
    with pytest.warns(UserWarning, match="'a' shares its weight"):
        assert [layer.name for layer in find_layers(ListedWeights())] == ["b"]
    for calls in (True, False):
        network = Functional(calls)
        problem = compression_problem(network, INPUTS, gamma=1.0, num_samples=6)
        point = {"a": 0.0, "b": 1.0}
        kept = problem.network_loss(problem.compress(point), seed=0).mean
        trial = problem.evaluate(point, seed=0)["loss"].mean
        assert kept == pytest.approx(trial, rel=1e-4)
        assert kept > 0


def locked(network):
    network[2].guard = {"locks": [threading.Lock()]}


def open_file(network):
    network[0].register_forward_hook(Logger().log)


class Logger:
    def __init__(self):
        self.file = threading.Condition()

    def log(self, module, inputs, output):
        return None


class Kept:
    def __init__(self, value):
        self.value = value


def not_a_leaf(network):
    network.kept = Kept(network[0].weight * 2)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (locked, r"2\.guard\['locks'\]\[0\] \(lock\)"),
        (open_file, r"0\._forward_hooks\[\d+\]\.__self__\.file.* \(R?[lL]ock"),
        (not_a_leaf, r"kept\.value \(Tensor\)"),
    ],
)
def test_a_network_that_cannot_be_copied_is_refused_by_path_before_it_is_decomposed(
    change, path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("decomposed")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    network = two_layers()
    change(network)
    with pytest.raises(ValueError, match=f"cannot be copied.*its attribute {path}"):
        compression_problem(network, INPUTS, gamma=1.0, num_samples=6)


def test_tensors_that_are_no_leaves_are_copied_from_lists_and_dictionaries():
    network = two_layers()
    network.seen = {"outputs": [network[0].weight * 2]}
    copied = copy_network(network)
    assert torch.equal(copied.seen["outputs"][0], network.seen["outputs"][0])
    assert not copied.seen["outputs"][0].requires_grad


def test_a_module_whose_class_has_another_layout_is_refused():
    class Slotted(nn.Identity):
        __slots__ = ("extra",)

    layer = nn.Linear(2, 2)
    with (
        pytest.raises(ValueError, match="A Linear cannot become a Slotted"),
        replaced([(layer, Slotted())]),
    ):
        pass
    assert type(layer) is nn.Linear


def test_twenty_layers_are_replaced_and_restored():
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    before = [vars(layer) for layer in network]
    with replaced([(layer, nn.Identity()) for layer in network]):
        assert torch.equal(network(INPUTS), INPUTS)
    assert all(vars(m) is state for m, state in zip(network, before, strict=True))


def test_factored_linear_layers_become_plain_ones_for_tools_that_go_by_type():
    network = two_layers()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"0": 2, "2": 3})
    small[0].register_forward_hook(lambda m, i, o: o + 1)
    plain = plain_layers(small)
    torch.testing.assert_close(plain(INPUTS), small(INPUTS))
    assert [type(m) for m in plain.modules()].count(nn.Linear) == 4
    assert type(small[0]).__name__ == "LowRankLinear"
    assert all(p.requires_grad for p in plain.parameters())
    with torch.no_grad():
        plain[0][0].weight.zero_()
    assert not torch.allclose(plain(INPUTS), small(INPUTS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plain_layers_are_quantized():
    network = two_layers()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"0": 2, "2": 3}).eval()
    quantize = torch.ao.quantization.quantize_dynamic
    quantized = quantize(plain_layers(small), {nn.Linear}, dtype=torch.qint8)
    kinds = [type(m).__name__ for m in quantized.modules()]
    assert kinds.count("Linear") == 4
    assert not any(type(m) is nn.Linear for m in quantized.modules())
    torch.testing.assert_close(
        quantized(INPUTS), small(INPUTS).detach(), rtol=0.1, atol=0.1
    )


class Conv1D(nn.Module):
    """Like Hugging Face's linear layer by its name only: it has no `nf`."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8, 8)), nn.Parameter(INPUTS[0])

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class OwnLayer(Conv1D):
    pass


def test_layers_that_no_decomposition_knows_are_named_with_their_reason():
    network = nn.Sequential(Conv1D(), nn.Tanh(), OwnLayer())
    reason = r"(?s)0 \(Conv1D\): no decomposition supports Conv1D"
    with pytest.raises(ValueError, match=reason) as e:
        find_layers(network)
    assert "2 (OwnLayer): no decomposition supports OwnLayer" in str(e.value)
    assert profile(network).skipped["layer"].tolist() == ["0", "2"]
