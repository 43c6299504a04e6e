"""The observations that a certificate is about, checked."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import pandas as pd
from ax.core.arm import Arm
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.core.search_space import SearchSpace
from ax.core.trial_status import TrialStatus

from ax_pac.experiment.session import session_of
from ax_pac.experiment.space import refuse_unsupported


def observed_data(experiment: Experiment) -> pd.DataFrame:
    """Return the objective's observations that the surrogate is fitted to.

    Those of completed trials, see `is_evidence`. Ax would also fit its models to what
    running and early-stopped trials have reported so far, which is another quantity:
    a loss after three epochs, say.

    Args:
        experiment: An Ax experiment with one objective.

    Returns:
        Columns `trial_index, arm_name, mean, sem`, sorted. Of several progressions the
        last one. A NaN mean is no observation, nor is a point outside the search space,
        which a warning reports (Ax drops both).

    Raises:
        ValueError: For several objectives or outcome constraints, for search spaces
            that `refuse_unsupported` names, for an infinite mean, and for a missing,
            infinite or negative standard error, naming the trial. Ax would ignore the
            first two and infer the noise for the last.
    """
    source, session = Source.of(experiment), session_of(experiment)
    if session.observations is None or session.observations[0] != source:
        session.observations = source, _observations(experiment, source)
    return session.observations[1].copy()


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What observations are read from; equal where they are the same.

    Args:
        data: All data. Ax replaces it when some are attached, it never edits it.
        space: The search space.
        statuses: Status of each trial by its index.
        metric: Name of the objective's metric.
    """

    data: Data
    space: SearchSpace
    statuses: dict[int, TrialStatus]
    metric: str

    @classmethod
    def of(cls, experiment: Experiment) -> Source:
        """Take an experiment's.

        Raises:
            ValueError: As `objective_metric` and `refuse_unsupported`.
        """
        refuse_unsupported(experiment.search_space)
        return cls(
            experiment.lookup_data(),
            experiment.search_space,
            {index: trial.status for index, trial in experiment.trials.items()},
            objective_metric(experiment),
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Source)
            and self.data is other.data
            and self.space is other.space
            and (self.statuses, self.metric) == (other.statuses, other.metric)
        )

    __hash__ = None  # type: ignore[assignment]


def _observations(experiment: Experiment, source: Source) -> pd.DataFrame:
    """Read one metric's observations, checked."""
    data, statuses, metric = source.data.df, source.statuses, source.metric
    columns = ["trial_index", "arm_name", "mean", "sem"]
    if data.empty:
        return pd.DataFrame(columns=columns)
    abandoned = _abandoned_arms(experiment)
    is_usable = [
        is_evidence(statuses[index]) and (index, name) not in abandoned
        for index, name in zip(data["trial_index"], data["arm_name"], strict=True)
    ]
    usable = (data["metric_name"] == metric) & pd.Series(is_usable, data.index)
    rows = data.loc[usable, columns]
    rows = rows[~rows["arm_name"].isin(_outside(experiment, set(rows["arm_name"])))]
    rows = rows.sort_values(columns[:2], kind="stable").dropna(subset=["mean"])
    for row in rows.to_dict("records"):
        _check_observation(metric, row["trial_index"], row["mean"], row["sem"])
    return rows.reset_index(drop=True)


def is_evidence(status: TrialStatus) -> bool:
    """Whether the data of a trial in this state are observations.

    Of completed trials only. Whoever stops a trial early has not evaluated its point:
    to the search it is one that gave no observation, see `unevaluated_arms`.
    """
    return status == TrialStatus.COMPLETED


def _abandoned_arms(experiment: Experiment) -> set[tuple[int, str]]:
    """Trial index and name of the arms that were abandoned within their trial."""
    return {
        (index, arm.name)
        for index, trial in experiment.trials.items()
        for arm in trial.abandoned_arms
    }


def running_arms_with_data(experiment: Experiment) -> list[Arm]:
    """Return the arms under evaluation that have reported something.

    To Ax they are evaluated, to the search they are pending.
    """
    reported = set(experiment.lookup_data().df.get("trial_index", ()))
    return [
        arm
        for index, trial in experiment.trials.items()
        if index in reported and not trial.status.is_terminal
        for arm in trial.arms
        if experiment.search_space.check_membership(arm.parameters)
    ]


def _outside(experiment: Experiment, names: set[str]) -> set[str]:
    """Name the arms outside the search space, with a warning."""
    space = experiment.search_space
    outside = {
        name
        for name in names
        if not space.check_membership(experiment.arms_by_name[name].parameters)
    }
    if outside:
        trials = sorted(
            index
            for index, trial in experiment.trials.items()
            if any(arm.name in outside for arm in trial.arms)
        )
        warnings.warn(
            f"trials {trials} lie outside the search space and are not used by "
            "model or certificate. Attach points within the bounds, "
            "or set up an experiment with wider ones.",
            stacklevel=2,
        )
    return outside


def unevaluated_arms(
    experiment: Experiment, data: pd.DataFrame | None = None
) -> list[Arm]:
    """Return the arms that ended without an observation, not to be proposed for now.

    An arm without any observation one of whose trials has ended, be it failed,
    abandoned, stopped early, or completed without data; and an arm that has one, if its
    trial was the last to end and brought none, until another trial brings one.

    Args:
        experiment: An experiment with one objective.
        data: What `observed_data` returns for it; None calls it.

    Returns:
        Each once, in the order of their trials; only such as lie in the search space.

    Raises:
        ValueError: see `observed_data`.
    """
    if data is None:
        data = observed_data(experiment)
    seen = set(zip(data["trial_index"], data["arm_name"], strict=True))
    names = set(data["arm_name"])
    last = int(data["trial_index"].max()) if len(data) else -1
    arms: dict[str, Arm] = {}
    for index, trial in experiment.trials.items():
        if not trial.status.is_terminal:
            continue
        for arm in trial.arms:
            if (index, arm.name) in seen or (arm.name in names and index < last):
                continue
            if experiment.search_space.check_membership(arm.parameters):
                arms[arm.name] = arm
    return list(arms.values())


def objective_metric(experiment: Experiment) -> str:
    """Return the name of the one metric that is optimised.

    Raises:
        ValueError: When there is no objective, more than one, or an outcome constraint.
    """
    config = experiment.optimization_config
    if config is None:
        raise ValueError(
            "the experiment has no objective yet: call configure_optimization first"
        )
    if config.is_moo_problem:
        raise ValueError(
            "several objectives are not supported: a PAC certificate is about one. "
            "Scalarise them into one metric."
        )
    if config.outcome_constraints:
        raise ValueError(
            "outcome constraints are not supported: the certificate would ignore "
            f"{[str(c) for c in config.outcome_constraints]}. Fold them into the "
            "objective as a penalty."
        )
    names = config.objective.metric_names
    if len(names) != 1:
        raise ValueError(
            f"the objective combines {len(names)} metrics, {names}; report their "
            "combination as one metric with its own SEM."
        )
    return str(names[0])


def _check_observation(metric: str, trial_index: int, mean: Any, sem: Any) -> None:
    """Refuse one observation that the surrogate would misinterpret."""
    where = f"trial {trial_index}, metric {metric!r}"
    remedy = (
        f"Attach it again with client.attach_data({trial_index}, "
        f"{{{metric!r}: (mean, sem)}}); the trial is not lost."
    )
    if math.isinf(mean):
        raise ValueError(
            f"{where}: the mean is {mean}, expected a finite one. {remedy}"
        )
    if sem is None or math.isnan(sem):
        raise ValueError(
            f"{where}: the standard error of the mean is missing. Without it Ax would "
            f"infer the noise, and the certificate would not hold. {remedy}"
        )
    if math.isinf(sem) or sem < 0:
        raise ValueError(
            f"{where}: the standard error of the mean is {sem}, expected a finite "
            f"number of at least 0. {remedy}"
        )
