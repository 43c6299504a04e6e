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


def recipe_of(network: nn.Module) -> CompressionRecipe:
    """Return the record of all searches of a network so far.

    Args:
        network: Any network.

    Returns:
        Its recipe; one without layers for a network that was not compressed here, or
        was put into another module since.
    """
    kept: CompressionRecipe | None = vars(network).get(_ATTRIBUTE)
    return CompressionRecipe(()) if kept is None else kept


def record_recipe(network: nn.Module, recipe: CompressionRecipe) -> None:
    """Store the record of its compression with a network.

    Args:
        network: The compressed network.
        recipe: Of all searches so far; it replaces an earlier one.
    """
    setattr(network, _ATTRIBUTE, recipe)


def added_to_recipe(
    network: nn.Module,
    *,
    layers: Iterable[LayerRecipe] = (),
    finishes: Iterable[Mapping[str, Any]] = (),
    calibrations: Iterable[Mapping[str, Any]] = (),
    sizes: Iterable[Mapping[str, Any]] = (),
) -> CompressionRecipe:
    """Return a network's recipe with further entries.

    Args:
        network: With or without a recipe.
        layers: Of one more search.
        finishes: What was kept after it.
        calibrations: What its factors were fitted to.
        sizes: What it was about.
    """
    known = recipe_of(network)
    return CompressionRecipe(
        (*known.layers, *layers),
        finishes=(*known.finishes, *finishes),
        calibrations=(*known.calibrations, *calibrations),
        sizes=(*known.sizes, *sizes),
    )


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
