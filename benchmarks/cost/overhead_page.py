"""The page of the benchmark `overhead`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cost import overhead
from benchmarks.harness.traces import Trace


def render_overhead(traces: Sequence[Trace]) -> str:
    """Doors, cost of a trial beside Ax's default, and whole runs at level joint."""
    revisions = sorted({trace.provenance["revision"] for trace in traces})
    threads = sorted({trace.provenance["threads"] for trace in traces})
    lines = [
        "# What the doors of Ax give, and what a trial costs",
        "",
        f"Objectives: draws of a GP, observed with standard error {overhead.NOISE}; "
        f"epsilon = {overhead.EPSILON}. CPU seconds of one process, threads: "
        f"{', '.join(map(str, threads))}. Revisions {', '.join(revisions)}.",
        "",
    ]
    kinds: dict[str, list[Trace]] = {"door": [], "cost": [], "whole": []}
    for trace in traces:
        kinds[trace.settings["what"]].append(trace)
    return "\n".join(
        [
            *lines,
            *_doors(kinds["door"]),
            *_costs(kinds["cost"]),
            *_whole(kinds["whole"]),
        ]
    )


def _doors(traces: Sequence[Trace]) -> list[str]:
    """One row a door; seeds side by side."""
    if not traces:
        return []
    settings = traces[0].settings
    lines = [
        f"## Door by door, d = {settings['d']}, delta = {settings['delta']}, level "
        "joint",
        "",
        "Trials to the certificate and the failure probability that it states, for "
        "each seed. *Certificates*: how many were computed, whoever asked and however "
        "often; one for each set of data after the initial design. The search is the "
        "same through every door but the last, whose proposals are Ax's own.",
        "",
        "| door | trials to the certificate | failure probability | certificates | "
        "CPU seconds a trial |",
        "|---|---|---|---|---|",
    ]
    for door in overhead.DOORS:
        results = [
            trace.result
            for trace in sorted(traces, key=lambda trace: trace.seed)
            if trace.settings["door"] == door
        ]
        if results:
            trials = [
                str(r["trials"]) if r["holds"] else f"none in {r['trials']}"
                for r in results
            ]
            failure = [f"{r['failure_probability']:.6f}" for r in results]
            certificates = [str(r["certificates"]) for r in results]
            seconds = np.median([r["seconds"]["total"] / r["trials"] for r in results])
            lines.append(
                f"| {door} | {', '.join(trials)} | {', '.join(failure)} | "
                f"{', '.join(certificates)} | {seconds:.2f} |"
            )
    return [*lines, ""]


def _median(trials: Sequence[dict[str, float]], name: str) -> float:
    return float(np.median([trial[name] for trial in trials]))


def _costs(traces: Sequence[Trace]) -> list[str]:
    """Two rows a problem: PAC with its pairwise check, and Ax's default."""
    if not traces:
        return []
    lines = [
        "## CPU seconds of a trial, beside Ax's default strategy",
        "",
        "A `Client` asked for a trial and told its outcome, after n space-filling "
        "ones, both strategies taking turns in one process. Medians over the ten "
        "trials of each run, all runs together. PAC with its pairwise check, which is "
        "made at every trial. *Propose*: acquisition function and its optimisation, "
        "predictions at the proposal; PAC's challenger is found by the certificate. "
        "*Storage*: one save of everything to JSON, not part of the total.",
        "",
        "| d | n | strategy | fit | certificate | propose | bookkeeping | total | of "
        "Ax's | storage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    problems = sorted({(t.settings["d"], t.settings["n"]) for t in traces})
    for d, n in problems:
        runs = [
            trace.result
            for trace in traces
            if (trace.settings["d"], trace.settings["n"]) == (d, n)
        ]
        pooled: dict[str, list[dict[str, Any]]] = {
            name: [trial for run in runs for trial in run["trials"][name]]
            for name in ("pac", "ax")
        }
        default = _median(pooled["ax"], "total")
        for name, label in (("pac", "PAC, pairwise"), ("ax", "Ax's default")):
            trials = pooled[name]
            parts = [f"{_median(trials, part):.3f}" for part in overhead.PARTS]
            total = _median(trials, "total")
            storage = np.median([run["storage"][name] for run in runs])
            lines.append(
                f"| {d} | {n} | {label} | {' | '.join(parts)} | {total:.3f} | "
                f"{total / default:.2f} | {storage:.2f} |"
            )
    return [*lines, ""]


def _whole(traces: Sequence[Trace]) -> list[str]:
    """What level joint costs, averaged over whole searches."""
    if not traces:
        return []
    lines = [
        f"## Level joint, averaged over a run, delta = {traces[0].settings['delta']}",
        "",
        "The stronger level is computed only where the pairwise one holds, which is "
        "towards the end of a search. Mean CPU seconds a trial over whole searches, "
        "from the first trial to the certificate; medians over runs.",
        "",
        "| d | runs certified | trials, median | fit | certificate, joint included | "
        "total |",
        "|---|---|---|---|---|---|",
    ]
    for d in sorted({trace.settings["d"] for trace in traces}):
        results = [trace.result for trace in traces if trace.settings["d"] == d]
        held = sum(result["holds"] for result in results)
        trials = np.median([result["trials"] for result in results])
        means = [
            np.median(
                [result["seconds"][part] / result["trials"] for result in results]
            )
            for part in ("fit", "certificate", "total")
        ]
        row = " | ".join(f"{mean:.3f}" for mean in means)
        lines.append(f"| {d} | {held}/{len(results)} | {trials:.0f} | {row} |")
    return [*lines, ""]
