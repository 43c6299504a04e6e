"""Functions to search whose best value is known: GP draws and the usual test functions.

All are maximised over the unit box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from botorch.generation import gen_candidates_scipy
from botorch.test_functions import Branin, Hartmann, Rosenbrock, SyntheticTestFunction
from torch import Tensor
from torch.quasirandom import SobolEngine

# Frequencies of a GP draw; the kernel is met to 1 / sqrt(4096), 1.6 %.
_NUM_FREQUENCIES = 4096
# Where the best value of a draw is looked for.
_NUM_SPACE_FILLING = 2**14
_NUM_POLISHED = 64


@dataclass(frozen=True)
class Function:
    """A function on the unit box, to be maximised.

    Args:
        dim: Number of coordinates.
        evaluate: Maps `N x d` to `N`, without noise.
        maximum: Its largest value; of a GP draw, the largest found.
    """

    dim: int
    evaluate: Callable[[Tensor], Tensor]
    maximum: float


def draw_from_prior(
    lengthscale: Tensor, outputscale: float, mean: float, seed: int
) -> Function:
    """Draw a function from a GP with a Matern-5/2 kernel, by random features.

    Args:
        lengthscale: Shape `d`. Unit: the box.
        outputscale: Prior variance.
        mean: Prior mean.
        seed: Seed of the draw.

    Returns:
        The function. Its maximum is the best of 16,384 space-filling points and 64 of
        them polished by gradient.
    """
    evaluate = sample_of_prior(lengthscale, outputscale, mean, seed)
    dim = len(lengthscale)
    return Function(dim, evaluate, _largest_value(evaluate, dim, seed))


def sample_of_prior(
    lengthscale: Tensor, outputscale: float, mean: float, seed: int
) -> Callable[[Tensor], Tensor]:
    """As `draw_from_prior`, without looking for the maximum: `N x d` to `N`."""
    dim = len(lengthscale)
    rng = torch.Generator().manual_seed(seed)
    # The spectral density of a Matern-5/2 kernel is Student's, 5 degrees of freedom.
    normal = torch.randn(dim, _NUM_FREQUENCIES, generator=rng, dtype=torch.float64)
    half = torch.full((_NUM_FREQUENCIES,), 2.5, dtype=torch.float64)
    gamma = torch._standard_gamma(half, generator=rng)
    frequencies = normal * (2.5 / gamma).sqrt() / lengthscale.unsqueeze(-1)
    weights = torch.randn(2, _NUM_FREQUENCIES, generator=rng, dtype=torch.float64)
    weights *= math.sqrt(outputscale / _NUM_FREQUENCIES)

    def evaluate(X: Tensor) -> Tensor:
        phase = X @ frequencies
        return mean + phase.sin() @ weights[0] + phase.cos() @ weights[1]

    return evaluate


def _largest_value(evaluate: Callable[[Tensor], Tensor], dim: int, seed: int) -> float:
    """Search a draw densely, then by gradient from its best points."""
    points = SobolEngine(dim, scramble=True, seed=seed).draw(
        _NUM_SPACE_FILLING, dtype=torch.float64
    )
    values = torch.cat([evaluate(chunk) for chunk in points.split(1024)])
    starts = points[values.topk(_NUM_POLISHED).indices]
    _, polished = gen_candidates_scipy(
        starts.unsqueeze(-2),
        lambda X: evaluate(X.squeeze(-2)),
        lower_bounds=torch.zeros(dim, dtype=torch.float64),
        upper_bounds=torch.ones(dim, dtype=torch.float64),
        options={"maxiter": 200},
    )
    return float(torch.cat([values, polished.detach()]).max())


# Offset and factor that standardise a test function over its box (Picheny et al. 2013),
# as the published stopping times of Wilson 2024 have it; the Hartmann functions raw.
_TEST_FUNCTIONS: dict[str, tuple[SyntheticTestFunction, float, float]] = {
    "branin": (Branin(negate=False), 54.8104, 51.9496),
    "hartmann3": (Hartmann(dim=3), 0.0, 1.0),
    "hartmann6": (Hartmann(dim=6), 0.0, 1.0),
    "rosenbrock4": (
        Rosenbrock(dim=4, bounds=[(-5.0, 10.0)] * 4),
        3.827e5,
        3.755e5,
    ),
}
TEST_FUNCTIONS = tuple(_TEST_FUNCTIONS)


def known_function(name: str) -> Function:
    """One of `TEST_FUNCTIONS`, negated and standardised."""
    function, offset, scale = _TEST_FUNCTIONS[name]
    function = function.to(torch.float64)
    lower, upper = function.bounds

    def evaluate(X: Tensor) -> Tensor:
        return (offset - function(lower + (upper - lower) * X)) / scale

    maximum = (offset - function.optimal_value) / scale
    if not math.isfinite(maximum):
        raise ValueError(f"test function {name!r} has no known optimum")
    return Function(function.dim, evaluate, maximum)
