"""Certificates kept with an experiment, keyed by the data they were computed on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
import weakref
from typing import Any, Protocol

import pandas as pd
from ax.core.arm import Arm
from ax.core.experiment import Experiment
from ax.core.trial_status import TrialStatus

from ax_pac.cells import FrozenEdges, frozen_edges
from ax_pac.noise import DEFAULT_NUM_SAMPLES
from ax_pac.verdict import (
    DEFAULT_LEVEL,
    PACCertificate,
    check_settings,
    reason_of,
)

SAMPLING = ("leader_challenger", "challenger", "expected_improvement")

# What the surrogate takes for the noise of an observation: its standard error smoothed
# over trials (`smoothed_sems`), or as it was reported.
NOISE = ("smoothed", "raw")
DEFAULT_NOISE = "smoothed"

# Key under which records travel with the experiment, through JSON and SQL alike. A
# stored name: never renamed.
PROPERTY = "ax_pac_certificates"

# Ax 1.3.1 fits its models to the data of trials in these states.
_STATUSES_WITH_DATA = (
    TrialStatus.COMPLETED,
    TrialStatus.EARLY_STOPPED,
    TrialStatus.RUNNING,
)


@dataclasses.dataclass(frozen=True)
class CertificateSettings:
    """What is asked of a certificate, and the seed of the search for a challenger.

    Args:
        delta: Tolerance, positive. Unit: objective units, or with `relative` a share of
            the incumbent's posterior mean.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share.
        seed: Seed of the search; the number of observations is mixed in.
        sampling: Which point a search evaluates next, no part of the certificate:
            `leader_challenger` (whichever of challenger and incumbent says more about
            their difference), `challenger` (the published rule) or
            `expected_improvement` (see `PACExpectedImprovement`).
        noise: `smoothed` or `raw`, see `smoothed_sems`.
        num_samples: Samples behind each standard error, for `smoothed`.
        cells: Edges of the bins by parameter, or nothing; see `frozen_edges`.

    Raises:
        ValueError: When a value is out of its range.
    """

    delta: float
    epsilon: float
    level: str = DEFAULT_LEVEL
    relative: bool = False
    seed: int = 0
    sampling: str = "leader_challenger"
    noise: str = DEFAULT_NOISE
    num_samples: int = DEFAULT_NUM_SAMPLES
    cells: FrozenEdges = ()

    def __post_init__(self) -> None:
        # A mapping, or what JSON makes of tuples; frozen, because settings are a key.
        object.__setattr__(self, "cells", frozen_edges(self.cells))
        check_settings(delta=self.delta, epsilon=self.epsilon, level=self.level)
        if self.sampling not in SAMPLING:
            raise ValueError(
                f"sampling must be one of {SAMPLING}, got {self.sampling!r}"
            )
        if self.noise not in NOISE:
            raise ValueError(f"noise must be one of {NOISE}, got {self.noise!r}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")
        if self.relative and self.sampling == "expected_improvement":
            raise ValueError(
                "sampling='expected_improvement' needs delta in objective units: give "
                "relative=False, or another sampling"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        cells = {name: list(edges) for name, edges in self.cells}
        return {**dataclasses.asdict(self), "cells": cells}

    def to_record(self) -> dict[str, Any]:
        """Return the settings as kept with each certificate: cells by their digest."""
        return {**self.to_dict(), "cells": self._cells_digest}

    @property
    def question(self) -> dict[str, Any]:
        """What decides the certificate; neither seed nor sampling do."""
        names = ("delta", "epsilon", "level", "relative", "noise", "num_samples")
        settings = self.to_dict()
        return {name: settings[name] for name in (*names, "cells")}

    @property
    def _cells_digest(self) -> str:
        """Short digest of the cells; empty without any."""
        if not self.cells:
            return ""
        return hashlib.sha256(json.dumps(self.cells).encode()).hexdigest()[:16]

    def asks_the_same_as(self, fields: dict[str, Any]) -> bool:
        """Whether stored settings ask for the same certificate."""
        # Records from before the options existed: raw noise, no cells.
        old = {"noise": "raw", "num_samples": self.num_samples, "cells": ""}
        stored = {**old, **fields}
        question = {**self.question, "cells": self._cells_digest}
        return all(stored.get(name) == value for name, value in question.items())


def observed_data(experiment: Experiment) -> pd.DataFrame:
    """Return the objective's observations that the surrogate is fitted to.

    Args:
        experiment: An Ax experiment with one objective.

    Returns:
        Columns `trial_index, arm_name, mean, sem`, sorted. A NaN mean is no
        observation, nor is a point outside the search space, of which a warning tells
        (Ax drops both).

    Raises:
        ValueError: For several objectives or outcome constraints, for an infinite mean,
            and for a missing, infinite or negative standard error, naming the trial.
            Ax would ignore the first two and quietly guess the noise for the last.
    """
    metric = objective_metric(experiment)
    data = experiment.lookup_data().df
    columns = ["trial_index", "arm_name", "mean", "sem"]
    if data.empty:
        return pd.DataFrame(columns=columns)
    statuses = {i: trial.status for i, trial in experiment.trials.items()}
    usable = data["trial_index"].map(lambda i: statuses[i] in _STATUSES_WITH_DATA)
    rows = data.loc[usable & (data["metric_name"] == metric), columns]
    rows = rows[~rows["arm_name"].isin(_outside(experiment, set(rows["arm_name"])))]
    rows = rows.sort_values(columns[:2], kind="stable").dropna(subset=["mean"])
    for row in rows.to_dict("records"):
        _check_observation(metric, row["trial_index"], row["mean"], row["sem"])
    return rows.reset_index(drop=True)


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
            f"trials {trials} lie outside the search space and count for nothing: "
            "neither model nor certificate uses them. Attach points within the bounds, "
            "or set up an experiment with wider ones.",
            stacklevel=2,
        )
    return outside


def unevaluated_arms(
    experiment: Experiment, data: pd.DataFrame | None = None
) -> list[Arm]:
    """Return the arms that were tried and are not to be proposed again for now.

    An arm without any observation one of whose trials has ended, be it failed,
    abandoned, or completed without data; and an arm that has one, if its trial was the
    last to end and brought none, until another trial brings one.

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
            "several objectives are not supported: a PAC certificate speaks of one. "
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
    """Refuse one observation that the surrogate could only misread."""
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
            f"{where}: the standard error of the mean is missing. Without it the noise "
            f"would be guessed and the certificate void. {remedy}"
        )
    if math.isinf(sem) or sem < 0:
        raise ValueError(
            f"{where}: the standard error of the mean is {sem}, expected a finite "
            f"number of at least 0. {remedy}"
        )


def data_key(data: pd.DataFrame) -> str:
    """Return a short digest of a set of observations.

    Args:
        data: What `observed_data` returned.
    """
    rows = [
        [int(row["trial_index"]), str(row["arm_name"])]
        + [float(row[name]).hex() for name in ("mean", "sem")]
        for row in data.to_dict("records")
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def certificate_records(experiment: Experiment) -> list[dict[str, Any]]:
    """Return every certificate computed for an experiment, oldest first.

    Each record holds the fields of `PACCertificate`, and `data` (digest of the
    observations), `num_trials`, `settings`, `incumbent_arm`, `seconds` (`fit` and
    `propose`), `incumbent_mean` and `incumbent_sd` (posterior of the objective there,
    in its units) and `before_trial` (index of the next trial),
    `unevaluated` (names of arms that were tried and gave no observation).

    Args:
        experiment: An Ax experiment.
    """
    return list(experiment._properties.get(PROPERTY, []))


def find_record(
    experiment: Experiment, data: pd.DataFrame, settings: CertificateSettings
) -> dict[str, Any] | None:
    """Return the record computed on the same data for the same question, if any.

    Args:
        experiment: An Ax experiment.
        data: What `observed_data` returned for it.
        settings: The question.
    """
    key = data_key(data)
    for record in reversed(certificate_records(experiment)):
        if record["data"] == key and settings.asks_the_same_as(record["settings"]):
            return _with_unevaluated(record, experiment, data)
    return None


def _with_unevaluated(
    record: dict[str, Any], experiment: Experiment, data: pd.DataFrame
) -> dict[str, Any]:
    """Say in a record, in place, which points could not be evaluated."""
    observed = set(data["arm_name"])
    arms = unevaluated_arms(experiment, data)
    names = [arm.name for arm in arms if arm.name not in observed]
    if names != record.get("unevaluated", []):
        record["unevaluated"] = names
        reason = reason_of(PACCertificate.from_dict(record))
        points = "point" if len(names) == 1 else "points"
        note = f"; {len(names)} {points} gave no observation and count as unknown"
        record["reason"] = reason + (note if names else "")
    return record


def keep_record(
    experiment: Experiment,
    certificate: PACCertificate,
    *,
    data: pd.DataFrame,
    settings: CertificateSettings,
    incumbent_arm: str | None,
    seconds: dict[str, float],
    incumbent_mean: float,
    incumbent_sd: float,
) -> dict[str, Any]:
    """Store a certificate for these data with its experiment; return the record."""
    record = {
        **certificate.to_dict(),
        "data": data_key(data),
        "num_trials": int(data["trial_index"].nunique()),
        "settings": settings.to_record(),
        "incumbent_arm": incumbent_arm,
        "seconds": seconds,
        "incumbent_mean": incumbent_mean,
        "incumbent_sd": incumbent_sd,
        "before_trial": max(experiment.trials, default=-1) + 1,
        "unevaluated": [],
    }
    _with_unevaluated(record, experiment, data)
    experiment._properties.setdefault(PROPERTY, []).append(record)
    _save_records(experiment)
    return record


class SavesRecords(Protocol):
    """What keeps an experiment: see `StoredClient`."""

    def save_records(self) -> None:
        """Write the experiment's properties."""


# Who saves an experiment, by its id: Ax's experiments cannot be hashed. Whoever keeps
# one outlives it, so that an id is not taken for another's.
_KEEPERS: weakref.WeakValueDictionary[int, SavesRecords] = weakref.WeakValueDictionary()


def save_records_by(experiment: Experiment, keeper: SavesRecords) -> None:
    """Have `keeper` called whenever a record is added to an experiment."""
    _KEEPERS[id(experiment)] = keeper


def _save_records(experiment: Experiment) -> None:
    """Save the records of an experiment that is kept in a database.

    Ax saves an experiment's properties only with the whole experiment, so that a
    record would be lost with its process.
    """
    keeper = _KEEPERS.get(id(experiment))
    if keeper is not None and getattr(keeper, "_experiment", None) is experiment:
        keeper.save_records()
    elif experiment.db_id is not None:
        from ax.storage.sqa_store.save import update_properties_on_experiment

        update_properties_on_experiment(experiment)
