"""Check that a trial runs the network that would be kept, and each layer matters."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from compression_adapters.decompositions import Factors
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.checks import agree
from compression_adapters.network.macs import input_shapes
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.replacement import copy_network
from compression_adapters.network.truncation import copy_of_trial, truncated
from compression_adapters.rank_space.scales import DENSE, Rank

LONGEST_PASS: Final = 1.0
"""Seconds of a forward pass on two inputs above which layers are not cut singly."""


def called_layers(
    network: nn.Module, layers: Sequence[LayerSpec], inputs: Tensor
) -> tuple[LayerSpec, ...]:
    """Leave out the layers that the forward pass does not call, with a warning.

    Any size could be met by cutting those, without a loss.

    Args:
        network: The reference network.
        layers: From `find_layers`.
        inputs: As many as in a trial, because a layer may be called for some only.

    Returns:
        The layers that are called.

    Raises:
        ValueError: when none is.
    """
    with input_shapes(network, layers) as shapes, evaluation_mode(network):
        forward(network, inputs)
    return _left(
        layers,
        [layer for layer in layers if not shapes[layer.name]],
        "the forward pass of a copy of the network does not call it",
    )


def effective_layers(
    network: nn.Module, layers: Sequence[LayerSpec], few: Tensor, inputs: Tensor
) -> tuple[LayerSpec, ...]:
    """Leave out the layers on which the outputs do not depend, with a warning.

    One forward pass for each layer, whose output is replaced by NaN: an auxiliary head
    that is called and not returned leaves no trace of it. A layer of little influence
    does, and stays. All stay where a pass takes more than `LONGEST_PASS` seconds.

    Args:
        network: The reference network.
        layers: The layers in play.
        few: Two inputs, on the network's device.
        inputs: As many as in a trial, for a second look where the few do not show it.

    Returns:
        The layers that the outputs depend on.

    Raises:
        ValueError: when they depend on none.
    """
    copied = copy_network(network)  # which may keep a NaN
    with evaluation_mode(copied):
        began = time.perf_counter()
        dense = forward(copied, few)
        if time.perf_counter() - began > LONGEST_PASS:
            return tuple(layers)
        without = [
            layer
            for layer in layers
            if not _changes(copied, layer.name, few, dense)
            and not _changes(copied, layer.name, inputs, forward(copied, inputs))
        ]
    return _left(layers, without, "the outputs do not depend on it")


def _changes(network: nn.Module, name: str, inputs: Tensor, dense: Tensor) -> bool:
    """Return whether outputs change where those of a layer are NaN."""
    handle = network.get_submodule(name).register_forward_hook(
        lambda module, _, output: torch.full_like(output, torch.nan)
    )
    try:
        return not dense.equal(forward(network, inputs))
    except Exception:  # whatever the network says to NaN: it has seen it
        return True
    finally:
        handle.remove()


def require_parity(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    ranks: Mapping[str, Rank],
    few: Tensor,
) -> None:
    """Refuse a network whose trials are not the network that would be kept.

    They are made in the same way, but a copy may still run modules of the network that
    was copied: those that a function refers to through a global name, for example.

    Args:
        network: The reference network.
        layers: The layers in play.
        factors: From `factorize_network`.
        ranks: The smallest ones, layer name to rank.
        few: Two inputs, on the network's device.

    Raises:
        ValueError: when outputs differ; the message names the layer.
    """
    if not _differs(network, layers, factors, ranks, few):
        return
    guilty = (
        layer.name
        for layer in layers
        if _differs(network, layers, factors, _alone(layer, layers), few)
    )
    raise ValueError(
        f"Layer {next(guilty, layers[0].name)!r}: a trial and a copy of the network "
        "with the same ranks have other outputs, so that the network to keep would not "
        "be the one that was measured. Something in the network refers to the layer in "
        "a way that a copy does not follow: a global variable, or an object with its "
        "own __deepcopy__. Refer to it as an attribute of a module, or leave the layer "
        "out (exclude)."
    )


def _differs(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    ranks: Mapping[str, Rank],
    few: Tensor,
) -> bool:
    """Return whether a trial and its copy have other outputs."""
    copied = copy_of_trial(network, factors, layers, ranks)
    with evaluation_mode(network), evaluation_mode(copied):
        trial = _outputs(network, factors, layers, ranks, few)
        kept = forward(copied, few)
    return trial.shape != kept.shape or not agree(trial, kept)


def _outputs(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Sequence[LayerSpec],
    ranks: Mapping[str, Rank],
    inputs: Tensor,
) -> Tensor:
    """Run a trial, and name its layers where it fails."""
    with truncated(network, factors, layers, ranks):
        try:
            return forward(network, inputs)
        except Exception as error:  # whatever the network raises
            cut = [name for name, rank in ranks.items() if rank != DENSE]
            raise ValueError(
                f"The network does not run with layer {', '.join(map(repr, cut))} cut "
                f"to its smallest rank: {type(error).__name__}: {error}. Leave layers "
                "out whose weight or type the network reads (exclude)."
            ) from error


def _alone(layer: LayerSpec, layers: Iterable[LayerSpec]) -> dict[str, Rank]:
    """Return the ranks that cut one layer to rank 1 and no other."""
    return {each.name: 1 if each is layer else DENSE for each in layers}


def _left(
    layers: Sequence[LayerSpec], without: Sequence[LayerSpec], reason: str
) -> tuple[LayerSpec, ...]:
    """Drop layers with a warning, refusing to drop all."""
    names = ", ".join(repr(layer.name) for layer in without)
    if without and len(without) == len(layers):
        raise ValueError(
            f"No layer to compress is left. Of {names}: {reason}. Choose layers that "
            "the outputs depend on (choose, include, exclude)."
        )
    if without:
        warnings.warn(
            f"Layer {names} takes no part in the search and stays dense: {reason}. "
            "Leave it out (exclude) to silence this.",
            stacklevel=4,
        )
    return tuple(layer for layer in layers if layer not in without)
