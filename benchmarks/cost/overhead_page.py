"""The page of the benchmark `overhead`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cost import overhead
from benchmarks.harness.tables import opening, revisions, table
from benchmarks.harness.traces import Trace


def render_overhead(traces: Sequence[Trace]) -> str:
    """Entry points, cost per trial beside Ax's default, whole runs at level joint."""
    threads = sorted({trace.provenance["threads"] for trace in traces})
    lines = opening(
        "Entry points of Ax, and the cost per trial",
        "Whether the entry points of Ax give the same search and the same certificate, "
        "and what a trial costs beside Ax's default strategy. Objectives are draws of "
        f"a GP, observed with a standard error of {overhead.NOISE}; epsilon = "
        f"{overhead.EPSILON}.",
        f"Seconds are CPU seconds of one process; threads: "
        f"{', '.join(map(str, threads))}. {revisions(traces)}",
        overhead.NAME,
    )
    for what, section in (("door", _entries), ("cost", _costs), ("whole", _whole)):
        own = [trace for trace in traces if trace.settings["what"] == what]
        lines += section(own) if own else []
    return "\n".join(lines)


def _entries(traces: Sequence[Trace]) -> list[str]:
    """One row per entry point; seeds side by side."""
    settings = traces[0].settings
    rows = []
    for entry in overhead.ENTRY_POINTS:
        results = [
            trace.result
            for trace in sorted(traces, key=lambda trace: trace.seed)
            if trace.settings["door"] == entry
        ]
        if results:
            trials = [
                str(r["trials"]) if r["holds"] else f"none in {r['trials']}"
                for r in results
            ]
            seconds = np.median([r["seconds"]["total"] / r["trials"] for r in results])
            rows.append(
                [
                    entry,
                    ", ".join(trials),
                    ", ".join(f"{r['failure_probability']:.6f}" for r in results),
                    ", ".join(str(r["certificates"]) for r in results),
                    f"{seconds:.2f}",
                ]
            )
    return [
        f"## Each entry point, d = {settings['d']}, delta = {settings['delta']}, level "
        "joint",
        "",
        "Trials until the certificate and the failure probability that it states, one "
        "value per seed. *Certificates*: how many were computed; there is one for each "
        "set of data after the initial design, however often it is asked for. The "
        "search is the same by every entry point except the last, whose proposals are "
        "Ax's own.",
        "",
        *table(
            "entry point | trials to the certificate | failure probability "
            "| certificates | CPU seconds per trial",
            rows,
        ),
    ]


def _median(trials: Sequence[dict[str, float]], name: str) -> float:
    return float(np.median([trial[name] for trial in trials]))


def _costs(traces: Sequence[Trace]) -> list[str]:
    """Two rows per problem: PAC with its pairwise check, and Ax's default."""
    rows = []
    for d, n in sorted({(t.settings["d"], t.settings["n"]) for t in traces}):
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
            total = _median(trials, "total")
            storage = np.median([run["storage"][name] for run in runs])
            rows.append(
                [
                    *(d, n, label),
                    *(f"{_median(trials, part):.3f}" for part in overhead.PARTS),
                    *(f"{total:.3f}", f"{total / default:.2f}", f"{storage:.2f}"),
                ]
            )
    return [
        "## CPU seconds per trial, beside Ax's default strategy",
        "",
        "One trial of a `Client` (proposal and result), after n space-filling ones. "
        "Both strategies take turns in one process. Medians over the ten trials of "
        "each run, all runs together. PAC computes its pairwise check at every trial. "
        "*Propose*: acquisition function, its optimisation, and predictions at the "
        "proposal; the certificate finds PAC's challenger. *Storage*: one save of "
        "everything to JSON, which is not part of the total.",
        "",
        *table(
            "d | n | strategy | fit | certificate | propose | bookkeeping | total "
            "| relative to Ax | storage",
            rows,
        ),
    ]


def _whole(traces: Sequence[Trace]) -> list[str]:
    """What level joint costs, averaged over whole searches."""
    rows = []
    for d in sorted({trace.settings["d"] for trace in traces}):
        results = [trace.result for trace in traces if trace.settings["d"] == d]
        means = [
            np.median([r["seconds"][part] / r["trials"] for r in results])
            for part in ("fit", "certificate", "total")
        ]
        rows.append(
            [
                d,
                f"{sum(result['holds'] for result in results)}/{len(results)}",
                f"{np.median([result['trials'] for result in results]):.0f}",
                *(f"{mean:.3f}" for mean in means),
            ]
        )
    return [
        f"## Level joint, averaged over a run, delta = {traces[0].settings['delta']}",
        "",
        "Level joint is computed only where the pairwise check holds, which is towards "
        "the end of a search. Mean CPU seconds per trial over whole searches, from the "
        "first trial to the certificate; medians over runs.",
        "",
        *table(
            "d | runs certified | trials, median | fit | certificate, joint included "
            "| total",
            rows,
        ),
    ]
