"""Ax clients and loops that the tests of the strategy share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.core.experiment import Experiment
from ax.exceptions.core import OptimizationComplete

from ax_pac import StoredClient, pac_generation_strategy

for name in ("ax.api.client", "ax.service.ax_client", "ax.orchestration.orchestrator"):
    logging.getLogger(name).setLevel(logging.ERROR)

SEM = 0.02
SETTINGS = {"delta": 0.1, "epsilon": 0.05, "num_initial_trials": 5, "seed": 2}


def squared_distance(parameters: dict[str, Any], trial_index: int) -> float:
    """A noisy bowl to minimise; the noise depends on the trial alone."""
    distance = sum((value - 0.3) ** 2 for value in parameters.values())
    return distance + SEM * np.random.default_rng(trial_index).standard_normal()


def new_client(
    *, d: int = 2, objective: str = "-loss", strategy: bool = True, **settings: Any
) -> Client:
    """A client on the unit box whose strategy ends by certificate."""
    client = Client()
    client.configure_experiment(
        name="bowl",
        parameters=[
            RangeParameterConfig(name=f"x{i}", parameter_type="float", bounds=(0, 1))
            for i in range(d)
        ],
    )
    client.configure_optimization(objective=objective)
    if strategy:
        client.set_generation_strategy(
            pac_generation_strategy(**{**SETTINGS, **settings})
        )
    return client


def run(
    client: Client,
    *,
    max_trials: int = 40,
    evaluate: Callable[[dict[str, Any], int], float] = squared_distance,
    sem: float = SEM,
    metric: str = "loss",
) -> list[dict[str, Any]]:
    """The loop a user writes; returns the proposals, in order."""
    proposals: list[dict[str, Any]] = []
    for _ in range(max_trials):
        try:
            trials = client.get_next_trials(max_trials=1)
        except OptimizationComplete:
            return proposals
        for index, parameters in trials.items():
            value = evaluate(parameters, index)
            client.complete_trial(index, {metric: (value, sem)})
            proposals.append(parameters)
    return proposals


def take_up(client: StoredClient) -> None:
    """Evaluate the trials that a process which was killed left running."""
    for index, parameters in client.unfinished_trials().items():
        value = squared_distance(parameters, index)
        client.complete_trial(index, {"loss": (value, SEM)})


def experiment_of(client: Client) -> Experiment:
    """The experiment behind a client (private in Ax 1.3.1)."""
    return client._experiment
