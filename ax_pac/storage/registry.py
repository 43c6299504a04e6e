"""Entries in Ax's storage registries, so that a saved search loads again."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from ax.generators.torch.botorch_modular.acquisition import Acquisition
from ax.storage.botorch_modular_registry import (
    CLASS_TO_REGISTRY,
    CLASS_TO_REVERSE_REGISTRY,
)
from ax.storage.json_store.registry import CORE_DECODER_REGISTRY, CORE_ENCODER_REGISTRY
from ax.storage.transform_registry import register_transform
from ax.utils.common.serialization import serialize_init_args
from botorch.acquisition import AcquisitionFunction
from gpytorch.kernels import Kernel

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.expected_improvement import (
    LogPACExpectedImprovement,
    PACExpectedImprovement,
)
from ax_pac.adapter.acquisition import CertifyingAcquisition
from ax_pac.adapter.generator import BoundedMaternKernel
from ax_pac.adapter.transforms import CanonicalPoints, SmoothedNoise, UnevaluatedPoints
from ax_pac.adapter.unknown_part import UnknownPart
from ax_pac.certificate.record import refuse_unknown
from ax_pac.strategy.criteria import (
    CertificateHolds,
    ExperimentCertified,
    InitialTrialsCompleted,
)
from ax_pac.strategy.stopping import PACStoppingStrategy

# Stored names, never renamed. They begin with the package's name so that Ax's message
# about an unknown name tells the reader what to import.
_PREFIX = "ax_pac."

_CLASSES: tuple[tuple[type[Any], type[Any]], ...] = (
    (AcquisitionFunction, PACAcquisition),
    (AcquisitionFunction, PACExpectedImprovement),
    (AcquisitionFunction, LogPACExpectedImprovement),
    (Acquisition, CertifyingAcquisition),
    (Kernel, BoundedMaternKernel),
)

_CRITERIA = (InitialTrialsCompleted, CertificateHolds, ExperimentCertified)


def register_with_ax() -> None:
    """Enter this package's classes into Ax's storage registries; idempotent.

    Called when `ax_pac` is imported. The registries are mutated in place because Ax's
    official route, `RegistryBundle`, needs SQLAlchemy even for JSON (Ax 1.3.1).
    """
    for base, cls in _CLASSES:
        CLASS_TO_REGISTRY[base][cls] = _PREFIX + cls.__name__
        CLASS_TO_REVERSE_REGISTRY[base][_PREFIX + cls.__name__] = cls
    for criterion in _CRITERIA:
        CORE_ENCODER_REGISTRY[criterion] = _criterion_to_dict
        name = _PREFIX + criterion.__name__
        CORE_DECODER_REGISTRY[name] = functools.partial(_criterion_from_dict, criterion)
    register_transform(SmoothedNoise)
    register_transform(CanonicalPoints)
    register_transform(UnevaluatedPoints)
    register_transform(UnknownPart)
    CORE_ENCODER_REGISTRY[PACStoppingStrategy] = _stopping_strategy_to_dict
    name = _PREFIX + PACStoppingStrategy.__name__
    CORE_DECODER_REGISTRY[name] = _stopping_strategy_from_dict


def _criterion_to_dict(criterion: Any) -> dict[str, Any]:
    """Encode a transition criterion by its arguments."""
    name = _PREFIX + type(criterion).__name__
    return {**serialize_init_args(obj=criterion), "__type": name}


def _criterion_from_dict(criterion: type[Any], **fields: Any) -> Any:
    """Decode a transition criterion, or refuse one of a newer version."""
    known = inspect.signature(criterion).parameters
    refuse_unknown(fields, known, "transition criteria")
    return criterion(**fields)


def _stopping_strategy_from_dict(**fields: Any) -> PACStoppingStrategy:
    """Decode a stopping strategy, or refuse one of a newer version."""
    known = inspect.signature(PACStoppingStrategy).parameters
    refuse_unknown(fields, known, "stopping strategies")
    return PACStoppingStrategy(**fields)


def _stopping_strategy_to_dict(strategy: PACStoppingStrategy) -> dict[str, Any]:
    """Encode a stopping strategy by its arguments."""
    return {**strategy.to_dict(), "__type": _PREFIX + type(strategy).__name__}
