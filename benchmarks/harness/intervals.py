"""Intervals for shares."""

from __future__ import annotations

from scipy.stats import beta


def share_interval(
    successes: float, trials: float, level: float = 0.95
) -> tuple[float, float]:
    """Clopper-Pearson's interval; the counts may be effective, hence fractional."""
    tail = (1 - level) / 2
    failures = trials - successes
    low = beta.ppf(tail, successes, failures + 1) if successes > 0 else 0.0
    high = beta.ppf(1 - tail, successes + 1, failures) if failures > 0 else 1.0
    return float(low), float(high)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> str:
    """An exact interval for a share, as text."""
    low, high = share_interval(successes, trials, level)
    return f"{successes}/{trials} ({low:.2f}-{high:.2f})"
