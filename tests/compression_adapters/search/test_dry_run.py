"""What can be known before a search is known before it; nothing is lost after it."""

import threading
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from ax_pac import incumbent_arm
from compression_adapters import (
    CompressionOptions,
    Stage,
    UnmeasuredNetworkError,
    compress,
    compress_at,
    compress_in_stages,
    compress_to,
    compression_problem,
    load_compressed,
    squared_l2,
)
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.search import dry_run as dry
from compression_adapters.search.result import require_measured
from compression_adapters.search.run import search_problem

INPUTS = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
SETTINGS = {"gamma": 1.0, "delta": 0.5, "max_trials": 3, "num_initial_trials": 3}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.fixture
def no_trials(monkeypatch):
    """Fail if a search begins."""

    def refuse(*args, **kwargs):
        raise AssertionError("the search has begun")

    monkeypatch.setattr("compression_adapters.search.run.search_loop", refuse)


class WithLock(Net):
    def __init__(self):
        super().__init__()
        self.b.lock = threading.Lock()


class WithState(Net):
    """Holds state that is no tensor."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


class ReadsRanks(Net):
    """Reads the type of a layer."""

    def forward(self, x):
        if type(self.a) is not nn.Linear:
            raise TypeError("expected nn.Linear")
        return super().forward(x)


class DependsOnWhatIsNotSaved(Net):
    def __init__(self, scale=3.0):
        super().__init__()
        self.scale = scale

    def load_state_dict(self, *args, **kwargs):
        self.scale = 1.0
        return super().load_state_dict(*args, **kwargs)

    def forward(self, x):
        return self.scale * super().forward(x)


ENTRIES = [
    lambda net: compress(net, INPUTS, **SETTINGS),
    lambda net: compress_to(net, INPUTS, ratio="50%", delta=0.5),
    lambda net: compress_at(net, INPUTS, gammas=(1.0, 2.0), delta=0.5),
    lambda net: compress_in_stages(net, INPUTS, [Stage("one")], **SETTINGS),
]


@pytest.mark.parametrize("search", ENTRIES)
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (WithLock(), r"cannot be copied.*attribute b\.lock \(lock\)"),
        (
            WithState({"scale": torch.ones(1)}),
            r"could not be saved.*'_extra_state' is a dict.*register its tensors as b",
        ),
        (WithState((1, 2)), "could not be saved.*is a tuple that JSON cannot hold"),
        (ReadsRanks(), "does not run with layer 'a', 'b' cut.*expected nn.Linear"),
        (DependsOnWhatIsNotSaved(), "could not be loaded.*has to be in its state_dict"),
    ],
)
def test_what_would_fail_after_a_search_fails_before_it(
    search, network, message, no_trials
):
    with pytest.raises(ValueError, match=message):
        search(network)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            lambda net, batch: torch.zeros(3),
            ValueError,
            r"one value per sample.*\(3,\)",
        ),
        (
            lambda net, batch: squared_l2(net, batch).mean(),
            ValueError,
            "Do not average",
        ),
        (lambda net, batch: 1 / 0, ZeroDivisionError, "division"),
        ("cross_entropy", ValueError, "needs labels"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_before_the_search(
    loss, error, message, no_trials
):
    with pytest.raises(error, match=message):
        compress(Net(), INPUTS, loss=loss, **SETTINGS)


@pytest.mark.parametrize(
    "state", [{"version": 3, "names": ["a"], "scale": 0.1}, [1, None], "text", 7]
)
def test_state_that_json_can_hold_is_saved_measured_and_loaded(state, tmp_path):
    result = compress(WithState(state), INPUTS, **SETTINGS)
    result.save(tmp_path)
    loaded = load_compressed(tmp_path, WithState(None))
    assert loaded.state == state
    assert torch.equal(loaded(INPUTS), result.network(INPUTS))
    assert len(result.measure(batch_sizes=())) == 4
    with pytest.raises(ValueError, match="missing weights: none; unknown: _extra_st"):
        load_compressed(tmp_path, Net())


class UnusedHead(Net):
    """A head that the forward pass never calls, or whose output it drops."""

    def __init__(self, calls):
        super().__init__()
        self.head, self.calls = nn.Linear(8, 400), calls

    def forward(self, x):
        if self.calls:
            self.head(x)
        return super().forward(x)


class Frozen(Net):
    """Its head is called, but only where gradients are recorded."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 400)

    def forward(self, x):
        return self.head(x) if torch.is_grad_enabled() else super().forward(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: UnusedHead(False), "does not call it"),
        (lambda: UnusedHead(True), "outputs do not depend on it"),
        (Frozen, "does not call it"),
    ],
)
def test_a_size_is_not_met_by_layers_that_do_nothing(make, reason):
    settings = {"delta": 0.5, "max_gammas": 2, "max_trials": 8}
    with pytest.warns(UserWarning, match=f"take no part.*'head': .*{reason}"):
        compression_problem(make(), INPUTS, gamma=1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="These layers take no part")
        result = compress_to(make(), INPUTS, ratio="60%", **settings)
    assert set(result.ranks) == {"a", "b"}
    assert type(result.network.head) is nn.Linear
    weights = sum(p.numel() for p in (*result.network.a.parameters(),) if p.ndim > 1)
    weights += sum(p.numel() for p in result.network.b.parameters() if p.ndim > 1)
    assert weights <= 0.6 * 128


def test_a_network_of_layers_that_do_nothing_is_refused():
    with pytest.raises(ValueError, match=r"No layer to compress is left.*'head'"):
        compress(UnusedHead(True), INPUTS, include="head", **SETTINGS)


class Sometimes(Net):
    """Calls a layer for some samples only, as a mixture of experts does."""

    def forward(self, x):
        x = torch.tanh(self.a(x))
        rare = x[:, 0] > 0.5
        return torch.where(rare[:, None], self.b(x), x) if bool(rare.any()) else x


def test_a_layer_that_is_called_for_some_samples_takes_part():
    problem = compression_problem(Sometimes(), INPUTS, gamma=1.0)
    assert [layer.name for layer in problem.layers] == ["a", "b"]


def test_a_layer_of_rank_one_or_zero_takes_part():
    network = Net()
    with torch.no_grad():
        network.a.weight.copy_(torch.ones(8, 8))
        network.b.weight.zero_()
    problem = compression_problem(network, INPUTS, gamma=1.0)
    assert [layer.name for layer in problem.layers] == ["a", "b"]


def wrong_network(monkeypatch, change):
    """Let the network that is kept be another than the one that was measured."""
    build = CompressionProblem.compress

    def compress_wrongly(self, parameterization):
        return change(build(self, parameterization))

    monkeypatch.setattr(CompressionProblem, "compress", compress_wrongly)
    # What was changed is the network that is kept, after everything was tried.
    monkeypatch.setattr(dry, "dry_run", lambda problem: None)


def zeros(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network


@pytest.mark.parametrize("change", [zeros, lambda network: Net().eval()])
@pytest.mark.parametrize("loss", ["squared_l2", "relative_squared_l2"])
def test_a_network_that_was_not_measured_is_not_certified(change, loss, monkeypatch):
    wrong_network(monkeypatch, change)
    # Data-aware factors with a bias lose so little that zeros are no worse.
    settings = {"max_trials": 30, "gamma": 0.01, "delta": 0.5, "calibrate": 0}
    with pytest.raises(UnmeasuredNetworkError, match="the search measured") as info:
        compress(Net(), INPUTS, loss=loss, **settings)
    assert incumbent_arm(info.value.client) is not None
    assert isinstance(info.value.network, nn.Module)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 2},
        {"num_samples": 50},
        {"loss": "top1_error", "labels": torch.arange(60) % 8},
        # The dense network, whose loss is known exactly.
        {"gamma": 1000.0, "start": "line", "max_trials": 5},
    ],
)
def test_the_network_that_was_measured_passes_with_few_samples_and_exact_losses(
    options,
):
    for seed in range(6):
        settings = {**SETTINGS, "seed": seed, **options}
        result = compress(Net(), INPUTS, **settings)
        require_measured(result)


def test_a_loss_five_standard_errors_away_is_the_border():
    result = compress(Net(), INPUTS, **SETTINGS)
    require_measured(result)
    (trial,) = (
        row
        for row in result.trials.to_dict("records")
        if all(row[f"rank_{name}"] == rank for name, rank in result.ranks.items())
    )
    combined = (trial["loss_sem"] ** 2 + result.loss.sem**2) ** 0.5
    # 5.7 for 50 samples.
    for sigmas, fails in ((5.5, False), (-5.5, False), (5.9, True)):
        moved = result.loss._replace(mean=trial["loss"] + sigmas * combined)
        changed = replace(result, loss=moved)
        if fails:
            with pytest.raises(UnmeasuredNetworkError):
                require_measured(changed)
        else:
            require_measured(changed)


def test_an_error_after_the_search_carries_its_client(monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("no room for the copy")

    monkeypatch.setattr("compression_adapters.search.run.layer_losses", fail)
    with pytest.raises(MemoryError, match="no room") as info:
        compress(Net(), INPUTS, **SETTINGS)
    assert len(info.value.client._experiment.trials) == 3
    assert "client" in info.value.__notes__[0]
    monkeypatch.undo()
    again = compress(Net(), INPUTS, client=info.value.client, **SETTINGS)
    assert len(again.trials) >= 3


def test_an_error_after_a_stage_carries_its_client(tmp_path):
    def then(network):
        raise RuntimeError("training failed")

    stages = [Stage("one", then=then)]
    with pytest.raises(RuntimeError, match="training failed") as info:
        compress_in_stages(Net(), INPUTS, stages, folder=tmp_path, **SETTINGS)
    assert len(info.value.client._experiment.trials) == 3


def test_a_search_works_where_gradients_are_off():
    with torch.no_grad():
        result = compress(Net(), INPUTS, **SETTINGS)
    assert len(result.trials) == 3
    assert result.network(INPUTS).requires_grad


def test_a_dry_run_leaves_the_problem_and_the_random_state_as_they_are():
    options = CompressionOptions.of(**SETTINGS)
    problem = compression_problem(Net(), INPUTS, gamma=1.0)
    before = torch.random.get_rng_state()
    dry.dry_run(problem)
    assert torch.equal(before, torch.random.get_rng_state())
    one = search_problem(problem, options.search)
    other = search_problem(
        compression_problem(Net(), INPUTS, gamma=1.0), options.search
    )
    assert one.ranks == other.ranks
    assert one.loss == pytest.approx(other.loss, rel=1e-6)


def test_where_a_pass_takes_long_only_layers_that_are_not_called_are_left_out(
    monkeypatch,
):
    monkeypatch.setattr("compression_adapters.network.parity.LONGEST_PASS", -1.0)
    dropped = compression_problem(UnusedHead(True), INPUTS, gamma=1.0)
    assert [layer.name for layer in dropped.layers] == ["a", "b", "head"]
    with pytest.warns(UserWarning, match="'head': the forward pass.*does not call it"):
        unused = compression_problem(UnusedHead(False), INPUTS, gamma=1.0)
    assert [layer.name for layer in unused.layers] == ["a", "b"]


class CallsForward(Net):
    """Calls `forward` of its layers, which no hook sees."""

    def forward(self, x):
        return self.b.forward(torch.tanh(self.a.forward(x)))


def test_layers_whose_forward_is_called_directly_take_part():
    problem = compression_problem(CallsForward(), INPUTS, gamma=1.0)
    assert [layer.name for layer in problem.layers] == ["a", "b"]
    same = compression_problem(Net(), INPUTS, gamma=1.0)
    point = {"a": 0.0, "b": 0.0}
    assert problem.evaluate(point, seed=0) == same.evaluate(point, seed=0)
