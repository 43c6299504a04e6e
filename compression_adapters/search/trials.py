"""Trials of a search: seeds and table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from ax.api.client import Client

from ax_pac.ax_internals import experiment_of, node_of
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.search.client import (
    _METRICS,
)


def trial_seed(seed: int, trial_index: int) -> int:
    """Return the seed of the samples of a trial."""
    return int(np.random.SeedSequence((seed, trial_index)).generate_state(1)[0])


def fresh_seed(seed: int, number: int = 0) -> int:
    """Return a seed of samples that no trial of a search uses.

    Args:
        seed: Of the search.
        number: Of several such seeds.
    """
    return int(np.random.SeedSequence((seed, number, 1)).generate_state(1)[0])


def trial_table(client: Client, problem: CompressionProblem) -> pd.DataFrame:
    """Return one row per trial: status, estimates, score, coordinates, ranks.

    Args:
        client: The client of a search.
        problem: The problem of the search.
    """
    experiment = experiment_of(client)
    data = experiment.lookup_data().df
    rows = []
    for index, trial in experiment.trials.items():
        row: dict[str, Any] = {
            "trial_index": index,
            "status": trial.status.name,
            "node": node_of(trial.generator_runs[0]),
        }
        for metric in _METRICS:
            row[metric] = row[f"{metric}_sem"] = math.nan
        for estimate in data[data["trial_index"] == index].to_dict("records"):
            row[estimate["metric_name"]] = estimate["mean"]
            row[f"{estimate['metric_name']}_sem"] = estimate["sem"]
        row["score"] = _score_of_proposal(trial)
        point = {name: float(value) for name, value in trial.arm.parameters.items()}
        row.update({f"u_{name}": value for name, value in point.items()})
        ranks = problem.ranks(point)
        row.update({f"rank_{name}": rank for name, rank in ranks.items()})
        row["failed_reason"] = trial.status_reason
        rows.append(row)
    return pd.DataFrame(rows)


def _score_of_proposal(trial: Any) -> float:
    """Return the PAC score of a proposal; NaN for Sobol points."""
    metadata = trial.generator_runs[0].gen_metadata or {}
    scores = metadata.get("expected_acquisition_value")
    if scores is None:
        return math.nan
    return float(np.ravel(scores)[0])
