"""Certificates of experiments, and the Service API's global stopping strategy."""

from __future__ import annotations

from typing import Any

from ax.api.utils.generation_strategy_dispatch import choose_generation_strategy
from ax.api.utils.structs import GenerationStrategyDispatchStruct
from ax.core.experiment import Experiment
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.global_stopping.strategies.base import BaseGlobalStoppingStrategy

from ax_pac.ax_internals import set_transition_criteria
from ax_pac.cells import CellEdges, Cells, frozen_edges
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.known import KnownPart
from ax_pac.strategy.certification import certificate_of
from ax_pac.strategy.criteria import ExperimentCertified, has_initial_trials
from ax_pac.strategy.node_certificate import is_space_filling, searching_node


def certified_generation_strategy(
    strategy: GenerationStrategy | None = None,
    *,
    delta: float,
    epsilon: float,
    level: str = CertificateSettings.level,
    relative: bool = CertificateSettings.relative,
    min_trials: int | None = None,
    seed: int | None = CertificateSettings.seed,
    noise: str = CertificateSettings.noise,
    num_samples: int = CertificateSettings.num_samples,
    cells: Cells | CellEdges | None = None,
    known: KnownPart | None = None,
) -> GenerationStrategy:
    """Give a strategy a certificate as its stopping rule, its proposals unchanged.

    For every loop of Ax, `Client` included, which has no global stopping: once the
    certificate holds, asking for another trial raises `OptimizationComplete`. A model
    for the certificate is fitted besides the strategy's own, once per set of data.

    Args:
        strategy: A strategy whose last node has no transition criteria, so that it
            would never end; it is copied. None: Ax's default, Sobol points and then its
            default model and acquisition function.
        delta: Tolerance, positive. Every option is that of `CertificateSettings`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, one of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        min_trials: Observations before the first certificate; None for `max(6, d + 2)`.
        seed: Seed of the certificate, and of the Sobol points of Ax's default strategy;
            None draws one. Ax's other proposals depend on torch's random state:
            `Client(random_seed=...)`.
        noise: `smoothed` or `raw` standard errors.
        num_samples: Number of samples behind each standard error.
        cells: Cells of rounded coordinates, or their edges by parameter.
        known: What is known of the objective before any evaluation; None for nothing.

    Returns:
        A strategy for `client.set_generation_strategy`, `AxClient` or `Orchestrator`.

    Raises:
        ValueError: When an argument is out of its range or the strategy ends already.
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
    if strategy is None:
        strategy = choose_generation_strategy(
            GenerationStrategyDispatchStruct(initialization_random_seed=seed)
        )
    nodes = list(strategy.clone_reset().nodes_by_name.values())
    last = nodes[-1]
    if last.transition_criteria:
        raise ValueError(
            f"the last node {last.name!r} of strategy {strategy.name!r} has transition "
            f"criteria, {list(last.transition_criteria)}; expected none, because the "
            "certificate ends the strategy. Remove them."
        )
    criterion = ExperimentCertified(last.name, settings.to_dict(), min_trials)
    set_transition_criteria(last, [criterion])
    for node in nodes[:-1]:
        # A small search space is exhausted before the last node is reached.
        criterion = ExperimentCertified(
            node.name, settings.to_dict(), min_trials, only_when_exhausted=True
        )
        set_transition_criteria(node, [criterion, *node.transition_criteria])
    return GenerationStrategy(name=f"{strategy.name}+certificate", nodes=nodes)


class PACStoppingStrategy(BaseGlobalStoppingStrategy):
    """Stop an `AxClient` or an `Orchestrator` when the certificate holds.

    `pac_generation_strategy` and `certified_generation_strategy` end by themselves;
    this is for loops with another strategy. Next to a PAC strategy with the same
    settings it shares fit, certificate and record. It holds settings only; the
    certificate comes from `certify_experiment`. Ax does not store it: give it again
    when a search is loaded.

    Args:
        delta: Tolerance, positive. Every option is that of `CertificateSettings`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, one of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        min_trials: Observations before the first certificate; None for `max(6, d + 2)`.
        inactive_when_pending_trials: Ax's own default is True, under which a loop that
            always has a trial running never stops. A certificate is about completed
            data only, so it is False here.
        seed: Seed of the search; None draws one.
        noise: `smoothed` or `raw` standard errors.
        num_samples: Number of samples behind each standard error.
        cells: Cells of rounded coordinates, or their edges by parameter.
        known: What is known of the objective before any evaluation; None for nothing.

    Raises:
        ValueError: When an argument is out of its range.
    """

    def __init__(
        self,
        delta: float,
        epsilon: float,
        level: str = CertificateSettings.level,
        relative: bool = CertificateSettings.relative,
        min_trials: int | None = None,
        inactive_when_pending_trials: bool = False,
        seed: int | None = CertificateSettings.seed,
        noise: str = CertificateSettings.noise,
        num_samples: int = CertificateSettings.num_samples,
        cells: Cells | CellEdges | None = None,
        known: KnownPart | None = None,
    ) -> None:
        # Ax counts completed trials; `has_initial_trials` counts observations as well.
        super().__init__(
            min_trials=min_trials or 0,
            inactive_when_pending_trials=inactive_when_pending_trials,
        )
        self._min_observations = min_trials
        self.settings = CertificateSettings(
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

    def _should_stop_optimization(
        self, experiment: Experiment, **kwargs: Any
    ) -> tuple[bool, str]:
        """Return whether the certificate holds, and its reason."""
        search = searching_node(experiment, self.settings)
        if search is not None and is_space_filling(search, experiment):
            return False, "the initial design is not complete"
        if not has_initial_trials(experiment, self._min_observations):
            return False, "there are too few observations for a certificate"
        certificate = certificate_of(experiment, self.settings)
        return certificate.holds, certificate.reason

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain JSON values."""
        return {
            **self.settings.question,
            "seed": self.settings.seed,
            "min_trials": self._min_observations,
            "inactive_when_pending_trials": self.inactive_when_pending_trials,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.to_dict().items())
        return f"{type(self).__name__}({arguments})"
