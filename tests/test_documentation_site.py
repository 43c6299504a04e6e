"""Every public name has a docstring and stands on one page of the API reference."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ax_pac
import compression_adapters

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))

PUBLIC = [
    f"{package.__name__}.{name}"
    for package in (ax_pac, compression_adapters)
    for name in package.__all__
]
ENTRIES = [
    entry
    for page in sorted(API.glob("*.md"))
    for entry in re.findall(r"^::: (\S+)", page.read_text(), flags=re.MULTILINE)
]


def resolved(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@cache
def documented_constants() -> frozenset[str]:
    """Names of module-level values that a string follows, as documentation reads it."""
    names = set()
    for package in ("ax_pac", "compression_adapters"):
        for file in (ROOT / package).rglob("*.py"):
            body = ast.parse(file.read_text()).body
            for value, text in pairwise(body):
                match value, text:
                    case (
                        ast.Assign(targets=[ast.Name(id=name)])
                        | ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str())),
                    ):
                        names.add(name)
    return frozenset(names)


def test_every_public_name_stands_on_one_page():
    counts = Counter(ENTRIES)
    missing = [name for name in PUBLIC if name not in counts]
    assert not missing, f"add a line `::: name` to a page of docs/api for {missing}"
    assert not [name for name, count in counts.items() if count > 1]


@pytest.mark.parametrize("path", ENTRIES)
def test_every_entry_exists_and_has_a_docstring(path):
    thing = resolved(path)
    if isinstance(thing, type) or hasattr(thing, "__code__"):
        assert thing.__doc__, f"{path} has no docstring"
    else:
        name = path.rsplit(".", 1)[1]
        assert name in documented_constants(), f"a string must follow {path}"


def test_every_page_of_the_reference_is_listed():
    index = (API / "index.md").read_text()
    for page in API.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_are_stored_without_outputs(path):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_use_public_names_only(path):
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    code = "\n".join(re.sub(r"^%.*", "", source) for source in sources)
    packages = {"ax_pac", "compression_adapters", "compression_adapters.presets"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            ours = node.module.split(".")[0] in ("ax_pac", "compression_adapters")
            assert not ours or node.module in packages, node.module
