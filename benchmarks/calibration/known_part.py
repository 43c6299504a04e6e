"""Certificates where a part of the objective is known, on functions of known minimum.

A table per coordinate plus an unknown part that is drawn, minimised. The surrogate sees
the unknown part, with or without its lower bound, clipped or not, or the sum of both as
if nothing were known. Hyperparameters are fitted, the box is continuous, level marginal
ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from torch import Tensor

from ax_pac import KnownFunction, PACAcquisition, PACCertificate, certify, fit_model
from ax_pac.acquisition.optimize import more_informative
from ax_pac.known import CLIP, AdditiveFunction
from ax_pac.surrogate.fit import fewest_observations
from ax_pac.surrogate.mcmc import (
    LENGTHSCALE_LOG_SD,
    LENGTHSCALE_MEDIAN,
    OUTPUTSCALE_LOG_SD,
)
from ax_pac.surrogate.soft_clip import soft_clip
from benchmarks.calibration.functions import sample_of_prior
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, revisions, stopped_after, table
from benchmarks.harness.traces import Trace, by_settings, recorded

NAME = "known_part"
DESCRIPTION = "known part and floor: success of marginal certificates at the stop"
MINUTES_ONCE = 0.0

DELTA = 0.1
EPSILON = 0.05
NOISE = 0.1

# What the tables vary by in all, from one corner to the other: as much as a draw of
# unit variance does over the box.
_KNOWN_RANGE = 3.0
_NUM_KNOTS = 6

# Where the smallest value is looked for.
_NUM_SPACE_FILLING = 2**14
_NUM_POLISHED = 16

_INITIAL = {2: 5, 4: 10, 8: 16}
_MAX_EVALUATIONS = {2: 60, 4: 150, 8: 200}

# How the first checks are counted, in which a bad fit issues its certificate.
FIRST_CHECKS = 5


def settings(unknown: str, model: str, d: int) -> dict[str, Any]:
    return {"unknown": unknown, "model": model, "d": d}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = tuple(
    (settings(unknown, model, d), runs, cost)
    for d, many, cost in ((2, 100, 0.3), (4, 100, 1.0), (8, 40, 6.0))
    for unknown, model, runs in (
        ("gp", "known", many),
        ("shifted", "clipped", many),
        ("positive", "clipped", many),
        ("positive", "floor", many // 2),
        ("positive", "sum", many // 4),
    )
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search one function; record where its certificate ended it, and the regret."""
    search = _Search(settings, seed)
    stop: dict[str, Any] | None = None
    refusals = 0
    while stop is None and search.num_evaluations < search.budget:
        certificate = search.check()
        refusals += certificate.hyperparameter_status not in (None, "ok")
        if certificate.holds:
            stop = search.verdict(certificate)
        else:
            search.step(certificate)
    return recorded(
        NAME,
        settings,
        seed,
        {"stop": stop, "evaluations": search.num_evaluations, "refusals": refusals},
    )


def known_tables(d: int, seed: int) -> AdditiveFunction:
    """Increasing tables of random shape, one per coordinate."""
    rng = np.random.default_rng((3, d, seed))
    shares = _KNOWN_RANGE * rng.dirichlet(np.full(d, 2.0))
    knots = np.linspace(0.0, 1.0, _NUM_KNOTS)
    tables = {}
    for j, share in enumerate(shares):
        steps = rng.dirichlet(np.ones(_NUM_KNOTS - 1))
        tables[j] = (knots.tolist(), [0.0, *(share * steps.cumsum()).tolist()])
    return AdditiveFunction(torch.zeros(d, dtype=torch.float64), tables)


def drawn_unknown(
    name: str, d: int, seed: int
) -> tuple[Callable[[Tensor], Tensor], float | None]:
    """An unknown part, and a number that it is never below; None where there is none.

    Args:
        name: `gp` is a draw with hyperparameters from the prior that level `marginal`
            averages over. `shifted` is the same draw with its smallest value as the
            floor, the strongest there is. `positive` is the softplus of a draw, like a
            loss: flat near zero, which is its floor, and steep elsewhere, which no
            Gaussian process says.
        d: Number of coordinates.
        seed: Of the draw.
    """
    rng = torch.Generator().manual_seed(7_919 * d + seed)
    normal = torch.randn(d + 2, generator=rng, dtype=torch.float64)
    lengthscale = (
        LENGTHSCALE_MEDIAN * math.sqrt(d) * (LENGTHSCALE_LOG_SD * normal[:d]).exp()
    )
    outputscale = math.exp(OUTPUTSCALE_LOG_SD * normal[d].item())
    mean = normal[d + 1].item()
    draw = sample_of_prior(lengthscale, outputscale, mean, 1_000_003 * d + seed)
    if name == "gp":
        return draw, None
    if name == "shifted":
        # What the search for the minimum misses, at most, is a tenth of delta.
        lowest = smallest_value(draw, d, seed)
        return draw, lowest - 0.1 * DELTA
    sharpness = 2.0

    def positive(X: Tensor) -> Tensor:
        return torch.nn.functional.softplus(sharpness * draw(X)) / sharpness

    return positive, 0.0


def smallest_value(function: Callable[[Tensor], Tensor], d: int, seed: int) -> float:
    """Search a function densely, then by steps along coordinates from its best points.

    Not by gradient: tables have kinks, and minima lie in them.
    """
    points = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(
        _NUM_SPACE_FILLING, dtype=torch.float64
    )
    values = torch.cat([function(chunk) for chunk in points.split(1024)])
    best = values.topk(_NUM_POLISHED, largest=False)
    points, values = points[best.indices], best.values
    steps = torch.cat([torch.eye(d), -torch.eye(d), torch.zeros(1, d)]).double()
    step = 0.1
    while step > 1e-4:
        moved = (points.unsqueeze(1) + step * steps).clamp(0.0, 1.0)
        there = function(moved.reshape(-1, d)).reshape(len(points), -1)
        lowest = there.min(-1)
        points = moved[torch.arange(len(points)), lowest.indices]
        # Only when none of them gained: a long way is gone in long steps.
        if not bool((lowest.values < values - 1e-9).any()):
            step /= 2.0
        values = lowest.values
    return float(values.min())


class _Search:
    """A search with what it has observed."""

    def __init__(self, settings: dict[str, Any], seed: int) -> None:
        self.model_of, self.seed, d = settings["model"], seed, settings["d"]
        self.dim, self.budget = d, _MAX_EVALUATIONS[d]
        self.tables = known_tables(d, seed)
        self.unknown, floor = drawn_unknown(settings["unknown"], d, seed)
        self.known: KnownFunction | None = None
        if self.model_of != "sum":
            bound = floor if self.model_of in ("floor", "clipped") else None
            self.known = KnownFunction(
                self.tables, floor=bound, bends=self.tables.bends
            )
        self.minimum = smallest_value(self.objective, d, seed)
        self.transform = ScalarizedPosteriorTransform(
            torch.tensor([-1.0], dtype=torch.float64)
        )
        self.rng = torch.Generator().manual_seed(1_000_003 * d + seed)
        self.bounds = torch.tensor([[0.0] * d, [1.0] * d], dtype=torch.float64)
        self.X = torch.empty(0, d, dtype=torch.float64)
        self.Y = torch.empty(0, 1, dtype=torch.float64)
        engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed)
        for x in engine.draw(_INITIAL[d], dtype=torch.float64):
            self._evaluate(x.unsqueeze(0))

    def objective(self, X: Tensor) -> Tensor:
        """What is minimised, without noise, `N x d` to `N`."""
        return self.tables(X) + self.unknown(X)

    @property
    def num_evaluations(self) -> int:
        return len(self.X)

    def _evaluate(self, x: Tensor) -> None:
        value = self.objective(x).unsqueeze(-1)
        noise = torch.randn(1, 1, generator=self.rng, dtype=torch.float64)
        self.X = torch.cat([self.X, x])
        self.Y = torch.cat([self.Y, value + NOISE * noise])

    def check(self) -> PACCertificate:
        """Fit the surrogate and compute its certificate."""
        Y, sem = self.Y, torch.full_like(self.Y, NOISE)
        if self.known is not None:
            Y = Y - self.known(self.X).unsqueeze(-1)
        if self.model_of == "clipped":
            Y, sem = self._clipped(Y, sem)
        self.model = fit_model(self.X, Y, sem.square(), self.bounds)
        return certify(
            self.model,
            self.X,
            self.bounds,
            delta=DELTA,
            epsilon=EPSILON,
            level="marginal",
            posterior_transform=self.transform,
            seed=10_000 * self.seed + self.num_evaluations,
            known=self.known,
        )

    def _clipped(self, Y: Tensor, sem: Tensor) -> tuple[Tensor, Tensor]:
        """Clip the unknown part as the transform of Ax experiments does."""
        assert self.known is not None
        assert self.known.floor is not None
        seen = Y.numpy(), sem.numpy(), self.tables(self.X).unsqueeze(-1).numpy()
        unknown, _, known = seen
        clip = soft_clip(
            *(array.reshape(-1) for array in seen),
            best_known=self.tables(self.bounds[:1]).item(),  # they increase
            limit=self.known.floor,
            weight=-1.0,
            times=CLIP,
        )
        if clip is None:
            self.known = replace(self.known, reach=None)
            return Y, sem
        self.known = replace(self.known, reach=clip.reach)
        clipped = torch.from_numpy(clip(unknown, known))
        return clipped, torch.from_numpy(clip.sem(unknown, sem.numpy(), known))

    def step(self, certificate: PACCertificate) -> None:
        """Evaluate challenger or incumbent, whichever is more informative."""
        acquisition = PACAcquisition(
            self.model, self.X, DELTA, self.transform, known=self.known
        )
        challenger = torch.tensor([certificate.challenger], dtype=torch.float64)
        self._evaluate(more_informative(acquisition, challenger))

    def verdict(self, certificate: PACCertificate) -> dict[str, Any]:
        """Measure the true regret of the incumbent."""
        incumbent = torch.tensor([certificate.incumbent], dtype=torch.float64)
        value = self.objective(incumbent).item()
        fewest = max(fewest_observations(self.dim), _INITIAL[self.dim])
        points = torch.quasirandom.SobolEngine(self.dim, scramble=True, seed=0)
        acquisition = PACAcquisition(
            self.model,
            self.X,
            DELTA,
            self.transform,
            known=self.known,
            negligible=0.001,
        )
        can_win = acquisition.can_win(points.draw(4096, dtype=torch.float64))
        return {
            "evaluations": self.num_evaluations,
            "regret": max(0.0, value - self.minimum),
            "failure_probability": certificate.failure_probability,
            "worse_incumbent": certificate.worse_incumbent_probability,
            "can_win": float(can_win.double().mean()),
            "check": self.num_evaluations - fewest + 1,
        }


def render_known_part(traces: Sequence[Trace]) -> str:
    """One table per dimension, one row per kind of unknown part and model."""
    lines = opening(
        "Certificates with a known part",
        "How often a certificate is right where a part of the objective is known: a "
        "table per coordinate, plus an unknown part, minimised over the unit box with "
        f"noise of standard deviation {NOISE}. Hyperparameters are fitted at every "
        "step, a run ends by its certificate at level `marginal`, "
        f"delta = {DELTA}, epsilon = {EPSILON}.",
        "*Unknown part*: `gp` is drawn from the prior that level `marginal` averages "
        "over. `shifted` is the same draw, of which the smallest value is known, the "
        "strongest floor that there is. `positive` is the softplus of a draw, never "
        "below zero, like a loss. *Model*: `sum` is a surrogate of the whole "
        "objective, `known` one of the unknown part, `floor` the same with its lower "
        "bound, `clipped` also with what is too bad to win soft-clipped, which is the "
        "default in Ax. *Success*: the incumbent at the stop is within delta of the "
        "best value, with its Clopper-Pearson interval (95 %). *Early and wrong*: "
        f"certificates among the first {FIRST_CHECKS} checks of a run whose regret is "
        "above delta. *Can win*: share of the box that the floor leaves at the stop, "
        "median.",
        NAME,
    )
    for d in sorted({trace.settings["d"] for trace in traces}):
        of_d = [trace for trace in traces if trace.settings["d"] == d]
        lines += [f"## d={d}", "", f"{len(of_d)} runs. {revisions(of_d)}", ""]
        lines += table(
            "unknown part | model | certified | evaluations, median (quartiles) "
            "| success | worst regret | early and wrong | can win",
            (_row(group) for group in _in_order(of_d)),
        )
    return "\n".join(lines)


def _in_order(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Runs of the same settings together, in the order of the plan."""
    order = [row for row, _, _ in _PLAN]
    groups = by_settings(traces)
    return sorted(groups, key=lambda group: order.index(group[0].settings))


def _row(group: Sequence[Trace]) -> list[object]:
    """One kind of run. Runs without a certificate count as beyond the longest."""
    names = [group[0].settings[name] for name in ("unknown", "model")]
    stops = [trace.result["stop"] for trace in group]
    made = [stop for stop in stops if stop is not None]
    if not made:
        return [*names, clopper_pearson(0, len(stops)), *["-"] * 5]
    good = sum(stop["regret"] <= DELTA for stop in made)
    early = sum(
        stop["check"] <= FIRST_CHECKS and stop["regret"] > DELTA for stop in made
    )
    return [
        *names,
        clopper_pearson(len(made), len(stops)),
        stopped_after(stops),
        clopper_pearson(good, len(made)),
        f"{max(stop['regret'] for stop in made):.3f}",
        early,
        f"{np.median([stop['can_win'] for stop in made]):.2f}",
    ]
