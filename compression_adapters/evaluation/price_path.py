"""The price path: the networks that one price of size gives, without a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
from torch import nn

from compression_adapters.evaluation.loss_curves import loss_curves
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.rank_space.parameters import (
    bin_edges,
    parameterization_from_ranks,
)
from compression_adapters.rank_space.scales import DENSE, Rank


@dataclass(frozen=True, eq=False)
class PricePath:
    """The networks on the price path of a problem, from the smallest to the dense one.

    For a price lambda of size, each layer takes the rank

        argmin_K  loss(K) + lambda * size(K),   dense where that is cheaper

    with loss(K) what the network loses with this layer alone at rank K (`loss_curves`),
    and size(K) its size as a share of the original's, in whatever the problem counts:
    weights of the layers in play, or measured time of the whole network. Where the
    losses of layers add, the best network for a gamma is at the price 1 / gamma. All
    prices together give as many networks as the lower convex hulls of the layers have
    corners. None of them was evaluated: nothing is certified.

    Args:
        problem: From `compression_problem`.
        networks: Ranks of every network, by layer name, from the smallest one.
        table: One row for each: `price` (the largest one that gives it; infinite for
            the first; loss units for all weights in play), `compression_ratio`, and
            `predicted_loss`, the sum over the layers in play of loss(K), in loss units.
        losses: Layer name to loss(K), for K from 0 to full rank.

    Source: Ma et al. 2019 have no such rule; the price of a weight against the relative
        error of a layer is the rule of BALF (2025), for ranks.

    Example:
        >>> import torch
        >>> from compression_adapters import compression_problem
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
        >>> pool = torch.randn(100, 30, generator=torch.Generator().manual_seed(0))
        >>> path = price_path(compression_problem(network, pool, gamma=1.0))
        >>> path.networks[0], path.networks[-1]
        ({'0': 1, '2': 1}, {'0': 'dense', '2': 'dense'})
        >>> compressed = path.network(path.at_ratio(0.5))
    """

    problem: CompressionProblem = field(repr=False)
    networks: tuple[dict[str, Rank], ...] = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.networks)

    def position_of(self, ranks: Mapping[str, Rank]) -> int | None:
        """Return the position of a network, None if it is not on the path.

        Args:
            ranks: Layer name to rank or `"dense"`.
        """
        wanted = dict(ranks)
        places = (i for i, each in enumerate(self.networks) if each == wanted)
        return next(places, None)

    def at_ratio(self, ratio: float) -> int:
        """Return the position of the largest network that is no larger than this.

        Args:
            ratio: The largest compression ratio, of the size that the problem counts.

        Raises:
            ValueError: when the smallest network is larger.
        """
        smallest = float(self.table["compression_ratio"].iloc[0])
        # Up to rounding: a ratio that was read from the table is met by its own row.
        if ratio < smallest * (1.0 - 1e-12):
            raise ValueError(
                f"The smallest network on the path has {smallest:.2%} of the "
                f"{self.problem.measure.unit}; "
                f"got a ratio of {ratio:.2%}. Ask for more, or lower min_rank."
            )
        within = self.table["compression_ratio"] <= ratio * (1.0 + 1e-12)
        return int(within.to_numpy().nonzero()[0][-1])

    def at_price(self, price: float) -> int:
        """Return the position of the network that a price of size gives.

        Args:
            price: lambda, not negative; loss units for all weights in play.
        """
        return int((self.table["price"] >= price).sum()) - 1

    def spread(self, number: int, *, smallest: float = 0.0) -> list[int]:
        """Return positions of networks whose sizes grow geometrically, without dense.

        Args:
            number: How many, at most; fewer if the path is short.
            smallest: The compression ratio that they start at, at least.
        """
        sizes = self.table["compression_ratio"]
        low = max(float(sizes.iloc[0]), smallest)
        if low >= 1.0:
            return [0]
        step = (1.0 / low) ** (1.0 / number)
        found = {self.at_ratio(low * step**i) for i in range(number)}
        return sorted(found - {len(self) - 1})

    def beside_best(self, values: Mapping[int, float]) -> list[int]:
        """Return positions that narrow down where the path is best.

        Args:
            values: Position to objective, of networks that were evaluated; the smaller
                the better.

        Returns:
            The middles, in size, between the best one and its two neighbours, without
            those that were evaluated; none when the path has no more between them.
        """
        known = sorted(values)
        best = min(known, key=lambda position: values[position])
        place = known.index(best)
        sizes = self.table["compression_ratio"]
        middles = {
            self.at_ratio(math.sqrt(sizes.iloc[one] * sizes.iloc[best]))
            for one in known[max(0, place - 1) : place + 2]
            if one != best
        }
        return sorted(middles - values.keys())

    def moved(self, ranks: Mapping[str, Rank], ratio: float) -> dict[str, Rank]:
        """Make any network as large as a ratio allows, at the least predicted loss.

        A network that is too large gives up the ranks that cost least for their size,
        one coordinate after the other, until it fits. Then it takes the ranks that gain
        most for their size, as long as one fits.

        Args:
            ranks: Layer name to rank or `"dense"`, of a network that the problem has.
            ratio: The largest compression ratio, of the size that the problem counts.

        Returns:
            Ranks that are no larger; those of the smallest network if none is.
        """
        problem = self.problem
        options = options_of(problem, self.losses)
        now = [
            next(o for o in each if all(ranks[n] == r for n, r in o.ranks.items()))
            for each in options
        ]
        size = sum(option.size for option in now)
        # Up to rounding, as in `at_ratio`.
        left = (ratio - problem.ratio_constant) * (1.0 + 1e-12)

        def best(shrink: bool) -> tuple[int, Option] | None:
            """Return the coordinate to change, and what it becomes."""
            found: tuple[float, int, Option] | None = None
            for place, each in enumerate(options):
                at = now[place]
                for o in each:
                    if shrink and o.size < at.size:
                        price = price_between(o, at)
                    elif not shrink and at.size < o.size <= left - size + at.size:
                        price = -price_between(at, o)
                        if price >= 0.0:
                            continue  # larger and no better
                    else:
                        continue
                    if found is None or price < found[0]:
                        found = price, place, o
            return None if found is None else found[1:]

        for shrink in (True, False):
            while not shrink or size > left:
                step = best(shrink)
                if step is None:
                    break
                size += step[1].size - now[step[0]].size
                now[step[0]] = step[1]
        found: dict[str, Rank] = {}
        for option in now:
            found |= option.ranks
        return found

    def point(self, position: int) -> dict[str, float]:
        """Return a network's point in the search space, for an Ax trial."""
        return parameterization_from_ranks(
            self.networks[position], self.problem.parameters
        )

    def network(self, position: int) -> nn.Module:
        """Build one of the networks: an independent copy in eval mode."""
        return self.problem.compress(self.point(position)).eval()


def price_path(
    problem: CompressionProblem, curves: Mapping[str, Sequence[float]] | None = None
) -> PricePath:
    """Order the networks of a problem by one price of size, without a search.

    Args:
        problem: From `compression_problem`; best with factors fitted to calibration
            inputs.
        curves: Layer name to what each rank costs, from rank 0 to full rank; None
            measures it, with three evaluations a layer, see `loss_curves`. The relative
            errors of the factors (`relative_errors`) need none.

    Returns:
        The path, with tied layers moving together.
    """
    losses = loss_curves(problem) if curves is None else curves
    hulls = [lower_hull(options) for options in options_of(problem, losses)]
    ranks: dict[str, Rank] = {}
    for hull in hulls:
        ranks |= hull[0].ranks
    networks, prices = [dict(ranks)], [math.inf]
    for price, _, option in by_price(hulls):
        ranks |= option.ranks
        networks.append(dict(ranks))
        prices.append(price)
    table = pd.DataFrame(
        {
            "price": prices,
            "compression_ratio": [problem.ratio(each) for each in networks],
            "predicted_loss": [
                sum(_loss(losses[name], rank) for name, rank in each.items())
                for each in networks
            ],
        }
    )
    return PricePath(problem, tuple(networks), table, losses)


def by_price(
    hulls: Sequence[Sequence[Option]],
) -> list[tuple[float, int, Option]]:
    """Return every step along some hulls, in the order of the price at which it pays.

    Args:
        hulls: One for each coordinate, see `lower_hull`.

    Returns:
        For each step the price, the place of its hull, and the option that it leads to;
        prices fall.
    """
    steps = [
        (price_between(one, other), place, other)
        for place, hull in enumerate(hulls)
        for one, other in pairwise(hull)
    ]
    return sorted(steps, key=lambda step: -step[0])


class Option(NamedTuple):
    """What one bin of a coordinate means.

    Args:
        size: What it adds to the compression ratio.
        loss: What its layers lose, each alone, in loss units.
        ranks: Layer name to rank.
    """

    size: float
    loss: float
    ranks: dict[str, Rank]


def options_of(
    problem: CompressionProblem, losses: Mapping[str, Sequence[float]]
) -> list[list[Option]]:
    """List what the bins of each coordinate mean.

    Args:
        problem: With the coordinates.
        losses: Layer name to what each rank loses, see `loss_curves`.
    """
    edges, sizes = bin_edges(problem.parameters), problem.ratio_tables()
    return [
        [
            Option(size, sum(_loss(losses[n], r) for n, r in ranks.items()), ranks)
            for size, ranks in zip(
                sizes[parameter.name],
                parameter.ranks_of_bins(edges[parameter.name]),
                strict=True,
            )
        ]
        for parameter in problem.parameters
    ]


def _loss(losses: Sequence[float], rank: Rank) -> float:
    """Return what a layer costs at a rank."""
    return 0.0 if rank == DENSE else losses[min(rank, len(losses) - 1)]


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """Return the lower convex hull of loss over size, from the smallest size."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.loss)):
        if hull and (option.size <= hull[-1].size or option.loss >= hull[-1].loss):
            continue
        while len(hull) > 1 and price_between(hull[-2], hull[-1]) <= price_between(
            hull[-2], option
        ):
            hull.pop()
        hull.append(option)
    return hull


def price_between(one: Option, other: Option) -> float:
    """Return the loss that the larger of two options saves, for a unit of size."""
    return (one.loss - other.loss) / (other.size - one.size)
