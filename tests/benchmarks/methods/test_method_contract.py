"""What every method of the comparison promises, over every entry of `METHODS`."""

from __future__ import annotations

import importlib.util
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.harness.optimiser import Method, Observation, Point, Task
from benchmarks.methods.fabolas.base import NUM_INITIAL_POINTS, SUBSETS
from benchmarks.methods.registry import (
    FABOLAS_METHODS,
    METHODS,
    NEED_NETWORK,
    PAC_METHODS,
    PEERS,
    build_method,
)
from compression_adapters import compression_problem, compression_ratio
from compression_adapters.rank_space.parameters import bin_edges

NUM_FABOLAS_INITIAL = NUM_INITIAL_POINTS * len(SUBSETS)


def network_task(seed: int, num_samples: int = 50) -> Task:
    """Three small layers: real enough for the rules."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.Flatten(),
        )
        inputs = torch.randn(600, 3, 8, 8)
    problem = compression_problem(network.eval(), inputs, gamma=1.0)
    edges = bin_edges(problem.parameters)
    return Task(
        dim=3,
        num_samples=num_samples,
        max_samples=600,
        seed=seed,
        cells=tuple(tuple(edges[p.name]) for p in problem.parameters),
        compression=problem,
    )


def bowl(point: Point, num_samples: int, rng: np.random.Generator) -> Observation:
    """Positive, smallest at .3, with noise that falls as samples grow."""
    sem = 0.2 / math.sqrt(num_samples)
    mean = 1.0 + 3.0 * float(((np.array(point) - 0.3) ** 2).sum())
    return Observation(
        point, num_samples, mean + sem * rng.normal(), sem, num_samples + 10.0
    )


def play(method: Method, steps: int) -> list[Observation]:
    rng = np.random.default_rng(99)
    seen = []
    for _ in range(steps):
        asked = method.ask()
        if asked is None:
            break
        seen.append(bowl(*asked, rng))
        method.tell(seen[-1])
    return seen


def steps_of(name: str) -> int:
    """Past the initial design, with two proposals of the model."""
    return 2 + (NUM_FABOLAS_INITIAL if name in FABOLAS_METHODS else 6)


@pytest.fixture(params=METHODS)
def name(request, monkeypatch) -> str:
    if request.param in PEERS:
        package = PEERS[request.param]
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra `benchmarks`)")
    if request.param == "fabolas_faithful":
        # What averages over less repeats and fits the box just as well.
        monkeypatch.setattr("benchmarks.methods.fabolas.models.BURN_IN", 10)
        monkeypatch.setattr("benchmarks.methods.fabolas.models.CHAIN", 5)
        for number, few in (
            *(("NUM_UNIFORM", 12), ("NUM_LOCAL", 8), ("NUM_DRAWS", 50)),
            *(("NUM_REPRESENTERS", 12), ("REPRESENTER_STEPS", 10), ("NUM_OUTCOMES", 4)),
        ):
            monkeypatch.setattr(f"benchmarks.methods.fabolas.faithful.{number}", few)
    return request.param


@pytest.mark.filterwarnings("ignore::DeprecationWarning:smac")
@pytest.mark.filterwarnings("ignore:Very small noise values")
def test_a_method_stays_in_the_box_and_repeats_exactly_under_its_seed(name):
    seen = []
    for state in (0, 1):
        # Whatever the global streams were before.
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002 - the state that must not matter
        task = network_task(seed=5)
        method = build_method(name, task)
        before = torch.get_rng_state()
        seen.append(play(method, steps_of(name)))
        if name not in (*PAC_METHODS, "logei", "pi", "ax_default"):
            # Ax draws from torch's stream, which its own client seeds.
            assert torch.equal(torch.get_rng_state(), before)
        incumbent = method.incumbent()
        assert incumbent in [
            pytest.approx(observation.point) for observation in seen[-1]
        ]
    first, second = seen
    assert len(first) == steps_of(name) or name in PAC_METHODS
    for a, b in zip(first, second, strict=True):
        assert a.point == pytest.approx(b.point, abs=1e-6)
        assert a.num_samples == b.num_samples
    for observation in first:
        assert len(observation.point) == 3
        assert all(0.0 <= u <= 1.0 for u in observation.point)
        if name in FABOLAS_METHODS:
            assert task.min_samples <= observation.num_samples <= task.max_samples
        else:
            assert observation.num_samples == task.num_samples


def test_another_seed_is_another_search(name):
    if name in NEED_NETWORK:
        pytest.skip("a rule has no dice, and the line of networks comes first anyway")
    first, second = (build_method(name, network_task(seed)).ask() for seed in (1, 2))
    assert first.point != second.point


def test_time_to_fit_is_never_negative_and_grows(name):
    method = build_method(name, network_task(seed=5))
    before = method.fit_seconds
    play(method, 2)
    assert method.fit_seconds.cpu >= before.cpu >= 0.0
    assert method.fit_seconds.wall >= before.wall >= 0.0


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'anneal', known: random"):
        build_method("anneal", Task(dim=2))


@pytest.mark.parametrize("method", NEED_NETWORK)
def test_what_needs_a_network_is_refused_without(method):
    with pytest.raises(ValueError, match="this problem has none"):
        build_method(method, Task(dim=2))


def test_the_line_comes_first_and_its_layers_are_all_cut_alike():
    task = network_task(seed=5)
    first = play(build_method("pac_line", task), 5)
    problem = task.compression
    names = [parameter.name for parameter in problem.parameters]
    ratios = [
        compression_ratio(
            problem.layers, problem.ranks(dict(zip(names, o.point, strict=True)))
        )
        for o in first
    ]
    assert ratios[:4] == sorted(ratios[:4])
    largest = problem.ranks(dict.fromkeys(names, 1.0))
    assert ratios[3] == compression_ratio(problem.layers, largest)
    assert len({o.point for o in first}) == 5


@pytest.mark.parametrize("peer", PEERS)
def test_a_missing_peer_names_the_extra(peer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ax-pac\[benchmarks\]'"):
        build_method(peer, Task(dim=2))


def test_pac_ends_by_its_certificate():
    method = build_method("pac", Task(dim=2, seed=1, delta=0.5))
    assert len(play(method, 40)) < 40
    assert method.ask() is None
    assert method.incumbent() == pytest.approx((0.3, 0.3), abs=0.25)
