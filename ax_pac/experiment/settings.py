"""What is asked of a certificate, as it is stored with a search."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

from ax_pac.cells import FrozenEdges, frozen_edges
from ax_pac.certificate.record import (
    DEFAULT_LEVEL,
    check_settings,
)
from ax_pac.surrogate.noise import DEFAULT_NUM_SAMPLES

SAMPLING = ("leader_challenger", "challenger", "expected_improvement")


# What the surrogate takes for the noise of an observation: its standard error smoothed
# over trials (`smoothed_sems`), or as it was reported.
NOISE = ("smoothed", "raw")


DEFAULT_NOISE = "smoothed"


# What decides a certificate, with the cells.
_QUESTION = ("delta", "epsilon", "level", "relative", "noise", "num_samples")


@dataclasses.dataclass(frozen=True)
class CertificateSettings:
    """What is asked of a certificate, and the seed of the search for a challenger.

    Args:
        delta: Tolerance, positive. Unit: objective units, or with `relative` a share of
            the incumbent's posterior mean.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share.
        seed: Seed of the search; the number of observations is mixed in.
        sampling: Which point a search evaluates next, no part of the certificate:
            `leader_challenger` (whichever of challenger and incumbent says more about
            their difference), `challenger` (the published rule) or
            `expected_improvement` (see `PACExpectedImprovement`).
        noise: `smoothed` or `raw`, see `smoothed_sems`.
        num_samples: Samples behind each standard error, for `smoothed`.
        cells: Edges of the bins by parameter, or nothing; see `frozen_edges`.

    Raises:
        ValueError: When a value is out of its range.
    """

    delta: float
    epsilon: float
    level: str = DEFAULT_LEVEL
    relative: bool = False
    seed: int = 0
    sampling: str = "leader_challenger"
    noise: str = DEFAULT_NOISE
    num_samples: int = DEFAULT_NUM_SAMPLES
    cells: FrozenEdges = ()

    def __post_init__(self) -> None:
        # A mapping, or what JSON makes of tuples; frozen, because settings are a key.
        object.__setattr__(self, "cells", frozen_edges(self.cells))
        check_settings(delta=self.delta, epsilon=self.epsilon, level=self.level)
        if self.sampling not in SAMPLING:
            raise ValueError(
                f"sampling must be one of {SAMPLING}, got {self.sampling!r}"
            )
        if self.noise not in NOISE:
            raise ValueError(f"noise must be one of {NOISE}, got {self.noise!r}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")
        if self.relative and self.sampling == "expected_improvement":
            raise ValueError(
                "sampling='expected_improvement' needs delta in objective units: give "
                "relative=False, or another sampling"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        # Not `dataclasses.asdict`, which copies thousands of edges one by one.
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "cells": {name: list(edges) for name, edges in self.cells}}

    def to_record(self) -> dict[str, Any]:
        """Return the settings as kept with each certificate: cells by their digest."""
        return {**self.to_dict(), "cells": _digest(self.cells)}

    @property
    def question(self) -> dict[str, Any]:
        """What decides the certificate; neither seed nor sampling do."""
        settings = self.to_dict()
        return {name: settings[name] for name in (*_QUESTION, "cells")}

    def asks_the_same_as(self, fields: dict[str, Any]) -> bool:
        """Whether stored settings ask for the same certificate."""
        # Records from before the options existed: raw noise, no cells.
        old = {"noise": "raw", "num_samples": self.num_samples, "cells": ""}
        stored = {**old, **fields}
        question = {name: getattr(self, name) for name in _QUESTION}
        question["cells"] = _digest(self.cells)
        return all(stored.get(name) == value for name, value in question.items())


@functools.lru_cache
def _digest(cells: FrozenEdges) -> str:
    """Short digest of cells; empty without any. Searches ask for it all the time."""
    if not cells:
        return ""
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]
