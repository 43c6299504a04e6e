"""Kernel and bounded maximum-likelihood fit of the surrogate."""

from __future__ import annotations

import math

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import Normalize
from botorch.models.transforms.outcome import Standardize
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

Array = NDArray[np.float64]

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
    if not fit_in_closed_form(model):
        with torch.random.fork_rng(devices=[]):
            # BoTorch retries a failed fit from random hyperparameters.
            torch.manual_seed(0)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model.eval()


def fit_in_closed_form(model: SingleTaskGP) -> bool:
    """Fit by maximum likelihood with gradients in closed form, a tenth of the time.

    The problem, the start and the optimiser are those of BoTorch, which goes through
    the modules of the kernel and autograd at every step; so is the result, to the
    tolerance of the optimiser.

    Args:
        model: A `SingleTaskGP` with a scaled Matern-5/2 kernel whose hyperparameters
            are bounded, a constant mean and known noise, unfitted.

    Returns:
        Whether it was fitted. If not, as where the optimiser gave up, the model is
        unchanged.
    """
    likelihood = _NegativeLikelihood(model)
    try:
        found = minimize(likelihood, likelihood.start, jac=True, method="L-BFGS-B")
    except np.linalg.LinAlgError:
        return False
    if not found.success:
        return False
    likelihood.keep(found.x)
    # What it computed before is out of date.
    model.train()
    model.eval()
    return True


class _NegativeLikelihood:
    """Negative log marginal likelihood per observation, of raw hyperparameters.

    Raw length scales come first, then the raw output scale and the mean. GPyTorch's
    bounded hyperparameters are `lower + (upper - lower) sigmoid(raw)`.
    """

    def __init__(self, model: SingleTaskGP) -> None:
        model.eval()  # in which the inputs are those of the kernel
        self._kernel, self._mean = model.covar_module, model.mean_module
        (X,) = model.train_inputs
        self._Y = model.train_targets.detach().numpy()
        self._noise = model.likelihood.noise.detach().expand(len(X)).numpy()
        n, d = X.shape
        self._row, self._column = np.tril_indices(n, -1)
        Z = X.detach().numpy()
        self._squared = np.square(Z[self._row] - Z[self._column]).T.copy()
        bounds = [
            self._kernel.base_kernel.raw_lengthscale_constraint,
            self._kernel.raw_outputscale_constraint,
        ]
        self._lower, upper = (
            np.repeat([float(getattr(bound, side)) for bound in bounds], [d, 1])
            for side in ("lower_bound", "upper_bound")
        )
        self._width = upper - self._lower
        self._parameters = [
            self._kernel.base_kernel.raw_lengthscale,
            self._kernel.raw_outputscale,
            self._mean.raw_constant,
        ]
        flat = [p.detach().reshape(-1) for p in self._parameters]
        self.start = torch.cat(flat).double().numpy().copy()

    def __call__(self, raw: Array) -> tuple[float, Array]:
        """Return the value and its gradient."""
        n = len(self._Y)
        sigmoid = expit(raw[:-1])
        theta = self._lower + self._width * sigmoid
        lengthscale, outputscale = theta[:-1], theta[-1]
        r = np.sqrt(5.0 * (lengthscale**-2.0 @ self._squared))
        decay = np.exp(-r)
        slope = (1.0 + r) * decay
        correlation = slope + r * r * decay / 3.0
        K = np.empty((n, n), order="F")
        K[self._row, self._column] = outputscale * correlation
        np.fill_diagonal(K, outputscale + self._noise)
        L, failed = dpotrf(K, lower=1, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError("the covariance has no Cholesky factor")
        residual = self._Y - raw[-1]
        alpha, _ = dpotrs(L, residual, lower=1)
        value = 0.5 * (residual @ alpha) + np.log(L.diagonal()).sum()
        value += 0.5 * n * math.log(2.0 * math.pi)
        # Of the pairs below the diagonal, twice: half of the trace's derivative.
        inverse, _ = dpotri(L, lower=1)
        weights = inverse[self._row, self._column]
        weights -= alpha[self._row] * alpha[self._column]
        of_lengthscale = self._squared @ (weights * slope)
        of_lengthscale *= 5.0 / 3.0 * outputscale * lengthscale**-3.0
        diagonal = inverse.diagonal().sum() - alpha @ alpha
        of_outputscale = weights @ correlation + 0.5 * diagonal
        gradient = np.append(of_lengthscale, [of_outputscale, -alpha.sum()])
        gradient[:-1] *= self._width * sigmoid * (1.0 - sigmoid)
        return value / n, gradient / n

    def keep(self, raw: Array) -> None:
        """Give the model these hyperparameters."""
        with torch.no_grad():
            values = torch.from_numpy(raw)
            sizes = [p.numel() for p in self._parameters]
            for p, value in zip(self._parameters, values.split(sizes), strict=True):
                p.copy_(value.reshape(p.shape))
