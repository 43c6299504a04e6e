"""Combine loss and size into the objective."""

from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.options import require_gamma


def scalarize(loss: MeanSEM, compression_ratio: float, gamma: float) -> MeanSEM:
    """Combine loss and compression ratio into an objective to be minimised.

        J_L = kappa L + R

    with kappa = `gamma`, L = `loss` and R = `compression_ratio`. R is known exactly, so
    the SEM of J is gamma times that of L. This is the default objective: the paper's
    tables, which call kappa gamma, are consistent with this form and not with
    `scalarize_rate`.

    Args:
        loss: Estimate of the loss.
        compression_ratio: R in (0, 1]. Dimensionless.
        gamma: Weight of the loss, positive and finite. Unit: 1 / loss unit.

    Returns:
        The objective. Unit: objective units (those of a ratio).

    Raises:
        ValueError: when `gamma` is not positive and finite.

    Source: Ma et al. 2019, Eq. (3).

    Example:
        >>> scalarize(MeanSEM(4.0, 0.5), 0.25, gamma=0.125)
        MeanSEM(mean=0.75, sem=0.0625)
    """
    require_gamma(gamma)
    return MeanSEM(gamma * loss.mean + compression_ratio, gamma * loss.sem)


def scalarize_rate(quality: MeanSEM, compression_rate: float, gamma: float) -> MeanSEM:
    """Combine quality and compression rate into an objective to be maximised.

        J_Q = gamma Q + R^-1

    with Q = `quality`, the negative loss, and R^-1 = `compression_rate`. Rates reach
    hundreds, so this form favours the smallest ranks unless `gamma` is large.

    Args:
        quality: Estimate of the quality, Q = -L.
        compression_rate: Original over compressed weights, at least 1. Dimensionless.
        gamma: Weight of the quality, positive and finite. Unit: 1 / loss unit.

    Returns:
        The objective. Unit: objective units (those of a rate).

    Raises:
        ValueError: when `gamma` is not positive and finite.

    Source: Ma et al. 2019, Eq. (2).

    Example:
        >>> scalarize_rate(MeanSEM(-40.0, 4.0), 16.0, gamma=0.125)
        MeanSEM(mean=11.0, sem=0.5)
    """
    require_gamma(gamma)
    return MeanSEM(gamma * quality.mean + compression_rate, gamma * quality.sem)
