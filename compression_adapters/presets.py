"""The paper's networks and their data, by name."""

import gzip
import hashlib
import json
import os
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import platformdirs
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression_adapters.choices import Choose, choose_linear, choose_low_rank
from compression_adapters.network import evaluation_mode
from compression_adapters.torchvision_networks import (
    choose_3x3,
    choose_second_3x3,
    pretrained,
    torchvision_network,
)

# torchvision itself is imported where it is used: it takes seconds, and `PRESETS` is
# also read to print a list of names.

Progress = Callable[[int, int], None]
"""Called as `progress(epoch, epochs)` after each epoch."""

PACKAGE_DATA: Final = Path(__file__).parent / "data" / "mnist"

FC3_EPOCHS: Final = 6

MNIST_MD5: Final = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of the uncompressed files, as published with the data set."""


@dataclass(frozen=True)
class Preset:
    """A network with a name, and the data it is compressed on.

    Args:
        name: Its name on the command line.
        description: One line for a list of presets.
        build: Makes the network with fresh weights, for `load_compressed`.
        trained: Makes the trained reference network; keeps it for the next run.
        choose: Which layers the paper compresses.
        train_data: The pool: inputs and labels. None where the user brings the images.
        test_data: Inputs and labels for the final accuracy, or None.
        gamma: Default weight of the loss, or None where none was measured.
        choices: Further choices of layers by name.
    """

    name: str
    description: str
    build: Callable[[], nn.Module]
    trained: Callable[..., nn.Module]
    choose: Choose
    train_data: Callable[[], tuple[Tensor, Tensor]] | None = None
    test_data: Callable[[], tuple[Tensor, Tensor]] | None = None
    gamma: float | None = None
    choices: Mapping[str, Choose] = field(default_factory=dict)


def cache_folder() -> Path:
    """Return where data and trained networks are kept between runs.

    Returns:
        The environment variable `AX_PAC_CACHE` if set, else the user's cache folder.
    """
    override = os.environ.get("AX_PAC_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("ax-pac")


def mnist(train: bool) -> tuple[Tensor, Tensor]:
    """Load MNIST from the copy that comes with the package.

    The files are unpacked into `cache_folder()` once, as torchvision reads them, and
    their checksums are verified at each call.

    Args:
        train: The 60,000 training images, or else the 10,000 test images.

    Returns:
        Images as float32 in [0, 1], shape `n x 1 x 28 x 28`, and labels as int64,
        shape `n`.

    Raises:
        ValueError: when the packaged files do not have the published checksums.
    """
    _unpack_mnist(cache_folder() / "MNIST" / "raw")
    from torchvision.datasets import MNIST

    data = MNIST(root=str(cache_folder()), train=train, download=False)
    return data.data[:, None].float() / 255.0, data.targets.to(torch.int64)


def fc3() -> nn.Sequential:
    """Build FC3: 784-1000-1000-10, fully connected, with ReLU.

    Returns:
        The network with fresh weights, its layers named `fc1`, `fc2` and `fc3`. It
        takes images, `n x 1 x 28 x 28`, or rows, `n x 784`.

    Source: Ma et al. 2019, section 4.2.

    Example:
        >>> fc3()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 1000),
            relu1=nn.ReLU(),
            fc2=nn.Linear(1000, 1000),
            relu2=nn.ReLU(),
            fc3=nn.Linear(1000, 10),
        )
    )


def train_fc3(
    *,
    seed: int = 0,
    epochs: int = FC3_EPOCHS,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    data: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Train FC3 from scratch with Adam, the learning rate falling linearly to zero.

    Args:
        seed: Decides initial weights and order; global random state is not touched.
        epochs: Passes over the data; the default reaches 98.4 % on the test images.
        batch_size: Images in one step.
        learning_rate: Of the first step.
        data: Images and labels; the MNIST training set if None.
        progress: Called after each epoch.

    Returns:
        The trained network, in eval mode.

    Raises:
        ValueError: when `epochs` or `batch_size` is below 1.

    Source: Ma et al. 2019, section 4.2. Deviation: the paper does not say how it
        trained; optimiser and schedule are ours.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"epochs and batch_size must be at least 1; got {epochs}, {batch_size}."
        )
    images, labels = mnist(train=True) if data is None else data
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw weights we overwrite
        network = fc3()
    _initialize(network, rng)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
    # Training works whatever mode the caller is in.
    with torch.inference_mode(False), torch.enable_grad():
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=rng)
            for index in order.split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(network(images[index]), labels[index]).backward()
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress(epoch + 1, epochs)
    return network.eval()


def trained_fc3(
    *, seed: int = 0, cache: bool = True, progress: Progress | None = None
) -> nn.Module:
    """Return a trained FC3, from the cache if an earlier run has left one there.

    Kept as `fc3-seed<seed>.safetensors` with a note beside it (`.json`: seed, epochs,
    test accuracy, version of torch) in `cache_folder()`.

    Args:
        seed: See `train_fc3`; each seed has its own files.
        cache: Whether to read and write the cache.
        progress: Called after each epoch of a training.

    Returns:
        The network, in eval mode.
    """
    weights = cache_folder() / f"fc3-seed{seed}.safetensors"
    if cache and weights.is_file():
        network: nn.Module = fc3()
        try:
            network.load_state_dict(safetensors.torch.load_file(str(weights)))
        except (safetensors.SafetensorError, RuntimeError) as error:
            warnings.warn(
                f"{weights} is damaged and will be replaced: {error}", stacklevel=2
            )
        else:
            return network.eval()
    network = train_fc3(seed=seed, progress=progress)
    if cache:
        note = {
            "seed": seed,
            "epochs": FC3_EPOCHS,
            "test_accuracy": accuracy(network, *mnist(train=False), topk=(1,))[0],
            "torch": torch.__version__,
        }
        _write(weights, safetensors.torch.save(network.state_dict()))
        _write(weights.with_suffix(".json"), json.dumps(note, indent=2).encode())
    return network


def accuracy(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    topk: tuple[int, ...] = (1, 5),
    batch_size: int = 1000,
) -> tuple[float, ...]:
    """Measure top-k accuracies, in eval mode and without autograd.

    Args:
        network: With outputs of shape `n x classes`. Its modes are restored.
        images: Shape `n x ...`.
        labels: Shape `n`.
        topk: The k, each at most the number of classes.
        batch_size: Images in one forward pass.

    Returns:
        For each k the share of images whose label is among the k likeliest classes.

    Raises:
        ValueError: when there are no images, labels do not match, or a k is not
            between 1 and the number of classes.

    Example:
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]), topk=(1,))
        (0.75,)
    """
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Expected one label for each of at least one image; got {len(images)} "
            f"images and labels of shape {tuple(labels.shape)}."
        )
    hits = dict.fromkeys(topk, 0)
    with evaluation_mode(network), torch.inference_mode():
        for x, y in zip(
            images.split(batch_size), labels.split(batch_size), strict=True
        ):
            outputs = network(x)
            if not all(1 <= k <= outputs.shape[1] for k in topk):
                raise ValueError(
                    f"topk must lie in 1 to {outputs.shape[1]}, the number of classes; "
                    f"got {topk}."
                )
            best = outputs.topk(max(topk), dim=1).indices == y[:, None]
            for k in topk:
                hits[k] += int(best[:, :k].sum())
    return tuple(hits[k] / len(images) for k in topk)


PRESETS: dict[str, Preset] = {
    "fc3": Preset(
        name="fc3",
        description="784-1000-1000-10, fully connected, on MNIST (Tables 3 and 4)",
        build=fc3,
        trained=trained_fc3,
        choose=choose_linear,
        train_data=lambda: mnist(train=True),
        test_data=lambda: mnist(train=False),
        gamma=0.001,
    ),
    "vgg16": Preset(
        name="vgg16",
        description="13 convolutions and 3 linear layers, on your images (Table 5)",
        build=partial(torchvision_network, "vgg16"),
        trained=partial(pretrained, "vgg16"),
        choose=choose_low_rank,
        choices={"3x3": choose_3x3, "linear": choose_linear},
    ),
    "resnet18": Preset(
        name="resnet18",
        description="second convolution of each block, on your images (Table 6)",
        build=partial(torchvision_network, "resnet18"),
        trained=partial(pretrained, "resnet18"),
        choose=choose_second_3x3,
        choices={"3x3": choose_3x3, "all": choose_low_rank},
    ),
    "resnet50": Preset(
        name="resnet50",
        description="3 x 3 convolutions, on your images (Table 7)",
        build=partial(torchvision_network, "resnet50"),
        trained=partial(pretrained, "resnet50"),
        choose=choose_3x3,
        choices={"all": choose_low_rank},
    ),
}
"""The paper's networks by name, for the command line."""


def _initialize(network: nn.Module, rng: torch.Generator) -> None:
    """Draw the weights of linear layers as torch does, from an explicit rng."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=rng)


def _unpack_mnist(folder: Path) -> None:
    """Write the four files where they are missing or damaged."""
    for name, md5 in MNIST_MD5.items():
        path = folder / name
        if path.is_file() and _md5(path.read_bytes()) == md5:
            continue
        source = PACKAGE_DATA / f"{name}.gz"
        content = gzip.decompress(source.read_bytes())
        if _md5(content) != md5:
            raise ValueError(
                f"{source}: the checksum of the uncompressed file is {_md5(content)}, "
                f"expected {md5}. The installation is damaged; install ax-pac again."
            )
        _write(path, content)


def _md5(content: bytes) -> str:
    """Return the checksum; against damage, not against attack."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, for several processes at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(content)
    Path(file.name).replace(path)
