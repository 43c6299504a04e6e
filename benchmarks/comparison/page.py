"""Pages of the comparison: who wins where and at what cost, and all details."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.comparison import plan as comparison
from benchmarks.comparison.claims import (
    KEPT,
    PAC_LEVELS,
    Runs,
    best_known,
    claims,
    kept,
    kept_rows,
)
from benchmarks.comparison.setting_page import (
    GROUP,
    REFERENCE,
    figure,
    page_name,
    setting_pages,
    title,
)
from benchmarks.comparison.statistics import (
    REFERENCE_RATIO,
    REFERENCE_TOP1,
    Run,
    fewest_pairs,
    hypervolume,
)
from benchmarks.harness.charts import Axis, Series, chart
from benchmarks.harness.tables import command, median, quartiles, table
from benchmarks.harness.traces import Trace
from benchmarks.methods.registry import METHODS

# Who may win, and columns; the pages of the settings have every method.
_SHOWN = (
    *PAC_LEVELS,
    *("ax_default", "logei", "optuna_gp", "optuna_tpe", "smac", "fabolas_lean"),
    "random",
)
_SIDE_BY_SIDE = ("pac", "ax_default", "logei", "random")
# Lines of the overview's figure.
_DRAWN = ("pac", "pac_line", "ax_default", "optuna_gp", "fabolas_lean", "random")
_ALL_WEIGHTS = "resnet18"

_METHODS_PAGE = """# Comparison: methods and measures

Definitions for the tables of the [comparison](../comparison.md) and its pages, one per
setting. Start there for the results.

## Methods

| row | method |
|---|---|
| `pac` | `pac_generation_strategy`, level marginal, epsilon 0.05, Sobol points first |
| `pac_line` | the same, first four networks whose layers are all cut alike |
| `pac_joint`, `pac_pairwise` | the same, stopped at these levels with epsilon 0.005 |
| `pac_published` | the published encoding, proposals, raw standard errors and rule |
| `logei`, `pi` | LogEI and probability of improvement on the surrogate of `pac` |
| `ax_default` | Ax's default generation strategy |
| `optuna_gp`, `optuna_tpe` | Optuna's samplers of these names |
| `smac` | SMAC |
| `fabolas_lean`, `fabolas_lean_sem`, `fabolas_faithful` | [Fabolas](../fabolas.md) |
| `random`, `sobol` | uniform and scrambled Sobol points |
| `rule_fraction`, ... | rules that choose ranks without a search, tuned in one number |

Every method asks for points and receives the same kind of evaluation. For the same seed
and trial all methods see the same samples.

## Measures

- **J** is the true objective, which is minimised: on networks it is measured on
  {images} test images, on functions without noise (plus one).
- **Incumbent.** J is that of the *common* incumbent: the visited point of best
  posterior mean under one surrogate, refitted to the data of the method. *Own* is the
  point that the method itself would return.
- **Time** is processor time of one thread: evaluating, fitting and proposing. Fitting
  and proposing are reported apart where the method allows it. Optuna and SMAC count as
  proposing; Ax measures its fits by the wall clock. Work that only these tables need
  is not counted.
- **Cost** is in samples and includes the fixed cost of an evaluation.
- **Pairs** are runs with the same seed. Intervals are bootstrap intervals of the median
  (95 %). P-values are two-sided Wilcoxon signed-rank tests with Holm's correction over
  the rows of a table. With fewer than {fewest} pairs no such test reaches 5 %: these
  rows show a direction, not a result.
"""


def comparison_pages(traces: Sequence[Trace]) -> dict[str, str]:
    """The overview, the definitions, a page per setting, and the figures, by path."""
    groups: dict[str, Runs] = {}
    for trace in traces:
        groups.setdefault(page_name(trace.settings), {})
    for name in groups:
        groups[name] = _ordered(
            [Run(trace) for trace in traces if page_name(trace.settings) == name]
        )
    runs = [run for group in groups.values() for own in group.values() for run in own]
    pages = {
        "comparison/methods.md": _METHODS_PAGE.format(
            images=f"{comparison.TRUE_IMAGES:,}", fewest=fewest_pairs(0.025)
        ),
        "comparison/all_gammas.md": _all_weights_page(runs),
    }
    for group in groups.values():
        pages |= setting_pages(group)
    settings = sorted(groups.values(), key=_place)
    lines = [*_introduction(traces), *_in_short(settings)]
    first = next((n for n in groups if f"figures/comparison_{n}.svg" in pages), None)
    if first is not None:
        shown = title(_any(groups[first]).settings)
        own_figure = "figures/comparison_overview.svg"
        pages[own_figure] = figure(groups[first], set(METHODS) - set(_DRAWN))
        lines += [
            f"![J against time on {shown}]({own_figure})",
            "",
            f"J against time on {shown}, in units of the total time of `pac`: median "
            "and quartiles over the seeds.",
            "",
        ]
    lines += [*_who_wins(settings), *_at_what_cost(runs, pages), *_certificates(runs)]
    return {"comparison.md": "\n".join(lines), **pages}


def _place(runs: Runs) -> tuple[object, ...]:
    """Networks first, then functions; by number of samples, then by gamma."""
    problem, gamma, number = (_any(runs).settings[name] for name in GROUP)
    order = [*comparison.NETWORK_GAMMAS, *comparison.FUNCTIONS]
    last = problem not in order
    return last, 0 if last else order.index(problem), number != 50, number, gamma


def _any(runs: Runs) -> Trace:
    return next(iter(runs.values()))[0].trace


def _ordered(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by method, in the order of `METHODS`."""
    return {
        name: sorted(
            (run for run in runs if run.method == name), key=lambda r: r.trace.seed
        )
        for name in METHODS
        if any(run.method == name for run in runs)
    }


def _introduction(traces: Sequence[Trace]) -> list[str]:
    planned = comparison.plan(None)
    done = sum((trace.settings, trace.seed) in planned for trace in traces)
    return [
        "# Comparison with other methods",
        "",
        f"{len({t.settings['method'] for t in traces})} methods minimise the same "
        "objectives from the same noisy evaluations: the ranks of networks and three "
        "test functions. J is the true objective of the point that a method ends with; "
        "smaller is better. Each number is a median over seeds. A setting links to a "
        "page with all methods, intervals and tests; [methods and "
        "measures](comparison/methods.md) has the definitions. "
        f"{done} of {len(planned)} planned runs are in. To run what is missing:",
        "",
        *command("comparison --threads 1"),
    ]


def _ends(runs: Runs) -> tuple[dict[str, float], str]:
    """Median J at the end by method, and the best method.

    The best of those that were run on every seed of the setting: one lucky seed is no
    result.
    """
    ends = {
        name: float(np.median([run.objective[-1] for run in runs[name]]))
        for name in _SHOWN
        if name in runs
    }
    whole = [name for name in ends if len(runs[name]) == _seeds(runs)]
    return ends, min(whole, key=ends.__getitem__)


def _seeds(runs: Runs) -> int:
    return max(map(len, runs.values()))


def _in_short(settings: Sequence[Runs]) -> list[str]:
    """The results in sentences whose figures come from the runs."""
    wins: Counter[str] = Counter()
    far = []
    searched = [runs for runs in settings if REFERENCE in runs]
    for runs in searched:
        ends, best = _ends(runs)
        wins[best] += 1
        trace, excess = _any(runs), ends[REFERENCE] - ends[best]
        if excess > trace.result["delta"]:
            far.append(f"{title(trace.settings)} (by {excess:.2f})")
    if not searched:
        return []
    counts = ", ".join(f"`{name}` {n}" for name, n in wins.most_common())
    return [
        "## Results in short",
        "",
        "- **Who wins depends on the setting.** Best median J in "
        f"{len(searched)} settings: {counts}.",
        f"- **`pac` ends close to the best.** It is within delta of it in "
        f"{len(searched) - len(far)} of {len(searched)} settings"
        + (f", further away on {'; '.join(far)}." if far else "."),
        "- **`pac` decides when to stop.** The other methods need a budget, and say "
        "nothing about what they miss. What the certificates cost and whether they are "
        "kept is below.",
        "",
    ]


def _row_title(runs: Runs) -> str:
    settings = _any(runs).settings
    return f"[{title(settings)}](comparison/{page_name(settings)}.md)"


def _who_wins(settings: Sequence[Runs]) -> list[str]:
    """The best method of each setting, and J of those that most settings have."""
    rows = []
    for runs in settings:
        ends, best = _ends(runs)
        cells = [
            f"{ends[name]:#.4g}" + ("\\*" if len(runs[name]) < _seeds(runs) else "")
            if name in ends
            else "-"
            for name in _SIDE_BY_SIDE
        ]
        best_cells = (f"**{best}**", f"**{ends[best]:#.4g}**")
        rows.append([_row_title(runs), _seeds(runs), *best_cells, *cells])
    return [
        "## Who wins where",
        "",
        f"Median J at the end of the run. *Best*: of {', '.join(_SHOWN)}, as far as "
        "they were run on all seeds of the row. An asterisk: fewer seeds. Rows with "
        f"fewer than {fewest_pairs(0.025)} seeds show a direction, not a result.",
        "",
        *table("setting | seeds | best | its J | " + " | ".join(_SIDE_BY_SIDE), rows),
    ]


def _at_what_cost(runs: Sequence[Run], pages: dict[str, str]) -> list[str]:
    """J and time over all gammas of one network, as table and figure."""
    own = _at_all_weights(runs, _ALL_WEIGHTS)
    best = {gamma: best_known(_ordered(group)) for gamma, group in _split(own).items()}
    rows, ends = [], {}
    for name, group in _ordered(_whole_seeds(own)).items():
        excess = [run.objective[-1] - best[_gamma(run)] for run in group]
        ends[name] = (
            float(np.median([run.total_seconds for run in group])),
            float(np.median(excess)),
        )
        stopped = sum(run.trace.result["stopped"] for run in group)
        rows.append(
            [
                name,
                len(group),
                f"{ends[name][1]:.3f}",
                f"{ends[name][0]:.1f}",
                median([run.trace.result["evaluations"] for run in group], 0),
                f"{stopped} of {len(group)}",
            ]
        )
    if len(best) < 2 or not ends:
        return []
    delta = own[0].trace.result["delta"]
    near = [name for name, (_, excess) in ends.items() if excess <= delta]
    cheapest = min(near or ends, key=lambda name: ends[name][0])
    lines = [
        "## At what cost",
        "",
        f"{_ALL_WEIGHTS} over gamma = {', '.join(map(str, best))}, medians over runs. "
        "J is reported above the best that any run found. Seconds are processor "
        "seconds, fitting and proposing included. The cheapest method within delta = "
        f"{delta:g} of the best is `{cheapest}`. In the figure, lower left is better.",
        "",
        *table(
            "method | runs | J above the best | seconds | evaluations "
            "| stopped by itself",
            rows,
        ),
    ]
    points = {
        name: Series([seconds], [excess], joined=False)
        for name, (seconds, excess) in ends.items()
        if excess > 0
    }
    if len(points) > 1:
        path = "figures/comparison_cost.svg"
        pages[path] = chart(
            points,
            Axis("processor seconds of a run", logarithmic=True),
            Axis("J above the best known", logarithmic=True),
        )
        lines += [f"![J against processor seconds]({path})", ""]
    return lines


def _certificates(runs: Sequence[Run]) -> list[str]:
    own = _at_all_weights(runs, _ALL_WEIGHTS)
    rows = kept_rows(_by_gamma(own)) if own else []
    if not rows:
        return []
    delta = own[0].trace.result["delta"]
    return [
        "## Are the certificates kept?",
        "",
        f"Searches of {_ALL_WEIGHTS} at all gammas: J of what was certified, minus the "
        f"best J that any run found. A certificate promises less than delta = {delta:g}"
        ". [All gammas together](comparison/all_gammas.md) has the claims that the "
        "search is held to.",
        "",
        *table(KEPT, rows),
    ]


def _all_weights_page(runs: Sequence[Run]) -> str:
    """The claims over all gammas of one network, and the fronts."""
    own = _at_all_weights(runs, _ALL_WEIGHTS)
    gammas = sorted(set(map(_gamma, own)))
    whole = _ordered(_whole_seeds(own))
    lines = [
        "# Comparison: all gammas together",
        "",
        "Networks that were searched at several gammas, their runs taken together: "
        "claims, certificates, and fronts of ratio and accuracy. Rerun with the "
        "commands on the page of each [setting](../comparison.md); definitions are in "
        "[methods and measures](methods.md).",
        "",
    ]
    table_of_claims = claims(whole) if len(gammas) > 1 and whole else []
    if table_of_claims:
        lines += [
            f"The next two sections are about {_ALL_WEIGHTS}. A pair is a seed at one "
            f"of gamma = {', '.join(map(str, gammas))}, for the seeds that were run at "
            "each of these. Pairs of one seed see the same samples, so they are not "
            "fully independent.",
            "",
            *table_of_claims,
            *kept(_by_gamma(own)),
        ]
    return "\n".join([*lines, *_fronts(runs)])


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


def _split(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """Runs by gamma, in its order."""
    gammas = sorted(set(map(_gamma, runs)))
    return {gamma: [r for r in runs if _gamma(r) == gamma] for gamma in gammas}


def _by_gamma(runs: Sequence[Run]) -> list[dict[str, list[Run]]]:
    return [_ordered(group) for group in _split(runs).values()]


def _whole_seeds(runs: Sequence[Run]) -> list[Run]:
    """Runs of the seeds that a method was run with at every gamma.

    So each gamma has the same weight.
    """
    number = len(set(map(_gamma, runs)))
    count = Counter((run.method, run.trace.seed) for run in runs)
    return [run for run in runs if count[run.method, run.trace.seed] == number]


def _fronts(runs: Sequence[Run]) -> list[str]:
    """Hypervolume over the weights, for networks that were searched at several."""
    lines: list[str] = []
    for network in sorted({run.trace.settings["problem"] for run in runs}):
        own = [
            run
            for run in _at_all_weights(runs, network)
            if "top1" in run.trace.result["common"]
        ]
        gammas = sorted(set(map(_gamma, own)))
        if len(gammas) < 2:
            continue
        points: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for method, group in _ordered(_whole_seeds(own)).items():
            for run in group:
                final = run.trace.result["common"]
                points.setdefault(method, {}).setdefault(run.trace.seed, []).append(
                    (100 * final["ratio"], 100 * final["top1"])
                )
        if points:
            lines += [
                f"## Fronts on {network}",
                "",
                "Ratio and top-1 accuracy of what each run ends with, over gamma = "
                f"{', '.join(map(str, gammas))}: hypervolume in per cent squared, "
                f"against a ratio of {REFERENCE_RATIO:g} % and a top-1 of "
                f"{REFERENCE_TOP1:g} %, which were fixed before the runs.",
                "",
                *table(
                    "method | seeds | hypervolume, median (quartiles)",
                    (
                        [
                            method,
                            len(seeds),
                            quartiles(list(map(hypervolume, seeds.values()))),
                        ]
                        for method, seeds in points.items()
                    ),
                ),
            ]
    return lines
