"""Page of a transformer and a depthwise network."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.traces import Trace
from benchmarks.networks import any_network


def render_any_network(traces: Sequence[Trace]) -> str:
    """One row a network."""
    search = any_network.SEARCH
    lines = [
        "# A transformer and a depthwise network",
        "",
        "An encoder of two layers with `nn.MultiheadAttention` that reads MNIST row by "
        "row, and torchvision's MobileNetV3 (small) on CIFAR-10, both trained here for "
        "a minute, so that their accuracy is no more than a beginning. Compressed "
        f"without labels at level {search['level']}, delta = {search['delta']}, then "
        "saved and loaded, exported by `torch.export` and to ONNX, and run again: the "
        "largest difference in an output over eight images.",
        "",
        "| network | layers, coordinates | gamma | certified | evaluations | seconds | "
        "ratio % | top-1 % before | after | reloaded | torch.export | ONNX |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for trace in traces:
        r, settings = trace.result, trace.settings
        after = " | ".join(f"{r[k]:.1e}" for k in ("reloaded", "torch_export", "onnx"))
        lines.append(
            f"| {settings['network']} | {r['layers']}, {r['coordinates']} "
            f"| {settings['gamma']} | {'yes' if r['holds'] else 'no'} "
            f"| {r['evaluations']} | {r['seconds']:.0f} | {100 * r['ratio']:.1f} "
            f"| {100 * r['top1_original']:.2f} | {100 * r['top1']:.2f} | {after} |"
        )
    return "\n".join([*lines, ""])
