"""Targets in words: the plan, which images are others, and the page."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.harness.traces import Trace
from benchmarks.networks.evaluation import NetworkData
from benchmarks.quality import plan as quality
from benchmarks.quality import targets
from benchmarks.quality.page import render_quality
from compression_adapters import choose_low_rank

STATEMENT = {"holds": True, "estimate": 0.987, "bound": 0.983, "tested": 4}
RESULT = {
    "cpu_seconds": 2.0,
    "pool": 5000,
    "ratio": 0.045,
    "ranks": {},
    "loss": 0.003,
    "statement": STATEMENT,
    "agreement": 0.985,
    "agreement_others": 0.979,
    "drop": 0.004,
    "drop_others": 0.012,
    "top1_original": 0.98,
    "top1": 0.976,
}


def small_data():
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    images = torch.randn(900, 6, generator=rng)
    with torch.no_grad():
        labels = network(images).argmax(1)
    return NetworkData(
        network, choose_low_rank, images[:500], labels[:500], images[500:], labels[500:]
    )


def test_the_pool_and_the_others_share_no_image():
    data = small_data()
    pool, labels, others = targets.pool_of(data, "fresh", 3)
    assert len(pool) == len(labels) == len(others) == 200
    rows = {tuple(row.tolist()) for row in pool}
    assert not rows & {tuple(row.tolist()) for row in data.test[others]}
    again, _, _ = targets.pool_of(data, "fresh", 4)
    assert not torch.equal(pool, again)
    pool, _, others = targets.pool_of(data, "train", 0)
    assert torch.equal(pool, data.pool)
    assert len(others) == 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "value"), [("agreement_at_least", 0.8), ("accuracy_drop_at_most", 0.2)]
)
def test_a_run_measures_what_it_says(monkeypatch, target, value):
    data = small_data()
    monkeypatch.setattr(targets, "subject", lambda name: data)
    targets.reference.cache_clear()
    settings = quality.target("small", "fresh", target, value)
    found = targets.run_target(0, settings)
    assert found["pool"] == 200
    assert found["statement"]["target"] == value
    assert 0 < found["ratio"] <= 1
    # The labels are the original's predictions.
    assert found["top1_original"] == 1.0
    assert found["drop"] == pytest.approx(1.0 - found["agreement"])
    weight = targets.run_default(0, quality.weight("small", "fresh", 1.0))
    assert weight["loss"] >= 0
    targets.reference.cache_clear()


def test_the_plan_says_which_runs_there_are():
    jobs = quality.plan(None, network="fc3", pool="fresh", target="agreement_at_least")
    assert len(jobs) == 20
    assert quality.minutes(jobs[0]) > 0
    with pytest.raises(ValueError, match="unknown settings"):
        quality.plan(None, colour="red")


def test_the_page_counts_how_often_a_target_is_met():
    traces = [
        Trace("quality", row, seed, RESULT, [], {"revision": "abc"})
        for row, seed in quality.plan(2)
    ]
    page = render_quality(traces)
    row = "| fc3 | agreement_at_least=0.98 | half of the test images | 2 of 2 | 2 of 2"
    assert f"{row} | 0 of 2 | 98.50 (98.50-98.50)" in page
    assert "accuracy_drop_at_most=0.01" in page
    assert "| fc3 | 10 | 4.5 (4.5-4.5) | 0.30" in page
