"""Optimisers behind one ask/tell interface, by name.

Every method minimises over the unit box. It proposes points, each with the number of
samples for its evaluation, and receives the results. What it knows of the problem
before is in a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.harness.optimiser import Method, RandomSearch, SobolSearch, Task
from benchmarks.methods.ax import ax_default, expected_improvement, improvement, pac
from benchmarks.methods.fabolas.base import Fabolas
from benchmarks.methods.fabolas.faithful import FaithfulSearch
from benchmarks.methods.fabolas.lean import LeanSearch
from benchmarks.methods.optuna import OptunaSearch
from benchmarks.methods.rules import RuleSearch
from benchmarks.methods.smac import SmacSearch

METHODS: Mapping[str, Callable[[Task], Method]] = {
    "random": RandomSearch,
    "sobol": SobolSearch,
    # On the surrogate, noise and initial design of `pac`.
    "logei": expected_improvement,
    "pi": improvement,
    "pac_published": partial(
        pac, level="pairwise", epsilon=0.005, sampling="challenger", noise="raw"
    ),
    "pac_pairwise": partial(pac, level="pairwise", epsilon=0.005),
    "pac_joint": partial(pac, level="joint", epsilon=0.005),
    "pac": partial(pac, level="marginal", epsilon=0.05),
    # As `compress` begins in a deep network.
    "pac_line": partial(pac, level="marginal", epsilon=0.05, line=True),
    "ax_default": ax_default,
    "optuna_tpe": partial(OptunaSearch, sampler="tpe"),
    "optuna_gp": partial(OptunaSearch, sampler="gp"),
    "smac": SmacSearch,
    "fabolas_lean": partial(Fabolas, search=LeanSearch),
    "fabolas_lean_sem": partial(Fabolas, search=partial(LeanSearch, noise="measured")),
    "fabolas_faithful": partial(Fabolas, search=FaithfulSearch),
    "rule_fraction": partial(RuleSearch, rule="fraction"),
    "rule_energy": partial(RuleSearch, rule="energy"),
    "rule_evbmf": partial(RuleSearch, rule="evbmf"),
    "rule_greedy": partial(RuleSearch, rule="greedy"),
}

# What needs a network, and what needs a package of the extra `benchmarks`.
RULES = tuple(name for name in METHODS if name.startswith("rule_"))
NEED_NETWORK = (*RULES, "pac_line")
PEERS = {"optuna_tpe": "optuna", "optuna_gp": "optuna", "smac": "smac"}
# Methods that end by themselves.
PAC_METHODS = tuple(name for name in METHODS if name.startswith("pac"))
FABOLAS_METHODS = tuple(name for name in METHODS if name.startswith("fabolas"))


def build_method(name: str, task: Task) -> Method:
    """Set a method up for a task.

    Raises:
        ValueError: When there is no such method, or the task lacks what it needs.
        ImportError: When its package is missing; the message names the extra.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}, known: {', '.join(METHODS)}")
    return METHODS[name](task)
