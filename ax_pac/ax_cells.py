"""The Ax transform by which the points of one cell become one point."""

from __future__ import annotations

from typing import Any

import torch
from ax.adapter.base import Adapter
from ax.adapter.transforms.base import Transform
from ax.core.data_utils import ExperimentData
from ax.core.observation import ObservationFeatures
from ax.core.parameter import ParameterType, RangeParameter
from ax.core.search_space import SearchSpace

from ax_pac.cells import Cells, frozen_edges


class CanonicalPoints(Transform):
    """Move points to the centres of their cells, on the way in and on the way out.

    On the way in, so that the model sees repetitions of one thing as repetitions,
    whoever proposed them. On the way out, so that the same thing is always the same
    arm. First in the list of transforms: edges are in the parameters' own units. Its
    configuration has one entry, `cells`, see `pac_generation_strategy`.

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
        if self.adapter is not None:
            # Ax 1.3.1 stores the arguments of the generator with every generator run,
            # where nothing reads them. Of 2000 edges that is 0.2 MB a trial; they are
            # kept once, with the strategy.
            for name in ("_generator_kwargs", "_adapter_kwargs"):
                kwargs = getattr(self.adapter, name)
                setattr(self.adapter, name, _without_cells(kwargs))
        return self.transform_observation_features(observation_features)

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


def _without_cells(value: Any) -> Any:
    """Copy nested dictionaries, the entry `cells` of each left empty."""
    if not isinstance(value, dict):
        return value
    return {k: {} if k == "cells" else _without_cells(v) for k, v in value.items()}


def _check_parameter(
    search_space: SearchSpace, name: str, edges: tuple[float, ...]
) -> None:
    """Refuse cells that mean nothing for their parameter."""
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
