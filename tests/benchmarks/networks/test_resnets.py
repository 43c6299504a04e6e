"""ResNets on CIFAR-10: plan, page, and one rule where the data are there."""

from __future__ import annotations

import pytest

from benchmarks.harness.traces import Trace
from benchmarks.networks import resnets as networks
from benchmarks.networks.cifar import shared_file
from benchmarks.networks.rank_rules import fraction_rule
from benchmarks.networks.resnets_page import render_networks
from compression_adapters import compression_problem
from compression_adapters.presets.registry import PRESETS


def test_a_missing_file_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("AX_PAC_SHARED", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set AX_PAC_SHARED"):
        shared_file("models/resnet18_cifar10_fp16.pt")


def test_a_rule_is_one_run_and_a_setting_that_is_listed_twice_is_run_once():
    rules = networks.plan(7, network="resnet18", method="greedy")
    assert [seed for _, seed in rules] == [0]
    settings = {"network": "resnet18", "gamma": 0.02, "level": "marginal"}
    searches = networks.plan(None, method="line", **settings)
    assert [seed for _, seed in searches] == list(range(10))
    assert all(networks.minutes(job) > 0 for job in networks.plan(None))


def point(ratio: float, loss: float, top1: float) -> dict:
    return {"ratio": ratio, "loss": loss, "top1": top1, "top1_original": 0.8}


def test_the_page_puts_a_rule_at_the_ratio_of_the_search():
    found = {
        **point(0.2, 1.0, 0.79),
        "holds": True,
        "evaluations": 40,
        "images": 2000,
        "seconds": 9.0,
        "timings": {"evaluate": 3.0},
    }
    points = [point(0.1, 9.0, 0.5), point(0.3, 5.0, 0.7)]
    traces = [
        Trace("networks", settings, 0, result, [], {"revision": "abc"})
        for settings, result in (
            (networks.search("resnet18", 0.1, "marginal", 0.05), found),
            (networks.rule("resnet18", "energy"), {"images": 0, "points": points}),
        )
    ]
    page = render_networks(traces)
    assert "| 79.00 | 0.300 | - |" in page  # J of the search: .1 x 1 + .2
    # Half-way between the points; J there .9, its best .8 at the second.
    assert "| 0.1 | energy | 20.0 | 7.00 | 60.00 | 0.900 | 0.800 | 0 |" in page
    assert "| 0.1 | line, runs: 1 | 20.0 | 1.00 |" in page
    assert "| 0.1 | line | marginal | 0.05 | 1/1" in page


@pytest.mark.data
@pytest.mark.usefixtures("cifar10_here")
def test_networks_are_measured_on_the_test_images(monkeypatch):
    small = networks.cifar10(train=False, num_images=100)
    monkeypatch.setattr(networks, "cifar10", lambda train: small)
    networks.reference_outputs.cache_clear()
    problem = compression_problem(
        networks.resnet("resnet18"),
        small[0],
        gamma=1.0,
        choose=PRESETS["resnet18"].choose,
    )
    whole = {layer.name: "dense" for layer in problem.layers}
    assert len(whole) == 8
    dense = networks.measured(problem, whole, "resnet18")
    half = networks.measured(problem, fraction_rule(problem)(0.5), "resnet18")
    networks.reference_outputs.cache_clear()
    assert dense["loss"] < 1e-6
    assert dense["ratio"] == 1.0
    assert dense["top1"] == dense["top1_original"] > 0.7
    assert half["loss"] > 1.0
    assert half["ratio"] == pytest.approx(0.5, abs=0.01)
