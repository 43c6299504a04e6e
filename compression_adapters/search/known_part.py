"""What a search knows of its objective before any evaluation: the size of networks."""

from __future__ import annotations

from ax.api.client import Client

from ax_pac import KnownPart
from ax_pac.ax_internals import maybe_strategy_of
from ax_pac.strategy.criteria import PAC_NODE
from ax_pac.strategy.node_certificate import node_settings
from compression_adapters.evaluation.losses import loss_floor
from compression_adapters.evaluation.problem import CompressionProblem


def known_part(problem: CompressionProblem) -> KnownPart | None:
    """Return the compression ratio as a table, beside which the loss is modelled.

        gamma * loss + ratio,  ratio = constant + sum over coordinates of a table of
                                       their bins

    Whatever the size is; the constant is what the whole network has beside the layers
    in play, if that counts.

    Where it is known what the loss is never below (`loss_floor`), gamma times that
    bounds the objective from below; of a user's own loss it is not known.

    Args:
        problem: What is searched.

    Returns:
        The known part; None for the objective `"rate"`, in which the ratio is not a sum
        over the coordinates.
    """
    if not problem.minimize:
        return None
    floor = loss_floor(problem.loss)
    return KnownPart(
        problem.ratio_tables(),
        constant=problem.ratio_constant,
        floor=None if floor is None else problem.gamma * floor,
    )


def known_part_of(client: Client) -> KnownPart | None:
    """Return the known part of the strategy that a client searches with, None for none.

    A search that was stored before there were known parts goes on without one.

    Args:
        client: With a strategy of `pac_generation_strategy`.
    """
    strategy = maybe_strategy_of(client)
    node = None if strategy is None else strategy.nodes_by_name.get(PAC_NODE)
    return None if node is None else node_settings(node).known
