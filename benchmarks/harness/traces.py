"""What a benchmark run did: one JSON line a run, appended as it completes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"

# Bytes after which a file is full: a repository wants no large ones.
_FULL = 700_000

_PACKAGES = ("ax-platform", "botorch", "gpytorch", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Trace:
    """One run of one benchmark.

    Args:
        benchmark: Its name.
        settings: What was asked for; with the seed it identifies the run.
        seed: Seed of the run.
        result: What came out, as plain JSON values.
        trials: What happened, trial by trial.
        provenance: Git revision, versions and machine.
    """

    benchmark: str
    settings: dict[str, Any]
    seed: int
    result: dict[str, Any]
    trials: list[dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What makes a run the same run, for resuming."""
        return json.dumps([self.benchmark, self.settings, self.seed], sort_keys=True)


def trace_file(benchmark: str, folder: Path = FOLDER) -> Path:
    """Where runs are appended."""
    return folder / "traces" / f"{benchmark}.jsonl"


def full_files(benchmark: str, folder: Path = FOLDER) -> list[Path]:
    """Files that are full and no longer appended to, oldest first."""
    paths = (folder / "traces").glob(f"{benchmark}.*.jsonl")
    return sorted(paths, key=lambda path: int(path.suffixes[-2][1:]))


def read_traces(benchmark: str, folder: Path = FOLDER) -> list[Trace]:
    """Read every completed run; a line cut off by a kill is not one."""
    paths = [*full_files(benchmark, folder), trace_file(benchmark, folder)]
    return [
        Trace(**fields)
        for path in paths
        if path.is_file()
        for fields in _complete_lines(path)
    ]


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    for line in text[: text.rfind("\n") + 1].splitlines():
        yield json.loads(line)


def append_trace(trace: Trace, folder: Path = FOLDER) -> None:
    """Append one run, after whatever an earlier kill left of a line."""
    path = trace_file(trace.benchmark, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        if whole >= _FULL:
            number = len(full_files(trace.benchmark, folder)) + 1
            path.rename(path.with_suffix(f".{number}.jsonl"))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trace), allow_nan=False) + "\n")


def by_settings(traces: Iterable[Trace]) -> list[list[Trace]]:
    """Traces of the same settings together, in order of the first of each."""
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(json.dumps(trace.settings, sort_keys=True), []).append(trace)
    return list(groups.values())


def missing(keys: Sequence[str], benchmark: str, folder: Path = FOLDER) -> set[str]:
    """Which runs are still to be done."""
    return set(keys) - {trace.key for trace in read_traces(benchmark, folder)}


def provenance(num_threads: int) -> dict[str, Any]:
    """Say which code ran where: the revision is that of the first call.

    A worker calls it when it starts, for later the checkout may have moved on.
    """
    return {
        "revision": _git("rev-parse", "--short", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": num_threads,
    }


@cache
def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
