"""The Ax transform that hands the surrogate smoothed standard errors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from ax.adapter.transforms.base import Transform
from ax.core.data_utils import ExperimentData

from ax_pac.noise import DEFAULT_NUM_SAMPLES, smoothed_sems


class SmoothedNoise(Transform):
    """Replace the standard errors of the data by `smoothed_sems` of them.

    A transform, because Ax gives the transformed data to the model and to nothing else:
    proposals and certificates see the same noise, and the experiment keeps every
    standard error as it was reported. Last in the list, so that coordinates are
    numbers by then. A metric with a missing standard error is left alone, and so are
    those that no model is fitted to. Its configuration has one entry, `num_samples`.

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
        observations = experiment_data.observation_data.copy()
        arms = experiment_data.arm_data.drop(columns="metadata", errors="ignore")
        for metric in self._modelled(experiment_data.metric_signatures):
            rows = observations["mean", metric].notna()
            sem = observations.loc[rows, ("sem", metric)].astype(float)
            if sem.empty or sem.isna().any():
                continue
            mean = observations.loc[rows, ("mean", metric)].astype(float)
            trials = observations.index[rows].droplevel(
                list(range(2, observations.index.nlevels))
            )
            X = arms.loc[trials]
            if not all(map(pd.api.types.is_float_dtype, X.dtypes)):
                X = X.apply(pd.to_numeric, errors="coerce")
            observations.loc[rows, ("sem", metric)] = smoothed_sems(
                np.nan_to_num(X.to_numpy(dtype=float)),
                mean.to_numpy(),
                sem.to_numpy(),
                num_samples=int(self.config.get("num_samples", DEFAULT_NUM_SAMPLES)),
            )
        return ExperimentData(
            arm_data=experiment_data.arm_data, observation_data=observations
        )

    def _modelled(self, metrics: Iterable[str]) -> list[str]:
        """Those of some metrics that a model is fitted to; all if that is not known."""
        metrics = sorted(metrics)
        outcomes = [] if self.adapter is None else self.adapter.outcomes
        return [metric for metric in metrics if metric in outcomes] or metrics
