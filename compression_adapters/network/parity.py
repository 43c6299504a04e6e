"""Check that a trial runs the network that would be kept, and each layer matters."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from compression_adapters.decompositions import Factors
from compression_adapters.layers.survey import LayerSpec, layer_weights
from compression_adapters.network.checks import agree
from compression_adapters.network.macs import input_shapes
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.replacement import copy_network
from compression_adapters.network.structured_inputs import Inputs
from compression_adapters.network.truncation import copy_of_trial, truncated
from compression_adapters.rank_space.scales import DENSE, Rank

LONGEST_PASS: Final = 1.0
"""Seconds of a forward pass on two inputs above which layers are not cut singly."""


def layers_in_use(
    network: nn.Module, layers: Sequence[LayerSpec], few: Inputs, inputs: Inputs
) -> tuple[LayerSpec, ...]:
    """Leave out the layers on which the outputs do not depend, with a warning.

    Any size could be met by cutting those, without a loss. One forward pass is made for
    each layer, with NaN for its weights: a head that is not called, or whose output is
    dropped, leaves no trace of it. A layer of little influence does, and stays, and so
    does one whose weight is used without calling it. Where a pass takes more than
    `LONGEST_PASS` seconds, only layers that are not called are left out.

    Args:
        network: The reference network.
        layers: From `find_layers`.
        few: Two inputs, on the network's device.
        inputs: As many as in a trial, for a second look where the few do not show it: a
            layer may be called for some inputs only.

    Returns:
        The layers that the outputs depend on.

    Raises:
        ValueError: when they depend on none.
    """
    copied = copy_network(network)  # which may keep a NaN
    without: dict[str, list[LayerSpec]] = {}
    with evaluation_mode(copied):
        with input_shapes(copied, layers) as shapes:
            dense = forward(copied, inputs)
        began = time.perf_counter()
        dense_few = forward(copied, few)
        slow = time.perf_counter() - began > LONGEST_PASS
        for layer in layers:
            called = bool(shapes[layer.name])
            if slow:
                used = called
            else:
                module = copied.get_submodule(layer.name)
                used = _changes(copied, module, few, dense_few)
                used = used or _changes(copied, module, inputs, dense)
            if not used:
                reason = "the outputs do not depend on it"
                if not called:
                    reason = "the forward pass (of a copy) does not call it"
                without.setdefault(reason, []).append(layer)
    left = tuple(
        layer for layer in layers if not any(layer in some for some in without.values())
    )
    found = "; ".join(
        f"{', '.join(repr(layer.name) for layer in some)}: {reason}"
        for reason, some in without.items()
    )
    if not left:
        raise ValueError(
            f"No layer to compress is left. Of layer {found}. Choose layers that the "
            "outputs depend on (choose, include, exclude)."
        )
    if without:
        warnings.warn(
            f"These layers take no part in the search and stay dense. {found}. Leave "
            "them out (exclude) to silence this.",
            stacklevel=4,
        )
    return left


def _changes(
    network: nn.Module, layer: nn.Module, inputs: Inputs, dense: Tensor
) -> bool:
    """Return whether outputs change where the weights of a layer are NaN."""
    weights = [(weight, weight.detach().clone()) for weight in layer_weights(layer)]
    try:
        for weight, _ in weights:
            weight.fill_(torch.nan)
        return not dense.equal(forward(network, inputs))
    except Exception:  # whatever the network says to NaN: it has seen it
        return True
    finally:
        for weight, before in weights:
            weight.copy_(before)


def require_parity(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    ranks: Mapping[str, Rank],
    few: Inputs,
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
    few: Inputs,
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
    inputs: Inputs,
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
