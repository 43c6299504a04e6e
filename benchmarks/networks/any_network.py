"""A transformer and a depthwise network: compressed, saved, reloaded, exported."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, table
from benchmarks.harness.traces import Trace, recorded
from benchmarks.networks.cifar import cifar10
from compression_adapters import compress, load_compressed
from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets.mnist_data import mnist

NAME = "any_network"
DESCRIPTION = "A transformer and MobileNetV3: compressed, reloaded, exported"
MINUTES_ONCE = 0.0

SEARCH = {"delta": 0.1, "epsilon": 0.05, "level": "joint", "max_trials": 100}
_TRAIN, _TEST = 10_000, 2_000
# Batch norm of a network that trains for less is still near where it began.
_EPOCHS = {"transformer": 3, "mobilenet_v3": 12}

# Each with its number of runs and the core-minutes of one.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    ({"network": "transformer", "gamma": 0.05}, 1, 3.0),
    ({"network": "mobilenet_v3", "gamma": 0.05}, 1, 5.0),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


class Rows(nn.Module):
    """A small encoder with `nn.MultiheadAttention` that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        self.place = nn.Parameter(torch.zeros(28, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.squeeze(1)) + self.place
        return self.head(self.encoder(rows).mean(1))


# How it is made, its data, and a coordinate for each layer or for a group of them.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any], Any]] = {
    "transformer": (Rows, mnist, None),
    "mobilenet_v3": (
        lambda: mobilenet_v3_small(num_classes=10),
        cifar10,
        # 52 layers: those of one block share a coordinate.
        lambda name: ".".join(name.split(".")[:2]),
    ),
}


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Train, compress without labels, save, load, export; compare the outputs."""
    build, data, tie = NETWORKS[settings["network"]]
    images, _ = training_data(settings["network"])
    test = [part[:_TEST] for part in data(train=False)]
    network = trained(settings["network"], seed)
    start = time.perf_counter()
    found = compress(
        network,
        images,
        gamma=settings["gamma"],
        tie=tie,
        seed=seed,
        progress=False,
        **WEIGHTS_ALONE,
        **SEARCH,
    )
    seconds = time.perf_counter() - start
    before, after = (accuracy(n, *test, topk=(1,))[0] for n in (network, found.network))
    weights = found.layers[["weights", "weights_before"]].sum()
    return recorded(
        NAME,
        settings,
        seed,
        {
            "layers": len(found.layers),
            "kinds": sorted(set(found.layers["kind"])),
            "coordinates": len(found.parameterization),
            "holds": found.certificate.holds,
            "evaluations": len(found.trials),
            "seconds": seconds,
            "ratio": float(weights["weights"] / weights["weights_before"]),
            "loss": found.loss.mean,
            "top1_original": before,
            "top1": after,
            **differences(found.network, found.save, build, test[0][:8]),
        },
    )


def training_data(name: str) -> tuple[Tensor, Tensor]:
    """Images and labels that a network is trained on, and searched on."""
    _, data, _ = NETWORKS[name]
    images, labels = data(train=True)
    return images[:_TRAIN], labels[:_TRAIN]


def trained(name: str, seed: int) -> nn.Module:
    """Train a network for a minute, in eval mode afterwards."""
    build, _, _ = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        _train(network, *training_data(name), _EPOCHS[name])
    return network


def differences(
    network: nn.Module,
    save: Callable[[Path], None],
    build: Callable[[], nn.Module],
    inputs: Tensor,
) -> dict[str, float]:
    """Largest difference in an output after loading and after two exports.

    Args:
        network: Compressed, in eval mode.
        save: Saves it in a folder.
        build: Makes the original again, with other weights.
        inputs: A few.
    """
    import onnxruntime

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = network(inputs)
        save(Path(folder) / "network")
        loaded = load_compressed(Path(folder) / "network", build()).eval()
        program = torch.export.export(network, (inputs,))
        path = str(Path(folder) / "network.onnx")
        torch.onnx.export(network, (inputs,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: inputs.numpy()}
        outputs = {
            "reloaded": loaded(inputs),
            "torch_export": program.module()(inputs),
            "onnx": torch.from_numpy(session.run(None, feed)[0]),
        }
        return {
            name: float((output - expected).abs().max())
            for name, output in outputs.items()
        }


def _train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    steps = epochs * -(-len(images) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(network(images[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def render_any_network(traces: Sequence[Trace]) -> str:
    """One row per network."""
    lines = opening(
        "A transformer and a depthwise network",
        "Whether networks that the presets do not know are compressed, saved and "
        "exported: an encoder of two layers with `nn.MultiheadAttention` that reads "
        "MNIST row by row, and torchvision's MobileNetV3 (small) on CIFAR-10. Both are "
        "trained here for a minute only, so their accuracy is low. They are compressed "
        f"without labels at level {SEARCH['level']}, delta = {SEARCH['delta']}.",
        "*Reloaded*, *torch.export* and *ONNX*: largest difference of an output over "
        "eight images, after saving and loading, and after each export.",
        NAME,
    )
    rows = []
    for trace in traces:
        r, settings = trace.result, trace.settings
        rows.append(
            [
                *(settings["network"], f"{r['layers']}, {r['coordinates']}"),
                *(settings["gamma"], "yes" if r["holds"] else "no"),
                *(r["evaluations"], f"{r['seconds']:.0f}", f"{100 * r['ratio']:.1f}"),
                *(f"{100 * r['top1_original']:.2f}", f"{100 * r['top1']:.2f}"),
                *(f"{r[k]:.1e}" for k in ("reloaded", "torch_export", "onnx")),
            ]
        )
    lines += table(
        "network | layers, coordinates | gamma | certified | evaluations | seconds "
        "| ratio % | top-1 % before | after | reloaded | torch.export | ONNX",
        rows,
    )
    return "\n".join(lines)
