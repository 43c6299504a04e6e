"""The `ax-pac` command."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from compression_adapters.presets import Preset
    from compression_adapters.search import CompressionResult

# Ax, torch and torchvision take seconds to import: `--help` and a mistyped option
# should not wait for them, so each command imports what it needs.

_PACKAGES = ("ax-pac", "ax-platform", "botorch", "torch", "torchvision", "numpy")


# "\\b" keeps click from filling the paragraph after it.
_HELP = """Compress neural networks, and know when the search is finished.

\b
Start here:
  ax-pac compress fc3 --out runs/fc3   train, compress and report (a minute)
  ax-pac report runs/fc3               write the report of a run again

Your own network: compression_adapters.compress(network, inputs, gamma=...) from
Python. Your own objective: ax_pac.pac_generation_strategy in an Ax loop.
"""


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ax-pac", prog_name="ax-pac")
def main() -> None:
    """Run before every command."""
    # Deprecations inside other people's packages are of no use to a reader here.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@main.command(short_help="Compress a named network until a certificate holds.")
@click.argument("preset", metavar="PRESET", type=click.Choice(["fc3"]))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for summary.json, trials.csv, report.html and the network.",
)
@click.option(
    "--gamma",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Weight of the loss; larger keeps more weights.  [default: the preset's]",
)
@click.option(
    "--delta",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="Tolerance, in units of the objective gamma * loss + ratio.",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.005,
    show_default=True,
    help="Allowed probability that the result is not within delta of the best.",
)
@click.option(
    "--level",
    type=click.Choice(["pairwise", "joint", "marginal"]),
    default="joint",
    show_default=True,
    help="What the certificate accounts for; pairwise is the paper's rule.",
)
@click.option(
    "--sampling",
    type=click.Choice(["leader_challenger", "challenger"]),
    default="leader_challenger",
    show_default=True,
    help="What to evaluate next; challenger is the paper's.",
)
@click.option(
    "--loss",
    type=click.Choice(["squared_l2", "kl_divergence", "cross_entropy", "top1_error"]),
    default="squared_l2",
    show_default=True,
    help="The first two need no labels.",
)
@click.option(
    "--num-samples",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Fresh samples an evaluation.",
)
@click.option(
    "--encoding",
    type=click.Choice(["log", "energy", "linear"]),
    default="log",
    show_default=True,
    help="How a coordinate in [0, 1] becomes a rank; linear is the paper's.",
)
@click.option(
    "--at-max",
    type=click.Choice(["dense", "factor"]),
    default="dense",
    show_default=True,
    help="What the top of a layer's range means; factor is the paper's.",
)
@click.option(
    "--min-rank",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Smallest rank of a layer.",
)
@click.option(
    "--max-trials",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Evaluations after which to stop without a certificate.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show a progress bar.  [default: on a terminal only]",
)
def compress(preset: str, out: Path, progress: bool | None, **options: Any) -> None:
    """Compress a named network, by default without labels, until a certificate holds.

    PRESET is the network. fc3 is 784-1000-1000-10 on MNIST, trained here in a minute
    the first time and kept in your cache folder.
    """
    from compression_adapters.presets import PRESETS

    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out {out} is a file, expected a folder")
    if options["gamma"] is None:
        options["gamma"] = PRESETS[preset].gamma
    try:
        summary = _compress_preset(PRESETS[preset], out, progress, options)
    except (ValueError, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("interrupted before there was a result") from None
    _print_summary(summary, out)


@main.command(short_help="Write the report of a finished run again.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def report(folder: Path) -> None:
    """Write the report of a finished run again, and print its result.

    FOLDER is what was given to `ax-pac compress --out`.
    """
    from compression_adapters.report import read_run, write_report

    try:
        summary, _ = read_run(folder)
        write_report(folder, _certificate_figures(summary))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print_summary(summary, folder)


def _compress_preset(
    preset: Preset, out: Path, progress: bool | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Train or load, search, save, reload, measure and write; return the summary."""
    from compression_adapters.report import (
        NETWORK_FOLDER,
        read_run,
        write_report,
        write_run,
    )
    from compression_adapters.search import compress as search

    click.echo(f"{preset.name}: {preset.description}")
    network = preset.trained(progress=_show_epoch)
    inputs, labels = preset.train_data()
    needs_labels = options["loss"] in ("cross_entropy", "top1_error")
    result = search(
        network,
        inputs,
        labels=labels if needs_labels else None,
        choose=preset.choose,
        progress=progress,
        **options,
    )
    result.save(out / NETWORK_FOLDER)
    result.client.save_to_json_file(str(out / "experiment.json"))
    summary = _summary(preset, result, options)
    summary |= _accuracies(preset, result)
    summary["reloaded_is_equal"] = _reload(preset, result, out / NETWORK_FOLDER)
    write_run(out, summary, _trials_with_accuracy(preset, result))
    write_report(out, _certificate_figures(summary))
    return read_run(out)[0]


def _summary(
    preset: Preset, result: CompressionResult, options: dict[str, Any]
) -> dict[str, Any]:
    """Collect what was asked and what came out, as plain JSON values."""
    from ax_pac import certificate_records, incumbent_arm
    from compression_adapters.network import compression_ratio, whole_network_ratio

    problem, experiment = result.problem, result.client._experiment
    best = incumbent_arm(result.client)
    incumbent = next(
        index for index, trial in experiment.trials.items() if trial.arm == best
    )
    return {
        "network": preset.name,
        "stop_reason": result.stop_reason,
        "compression_ratio": compression_ratio(problem.layers, result.ranks),
        "whole_network_ratio": whole_network_ratio(
            problem.network, problem.layers, result.ranks
        ),
        "ranks": result.ranks,
        "parameterization": result.parameterization,
        "incumbent_trial": incumbent,
        "certificate": result.certificate.to_dict(),
        "certificates": certificate_records(experiment),
        "layers": result.layers.to_dict("records"),
        "num_trials": len(result.trials),
        "timings": result.timings,
        "settings": options,
        "seed": result.seed,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _accuracies(preset: Preset, result: CompressionResult) -> dict[str, float]:
    """Measure top-1 and top-5 accuracy on the test set, before and after."""
    from compression_adapters.presets import accuracy

    images, labels = preset.test_data()
    measured: dict[str, float] = {}
    for name, network in (
        ("original", result.problem.network),
        ("compressed", result.network),
    ):
        top1, top5 = accuracy(network, images, labels)
        measured |= {f"accuracy_{name}": top1, f"top5_{name}": top5}
    return measured


def _trials_with_accuracy(preset: Preset, result: CompressionResult) -> Any:
    """Add each evaluated network's test accuracy to the trial table."""
    from compression_adapters.network import truncated
    from compression_adapters.presets import accuracy

    problem, experiment = result.problem, result.client._experiment
    table = result.trials.copy()
    images, labels = preset.test_data()
    table["accuracy"] = float("nan")
    for row in table.index[table["status"] == "COMPLETED"]:
        trial = experiment.trials[int(table["trial_index"][row])]
        ranks = problem.ranks(trial.arm.parameters)
        with truncated(
            problem.network, problem.factors, problem.layers, ranks
        ) as network:
            (table.loc[row, "accuracy"],) = accuracy(network, images, labels, topk=(1,))
    return table


def _reload(preset: Preset, result: CompressionResult, folder: Path) -> bool:
    """Load the saved network onto a fresh one and compare the outputs."""
    import torch

    from compression_adapters.checkpoint import load_compressed

    loaded = load_compressed(folder, preset.build()).eval()
    images = preset.test_data()[0][:500]
    with torch.inference_mode():
        same = torch.allclose(loaded(images), result.network(images), atol=1e-5)
    if not same:
        raise RuntimeError(f"the network saved in {folder} gives other outputs")
    return same


def _certificate_figures(summary: dict[str, Any]) -> list[tuple[str, go.Figure]]:
    """Draw the certificate's history for the report."""
    from ax_pac.analysis import history_table, plot_certificate_history

    figure = plot_certificate_history(history_table(summary["certificates"]))
    caption = (
        "What may still be wrong with the incumbent, after each evaluation, at the "
        "level that is named."
    )
    return [(caption, figure)]


def _show_epoch(epoch: int, epochs: int) -> None:
    click.echo(f"training, epoch {epoch} of {epochs}")


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the result in a few lines."""
    certificate = summary["certificate"]
    verdict = "certified" if certificate["holds"] else "NOT certified"
    seconds = summary["timings"]["total"]
    reload = "same outputs" if summary["reloaded_is_equal"] else "OTHER outputs"
    top5 = f"{summary['top5_original']:.2%} before, {summary['top5_compressed']:.2%}"
    ranks = ", ".join(f"{name} {rank}" for name, rank in summary["ranks"].items())
    click.echo(
        f"{verdict} (level {certificate['level']}) after {summary['num_trials']} "
        f"evaluations, {seconds:.1f} s\n"
        f"  {certificate['reason']}\n"
        f"weights   {summary['compression_ratio']:.2%} of the layers in play, "
        f"{summary['whole_network_ratio']:.2%} of the whole network\n"
        f"ranks     {ranks}\n"
        f"accuracy  top-1 {summary['accuracy_original']:.2%} before, "
        f"{summary['accuracy_compressed']:.2%} after; top-5 {top5} after\n"
        f"saved     {folder}/network (reloaded, {reload})\n"
        f"report    {folder}/report.html"
    )
