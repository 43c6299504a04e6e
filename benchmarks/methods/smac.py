"""SMAC's black-box facade, from the extra `benchmarks`."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from pathlib import Path

from benchmarks.harness.optimiser import (
    Ask,
    Observation,
    Point,
    Seconds,
    Task,
    best_observation,
    require_package,
)

# SMAC needs to know the number of trials, and proposes none after that.
_MOST_TRIALS = 100_000


class SmacSearch:
    """A Gaussian process with SMAC's defaults; it does not use standard errors.

    Deterministic, so that a configuration is asked for once: that leaves the noise to
    its model, and its budget is not spent on repetitions.

    Args:
        task: What is searched.
    """

    fit_seconds = Seconds(0.0, 0.0)

    def __init__(self, task: Task) -> None:
        require_package("smac")
        from ConfigSpace import ConfigurationSpace, Float
        from smac import BlackBoxFacade, Scenario

        self.task = task
        self.observations: list[Observation] = []
        space = ConfigurationSpace(seed=task.seed)
        space.add(Float(name, (0.0, 1.0)) for name in task.names)
        # It writes its history at every step and has no way to be kept from it.
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        scenario = Scenario(
            space,
            deterministic=True,
            n_trials=_MOST_TRIALS,
            seed=task.seed,
            output_directory=Path(folder),
        )
        self.facade = BlackBoxFacade(
            scenario,
            target_function=_never_called,
            initial_design=BlackBoxFacade.get_initial_design(
                scenario, n_configs=task.initial
            ),
            overwrite=True,
            logging_level=False,
        )

    def ask(self) -> Ask:
        with warnings.catch_warnings():
            # Its models are scikit-learn's, with warnings of their own.
            warnings.simplefilter("ignore")
            self.trial = self.facade.ask()
        return Ask(self._point(self.trial.config), self.task.num_samples)

    def tell(self, observation: Observation) -> None:
        from smac.runhistory.dataclasses import TrialValue

        self.observations.append(observation)
        self.facade.tell(self.trial, TrialValue(cost=observation.mean))

    def incumbent(self) -> Point:
        incumbent = self.facade.intensifier.get_incumbent()
        if incumbent is None:
            return best_observation(self.observations)
        return self._point(incumbent)

    def _point(self, configuration: object) -> Point:
        values = dict(configuration)  # type: ignore[call-overload]
        return tuple(float(values[name]) for name in self.task.names)


def _never_called(config: object, seed: int = 0) -> float:
    """SMAC needs a function even in ask/tell form."""
    raise RuntimeError("the evaluation is the benchmark's; please report this")
