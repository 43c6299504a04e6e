"""The command line's sources of networks, weights and data."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from compression_adapters.evaluation.losses import LABELLED_LOSSES
from compression_adapters.evaluation.sampling import open_pool
from compression_adapters.layers.selection import (
    Choose,
    best_of,
    choose_linear,
    choose_low_rank,
)
from compression_adapters.network.weights import load_weights
from compression_adapters.presets.registry import PRESETS, Preset
from compression_adapters.presets.torchvision import (
    choose_3x3,
    image_folder,
    pretrained,
    torchvision_network,
)

_CHOICES: dict[str, Choose] = {
    "all": choose_low_rank,
    "linear": choose_linear,
    "3x3": choose_3x3,
}


_WEIGHT_FILES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True, eq=False)
class Source:
    """A network and the data it is compressed on.

    Args:
        name: The requested name.
        description: One line.
        network: The reference network, with its weights.
        build: Makes the network again, with any weights, for `load_compressed`.
        choose: Selects the layers.
        inputs: The pool, as `open_pool` takes it.
        labels: Labels of a tensor pool, or None.
        test: Labelled images for the accuracy: tensors or a dataset, or None.
        note: What a reader of the result must know, or empty.
    """

    name: str
    description: str
    network: nn.Module = field(repr=False)
    build: Callable[[], nn.Module] = field(repr=False)
    choose: Choose = field(repr=False)
    inputs: Any = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    test: tuple[Tensor, Tensor] | Dataset[Any] | None = field(default=None, repr=False)
    note: str = ""

    def choose_as(self, forms: object) -> Choose:
        """Return the choice of layers, with every form of each if asked for `"best"`.

        Args:
            forms: The option `choose` of the command line.
        """
        return best_of(self.choose) if forms == "best" else self.choose

    def labels_for(self, loss: object) -> Tensor | None:
        """Return the labels that a search by this loss takes."""
        return self.labels if loss in LABELLED_LOSSES else None


def open_source(
    name: str,
    *,
    weights: str | None = None,
    data: str | None = None,
    layers: str | None = None,
    num_classes: int = 1000,
    image_size: int = 224,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Open the network of a name, its weights and its data.

    Args:
        name: A key of `PRESETS`, `torchvision:NAME`, or `module.path:factory`, where
            the factory takes no arguments and returns a network.
        weights: A file (`.safetensors`, `.pt`, `.pth`), which is never unpickled, or
            for torchvision's networks the name of its weights. None: those of the
            preset, torchvision's `IMAGENET1K_V1`, or those that the factory returns.
        data: A folder of images (see `image_folder`), with or without `train` and `val`
            in it; or `module.path:function`, which returns a pool (see `open_pool`).
        layers: Name of a choice of layers; None for the preset's own, or all.
        num_classes: Outputs of one of torchvision's networks.
        image_size: Height and width of images from a folder.
        progress: Called after each epoch, if something must be trained first.

    Returns:
        The source.

    Raises:
        ValueError: when something is missing or cannot be read; the message states what
            is expected.
    """
    preset = PRESETS.get(name)
    build = _builder(name, num_classes)
    network = _network(name, build, weights, num_classes, progress)
    choose = _choice(layers, preset)
    description = preset.description if preset else f"{type(network).__name__} of yours"
    common: dict[str, Any] = {
        "name": name,
        "description": description,
        "network": network,
        "build": build,
        "choose": choose,
    }
    if data is not None:
        return Source(**common, **_own_data(data, image_size))
    if preset is None or preset.train_data is None:
        raise ValueError(
            f"{name} comes without data; pass --data FOLDER with one folder of images "
            "per class (as in ILSVRC2012, with or without train and val above "
            "them), or --data module.path:function that returns a tensor or a dataset."
        )
    inputs, labels = preset.train_data()
    test = None if preset.test_data is None else preset.test_data()
    return Source(**common, inputs=inputs, labels=labels, test=test)


def _builder(name: str, num_classes: int) -> Callable[[], nn.Module]:
    """Return the function that makes a network with any weights."""
    kind, separator, rest = name.partition(":")
    if name in PRESETS:
        if num_classes == 1000 or PRESETS[name].train_data is not None:
            return PRESETS[name].build
        return lambda: torchvision_network(name, num_classes)
    if kind == "torchvision":
        return lambda: torchvision_network(rest, num_classes)
    if not separator:
        raise ValueError(
            f"There is no network {name!r}. Expected one of {', '.join(PRESETS)}, "
            "torchvision:NAME, or module.path:factory."
        )
    factory = _imported(name)

    def build() -> nn.Module:
        network = _called(factory, name)
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"{name} must return a torch.nn.Module; got {type(network).__name__}."
            )
        return network.eval()

    return build


def _network(
    name: str,
    build: Callable[[], nn.Module],
    weights: str | None,
    num_classes: int,
    progress: Callable[[int, int], None] | None,
) -> nn.Module:
    """Return the network with the requested weights."""
    torchvision_name = name.partition(":")[2] or name
    of_torchvision = name.startswith("torchvision:") or (
        name in PRESETS and PRESETS[name].train_data is None
    )
    if weights is not None and (
        Path(weights).suffix in _WEIGHT_FILES or Path(weights).exists()
    ):
        network = build()
        load_weights(network, weights)
        return network
    if of_torchvision:
        if num_classes != 1000:
            raise ValueError(
                f"torchvision's weights of {torchvision_name} are for 1000 classes; "
                f"with {num_classes} classes pass --weights FILE."
            )
        return pretrained(torchvision_name, weights or "IMAGENET1K_V1")
    if weights is not None:
        raise ValueError(
            f"--weights {weights}: there is no such file, and {name} is not a "
            "torchvision network, whose weights have names."
        )
    preset = PRESETS.get(name)
    return build() if preset is None else preset.trained(progress=progress)


def _choice(layers: str | None, preset: Preset | None) -> Choose:
    """Return a choice of layers by name."""
    choices: Mapping[str, Choose] = _CHOICES
    if preset is not None:
        choices = {"paper": preset.choose, **_CHOICES, **preset.choices}
    if layers is None:
        return choices["paper" if preset is not None else "all"]
    if layers not in choices:
        raise ValueError(f"layers must be one of {', '.join(choices)}; got {layers!r}.")
    return choices[layers]


def _own_data(data: str, image_size: int) -> dict[str, Any]:
    """Return pool and test data from a folder or a function."""
    if not Path(data).exists() and ":" in data:
        pool = _called(_imported(data), data)
        try:
            open_pool(pool)
        except TypeError as error:
            raise ValueError(f"{data} returns what is no pool: {error}") from error
        return {"inputs": pool}
    if not Path(data).is_dir():
        raise ValueError(
            f"--data {data}: there is no such folder. Expected a folder with one "
            "folder of images per class, or module.path:function."
        )
    train, val = Path(data) / "train", Path(data) / "val"
    if train.is_dir() and val.is_dir():
        return {
            "inputs": image_folder(train, size=image_size),
            "test": image_folder(val, size=image_size),
        }
    only = next((folder for folder in (train, val) if folder.is_dir()), Path(data))
    images = image_folder(only, size=image_size)
    return {
        "inputs": images,
        "test": images,
        "note": "accuracy is measured on the images that the search drew from",
    }


def _called(function: Callable[[], Any], path: str) -> Any:
    """Call a function of the user's, and say whose error it is if it fails."""
    try:
        return function()
    except Exception as error:
        raise ValueError(
            f"{path} failed with {type(error).__name__}: {error}. It is called without "
            "arguments; try it in Python to see where."
        ) from error


def _imported(path: str) -> Callable[[], Any]:
    """Import the function `module.path:name`."""
    module, _, name = path.partition(":")
    # As with `python -m`, a module in the working directory is found.
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be imported: {error}. Expected module.path:function, "
            "importable from here."
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"{path} must be a function; got {type(found).__name__}.")
    result: Callable[[], Any] = found
    return result
