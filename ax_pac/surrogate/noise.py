"""Standard errors smoothed over trials."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma

Array = NDArray[np.float64]

# With fewer observations of positive standard error there is one pooled variance: too
# few to estimate how the noise varies.
MIN_TRIALS = 5

# Grids over which the smoother averages, by their likelihood: length scales as shares
# of the diagonal of the box, and variance of the smooth part over that of the scatter.
_LENGTHSCALES = (0.1, 0.2, 0.4, 0.8)

_SIGNAL_TO_SCATTER = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e5)

DEFAULT_NUM_SAMPLES = 50

# Sampling variance of log s^2 over that of normal values, `(kurtosis - 1) / 2`: squared
# errors of a network have kurtoses of 5 to 10.
_HEAVY_TAILS = 2.5

# Share of the largest mean below which one is zero.
_ROUNDING = 1e-9
# How far a variance may be moved, in standard deviations of its own sampling error.
_FARTHEST_MOVE = 2.0


def smoothed_sems(
    X: Array, mean: Array, sem: Array, *, num_samples: int = DEFAULT_NUM_SAMPLES
) -> Array:
    """Smooth standard errors over trials, as a function of the mean and the place.

    The variance of a sample of m is itself an estimate: its relative error is
    `sqrt(2 / (m - 1))` for normal values and larger for squared errors, and among
    skewed values it is small exactly where the mean is too. A model that uses each as
    reported gives most weight to the trials with the most favourable noise. Here

        log sem_i^2 = a + b t_i + g(x_i) + e_i

    with t_i the size of the mean (its logarithm if all means have one sign), itself
    smoothed over x as far as its standard error allows, so that the noise of trial i
    drops out; g a Gaussian process for what the mean does not explain; and e_i
    the scatter. Length scale of g and its share in the scatter are averaged over a grid
    by their likelihood.

    The scatter is sampling error and misfit, and only the first may go. Its size is
    known from m, `psi = 2.5 trigamma((m - 1) / 2)`, so a share `1 - psi / var(e)` of
    each e_i is kept (none if that is negative), and no logarithm is moved by more than
    `2 sqrt(psi)`: where the model of the variances is wrong they are left nearly as
    they came. The result is scaled so that the mean of `sem_i^2 / smoothed_i^2` is one:
    sample variances are unbiased, their logarithms are not.

    Args:
        X: Coordinates of the trials. Shape `n x d`; any unit, scaled to their range.
        mean: Observed means. Shape `n`. Unit: objective units.
        sem: Their standard errors, at least 0. Shape `n`. Unit: objective units. An
            exact zero is treated as a sample that showed no spread by chance and is
            replaced by the fit to its neighbours, unless all are zero: then nothing is
            changed.
        num_samples: m, the samples behind each standard error, at least 2.

    Returns:
        Standard errors. Shape `n`. Unit: objective units. Within the range of the
        positive ones; the pooled one, `sqrt(mean(sem^2))`, for fewer than `MIN_TRIALS`
        positive ones.

    Raises:
        ValueError: For shapes that do not agree, a value that is not finite, a
            negative standard error, or `num_samples` below 2.

    Source: none in Ma et al. 2019, which uses every SEM as reported. The model of the
    log variances is that of stochastic kriging (Ankenman et al. 2010); the correction
    of its mean is Duan's (1983) smearing, the bound on moves Efron and Morris's (1972).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.random((30, 1))
        >>> sem = 0.1 * rng.chisquare(9, 30) ** 0.5 / 3  # ten samples each
        >>> smooth = smoothed_sems(X, X[:, 0], sem, num_samples=10)
        >>> bool(np.log(smooth / 0.1).std() < 0.5 * np.log(sem / 0.1).std())
        True
    """
    X, mean, sem = (np.asarray(a, dtype=np.float64) for a in (X, mean, sem))
    _check(X, mean, sem)
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    has_spread = sem > 0.0
    if not has_spread.any():
        return sem.copy()
    # In units of the largest, so that squares neither overflow nor underflow.
    unit = sem.max()
    variance = (sem / unit) ** 2
    if has_spread.sum() < MIN_TRIALS:
        return np.full_like(sem, unit * math.sqrt(variance[has_spread].mean()))
    range_ = np.ptp(X, axis=0)
    Z = (X - X.min(0)) / np.where(range_ > 0.0, range_, 1.0)
    everywhere = np.ones_like(has_spread)
    filled = np.where(has_spread, variance, variance[has_spread].mean())
    size, error = _size(mean, unit * np.sqrt(filled))
    size, _ = _smooth(Z, size, everywhere, trend=None, scatter=error)
    observed = np.log(variance, where=has_spread, out=np.zeros_like(sem))
    fit, scatter = _smooth(Z, observed, has_spread, trend=size)
    psi = _HEAVY_TAILS * float(polygamma(1, (num_samples - 1) / 2.0))
    move = min(1.0, psi / scatter) * (fit - observed) if scatter > 0.0 else fit * 0.0
    move = move.clip(-_FARTHEST_MOVE * math.sqrt(psi), _FARTHEST_MOVE * math.sqrt(psi))
    smooth = np.exp(np.where(has_spread, observed + move, fit))
    smooth *= (variance[has_spread] / smooth[has_spread]).mean()
    return np.clip(unit * np.sqrt(smooth), sem[has_spread].min(), unit)


def _check(X: Array, mean: Array, sem: Array) -> None:
    """Refuse shapes that do not agree and values out of range."""
    if X.ndim != 2 or mean.shape != (len(X),) or sem.shape != mean.shape:
        raise ValueError(
            "expected X of shape (n, d), mean and sem of shape (n,); got "
            f"{X.shape}, {mean.shape} and {sem.shape}"
        )
    if not (np.isfinite(X).all() and np.isfinite(mean).all()):
        raise ValueError("X and mean must be finite")
    if not (np.isfinite(sem).all() and (sem >= 0.0).all()):
        raise ValueError(
            "every standard error must be a finite number of at least 0; got "
            f"{sem.min()} to {sem.max()}"
        )


def _size(mean: Array, sem: Array) -> tuple[Array, float]:
    """Return the size of the mean, and the variance of its error.

    log|mean|, or the mean if signs differ. A mean of zero up to rounding, as of a loss
    at the uncompressed network, has the size of its standard error.
    """
    if (mean > 0.0).all() or (mean < 0.0).all():
        return np.log(np.abs(mean)), float(((sem / mean) ** 2).mean())
    largest = np.abs(mean).max(initial=np.finfo(np.float64).tiny)
    for sign in (1.0, -1.0):
        if (sign * mean > -_ROUNDING * largest).all():
            known = np.maximum(sign * mean, sem)
            return np.log(known), float(((sem / known) ** 2).mean())
    scale = max(largest, sem.max())
    return mean / scale, float(((sem / scale) ** 2).mean())


def _smooth(
    Z: Array,
    y: Array,
    known: NDArray[np.bool_],
    *,
    trend: Array | None,
    scatter: float | None = None,
) -> tuple[Array, float]:
    """Regress `y` (at the known points) on a trend and a GP.

    Restricted likelihood, flat prior on the coefficients; the variance of the scatter
    is the one given, or is integrated out. Returns the fit everywhere, and the variance
    of the scatter.
    """
    columns = [np.ones(len(Z))]
    if trend is not None and np.ptp(trend[known]) > 0.0:
        columns.append((trend - trend[known].mean()) / trend[known].std())
    H_all = np.stack(columns, axis=1)
    H, target = H_all[known], y[known]
    freedom = len(target) - H.shape[1]
    if np.ptp(target) == 0.0:
        return np.full(len(Z), target[0]), 0.0
    distance = np.linalg.norm(Z[:, None] - Z[None, :], axis=-1) / math.sqrt(Z.shape[1])
    fits, scatters, log_weights = [], [], []
    for lengthscale in _LENGTHSCALES:
        a = math.sqrt(5.0) * distance / lengthscale
        kernel = (1.0 + a + a**2 / 3.0) * np.exp(-a)
        values, vectors = np.linalg.eigh(kernel[np.ix_(known, known)])
        rotated_H, rotated = vectors.T @ H, vectors.T @ target
        to_all = kernel[:, known] @ vectors
        for ratio in _SIGNAL_TO_SCATTER:
            spectrum = 1.0 + ratio * values.clip(0.0)
            weighted_H = rotated_H / spectrum[:, None]
            information = rotated_H.T @ weighted_H
            beta = np.linalg.solve(information, weighted_H.T @ rotated)
            residual = rotated - rotated_H @ beta
            squares = float(residual @ (residual / spectrum))
            if scatter is None:
                misfit = freedom * math.log(max(squares, np.finfo(np.float64).tiny))
            else:
                misfit = squares / max(scatter, np.finfo(np.float64).tiny)
            log_weights.append(
                -0.5 * np.log(spectrum).sum()
                - 0.5 * np.linalg.slogdet(information)[1]
                - 0.5 * misfit
            )
            scatters.append(squares / freedom if scatter is None else scatter)
            fits.append(H_all @ beta + ratio * (to_all @ (residual / spectrum)))
    weights = np.exp(np.array(log_weights) - max(log_weights))
    weights /= weights.sum()
    return np.array(weights @ np.array(fits)), float(weights @ np.array(scatters))
