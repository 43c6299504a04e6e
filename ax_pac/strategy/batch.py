"""Several proposals at once, from one fit."""

from __future__ import annotations

from typing import Any

from ax.core.experiment import Experiment
from ax.core.generator_run import GeneratorRun
from ax.generation_strategy.generation_strategy import GenerationStrategy

from ax_pac.ax_internals import replace_last_run, split_run
from ax_pac.strategy.criteria import PAC_NODE


def proposed_together(
    strategy: GenerationStrategy,
    experiment: Experiment,
    number: int,
    *,
    fixed_features: Any = None,
) -> list[list[GeneratorRun]]:
    """Propose several points at once: one fit, one certificate, one description.

    The points are those that a strategy of `pac_generation_strategy` would propose one
    after the other, each conditioned on those before it and on what runs. Ax describes
    everything that is pending anew for each of them, which with a thousand running
    trials takes longer than to find the point.

    Args:
        strategy: Proposes; any but that of `pac_generation_strategy` is left to Ax.
        experiment: For which.
        number: Of points, at least 1; there may be fewer.
        fixed_features: As in Ax.

    Returns:
        A generator run per trial, as Ax's `GenerationStrategy.gen` returns them.

    Raises:
        OptimizationComplete: when the search is finished.

    Example:
        >>> from ax_pac import pac_generation_strategy
        >>> strategy = pac_generation_strategy(delta=0.1, epsilon=0.05, seed=0)
        >>> strategy.nodes_by_name.keys() >= {"PAC"}
        True
    """
    if number == 1 or PAC_NODE not in strategy.nodes_by_name:
        runs: list[list[GeneratorRun]] = strategy.gen(
            experiment=experiment,
            n=1,
            num_trials=number,
            fixed_features=fixed_features,
        )
        return runs
    ((run,),) = strategy.gen(
        experiment=experiment, n=number, num_trials=1, fixed_features=fixed_features
    )
    parts = split_run(run)
    replace_last_run(strategy, parts)
    return [[part] for part in parts]
