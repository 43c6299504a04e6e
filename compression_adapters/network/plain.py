"""A compressed network of torch's own layers only, for tools that look for these."""

from torch import nn

from compression_adapters.decompositions import LowRankLinear
from compression_adapters.network.replacement import copy_network


def plain_layers(network: nn.Module) -> nn.Module:
    """Copy a network with two `nn.Linear` in a row for each factored linear layer.

    Tools that go by type, such as `torch.ao.quantization.quantize_dynamic`, leave a
    `LowRankLinear` as it is. Factored convolutions consist of `nn.Conv2d` already.

    Args:
        network: From a search. Not modified, not aliased. Save it before: a copy of
            this kind is not loaded by `load_compressed`.

    Returns:
        The copy, with the same outputs up to rounding.

    Example:
        >>> import torch
        >>> layer = LowRankLinear(torch.ones(3, 1), torch.ones(1, 2), None)
        >>> plain_layers(nn.Sequential(layer))
        Sequential(
          (0): Sequential(
            (0): Linear(in_features=2, out_features=1, bias=False)
            (1): Linear(in_features=1, out_features=3, bias=False)
          )
        )
    """
    return copy_network(
        network,
        [
            (module, _linears(module))
            for module in network.modules()
            if isinstance(module, LowRankLinear)
        ],
    )


def _linears(layer: LowRankLinear) -> nn.Sequential:
    """Return the two layers that a factored one consists of."""
    first = nn.Linear(layer.in_features, layer.rank, bias=False, device="meta")
    second = nn.Linear(layer.rank, layer.out_features, bias=False, device="meta")
    first.weight, second.weight = layer.right, layer.left
    second.register_parameter("bias", layer.bias)
    return nn.Sequential(first, second).train(layer.training)
