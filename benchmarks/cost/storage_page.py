"""The pages on storage: what survives a kill, and what storing costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.traces import Trace


def render_kill(traces: Sequence[Trace]) -> str:
    """One table over all runs."""
    results = [trace.result for trace in traces]
    kills = [kill for trace in traces for kill in trace.trials]
    unbroken = sum(not result["broken"] for result in results)
    repeated = sum(kill["repeated"] for kill in kills)
    seconds = np.median([result["seconds"] for result in results])
    settings = ", ".join(f"{k} = {v}" for k, v in traces[0].settings.items())
    rows = [
        ("searches", str(len(results))),
        ("kills", str(len(kills))),
        ("kills with a trial under evaluation", _count(kills, "running")),
        ("kills before the first trial was kept", _count_zero(kills, "trials")),
        (
            "searches that came to the same trials, certificate, ranks and network, "
            "to 6 digits, and broke no promise",
            clopper_pearson(unbroken, len(results)),
        ),
        ("evaluations that were begun twice", str(repeated)),
        ("most of them after one kill", str(max(k["repeated"] for k in kills))),
        ("trials of a search, median", f"{np.median([r['trials'] for r in results])}"),
        ("seconds of a search left alone, median", f"{seconds:.1f}"),
    ]
    lines = [
        "# Searches that are killed",
        "",
        "A search of a small network kept in SQLite, its process killed by SIGKILL at "
        "a moment drawn uniformly from the duration of a search left alone, and begun "
        f"again until it ends ({settings}). After each kill the database is read by "
        "another process and compared with what it held before, and with a log of "
        "evaluations that is kept beside it. Promises: no completed trial is lost or "
        "changed, no stored trial is evaluated again, at most the one evaluation in "
        "flight is repeated, no trial is left running.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    broken = [
        f"- seed {trace.seed}: {what}"
        for trace in traces
        for what in trace.result["broken"]
    ]
    if broken:
        lines += ["Broken promises:", "", *broken, ""]
    return "\n".join(lines)


def _count(kills: Sequence[dict], name: str) -> str:
    return str(sum(kill[name] > 0 for kill in kills))


def _count_zero(kills: Sequence[dict], name: str) -> str:
    return str(sum(kill[name] == 0 for kill in kills))


def render_storage_cost(traces: Sequence[Trace]) -> str:
    """One row for each setting."""
    threads = traces[-1].provenance["threads"]
    lines = [
        "# What storage costs",
        "",
        "Seconds of one trial of a `Client` loop (`get_next_trials`, `complete_trial`) "
        "without storage, with `ax_pac.StoredClient` on SQLite, and with Ax's own "
        "`StorageConfig` on SQLite, the three in turns in one process, threads: "
        f"{threads}. Medians over the timed trials; *n* trials were there before. "
        "Evaluating takes no time here, so these are the largest ratios. *Ratio*: of "
        "the medians.",
        "",
        "| d | n | level | none, wall | stored, wall | ratio | Ax's own, wall "
        "| ratio | none, CPU | stored, CPU | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(tuple(trace.settings.values()), []).append(trace)
    for settings, group in sorted(groups.items()):

        def median(name: str, kind: str, group: list[Trace] = group) -> float:
            values = [row[name][kind] for trace in group for row in trace.trials]
            return float(np.median(values))

        cells = [str(value) for value in settings]
        none, stored, ax = (median(n, "wall") for n in ("none", "stored", "ax"))
        cells += [f"{none:.3f}", f"{stored:.3f}", f"{stored / none:.2f}"]
        cells += [f"{ax:.3f}", f"{ax / none:.2f}"]
        none, stored = (median(n, "cpu") for n in ("none", "stored"))
        cells += [f"{none:.3f}", f"{stored:.3f}", f"{stored / none:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
