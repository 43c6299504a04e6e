"""Put truncated layers into a network, and count their weights."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from compression_adapters.decompositions import Factors
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.counts import (
    _rank_of,
)
from compression_adapters.network.recipe import entries_for, recipe_of, record_recipe
from compression_adapters.rank_space.scales import DENSE, Rank


def factorize_network(
    network: nn.Module, layers: Iterable[LayerSpec]
) -> dict[str, Factors]:
    """Decompose every layer once; trials slice these factors.

    Args:
        network: The reference network; not modified and not aliased.
        layers: The layers, from `find_layers`.

    Returns:
        Layer name to the factors of its decomposition. Slow: one SVD per layer.

    Raises:
        ValueError: when a layer is missing or its weights are not finite.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = nn.Sequential(nn.Linear(30, 20))
        >>> factors = factorize_network(network, find_layers(network))
        >>> factors["0"].left.shape
        torch.Size([20, 20])
    """
    factors: dict[str, Factors] = {}
    # Factors created in inference mode could not be used outside it.
    with torch.inference_mode(False), torch.no_grad():
        for layer in layers:
            module = _layer(network, layer.name)
            for name, parameter in module.named_parameters():
                if not bool(torch.isfinite(parameter).all()):
                    raise ValueError(
                        f"Layer {layer.name!r}: {name} holds NaN or infinite entries; "
                        "a decomposition needs finite weights."
                    )
            factors[layer.name] = layer.decomposition.factorize(module)
    return factors


@contextmanager
def truncated(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
) -> Iterator[nn.Module]:
    """Swap truncated layers into the network, and always restore the layers.

    For trials: the network is not copied, and the new layers share memory with the
    factors. A module that is registered at several paths is replaced at all of them by
    the same new module.

    Args:
        network: The reference network; changed inside the `with` block only.
        factors: From `factorize_network`.
        layers: The layers in play.
        ranks: Layer name to rank; `"dense"` leaves the layer unchanged.

    Yields:
        The network itself, with its layers truncated.

    Raises:
        ValueError: when a rank is missing or not legal for its layer.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = nn.Sequential(nn.Linear(30, 20))
        >>> layers = find_layers(network)
        >>> factors = factorize_network(network, layers)
        >>> with truncated(network, factors, layers, {"0": 3}):
        ...     print(network[0])
        LowRankLinear(in_features=30, out_features=20, rank=3, bias=True)
        >>> print(network[0])
        Linear(in_features=30, out_features=20, bias=True)
    """
    replacements = _replacements(network, factors, layers, ranks, final=False)
    new_of = {id(old): new for old, new in replacements}
    slots = _slots(network, new_of)
    try:
        for parent, name, child in slots:
            parent._modules[name] = new_of[id(child)]
        yield network
    finally:
        for parent, name, child in slots:
            parent._modules[name] = child


def truncate_network(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
) -> nn.Module:
    """Build an independent truncated network, to keep.

    Args:
        network: The reference network; neither modified nor aliased.
        factors: From `factorize_network`; not aliased either.
        layers: The layers in play.
        ranks: Layer name to rank; `"dense"` copies the layer.

    Returns:
        A copy whose truncated layers own contiguous memory and can be trained if the
        layers they replace can. If a decomposition has something better than the slice
        of a trial (`Decomposition.finalize`), the copy uses it.

    Raises:
        ValueError: when a rank is missing or not legal for its layer.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = nn.Sequential(nn.Linear(30, 20))
        >>> layers = find_layers(network)
        >>> factors = factorize_network(network, layers)
        >>> truncate_network(network, factors, layers, {"0": 3})
        Sequential(
          (0): LowRankLinear(in_features=30, out_features=20, rank=3, bias=True)
        )
    """
    layers = tuple(layers)
    replacements = _replacements(network, factors, layers, ranks, final=True)
    small = copy_with_layers(network, replacements)
    record_recipe(small, (*recipe_of(network), *entries_for(layers, ranks)))
    return small


def copy_with_layers(
    network: nn.Module, replacements: Iterable[tuple[nn.Module, nn.Module]]
) -> nn.Module:
    """Copy a network with some of its modules replaced.

    Args:
        network: Neither modified nor aliased.
        replacements: Pairs of a module of `network` and its replacement, which is used
            everywhere the module is registered. The new modules themselves go into the
            copy; their parameters are cloned, because they may be views.

    Returns:
        The copy.
    """
    # The memo makes deepcopy use the new module in place of the old one: replaced
    # weights are never copied.
    memo: dict[int, nn.Module | torch.Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for tensor in _computed_tensors(network):
            memo[id(tensor)] = tensor.detach().clone()
        for old, new in replacements:
            _give_own_memory(new, old)
            memo[id(old)] = new
        return copy.deepcopy(network, memo)


def put_layers(
    network: nn.Module, replacements: Iterable[tuple[nn.Module, nn.Module]]
) -> None:
    """Replace modules of a network permanently, everywhere they are registered.

    Args:
        network: Changed in place.
        replacements: As for `copy_with_layers`.
    """
    replacements = tuple(replacements)
    with torch.inference_mode(False), torch.no_grad():
        for old, new in replacements:
            _give_own_memory(new, old)
    new_of = {id(old): new for old, new in replacements}
    for parent, name, child in _slots(network, new_of):
        parent._modules[name] = new_of[id(child)]


def _replacements(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
    *,
    final: bool,
) -> list[tuple[nn.Module, nn.Module]]:
    """Pair each layer that is not dense with its truncated or final form."""
    pairs = []
    for layer in layers:
        rank = _rank_of(layer, ranks)
        if rank == DENSE:
            continue
        old = _layer(network, layer.name)
        decomposition = layer.decomposition
        build = decomposition.finalize if final else decomposition.truncate
        try:
            new = build(factors[layer.name], rank)
        except ValueError as error:
            raise ValueError(f"Layer {layer.name!r}: {error}") from error
        pairs.append((old, new.train(old.training)))
    return pairs


def _slots(
    network: nn.Module, wanted: Mapping[int, nn.Module]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """List the places of registered modules: parent, name, and the module."""
    return [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent._modules.items()
        if child is not None and id(child) in wanted
    ]


def _give_own_memory(new: nn.Module, old: nn.Module) -> None:
    """Clone a module's parameters, trainable where those of another module are."""
    trainable = any(p.requires_grad for p in old.parameters())
    for module in new.modules():
        for name, p in module.named_parameters(recurse=False):
            owned = p.detach().clone(memory_format=torch.contiguous_format)
            module.register_parameter(name, nn.Parameter(owned, trainable))


def _computed_tensors(network: nn.Module) -> Iterator[torch.Tensor]:
    """List tensors computed by masks and old-style norms, which deepcopy refuses."""
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                yield value


def _layer(network: nn.Module, name: str) -> nn.Module:
    """Return the module at a path, or raise if the network has none."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"The network ({type(network).__name__}) has no layer {name!r}."
        ) from error
