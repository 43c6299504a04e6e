"""Table 2's problem as we recommend it: one run for its five gammas, until certified.

The ratio is known, the loss is the paired difference of top-1 errors, and the number of
images is chosen by its variance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data_aware.subjects import FACTORS
from benchmarks.harness.plans import Plan, minutes_of
from benchmarks.harness.streams import streams
from benchmarks.harness.traces import Trace, recorded
from benchmarks.networks.evaluation import network_data, outputs_on
from benchmarks.paper.runs import DELTA, NUM_SAMPLES, planned_source
from benchmarks.paper.tables import TABLE_2_GAMMAS
from compression_adapters import (
    CompressionProblem,
    Loss,
    PairedTop1Error,
    SearchOptions,
    compression_problem,
    top1_error,
)
from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.network.truncation import truncated
from compression_adapters.options import CALIBRATE
from compression_adapters.rank_space.scales import Rank
from compression_adapters.search.client import reweighted_client
from compression_adapters.search.initial_design import diagonal_points, path_points
from compression_adapters.search.run import search_problem

NAME = "paper_table2_certified"
DESCRIPTION = "paper, Table 2 as we recommend it: paired errors, known ratio"
MINUTES_ONCE = 0.5

NETWORK = "resnet18"
MOST_TRIALS = 100
# Standard error of an evaluation at the best of the first networks, in deltas. Nearer
# to the optimum it is smaller, because more predictions agree there: about a third.
SEM_SHARE = 0.5
# Images on which the variance is measured, of each of the first networks.
PILOT_SAMPLES = 500
# Images of the pool on which networks are compared at the end, the same for all.
POOL_IMAGES = 4_000


def settings(
    loss: str = "paired",
    num_samples: int | str = "variance",
    factors: str = "weights",
    gammas: Sequence[float] = TABLE_2_GAMMAS,
) -> dict[str, Any]:
    """Settings of one run.

    Args:
        loss: `paired` or `top1_error`.
        num_samples: m, or `variance`.
        factors: `weights` alone, or such as know the `data`.
        gammas: Weights of the loss, from one run.
    """
    return {
        **{"network": NETWORK, "source": "here", "loss": loss},
        **{"num_samples": num_samples, "factors": factors, "gammas": list(gammas)},
    }


# Each with its number of runs and the core-minutes of one: measured for factors of the
# weights, and taken to be the same for the others.
_PLAN: Plan = (
    (settings(), 3, 5.0),
    (settings(factors="data"), 3, 5.0),
    # What each part brings, at one gamma.
    (settings("top1_error", NUM_SAMPLES, gammas=(1.0,)), 1, 2.0),
    (settings("paired", NUM_SAMPLES, gammas=(1.0,)), 1, 2.0),
    (settings("top1_error", gammas=(1.0,)), 1, 3.0),
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`, seed by seed."""
    return sorted(planned_source(_PLAN, seeds, **changes), key=lambda job: job[1])


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search all gammas in one run, and measure on the test images.

    Seconds are those of the processor. Factors and floor are made once per process, and
    what that took counts for each run.
    """
    problem, setup = _problem(settings["factors"], settings["loss"])
    # Outputs of the reference network on the images of an earlier run are not known.
    problem = replace(problem, reference=None)
    start = time.process_time()
    pilot = None
    if settings["num_samples"] == "variance":
        pilot = chosen_samples(problem, max(settings["gammas"]), DELTA, seed)
        problem = replace(problem, num_samples=pilot["num_samples"])
    pilot_seconds = time.process_time() - start
    found = _searched(problem, settings["gammas"], seed)
    # On no clock: only the tables need it.
    measure = Measured(problem)
    for row in found:
        row |= measure(row["ranks"])
    seconds = sum(setup.values()) + pilot_seconds
    seconds += sum(row["seconds"] for row in found)
    return recorded(
        NAME,
        settings,
        seed,
        {
            "num_samples": problem.num_samples,
            "pilot": pilot,
            "pool": problem.pool_size,
            "reference": measure.reference,
            "setup_seconds": setup,
            "pilot_seconds": pilot_seconds,
            "seconds": seconds,
            "gammas": found,
        },
    )


@cache
def _problem(factors: str, loss: str) -> tuple[CompressionProblem, dict[str, float]]:
    """The problem, and the processor seconds that its factors and its floor took."""
    data = network_data(NETWORK)
    start = time.process_time()
    bounded = _loss(factors, loss)
    floor_seconds = time.process_time() - start
    problem = compression_problem(
        data.network,
        data.pool,
        labels=data.pool_labels,
        gamma=1.0,
        loss=bounded,
        choose=data.choose,
        num_samples=NUM_SAMPLES,
        **FACTORS[factors],
    )
    total = time.process_time() - start
    return problem, {"floor": floor_seconds, "factors": total - floor_seconds}


def _loss(factors: str, loss: str) -> Loss:
    """The loss, with its floor: no network is wrong less than never.

    Trials on data-aware factors do not draw calibration images. The error of the
    reference network on the others is at most all its errors over their number.
    """
    if loss == "top1_error":
        return top1_error
    data = network_data(NETWORK)
    pool = data.pool[torch.arange(len(data.pool))]
    top1 = accuracy(data.network, pool, data.pool_labels, topk=(1,))[0]
    calibrated = FACTORS[factors].get("calibrate", CALIBRATE)
    share = len(pool) / (len(pool) - calibrated)
    return PairedTop1Error(min(1.0, (1.0 - top1) * share))


def chosen_samples(
    problem: CompressionProblem, gamma: float, delta: float, seed: int
) -> dict[str, Any]:
    """Choose m for a standard error of a share of delta near the optimum.

        m = (gamma * deviation / (share * delta))^2

    with the deviation of a sample of the loss at the best of the networks that a search
    begins with.

    Args:
        problem: What is searched.
        gamma: The largest weight of the loss.
        delta: Tolerance. Unit: objective units.
        seed: Of the run; the images are others than those of trials.

    Returns:
        `num_samples`, at least 50 and at most the pool, with what it comes from.
    """
    pilot = replace(problem, num_samples=PILOT_SAMPLES)
    first = diagonal_points if problem.calibration is None else path_points
    number = _number_of(seed)
    rows = []
    for i, point in enumerate(first(problem)):
        ranks = problem.ranks(point)
        values = pilot.sample_losses(ranks, seed=number + i).double()
        ratio = problem.ratio(ranks)
        rows.append(
            {
                "ratio": ratio,
                "loss": float(values.mean()),
                "deviation": float(values.std()),
                "objective": gamma * float(values.mean()) + ratio,
            }
        )
    best = min(rows, key=lambda row: row["objective"])
    needed = samples_needed(best["deviation"], gamma, delta)
    return {
        "num_samples": min(max(NUM_SAMPLES, needed), problem.pool_size or needed),
        "images": PILOT_SAMPLES * len(rows),
        "networks": rows,
        "best": best,
    }


def samples_needed(deviation: float, gamma: float, delta: float) -> int:
    """Samples for a standard error of `SEM_SHARE` times delta, in objective units."""
    return math.ceil((gamma * deviation / (SEM_SHARE * delta)) ** 2)


def _number_of(seed: int) -> int:
    """First seed of the pilot's images."""
    return streams(f"{NAME} pilot", seed).evaluation


def _searched(
    problem: CompressionProblem, gammas: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """Search the gammas as `compress_at` does, with the seconds of each.

    What that does not return is the time of the processor.
    """
    options = SearchOptions(
        delta=DELTA, max_trials=MOST_TRIALS, seed=seed, refit=False, progress=False
    )
    rows, client = [], None
    for gamma in sorted(gammas):
        start = time.process_time()
        weighted = replace(problem, gamma=gamma)
        known = 0
        if client is not None:
            client = reweighted_client(client, weighted)
            known = rows[-1]["evaluations"]
        result = search_problem(weighted, options, client=client)
        client = result.client
        evaluations = len(result.trials)
        rows.append(
            {
                "gamma": gamma,
                "holds": result.certificate.holds,
                "failure_probability": result.certificate.failure_probability,
                "reason": result.certificate.reason,
                "evaluations": evaluations,
                "new_evaluations": evaluations - known,
                "images": (evaluations - known) * problem.num_samples,
                "ranks": dict(result.ranks),
                "seconds": time.process_time() - start,
            }
        )
    return rows


class Measured:
    """What networks of a problem are, on the test images and on those of the pool.

    Args:
        problem: With the factors.
    """

    def __init__(self, problem: CompressionProblem) -> None:
        self.problem, self.data = problem, network_data(NETWORK)
        self.known: dict[tuple[Rank, ...], dict[str, float]] = {}
        self.before = _right(self.data.network)
        test, pool = self.before
        self.reference = {
            "top1": float(test.double().mean()),
            "pool_top1": float(pool.double().mean()),
        }

    def __call__(self, ranks: Mapping[str, Rank]) -> dict[str, float]:
        """Measure one choice of ranks, once."""
        key = tuple(ranks[layer.name] for layer in self.problem.layers)
        if key not in self.known:
            problem = self.problem
            with truncated(
                problem.network, problem.factors, problem.layers, dict(ranks)
            ) as network:
                test, pool = _right_of(network)
            wrong = 1.0 - pool.double()
            drop = self.before[1].double() - pool.double()
            self.known[key] = {
                "ratio": problem.ratio(ranks),
                "top1": float(test.double().mean()),
                "pool_drop": float(drop.mean()),
                "deviation_paired": float(drop.std()),
                "deviation_top1_error": float(wrong.std()),
            }
        return self.known[key]


@cache
def _right(network: nn.Module) -> tuple[Tensor, Tensor]:
    """As `_right_of`, of a network that is not cut, once per process."""
    return _right_of(network)


def _right_of(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Whether a network is right, on all test images and on the first of the pool."""
    data, found = network_data(NETWORK), []
    for images, labels, count in (
        (data.test, data.test_labels, len(data.test)),
        (data.pool, data.pool_labels, POOL_IMAGES),
    ):
        outputs = outputs_on(network, images, count)
        found.append(outputs.argmax(1) == labels[: len(outputs)])
    return found[0], found[1]
