"""`num_samples="auto"` against a fixed 50: time to the certificate on ResNet18."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, provenance
from benchmarks.networks.cifar import cifar10, resnet
from benchmarks.networks.resnets import DELTA, measured
from compression_adapters import compress
from compression_adapters.presets import PRESETS

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
    return sorted(planned(_PLAN, seeds, changes), key=lambda job: job[1])


def minutes(job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run."""
    return minutes_of(_PLAN, job)


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
        **settings,
    )
    seconds = time.perf_counter() - start
    return Trace(
        benchmark=NAME,
        settings=settings,
        seed=seed,
        result={
            "holds": found.certificate.holds,
            "evaluations": len(found.trials),
            "num_samples": found.problem.num_samples,
            "chosen": found.sample_size is not None,
            "seconds": seconds,
            "timings": found.timings,
            **measured(found.problem, found.ranks, "resnet18"),
        },
        trials=[],
        provenance=provenance(torch.get_num_threads()),
    )
