"""Probability of a failure where a search stopped, with more work than a check."""

from __future__ import annotations

import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from ax_pac import PACAcquisition
from ax_pac.acquisition.optimize import find_challenger
from ax_pac.certificate.joint import filled_in
from ax_pac.certificate.marginal_draws import DifferenceProblem, draw_failures
from ax_pac.surrogate.mcmc import HyperparameterChains, HyperparameterSample

# Of the search for points that may beat the incumbent, beside the usual one.
_EFFORT = 8
# Candidates: those where the fitted model makes a failure likely, and others.
_NUM_LIKELY, _NUM_OTHERS = 3000, 1500
_NUM_DRAWS = 192
_TOLERANCE = 0.002


def failure_when_stopped(
    model: SingleTaskGP,
    X: Tensor,
    bounds: Tensor,
    *,
    delta: float,
    true: tuple[Tensor, float] | None,
    seed: int,
) -> dict[str, float]:
    """Estimate `P(max_x f(x) - f(incumbent) > delta | data)` in two ways.

    Args:
        model: The fitted surrogate.
        X: Visited points. Shape `n x d`.
        bounds: The box. Shape `2 x d`.
        delta: Tolerance. Unit: objective units.
        true: Length scales (shape `d`) and output scale that the function was drawn
            with; None where there are none.
        seed: Seed of search and draws.

    Returns:
        `averaged`: averaged over the posterior of the hyperparameters, as level
        `marginal` does, with ten times its candidates. `exact`: under the true
        hyperparameters, where there are such. Neither has a confidence margin.
    """
    acquisition = PACAcquisition(model, X, delta)
    rng = torch.Generator().manual_seed(seed)
    search = find_challenger(acquisition, X, bounds, seed=seed, effort=_EFFORT)
    points, scores = filled_in(acquisition, search.points, search.scores, 0.05, rng)
    weights = torch.special.ndtr(scores).sqrt().clamp_min(1e-300)
    likely = torch.multinomial(weights, min(_NUM_LIKELY, len(scores)), generator=rng)
    others = torch.randperm(len(scores), generator=rng)[:_NUM_OTHERS]
    candidates = points[torch.cat([likely, others]).unique()]
    problem = DifferenceProblem(
        model, acquisition.incumbent, candidates, delta, 1.0, bounds
    )
    kernel = model.covar_module
    chains = HyperparameterChains(
        problem.Z,
        problem.Y,
        problem.noise,
        generator=rng,
        initial=(
            kernel.base_kernel.lengthscale.detach().reshape(-1),
            float(kernel.outputscale.detach()),
        ),
    )
    chains.extend(4 * _NUM_DRAWS)
    # The first are still on their way to the posterior.
    later = chains.sample(first=3 * _NUM_DRAWS)
    failures = {"averaged": _mean_failure(problem, later, rng)}
    if true is not None:
        lengthscale, outputscale = true
        variance = float(model.outcome_transform.stdvs) ** 2
        known = HyperparameterSample(
            lengthscale.expand(_NUM_DRAWS, -1),
            torch.full((_NUM_DRAWS,), outputscale / variance, dtype=torch.float64),
            float(_NUM_DRAWS),
            1.0,
        )
        failures["exact"] = _mean_failure(problem, known, rng)
    return failures


def _mean_failure(
    problem: DifferenceProblem, sample: HyperparameterSample, rng: torch.Generator
) -> float:
    return float(draw_failures(problem, sample, _TOLERANCE, rng).failure.mean())
