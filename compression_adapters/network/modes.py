"""Run a network as it is evaluated: in eval mode, leaving it and its inputs alone."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compression_adapters.network.outputs import read_output
from compression_adapters.network.structured_inputs import Inputs


def forward(network: nn.Module, inputs: Inputs) -> Tensor:
    """Run a network on its own copy of the inputs, and check its output.

    A forward pass may change its input in place, which others still need.

    Args:
        network: Any network that takes a batch.
        inputs: One tensor or several, and which output is compared; see `read_output`,
            also for the default. Shape `m x ...`.

    Returns:
        The outputs, one per sample and not Boolean. Shape `m` or `m x ...`.

    Raises:
        ValueError: when there is no such output.

    Example:
        >>> forward(nn.Flatten(), torch.zeros(5, 2, 2)).shape
        torch.Size([5, 4])
    """
    return require_outputs(read_output(network, inputs), inputs)


def require_outputs(outputs: Any, inputs: Inputs) -> Tensor:
    """Return the outputs of a network if they can be compared, or raise.

    Args:
        outputs: What the network returned.
        inputs: What it was called with.
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"The network must return a tensor; got {type(outputs).__name__}. Wrap it "
            "in a module that picks the tensor to compare."
        )
    if outputs.shape[:1] != (len(inputs),):
        raise ValueError(
            f"The network must return one output per sample: {len(inputs)} samples "
            f"went in, an output of shape {tuple(outputs.shape)} came out."
        )
    if outputs.dtype == torch.bool:
        raise ValueError(
            "The network returns Boolean values, which have no distance. Wrap it in a "
            "module that returns what they are computed from, such as logits, or "
            "outputs.float(): 0 and 1."
        )
    return outputs


def in_float(values: Tensor) -> Tensor:
    """Return real values in at least single precision; integers in double.

    Sums of squares overflow in half precision, and differences of unsigned integers.
    Complex values are returned as they are, from single precision on.
    """
    if values.is_complex():
        return values.to(torch.complex64) if values.dtype == torch.complex32 else values
    if not values.is_floating_point():
        return values.double()
    return values.float() if values.itemsize < 4 else values


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return the squared Euclidean distance of two outputs, for each sample.

    Args:
        one: Real or complex, in any precision. Shape `m` or `m x ...`.
        other: The same shape.

    Returns:
        Shape `m`, in at least single precision.

    Example:
        >>> squared_distance(torch.tensor([3.0, 1j]), torch.tensor([1.0, 1.0]))
        tensor([4., 2.])
    """
    difference = in_float(one) - in_float(other)
    if difference.is_complex():
        difference = torch.view_as_real(difference)
    return difference.square().reshape(len(difference), -1).sum(dim=1)


@contextmanager
def evaluation_mode(network: nn.Module, *, compiled: bool = False) -> Iterator[None]:
    """Run a network in eval mode without gradients, and restore all modes afterwards.

    Under `no_grad`, not in inference mode: what a forward pass keeps (a cache, a mask)
    can be trained with later.

    Args:
        network: Its submodules may be in different modes.
        compiled: Whether parts are run as `torch.compile` made them. By default it is
            ignored: they would be compiled again for every rank.
    """
    modes = [(module, module.training) for module in network.modules()]
    with ExitStack() as stack:
        # Without dynamo nothing is compiled, and its import takes seconds.
        if not compiled and "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        network.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
