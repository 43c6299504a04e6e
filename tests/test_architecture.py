"""Who may import whom: one row per folder, each on the rows above it.

The same picture, with what each folder is for, is in `docs/contributing/structure.md`.
"""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NUMERICS = {"torch", "botorch", "gpytorch", "linear_operator", "numpy", "scipy"}
# Folder (or single module): what it may import besides the standard library and itself.
# A folder is only named in rows below its own, so that no import goes upwards.
ROWS: dict[str, set[str]] = {
    "ax_pac.quiet_imports": set(),
    "ax_pac.ax_internals": {"ax", "botorch"},
    "ax_pac.cells": {"torch"},
    "ax_pac.domain": NUMERICS | {"ax_pac.cells"},
    "ax_pac.known": {"numpy", "torch", "ax_pac.cells"},
    "ax_pac.surrogate": NUMERICS,
    "ax_pac.acquisition": NUMERICS | {"ax_pac.cells", "ax_pac.domain", "ax_pac.known"},
    "ax_pac.certificate": NUMERICS
    | {"ax_pac.cells", "ax_pac.domain", "ax_pac.known"}
    | {"ax_pac.surrogate", "ax_pac.acquisition"},
    "ax_pac.experiment": {"ax", "numpy", "pandas"}
    | {"ax_pac.ax_internals", "ax_pac.cells", "ax_pac.domain", "ax_pac.known"}
    | {"ax_pac.surrogate", "ax_pac.certificate"},
    "ax_pac.adapter": NUMERICS
    | {"ax", "pandas", "ax_pac.ax_internals", "ax_pac.cells", "ax_pac.domain"}
    | {"ax_pac.known", "ax_pac.surrogate"}
    | {"ax_pac.acquisition", "ax_pac.certificate", "ax_pac.experiment"},
    "ax_pac.strategy": {"ax", "numpy", "pandas", "torch", "ax_pac.cells"}
    | {"ax_pac.known"}
    | {
        "ax_pac.ax_internals",
        "ax_pac.surrogate",
        "ax_pac.certificate",
        "ax_pac.experiment",
        "ax_pac.adapter",
    },
    "ax_pac.analysis": {
        "ax",
        "numpy",
        "scipy",
        "pandas",
        "plotly",
        "ax_pac.ax_internals",
        "ax_pac.experiment",
    },
    "ax_pac.storage": {"ax", "botorch", "gpytorch", "pandas", "sqlalchemy"}
    | {
        "ax_pac.ax_internals",
        "ax_pac.acquisition",
        "ax_pac.certificate",
        "ax_pac.experiment",
        "ax_pac.adapter",
        "ax_pac.strategy",
    },
    "ax_pac.orchestration": {"ax", "pandas", "torch", "ray"}
    | {"ax_pac.ax_internals", "ax_pac.storage", "ax_pac.strategy"},
    "ax_pac": {"ax_pac"},
    "compression_adapters.options": {"torch"},
    "compression_adapters.decompositions": {"torch", "numpy", "tensorly"},
    "compression_adapters.layers": {"torch", "compression_adapters.decompositions"},
    "compression_adapters.rank_space": {"torch", "numpy"}
    | {"compression_adapters.options", "compression_adapters.layers"},
    "compression_adapters.network": {"torch", "numpy", "pandas", "safetensors", "tqdm"}
    | {"onnxruntime"}
    | {
        "compression_adapters.options",
        "compression_adapters.decompositions",
        "compression_adapters.layers",
    }
    | {"compression_adapters.rank_space"},
    "compression_adapters.calibration": {"torch", "tqdm", "pandas"}
    | {"compression_adapters.decompositions", "compression_adapters.layers"}
    | {"compression_adapters.rank_space", "compression_adapters.network"},
    "compression_adapters.evaluation": {
        "torch",
        "numpy",
        "pandas",
        "scipy",
        "compression_adapters.options",
    }
    | {"compression_adapters.decompositions", "compression_adapters.layers"}
    | {"compression_adapters.rank_space", "compression_adapters.network"}
    | {"compression_adapters.calibration"},
    "compression_adapters.presets": {"torch", "torchvision", "numpy", "safetensors"}
    | {"platformdirs", "compression_adapters.decompositions"}
    | {"compression_adapters.layers", "compression_adapters.evaluation"},
    "compression_adapters.report": {"pandas", "plotly", "numpy"},
    "compression_adapters.search": {"torch", "numpy", "pandas", "tqdm", "ray"}
    | {"ax", "ax_pac"}
    | {"compression_adapters.options", "compression_adapters.layers"}
    | {"compression_adapters.rank_space", "compression_adapters.network"}
    | {"compression_adapters.evaluation", "compression_adapters.calibration"}
    | {"compression_adapters.decompositions"},
    "compression_adapters.api": {"torch", "ax", "ax_pac", "compression_adapters.layers"}
    | {"compression_adapters.rank_space", "compression_adapters.network"}
    | {"compression_adapters.evaluation"}
    | {"compression_adapters.options", "compression_adapters.search"},
    "compression_adapters.stages": {"torch", "pandas", "compression_adapters.layers"}
    | {"compression_adapters.options", "compression_adapters.network"}
    | {"compression_adapters.report", "compression_adapters.search"}
    | {"compression_adapters.api"},
    "compression_adapters.cli": {"torch", "pandas", "plotly", "click", "ax_pac"}
    | {"compression_adapters.options"}
    | {"compression_adapters.layers", "compression_adapters.network"}
    | {"compression_adapters.calibration"}
    | {"compression_adapters.evaluation", "compression_adapters.presets"}
    | {"compression_adapters.report", "compression_adapters.search"}
    | {"compression_adapters.api", "compression_adapters.stages"},
    "compression_adapters": {"lazy_loader"},
}


def modules() -> dict[str, Path]:
    """Every module of the two packages, by its dotted name."""
    found = {}
    for package in ("ax_pac", "compression_adapters"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def row_of(module: str) -> str:
    """The most specific row that a module belongs to."""
    rows = [row for row in ROWS if module == row or module.startswith(row + ".")]
    return max(rows, key=len)


def imported(module: str) -> set[str]:
    """Every module that a module imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(inside & MODULES.keys() or {node.module or ""})
    return names


def may_import(module: str, name: str) -> bool:
    row = row_of(module)
    top = name.split(".")[0]
    if top in sys.stdlib_module_names or name == row or name.startswith(row + "."):
        return True
    return any(
        name == allowed or name.startswith(allowed + ".") for allowed in ROWS[row]
    )


def test_imports_follow_the_rows():
    forbidden = [
        f"{module} imports {name}"
        for module in MODULES
        for name in sorted(imported(module))
        if not may_import(module, name)
    ]
    assert not forbidden


def test_no_row_names_one_below_it_and_no_files_import_in_a_circle():
    order = list(ROWS)
    for position, row in enumerate(order):
        own = {name for name in ROWS[row] if name in order and name != row}
        assert all(order.index(name) < position for name in own), row
    graph = {
        module: {name for name in imported(module) if name in MODULES} - {module}
        for module in MODULES
        # A package's own `__init__` imports its parts, which is no circle.
        if MODULES[module].name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")


def test_every_folder_says_in_one_sentence_what_it_is_for():
    for row in ROWS:
        text = ast.get_docstring(ast.parse(MODULES[row].read_text()))
        assert text, f"{row} has no docstring"
    assert not [m for m in MODULES if m.endswith(".utils")]


def test_the_page_of_the_structure_lists_every_row_in_its_order():
    page = (ROOT / "docs" / "contributing" / "structure.md").read_text()
    for package in ("ax_pac", "compression_adapters"):
        parts = [row.split(".")[1] for row in ROWS if row.startswith(package + ".")]
        table = page[page.index(f"| `{package}/` |") :].split("\n\n")[0]
        listed = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, flags=re.MULTILINE)
        assert listed == [package, *parts]


def test_the_rules_would_catch_a_breach():
    assert not may_import("compression_adapters.evaluation.losses", "ax.api.client")
    assert not may_import("compression_adapters.network.recipe", "ax_pac")
    assert not may_import("ax_pac.certificate.levels", "ax.api.client")
    assert not may_import("ax_pac.surrogate.fit", "ax_pac.acquisition.analytic")
    assert not may_import("ax_pac.strategy.generation", "compression_adapters.layers")
    assert may_import("compression_adapters.search.client", "ax.api.configs")
