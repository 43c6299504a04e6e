"""The encoding `path`: coordinates that run along the price path of their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from compression_adapters.evaluation.loss_curves import loss_curves
from compression_adapters.evaluation.price_path import (
    Option,
    by_price,
    lower_hull,
    options_of,
)
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import AtMax
from compression_adapters.rank_space.parameters import (
    RankParameter,
    Tie,
    identifiers,
)
from compression_adapters.rank_space.scales import DENSE, Rank, RankScale, size_edges

Array = NDArray[np.float64]


def path_parameters(
    problem: CompressionProblem, tie: Tie | None = None
) -> tuple[RankParameter, ...]:
    """Return coordinates that order the networks of their layers by one price.

    Tied layers move together, and a common share of their ranks is a poor rule: one
    layer has room where another has none. Here they move along their own price path
    (`price_path`): from one bin to the next, the layer whose loss falls most for the
    size that it gains takes its next rank. A bin is as wide as the logarithms of the
    factors by which the size of these layers grows in it and their loss falls, half
    each. So the whole price path lies in the space, however many layers share a
    coordinate.

    Only ranks on the lower convex hull of a layer's loss over its size have a bin:
    where the losses of layers add, no other is the best at any price.

    Args:
        problem: With one coordinate for each layer.
        tie: Layer name to group; None gives each layer its own coordinate.

    Returns:
        One parameter for each group, in the order in which they first appear.

    Source: not in Ma et al. 2019.
    """
    every = options_of(problem, loss_curves(problem))
    groups: dict[str, list[tuple[str, RankScale, list[Option]]]] = {}
    for parameter, options in zip(problem.parameters, every, strict=True):
        (layer,), (scale,) = parameter.layers, parameter.scales
        hull = _with_dense(lower_hull(options), options[-1], scale.at_max)
        group = layer if not callable(tie) else tie(layer)
        groups.setdefault(group, []).append((layer, scale, hull))
    names = identifiers(groups)
    return tuple(
        RankParameter(
            names[group],
            tuple(layer for layer, *_ in members),
            _scales(members),
        )
        for group, members in groups.items()
    )


def even_groups(problem: CompressionProblem, number: int) -> Callable[[str], str]:
    """Divide the layers, in their order, into groups of about the same size.

    Args:
        problem: With the layers and what their size is.
        number: Of groups; there are fewer where one layer is larger than its share.

    Returns:
        Layer name to group, for `path_parameters`.
    """
    sizes = problem.measure.layers
    dense = {layer.name: sizes[layer.name].dense for layer in problem.layers}
    whole, before = sum(dense.values()), 0.0
    places = {}
    for name, own in dense.items():
        # By the middle of the layer.
        places[name] = min(int(number * (before + own / 2) / whole), number - 1)
        before += own
    order = {place: i for i, place in enumerate(sorted(set(places.values())), 1)}
    return {name: f"group_{order[place]}" for name, place in places.items()}.__getitem__


def _with_dense(hull: list[Option], last: Option, at_max: AtMax) -> list[Option]:
    """Let a hull end at the dense layer, also where a rank loses nothing."""
    if at_max != DENSE or hull[-1] is last:
        return hull
    return [*hull, last] if last.size > hull[-1].size else [*hull[:-1], last]


def _scales(
    members: Sequence[tuple[str, RankScale, list[Option]]],
) -> tuple[RankScale, ...]:
    """Divide one coordinate among the networks along the path of its layers."""
    hulls = [hull for *_, hull in members]
    taken = [hull[0] for hull in hulls]
    states, changes = [tuple(taken)], [[0] for _ in hulls]
    for state, (_, place, option) in enumerate(by_price(hulls), 1):
        taken[place] = option
        states.append(tuple(taken))
        changes[place].append(state)
    found = _edges(states)
    return tuple(
        RankScale(
            scale.min_rank,
            scale.max_rank,
            scale.at_max,
            (*(float(found[state]) for state in own), 1.0),
            scale.round_to,
            tuple(rank for rank in map(_rank, hull) if rank != DENSE),
        )
        for (_, scale, hull), own in zip(members, changes, strict=True)
    )


def _edges(states: Sequence[Sequence[Option]]) -> Array:
    """Divide [0, 1] among the networks along the path of some layers.

    Half of it by the logarithm of their size, half by that of their loss. By the size
    alone the smallest networks, which lose the most, share next to nothing where layers
    take a time that no rank shortens: their loss would fall off a cliff.
    """
    sizes = [sum(option.size for option in state) for state in states]
    by_size = size_edges(sizes, dense=True)
    losses = np.array([sum(option.loss for option in state) for state in states])
    positive = losses[losses > 0.0]
    if len(positive) < 2 or positive.min() == positive.max():
        return np.asarray(by_size / by_size[-1])
    fallen = np.log(positive.max() / np.maximum(losses, positive.min()))
    by_loss = np.append(fallen, fallen[-1])
    return np.asarray((by_size / by_size[-1] + by_loss / by_loss[-1]) / 2.0)


def _rank(option: Option) -> Rank:
    """Return the rank of the one layer of an option."""
    (rank,) = option.ranks.values()
    return rank
