"""CIFAR-10 and the ResNets trained on it, from the folder beside the repository."""

from __future__ import annotations

import io
import itertools
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.harness.traces import ROOT
from compression_adapters.presets.torchvision import torchvision_network

_MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
_STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
_BATCH = 1_000


def shared_file(name: str) -> Path:
    """Find a file of the data that travel beside the repository."""
    folder = Path(os.environ.get("AX_PAC_SHARED", ROOT.parent / "shared"))
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"{name} is not in {folder}: set AX_PAC_SHARED to the folder with the "
            "trained networks and data (`models/`, `data/`), or run what needs neither "
            "(FC3 on MNIST, the GP draws)"
        )
    return folder / name


def resnet(name: str) -> nn.Module:
    """The stock ResNet trained on CIFAR-10 at 32 px, in eval mode.

    Args:
        name: `resnet18` or `resnet50`.
    """
    network = torchvision_network(name, num_classes=10)
    path = shared_file(f"models/{name}_cifar10_fp16.pt")
    stored = torch.load(path, weights_only=True)
    state = {key: value.float() for key, value in stored["state_dict"].items()}
    # Counters of batches are integers and matter to training only.
    network.load_state_dict(state, strict=False)
    return network.eval()


@cache
def cifar10(train: bool, num_images: int = 10_000) -> tuple[Tensor, Tensor]:
    """The first images, normalised, and their labels: `n x 3 x 32 x 32` and `n`."""
    pixels, labels = cifar10_pixels(train, num_images)
    return (pixels.float() / 255 - _MEAN) / _STD, labels


def cifar10_pixels(train: bool, num_images: int = 10_000) -> tuple[Tensor, Tensor]:
    """The first images as bytes, `n x 3 x 32 x 32`, and their labels, `n`."""
    part = "train" if train else "test"
    with np.load(shared_file("data/cifar10_jpeg.npz"), allow_pickle=False) as data:
        files = data[f"{part}_jpeg"]
        offsets = data[f"{part}_offsets"][: num_images + 1]
        labels = torch.from_numpy(data[f"{part}_labels"][:num_images]).long()
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(files[start:stop].tobytes())))
            for start, stop in itertools.pairwise(offsets)
        ]
    )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels


def outputs_of(network: nn.Module, images: Tensor) -> Tensor:
    """Outputs of a network, `n x classes`, computed batch by batch."""
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in images.split(_BATCH)])
