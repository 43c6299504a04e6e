"""The steps of `ax-pac stages`: searches, training in between, one report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from compression_adapters.cli.options import Request
from compression_adapters.cli.reload import reloads_equal
from compression_adapters.cli.sources import Source
from compression_adapters.evaluation.accuracy import top_accuracies
from compression_adapters.evaluation.sampling import open_pool
from compression_adapters.layers.selection import choose_pruning
from compression_adapters.network.costs import cost_table, measure_cost
from compression_adapters.network.fine_tuning import Schedule, fine_tune
from compression_adapters.network.recipe import recipe_of
from compression_adapters.network.structured_inputs import Inputs, OutputChoice
from compression_adapters.options import KEYWORDS, CompressionOptions, Target, type_of
from compression_adapters.report.run import NETWORK_FOLDER
from compression_adapters.report.stages import STAGES_FOLDER, write_stages
from compression_adapters.stages import Stage, run_stages

DEFAULT_STAGES: Final = ("convolutions", "linear", "pruning")
"""The stages of the paper's section 4.3."""


_SEARCH_SETTINGS: Final = (
    *("gamma", "ratio", "loss_at_most", "speedup", "delta", "epsilon"),
    *("max_trials", "min_rank", "round_to"),
)
_SETTINGS: Final[Mapping[str, type]] = {
    **{name: type_of(name) for name in _SEARCH_SETTINGS},
    "epochs": int,
    "learning_rate": float,
}
"""What a stage can have of its own, with the type of its value."""


@dataclass(frozen=True)
class Training:
    """The training after a stage.

    Args:
        epochs: Passes over the data; 0 for no training.
        learning_rate: The largest learning rate.
        schedule: See `fine_tune`.
        batch_size: Inputs per step.
    """

    epochs: int = 0
    learning_rate: float = 0.001
    schedule: Schedule = "cyclical"
    batch_size: int = 64


@dataclass(frozen=True)
class StageRequest:
    """A stage as requested on the command line.

    Args:
        kind: A key of `KINDS`.
        options: Options of `compress`, `epochs` and `learning_rate`, for this stage
            only.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


KINDS: Final[Mapping[str, str]] = {
    "convolutions": "low-rank forms of the convolutions",
    "linear": "truncated SVD of the linear layers",
    "low-rank": "both, and embeddings",
    "pruning": "magnitude pruning, one threshold for all layers",
    "layer-pruning": "magnitude pruning, one share per layer",
}
"""Kinds of stages, with one line each."""


def read_stage(text: str) -> StageRequest:
    """Read a stage such as `convolutions:gamma=0.02,epochs=3`.

    Args:
        text: A kind, and after a colon the settings of this stage only.

    Returns:
        The stage.

    Raises:
        ValueError: when the kind or a setting is unknown, or a value is not a number;
            the message lists the valid ones.

    Example:
        >>> read_stage("linear:ratio=5%,epochs=2").options
        {'ratio': '5%', 'epochs': 2}
    """
    kind, _, settings = text.partition(":")
    if kind not in KINDS:
        raise ValueError(
            f"a stage must be one of {', '.join(KINDS)}, as in "
            f"convolutions:gamma=0.02,epochs=3; got {text!r}"
        )
    options: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        if name not in _SETTINGS:
            raise ValueError(
                f"stage {kind!r}: a setting must be one of {', '.join(_SETTINGS)}, as "
                f"NAME=VALUE; got {setting!r}"
            )
        try:
            options[name] = _SETTINGS[name](value)
        except ValueError:
            kind_of = "a whole number" if _SETTINGS[name] is int else "a number"
            raise ValueError(
                f"stage {kind!r}: {name} must be {kind_of}; got {value!r}"
            ) from None
    return StageRequest(kind, options)


def compress_source_in_stages(
    source: Source,
    request: Request,
    requests: Sequence[StageRequest],
    training: Training,
) -> dict[str, Any]:
    """Run the missing stages, measure after each, and write one report.

    Args:
        source: Network and data. With labels training uses them, without it learns
            from the original network's outputs.
        request: What was asked for. `stages` below its folder holds every finished
            stage.
        requests: The stages, in order.
        training: After each stage, unless it says otherwise.

    Returns:
        The summary, as `read_stages` reads it.

    Raises:
        ValueError: as `compress_in_stages` does, or when a stage has no target.
        RuntimeError: when the saved network gives other outputs.
    """
    out, test_samples = request.out, request.source.test_samples
    labels = source.labels_for(request.options.problem.loss)
    choose = source.choose_as(request.options.problem.choose)
    options = request.options.changed(labels=labels, choose=choose)
    stages = _stages(source, requests, training, options)
    folders = [
        out / STAGES_FOLDER / f"{i}-{stage.name}" for i, stage in enumerate(stages)
    ]
    rows = [_row("original", source, source.network, test_samples)]
    ended: list[str] = []

    def measure(stage: Stage, network: nn.Module) -> None:
        ended.append(stage.name)
        rows.append(_row(" + ".join(ended), source, network, test_samples))

    network, table = run_stages(
        source.network,
        source.inputs,
        stages,
        options,
        folder=out / STAGES_FOLDER,
        on_stage=measure,
    )
    reloads_equal(source, network, folders[-1], _few(source, options.problem.output))
    summary = {
        "network": source.name,
        "note": source.note,
        "networks": rows,
        "stages": table.to_dict("records"),
        "folders": [folder.name for folder in folders],
        "costs": _costs(source, network),
        "seed": options.search.seed,
    }
    write_stages(out, summary, folders[-1], out / NETWORK_FOLDER)
    return summary


def _stages(
    source: Source,
    requests: Sequence[StageRequest],
    training: Training,
    options: CompressionOptions,
) -> list[Stage]:
    """Turn requests into stages with distinct names."""
    stages: list[Stage] = []
    for request in requests:
        own = dict(request.options)
        epochs = own.pop("epochs", training.epochs)
        rate = own.pop("learning_rate", training.learning_rate)
        given = Target(**{k: own[k] for k in own if KEYWORDS[k] == "target"}).given
        if len(given) > 1 or not (given or options.target.given):
            raise ValueError(
                f"stage {request.kind!r} needs one of gamma, ratio, loss_at_most and "
                "speedup, for all stages (--gamma) or its own (--stage "
                f"{request.kind}:gamma=...); got {' and '.join(given) or 'none'}"
            )
        own |= _layers_of(request.kind)
        earlier = [request.kind for stage in stages if _kind(stage) == request.kind]
        name = request.kind + (f"-{len(earlier) + 1}" if earlier else "")
        then, recorded = None, {}
        if epochs:
            changed = Training(epochs, rate, training.schedule, training.batch_size)
            then, recorded = (
                _Trainer(source, changed, options.search.seed, options.problem.output),
                vars(changed),
            )
        stages.append(Stage(name, own, then, recorded))
    return stages


def _kind(stage: Stage) -> str:
    """Return the kind of a stage: its name without the number."""
    head, _, tail = stage.name.rpartition("-")
    return head if tail.isdigit() else stage.name


def _layers_of(kind: str) -> dict[str, Any]:
    """Return the options that select the layers of a stage."""
    if kind == "pruning":
        return {"choose": choose_pruning, "tie": "threshold"}
    if kind == "layer-pruning":
        return {"choose": choose_pruning}
    types = {"convolutions": nn.Conv2d, "linear": nn.Linear}
    return {"include": types[kind]} if kind in types else {}


@dataclass(frozen=True)
class _Trainer:
    """Fine-tunes a network on its source's data, reproducibly under a seed."""

    source: Source
    training: Training
    seed: int
    output: OutputChoice = None

    def __call__(self, network: nn.Module) -> nn.Module:
        batches = _Batches(
            self.source, self.training.batch_size, self.seed, self.output
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # for dropout
            return fine_tune(
                network,
                batches,
                epochs=self.training.epochs,
                learning_rate=self.training.learning_rate,
                schedule=self.training.schedule,
                step_epochs=self.training.epochs,
                reference_network=None if batches.labelled else self.source.network,
            )


class _Batches:
    """The pool in batches, in a new order in each pass, with labels if any."""

    def __init__(
        self, source: Source, batch_size: int, seed: int, output: OutputChoice = None
    ) -> None:
        self.pool = open_pool(source.inputs, source.labels, output=output)
        self.batch_size = batch_size
        self.rng = torch.Generator().manual_seed(seed)
        _, labels = self.pool.read(torch.tensor([0]))
        self.labelled = labels is not None

    def __len__(self) -> int:
        return -(-len(self.pool) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.pool), generator=self.rng)
        for index in order.split(self.batch_size):
            inputs, labels = self.pool.read(index)
            yield inputs if labels is None else (inputs, labels)


def _row(
    name: str, source: Source, network: nn.Module, test_samples: int
) -> dict[str, Any]:
    """Measure a network on the test data, if there are any."""
    row: dict[str, Any] = {"network": name}
    if source.test is not None:
        top1, top5 = top_accuracies(network, source.test, max_samples=test_samples)
        row |= {"top1": top1, "top5": top5}
    return row


def _costs(source: Source, network: nn.Module) -> list[dict[str, Any]]:
    """Count and time the original and the last network."""
    example = _few(source)[:1]
    recipe = recipe_of(network).layers
    pruned = [entry.name for entry in recipe if entry.decomposition == "pruning"]
    before = measure_cost(source.network, example)
    after = measure_cost(network, example, pruned=pruned)
    table = cost_table(before, after)
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _few(source: Source, output: OutputChoice = None) -> Inputs:
    """Return the first inputs of a source."""
    pool = open_pool(source.inputs, source.labels, output=output)
    return pool.read(torch.arange(min(20, len(pool))))[0]
