"""What a process remembers of a fitted model."""

from __future__ import annotations

import dataclasses
import weakref

from botorch.models.model import Model
from torch import Tensor

from ax_pac.certificate.record import PACCertificate
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.known import KnownFunction


@dataclasses.dataclass
class FittedState:
    """What belongs to one fitted model.

    Ax builds new transforms and a new `Acquisition` for every call, and keeps the model
    for as long as the data stay the same.

    Args:
        certificates: The certificates that were computed with the model, by their
            settings and the values of coordinates that were held.
        unevaluated: Points that were tried and have no observation, `p x d`.
        rounded: Values of the float parameters that Ax rounds, by name.
        known: The known part of the objective, of which it models the rest.
    """

    certificates: dict[
        tuple[CertificateSettings, tuple[tuple[int, float], ...]], PACCertificate
    ] = dataclasses.field(default_factory=dict)
    unevaluated: Tensor | None = None
    rounded: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    known: KnownFunction | None = None


_STATES: weakref.WeakKeyDictionary[Model, FittedState] = weakref.WeakKeyDictionary()


def state_of(model: Model) -> FittedState:
    """Return the state of a fitted model, a new one at first."""
    return _STATES.setdefault(model, FittedState())
