"""One search by one method, with three clocks and the truth beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ax_pac import certify, fit_model, select_incumbent, smoothed_sems
from ax_pac.cells import Cells
from ax_pac.surrogate.fit import fewest_observations
from benchmarks.comparison.problems import Problem
from benchmarks.harness.optimiser import Method, Observation, Point, Seconds, Stopwatch
from benchmarks.harness.streams import trial_seed
from compression_adapters import MeanSEM
from compression_adapters.search.client import quiet_ax

# Epsilon of each level, of the published one and of ours.
LEVELS = {"pairwise": 0.005, "joint": 0.005, "marginal": 0.05}
# The common incumbent is looked at after every evaluation at first, then less often.
_EVERY_UNTIL = 60
_DIGITS = 6
# Another method's run is certified from outside once in so many evaluations, because
# that costs more than the run.
CERTIFIED_EVERY = 3


@dataclass(frozen=True)
class Budget:
    """When a search ends that does not end by itself.

    Args:
        evaluations: At most so many.
        cost: And not after so much has been spent. Unit: samples.
    """

    evaluations: int
    cost: float = math.inf


def search_with(
    problem: Problem,
    method: Method,
    budget: Budget,
    evaluation_stream: int,
    *,
    certify_own: bool = False,
    follow: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search; return the result and a record per trial.

    Time is that of the method alone. What only the tables need (the truth, the common
    incumbent, certificates of another method's run) is not on any of its clocks.

    Args:
        problem: What is searched.
        method: By what.
        budget: When to end.
        evaluation_stream: Seed of the samples.
        certify_own: Whether to certify the run from outside, at every level.
        follow: Whether to look at the truth after every evaluation.

    Returns:
        Result and trials, as plain JSON values.
    """
    observations: list[Observation] = []
    losses: list[MeanSEM] = []
    trials: list[dict[str, Any]] = []
    cost, stopped, stops = 0.0, False, {}
    last_ask = Seconds(0.0, 0.0)
    while len(observations) < budget.evaluations and cost < budget.cost:
        fit_before = method.fit_seconds
        optimiser, evaluation = Stopwatch(), Stopwatch()
        with optimiser.running():
            asked = method.ask()
        if asked is None:
            stopped, last_ask = True, optimiser.seconds
            break
        seed = trial_seed(evaluation_stream, len(observations))
        with evaluation.running():
            objective, loss = problem.evaluate(
                asked.point, asked.num_samples, seed, losses
            )
        if loss is not None:
            losses.append(loss)
        own_cost = problem.cost(asked.num_samples)
        observation = Observation(*asked, objective.mean, objective.sem, own_cost)
        with optimiser.running():
            method.tell(observation)
        # Who counts fits by the wall clock cannot have spent more than there was.
        fit_known = method.fit_seconds
        fit_inside = _smaller(_gap(fit_known, fit_before), optimiser.seconds)
        observations.append(observation)
        cost += own_cost
        # May fit a model to the new observation, which the next proposal then has.
        own = method.incumbent()
        fit = _sum(fit_inside, _gap(method.fit_seconds, fit_known))
        trials.append(
            {
                "point": [round(u, _DIGITS) for u in asked.point],
                "samples": asked.num_samples,
                "mean": _rounded(objective.mean),
                "sem": _rounded(objective.sem),
                "cost": own_cost,
                "evaluate": _plain(evaluation.seconds),
                "fit": _plain(fit),
                "propose": _plain(_gap(optimiser.seconds, fit_inside)),
            }
        )
        if not follow:
            continue
        trials[-1]["own"] = _rounded(problem.true(own))
        if _is_looked_at(len(observations), budget.evaluations):
            common = common_incumbent(problem, observations)
            trials[-1]["common"] = _rounded(problem.true(common or own))
        if certify_own and len(observations) % CERTIFIED_EVERY == 0:
            for level, watch in _levels_met(problem, observations, stops).items():
                stops[level] = {
                    "evaluations": len(observations),
                    "seconds": _plain(watch.seconds),
                    "own": trials[-1]["own"],
                }
    own = method.incumbent()
    common = (common_incumbent(problem, observations) if follow else None) or own
    return {
        "stopped": stopped,
        "evaluations": len(observations),
        "samples": sum(o.num_samples for o in observations),
        "setup_samples": getattr(method, "setup_images", 0),
        "last_ask": _plain(last_ask),
        "optimum": problem.optimum,
        "delta": problem.delta,
        "own": problem.final(own),
        "common": problem.final(common),
        "stops": stops,
    }, trials


def common_incumbent(
    problem: Problem, observations: Sequence[Observation]
) -> Point | None:
    """The visited point of best posterior mean under one surrogate for all methods.

    None with too few observations for a model, and where small evaluations are biased:
    a model that does not know their size would be wrong.
    """
    if problem.is_biased or len(observations) < 4:
        return None
    X, Y, Yvar = surrogate_data(problem, observations)
    with quiet_ax():
        model = fit_model(X, -Y, Yvar, _unit_box(problem.dim))
    best = select_incumbent(model, X)
    return tuple(best.squeeze(0).tolist())


def surrogate_data(
    problem: Problem, observations: Sequence[Observation]
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, means and variances for `fit_model`: `n x d`, `n x 1`, `n x 1`."""
    X = torch.tensor([o.point for o in observations], dtype=torch.float64)
    if problem.cells:
        X = Cells(problem.cells).canonical(X)
    Y = torch.tensor([[o.mean] for o in observations], dtype=torch.float64)
    sem = torch.tensor([o.sem for o in observations], dtype=torch.float64)
    sizes = {o.num_samples for o in observations}
    if len(sizes) == 1:
        # Of one size, standard errors can be smoothed over trials.
        smoothed = smoothed_sems(
            X.numpy(), Y.squeeze(-1).numpy(), sem.numpy(), num_samples=sizes.pop()
        )
        sem = torch.as_tensor(smoothed, dtype=torch.float64)
    return X, Y, sem.clamp_min(1e-9).square().unsqueeze(-1)


def _levels_met(
    problem: Problem, observations: Sequence[Observation], known: dict[str, Any]
) -> dict[str, Stopwatch]:
    """Levels whose certificate holds now for the first time, with what asking took."""
    first = max(6, problem.dim + 2)
    if len(observations) < first or "marginal" in known:
        return {}
    X, Y, Yvar = surrogate_data(problem, observations)
    cells = Cells(problem.cells) if problem.cells else None
    met = {}
    for level, epsilon in LEVELS.items():
        too_few = len(observations) < fewest_observations(problem.dim)
        if level in known or (too_few and level != "pairwise"):
            continue
        watch = Stopwatch()
        with watch.running(), quiet_ax():
            certificate = certify(
                fit_model(X, -Y, Yvar, _unit_box(problem.dim)),
                X,
                _unit_box(problem.dim),
                delta=problem.delta,
                epsilon=epsilon,
                level=level,
                seed=len(observations),
                cells=cells,
            )
        if certificate.holds:
            met[level] = watch
    return met


def _is_looked_at(number: int, last: int) -> bool:
    if number <= _EVERY_UNTIL:
        return number >= 4
    return number == last or number % (5 if number <= 100 else 50) == 0


def _unit_box(dim: int) -> Tensor:
    return torch.tensor([[0.0] * dim, [1.0] * dim], dtype=torch.float64)


def _gap(later: Seconds, earlier: Seconds) -> Seconds:
    return Seconds(
        max(0.0, later.cpu - earlier.cpu), max(0.0, later.wall - earlier.wall)
    )


def _smaller(left: Seconds, right: Seconds) -> Seconds:
    return Seconds(min(left.cpu, right.cpu), min(left.wall, right.wall))


def _sum(left: Seconds, right: Seconds) -> Seconds:
    return Seconds(left.cpu + right.cpu, left.wall + right.wall)


def _plain(seconds: Seconds) -> list[float]:
    return [round(seconds.cpu, 4), round(seconds.wall, 4)]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
