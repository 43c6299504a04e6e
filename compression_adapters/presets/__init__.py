"""Networks by name: the paper's and torchvision's; MNIST."""

from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets.fc3_network import fc3, train_fc3, trained_fc3
from compression_adapters.presets.mnist_data import mnist
from compression_adapters.presets.registry import PRESETS, Preset
from compression_adapters.presets.torchvision import (
    choose_3x3,
    choose_second_3x3,
    image_folder,
    pretrained,
    torchvision_network,
)

__all__ = [
    "PRESETS",
    "Preset",
    "accuracy",
    "choose_3x3",
    "choose_second_3x3",
    "fc3",
    "image_folder",
    "mnist",
    "pretrained",
    "torchvision_network",
    "train_fc3",
    "trained_fc3",
]
