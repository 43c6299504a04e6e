"""Functions to search whose best value is known: GP draws and the usual test functions.

All are maximised over the unit box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from botorch.generation import gen_candidates_scipy
from botorch.test_functions import (
    Ackley,
    Branin,
    Hartmann,
    Levy,
    Michalewicz,
    Rastrigin,
    Rosenbrock,
    SixHumpCamel,
    SyntheticTestFunction,
)
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


def _largest_value(
    evaluate: Callable[[Tensor], Tensor], dim: int, seed: int, gradient: bool = True
) -> float:
    """Search a draw densely, then around its best points, by gradient or at random."""
    points = SobolEngine(dim, scramble=True, seed=seed).draw(
        _NUM_SPACE_FILLING, dtype=torch.float64
    )
    values = torch.cat([evaluate(chunk) for chunk in points.split(1024)])
    starts = points[values.topk(_NUM_POLISHED).indices]
    if not gradient:
        rng = torch.Generator().manual_seed(seed)
        for radius in (1e-2, 1e-3, 1e-4):
            moves = torch.randn(256, 1, dim, generator=rng, dtype=torch.float64)
            near = (starts + radius * moves).clamp(0.0, 1.0).flatten(0, 1)
            near = torch.cat([starts, near])
            found = torch.cat([evaluate(chunk) for chunk in near.split(1024)])
            starts = near[found.topk(_NUM_POLISHED).indices]
        return float(max(found.max(), values.max()))
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


# Test functions as they are in BoTorch, Ackley's with its optimum off the centre.
_OTHERS: dict[str, Callable[[], SyntheticTestFunction]] = {
    "ackley": lambda: Ackley(dim=2, bounds=[(-3.0, 5.0)] * 2),
    "levy": lambda: Levy(dim=2),
    "rastrigin": lambda: Rastrigin(dim=2),
    "michalewicz": lambda: Michalewicz(dim=2),
    "six_hump": SixHumpCamel,
}
# Draws from the prior that are changed.
_CHANGED = ("steps", "cliff", "chirp")
OTHER_KINDS = (*_OTHERS, *_CHANGED)
LENGTHSCALE = (0.25, 0.45)
_STEP = 0.5
_CLIFF = 1.5


def function_of_other_kind(name: str, seed: int) -> Function:
    """One of `OTHER_KINDS` in two dimensions: nothing that the prior would draw.

    Test functions are standardised over their box by their mean and deviation.
    `steps` rounds a draw to multiples of a half, `cliff` raises it by 1.5 beyond some
    value of the first coordinate, and `chirp` draws on cubed coordinates: flat at one
    side of the box, and three times as fast as elsewhere at the other.

    Args:
        name: Of the kind.
        seed: Of the draw; a test function is always the same.
    """
    if name in _OTHERS:
        return _standardised(_OTHERS[name]().to(torch.float64))
    lengthscale = torch.tensor(LENGTHSCALE, dtype=torch.float64)
    draw = sample_of_prior(lengthscale, 1.0, 0.0, 2_000_003 + seed)
    rng = torch.Generator().manual_seed(seed)
    edge = 0.3 + 0.4 * torch.rand((), generator=rng, dtype=torch.float64)
    evaluate = {
        "steps": lambda X: _STEP * (draw(X) / _STEP).floor(),
        "cliff": lambda X: draw(X) + _CLIFF * (X[..., 0] > edge),
        "chirp": lambda X: draw(X**3),
    }[name]
    return Function(2, evaluate, _largest_value(evaluate, 2, seed, gradient=False))


def _standardised(function: SyntheticTestFunction) -> Function:
    """Return a test function negated, with mean 0 and deviation 1 over its box."""
    lower, upper = function.bounds
    engine = SobolEngine(function.dim, scramble=True, seed=0)
    points = engine.draw(_NUM_SPACE_FILLING, dtype=torch.float64)
    values = function(lower + (upper - lower) * points)
    offset, scale = float(values.mean()), float(values.std())

    def evaluate(X: Tensor) -> Tensor:
        return (offset - function(lower + (upper - lower) * X)) / scale

    return Function(function.dim, evaluate, (offset - function.optimal_value) / scale)
