"""Check whether a network and its inputs can be searched, before slow work."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.modes import evaluation_mode, forward, in_float
from compression_adapters.network.structured_inputs import (
    Inputs,
    call_network,
    describe_inputs,
    tensors_of,
)

CHANNELS_LAST_FROM = 64
"""Height and width of images from which convolutions are faster channels-last.

Measured on a CPU; at 32 pixels there is no gain.
"""


def require_searchable(network: nn.Module) -> None:
    """Refuse a network whose outputs would be misleading in a search.

    Args:
        network: The reference network.

    Raises:
        ValueError: when weights are not finite or on several devices, a batch norm is
            in training mode, or a batch norm keeps no statistics, so that samples would
            depend on each other; the message names the layer and the remedy.

    Example:
        >>> require_searchable(nn.Sequential(nn.BatchNorm1d(3)))
        Traceback (most recent call last):
        ...
        ValueError: Layer '0' (BatchNorm1d) is in training mode...
    """
    places: dict[torch.device, str] = {}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        places.setdefault(tensor.device, name)
    if len(places) > 1:
        found = ", ".join(f"{name!r} on {device}" for device, name in places.items())
        raise ValueError(
            f"The network's weights are on several devices: {found}. Move it to one: "
            "network.to(device)."
        )
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            layer, _, weight = name.rpartition(".")
            raise ValueError(
                f"Layer {layer!r}: {weight} holds NaN or infinite entries. Load finite "
                "weights."
            )
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{f'Layer {name!r}' if name else 'The network'} is compiled by "
                "TorchScript, whose layers cannot be replaced. Pass the network that "
                "it was compiled from, and compile the compressed one."
            )
        if not isinstance(module, _BatchNorm):
            continue
        kind = f"Layer {name!r} ({type(module).__name__})"
        if module.running_mean is None:
            raise ValueError(
                f"{kind} keeps no running statistics (track_running_stats=False): the "
                "outputs for a sample would depend on the others in its batch. Replace "
                "it by one that keeps them."
            )
        if module.training:
            raise ValueError(
                f"{kind} is in training mode. Its statistics have to be those the "
                "network is used with: finish training and call network.eval()."
            )


def require_slices(layers: Sequence[LayerSpec]) -> None:
    """Refuse decompositions whose ranks are not slices of one set of factors."""
    for layer in layers:
        if not layer.decomposition.searchable:
            raise ValueError(
                f"Layer {layer.name!r}: decomposition {layer.decomposition.name!r} "
                "cannot be searched, because each rank is a slow decomposition of its "
                "own. Search with another one, and use this one afterwards through "
                "factorize_network and truncate_network."
            )


def check_forward(
    network: nn.Module,
    inputs: Inputs,
    outputs_of: Callable[[nn.Module, Any], Tensor] | None = None,
) -> bool:
    """Run the network on a few inputs, and check whether channels-last works.

    Args:
        network: The reference network; runs in eval mode.
        inputs: A few samples, on any device. Shape `n x ...`.
        outputs_of: Another output that a loss will compare, which is tried once too.

    Returns:
        Whether to run it channels-last: on images of at least 64 x 64 pixels on a CPU,
        unless a module of the network refuses that layout.

    Raises:
        ValueError: when the network cannot run on the inputs, does not return one
            output per sample, returns NaN or infinite values, or other outputs when it
            runs again (dropout that is always on); the message names the layer.
    """
    weights = next(network.parameters(), None)
    if weights is not None:
        inputs = inputs.to(weights.device)
    with evaluation_mode(network):
        with _explained(network, inputs):
            outputs = forward(network, inputs)
        if not bool(torch.isfinite(outputs).all()):
            raise ValueError(
                "The reference network returns NaN or infinite values for finite "
                f"inputs; they first appear in {_first_not_finite(network, inputs)}."
            )
        again = forward(network, inputs)
        if not agree(outputs, again):
            raise ValueError(
                "The network returns other outputs for the same inputs when it runs "
                f"again, beginning in {_first_random(network, inputs)}. It draws "
                "random numbers or keeps a state, so that no loss measures what "
                "compression changes. Give F.dropout training=self.training, pass "
                "noise as an input, or reset the state in the forward pass."
            )
        if outputs_of is not None:
            outputs_of(network, inputs)
        return _takes_channels_last(network, inputs)


def require_independent(network: nn.Module, fresh: nn.Module, inputs: Inputs) -> None:
    """Refuse a network whose outputs for a sample depend on other inputs.

    Args:
        network: The network, which has run on other inputs before.
        fresh: A copy of it that has never run.
        inputs: Some samples, on the network's device.

    Raises:
        ValueError: when the copy, on its first inputs, has other outputs (a state that
            the first forward pass fixes), or a sample has other outputs among others
            (a mean over the batch).
    """
    floating = [p.dtype for p in network.parameters() if p.dtype.is_floating_point]
    weights = max(floating, key=lambda d: torch.finfo(d).eps, default=None)
    with evaluation_mode(network), evaluation_mode(fresh):
        outputs = forward(network, inputs)
        if not agree(outputs, forward(fresh, inputs), weights):
            raise ValueError(
                "The network's outputs depend on the inputs that it ran on first: its "
                "first forward pass fixes a state (a calibration, a normalisation "
                "initialised by data). Run it once on the inputs that it is to be "
                "calibrated on, before it is compressed."
            )
        alone = forward(network, inputs[:2])
        if len(inputs) > 2 and not agree(outputs[:2], alone, weights):
            raise ValueError(
                "The network's outputs for a sample depend on the other samples of its "
                "batch, so that no standard error can be given. Are the inputs batch "
                "first (batch_first=True of attention, encoder and recurrent layers)? "
                "Does the network normalise over the batch?"
            )


def agree(one: Tensor, other: Tensor, weights: torch.dtype | None = None) -> bool:
    """Return whether two outputs are equal up to rounding in their precision.

    The largest difference is compared with the largest value, times the root of the
    precision: half of the digits.

    Args:
        one: Outputs of any dtype but Boolean.
        other: The same shape and dtype.
        weights: Precision of the computation, where it may be coarser than that of the
            outputs and its order may differ.
    """
    coarse = one.dtype if one.is_floating_point() or one.is_complex() else torch.double
    if weights is not None and torch.finfo(weights).eps > torch.finfo(coarse).eps:
        coarse = weights
    one, other = in_float(one), in_float(other)
    if one.numel() == 0 or torch.equal(one, other):
        return True
    scale = max(float(one.abs().max()), float(other.abs().max()))
    gap = float((one - other).abs().max())
    return gap <= torch.finfo(coarse).eps ** 0.5 * scale


def _takes_channels_last(network: nn.Module, inputs: Inputs) -> bool:
    """Return whether the layout is faster and works."""
    (first, *others) = tensors_of(inputs)
    if others or first.ndim != 4 or first.device.type != "cpu":
        return False
    if min(first.shape[2:]) < CHANNELS_LAST_FROM:
        return False
    try:
        forward(network, inputs.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False  # such as a `view` of memory in another layout
    return True


@contextmanager
def _explained(network: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Turn an error inside the network into one that names the layer and inputs."""
    entered: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda m, _: entered.append(m))
        for module in network.modules()
    ]
    try:
        yield
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        names = {module: name for name, module in network.named_modules()}
        # The module that was entered last failed, or the one before it.
        last = entered[-1] if entered else network
        weight = next(last.parameters(recurse=False), None)
        holds = "" if weight is None else f" with {weight.dtype} weights"
        raise ValueError(
            f"The network cannot be run on the inputs, which have "
            f"{describe_inputs(inputs)}; it fails in or after layer "
            f"{names[last]!r}, {last!r}{holds}: {error}. Pass inputs as the network "
            f"was trained on, batch first{_how_called(network, inputs)}."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _how_called(network: nn.Module, inputs: Inputs) -> str:
    """Say how a network is called with several inputs."""
    if isinstance(inputs, Tensor) or isinstance(inputs.parts, Tensor):
        return ""
    signature = inspect.signature(network.forward)
    return (
        f". Its forward takes {signature}: the keys of a mapping are arguments if they "
        "are its parameters, those of a tuple if there are as many; otherwise it gets "
        "the whole as one"
    )


def _first_not_finite(network: nn.Module, inputs: Inputs) -> str:
    """Name the first layer whose output is not finite."""
    found: list[str] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        finite = not isinstance(output, Tensor) or bool(torch.isfinite(output).all())
        if not finite and not found:
            found.append(f"layer {name!r} ({type(module).__name__})")

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: look(name, m, out))
        for name, module in network.named_modules()
    ]
    try:
        call_network(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the network itself"


def _first_random(network: nn.Module, inputs: Inputs) -> str:
    """Name the first layer whose output differs between two passes."""
    seen: list[tuple[str, Any]] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        copied = output.clone() if isinstance(output, Tensor) else None
        seen.append((f"layer {name!r} ({type(module).__name__})", copied))

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: look(name, m, out))
        for name, module in network.named_modules()
        if name
    ]
    try:
        call_network(network, inputs)
        first = list(seen)
        seen.clear()
        call_network(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for (name, one), (_, other) in zip(first, seen, strict=False):
        if one is not None and not (
            isinstance(other, Tensor) and one.shape == other.shape and agree(one, other)
        ):
            return f"or before {name}"
    return "the network itself"
