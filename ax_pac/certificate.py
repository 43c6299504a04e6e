"""A certificate that a search is finished, with the probability that it is not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.generation import gen_candidates_scipy
from botorch.models.model import Model
from torch import Tensor
from torch.quasirandom import SobolEngine

from ax_pac.acquisition import (
    PACAcquisition,
    check_delta,
    check_model,
    select_incumbent,
)

LEVELS = ("pairwise",)

# A mean closer to zero than this many posterior standard deviations has no sign, so a
# share of it is no tolerance.
_SIGNIFICANT_DEVIATIONS = 2.0

# Size of one search for the challenger. The counts are those at which no certificate
# was found false for want of a better search in two, four and six dimensions.
_NUM_SPACE_FILLING = 512
_NUM_CLOUD = 512
_NUM_FACES = 128
_NUM_POLISHED = 8
_MAX_ITERATIONS = 100


@dataclasses.dataclass(frozen=True)
class PACCertificate:
    """A level's verdict on a search, with the failure probability behind it.

    Args:
        delta: Tolerance that was applied, absolute. Unit: objective units.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for. `pairwise`: no single point beats the
            incumbent by more than delta with probability above epsilon. Necessary for
            the claim "the incumbent is within delta of the best with probability
            1 - epsilon", not sufficient for it.
        score: Largest standardised gap found, at the challenger. Dimensionless.
        failure_probability: The level's probability that the incumbent is not good
            enough; at level `pairwise`, `Phi(score)`.
        certifiable: Whether this level can speak at all about these data.
        reason: One sentence for a person.
        challenger: The point whose score is highest. `d` values in the model's input
            units.
        incumbent: The visited point of highest posterior mean. `d` values.
        num_observations: Number of visited points it was computed on.
    """

    delta: float
    epsilon: float
    level: str
    score: float
    failure_probability: float
    certifiable: bool
    reason: str
    challenger: tuple[float, ...]
    incumbent: tuple[float, ...]
    num_observations: int

    @property
    def holds(self) -> bool:
        """Whether the incumbent is certified."""
        return self.certifiable and self.failure_probability <= self.epsilon

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and `holds`, as plain JSON values."""
        fields = dataclasses.asdict(self)
        fields["challenger"] = list(self.challenger)
        fields["incumbent"] = list(self.incumbent)
        return {**fields, "holds": self.holds}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PACCertificate:
        """Rebuild a certificate from what `to_dict` returned; other keys are ignored.

        Raises:
            ValueError: When a field is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(f"not a certificate record, missing {missing}")
        values = {name: fields[name] for name in names}
        values["challenger"] = tuple(values["challenger"])
        values["incumbent"] = tuple(values["incumbent"])
        return cls(**values)


def certify(
    model: Model,
    X_observed: Tensor,
    bounds: Tensor,
    *,
    delta: float,
    epsilon: float,
    level: str = "pairwise",
    relative: bool = False,
    posterior_transform: PosteriorTransform | None = None,
    seed: int | None = None,
) -> PACCertificate:
    """Ask a fitted model whether the best visited point is good enough to stop.

    At level `pairwise` this is Eq. (12): with the challenger x+ the maximiser of the
    score u of `PACAcquisition` over the box,

        certified  iff  Phi(u(x+)) <= epsilon.

    It works on any BoTorch model, whichever acquisition function chose the points. The
    maximum over the box is searched from space-filling points, from a cloud at several
    scales around the incumbent and the visited points, and from the faces of the box,
    then polished by gradient: a maximum that is missed makes a certificate false, and
    for four dimensions and more space-filling points alone miss it half of the time.

    Args:
        model: A fitted single-outcome model in float64, its posterior in objective
            units.
        X_observed: Visited points. Shape `n x d`. Unit: the model's input units.
        bounds: The box over which "the best" is meant, lower row first. Shape `2 x d`.
        delta: Tolerance, positive. Unit: objective units; with `relative=True` a share
            of the absolute posterior mean at the incumbent.
        epsilon: Allowed failure probability, in (0, 1).
        level: One of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        posterior_transform: As in BoTorch; minimisation is a weight of -1.
        seed: Seed of the search for the challenger; None draws a fresh one.

    Returns:
        The certificate, whether it holds or not.

    Raises:
        ValueError: When an argument is out of its range, when model or points are not
            float64, when there are no points, or when delta is relative and the
            incumbent's mean is not distinguishable from zero.

    Source: Ma et al. 2019, Eqs. (6), (7), (11), (12) and footnote 3.

    Example:
        >>> import torch
        >>> from ax_pac import certify, fit_model
        >>> X = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
        >>> model = fit_model(X, -(X - 0.4) ** 2, torch.full_like(X, 1e-6))
        >>> bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> certify(model, X, bounds, delta=0.1, epsilon=0.01, seed=0).holds
        True
    """
    check_settings(delta=delta, epsilon=epsilon, level=level)
    check_model(model, posterior_transform)
    bounds = _check_bounds(bounds, X_observed)
    if relative:
        delta = absolute_delta(model, X_observed, delta, posterior_transform)
    acquisition = PACAcquisition(model, X_observed, delta, posterior_transform)
    challenger, score = find_challenger(acquisition, X_observed, bounds, seed=seed)
    failure_probability = float(torch.special.ndtr(torch.tensor(score).double()))
    certifiable = math.isfinite(score)
    return PACCertificate(
        delta=acquisition.delta,
        epsilon=epsilon,
        level=level,
        score=score,
        failure_probability=failure_probability,
        certifiable=certifiable,
        reason=_reason(acquisition.delta, epsilon, failure_probability, certifiable),
        challenger=tuple(challenger.squeeze(0).tolist()),
        incumbent=tuple(acquisition.incumbent.squeeze(0).tolist()),
        num_observations=X_observed.shape[0],
    )


def check_settings(*, delta: float, epsilon: float, level: str) -> None:
    """Refuse a delta, epsilon or level out of range, naming what came."""
    check_delta(delta)
    if not (isinstance(epsilon, (int, float)) and 0.0 < epsilon < 1.0):
        raise ValueError(
            f"epsilon must be a probability strictly between 0 and 1, got {epsilon!r}"
        )
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}")


def absolute_delta(
    model: Model,
    X_observed: Tensor,
    share: float,
    posterior_transform: PosteriorTransform | None = None,
) -> float:
    """Turn a share of the incumbent's posterior mean into objective units.

    Args:
        model: A fitted single-outcome model.
        X_observed: Visited points. Shape `n x d`.
        share: Tolerance as a share of the mean, positive. Dimensionless.
        posterior_transform: As in BoTorch.

    Returns:
        `share * |mu_inc|`. Unit: objective units.

    Raises:
        ValueError: When the mean is within two posterior standard deviations of zero.

    Source: Ma et al. 2019, footnote 3.
    """
    incumbent = select_incumbent(model, X_observed, posterior_transform)
    with torch.no_grad():
        posterior = model.posterior(incumbent, posterior_transform=posterior_transform)
    variance = posterior.variance.item() + _pooled_variance(model)
    mean, sd = abs(posterior.mean.item()), variance**0.5
    if not mean > _SIGNIFICANT_DEVIATIONS * sd:
        raise ValueError(
            "a relative delta is a share of the objective at the incumbent, which is "
            f"not distinguishable from zero (posterior mean of size {mean:.3g}, "
            f"standard deviation {sd:.3g}). Use an absolute delta, or evaluate with "
            "more samples."
        )
    return share * mean


def _pooled_variance(model: Model) -> float:
    """Variance of the mean of all observations, zero where the noise is not known.

    The model takes its constant mean as known; this is how well it can be known.
    """
    noise = getattr(getattr(model, "likelihood", None), "noise", None)
    if noise is None:
        return 0.0
    num_observations = model.train_targets.shape[-1]
    precision = float((1.0 / noise.detach()).mean()) * num_observations
    scale = getattr(getattr(model, "outcome_transform", None), "stdvs", 1.0)
    return float(scale) ** 2 / precision


def find_challenger(
    acquisition: PACAcquisition,
    X_observed: Tensor,
    bounds: Tensor,
    *,
    seed: int | None = None,
) -> tuple[Tensor, float]:
    """Search the box for the point with the highest score.

    Args:
        acquisition: The score, with its incumbent.
        X_observed: Visited points. Shape `n x d`.
        bounds: The box, lower row first. Shape `2 x d`.
        seed: Seed of the random starting points; None draws a fresh one.

    Returns:
        The challenger, shape `1 x d`, and its score.
    """
    lower, width = bounds[0], bounds[1] - bounds[0]

    def score_in_unit_box(U: Tensor) -> Tensor:
        return acquisition(lower + width * U)

    def compressed(U: Tensor) -> Tensor:
        # Monotone, so the maximiser stays; it tames the wall around the incumbent,
        # where the score falls to minus infinity.
        return torch.asinh(score_in_unit_box(U))

    candidates = _starting_points(acquisition, X_observed, bounds, seed)
    with torch.no_grad():
        scores = score_in_unit_box(candidates.unsqueeze(-2))
    starts = _spread_out_best(candidates, scores)
    polished, _ = gen_candidates_scipy(
        starts.unsqueeze(-2),
        compressed,
        lower_bounds=torch.zeros_like(lower),
        upper_bounds=torch.ones_like(lower),
        options={"maxiter": _MAX_ITERATIONS},
    )
    union = torch.cat([polished.detach().squeeze(-2), candidates])
    with torch.no_grad():
        polished_scores = score_in_unit_box(polished.detach())
    scores = torch.cat([polished_scores, scores]).nan_to_num(nan=-math.inf)
    best = int(scores.argmax())
    challenger = torch.minimum(lower + width * union[best], bounds[1])
    return challenger.unsqueeze(0), float(scores[best])


def _starting_points(
    acquisition: PACAcquisition, X_observed: Tensor, bounds: Tensor, seed: int | None
) -> Tensor:
    """Points of the unit box from which the challenger is searched, `N x d`.

    The maximum typically lies in a thin shell around the incumbent, often on a face of
    the box; neither is met by space-filling points in more than a few dimensions.
    """
    lower, width = bounds[0], bounds[1] - bounds[0]
    d = len(lower)
    entropy = np.random.SeedSequence(seed)
    sobol_seed, torch_seed = (int(s) for s in entropy.generate_state(2))
    rng = torch.Generator().manual_seed(torch_seed)
    filling = SobolEngine(d, scramble=True, seed=sobol_seed).draw(
        _NUM_SPACE_FILLING + _NUM_FACES, dtype=torch.float64
    )
    filling, faces = filling[:_NUM_SPACE_FILLING], filling[_NUM_SPACE_FILLING:]
    to_face = torch.rand(faces.shape, generator=rng) < max(0.5 / d, 0.15)
    faces = torch.where(to_face, faces.round(), faces)

    visited = (X_observed - lower) / width
    incumbent = (acquisition.incumbent - lower) / width
    half = _NUM_CLOUD // 2
    which = torch.randint(len(visited), (_NUM_CLOUD - half,), generator=rng)
    centres = torch.cat([incumbent.expand(half, d), visited[which]])
    direction = torch.randn(_NUM_CLOUD, d, generator=rng, dtype=torch.float64)
    exponent = torch.rand(_NUM_CLOUD, 1, generator=rng, dtype=torch.float64)
    radius = 10.0 ** (-3.0 + 2.5 * exponent)
    cloud = centres + radius * direction * _relative_lengthscales(acquisition.model, d)
    return torch.cat([filling, faces, cloud, visited]).clamp(0.0, 1.0)


def _relative_lengthscales(model: Model, d: int) -> Tensor:
    """Length scales in units of the box, at most one; ones where a model has none."""
    kernel = getattr(model, "covar_module", None)
    kernel = getattr(kernel, "base_kernel", kernel)
    lengthscale = getattr(kernel, "lengthscale", None)
    if lengthscale is None or lengthscale.numel() not in (1, d):
        return torch.ones(d, dtype=torch.float64)
    return lengthscale.detach().double().reshape(-1).clamp(max=1.0).expand(d)


def _spread_out_best(candidates: Tensor, scores: Tensor) -> Tensor:
    """Choose high-scoring starts that are not all in one place, `k x d`."""
    order = scores.nan_to_num(nan=-math.inf).argsort(descending=True)
    ranked = candidates[order[: 40 * _NUM_POLISHED]]
    chosen = ranked[:1]
    # Every second start is the best remaining one wherever it lies; the others keep a
    # distance, so that a second mode is polished too.
    for start in range(1, _NUM_POLISHED):
        distance = torch.cdist(ranked, chosen).amin(-1)
        keep = distance > (0.0 if start % 2 else 0.1)
        if not keep.any():
            break
        chosen = torch.cat([chosen, ranked[int(keep.nonzero()[0])].unsqueeze(0)])
    return chosen


def _check_bounds(bounds: Tensor, X_observed: Tensor) -> Tensor:
    """Return the bounds in float64, or refuse what is not a box around the points."""
    bounds = torch.as_tensor(bounds)
    if bounds.shape != (2, X_observed.shape[-1]):
        raise ValueError(
            f"bounds must have shape `2 x d` with d = {X_observed.shape[-1]}, lower "
            f"row first; got shape {tuple(bounds.shape)}"
        )
    bounds = bounds.to(torch.float64)
    if not (bounds.isfinite().all() and (bounds[0] < bounds[1]).all()):
        raise ValueError(f"bounds must be finite, lower below upper; got {bounds}")
    return bounds


def _reason(
    delta: float, epsilon: float, failure_probability: float, certifiable: bool
) -> str:
    """Say the pairwise verdict in one sentence."""
    if not certifiable:
        return "the score of the challenger is not finite; the model cannot be trusted"
    verdict = "at most" if failure_probability <= epsilon else "above"
    return (
        f"the strongest challenger beats the incumbent by more than {delta:.4g} with "
        f"probability {failure_probability:.3g}, {verdict} epsilon = {epsilon:.4g} "
        "(pairwise: each challenger on its own, which is necessary, not sufficient)"
    )
