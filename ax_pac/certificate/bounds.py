"""Upper confidence bounds of a failure probability."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from scipy.stats import beta, binom
from torch import Tensor


def clopper_pearson_upper(num_failures: int, num_draws: int, alpha: float) -> float:
    """Return the one-sided upper confidence bound of a share.

    Args:
        num_failures: Failures, at most `num_draws`.
        num_draws: Independent draws, at least 1.
        alpha: Probability that the share lies above the bound, at most.

    Example:
        >>> round(clopper_pearson_upper(0, 100, 0.05), 4)  # 1 - 0.05 ** (1 / 100)
        0.0295
    """
    if num_failures >= num_draws:
        return 1.0
    return float(beta.ppf(1.0 - alpha, num_failures + 1, num_draws - num_failures))


def draws_needed(epsilon: float, alpha: float) -> int:
    """Return the fewest draws that certify epsilon when none of them fails.

    Example:
        >>> draws_needed(0.05, 0.05)
        59
    """
    return math.ceil(math.log(alpha) / math.log1p(-epsilon))


def certifiable_share(num_draws: int, epsilon: float, alpha: float) -> float:
    """Return the share of failures above which `num_draws` do not certify epsilon.

    Example:
        >>> certifiable_share(1000, 0.05, 0.05)  # 38 or fewer of 1,000
        0.039
    """
    return float(binom.ppf(alpha, num_draws, epsilon)) / num_draws


# Stakes of a bet. Each alone gives a valid bound: large stakes suit values of little
# variance, small ones zeros and ones. The bound is that of their average.
_STAKES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)


def log_wealth(values: Tensor, mean: float, ess_ratio: float = 1.0) -> float:
    """Return the logarithm of the wealth of bets against a mean.

        log( 1/G sum_g prod_i (1 + stake_g (mean - x_i))^ess_ratio )

    If the true mean is at least `mean`, each product is a non-negative
    supermartingale that starts at one, so by Ville's inequality it ever exceeds
    1 / alpha with probability at most alpha, however often one looks.

    Args:
        values: Shape `N`, in [0, 1].
        mean: The mean that is bet against, in (0, 1).
        ess_ratio: Effective sample size of the values over their number, in (0, 1].

    Source: Waudby-Smith and Ramdas 2024 (mean of bounded random variables by betting).
    Deviation: fixed stakes, averaged; `ess_ratio` for values that are autocorrelated.

    Example:
        >>> log_wealth(torch.zeros(100), 0.05) > log_wealth(torch.zeros(50), 0.05) > 0
        True
    """
    wealth = ess_ratio * _growth(values, mean).sum(-1)
    return float(wealth.logsumexp(0)) - math.log(len(_STAKES))


def betting_upper(values: Tensor, alpha: float, ess_ratio: float = 1.0) -> float:
    """Return the upper confidence bound of the mean, 1 when there is no smaller one.

    The smallest mean that bets refute at level alpha.

    Args:
        values: Shape `N`, in [0, 1].
        alpha: Probability that the bound is ever below the mean, in (0, 1).
        ess_ratio: As in `log_wealth`.

    Example:
        >>> round(betting_upper(torch.full((2000,), 0.03), 1e-5), 3)
        0.037
    """

    def excess(mean: float) -> float:
        return log_wealth(values, mean, ess_ratio) + math.log(alpha)

    if len(values) == 0 or excess(1.0) < 0.0:
        return 1.0
    lowest = max(float(values.double().mean()), 1e-12)
    if excess(lowest) >= 0.0:
        return lowest
    # The wealth grows with the mean that is bet against.
    return float(brentq(excess, lowest, 1.0, xtol=1e-6)) + 1e-6


def is_hopeless(
    values: Tensor,
    mean: float,
    alpha: float,
    ess_ratio: float,
    num_values: int,
    num_errors: float = 1.0,
) -> bool:
    """Whether even `num_values` values are unlikely to refute the mean.

    The wealth is extrapolated at its growth so far plus some standard errors.

    Args:
        values: The values so far. Shape `N`, N at least 2.
        mean: The mean that is to be refuted.
        alpha: Level of the bound.
        ess_ratio: As in `log_wealth`.
        num_values: Number of values there can be at most.
        num_errors: Standard errors of the growth.
    """
    growth = _growth(values, mean)
    error = growth.std(-1) / math.sqrt(ess_ratio * len(values))
    reached = ess_ratio * num_values * (growth.mean(-1) + num_errors * error)
    return bool(reached.max() < math.log(len(_STAKES) / alpha))


def _growth(values: Tensor, mean: float) -> Tensor:
    """Contribution of each value to the log wealth of each stake, `G x N`."""
    stakes = torch.tensor(_STAKES, dtype=torch.float64).unsqueeze(-1)
    return torch.log1p(stakes * (mean - values.double()))
