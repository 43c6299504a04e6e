"""The paper's networks and their data, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from compression_adapters.layers.selection import Choose, choose_linear, choose_low_rank
from compression_adapters.presets.fc3_network import fc3, trained_fc3
from compression_adapters.presets.mnist_data import mnist
from compression_adapters.presets.torchvision import (
    choose_3x3,
    choose_second_3x3,
    pretrained,
    torchvision_network,
)


@dataclass(frozen=True)
class Preset:
    """A named network, and the data it is compressed on.

    Args:
        name: Its name on the command line.
        description: One line for the list of presets.
        build: Makes the network with fresh weights, for `load_compressed`.
        trained: Makes the trained reference network, and keeps it for the next run.
        choose: Selects the layers that the paper compresses.
        train_data: The pool: inputs and labels. None if the user provides the images.
        test_data: Inputs and labels for the final accuracy, or None.
        gamma: Default weight of the loss, or None if none was measured.
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
