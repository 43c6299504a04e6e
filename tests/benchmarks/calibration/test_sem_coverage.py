from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.calibration import sem_coverage
from benchmarks.calibration.noise_page import render_noise
from benchmarks.harness.intervals import share_interval


@pytest.fixture
def pools(monkeypatch):
    """Twelve `networks` whose losses are known: normal, and a coin."""
    rng = np.random.default_rng(0)
    points = rng.random((12, 2))
    size = np.exp(points.sum(1))
    losses = {
        "squared_l2": torch.from_numpy(
            size[:, None] * (3 + rng.standard_normal((12, 4000)))
        ),
        "top1_error": torch.from_numpy((rng.random((12, 4000)) < 0.3).astype(float)),
    }
    monkeypatch.setattr(sem_coverage, "_pools", lambda network: (points, losses))
    monkeypatch.setattr(sem_coverage, "REPLICATIONS", 60)


def test_coverage_of_normal_losses_is_students(pools):
    trace = sem_coverage.run(0, {"network": "fc3", "loss": "squared_l2", "m": 10})
    coverage = trace.result["coverage"]
    # Student's t with nine degrees of freedom within 1.96: .918; 720 intervals, whose
    # binomial deviation is .010, three of them. Smoothing brings it to the nominal.
    assert coverage["raw 0.95"]["share"] == pytest.approx(0.918, abs=0.03)
    assert coverage["smoothed 0.95"]["share"] > coverage["raw 0.95"]["share"]
    assert coverage["raw 0.68"]["share"] == pytest.approx(0.66, abs=0.055)
    # Deviation of log s for ten normal values: .25.
    assert trace.result["log_error"]["raw"] == pytest.approx(0.25, abs=0.03)
    assert trace.result["log_error"]["smoothed"] < 0.15
    page = render_noise([trace], [])
    assert "| fc3 | squared_l2 | 10 |" in page


def test_an_error_rate_has_the_binomial_floor(pools):
    trace = sem_coverage.run(0, {"network": "fc3", "loss": "top1_error", "m": 10})
    assert trace.result["coverage"]["raw 0.95"]["share"] > 0.9


def test_a_plan_has_every_network_loss_and_m_and_refuses_others():
    assert len(sem_coverage.plan(None)) == 18
    assert len(sem_coverage.plan(2, network="fc3", m=10)) == 6
    with pytest.raises(ValueError, match="unknown settings"):
        sem_coverage.plan(1, colour="red")


def test_intervals_contain_the_share_at_both_ends():
    assert share_interval(0, 10)[0] == 0.0
    assert share_interval(10, 10)[1] == 1.0
    low, high = share_interval(9.5, 10.0)
    assert low < 0.95 < high
