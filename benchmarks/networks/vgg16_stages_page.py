"""Page of VGG-16 in three stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.traces import Trace
from benchmarks.networks import vgg16_stages


def render_vgg16_stages(traces: Sequence[Trace]) -> str:
    """One section a run: what each stage leaves, and what its search took."""
    search = vgg16_stages.SEARCH
    lines = [
        "# VGG-16 in three stages",
        "",
        "As in section 4.3 of the paper: `td` factors the 13 convolutions (13 "
        "coordinates), `svd` the 3 linear layers, `pruning` prunes all of them by one "
        "threshold; fine-tuning after each. The convolutions start from ImageNet, the "
        "stock classifier (25088-4096-4096-10) is trained for CIFAR-10 at "
        f"{vgg16_stages.SIZE} px, and then the whole network once more, which is the "
        "`original` here: it has had the training that each stage gets. Searches "
        f"without labels, delta = {search['delta']}, epsilon = {search['epsilon']}, "
        f"{search['num_samples']} images an evaluation, at most {search['max_trials']} "
        "evaluations. Ratios count weights that are not zero. The loss is "
        f"`{search['loss']}`, the squared distance to the network before the stage "
        "over the mean squared norm of that network's outputs: 1 is a network that "
        "puts out zeros. A gamma of 0.2 lets a stage lose five times as much for the "
        "same weights, and leaves more to the training after it.",
        "",
    ]
    for trace in traces:
        lines += _section(trace)
    return "\n".join(lines)


def _section(trace: Trace) -> list[str]:
    settings, result = trace.settings, trace.result
    gammas = [settings[f"gamma_{row['stage']}"] for row in result["stages"]]
    where = result["gpu"] or f"{trace.provenance['threads']} CPU thread(s)"
    original = result["rows"][0]["top1"]
    error = 100 * (original * (1 - original) / settings["test_images"]) ** 0.5
    lines = [
        f"## {settings['train_images']:,} training images, "
        f"{settings['test_images']:,} test images, gamma "
        f"{' / '.join(f'{gamma:g}' for gamma in gammas)}, seed {trace.seed}",
        "",
        f"On {where}, {result['seconds'] / 60:.0f} minutes in all. Classifier trained "
        f"for {settings['head_epochs']} epochs, {settings['tune_epochs']} epoch(s) of "
        f"fine-tuning a stage. So many test images know an accuracy to +-{error:.1f} "
        f"points (one standard error). Revision {trace.provenance['revision']}.",
        "",
        "| network | top-1 % | against the original | convolutions % | "
        "linear layers % | both % |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_network(row, original) for row in result["rows"]]
    lines += [
        "",
        "| stage | gamma | certified | evaluations | ratio of its layers % | loss | "
        "seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for gamma, stage in zip(gammas, result["stages"], strict=True):
        certified = f"yes, {stage['level']}" if stage["certified"] else "no"
        lines.append(
            f"| {stage['stage']} | {gamma} | {certified} | {stage['trials']} "
            f"| {100 * stage['compression_ratio']:.1f} "
            f"| {stage['loss']:.4f} +- {stage['loss_sem']:.4f} "
            f"| {stage['seconds']:.0f} |"
        )
    return [*lines, ""]


def _network(row: dict[str, Any], original: float) -> str:
    ratios = (100 * row[kind] for kind in ("convolutions", "linear", "both"))
    return (
        f"| {row['network']} | {100 * row['top1']:.2f} "
        f"| {100 * (row['top1'] - original):+.2f} "
        f"| {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |"
    )
