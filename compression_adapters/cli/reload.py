"""Load a saved network again and compare it with the one that was saved."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compression_adapters.cli.sources import Source
from compression_adapters.network import checkpoint
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.structured_inputs import Inputs

_TOLERANCE = 1e-5


def reloads_equal(
    source: Source, network: nn.Module, folder: Path, inputs: Inputs
) -> bool:
    """Load a network onto a fresh one of its source and compare outputs.

    Args:
        source: Makes the network again.
        network: The network that was saved.
        folder: Where.
        inputs: To compare on. Shape `n x ...`.

    Returns:
        True.

    Raises:
        RuntimeError: when the outputs differ.
    """
    device = next(network.parameters()).device
    loaded = checkpoint.load_compressed(folder, source.build()).eval().to(device)
    inputs = inputs.to(device)
    with evaluation_mode(loaded), evaluation_mode(network):
        one, other = forward(loaded, inputs), forward(network, inputs)
        if not torch.allclose(one, other, atol=_TOLERANCE):
            raise RuntimeError(f"the network saved in {folder} gives other outputs")
    return True
