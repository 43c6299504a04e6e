"""Expected improvement over the incumbent by more than delta, on the difference."""

from __future__ import annotations

import math

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.input_constructors import acqf_input_constructor
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition, construct_pac_inputs
from ax_pac.known import KnownFunction

# Below this score the closed form subtracts two nearly equal numbers; the series that
# takes over has a relative error below 10395 / 60^10 = 2e-14 there.
_SERIES_BELOW = -60.0

_DIRECT_ABOVE = -1.0

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def log_improvement(u: Tensor) -> Tensor:
    """Return the logarithm of a standard normal's expected excess over `-u`.

        log h(u),   h(u) = E[max(Z + u, 0)] = phi(u) + u Phi(u)

    In three pieces, because h underflows at u = -38 and its closed form loses all
    digits long before: directly above -1; by the scaled complementary error function
    down to -60; below that by the asymptotic series of Mills' ratio.

    Args:
        u: Standardised gap. Any shape. Dimensionless.

    Returns:
        Shape of `u`; finite, with finite gradients, for u down to -1e100.

    Source: the idea of Ament et al. 2023 (LogEI). Deviation: BoTorch's own function is
    private, so this one is derived here; the tests compare the two.

    Example:
        >>> import torch
        >>> u = torch.tensor([0.0, -1e3], dtype=torch.float64)
        >>> [round(value, 4) for value in log_improvement(u).tolist()]
        [-0.9189, -500014.7345]
    """
    # Each branch sees only arguments at which it and its gradient are finite: where
    # one is not selected its gradient is multiplied by zero, and 0 * inf is NaN.
    is_direct, is_series = u > _DIRECT_ABOVE, u < _SERIES_BELOW
    above = u.masked_fill(~is_direct, 0.0)
    density = (-0.5 * above.square() - _LOG_SQRT_2PI).exp()
    direct = (density + above * torch.special.ndtr(above)).log()
    middle = u.masked_fill(is_direct | is_series, _DIRECT_ABOVE)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(middle / -math.sqrt(2))
    below = u.masked_fill(~is_series, _SERIES_BELOW)
    v = below.reciprocal().square()
    series = v * (-3.0 + v * (15.0 + v * (-105.0 + v * 945.0)))
    tail = torch.where(
        is_series,
        torch.log1p(series) - 2.0 * (-below).log(),
        torch.log1p(middle * mills),
    )
    log_density = -0.5 * u.masked_fill(is_direct, 0.0).square() - _LOG_SQRT_2PI
    return torch.where(is_direct, direct, log_density + tail)


class LogPACExpectedImprovement(AcquisitionFunction):
    """The logarithm of `PACExpectedImprovement`, computed without underflow.

    The same maximiser, with finite values and gradients where the improvement itself is
    zero in double precision: scores of -1e3 and far below.

    Args:
        model: A fitted single-outcome model in float64.
        X_baseline: Visited points, among which the incumbent is chosen. Shape
            `n x d`. Unit: the model's input units.
        delta: Tolerance, positive. Unit: objective units of the transformed posterior,
            see `PACAcquisition`.
        posterior_transform: As in BoTorch; minimisation is a weight of -1.
        X_pending: Points under evaluation, see `PACAcquisition`. Shape `p x d`.
        known: What is added to the model's outcome, see `PACAcquisition`.
        negligible: As in `PACAcquisition`.

    Raises:
        ValueError: As `PACAcquisition`.

    Source: as `PACExpectedImprovement`; the logarithm is Ament et al. 2023.

    Example:
        >>> import torch
        >>> from ax_pac import LogPACExpectedImprovement, fit_model
        >>> X = torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> model = fit_model(X, (6 * X).sin(), torch.full_like(X, 1e-4))
        >>> acquisition = LogPACExpectedImprovement(model, X, delta=0.1)
        >>> bool(acquisition(X.unsqueeze(-2)).isfinite().all())
        True
    """

    _log: bool = True

    def __init__(
        self,
        model: Model,
        X_baseline: Tensor,
        delta: float,
        posterior_transform: PosteriorTransform | None = None,
        X_pending: Tensor | None = None,
        known: KnownFunction | None = None,
        negligible: float = 0.0,
    ) -> None:
        super().__init__(model=model)
        self.score = PACAcquisition(
            model,
            X_baseline,
            delta,
            posterior_transform,
            X_pending,
            known,
            negligible,
        )
        self.X_pending = self.score.X_pending

    @property
    def incumbent(self) -> Tensor:
        """The visited point that others are compared with, `1 x d`."""
        return self.score.incumbent

    @property
    def rules_out(self) -> bool:
        """As in `PACAcquisition`."""
        return self.score.rules_out

    @property
    def known(self) -> KnownFunction | None:
        """As in `PACAcquisition`."""
        return self.score.known

    @property
    def weight(self) -> float:
        """As in `PACAcquisition`."""
        return self.score.weight

    @property
    def delta(self) -> float:
        """As in `PACAcquisition`."""
        return self.score.delta

    def can_win(self, points: Tensor) -> Tensor:
        """As in `PACAcquisition`."""
        return self.score.can_win(points)

    def slack(self, points: Tensor) -> Tensor:
        """As in `PACAcquisition`."""
        return self.score.slack(points)

    def set_X_pending(self, X_pending: Tensor | None = None) -> None:
        """Replace the points under evaluation.

        Args:
            X_pending: Shape `p x d`, or None for no pending points.
        """
        self.score.set_X_pending(X_pending)
        self.X_pending = self.score.X_pending

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """Evaluate the logarithm of the expected improvement.

        Args:
            X: Candidates. Shape `batch_shape x 1 x d`. Unit: the model's input units.

        Returns:
            Shape `batch_shape`. Unit: logarithm of objective units.
        """
        gap, deviation = self.score.pointwise_difference(X)
        return deviation.log() + log_improvement((gap - self.score.delta) / deviation)


class PACExpectedImprovement(LogPACExpectedImprovement):
    """Score a point by how much it is expected to beat the incumbent beyond delta.

        EI(x) = E[max(D(x) - delta, 0)] = s (phi(u) + u Phi(u)),
        D(x) = f(x) - f(incumbent),   u = (mean of D - delta) / s

    with s the standard deviation of D, covariance included: the difference that
    `PACAcquisition` standardises, u is its score. Ordinary expected improvement takes
    the incumbent's value as known; here a point correlated with the incumbent is
    expected to improve less, and the incumbent itself not at all.

    Value and gradient underflow to zero where no improvement is likely, as at the end
    of every search: maximise `LogPACExpectedImprovement` instead.

    Args:
        model: As in `LogPACExpectedImprovement`.
        X_baseline: As in `LogPACExpectedImprovement`.
        delta: As in `LogPACExpectedImprovement`.
        posterior_transform: As in `LogPACExpectedImprovement`.
        X_pending: As in `LogPACExpectedImprovement`.
        known: As in `LogPACExpectedImprovement`.
        negligible: As in `LogPACExpectedImprovement`.

    Raises:
        ValueError: As `PACAcquisition`.

    Source: Ma et al. 2019, the remark after Eq. (11) that other improvement functions
    can take its place. Deviation: pending points and the floor of the variance, as in
    `PACAcquisition`.

    Example:
        >>> import torch
        >>> from ax_pac import PACExpectedImprovement, fit_model
        >>> X = torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> model = fit_model(X, (6 * X).sin(), torch.full_like(X, 1e-4))
        >>> acquisition = PACExpectedImprovement(model, X, delta=0.1)
        >>> acquisition(X.unsqueeze(-2)).shape
        torch.Size([6])
    """

    _log: bool = False

    def forward(self, X: Tensor) -> Tensor:
        """Evaluate the expected improvement.

        Args:
            X: Candidates. Shape `batch_shape x 1 x d`. Unit: the model's input units.

        Returns:
            Shape `batch_shape`. Unit: objective units.
        """
        return super().forward(X).exp()


acqf_input_constructor(LogPACExpectedImprovement, PACExpectedImprovement)(
    construct_pac_inputs
)
