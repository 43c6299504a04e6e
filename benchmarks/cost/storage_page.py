"""The pages on storage: what survives a kill, and what storing costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.tables import described, opening, table
from benchmarks.harness.traces import Trace, by_settings


def render_kill(traces: Sequence[Trace]) -> str:
    """One table over the runs of one process; one row per setting with workers."""
    alone = [trace for trace in traces if "killed" not in trace.settings]
    others = [trace for trace in traces if "killed" in trace.settings]
    return "\n".join(_kill_of_one_process(alone) + _kill_of_workers(others))


def _kill_of_workers(traces: Sequence[Trace]) -> list[str]:
    """Searches on two workers, and two processes on one search."""
    if not traces:
        return []
    rows = []
    for group in by_settings(traces):
        settings, results = group[0].settings, [trace.result for trace in group]
        kills = [kill for trace in group for kill in trace.trials]
        killed = {"nobody": "two processes at once"}.get(
            settings["killed"], f"the {settings['killed']}, two workers"
        )
        rows.append(
            (
                killed,
                settings["database"],
                f"{settings.get('span', 6.0):g}"
                if settings["killed"] == "driver"
                else "-",
                len(results),
                len(kills) or "-",
                sum(kill["running"] > 0 for kill in kills) or "-",
                sum(kill.get("repeated", 0) for kill in kills)
                + sum(result.get("repeated_by_ray", 0) for result in results),
                sum(result.get("failed", 0) for result in results),
                sum(result["told"] for result in results) if not kills else "-",
                sum(result["holds"] for result in results),
                sum(not result["broken"] for result in results),
            )
        )
    broken = [
        f"- {trace.settings['killed']}, {trace.settings['database']}, seed "
        f"{trace.seed}: {what}"
        for trace in traces
        for what in trace.result["broken"]
    ]
    return [
        "## Two workers, two processes",
        "",
        "The same network, each evaluation prolonged by "
        f"{traces[0].settings['wait']:g} s, on two workers of a Ray that outlives the "
        "processes. *Driver*: the process of the search is killed at a random moment "
        "within so many seconds after its first evaluation or, in a quarter of the "
        "cases, after its start, and is started again until the search ends. "
        "*Worker*: the process of the evaluation that began last is killed. *Two "
        "processes*: nobody is killed, and one search "
        "is started twice at the same moment.",
        "",
        "A search is *sound* if no completed trial was lost, changed or evaluated "
        "again; every completed trial has one row of data per metric, equal (to 5 "
        "digits) to an evaluation of its point on the samples of its index; none is "
        "still running; every failed or abandoned one has its reason; and the search "
        "ends with a certificate. *Repeated*: evaluations that were under way at a "
        "kill. *Told*: processes that ended with the message who holds the search.",
        "",
        *table(
            "killed | database | within, s | searches | kills | with a trial running "
            "| repeated | failed trials | told | certified | sound",
            rows,
        ),
        *(["Broken promises:", "", *broken, ""] if broken else []),
    ]


def _kill_of_one_process(traces: Sequence[Trace]) -> list[str]:
    if not traces:
        return []
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
    return lines + (["Broken promises:", "", *broken, ""] if broken else [])


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
