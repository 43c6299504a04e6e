"""Posterior of the difference between a point and the incumbent, in closed form."""

from __future__ import annotations

from typing import Any

import torch
from botorch.acquisition.objective import (
    PosteriorTransform,
    ScalarizedPosteriorTransform,
)
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms.outcome import Standardize
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor


class DifferencePosterior:
    """Posterior of `f(x) - f(incumbent)` under an exact GP, by one triangular solve.

    The cross-covariance of the difference with the data is
    `k(x, Z) - k(incumbent, Z)`, so the two large terms that a 2 x 2 joint posterior
    would subtract afterwards never appear; it is both faster and more accurate.

    Args:
        model: A model that `is_plain_gp`.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        X_pending: Points under evaluation, believed at their means. Shape `p x d`.
        w: Weight of the posterior transform; -1 minimises.
    """

    def __init__(
        self, model: SingleTaskGP, incumbent: Tensor, X_pending: Tensor | None, w: float
    ) -> None:
        model.eval()
        self.model = model
        with torch.no_grad():
            Z = model.train_inputs[0]
            noise = model.likelihood.noise.expand(Z.shape[0])
            L = _noisy_cholesky(model, Z, noise)
            residual = model.train_targets - model.mean_module(Z)
            self.alpha = torch.cholesky_solve(residual.unsqueeze(-1), L).squeeze(-1)
            self.num_observed = Z.shape[0]
            if X_pending is not None:
                Z = torch.cat([Z, model.transform_inputs(X_pending)])
                pending_noise = noise.mean().expand(X_pending.shape[0])
                L = _noisy_cholesky(model, Z, torch.cat([noise, pending_noise]))
            self.Z, self.L = Z, L
            self.incumbent = model.transform_inputs(incumbent)
            self.k_incumbent = model.covar_module(self.incumbent, Z).to_dense()
            self.var_incumbent = model.covar_module(self.incumbent, diag=True)
            self.mean_incumbent = model.mean_module(self.incumbent)
            transform = getattr(model, "outcome_transform", None)
            scale = 1.0 if transform is None else float(transform.stdvs)
        self.scale = w * scale

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gap, variance and prior scale at `X` (`... x d`), each `...`."""
        Z = self.model.transform_inputs(X)
        covar = self.model.covar_module
        k = covar(Z, self.Z).to_dense() - self.k_incumbent
        k_cross = covar(Z, self.incumbent).to_dense().squeeze(-1)
        prior_scale = covar(Z, diag=True) + self.var_incumbent
        explained = torch.linalg.solve_triangular(self.L, k.mT, upper=False)
        variance = prior_scale - 2.0 * k_cross - explained.square().sum(-2)
        gap = k[..., : self.num_observed] @ self.alpha
        gap = gap + self.model.mean_module(Z) - self.mean_incumbent
        return self.scale * gap, self.scale**2 * variance, self.scale**2 * prior_scale

    def pair_covariance(self, x: Tensor) -> Tensor:
        """Return the covariance of `[f(x), f(incumbent)]`, `2 x 2`."""
        pair = torch.cat([self.model.transform_inputs(x), self.incumbent])
        k = self.model.covar_module(pair, self.Z).to_dense()
        explained = torch.linalg.solve_triangular(self.L, k.mT, upper=False)
        prior = self.model.covar_module(pair).to_dense()
        return self.scale**2 * (prior - explained.mT @ explained)

    def joint(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return gap means, `N`, and their covariance, `N x N`."""
        Z = self.model.transform_inputs(X)
        covar = self.model.covar_module
        k = covar(Z, self.Z).to_dense() - self.k_incumbent
        explained = torch.linalg.solve_triangular(self.L, k.mT, upper=False)
        to_incumbent = covar(Z, self.incumbent).to_dense()
        prior = covar(Z).to_dense() - to_incumbent - to_incumbent.mT
        covariance = prior + self.var_incumbent - explained.mT @ explained
        gap = k[:, : self.num_observed] @ self.alpha
        gap = gap + self.model.mean_module(Z) - self.mean_incumbent
        return self.scale * gap, self.scale**2 * covariance


def _noisy_cholesky(model: SingleTaskGP, Z: Tensor, noise: Tensor) -> Tensor:
    """Cholesky factor of the kernel matrix plus observation noise, `n x n`."""
    return psd_safe_cholesky(model.covar_module(Z).to_dense() + torch.diag(noise))


def is_plain_gp(model: Model) -> bool:
    """Whether the model is one exact GP whose outcome transform is affine."""
    transform = getattr(model, "outcome_transform", None)
    return (
        type(model) is SingleTaskGP
        and model.num_outputs == 1
        and len(model.batch_shape) == 0
        and model.train_inputs is not None
        and (transform is None or type(transform) is Standardize)
    )


def scalar_weight(posterior_transform: PosteriorTransform | None) -> float | None:
    """Return the weight of a transform `w * f + c` of one outcome; None for others."""
    if posterior_transform is None:
        return 1.0
    if (
        type(posterior_transform) is ScalarizedPosteriorTransform
        and posterior_transform.weights.numel() == 1
    ):
        return float(posterior_transform.weights)
    return None


def believe_pending(model: Model, X_pending: Tensor) -> Model:
    """Condition a model on its posterior mean at the pending points."""
    with torch.no_grad():
        Y = model.posterior(X_pending).mean
        kwargs: dict[str, Any] = {}
        if isinstance(getattr(model, "likelihood", None), FixedNoiseGaussianLikelihood):
            # BoTorch 0.18 takes `noise` in the outcome-transformed space.
            kwargs["noise"] = model.likelihood.noise.mean().expand_as(Y).clone()
        return model.condition_on_observations(X=X_pending, Y=Y, **kwargs)
