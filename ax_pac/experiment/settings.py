"""The options of a certificate, as they are stored with a search."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from ax_pac.cells import FrozenEdges, frozen_edges
from ax_pac.certificate.record import DEFAULT_LEVEL, check_settings, refuse_unknown
from ax_pac.known import KnownPart
from ax_pac.surrogate.noise import DEFAULT_NUM_SAMPLES

SAMPLING = ("leader_challenger", "challenger", "expected_improvement")
NOISE = ("smoothed", "raw")

# The options that decide a certificate, with the cells.
_QUESTION = ("delta", "epsilon", "level", "relative", "noise", "num_samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificateSettings:
    """The options of a certificate and of the search that it ends.

    Every function and class of this package that takes them by keyword takes the same
    options with the same defaults, and builds one of these; it is stored with the
    search.

    Args:
        delta: Tolerance, positive. Unit: objective units, or with `relative` a share of
            the incumbent's posterior mean, recomputed for each certificate.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share.
        seed: Seed of the search for a challenger, of the draws and of the initial
            design; the number of observations is mixed in. None draws one, which is
            then stored like any other. With the data it determines every certificate,
            and every proposal except those of `expected_improvement`, which depend on
            torch's random state as well.
        sampling: Which point a search evaluates next; the certificate does not depend
            on it. `leader_challenger` evaluates whichever of challenger and incumbent
            reduces the variance of their difference more, so points are repeated;
            `challenger` is the published rule, which often does not finish under noise;
            `expected_improvement` is `PACExpectedImprovement`, maximised by Ax's own
            optimiser, not for a relative delta.
        noise: What the model takes for the noise of an observation: `smoothed` is its
            standard error smoothed over trials (`smoothed_sems`), `raw` its standard
            error as reported. The experiment keeps what was reported either way.
        num_samples: Number of samples behind each standard error, at least 2. It
            determines how uncertain the standard errors are, and so how much they are
            smoothed.
        cells: For coordinates that are rounded before use: by parameter, the edges of
            the bins whose points are the same, in the parameter's units and strictly
            increasing from its lower to its upper bound, or `Cells` with names.
            Proposals are then centres of cells, equal points are the same arm, and no
            challenger lies in the incumbent's cell. For float parameters on a linear
            scale; parameters without bins are left out.
        known: What is known of the objective before any evaluation, a `KnownPart` or
            the fields of one: the surrogate models the rest. None for nothing.

    Raises:
        ValueError: When a value is out of its range.

    Example:
        >>> CertificateSettings(delta=0.1, epsilon=0.05).level
        'marginal'
    """

    delta: float
    epsilon: float
    level: str = DEFAULT_LEVEL
    relative: bool = False
    seed: int | None = 0
    sampling: str = "leader_challenger"
    noise: str = "smoothed"
    num_samples: int = DEFAULT_NUM_SAMPLES
    cells: FrozenEdges = ()
    known: KnownPart | None = None

    def __post_init__(self) -> None:
        # A mapping, or what JSON makes of tuples; frozen, because settings are a key.
        object.__setattr__(self, "cells", frozen_edges(self.cells))
        object.__setattr__(self, "known", KnownPart.of(self.known))
        if self.known is not None:
            self.known.on(self.cells)  # refuses tables that do not fit their cells
        if self.seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
            object.__setattr__(self, "seed", seed)
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

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CertificateSettings:
        """Rebuild settings from what `to_dict` returned.

        Raises:
            ValueError: When a value is out of its range, or when there is an option
                that this version does not know.
        """
        global _last
        if _last is None or fields != _last[0]:
            refuse_unknown(
                fields, cls.__dataclass_fields__, "settings of a certificate"
            )
            settings = cls(**fields)
            if fields.get("seed", cls.seed) is None:
                return settings  # which draws another one next time
            _last = copy.deepcopy(fields), settings
        return _last[1]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        # Not `dataclasses.asdict`, which copies thousands of edges one by one.
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["cells"] = {name: list(edges) for name, edges in self.cells}
        if self.known is None:  # earlier versions know no such option
            del values["known"]
        else:
            values["known"] = self.known.to_dict()
        return values

    def to_record(self) -> dict[str, Any]:
        """Return the settings as kept with each certificate: tables by their digest."""
        record = {**self.to_dict(), "cells": _digest(self.cells)}
        if self.known is not None:
            record["known"] = self.known.digest
        return record

    @property
    def question(self) -> dict[str, Any]:
        """The options that decide a certificate; seed and sampling do not."""
        settings = self.to_dict()
        tables = [name for name in ("cells", "known") if name in settings]
        return {name: settings[name] for name in (*_QUESTION, *tables)}

    def asks_the_same_as(self, fields: dict[str, Any]) -> bool:
        """Whether stored settings ask for the same certificate.

        Raises:
            ValueError: When there is an option that this version does not know.
        """
        refuse_unknown(fields, self.__dataclass_fields__, "settings of a certificate")
        # Records from before the options existed: raw noise, no cells, nothing known.
        old = {"noise": "raw", "num_samples": self.num_samples}
        old |= {"cells": "", "known": ""}
        stored = {**old, **fields}
        question = {name: getattr(self, name) for name in _QUESTION}
        question["cells"] = _digest(self.cells)
        question["known"] = "" if self.known is None else self.known.digest
        return all(stored.get(name) == value for name, value in question.items())


# The fields that were read last and their settings: a search reads its own several
# times per trial, and to check thousands of edges takes longer than to compare them.
_last: tuple[dict[str, Any], CertificateSettings] | None = None


@functools.lru_cache
def _digest(cells: FrozenEdges) -> str:
    """Short digest of cells, empty without any; kept, as each check needs it."""
    if not cells:
        return ""
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]
