"""Page of the ResNets: searches, and rules without one at the same ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ax_pac import DEFAULT_LEVEL
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.tables import opening, revisions, spread, table
from benchmarks.harness.traces import Trace
from benchmarks.networks import resnets as networks


def render_networks(traces: Sequence[Trace]) -> str:
    """One section per network."""
    lines = opening(
        "ResNets on CIFAR-10",
        "Searches without labels beside rules that choose the ranks without a search. "
        f"Searches use the squared L2 of the logits, {networks.NUM_SAMPLES} training "
        f"images per evaluation and delta = {networks.DELTA}. `line` begins with four "
        "networks whose layers are all cut alike (the default), `search` does not. The "
        "rules are one `fraction` of the maximal rank for all layers, one threshold on "
        "the `energy` (squared singular values), `evbmf` ranks scaled by one factor, "
        "and `greedy` selection per layer.",
        "J = gamma L + ratio; L and top-1 are measured on all 10,000 test images, "
        "without fine-tuning. Medians over seeds, range in brackets. A rule's row is "
        "interpolated to the median ratio of the first search. Its *best J* is the "
        "smallest at any ratio that was measured, chosen afterwards.",
        networks.NAME,
    )
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
    default = [t for t in searches if t.settings["level"] == DEFAULT_LEVEL]
    rows = []
    for gamma in sorted({t.settings["gamma"] for t in default}):
        ratio = math.nan
        for method in networks.STARTS:
            results = [
                t.result
                for t in default
                if t.settings["gamma"] == gamma and t.settings["method"] == method
            ]
            if results:
                rows.append(_search_row(gamma, method, results))
                # Rules are put beside the first, the default if it was run.
                if math.isnan(ratio):
                    ratio = float(np.median([result["ratio"] for result in results]))
        rows += [_rule_row(gamma, name, rules[name], ratio) for name in rules]
    return [
        f"## {network}",
        "",
        f"The original has {100 * original:.2f} % top-1. {revisions(traces)}",
        "",
        *table("gamma | method | ratio % | L | top-1 % | J | best J | images", rows),
        *_levels(searches),
    ]


def _search_row(
    gamma: float, method: str, results: Sequence[dict[str, Any]]
) -> list[object]:
    return [
        *(gamma, f"{method}, runs: {len(results)}"),
        spread([100 * r["ratio"] for r in results], 1),
        spread([r["loss"] for r in results], 2),
        spread([100 * r["top1"] for r in results], 2),
        spread([gamma * r["loss"] + r["ratio"] for r in results], 3),
        *("-", f"{int(np.median([r['images'] for r in results])):,}"),
    ]


def _rule_row(
    gamma: float, name: str, result: dict[str, Any], ratio: float
) -> list[object]:
    points = sorted(result["points"], key=lambda point: point["ratio"])
    ratios = [point["ratio"] for point in points]
    best = min(gamma * point["loss"] + point["ratio"] for point in points)
    if not ratios[0] - 0.01 <= ratio <= ratios[-1] + 0.01:
        return [gamma, name, "not measured there", *"---", f"{best:.3f}", "-"]
    loss, top1 = (
        float(np.interp(ratio, ratios, [point[quantity] for point in points]))
        for quantity in ("loss", "top1")
    )
    return [
        *(gamma, name, f"{100 * ratio:.1f}", f"{loss:.2f}", f"{100 * top1:.2f}"),
        *(f"{gamma * loss + ratio:.3f}", f"{best:.3f}", f"{result['images']:,}"),
    ]


def _levels(searches: Sequence[Trace]) -> list[str]:
    """What each level costs."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trace in searches:
        names = ("gamma", "method", "level", "epsilon")
        key = tuple(trace.settings[name] for name in names)
        groups.setdefault(key, []).append(trace.result)
    return table(
        "gamma | method | level | epsilon | certified | evaluations | seconds "
        "| of these, evaluating",
        (
            [
                *key,
                clopper_pearson(sum(r["holds"] for r in results), len(results)),
                spread([r["evaluations"] for r in results], 0),
                spread([r["seconds"] for r in results], 0),
                f"{np.median([r['timings']['evaluate'] for r in results]):.0f}",
            ]
            for key, results in sorted(groups.items())
        ),
    )
