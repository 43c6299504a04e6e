"""Bayesian optimisation in Ax that ends by a certificate.

Importing this package registers its classes with Ax, so that a saved search loads.
"""

import importlib
import warnings
from typing import Any

from ax_pac.quiet_imports import quiet_imports

with quiet_imports():
    from ax_pac.acquisition.analytic import PACAcquisition, select_incumbent
    from ax_pac.acquisition.expected_improvement import (
        LogPACExpectedImprovement,
        PACExpectedImprovement,
    )
    from ax_pac.acquisition.optimize import find_challenger
    from ax_pac.analysis.cards import (
        CertificateHistory,
        ChallengerGap,
        IncumbentHistory,
        TimeSpent,
        certificate_analyses,
    )
    from ax_pac.analysis.plots import (
        certificate_history,
        plot_certificate_history,
        plot_challenger_gap,
        plot_incumbent_history,
        plot_times,
        time_table,
    )
    from ax_pac.cells import Cells
    from ax_pac.certificate.levels import certify
    from ax_pac.certificate.record import DEFAULT_LEVEL, LEVELS, PACCertificate
    from ax_pac.domain import Domain
    from ax_pac.experiment.records import certificate_records
    from ax_pac.experiment.settings import CertificateSettings
    from ax_pac.known import KnownFunction, KnownPart
    from ax_pac.orchestration.ray_orchestrator import ray_orchestrator
    from ax_pac.storage import registry as _registry
    from ax_pac.storage.client import StoredClient, open_client
    from ax_pac.storage.errors import (
        DatabaseFullError,
        DatabaseUnreachableError,
        SearchChangedError,
        SearchHeldError,
    )
    from ax_pac.strategy.certification import (
        certify_experiment,
        incumbent_arm,
        latest_certificate,
    )
    from ax_pac.strategy.generation import pac_generation_strategy
    from ax_pac.strategy.stopping import (
        PACStoppingStrategy,
        certified_generation_strategy,
    )
    from ax_pac.surrogate.fit import fit_model
    from ax_pac.surrogate.noise import smoothed_sems

__all__ = [  # noqa: RUF022 - by room, in the order in which they are used
    # Search and stop an Ax experiment.
    "pac_generation_strategy",
    "certified_generation_strategy",
    "PACStoppingStrategy",
    "certify_experiment",
    "CertificateSettings",
    "Cells",
    "KnownPart",
    # Read the result.
    "PACCertificate",
    "LEVELS",
    "DEFAULT_LEVEL",
    "latest_certificate",
    "incumbent_arm",
    "certificate_records",
    # Look at a search.
    "certificate_history",
    "time_table",
    "plot_certificate_history",
    "plot_challenger_gap",
    "plot_incumbent_history",
    "plot_times",
    "certificate_analyses",
    "CertificateHistory",
    "ChallengerGap",
    "IncumbentHistory",
    "TimeSpent",
    # Keep it in a database, run it on several machines.
    "open_client",
    "StoredClient",
    "SearchChangedError",
    "SearchHeldError",
    "DatabaseUnreachableError",
    "DatabaseFullError",
    "ray_orchestrator",
    # Without Ax: any BoTorch model.
    "fit_model",
    "smoothed_sems",
    "select_incumbent",
    "PACAcquisition",
    "PACExpectedImprovement",
    "LogPACExpectedImprovement",
    "Domain",
    "KnownFunction",
    "find_challenger",
    "certify",
]

# Internals that version 0.1 exported: where each is, and what to use in its place.
_DEPRECATED = {
    "register_with_ax": (
        "ax_pac.storage.registry",
        "nothing, importing ax_pac registers its classes",
    ),
    "standardized_gap": ("ax_pac.acquisition.difference", "PACAcquisition"),
}


def __getattr__(name: str) -> Any:
    """Return an internal that version 0.1 exported, with a warning."""
    if name not in _DEPRECATED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, replacement = _DEPRECATED[name]
    warnings.warn(
        f"ax_pac.{name} is deprecated: use {replacement} instead",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(module), name)


_registry.register_with_ax()
