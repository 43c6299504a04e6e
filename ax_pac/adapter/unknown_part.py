"""The Ax transform that leaves the model the unknown part of the objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ax.adapter.base import Adapter
from ax.adapter.transforms.base import Transform
from ax.core.data_utils import ExperimentData
from ax.core.observation import Observation, ObservationFeatures
from ax.core.parameter import (
    ChoiceParameter,
    FixedParameter,
    Parameter,
    ParameterType,
    RangeParameter,
)
from ax.core.search_space import SearchSpace

from ax_pac.adapter.fitted import state_of
from ax_pac.adapter.transforms import completed_trials, numbers_of
from ax_pac.ax_internals import (
    experiment_of_adapter,
    fitted_model,
    forget_saved_argument,
)
from ax_pac.cells import frozen_edges
from ax_pac.experiment.observations import objective_metric
from ax_pac.known import AdditiveFunction, KnownFunction, KnownPart, Table, Term
from ax_pac.surrogate.noise import smoothed_sems
from ax_pac.surrogate.soft_clip import Array, SoftClip, soft_clip

# Standard deviation of the least noise that GPyTorch leaves as it is, a little more.
_LEAST_NOISE = 1.1e-3


class UnknownPart(Transform):
    """Take the known part off the observations of the objective.

    The model is then one of the unknown part, with standard errors as they were, for an
    exact number has none; what is too bad to be of a better point is soft-clipped, see
    `KnownPart.clip`. On the way out, Ax's predictions get the known part back. A
    transform, because Ax stores it with the strategy as plain JSON and applies it
    everywhere; it also keeps the known part, as a function of the model's inputs, for
    `CertifyingAcquisition`. Behind `CanonicalPoints` and before all others, so that
    points are in the parameters' own units. Its configuration has three entries:
    `known`, what `KnownPart.to_dict` returned, `cells`, and `num_samples` where
    standard errors are smoothed afterwards.

    Args:
        search_space: The search space.
        experiment_data: As in Ax.
        adapter: As in Ax.
        config: `{"known": fields of a KnownPart, "cells": edges by parameter}`.

    Raises:
        ValueError: When a term is about a parameter that the search space does not
            have, or does not cover its values.

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
        known = KnownPart.of(self.config["known"])
        assert known is not None
        self._known = known.on(frozen_edges(self.config.get("cells")))
        self._clip: SoftClip | None = None
        if search_space is not None:
            for name, term in self._known.items:
                _check_term(search_space, name, term, self.config.get("cells") or {})
            if experiment_data is not None and adapter is not None:
                self._clip = self._clip_of(search_space, experiment_data, adapter)

    def _clip_of(
        self, space: SearchSpace, experiment_data: ExperimentData, adapter: Adapter
    ) -> SoftClip | None:
        """Return how the unknown part is clipped; None if it is not."""
        weight, times = _direction(adapter), self._known.clip
        limit = self._known.floor if weight < 0.0 else self._known.ceiling
        if times is None or limit is None:
            return None
        completed = completed_trials(experiment_data, adapter)
        observed = self._unknown(completed)
        if observed is None:
            return None
        unknown, sem, known = observed
        rows = np.isfinite(unknown)
        if "num_samples" in self.config and np.isfinite(sem[rows]).all() and rows.any():
            # As the model will: one that chance made small must not say what is bad.
            sem = sem.copy()
            sem[rows] = smoothed_sems(
                numbers_of(completed, rows),
                unknown[rows],
                sem[rows],
                num_samples=int(self.config["num_samples"]),
            )
        return soft_clip(
            *(unknown, sem, known),
            best_known=_best_known(space, self._known, weight),
            limit=limit,
            weight=weight,
            times=times,
        )

    def _unknown(self, experiment_data: ExperimentData) -> _Observed | None:
        """Return the unknown part of observations; None if the metric has none."""
        signature = self._signature()
        rows = experiment_data.observation_data
        if signature is None or ("mean", signature) not in rows.columns:
            return None
        arms = experiment_data.arm_data.drop(columns="metadata", errors="ignore")
        values = {
            index: self._known(row)
            for index, row in zip(arms.index, arms.to_dict("records"), strict=True)
        }
        levels = list(range(2, rows.index.nlevels))
        of_rows = rows.index.droplevel(levels) if levels else rows.index
        known = np.array([values[index] for index in of_rows])
        mean = rows["mean", signature].to_numpy(dtype=float)
        sem = np.zeros_like(mean)
        if ("sem", signature) in rows.columns:
            sem = rows["sem", signature].to_numpy(dtype=float)
        if self._known.weight is None:
            return _Observed(mean - known, sem, known)
        return _Observed(self._known.weight * mean, self._known.weight * sem, known)

    def transform_experiment_data(
        self, experiment_data: ExperimentData
    ) -> ExperimentData:
        """Leave the model the unknown part; the experiment keeps its own means."""
        observed, signature = self._unknown(experiment_data), self._signature()
        if observed is None:
            return experiment_data
        unknown, sem, known = observed
        if self._clip is not None:
            clipped = self._clip(unknown, known)
            # What GPyTorch would raise, with a warning, in standardised units.
            least = _LEAST_NOISE * float(np.nanstd(clipped))
            raised = np.fmax(self._clip.sem(unknown, sem, known), np.fmin(sem, least))
            unknown, sem = clipped, raised
        rows = experiment_data.observation_data.copy()
        rows["mean", signature] = unknown
        if ("sem", signature) in rows.columns:
            rows["sem", signature] = sem
        return ExperimentData(arm_data=experiment_data.arm_data, observation_data=rows)

    def untransform_observations(
        self, observations: list[Observation]
    ) -> list[Observation]:
        """Give predictions of the metric their known part back, in place."""
        signature = self._signature()
        weight = self._known.weight
        for observation in observations:
            data = observation.data
            for i, name in enumerate(data.metric_signatures):
                if name != signature:
                    continue
                known = np.asarray(self._known(observation.features.parameters))
                if self._clip is not None:
                    data.means[i] = self._clip.inverse(data.means[i], known)
                    slope = self._clip.slope(data.means[i], known)
                    data.covariance[i] /= slope
                    data.covariance[:, i] /= slope
                if weight is None:
                    data.means[i] += known
                else:
                    data.means[i] /= weight
                    data.covariance[i] /= weight
                    data.covariance[:, i] /= weight
        return observations

    def _signature(self) -> str | None:
        """The objective's metric, as Ax's data name it; None without an adapter."""
        if self.adapter is None:
            return None
        experiment = experiment_of_adapter(self.adapter)
        return str(experiment.metrics[objective_metric(experiment)].signature)

    def transform_optimization_config(
        self,
        optimization_config: Any,
        adapter: Any = None,
        fixed_features: ObservationFeatures | None = None,
    ) -> Any:
        """Return the configuration as it is, and keep the known part with the model.

        Called before each proposal. Like cells, the tables are kept out of what Ax
        saves with every trial.

        Args:
            optimization_config: As in Ax.
            adapter: The adapter that proposes; None does nothing.
            fixed_features: As in Ax.
        """
        if adapter is not None:
            forget_saved_argument(adapter, "known")
            forget_saved_argument(adapter, "cells")
            model = fitted_model(adapter)
            if model is not None and state_of(model).known is None:
                known = known_function_of(adapter, self._known)
                if self._clip is not None:
                    known = replace(known, reach=self._clip.reach)
                state_of(model).known = known
        return optimization_config


class _Observed(NamedTuple):
    """The unknown part of observations, its standard errors, and the known part."""

    unknown: Array
    sem: Array
    known: Array


def _direction(adapter: Adapter) -> float:
    """1 where the objective is maximised, -1 where it is minimised."""
    config = experiment_of_adapter(adapter).optimization_config
    return -1.0 if config is not None and config.objective.minimize else 1.0


def _best_known(space: SearchSpace, known: KnownPart, weight: float) -> float:
    """The best value of the known part, or a better one, without constraints."""
    best = known.constant
    for name, term in known.items:
        parameter = space.parameters[name]
        if isinstance(parameter, RangeParameter):
            ends = parameter.lower, parameter.upper
            added = (
                list(term.values)
                if isinstance(term, Table)
                else [term * float(end) for end in ends]
            )
        elif isinstance(parameter, FixedParameter):
            added = [_of_value(term, parameter.value)]
        else:
            assert isinstance(parameter, ChoiceParameter)
            added = [_of_value(term, value) for value in parameter.values]
        best += weight * max(weight * value for value in added)
    return best


def _of_value(term: Term, value: Any) -> float:
    """What one value of a parameter adds."""
    return term(value) if isinstance(term, Table) else term * float(value)


def _check_term(
    search_space: SearchSpace, name: str, term: Any, cells: dict[str, Any]
) -> None:
    """Refuse a term that does not fit its parameter."""
    parameter = search_space.parameters.get(name)
    if parameter is None or not isinstance(
        parameter, (RangeParameter, ChoiceParameter, FixedParameter)
    ):
        raise ValueError(
            f"the known part has a term for {name!r}; the search space has the "
            f"parameters {list(search_space.parameters)}; derived ones have no terms"
        )
    if isinstance(parameter, RangeParameter) and parameter.logit_scale:
        raise ValueError(f"no term can be given for {name!r}, on a logit scale")
    if not isinstance(term, Table):
        numbers = (ParameterType.INT, ParameterType.FLOAT)
        if parameter.parameter_type not in numbers:
            raise ValueError(
                f"the known part of {name!r} is a slope, the parameter no number: give "
                "a pair of values and what each adds"
            )
        return
    assert term.at is not None
    if isinstance(parameter, RangeParameter):
        if not term.is_numeric:
            raise ValueError(f"{name!r} needs a table of numbers, got {term.at[:4]}")
        first, last = term.points[0], term.points[-1]
        covers = first <= parameter.lower and parameter.upper <= last
        if name not in cells and not covers:
            raise ValueError(
                f"the known part of {name!r} covers [{first}, {last}], not its range "
                f"[{parameter.lower}, {parameter.upper}]"
            )
        return
    values = (
        parameter.values
        if isinstance(parameter, ChoiceParameter)
        else [parameter.value]
    )
    missing = [value for value in values if value not in term.at]
    if missing:
        raise ValueError(f"the known part of {name!r} lacks the values {missing}")


def known_function_of(adapter: Any, known: KnownPart) -> KnownFunction:
    """Return a known part as a function of the inputs of an adapter's model.

    Args:
        adapter: A fitted adapter.
        known: The known part, the points of every table given.
    """
    space = experiment_of_adapter(adapter).search_space
    columns = list(adapter.parameters)
    slopes = torch.zeros(len(columns), dtype=torch.float64)
    tables: dict[int, tuple[list[float], list[float]]] = {}
    logarithmic: list[int] = []
    constant = known.constant
    for name, term in known.items:
        parameter: Parameter = space.parameters[name]
        if isinstance(parameter, FixedParameter):
            constant += _of_value(term, parameter.value)
        elif isinstance(parameter, ChoiceParameter):
            choices = list(parameter.values)
            added = [_of_value(term, choice) for choice in choices]
            where = _coordinates(adapter, name, choices)
            varying = [j for j, x in enumerate(where.mT) if len(x.unique()) > 1]
            if len(varying) == 1:
                (j,) = varying
                pairs = sorted(zip(where[:, j].tolist(), added, strict=True))
                tables[j] = [x for x, _ in pairs], [y for _, y in pairs]
            else:  # the indicators of an unordered choice
                for row, value in zip(where, added, strict=True):
                    (j,) = [j for j in varying if float(row[j]) == 1.0]
                    slopes[j] = value
        else:
            j = columns.index(name)
            if parameter.log_scale:
                logarithmic.append(j)
            if isinstance(term, Table):
                tables[j] = list(term.points), list(term.values)
            else:
                slopes[j] = term
    value_of = AdditiveFunction(slopes, tables, constant, logarithmic)
    return KnownFunction(value_of, known.floor, known.ceiling, value_of.bends)


def _coordinates(adapter: Any, name: str, choices: list[Any]) -> torch.Tensor:
    """Return where the model sees each value of a choice, `values x d`."""
    arm = next(iter(experiment_of_adapter(adapter).arms_by_name.values()))
    features = [
        ObservationFeatures({**arm.parameters, name: choice}) for choice in choices
    ]
    points = adapter.transform_observation_features(features)
    return torch.as_tensor(points, dtype=torch.float64)
