"""`compress` leaves the user's network exactly as it is, whatever hangs on it."""

import collections
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compression_adapters import compress

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    # From inside dynamo.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

INPUTS = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Two layers; what is awkward comes on top."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Hooked(Body):
    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda m, i, o: 2 * o)
        self.b.register_forward_pre_hook(lambda m, i, k: (i, k), with_kwargs=True)
        self.a.register_full_backward_hook(lambda *_: None)
        self.register_state_dict_post_hook(lambda *_: None)
        self.b.register_load_state_dict_post_hook(lambda *_: None)


class InMixedModes(Body):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(8).eval()
        self.b.eval()

    def forward(self, x):
        return self.dropout(self.norm(super().forward(x)))


class PartlyFrozen(Body):
    def __init__(self):
        super().__init__()
        self.a.weight.requires_grad_(False)
        self.b.bias.grad = torch.ones(8)


class Caching(Body):
    """Keeps tensors, counts and lists of its forward passes."""

    def __init__(self):
        super().__init__()
        self.passes, self.last, self.seen, self.mask = 0, None, [], None
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(8)
        self.passes += 1
        self.last = super().forward(x * self.mask)
        self.seen.append(len(x))
        self.total += 1
        return self.last


class MergesOnEval(Body):
    """Changes its weights in place when its mode changes, as LoRA's layers do."""

    def __init__(self):
        super().__init__()
        self.low, self.merged = nn.Parameter(torch.ones(8, 8)), False

    def train(self, mode=True):
        if mode == self.merged:
            with torch.no_grad():
                self.a.weight += self.low if not mode else -self.low
            self.merged = not mode
        return super().train(mode)


class NormsItsWeightInPlace(Body):
    def forward(self, x):
        self.a.weight.data = nn.functional.normalize(self.a.weight.data)
        return super().forward(x)


class WorksInPlace(Body):
    def forward(self, x):
        x.sub_(2.0)
        return super().forward(x)


class Aliased(Body):
    def __init__(self):
        super().__init__()
        self.steps = [self.a, torch.tanh, self.b]
        self.again = self.a
        self.run = lambda x: self.b(torch.tanh(self.a(x)))

    def forward(self, x):
        return self.run(x)


class Compiled(Body):
    def __init__(self):
        super().__init__()
        self.a = torch.compile(self.a, backend="eager")
        self.b.compile(backend="eager")


class Masked(Body):
    def __init__(self):
        super().__init__()
        prune.l1_unstructured(self.b, "weight", 5)


class Normed(Body):
    def __init__(self):
        super().__init__()
        self.b = nn.utils.parametrizations.weight_norm(self.b)


class Tied(Body):
    def __init__(self):
        super().__init__()
        self.c = nn.Linear(8, 8)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.c(super().forward(x))


class WithExtraState(Body):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        self.state = state


class InDouble(Body):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double())


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.reshape(-1, 2, 2, 2).repeat(1, 1, 2, 2))))


class PatchedForward(Body):
    def __init__(self):
        super().__init__()
        forward = self.b.forward
        self.b.forward = lambda x: forward(x) + 1


class WithItsOwnObjects(Body):
    Point = collections.namedtuple("Point", "x y")

    def __init__(self):
        super().__init__()
        self.b.note = {"by": ["me"], "at": self.Point(1, 2)}
        self.b.register_buffer("passing", torch.ones(2), persistent=False)
        self.device_map, self.a.tag = {"a": "cpu"}, "first"


AWKWARD = [
    *(Hooked, InMixedModes, PartlyFrozen, Caching, MergesOnEval),
    *(NormsItsWeightInPlace, WorksInPlace, Aliased, Compiled, Masked, Normed, Tied),
    *(WithExtraState, InDouble, ChannelsLast, PatchedForward, WithItsOwnObjects),
]


def picture(network):
    """Everything that can be seen of a network: identities, values and flags."""
    found = {}
    for name, module in network.named_modules(remove_duplicate=False):
        state = vars(module)
        found[name] = (id(module), type(module), id(state), _values(state))
    return found


def _values(value):
    if isinstance(value, torch.Tensor):
        return (
            *(id(value), value.data_ptr(), value.dtype, value.device, value.stride()),
            *(value.requires_grad, value.is_leaf, value.is_inference(), value._version),
            value.detach().flatten().tolist(),
            _values(value.grad) if value.is_leaf else None,
        )
    if isinstance(value, dict):
        return [(key, id(item), _values(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set):
        return [(id(item), _values(item)) for item in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    return id(value)


@pytest.mark.filterwarnings("ignore:Layer .* shares its weight")
@pytest.mark.parametrize("make", AWKWARD)
def test_nothing_of_the_users_network_changes(make):
    network = make()
    batch = INPUTS[:4].clone()
    before = picture(network)
    inputs = INPUTS.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The network that was found is wor")
        result = compress(
            network,
            inputs,
            **{"gamma": 1.0, "delta": 0.5, "max_trials": 3, "progress": False},
            num_initial_trials=3,
            num_samples=8,
            loss="relative_squared_l2",
            refit=False,  # which changes what a trial measured
        )
    assert picture(network) == before
    assert torch.equal(inputs, INPUTS)
    # The network that is kept loses what a trial does, and both can be trained.
    trial = result.problem.evaluate(result.parameterization, seed=5)["loss"].mean
    kept = result.problem.network_loss(result.network, seed=5).mean
    assert kept == pytest.approx(trial, rel=1e-4, abs=1e-9)
    if make is not MergesOnEval:  # which writes to the weight of a layer
        result.network.train()
    for trained in (network, result.network):
        trained(batch.clone()).sum().backward()


@pytest.mark.parametrize("make", [Caching, Aliased, Hooked])
def test_nothing_of_the_users_network_changes_inside_inference_mode(make):
    network = make()
    before = picture(network)
    with torch.inference_mode():
        compress(
            network,
            INPUTS.clone(),
            **{"gamma": 1.0, "delta": 0.5, "max_trials": 3, "progress": False},
            num_initial_trials=3,
            num_samples=8,
        )
    assert picture(network) == before
    network(INPUTS[:4].clone()).sum().backward()


def test_what_a_forward_pass_keeps_can_be_trained_with_after_an_accuracy():
    from compression_adapters.evaluation.accuracy import accuracy
    from compression_adapters.network.costs import measure_cost

    network, images = Caching(), INPUTS.clone()
    accuracy(network, images, torch.zeros(60, dtype=torch.int64), (1,))
    measure_cost(network, images, batch_sizes=(2,), repeats=1)
    assert not network.mask.is_inference()
    network(images).sum().backward()
    working = WorksInPlace()
    accuracy(working, images, torch.zeros(60, dtype=torch.int64), (1,))
    measure_cost(working, images, batch_sizes=(60,), repeats=1)
    assert torch.equal(images, INPUTS)
