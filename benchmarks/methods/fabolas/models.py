"""Gaussian processes whose hyperparameters are averaged over by MCMC, in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.methods.fabolas.ensemble import stretch_moves

BURN_IN = 100
CHAIN = 100
# Bounds of a logarithm of a length scale, in units of the box.
_LOG_LENGTHSCALE = (-10.0, 2.0)
_HORSESHOE_SCALE = 1e-3
_JITTER = 1e-8


def loss_basis(u: Tensor) -> Tensor:
    """What the loss depends on besides a constant: it is level at full size."""
    return (1.0 - u).square()


def cost_basis(u: Tensor) -> Tensor:
    """What the log cost depends on besides a constant."""
    return u


class AveragedGP:
    """One posterior for each walker of a chain over the hyperparameters.

        k((x, u), (x', u')) = amplitude Matern52(x, x') (a + b phi(u) phi(u'))

    with one length scale a coordinate, one variance of the noise, and the mean of the
    observations as prior mean.

    Args:
        dim: Coordinates without the size.
        basis: phi.
        rng: Source of randomness.

    Source: Klein et al. 2017, section 3, with the priors of their implementation: log
    amplitude Normal(-2, 1), log a and log b standard normal, log length scales uniform
    on [-10, 2], horseshoe prior on the noise.
    """

    def __init__(
        self, dim: int, basis: Callable[[Tensor], Tensor], rng: torch.Generator
    ) -> None:
        self.dim, self.basis, self.rng = dim, basis, rng
        # Log amplitude, log length scales, log a, log b; log noise variance.
        num_kernel = dim + 3
        self.num_walkers = 3 * num_kernel + (3 * num_kernel) % 2
        self.walkers: Tensor | None = None

    def fit(self, X: Tensor, Y: Tensor) -> None:
        """Continue the chain on these observations, `n x (d + 1)` and `n x 1`."""
        self.X, self.mean = X, Y.mean()
        self.residual = Y - self.mean
        steps = CHAIN
        if self.walkers is None:
            self.walkers = self._start()
            steps += BURN_IN
        self.walkers = stretch_moves(self._log_posterior, self.walkers, steps, self.rng)
        covariance = self._noisy_covariance(self.walkers)
        self.cholesky = torch.linalg.cholesky(covariance)
        residual = self.residual.expand(self.num_walkers, -1, 1)
        self.weights = torch.cholesky_solve(residual, self.cholesky)

    @property
    def noise(self) -> Tensor:
        """Variance of the noise of each, `w`."""
        return self.walkers[:, -1].exp()

    def joint(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and covariance, `w x N x (d + 1)` to `w x N`, `w x N x N`."""
        cross, half = self._reduction(points)
        covariance = self._kernel(self.walkers, points, points)
        mean = self.mean + (cross @ self.weights).squeeze(-1)
        return mean, covariance - half.transpose(-1, -2) @ half

    def marginal(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance, `w x N x (d + 1)` to `w x N` each."""
        cross, half = self._reduction(points)
        size = self.basis(points[..., -1])
        amplitude, a, b = (self.walkers[:, [i]].exp() for i in (0, -3, -2))
        variance = amplitude * (a + b * size.square()) - half.square().sum(-2)
        mean = self.mean + (cross @ self.weights).squeeze(-1)
        return mean, variance.clamp_min(1e-12)

    def covariance_between(self, points: Tensor, others: Tensor) -> Tensor:
        """Posterior covariances of `w x N x (d + 1)` and `w x M x (d + 1)`."""
        _, left = self._reduction(points)
        _, right = self._reduction(others)
        prior = self._kernel(self.walkers, points, others)
        return prior - left.transpose(-1, -2) @ right

    def _reduction(self, points: Tensor) -> tuple[Tensor, Tensor]:
        observed = self.X.expand(self.num_walkers, *self.X.shape)
        cross = self._kernel(self.walkers, points, observed)
        half = torch.linalg.solve_triangular(
            self.cholesky, cross.transpose(-1, -2), upper=False
        )
        return cross, half

    def _kernel(self, walkers: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Covariances for every walker, `w x p` with `w x N x (d + 1)` and `M`."""
        lengthscale = walkers[:, None, 1 : self.dim + 1].exp()
        amplitude, a, b = (walkers[:, [i], None].exp() for i in (0, -3, -2))
        product = torch.ones((), dtype=torch.float64)
        for i in range(self.dim):
            scale = lengthscale[..., [i]]
            gap = (left[..., i, None] - right[..., None, :, i]).abs() / scale
            gap = math.sqrt(5.0) * gap
            product = product * (1.0 + gap + gap.square() / 3.0) * (-gap).exp()
        sizes = self.basis(left[..., -1])[..., None], self.basis(right[..., -1])
        size = a + b * sizes[0] * sizes[1][..., None, :]
        return amplitude * product * size

    def _noisy_covariance(self, walkers: Tensor) -> Tensor:
        X = self.X.expand(len(walkers), *self.X.shape)
        covariance = self._kernel(walkers, X, X)
        scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        noise = walkers[:, -1].exp() + _JITTER * scale
        eye = torch.eye(len(self.X), dtype=torch.float64)
        return covariance + noise[:, None, None] * eye

    def _log_posterior(self, walkers: Tensor) -> Tensor:
        """Log posterior density of the logarithms, `k x p` to `k`."""
        prior = self._log_prior(walkers)
        possible = prior.isfinite()
        safe = torch.where(possible[:, None], walkers, self._safe_walker())
        covariance = self._noisy_covariance(safe)
        cholesky, info = torch.linalg.cholesky_ex(covariance)
        half = torch.linalg.solve_triangular(
            cholesky, self.residual.expand(len(walkers), -1, 1), upper=False
        )
        log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = prior - 0.5 * half.square().sum((-1, -2)) - log_det
        usable = possible & (info == 0) & density.isfinite()
        return torch.where(usable, density, -math.inf)

    def _log_prior(self, walkers: Tensor) -> Tensor:
        amplitude, a, b = walkers[:, 0], walkers[:, -3], walkers[:, -2]
        lengthscale = walkers[:, 1 : self.dim + 1]
        low, high = _LOG_LENGTHSCALE
        inside = ((lengthscale >= low) & (lengthscale <= high)).all(-1)
        # The others are proper, but not their exponentials in double precision.
        inside &= (walkers.abs() < 30.0).all(-1)
        noise = walkers[:, -1].clamp(-30.0, 30.0).exp()
        horseshoe = torch.log1p(3.0 * (_HORSESHOE_SCALE / noise).square()).log()
        density = -0.5 * ((amplitude + 2.0).square() + a.square() + b.square())
        return torch.where(inside, density + horseshoe, -math.inf)

    def _safe_walker(self) -> Tensor:
        walker = torch.zeros(self.dim + 4, dtype=torch.float64)
        walker[0], walker[-1] = -2.0, math.log(_HORSESHOE_SCALE)
        return walker

    def _start(self) -> Tensor:
        """Draws around a plausible place, all of positive density."""
        shape = (self.num_walkers, self.dim + 4)
        spread = torch.randn(shape, generator=self.rng, dtype=torch.float64)
        return self._safe_walker() + 0.3 * spread
