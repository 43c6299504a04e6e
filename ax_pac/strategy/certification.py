"""Certificates of Ax experiments."""

from __future__ import annotations

import time
from typing import Any

from ax.adapter.registry import Generators
from ax.core.arm import Arm
from ax.core.experiment import Experiment

from ax_pac.adapter.generator import generator_kwargs
from ax_pac.ax_internals import experiment_of
from ax_pac.cells import CellEdges, Cells, frozen_edges
from ax_pac.certificate.record import PACCertificate
from ax_pac.experiment.observations import observed_data
from ax_pac.experiment.records import certificate_records, find_record
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.known import KnownPart
from ax_pac.strategy.node_certificate import (
    certify_adapter,
    certify_at,
    searching_node,
)


def certify_experiment(
    experiment: Experiment,
    *,
    delta: float,
    epsilon: float,
    level: str = CertificateSettings.level,
    relative: bool = CertificateSettings.relative,
    seed: int | None = CertificateSettings.seed,
    noise: str = CertificateSettings.noise,
    num_samples: int = CertificateSettings.num_samples,
    cells: Cells | CellEdges | None = None,
    known: KnownPart | None = None,
) -> PACCertificate:
    """Certify an Ax experiment, whatever chose its points.

    Fits the surrogate of `pac_generation_strategy` to the completed data and keeps the
    certificate with the experiment. Called again with the same options and data, it
    returns the stored one.

    Args:
        experiment: An experiment with one objective and observations with standard
            errors.
        delta: Tolerance, positive. Every option is that of `CertificateSettings`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, one of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        seed: Seed of the search; None draws one.
        noise: `smoothed` or `raw` standard errors.
        num_samples: Number of samples behind each standard error.
        cells: Cells of rounded coordinates, or their edges by parameter.
        known: What is known of the objective before any evaluation; None for nothing.

    Returns:
        The certificate, whether it holds or not.

    Raises:
        ValueError: When there are no observations, when one has no usable standard
            error, or when an argument is out of its range.
    """
    settings = CertificateSettings(
        delta=delta,
        epsilon=epsilon,
        level=level,
        relative=relative,
        seed=seed,
        noise=noise,
        num_samples=num_samples,
        cells=frozen_edges(cells),
        known=known,
    )
    return certificate_of(experiment, settings)


def certificate_of(
    experiment: Experiment, settings: CertificateSettings
) -> PACCertificate:
    """Return the certificate of an experiment's data, kept or computed."""
    data = observed_data(experiment)
    if data.empty:
        raise ValueError(
            "the experiment has no data: complete some trials before certifying it"
        )
    record = find_record(experiment, data, settings)
    node = searching_node(experiment, settings)
    if record is None and node is not None:
        record = certify_at(node, experiment, data)
    elif record is None:
        start = time.perf_counter()
        adapter = Generators.BOTORCH_MODULAR(
            experiment=experiment,
            data=experiment.lookup_data(),
            **generator_kwargs(settings),
        )
        record = certify_adapter(
            experiment, data, adapter, settings, fit_seconds=time.perf_counter() - start
        )
    return PACCertificate.from_dict(record)


def latest_certificate(client: Any) -> PACCertificate | None:
    """Return the certificate computed last, or None before the first.

    Args:
        client: An Ax `Client`, `AxClient` or `Experiment`.
    """
    records = certificate_records(experiment_of(client))
    return PACCertificate.from_dict(records[-1]) if records else None


def incumbent_arm(client: Any) -> Arm | None:
    """Return the incumbent of the latest certificate, or None before the first.

    Not `client.get_best_parameterization()`, which may fall back on the best
    observation.

    Args:
        client: An Ax `Client`, `AxClient` or `Experiment`.
    """
    experiment = experiment_of(client)
    records = certificate_records(experiment)
    name = records[-1]["incumbent_arm"] if records else None
    return None if name is None else experiment.arms_by_name[name]
