"""Whether residuals say that the surrogate is too sure of itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.special import chdtrc
from torch import Tensor

from ax_pac.surrogate.mcmc import JITTER, MEAN_VARIANCE, HyperparameterSample, matern

# Probability of each test to find fault with a model that is right, at most. There are
# five, so that one certificate in forty at most is withheld for nothing.
SIGNIFICANCE = 0.005

# Outcomes that are drawn from the model for comparison, at the least.
_NUM_REPLICATES = 4096

# Settings of the hyperparameters that they are drawn under, at most.
_NUM_SETTINGS = 64


class Misfit(NamedTuple):
    """What residuals say against a model.

    Args:
        kind: `noise`: observations of the same point differ by more than their standard
            errors allow; `residuals`: some or all outcomes are further from what the
            others predict than the model says they would be.
        probability: Of residuals as large, where the model is right.
        text: What is unlikely.
        worst: Index of the observation with the largest residual.
    """

    kind: str
    probability: float
    text: str
    worst: int

    @property
    def sentence(self) -> str:
        """What is wrong and what helps."""
        remedy = {
            "noise": "report larger standard errors",
            "residuals": "an outcome that is wrong, standard errors that are too small "
            "or an objective that wants a logarithm are the usual reasons; more "
            "observations help",
        }[self.kind]
        return (
            f"the model is too sure: {self.text}, which has a probability of "
            f"{self.probability:.1g} where it is right; {remedy}"
        )


def misfit(
    Z: Tensor,
    Y: Tensor,
    Yvar: Tensor,
    sample: HyperparameterSample,
    generator: torch.Generator,
) -> Misfit | None:
    """Compare leave-one-out residuals with those of outcomes drawn from the model.

    The residual of observation i is its distance from the prediction of all others, in
    standard deviations of that prediction,

        e_i = [K^-1 Y]_i / sqrt([K^-1]_ii),    K = K_f + 1 + diag(Yvar),

    from one Cholesky factor. It is large where the model is too sure: of a cliff as
    smooth, of an outlier as precise. Four figures are compared with those of outcomes
    that the model itself draws at the same points: the largest `|e_i|`, the mean of
    `e_i^2`, and whether `e_i^2` grows with the predicted value, where the incumbent is
    looked for, or falls with the reported noise. The share of drawn outcomes with a
    figure as large is its probability, averaged over the settings: the posterior
    predictive p-value. A fifth test needs no model: whether observations of the same
    point agree within their standard errors.

    It does not see what the data do not show: a second peak that nobody looked at
    leaves no residual.

    Args:
        Z: Inputs, normalised to the unit box. Shape `n x d`.
        Y: Standardised outcomes, higher is better. Shape `n`.
        Yvar: Variances of their noise, standardised likewise. Shape `n`.
        sample: `S` settings of the hyperparameters; the last 64 are used.
        generator: Source of the drawn outcomes.

    Returns:
        The strongest objection, None where no figure is as unlikely as `SIGNIFICANCE`.

    Source: Rasmussen and Williams 2006, Eqs. (5.10) to (5.12) (residuals); Gelman, Meng
    and Stern 1996 (posterior predictive p-values). Neither is in Ma et al. 2019.

    Example:
        >>> import torch
        >>> Z = torch.linspace(0, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> Y = (6 * Z).sin().squeeze(-1)
        >>> Y[7] += 3  # an outlier
        >>> sample = HyperparameterSample(
        ...     torch.full((1, 1), 0.3).double(), torch.ones(1).double(), 1.0, 1.0
        ... )
        >>> noise = torch.full_like(Y, 1e-4)
        >>> misfit(Z, Y, noise, sample, torch.Generator().manual_seed(0)).worst
        7
    """
    observed, drawn, residuals = _figures(Z, Y, Yvar, sample, generator)
    worst = int(residuals.abs().mean(0).argmax())
    probability, ratio = _repetitions(Z, Y, Yvar)
    if probability < SIGNIFICANCE:  # which needs no model, and explains the others
        text = (
            "observations of the same point scatter by more than their standard errors "
            f"allow ({ratio**0.5:.1f} times in the mean)"
        )
        return Misfit("noise", probability, text, worst)
    probabilities = (drawn >= observed).double().mean((1, 2)).tolist()
    probability, text = min(zip(probabilities, _texts(residuals), strict=True))
    if probability < SIGNIFICANCE:
        return Misfit("residuals", probability, text, worst)
    return None


def _texts(residuals: Tensor) -> tuple[str, ...]:
    """What is said of each figure, in the order of `_figures`."""
    largest = float(residuals.abs().amax(1).mean())
    mean = float(residuals.square().mean().sqrt())
    return (
        f"one outcome is {largest:.1f} standard deviations from what the others "
        "predict",
        f"outcomes are {mean:.2f} standard deviations from what the others predict, as "
        "a root mean square",
        "outcomes are further from what the others predict where values are good",
        "outcomes are further from what the others predict where the reported noise is "
        "small",
    )


def _figures(
    Z: Tensor,
    Y: Tensor,
    Yvar: Tensor,
    sample: HyperparameterSample,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the figures of the outcomes and of drawn ones, and the residuals.

    Shapes `4 x S x 1`, `4 x S x R` and `S x n`.
    """
    lengthscale = sample.lengthscale[-_NUM_SETTINGS:]
    outputscale = sample.outputscale[-_NUM_SETTINGS:]
    num_settings, n = len(outputscale), len(Y)
    scaled = Z / lengthscale.unsqueeze(1)
    exact = "donot_use_mm_for_euclid_dist"
    squared = 5.0 * torch.cdist(scaled, scaled, compute_mode=exact).square()
    K = matern(squared) * outputscale[:, None, None] + MEAN_VARIANCE
    K = K + torch.diag(Yvar + JITTER)
    L = torch.linalg.cholesky(K)
    inverse_factor = torch.linalg.inv(L)
    precision = inverse_factor.square().sum(-2).unsqueeze(1)
    order = Yvar.argsort().argsort().double()
    by_noise = order - order.mean() if len(Yvar.unique()) > 1 else order * 0.0

    def residuals(whitened: Tensor) -> tuple[Tensor, Tensor]:
        """Return residuals and predictions, `S x R x n`."""
        weights = whitened @ inverse_factor
        return weights / precision.sqrt(), whitened @ L.mT - weights / precision

    def figures(e: Tensor, prediction: Tensor) -> Tensor:
        rank = prediction.argsort(-1).argsort(-1) - (n - 1) / 2.0
        squares = e.square()
        return torch.stack(
            [
                e.abs().amax(-1),
                squares.mean(-1),
                (rank * squares).mean(-1),
                -(by_noise * squares).mean(-1),
            ]
        )

    e, prediction = residuals((inverse_factor @ Y).unsqueeze(1))
    num_replicates = -(-_NUM_REPLICATES // num_settings)
    shape = (num_settings, num_replicates, n)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return figures(e, prediction), figures(*residuals(normal)), e.squeeze(1)


def _repetitions(Z: Tensor, Y: Tensor, Yvar: Tensor) -> tuple[float, float]:
    """Chi-squared test of observations of the same point, and their excess scatter.

    Returns:
        Probability of scatter as large, and its mean square in units of the noise.
    """
    points, which = Z.unique(dim=0, return_inverse=True)
    freedom = len(Y) - len(points)
    if freedom == 0:
        return 1.0, 1.0
    precision = 1.0 / (Yvar + JITTER)
    zeros = torch.zeros(len(points), dtype=torch.float64)
    total = zeros.index_add(0, which, precision)
    mean = zeros.index_add(0, which, precision * Y) / total
    statistic = float((precision * (Y - mean[which]).square()).sum())
    return float(chdtrc(freedom, statistic)), statistic / freedom
