"""The search for the challenger, the point with the highest score."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from botorch.exceptions.warnings import OptimizationWarning
from botorch.generation import gen, gen_candidates_scipy
from botorch.models.model import Model
from torch import Tensor
from torch.quasirandom import SobolEngine

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.difference import Array
from ax_pac.acquisition.ruled_out import best_known
from ax_pac.cells import Cells
from ax_pac.domain import MAX_ENUMERATED, Domain

# Size of one search for the challenger: the smallest counts at which no larger search
# refuted a certificate in two, four and six dimensions.
_NUM_SPACE_FILLING = 512

_NUM_CLOUD = 512

_NUM_FACES = 128

_NUM_POLISHED = 8

_MAX_ITERATIONS = 100

# The same where every coordinate is rounded afterwards: more change no result.
_MAX_ITERATIONS_ROUNDED = 25

# Where not every point is scored, a point climbs from neighbour to neighbour, for at
# most this many rounds.
_MAX_CLIMBS = 50

# What a point scores less, per delta by which it cannot win, while points climb.
_PENALTY = 30.0

# Scores whose relative difference is smaller are the same.
_TIE = 1e-8

# Shifts and factors that spread the bits of a number (those of SplitMix64, signed).
_MIXERS = ((30, -4658895280553007687), (27, -7723592293110705685))

# Halvings of the way from a point that can win to one that cannot.
_NUM_HALVINGS = 16


class Score(Protocol):
    """A function of a point that is compared with an incumbent, to be maximised."""

    incumbent: Tensor
    model: Model

    def __call__(self, X: Tensor) -> Tensor:
        """Evaluate points, `... x 1 x d` to `...`."""
        ...


class ChallengerSearch(NamedTuple):
    """What one search of the domain found.

    Args:
        challenger: The point with the highest score. Shape `1 x d`.
        score: Its score. Dimensionless (standard deviations).
        points: Every point that was scored, the polished ones first. Shape `N x d`.
        scores: Their scores, minus infinity for a point that cannot win. Shape `N`.
        none_can_win: Whether no point can, as far as the known part goes: the
            challenger is then the best of those that cannot.
    """

    challenger: Tensor
    score: float
    points: Tensor
    scores: Tensor
    none_can_win: bool = False


def find_challenger(
    acquisition: Score,
    X_observed: Tensor,
    bounds: Tensor | Domain,
    *,
    seed: int | None = None,
    effort: int = 1,
    cells: Cells | None = None,
    anywhere: bool = False,
) -> ChallengerSearch:
    """Search a box or a domain for the point with the highest score.

    The maximum typically lies in a thin shell around the incumbent, often on a face of
    the box; space-filling points miss both in more than a few dimensions. So the
    starting points are space-filling points, points on faces, a cloud at several scales
    around incumbent and visited points, and the visited points. The best of them, not
    all in one place, are optimised by gradient.

    In a `Domain` that is not a box, every candidate is one of its points: starting
    points are moved into it, gradient steps keep its constraints, and discrete
    coordinates climb from value to value. The incumbent is no candidate, nor what is
    the same as it: they score minus infinity. A small finite number of points are all
    scored.

    Points that the known part of the objective rules out (`PACAcquisition.can_win`)
    score minus infinity as well. Starting points are moved towards the point whose
    known part is best, until they can win, and so are those that gradient steps leave.
    Where no point is found that can win, although some may, the rule is not applied.

    Args:
        acquisition: The score, with its incumbent.
        X_observed: Visited points. Shape `n x d`.
        bounds: The box, lower row first, `2 x d`, or a domain.
        seed: Seed of the random starting points; None draws a fresh one.
        effort: Multiple of the usual number of starting points and of polished ones.
        cells: Cells of points that are the same, in a box; None for none.
        anywhere: Whether points that cannot win are searched like the others.

    Returns:
        The challenger, its score, and every point that was scored.
    """
    domain = Domain.of(bounds, cells)
    if not _rules_out(acquisition):
        return _searched(acquisition, X_observed, domain, seed, effort)
    everywhere = functools.partial(
        _searched, _Anywhere(acquisition), X_observed, domain, seed, effort
    )
    if anywhere:
        return everywhere()
    if not _may_be_beaten(acquisition, domain):
        search = everywhere()
        none, no_scores = search.points[:0], search.scores[:0]
        return ChallengerSearch(search.challenger, search.score, none, no_scores, True)
    search = _searched(acquisition, X_observed, domain, seed, effort)
    return everywhere() if search.score == -math.inf else search


class _Anywhere:
    """A score under which every point can win."""

    def __init__(self, acquisition: Score) -> None:
        self.incumbent, self.model = acquisition.incumbent, acquisition.model
        self._acquisition = acquisition

    def __call__(self, X: Tensor) -> Tensor:
        """As in `Score`."""
        return self._acquisition(X)


def _rules_out(acquisition: Any) -> bool:
    """Whether there may be points that cannot beat the incumbent."""
    return bool(getattr(acquisition, "rules_out", False))


def open_scores(acquisition: Score, points: Tensor) -> Tensor:
    """Score points, `N x d` to `N`; minus infinity where one cannot win."""
    with torch.no_grad():
        scores = acquisition(points.unsqueeze(-2))
    if not _rules_out(acquisition):
        return scores
    return scores.masked_fill(~_can_win(acquisition, points), -math.inf)


def _slack(acquisition: Any, X: Tensor) -> Tensor:
    """By how many deltas points can win, negative where not; `... x 1 x d` to `...`."""
    return acquisition.slack(X.squeeze(-2)) / acquisition.delta


def _can_win(acquisition: Any, points: Tensor) -> Tensor:
    """Whether points may beat the incumbent, `N x d` to `N`."""
    return acquisition.can_win(points)


def _may_be_beaten(acquisition: Any, domain: Domain) -> bool:
    """Whether some point of the domain may beat the incumbent; True if unknown."""
    if domain.number <= MAX_ENUMERATED:
        points = domain.all_points()
        others = ~domain.are_same(points, acquisition.incumbent)
        return bool((_can_win(acquisition, points) & others).any())
    found = best_known(acquisition.known, acquisition.weight, domain)
    if found is None or not found.is_discrete:
        points = acquisition.incumbent[:0] if found is None else found.best
        return found is None or bool(_can_win(acquisition, points).any())
    points = torch.cat([found.best, found.next_best])
    others = ~domain.are_same(points, acquisition.incumbent)
    return bool((_can_win(acquisition, points) & others).any())


def _moved_to_open(acquisition: Any, points: Tensor, domain: Domain) -> Tensor:
    """Move points that cannot win towards the one whose known part is best.

    Every second one goes on for a random part of the way, as the others are all where
    points begin to be ruled out.

    Args:
        acquisition: The score.
        points: Shape `N x d`.
        domain: The domain.
    """
    closed = ~_can_win(acquisition, points)
    found = best_known(acquisition.known, acquisition.weight, domain)
    if found is not None:
        anchors = torch.cat([found.best, found.next_best])
    else:
        anchors = points[~closed]
        values = acquisition.weight * acquisition.known(anchors)
        anchors = anchors[values.topk(min(1, len(anchors))).indices]
    if len(anchors) == 0 or not bool(closed.any()):
        return torch.cat([points, anchors])
    anchor, moved = anchors[:1], points[closed]
    moved = _last_open(acquisition, anchor.expand_as(moved), moved)
    share = torch.linspace(0.0, 1.0, len(moved[::2]), dtype=torch.float64)
    share = share.pow(1.0 / points.shape[-1]).unsqueeze(-1)
    moved[::2] = anchor + share * (moved[::2] - anchor)
    points = points.clone()
    points[closed] = moved
    return torch.cat([points, anchors])


def _last_open(acquisition: Any, starts: Tensor, ends: Tensor) -> Tensor:
    """Go from points towards others, `N x d` each, for as long as one can win."""
    low = torch.zeros(len(ends), 1, dtype=torch.float64)
    high = torch.ones_like(low)
    high[_can_win(acquisition, ends)] = 0.0
    low[high == 0.0] = 1.0
    going = (high > 0.0).squeeze(-1)
    for _ in range(_NUM_HALVINGS if bool(going.any()) else 0):
        middle = (low + high) / 2
        is_open = _can_win(acquisition, starts + middle * (ends - starts)).unsqueeze(-1)
        low = torch.where(is_open & (high > 0.0), middle, low)
        high = torch.where(is_open, high, torch.where(high > 0.0, middle, high))
    return torch.where(low == 1.0, ends, starts + low * (ends - starts))


def _searched(
    acquisition: Score,
    X_observed: Tensor,
    domain: Domain,
    seed: int | None,
    effort: int,
) -> ChallengerSearch:
    """Search a domain, among the points that can win."""
    if domain.number <= MAX_ENUMERATED:
        points, scores = scored_points(acquisition, domain.all_points(), domain)
        return _ranked(points, scores)
    lower, width = domain.box[0], domain.box[1] - domain.box[0]

    score_to_climb = _ScoreToClimb(acquisition, domain.box)
    starts = _starting_points(acquisition, X_observed, domain.box, seed, effort)
    if _rules_out(acquisition):
        starts = _moved_to_open(acquisition, lower + width * starts, domain)
        starts = ((starts - lower) / width).clamp(0.0, 1.0)
    if domain.is_box:
        scores = open_scores(acquisition, lower + width * starts)
        best = _best_starts(acquisition, starts, scores, effort)
        polished = _polished(score_to_climb, best).squeeze(-2)
        if _rules_out(acquisition):
            polished = _last_open_in_unit_box(acquisition, best, polished, domain)
        scores = torch.cat([open_scores(acquisition, lower + width * polished), scores])
        scores = scores.nan_to_num(nan=-math.inf)
        points = torch.cat([polished, starts])
        return _ranked(torch.minimum(lower + width * points, domain.box[1]), scores)
    points = domain.spread(lower + width * starts)
    points, scores = scored_points(acquisition, points, domain)
    starts = (points - lower) / width
    best = _best_starts(acquisition, starts, scores, effort)
    polished = _polished_within(score_to_climb, best, domain, relaxed=True)
    if _rules_out(acquisition):
        polished = _last_open_in_unit_box(acquisition, best, polished, domain)
    points = lower + width * torch.cat([polished, starts])
    return _climbed(acquisition, points, domain, effort * _NUM_POLISHED)


def _last_open_in_unit_box(
    acquisition: Score, starts: Tensor, ends: Tensor, domain: Domain
) -> Tensor:
    """As `_last_open`, in units of the box."""
    lower, width = domain.box[0], domain.box[1] - domain.box[0]
    moved = _last_open(acquisition, lower + width * starts, lower + width * ends)
    return ((moved - lower) / width).clamp(0.0, 1.0)


class _ScoreToClimb:
    """The score in the unit box, made smooth where points cannot win.

    Args:
        acquisition: The score.
        box: Lower and upper bound of each coordinate, `2 x d`.
        penalized: Whether points that cannot win score less, the more so the further
            they are from those that can.
    """

    def __init__(
        self, acquisition: Any, box: Tensor, *, penalized: bool = True
    ) -> None:
        self._acquisition = acquisition
        self._lower, self._width = box[0], box[1] - box[0]
        self._penalized = penalized and _rules_out(acquisition)

    def __call__(self, U: Tensor) -> Tensor:
        """Evaluate points, `... x 1 x d` to `...`; with gradients by autograd."""
        X = self._lower + self._width * U
        score: Tensor = self._acquisition(X)
        if self._penalized:
            score = score + _PENALTY * _slack(self._acquisition, X).clamp_max(0.0)
        return score

    def with_gradient(self, U: Array) -> tuple[Array, Array] | None:
        """Evaluate points, `B x d`, with gradients in closed form; None without one."""
        find = getattr(self._acquisition, "score_with_gradient", None)
        if find is None:
            return None
        lower, width = self._lower.numpy(), self._width.numpy()
        found = find(lower + width * U, penalty=_PENALTY if self._penalized else 0.0)
        if found is None:
            return None
        score, gradient = found
        return score, width * gradient


def _climbed_in_closed_form(
    score: _ScoreToClimb, starts: Tensor, held: Sequence[int], max_iterations: int
) -> Tensor | None:
    """As `_polished`, `k x d` to the same; None where that cannot be."""
    minimize = getattr(gen, "fmin_l_bfgs_b_batched", None)
    if minimize is None or score.with_gradient(starts[:1].numpy()) is None:
        return None
    fixed = list(held)

    def negative(x: Array) -> tuple[Array, Array]:
        found = score.with_gradient(x)
        assert found is not None
        value, gradient = found
        gradient = -gradient / np.sqrt(1.0 + value * value)[:, None]
        gradient[:, fixed] = 0.0
        return -np.arcsinh(value), gradient

    points, _, _ = minimize(
        negative,
        starts.numpy().copy(),
        bounds=[(0.0, 1.0)] * starts.shape[-1],
        maxiter=max_iterations,
    )
    return torch.from_numpy(points)


def _polished(
    score: _ScoreToClimb,
    starts: Tensor,
    held: Sequence[int] = (),
    constraints: Sequence[tuple[Tensor, Tensor, float]] = (),
    max_iterations: int = _MAX_ITERATIONS,
) -> Tensor:
    """Climb from each start, `k x d`, within the unit box; return `k x 1 x d`.

    Args:
        score: The score of points in the unit box.
        starts: Shape `k x d`.
        held: Coordinates that stay as they are.
        constraints: As in BoTorch, `(indices, coefficients, rhs)` with the sum at least
            `rhs`. The starts keep them.
        max_iterations: Of each start.
    """
    if not constraints:
        points = _climbed_in_closed_form(score, starts, held, max_iterations)
        if points is not None:
            return points.unsqueeze(-2)
    zeros = torch.zeros(starts.shape[-1], dtype=torch.float64)
    keep = torch.zeros(starts.shape[-1], dtype=torch.bool)
    keep[list(held)] = True
    starts = starts.unsqueeze(-2)

    def compressed(U: Tensor) -> Tensor:
        # Monotone, so the maximiser stays; it flattens the drop to minus infinity
        # around the incumbent.
        return torch.asinh(score(torch.where(keep, U.detach(), U) if held else U))

    with warnings.catch_warnings(record=True) as caught:
        points, _ = gen_candidates_scipy(
            starts,
            compressed,
            lower_bounds=zeros,
            upper_bounds=zeros + 1.0,
            inequality_constraints=list(constraints) or None,
            fixed_features={j: float(starts[0, 0, j]) for j in held}
            if constraints
            else None,
            options={"maxiter": max_iterations},
        )
    for warning in caught:
        # A line search that ends early, as at the drop around a point without noise,
        # has climbed nevertheless. BoTorch's warning ignores filters.
        if not issubclass(warning.category, OptimizationWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return points.detach()


def _polished_within(
    score: _ScoreToClimb, starts: Tensor, domain: Domain, *, relaxed: bool
) -> Tensor:
    """Climb from points of a domain, in units of its box; shape `k x d` as they came.

    Args:
        score: The score of points in the unit box.
        starts: Points of the domain. Shape `k x d`.
        domain: The domain.
        relaxed: Whether coordinates with ordered values vary continuously; they have to
            be rounded afterwards. Choices always stay as they are: between two of them
            there is nothing.
    """
    held = domain.choices if relaxed else domain.discrete
    if len(held) == domain.dim or len(starts) == 0:
        return starts
    if not domain.constraints:
        starts = starts.clamp(0.0, 1.0)
        is_rounded = len(domain.discrete) == domain.dim
        iterations = _MAX_ITERATIONS_ROUNDED if is_rounded else _MAX_ITERATIONS
        return _polished(score, starts, held, max_iterations=iterations).squeeze(-2)
    lower, width = domain.box[0], domain.box[1] - domain.box[0]
    A, b = domain.linear_constraints
    rows = [
        (a.nonzero().squeeze(-1), -(a * width)[a != 0.0], float(a @ lower - bound))
        for a, bound in zip(A, b, strict=True)
    ]
    # One at a time: together they would be one problem, whose cost is cubic.
    found = []
    for start in starts.split(1):
        free = [row for row in rows if not set(row[0].tolist()) <= set(held)]
        start = start.clamp(0.0, 1.0)
        polished = _polished(score, start, held, free).squeeze(-2).clamp(0.0, 1.0)
        inside = domain.drawn_to(lower + width * start, lower + width * polished)
        found.append((inside - lower) / width)
    return torch.cat(found)


def first_of_best(scores: Tensor) -> int:
    """Return the first of the scores that are the highest to rounding error.

    Starts that climbed to one maximum tie. A search that is loaded fits the same
    hyperparameters to ten digits only, and has to choose the same point.
    """
    best = scores.max()
    if not bool(best.isfinite()):
        return int(scores.argmax())
    return int((scores >= best - _TIE * best.abs()).nonzero()[0])


def _ranked(points: Tensor, scores: Tensor) -> ChallengerSearch:
    """Pick the highest score; of several that tie, the first."""
    top = first_of_best(scores)
    return ChallengerSearch(points[top : top + 1], float(scores[top]), points, scores)


def scored_points(
    acquisition: Score, points: Tensor, domain: Domain
) -> tuple[Tensor, Tensor]:
    """Score the points of a domain that are nearest to points, each once.

    Args:
        acquisition: The score, with its incumbent.
        points: Shape `N x d`.
        domain: The domain. Points that cannot be moved into it are left out.

    Returns:
        Points of the domain, `M x d` with M at most N, and their scores, `M`: minus
        infinity for what is the same as the incumbent, and for what cannot win.
    """
    points = distinct(domain.nearest(points))
    if domain.constraints:
        points = points[domain.contains(points)]
    scores = open_scores(acquisition, points).nan_to_num(nan=-math.inf)
    return points, scores.masked_fill(
        domain.are_same(points, acquisition.incumbent), -math.inf
    )


def distinct(points: Tensor) -> Tensor:
    """Return each of the points once, `N x d` to `M x d`, in their order.

    By a 64-bit key of their bits: two different points out of a million have the same
    one with a probability of 3e-8, and one of them is then left out.
    """
    return points[_first_of_each(_keys(points))]


def _keys(points: Tensor) -> Tensor:
    """Return a number for each point, the same for the same points, `N x d` to `N`."""
    bits = (points + 0.0).contiguous().view(torch.int64)  # a zero has no sign
    for shift, factor in _MIXERS:
        bits = (bits ^ (bits >> shift)) * factor
    bits ^= bits >> 32
    column = torch.arange(1, points.shape[-1] + 1)
    return (bits * ((2 * column + 1) * _MIXERS[0][1])).sum(-1)


def _first_of_each(keys: Tensor) -> Tensor:
    """Return the index of the first of equal keys, in ascending order."""
    ordered, order = keys.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return order[is_first].sort().values


def _climbed(
    acquisition: Score, points: Tensor, domain: Domain, num_best: int
) -> ChallengerSearch:
    """Move the best points to better neighbours: rounding may miss the maximum."""
    found = [scored_points(acquisition, points, domain)]
    points, scores = found[0]
    best = points[scores.topk(min(num_best, len(scores))).indices]
    level = torch.full((len(best),), -math.inf, dtype=torch.float64)
    seen = [points[:0]]
    for _ in range(_MAX_CLIMBS if domain.discrete else 0):
        around = torch.cat([best, domain.neighbours(best)])
        points, scores = _scored_on_the_way(acquisition, around, domain)
        seen.append(points)
        # Points that cannot win are left out, and all of them may be.
        number = min(len(best), len(scores))
        if number == 0:
            break
        top = scores.topk(number)
        # Scored in another batch, a point differs by rounding.
        if not (top.values > level[:number] + 1e-9).any():
            break
        best, level = points[top.indices], top.values
    found.append(scored_points(acquisition, torch.cat(seen), domain))
    if 0 < len(domain.discrete) < domain.dim:
        # What is continuous was optimised beside other values.
        lower, width = domain.box[0], domain.box[1] - domain.box[0]
        polished = _polished_within(
            _ScoreToClimb(acquisition, domain.box, penalized=False),
            (best - lower) / width,
            domain,
            relaxed=False,
        )
        found.append(scored_points(acquisition, lower + width * polished, domain))
    points = torch.cat([points for points, _ in found])
    scores = torch.cat([scores for _, scores in found])
    once = _first_of_each(_keys(points))
    points, scores = points[once], scores[once]
    return _ranked(points, scores)


def _scored_on_the_way(
    acquisition: Any, points: Tensor, domain: Domain
) -> tuple[Tensor, Tensor]:
    """As `scored_points`, of points of the domain, to rounding error."""
    find = getattr(acquisition, "score_with_gradient", None)
    if find is None or domain.constraints:
        return scored_points(acquisition, points, domain)
    points = distinct(points)
    if _rules_out(acquisition):
        points = points[_can_win(acquisition, points)]
    if len(points) == 0:
        return points, points.new_zeros(0)
    found = find(points.numpy())
    if found is None:
        return scored_points(acquisition, points, domain)
    same = domain.are_same(points, acquisition.incumbent)
    return points, torch.from_numpy(found[0]).masked_fill(same, -math.inf)


def _starting_points(
    acquisition: Score,
    X_observed: Tensor,
    bounds: Tensor,
    seed: int | None,
    effort: int,
) -> Tensor:
    """Points of the unit box from which the challenger is searched, `N x d`."""
    lower, width = bounds[0], bounds[1] - bounds[0]
    d = len(lower)
    entropy = np.random.SeedSequence(seed)
    sobol_seed, torch_seed = (int(s) for s in entropy.generate_state(2))
    rng = torch.Generator().manual_seed(torch_seed)
    num_filling, num_faces = effort * _NUM_SPACE_FILLING, effort * _NUM_FACES
    filling = SobolEngine(d, scramble=True, seed=sobol_seed).draw(
        num_filling + num_faces, dtype=torch.float64
    )
    filling, faces = filling[:num_filling], filling[num_filling:]
    to_face = torch.rand(faces.shape, generator=rng) < max(0.5 / d, 0.15)
    faces = torch.where(to_face, faces.round(), faces)

    visited = (X_observed - lower) / width
    incumbent = (acquisition.incumbent - lower) / width
    num_cloud = effort * _NUM_CLOUD
    half = num_cloud // 2
    which = torch.randint(len(visited), (num_cloud - half,), generator=rng)
    centres = torch.cat([incumbent.expand(half, d), visited[which]])
    direction = torch.randn(num_cloud, d, generator=rng, dtype=torch.float64)
    exponent = torch.rand(num_cloud, 1, generator=rng, dtype=torch.float64)
    radius = 10.0 ** (-3.0 + 2.5 * exponent)
    cloud = centres + radius * direction * relative_lengthscales(acquisition.model, d)
    return torch.cat([filling, faces, cloud, visited]).clamp(0.0, 1.0)


def relative_lengthscales(model: Model, d: int) -> Tensor:
    """Length scales in units of the box, at most one; ones where a model has none."""
    kernel = getattr(model, "covar_module", None)
    kernel = getattr(kernel, "base_kernel", kernel)
    lengthscale = getattr(kernel, "lengthscale", None)
    if lengthscale is None or lengthscale.numel() not in (1, d):
        return torch.ones(d, dtype=torch.float64)
    return lengthscale.detach().double().reshape(-1).clamp(max=1.0).expand(d)


def _best_starts(
    acquisition: Score, starts: Tensor, scores: Tensor, effort: int
) -> Tensor:
    """Choose the starting points to climb from, among those that can win."""
    usable = scores > -math.inf
    if _rules_out(acquisition) and bool(usable.any()):
        starts, scores = starts[usable], scores[usable]
    return _spread_out_best(starts, scores, effort * _NUM_POLISHED)


def _spread_out_best(points: Tensor, scores: Tensor, num_best: int) -> Tensor:
    """Choose high-scoring starting points, not all in one place, `k x d`."""
    order = scores.nan_to_num(nan=-math.inf).argsort(descending=True)
    ranked = points[order[: 40 * num_best]]
    chosen = ranked[:1]
    # Every second one is the best remaining; the others keep a distance, so that a
    # second mode is optimised too.
    for start in range(1, num_best):
        distance = torch.cdist(ranked, chosen).amin(-1)
        keep = distance > (0.0 if start % 2 else 0.1)
        if not keep.any():
            break
        chosen = torch.cat([chosen, ranked[int(keep.nonzero()[0])].unsqueeze(0)])
    return chosen


def more_informative(acquisition: PACAcquisition, challenger: Tensor) -> Tensor:
    """Choose which of challenger and incumbent to evaluate.

    The one whose evaluation reduces the variance of their difference D more:

        cov(f(u), D)^2 / (var(f(u)) + noise(u)),   u in {challenger, incumbent}.

    The score is minus infinity at the incumbent, so a search that always evaluates the
    challenger never repeats the incumbent. Under noise such a search learns one side of
    the difference only, and often does not finish.

    Args:
        acquisition: The score, with model, incumbent and pending points.
        challenger: Shape `1 x d`.

    Returns:
        The challenger or the incumbent. Shape `1 x d`.

    Source: none in Ma et al. 2019; the leader of top-two rules in best-arm
    identification. Deviation from Eq. (11), which evaluates the challenger.
    """
    covariance = acquisition.pair_covariance(challenger)
    with_difference = covariance[:, 0] - covariance[:, 1]
    pair = torch.cat([challenger, acquisition.incumbent])
    noise = predicted_noise(acquisition, pair)
    gain = with_difference.square() / (covariance.diagonal() + noise).clamp_min(
        torch.finfo(torch.float64).tiny
    )
    return pair[1:] if gain[1] > gain[0] else pair[:1]


def predicted_noise(acquisition: PACAcquisition, points: Tensor) -> Tensor:
    """Predict the noise variance of an evaluation from those made before.

    The geometric mean of the variances at visited points, each weighted by the square
    of its prior correlation with the point: near a visited point it is that point's
    noise, far from all of them the typical one. A model with one noise for all points
    gives that one.

    Args:
        acquisition: The score, with its model.
        points: Shape `N x d`. Unit: the model's input units.

    Returns:
        Shape `N`. Unit: squared objective units. Zeros for a model without a noise
        level.
    """
    model = acquisition.model
    noise = getattr(getattr(model, "likelihood", None), "noise", None)
    inputs = getattr(model, "train_inputs", None)
    if noise is None or inputs is None or inputs[0].ndim != 2:
        return torch.zeros(len(points), dtype=torch.float64)
    with torch.no_grad():
        Z = model.transform_inputs(points)
        noise = noise.reshape(-1).expand(len(inputs[0])).log()
        correlation = model.covar_module(Z, inputs[0]).to_dense()
        correlation = correlation / model.covar_module(Z, diag=True).unsqueeze(-1)
        weights = correlation.square() + torch.finfo(torch.float64).eps
        mean = (weights @ noise) / weights.sum(-1)
        scale = float(getattr(getattr(model, "outcome_transform", None), "stdvs", 1.0))
        return scale**2 * mean.exp()
