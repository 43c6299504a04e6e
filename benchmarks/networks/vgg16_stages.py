"""VGG-16 in the three stages of the paper's section 4.3, on CIFAR-10."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, table
from benchmarks.harness.traces import Trace, recorded
from benchmarks.networks.cifar import cifar10_pixels, shared_file
from compression_adapters import choose_pruning, fine_tune
from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets.mnist_data import cache_folder
from compression_adapters.stages import Stage, compress_in_stages

NAME = "vgg16_stages"
DESCRIPTION = "VGG-16 on CIFAR-10 at 64 px: convolutions, linear layers, pruning"
MINUTES_ONCE = 0.0

SIZE = 64
SEARCH = {
    # In units of the outputs' size, which the training between stages changes.
    "loss": "relative_squared_l2",
    "delta": 0.05,
    "epsilon": 0.05,
    "num_samples": 50,
    "max_trials": 80,
    "start": "line",
}
# What these convolutions were trained with on ImageNet.
_MEAN = torch.tensor([0.48235, 0.45882, 0.40784]).view(3, 1, 1)
_LEARNING_RATE = 0.0001
_BATCH = 50


def settings_of(
    device: str, train: int, test: int, linear: float = 1.0, **training: int
) -> dict[str, Any]:
    """Settings of a run: where, on how many images, and how long it is trained."""
    sizes = {"device": device, "train_images": train, "test_images": test}
    gammas = {"gamma_td": 1.0, "gamma_svd": linear, "gamma_pruning": 1.0}
    return {**sizes, **training, **gammas}


# Each with its number of runs and the minutes of one.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    (settings_of("cpu", 2_000, 1_000, head_epochs=4, tune_epochs=1), 1, 16.0),
    # What the loss leaves room for: a tenth of the weights.
    (settings_of("cpu", 2_000, 1_000, 0.2, head_epochs=4, tune_epochs=1), 3, 15.0),
    (settings_of("cuda", 50_000, 10_000, head_epochs=5, tune_epochs=2), 1, 8.0),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


class EnlargedVGG16(nn.Module):
    """torchvision's VGG-16 for ten classes, on images that it enlarges to 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = vgg16(num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        return self.vgg(enlarged(images))


def enlarged(images: Tensor) -> Tensor:
    """Images at 64 pixels, laid out as convolutions like them."""
    images = F.interpolate(images, size=SIZE, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def images_and_labels(train: bool, number: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as these convolutions take it."""
    pixels, labels = cifar10_pixels(train, number)
    return (pixels.float() / 255 - _MEAN) * 255, labels


class Shuffled:
    """Batches in a new order in each pass, half of the images mirrored.

    Args:
        images: All of them, on any device.
        labels: One class each.
        seed: Decides order and mirroring.
    """

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        self.images, self.labels = images, labels
        self.rng = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.images) // _BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.rng)
        mirrored = torch.rand(len(self.images), generator=self.rng) < 0.5
        for index in order.split(_BATCH):
            batch = self.images[index.to(self.images.device)]
            flip = mirrored[index].to(batch.device).view(-1, 1, 1, 1)
            labels = self.labels[index.to(self.labels.device)]
            yield torch.where(flip, batch.flip(3), batch), labels


def kept_weights(network: nn.Module, original: nn.Module) -> dict[str, float]:
    """Weights that are not zero over those of the original, by kind of layer."""
    before = dict.fromkeys(("convolutions", "linear"), 0)
    after = dict(before)
    for name, module in original.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kind = "convolutions" if isinstance(module, nn.Conv2d) else "linear"
            before[kind] += module.weight.numel()
            factors = network.get_submodule(name).parameters()
            after[kind] += sum(int(p.count_nonzero()) for p in factors if p.ndim > 1)
    ratios = {kind: after[kind] / before[kind] for kind in before}
    return {**ratios, "both": sum(after.values()) / sum(before.values())}


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Train the original, compress it in three stages, and measure after each."""
    result = staged(seed, settings, trained=True, **WEIGHTS_ALONE)
    return recorded(NAME, settings, seed, result)


def staged(
    seed: int, settings: dict[str, Any], trained: bool, **options: Any
) -> dict[str, Any]:
    """Train the original, compress it in three stages, and measure after each.

    Args:
        seed: Of training and searches.
        settings: Of the run.
        trained: Whether each stage is followed by training.
        options: Of the searches, in place of those of `SEARCH`.

    Returns:
        What a trace holds: a row for each network and for each stage.
    """
    device = settings["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "these settings need a CUDA device and there is none: run the others, "
            "--set device=cpu"
        )
    start = time.perf_counter()
    images, labels = (
        part.to(device) for part in images_and_labels(True, settings["train_images"])
    )
    test = [
        part.to(device) for part in images_and_labels(False, settings["test_images"])
    ]
    training = {k: v for k, v in settings.items() if not k.startswith("gamma")}
    fixed, original, head_seconds = _originals(
        _folder(seed, training), images, labels, seed, settings
    )
    rows = [
        _row("original", original, original, test),
        _row("original, convolutions as on ImageNet", fixed, original, test),
    ]
    del fixed

    def then(network: nn.Module) -> nn.Module:
        rows.append(_row("untrained", network, original, test))
        return _tuned(network, images, labels, seed, settings)

    layers: dict[str, dict[str, Any]] = {
        "td": {"include": nn.Conv2d},
        "svd": {"include": nn.Linear},
        "pruning": {"choose": choose_pruning, "tie": "threshold"},
    }
    stages = [
        Stage(
            name, {**own, "gamma": settings[f"gamma_{name}"]}, then if trained else None
        )
        for name, own in layers.items()
    ]
    table, search = None, {**SEARCH, **options}
    kept = _folder(seed, settings | search | ({} if trained else {"trained": False}))
    for number in range(1, len(stages) + 1):
        network, table = compress_in_stages(
            original,
            images,
            stages[:number],
            folder=kept / "stages",
            seed=seed,
            progress=False,
            **search,
        )
        name = " + ".join(stage.name for stage in stages[:number])
        if rows[-1]["network"] == "untrained":
            rows[-1]["network"] = f"{name}, before training"
        rows.append(_row(name, network, original, test))
    return {
        "rows": rows,
        "stages": table.drop(columns="resumed").to_dict("records"),
        "seconds": time.perf_counter() - start,
        "head_seconds": head_seconds,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def _folder(seed: int, settings: dict[str, Any]) -> Path:
    """Where a run keeps its stages, so that it goes on where it was interrupted."""
    key = json.dumps([settings, seed, _LEARNING_RATE], sort_keys=True)
    return cache_folder() / NAME / hashlib.sha256(key.encode()).hexdigest()[:12]


def _originals(
    folder: Path, images: Tensor, labels: Tensor, seed: int, settings: dict[str, Any]
) -> tuple[nn.Module, nn.Module, float]:
    """The network with its classifier trained, and the same trained on as a whole.

    The second one is what is compressed: otherwise what fine-tuning gains for these
    images would be credited to compression.
    """
    start = time.perf_counter()
    kept = [folder / "fixed.pt", folder / "original.pt"]
    networks = [EnlargedVGG16().to(settings["device"]).eval() for _ in kept]
    if all(path.is_file() for path in kept):
        for network, path in zip(networks, kept, strict=True):
            network.load_state_dict(
                torch.load(path, weights_only=True, map_location=settings["device"])
            )
        return networks[0], networks[1], time.perf_counter() - start
    path = shared_file("models/vgg16_features_imagenet_fp16.pt")
    stored = torch.load(path, weights_only=True)
    stored = stored.get("state_dict", stored)
    fixed = networks[0]
    features = {k.removeprefix("features."): v.float() for k, v in stored.items()}
    fixed.vgg.features.load_state_dict(features)
    _train_classifier(fixed, images, labels, seed, settings["head_epochs"])
    original = _tuned(fixed, images, labels, seed, settings)
    folder.mkdir(parents=True, exist_ok=True)
    for network, place in zip((fixed, original), kept, strict=True):
        torch.save(network.state_dict(), place)
    return fixed, original, time.perf_counter() - start


def _train_classifier(
    network: EnlargedVGG16, images: Tensor, labels: Tensor, seed: int, epochs: int
) -> None:
    """Train the classifier on features that are computed once."""
    vgg = network.vgg
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in vgg.classifier:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            features = torch.cat(
                [vgg.features(enlarged(batch)) for batch in images.split(500)]
            )
            # These features are large; the first layer starts and learns in their unit.
            scale = float(features.square().mean().sqrt())
            vgg.classifier[0].weight.div_(scale)
        head = nn.Sequential(vgg.avgpool, nn.Flatten(), vgg.classifier).train()
        first, *others = vgg.classifier.parameters()
        groups = [{"params": [first], "lr": 1e-4 / scale}, {"params": others}]
        optimizer = torch.optim.Adam(groups, lr=1e-4)
        steps = epochs * len(Shuffled(images, labels, seed))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
        rng = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for index in torch.randperm(len(images), generator=rng).split(_BATCH):
                index = index.to(images.device)
                optimizer.zero_grad()
                F.cross_entropy(head(features[index]), labels[index]).backward()
                optimizer.step()
                schedule.step()
    network.eval()


def _tuned(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    settings: dict[str, Any],
) -> nn.Module:
    """Fine-tune as the paper does, with a cyclical learning rate."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the dropout
        return fine_tune(
            network,
            Shuffled(images, labels, seed),
            epochs=settings["tune_epochs"],
            learning_rate=_LEARNING_RATE,
            weight_decay=5e-4,
            schedule="cyclical",
            step_epochs=settings["tune_epochs"],
        )


def _row(
    name: str, network: nn.Module, original: nn.Module, test: list[Tensor]
) -> dict[str, Any]:
    (top1,) = accuracy(network, *test, topk=(1,), batch_size=500)
    return {"network": name, "top1": top1, **kept_weights(network, original)}


def render_vgg16_stages(traces: Sequence[Trace]) -> str:
    """One section per run: what each stage leaves, and what its search took."""
    lines = opening(
        "VGG-16 in three stages",
        "The experiment of section 4.3 of the paper: `td` factorises the 13 "
        "convolutions (13 coordinates), `svd` the 3 linear layers, and `pruning` "
        "prunes all of them by one threshold. Each stage is followed by fine-tuning. "
        "The convolutions start from ImageNet, and the stock classifier "
        f"(25088-4096-4096-10) is trained for CIFAR-10 at {SIZE} px. The `original` is "
        "that network after one more training, like the one that each stage gets.",
        f"Searches use no labels, delta = {SEARCH['delta']}, epsilon = "
        f"{SEARCH['epsilon']}, {SEARCH['num_samples']} images per evaluation, at most "
        f"{SEARCH['max_trials']} evaluations. Ratios count weights that are not zero. "
        f"The loss is `{SEARCH['loss']}`: the squared distance to the network before "
        "the stage, relative to the mean squared norm of its outputs, so that a "
        "network that returns zeros has a loss of 1. With a gamma of 0.2 a stage may "
        "lose five times as much for the same weights, and relies more on the training "
        "after it.",
        NAME,
    )
    for trace in traces:
        lines += _section(trace)
    return "\n".join(lines)


def _section(trace: Trace) -> list[str]:
    settings, result = trace.settings, trace.result
    gammas = [settings[f"gamma_{row['stage']}"] for row in result["stages"]]
    where = result["gpu"] or f"{trace.provenance['threads']} CPU thread(s)"
    original = result["rows"][0]["top1"]
    error = 100 * (original * (1 - original) / settings["test_images"]) ** 0.5
    return [
        f"## {settings['train_images']:,} training images, "
        f"{settings['test_images']:,} test images, gamma "
        f"{' / '.join(f'{gamma:g}' for gamma in gammas)}, seed {trace.seed}",
        "",
        f"On {where}, {result['seconds'] / 60:.0f} minutes in all. The classifier was "
        f"trained for {settings['head_epochs']} epochs; {settings['tune_epochs']} "
        "epoch(s) of fine-tuning per stage. The standard error of an accuracy on so "
        f"many test images is {error:.1f} points. Revision "
        f"{trace.provenance['revision']}.",
        "",
        *table(
            "network | top-1 % | against the original | convolutions % "
            "| linear layers % | both %",
            (_network(row, original) for row in result["rows"]),
        ),
        *table(
            "stage | gamma | certified | evaluations | ratio of its layers % | loss "
            "| seconds",
            (
                [
                    *(stage["stage"], gamma),
                    f"yes, {stage['level']}" if stage["certified"] else "no",
                    *(stage["trials"], f"{100 * stage['compression_ratio']:.1f}"),
                    f"{stage['loss']:.4f} +- {stage['loss_sem']:.4f}",
                    f"{stage['seconds']:.0f}",
                ]
                for gamma, stage in zip(gammas, result["stages"], strict=True)
            ),
        ),
    ]


def _network(row: dict[str, Any], original: float) -> list[str]:
    return [
        row["network"],
        f"{100 * row['top1']:.2f}",
        f"{100 * (row['top1'] - original):+.2f}",
        *(f"{100 * row[kind]:.2f}" for kind in ("convolutions", "linear", "both")),
    ]
