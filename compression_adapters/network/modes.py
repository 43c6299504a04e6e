"""Run a network in eval mode, and restore its mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def forward(network: nn.Module, inputs: Tensor) -> Tensor:
    """Run a network and check that it returns one output per sample.

    Args:
        network: Any network that takes a batch and returns a tensor.
        inputs: Shape `m x ...`.

    Returns:
        The outputs. Shape `m x ...`.

    Raises:
        ValueError: when the output is not a tensor or its first dimension is not m.

    Example:
        >>> import torch
        >>> forward(nn.Flatten(), torch.zeros(5, 2, 2)).shape
        torch.Size([5, 4])
    """
    outputs = network(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"The network must return a tensor; got {type(outputs).__name__}. Wrap it "
            "in a module that picks the tensor to compare."
        )
    if outputs.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"The network must return one output per sample: {inputs.shape[0]} samples "
            f"went in, an output of shape {tuple(outputs.shape)} came out."
        )
    return outputs


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and restore each module's mode afterwards.

    Args:
        network: Its submodules may be in different modes.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
