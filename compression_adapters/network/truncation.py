"""Factorize the layers of a network, and put truncated ones in their place."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from compression_adapters.decompositions import Factors, Moments
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.counts import (
    _rank_of,
)
from compression_adapters.network.recipe import (
    added_to_recipe,
    entries_for,
    record_recipe,
)
from compression_adapters.network.replacement import Pair, copy_network, replaced
from compression_adapters.rank_space.scales import DENSE, Rank


def factorize_network(
    network: nn.Module,
    layers: Iterable[LayerSpec],
    moments: Mapping[str, Moments] | None = None,
) -> dict[str, Factors]:
    """Decompose every layer once; trials slice these factors.

    Args:
        network: The reference network; not modified and not aliased.
        layers: The layers, from `find_layers`.
        moments: Layer name to moments over calibration inputs; the other layers are
            decomposed by their weights alone.

    Returns:
        Layer name to the factors of its decomposition. Slow: one SVD per layer.

    Warns:
        UserWarning: when the moments of a layer are too ill-conditioned to decompose
            by, so that its weights alone are.

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
            known = None if moments is None else moments.get(layer.name)
            if known is not None:
                try:
                    fitted = layer.decomposition.factorize(module, known)
                # torch has it, and its stubs do not.
                except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                    warnings.warn(
                        f"Layer {layer.name!r} is decomposed by its weights alone: "
                        "what it sees on the calibration inputs is too "
                        f"ill-conditioned ({error}). Do activations vanish or explode, "
                        "as in a network that was not trained?",
                        stacklevel=2,
                    )
                else:
                    factors[layer.name] = fitted
                    continue
            # A decomposition of a user's own may take no moments.
            factors[layer.name] = layer.decomposition.factorize(module)
    return factors


@contextmanager
def truncated(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
) -> Iterator[nn.Module]:
    """Truncate the layers of the network in place, and always restore them.

    For trials: the network is not copied, and the layers share memory with the factors.
    Each layer stays the object that it is, see `replaced`: whatever refers to it runs
    it truncated, and its hooks are called.

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
    with replaced(_replacements(network, factors, layers, ranks, final=False)):
        yield network


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
    final = _replacements(network, factors, layers, ranks, final=True)
    small = copy_network(network, final)
    record_recipe(small, added_to_recipe(network, layers=entries_for(layers, ranks)))
    return small


def copy_of_trial(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
) -> nn.Module:
    """Copy the network of a trial: `truncate_network` without `finalize`."""
    return copy_network(
        network, _replacements(network, factors, layers, ranks, final=False)
    )


def _replacements(
    network: nn.Module,
    factors: Mapping[str, Factors],
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
    *,
    final: bool,
) -> list[Pair]:
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


def _layer(network: nn.Module, name: str) -> nn.Module:
    """Return the module at a path, or raise if the network has none."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"The network ({type(network).__name__}) has no layer {name!r}."
        ) from error
