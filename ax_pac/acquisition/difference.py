"""Posterior of the difference between a point and the incumbent."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from botorch.acquisition.objective import (
    PosteriorTransform,
    ScalarizedPosteriorTransform,
)
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms.input import Normalize
from botorch.models.transforms.outcome import Standardize
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ConstantMean
from linear_operator.utils.cholesky import psd_safe_cholesky
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtrs
from torch import Tensor

from ax_pac.known import KnownFunction

# Share of the summed prior (or posterior) variances below which the variance of a
# difference is taken to be rounding error. It has to scale with the outcome: at the
# incumbent the variance is zero and its square root has no gradient. A floor makes the
# score of a losing point larger, so it can only make a certificate harder to obtain.
VARIANCE_FLOOR = 1e-12

Array = NDArray[np.float64]


def standardized_gap(mean: Tensor, covariance: Tensor, delta: float) -> Tensor:
    """Standardise the gap between a candidate and the incumbent, less delta.

        u(x) = (mu_x - mu_inc - delta) / sqrt(var_x + var_inc - 2 cov_{x,inc})

    with index 0 the candidate and index 1 the incumbent. `Phi(u)` is the posterior
    probability that the candidate beats the incumbent by more than delta; the score is
    optimised rather than the probability because `Phi` is flat in its tails.

    Args:
        mean: Joint posterior mean. Shape `... x 2`. Unit: objective units.
        covariance: Joint posterior covariance. Shape `... x 2 x 2`.
        delta: Tolerance. Unit: objective units.

    Returns:
        The score. Shape `...`. Unit: dimensionless (standard deviations).

    Source: Ma et al. 2019, Eq. (11). Deviation: the variance of the difference is
    clamped below at 1e-12 of the summed variances, so that score and gradient stay
    finite where candidate and incumbent coincide.

    Example:
        >>> import torch
        >>> mean = torch.tensor([1.0, 0.5], dtype=torch.float64)
        >>> covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> round(standardized_gap(mean, covariance, delta=0.1).item(), 6)
        0.4
    """
    gap, deviation = _pair_difference(mean, covariance)
    return (gap - delta) / deviation


def _pair_difference(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Gap and standard deviation of the difference of two values, `...` each."""
    scale = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    variance = scale - covariance[..., 0, 1] - covariance[..., 1, 0]
    return mean[..., 0] - mean[..., 1], _floored_deviation(variance, scale)


def _floored_deviation(variance: Tensor, scale: Tensor) -> Tensor:
    """Return the standard deviation of a difference, floored relative to `scale`."""
    tiny = torch.finfo(variance.dtype).tiny
    floor = (VARIANCE_FLOOR * scale.detach()).clamp_min(tiny)
    return torch.maximum(variance, floor).sqrt()


class Difference(Protocol):
    """Posterior of `f(x) - f(incumbent)`, in the units of the transformed objective."""

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Gap and standard deviation at each point, `... x d` to `...` each."""
        ...

    def pair_covariance(self, x: Tensor) -> Tensor:
        """Covariance of `[f(x), f(incumbent)]`, `1 x d` to `2 x 2`."""
        ...

    def at(self, X: Tensor) -> JointDifference:
        """Joint posterior of the difference at points, `N x d`."""
        ...


def difference_to(
    incumbent: Tensor,
    model: Model,
    X_pending: Tensor | None = None,
    posterior_transform: PosteriorTransform | None = None,
    known: KnownFunction | None = None,
) -> Difference:
    """Return the posterior of the difference, in closed form where there is one.

    Args:
        incumbent: Shape `1 x d`. Unit: the model's input units.
        model: A fitted single-outcome model.
        X_pending: Points under evaluation, on whose means the model is conditioned.
            Shape `p x d`.
        posterior_transform: As in BoTorch.
        known: What is added to the model's outcome; None for nothing.
    """
    if known is not None:
        unknown = difference_to(incumbent, model, X_pending, posterior_transform)
        sign = known_weight(posterior_transform)
        return ShiftedDifference(unknown, incumbent, known, sign)
    weight = scalar_weight(posterior_transform)
    if weight is not None and is_plain_gp(model):
        return DifferencePosterior(model, incumbent, X_pending, weight)
    if X_pending is not None:
        model = condition_on_pending(model, X_pending)
    return ModelDifference(model, incumbent, posterior_transform)


class ShiftedDifference:
    """Posterior of `f(x) - f(incumbent)` where a part of f is known.

    Means are shifted by the difference of the known part; covariances are those of the
    unknown part.

    Args:
        unknown: Posterior of the difference of the unknown part.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        known: The known part.
        weight: Of the objective; -1 minimises.
    """

    def __init__(
        self,
        unknown: Difference,
        incumbent: Tensor,
        known: KnownFunction,
        weight: float,
    ) -> None:
        self._unknown, self._known, self._weight = unknown, known, weight
        with torch.no_grad():
            self._at_incumbent = known(incumbent).reshape(())

    def with_pending(self, X: Tensor) -> ShiftedDifference | None:
        """As that of the unknown part, None if it has none.

        Args:
            X: Shape `q x d`. Unit: the model's input units.
        """
        add = getattr(self._unknown, "with_pending", None)
        if add is None:
            return None
        more = copy.copy(self)
        more._unknown = add(X)
        return more

    def _shift(self, X: Tensor) -> Tensor:
        return self._weight * (self._known(X) - self._at_incumbent)

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Difference`."""
        gap, deviation = self._unknown(X)
        return gap + self._shift(X), deviation

    @property
    def closed_form(self) -> ClosedForm | None:
        """That of the unknown part, if it has one."""
        return getattr(self._unknown, "closed_form", None)

    def pair_covariance(self, x: Tensor) -> Tensor:
        """As in `Difference`."""
        return self._unknown.pair_covariance(x)

    def at(self, X: Tensor) -> JointDifference:
        """As in `Difference`."""
        difference = self._unknown.at(X)
        difference.mean = difference.mean + self._shift(X)
        return difference


class ModelDifference:
    """Posterior of `f(x) - f(incumbent)` under any model, by its joint posterior.

    Args:
        model: A fitted single-outcome model, conditioned on pending points.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        posterior_transform: As in BoTorch.
    """

    def __init__(
        self,
        model: Model,
        incumbent: Tensor,
        posterior_transform: PosteriorTransform | None,
    ) -> None:
        self._model, self._incumbent = model, incumbent
        self._transform = posterior_transform

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Difference`."""
        incumbent = self._incumbent.squeeze(0).expand_as(X)
        return _pair_difference(*self._moments(torch.stack([X, incumbent], dim=-2)))

    def pair_covariance(self, x: Tensor) -> Tensor:
        """As in `Difference`."""
        return self._moments(torch.cat([x, self._incumbent]))[1]

    def at(self, X: Tensor) -> DenseDifference:
        """As in `Difference`."""
        mean, covariance = self._moments(torch.cat([X, self._incumbent]))
        contrast = covariance[:-1] - covariance[-1:]
        return DenseDifference(
            mean[:-1] - mean[-1], contrast[:, :-1] - contrast[:, -1:]
        )

    def _moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Joint posterior mean and covariance, `... x q` and `... x q x q`."""
        posterior = self._model.posterior(X, posterior_transform=self._transform)
        return posterior.mean.squeeze(-1), posterior.distribution.covariance_matrix


class DifferencePosterior:
    """Posterior of `f(x) - f(incumbent)` under an exact GP, by one triangular solve.

    The cross-covariance of the difference with the data is
    `k(x, Z) - k(incumbent, Z)`, so the two large terms that a 2 x 2 joint posterior
    would subtract afterwards never appear; it is both faster and more accurate.

    Args:
        model: A model that `is_plain_gp`.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        X_pending: Points under evaluation, on whose means the model is conditioned.
            Shape `p x d`.
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
            self.pending_noise = noise.mean()
            if X_pending is not None:
                Z = torch.cat([Z, model.transform_inputs(X_pending)])
                pending_noise = self.pending_noise.expand(X_pending.shape[0])
                L = _noisy_cholesky(model, Z, torch.cat([noise, pending_noise]))
            self.Z, self.L = Z, L
            self.incumbent = model.transform_inputs(incumbent)
            self.k_incumbent = model.covar_module(self.incumbent, Z).to_dense()
            self.var_incumbent = model.covar_module(self.incumbent, diag=True)
            self.mean_incumbent = model.mean_module(self.incumbent)
            transform = getattr(model, "outcome_transform", None)
            scale = 1.0 if transform is None else float(transform.stdvs)
        self.scale = w * scale

    def with_pending(self, X: Tensor) -> DifferencePosterior:
        """Return the same with more points under evaluation.

        Adds rows to the Cholesky factor, where a new one takes time cubic in the number
        of points; the same up to rounding error.

        Args:
            X: Shape `q x d`. Unit: the model's input units.
        """
        more = copy.copy(self)
        vars(more).pop("closed_form", None)
        with torch.no_grad():
            z = self.model.transform_inputs(X)
            covar = self.model.covar_module
            B = torch.linalg.solve_triangular(
                self.L, covar(self.Z, z).to_dense(), upper=False
            )
            noise = self.pending_noise.expand(len(z))
            corner = covar(z).to_dense() + torch.diag(noise) - B.mT @ B
            n, q = B.shape
            L = self.L.new_zeros(n + q, n + q)
            L[:n, :n], L[n:, :n], L[n:, n:] = self.L, B.mT, psd_safe_cholesky(corner)
            more.L, more.Z = L, torch.cat([self.Z, z])
            k = covar(self.incumbent, z).to_dense()
            more.k_incumbent = torch.cat([self.k_incumbent, k], dim=-1)
        return more

    def explain(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gap at `Z` (`... x n x d`), and what the data explain of it.

        Returns:
            Gap, `... x n`, in objective units; whitened covariance of the difference
            with the data, `... x data x n`; its squares sum to the variance explained.
        """
        k = self.model.covar_module(Z, self.Z).to_dense() - self.k_incumbent
        explained = torch.linalg.solve_triangular(self.L, k.mT, upper=False)
        gap = k[..., : self.num_observed] @ self.alpha
        gap = gap + self.model.mean_module(Z) - self.mean_incumbent
        return self.scale * gap, explained

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Difference`; with gradients in closed form where there are such."""
        if X.requires_grad and self.closed_form is not None:
            gap, deviation = _WithGradients.apply(X, self.closed_form)
            return gap, deviation
        Z = self.model.transform_inputs(X)
        covar = self.model.covar_module
        gap, explained = self.explain(Z)
        k_cross = covar(Z, self.incumbent).to_dense().squeeze(-1)
        prior_scale = covar(Z, diag=True) + self.var_incumbent
        variance = prior_scale - 2.0 * k_cross - explained.square().sum(-2)
        square = self.scale**2
        return gap, _floored_deviation(square * variance, square * prior_scale)

    @cached_property
    def closed_form(self) -> ClosedForm | None:
        """Values and gradients without autograd; None for another kernel."""
        return ClosedForm(self) if ClosedForm.applies(self.model) else None

    def pair_covariance(self, x: Tensor) -> Tensor:
        """As in `Difference`."""
        pair = torch.cat([self.model.transform_inputs(x), self.incumbent])
        k = self.model.covar_module(pair, self.Z).to_dense()
        explained = torch.linalg.solve_triangular(self.L, k.mT, upper=False)
        prior = self.model.covar_module(pair).to_dense()
        return self.scale**2 * (prior - explained.mT @ explained)

    def at(self, X: Tensor) -> GaussianDifference:
        """As in `Difference`."""
        return GaussianDifference(self, X)


class Moments(NamedTuple):
    """Gap and deviation at points, `B` each, and their gradients, `B x d` each."""

    gap: Array
    deviation: Array
    gap_gradient: Array
    deviation_gradient: Array


class ClosedForm:
    """Gap and deviation with their gradients, for a Matern-5/2 kernel.

    A challenger is searched by thousands of steps, each for a handful of points.
    Through the kernel's modules and autograd a step takes milliseconds, of which the
    arithmetic is a twentieth. With `a(x) = k(x, Z) - k(incumbent, Z)`, K the noisy
    kernel matrix and r the scaled distance,

        gap = S a alpha,   variance = S^2 (2 s - 2 k(x, incumbent) - a K^-1 a'),
        dk/dx_j = -s 5/3 (1 + sqrt(5) r) exp(-sqrt(5) r) (x_j - z_j) / l_j^2.

    Values are those of `DifferencePosterior` to rounding error; where they decide, they
    are computed there. In NumPy, whose calls take a fifth of PyTorch's: a step is for
    a handful of points.

    Args:
        difference: The posterior, under a model to which this `applies`.
    """

    def __init__(self, difference: DifferencePosterior) -> None:
        model = difference.model
        kernel = model.covar_module
        self._outputscale = float(kernel.outputscale.detach())
        lengthscale = _array(kernel.base_kernel.lengthscale)
        transform = getattr(model, "input_transform", None)
        self._offset = 0.0 if transform is None else _array(transform.offset)
        coefficient = 1.0 if transform is None else _array(transform.coefficient)
        self._per_unit = 1.0 / (coefficient * lengthscale)
        self._scale = difference.scale
        # Behind the data, the incumbent: its own row of the same distances.
        Z = torch.cat([difference.Z, difference.incumbent])
        self._Z = Z.detach().numpy() / lengthscale
        self._k_incumbent = _array(difference.k_incumbent)
        self._alpha = np.zeros(len(difference.Z))
        self._alpha[: difference.num_observed] = _array(difference.alpha)
        self._L = np.asfortranarray(difference.L.detach().numpy())

    @staticmethod
    def applies(model: SingleTaskGP) -> bool:
        """Whether kernel, mean and inputs of a model are those of this form."""
        kernel, transform = model.covar_module, getattr(model, "input_transform", None)
        base = getattr(kernel, "base_kernel", None)
        return (
            isinstance(kernel, ScaleKernel)
            and isinstance(base, MaternKernel)
            and base.nu == 2.5
            and base.lengthscale.numel() == model.train_inputs[0].shape[-1]
            and base.active_dims is None
            and isinstance(model.mean_module, ConstantMean)
            and (transform is None or type(transform) is Normalize)
        )

    def __call__(self, X: Array) -> Moments:
        """Return gap and deviation, `B` each, and their gradients, `B x d` each.

        Args:
            X: Points. Shape `B x d`. Unit: the model's input units.
        """
        x = (X - self._offset) * self._per_unit
        # Not expanded: close to the incumbent the expansion has no digits left.
        apart = x[:, None] - self._Z
        r = np.sqrt(5.0 * np.einsum("bnd,bnd->bn", apart, apart))
        decay = self._outputscale * np.exp(-r)
        slope = (1.0 + r) * decay
        k = slope + r * r * decay / 3.0
        slope *= 5.0 / 3.0
        a, to_incumbent = k[:, :-1] - self._k_incumbent, k[:, -1]
        gap = self._scale * (a @ self._alpha)
        # Solved, not multiplied by an inverse, which loses digits near the incumbent.
        explained, _ = dtrtrs(self._L, a.T, lower=1)
        prior = 2.0 * self._outputscale
        variance = prior - 2.0 * to_incumbent - (explained * explained).sum(0)
        floor = VARIANCE_FLOOR * prior
        deviation = abs(self._scale) * np.sqrt(np.maximum(variance, floor))
        of_gap = self._gradient(x, slope[:, :-1] * self._alpha, self._Z[:-1])
        # Half the variance's, with the incumbent's own row.
        weights = np.empty_like(slope)
        weights[:, :-1] = dtrtrs(self._L, explained, lower=1, trans=1)[0].T
        weights[:, -1] = 1.0
        of_variance = -self._gradient(x, slope * weights, self._Z)
        rate = np.where(variance < floor, 0.0, self._scale**2 / deviation)
        return Moments(
            gap, deviation, self._scale * of_gap, rate[:, None] * of_variance
        )

    def _gradient(self, x: Array, weights: Array, Z: Array) -> Array:
        """Sum of weights, `B x n`, times the kernel's gradients less their slopes."""
        moved = x * weights.sum(-1, keepdims=True) - weights @ Z
        return -moved * self._per_unit


def _array(tensor: Tensor) -> Array:
    """A tensor as a flat array."""
    return tensor.detach().reshape(-1).numpy()


class _WithGradients(torch.autograd.Function):
    """A closed form as a function that autograd goes on from."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, closed_form: ClosedForm) -> tuple[Tensor, Tensor]:
        moments = closed_form(X.detach().reshape(-1, X.shape[-1]).numpy())
        gap, deviation, of_gap, of_deviation = map(torch.from_numpy, moments)
        ctx.save_for_backward(of_gap.reshape(X.shape), of_deviation.reshape(X.shape))
        return gap.reshape(X.shape[:-1]), deviation.reshape(X.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        of_gap, of_deviation = ctx.saved_tensors
        gap, deviation = (gradient.unsqueeze(-1) for gradient in gradients)
        return gap * of_gap + deviation * of_deviation, None


class JointDifference(Protocol):
    """Joint posterior of `f(x) - f(incumbent)` at points, covariances on demand.

    Attributes:
        mean: Shape `N`. Unit: objective units.
        variance: Shape `N`. Unit: squared objective units.
    """

    mean: Tensor
    variance: Tensor

    def among(self, chosen: Tensor) -> Tensor:
        """Covariances of some points, `m` indices to `m x m`."""
        ...

    def with_columns(self, columns: Tensor) -> Tensor:
        """Covariances of all points with some of them, `m` indices to `N x m`."""
        ...

    def with_pivots(self, pool: Tensor, pivot: Tensor) -> Tensor:
        """Covariances within pools, indices `S x P` and `S` to `S x P`."""
        ...


class GaussianDifference:
    """The joint posterior under an exact GP: nothing of size `N x N` is ever formed.

    Args:
        difference: The posterior of the difference.
        X: Points. Shape `N x d`. Unit: the model's input units.
    """

    def __init__(self, difference: DifferencePosterior, X: Tensor) -> None:
        self._covar = difference.model.covar_module
        self._square = difference.scale**2
        self._Z = difference.model.transform_inputs(X)
        self.mean, explained = difference.explain(self._Z)
        self._explained = explained.mT.contiguous()
        to_incumbent = self._covar(self._Z, difference.incumbent).to_dense()
        # Half of the incumbent's variance with each of the two points.
        self._to_incumbent = to_incumbent.squeeze(-1) - 0.5 * difference.var_incumbent
        prior = self._covar(self._Z, diag=True) - 2.0 * self._to_incumbent
        self.variance = self._square * (prior - self._explained.square().sum(-1))

    def among(self, chosen: Tensor) -> Tensor:
        """As in `JointDifference`."""
        return self._between(chosen, chosen)

    def with_columns(self, columns: Tensor) -> Tensor:
        """As in `JointDifference`."""
        return self._between(slice(None), columns)

    def _between(self, rows: Tensor | slice, columns: Tensor) -> Tensor:
        prior = self._covar(self._Z[rows], self._Z[columns]).to_dense()
        to_incumbent = self._to_incumbent[rows].unsqueeze(-1)
        prior = prior - to_incumbent - self._to_incumbent[columns]
        explained = self._explained[rows] @ self._explained[columns].mT
        return self._square * (prior - explained)

    def with_pivots(self, pool: Tensor, pivot: Tensor) -> Tensor:
        """As in `JointDifference`."""
        prior = self._covar(self._Z[pool], self._Z[pivot].unsqueeze(-2)).to_dense()
        prior = prior.squeeze(-1) - self._to_incumbent[pool]
        prior = prior - self._to_incumbent[pivot].unsqueeze(-1)
        explained = self._explained[pool] @ self._explained[pivot].unsqueeze(-1)
        return self._square * (prior - explained.squeeze(-1))


class DenseDifference:
    """The joint posterior of any model, as mean and full covariance.

    Args:
        mean: Shape `N`.
        covariance: Shape `N x N`.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self._covariance = mean, covariance
        self.variance = covariance.diagonal()

    def among(self, chosen: Tensor) -> Tensor:
        """As in `JointDifference`."""
        return self._covariance[chosen][:, chosen]

    def with_columns(self, columns: Tensor) -> Tensor:
        """As in `JointDifference`."""
        return self._covariance[:, columns]

    def with_pivots(self, pool: Tensor, pivot: Tensor) -> Tensor:
        """As in `JointDifference`."""
        return self._covariance[pool, pivot.unsqueeze(-1)]


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


def known_weight(posterior_transform: PosteriorTransform | None) -> float:
    """Return the weight of an objective that has a known part.

    Raises:
        ValueError: When it is not one outcome or its negative.
    """
    weight = scalar_weight(posterior_transform)
    if weight is None:
        raise ValueError(
            "a known part needs an objective that is one outcome or its negative; got "
            f"the transform {posterior_transform}"
        )
    return weight


def condition_on_pending(model: Model, X_pending: Tensor) -> Model:
    """Condition a model on its posterior mean at the pending points."""
    with torch.no_grad():
        Y = model.posterior(X_pending).mean
        kwargs: dict[str, Any] = {}
        if isinstance(getattr(model, "likelihood", None), FixedNoiseGaussianLikelihood):
            # BoTorch 0.18 takes `noise` in the outcome-transformed space.
            kwargs["noise"] = model.likelihood.noise.mean().expand_as(Y).clone()
        return model.condition_on_observations(X=X_pending, Y=Y, **kwargs)
