"""Statistics of paired runs: curves, censored times, tests, intervals, hypervolume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from scipy.stats import wilcoxon

from benchmarks.harness.traces import Trace
from benchmarks.methods.registry import RULES

# A time is followed up to so many times that of the reference.
CENSORED_AT = 5.0
_BOOTSTRAP = 2_000
_CLOCKS = ("evaluate", "fit", "propose")


@dataclass(frozen=True)
class Run:
    """A trace with the quantities that the tables show.

    Args:
        trace: The trace.
    """

    trace: Trace

    @property
    def method(self) -> str:
        return self.trace.settings["method"]

    @cached_property
    def cost(self) -> np.ndarray:
        """Samples spent after each trial, what it cost to begin included."""
        spent = np.cumsum([trial["cost"] for trial in self.trace.trials])
        return spent + self.trace.result["setup_samples"]

    @cached_property
    def seconds(self) -> np.ndarray:
        """Processor seconds after each trial: evaluating, fitting and proposing."""
        return np.cumsum(
            [sum(trial[clock][0] for clock in _CLOCKS) for trial in self.trace.trials]
        )

    @property
    def total_seconds(self) -> float:
        """Of the whole run, the verdict at its end included."""
        return float(self.seconds[-1]) + self.trace.result["last_ask"][0]

    def clock(self, name: str, which: int = 0) -> float:
        """Seconds of `evaluate`, `fit` or `propose`: 0 the processor's, 1 the wall's.

        What the verdict at the end took counts as proposing.
        """
        spent = sum(trial[name][which] for trial in self.trace.trials)
        return spent + (self.trace.result["last_ask"][which] * (name == "propose"))

    @cached_property
    def objective(self) -> np.ndarray:
        """True objective of the incumbent after each trial.

        Of the common incumbent where there is one, else of the last that was looked
        at; a rule's own, for it visits points on a line.
        """
        values, last = [], math.nan
        for trial in self.trace.trials:
            own = trial["own"]
            if self.method in RULES:
                last = own
            elif "common" in trial or not math.isfinite(last):
                last = trial.get("common", own)
            values.append(last)
        return np.array(values)

    def objective_at(self, spent: np.ndarray, budget: float) -> float:
        """True objective when a budget was spent, NaN before the first trial."""
        done = int(np.searchsorted(spent, budget * (1.0 + 1e-9), side="right"))
        return float(self.objective[done - 1]) if done else math.nan

    def time_to(self, target: float, limit: float) -> tuple[float, bool]:
        """Seconds until the objective is at most the target, and whether it is.

        Not reached, it is the time that the run was followed, at most the limit.
        """
        reached = np.nonzero(self.objective <= target)[0]
        if len(reached) and self.seconds[reached[0]] <= limit:
            return float(self.seconds[reached[0]]), True
        return min(limit, self.total_seconds), False


def paired(left: Sequence[Run], right: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of the same seed, and of the same settings but for the method."""

    def key(run: Run) -> tuple[object, ...]:
        settings = run.trace.settings
        return (
            run.trace.seed,
            settings["problem"],
            settings["gamma"],
            settings["num_samples"],
        )

    others = {key(run): run for run in right}
    return [(run, others[key(run)]) for run in left if key(run) in others]


def signed_rank(differences: Sequence[float], alternative: str = "two-sided") -> float:
    """P-value of Wilcoxon's signed-rank test, exact for few pairs without ties.

    NaN where there is nothing to test: no pair, or none that differs.

    Args:
        differences: One a pair.
        alternative: As in SciPy, of the differences against zero.
    """
    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0 or not values.any():
        return math.nan
    return float(wilcoxon(values, alternative=alternative).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: p-values that may be read together. NaN stays NaN.

    Source: Holm 1979 (A simple sequentially rejective multiple test procedure).
    """
    tested = {name: p for name, p in p_values.items() if not math.isnan(p)}
    corrected = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for i, name in enumerate(sorted(tested, key=tested.__getitem__)):
        largest = max(largest, min(1.0, (len(tested) - i) * tested[name]))
        corrected[name] = largest
    return corrected


def median_interval(
    values: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Median with its bootstrap interval: low, median, high; from a fixed stream.

    Args:
        values: One a run.
        level: Coverage.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) == 0:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(sample, (_BOOTSTRAP, len(sample))), axis=1)
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(drawn, (tail, 1.0 - tail))
    return float(low), float(np.median(sample)), float(high)


def fewest_pairs(alpha: float = 0.05) -> int:
    """Pairs without which no one-sided test at this level can say anything."""
    return math.ceil(-math.log2(alpha))


# Reference point of the hypervolume, fixed before anything was measured: a ratio and
# an accuracy that are of no use on these networks. In per cent.
REFERENCE_RATIO = 60.0
REFERENCE_TOP1 = 50.0


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area between the reference point and (ratio, top-1), both in per cent.

    Args:
        points: Compression ratio, smaller is better, and accuracy, larger is better.
    """
    if not points:
        return 0.0
    values = torch.tensor([(-ratio, top1) for ratio, top1 in points]).double()
    front = values[is_non_dominated(values)]
    reference = torch.tensor([-REFERENCE_RATIO, REFERENCE_TOP1], dtype=torch.float64)
    return float(Hypervolume(reference).compute(front))
