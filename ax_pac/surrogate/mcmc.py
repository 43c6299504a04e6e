"""Samples from the posterior of the surrogate's hyperparameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

# Priors, log-normal, in units of the box and of the standardised outcome. The distance
# between two random points grows with the square root of the dimension, and so does
# the median length scale: 0.25 in one dimension, 0.35 in two, 1 in sixteen. Two thirds
# of the prior lie within a factor of 2.1 of the median on either side.
LENGTHSCALE_MEDIAN = 0.25

LENGTHSCALE_LOG_SD = 0.75

# Longer ones count as this, in units of the box. Where a search has looked, around one
# peak, a coordinate can seem to have no influence; a length scale of many boxes says
# that it has none anywhere, and rules out a peak elsewhere that nobody looked at.
LONGEST_LENGTHSCALE = 2.0

OUTPUTSCALE_MEDIAN = 1.0

OUTPUTSCALE_LOG_SD = 0.75

# Prior deviations that the best outcome may be above the mean. Around a narrow peak
# most observations are high and agree with each other, and a fit to them may call the
# peak itself next to impossible; it then rules out a second one where nobody looked.
MOST_DEVIATIONS = 3.5

# Prior variance of the constant mean, which is integrated out.
MEAN_VARIANCE = 1.0

# Added to the noise, in units of the standardised outcome's variance: without it a
# nearly noiseless kernel matrix with a long length scale has no Cholesky factor.
JITTER = 1e-8

NUM_CHAINS = 64

_NUM_STARTS = 512

_PRIOR_PERIOD = 3

_CHUNK_SIZE = 300_000  # doubles factorised at a time: what fits into a core's cache

_DEGREES_OF_FREEDOM = 5.0

_MAX_SHRINKS = 100

_MOST_TRIES = 8

_NUM_GROUPS = 8


@dataclasses.dataclass(frozen=True)
class HyperparameterSample:
    """Draws from the posterior of the hyperparameters, with diagnostics.

    Args:
        lengthscale: Shape `S x d`. Unit: the box.
        outputscale: Shape `S`. Unit: the variance of the standardised outcome.
        effective_sample_size: Number of independent draws that would be as accurate,
            the smallest over the logarithms of the hyperparameters and the log
            posterior; at most `S`.
        r_hat: Largest potential scale reduction between groups of chains that started
            in different places; 1 when the starting point is forgotten.
    """

    lengthscale: Tensor
    outputscale: Tensor
    effective_sample_size: float
    r_hat: float


class HyperparameterChains:
    """Parallel Markov chains on the hyperparameters, which can be continued.

    The model is a Matern-5/2 kernel with one length scale per coordinate, known noise,
    and a constant mean with a standard normal prior, which is integrated out:

        Y ~ N(0, outputscale * k(X, X) + 1 + diag(Yvar)).

    Each sweep moves every chain along an ellipse through a draw from a Student
    distribution fitted to the other half of the chains, which crosses a concentrated
    posterior in a few sweeps. Every third sweep starts with an ellipse through a draw
    from the prior, which takes longer but needs no fit. All chains are factorised in
    batches.

    Args:
        X: Visited points, normalised to the unit box. Shape `n x d`.
        Y: Standardised outcomes. Shape `n`.
        Yvar: Variances of their noise, standardised likewise. Shape `n`.
        generator: Source of every random number.
        initial: Length scales (shape `d`) and output scale around which half of the
            starting points are scattered, such as the maximum-likelihood estimate.
            Default: all starting points come from the prior.
        settle: Whether to sweep until the starting points are forgotten; if not, that
            is done before the first draw is kept.
        highest: The best outcome. Settings that put it further above their mean than
            `MOST_DEVIATIONS` are left out. Default: none are.

    Raises:
        ValueError: When a shape is wrong or a value not finite.

    Source: Murray, Adams and MacKay 2010 (elliptical slice sampling); Nishihara, Murray
    and Adams 2014 (its generalised form with a proposal fitted to the other chains).
    Deviation: the two alternate, so that a bad fit cannot stop the chains.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 1, 8, dtype=torch.float64).unsqueeze(-1)
        >>> Y = (6 * X).sin().squeeze(-1)
        >>> chains = HyperparameterChains(
        ...     X, Y, torch.full_like(Y, 1e-2),
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> chains.extend(128)
        >>> chains.sample().lengthscale.shape
        torch.Size([128, 1])
    """

    def __init__(
        self,
        X: Tensor,
        Y: Tensor,
        Yvar: Tensor,
        *,
        generator: torch.Generator,
        initial: tuple[Tensor, float] | None = None,
        settle: bool = True,
        highest: float = -math.inf,
    ) -> None:
        _check_data(X, Y, Yvar)
        self._likelihood = _Likelihood(X, Y, Yvar, highest)
        self._generator = generator
        dim = X.shape[-1]
        self._centre = torch.full((dim + 1,), math.log(OUTPUTSCALE_MEDIAN)).double()
        self._centre[:dim] = math.log(LENGTHSCALE_MEDIAN * dim**0.5)
        self._spread = torch.full_like(self._centre, OUTPUTSCALE_LOG_SD)
        self._spread[:dim] = LENGTHSCALE_LOG_SD
        # Sweeps between two kept states, and before the first: the measured
        # autocorrelation times are about 2 sweeps at d = 2 and 9 at d = 16.
        self.thin = 2 + dim // 4
        self._history: list[Tensor] = []
        self._num_sweeps = 0
        self._state = self._starting_states(initial)
        self._value = self._log_likelihood(self._state)
        self._start = self._quantities()
        self._num_settling = 10 + dim
        if settle:
            self.sweep_until(self._num_settling)

    def sweep_until(self, num_sweeps: int) -> None:
        """Sweep until so many sweeps were made in all."""
        while self._num_sweeps < num_sweeps:
            self._sweep()

    def current(self) -> tuple[Tensor, Tensor]:
        """Return where the chains are: length scales, `64 x d`, and output scales."""
        theta = self._hyperparameters(self._state)
        return theta[:, :-1], theta[:, -1]

    @property
    def num_samples(self) -> int:
        """Number of draws kept so far."""
        return len(self._history) // self.thin * NUM_CHAINS

    def extend(self, num_samples: int) -> None:
        """Continue until at least `num_samples` draws are kept in all."""
        self.sweep_until(self._num_settling)
        while self.num_samples < num_samples:
            for _ in range(self.thin):
                self._sweep()
                self._history.append(self._quantities())

    def sample(self, first: int = 0) -> HyperparameterSample:
        """Return the draws from number `first` on, with diagnostics of all draws."""
        history = torch.stack(self._history, dim=1)  # chains x sweeps x quantities
        thinned = history[:, self.thin - 1 :: self.thin]
        kept = thinned[..., :-1].transpose(0, 1).flatten(0, 1)
        kept = self._hyperparameters(kept[first:])
        columns = range(history.shape[-1])
        sizes = [effective_sample_size(thinned[..., k]) for k in columns]
        ratios = [group_r_hat(history[..., k], self._start[:, k]) for k in columns]
        return HyperparameterSample(
            lengthscale=kept[:, :-1],
            outputscale=kept[:, -1],
            effective_sample_size=min(*sizes, float(self.num_samples)),
            r_hat=max(ratios),
        )

    def _quantities(self) -> Tensor:
        """State and log posterior of each chain, `chains x (d + 2)`."""
        log_posterior = self._value - 0.5 * self._state.square().sum(-1)
        return torch.cat([self._state, log_posterior.unsqueeze(-1)], dim=-1)

    def _log_likelihood(self, state: Tensor) -> Tensor:
        return self._likelihood(self._hyperparameters(state))

    def _hyperparameters(self, state: Tensor) -> Tensor:
        """Return length scales and output scale of standard normal states."""
        theta = (self._centre + self._spread * state).exp()
        theta[:, :-1].clamp_(max=LONGEST_LENGTHSCALE)
        return theta

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def _uniform(self, size: int) -> Tensor:
        return torch.rand(size, generator=self._generator, dtype=torch.float64)

    def _starting_states(self, initial: tuple[Tensor, float] | None) -> Tensor:
        """Choose over-dispersed starts among draws from the prior and around a fit."""
        dim = len(self._centre)
        pool = self._normal(2 * _NUM_STARTS, dim)
        if initial is not None:
            lengthscale, outputscale = initial
            fit = torch.cat([lengthscale, lengthscale.new_tensor([outputscale])])
            fit = ((fit.log() - self._centre) / self._spread).clamp(-3.0, 3.0)
            pool[_NUM_STARTS:] = fit + 0.7 * pool[_NUM_STARTS:]
        value = self._log_likelihood(pool)
        # The power of the likelihood that leaves enough of the pool to choose from.
        power = 0.5
        while power > 1e-6:
            weights = (power * value).softmax(0)
            if 1.0 / weights.square().sum() >= 2 * NUM_CHAINS:
                break
            power *= 0.7
        weights = (power * value).softmax(0).clamp_min(1e-300)
        chosen = weights.multinomial(NUM_CHAINS, generator=self._generator)
        return pool[chosen]

    def _sweep(self) -> None:
        """Move every chain along a fitted ellipse, at times a prior one first."""
        if self._num_sweeps % _PRIOR_PERIOD == 0:
            zero = torch.zeros(self._state.shape[-1], dtype=torch.float64)
            draw = self._normal(*self._state.shape)
            self._state, self._value = self._slice(
                self._log_likelihood, zero, self._state, draw, self._value
            )
        self._num_sweeps += 1
        half = len(self._state) // 2
        first, second = slice(0, half), slice(half, None)
        for movers, others in ((first, second), (second, first)):
            self._move_group(movers, self._state[others])

    def _move_group(self, movers: slice, others: Tensor) -> None:
        """Generalised elliptical slice step with a Student fitted to other chains."""
        fit = _Student(others)
        state = self._state[movers]

        def correction(state: Tensor) -> Tensor:
            return -0.5 * state.square().sum(-1) - fit.log_density(state)

        def ratio(state: Tensor) -> Tensor:
            return self._log_likelihood(state) + correction(state)

        scale = fit.conditional_scale(state, self._generator)
        draw = fit.mean + scale.sqrt().unsqueeze(-1) * (
            self._normal(*state.shape) @ fit.factor.mT
        )
        value = self._value[movers] + correction(state)
        moved, value = self._slice(ratio, fit.mean, state, draw, value)
        self._state[movers] = moved
        self._value[movers] = value - correction(moved)

    def _slice(
        self,
        log_ratio: Callable[[Tensor], Tensor],
        centre: Tensor,
        state: Tensor,
        draw: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One elliptical slice step of every chain; the new states and their ratios."""
        threshold = value + self._uniform(len(state)).log()
        angle = 2.0 * math.pi * self._uniform(len(state))
        lower, upper = angle - 2.0 * math.pi, angle.clone()
        new_state, new_value = state.clone(), value.clone()
        open_ = torch.arange(len(state))
        for _ in range(_MAX_SHRINKS):
            # Where few chains are left, several proposals each: those that would follow
            # if all before them were rejected. The first that is accepted counts.
            low, high, theta = lower[open_], upper[open_], angle[open_]
            thetas = []
            for _ in range(max(1, min(_MOST_TRIES, len(state) // len(open_)))):
                thetas.append(theta)
                low = torch.where(theta < 0.0, theta, low)
                high = torch.where(theta < 0.0, high, theta)
                theta = low + (high - low) * self._uniform(len(open_))
            tried = torch.stack(thetas).unsqueeze(-1)
            proposal = (state[open_] - centre) * tried.cos()
            proposal += (draw[open_] - centre) * tried.sin()
            proposal += centre
            proposed = log_ratio(proposal.flatten(0, 1)).view(len(thetas), -1)
            rejected = (proposed <= threshold[open_]).cumprod(0).sum(0)
            accepted = (rejected < len(thetas)).nonzero().squeeze(-1)
            first = rejected[accepted], accepted
            new_state[open_[accepted]] = proposal[first]
            new_value[open_[accepted]] = proposed[first]
            left = (rejected == len(thetas)).nonzero().squeeze(-1)
            open_ = open_[left]
            if len(open_) == 0:
                break
            lower[open_], upper[open_] = low[left], high[left]
            angle[open_] = theta[left]
        return new_state, new_value


class _Likelihood:
    """Log marginal likelihood of many hyperparameter settings at once."""

    def __init__(self, X: Tensor, Y: Tensor, Yvar: Tensor, highest: float) -> None:
        n = X.shape[0]
        self._highest = highest
        row, column = torch.tril_indices(n, n, -1)
        self._squared = 5.0 * (X[row] - X[column]).square().mT.contiguous()
        self._lower = row * n + column
        self._Y = torch.stack([Y, torch.ones_like(Y)], dim=-1)
        self._noise = Yvar + JITTER

    def __call__(self, theta: Tensor) -> Tensor:
        """Evaluate at length scales and output scales, `B x (d + 1) -> B`."""
        chunks = theta.split(max(1, _CHUNK_SIZE // len(self._Y) ** 2))
        return torch.cat([self._evaluate(chunk) for chunk in chunks])

    def _evaluate(self, theta: Tensor) -> Tensor:
        num, n = len(theta), len(self._Y)
        outputscale = theta[:, -1:]
        correlation = matern(theta[:, :-1].pow(-2) @ self._squared)
        K = torch.empty(num, n * n, dtype=torch.float64)
        covariance = correlation.mul_(outputscale).add_(MEAN_VARIANCE)
        K = K.index_copy_(1, self._lower, covariance).view(num, n, n)
        diagonal = outputscale + MEAN_VARIANCE + self._noise
        K.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        # Only the lower triangle is read.
        L, info = torch.linalg.cholesky_ex(K)
        whitened = torch.linalg.solve_triangular(
            L, self._Y.expand(num, n, 2), upper=False
        )
        outcome, one = whitened.unbind(-1)
        value = -0.5 * outcome.square().sum(-1)
        value = value - L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        mean = MEAN_VARIANCE * (outcome * one).sum(-1)
        height = (self._highest - mean).clamp_min(0.0)
        is_plain = height <= MOST_DEVIATIONS * outputscale.squeeze(-1).sqrt()
        usable = (info == 0) & value.isfinite() & is_plain
        return torch.where(usable, value, torch.full_like(value, -1e100))


def matern(squared: Tensor) -> Tensor:
    """Matern-5/2 correlation at five times the squared scaled distance, in place."""
    distance = squared.sqrt()
    decay = (-distance).exp_()
    return squared.div_(3.0).add_(distance).add_(1.0).mul_(decay)


class _Student:
    """Multivariate Student distribution fitted to the states of some chains."""

    def __init__(self, states: Tensor) -> None:
        num, dim = states.shape
        self.mean = states.mean(0)
        residual = states - self.mean
        covariance = residual.mT @ residual / (num - 1)
        # Few chains in many dimensions: shrink the correlations.
        share = dim / (dim + num)
        diagonal = torch.diag(covariance.diagonal())
        ridge = 1e-2 * torch.eye(dim, dtype=torch.float64)
        covariance = (1.0 - share) * covariance + share * diagonal + ridge
        self.factor = torch.linalg.cholesky(covariance)

    def _distance(self, states: Tensor) -> Tensor:
        whitened = torch.linalg.solve_triangular(
            self.factor, (states - self.mean).mT, upper=False
        )
        return whitened.square().sum(0)

    def log_density(self, states: Tensor) -> Tensor:
        """Log density up to a constant, `B x D -> B`."""
        nu, dim = _DEGREES_OF_FREEDOM, states.shape[-1]
        return -0.5 * (nu + dim) * torch.log1p(self._distance(states) / nu)

    def conditional_scale(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the scale of the normal that the Student is a mixture of, given states.

        `inverse gamma((D + nu) / 2, (nu + distance) / 2)`, shape `B`.
        """
        nu, dim = _DEGREES_OF_FREEDOM, states.shape[-1]
        shape = torch.full((len(states),), 0.5 * (nu + dim), dtype=torch.float64)
        gamma = torch._standard_gamma(shape, generator=generator)
        return 0.5 * (nu + self._distance(states)) / gamma


def effective_sample_size(chains: Tensor) -> float:
    """Estimate the effective sample size of the states of all chains.

        m * Var(state) / Var(mean of a chain),

    with m chains. The chains are independent, so the variance of their means gives the
    accuracy of the overall mean, whatever the autocorrelation. With many short chains
    this is less noisy than a sum of autocorrelations, which has to be truncated.

    Args:
        chains: One scalar quantity. Shape `chains x states`.

    Returns:
        The effective number of states, at most all; standard error 18 % with 64 chains.

    Source: Gelman et al., Bayesian Data Analysis, 3rd ed., section 11.5. Deviation: the
    variance of a chain's mean is measured between chains, not from autocorrelations.
    """
    if len(chains) < 2:
        raise ValueError(f"at least two chains are needed, got {len(chains)}")
    total, between = float(chains.var()), float(chains.mean(-1).var())
    if not (total > 0.0 and between > 0.0):
        return 0.0
    return min(len(chains) * total / between, float(chains.numel()))


def group_r_hat(chains: Tensor, start: Tensor) -> float:
    """Return the potential scale reduction between groups of similar starting points.

    Chains are sorted by their starting value and pooled into eight groups. Many short
    chains differ from each other however well they have mixed; the groups differ only
    as far as the chains still depend on the starting value.

    Args:
        chains: One scalar quantity. Shape `chains x sweeps`.
        start: Its value at the start of each chain. Shape `chains`.

    Returns:
        `sqrt(1 + between / within)`, 1 when the starting point is forgotten.

    Source: Margossian et al. 2024 (nested R-hat). Deviation: the groups are formed
    from over-dispersed starts afterwards instead of starting in the same place.
    """
    groups = chains[start.argsort()].tensor_split(_NUM_GROUPS)
    means = torch.stack([group.mean() for group in groups])
    within = torch.stack([group.var() for group in groups]).mean()
    if not float(within) > 0.0:
        return math.inf
    return math.sqrt(1.0 + float(means.var() / within))


def _check_data(X: Tensor, Y: Tensor, Yvar: Tensor) -> None:
    """Refuse data of the wrong shape, in single precision or not finite."""
    if X.ndim != 2 or X.shape[0] < 1 or Y.shape != X.shape[:1] or Yvar.shape != Y.shape:
        raise ValueError(
            "expected X of shape `n x d` and Y, Yvar of shape `n`; got "
            f"{tuple(X.shape)}, {tuple(Y.shape)}, {tuple(Yvar.shape)}"
        )
    for name, value in (("X", X), ("Y", Y), ("Yvar", Yvar)):
        if value.dtype != torch.float64 or not value.isfinite().all():
            raise ValueError(f"{name} must be float64 and finite, got {value}")
    if (Yvar < 0).any():
        raise ValueError(f"Yvar must not be negative, its minimum is {Yvar.min():.3g}")
