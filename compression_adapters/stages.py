"""Several searches in a row, each on the previous result, with training in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
from torch import nn

from compression_adapters.api import compress_with
from compression_adapters.layers.survey import layer_weights, unwrap
from compression_adapters.network.checkpoint import load_compressed, save_compressed
from compression_adapters.options import CompressionOptions
from compression_adapters.report.versioned_json import read_versioned, write_versioned
from compression_adapters.search.dry_run import carrying

STAGE_FILE: Final = "stage.json"
LAYERS_FILE: Final = "layers.csv"
TRIALS_FILE: Final = "trials.csv"
FORMAT_VERSION: Final = 1
_NOT_COMPARED: Final = ("db", "name", "progress")


@dataclass(frozen=True)
class Stage:
    """One search, and what follows it.

    Args:
        name: Name of the stage in the report, and of its folder. Letters, digits, `-`,
            `_`.
        options: Options of `compress`, such as `gamma`, `choose`, `include`.
        then: Applied to the result of the search, such as fine-tuning: takes a network
            and returns one of the same structure. None: nothing.
        training: The settings of `then` as plain values, such as `{"epochs": 3}`. They
            are compared when a run is continued, because functions cannot be compared.

    Raises:
        ValueError: when the name is not valid as the name of a folder.

    Example:
        >>> Stage("convolutions", {"gamma": 0.1, "include": nn.Conv2d}).name
        'convolutions'
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    then: Callable[[nn.Module], nn.Module] | None = None
    training: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                "A stage's name must be made of letters, digits, '-' and '_'; got "
                f"{self.name!r}."
            )


OnStage = Callable[[Stage, nn.Module], None]
"""Called with a stage that has ended and the network after it."""


def compress_in_stages(
    network: nn.Module,
    inputs: Any,
    stages: Sequence[Stage],
    *,
    folder: str | Path | None = None,
    on_stage: OnStage | None = None,
    **options: Any,
) -> tuple[nn.Module, pd.DataFrame]:
    """Compress a network by several searches, one after the other.

    As in the paper's section 4.3: convolutions, training, linear layers, training,
    pruning. Each search starts from the network of the previous stage, and its loss
    compares with that network. With a folder, each finished stage is saved, and a call
    that was interrupted continues with the first missing one. Beside the network, the
    folder of a stage holds `layers.csv` and `trials.csv`, the tables of its search.

    Args:
        network: The original network; not modified.
        inputs: See `compress`.
        stages: In order, each with a name of its own.
        folder: Where to save them; None: nowhere.
        on_stage: Called after each stage with the stage and its network, and also for
            one that was finished before.
        **options: Keywords of `compress`, for all stages; a stage's own come first.
            With `db`, which needs a folder, a stage that was interrupted goes on where
            it was; its search is called `name-stage`.

    Returns:
        The network after the last stage, in eval mode, and a table with one row per
        stage: `stage`, `certified`, `level`, `reason`, `trials`, `compression_ratio`
        over the layers of this stage, `whole_network_ratio`, the nonzero weights after
        the stage divided by the weights of the original network, `loss` and `loss_sem`
        on fresh samples before `then`, `seconds`, `finish`, what was done before `then`
        (see `finish_network`), in words, `resumed`.

    Raises:
        ValueError: when there is no stage, two have the same name, or the folder holds
            stages with other settings; see also `compress`.

    Source: Ma et al. 2019, section 4.3.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> from compression_adapters import choose_pruning
        >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        >>> pool = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
        >>> small, table = compress_in_stages(
        ...     network,
        ...     pool,
        ...     [Stage("low-rank"), Stage("pruning", {"choose": choose_pruning})],
        ...     **{"gamma": 1.0, "delta": 0.5, "epsilon": 0.05, "level": "pairwise"},
        ... )
        >>> table["stage"].tolist()
        ['low-rank', 'pruning']
    """
    common = CompressionOptions.of(**options)
    return run_stages(network, inputs, stages, common, folder=folder, on_stage=on_stage)


def run_stages(
    network: nn.Module,
    inputs: Any,
    stages: Sequence[Stage],
    options: CompressionOptions,
    *,
    folder: str | Path | None = None,
    on_stage: OnStage | None = None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Run stages: `compress_in_stages` with its options in one value.

    Args:
        network: See `compress_in_stages`.
        inputs: See `compress_in_stages`.
        stages: In order.
        options: For all stages.
        folder: See `compress_in_stages`.
        on_stage: See `compress_in_stages`.
    """
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected at least one stage, each with a name of its own; got {names}."
        )
    asked = [options.changed(**stage.options) for stage in stages]
    if folder is None and any(wanted.search.db is not None for wanted in asked):
        raise ValueError(
            "With a database the finished stages need a folder too, to continue from: "
            "give folder."
        )
    original = current = unwrap(network)
    device = next((w.device for w in layer_weights(original)), None)
    whole = sum(weight.numel() for weight in layer_weights(original))
    rows: list[dict[str, Any]] = []
    for number, (stage, wanted) in enumerate(zip(stages, asked, strict=True)):
        place = None if folder is None else Path(folder) / f"{number}-{stage.name}"
        kept = _kept(wanted) | {f"then {k}": v for k, v in stage.training.items()}
        if place is not None and (place / STAGE_FILE).is_file():
            row = {"finish": ""} | _read(place, stage.name, kept)  # absent in 0.1
            rows.append(row | {"resumed": True})
            current = load_compressed(place, original).eval().to(device)
            if on_stage is not None:
                on_stage(stage, current)
            continue
        search = wanted.search
        if search.db is not None:
            search = replace(search, name=f"{search.name}-{stage.name}")
        result = compress_with(current, inputs, replace(wanted, search=search))
        layers, ranks = result.problem.layers, result.ranks
        current = result.network
        if stage.then is not None:
            with carrying(result.client):
                current = stage.then(current).eval()
        left = sum(int(w.count_nonzero()) for w in layer_weights(current))
        row = {
            "stage": stage.name,
            "certified": result.certificate.holds,
            "level": result.certificate.level,
            "reason": result.certificate.reason,
            "trials": len(result.trials),
            "compression_ratio": result.problem.ratio(ranks),
            "whole_network_ratio": left / whole,
            "loss": result.loss.mean,
            "loss_sem": result.loss.sem,
            "seconds": result.timings["total"],
            "finish": "" if result.finish is None else result.finish.sentence(),
        }
        if place is not None:
            with carrying(result.client):
                save_compressed(current, layers, ranks, place)
            result.layers.to_csv(place / LAYERS_FILE, index=False)
            result.trials.to_csv(place / TRIALS_FILE, index=False)
            _write(place, row, kept)
        rows.append(row | {"resumed": False})
        if on_stage is not None:
            on_stage(stage, current)
    return current, pd.DataFrame(rows)


def _kept(options: CompressionOptions) -> dict[str, Any]:
    """Return of the options what JSON can hold; functions cannot be compared."""
    return {
        name: value
        for name, value in options.to_keywords().items()
        if isinstance(value, str | int | float | bool) and name not in _NOT_COMPARED
    }


def _write(place: Path, row: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Write a stage's record last: its presence marks the stage as finished."""
    if not all(math.isfinite(v) for v in row.values() if isinstance(v, float)):
        raise ValueError(f"Stage {row['stage']!r} has results that are not finite.")
    content = {"settings": dict(settings), "result": row}
    write_versioned(place / STAGE_FILE, content, FORMAT_VERSION)


def _read(place: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a finished stage's record, refusing one with other settings."""
    path = place / STAGE_FILE
    content = read_versioned(path, FORMAT_VERSION)
    try:
        # Version 0.1 kept what was given; the rest had its default.
        known = _kept(CompressionOptions()) | content["settings"]
        row: dict[str, Any] = dict(content["result"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Remove {place}.") from error
    names = {*known, *settings}.difference(_NOT_COMPARED)
    differ = sorted(k for k in names if known.get(k) != settings.get(k))
    if differ:
        before = {k: known.get(k) for k in differ}
        now = {k: settings.get(k) for k in differ}
        raise ValueError(
            f"Stage {name!r} in {place} was run with the settings {before}, now they "
            f"are {now}. Use another folder, or remove this one."
        )
    return row
