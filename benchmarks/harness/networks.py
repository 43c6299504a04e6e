"""A network that is evaluated in milliseconds, for benchmarks of everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.harness.factors import WEIGHTS_ALONE
from compression_adapters import compression_problem
from compression_adapters.evaluation.problem import CompressionProblem


def small_network() -> nn.Sequential:
    """20-30-5 with weights of falling importance, so that ranks matter."""
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            weight = torch.randn(layer.weight.shape, generator=rng)
            U, S, V = torch.linalg.svd(weight, full_matrices=False)
            decay = 0.5 ** torch.arange(len(S), dtype=torch.float32)
            layer.weight.copy_(3.0 * (U * decay) @ V)
            layer.bias.zero_()
    return network.eval()


def small_inputs() -> Tensor:
    """Inputs, `400 x 20`."""
    return torch.randn(400, 20, generator=torch.Generator().manual_seed(1))


def small_problem() -> CompressionProblem:
    """Compress the network by its weights alone."""
    return compression_problem(
        small_network(), small_inputs(), gamma=0.5, **WEIGHTS_ALONE
    )
