"""The search space in Ax's words; the one place where this side meets Ax."""

from collections.abc import Iterable

from ax.api.configs import RangeParameterConfig

from compression_adapters.ranks import RankParameter


def range_parameters(
    parameters: Iterable[RankParameter],
) -> list[RangeParameterConfig]:
    """Describe rank parameters to Ax, for `Client.configure_experiment`.

    Args:
        parameters: From `rank_parameters`.

    Returns:
        One float parameter in [0, 1] each, in the same order.

    Raises:
        ValueError: when there are none, or two share a name.

    Example:
        >>> from compression_adapters.layers import LayerSpec
        >>> from compression_adapters.ranks import rank_parameters
        >>> layers = [LayerSpec("fc", None, (30, 20), 12, 600)]
        >>> [p.name for p in range_parameters(rank_parameters(layers))]
        ['fc']
    """
    names = [parameter.name for parameter in parameters]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected one or more parameters with different names; got {names}."
        )
    return [
        RangeParameterConfig(name=name, parameter_type="float", bounds=(0.0, 1.0))
        for name in names
    ]
