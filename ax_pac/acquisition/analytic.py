"""The PAC criterion: the score of a point against the incumbent."""

from __future__ import annotations

import math
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np
import torch
from botorch.acquisition.analytic import AnalyticAcquisitionFunction
from botorch.acquisition.input_constructors import acqf_input_constructor
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from ax_pac.acquisition.difference import (
    Array,
    JointDifference,
    difference_to,
    known_weight,
)
from ax_pac.acquisition.ruled_out import (
    Threshold,
    slack_of,
    slack_of_value,
    threshold_of,
)
from ax_pac.known import AdditiveFunction, KnownFunction


def select_incumbent(
    model: Model,
    X_observed: Tensor,
    posterior_transform: PosteriorTransform | None = None,
    known: KnownFunction | None = None,
) -> Tensor:
    """Select the visited point of highest posterior mean.

    Not the best observation, which under noise is a point of favourable noise.

    Args:
        model: A fitted single-outcome model.
        X_observed: Visited points. Shape `n x d`. Unit: the model's input units.
        posterior_transform: As in BoTorch; minimisation is a weight of -1.
        known: What is added to the model's outcome; None for nothing.

    Returns:
        The incumbent. Shape `1 x d`.

    Raises:
        ValueError: When there are no points or their dtype is not float64.
    """
    check_points(X_observed)
    with torch.no_grad():
        posterior = model.posterior(X_observed, posterior_transform=posterior_transform)
        mean = posterior.mean.squeeze(-1)
        if known is not None:
            mean = mean + known_weight(posterior_transform) * known(X_observed)
        best = int(mean.argmax())
    return X_observed[best : best + 1].detach().clone()


def check_points(X_observed: Tensor) -> None:
    """Refuse an empty, misshapen or single-precision set of visited points."""
    if X_observed.ndim != 2 or X_observed.shape[0] == 0 or X_observed.shape[1] == 0:
        raise ValueError(
            "the visited points must have shape `n x d` with at least one point; got "
            f"shape {tuple(X_observed.shape)}. A model without data has no incumbent: "
            "evaluate some points first."
        )
    if X_observed.dtype != torch.float64:
        raise ValueError(
            f"the visited points must be float64, got {X_observed.dtype}: in single "
            "precision the variance of the difference to the incumbent is rounding "
            "error. Convert the data and the model with `.double()`."
        )


def check_model(model: Model, posterior_transform: PosteriorTransform | None) -> None:
    """Refuse a model in single precision, without data or with several outcomes."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    inputs = getattr(model, "train_inputs", None)
    if isinstance(inputs, (tuple, list)) and inputs and torch.is_tensor(inputs[0]):
        if inputs[0].shape[-2] == 0:
            raise ValueError("the model has no data: evaluate some points and fit it.")
        dtypes.add(inputs[0].dtype)
    if dtypes - {torch.float64}:
        raise ValueError(
            f"the model must be float64, got {sorted(map(str, dtypes))}: in single "
            "precision the variance of the difference to the incumbent is rounding "
            "error. Convert data and model with `.double()` before fitting."
        )
    if posterior_transform is None and model.num_outputs != 1:
        raise ValueError(
            f"the model has {model.num_outputs} outcomes: pass a posterior_transform "
            "that makes one objective of them."
        )


def check_delta(delta: float) -> float:
    """Return delta as a float, or refuse what is not positive and finite."""
    if not (isinstance(delta, (int, float)) and math.isfinite(delta) and delta > 0):
        raise ValueError(
            f"delta must be a positive, finite number of objective units, got {delta!r}"
        )
    return float(delta)


class PACAcquisition(AnalyticAcquisitionFunction):
    """Score a point by how likely it is to beat the incumbent by more than delta.

        u(x) = (mu_x - mu_inc - delta) / sqrt(var_x + var_inc - 2 cov_{x,inc})

    where mean and covariance are those of the joint posterior of `[x, incumbent]`.
    `Phi(u(x)) = P(f(x) > f(incumbent) + delta | data)`, and when the largest of these
    probabilities is at most epsilon, Eq. (12) of the source certifies the incumbent.
    The incumbent is the visited point of highest posterior mean. With the incumbent's
    variance and covariance set to zero the score is that of the probability of
    improvement over `mu_inc + delta`.

    For an exact single-task GP the score is computed from the posterior of the
    difference `f(x) - f(incumbent)` with one triangular solve; every other model goes
    through its joint posterior. Both give the same number.

    Args:
        model: A fitted single-outcome model in float64.
        X_baseline: Visited points, among which the incumbent is chosen. Shape
            `n x d`. Unit: the model's input units.
        delta: Tolerance, positive. Unit: objective units *of the transformed
            posterior*: if the platform standardises outcomes outside the model, delta
            is read in standard deviations (see `docs/certificate.md`).
        posterior_transform: As in BoTorch. The score is always maximised; a minimised
            objective arrives as a weight of -1.
        X_pending: Points under evaluation. Shape `p x d`. The model is conditioned on
            its own posterior mean there, with the mean observation noise: means stay,
            variances shrink, so the score moves on to other points.
        known: What is added to the model's outcome, exactly; the model is then one of
            the unknown part. None for nothing.
        negligible: Probability of a worse incumbent that may be left aside, in [0, 1).
            With a bound of the unknown part, points that could only beat such an
            incumbent are no challengers, see `slack_of`. 0 for no such points.

    Raises:
        ValueError: When delta is not positive and finite, when there are no visited
            points, or when model or points are not float64.

    Source: Ma et al. 2019, Eq. (11). Deviation: the variance of the difference is
    clamped below at 1e-12 of the summed variances, so that score and gradient stay
    finite where candidate and incumbent coincide; pending points are not in the source.

    Example:
        >>> import torch
        >>> from ax_pac import PACAcquisition, fit_model
        >>> X = torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> model = fit_model(X, (6 * X).sin(), torch.full_like(X, 1e-4))
        >>> acquisition = PACAcquisition(model, X, delta=0.1)
        >>> acquisition(X.unsqueeze(-2)).shape
        torch.Size([6])
    """

    _log: bool = False

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
        check_model(model, posterior_transform)
        super().__init__(model=model, posterior_transform=posterior_transform)
        self.delta = check_delta(delta)
        self.known = known
        self.register_buffer(
            "incumbent", select_incumbent(model, X_baseline, posterior_transform, known)
        )
        self.threshold, self.weight = Threshold(), 1.0
        if known is not None:
            self.weight = known_weight(posterior_transform)
            self.threshold = threshold_of(
                model, self.incumbent, known, self.weight, negligible
            )
        self.set_X_pending(X_pending)

    def set_X_pending(self, X_pending: Tensor | None = None) -> None:
        """Replace the points under evaluation.

        Args:
            X_pending: Shape `p x d`, or None for no pending points.
        """
        if X_pending is not None and X_pending.shape[0] == 0:
            X_pending = None
        more = self._with_more(X_pending)
        self.X_pending = None if X_pending is None else X_pending.detach().clone()
        if more is not None:
            self._difference = more
            return
        self._difference = difference_to(
            self.incumbent,
            self.model,
            self.X_pending,
            self.posterior_transform,
            self.known,
        )

    def _with_more(self, X_pending: Tensor | None) -> Any:
        """The difference with more pending points than now; None if that is not so."""
        before = getattr(self, "X_pending", None)
        if before is None or X_pending is None or len(X_pending) <= len(before):
            return None
        if not torch.equal(X_pending[: len(before)], before):
            return None
        add = getattr(self._difference, "with_pending", None)
        return None if add is None else add(X_pending[len(before) :])

    @property
    def rules_out(self) -> bool:
        """Whether there may be points that cannot beat the incumbent."""
        return self.threshold.value > -math.inf

    def can_win(self, points: Tensor) -> Tensor:
        """Whether points may beat the incumbent by more than delta.

        Args:
            points: Shape `N x d`. Unit: the model's input units.

        Returns:
            Booleans. Shape `N`; True where nothing is known against a point.
        """
        if not self.rules_out:
            return torch.ones(points.shape[:-1], dtype=torch.bool)
        with torch.no_grad():
            return self.slack(points) > 0.0

    def slack(self, points: Tensor) -> Tensor:
        """Return by how much points may beat the incumbent beyond delta, at best.

        Args:
            points: Shape `... x d`. Unit: the model's input units.

        Returns:
            Shape `...`. Unit: objective units. See `slack_of`; only where `rules_out`.
        """
        assert self.known is not None
        return slack_of(
            points, self.known, self.weight, self.delta, self.threshold.value
        )

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """Evaluate the score.

        Args:
            X: Candidates. Shape `batch_shape x 1 x d`. Unit: the model's input units.

        Returns:
            The score. Shape `batch_shape`. Unit: dimensionless (standard deviations).
        """
        gap, deviation = self.pointwise_difference(X)
        return (gap - self.delta) / deviation

    def pointwise_difference(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior of `f(x) - f(incumbent)`, each point by itself.

        Args:
            X: Candidates. Shape `batch_shape x 1 x d`. Unit: the model's input units.

        Returns:
            Mean and standard deviation of the transformed objective's difference, the
            latter clamped below. Shape `batch_shape` each. Unit:
            objective units.
        """
        return self._difference(X.squeeze(-2))

    def score_with_gradient(
        self, points: Array, penalty: float = 0.0
    ) -> tuple[Array, Array] | None:
        """Return the score with its gradient, without autograd; None for other models.

        To rounding error the values of `forward`, for searches of many short steps.

        Args:
            points: Shape `B x d`. Unit: the model's input units.
            penalty: What a point scores less, per delta by which it cannot win.

        Returns:
            Shapes `B` and `B x d`.
        """
        closed_form = getattr(self._difference, "closed_form", None)
        value = None if self.known is None else self.known.value
        if closed_form is None or not isinstance(value, (AdditiveFunction, NoneType)):
            return None
        moments = closed_form(points)
        gap, of_gap = moments.gap, moments.gap_gradient
        if value is not None:
            known, of_known = value.at(points)
            gap = gap + self.weight * (known - value.at(self._incumbent)[0])
            of_gap = of_gap + self.weight * of_known
        score = (gap - self.delta) / moments.deviation
        gradient = of_gap - score[:, None] * moments.deviation_gradient
        gradient /= moments.deviation[:, None]
        if penalty and value is not None and self.rules_out:
            assert self.known is not None
            slack = slack_of_value(
                known, self.known, self.weight, self.delta, self.threshold.value
            )
            lacking = np.minimum(slack, 0.0)
            score = score + penalty / self.delta * lacking
            rate = penalty * self.weight / self.delta
            gradient += rate * (lacking < 0.0)[:, None] * of_known
        return score, gradient

    @cached_property
    def _incumbent(self) -> Array:
        """The incumbent, `1 x d`."""
        return self.incumbent.numpy()

    @torch.no_grad()
    def pair_covariance(self, x: Tensor) -> Tensor:
        """Return the covariance of `[f(x), f(incumbent)]`, given the pending points.

        Args:
            x: One point. Shape `1 x d`. Unit: the model's input units.

        Returns:
            Shape `2 x 2`. Unit: squared objective units.
        """
        return self._difference.pair_covariance(x)

    @torch.no_grad()
    def difference(self, points: Tensor) -> JointDifference:
        """Return the joint posterior of `f(x) - f(incumbent)` over a set of points.

        Args:
            points: Shape `N x d`. Unit: the model's input units.

        Returns:
            Mean, variance and, on demand, covariances of the transformed objective, in
            objective units and their square.
        """
        return self._difference.at(points)


@acqf_input_constructor(PACAcquisition)
def construct_pac_inputs(
    model: Model,
    X_baseline: Tensor,
    delta: float,
    posterior_transform: PosteriorTransform | None = None,
    X_pending: Tensor | None = None,
    known: KnownFunction | None = None,
    negligible: float = 0.0,
    constraints_tuple: tuple[Tensor, Tensor] | None = None,
    objective_thresholds: Tensor | None = None,
    ref_point: Tensor | None = None,
) -> dict[str, Any]:
    """Build the arguments of this package's acquisition functions for a platform.

    Args:
        model: A fitted single-outcome model.
        X_baseline: Visited points. Shape `n x d`.
        delta: Tolerance. Unit: objective units.
        posterior_transform: As in BoTorch.
        X_pending: Points under evaluation. Shape `p x d`.
        known: What is added to the model's outcome.
        negligible: Probability of a worse incumbent that may be left aside.
        constraints_tuple: Outcome constraints; refused.
        objective_thresholds: Thresholds of several objectives; refused.
        ref_point: Reference point of several objectives; refused.

    Returns:
        Keyword arguments of each of the three acquisition functions.

    Raises:
        ValueError: For outcome constraints or several objectives. An analytic
            acquisition function would ignore them silently.
    """
    if constraints_tuple is not None:
        raise ValueError(
            "outcome constraints are not supported by PACAcquisition: its certificate "
            "is about one unconstrained objective. Fold the constraint into the "
            "objective as a penalty."
        )
    if objective_thresholds is not None or ref_point is not None:
        raise ValueError(
            "several objectives are not supported by PACAcquisition: scalarise them "
            "into one."
        )
    return {
        "model": model,
        "X_baseline": X_baseline,
        "delta": delta,
        "posterior_transform": posterior_transform,
        "X_pending": X_pending,
        "known": known,
        "negligible": negligible,
    }
