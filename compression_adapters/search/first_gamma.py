"""The gamma that a search for a target begins with, read off the price path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from compression_adapters.evaluation.price_path import PricePath
from compression_adapters.search.quality_target import first_that

_SUPERADDITIVE: Final = 1.5
"""By how much larger gamma is where losses of layers add to more than their sum.

The network that a search finds at gamma has about the size of the path's at the price
1 / (1.5 gamma), measured on two networks (docs/benchmarks/data_aware.md): the losses of
layers that are cut together are larger than those of each alone.
"""


def gamma_for_ratio(path: PricePath, ratio: float) -> float:
    """Return the gamma at which the best network should have a size.

    Args:
        path: The price path.
        ratio: The largest size ratio; as large as that of the smallest network.
    """
    gamma = gamma_of(path, path.at_ratio(ratio))
    return gamma / _SUPERADDITIVE


def gamma_for(path: PricePath, is_enough: Callable[[int], bool]) -> float:
    """Return the gamma at which the best network should be good enough.

    Args:
        path: The price path.
        is_enough: Whether the network at a position is; true of all larger ones, too.
    """
    return gamma_of(path, first_that(len(path) - 1, is_enough))


def gamma_of(path: PricePath, position: int) -> float:
    """Return a gamma at which a network of the path has the least predicted objective.

    Args:
        path: The price path.
        position: Of the network.

    Returns:
        The middle, in powers, of the range in which it has. Unit: one over loss units.
    """
    prices = path.table["price"]
    most = float(prices.iloc[position])
    least = float(prices.iloc[position + 1]) if position + 1 < len(path) else most
    if math.isinf(most):  # the smallest network is best from some price on
        most = least
    if math.isinf(most) or least <= 0.0:
        raise ValueError(
            "The losses of single layers are zero at all ranks, so any size meets the "
            "target; compress by giving ranks to truncate_network."
        )
    gamma = 1.0 / math.sqrt(most * least)
    if path.problem.minimize:
        return gamma
    # The rate 1 / ratio falls by d(ratio) / ratio^2.
    return gamma / float(path.table["compression_ratio"].iloc[position]) ** 2
