"""Certificates of experiments, and the Service API's global stopping strategy."""

from __future__ import annotations

import time
from typing import Any

from ax.adapter.registry import Generators
from ax.api.utils.generation_strategy_dispatch import choose_generation_strategy
from ax.api.utils.structs import GenerationStrategyDispatchStruct
from ax.core.arm import Arm
from ax.core.experiment import Experiment
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.transition_criterion import TransitionCriterion
from ax.global_stopping.strategies.base import BaseGlobalStoppingStrategy

from ax_pac.ax_certificate import (
    certify_adapter,
    certify_at,
    is_space_filling,
    searching_node,
)
from ax_pac.cells import CellEdges, frozen_edges
from ax_pac.generation import generator_kwargs, has_initial_trials
from ax_pac.noise import DEFAULT_NUM_SAMPLES
from ax_pac.observations import observed_data
from ax_pac.records import (
    DEFAULT_NOISE,
    CertificateSettings,
    certificate_records,
    find_record,
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
    return _certificate(experiment, settings)


def _certificate(
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


class ExperimentCertified(TransitionCriterion):
    """Met when `certify_experiment` certifies; points back to its node.

    The same rule as `CertificateHolds` for a node with any generator: the certificate
    has a model of its own. Pending trials are left aside.

    Args:
        transition_to: Name of the node itself.
        settings: What `CertificateSettings.to_dict` returned.
        min_trials: Observations before the first certificate; None: `max(6, d + 2)`.
        continue_trial_generation: As in Ax.
    """

    def __init__(
        self,
        transition_to: str,
        settings: dict[str, Any],
        min_trials: int | None = None,
        continue_trial_generation: bool | None = False,
    ) -> None:
        super().__init__(transition_to, continue_trial_generation)
        self.settings = CertificateSettings(**settings).to_dict()
        self.min_trials = min_trials

    def is_met(self, experiment: Experiment, curr_node: GenerationNode) -> bool:
        """Return whether the search is finished, computing each certificate once."""
        if not has_initial_trials(experiment, self.min_trials):
            return False
        settings = CertificateSettings(**self.settings)
        return _certificate(experiment, settings).holds


def certified_generation_strategy(
    strategy: GenerationStrategy | None = None,
    *,
    delta: float,
    epsilon: float,
    level: str = DEFAULT_LEVEL,
    relative: bool = False,
    min_trials: int | None = None,
    seed: int = 0,
    noise: str = DEFAULT_NOISE,
    num_samples: int = DEFAULT_NUM_SAMPLES,
    cells: CellEdges | None = None,
) -> GenerationStrategy:
    """Give a strategy a certificate as its stopping rule, its proposals unchanged.

    For every loop of Ax, `Client` included, which has no global stopping: once the
    certificate holds, asking for another trial raises `OptimizationComplete`. A model
    for the certificate is fitted beside the strategy's own, once for each set of data.

    Args:
        strategy: A strategy whose last node has no transition criteria, so that it
            would never end; it is copied. None: Ax's default, Sobol points and then its
            default model and acquisition function.
        delta: Tolerance, positive. Unit: objective units, or a share, see `relative`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        min_trials: Observations before the first certificate; default `max(6, d + 2)`.
        seed: Seed of the certificate, and of the Sobol points of Ax's default strategy.
            Ax's other proposals depend on torch's random state: `Client(random_seed=)`.
        noise: `smoothed` or `raw`, see `pac_generation_strategy`.
        num_samples: Samples behind each standard error, for `smoothed`.
        cells: Edges of the bins by parameter, see `pac_generation_strategy`.

    Returns:
        A strategy for `client.set_generation_strategy`, `AxClient` or `Orchestrator`.

    Raises:
        ValueError: When an argument is out of its range or the strategy ends already.
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
    if strategy is None:
        strategy = choose_generation_strategy(
            GenerationStrategyDispatchStruct(initialization_random_seed=seed)
        )
    nodes = strategy.clone_reset()._nodes
    last = nodes[-1]
    if last.transition_criteria:
        raise ValueError(
            f"the last node {last.name!r} of strategy {strategy.name!r} has transition "
            f"criteria, {list(last.transition_criteria)}; expected a node that goes on "
            "for ever, for the certificate to end. Remove them."
        )
    last._transition_criteria = [
        ExperimentCertified(last.name, settings.to_dict(), min_trials)
    ]
    return GenerationStrategy(name=f"{strategy.name}+certificate", nodes=nodes)


class PACStoppingStrategy(BaseGlobalStoppingStrategy):
    """Stop an `AxClient` or an `Orchestrator` when the certificate holds.

    `pac_generation_strategy` and `certified_generation_strategy` end by themselves;
    this is for loops with another strategy. Beside a PAC strategy that asks the same
    question it shares fit, certificate and record. It holds settings only; the
    certificate comes from `certify_experiment`. Ax does not store it: give it again
    when a search is loaded.

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
        search = searching_node(experiment, self.settings)
        if search is not None and is_space_filling(search, experiment):
            return False, "the initial design is not complete"
        certificate = _certificate(experiment, self.settings)
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
