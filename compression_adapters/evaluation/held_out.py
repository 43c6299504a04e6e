"""Inputs that neither factors nor trials have seen, for a statement at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from compression_adapters.network.structured_inputs import Inputs

LARGEST_SHARE_HELD_OUT: Final = 0.4
"""Share of a pool that is held out, at most."""

_BATCH: Final = 50


@dataclass(frozen=True, eq=False)
class HeldOutInputs:
    """Inputs of a pool, or generated ones, that are read when a statement is made.

    They are read in batches and not kept, because a pool may be larger than memory.

    Args:
        count: How many there are.
        share: Share of the pool; None of generated inputs.
        read: Returns inputs and labels (or None) from a position up to another one.
    """

    count: int
    share: float | None
    read: Callable[[int, int], tuple[Inputs, Tensor | None]] = field(repr=False)

    def batches(self, size: int = _BATCH) -> Iterator[tuple[Inputs, Tensor | None]]:
        """Iterate over all of them in a fixed order.

        Args:
            size: Inputs in one batch; the last one may be smaller.
        """
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))

    def to_dict(self) -> dict[str, Any]:
        """Return count and share as plain JSON values."""
        return {"count": self.count, "share": self.share}
