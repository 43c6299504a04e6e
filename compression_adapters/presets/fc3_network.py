"""FC3, the paper's fully connected network, and its training."""

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets.mnist_data import _write, cache_folder, mnist

Progress = Callable[[int, int], None]
"""Called as `progress(epoch, epochs)` after each epoch."""


FC3_EPOCHS: Final = 6


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
        seed: Determines initial weights and order; global random state is not changed.
        epochs: Passes over the data; the default reaches 98.4 % on the test images.
        batch_size: Images per step.
        learning_rate: Learning rate of the first step.
        data: Images and labels; the MNIST training set if None.
        progress: Called after each epoch.

    Returns:
        The trained network, in eval mode.

    Raises:
        ValueError: when `epochs` or `batch_size` is below 1.

    Source: Ma et al. 2019, section 4.2. Deviation: the paper does not describe its
        training; optimiser and schedule are ours.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"epochs and batch_size must be at least 1; got {epochs}, {batch_size}."
        )
    images, labels = mnist(train=True) if data is None else data
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw weights that we overwrite
        network = fc3()
    _initialize(network, rng)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
    # Training works in any mode of the caller.
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
    """Return a trained FC3, from the cache if an earlier run left one there.

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


def _initialize(network: nn.Module, rng: torch.Generator) -> None:
    """Draw the weights of linear layers as torch does, from an explicit rng."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=rng)
