"""The wheel holds every module and no data; the versions agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import compression_adapters

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel, built as `python -m build` builds it."""
    pytest.importorskip("setuptools")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ax_pac", "compression_adapters"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module(wheel):
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("ax_pac", "compression_adapters")
        for suffix in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / package).rglob(suffix)
    }
    assert modules <= wheel


def test_the_wheel_holds_no_data_and_no_tests(wheel):
    assert not [name for name in wheel if "mnist/" in name or name.endswith(".gz")]
    tops = {name.split("/")[0] for name in wheel}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "ax_pac",
        "compression_adapters",
    }


def test_versions_agree():
    expected = PROJECT["version"]
    assert version("ax-pac") == expected
    assert compression_adapters.__version__ == expected
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {expected}\n" in citation


def test_every_extra_and_every_requirement_is_bounded():
    extras = PROJECT["optional-dependencies"]
    typing_only = ("pandas-stubs", "types-", "ax-pac[")
    requirements = [*PROJECT["dependencies"], *(r for e in extras.values() for r in e)]
    for requirement in requirements:
        if not requirement.startswith(typing_only):
            assert ">=" in requirement, requirement
            assert "<" in requirement, requirement
