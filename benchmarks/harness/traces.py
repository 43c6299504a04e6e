"""What a benchmark run did: one compressed JSON line per run, appended as it ends."""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "benchmarks" / "traces"
PAGES = ROOT / "docs" / "benchmarks"

# Bytes after which a file is full: a repository wants no large ones.
_FULL = 700_000
# What zlib calls a gzip member, header and checksum included.
_GZIP = 16 + zlib.MAX_WBITS

_PACKAGES = ("ax-platform", "botorch", "gpytorch", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Trace:
    """One run of one benchmark.

    Args:
        benchmark: Its name.
        settings: Of the run; with the seed they identify it.
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


def trace_file(benchmark: str, folder: Path = TRACES) -> Path:
    """Where runs are appended."""
    return folder / f"{benchmark}.jsonl.gz"


def full_files(benchmark: str, folder: Path = TRACES) -> list[Path]:
    """Files that are full and no longer appended to, oldest first."""
    paths = folder.glob(f"{benchmark}.*.jsonl.gz")
    return sorted(paths, key=lambda path: int(path.suffixes[-3][1:]))


def read_traces(benchmark: str, folder: Path = TRACES) -> list[Trace]:
    """Read every completed run; one that was cut off by a kill is not completed."""
    paths = [*full_files(benchmark, folder), trace_file(benchmark, folder)]
    return [
        Trace(**json.loads(line))
        for path in paths
        if path.is_file()
        for text, _ in _members(path)
        for line in text.decode().splitlines()
    ]


def _members(path: Path) -> Iterator[tuple[bytes, int]]:
    """Content of each gzip member, and the byte at which it ends.

    Warns of a last member that was cut off, and leaves it out. Damage of any other
    kind is an error: a run that was measured must not vanish without a word.
    """
    data, start = path.read_bytes(), 0
    while start < len(data):
        member = zlib.decompressobj(wbits=_GZIP)
        text = member.decompress(data[start:])
        if not member.eof:
            lost = len(data) - start
            message = f"{path.name}: the last run was cut off ({lost} bytes left out)"
            warnings.warn(message, stacklevel=2)
            return
        start = len(data) - len(member.unused_data)
        yield text, start


def append_trace(trace: Trace, folder: Path = TRACES) -> None:
    """Append one run, after whatever an earlier kill left of another.

    Each run is a gzip member of its own. Concatenated members are a valid gzip file, so
    that nothing that was written before is opened again for writing, there is no second
    format to fold in, and a kill in the middle of a write costs that run only. `zcat`
    reads the files, and one member may hold several runs.
    """
    path = trace_file(trace.benchmark, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = max((end for _, end in _members(path)), default=0)
        os.truncate(path, whole)
        if whole >= _FULL:
            number = len(full_files(trace.benchmark, folder)) + 1
            path.rename(folder / f"{trace.benchmark}.{number}.jsonl.gz")
    line = json.dumps(asdict(trace), allow_nan=False) + "\n"
    with path.open("ab") as file:
        # Without the time of writing: the same runs give the same bytes.
        file.write(gzip.compress(line.encode(), mtime=0))


def by_settings(traces: Iterable[Trace]) -> list[list[Trace]]:
    """Traces of the same settings together, in order of the first of each."""
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(json.dumps(trace.settings, sort_keys=True), []).append(trace)
    return list(groups.values())


def missing(keys: Sequence[str], benchmark: str, folder: Path = TRACES) -> set[str]:
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


def recorded(
    benchmark: str,
    settings: dict[str, Any],
    seed: int,
    result: dict[str, Any],
    trials: Sequence[dict[str, Any]] = (),
) -> Trace:
    """The trace of a run that ends now, with the provenance of this process."""
    origin = provenance(torch.get_num_threads())
    return Trace(benchmark, settings, seed, result, list(trials), origin)


@cache
def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
