"""Bayesian optimisation in Ax that knows when it is finished.

Importing this package registers its classes with Ax, so that a saved search loads.
"""

from ax_pac.acquisition.analytic import (
    PACAcquisition,
    select_incumbent,
    standardized_gap,
)
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
from ax_pac.certificate.levels import certify
from ax_pac.certificate.record import DEFAULT_LEVEL, LEVELS, PACCertificate
from ax_pac.experiment.records import certificate_records
from ax_pac.orchestration.ray_orchestrator import ray_orchestrator
from ax_pac.storage.client import StoredClient, open_client
from ax_pac.storage.registry import register_with_ax
from ax_pac.strategy.certification import (
    certify_experiment,
    incumbent_arm,
    latest_certificate,
)
from ax_pac.strategy.generation import pac_generation_strategy
from ax_pac.strategy.stopping import PACStoppingStrategy, certified_generation_strategy
from ax_pac.surrogate.fit import fit_model
from ax_pac.surrogate.noise import smoothed_sems

__all__ = [
    "DEFAULT_LEVEL",
    "LEVELS",
    "CertificateHistory",
    "ChallengerGap",
    "IncumbentHistory",
    "LogPACExpectedImprovement",
    "PACAcquisition",
    "PACCertificate",
    "PACExpectedImprovement",
    "PACStoppingStrategy",
    "StoredClient",
    "TimeSpent",
    "certificate_analyses",
    "certificate_history",
    "certificate_records",
    "certified_generation_strategy",
    "certify",
    "certify_experiment",
    "find_challenger",
    "fit_model",
    "incumbent_arm",
    "latest_certificate",
    "open_client",
    "pac_generation_strategy",
    "plot_certificate_history",
    "plot_challenger_gap",
    "plot_incumbent_history",
    "plot_times",
    "ray_orchestrator",
    "register_with_ax",
    "select_incumbent",
    "smoothed_sems",
    "standardized_gap",
    "time_table",
]

register_with_ax()
