"""What each layer alone costs in loss, measured at a few ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from compression_adapters.decompositions import Factors, error_shares
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.scales import DENSE, Rank

ERRORS: Final = (0.5, 0.1, 0.01)
"""Relative errors of a layer's output at which the loss is measured."""

# No trial of a search has this seed: theirs have 32 bits.
_SEED: Final = 2**33


def loss_curves(problem: CompressionProblem) -> dict[str, Sequence[float]]:
    """Return the loss of the network with one layer cut, for every layer and rank.

    A layer's expected error says how far its output moves, and not what that costs: in
    a deep network the same relative error can cost a hundred times as much in one layer
    as in another. So each layer is cut with all the others whole, at the ranks where
    its relative error falls to `ERRORS`, and the network's loss is measured, on the
    same fresh samples for all. Between these ranks the loss per relative error follows
    a power of the error; beyond them it stays as it is.

    Measured (docs/benchmarks/data_aware.md): prices of size against these losses give
    better networks than prices against errors at every gamma of ResNet18 and ResNet50,
    of the latter by up to a third of the objective. On a small transformer both are
    within two per cent.

    Args:
        problem: From `compression_problem`. Keeps the curves: they are measured once,
            with at most three evaluations a layer and one more, which are no
            trials.

    Returns:
        Layer name to losses for ranks from 0 to full rank, never rising, 0.0 at full
        rank. Where a loss is measured as zero, or the evaluation fails, the nearest
        larger error of the layer stands for it; for a layer that never costs anything,
        the least sensitive of the others. Unit: loss units.

    Source: not in Ma et al. 2019.
    """
    kept = problem.loss_curves
    if not kept:
        errors = {
            layer.name: relative_errors(layer, problem.factors[layer.name])
            for layer in problem.layers
        }
        whole = _mean_loss(problem, {})
        points = {
            name: [
                (each[rank], loss - whole)
                for rank in _ranks(each)
                if (loss := _mean_loss(problem, {name: rank})) > whole
            ]
            for name, each in errors.items()
        }
        # Loss per relative error of what cost least, where nothing else is known.
        least = min(
            (loss / error for each in points.values() for error, loss in each),
            default=1.0,
        )
        for name, each in points.items():
            kept[name] = _curve(errors[name], each, least)
    return kept


def relative_errors(layer: LayerSpec, factors: Factors) -> Sequence[float]:
    """Return e(K) / e(0) of a layer, for K from 0 to full rank.

    Args:
        layer: One of the layers in play.
        factors: Its factors.

    Returns:
        From 1.0 down to 0.0, dimensionless; zeros for a layer without any output.
    """
    return error_shares(layer.decomposition, factors)


def _mean_loss(problem: CompressionProblem, ranks: Mapping[str, Rank]) -> float:
    """Return the mean loss with some layers cut, NaN where it cannot be evaluated."""
    whole: dict[str, Rank] = {layer.name: DENSE for layer in problem.layers}
    try:
        losses = problem.sample_losses({**whole, **ranks}, seed=_SEED)
    except Exception:  # whatever a user's loss raises; a trial would be marked failed
        return math.nan
    return float(losses.double().mean())


def _ranks(errors: Sequence[float]) -> list[int]:
    """Return the smallest ranks, from 1, whose errors are within `ERRORS`."""
    ranks = range(1, len(errors))
    reached = (next(k for k in ranks if errors[k] <= most) for most in ERRORS)
    return sorted({rank for rank in reached if errors[rank] > 0.0})


def _curve(
    errors: Sequence[float], points: Sequence[tuple[float, float]], least: float
) -> list[float]:
    """Interpolate loss over error between measured points, as powers of the error."""
    e = np.asarray(errors)
    if not points:
        return list((least * e).tolist())
    x, y = np.log(np.array(sorted(points))).T
    per_error = np.exp(np.interp(np.log(np.maximum(e, np.exp(x[0]))), x, y - x))
    # Noise of a few samples may let it rise where a larger rank cannot lose more.
    return list(np.minimum.accumulate(per_error * e).tolist())
