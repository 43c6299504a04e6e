"""Page of the ResNets: searches, and rules without one at the same ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ax_pac import DEFAULT_LEVEL
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.tables import spread
from benchmarks.harness.traces import Trace
from benchmarks.networks import resnets as networks


def render_networks(traces: Sequence[Trace]) -> str:
    """One section a network."""
    lines = [
        "# ResNets on CIFAR-10",
        "",
        "Searches without labels (squared L2 of the logits, "
        f"{networks.NUM_SAMPLES} training images an evaluation, delta = "
        f"{networks.DELTA}; `line`: the first four evaluations are networks whose "
        "layers are all cut alike, the default; `search`: without them) beside rules "
        "that choose the ranks without one: one "
        "`fraction` of the maximal rank for all layers, one threshold on the `energy` "
        "(squared singular values), `evbmf` ranks scaled by one factor, and `greedy` "
        "per-layer selection. J = gamma L + ratio, L and top-1 on all 10,000 test "
        "images, no fine-tuning. Medians over seeds, range in brackets. A rule's row "
        "is interpolated between the ratios at which it was measured, to the first "
        "search's median ratio; its best J is the smallest that it reaches at any, "
        "chosen after the fact.",
        "",
    ]
    for network in networks.GAMMAS:
        group = [t for t in traces if t.settings["network"] == network]
        if group:
            lines += _network_section(network, group)
    return "\n".join(lines)


def _network_section(network: str, traces: Sequence[Trace]) -> list[str]:
    searches = [t for t in traces if t.settings["method"] in networks.STARTS]
    rules = {t.settings["method"]: t.result for t in traces if t not in searches}
    first = (searches or traces)[0].result
    original = (first if searches else first["points"][0])["top1_original"]
    revisions = sorted({trace.provenance["revision"] for trace in traces})
    lines = [
        f"## {network}",
        "",
        f"The original has {100 * original:.2f} % top-1. Revisions "
        f"{', '.join(revisions)}.",
        "",
        "| gamma | method | ratio % | L | top-1 % | J | best J | images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    default = [t for t in searches if t.settings["level"] == DEFAULT_LEVEL]
    for gamma in sorted({t.settings["gamma"] for t in default}):
        ratio = math.nan
        for method in networks.STARTS:
            results = [
                t.result
                for t in default
                if t.settings["gamma"] == gamma and t.settings["method"] == method
            ]
            if results:
                lines.append(_search_row(gamma, method, results))
                # Rules are put beside the first, the default if it was run.
                if math.isnan(ratio):
                    ratio = float(np.median([result["ratio"] for result in results]))
        lines += [_rule_row(gamma, name, rules[name], ratio) for name in rules]
    return [*lines, "", *_levels(searches)]


def _search_row(gamma: float, method: str, results: Sequence[dict[str, Any]]) -> str:
    objectives = [gamma * r["loss"] + r["ratio"] for r in results]
    images = int(np.median([r["images"] for r in results]))
    return (
        f"| {gamma} | {method}, runs: {len(results)} "
        f"| {spread([100 * r['ratio'] for r in results], 1)} "
        f"| {spread([r['loss'] for r in results], 2)} "
        f"| {spread([100 * r['top1'] for r in results], 2)} "
        f"| {spread(objectives, 3)} | - | {images:,} |"
    )


def _rule_row(gamma: float, name: str, result: dict[str, Any], ratio: float) -> str:
    points = sorted(result["points"], key=lambda point: point["ratio"])
    ratios = [point["ratio"] for point in points]
    best = min(gamma * point["loss"] + point["ratio"] for point in points)
    if not ratios[0] - 0.01 <= ratio <= ratios[-1] + 0.01:
        return f"| {gamma} | {name} | not measured there | - | - | - | {best:.3f} | - |"

    def at(quantity: str) -> float:
        return float(np.interp(ratio, ratios, [point[quantity] for point in points]))

    objective = gamma * at("loss") + ratio
    return (
        f"| {gamma} | {name} | {100 * ratio:.1f} | {at('loss'):.2f} "
        f"| {100 * at('top1'):.2f} | {objective:.3f} | {best:.3f} "
        f"| {result['images']:,} |"
    )


def _levels(searches: Sequence[Trace]) -> list[str]:
    """What each level costs."""
    lines = [
        "| gamma | method | level | epsilon | certified | evaluations | seconds | "
        "of these, evaluating |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trace in searches:
        settings = trace.settings
        names = ("gamma", "method", "level", "epsilon")
        key = tuple(settings[name] for name in names)
        groups.setdefault(key, []).append(trace.result)
    for (gamma, method, level, epsilon), results in sorted(groups.items()):
        certified = sum(result["holds"] for result in results)
        evaluating = np.median([r["timings"]["evaluate"] for r in results])
        lines.append(
            f"| {gamma} | {method} | {level} | {epsilon} "
            f"| {clopper_pearson(certified, len(results))} "
            f"| {spread([r['evaluations'] for r in results], 0)} "
            f"| {spread([r['seconds'] for r in results], 0)} | {evaluating:.0f} |"
        )
    return [*lines, ""]
