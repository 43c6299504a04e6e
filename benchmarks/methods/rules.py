"""Rules that choose all ranks by one number, which is then tuned on evaluations."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.harness.optimiser import Ask, Observation, Point, Seconds, Task
from benchmarks.networks.rank_rules import (
    GREEDY_IMAGES,
    Rule,
    at_ratio,
    energy_rule,
    evbmf_rule,
    fraction_rule,
    greedy_rule,
)
from compression_adapters import CompressionProblem, parameterization_from_ranks

# Compression ratios at which a rule is tried, before its best ones are tried again.
NUM_RATIOS = 12
_SMALLEST_RATIO = 0.03
# How many of the best are tried again, in turn.
_NUM_REPEATED = 3


class RuleSearch:
    """A rule tried along its line: ratios in turn, then the best of them again.

    Args:
        task: What is searched; it needs a network.
        rule: `fraction`, `energy`, `evbmf` or `greedy`.

    Raises:
        ValueError: When there is no network behind the task.
    """

    fit_seconds = Seconds(0.0, 0.0)

    def __init__(self, task: Task, *, rule: str) -> None:
        if task.compression is None:
            raise ValueError(
                f"rule {rule!r} chooses the ranks of a network; this problem has none"
            )
        self.task = task
        followed = _followed(task.compression, rule, task.seed)
        # What the rule itself has looked at, to be charged to it.
        self.setup_images = 0
        if rule == "greedy":
            self.setup_images = 9 * len(task.compression.layers) * GREEDY_IMAGES
        self.points: list[Point] = []
        for ratio in np.geomspace(_SMALLEST_RATIO, 0.95, NUM_RATIOS):
            ranks = at_ratio(task.compression, followed, float(ratio))
            named = parameterization_from_ranks(ranks, task.compression.parameters)
            point = tuple(named[p.name] for p in task.compression.parameters)
            if point not in self.points:
                self.points.append(point)
        self.values: dict[Point, list[float]] = {point: [] for point in self.points}

    def ask(self) -> Ask:
        for point in self.points:
            if not self.values[point]:
                return Ask(point, self.task.num_samples)
        best = sorted(self.points, key=self._pooled)[:_NUM_REPEATED]
        return Ask(
            min(best, key=lambda point: len(self.values[point])), self.task.num_samples
        )

    def tell(self, observation: Observation) -> None:
        self.values[observation.point].append(observation.mean)

    def incumbent(self) -> Point:
        return min(filter(self.values.__getitem__, self.points), key=self._pooled)

    def _pooled(self, point: Point) -> float:
        return float(np.mean(self.values[point]))


def _followed(problem: CompressionProblem, rule: str, seed: int) -> Rule:
    if rule == "greedy":
        larger = dataclasses.replace(problem, num_samples=GREEDY_IMAGES)
        return greedy_rule(larger, seed)
    rules = {"fraction": fraction_rule, "energy": energy_rule, "evbmf": evbmf_rule}
    return rules[rule](problem)
