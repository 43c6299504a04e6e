"""Bounds that hold with a stated confidence, for any number of inputs."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.stats import beta, binom, t
from torch import Tensor

_NUISANCE: Final = 0.05
"""Share of the allowed error that is spent on the interval of discordant inputs."""

_GRID: Final = 100
_STEPS: Final = 26
_MOST_BET: Final = 0.75


def share_at_least(successes: int, count: int, error: float) -> float:
    """Return a lower bound of a probability, from independent yes-or-no trials.

    Clopper and Pearson's: the smallest p at which so many successes have a probability
    of more than `error`. The bound is wrong with probability at most `error`, for every
    true p and every count.

    Args:
        successes: k, from 0 to `count`.
        count: n, at least 1.
        error: Allowed probability that the true p is below, in (0, 1).

    Returns:
        In [0, 1]. Dimensionless.

    Source: Clopper and Pearson 1934, one-sided.

    Example:
        >>> round(share_at_least(149, 149, 0.05), 4)
        0.9801
    """
    if successes == 0:
        return 0.0
    return float(beta.ppf(error, successes, count - successes + 1))


def fewest_for_share(share: float, error: float) -> int:
    """Return how many trials without a failure show that a probability is as large.

    Args:
        share: In (0, 1).
        error: Allowed probability of a wrong statement.

    Example:
        >>> fewest_for_share(0.98, 0.05)
        149
    """
    return math.ceil(math.log(error) / math.log(share))


def mean_at_least(values: Tensor, error: float) -> float:
    """Return a lower bound of the mean of values in [0, 1].

    By betting: of a gambler who stakes, against "the mean is at most m", a share of the
    capital that depends on earlier values only,

        K_i = K_{i-1} (1 + lambda_i (x_i - m)),   K_0 = 1,

    the capital has no positive drift if that is true, so that it ever reaches 1 / error
    with probability at most `error` (Ville). The bound is the largest m at which it
    does; K falls in m, because lambda is cut at .75 / m. Nothing is assumed of the
    distribution; where values vary little it is nearly as close as a normal interval.

    Args:
        values: Independent, in an order that does not depend on them. Shape `n`.
        error: Allowed probability that the true mean is below, in (0, 1).

    Returns:
        In [0, 1].

    Raises:
        ValueError: when a value lies outside [0, 1].

    Source: Waudby-Smith and Ramdas 2024, the predictable plug-in, one-sided.

    Example:
        >>> import torch
        >>> round(mean_at_least(torch.full((1000,), 0.9), 0.05), 2)
        0.9
    """
    x = values.detach().double().cpu().numpy()
    if x.size and not (0.0 <= float(x.min()) and float(x.max()) <= 1.0):
        raise ValueError(
            f"values must lie in [0, 1]; got {float(x.min())} to {float(x.max())}."
        )
    number = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (number + 1)
    spread = (0.25 + np.cumsum((x - mean) ** 2)) / (number + 1)
    before = np.concatenate([[0.25], spread[:-1]])  # what earlier values say
    stake = np.sqrt(2.0 * math.log(1.0 / error) / (len(x) * before))

    def is_refuted(m: float) -> bool:
        bet = np.minimum(stake, _MOST_BET / m)
        return bool(
            np.cumsum(np.log1p(bet * (x - m))).max(initial=-math.inf)
            >= math.log(1.0 / error)
        )

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if is_refuted(middle):
            low = middle
        else:
            high = middle
    return low


def drop_at_most(lost: int, won: int, count: int, error: float) -> float:
    """Return an upper bound of a drop in accuracy, from paired predictions.

    Of n inputs, `lost` are right before and wrong after, `won` the other way round; the
    drop is p_lost - p_won. Two accuracies on the same inputs differ by the discordant
    inputs alone, so that the difference is known far better than either of them.

    The bound inverts an exact test. Given that the drop is D and the probability of a
    discordant input is s, the number of these is N ~ Bin(n, s), and of N as many are
    lost as Bin(N, (s + D) / (2 s)), so that the probability of a difference as small as
    the one that was observed is a finite sum. It is maximised over s in its own
    Clopper-Pearson interval at a twentieth of `error`, which is added (Berger and
    Boos): without that interval the maximum would be at s = 1.

    Args:
        lost: Inputs that became wrong.
        won: Inputs that became right.
        count: n, all inputs.
        error: Allowed probability that the true drop is larger, in (0, 1).

    Returns:
        In (-1, 1]. Dimensionless.

    Source: Berger and Boos 1994. Deviation: the maximum over s is taken on a grid of a
        hundred values.

    Example:
        >>> round(drop_at_most(20, 12, 2000, 0.05), 4), round(8 / 2000, 4)
        (0.0102, 0.004)
    """
    low, high = (lost - won) / count, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _drop_p_value(lost, won, count, middle, error) <= error:
            high = middle
        else:
            low = middle
    return high


def _drop_p_value(lost: int, won: int, count: int, drop: float, error: float) -> float:
    """Return the largest probability of so small a difference, if that is the drop."""
    spent = _NUISANCE * error
    discordant = lost + won
    smallest = share_at_least(discordant, count, spent / 2)
    largest = 1.0 - share_at_least(count - discordant, count, spent / 2)
    if largest <= abs(drop):
        return spent
    grid = np.linspace(max(smallest, abs(drop) + 1e-12), largest, _GRID)[:, None]
    most = int(binom.ppf(1.0 - 1e-12, count, largest))
    least = int(binom.ppf(1e-12, count, float(grid[0, 0])))
    number = np.arange(least, most + 1)[None]
    share = np.clip((grid + drop) / (2.0 * grid), 0.0, 1.0)
    as_small = binom.cdf(np.floor((number + lost - won) / 2), number, share)
    found = (binom.pmf(number, count, grid) * as_small).sum(1)
    # The tails that were left out.
    return float(found.max()) + 2e-12 + spent


def mean_at_most(values: Tensor, error: float) -> float:
    """Return an upper bound of a mean, by Student's distribution.

    It is not exact: it is close where the values are near normal or there are many.

    Args:
        values: At least two. Shape `n`.
        error: Probability that the true mean is above, in (0, 1).

    Example:
        >>> import torch
        >>> round(mean_at_most(torch.tensor([1.0, 2.0, 3.0]), 0.05), 3)
        3.686
    """
    x = values.detach().double()
    width = float(t.ppf(1.0 - error, len(x) - 1))
    return float(x.mean()) + width * float(x.std()) / math.sqrt(len(x))
