"""The affine-invariant ensemble sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Stretches between 1 / a and a, the value of the source.
_STRETCH = 2.0


def stretch_moves(
    log_density: Callable[[Tensor], Tensor],
    walkers: Tensor,
    num_steps: int,
    rng: torch.Generator,
) -> Tensor:
    """Move an ensemble of walkers; every batch is an ensemble of its own.

    Each half of the walkers moves along lines to walkers of the other half.

    Args:
        log_density: Maps `batch_shape x k x d` to `batch_shape x k`.
        walkers: Where they start, with positive density. Shape `batch_shape x w x d`
            with w even.
        num_steps: Moves of every walker.
        rng: Source of randomness.

    Returns:
        Where they end. Shape `batch_shape x w x d`.

    Raises:
        ValueError: When the number of walkers is odd.

    Source: Goodman and Weare 2010 (Ensemble samplers with affine invariance), the
    stretch move, in two halves as Foreman-Mackey et al. 2013 have it.
    """
    number, dim = walkers.shape[-2:]
    if number % 2:
        raise ValueError(f"expected an even number of walkers, got {number}")
    half = number // 2
    walkers = walkers.clone()
    density = log_density(walkers)
    for _ in range(num_steps):
        for first in (0, half):
            moving = slice(first, first + half)
            others = walkers[..., half:, :] if first == 0 else walkers[..., :half, :]
            shape = (*walkers.shape[:-2], half)

            def uniform(shape: tuple[int, ...] = shape) -> Tensor:
                return torch.rand(shape, generator=rng, dtype=torch.float64)

            z = ((_STRETCH - 1.0) * uniform() + 1.0).square() / _STRETCH
            which = (uniform() * half).long()
            partner = others.gather(-2, which.unsqueeze(-1).expand(*shape, dim))
            proposal = partner + z.unsqueeze(-1) * (walkers[..., moving, :] - partner)
            proposed = log_density(proposal)
            accept = uniform().log() < (
                (dim - 1) * z.log() + proposed - density[..., moving]
            )
            walkers[..., moving, :] = torch.where(
                accept.unsqueeze(-1), proposal, walkers[..., moving, :]
            )
            density[..., moving] = torch.where(accept, proposed, density[..., moving])
    return walkers
