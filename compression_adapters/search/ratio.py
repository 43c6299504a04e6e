"""Read a compression ratio as a user writes it."""

from __future__ import annotations

import math


def read_ratio(ratio: float | str) -> float:
    """Read a ratio as a number or as a percentage.

    Args:
        ratio: Such as 0.3, `"0.3"` or `"30%"`.

    Returns:
        A number in (0, 1).

    Raises:
        ValueError: when it is none.

    Example:
        >>> read_ratio("30%"), read_ratio(0.25)
        (0.3, 0.25)
    """
    value = math.nan
    try:
        if isinstance(ratio, str) and ratio.strip().endswith("%"):
            value = float(ratio.strip()[:-1]) / 100.0
        else:
            value = float(ratio)
    except ValueError:
        pass
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"ratio must lie between 0 and 1, or be text such as '30%'; got {ratio!r}."
        )
    return value
