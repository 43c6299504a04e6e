"""The pages on storage: what survives a kill, and what storing costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.tables import described, opening, table
from benchmarks.harness.traces import Trace, by_settings


def render_kill(traces: Sequence[Trace]) -> str:
    """One table over all runs."""
    results = [trace.result for trace in traces]
    kills = [kill for trace in traces for kill in trace.trials]
    unbroken = sum(not result["broken"] for result in results)
    seconds = np.median([result["seconds"] for result in results])
    lines = opening(
        "Searches that are killed",
        "Whether a search in a database survives the death of its process. A search of "
        "a small network is stored in SQLite "
        f"({described(traces[0].settings)}). Its process is killed by SIGKILL at a "
        "random moment, uniform over the duration of an undisturbed search, and the "
        "search is started again until it ends.",
        "After each kill another process compares the database with its state before, "
        "and with a log of the evaluations. Four promises are checked: no completed "
        "trial is lost or changed; no stored trial is evaluated again; at most the "
        "evaluation in flight is repeated; no trial is left running.",
        "kill",
    )
    lines += table(
        "measured | value",
        [
            ("searches", len(results)),
            ("kills", len(kills)),
            (
                "kills with a trial under evaluation",
                sum(kill["running"] > 0 for kill in kills),
            ),
            (
                "kills before the first trial was stored",
                sum(kill["trials"] == 0 for kill in kills),
            ),
            (
                "searches with the same trials, certificate, ranks and network (to 6 "
                "digits) as the undisturbed one, and no broken promise",
                clopper_pearson(unbroken, len(results)),
            ),
            ("repeated evaluations", sum(kill["repeated"] for kill in kills)),
            ("most of them after one kill", max(kill["repeated"] for kill in kills)),
            ("trials of a search, median", np.median([r["trials"] for r in results])),
            ("seconds of an undisturbed search, median", f"{seconds:.1f}"),
        ],
    )
    broken = [
        f"- seed {trace.seed}: {what}"
        for trace in traces
        for what in trace.result["broken"]
    ]
    return "\n".join(lines + (["Broken promises:", "", *broken, ""] if broken else []))


def render_storage_cost(traces: Sequence[Trace]) -> str:
    """One row per setting."""
    threads = traces[-1].provenance["threads"]
    lines = opening(
        "Cost of storage",
        "Seconds per trial of a `Client` loop (`get_next_trials`, `complete_trial`) "
        "without storage, with `ax_pac.StoredClient` on SQLite, and with Ax's own "
        f"`StorageConfig` on SQLite. The three take turns in one process. Threads: "
        f"{threads}.",
        "Medians over the timed trials; *n* trials were there before. *Ratio*: of the "
        "medians, to the loop without storage. The evaluations take no time here, so "
        "these are the largest ratios that storage can cause.",
        "storage_cost",
    )
    rows = []
    for group in sorted(
        by_settings(traces), key=lambda group: tuple(group[0].settings.values())
    ):

        def median(name: str, kind: str, group: list[Trace] = group) -> float:
            values = [row[name][kind] for trace in group for row in trace.trials]
            return float(np.median(values))

        none, stored, ax = (median(n, "wall") for n in ("none", "stored", "ax"))
        cpu, stored_cpu = (median(n, "cpu") for n in ("none", "stored"))
        rows.append(
            [
                *group[0].settings.values(),
                *(f"{none:.3f}", f"{stored:.3f}", f"{stored / none:.2f}"),
                *(f"{ax:.3f}", f"{ax / none:.2f}"),
                *(f"{cpu:.3f}", f"{stored_cpu:.3f}", f"{stored_cpu / cpu:.2f}"),
            ]
        )
    lines += table(
        "d | n | level | none, wall | stored, wall | ratio | Ax's own, wall | ratio "
        "| none, CPU | stored, CPU | ratio",
        rows,
    )
    return "\n".join(lines)
