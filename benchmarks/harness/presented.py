"""Numbers as the pages show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float], digits: int) -> str:
    """Median and range; one value by itself."""
    low, middle, high = (
        f"{value:,.{digits}f}"
        for value in (min(values), float(np.median(values)), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"
