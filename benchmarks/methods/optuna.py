"""Optuna's samplers, from the extra `benchmarks`."""

from __future__ import annotations

import warnings

from benchmarks.harness.optimiser import (
    Ask,
    Observation,
    Point,
    Seconds,
    Task,
    require_package,
)


class OptunaSearch:
    """An Optuna study in ask/tell form. It does not use standard errors.

    Args:
        task: What is searched.
        sampler: `tpe`, or `gp` with noise that it infers.
    """

    fit_seconds = Seconds(0.0, 0.0)

    def __init__(self, task: Task, *, sampler: str) -> None:
        require_package("optuna")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.task = task
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            chosen = {
                "tpe": lambda: optuna.samplers.TPESampler(
                    seed=task.seed, n_startup_trials=task.initial
                ),
                "gp": lambda: optuna.samplers.GPSampler(
                    seed=task.seed,
                    n_startup_trials=task.initial,
                    deterministic_objective=False,
                ),
            }[sampler]()
        self.study = optuna.create_study(sampler=chosen)
        for point in task.first:
            self.study.enqueue_trial(dict(zip(task.names, point, strict=True)))

    def ask(self) -> Ask:
        with warnings.catch_warnings():
            # Its models are fitted by SciPy and torch, with warnings of their own.
            warnings.simplefilter("ignore")
            self.trial = self.study.ask()
            point = tuple(
                self.trial.suggest_float(name, 0.0, 1.0) for name in self.task.names
            )
        return Ask(point, self.task.num_samples)

    def tell(self, observation: Observation) -> None:
        self.study.tell(self.trial, observation.mean)

    def incumbent(self) -> Point:
        parameters = self.study.best_params
        return tuple(float(parameters[name]) for name in self.task.names)
