"""Fabolas, faithful: MCMC over hyperparameters, entropy search with representers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.methods.fabolas.base import FabolasData
from benchmarks.methods.fabolas.ensemble import stretch_moves
from benchmarks.methods.fabolas.models import AveragedGP, cost_basis, loss_basis

NUM_REPRESENTERS = 50
REPRESENTER_STEPS = 50
NUM_UNIFORM = 350
NUM_LOCAL = 150
_LOCAL_DEVIATION = 0.1
# Draws behind the distribution of the minimum, and outcomes that are imagined.
NUM_DRAWS = 400
NUM_OUTCOMES = 10
_JITTER = 1e-6


class FaithfulSearch:
    """Entropy search for the minimum at full size, per unit of cost.

    The information that an evaluation at (x, u) gives about where the minimum at full
    size lies, averaged over hyperparameters and divided by the expected cost:

        a(x, u) = mean_k  E_y[ KL_k(p_min | y) - KL_k(p_min) ] / exp(E_k[log c(x, u)])

    with p_min over representer points drawn by their expected improvement, for every
    draw k of the hyperparameters.

    Args:
        dim: Coordinates without the size.
        seed: Seed of everything.

    Source: Klein et al. 2017, Eq. (8); Hennig and Schuler 2012 for the entropy.
    Deviation: p_min by simulation, not by expectation propagation.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.dim = dim
        self.rng = torch.Generator().manual_seed(seed)
        self.loss = AveragedGP(dim, loss_basis, self.rng)
        self.cost = AveragedGP(dim, cost_basis, self.rng)

    def fit(self, data: FabolasData) -> None:
        self.loss.fit(data.X, data.log_loss)
        self.cost.fit(data.X, data.log_cost)

    def predicted(self, X: Tensor) -> Tensor:
        mean, _ = self.loss.marginal(X.expand(self.loss.num_walkers, *X.shape))
        return mean.mean(0)

    def propose(self, incumbent: Tensor) -> Tensor:
        best = incumbent.expand(self.loss.num_walkers, 1, -1)
        eta = self.loss.marginal(best)[0]
        representers, log_measure = self._representers(eta)
        candidates = self._candidates(incumbent)
        gain = information_gain(
            self.loss, representers, log_measure, candidates, self.rng
        )
        batch = candidates.expand(self.cost.num_walkers, *candidates.shape)
        log_cost, _ = self.cost.marginal(batch)
        return candidates[int((gain / log_cost.exp()).mean(0).argmax())]

    def _representers(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Points at full size drawn by expected improvement, for every model."""

        def log_density(x: Tensor) -> Tensor:
            inside = ((x >= 0.0) & (x <= 1.0)).all(-1)
            ones = torch.ones_like(x[..., :1])
            mean, variance = self.loss.marginal(torch.cat([x, ones], dim=-1))
            log_ei = log_expected_improvement(eta - mean, variance.sqrt())
            return torch.where(inside, log_ei, -math.inf)

        shape = (self.loss.num_walkers, NUM_REPRESENTERS, self.dim)
        start = torch.rand(shape, generator=self.rng, dtype=torch.float64)
        x = stretch_moves(log_density, start, REPRESENTER_STEPS, self.rng)
        ones = torch.ones_like(x[..., :1])
        return torch.cat([x, ones], dim=-1), log_density(x)

    def _candidates(self, incumbent: Tensor) -> Tensor:
        uniform = torch.rand(
            NUM_UNIFORM, self.dim + 1, generator=self.rng, dtype=torch.float64
        )
        step = torch.randn(
            NUM_LOCAL, self.dim + 1, generator=self.rng, dtype=torch.float64
        )
        near = (incumbent + _LOCAL_DEVIATION * step).clamp(0.0, 1.0)
        return torch.cat([uniform, near])


def log_expected_improvement(gap: Tensor, deviation: Tensor) -> Tensor:
    """Logarithm of `deviation * (phi(z) + z Phi(z))` with `z = gap / deviation`."""
    z = (gap / deviation).clamp_min(-30.0)
    log_phi = -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)
    # phi(z) + z Phi(z) = phi(z) (1 + z Phi(z) / phi(z)).
    ratio = (torch.special.log_ndtr(z) - log_phi).exp()
    inner = (1.0 + z * ratio).clamp_min(1e-12)
    return deviation.log() + log_phi + inner.log()


def information_gain(
    model: AveragedGP,
    representers: Tensor,
    log_measure: Tensor,
    candidates: Tensor,
    rng: torch.Generator,
) -> Tensor:
    """Expected growth of what is known about the minimum, `w x N`, in nats.

    Args:
        model: One posterior for each walker.
        representers: Shape `w x R x (d + 1)`.
        log_measure: Density by which they were drawn, up to a factor. Shape `w x R`.
        candidates: Shape `N x (d + 1)`.
        rng: Source of randomness; all candidates share its draws.
    """
    mean, covariance = model.joint(representers)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(covariance.shape[-1], dtype=torch.float64)
    cholesky = torch.linalg.cholesky(covariance + _JITTER * scale.clamp_min(1e-9) * eye)
    batch = candidates.expand(model.num_walkers, *candidates.shape)
    _, variance = model.marginal(batch)
    # What one standard deviation of the outcome moves the representers by.
    move = model.covariance_between(representers, batch)
    move = move / (variance + model.noise[:, None]).sqrt()[:, None, :]
    normal = torch.randn(
        covariance.shape[-1], NUM_DRAWS, generator=rng, dtype=torch.float64
    )
    rest = torch.randn(NUM_DRAWS, generator=rng, dtype=torch.float64)
    levels = (torch.arange(NUM_OUTCOMES, dtype=torch.float64) + 0.5) / NUM_OUTCOMES
    outcomes = torch.special.ndtri(levels)
    return torch.stack(
        [
            _gain(mean[k], cholesky[k], move[k], log_measure[k], normal, rest, outcomes)
            for k in range(model.num_walkers)
        ]
    )


def _gain(
    mean: Tensor,
    cholesky: Tensor,
    move: Tensor,
    log_measure: Tensor,
    normal: Tensor,
    rest: Tensor,
    outcomes: Tensor,
) -> Tensor:
    """The same for one model: `R`, `R x R`, `R x N`, `R`, draws, to `N`.

    Draws are conditioned on an imagined outcome by moving each from the outcome that
    belongs to it to the imagined one.
    """
    draws = mean[:, None] + cholesky @ normal
    before = _knowledge(draws.argmin(0).unsqueeze(0), log_measure)
    half = torch.linalg.solve_triangular(cholesky, move, upper=False)
    unexplained = (1.0 - half.square().sum(0)).clamp_min(0.0).sqrt()
    own = half.T @ normal + unexplained[:, None] * rest
    after = torch.zeros(move.shape[1], dtype=torch.float64)
    for outcome in outcomes.tolist():
        shift = (outcome - own).float()
        moved = draws.float() + move.T.float().unsqueeze(-1) * shift.unsqueeze(1)
        after += _knowledge(moved.argmin(1), log_measure)
    return after / len(outcomes) - before


def _knowledge(minima: Tensor, log_measure: Tensor) -> Tensor:
    """Relative entropy of the minimum's place to the uniform measure, `N x S` to `N`.

    A representer stands for a volume inverse to the density that it was drawn by.
    """
    number = len(log_measure)
    counts = torch.zeros(len(minima), number, dtype=torch.float64)
    counts.scatter_add_(1, minima, torch.ones_like(minima, dtype=torch.float64))
    share = counts / minima.shape[1]
    log_share = share.clamp_min(1e-12).log()
    return (share * (log_share + log_measure)).sum(1)
