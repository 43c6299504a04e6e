"""Networks, weights and images through torchvision."""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from compression_adapters.decompositions import DECOMPOSITIONS, Decomposition


def choose_3x3(name: str, module: nn.Module) -> Decomposition | None:
    """Choose a low-rank form for every plain 3 x 3 convolution.

    Sixteen layers in ResNet50, as in the paper, and sixteen in ResNet18, where the
    paper takes eight (`choose_second_3x3`).

    Args:
        name: Layer name; not used.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> choose_3x3("conv1", nn.Conv2d(4, 4, 3)).name
        'low_rank_conv'
        >>> choose_3x3("conv1", nn.Conv2d(4, 4, 7)) is None
        True
    """
    tai = DECOMPOSITIONS["low_rank_conv"]
    fits = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    return tai if fits and tai.supports(module) else None


def choose_second_3x3(name: str, module: nn.Module) -> Decomposition | None:
    """Choose a low-rank form for the second convolution of each residual block.

    The eight layers of ResNet18 whose weights add up to the paper's totals; see
    `docs/reproduction.md` for the nine that the paper prints.

    Args:
        name: Layer name, `...conv2` for a second convolution.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> choose_second_3x3("layer1.0.conv2", nn.Conv2d(4, 4, 3)).name
        'low_rank_conv'
    """
    return choose_3x3(name, module) if name.rpartition(".")[2] == "conv2" else None


def torchvision_network(name: str, num_classes: int = 1000) -> nn.Module:
    """Build one of torchvision's networks for classification, with fresh weights.

    Args:
        name: Its name in `torchvision.models`, such as `resnet18`.
        num_classes: Number of outputs.

    Returns:
        The network, in eval mode.

    Raises:
        ValueError: when torchvision has no such network.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or ["resnet18", "vgg16"]
        raise ValueError(
            f"torchvision has no network {name!r}; it has {len(known)}, such as "
            f"{', '.join(near)}. torchvision.models.list_models() lists them."
        )
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network.eval()


def pretrained(name: str, weights: str = "IMAGENET1K_V1") -> nn.Module:
    """Build one of torchvision's networks with the weights torchvision has for it.

    They are read from torch's cache, or downloaded into it; nothing is unpickled.

    Args:
        name: Its name in `torchvision.models`.
        weights: Name of the weights, such as `IMAGENET1K_V1` or `DEFAULT`.

    Returns:
        The network, in eval mode.

    Raises:
        ValueError: when there are no such weights, or they cannot be downloaded; the
            message states what to download and where to put it.
    """
    from torchvision import models

    network = torchvision_network(name)
    known = models.get_model_weights(name)
    if weights not in known.__members__:
        raise ValueError(
            f"torchvision has no weights {weights!r} for {name}; it has "
            f"{', '.join(known.__members__)}. A file of your own needs its suffix "
            "(.safetensors, .pt or .pth)."
        )
    entry = known[weights]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state = entry.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights {weights} of {name} are not in {folder} and could not be "
            f"downloaded ({error}). Download {entry.url} where there is a connection "
            f"and put it into {folder}, or pass its path as the weights."
        ) from error
    network.load_state_dict(state)
    return network


def image_folder(
    folder: str | Path,
    *,
    size: int = 224,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> Dataset[Any]:
    """Read a folder of images in the form that networks for ImageNet expect.

    The short side is resized to `size / 0.875`, and the central `size x size` pixels
    are cropped and normalised. There is no random augmentation: an image is the same
    each time.

    Args:
        folder: One folder of images per class, as in ILSVRC2012's `train` and `val`;
            classes are numbered in the order of their names.
        size: Height and width. Unit: pixels.
        mean: Per colour, subtracted. Pixels are in [0, 1].
        std: Per colour, divided by.

    Returns:
        A dataset of images, `3 x size x size`, and class indices.

    Raises:
        ValueError: when the folder is missing or holds no class folders with images.
    """
    from torchvision import datasets, transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(round(size / 0.875)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    try:
        images: Dataset[Any] = datasets.ImageFolder(
            str(folder), prepare, loader=_read_image
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} must hold one folder of images per class, as "
            f"ILSVRC2012's train and val do: {error}"
        ) from error
    return images


def _read_image(path: str) -> Any:
    """Read an image as RGB."""
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except (OSError, SyntaxError) as error:  # the latter for damaged PNG files
        raise ValueError(
            f"{path} cannot be read as an image: it is damaged or of another format. "
            "Repair it, or take it out of the folder."
        ) from error
