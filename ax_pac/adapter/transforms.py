"""Ax transforms: cells, smoothed noise, points without data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from ax.adapter.base import Adapter
from ax.adapter.transforms.base import Transform
from ax.core.data_utils import ExperimentData
from ax.core.observation import ObservationFeatures
from ax.core.parameter import ParameterType, RangeParameter
from ax.core.search_space import SearchSpace
from botorch.models.model import Model
from numpy.typing import NDArray
from torch import Tensor

from ax_pac.adapter.fitted import state_of
from ax_pac.ax_internals import (
    experiment_of_adapter,
    fitted_model,
    forget_saved_argument,
)
from ax_pac.cells import Cells, frozen_edges
from ax_pac.experiment.observations import (
    is_evidence,
    running_arms_with_data,
    unevaluated_arms,
)
from ax_pac.experiment.space import rounded_parameters
from ax_pac.surrogate.noise import DEFAULT_NUM_SAMPLES, Array, smoothed_sems


class CanonicalPoints(Transform):
    """Move points to the centres of their cells, on the way in and on the way out.

    On the way in, so that points of one cell are repetitions to the model, whichever
    rule proposed them. On the way out, so that equal points are the same arm. First in
    the list of transforms: edges are in the parameters' own units. Its configuration
    has one entry, `cells`, see `pac_generation_strategy`.

    Args:
        search_space: The search space.
        experiment_data: As in Ax.
        adapter: As in Ax.
        config: `{"cells": edges by parameter}`.

    Raises:
        ValueError: When cells are given for anything but a float parameter on a linear
            scale, or do not cover exactly its range.

    Checked on Ax 1.3.1.
    """

    def __init__(
        self,
        search_space: SearchSpace | None = None,
        experiment_data: ExperimentData | None = None,
        adapter: Adapter | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(search_space, experiment_data, adapter, config)
        edges = frozen_edges(self.config.get("cells"))
        self._cells = {name: Cells((bins,)) for name, bins in edges}
        if search_space is not None:
            for name, bins in edges:
                _check_parameter(search_space, name, bins)

    def canonical_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return a parameterization with the centres of the cells in it."""
        moved = dict(parameters)
        for name, cells in self._cells.items():
            if moved.get(name) is not None:
                point = torch.tensor([[float(moved[name])]], dtype=torch.float64)
                moved[name] = cells.canonical(point).item()
        return moved

    def transform_observation_features(
        self, observation_features: list[ObservationFeatures]
    ) -> list[ObservationFeatures]:
        """Move points, in place as Ax's own transforms do."""
        for features in observation_features:
            features.parameters = self.canonical_parameters(features.parameters)
        return observation_features

    def untransform_observation_features(
        self, observation_features: list[ObservationFeatures]
    ) -> list[ObservationFeatures]:
        """Move proposals, in place as Ax's own transforms do."""
        return self.transform_observation_features(observation_features)

    def transform_optimization_config(
        self,
        optimization_config: Any,
        adapter: Any = None,
        fixed_features: ObservationFeatures | None = None,
    ) -> Any:
        """Return the configuration as it is, and keep the edges out of the trial.

        Called before each proposal. Ax saves the arguments of the generator with every
        trial; 2000 edges are 0.2 MB per trial, and the strategy stores them already.

        Args:
            optimization_config: As in Ax.
            adapter: The adapter that proposes; None does nothing.
            fixed_features: As in Ax.
        """
        if adapter is not None:
            forget_saved_argument(adapter, "cells")
        return optimization_config

    def transform_experiment_data(
        self, experiment_data: ExperimentData
    ) -> ExperimentData:
        """Move the points of the data; the experiment keeps its own."""
        arms = experiment_data.arm_data.copy()
        for name, cells in self._cells.items():
            if name in arms.columns and len(arms):
                values = arms[name].to_numpy(dtype=float, copy=True)
                points = torch.from_numpy(values).unsqueeze(-1)
                arms[name] = cells.canonical(points).squeeze(-1).numpy()
        return ExperimentData(
            arm_data=arms, observation_data=experiment_data.observation_data
        )


def _check_parameter(
    search_space: SearchSpace, name: str, edges: tuple[float, ...]
) -> None:
    """Refuse cells that do not fit their parameter."""
    parameter = search_space.parameters.get(name)
    if (
        not isinstance(parameter, RangeParameter)
        or parameter.parameter_type != ParameterType.FLOAT
        or parameter.log_scale
        or parameter.logit_scale
    ):
        raise ValueError(
            f"cells need a float parameter on a linear scale; {name!r} is {parameter}"
        )
    if (edges[0], edges[-1]) != (parameter.lower, parameter.upper):
        raise ValueError(
            f"the cells of {name!r} cover [{edges[0]}, {edges[-1]}], not its range "
            f"[{parameter.lower}, {parameter.upper}]"
        )


class SmoothedNoise(Transform):
    """Replace the standard errors of the data by `smoothed_sems` of them.

    A transform, because Ax gives the transformed data to the model and to nothing else:
    proposals and certificates see the same noise, and the experiment keeps every
    standard error as it was reported. Last in the list, so that coordinates are
    numbers by then. A metric with a missing standard error is left alone, and so are
    those that no model is fitted to, and only completed trials are smoothed, see
    `UnevaluatedPoints`. Its configuration has one entry, `num_samples`.

    Checked on Ax 1.3.1.
    """

    def transform_experiment_data(
        self, experiment_data: ExperimentData
    ) -> ExperimentData:
        """Smooth each modelled metric's standard errors over all its trials.

        Args:
            experiment_data: Ax's data; not modified.

        Returns:
            The data with other values in its `sem` columns.
        """
        experiment_data = completed_trials(experiment_data, self.adapter)
        observations = experiment_data.observation_data.copy()
        for metric in self._modelled(experiment_data.metric_signatures):
            rows = observations["mean", metric].notna()
            sem = observations.loc[rows, ("sem", metric)].astype(float)
            if sem.empty or sem.isna().any():
                continue
            mean = observations.loc[rows, ("mean", metric)].astype(float)
            observations.loc[rows, ("sem", metric)] = smoothed_sems(
                numbers_of(experiment_data, rows.to_numpy()),
                mean.to_numpy(),
                sem.to_numpy(),
                num_samples=int(self.config.get("num_samples", DEFAULT_NUM_SAMPLES)),
            )
        return ExperimentData(
            arm_data=experiment_data.arm_data, observation_data=observations
        )

    def _modelled(self, metrics: Iterable[str]) -> list[str]:
        """The metrics that a model is fitted to; all if that is not known."""
        metrics = sorted(metrics)
        outcomes = [] if self.adapter is None else self.adapter.outcomes
        return [metric for metric in metrics if metric in outcomes] or metrics


def numbers_of(experiment_data: ExperimentData, rows: NDArray[np.bool_]) -> Array:
    """Return the points of some observations as numbers, `n x d`; names count as 0."""
    observations = experiment_data.observation_data
    arms = experiment_data.arm_data.drop(columns="metadata", errors="ignore")
    index = observations.index[rows]
    X = arms.loc[index.droplevel(list(range(2, observations.index.nlevels)))]
    if not all(map(pd.api.types.is_float_dtype, X.dtypes)):
        X = X.apply(pd.to_numeric, errors="coerce")
    return np.nan_to_num(X.to_numpy(dtype=float))


def completed_trials(
    experiment_data: ExperimentData, adapter: Adapter | None
) -> ExperimentData:
    """Drop what trials that are not completed have reported."""
    if adapter is None:
        return experiment_data
    trials = experiment_of_adapter(adapter).trials
    observations = experiment_data.observation_data
    indices = observations.index.get_level_values("trial_index")
    keep = [is_evidence(trials[index].status) for index in indices]
    if all(keep):
        return experiment_data
    return ExperimentData(
        arm_data=experiment_data.arm_data, observation_data=observations[keep]
    )


class UnevaluatedPoints(Transform):
    """Keep from the model what is no observation, and from the search what was tried.

    Ax also fits a model to what running and early-stopped trials have reported; here
    completed trials are the evidence, see `observed_data`. And Ax treats points under
    evaluation as pending, unless they have reported something, but not those that
    failed, and would propose them again at once. A transform is called with both
    experiment and fitted model before each proposal, after a reload too: the points
    are kept with the model, see `state_of`, for `CertifyingAcquisition`.

    Checked on Ax 1.3.1.
    """

    def transform_experiment_data(
        self, experiment_data: ExperimentData
    ) -> ExperimentData:
        """Keep the observations of completed trials; the experiment keeps all."""
        return completed_trials(experiment_data, self.adapter)

    def transform_optimization_config(
        self,
        optimization_config: Any,
        adapter: Any = None,
        fixed_features: ObservationFeatures | None = None,
    ) -> Any:
        """Return the configuration as it is.

        Args:
            optimization_config: As in Ax.
            adapter: The fitted adapter; None does nothing.
            fixed_features: As in Ax.
        """
        model = fitted_model(adapter)
        if model is not None:
            experiment = experiment_of_adapter(adapter)
            arms = unevaluated_arms(experiment) + running_arms_with_data(experiment)
            features = [ObservationFeatures(dict(arm.parameters)) for arm in arms]
            state = state_of(model)
            state.rounded = rounded_parameters(experiment.search_space)
            state.unevaluated = (
                adapter.transform_observation_features(features) if features else None
            )
        return optimization_config


def with_unevaluated(model: Model, X_pending: Tensor | None) -> Tensor | None:
    """Add the points without observations to those under evaluation.

    Args:
        model: The fitted surrogate.
        X_pending: Points that Ax treats as pending, `p x d`, or None.

    Returns:
        Shape `q x d`, each point once, or None for no points.
    """
    points = state_of(model).unevaluated
    if points is None or X_pending is None:
        return X_pending if points is None else points
    known = (points.unsqueeze(1) == X_pending.unsqueeze(0)).all(-1).any(-1)
    return torch.cat([X_pending, points[~known]])
