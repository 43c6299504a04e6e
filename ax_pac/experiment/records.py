"""Certificates stored with an experiment, by the data they were computed on."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import pandas as pd
from ax.core.experiment import Experiment

from ax_pac.ax_internals import maybe_experiment_of, properties
from ax_pac.certificate.record import PACCertificate, reason_of
from ax_pac.experiment.observations import unevaluated_arms
from ax_pac.experiment.session import SavesRecords, session_of
from ax_pac.experiment.settings import CertificateSettings

# Key under which records travel with the experiment, through JSON and SQL alike. A
# stored name: never renamed.
PROPERTY = "ax_pac_certificates"


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
    in its units), `incumbent_known` (the part of the mean that is known before any
    evaluation; None where nothing is) and `before_trial` (index of the next trial),
    `unevaluated` (names of arms that were tried and gave no observation).

    Args:
        experiment: An Ax experiment.
    """
    return list(properties(experiment).get(PROPERTY, []))


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
    """Update the points of a record that could not be evaluated, in place."""
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
    incumbent_known: float | None = None,
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
        "incumbent_known": incumbent_known,
        "before_trial": max(experiment.trials, default=-1) + 1,
        "unevaluated": [],
    }
    _with_unevaluated(record, experiment, data)
    properties(experiment).setdefault(PROPERTY, []).append(record)
    _save_records(experiment)
    return record


def save_records_by(experiment: Experiment, saver: SavesRecords) -> None:
    """Have `saver` called whenever a record is added to an experiment."""
    session_of(experiment).saver = weakref.ref(saver)


def _save_records(experiment: Experiment) -> None:
    """Save the records of an experiment that is kept in a database.

    Ax saves an experiment's properties only with the whole experiment, so that a
    record would be lost with its process.
    """
    reference = session_of(experiment).saver
    saver = None if reference is None else reference()
    if saver is not None and maybe_experiment_of(saver) is experiment:
        saver.save_records()
    elif experiment.db_id is not None:
        from ax.storage.sqa_store.save import update_properties_on_experiment

        update_properties_on_experiment(experiment)
