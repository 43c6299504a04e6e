"""The Ax transform that keeps failed points from being proposed again."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from ax.adapter.transforms.base import Transform
from ax.core.observation import ObservationFeatures
from botorch.models.model import Model
from torch import Tensor

from ax_pac.observations import unevaluated_arms

_POINTS: weakref.WeakKeyDictionary[Model, Tensor] = weakref.WeakKeyDictionary()


class UnevaluatedPoints(Transform):
    """Note, before each proposal, which points were tried and have no observation.

    Ax takes points under evaluation for pending, but not those that failed, and
    proposes them again at once. It transforms nothing: a transform is where Ax brings
    experiment and fitted model together whenever it generates, after a reload too. The
    points are handed to `CertifyingAcquisition` by way of the model.

    Checked on Ax 1.3.1.
    """

    no_op_for_experiment_data: bool = True

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
        surrogate = getattr(getattr(adapter, "generator", None), "_surrogate", None)
        model = getattr(surrogate, "_model", None)
        if model is not None:
            arms = unevaluated_arms(adapter._experiment)
            features = [ObservationFeatures(dict(arm.parameters)) for arm in arms]
            if features:
                _POINTS[model] = adapter.transform_observation_features(features)
            else:
                _POINTS.pop(model, None)
        return optimization_config


def with_unevaluated(model: Model, X_pending: Tensor | None) -> Tensor | None:
    """Add the points without observations to those under evaluation.

    Args:
        model: The fitted surrogate.
        X_pending: What Ax takes for pending, `p x d`, or None.

    Returns:
        Shape `q x d`, each point once, or None for no points.
    """
    points = _POINTS.get(model)
    if points is None or X_pending is None:
        return X_pending if points is None else points
    known = (points.unsqueeze(1) == X_pending.unsqueeze(0)).all(-1).any(-1)
    return torch.cat([X_pending, points[~known]])
