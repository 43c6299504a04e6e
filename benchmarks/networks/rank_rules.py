"""Ranks without a search: one number decides them all.

Each rule is a family of ranks that grows with one number, which is set so that a given
share of the weights is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar

from compression_adapters import CompressionProblem, Rank, compression_ratio
from compression_adapters.evaluation.loss_curves import relative_errors
from compression_adapters.evaluation.price_path import PricePath, price_path

Ranks = dict[str, Rank]
Rule = Callable[[float], Ranks]

# Images behind each of greedy's measurements, and the shares of a layer's weights that
# it measures besides the whole layer, as AIMET has by default.
GREEDY_IMAGES = 500
_GREEDY_SHARES = tuple(k / 10 for k in range(1, 10))


def at_ratio(problem: CompressionProblem, rule: Rule, ratio: float) -> Ranks:
    """The ranks of a rule whose compression ratio comes closest to the one given."""
    low, high = 0.0, 1.0
    best = rule(0.0)
    for _ in range(40):
        middle = 0.5 * (low + high)
        ranks = rule(middle)
        found = compression_ratio(problem.layers, ranks)
        if abs(found - ratio) < abs(compression_ratio(problem.layers, best) - ratio):
            best = ranks
        low, high = (middle, high) if found < ratio else (low, middle)
    return best


def fraction_rule(problem: CompressionProblem) -> Rule:
    """One fraction of the maximal rank for all layers."""
    return lambda share: {
        layer.name: _cut(share * layer.max_rank, layer.max_rank)
        for layer in problem.layers
    }


def energy_rule(problem: CompressionProblem) -> Rule:
    """One share of the squared singular values kept, for all layers."""
    energies = {}
    for layer in problem.layers:
        values = layer.decomposition.singular_values(problem.factors[layer.name])
        cumulative = values.double().square().cumsum(0)
        energies[layer.name] = cumulative / cumulative[-1]

    def rule(share: float) -> Ranks:
        return {
            layer.name: _cut(
                1 + int((energies[layer.name] < share).sum()), layer.max_rank
            )
            for layer in problem.layers
        }

    return rule


def evbmf_rule(problem: CompressionProblem) -> Rule:
    """The ranks of empirical variational Bayes, all scaled by one factor."""
    chosen = {}
    for layer in problem.layers:
        # A linear layer is a convolution of one pixel.
        channels_out, channels_in, height, width = (*layer.weight_shape, 1, 1)[:4]
        values = layer.decomposition.singular_values(problem.factors[layer.name])
        # What a rank adds to fitted factors need not fall.
        falling = np.sort(values.numpy())[::-1]
        rows, columns = channels_in * height, channels_out * width
        chosen[layer.name] = max(1, evbmf_rank(falling, rows, columns))

    def rule(share: float) -> Ranks:
        # From nothing to everything: the factor is 1 at a share of a half.
        factor = math.inf if share >= 1.0 else share / (1.0 - share)
        return {
            layer.name: _cut(min(factor * chosen[layer.name], 1e9), layer.max_rank)
            for layer in problem.layers
        }

    return rule


def evbmf_rank(singular_values: np.ndarray, rows: int, columns: int) -> int:
    """Rank of a noisy matrix by the analytic solution of empirical VB.

    Args:
        singular_values: All of the matrix's, descending.
        rows: Of the matrix.
        columns: Of the matrix.

    Source: Nakajima, Sugiyama, Babacan and Tomioka 2013 (Global analytic solution of
    fully-observed variational Bayesian matrix factorization), Theorem 2 and Eq. (19)
    with the noise variance estimated.
    """
    small, large = sorted((rows, columns))
    squares = np.asarray(singular_values, dtype=float)[:small] ** 2
    alpha = small / large
    tau = 2.5129 * math.sqrt(alpha)
    threshold = (1.0 + tau) * (1.0 + alpha / tau)

    def free_energy(variance: float) -> float:
        x = squares / (large * variance)
        noise, signal = x[x <= threshold], x[x > threshold]
        shifted = signal - (1.0 + alpha)
        t = 0.5 * (shifted + np.sqrt(shifted**2 - 4.0 * alpha))
        return float(
            (noise - np.log(np.maximum(noise, 1e-300))).sum()
            + (signal - t + np.log((t + 1.0) / signal)).sum()
            + alpha * np.log(t / alpha + 1.0).sum()
        )

    most = min(math.ceil(small / (1.0 + alpha)) - 1, small) - 1
    rest = squares[max(most, 0) + 1 :]
    upper = squares.sum() / (small * large)
    lower = max(rest[0] / (large * threshold), rest.mean() / large, 1e-300)
    variance = upper
    if lower < upper:
        variance = minimize_scalar(
            free_energy, bounds=(lower, upper), method="bounded"
        ).x
    return int((squares > large * variance * threshold).sum())


def greedy_rule(problem: CompressionProblem, seed: int) -> Rule:
    """Greedy selection: layers measured one by one, one threshold on the loss for all.

    Nine shares of each layer's weights are measured with all other layers whole, and
    the loss between them is interpolated; a threshold on the loss then says how far
    each layer may go. Its cost in images is that of the measurements.
    """
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    whole: Ranks = {layer.name: "dense" for layer in problem.layers}
    for layer in problem.layers:
        losses = []
        for share in _GREEDY_SHARES:
            ranks = {**whole, layer.name: _cut(share * layer.max_rank, layer.max_rank)}
            values = problem.sample_losses(ranks, seed=seed)
            losses.append(float(values.double().mean()))
        # Noise aside, the loss falls as the share grows.
        falling = np.minimum.accumulate([*losses, 0.0])
        curves[layer.name] = np.array([*_GREEDY_SHARES, 1.0]), falling
    largest = max(float(curve[0]) for _, curve in curves.values())

    def rule(share: float) -> Ranks:
        # The threshold on a logarithmic scale, six powers of ten down from the top.
        threshold = largest * 10.0 ** (-6.0 * share) if share > 0 else math.inf
        return {
            layer.name: _cut(
                _share_at(*curves[layer.name], threshold) * layer.max_rank,
                layer.max_rank,
            )
            for layer in problem.layers
        }

    return rule


def path_rule(problem: CompressionProblem) -> Rule:
    """The price path of the package: one price of size for the losses of all layers."""
    return _along(price_path(problem))


def errors_rule(problem: CompressionProblem) -> Rule:
    """One price of size for the layers' relative errors, each counted alike."""
    errors = {
        layer.name: relative_errors(layer, problem.factors[layer.name])
        for layer in problem.layers
    }
    return _along(price_path(problem, errors))


def _along(path: PricePath) -> Rule:
    return lambda share: path.networks[round(share * (len(path) - 1))]


def sensitivity_rule(problem: CompressionProblem, seed: int) -> Rule:
    """One price of size, against errors weighted by what a layer's error costs.

    Each layer is cut to a tenth of its maximal rank with all others whole. The loss of
    that, over the relative error e(K) / e(0) there, is the weight of the layer's error:
    one evaluation a layer.
    """
    whole: Ranks = {layer.name: "dense" for layer in problem.layers}
    total = sum(layer.num_weights for layer in problem.layers)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for layer in problem.layers:
        errors = np.array(relative_errors(layer, problem.factors[layer.name]))
        tenth = _tenth(layer.max_rank)
        values = problem.sample_losses({**whole, layer.name: tenth}, seed=seed)
        weight = float(values.double().mean()) / max(errors[tenth], 1e-12)
        # Ranks from 1, and the layer itself.
        kept = np.append(errors[1 : layer.max_rank + 1], 0.0)
        sizes = [
            layer.num_weights * compression_ratio([layer], {layer.name: rank}) / total
            for rank in (*range(1, layer.max_rank + 1), "dense")
        ]
        curves[layer.name] = weight * kept, np.array(sizes)

    def rule(share: float) -> Ranks:
        price = 10.0 ** (6.0 - 14.0 * share)
        ranks: Ranks = {}
        for layer in problem.layers:
            losses, sizes = curves[layer.name]
            best = 1 + int(np.argmin(losses + price * sizes))
            ranks[layer.name] = "dense" if best > layer.max_rank else best
        return ranks

    return rule


def _tenth(max_rank: int) -> int:
    """A tenth of the maximal rank, at least 1."""
    return max(1, round(max_rank / 10))


def _share_at(shares: np.ndarray, losses: np.ndarray, threshold: float) -> float:
    """Smallest share whose interpolated loss is at most the threshold."""
    if losses[0] <= threshold:
        return float(shares[0])
    return float(np.interp(-threshold, -losses, shares))


def _cut(rank: float, max_rank: int) -> Rank:
    """A rank of the search space: at least 1, and the layer itself above the last."""
    return "dense" if rank > max_rank else max(1, round(rank))
