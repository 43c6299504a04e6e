"""Certificates of experiments, and the Service API's global stopping strategy."""

from __future__ import annotations

import time
from typing import Any

from ax.adapter.registry import Generators
from ax.core.arm import Arm
from ax.core.experiment import Experiment
from ax.global_stopping.strategies.base import BaseGlobalStoppingStrategy

from ax_pac.cells import CellEdges, frozen_edges
from ax_pac.generation import certify_adapter, generator_kwargs
from ax_pac.noise import DEFAULT_NUM_SAMPLES
from ax_pac.records import (
    DEFAULT_NOISE,
    CertificateSettings,
    certificate_records,
    data_key,
    find_record,
    observed_data,
)
from ax_pac.verdict import DEFAULT_LEVEL, PACCertificate


def certify_experiment(
    experiment: Experiment,
    *,
    delta: float,
    epsilon: float,
    level: str = DEFAULT_LEVEL,
    relative: bool = False,
    seed: int = 0,
    noise: str = DEFAULT_NOISE,
    num_samples: int = DEFAULT_NUM_SAMPLES,
    cells: CellEdges | None = None,
) -> PACCertificate:
    """Certify an Ax experiment, whatever chose its points.

    Fits the surrogate of `pac_generation_strategy` to the completed data and keeps the
    certificate with the experiment. Asked the same question about the same data again,
    it returns the kept one.

    Args:
        experiment: An experiment with one objective and observations with standard
            errors.
        delta: Tolerance, positive. Unit: objective units, or a share, see `relative`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        seed: Seed of the search for a challenger.
        noise: `smoothed` or `raw`, see `pac_generation_strategy`.
        num_samples: Samples behind each standard error, for `smoothed`.
        cells: Edges of the bins by parameter, see `pac_generation_strategy`.

    Returns:
        The certificate, whether it holds or not.

    Raises:
        ValueError: When there are no observations, when one has no usable standard
            error, or when an argument is out of its range.
    """
    settings = CertificateSettings(
        delta,
        epsilon,
        level,
        relative,
        seed,
        noise=noise,
        num_samples=num_samples,
        cells=frozen_edges(cells),
    )
    data = observed_data(experiment)
    if data.empty:
        raise ValueError(
            "the experiment has no data: complete some trials before certifying it"
        )
    record = find_record(experiment, data_key(data), settings)
    if record is None:
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
    """Return the arm that the latest certificate speaks of, or None before the first.

    Not `client.get_best_parameterization()`, which may fall back on the best
    observation.

    Args:
        client: An Ax `Client`, `AxClient` or `Experiment`.
    """
    experiment = experiment_of(client)
    records = certificate_records(experiment)
    name = records[-1]["incumbent_arm"] if records else None
    return None if name is None else experiment.arms_by_name[name]


def experiment_of(client: Any) -> Experiment:
    """Return the experiment behind an Ax `Client`, `AxClient` or `Experiment`."""
    if isinstance(client, Experiment):
        return client
    # `AxClient` has a public property, `Client` of Ax 1.3.1 a private one.
    return client.experiment if hasattr(client, "experiment") else client._experiment


class PACStoppingStrategy(BaseGlobalStoppingStrategy):
    """Stop an `AxClient` or an `Orchestrator` when the certificate holds.

    For loops whose strategy is not `pac_generation_strategy`, which needs no stopping
    strategy. It holds settings only; the certificate comes from `certify_experiment`.

    Args:
        delta: Tolerance, positive. Unit: objective units, or a share, see `relative`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        min_trials: Completed trials before the first certificate is computed.
        inactive_when_pending_trials: Ax's own default is True, under which a loop that
            always has a trial running never stops. A certificate speaks of completed
            data only, so False is right here.
        seed: Seed of the search for a challenger.
        noise: `smoothed` or `raw`, see `pac_generation_strategy`.
        num_samples: Samples behind each standard error, for `smoothed`.
        cells: Edges of the bins by parameter, see `pac_generation_strategy`.

    Raises:
        ValueError: When an argument is out of its range.
    """

    def __init__(
        self,
        delta: float,
        epsilon: float,
        level: str = DEFAULT_LEVEL,
        relative: bool = False,
        min_trials: int = 6,
        inactive_when_pending_trials: bool = False,
        seed: int = 0,
        noise: str = DEFAULT_NOISE,
        num_samples: int = DEFAULT_NUM_SAMPLES,
        cells: CellEdges | None = None,
    ) -> None:
        super().__init__(
            min_trials=min_trials,
            inactive_when_pending_trials=inactive_when_pending_trials,
        )
        self.settings = CertificateSettings(
            delta,
            epsilon,
            level,
            relative,
            seed,
            noise=noise,
            num_samples=num_samples,
            cells=frozen_edges(cells),
        )

    def _should_stop_optimization(
        self, experiment: Experiment, **kwargs: Any
    ) -> tuple[bool, str]:
        """Return whether the certificate holds, and its reason."""
        certificate = certify_experiment(
            experiment, **self.settings.question, seed=self.settings.seed
        )
        return certificate.holds, certificate.reason

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain JSON values."""
        return {
            **self.settings.question,
            "seed": self.settings.seed,
            "min_trials": self.min_trials,
            "inactive_when_pending_trials": self.inactive_when_pending_trials,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.to_dict().items())
        return f"{type(self).__name__}({arguments})"
