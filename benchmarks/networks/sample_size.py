"""`num_samples="auto"` against a fixed 50: time to the certificate on ResNet18."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, revisions, spread, table
from benchmarks.harness.traces import Trace, by_settings, recorded
from benchmarks.networks.cifar import cifar10, resnet
from benchmarks.networks.resnets import DELTA, measured
from compression_adapters import compress
from compression_adapters.presets.registry import PRESETS

NAME = "sample_size"
DESCRIPTION = "ResNet18 on CIFAR-10: as many samples as the search costs, or 50"
MINUTES_ONCE = 1.0


def _row(num_samples: int | str, gamma: float) -> dict[str, Any]:
    return {
        "num_samples": num_samples,
        "gamma": gamma,
        "level": "marginal",
        "epsilon": 0.05,
    }


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = tuple(
    (_row(num_samples, gamma), 5, 1.5)
    for gamma in (0.02, 0.15)
    for num_samples in (50, "auto")
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Both numbers of samples at two gammas, seed by seed."""
    return sorted(planned(_PLAN, seeds, **changes), key=lambda job: job[1])


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once, with its wall seconds, and measure on the test images."""
    network, (images, _) = resnet("resnet18"), cifar10(train=True)
    start = time.perf_counter()
    found = compress(
        network,
        images,
        delta=DELTA,
        choose=PRESETS["resnet18"].choose,
        seed=seed,
        progress=False,
        **WEIGHTS_ALONE,
        **settings,
    )
    seconds = time.perf_counter() - start
    return recorded(
        NAME,
        settings,
        seed,
        {
            "holds": found.certificate.holds,
            "evaluations": len(found.trials),
            "num_samples": found.problem.num_samples,
            "chosen": found.sample_size is not None,
            "seconds": seconds,
            "timings": found.timings,
            **measured(found.problem, found.ranks, "resnet18"),
        },
    )


def render_sample_size(traces: Sequence[Trace]) -> str:
    """One row per setting; medians over seeds with their range."""
    threads = traces[-1].provenance["threads"]
    lines = opening(
        "The number of samples per evaluation",
        'Searches of ResNet18 on CIFAR-10 with `num_samples="auto"` and with 50 '
        f"samples, delta = {DELTA}, the default level. `auto` times the first "
        "evaluations, of 50 samples, and starts again with more samples where a "
        "proposal costs more than an evaluation. Its seconds include the first "
        "evaluations, its number of evaluations does not.",
        "J is measured on the 10,000 test images. Medians over seeds, range in "
        f"brackets. {revisions(traces)} Threads: {threads}.",
        NAME,
    )
    rows = []
    for group in sorted(
        by_settings(traces),
        key=lambda g: (g[0].settings["gamma"], str(g[0].settings["num_samples"])),
    ):
        settings, results = group[0].settings, [trace.result for trace in group]
        objectives = [settings["gamma"] * r["loss"] + r["ratio"] for r in results]
        rows.append(
            [
                *(settings["gamma"], settings["num_samples"], len(results)),
                spread([r["num_samples"] for r in results], 0),
                f"{sum(r['holds'] for r in results)}/{len(results)}",
                spread([r["evaluations"] for r in results], 0),
                spread([r["seconds"] for r in results], 0),
                spread([r["timings"]["evaluate"] for r in results], 0),
                spread(objectives, 3),
                spread([100 * r["top1"] for r in results], 2),
            ]
        )
    lines += table(
        "gamma | num_samples | runs | m | certified | evaluations | seconds "
        "| of these, evaluating | J | top-1 %",
        rows,
    )
    return "\n".join(lines)
