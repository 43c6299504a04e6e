"""Options that several commands of `ax-pac` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compression_adapters.cli.sources import Source


TARGETS = ("gamma", "ratio", "loss_at_most")
"""Names of the options of which a search takes one."""


_PRESETS = ("fc3", "vgg16", "resnet18", "resnet50")


def _known_network(
    context: click.Context, parameter: click.Parameter, name: str
) -> str:
    """Refuse a mistyped name before anything is imported."""
    if name not in _PRESETS and ":" not in name:
        raise click.BadParameter(
            f"{name!r} is not one of {', '.join(_PRESETS)}, and neither "
            "torchvision:NAME nor module.path:factory"
        )
    return name


def _samples(
    context: click.Context, parameter: click.Parameter, value: Any
) -> int | str:
    """Read a number of samples, or "auto"."""
    if value == "auto":
        return "auto"
    return int(click.IntRange(min=2).convert(value, parameter, context))


def _ratio(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Refuse what is no ratio before a network is trained or read."""
    if value is None:
        return None
    from compression_adapters.search.ratio import read_ratio

    try:
        read_ratio(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def check_options(out: Path, options: dict[str, Any]) -> None:
    """Refuse what no command can do, before a network is trained or read."""
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out {out} is a file, expected a folder")
    given = [name for name in TARGETS if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(
            "expected one of --gamma, --ratio and --loss-at-most; got "
            + " and ".join(f"--{name.replace('_', '-')}" for name in given)
        )


def database_in(out: Path) -> str:
    """Return where `--resume` keeps a search, whose folder is then there."""
    out.mkdir(parents=True, exist_ok=True)
    return str(out / "search.db")


def take_source(network: str, options: dict[str, Any]) -> tuple[Source, dict[str, Any]]:
    """Open what `source_options` describe, and say what it is.

    Args:
        network: NETWORK.
        options: All options of the command; those of the source are taken out.

    Returns:
        The source, its network where it is to run (the search's own model stays on
        the CPU), and the options that it was opened with.
    """
    import torch

    from compression_adapters.cli.sources import open_source

    names = ("weights", "data", "layers", "num_classes", "image_size")
    asked = {name: options.pop(name) for name in names}
    device = options.pop("device")
    source = open_source(network, progress=_show_epoch, **asked)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    source.network.to(device)
    click.echo(f"{source.name}: {source.description}")
    return source, asked


def _show_epoch(epoch: int, epochs: int) -> None:
    """Say how far a training is."""
    click.echo(f"training, epoch {epoch} of {epochs}")


_SOURCE: tuple[Callable[[Any], Any], ...] = (
    click.argument("network", metavar="NETWORK", callback=_known_network),
    click.option(
        "--weights",
        default=None,
        help="A .safetensors, .pt or .pth file, never unpickled; or the name of "
        "torchvision's weights.  [default: IMAGENET1K_V1]",
    ),
    click.option(
        "--data",
        default=None,
        help="Folder with a folder of images for each class, with or without train and "
        "val above them; or module.path:function.",
    ),
    click.option(
        "--layers",
        default=None,
        help="paper (a preset's), 3x3, linear or all.  [default: paper, else all]",
    ),
    click.option(
        "--num-classes",
        type=click.IntRange(min=1),
        default=1000,
        show_default=True,
        help="Outputs of a network of torchvision's.",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(min=1),
        default=224,
        show_default=True,
        help="Pixels; for images from a folder.",
    ),
    click.option(
        "--test-samples",
        type=click.IntRange(min=1),
        default=1000,
        show_default=True,
        help="Images from a folder that the accuracy is measured on.",
    ),
    click.option(
        "--device",
        default=None,
        help="Where the network runs.  [default: cuda if there is one, else cpu]",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="Folder for the summary, report.html and the network.",
    ),
)


_SEARCH: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--gamma",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        help="Weight of the loss; larger keeps more weights.  [default: the preset's]",
    ),
    click.option(
        "--ratio",
        default=None,
        metavar="SIZE",
        callback=_ratio,
        help="In place of --gamma: the best network of this size or less, such as 30%.",
    ),
    click.option(
        "--loss-at-most",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        help="In place of --gamma: the smallest network that loses no more than this.",
    ),
    click.option(
        "--loss",
        type=click.Choice(
            [
                "squared_l2",
                "relative_squared_l2",
                "kl_divergence",
                "cross_entropy",
                "top1_error",
            ]
        ),
        default="squared_l2",
        show_default=True,
        help="What is measured. The first three compare with the original's outputs, "
        "without labels; relative_squared_l2 is 1 for outputs of zero.",
    ),
    click.option(
        "--delta",
        type=click.FloatRange(min=0, min_open=True),
        default=0.05,
        show_default=True,
        help="Tolerance, in units of the objective gamma * loss + ratio.",
    ),
    click.option(
        "--epsilon",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.05,
        show_default=True,
        help="Allowed probability that the result is not within delta of the best.",
    ),
    click.option(
        "--level",
        type=click.Choice(["pairwise", "joint", "marginal"]),
        default="marginal",
        show_default=True,
        help="What the certificate accounts for; pairwise is the paper's rule.",
    ),
    click.option(
        "--max-trials",
        type=click.IntRange(min=2),
        default=200,
        show_default=True,
        help="Evaluations after which to stop without a certificate.",
    ),
    click.option(
        "--start",
        type=click.Choice(["auto", "line", "space-filling"]),
        default="auto",
        show_default=True,
        help="What to evaluate first; line: four networks whose layers are all cut "
        "alike, which auto does from four coordinates on.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--num-samples",
        default="50",
        show_default=True,
        metavar="NUMBER|auto",
        callback=_samples,
        help="Fresh samples an evaluation; auto: as many as cost what the search "
        "costs.",
    ),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="Show a progress bar.  [default: on a terminal only]",
    ),
)


def source_options(command: Any) -> Any:
    """Add a network, its weights and data, and where the results go."""
    return _decorated(command, _SOURCE)


def search_options(command: Any) -> Any:
    """Add what a search is asked for."""
    return _decorated(command, _SEARCH)


def _decorated(command: Any, options: tuple[Callable[[Any], Any], ...]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command
