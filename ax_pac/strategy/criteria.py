"""Transition criteria: the initial trials are complete, the certificate holds."""

from __future__ import annotations

from typing import Any

import pandas as pd
from ax.core.experiment import Experiment
from ax.exceptions.core import SearchSpaceExhausted
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.transition_criterion import TransitionCriterion

from ax_pac.ax_internals import allow_repetitions
from ax_pac.certificate.record import PACCertificate
from ax_pac.experiment.observations import observed_data
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.experiment.space import FEW_POINTS, covers_every_point, number_of_points
from ax_pac.strategy.certification import certificate_of
from ax_pac.strategy.node_certificate import certify_at, remember_search

PAC_NODE = "PAC"


class InitialTrialsCompleted(TransitionCriterion):
    """Met when enough trials have data for the first model.

    Unlike Ax's `MinTrials` it counts observations, not trials, its default depends on
    the dimension of the experiment, and it checks the observations as they arrive, so
    that a missing standard error is reported at once.

    Args:
        transition_to: Name of the node that takes over, or of the node itself, where
            its certificate is checked first.
        num_initial_trials: Number of observations; None for `max(6, d + 2)`, or the
            number of points of the search space where it has fewer.
        continue_trial_generation: As in Ax.
    """

    def __init__(
        self,
        transition_to: str,
        num_initial_trials: int | None = None,
        continue_trial_generation: bool | None = False,
    ) -> None:
        super().__init__(transition_to, continue_trial_generation)
        self.num_initial_trials = num_initial_trials

    def is_met(self, experiment: Experiment, curr_node: GenerationNode) -> bool:
        """Return whether the experiment has the observations.

        In a search space of few points the initial design may repeat them: Ax's would
        end the search once each was tried, however noisy, and some after a minute of
        looking for another one.
        """
        remember_search(experiment, _pac_node(curr_node))
        if number_of_points(experiment) <= FEW_POINTS:
            allow_repetitions(curr_node)
        return has_initial_trials(experiment, self.num_initial_trials)


def default_initial_trials(dim: int) -> int:
    """Return how many observations come before the model in so many dimensions."""
    return max(6, dim + 2)


def has_initial_trials(experiment: Experiment, number: int | None) -> bool:
    """Return whether there are `number` observations, or one of every point.

    Args:
        experiment: An Ax experiment.
        number: None for `max(6, d + 2)`, or the number of points of the search space
            where it has fewer.
    """
    if number is None:
        number = default_initial_trials(len(experiment.search_space.tunable_parameters))
        number = int(min(number, number_of_points(experiment)))
    data = observed_data(experiment)
    return len(data) >= number or has_observed_everything(experiment, data)


def has_observed_everything(experiment: Experiment, data: pd.DataFrame) -> bool:
    """Return whether the search space is finite and every point has an observation."""
    names = dict.fromkeys(data["arm_name"])
    if len(names) < number_of_points(experiment):
        return False
    arms = [experiment.arms_by_name[name] for name in names]
    return covers_every_point(experiment, arms)


class CertificateHolds(TransitionCriterion):
    """Met when the certificate holds for the data at hand; points back to its node.

    Ax ends a strategy at a node whose criteria point back to it, in every loop
    (`Client`, `run_trials`, `AxClient`, `Orchestrator`), and stores the criterion.
    Pending trials are ignored, so the rule also works while trials run.

    Args:
        transition_to: Name of the node that has the criterion.
        continue_trial_generation: As in Ax.
    """

    def is_met(self, experiment: Experiment, curr_node: GenerationNode) -> bool:
        """Return whether the search is finished, computing each certificate once."""
        node = _pac_node(curr_node)
        remember_search(experiment, node)
        data = observed_data(experiment)
        if data.empty:
            return False
        return PACCertificate.from_dict(certify_at(node, experiment, data)).holds


def _pac_node(node: GenerationNode) -> GenerationNode:
    """Return the PAC node of a node's strategy."""
    return node.generation_strategy.nodes_by_name[PAC_NODE]


class ExperimentCertified(TransitionCriterion):
    """Met when `certify_experiment` certifies; points back to its node.

    The same rule as `CertificateHolds` for a node with any generator: the certificate
    has a model of its own. Pending trials are ignored.

    Args:
        transition_to: Name of the node itself.
        settings: What `CertificateSettings.to_dict` returned.
        min_trials: Observations before the first certificate; None: `max(6, d + 2)`, or
            the number of points of the search space where it has fewer.
        only_when_exhausted: Whether to certify only once every point of a finite search
            space was observed, as at the nodes before the last one.
        continue_trial_generation: As in Ax.
    """

    def __init__(
        self,
        transition_to: str,
        settings: dict[str, Any],
        min_trials: int | None = None,
        continue_trial_generation: bool | None = False,
        only_when_exhausted: bool = False,
    ) -> None:
        super().__init__(transition_to, continue_trial_generation)
        self.settings = CertificateSettings.from_dict(settings).to_dict()
        self.min_trials = min_trials
        self.only_when_exhausted = only_when_exhausted

    def is_met(self, experiment: Experiment, curr_node: GenerationNode) -> bool:
        """Return whether the search is finished, computing each certificate once.

        Raises:
            SearchSpaceExhausted: When it is not, every point of the search space was
                tried, and the node repeats none. Ax would raise it too, some generators
                after a minute, without a word about the certificate.
        """
        settings = CertificateSettings.from_dict(self.settings)
        reason = "there are too few observations for one"
        data = observed_data(experiment)
        if self.only_when_exhausted:
            is_due = has_observed_everything(experiment, data)
        else:
            is_due = has_initial_trials(experiment, self.min_trials)
        if is_due and not data.empty:
            certificate = certificate_of(experiment, settings)
            if certificate.holds:
                return True
            reason = certificate.reason
        tried = experiment.arms_by_signature_for_deduplication.values()
        if curr_node.should_deduplicate and covers_every_point(experiment, tried):
            raise SearchSpaceExhausted(
                f"no certificate: all {number_of_points(experiment):.0f} points of the "
                f"search space were tried, and node {curr_node.name!r} repeats none "
                f"({reason}). pac_generation_strategy repeats points as the noise needs"
            )
        return False
