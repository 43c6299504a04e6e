"""Several gammas from one run on FC3, against a search for each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, revisions, table
from benchmarks.harness.traces import Trace, by_settings, recorded
from benchmarks.networks.fc3 import full_objective
from compression_adapters import compress, compression_ratio
from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets.registry import PRESETS
from compression_adapters.search.result import CompressionResult
from compression_adapters.search.targets import compress_at

NAME = "gammas"
DESCRIPTION = "FC3: five gammas from one run, and a search for each of them"
MINUTES_ONCE = 1.0

# The bar: five gammas from one run cost at most so many times one of them.
MOST = 1.5
GAMMAS = (0.001, 0.0015, 0.002, 0.003, 0.005)
SEARCH = {"delta": 0.05, "max_trials": 100, "progress": False, **WEIGHTS_ALONE}
# Each with its number of runs and the core-minutes of one.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    ({"level": "marginal", "epsilon": 0.05}, 10, 3.0),
    ({"level": "joint", "epsilon": 0.05}, 10, 1.5),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search all gammas in one run, then each alone under the same seed."""
    preset = PRESETS["fc3"]
    network, (images, _) = preset.trained(), preset.train_data()
    common: dict[str, Any] = {**SEARCH, **settings, "choose": preset.choose}
    start = time.perf_counter()
    shared = compress_at(network, images, gammas=GAMMAS, seed=seed, **common)
    shared_seconds = time.perf_counter() - start
    start = time.perf_counter()
    alone = [
        compress(network, images, gamma=gamma, seed=seed, **common) for gamma in GAMMAS
    ]
    return recorded(
        NAME,
        settings,
        seed,
        {
            "shared": _measured(shared),
            "alone": _measured(alone),
            "shared_seconds": shared_seconds,
            "alone_seconds": time.perf_counter() - start,
        },
    )


def _measured(results: Sequence[CompressionResult]) -> list[dict[str, Any]]:
    """What each gamma came to; its objective on all training images."""
    preset = PRESETS["fc3"]
    images, _ = preset.train_data()
    return [
        {
            "gamma": result.problem.gamma,
            "holds": result.certificate.holds,
            # All that have been made for this gamma and smaller ones.
            "evaluations": len(result.trials),
            "ratio": compression_ratio(result.problem.layers, result.ranks),
            "objective": full_objective(result.problem, images, result.ranks),
            "top1": accuracy(result.network, *preset.test_data(), topk=(1,))[0],
        }
        for result in results
    ]


def render_gammas(traces: Sequence[Trace]) -> str:
    """One section per level: what five gammas cost, and whether they are right."""
    lines = opening(
        "Several gammas from one run",
        f"FC3 on MNIST at gamma = {', '.join(map(str, GAMMAS))}, delta = "
        f"{SEARCH['delta']}: one run for all of them, beside one search for each under "
        "the same seed. The run starts with the smallest gamma; each further one "
        "reweights what was measured before (`compress_at`).",
        "*Excess*: the objective on all 60,000 training images, minus that of the best "
        "network that any run here found for the gamma. It should stay below delta. "
        f"The evaluations of one run should be at most {MOST} times those of one "
        "search, as a median over seeds.",
        NAME,
    )
    best: dict[float, float] = {}
    for trace in traces:
        for row in trace.result["shared"] + trace.result["alone"]:
            gamma, found = row["gamma"], row["objective"]
            best[gamma] = min(best.get(gamma, found), found)
    for group in by_settings(traces):
        settings = group[0].settings
        group = sorted(group, key=lambda trace: trace.seed)
        lines += [
            f"## Level {settings['level']}, epsilon = {settings['epsilon']}",
            "",
            revisions(group),
            "",
            *_costs(group),
            *_networks(group, best),
        ]
    return "\n".join(lines)


def _costs(traces: Sequence[Trace]) -> list[str]:
    rows, ratios = [], []
    for trace in traces:
        shared, alone = (
            [row["evaluations"] for row in trace.result[part]]
            for part in ("shared", "alone")
        )
        total = max(shared)
        ratio = total / min(shared), total / np.median(alone), total / sum(alone)
        ratios.append(ratio)
        separate = ", ".join(map(str, alone))
        rows.append(
            [trace.seed, total, min(shared), separate, *(f"{r:.2f}" for r in ratio)]
        )
    middle = (f"{value:.2f}" for value in np.median(ratios, axis=0))
    rows.append(["median", "", "", "", *middle])
    return table(
        "seed | all five in one run | first of them | separate searches, each "
        "| one run / first | / median of one | / all separate",
        rows,
    )


def _networks(traces: Sequence[Trace], best: dict[float, float]) -> list[str]:
    cells = []
    for i, gamma in enumerate(GAMMAS):
        for part, name in (("shared", "one run"), ("alone", "separate")):
            rows = [trace.result[part][i] for trace in traces]
            excess = [row["objective"] - best[gamma] for row in rows]
            cells.append(
                [
                    *(gamma, name, f"{sum(row['holds'] for row in rows)}/{len(rows)}"),
                    f"{np.median(excess):.3f} ({max(excess):.3f})",
                    f"{100 * np.median([row['ratio'] for row in rows]):.1f}",
                    f"{100 * np.median([row['top1'] for row in rows]):.2f}",
                ]
            )
    return table(
        "gamma | how | certified | excess, median (largest) | ratio %, median "
        "| top-1 %, median",
        cells,
    )
