"""The networks that are compressed, and how a cut of one is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks.any_network import Rows, trained, training_data
from benchmarks.networks.evaluation import NetworkData, network_data, outputs_on
from compression_adapters import choose_low_rank, compression_ratio
from compression_adapters.layers.survey import LayerSpec, find_layers
from compression_adapters.network.truncation import truncated
from compression_adapters.presets.mnist_data import cache_folder, mnist
from compression_adapters.rank_space.scales import Rank

SUBJECTS = ("fc3", "resnet18", "resnet50", "vgg16", "transformer")
FACTORS: Mapping[str, dict[str, Any]] = {
    "weights": {"calibrate": 0},
    # As many as `compress` takes by default.
    "data": {},
}


@cache
def subject(name: str) -> NetworkData:
    """Load a network with its images, once per process."""
    return _transformer() if name == "transformer" else network_data(name)


def _transformer() -> NetworkData:
    """The encoder of the benchmark `any_network`, trained once and kept."""
    path = cache_folder() / "data_aware" / "transformer.pt"
    network: nn.Module = Rows()
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        network = trained("transformer", 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    pool, test = training_data("transformer"), mnist(train=False)
    return NetworkData(network.eval(), choose_low_rank, *pool, *test)


@cache
def layers_of(name: str) -> tuple[LayerSpec, ...]:
    """The layers in play."""
    data = subject(name)
    return find_layers(data.network, data.choose)


def calibration_inputs(name: str, count: int, seed: int) -> Tensor:
    """So many inputs of the pool, none of the test images."""
    pool = subject(name).pool
    rng = torch.Generator().manual_seed(seed)
    return pool[torch.randperm(len(pool), generator=rng)[:count]]


def at_fraction(layers: Sequence[LayerSpec], fraction: float) -> dict[str, Rank]:
    """One fraction of the maximal rank for all layers, at least rank 1."""
    return {layer.name: max(1, round(fraction * layer.max_rank)) for layer in layers}


def measured_cut(
    name: str,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Any],
    ranks: Mapping[str, Rank],
    num_images: int,
) -> dict[str, Any]:
    """Ratio, loss and accuracy on the first test images, of ranks as a trial has them.

    Args:
        name: Of the network.
        layers: The layers in play.
        factors: Of each layer.
        ranks: Of each layer.
        num_images: Test images, the same for all.
    """
    network = subject(name).network
    _reference(name)  # of the original: the cut below is made in place
    with truncated(network, factors, layers, ranks) as cut:
        found = measured_network(name, cut, num_images)
    return {"ratio": compression_ratio(layers, ranks), "ranks": dict(ranks), **found}


def measured_network(
    name: str, network: nn.Module, num_images: int
) -> dict[str, float]:
    """Loss and accuracy of a network on the first test images."""
    data = subject(name)
    labels = data.test_labels[:num_images]
    reference = _reference(name)[:num_images]
    outputs = outputs_on(network, data.test, num_images)
    loss = (outputs - reference).square().sum(1).double()
    return {
        "loss": float(loss.mean()),
        "loss_sem": float(loss.std() / len(loss) ** 0.5),
        "top1": float((outputs.argmax(1) == labels).double().mean()),
        "top1_original": float((reference.argmax(1) == labels).double().mean()),
    }


@cache
def _reference(name: str) -> Tensor:
    """Outputs of the original on all test images."""
    data = subject(name)
    return outputs_on(data.network, data.test, len(data.test))
