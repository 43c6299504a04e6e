"""Certificates where the model is wrong: functions and noise of other kinds.

The surrogate takes a function for a draw from a stationary Matern-5/2 prior, and noise
for normal with the reported deviation. Here neither has to be so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ax_pac.surrogate.noise import smoothed_sems
from benchmarks.calibration.functions import (
    LENGTHSCALE,
    Function,
    draw_from_prior,
    function_of_other_kind,
)
from benchmarks.calibration.searches import (
    DELTA,
    EPSILON,
    CertifiedSearch,
    Noise,
    gaussian,
)
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import (
    described,
    opening,
    revisions,
    stopped_after,
    table,
)
from benchmarks.harness.traces import Trace, by_settings, recorded

NAME = "misfit"
DESCRIPTION = "functions and noise of other kinds: success of marginal certificates"
MINUTES_ONCE = 0.0

_BUDGET = 100
# Samples behind each observation.
_NUM_SAMPLES = 50
_DEVIATION = 0.1


def _means(draw: str, factor: float = 1.0) -> Noise:
    """Means of fifty values around the true one, with the SEM that they show.

    Args:
        draw: `normal`, `student` with three degrees of freedom, `log_normal`, or
            `zero_one`: 1 with the value as its probability.
        factor: What the reported SEM is multiplied by.
    """

    def observe(value: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (*value.shape, _NUM_SAMPLES)
        # Of mean zero and variance one.
        error = torch.randn(shape, generator=rng, dtype=torch.float64)
        if draw == "student":
            half = torch.full(shape, 1.5, dtype=torch.float64)
            gamma = torch._standard_gamma(half, generator=rng)
            # Three degrees of freedom have a variance of three.
            error = error * (1.5 / gamma).sqrt() / 3.0**0.5
        elif draw == "log_normal":
            error = ((error - 0.5).exp() - 1.0) / (torch.e - 1.0) ** 0.5
        samples = value.unsqueeze(-1) + _DEVIATION * _NUM_SAMPLES**0.5 * error
        if draw == "zero_one":
            uniform = torch.rand(shape, generator=rng, dtype=torch.float64)
            samples = (uniform < value.unsqueeze(-1)).double()
        sem = samples.std(-1) / _NUM_SAMPLES**0.5
        return samples.mean(-1), factor * sem

    return observe


def _growing(value: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise that grows with the distance of the value from zero, as reported."""
    sem = 0.02 + 0.1 * value.abs()
    noise = torch.randn(value.shape, generator=rng, dtype=torch.float64)
    return value + sem * noise, sem


_NOISES: dict[str, Noise] = {
    "none": gaussian(1e-3),
    "normal": gaussian(_DEVIATION),
    "multiplicative": _growing,
    "means": _means("normal"),
    "student": _means("student"),
    "log_normal": _means("log_normal"),
    "zero_one": _means("zero_one"),
    "sem_halved": _means("normal", 0.5),
    "sem_doubled": _means("normal", 2.0),
}
# Where the SEM is an estimate, searches smooth it, as strategies do.
_ESTIMATED = ("means", "student", "log_normal", "zero_one", "sem_halved", "sem_doubled")


def settings(function: str, noise: str) -> dict[str, Any]:
    return {"function": function, "noise": noise}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    (settings("ackley", "none"), 20, 0.3),
    (settings("levy", "none"), 20, 0.3),
    (settings("rastrigin", "none"), 20, 0.3),
    (settings("michalewicz", "none"), 20, 0.3),
    (settings("six_hump", "none"), 20, 0.3),
    (settings("steps", "normal"), 20, 0.3),
    (settings("cliff", "normal"), 20, 0.3),
    (settings("chirp", "normal"), 20, 0.3),
    *((settings("draw", noise), 20, 0.3) for noise in list(_NOISES)[1:]),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search until certified, or out of evaluations; record the regret there."""
    noise = settings["noise"]
    search = CertifiedSearch(
        _function(seed, settings),
        _NOISES[noise],
        seed,
        budget=_BUDGET,
        smooth=partial(smoothed_sems, num_samples=_NUM_SAMPLES)
        if noise in _ESTIMATED
        else None,
    )
    refusals: dict[str, int] = {}
    while True:
        certificate = search.check()
        if certificate.holds or search.num_evaluations >= search.budget:
            break
        status = certificate.hyperparameter_status
        if status not in (None, "ok"):
            refusals[status] = refusals.get(status, 0) + 1
        search.step(certificate)
    result = {
        "holds": certificate.holds,
        "reason": certificate.reason,
        "refusals": refusals,
        **search.verdict(certificate),
    }
    return recorded(NAME, settings, seed, result)


def _function(seed: int, settings: dict[str, Any]) -> Function:
    if settings["function"] != "draw":
        return function_of_other_kind(settings["function"], seed)
    lengthscale = torch.tensor(LENGTHSCALE, dtype=torch.float64)
    draw = draw_from_prior(lengthscale, 1.0, 0.0, seed=3_000_017 + seed)
    if settings["noise"] != "zero_one":
        return draw
    # A probability. A tolerance of .1 is then ten points of accuracy.
    return Function(
        draw.dim,
        lambda X: draw.evaluate(X).sigmoid(),
        float(torch.tensor(draw.maximum).sigmoid()),
    )


def render_misfit(traces: Sequence[Trace]) -> str:
    """One row per kind of function and noise."""
    lines = opening(
        "Certificates where the model is wrong",
        "Functions that the prior of the surrogate would not draw, and noise that is "
        f"not what the model takes it for. Level `marginal`, delta = {DELTA}, epsilon "
        f"= {EPSILON}, two dimensions, at most {_BUDGET} evaluations.",
        "*Right*: of the certified, those whose incumbent is within delta of the best "
        "value, with the Clopper-Pearson interval (95 %). *Refused*: checks that ended "
        "without a claim, and why, summed over the runs.",
        NAME,
    )
    lines += [revisions(traces), ""]
    rows = []
    for group in by_settings(traces):
        settings = group[0].settings
        results = [trace.result for trace in group]
        stops = [result if result["holds"] else None for result in results]
        held = [stop for stop in stops if stop is not None]
        good = sum(stop["regret"] <= DELTA for stop in held)
        refusals: dict[str, int] = {}
        for result in results:
            for status, number in result["refusals"].items():
                refusals[status] = refusals.get(status, 0) + number
        rows.append(
            [
                described(settings),
                clopper_pearson(len(held), len(group)),
                stopped_after(stops) if held else "-",
                clopper_pearson(good, len(held)) if held else "-",
                f"{max(stop['regret'] for stop in held):.3f}" if held else "-",
                ", ".join(f"{k} {v}" for k, v in sorted(refusals.items())) or "-",
            ]
        )
    lines += table(
        "function and noise | certified | evaluations, median (quartiles) | right "
        "| worst regret | refused",
        rows,
    )
    return "\n".join(lines)
