"""A generation strategy that proposes by the PAC criterion and ends by certificate."""

from __future__ import annotations

import math
from typing import Any

from ax.adapter.registry import Cont_X_trans, Generators
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.generator_spec import GeneratorSpec

from ax_pac.adapter.generator import cells_config, generator_kwargs
from ax_pac.adapter.transforms import CanonicalPoints
from ax_pac.cells import CellEdges, Cells, frozen_edges
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.experiment.space import FEW_POINTS
from ax_pac.known import KnownPart
from ax_pac.strategy.criteria import PAC_NODE, CertificateHolds, InitialTrialsCompleted

SOBOL_NODE = "Sobol"


def _sobol_kwargs(settings: CertificateSettings) -> dict[str, Any]:
    """Return the arguments of Ax's Sobol generator."""
    kwargs: dict[str, Any] = {"seed": settings.seed}
    if settings.cells:
        kwargs["transforms"] = [CanonicalPoints, *Cont_X_trans]
        kwargs["transform_configs"] = cells_config(settings)
        # Ax gives up when it finds no new point, and there may be fewer cells than
        # trials.
        number = math.prod(len(edges) - 1 for _, edges in settings.cells)
        kwargs["deduplicate"] = number > FEW_POINTS
    return kwargs


def pac_generation_strategy(
    *,
    delta: float,
    epsilon: float,
    level: str = CertificateSettings.level,
    relative: bool = CertificateSettings.relative,
    num_initial_trials: int | None = None,
    sampling: str = CertificateSettings.sampling,
    noise: str = CertificateSettings.noise,
    num_samples: int = CertificateSettings.num_samples,
    seed: int | None = CertificateSettings.seed,
    cells: Cells | CellEdges | None = None,
    known: KnownPart | None = None,
) -> GenerationStrategy:
    """Build a strategy: Sobol points, then the PAC criterion until a certificate holds.

    The strategy ends by itself: once the certificate holds for the completed data,
    asking for another trial raises Ax's `OptimizationComplete` (a `Client` loop), and
    `client.run_trials` or an `Orchestrator` return. Every certificate on the way is
    kept with the experiment, see `certificate_history`.

    Args:
        delta: Tolerance, positive. Every option is that of `CertificateSettings`.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, one of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        num_initial_trials: Space-filling trials before the model takes over; None for
            `max(6, d + 2)`, or the number of points of the search space where it has
            fewer. Trials that the experiment already has are counted.
        sampling: Which point is evaluated next.
        noise: `smoothed` or `raw` standard errors.
        num_samples: Number of samples behind each standard error.
        seed: Seed of the search; None draws one.
        cells: Cells of rounded coordinates, or their edges by parameter.
        known: What is known of the objective before any evaluation; None for nothing.

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
    settings = CertificateSettings(
        delta=delta,
        epsilon=epsilon,
        level=level,
        relative=relative,
        seed=seed,
        sampling=sampling,
        noise=noise,
        num_samples=num_samples,
        cells=frozen_edges(cells),
        known=known,
    )
    if num_initial_trials is not None and num_initial_trials < 2:
        raise ValueError(
            "num_initial_trials must be at least 2, fewer points are not enough for a "
            f"model; got {num_initial_trials}"
        )
    sobol = GenerationNode(
        name=SOBOL_NODE,
        generator_specs=[
            GeneratorSpec(Generators.SOBOL, generator_kwargs=_sobol_kwargs(settings))
        ],
        # Ax proposes from a node before it checks whether that node has ended: without
        # this criterion the first certificate would cost an evaluation.
        transition_criteria=[
            InitialTrialsCompleted(SOBOL_NODE, num_initial_trials),
            CertificateHolds(SOBOL_NODE),
            InitialTrialsCompleted(PAC_NODE, num_initial_trials),
        ],
        # Ax would replace a repetition by a point that is not the centre of a cell.
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
