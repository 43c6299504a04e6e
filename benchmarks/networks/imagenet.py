"""The paper's own networks and images, where the user has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression_adapters.presets.torchvision import image_folder, pretrained

DATA_VARIABLE = "AX_PAC_IMAGENET"
WEIGHTS_VARIABLE = "AX_PAC_WEIGHTS"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"


class Images(Protocol):
    """What a benchmark needs of a pool: a tensor has it, and so has `ImageRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> Tensor: ...


class ImageRows:
    """A folder of images that are read when they are needed.

    Args:
        dataset: Images with their class indices.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Read these images, `k` indices to `k x 3 x height x width`."""
        return torch.stack([self.dataset[i][0] for i in indices.tolist()])


def imagenet_network(
    name: str,
) -> tuple[nn.Module, ImageRows, Tensor, ImageRows, Tensor]:
    """The trained network, the training images, and the validation images.

    Raises:
        FileNotFoundError: When the folder was not named or is not there; the message
            says what to pass.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if folder is None or not (Path(folder) / "val").is_dir():
        raise FileNotFoundError(
            f"the images of ILSVRC2012 are not in {folder!r}: pass --data FOLDER (or "
            f"set {DATA_VARIABLE}), a folder with `train` and `val`, below each one "
            "folder a class"
        )
    weights = os.environ.get(WEIGHTS_VARIABLE, DEFAULT_WEIGHTS)
    network = pretrained(name, weights).eval()
    parts: list[Any] = []
    for part in ("train", "val"):
        rows = ImageRows(image_folder(Path(folder) / part))
        parts += [_shuffled(rows), torch.tensor(_targets(rows))]
    return (network, *parts)


def _shuffled(rows: ImageRows) -> ImageRows:
    """The same images in an order of no meaning: the first of them are a sample."""
    number = len(rows)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    rows.dataset = torch.utils.data.Subset(rows.dataset, order.tolist())
    return rows


def _targets(rows: ImageRows) -> list[int]:
    subset = rows.dataset
    return [subset.dataset.targets[i] for i in subset.indices]
