"""Page of the comparison: every table says by which command its rows are made."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import plan as comparison
from benchmarks.comparison.claims import PAC_LEVELS, claims, kept
from benchmarks.comparison.run import CERTIFIED_EVERY
from benchmarks.comparison.statistics import (
    CENSORED_AT,
    REFERENCE_RATIO,
    REFERENCE_TOP1,
    Run,
    fewest_pairs,
    holm,
    hypervolume,
    median_interval,
    paired,
    signed_rank,
)
from benchmarks.harness.charts import Axis, Series, chart
from benchmarks.harness.traces import PAGES, Trace
from benchmarks.methods.registry import METHODS, RULES

REFERENCE = "pac"
_FRACTIONS = (0.25, 0.5, 1.0, 2.0, 5.0)
_GROUP = ("problem", "gamma", "num_samples")

_INTRODUCTION = """
Every method is asked for points and told what one and the same evaluation gave, on the
same samples for the same seed and trial. J is the true objective (smaller is better) of
the incumbent: on networks over {images} test images, on functions without noise plus
one. The incumbent of all tables is the common one, the visited point of best posterior
mean under one surrogate refitted to the method's data, unless a column says *own*.
Time is that of the processor, one thread; the methods' own time is split into fitting
and proposing where that can be told (Optuna, SMAC: all of it is in proposing; Ax counts
its fits by the wall clock, so on a machine in use its split leans to fitting). What
only the tables need is on no clock. Cost is in samples, and includes what an evaluation
costs besides them.

*PAC* is `pac_generation_strategy` at level marginal, epsilon 0.05, from Sobol points;
`pac_line` the same after four networks whose layers are all cut alike, as `compress`
begins; `pac_joint` and `pac_pairwise` stop at those levels with epsilon 0.005;
`pac_published` has the paper's encoding, proposals and raw standard errors. `logei` and
`pi` have PAC's surrogate and noise. Of Fabolas there are two rows, neither of them its
authors' program: [fabolas](fabolas.md) says what differs. Rules without a search are
tuned along their one number.

Two regimes: at what PAC had spent when its certificate ended it, and after a long fixed
budget. Differences are paired by seed, with the median's 95 % bootstrap interval;
p-values are Wilcoxon's signed-rank test, two-sided, corrected by Holm over the rows of
a table. Below {fewest} pairs no such test can reach 5 %: such rows are direction, not
result.
"""


def render_comparison(traces: Sequence[Trace], folder: Path | None = None) -> str:
    """One section for each problem, weight and number of samples.

    Args:
        traces: What was run.
        folder: Where figures are written; None for the page's own.
    """
    lines = [
        "# All methods on the same evaluations",
        _INTRODUCTION.format(
            images=f"{comparison.TRUE_IMAGES:,}", fewest=fewest_pairs(0.025)
        ),
    ]
    planned = comparison.plan(None)
    done = sum((trace.settings, trace.seed) in planned for trace in traces)
    lines += [f"Of the plan's {len(planned)} runs {done} are in.", ""]
    groups: dict[str, list[Run]] = {}
    for trace in traces:
        key = json.dumps([trace.settings[name] for name in _GROUP])
        groups.setdefault(key, []).append(Run(trace))
    everything = [run for runs in groups.values() for run in runs]
    lines += _all_weights(everything)
    for runs in groups.values():
        lines += _section(_ordered(runs), folder or PAGES)
    lines += _fronts(everything)
    return "\n".join(lines)


def _ordered(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by method, in the order of `METHODS`."""
    return {
        name: sorted(
            (run for run in runs if run.method == name), key=lambda r: r.trace.seed
        )
        for name in METHODS
        if any(run.method == name for run in runs)
    }


def _all_weights(runs: Sequence[Run]) -> list[str]:
    """The claims over all weights of the network that is searched at several."""
    own = _at_all_weights(runs, "resnet18")
    gammas = set(map(_gamma, own))
    count = Counter((run.method, run.trace.seed) for run in own)
    # A seed counts where it was run at every weight, so that all weigh the same.
    whole = _ordered([r for r in own if count[r.method, r.trace.seed] == len(gammas)])
    table = claims(whole)
    if len(gammas) < 2 or not table:
        return []
    return [
        "## resnet18, all weights together",
        "",
        f"A pair is a seed at one of {', '.join(map(str, sorted(gammas)))}, for the "
        "seeds that were run at each of these. Pairs of one seed see the same samples, "
        "so that they are less than independent.",
        "",
        *table,
        *kept([_ordered([r for r in own if _gamma(r) == g]) for g in sorted(gammas)]),
    ]


def _at_all_weights(runs: Sequence[Run], problem: str) -> list[Run]:
    """Runs on a problem, with the number of samples that all its weights have."""
    return [
        run
        for run in runs
        if run.trace.settings["problem"] == problem
        and run.trace.settings["num_samples"] == 50
    ]


def _gamma(run: Run) -> float:
    return float(run.trace.settings["gamma"])


def _section(runs: dict[str, list[Run]], folder: Path) -> list[str]:
    first = next(iter(runs.values()))[0].trace
    settings = first.settings
    title = ", ".join(f"{name} = {settings[name]}" for name in _GROUP)
    revisions = sorted(
        {r.trace.provenance["revision"] for rs in runs.values() for r in rs}
    )
    lines = [
        f"## {title}",
        "",
        f"Revisions {', '.join(revisions)}. Any row again:",
        "",
        "```",
        f"python -m benchmarks run comparison --threads 1 {_sets(settings)} "
        f"--seeds {max(map(len, runs.values()))} --methods METHOD",
        "```",
        "",
    ]
    lines += _clocks(runs)
    if REFERENCE in runs:
        lines += claims(runs)
        lines += kept([runs])
        lines += _quality(runs)
        lines += _times(runs)
    lines += _outside_certificates(runs)
    if REFERENCE in runs:
        lines += _anytime(runs, settings, folder)
    return lines


def _sets(settings: dict[str, Any]) -> str:
    return " ".join(f"--set {name}={settings[name]}" for name in _GROUP)


def _clocks(runs: dict[str, list[Run]]) -> list[str]:
    lines = [
        "| method | runs | ended itself | evaluations | samples | evaluate s | fit s "
        "| propose s | total s | wall s | ms a proposal |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, group in runs.items():
        evaluations = [run.trace.result["evaluations"] for run in group]
        own = [
            1000 * (run.clock("fit") + run.clock("propose")) / count
            for run, count in zip(group, evaluations, strict=True)
        ]
        walls = [
            sum(run.clock(clock, 1) for clock in ("evaluate", "fit", "propose"))
            for run in group
        ]
        cells = [
            f"{sum(run.trace.result['stopped'] for run in group)}/{len(group)}",
            _median(evaluations, 0),
            _median([run.trace.result["samples"] for run in group], 0),
            *(
                _median([run.clock(clock) for run in group], 1)
                for clock in ("evaluate", "fit", "propose")
            ),
            _median([run.total_seconds for run in group], 1),
            _median(walls, 1),
            _median(own, 0),
        ]
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _quality(runs: dict[str, list[Run]]) -> list[str]:
    """J when PAC had ended, by cost and by time, and at the end of the budget."""
    lines = [
        "J at what PAC had spent, in samples and in seconds, and at the end of the "
        "budget, median (quartiles). A method that ends itself keeps what it had. The "
        "difference is at the same samples, less PAC's own J: positive is worse.",
        "",
        "| method | pairs | J, same samples | J, same seconds | J at the end "
        "| J at the end, own | difference (95 %) | p, Holm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows, tests = {}, {}
    for name, group in runs.items():
        pairs = paired(group, runs[REFERENCE])
        if not pairs:
            continue
        by_cost = [a.objective_at(a.cost, b.cost[-1]) for a, b in pairs]
        by_time = [a.objective_at(a.seconds, b.total_seconds) for a, b in pairs]
        gaps = [
            value - float(b.objective[-1])
            for value, (_, b) in zip(by_cost, pairs, strict=True)
        ]
        usable = [gap for gap in gaps if math.isfinite(gap)]
        tests[name] = math.nan if name == REFERENCE else signed_rank(usable)
        rows[name] = [
            str(len(pairs)),
            _quartiles(by_cost),
            _quartiles(by_time),
            _quartiles([float(a.objective[-1]) for a, _ in pairs]),
            _quartiles([a.trace.trials[-1]["own"] for a, _ in pairs]),
            "-" if name == REFERENCE else _interval(usable),
        ]
    corrected = holm(tests)
    for name, cells in rows.items():
        p = corrected[name]
        silent = math.isnan(p) or int(cells[0]) < fewest_pairs(0.025)
        cells = [*cells, "-" if silent else f"{p:.3g}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _times(runs: dict[str, list[Run]]) -> list[str]:
    """Time to reach PAC's final objective, as a multiple of PAC's time."""
    levels = [level for level in PAC_LEVELS if level in runs]
    lines = [
        "Time to reach the true objective that PAC ends with, as a multiple of PAC's "
        f"own total time: how often within {CENSORED_AT:g} times that, and the median "
        "(95 %) with those that did not counted at the time that they were followed, "
        "which for a budget that ended earlier is a lower bound ('>').",
        "",
        "| method | " + " | ".join(f"{level}: reached | times" for level in levels),
        "|---|" + "---|---|" * len(levels),
    ]
    lines[-2] += " |"
    for name, group in runs.items():
        cells = []
        for level in levels:
            ratios, reached = [], 0
            for run, reference in paired(group, runs[level]):
                limit = CENSORED_AT * reference.total_seconds
                spent, done = run.time_to(float(reference.objective[-1]), limit)
                ratios.append(spent / reference.total_seconds)
                reached += done
            bound = ">" if reached < len(ratios) else ""
            cells += [f"{reached}/{len(ratios)}", bound + _interval(ratios, 2)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _outside_certificates(runs: dict[str, list[Run]]) -> list[str]:
    """The certificate asked of LogEI's run: proposing apart from stopping."""
    group = runs.get("logei", [])
    if not group:
        return []
    lines = [
        "The same certificates, asked of LogEI's run after every "
        f"{CERTIFIED_EVERY} evaluations (of revision d90cc6b: after each); PAC's own "
        "run beside it. J at LogEI's stop is of its own incumbent. Seconds are those "
        "of the verdict that stopped it.",
        "",
        "| level | LogEI stopped | evaluations | J at the stop | seconds "
        "| PAC stopped | evaluations | J at the stop |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for level in comparison.LEVELS:
        stops = [run.trace.result["stops"].get(level) for run in group]
        made = [stop for stop in stops if stop is not None]
        own = runs.get("pac" if level == "marginal" else f"pac_{level}", [])
        ended = [run for run in own if run.trace.result["stopped"]]
        cells = [
            f"{len(made)}/{len(stops)}",
            _median([stop["evaluations"] for stop in made], 0),
            _quartiles([stop["own"] for stop in made]),
            _median([stop["seconds"][0] for stop in made], 1),
            f"{len(ended)}/{len(own)}",
            _median([run.trace.result["evaluations"] for run in ended], 0),
            _quartiles([float(run.objective[-1]) for run in ended]),
        ]
        lines.append(f"| {level} | {' | '.join(cells)} |")
    return [*lines, ""]


def _anytime(
    runs: dict[str, list[Run]], settings: dict[str, Any], folder: Path
) -> list[str]:
    """J against time, in units of PAC's, as table and figure."""
    lines = [
        "J against time, in units of PAC's own total time, median (quartiles); '-' "
        "before a first incumbent, and a value that was not followed so long is that "
        "of the end of its run.",
        "",
        "| method | " + " | ".join(f"{f:g}" for f in _FRACTIONS) + " |",
        "|---|" + "---|" * len(_FRACTIONS),
    ]
    drawn = {}
    grid = np.geomspace(0.05, CENSORED_AT, 40)
    for name, group in runs.items():
        pairs = paired(group, runs[REFERENCE])
        if not pairs:
            continue

        def at(fraction: float, pairs: list[tuple[Run, Run]] = pairs) -> list[float]:
            return [
                a.objective_at(a.seconds, fraction * b.total_seconds) for a, b in pairs
            ]

        cells = [_quartiles(at(fraction)) for fraction in _FRACTIONS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if name in RULES or name in ("pac_pairwise", "pac_joint", "pi", "sobol"):
            continue
        shares = np.array([at(fraction) for fraction in grid])
        whole = np.isfinite(shares).all(1)
        low, middle, high = np.quantile(shares[whole], (0.25, 0.5, 0.75), axis=1)
        drawn[name] = Series(list(grid[whole]), list(middle), list(low), list(high))
    name = "_".join(str(settings[part]) for part in _GROUP)
    path = folder / "figures" / f"comparison_{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    time_axis = Axis("time, in units of PAC's", logarithmic=True)
    path.write_text(chart(drawn, time_axis, Axis("J", logarithmic=True)))
    return [*lines, "", f"![J against time](figures/{path.name})", ""]


def _fronts(runs: Sequence[Run]) -> list[str]:
    """Hypervolume over the weights, for networks that were searched at several."""
    lines: list[str] = []
    networks = sorted({run.trace.settings["problem"] for run in runs})
    for network in networks:
        volumes, points = {}, {}
        own = [
            run
            for run in _at_all_weights(runs, network)
            if "top1" in run.trace.result["common"]
        ]
        gammas = set(map(_gamma, own))
        if len(gammas) < 2:
            continue
        for method, group in _ordered(own).items():
            for seed in sorted({run.trace.seed for run in group}):
                final = [
                    run.trace.result["common"]
                    for run in group
                    if run.trace.seed == seed
                ]
                if len(final) == len(gammas):
                    points[method, seed] = [
                        (100 * f["ratio"], 100 * f["top1"]) for f in final
                    ]
                    volumes.setdefault(method, []).append(
                        hypervolume(points[method, seed])
                    )
        if not volumes:
            continue
        lines += [
            f"## Fronts on {network}",
            "",
            f"Ratio and top-1 of what each run ends with, over the weights "
            f"{', '.join(map(str, sorted(gammas)))}; hypervolume in per cent squared "
            f"against a ratio of {REFERENCE_RATIO:g} % and a top-1 of "
            f"{REFERENCE_TOP1:g} %, fixed beforehand.",
            "",
            "| method | seeds | hypervolume, median (quartiles) |",
            "|---|---|---|",
        ]
        lines += [
            f"| {method} | {len(values)} | {_quartiles(values)} |"
            for method, values in volumes.items()
        ]
        lines.append("")
    return lines


def _median(values: Sequence[float], digits: int) -> str:
    return f"{np.median(values):,.{digits}f}" if len(values) else "-"


def _quartiles(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite or len(finite) < len(values):
        return "-"
    low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
    if len(finite) == 1:
        return f"{middle:.4g}"
    return f"{middle:.4g} ({low:.4g}-{high:.4g})"


def _interval(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "-"
    low, middle, high = median_interval(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
