"""Who may import whom: the table of `docs/contributing/structure.md`, enforced."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NUMERICS = {"torch", "botorch", "gpytorch", "linear_operator", "numpy", "scipy"}
# One row a file or package, first match wins: what it may import besides the standard
# library. `ax.api.configs` allows that module only.
ALLOWED: tuple[tuple[str, set[str]], ...] = (
    ("ax_pac/difference.py", NUMERICS),
    ("ax_pac/acquisition.py", NUMERICS | {"ax_pac.difference"}),
    ("ax_pac/expected_improvement.py", NUMERICS | {"ax_pac.acquisition"}),
    ("ax_pac/noise.py", {"numpy", "scipy"}),
    ("ax_pac/hyperparameters.py", NUMERICS),
    ("ax_pac/hyperparameter_posterior.py", NUMERICS | {"ax_pac.hyperparameters"}),
    (
        "ax_pac/function_draws.py",
        NUMERICS
        | {"ax_pac.acquisition", "ax_pac.cells", "ax_pac.hyperparameter_posterior"},
    ),
    ("ax_pac/cells.py", {"torch"}),
    ("ax_pac/challenger.py", NUMERICS | {"ax_pac.acquisition", "ax_pac.cells"}),
    (
        "ax_pac/difference_draws.py",
        NUMERICS | {"ax_pac.acquisition", "ax_pac.challenger"},
    ),
    (
        "ax_pac/joint.py",
        NUMERICS
        | {"ax_pac.acquisition", "ax_pac.challenger", "ax_pac.difference_draws"},
    ),
    (
        "ax_pac/marginal.py",
        NUMERICS
        | {
            *("ax_pac.acquisition", "ax_pac.difference", "ax_pac.hyperparameters"),
            *("ax_pac.hyperparameter_posterior", "ax_pac.betting"),
            *("ax_pac.function_draws", "ax_pac.cells"),
        },
    ),
    ("ax_pac/betting.py", {"torch", "scipy"}),
    ("ax_pac/verdict.py", {"ax_pac.acquisition"}),
    (
        "ax_pac/certificate.py",
        NUMERICS
        | {
            *("ax_pac.acquisition", "ax_pac.cells", "ax_pac.challenger"),
            *("ax_pac.difference", "ax_pac.hyperparameters"),
            *("ax_pac.joint", "ax_pac.marginal", "ax_pac.verdict"),
        },
    ),
    ("ax_pac/database.py", {"ax", "pandas", "sqlalchemy"}),
    ("ax_pac/ray_runner.py", {"ax", "pandas", "torch", "ray"}),
    ("ax_pac/", NUMERICS | {"ax", "pandas", "plotly", "ax_pac"}),
    (
        "compression_adapters/ax_space.py",
        {"ax.api.configs", "compression_adapters.ranks"},
    ),
    (
        "compression_adapters/loop.py",
        {"numpy", "pandas", "tqdm", "ax", "ax_pac", "compression_adapters"},
    ),
    ("compression_adapters/starts.py", {"ax", "compression_adapters"}),
    (
        "compression_adapters/result.py",
        {"torch", "pandas", "ax", "ax_pac", "compression_adapters"},
    ),
    (
        "compression_adapters/search.py",
        {"torch", "pandas", "ax", "ax_pac", "compression_adapters"},
    ),
    (
        "compression_adapters/stored_search.py",
        {"torch", "ax", "ax_pac", "compression_adapters"},
    ),
    (
        "compression_adapters/parallel_search.py",
        {"ax", "ax_pac", "compression_adapters"},
    ),
    (
        "compression_adapters/sample_size.py",
        {"torch", "ax", "ax_pac", "compression_adapters"},
    ),
    (
        "compression_adapters/stages.py",
        {"torch", "pandas", "compression_adapters"},
    ),
    (
        "compression_adapters/targets.py",
        {"torch", "pandas", "compression_adapters"},
    ),
    (
        "compression_adapters/cli",  # and its parts
        {"torch", "click", "compression_adapters"},
    ),
    (
        "compression_adapters/pipeline.py",
        {"torch", "pandas", "plotly", "ax_pac", "compression_adapters"},
    ),
    (
        "compression_adapters/presets.py",
        {
            *("torch", "torchvision", "safetensors", "platformdirs"),
            "compression_adapters",
        },
    ),
    (
        "compression_adapters/torchvision_networks.py",
        {"torch", "torchvision", "compression_adapters"},
    ),
    (
        "compression_adapters/",
        {
            *("torch", "tensorly", "numpy", "pandas", "plotly", "safetensors"),
            "compression_adapters",
        },
    ),
)
FRONT_DOOR = {
    *("search", "loop", "starts", "stored_search", "sample_size", "stages", "targets"),
    *("pipeline", "cli", "cli_options", "cli_stages", "parallel_search"),
    *("stage_pipeline", "stage_report", "result"),
}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("ax_pac", "compression_adapters")
    for path in (ROOT / package).rglob("*.py")
)


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
    return modules


def may_import(file: str, module: str) -> bool:
    if module.split(".")[0] in sys.stdlib_module_names:
        return True
    allowed = next(names for prefix, names in ALLOWED if file.startswith(prefix))
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_table(file):
    forbidden = [m for m in imported_modules(ROOT / file) if not may_import(file, m)]
    assert not forbidden, f"{file} may not import {forbidden}"


@pytest.mark.parametrize("file", [f for f in FILES if "compression_adapters" in f])
def test_only_the_front_door_knows_the_other_package(file):
    if Path(file).stem in FRONT_DOOR | {"__init__"}:
        return
    for module in imported_modules(ROOT / file):
        assert module.split(".")[0] != "ax_pac"
        assert module.removeprefix("compression_adapters.") not in FRONT_DOOR


def test_the_rule_would_catch_a_breach():
    assert not may_import("compression_adapters/losses.py", "ax.api.client")
    assert not may_import("compression_adapters/ax_space.py", "ax.core")
    assert not may_import("ax_pac/certificate.py", "ax.api.client")
    assert not may_import("ax_pac/generation.py", "compression_adapters.ranks")
    assert may_import("compression_adapters/ax_space.py", "ax.api.configs")


@pytest.mark.parametrize("file", FILES)
def test_modules_stay_readable_in_one_sitting(file):
    lines = (ROOT / file).read_text().splitlines()
    assert len(lines) <= 420, f"{file} has {len(lines)} lines: split it"
    assert Path(file).stem != "utils"
