"""Certificates kept with an experiment, keyed by the data they were computed on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import weakref
from typing import Any, Protocol

import pandas as pd
from ax.core.experiment import Experiment

from ax_pac.cells import FrozenEdges, frozen_edges
from ax_pac.noise import DEFAULT_NUM_SAMPLES
from ax_pac.observations import unevaluated_arms
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


# What decides a certificate, with the cells.
_QUESTION = ("delta", "epsilon", "level", "relative", "noise", "num_samples")


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
        # Not `dataclasses.asdict`, which copies thousands of edges one by one.
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "cells": {name: list(edges) for name, edges in self.cells}}

    def to_record(self) -> dict[str, Any]:
        """Return the settings as kept with each certificate: cells by their digest."""
        return {**self.to_dict(), "cells": _digest(self.cells)}

    @property
    def question(self) -> dict[str, Any]:
        """What decides the certificate; neither seed nor sampling do."""
        settings = self.to_dict()
        return {name: settings[name] for name in (*_QUESTION, "cells")}

    def asks_the_same_as(self, fields: dict[str, Any]) -> bool:
        """Whether stored settings ask for the same certificate."""
        # Records from before the options existed: raw noise, no cells.
        old = {"noise": "raw", "num_samples": self.num_samples, "cells": ""}
        stored = {**old, **fields}
        question = {name: getattr(self, name) for name in _QUESTION}
        question["cells"] = _digest(self.cells)
        return all(stored.get(name) == value for name, value in question.items())


@functools.lru_cache
def _digest(cells: FrozenEdges) -> str:
    """Short digest of cells; empty without any. Searches ask for it all the time."""
    if not cells:
        return ""
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


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
