"""Which room of `benchmarks` may import which: one row per folder, no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"

# From the bottom to the top: a room may import its own modules and those named here.
ALLOWED_BENCHMARKS: dict[str, set[str]] = {
    "harness": set(),
    "networks": {"harness"},
    "data_aware": {"harness", "networks"},
    "quality": {"harness", "networks", "data_aware"},
    "speed": {"harness", "networks"},
    "no_training": {"harness", "networks", "data_aware"},
    "calibration": {"harness", "networks"},
    "cost": {"harness", "calibration"},
    "methods/fabolas": {"harness"},
    "methods": {"harness", "networks", "methods/fabolas"},
    "comparison": {"harness", "networks", "calibration", "methods", "methods/fabolas"},
    "paper": {"harness", "networks", "data_aware", "methods", "comparison"},
}


def imported(path: Path) -> set[str]:
    """Modules of `benchmarks` that a file imports, without the package's name."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    prefix = "benchmarks."
    return {name.removeprefix(prefix) for name in modules if name.startswith(prefix)}


def room_of(module: str) -> str:
    """The innermost folder that holds a module or a name of it."""
    path = module.replace(".", "/") + "/"
    return max((r for r in ALLOWED_BENCHMARKS if path.startswith(r + "/")), key=len)


@pytest.mark.parametrize("room", ALLOWED_BENCHMARKS)
def test_a_room_imports_what_its_row_says_and_nothing_else(room):
    found = {room_of(name) for p in (ROOT / room).glob("*.py") for name in imported(p)}
    assert found - {room} == ALLOWED_BENCHMARKS[room]


def test_every_room_is_in_the_table_and_says_what_it_is_for():
    rooms = {p.parent.relative_to(ROOT).as_posix() for p in ROOT.rglob("__init__.py")}
    assert rooms == {*ALLOWED_BENCHMARKS, "."}
    for room in ALLOWED_BENCHMARKS:
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))


def test_rooms_stand_on_those_before_them():
    order = list(ALLOWED_BENCHMARKS)
    for room, others in ALLOWED_BENCHMARKS.items():
        assert all(order.index(other) < order.index(room) for other in others)
