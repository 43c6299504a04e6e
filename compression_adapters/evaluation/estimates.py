"""Estimates from few samples: means, standard errors, and floors of these."""

import math
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

SMALLEST_SEM: Final = 1e-6
"""SEM, in loss units, if neither this trial nor an earlier one has any scale."""


ROUNDING: Final = 1e-9
"""Share of the largest loss so far below which a number is rounding error."""


class MeanSEM(NamedTuple):
    """An estimate and its standard error, both in the unit of the quantity.

    To Ax it is a plain tuple; Ax takes `(mean, sem)` pairs as observations.

    Args:
        mean: The estimate.
        sem: Standard error of the mean: never a variance, never the standard
            deviation of one sample. Zero only for exactly known quantities.
    """

    mean: float
    sem: float


def mean_and_sem(values: Tensor) -> MeanSEM:
    """Estimate an expectation from independent per-sample values.

    The first-order U-statistic and its standard error:
        mean = sum_i l_i / m,  SEM = sqrt(sum_i (l_i - mean)^2 / (m - 1) / m)
    with l_i = `values[i]` and m = `len(values)`; computed in float64.

    Args:
        values: One value per sample, all finite. Shape `m`, m at least 2.

    Returns:
        Mean and SEM, in the unit of `values`. The SEM is exactly 0.0 when all values
        are equal; `apply_sem_floor` replaces it.

    Raises:
        ValueError: when `values` is not one-dimensional, has fewer than two entries,
            or holds NaN or infinite entries; the message shows the input.

    Source: Ma et al. 2019, section 3.1.

    Example:
        >>> mean_and_sem(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        MeanSEM(mean=2.5, sem=0.6454972243679028)
    """
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(
            "values must have shape (m,) with m at least 2, because a standard error "
            f"needs two samples; got shape {tuple(values.shape)}."
        )
    _require_finite(values, "values")
    v = values.detach().to(torch.float64)
    mean = float(v.mean())
    if bool((v == v[0]).all()):
        return MeanSEM(float(v[0]), 0.0)  # no rounding residue of equal values
    return MeanSEM(mean, float(v.std(correction=1)) / math.sqrt(v.shape[0]))


def pairwise_mean_and_sem(kernel_values: Tensor) -> MeanSEM:
    """Estimate an expectation over pairs from a symmetric kernel matrix.

    The U-statistic of order two and the jackknife of its first-order projection:
        U = mean_{i != j} h(x_i, x_j),   h1_i = mean_{j != i} h(x_i, x_j)
        Var(U) = (m - 1) / m * 4 / (m - 2)^2 * sum_i (h1_i - U)^2
    with h(x_i, x_j) = `kernel_values[i, j]`. The pairs are not independent: dividing
    the spread of all m(m - 1)/2 of them by their number would give a standard error
    that is far too small. The variance above is the variance of the m values of U
    that leave one sample out, times (m - 1)^2 / m, in closed form.

    Args:
        kernel_values: h for all pairs, symmetric; the diagonal is ignored.
            Shape `m x m`, m at least 4.

    Returns:
        Mean and SEM, in the unit of the kernel.

    Raises:
        ValueError: when the matrix is not square, has fewer than four rows, is not
            finite off the diagonal, or not symmetric.

    Source: Ma et al. 2019, section 3.1 and its references on U-statistics.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 3.0, 6.0])
        >>> pairwise_mean_and_sem((x[:, None] - x).square() / 2)  # the variance
        MeanSEM(mean=7.0, sem=5.2915026221291805)
    """
    shape = tuple(kernel_values.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 4:
        raise ValueError(
            "kernel_values must be a square matrix (m, m) with m at least 4; "
            f"got shape {shape}."
        )
    m = shape[0]
    h = kernel_values.detach().to(torch.float64).clone()
    h.fill_diagonal_(0.0)
    _require_finite(h, "kernel_values")
    asymmetry = float((h - h.T).abs().max())
    if asymmetry > 1e-5 * float(h.abs().max()):
        raise ValueError(
            "kernel_values must be symmetric, h(x_i, x_j) = h(x_j, x_i); the largest "
            f"difference is {asymmetry:.3g}. Symmetrise the kernel: (h + h.T) / 2."
        )
    projection = h.sum(dim=1) / (m - 1)
    mean = projection.mean()
    squares = (projection - mean).square().sum()
    variance = (m - 1) / m * 4.0 / (m - 2) ** 2 * squares
    return MeanSEM(float(mean), math.sqrt(float(variance)))


def binomial_sem_floor(mean: float, num_samples: int) -> float:
    """Bound the SEM of a 0/1 loss from below by that of a Jeffreys estimate.

    With k ones among m samples:
        p = (k + 1/2) / (m + 1),   floor = sqrt(p (1 - p) / m)
    so that 50 images without an error give an error rate of 0 with SEM 0.014, instead
    of a rate known exactly.

    Args:
        mean: Share of ones, k / m, in [0, 1]. Dimensionless.
        num_samples: m, at least 2.

    Returns:
        The floor, dimensionless and always positive.

    Raises:
        ValueError: when `mean` is outside [0, 1] or `num_samples` below 2.

    Source: the posterior mean under Jeffreys' prior Beta(1/2, 1/2). Deviation: the
        paper uses the empirical SEM alone, which is zero without an error.

    Example:
        >>> round(binomial_sem_floor(0.0, 50), 4)
        0.0139
    """
    _require_num_samples(num_samples)
    if not 0.0 <= mean <= 1.0:
        raise ValueError(f"mean of a 0/1 loss must lie in [0, 1]; got {mean}.")
    p = (mean * num_samples + 0.5) / (num_samples + 1)
    return math.sqrt(p * (1.0 - p) / num_samples)


def relative_sem_floor(
    mean: float, num_samples: int, earlier: Sequence[MeanSEM]
) -> float:
    """Estimate the SEM of a trial whose samples show no spread, from earlier trials.

    The typical relative spread of earlier trials, at this trial's scale:
        floor = median_t(sem_t / |mean_t|) * |mean|
    over the usable earlier trials: those with positive SEM and nonzero mean. Losses of
    a truncated network have a nearly constant relative spread, which is why it is
    pooled rather than the SEM itself. A mean below `ROUNDING` times the largest earlier
    one counts as zero: a network that was left dense differs from itself by rounding.
    If information is missing:

    - `mean` is zero: the smallest |mean_t| takes its place;
    - no usable earlier trial: the relative SEM is 1 / sqrt(m), a spread of one;
    - neither: `SMALLEST_SEM`.

    Args:
        mean: This trial's mean loss.
        num_samples: m of this trial and of the earlier ones, at least 2.
        earlier: Loss estimates of earlier trials with the same `num_samples`.

    Returns:
        The floor, in the unit of the loss and always positive.

    Raises:
        ValueError: when `num_samples` is below 2 or `mean` is not finite.

    Source: none. Deviation: the paper uses the empirical SEM alone.

    Example:
        >>> relative_sem_floor(3.0, 50, [MeanSEM(10.0, 1.0), MeanSEM(40.0, 4.0)])
        0.30000000000000004
    """
    _require_num_samples(num_samples)
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite; got {mean}.")
    tiny = ROUNDING * max((abs(e.mean) for e in earlier), default=0.0)
    usable = [e for e in earlier if e.sem > 0.0 and abs(e.mean) > tiny]
    scale = abs(mean)
    if usable:
        spread = statistics.median(e.sem / abs(e.mean) for e in usable)
        if scale <= tiny:
            scale = min(abs(e.mean) for e in usable)
    else:
        spread = 1.0 / math.sqrt(num_samples)
    # Two tiny factors may underflow to zero, which must not be reported either.
    return spread * scale or SMALLEST_SEM


def apply_sem_floor(
    estimate: MeanSEM,
    *,
    num_samples: int,
    binary: bool,
    earlier: Sequence[MeanSEM] = (),
) -> MeanSEM:
    """Replace an SEM that is too small by its floor.

    For a 0/1 loss the reported SEM is max(empirical, `binomial_sem_floor`). For any
    other loss it is the empirical one, unless that is zero, or below `ROUNDING` times
    the largest loss so far: then it is `relative_sem_floor`. An SEM of zero is
    therefore never returned.

    Args:
        estimate: Mean and empirical SEM of the trial.
        num_samples: m, at least 2.
        binary: Whether every per-sample value is 0 or 1.
        earlier: Loss estimates of earlier trials with the same `num_samples`.

    Returns:
        The estimate with a positive SEM, unit unchanged.

    Raises:
        ValueError: as the two floors do.

    Source: none; see the floors.

    Example:
        >>> apply_sem_floor(MeanSEM(0.0, 0.0), num_samples=50, binary=True).sem > 0
        True
    """
    if binary:
        floor = binomial_sem_floor(estimate.mean, num_samples)
        return MeanSEM(estimate.mean, max(estimate.sem, floor))
    largest = max(abs(e.mean) for e in (estimate, *earlier))
    if estimate.sem > ROUNDING * largest:
        return estimate
    return MeanSEM(
        estimate.mean, relative_sem_floor(estimate.mean, num_samples, earlier)
    )


def _require_finite(values: Tensor, name: str) -> None:
    """Raise a ValueError unless every entry is finite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{name} must be finite; {bad} of {values.numel()} entries are NaN or "
            "infinite."
        )


def _require_num_samples(num_samples: int) -> None:
    """Raise a ValueError unless a standard error exists for this many samples."""
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2; got {num_samples}.")
