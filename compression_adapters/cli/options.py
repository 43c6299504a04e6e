"""Options of the `ax-pac` commands, made of the options of a search.

As in `commands`: nothing slow is imported before an option has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compression_adapters.options import (
    AUTO,
    KEYWORDS,
    PRESET_NAMES,
    TARGETS,
    CompressionOptions,
    ProblemOptions,
    SearchOptions,
    Target,
    option,
    read_ratio,
    read_resources,
    require_size,
)

if TYPE_CHECKING:
    from compression_adapters.cli.sources import Source

LIST_SUFFIXES = (".toml", ".json")
"""How the file of a list of searches ends; no network has such a name."""

IN_STAGES = (
    *(*TARGETS, "loss", "delta", "epsilon", "level", "max_trials", "start"),
    *("sampling", "seed", "num_samples", "refit", "choose"),
    *("size", "size_of", "latency_batch", "latency_seconds"),
)
"""Options that `ax-pac stages` has for all its stages."""


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """Which network and data are asked for.

    Args:
        network: NETWORK.
        weights: File or name of its weights.
        data: Folder of images, or `module.path:function`.
        layers: Name of a choice of layers.
        num_classes: Outputs of a network of torchvision's.
        image_size: Pixels, for images from a folder.
        test_samples: Images from a folder that the accuracy is measured on.
        device: Where the network runs.
    """

    network: str
    weights: str | None = option(
        None,
        "A .safetensors, .pt or .pth file, never unpickled; or the name of "
        "torchvision's weights.  [default: IMAGENET1K_V1]",
    )
    data: str | None = option(
        None,
        "Folder with a folder of images for each class, with or without train and val "
        "above them; or module.path:function.",
    )
    layers: str | None = option(
        None, "paper (a preset's), 3x3, linear or all.  [default: paper, else all]"
    )
    num_classes: int = option(
        1000, "Number of outputs of a torchvision network.", at_least=1
    )
    image_size: int = option(224, "Pixels; for images from a folder.", at_least=1)
    test_samples: int = option(
        1000, "Images from a folder that the accuracy is measured on.", at_least=1
    )
    device: str | None = option(
        None, "Where the network runs.  [default: cuda if there is one, else cpu]"
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command was asked for.

    Args:
        out: Folder of the run.
        source: Network and data.
        options: Of the search.
    """

    out: Path
    source: SourceRequest
    options: CompressionOptions = field(default_factory=CompressionOptions)

    @classmethod
    def of(cls, out: Path, resume: bool, **values: Any) -> Request:
        """Sort the values of a command into groups, or refuse them.

        Args:
            out: Folder of the run.
            resume: Whether the search is kept in a database in that folder.
            values: Of all other options.
        """
        if out.exists() and not out.is_dir():
            raise click.UsageError(f"--out {out} is a file, expected a folder")
        given = [name for name in TARGETS if values[name] is not None]
        if len(given) > 1:
            raise click.UsageError(
                f"expected one of {', '.join(_flag(name) for name in TARGETS)}; got "
                + " and ".join(map(_flag, given))
            )
        if resume:
            if values.get("db") is not None:
                raise click.UsageError("expected one of --db and --resume; got both")
            values["db"] = str(out / "search.db")
        keywords = {name: values.pop(name) for name in KEYWORDS if name in values}
        try:
            options = CompressionOptions.of(**keywords)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        _require_writable(out)
        return cls(out=out, source=SourceRequest(**values), options=options)


def _flag(name: str) -> str:
    """Return an option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _require_writable(out: Path) -> None:
    """Make the folder of a run, before a search whose result it could not take."""
    probe = out / ".ax-pac"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise click.UsageError(
            f"--out {out} cannot be written: {error.strerror}. Choose another folder."
        ) from error


def _known_network(
    context: click.Context, parameter: click.Parameter, name: str
) -> str:
    """Refuse a mistyped name before anything is imported."""
    if name.endswith(LIST_SUFFIXES) and parameter.name == "network":
        if context.command.name != "compress":
            raise click.BadParameter("a list of searches is for ax-pac compress")
        if not Path(name).is_file():
            raise click.BadParameter(f"there is no list of searches {name}")
        return name
    if name not in PRESET_NAMES and ":" not in name:
        raise click.BadParameter(
            f"{name!r} is not one of {', '.join(PRESET_NAMES)}, and neither "
            "torchvision:NAME nor module.path:factory"
        )
    return name


def _samples(
    context: click.Context, parameter: click.Parameter, value: Any
) -> int | str:
    """Read a number of samples, or "auto"."""
    if value == AUTO:
        return AUTO
    return int(click.IntRange(min=2).convert(value, parameter, context))


def _ratio(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Refuse an invalid ratio before a network is trained or read."""
    try:
        if value is not None:
            read_ratio(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _output(_context: Any, _option: Any, value: str | None) -> str | int | None:
    """Read the name or the index of an output."""
    if value is not None and value.removeprefix("-").isdecimal():
        return int(value)
    return value


def _size(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuse an unknown size before a network is trained or read."""
    try:
        require_size(value, "layers")
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _resources(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> dict[str, float] | None:
    """Read what an evaluation reserves."""
    try:
        return None if value is None else read_resources(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_CALLBACKS: dict[str, Callable[..., Any]] = {
    "num_samples": _samples,
    "ratio": _ratio,
    "output": _output,
    "size": _size,
    "resources": _resources,
}


def network_options(command: Any) -> Any:
    """Add the options of network, weights and data."""
    network = click.argument("network", metavar="NETWORK", callback=_known_network)
    return network(_added(command, fields(SourceRequest)))


def source_options(command: Any) -> Any:
    """Add the options of network, weights, data and output folder."""
    out = click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="Folder for the summary, report.html and the network.",
    )
    return network_options(out(command))


def search_options(names: Iterable[str] | None = None) -> Callable[[Any], Any]:
    """Add what a search is asked for.

    Args:
        names: Of the options that the command has; None: all.
    """

    def add(command: Any) -> Any:
        declared = [*fields(Target), *fields(ProblemOptions), *fields(SearchOptions)]
        progress = click.option(
            "--progress/--no-progress",
            default=None,
            help="Show a progress bar.  [default: on a terminal only]",
        )
        wanted = [f for f in declared if names is None or f.name in names]
        return _added(progress(command), wanted)

    return add


def _added(command: Any, declared: Iterable[Field[Any]]) -> Any:
    """Add the options that have a help text, in their order."""
    for one in reversed([f for f in declared if f.metadata.get("help")]):
        command = _click_option(one)(command)
    return command


def _click_option(declared: Field[Any]) -> Callable[[Any], Any]:
    """Turn a declared option into one of the command line."""
    flag = f"--{declared.name.replace('_', '-')}"
    known, default = declared.metadata, declared.default
    settings: dict[str, Any] = {"default": default, "help": known["help"]}
    if isinstance(default, bool):
        if default:
            flag += f"/--no-{flag.removeprefix('--')}"
            settings["show_default"] = True
        return click.option(flag, is_flag=True, **settings)
    settings["show_default"] = default is not None
    settings["metavar"] = known["metavar"]
    settings["callback"] = _CALLBACKS.get(declared.name)
    if known["choices"] is not None:
        settings["type"] = click.Choice(known["choices"])
    elif declared.name in _CALLBACKS:
        settings["type"] = str
    elif known["at_least"] is not None:
        settings["type"] = click.IntRange(min=known["at_least"])
    elif known["above"] is not None:
        settings["type"] = click.FloatRange(
            known["above"], known["below"], min_open=True, max_open=True
        )
    return click.option(flag, **settings)


def take_source(request: SourceRequest) -> Source:
    """Open what a command asks for, and say what it is.

    Args:
        request: Network and data.

    Returns:
        The source, its network where it is to run (the search's own model stays on
        the CPU).
    """
    import torch

    from compression_adapters.cli.sources import open_source

    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(request.device or ("cuda" if has_gpu else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {request.device} cannot be used here; expected cpu"
            f"{', or cuda' if has_gpu else ' (there is no GPU)'}."
        ) from error
    source = open_source(
        request.network,
        weights=request.weights,
        data=request.data,
        layers=request.layers,
        num_classes=request.num_classes,
        image_size=request.image_size,
        progress=_show_epoch,
    )
    source.network.to(device)
    click.echo(f"{source.name}: {source.description}")
    return source


def _show_epoch(epoch: int, epochs: int) -> None:
    """Print the progress of a training."""
    click.echo(f"training, epoch {epoch} of {epochs}")
