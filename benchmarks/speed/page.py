"""Page of the speeds: what was asked for, what was measured, what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.charts import Axis, Series, chart
from benchmarks.harness.tables import opening, revisions, spread, table
from benchmarks.harness.traces import Trace
from benchmarks.speed import plan as speed
from benchmarks.speed.runs import BATCH, MAX_TRIALS, NETWORK, NETWORKS, SPEEDUP

Result = Mapping[str, Any]
_FIGURE = "figures/speed_prediction.svg"


def render_speed(traces: Sequence[Trace]) -> dict[str, str]:
    """The page and its figure, by path."""
    parts: dict[str, list[Trace]] = {}
    for trace in traces:
        parts.setdefault(trace.settings["part"], []).append(trace)
    files: dict[str, str] = {}
    lines = opening(
        "Measured time as the size",
        "For those who compress a network so that it becomes faster: "
        "`compress(network, inputs, speedup=2.0)` on ResNet18 (CIFAR-10 at 32 pixels), "
        "with all of its convolutions and its linear layer in play, on one core of a "
        "CPU. Convolutions of the last two stages, which see 2 x 2 pixels and one, go "
        "to few channels and back (`channel_conv`), the others are separable (the "
        "default). No labels and no training are used.",
        f"Times are of the whole network, of batches of {BATCH} unless said "
        "otherwise, measured in interleaved pairs with the original; another process "
        "usually runs on the other core, which pairs take out. Top-1 is on all 10,000 "
        "test images. Medians over runs, range in brackets. "
        f"{revisions(traces)}",
        speed.NAME,
    )
    lines += _speedups(parts.get("speedup", []))
    lines += _weights(parts.get("weights", []))
    lines += _deployed(parts.get("deploy", []))
    found, figure = _predictions(parts.get("prediction", []))
    lines += found
    if figure is not None:
        files[_FIGURE] = figure
    return {"speed.md": "\n".join(lines), **files}


def _speedups(traces: Sequence[Trace]) -> list[str]:
    """Networks that had to be so many times faster."""
    if not traces:
        return []
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for trace in traces:
        names = ("speedup", "search", "coordinates", "delta", "forms")
        key = tuple(trace.settings.get(name, "chosen") for name in names)
        groups.setdefault(key, []).append(trace.result)
    rows = []
    for (factor, searched, coordinates, delta, forms), results in groups.items():
        how = f"search, delta {delta}" if searched else "price path, no search"
        if searched:
            how += f", coordinates: {coordinates}"
        if forms == "best":
            how += ', `choose="best"`'
        certified = sum(r["holds"] for r in results)
        rows.append(
            [
                *(f"{factor:g}", how, len(results)),
                f"{certified}/{len(results)}" if searched else "-",
                spread([100 * r["latency"]["ratio"] for r in results], 1),
                spread([100 * r["latency"]["predicted"] for r in results], 1),
                spread([100 * r["whole_weights"] for r in results], 1),
                spread([100 * (r["top1"] - r["top1_original"]) for r in results], 2),
                spread([r["evaluations"] for r in results], 0),
                spread([100 * r["table"]["known"] for r in results], 0),
                spread([r["cpu_seconds"] for r in results], 0),
                spread([r["seconds"] for r in results], 0),
            ]
        )
    first = traces[0].result
    return [
        "## A speedup as a target",
        "",
        f"The original has {100 * first['top1_original']:.2f} % top-1. Seconds "
        "are those of the whole call: factors, the table of times, the search, the "
        "refit, and the measurement at the end.",
        "",
        *table(
            "speedup | how | runs | certified | time % | predicted % | weights % | "
            "top-1 change | evaluations | times known % | CPU seconds | wall seconds",
            rows,
        ),
        "A search ends at the network that just meets the target with the least loss, "
        "among those of the price path, its incumbents and what it evaluated. Layers "
        "share coordinates that run along the price path (`coordinates`), so that all "
        "of its networks are in the space; with one a layer "
        f"{MAX_TRIALS} evaluations do not lead to a certificate.",
        "",
        'With `choose="best"` a convolution may be any of three forms, and the table '
        "of times has a budget three times as long. What is known of the times "
        "decides: from a table of which half is uncertain, the fastest of many forms "
        "is one that was measured too short.",
        "",
        *_layers(first),
    ]


def _layers(result: Result) -> list[str]:
    """What one of the searches did to each layer."""
    rows = [
        [f"`{name}`", f"{1e3 * known['dense']:.2f}", result["ranks"].get(name, "dense")]
        for name, known in result["table"]["layers"].items()
    ]
    machine = result["latency"]["machine"]
    return [
        f"The first of these networks, on {machine['device']}, threads: "
        f"{machine['threads']} ({machine['dtype']}, {machine['memory_format']}). Its "
        f"table of times took {result['table']['seconds']:.0f} s. Layers that no rank "
        "makes faster are not in play and stay dense.",
        "",
        *table("layer | milliseconds, dense | rank", rows),
    ]


def _weights(traces: Sequence[Trace]) -> list[str]:
    """The same network by weights."""
    if not traces:
        return []
    rows = [
        [
            f"{100 * trace.settings['ratio']:g}",
            trace.seed,
            f"{100 * trace.result['whole_weights']:.1f}",
            f"{100 * (trace.result['top1'] - trace.result['top1_original']):+.2f}",
            f"{trace.result['cpu_seconds']:.0f}",
        ]
        for trace in traces
    ]
    return [
        "## The same network by weights",
        "",
        '`compress(network, inputs, ratio="15%", size_of="network", search=False)`: '
        "the weights of the whole network count, and it is taken from the price path.",
        "",
        *table("asked for % | run | weights % | top-1 change | CPU seconds", rows),
    ]


def _deployed(traces: Sequence[Trace]) -> list[str]:
    """Times and bytes as deployed."""
    if not traces:
        return []
    lines = [
        "## As deployed",
        "",
        "One network of the price path each, timed in turn with the original in one "
        f"process of one thread, batches of {BATCH}.",
        "",
    ]
    for trace in traces:
        result = trace.result
        if trace.settings["network"] == NETWORK:
            rows = [
                [
                    *(row["runtime"], f"{row['before']:.1f}", f"{row['after']:.1f}"),
                    f"{100 * row['ratio']:.1f}",
                    " to ".join(f"{n / 1e6:.1f}" for n in row.get("bytes", [])) or "-",
                ]
                for row in result["rows"]
            ]
            lines += [
                f"ResNet18, `speedup={SPEEDUP:g}` without a search; `torch.compile` of "
                "the original and of the compressed network, and both as ONNX "
                "(`export_onnx`) in ONNX Runtime:",
                "",
                *table("runtime | before, ms | after, ms | time % | file, MB", rows),
            ]
        else:
            rows = [
                [
                    *(row["form"], f"{row['bytes'] / 1e6:.2f}"),
                    f"{row['milliseconds']:.2f}",
                    f"{100 * row['ratio']:.1f}",
                    f"{100 * row['top1']:.2f}",
                ]
                for row in result["rows"]
            ]
            lines += [
                f"FC3 on MNIST, {100 * result['ratio']:.0f} % of its weights, with "
                "int8 weights by `torch.ao.quantization.quantize_dynamic` "
                "(`plain_layers`):",
                "",
                *table("network | file, MB | milliseconds | time % | top-1 %", rows),
            ]
    return lines


def _predictions(traces: Sequence[Trace]) -> tuple[list[str], str | None]:
    """Predicted beside measured times."""
    if not traces:
        return [], None
    rows, series = [], {}
    for trace in traces:
        points = trace.result["points"]
        off = [abs(p["predicted"] / p["measured"] - 1.0) for p in points]
        batch = trace.settings["batch"]
        rows.append(
            [
                *(batch, f"{trace.result['milliseconds']:.1f}", len(points)),
                f"{100 * float(np.median(off)):.1f}",
                f"{100 * max(off):.1f}",
                f"{trace.result['table_seconds']:.0f}",
                f"{100 * trace.result['known']:.0f}",
            ]
        )
        series[f"batch {batch}"] = Series(
            [100 * p["measured"] for p in points],
            [100 * p["predicted"] for p in points],
            joined=False,
        )
    figure = chart(
        {**series, "equal": Series([20, 100], [20, 100])},
        Axis("measured time, % of the original"),
        Axis("predicted time, %"),
    )
    return [
        "## Predicted and measured",
        "",
        f"{NETWORKS} networks of the price path, from the fastest to nearly the "
        "original. The prediction is the sum of the times of the layers, each measured "
        "at some ranks and interpolated, and of the rest.",
        "",
        *table(
            "batch | original, ms | networks | median error % | largest error % | "
            "table, seconds | of its times known %",
            rows,
        ),
        f"![Predicted against measured time]({_FIGURE})",
        "",
    ], figure
