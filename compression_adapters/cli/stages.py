"""`ax-pac stages`: several searches in a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compression_adapters.cli.options import (
    IN_STAGES,
    Request,
    search_options,
    source_options,
    take_source,
)

if TYPE_CHECKING:
    from compression_adapters.cli.stages_run import StageRequest


def _requests(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> list[StageRequest]:
    """Read the stages; the default is those of the paper."""
    from compression_adapters.cli.stages_run import DEFAULT_STAGES, read_stage

    try:
        return [read_stage(value) for value in values or DEFAULT_STAGES]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


# "\\b" keeps click from reflowing the paragraph after it.
_HELP = """Compress a network by several searches, one after the other.

Each stage starts from the network of the previous one, and its loss compares with that
network. --epochs trains after each stage, with labels if the data have them, otherwise
on the outputs of the original. Finished stages are kept in OUT/stages: the same command
continues with the first missing one. NETWORK is as for `ax-pac compress`.

\b
As in the paper:
  ax-pac stages vgg16 --data IMAGES --epochs 3 --out runs/vgg16 \\
    --loss relative_squared_l2 --stage convolutions:gamma=1 \\
    --stage linear:gamma=0.2 --stage pruning:gamma=1
"""


@click.command(help=_HELP, short_help="Compress in stages, with training between them.")
@source_options
@click.option(
    "--stage",
    "requests",
    multiple=True,
    metavar="KIND[:NAME=VALUE,...]",
    callback=_requests,
    help="One stage; repeat for more. KIND is convolutions, linear, low-rank, pruning "
    "or layer-pruning; settings after the colon apply to this stage only: gamma, "
    "ratio, loss_at_most, speedup, delta, epsilon, max_trials, min_rank, round_to, "
    "epochs, learning_rate.  [default: convolutions, linear, pruning]",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Training epochs after each stage.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=0.001,
    show_default=True,
    help="Largest learning rate of the training.",
)
@click.option(
    "--schedule",
    type=click.Choice(["cyclical", "step", "constant"]),
    default="cyclical",
    show_default=True,
    help="Schedule of the learning rate.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Of the training.",
)
@search_options(IN_STAGES)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the search of each stage in OUT/search.db, so that an interrupted stage "
    "continues as well.",
)
def stages(
    out: Path,
    requests: list[StageRequest],
    epochs: int,
    learning_rate: float,
    schedule: Any,
    batch_size: int,
    resume: bool,
    **values: Any,
) -> None:
    """See `_HELP`."""
    from compression_adapters.cli.stages_run import Training, compress_source_in_stages

    request = Request.of(out, resume, **values)
    try:
        training = Training(epochs, learning_rate, schedule, batch_size)
        source = take_source(request.source)
        summary = compress_source_in_stages(source, request, requests, training)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException(
            f"interrupted; finished stages are kept in {out}, the same command resumes"
        ) from None
    print_stages(summary, out)


def print_stages(summary: dict[str, Any], out: Path) -> None:
    """Print the network after each stage, and where the files are."""
    from compression_adapters.report.stages import stage_table

    table = stage_table(summary)
    click.echo(table.to_string(index=False, float_format="{:.2f}".format))
    resumed = [s["stage"] for s in summary["stages"] if s.get("resumed")]
    if resumed:
        click.echo(f"finished before: {', '.join(resumed)}")
    click.echo(
        f"saved     {out}/network (reloaded, same outputs)\nreport    {out}/report.html"
    )
