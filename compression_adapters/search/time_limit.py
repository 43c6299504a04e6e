"""How long a call of `compress` may take, and what is left of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

_FOR_FINISHING: Final = 0.3
"""Share of the time that is kept back for refit and statement, which take a few passes
of some hundred inputs a layer."""

_FOR_RESULT: Final = 0.05
"""Share that is kept back where nothing is refitted."""


@dataclass(frozen=True)
class TimeLimit:
    """When a call has to end.

    It is kept to between two evaluations, and between two layers of a refit: a single
    one of these is not interrupted, and neither is what comes before the first
    evaluation (calibration, decomposition).

    Args:
        end: Of the call; infinite without a limit. Seconds of `time.perf_counter`.
        search_end: Of its search, which leaves time to finish the network.
    """

    end: float = math.inf
    search_end: float = math.inf

    @classmethod
    def of(cls, minutes: float | None, *, refit: bool) -> TimeLimit:
        """Begin to count.

        Args:
            minutes: From now on; None: no limit.
            refit: Whether the network is refitted after the search.

        Example:
            >>> TimeLimit.of(None, refit=True).is_over()
            False
            >>> TimeLimit.of(1e-9, refit=True).is_over()
            True
        """
        if minutes is None:
            return cls()
        now, seconds = time.perf_counter(), 60.0 * minutes
        kept_back = _FOR_FINISHING if refit else _FOR_RESULT
        return cls(now + seconds, now + (1.0 - kept_back) * seconds)

    def is_over(self) -> bool:
        """Whether the call has to end now."""
        return time.perf_counter() >= self.end

    def leaves(self, seconds: float) -> bool:
        """Whether a search can do something more that takes so long."""
        return time.perf_counter() + seconds < self.search_end


NO_LIMIT: Final = TimeLimit()
