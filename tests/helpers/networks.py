"""Small networks and data that the tests of the search share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def small_network(seed: int = 0) -> nn.Sequential:
    """20-30-5 with weights of falling importance, so that ranks matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        with torch.no_grad():
            for layer in (network[0], network[2]):
                U, S, V = torch.linalg.svd(layer.weight, full_matrices=False)
                decay = 0.5 ** torch.arange(len(S), dtype=torch.float32)
                layer.weight.copy_(3.0 * (U * decay) @ V)
    return network.eval()


def pool(n: int = 400) -> Tensor:
    """Inputs, `n x 20`."""
    return torch.randn(n, 20, generator=torch.Generator().manual_seed(1))


def labels(n: int = 400) -> Tensor:
    """The small network's own classes of the pool, `n`."""
    with torch.inference_mode():
        return small_network()(pool(n)).argmax(-1).clone()
