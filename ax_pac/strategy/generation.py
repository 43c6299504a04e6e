"""A generation strategy that proposes by the PAC criterion and ends by certificate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ax.adapter.registry import Cont_X_trans, Generators
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.generator_spec import GeneratorSpec

from ax_pac.adapter.generator import (
    _cells_config,
    generator_kwargs,
)
from ax_pac.adapter.transforms import CanonicalPoints
from ax_pac.cells import CellEdges, frozen_edges
from ax_pac.certificate.record import DEFAULT_LEVEL
from ax_pac.experiment.settings import DEFAULT_NOISE, CertificateSettings
from ax_pac.strategy.criteria import (
    PAC_NODE,
    CertificateHolds,
    InitialTrialsCompleted,
)
from ax_pac.surrogate.noise import DEFAULT_NUM_SAMPLES

SOBOL_NODE = "Sobol"


# Up to so many cells the initial design may repeat one.
_FEW_CELLS = 100


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
