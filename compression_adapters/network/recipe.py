"""The record of a compression: kept with the network and stored with its weights."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import nn

from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.scales import DENSE, Rank

FORMAT_VERSION: Final = 3
"""Version 1 has no `finishes` and no `calibrations`, version 2 no `sizes`; they are
still written of networks without any."""


_ATTRIBUTE: Final = "compression_recipe"
"""Attribute with the recipe of a compressed network; a later search adds to it."""

_FINISHES: Final = "compression_finishes"
"""Attribute with what was done to a network after its searches."""

_SIZES: Final = "compression_sizes"
"""Attribute with the sizes that the searches of a network were about."""

_CALIBRATIONS: Final = "compression_calibrations"
"""Attribute with the inputs that the factors of a network were fitted to."""


@dataclass(frozen=True)
class LayerRecipe:
    """The record of one layer.

    Args:
        name: Layer name.
        decomposition: Name of the decomposition.
        weight_shape: Shape of the dense weight.
        rank: Its rank, or `"dense"`.
    """

    name: str
    decomposition: str
    weight_shape: tuple[int, ...]
    rank: Rank


@dataclass(frozen=True)
class CompressionRecipe:
    """The record of a compression, as stored in `recipe.json`.

    Args:
        layers: One entry per layer in play, including dense ones, in the order in which
            they were compressed: a layer that a later search compressed again appears
            again.
        format_version: Version of the format; a newer one is refused. At least 2 with
            one of the next two, 3 with the last, of which loading needs nothing.
        finishes: What was done to the network after the searches, and kept, as plain
            JSON values, see `FinishRecord`.
        calibrations: For each search with data-aware factors, the `count` of the inputs
            that they were fitted to, their `share` of the pool, the `seed` that chose
            them, and a `digest` of them.
        sizes: For each search by another size than the weights of the layers in play:
            which `size`, `size_of` what, its `unit`, `before` and `after`, and for
            times the `machine` that they were measured on.

    Example:
        >>> recipe = CompressionRecipe((LayerRecipe("fc", "svd", (20, 30), 3),))
        >>> CompressionRecipe.from_json(recipe.to_json()) == recipe
        True
    """

    layers: tuple[LayerRecipe, ...]
    format_version: int = 1
    finishes: tuple[Mapping[str, Any], ...] = ()
    calibrations: tuple[Mapping[str, Any], ...] = ()
    sizes: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        least = 3 if self.sizes else 2 if self.finishes or self.calibrations else 1
        if self.format_version < least:
            object.__setattr__(self, "format_version", least)

    def to_json(self) -> str:
        """Write the recipe as JSON."""
        data = asdict(self)
        if self.format_version < 3:
            del data["sizes"]
        if self.format_version < 2:
            del data["finishes"], data["calibrations"]
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CompressionRecipe":
        """Read a recipe, refusing anything that `to_json` would not have written.

        Raises:
            ValueError: when the text is not JSON, of a newer format, or has missing,
                extra or ill-typed entries; the message names them.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The recipe is not valid JSON: {error}") from error
        # The version first: a newer format may have other keys.
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise ValueError(
                f"The recipe has format_version {version}; this version of ax-pac reads"
                f" up to {FORMAT_VERSION}. Update ax-pac."
            )
        keys = {"format_version", "layers"}
        if version in (2, FORMAT_VERSION):
            keys |= {"finishes", "calibrations"}
        if version == FORMAT_VERSION:
            keys |= {"sizes"}
        _require_keys(data, keys, "the recipe")
        if type(version) is not int or version < 1:
            raise ValueError(
                f"format_version must be 1 to {FORMAT_VERSION}; got {version}."
            )
        if not isinstance(data["layers"], list) or not data["layers"]:
            raise ValueError("The recipe's 'layers' must be a non-empty list.")
        layers = tuple(_layer_recipe(entry) for entry in data["layers"])
        return cls(
            layers,
            version,
            _finishes(data.get("finishes", [])),
            _calibrations(data.get("calibrations", [])),
            _sizes(data.get("sizes", [])),
        )


def recipe_of(network: nn.Module) -> tuple[LayerRecipe, ...]:
    """Return the record of all searches of a network so far.

    Args:
        network: Any network.

    Returns:
        Entries in the order in which they were applied; empty for a network that was
        not compressed here, or was put into another module since.
    """
    recipe: tuple[LayerRecipe, ...] = vars(network).get(_ATTRIBUTE, ())
    return recipe


def record_recipe(network: nn.Module, entries: Iterable[LayerRecipe]) -> None:
    """Store the record of its compression with a network.

    Args:
        network: The compressed network.
        entries: All entries; they replace earlier ones.
    """
    setattr(network, _ATTRIBUTE, tuple(entries))


def finishes_of(network: nn.Module) -> tuple[Mapping[str, Any], ...]:
    """Return what was done to a network after its searches.

    Args:
        network: Any network.

    Returns:
        Plain JSON values, see `FinishRecord`; empty if nothing was kept.
    """
    finishes: tuple[Mapping[str, Any], ...] = vars(network).get(_FINISHES, ())
    return finishes


def record_finishes(network: nn.Module, finishes: Iterable[Mapping[str, Any]]) -> None:
    """Store what was done to a network after its searches with it.

    Args:
        network: The compressed network.
        finishes: One entry per search after which something was kept; they replace
            earlier ones.
    """
    setattr(network, _FINISHES, tuple(finishes))


def calibrations_of(network: nn.Module) -> tuple[Mapping[str, Any], ...]:
    """Return which inputs the factors of a network's searches were fitted to.

    Args:
        network: Any network.

    Returns:
        Plain JSON values, see `CompressionRecipe`; empty for factors of the weights.
    """
    known: tuple[Mapping[str, Any], ...] = vars(network).get(_CALIBRATIONS, ())
    return known


def record_calibrations(
    network: nn.Module, entries: Iterable[Mapping[str, Any]]
) -> None:
    """Store with a network which inputs its factors were fitted to.

    Args:
        network: The compressed network.
        entries: One per search with data-aware factors; they replace earlier ones.
    """
    setattr(network, _CALIBRATIONS, tuple(entries))


def sizes_of(network: nn.Module) -> tuple[Mapping[str, Any], ...]:
    """Return what the sizes were that a network's searches were about.

    Args:
        network: Any network.

    Returns:
        Plain JSON values, see `CompressionRecipe`; empty where it was the weights.
    """
    known: tuple[Mapping[str, Any], ...] = vars(network).get(_SIZES, ())
    return known


def record_sizes(network: nn.Module, entries: Iterable[Mapping[str, Any]]) -> None:
    """Store with a network what the sizes were that its searches were about.

    Args:
        network: The compressed network.
        entries: One per search by another size than weights; they replace earlier ones.
    """
    setattr(network, _SIZES, tuple(entries))


def entries_for(
    layers: Iterable[LayerSpec], ranks: Mapping[str, Rank]
) -> tuple[LayerRecipe, ...]:
    """Describe the result of one search for its layers.

    Args:
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`.

    Returns:
        One entry per layer.

    Raises:
        ValueError: when a layer has no rank.
    """
    entries = []
    for layer in layers:
        rank = ranks.get(layer.name)
        if rank is None:
            raise ValueError(f"ranks has no entry for layer {layer.name!r}.")
        # Of a ladder the rung's own decomposition and rank, which loading needs alone.
        kind, own = layer.form_of(rank)
        entries.append(LayerRecipe(layer.name, kind, layer.weight_shape, own))
    return tuple(entries)


def _require_keys(data: Any, keys: set[str], what: str) -> None:
    """Raise a ValueError unless `data` is a dict with exactly these keys."""
    if not isinstance(data, dict) or set(data) != keys:
        came = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{what} must have the keys {sorted(keys)}; got {came}.")


def _finishes(entries: Any) -> tuple[Mapping[str, Any], ...]:
    """Check what was done after the searches."""
    if not isinstance(entries, list):
        raise ValueError("The recipe's 'finishes' must be a list.")
    for entry in entries:
        _require_keys(entry, {"num_samples", "before", "steps"}, "a finish")
        if not isinstance(entry["steps"], list):
            raise ValueError("The 'steps' of a finish must be a list.")
        for step in entry["steps"]:
            keys = {"name", "loss", "change", "accepted"}
            _require_keys(step, keys, "a step of a finish")
    return tuple(entries)


def _calibrations(entries: Any) -> tuple[Mapping[str, Any], ...]:
    """Check which inputs factors were fitted to."""
    if not isinstance(entries, list):
        raise ValueError("The recipe's 'calibrations' must be a list.")
    for entry in entries:
        _require_keys(entry, {"count", "share", "seed", "digest"}, "a calibration")
    return tuple(entries)


def _sizes(entries: Any) -> tuple[Mapping[str, Any], ...]:
    """Check what the sizes were."""
    if not isinstance(entries, list):
        raise ValueError("The recipe's 'sizes' must be a list.")
    keys = {"size", "size_of", "unit", "before", "after", "machine"}
    for entry in entries:
        _require_keys(entry, keys, "a size of the recipe")
    return tuple(entries)


def _layer_recipe(entry: Any) -> LayerRecipe:
    """Check one layer's entry."""
    keys = {"name", "decomposition", "weight_shape", "rank"}
    _require_keys(entry, keys, "a layer of the recipe")
    name, shape, rank = entry["name"], entry["weight_shape"], entry["rank"]
    if not isinstance(name, str) or not isinstance(entry["decomposition"], str):
        raise ValueError(f"A layer's name and decomposition must be text; got {entry}.")
    # `type(...) is int`: True is an int to isinstance.
    if not isinstance(shape, list) or any(type(n) is not int or n < 1 for n in shape):
        raise ValueError(f"Layer {name!r}: weight_shape must be a list of integers.")
    if rank != DENSE and (type(rank) is not int or rank < 1):
        raise ValueError(
            f"Layer {name!r}: rank must be a positive integer or 'dense'; got {rank!r}."
        )
    return LayerRecipe(name, entry["decomposition"], tuple(shape), rank)
