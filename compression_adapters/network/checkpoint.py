"""Save a compressed network, and rebuild it without any decomposition."""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import nn

from compression_adapters.decompositions import (
    DECOMPOSITIONS,
    FACTORED_LAYERS,
    Decomposition,
)
from compression_adapters.layers.survey import (
    LayerSpec,
    layer_weights,
    unwrap,
    weight_shape_of,
)
from compression_adapters.network.recipe import (
    CompressionRecipe,
    LayerRecipe,
    entries_for,
    recipe_of,
    record_recipe,
)
from compression_adapters.network.replacement import copy_network, replace_in_place
from compression_adapters.network.sparse import pack, unpack
from compression_adapters.rank_space.scales import DENSE, Rank

RECIPE_FILE: Final = "recipe.json"


WEIGHTS_FILE: Final = "weights.safetensors"

_EXTRA: Final = "json:"
"""In the metadata of the weights, before the name of a state that is no tensor."""


def save_compressed(
    compressed: nn.Module,
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
    folder: str | Path,
) -> None:
    """Save a compressed network as a folder with two files, neither of them a pickle.

    `recipe.json` lists the rank of each layer, `weights.safetensors` holds the weights
    of the whole network. An existing network in the folder is overwritten. If a network
    went through several searches, the recipe holds them all: a compressed network keeps
    the record of what was done to it. A weight with many zeros, as after pruning, is
    stored as its values and their positions where that is smaller, and is restored
    exactly.

    Args:
        compressed: From `truncate_network` or `CompressionProblem.compress`.
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`, those `compressed` was made with.
        folder: Where to save; created if missing.

    Raises:
        ValueError: when a layer of `compressed` does not have its rank's weights, or
            was factored by a search of which the network has no record.

    Example:
        >>> import tempfile
        >>> from compression_adapters import find_layers, factorize_network
        >>> from compression_adapters import truncate_network
        >>> network, fresh = (nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
        >>> layers, ranks = find_layers(network), {"0": 2}
        >>> factors = factorize_network(network, layers)
        >>> small = truncate_network(network, factors, layers, ranks)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_compressed(small, layers, ranks, folder)
        ...     loaded = load_compressed(folder, fresh)
        >>> bool((loaded(torch.ones(1, 8)) == small(torch.ones(1, 8))).all())
        True
    """
    compressed = unwrap(compressed)
    layers = tuple(layers)
    entries = entries_for(layers, ranks)
    for layer in layers:
        _require_weights(compressed, layer, ranks[layer.name])
    known = recipe_of(compressed)
    recipe = CompressionRecipe(
        _whole_recipe(compressed, entries),
        finishes=known.finishes,
        calibrations=known.calibrations,
        sizes=known.sizes,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Each file appears whole or not at all.
    weights, text = folder / f".{WEIGHTS_FILE}.tmp", folder / f".{RECIPE_FILE}.tmp"
    _write_weights(compressed, weights)
    text.write_text(recipe.to_json(), encoding="utf-8")
    # safetensors makes files private; others may read this one as they may the recipe.
    weights.chmod(text.stat().st_mode)
    weights.replace(folder / WEIGHTS_FILE)
    text.replace(folder / RECIPE_FILE)


def load_compressed(
    folder: str | Path,
    network: nn.Module,
    *,
    decompositions: Mapping[str, Decomposition] | None = None,
) -> nn.Module:
    """Rebuild a saved network onto a fresh one, without any decomposition.

    Args:
        folder: From `save_compressed`.
        network: A network built as the reference network was, with any weights; not
            modified.
        decompositions: Where to look up names; `DECOMPOSITIONS` if None. For networks
            saved with a decomposition of your own.

    Returns:
        A new network with the outputs of the one that was saved, in `network`'s modes.

    Raises:
        ValueError: when the format is newer, the recipe was tampered with, the folder
            is incomplete or points elsewhere, or the network is another one; the
            message names the file, the layer or the weight.
    """
    text = _file(folder, RECIPE_FILE).read_text(encoding="utf-8", errors="replace")
    recipe = CompressionRecipe.from_json(text)
    known = DECOMPOSITIONS if decompositions is None else decompositions
    loaded: nn.Module | None = None
    network = unwrap(network)
    for stage in _stages(recipe.layers):
        # The network is copied once, with the layers of the first stage in place.
        onto = network if loaded is None else loaded
        replacements = []
        for layer in stage:
            new = _empty_layer(onto, layer, known)
            if new is not None:
                replacements.append((onto.get_submodule(layer.name), new))
        if loaded is None:
            loaded = copy_network(network, replacements)
        else:
            replace_in_place(replacements)
    if loaded is None:  # cannot happen: a recipe has a layer
        raise ValueError(f"{folder}: the recipe is empty.")
    record_recipe(loaded, recipe)
    weights = _file(folder, WEIGHTS_FILE)
    state = OrderedDict(_tensors(loaded, weights))
    # Versions of modules, without which some take the state for that of an old one.
    versions = getattr(loaded.state_dict(), "_metadata", None)
    state._metadata = versions  # type: ignore[attr-defined]  # as torch sets it
    loaded.load_state_dict(state)
    return loaded


def _require_weights(compressed: nn.Module, layer: LayerSpec, rank: Rank) -> None:
    """Raise a ValueError unless a layer has the number of weights of its rank."""
    if rank == DENSE:
        expected = layer.num_weights
    else:
        expected = layer.weights_at(rank)
    try:
        module = compressed.get_submodule(layer.name)
    except AttributeError as error:
        raise ValueError(f"The network has no layer {layer.name!r}.") from error
    weights = layer_weights(module)
    came = sum(weight.numel() for weight in weights)
    if came == layer.num_weights != expected:
        # Of the original size: pruned, where zeros do not count, or dense.
        came = sum(int(weight.count_nonzero()) for weight in weights)
        fits = came <= expected
    else:
        fits = came == expected
    if not fits:
        raise ValueError(
            f"Layer {layer.name!r} has {came} weights; at rank {rank!r} it would have "
            f"{expected}. Save a network with the ranks it was made with."
        )


def _whole_recipe(
    compressed: nn.Module, entries: tuple[LayerRecipe, ...]
) -> tuple[LayerRecipe, ...]:
    """Return what all searches did, the last one's entries included."""
    recorded = recipe_of(compressed).layers
    if recorded and recorded[-len(entries) :] != entries:
        raise ValueError(
            "The network was made with other ranks than these; its last layers were "
            f"{', '.join(f'{e.name} {e.rank}' for e in recorded[-len(entries) :])}. "
            "Save it with the layers and ranks of the search that made it."
        )
    recipe = recorded or entries
    known = {entry.name for entry in recipe if entry.rank != DENSE}
    for name, module in compressed.named_modules():
        if isinstance(module, FACTORED_LAYERS) and name not in known:
            raise ValueError(
                f"Layer {name!r} ({type(module).__name__}) was factored by an earlier "
                "search, of which this network has no record; it could not be "
                "loaded. Save the network that the search returned before it becomes "
                "part of another module."
            )
    return recipe


def _stages(layers: Iterable[LayerRecipe]) -> list[list[LayerRecipe]]:
    """Split a recipe where a layer, or a part of one, appears again."""
    stages: list[list[LayerRecipe]] = []
    for layer in layers:
        parts = layer.name.split(".")
        paths = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if not stages or paths & {earlier.name for earlier in stages[-1]}:
            stages.append([])
        stages[-1].append(layer)
    return stages


def _file(folder: str | Path, name: str) -> Path:
    """Return a file of the folder, refusing links that lead out of it."""
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{folder} holds no compressed network: {name} is missing.")
    if path.resolve().parent != Path(folder).resolve():
        raise ValueError(f"{path} is a link that leads out of its folder.")
    return path


def _empty_layer(
    network: nn.Module, layer: LayerRecipe, known: Mapping[str, Decomposition]
) -> nn.Module | None:
    """Build a layer's replacement from the fresh network, or None if it stays dense."""
    if layer.decomposition not in known:
        raise ValueError(
            f"Layer {layer.name!r}: unknown decomposition {layer.decomposition!r}; "
            f"known are {', '.join(known)}. Pass others as `decompositions`."
        )
    try:
        dense = network.get_submodule(layer.name) if layer.name else None
    except AttributeError:
        dense = None
    decomposition = known[layer.decomposition]
    if dense is None or not decomposition.supports(dense):
        raise ValueError(
            f"The network ({type(network).__name__}) has no layer {layer.name!r} that "
            f"{layer.decomposition!r} supports; it is not the network that was saved."
        )
    shape = weight_shape_of(dense)
    if shape != layer.weight_shape:
        raise ValueError(
            f"Layer {layer.name!r}: the saved network's weight has shape "
            f"{layer.weight_shape}, this network's {shape}."
        )
    if layer.rank == DENSE:
        return None
    try:
        return decomposition.empty(dense, layer.rank)
    except ValueError as error:
        raise ValueError(f"Layer {layer.name!r}: {error}") from error


def _write_weights(network: nn.Module, path: Path) -> None:
    """Write the weights, sparse where that is smaller."""
    tensors, others = _split(network.state_dict())
    extra = {f"{_EXTRA}{name}": _as_json(name, value) for name, value in others.items()}
    # This writes one of several tensors that share memory, and the others' names.
    safetensors.torch.save_model(_State(tensors), str(path), extra)  # type: ignore[arg-type]
    with safetensors.safe_open(str(path), framework="pt") as file:
        shared = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    packed = pack(tensors)
    if packed.keys() != tensors.keys():
        # Not into the file itself: these tensors may still be read from it.
        smaller = path.with_name(f"{path.name}.sparse")
        safetensors.torch.save_file(packed, str(smaller), metadata=shared)
        smaller.replace(path)


@dataclass(frozen=True)
class _State:
    """What safetensors asks of a module: its tensors."""

    tensors: dict[str, torch.Tensor]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.tensors


def _split(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Separate the tensors of a state from what `get_extra_state` returned."""
    tensors = {n: v for n, v in state.items() if isinstance(v, torch.Tensor)}
    return tensors, {n: v for n, v in state.items() if n not in tensors}


def _as_json(name: str, value: Any) -> str:
    """Write a state that is no tensor as JSON, refusing what JSON would change."""
    try:
        text = json.dumps(value)
        same = bool(json.loads(text) == value)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"The state {name!r} is a {type(value).__name__} that JSON cannot hold as "
            "it is. Return numbers, text, lists and dictionaries from get_extra_state, "
            "with text as keys, or register its tensors as buffers."
        )
    return text


def _tensors(network: nn.Module, path: Path) -> dict[str, Any]:
    """Read a weights file, refusing one without exactly the network's tensors."""
    state, others = _split(network.state_dict())
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            # One of several tensors that share memory is stored, the rest are metadata.
            shared = file.metadata() or {}
            extra = {
                name.removeprefix(_EXTRA): json.loads(text)
                for name, text in shared.items()
                if name.startswith(_EXTRA)
            }
            saved = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        saved = unpack(saved, {name: tensor.shape for name, tensor in state.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name in state:
        if name not in saved and shared.get(name) in saved:
            saved[name] = saved[shared[name]]
    missing = sorted({*state, *others} - {*saved, *extra})
    unknown = sorted({*saved, *extra} - {*state, *others})
    if missing or unknown:
        raise ValueError(
            f"{path} does not fit the network; missing weights: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
        )
    for name, tensor in saved.items():
        if tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
            raise ValueError(
                f"{path}: weight {name!r} is {tuple(tensor.shape)} {tensor.dtype}, the "
                f"network needs {tuple(state[name].shape)} {state[name].dtype}."
            )
    return saved | extra
