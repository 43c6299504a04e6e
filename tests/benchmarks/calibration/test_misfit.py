"""Functions and noise of other kinds, and the table of what was kept."""

from __future__ import annotations

import pytest
import torch

from benchmarks.calibration import misfit
from benchmarks.calibration.functions import OTHER_KINDS, function_of_other_kind
from benchmarks.calibration.kept import render_kept
from benchmarks.calibration.misfit import render_misfit
from benchmarks.harness.traces import Trace


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_no_point_of_a_function_exceeds_its_maximum(name: str) -> None:
    function = function_of_other_kind(name, seed=1)
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(20_000, 2, generator=rng, dtype=torch.float64)
    values = torch.cat([function.evaluate(part) for part in points.split(1000)])
    # BoTorch gives the maxima to five digits.
    assert values.max() <= function.maximum + 1e-4
    # A tolerance of a tenth means something.
    assert 0.2 < float(values.std()) < 3.0


@pytest.mark.parametrize("noise", misfit._NOISES)
def test_noise_has_no_bias_and_its_standard_error_is_reported(noise: str) -> None:
    """Means of 4,000 observations; halved and doubled errors are meant to be wrong."""
    value = torch.full((4_000,), 0.6, dtype=torch.float64)
    observed, sem = misfit._NOISES[noise](value, torch.Generator().manual_seed(0))
    error = observed - value
    deviation = float(error.std())
    assert abs(float(error.mean())) < 4.0 * deviation / 4_000**0.5
    factor = {"sem_halved": 0.5, "sem_doubled": 2.0}.get(noise, 1.0)
    # Heavy tails: the deviation of 4,000 means is itself known to a few per cent.
    ratio = float(sem.square().mean().sqrt()) / deviation
    assert ratio == pytest.approx(factor, rel=0.1)


def test_a_search_says_where_it_ended_and_pages_count_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(misfit, "_BUDGET", 12)
    trace = misfit.run(0, misfit.settings("draw", "sem_halved"))
    assert trace.result["evaluations"] <= 12
    assert trace.result["holds"] or trace.result["reason"]
    page = render_misfit([trace])
    assert "draw" in page
    certified = Trace("misfit", trace.settings, 1, {**trace.result}, [])
    certified.result.update(holds=True, regret=0.5, refusals={})
    runs = [certified] * 30
    kept = render_kept([], [], runs)
    assert "**broken**" in kept
    assert "30" in kept
    certified.result.update(regret=0.0)
    assert "**broken**" not in render_kept([], [], runs).split("## ")[1]
