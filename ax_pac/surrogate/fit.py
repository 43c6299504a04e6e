"""Kernel and bounded maximum-likelihood fit of the surrogate."""

from __future__ import annotations

import math

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import Normalize
from botorch.models.transforms.outcome import Standardize
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

# In units of the box (inputs are normalised) and of the outcome's variance (outcomes
# are standardised). Without bounds the likelihood of a flat direction has no maximum
# and the optimiser raises; these are wide enough not to bind on a sensible problem.
LENGTHSCALE_BOUNDS = (5e-3, 1e2)

OUTPUTSCALE_BOUNDS = (1e-2, 1e2)

# Where the optimiser starts. By default an interval constraint starts at its middle, a
# length scale of 50 boxes, where the likelihood is flat.
INITIAL_LENGTHSCALE = 0.5

INITIAL_OUTPUTSCALE = 1.0

# Spread below which outcomes, or a coordinate, are constant and left unscaled. The
# default of BoTorch, 1e-8, is in the user's unit: an objective of that size would be
# modelled as constant. This is above the rounding error of constants of order one.
SMALLEST_SPREAD = 1e-14


def lengthscale_constraint() -> Interval:
    """Return a fresh constraint on length scales, in units of the box."""
    return Interval(*LENGTHSCALE_BOUNDS, initial_value=INITIAL_LENGTHSCALE)


def outputscale_constraint() -> Interval:
    """Return a fresh constraint on the output scale, in units of the variance."""
    return Interval(*OUTPUTSCALE_BOUNDS, initial_value=INITIAL_OUTPUTSCALE)


def fewest_observations(dim: int) -> int:
    """Return the fewest observations for a claim about `dim` coordinates."""
    return max(2 * dim + 3, 10)


def fewest_distinct_points(dim: int, num_cells: float = math.inf) -> int:
    """Return the fewest different points for a claim, of `num_cells` in all.

    Example:
        >>> fewest_distinct_points(2), fewest_distinct_points(2, num_cells=5)
        (8, 5)
    """
    return int(min(max(dim + 3, 8), num_cells))


def too_few_observations(X: Tensor, num_cells: float = math.inf) -> str | None:
    """Return why observations do not determine the hyperparameters, None if they may.

    A fit to fewer can be confident and wrong: a function that varies can look flat at
    nine points.

    Args:
        X: Where they were made, repetitions included. Shape `n x d`.
        num_cells: Number of different points in the search space.
    """
    num_observations, dim = X.shape
    num_distinct = len(X.unique(dim=0))
    fewest = fewest_observations(dim)
    fewest_distinct = fewest_distinct_points(dim, num_cells)
    if num_observations >= fewest and num_distinct >= fewest_distinct:
        return None
    return (
        f"{num_observations} observations at {num_distinct} distinct points are too "
        f"few to determine the hyperparameters of {dim} coordinates: at least "
        f"{fewest} at {fewest_distinct} are needed"
    )


def fit_model(
    X: Tensor, Y: Tensor, Yvar: Tensor, bounds: Tensor | None = None
) -> SingleTaskGP:
    """Fit a GP by bounded maximum likelihood, its posterior in raw objective units.

    The surrogate of `pac_generation_strategy`, for use without an Ax experiment:
    constant mean, Matern-5/2 kernel with one length scale per coordinate, observation
    noise fixed at `Yvar`, inputs normalised and outcomes standardised inside the model.

    Args:
        X: Visited points. Shape `n x d`, float64.
        Y: Observed means. Shape `n x 1`. Unit: objective units.
        Yvar: Squared standard errors of `Y`. Shape `n x 1`.
        bounds: The box, lower row first. Shape `2 x d`. Default: the range of `X`.

    Returns:
        The fitted model.

    Raises:
        ValueError: When a value is not finite, a variance negative, or a shape or the
            precision wrong.

    Source: Ma et al. 2019, section 4 ("Matern 5/2 kernel with parameters set by maximum
    likelihood"). Deviation: length scales and output scale are bounded.

    Example:
        >>> import torch
        >>> X = torch.rand(8, 2, dtype=torch.float64)
        >>> Y = X.sum(-1, keepdim=True)
        >>> fit_model(X, Y, torch.full_like(Y, 1e-4)).num_outputs
        1
    """
    if X.ndim != 2 or Y.shape != (X.shape[0], 1) or Yvar.shape != Y.shape:
        raise ValueError(
            "expected X of shape `n x d` and Y, Yvar of shape `n x 1`; got "
            f"{tuple(X.shape)}, {tuple(Y.shape)}, {tuple(Yvar.shape)}"
        )
    if {X.dtype, Y.dtype, Yvar.dtype} != {torch.float64}:
        raise ValueError(
            f"X, Y and Yvar must be float64; got {X.dtype}, {Y.dtype}, {Yvar.dtype}. "
            "In single precision a certificate would rest on rounding error: convert "
            "them with `.double()`."
        )
    if not (X.isfinite().all() and Y.isfinite().all() and Yvar.isfinite().all()):
        raise ValueError("X, Y and Yvar must be finite")
    if (Yvar < 0).any():
        raise ValueError(f"Yvar must not be negative, its minimum is {Yvar.min():.3g}")
    d = X.shape[-1]
    base = MaternKernel(
        nu=2.5, ard_num_dims=d, lengthscale_constraint=lengthscale_constraint()
    )
    model = SingleTaskGP(
        X,
        Y,
        Yvar,
        covar_module=ScaleKernel(base, outputscale_constraint=outputscale_constraint()),
        input_transform=Normalize(d, bounds=bounds, min_range=SMALLEST_SPREAD),
        outcome_transform=Standardize(m=1, min_stdv=SMALLEST_SPREAD),
    )
    with torch.random.fork_rng(devices=[]):
        # BoTorch retries a failed fit from random hyperparameters.
        torch.manual_seed(0)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model.eval()
