"""FC3 on MNIST: evaluations to the certificate, regret, accuracy and time."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.tables import described, folded, opening, table
from benchmarks.harness.traces import TRACES, Trace, by_settings, recorded
from compression_adapters import (
    CompressionProblem,
    Rank,
    compression_ratio,
)
from compression_adapters.api import compress
from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets.registry import PRESETS

NAME = "fc3"
DESCRIPTION = "FC3 on MNIST: evaluations, true regret, accuracy and time"
# Core-minutes of the search for the true optimum, once for a network and a gamma.
MINUTES_ONCE = 5.0

PUBLISHED: dict[str, Any] = {
    "gamma": 0.001,
    "delta": 0.05,
    "epsilon": 0.005,
    "level": "pairwise",
    "sampling": "challenger",
    "encoding": "log",
}
JOINT = {**PUBLISHED, "level": "joint", "sampling": "leader_challenger"}
# The default of `compress`.
RECOMMENDED = {**JOINT, "level": "marginal", "epsilon": 0.05}
# Images on which the grid is searched; its best points are then measured on all.
_GRID_IMAGES = 10_000
_GRID_POINTS = 40
_BATCH = 5_000


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """The published rule, level joint, the default in three encodings; same changes."""
    unknown = set(changes) - set(PUBLISHED)
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}, known: {[*PUBLISHED]}")
    bases = (
        (PUBLISHED, 40),
        (JOINT, 40),
        (RECOMMENDED, 30),
        ({**RECOMMENDED, "encoding": "energy"}, 30),
        ({**RECOMMENDED, "encoding": "linear"}, 30),
    )
    jobs = [
        ({**base, **changes}, seed)
        for base, runs in bases
        for seed in range(seeds or runs)
    ]
    return [job for i, job in enumerate(jobs) if job not in jobs[:i]]


def minutes(job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run, measured."""
    return 0.3 if job[0]["level"] == "marginal" else 0.15


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once and measure what was returned on all images."""
    preset = PRESETS["fc3"]
    network = preset.trained()
    images, _ = preset.train_data()
    start = time.perf_counter()
    result = compress(
        network,
        images,
        choose=preset.choose,
        seed=seed,
        max_trials=100,
        progress=False,
        **WEIGHTS_ALONE,
        **settings,
    )
    seconds = time.perf_counter() - start
    best = optimum(result.problem, images)
    objective = full_objective(result.problem, images, result.ranks)
    top1, top5 = accuracy(result.network, *preset.test_data())
    original, _ = accuracy(network, *preset.test_data())
    certificate = result.certificate
    return recorded(
        NAME,
        settings,
        seed,
        {
            "stop_reason": result.stop_reason,
            "evaluations": len(result.trials),
            "objective": objective,
            "regret": objective - best["objective"],
            "compression_ratio": compression_ratio(result.problem.layers, result.ranks),
            "ranks": result.ranks,
            "top1": top1,
            "top5": top5,
            "top1_original": original,
            "failure_probability": certificate.failure_probability,
            "holds": certificate.holds,
            "seconds": seconds,
            "timings": result.timings,
            "optimum": best,
        },
        [
            {k: v for k, v in row.items() if v == v and not k.startswith("u_")}
            for row in result.trials.to_dict("records")
        ],
    )


def full_objective(
    problem: CompressionProblem, images: Tensor, ranks: dict[str, Rank]
) -> float:
    """The objective on the whole pool, whose mean is what the search estimates."""
    (loss,) = (
        losses[ranks["fc3"]]
        for _, _, losses in _losses(
            problem, images, [ranks["fc1"]], [ranks["fc2"]], [ranks["fc3"]]
        )
    )
    return problem.gamma * loss + compression_ratio(problem.layers, ranks)


def optimum(problem: CompressionProblem, images: Tensor) -> dict[str, Any]:
    """Find the true optimum by a dense search, once per network and gamma."""
    path = TRACES / "fc3_optimum.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    key = f"{_digest(problem)} gamma={problem.gamma}"
    if key not in known:
        known[key] = _search_optimum(problem, images)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=2) + "\n")
    return known[key]


def _digest(problem: CompressionProblem) -> str:
    """Identify the trained network; every machine trains its own."""
    digest = hashlib.sha256()
    for parameter in problem.network.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:12]


def _search_optimum(problem: CompressionProblem, images: Tensor) -> dict[str, Any]:
    """Search a grid in all three ranks, then exhaustively around its best points."""
    rng = torch.Generator().manual_seed(0)
    some = images[torch.randperm(len(images), generator=rng)[:_GRID_IMAGES]]
    scales = {layer.name: layer.max_rank for layer in problem.layers}
    grids = {name: _grid(max_rank) for name, max_rank in scales.items()}
    values: dict[tuple[Rank, ...], float] = {}
    _add(values, problem, some, grids["fc1"], grids["fc2"], grids["fc3"])
    for _ in range(20):
        best = sorted(values, key=values.__getitem__)[:3]
        before = len(values)
        for r1, r2, _ in best:
            near1 = _neighbours(r1, scales["fc1"])
            near2 = _neighbours(r2, scales["fc2"])
            todo = list(itertools.product(near1, near2))
            if all((a, b, "dense") in values for a, b in todo):
                continue
            _add(values, problem, some, near1, near2, grids["fc3"])
        if len(values) == before:
            break
    finalists = sorted(values, key=values.__getitem__)[:20]
    names = [layer.name for layer in problem.layers]
    measured = {
        ranks: full_objective(problem, images, dict(zip(names, ranks, strict=True)))
        for ranks in finalists
    }
    ranks = min(measured, key=measured.__getitem__)
    return {
        "ranks": dict(zip(names, ranks, strict=True)),
        "objective": measured[ranks],
        "points_searched": len(values),
        "images_searched": _GRID_IMAGES,
        "images_measured": len(images),
    }


def _grid(max_rank: int) -> list[Rank]:
    """Geometric grid of ranks with both ends, and dense."""
    ranks = np.unique(np.geomspace(1, max_rank, _GRID_POINTS).round().astype(int))
    return [*ranks.tolist(), "dense"]


def _neighbours(rank: Rank, max_rank: int) -> list[Rank]:
    """Every rank within a tenth, at least two steps; dense and the last few."""
    if rank == "dense":
        return [max_rank - 1, max_rank, "dense"]
    reach = max(2, rank // 10)
    return list(range(max(1, rank - reach), min(max_rank, rank + reach) + 1))


def _add(
    values: dict[tuple[Rank, ...], float],
    problem: CompressionProblem,
    images: Tensor,
    *ranks: list[Rank],
) -> None:
    """Evaluate the product of three lists of ranks."""
    names = [layer.name for layer in problem.layers]
    for r1, r2, losses in _losses(problem, images, *ranks):
        for r3, loss in losses.items():
            point = dict(zip(names, (r1, r2, r3), strict=True))
            ratio = compression_ratio(problem.layers, point)
            values[r1, r2, r3] = problem.gamma * loss + ratio


def _losses(
    problem: CompressionProblem,
    images: Tensor,
    ranks1: list[Rank],
    ranks2: list[Rank],
    ranks3: list[Rank],
) -> Iterator[tuple[Rank, Rank, dict[Rank, float]]]:
    """Mean squared L2 loss for every combination, sharing each layer's work.

    The hidden activations of the first layer are computed once for each of its ranks,
    the second layer's products with its right factor once for all of its ranks.
    """
    layers = problem.network
    f1, f2, f3 = (problem.factors[name] for name in ("fc1", "fc2", "fc3"))
    totals: dict[tuple[Rank, Rank, Rank], float] = {}
    with torch.inference_mode():
        for x in images.flatten(1).split(_BATCH):
            reference = layers(x)
            for r1 in ranks1:
                h1 = _linear(layers.fc1, f1, r1, x).relu()
                projected = h1 @ f2.right.T
                for r2 in ranks2:
                    if r2 == "dense":
                        h2 = layers.fc2(h1)
                    else:
                        h2 = projected[:, :r2] @ f2.left[:, :r2].T + f2.bias_at(r2)
                    h2 = h2.relu()
                    for r3 in ranks3:
                        gap = _linear(layers.fc3, f3, r3, h2) - reference
                        key = (r1, r2, r3)
                        total = gap.double().square().sum().item()
                        totals[key] = totals.get(key, 0.0) + total
    for r1 in ranks1:
        for r2 in ranks2:
            yield r1, r2, {r3: totals[r1, r2, r3] / len(images) for r3 in ranks3}


def _linear(layer: Any, factors: Any, rank: Rank, x: Tensor) -> Tensor:
    """A linear layer at a rank, from its factors."""
    if rank == "dense":
        return layer(x)
    return x @ factors.right[:rank].T @ factors.left[:, :rank].T + factors.bias_at(rank)


def render_fc3(traces: Sequence[Trace]) -> str:
    """One row per setting; below them the runs of each, folded."""
    lines = opening(
        "FC3 on MNIST",
        "Searches of FC3's three ranks: evaluations until the certificate, true "
        "regret, accuracy and time. The loss is the squared L2 distance of the logits "
        "without labels, on 50 fresh images per evaluation. The true regret is "
        "measured on all 60,000 training images, against a dense search over all "
        "three ranks.",
        "Each row is one setting: median (range) over its runs. *Regret below delta*: "
        "the share of certified runs that keep their promise. Intervals are "
        "Clopper-Pearson (95 %). The runs of each setting are folded below.",
        NAME,
    )
    groups = [sorted(group, key=lambda t: t.seed) for group in by_settings(traces)]
    first = groups[0][0].settings
    common = {
        name: value
        for name, value in first.items()
        if all(group[0].settings.get(name) == value for group in groups)
    }
    if len(groups) > 1:
        lines += [f"All settings have {described(common)}.", ""]
    else:
        common = {}
    lines += table(
        ", ".join(name for name in first if name not in common)
        + " | certified | regret below delta | evaluations | true regret "
        "| weights kept, % | top-1, % | seconds",
        (_setting_row(group, common) for group in groups),
    )
    original = 100 * traces[0].result["top1_original"]
    lines += [f"The original network has {original:.2f} % top-1 accuracy.", ""]
    for group in groups:
        lines += folded(described(group[0].settings), _setting_details(group))
    return "\n".join(lines)


def _setting_row(traces: Sequence[Trace], common: dict[str, Any]) -> list[object]:
    settings, results = traces[0].settings, [trace.result for trace in traces]
    certified = [r for r in results if r["holds"]]
    good = sum(r["regret"] < settings["delta"] for r in certified)

    def spread(name: str, scale: float = 1.0) -> str:
        values = scale * np.array([r[name] for r in results])
        return f"{np.median(values):.4g} ({values.min():.4g}-{values.max():.4g})"

    own = {name: value for name, value in settings.items() if name not in common}
    return [
        ", ".join(map(str, own.values())),
        f"{len(certified)}/{len(results)}",
        clopper_pearson(good, len(certified)) if certified else "-",
        spread("evaluations"),
        spread("regret"),
        spread("compression_ratio", 100),
        spread("top1", 100),
        spread("seconds"),
    ]


def _setting_details(traces: Sequence[Trace]) -> list[str]:
    results = [trace.result for trace in traces]
    best, provenance = results[0]["optimum"], traces[-1].provenance
    parts = ("factorize", "fit", "propose", "evaluate")
    seconds = " / ".join(
        f"{np.median([r['timings'][part] for r in results]):.2f}" for part in parts
    )
    ranks = ", ".join(f"{name} {rank}" for name, rank in best["ranks"].items())
    return [
        f"True optimum: objective {best['objective']:.4f} at ranks {ranks} "
        f"({best['points_searched']:,} points searched). Median seconds to "
        f"{' / '.join(parts)}: {seconds}. Revision {provenance['revision']}, torch "
        f"{provenance['versions']['torch']}, {provenance['threads']} threads.",
        "",
        *table(
            "seed | evaluations | regret | ratio % | top-1 % | ranks | seconds",
            (
                [
                    trace.seed,
                    r["evaluations"],
                    f"{r['regret']:.4f}",
                    f"{100 * r['compression_ratio']:.2f}",
                    f"{100 * r['top1']:.2f}",
                    ", ".join(map(str, r["ranks"].values())),
                    f"{r['seconds']:.1f}",
                ]
                for trace, r in zip(traces, results, strict=True)
            ),
        ),
    ]
