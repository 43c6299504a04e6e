"""Find the layers of a network that a search may compress."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from compression_adapters.decompositions import DECOMPOSITIONS, Decomposition

Choose = Callable[[str, nn.Module], Decomposition | None]
"""Maps a layer name and its module to a decomposition, or None to leave it alone."""


@dataclass(frozen=True)
class LayerSpec:
    """One compressible layer.

    Args:
        name: Layer name: its dotted path, the first one if it has several.
        decomposition: How it is decomposed; the object itself, not its name.
        weight_shape: Shape of the dense weight.
        max_rank: Largest rank that adds no weights.
        num_weights: Entries of the dense weight, without bias.
        groups: Of a convolution; 1 for every other layer.
    """

    name: str
    decomposition: Decomposition
    weight_shape: tuple[int, ...]
    max_rank: int
    num_weights: int
    groups: int = 1

    def weights_at(self, rank: int) -> int:
        """Count the weights at a rank, without bias."""
        return self.decomposition.num_weights(self.weight_shape, rank, self.groups)


def choose_linear(name: str, module: nn.Module) -> Decomposition | None:
    """Choose a truncated SVD for every plain linear layer that can be made smaller.

    Exactly `nn.Linear`: subclasses are left alone, among them the output projection of
    `nn.MultiheadAttention`, whose weight is read without calling the layer.

    Args:
        name: Layer name; not looked at.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> choose_linear("head", nn.Linear(8, 4)).name
        'svd'
        >>> choose_linear("head", nn.ReLU()) is None
        True
    """
    svd = DECOMPOSITIONS["svd"]
    return svd if svd.supports(module) else None


def find_layers(
    network: nn.Module, choose: Choose = choose_linear
) -> tuple[LayerSpec, ...]:
    """List the layers that take part in a search, in the order of the network.

    A module that is registered at several paths is one layer, found at its first path;
    it is replaced at all of them. Two modules that share a weight are refused, since
    each would get factors of its own and the sharing would be lost.

    Args:
        network: The reference network; not modified.
        choose: Called with each layer name and module.

    Returns:
        One entry a layer.

    Raises:
        ValueError: when no layer is chosen, a chosen decomposition does not support
            its layer, the network itself is the chosen layer, or a chosen layer shares
            its weight with another module; the message names the layers.

    Example:
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
        >>> [(layer.name, layer.max_rank) for layer in find_layers(network)]
        [('0', 12), ('2', 6)]
        >>> len(find_layers(network, lambda name, m: choose_linear(name, m)
        ...                 if name == "0" else None))
        1
    """
    layers: list[LayerSpec] = []
    owners = _weight_owners(network)
    for name, module in network.named_modules():
        decomposition = choose(name, module)
        if decomposition is None:
            continue
        if not name:
            raise ValueError(
                f"The network is itself the layer to compress ({type(module).__name__})"
                " and cannot be replaced inside itself; wrap it: nn.Sequential(network)"
                "."
            )
        if not decomposition.supports(module):
            raise ValueError(
                f"Layer {name!r}: decomposition {decomposition.name!r} does not "
                f"support {type(module).__name__}: {module!r}. Return None for it in "
                "`choose`, or another decomposition."
            )
        layers.append(_layer_spec(name, module, decomposition, owners))
    if not layers:
        kinds = sorted({type(m).__name__ for m in network.modules()})
        raise ValueError(
            "No layer to compress was found: `choose` returned None for every module "
            f"of the network, which has modules of the types {', '.join(kinds)}."
        )
    return tuple(layers)


def _layer_spec(
    name: str,
    module: nn.Module,
    decomposition: Decomposition,
    owners: dict[int, list[tuple[str, nn.Module]]],
) -> LayerSpec:
    """Describe one layer, after refusing a weight that other modules use too."""
    weights = layer_weights(module)
    parts = set(module.modules())
    others = [
        owner
        for weight in weights
        for owner, holder in owners[id(weight)]
        if holder not in parts
    ]
    if others:
        raise ValueError(
            f"Layer {name!r} shares its weight with {others[0] or 'the network'!r}; "
            "compressing one of two tied weights would untie them. Return None for "
            "both in `choose`, or give each layer its own weight."
        )
    return LayerSpec(
        name=name,
        decomposition=decomposition,
        weight_shape=weight_shape_of(module),
        max_rank=decomposition.max_rank(module),
        num_weights=sum(weight.numel() for weight in weights),
        groups=int(getattr(module, "groups", 1)),
    )


def layer_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weight tensors of a layer: of a factored one all its parts.

    Args:
        module: A layer.

    Returns:
        Its parameters with at least two dimensions, that is without biases.
    """
    return [p for p in module.parameters() if p.ndim >= 2]


def weight_shape_of(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight; of a factored layer the number of weights.

    Args:
        module: A layer.

    Returns:
        Shape of its `weight`, or `(n,)` where the weight is made of several tensors.
    """
    weight = module._parameters.get("weight")
    if weight is not None:
        return tuple(weight.shape)
    return (sum(weight.numel() for weight in layer_weights(module)),)


def _weight_owners(network: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Map each parameter's identity to the modules that hold it, and their names."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, module))
    return owners
