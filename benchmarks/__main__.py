"""`python -m benchmarks list | run NAME --seeds N | report`."""

from __future__ import annotations

import warnings
from typing import Any

import click
import torch
from tqdm import tqdm

from benchmarks import fc3
from benchmarks.report import write_reports
from benchmarks.traces import Trace, append_trace, missing

BENCHMARKS = {fc3.NAME: fc3}


@click.group()
def main() -> None:
    """Run the measurements behind the documents; resumable, one JSON line a run."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@main.command("list")
def list_benchmarks() -> None:
    """Print every benchmark with what it costs."""
    for name, benchmark in BENCHMARKS.items():
        click.echo(
            f"{name:12} {benchmark.DESCRIPTION}\n{'':12} about "
            f"{benchmark.MINUTES_PER_RUN} minutes a seed on two cores, and "
            f"{benchmark.MINUTES_ONCE} once"
        )


@main.command()
@click.argument("name", type=click.Choice(list(BENCHMARKS)))
@click.option("--seeds", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--gamma", type=float, default=None, help="Weight of the loss.")
@click.option(
    "--encoding",
    type=click.Choice(["log", "energy", "linear"]),
    default=None,
    help="How a coordinate becomes a rank.",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def run(name: str, seeds: int, threads: int, **changes: Any) -> None:
    """Run one benchmark for seeds 0, 1, ...; completed runs are not repeated."""
    torch.set_num_threads(threads)
    benchmark = BENCHMARKS[name]
    settings = {
        key: value if changes.get(key) is None else changes[key]
        for key, value in benchmark.SETTINGS.items()
    }
    plan = {Trace(name, settings, seed, {}, []).key: seed for seed in range(seeds)}
    todo = missing(list(plan), name)
    click.echo(f"{len(plan) - len(todo)} of {len(plan)} runs are already there")
    for key, seed in tqdm(plan.items(), unit="run", disable=None):
        if key in todo:
            append_trace(benchmark.run(seed, settings))
    for path in write_reports():
        click.echo(f"wrote {path}")


@main.command()
def report() -> None:
    """Write every table again from the traces."""
    for path in write_reports():
        click.echo(f"wrote {path}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
