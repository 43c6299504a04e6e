"""`python -m benchmarks list | run NAME --seeds N | report`."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import click
from tqdm import tqdm

from benchmarks.calibration import (
    calibration,
    check_cost,
    check_share,
    fitted,
    inner_maximum,
    known_part,
    misfit,
    noise_calibration,
    sem_coverage,
)
from benchmarks.comparison import plan as comparison
from benchmarks.cost import (
    kill,
    many_workers,
    overhead,
    search_cost,
    storage_cost,
    trial_speed,
)
from benchmarks.data_aware import plan as data_aware
from benchmarks.harness.traces import Trace, append_trace, missing
from benchmarks.harness.workers import completed_runs
from benchmarks.methods.fabolas import profile as fabolas_profile
from benchmarks.networks import (
    any_network,
    fc3,
    gammas,
    sample_size,
    torchvision_table,
    vgg16_stages,
)
from benchmarks.networks import resnets as networks
from benchmarks.networks.imagenet import DATA_VARIABLE, WEIGHTS_VARIABLE
from benchmarks.no_training import plan as no_training
from benchmarks.paper import proxy as paper_proxy
from benchmarks.paper.tables import TABLE_2, TABLES_3_AND_4, TABLES_6_AND_7
from benchmarks.quality import plan as quality
from benchmarks.report import write_reports
from benchmarks.speed import plan as speed

# Those that the page of the comparison and the page of the paper come from.
AGAINST_OTHERS = (
    comparison,
    fabolas_profile,
    TABLE_2,
    TABLES_3_AND_4,
    paper_proxy,
    TABLES_6_AND_7,
)
BENCHMARKS = {
    module.NAME: module
    for module in (
        fc3,
        calibration,
        fitted,
        known_part,
        misfit,
        inner_maximum,
        check_cost,
        check_share,
        sem_coverage,
        noise_calibration,
        overhead,
        search_cost,
        kill,
        storage_cost,
        networks,
        data_aware,
        quality,
        speed,
        no_training,
        vgg16_stages,
        any_network,
        torchvision_table,
        trial_speed,
        sample_size,
        gammas,
        many_workers,
        *AGAINST_OTHERS,
    )
}


@click.group()
def main() -> None:
    """Run the measurements behind the documents; resumable, one record per run."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@main.command("list")
def list_benchmarks() -> None:
    """Print every benchmark with what it costs."""
    minutes = {}
    for name, benchmark in BENCHMARKS.items():
        plan = benchmark.plan(None)
        minutes[name] = sum(map(benchmark.minutes, plan)) + benchmark.MINUTES_ONCE
        click.echo(
            f"{name:12} {benchmark.DESCRIPTION}\n{'':12} {len(plan)} runs, about "
            f"{minutes[name]:.0f} core-minutes in all"
        )
    others = sum(minutes[module.NAME] for module in AGAINST_OTHERS) / 60.0
    click.echo(
        f"\nAll of them: about {sum(minutes.values()) / 60.0:.0f} core-hours. Those "
        f"against other methods and the paper's tables: {others:.0f}."
    )


@main.command()
@click.argument("name", type=click.Choice(list(BENCHMARKS)))
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=None,
    help="Runs of each setting.  [default: the benchmark's]",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only settings with this value, or (fc3) this value instead of the default.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes; independent runs want one thread each.",
)
@click.option(
    "--methods",
    default=None,
    help="Only these methods, separated by commas (benchmarks that compare methods).",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Do what is missing. Said or not: a completed run is never repeated.",
)
@click.option(
    "--data",
    type=click.Path(),
    default=None,
    help="The paper's experiments on ILSVRC2012: a folder with `train` and `val`.",
)
@click.option(
    "--weights",
    default=None,
    help="torchvision's weights for --data.  [default: IMAGENET1K_V1]",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def run(
    name: str,
    seeds: int | None,
    changes: tuple[str, ...],
    methods: str | None,
    resume: bool,
    data: str | None,
    weights: str | None,
    workers: int,
    threads: int,
) -> None:
    """Run one benchmark; completed runs are not repeated."""
    benchmark = BENCHMARKS[name]
    wanted = dict(map(_parse, changes)) | ({"methods": methods} if methods else {})
    if data is not None:
        wanted["source"] = "imagenet"
        os.environ[DATA_VARIABLE] = data
    if weights is not None:
        os.environ[WEIGHTS_VARIABLE] = weights
    try:
        plan = benchmark.plan(seeds, **wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    keys = [Trace(name, settings, seed, {}, []).key for settings, seed in plan]
    todo = missing(keys, name)
    click.echo(f"{len(plan) - len(todo)} of {len(plan)} runs are already there")
    jobs = [job for job, key in zip(plan, keys, strict=True) if key in todo]
    for trace in tqdm(
        completed_runs(benchmark.run, jobs, workers=workers, threads=threads),
        total=len(jobs),
        unit="run",
    ):
        append_trace(trace)
    for path in write_reports():
        click.echo(f"wrote {path}")


def _parse(change: str) -> tuple[str, Any]:
    """Read `name=value`, the value as JSON where it is, else as text."""
    name, separator, value = change.partition("=")
    if not separator:
        raise ValueError(f"--set expects NAME=VALUE, got {change!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@main.command()
def report() -> None:
    """Write every table again from the traces."""
    for path in write_reports():
        click.echo(f"wrote {path}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
