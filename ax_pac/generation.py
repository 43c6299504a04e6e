"""A generation strategy that proposes by the PAC criterion and ends by certificate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ax.adapter.registry import Cont_X_trans, Generators, MBM_X_trans
from ax.core.experiment import Experiment
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.generator_spec import GeneratorSpec
from ax.generation_strategy.transition_criterion import TransitionCriterion
from ax.generators.torch.botorch_modular.kernels import ScaleMaternKernel
from ax.generators.torch.botorch_modular.surrogate import ModelConfig, SurrogateSpec
from ax.utils.stats.model_fit_stats import RANK_CORRELATION
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Standardize

from ax_pac.acquisition import PACAcquisition
from ax_pac.ax_acquisition import CertifyingAcquisition
from ax_pac.ax_cells import CanonicalPoints
from ax_pac.ax_certificate import certify_at, remember_search
from ax_pac.ax_noise import SmoothedNoise
from ax_pac.ax_unevaluated import UnevaluatedPoints
from ax_pac.cells import CellEdges, frozen_edges
from ax_pac.expected_improvement import LogPACExpectedImprovement
from ax_pac.hyperparameters import (
    SMALLEST_SPREAD,
    lengthscale_constraint,
    outputscale_constraint,
)
from ax_pac.noise import DEFAULT_NUM_SAMPLES
from ax_pac.observations import observed_data
from ax_pac.records import (
    DEFAULT_NOISE,
    CertificateSettings,
)
from ax_pac.verdict import DEFAULT_LEVEL, PACCertificate

PAC_NODE = "PAC"
SOBOL_NODE = "Sobol"

# Up to so many cells the initial design may repeat one.
_FEW_CELLS = 100


class BoundedMaternKernel(ScaleMaternKernel):
    """Matern-5/2 with an output scale, bounded and started as in `fit_model`.

    A class of its own because Ax stores a constraint by its bounds alone: a start value
    passed as an option would be gone after a reload, and with it the trajectory.

    Args:
        ard_num_dims: Number of length scales.
        **kwargs: As in `ScaleMaternKernel`, without constraints.
    """

    def __init__(self, ard_num_dims: int | None = None, **kwargs: Any) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            lengthscale_constraint=lengthscale_constraint(),
            outputscale_constraint=outputscale_constraint(),
            **kwargs,
        )


def surrogate_spec() -> SurrogateSpec:
    """Return the surrogate of the source, with its posterior in raw objective units.

    Matern-5/2 with one length scale a parameter, bounded maximum likelihood, noise
    fixed at the squared standard errors. Outcomes are standardised inside the model,
    which un-standardises its posterior; Ax's own outcome transforms stay off, because
    they would turn delta into a multiple of the standard deviation of the data.
    """
    config = ModelConfig(
        botorch_model_class=SingleTaskGP,
        covar_module_class=BoundedMaternKernel,
        outcome_transform_classes=[Standardize],
        outcome_transform_options={"Standardize": {"min_stdv": SMALLEST_SPREAD}},
        name="matern52_bounded_ml",
    )
    return SurrogateSpec(model_configs=[config], eval_criterion=RANK_CORRELATION)


def generator_kwargs(settings: CertificateSettings) -> dict[str, Any]:
    """Return the arguments of Ax's modular BoTorch generator for a PAC search.

    Checked on Ax 1.3.1: `transforms` are the X half of its default list, and ours.
    """
    acquisition: dict[str, Any] = {"botorch_acqf_class": PACAcquisition}
    if settings.sampling == "expected_improvement":
        # `CertifyingAcquisition` hands delta to a PACAcquisition only.
        acquisition = {
            "botorch_acqf_class": LogPACExpectedImprovement,
            "botorch_acqf_options": {"delta": settings.delta},
        }
    return {
        **acquisition,
        "surrogate_spec": surrogate_spec(),
        "acquisition_class": CertifyingAcquisition,
        "acquisition_options": settings.to_dict(),
        "transforms": [
            *([CanonicalPoints] if settings.cells else []),
            *MBM_X_trans,
            *([SmoothedNoise] if settings.noise == "smoothed" else []),
            UnevaluatedPoints,
        ],
        "transform_configs": {
            SmoothedNoise.__name__: {"num_samples": settings.num_samples},
            **_cells_config(settings),
        },
        "fit_tracking_metrics": False,
    }


def _cells_config(settings: CertificateSettings) -> dict[str, Any]:
    """Return the configuration of `CanonicalPoints`, if it is used."""
    if not settings.cells:
        return {}
    return {CanonicalPoints.__name__: {"cells": settings.to_dict()["cells"]}}


def _sobol_kwargs(settings: CertificateSettings) -> dict[str, Any]:
    """Return the arguments of Ax's Sobol generator."""
    kwargs: dict[str, Any] = {"seed": settings.seed}
    if settings.cells:
        kwargs["transforms"] = [CanonicalPoints, *Cont_X_trans]
        kwargs["transform_configs"] = _cells_config(settings)
        # Ax gives up when it finds no new point, and there may be fewer than trials.
        number = math.prod(len(edges) - 1 for _, edges in settings.cells)
        kwargs["deduplicate"] = number > _FEW_CELLS
    return kwargs


def pac_generation_strategy(
    *,
    delta: float,
    epsilon: float,
    level: str = DEFAULT_LEVEL,
    relative: bool = False,
    num_initial_trials: int | None = None,
    sampling: str = "leader_challenger",
    noise: str = DEFAULT_NOISE,
    num_samples: int = DEFAULT_NUM_SAMPLES,
    seed: int | None = None,
    cells: CellEdges | None = None,
) -> GenerationStrategy:
    """Build a strategy: Sobol points, then the PAC criterion until a certificate holds.

    The strategy ends itself: once the certificate holds for the completed data, asking
    for another trial raises Ax's `OptimizationComplete` (a `Client` loop), and
    `client.run_trials` or an `Orchestrator` return. Every certificate on the way is
    kept with the experiment, see `certificate_history`.

    Args:
        delta: Tolerance, positive. Unit: objective units; with `relative=True` a share
            of the incumbent's posterior mean, recomputed each time.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share.
        num_initial_trials: Space-filling trials before the model takes over; default
            `max(6, d + 2)`. Trials that the experiment already has are counted.
        sampling: `leader_challenger` evaluates whichever of challenger and incumbent
            says more about their difference, so points are repeated; `challenger` is
            the published rule, which under noise often cannot finish;
            `expected_improvement` is `PACExpectedImprovement`, not for a relative
            delta, maximised by Ax's own optimiser.
        noise: `smoothed` takes the standard errors smoothed over trials for the noise
            (`smoothed_sems`), `raw` as they were reported. The experiment keeps
            what was reported either way.
        num_samples: Samples behind each standard error, at least 2: their number says
            how noisy the standard errors are, and so how far smoothing may go.
        seed: Seed of the search, stored with it; None draws one. With the data it
            determines every certificate and every proposal, except those of
            `expected_improvement`, which depend on torch's random state as well.
        cells: Where coordinates are rounded before use: by parameter, the edges of the
            bins whose points are the same thing, in the parameter's units and strictly
            increasing from its lower to its upper bound. Proposals are then centres of
            cells, the same thing is always the same arm, and the incumbent's cell
            holds no challenger. For float parameters on a linear scale; others are
            left out.

    Returns:
        A strategy for `client.set_generation_strategy`. It can be saved and loaded with
        the client, by JSON and SQL; import `ax_pac` before loading.

    Raises:
        ValueError: When an argument is out of its range; while running, for several
            objectives, outcome constraints, or observations without a usable standard
            error.

    Source: Ma et al. 2019, section 3.2. Deviations: the space-filling start, the
    bounds of the likelihood fit and the default sampling are not in the source.

    Example:
        >>> strategy = pac_generation_strategy(delta=0.05, epsilon=0.005, seed=0)
        >>> strategy.name
        'PAC'
    """
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    settings = CertificateSettings(
        delta,
        epsilon,
        level,
        relative,
        seed,
        sampling,
        noise,
        num_samples,
        frozen_edges(cells),
    )
    if num_initial_trials is not None and num_initial_trials < 2:
        raise ValueError(
            "num_initial_trials must be at least 2, a model of fewer points says "
            f"nothing; got {num_initial_trials}"
        )
    sobol = GenerationNode(
        name=SOBOL_NODE,
        generator_specs=[
            GeneratorSpec(Generators.SOBOL, generator_kwargs=_sobol_kwargs(settings))
        ],
        # Ax proposes from a node before it asks whether that node is at its end: the
        # first certificate is asked for here, or it would cost an evaluation.
        transition_criteria=[
            InitialTrialsCompleted(SOBOL_NODE, num_initial_trials),
            CertificateHolds(SOBOL_NODE),
            InitialTrialsCompleted(PAC_NODE, num_initial_trials),
        ],
        # In place of a repetition Ax would put a point that is nobody's centre.
        should_deduplicate=not settings.cells,
    )
    pac = GenerationNode(
        name=PAC_NODE,
        generator_specs=[
            GeneratorSpec(
                Generators.BOTORCH_MODULAR, generator_kwargs=generator_kwargs(settings)
            )
        ],
        transition_criteria=[CertificateHolds(PAC_NODE)],
        should_deduplicate=False,
    )
    return GenerationStrategy(name="PAC", nodes=[sobol, pac])


class InitialTrialsCompleted(TransitionCriterion):
    """Met when enough trials have data for the first model.

    Unlike Ax's `MinTrials` it counts observations, not trials, its default depends on
    the dimension of the experiment it meets, and it checks the observations as they
    come, so that a missing standard error is reported at once.

    Args:
        transition_to: Name of the node that takes over, or of the node itself, for the
            certificate to be asked there first.
        num_initial_trials: Number of observations; None for `max(6, d + 2)`.
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
        """Return whether the experiment has the observations."""
        remember_search(experiment, _pac_node(curr_node))
        return has_initial_trials(experiment, self.num_initial_trials)


def has_initial_trials(experiment: Experiment, number: int | None) -> bool:
    """Return whether there are so many observations; None for `max(6, d + 2)`."""
    if number is None:
        number = max(6, len(experiment.search_space.tunable_parameters) + 2)
    return len(observed_data(experiment)) >= number


class CertificateHolds(TransitionCriterion):
    """Met when the certificate holds for the data at hand; points back to its node.

    Ax takes a node whose criteria point back to itself for the end of the strategy, on
    every route (`Client`, `run_trials`, `AxClient`, `Orchestrator`), and stores it.
    Pending trials are left aside, so the rule also works while trials run.

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
