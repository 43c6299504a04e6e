"""Page of the table: accuracy and agreement at a share of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.charts import Axis, Series, chart
from benchmarks.harness.tables import opening, revisions, spread, table
from benchmarks.harness.traces import Trace
from benchmarks.no_training import plan as no_training
from benchmarks.no_training.runs import RATIOS, SEARCH
from compression_adapters.options import FEW_COORDINATES

Rows = Sequence[Mapping[str, Any]]
_TITLES = {
    "transformer": "A transformer on MNIST (trained here)",
    "resnet18": "ResNet18 on CIFAR-10",
    "resnet50": "ResNet50 on CIFAR-10",
    "vgg16": "The convolutions of VGG-16 (ImageNet) with a ridge classifier, CIFAR-10",
    "imagenet_resnet18": "ResNet18 on ImageNet",
    "imagenet_resnet50": "ResNet50 on ImageNet",
    "imagenet_vgg16": "VGG-16 on ImageNet",
}
_METHODS = {
    SEARCH: f"search, {FEW_COORDINATES} coordinates",
    "path": "price path",
    "fraction": "one fraction of all ranks",
    "energy": "one share of the energy",
    "evbmf": "EVBMF, scaled",
}
_FACTORS = {"data": "fitted to 500 inputs", "weights": "of the weights"}


def render_no_training(traces: Sequence[Trace]) -> dict[str, str]:
    """The page and its figures, by path."""
    lines = opening(
        "Low-rank compression without training",
        "For those who have a method for choosing ranks, or factors, and want to "
        "compare it: networks whose linear layers and convolutions are cut to a share "
        "of their weights by one low-rank form each, without labels and without "
        "training.",
        "*Weights* are those of the layers that can be cut, *whole network* counts the "
        "others too. *Top-1* and *agreement* (the share of images on which the largest "
        "output is the original's) are on all 10,000 test images. *Images*: training "
        "images, without labels, that were looked at, for the factors, for the ranks "
        "and for the refit that follows where factors are fitted. *Seconds*: CPU "
        "seconds of one thread, from the dense network to the compressed one. Medians "
        f"over runs with the range in brackets. {revisions(traces)}",
        no_training.NAME,
    )
    files: dict[str, str] = {}
    for network, title in _TITLES.items():
        own = [trace for trace in traces if trace.settings["network"] == network]
        if own:
            lines += _network(network, title, own, files)
    lines += [
        "## One row again, and one more method",
        "",
        "A row is a network, factors and a method:",
        "",
        "```",
        "python -m benchmarks run no_training --set network=resnet18 "
        "--set factors=data --set method=path",
        "```",
        "",
        "Completed runs are not repeated: delete theirs from "
        "`benchmarks/traces/no_training.jsonl.gz` first. With ImageNet in a folder, "
        "`--data FOLDER` takes torchvision's networks. A method is a function of a "
        "`CompressionProblem` and a ratio that returns ranks: add it to `METHODS` in "
        "`benchmarks/no_training/runs.py` and a row to the plan beside it.",
        "",
    ]
    return {"no_training.md": "\n".join(lines), **files}


def _network(
    network: str, title: str, traces: Sequence[Trace], files: dict[str, str]
) -> list[str]:
    """The rows of one network, from the smallest size."""
    groups: dict[tuple[str, str], list[Rows]] = {}
    for method in _METHODS:
        for factors in _FACTORS:
            found = [
                trace.result["rows"]
                for trace in traces
                if (trace.settings["method"], trace.settings["factors"])
                == (method, factors)
            ]
            if found:
                groups[method, factors] = found
    original = traces[0].result["rows"][0]["top1_original"]
    rows = []
    for place, ratio in enumerate(RATIOS):
        for (method, factors), runs in groups.items():
            at = [run[place] for run in runs]
            how = f"{_METHODS[method]}, factors {_FACTORS[factors]}"
            held = [row["certified"] for row in at]
            rows.append(
                [
                    *(f"{100 * ratio:g}", how, len(at)),
                    spread([100 * row["ratio"] for row in at], 1),
                    spread([100 * row["whole"] for row in at], 1),
                    spread([100 * row["top1"] for row in at], 2),
                    spread([100 * row["agreement"] for row in at], 2),
                    f"{sum(held)}/{len(held)}" if None not in held else "-",
                    spread([row["images"] for row in at], 0),
                    spread([row["cpu_seconds"] for row in at], 0),
                ]
            )
    figure = f"figures/no_training_{network}.svg"
    files[figure] = chart(
        {
            f"{_METHODS[method]}, {factors}": Series(
                [100 * row["ratio"] for row in runs[0]],
                [100 * row["top1"] for row in runs[0]],
            )
            for (method, factors), runs in groups.items()
        },
        Axis("weights of the layers kept, %"),
        Axis("top-1, %"),
    )
    return [
        f"## {title}",
        "",
        f"The original has {100 * original:.2f} % top-1. {_best_sentence(groups)}",
        "",
        f"![Top-1 against the share of the weights]({figure})",
        "",
        *table(
            "asked for % | how | runs | weights % | whole network % | top-1 % "
            "| agreement % | certified | images | seconds",
            rows,
        ),
    ]


def _best_sentence(groups: Mapping[tuple[str, str], Sequence[Rows]]) -> str:
    """Say which of the methods is the best at each size, whoever it is."""
    parts = []
    for place, ratio in enumerate(RATIOS):
        means = {
            key: sum(run[place]["top1"] for run in runs) / len(runs)
            for key, runs in groups.items()
        }
        method, factors = max(means, key=lambda key: means[key])
        parts.append(
            f"at {100 * ratio:g} % {_METHODS[method]} with factors {_FACTORS[factors]}"
        )
    return f"Best by the mean of its runs: {'; '.join(parts)}."
