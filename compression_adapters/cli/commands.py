"""The `ax-pac` command."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compression_adapters.cli.many import compress_list
from compression_adapters.cli.options import (
    LIST_SUFFIXES,
    Request,
    SourceRequest,
    network_options,
    search_options,
    source_options,
    take_source,
)
from compression_adapters.cli.stages import print_stages, stages
from compression_adapters.cli.watch import status, watch, write_search_report

# "\\b" keeps click from reflowing the paragraph after it.
_HELP = """Compress neural networks until a certificate holds.

\b
Start here:
  ax-pac compress fc3 --out runs/fc3   train, compress and report (one minute)
  ax-pac report runs/fc3               write the report of a run again
  ax-pac compress torchvision:resnet18 --data IMAGES --out runs/r18
  ax-pac compress my_module:my_network --data my_module:my_inputs ...
  ax-pac profile fc3                   its layers, and what each rank would lose
  ax-pac compress tonight.toml --workers 4 --out runs/tonight   a list of searches
  ax-pac status runs/fc3/search.db     how searches in a database stand
  ax-pac watch runs/fc3/search.db      a page on them, while they run
  ax-pac stages vgg16 --data IMAGES --gamma 0.001 --epochs 3 --out runs/vgg16

From Python: compression_adapters.compress(network, inputs, gamma=...).
Your own objective: ax_pac.pac_generation_strategy in an Ax loop.
"""


# What of a search's options a profile takes.
_PROFILED = (
    *("calibrate", "calibration_seed", "choose", "encoding", "min_rank", "output"),
    *("size", "latency_batch", "latency_seconds"),
)


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ax-pac", prog_name="ax-pac")
def main() -> None:
    """Run before every command."""
    # Deprecations inside other packages are of no use to a user of the command.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@main.command(short_help="Compress a network until a certificate holds.")
@source_options
@search_options()
@click.option(
    "--resume",
    is_flag=True,
    help="The same as --db OUT/search.db.",
)
def compress(out: Path, resume: bool, **values: Any) -> None:
    """Compress a network, by default without labels, until a certificate holds.

    NETWORK is a preset (fc3, vgg16, resnet18, resnet50), torchvision:NAME, or
    module.path:factory, a function of yours that returns a network. fc3 is
    784-1000-1000-10 on MNIST; it is trained in one minute the first time and kept in
    your cache folder. The others need --data; without --gamma and the like, a tenth of
    a per cent of the outputs' squared size weighs as much as one of the weights.

    NETWORK may also be a list of searches, a .toml or .json file: each entry has a
    name, a network and any of the options below. --workers is then how many are made
    at the same time on Ray (one after the other without it), --resources what each
    reserves, and a second call goes on.
    """
    if Path(values["network"]).suffix in LIST_SUFFIXES:
        _compress_list(out, resume, values)
        return
    request = Request.of(out, resume, **values)
    if not request.options.target.given:
        request = _with_default_gamma(request)
    from compression_adapters.cli.compress_run import compress_source

    try:
        source = take_source(request.source)
        if (out / "summary.json").is_file():
            click.echo(f"{out} holds an earlier run, which this one replaces")
        summary = compress_source(source, request)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("interrupted before the first result") from None
    _print_summary(summary, out)


def _compress_list(out: Path, resume: bool, values: dict[str, Any]) -> None:
    """Make the searches of a list, and print a table of what became of them."""
    context = click.get_current_context()
    other = [
        name
        for name in values
        if name not in ("network", "db", "workers", "resources", "progress")
        and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if other:
        raise click.UsageError(
            f"--{other[0].replace('_', '-')} is an option of a search: write it into "
            f"{values['network']}, under a search or under defaults"
        )
    from compression_adapters.report.many import cells_of

    try:
        rows = compress_list(
            Path(values["network"]),
            compress,
            out,
            db=values["db"],
            workers=values["workers"] or 1,
            resources=values["resources"],
            say=click.echo,
        )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    for row in rows:
        click.echo("  ".join(cells_of(row)))
    click.echo(f"report    {out / 'report.html'}")
    failed = [row["name"] for row in rows if row["state"] == "failed"]
    if failed:
        raise click.ClickException(
            f"failed: {', '.join(failed)}. The same command tries these again"
        )


def _with_default_gamma(request: Request) -> Request:
    """Take the weight of the loss that belongs to a preset."""
    from compression_adapters.presets.registry import PRESETS

    network = request.source.network
    gamma = PRESETS[network].gamma if network in PRESETS else None
    if gamma is None:
        return request  # `compress` needs no number
    return replace(request, options=request.options.changed(gamma=gamma))


main.add_command(stages)
main.add_command(status)
main.add_command(watch)


@main.command(short_help="Tabulate the layers of a network before a search.")
@network_options
@search_options(_PROFILED)
@click.option(
    "--save-times",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Keep the table of times in this .json file, for --size of a search.",
)
def profile(progress: bool | None, save_times: Path | None, **values: Any) -> None:
    """Tabulate layers, ranks, weights, multiply-adds and predicted errors.

    NETWORK is as for `ax-pac compress`. Predicted errors are the shares of the layers'
    squared outputs that the smallest, the middle and the largest rank leave out; with
    --calibrate 0, of their squared weights. With --size latency the layers are timed at
    their ranks; with --size FILE.json a table of times is printed beside them.
    """
    asked = {name: values.pop(name) for name in _PROFILED}
    from compression_adapters.cli.profile_run import profile_source

    try:
        if save_times is not None and asked["size"] != "latency":
            raise click.UsageError("--save-times keeps what --size latency measures")
        source = take_source(SourceRequest(**values))
        found = profile_source(source, progress=progress, **asked)
        click.echo(str(found))
        if save_times is not None and found.latency is not None:
            found.latency.save(save_times)
            click.echo(f"times kept in {save_times}")
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


@main.command(short_help="Write the report of a finished run, or of a database.")
@click.argument("run", metavar="FOLDER|DB")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The page on a database.  [default: searches.html beside an SQLite file, "
    "else here]",
)
def report(run: str, out: Path | None) -> None:
    """Write the report of a finished run again, and print its result.

    FOLDER is the --out of `ax-pac compress` or `ax-pac stages`. DB is a database of
    searches, a file or a URL: the page is then on how all of them stand.
    """
    folder = Path(run)
    if "://" in run or folder.is_file():
        beside = Path() if "://" in run else folder.parent
        write_search_report(run, out or beside / "searches.html")
        return
    if out is not None:
        raise click.UsageError("--out is for the page on a database")
    from compression_adapters.cli.compress_run import certificate_figures
    from compression_adapters.report.run import read_run, write_report
    from compression_adapters.report.stages import (
        STAGES_FILE,
        read_stages,
        write_stage_report,
    )

    try:
        if (folder / STAGES_FILE).is_file():
            write_stage_report(folder)
            print_stages(read_stages(folder), folder)
            return
        summary, _ = read_run(folder)
        write_report(folder, certificate_figures(summary))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print_summary(summary, folder)


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the result in a few lines."""
    certificate = summary["certificate"]
    verdict = "certified" if certificate["holds"] else "NOT certified"
    seconds = summary["timings"]["total"]
    reload = "same outputs" if summary["reloaded_is_equal"] else "OTHER outputs"
    accuracy = "not measured: there are no labelled test images"
    if "accuracy_compressed" in summary:
        accuracy = (
            f"top-1 {summary['accuracy_original']:.2%} before, "
            f"{summary['accuracy_compressed']:.2%} after; "
            f"top-5 {summary['top5_original']:.2%} before, "
            f"{summary['top5_compressed']:.2%} after"
        )
        if summary.get("note"):
            accuracy += f" ({summary['note']})"
    ranks = ", ".join(_form(layer) for layer in summary["layers"])
    ended = f"{verdict} (level {certificate['level']})"
    if summary["stop_reason"] == "no_search":
        ended = "not searched"
    said = summary.get("statement")
    stated = f"quality   {said['sentence']}\n" if said else ""
    finish = summary.get("finish")
    finished = f"after     {finish['sentence']}\n" if finish else ""
    click.echo(
        f"{ended} after {_counted(summary['num_trials'], 'evaluation')}, "
        f"{seconds:.1f} s\n"
        f"  {certificate['reason']}\n"
        f"{_size_lines(summary)}"
        f"ranks     {ranks}\n"
        f"{finished}"
        f"{stated}"
        f"accuracy  {accuracy}\n"
        f"{_costs(summary)}"
        f"saved     {folder}/network (reloaded, {reload})\n"
        f"report    {folder}/report.html"
    )


def _form(layer: dict[str, Any]) -> str:
    """Write what became of a layer; of a ladder with its decomposition."""
    kind = f"{layer['kind']} " if "rung" in layer and layer["rank"] != "dense" else ""
    return f"{layer['layer']} {kind}{layer['rank']}"


def _size_lines(summary: dict[str, Any]) -> str:
    """Print the size before and after, in the unit that was asked for first."""
    size = summary.get("size")
    in_play = summary.get("weights_ratio", summary["compression_ratio"])
    lines = []
    if summary.get("latency"):
        latency = summary["latency"]
        lines.append(f"time      {latency['sentence']}")
        if latency["disagreement"]:
            lines.append(f"  {latency['disagreement']}")
    if size is not None and size["size"] != "weights":
        lines.append(f"size      {size['sentence']}")
    lines.append(
        f"weights   {in_play:.2%} of the layers in play, "
        f"{summary['whole_network_ratio']:.2%} of the whole network"
    )
    return "".join(f"{line}\n" for line in lines)


def _counted(number: int, what: str) -> str:
    """Write a number of things."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def _costs(summary: dict[str, Any]) -> str:
    """Print measured costs, and a warning if there is one."""
    from compression_adapters.report.run import readable

    lines = []
    for row in summary.get("costs", {}).get("table", []):
        lines.append(
            f"measured  {row['quantity']}: {readable(row['before'])} before, "
            f"{readable(row['after'])} after ({row['ratio']:.1%})\n"
        )
    for warning in summary.get("costs", {}).get("warnings", []):
        lines.append(f"  {warning}\n")
    return "".join(lines)
