from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.calibration import noise_calibration as benchmark
from benchmarks.calibration.noise_page import render_noise


@pytest.fixture(scope="module")
def small():
    """A smaller domain and budget than the benchmark's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_DOMAIN_POINTS", 128)
        patch.setattr(benchmark, "_MAX_EVALUATIONS", 40)
        benchmark._domain_and_root.cache_clear()
        yield benchmark
    benchmark._domain_and_root.cache_clear()


def test_the_same_seed_is_the_same_function_whatever_is_believed(small):
    draws = [
        small._NoisyDraw(3, small.settings(10, noise))
        for noise in ("raw", "smoothed", "true")
    ]
    assert all(np.array_equal(draw.values, draws[0].values) for draw in draws)
    assert all(draw.Y == draws[0].Y for draw in draws)
    noises = [
        draws[0].model(noise).likelihood.noise for noise in ("raw", "smoothed", "true")
    ]
    torch.testing.assert_close(
        noises[2].sqrt(), torch.from_numpy(draws[2].true_sems[draws[2].indices])
    )
    assert not torch.allclose(noises[0], noises[1])


@pytest.mark.parametrize("values", ["squares", "normal"])
def test_observations_have_the_stated_mean_and_standard_error(small, values):
    draw = small._NoisyDraw(0, small.settings(10, "raw", values))
    x = draw.domain[5:6]
    draw.Y.clear()
    draw.sems.clear()
    for _ in range(4000):
        draw.evaluate(x)
    Y, sem = np.array(draw.Y), draw.true_sems[5]
    # Four standard errors of a mean of 4,000, and of a variance of kurtosis up to 5.
    assert Y.mean() == pytest.approx(draw.values[5], abs=4 * sem / 4000**0.5)
    assert Y.std() == pytest.approx(sem, rel=4 * (4 / 4000) ** 0.5 / 2)
    # A sample of the loss that looks good looks precise: that is the trap.
    tie = np.corrcoef(Y, draw.sems[:4000])[0, 1]
    assert tie < -0.5 if values == "squares" else abs(tie) < 0.07


def test_a_run_stops_and_its_page_names_every_noise(small):
    rows = [small.settings(10, noise) for noise in ("raw", "smoothed", "true")]
    traces = [small.run(1, row) for row in rows]
    stops = [trace.result["stop"] for trace in traces]
    assert any(stop is not None for stop in stops)
    assert all(stop is None or stop["regret"] >= 0 for stop in stops)
    # With the true variances believed, the level and this probability are one model's.
    believed = stops[2]
    assert believed is None or believed["failure_under_true"] <= benchmark.EPSILON
    page = render_noise([], traces)
    for trace, stop in zip(traces, stops, strict=True):
        shown = f"| squares | 10 | {trace.settings['noise']} |" in page
        assert shown == (stop is not None)


def test_a_plan_refuses_unknown_settings():
    assert {row["m"] for row, _ in benchmark.plan(2, m=50)} == {50}
    with pytest.raises(ValueError, match="unknown settings"):
        benchmark.plan(1, colour="red")
