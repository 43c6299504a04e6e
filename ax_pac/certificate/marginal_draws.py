"""Draws of the difference to the incumbent, one per hyperparameter setting."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from ax_pac.acquisition.difference import VARIANCE_FLOOR
from ax_pac.acquisition.ruled_out import slack_of_value
from ax_pac.domain import Domain
from ax_pac.known import KnownFunction
from ax_pac.surrogate.mcmc import (
    JITTER,
    MEAN_VARIANCE,
    HyperparameterSample,
    matern,
)

# Values of a function revealed between two looks at which candidates still matter.
_REVEALED_AT_ONCE = 4

# Share of the tolerance that each later look may drop.
_DROPPED_SHARE = 0.1

# A draw that has revealed this many values ends with a bound on what is left.
_MAX_REVEALED = 96

# Under each setting candidates are added around those that are likely to fail under it:
# number of rounds; number per coordinate, and the most; smallest and largest distance
# in length scales, as powers of ten. The maximum of a draw lies between any few hundred
# points that all settings share; without the added ones, half of the failures are
# missed in four dimensions.
_NUM_ROUNDS = 2

_NUM_ADDED = (150, 600)

_ADDED_DISTANCES = (-1.5, 0.3)

# Doubles in the largest temporary while settings are scored, and while their values are
# revealed: what fits into the caches of a core, and what makes a step longer than the
# call that starts it.
_CHUNK_SIZE = 500_000

_REVEAL_SIZE = 1_000_000

# Settings between two looks at whether they are enough: few at first, as most checks
# that fail are far above epsilon.
_FIRST_SETTINGS = 16


def standardised_data(
    model: SingleTaskGP, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the data of a plain GP in its internal units, higher outcomes better.

    Args:
        model: With known noise.
        weight: 1 to maximise, -1 to minimise.

    Returns:
        Inputs, `n x d`, outcomes and variances of their noise, both `n`.
    """
    Y = weight * model.train_targets.detach()
    noise = model.likelihood.noise.detach().expand(len(Y)).clone()
    return model.train_inputs[0].detach(), Y, noise


class DifferenceProblem:
    """Data, incumbent and candidates in the internal units of the surrogate.

    Args:
        model: A fitted plain `SingleTaskGP` with known noise.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        candidates: Shape `N x d`. Unit: the model's input units.
        delta: Tolerance. Unit: objective units.
        weight: 1 to maximise, -1 to minimise.
        bounds: A box, `2 x d`, or a domain, in which added candidates lie. Unit: the
            model's input units. Default: the range of the candidates.
        known: What is added to the model's outcome; None for nothing.
        threshold: Of `weight` times the incumbent's value: points that can only beat
            less are left out. Unit: objective units.
    """

    def __init__(
        self,
        model: SingleTaskGP,
        incumbent: Tensor,
        candidates: Tensor,
        delta: float,
        weight: float,
        bounds: Tensor | Domain | None = None,
        known: KnownFunction | None = None,
        threshold: float = -math.inf,
    ) -> None:
        model.eval()
        transform = getattr(model, "outcome_transform", None)
        scale = 1.0 if transform is None else float(transform.stdvs)
        self._known, self._weight, self._scale = known, weight, scale
        self._raw_delta, self._raw_threshold = delta, threshold
        with torch.no_grad():
            self.Z, self.Y, self.noise = standardised_data(model, weight)
            self.incumbent = model.transform_inputs(incumbent).detach()
            self.candidates = model.transform_inputs(candidates).detach()
            if bounds is None:
                bounds = torch.stack([candidates.amin(0), candidates.amax(0)])
            self.domain = Domain.of(bounds)
            self._lower, self._upper = model.transform_inputs(self.domain.box).detach()
        self.delta = delta / scale
        self._transform = getattr(model, "input_transform", None)
        # Of the unknown part, standardised: what the incumbent is hardly ever below.
        self.threshold = -math.inf
        self.shift = torch.zeros(len(candidates), dtype=torch.float64)
        if known is not None:
            with torch.no_grad():
                self._at_incumbent = known(incumbent).reshape(())
                self.shift = self._shift(candidates)
            mean = 0.0 if transform is None else float(transform.means)
            unknown = threshold - weight * (float(self._at_incumbent) + mean)
            self.threshold = unknown / scale

    def _shift(self, points: Tensor) -> Tensor:
        """Difference of the known part to the incumbent's, standardised."""
        assert self._known is not None
        return self._weight * (self._known(points) - self._at_incumbent) / self._scale

    def moved(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Move points to where they may count; the others become the incumbent.

        Args:
            points: In the internal units of the surrogate. Shape `... x d`.

        Returns:
            The points, and the difference of their known part to the incumbent's,
            standardised, `...`; None where nothing is known.
        """
        points = self.feasible(points)
        if self._known is None:
            return points, None
        with torch.no_grad():
            raw = points
            if self._transform is not None:
                raw = self._transform.untransform(points.reshape(-1, points.shape[-1]))
                raw = raw.reshape(points.shape)
            value = self._known(raw)
            shift = self._weight * (value - self._at_incumbent) / self._scale
            if self.threshold > -math.inf:
                slack = slack_of_value(
                    value,
                    self._known,
                    self._weight,
                    self._raw_delta,
                    self._raw_threshold,
                )
                closed = slack <= 0.0
                points = torch.where(closed.unsqueeze(-1), self.incumbent, points)
                shift = shift.masked_fill(closed, 0.0)
        return points, shift

    def feasible(self, points: Tensor) -> Tensor:
        """Move points into the domain; those that cannot be become the incumbent.

        Args:
            points: In the internal units of the surrogate. Shape `... x d`.
        """
        points = torch.maximum(torch.minimum(points, self._upper), self._lower)
        if self.domain.is_box:
            return points
        shape = points.shape
        points = points.reshape(-1, shape[-1])
        with torch.no_grad():
            if self._transform is not None:
                points = self._transform.untransform(points)
            inside = self.domain.nearest(points)
            lost = ~self.domain.contains(inside) if self.domain.constraints else None
            if self._transform is not None:
                inside = self._transform(inside)
            if lost is not None:  # the incumbent cannot beat itself
                inside = torch.where(lost.unsqueeze(-1), self.incumbent, inside)
        return inside.reshape(shape)


# What `_Functions` holds of each candidate, of each setting, and of each setting until
# values are revealed.
_PER_CANDIDATE = ("X", "known", "mean", "variance", "k_incumbent")

_PER_SETTING = ("floor", "scale", "survival", "dropped")

_BEFORE_REVEALING = (
    *("Z", "incumbent", "lengthscale", "whitener", "weights", "k_incumbent_data"),
)


class _Functions:
    """Joint draws of `f(x) - f(incumbent)`, one under each setting, point by point."""

    def __init__(
        self, problem: DifferenceProblem, lengthscale: Tensor, outputscale: Tensor
    ) -> None:
        self.problem = problem
        self.delta = problem.delta
        self.lengthscale = lengthscale
        self.scale = scale = outputscale[:, None, None]
        self.Z = problem.Z / lengthscale[:, None]
        self.incumbent = problem.incumbent / lengthscale[:, None]
        noise = torch.diag(problem.noise + JITTER)
        L = _kernel(self.Z, self.Z, scale) + MEAN_VARIANCE + noise
        self.whitener = torch.linalg.inv(torch.linalg.cholesky(L)).mT
        self.weights = (problem.Y @ self.whitener).unsqueeze(-1)
        self.k_incumbent_data = _kernel(self.incumbent, self.Z, scale)
        self.X = problem.candidates / lengthscale[:, None]
        self.known, self.mean, self.k_incumbent, self.variance = self._explained(self.X)
        self.mean = self.mean + problem.shift
        # Values revealed since the candidates were last thinned out.
        self.revealed: list[Tensor] = []
        # Probability that none of the revealed values exceeds delta.
        self.survival = torch.ones_like(outputscale)
        # Probability of a failure at dropped candidates, by the union bound.
        self.dropped = torch.zeros_like(outputscale)
        self.floor = 2.0 * VARIANCE_FLOOR * outputscale.unsqueeze(-1)

    def _explained(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Condition points, `S x N x d`, on the data.

        Returns:
            Rows of what the data, and later the revealed values, explain,
            `S x N x n`; mean, covariance with the incumbent and variance, `S x N`.
        """
        cross = _kernel(X, self.Z, self.scale).sub_(self.k_incumbent_data)
        known = cross @ self.whitener
        mean = (known @ self.weights).squeeze(-1)
        k_incumbent = _kernel(X, self.incumbent, self.scale).squeeze(-1)
        prior = 2.0 * (self.scale.squeeze(-1) - k_incumbent)
        explained = torch.linalg.vector_norm(known, dim=-1).square_()
        return known, mean, k_incumbent, prior.sub_(explained)

    def worse_incumbent(self) -> Tensor:
        """Probability under each setting that the incumbent is below the threshold."""
        if self.problem.threshold == -math.inf:
            return torch.zeros_like(self.survival)
        known = (self.k_incumbent_data + MEAN_VARIANCE) @ self.whitener
        mean = (known @ self.weights).reshape(-1)
        prior = self.scale.reshape(-1) + MEAN_VARIANCE
        variance = prior - known.square().sum(-1).reshape(-1)
        deviation = torch.maximum(variance, VARIANCE_FLOOR * prior).sqrt()
        return torch.special.ndtr((self.problem.threshold - mean) / deviation)

    def add_candidates(self, num_points: int, generator: torch.Generator) -> None:
        """Add points around those likely to fail, before any value is revealed.

        Each setting has its own: where a failure is likely under it, at distances in
        its length scales.
        """
        weights = torch.special.ndtr(self.scores()).clamp_min(1e-300)
        which = torch.multinomial(
            weights, num_points, replacement=True, generator=generator
        )
        num_settings, dim = len(which), self.X.shape[-1]
        centres = self.X.gather(1, which.unsqueeze(-1).expand(-1, -1, dim))
        shape = (num_settings, num_points)
        uniform = torch.rand(*shape, 1, generator=generator, dtype=torch.float64)
        nearest, farthest = _ADDED_DISTANCES
        distance = 10.0 ** (nearest + (farthest - nearest) * uniform) / math.sqrt(dim)
        direction = torch.randn(*shape, dim, generator=generator, dtype=torch.float64)
        lengthscale = self.lengthscale.unsqueeze(1)
        points = centres * lengthscale
        points = points + distance * direction * lengthscale.clamp_max(1.0)
        points, shift = self.problem.moved(points)
        X = points / lengthscale
        self.X = torch.cat([self.X, X], 1)
        known, mean, k_incumbent, variance = self._explained(X)
        if shift is not None:
            mean = mean + shift
        self.known = torch.cat([self.known, known], 1)
        self.mean = torch.cat([self.mean, mean], 1)
        self.k_incumbent = torch.cat([self.k_incumbent, k_incumbent], 1)
        self.variance = torch.cat([self.variance, variance], 1)

    def scores(self) -> Tensor:
        """Standardised gaps given what is known, `S x N`."""
        deviation = torch.maximum(self.variance, self.floor).sqrt()
        return (self.mean - self.delta) / deviation

    def keep_candidates(self, scores: Tensor, tolerance: float) -> int:
        """Drop candidates that together fail with at most the tolerance.

        Returns:
            The number kept, the same for all settings.
        """
        self._absorb()
        probability, order = torch.special.ndtr(scores).sort(-1, descending=True)
        left_out = probability.flip(-1).cumsum(-1).flip(-1)
        size = max(1, int((left_out > tolerance).sum(-1).amax()))
        if size > 0.8 * scores.shape[-1]:
            return size
        order = order[:, :size]
        self.X, self.known = (
            t.gather(1, order.unsqueeze(-1).expand(-1, -1, t.shape[-1]))
            for t in (self.X, self.known)
        )
        self.mean, self.variance, self.k_incumbent = (
            t.gather(1, order) for t in (self.mean, self.variance, self.k_incumbent)
        )
        self.dropped = self.dropped + self.survival * left_out[:, size]
        return size

    def _absorb(self) -> None:
        """Add what the revealed values explain to what the data explain."""
        if self.revealed:
            self.known = torch.cat([self.known, torch.stack(self.revealed, -1)], -1)
            self.revealed = []

    def keep_settings(self, which: Tensor) -> None:
        """Keep some settings, in the order given: those whose draw has not ended."""
        self._absorb()
        for name in (*_PER_CANDIDATE, *_PER_SETTING):
            setattr(self, name, getattr(self, name)[which])

    def part(self, which: Tensor) -> _Functions:
        """Return some of the settings on their own, before any value is revealed."""
        part = copy.copy(self)
        part.revealed = []
        for name in (*_PER_CANDIDATE, *_PER_SETTING, *_BEFORE_REVEALING):
            setattr(part, name, getattr(self, name)[which])
        return part

    @staticmethod
    def joined(parts: Sequence[_Functions]) -> _Functions:
        """Return the settings of several together, to reveal their values at once.

        Those with fewer candidates get some that cannot fail.
        """
        if len(parts) == 1:
            return parts[0]
        whole = copy.copy(parts[0])
        whole.revealed = []
        most = max(part.mean.shape[-1] for part in parts)
        for name in _PER_CANDIDATE:
            tensors = [getattr(part, name) for part in parts]
            value = -math.inf if name == "mean" else 0.0
            shape = (sum(len(t) for t in tensors), most, *tensors[0].shape[2:])
            padded = torch.full(shape, value, dtype=torch.float64)
            row = 0
            for t in tensors:
                padded[row : row + len(t), : t.shape[1]] = t
                row += len(t)
            setattr(whole, name, padded)
        for name in _PER_SETTING:
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
        return whole

    def reveal(self, pivot: Tensor, uniform: Tensor) -> None:
        """Draw one value of each setting, below delta, and condition on it.

        Args:
            pivot: Index of the candidate. Shape `S`.
            uniform: Draws from the unit interval. Shape `S`.
        """
        row = torch.arange(len(pivot))
        point = self.X[row, pivot].unsqueeze(1)
        prior = _kernel(self.X, point, self.scale).squeeze(-1)
        prior = prior - self.k_incumbent - self.k_incumbent[row, pivot].unsqueeze(-1)
        prior = prior + self.scale.squeeze(-1)
        explained = (self.known @ self.known[row, pivot].unsqueeze(-1)).squeeze(-1)
        for update in self.revealed:
            explained += update * update[row, pivot].unsqueeze(-1)
        deviation = torch.maximum(self.variance[row, pivot], self.floor.squeeze(-1))
        deviation = deviation.sqrt()
        below = torch.special.ndtr((self.delta - self.mean[row, pivot]) / deviation)
        self.survival = self.survival * below
        # Keep the quantile finite where almost no draw is below delta; such a function
        # ends, as its survival is almost zero.
        normal = torch.special.ndtri((uniform * below).clamp_min(1e-300))
        update = (prior - explained) / deviation.unsqueeze(-1)
        self.revealed.append(update)
        self.mean = self.mean + update * normal.unsqueeze(-1)
        self.variance = self.variance - update.square()
        # A revealed value is below delta and cannot fail any more.
        self.mean[row, pivot] = -math.inf


class FunctionDraws(NamedTuple):
    """Functions drawn, one under each setting of the hyperparameters.

    Args:
        failure: Unbiased estimate of the probability that some candidate exceeds delta,
            plus a bound for the candidates left out. Shape `S`, or shorter where the
            first were enough, in [0, 1].
        active_set_size: Largest number of candidates that took part in a draw.
        pairwise: Each candidate's own probability of exceeding delta, averaged over
            the settings. Shape `N`.
        worse_incumbent: The part of all failures, summed, for an incumbent below the
            threshold.
    """

    failure: Tensor
    active_set_size: int
    pairwise: Tensor
    worse_incumbent: float = 0.0


def draw_failures(
    problem: DifferenceProblem,
    sample: HyperparameterSample,
    tolerance: float,
    generator: torch.Generator,
    num_rounds: int = _NUM_ROUNDS,
    is_enough: Callable[[Tensor], bool] | None = None,
) -> FunctionDraws:
    """Estimate under each setting the probability that any point beats the incumbent.

    Each setting adds candidates around those that are likely to fail under it. The
    difference `f(x) - f(incumbent)` is then drawn jointly at all candidates that are
    not negligible, each value from its distribution below delta. One minus the product
    of the probabilities of being below is an unbiased estimate of the probability that
    one is above, with far less variance than the share of draws that are. Candidates
    left out are bounded by the union bound, which is added.

    Args:
        problem: Data, incumbent, candidates and delta.
        sample: `S` settings of the hyperparameters.
        tolerance: Probability that is negligible, in (0, 1).
        generator: Source of every random number.
        num_rounds: How often candidates are added; 0 for those of the problem alone.
        is_enough: Called with the estimates so far, after each chunk of settings; the
            remaining settings are left out once it returns True. Default: none is.

    Returns:
        The estimates, with counts.

    Source: Geweke 1991, Hajivassiliou and McFadden 1998, Keane 1994 (the GHK simulator
    of a Gaussian orthant). Deviation: the order of the points is chosen adaptively.
    """
    num_settings = len(sample.outputscale)
    failure, largest = torch.zeros(0, dtype=torch.float64), 0
    worse_sum = 0.0
    pairwise = torch.zeros(len(problem.candidates), dtype=torch.float64)
    begin, enough = 0, False
    while begin < num_settings:
        end = min(max(_FIRST_SETTINGS, 2 * begin), num_settings)
        settings = sample.lengthscale[begin:end], sample.outputscale[begin:end]
        begin = end
        if enough:
            pairwise += _pairwise(problem, *settings)
            continue
        parts, order = _scored(problem, *settings, tolerance, generator, num_rounds)
        pairwise += torch.stack([part.pairwise for part in parts]).sum(0)
        worse = torch.cat([part.worse for part in parts])
        worse_sum += float(worse.sum())
        functions = [part.functions for part in parts]
        largest = max(largest, *(f.mean.shape[-1] for f in functions))
        drawn = torch.empty(len(order), dtype=torch.float64)
        drawn[order] = worse + _drawn(functions, tolerance, generator)
        failure = torch.cat([failure, drawn.clamp_max(1.0)])
        enough = is_enough is not None and is_enough(failure)
    return FunctionDraws(failure, largest, pairwise / num_settings, worse_sum)


def _pairwise(
    problem: DifferenceProblem, lengthscale: Tensor, outputscale: Tensor
) -> Tensor:
    """Each shared candidate's own probability of failing, summed over settings."""
    size = max(1, _CHUNK_SIZE // (len(problem.candidates) * len(problem.Z)))
    chunks = zip(lengthscale.split(size), outputscale.split(size), strict=True)
    scores = [_Functions(problem, *chunk).scores() for chunk in chunks]
    return torch.special.ndtr(torch.cat(scores)).sum(0)


class _Part(NamedTuple):
    """Some settings with their candidates.

    Args:
        functions: Under the settings, with the candidates that are not negligible.
        pairwise: Each shared candidate's own probability of failing, summed over them.
        worse: Probability of an incumbent below the threshold. Shape `S`.
    """

    functions: _Functions
    pairwise: Tensor
    worse: Tensor


def _scored(
    problem: DifferenceProblem,
    lengthscale: Tensor,
    outputscale: Tensor,
    tolerance: float,
    generator: torch.Generator,
    num_rounds: int,
) -> tuple[list[_Part], Tensor]:
    """Find the candidates that are not negligible under each setting.

    Returns:
        The settings in parts, and the index of each in their order.
    """
    num_candidates, dim = problem.candidates.shape
    num_data = len(problem.Z)
    num_added = min(_NUM_ADDED[0] * dim, _NUM_ADDED[1])
    most = num_candidates + num_rounds * num_added
    many = max(1, _CHUNK_SIZE // (num_candidates * num_data))
    few = max(1, _CHUNK_SIZE // (most * num_data))
    parts, orders = [], []
    for begin in range(0, len(outputscale), many):
        chunk = slice(begin, begin + many)
        functions = _Functions(problem, lengthscale[chunk], outputscale[chunk])
        probability = torch.special.ndtr(functions.scores())
        worse = functions.worse_incumbent()
        # Settings that keep about as many candidates go together.
        order = probability.sum(-1).argsort()
        orders.append(begin + order)
        for which in order.split(few):
            part = functions.part(which)
            part.keep_candidates(part.scores(), tolerance)
            for _ in range(num_rounds):
                part.add_candidates(num_added, generator)
                part.keep_candidates(part.scores(), tolerance)
            parts.append(_Part(part, probability[which].sum(0), worse[which]))
    return parts, torch.cat(orders)


def _drawn(
    parts: Sequence[_Functions], tolerance: float, generator: torch.Generator
) -> Tensor:
    """Draw a function under each setting, as many at once as is fast."""
    numbers = [len(part.mean) for part in parts]
    sizes = [part.mean.shape[-1] for part in parts]
    found: dict[int, Tensor] = {}
    together: list[int] = []

    def reveal() -> None:
        functions = _Functions.joined([parts[i] for i in together])
        drawn = _reveal_until_negligible(functions, tolerance, generator)
        found.update(
            zip(together, drawn.split([numbers[i] for i in together]), strict=True)
        )
        together.clear()

    for i in sorted(range(len(parts)), key=sizes.__getitem__):
        number = sum(numbers[j] for j in [*together, i])
        if together and number * parts[i].known[0].numel() > _REVEAL_SIZE:
            reveal()
        together.append(i)
    reveal()
    return torch.cat([found[i] for i in range(len(parts))])


def _reveal_until_negligible(
    functions: _Functions, tolerance: float, generator: torch.Generator
) -> Tensor:
    """Reveal each function until what is left is negligible; return `S` probabilities.

    The point revealed next is the likeliest to fail given those revealed before. The
    choice depends on revealed values only, so the chain rule holds. Candidates that
    have become unlikely are dropped.
    """
    failure = torch.zeros_like(functions.survival)
    going = torch.arange(len(failure))
    revealed = 0
    while len(going):
        scores = functions.scores()
        left = functions.survival * torch.special.ndtr(scores).sum(-1)
        ended = (left <= tolerance) | (revealed >= _MAX_REVEALED)
        bound = 1.0 - functions.survival + left + functions.dropped
        failure[going[ended]] = bound[ended].clamp_max(1.0)
        if ended.any():
            going = going[~ended]
            if len(going) == 0:
                break
            functions.keep_settings(~ended)
            scores = scores[~ended]
        functions.keep_candidates(scores, _DROPPED_SHARE * tolerance)
        for _ in range(_REVEALED_AT_ONCE):
            pivot = functions.scores().argmax(-1)
            functions.reveal(
                pivot,
                torch.rand(len(pivot), generator=generator, dtype=torch.float64),
            )
        revealed += _REVEALED_AT_ONCE
    return failure


def _kernel(A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
    """Matern-5/2 covariance between scaled points, `S x a x d, S x b x d -> S x a x b`.

    Squared distances are expanded: their rounding error, about 1e-13 at the shortest
    length scales, is far below the variance floor's share of what it is compared with.
    """
    squared = torch.baddbmm(
        B.square().sum(-1).mul_(5.0).unsqueeze(-2).expand(-1, A.shape[-2], -1),
        A,
        B.mT,
        alpha=-10.0,
    )
    squared += A.square().sum(-1, keepdim=True).mul_(5.0)
    return matern(squared.clamp_min_(0.0)).mul_(scale)
