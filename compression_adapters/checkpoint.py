"""Save a compressed network, and rebuild it without any decomposition."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import nn

from compression_adapters.decompositions import DECOMPOSITIONS, Decomposition
from compression_adapters.layers import LayerSpec
from compression_adapters.network import copy_with_layers
from compression_adapters.ranks import DENSE, Rank

FORMAT_VERSION: Final = 1
RECIPE_FILE: Final = "recipe.json"
WEIGHTS_FILE: Final = "weights.safetensors"


@dataclass(frozen=True)
class LayerRecipe:
    """What was done to one layer.

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
    """What was done to a network, as it is stored in `recipe.json`.

    Args:
        layers: One entry for each layer in play, those left dense included.
        format_version: Version of the format; a newer one is refused.

    Example:
        >>> recipe = CompressionRecipe((LayerRecipe("fc", "svd", (20, 30), 3),))
        >>> CompressionRecipe.from_json(recipe.to_json()) == recipe
        True
    """

    layers: tuple[LayerRecipe, ...]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Write the recipe as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CompressionRecipe":
        """Read a recipe, refusing whatever `to_json` would not have written.

        Raises:
            ValueError: when the text is no JSON, of a newer format, or has missing,
                extra or ill-typed entries; the message says which.
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
        _require_keys(data, {"format_version", "layers"}, "the recipe")
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version must be {FORMAT_VERSION}; got {version}.")
        if not isinstance(data["layers"], list) or not data["layers"]:
            raise ValueError("The recipe's 'layers' must be a non-empty list.")
        layers = tuple(_layer_recipe(entry) for entry in data["layers"])
        names = [layer.name for layer in layers]
        if len(set(names)) < len(names):
            raise ValueError(f"The recipe names a layer twice: {', '.join(names)}.")
        return cls(layers, version)


def save_compressed(
    compressed: nn.Module,
    layers: Iterable[LayerSpec],
    ranks: Mapping[str, Rank],
    folder: str | Path,
) -> None:
    """Save a compressed network as a folder with two files, neither of them a pickle.

    `recipe.json` says which layer was cut to which rank, `weights.safetensors` holds
    the weights of the whole network. A folder that holds a network is overwritten.

    Args:
        compressed: From `truncate_network` or `CompressionProblem.compress`.
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`, those `compressed` was made with.
        folder: Where to; made if missing.

    Raises:
        ValueError: when a layer of `compressed` does not have its rank's weights.

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
    entries = []
    for layer in layers:
        rank = ranks.get(layer.name)
        if rank is None:
            raise ValueError(f"ranks has no entry for layer {layer.name!r}.")
        _require_weights(compressed, layer, rank)
        name = layer.decomposition.name
        entries.append(LayerRecipe(layer.name, name, layer.weight_shape, rank))
    recipe = CompressionRecipe(tuple(entries))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Each file appears whole or not at all.
    weights, text = folder / f".{WEIGHTS_FILE}.tmp", folder / f".{RECIPE_FILE}.tmp"
    safetensors.torch.save_model(compressed, str(weights))
    text.write_text(recipe.to_json(), encoding="utf-8")
    # safetensors writes for the owner alone; others may read it as they may the recipe.
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
    replacements = []
    for layer in recipe.layers:
        new = _empty_layer(network, layer, known)
        if new is not None:
            replacements.append((network.get_submodule(layer.name), new))
    loaded = copy_with_layers(network, replacements)
    weights = _file(folder, WEIGHTS_FILE)
    _require_tensors(loaded, weights)
    safetensors.torch.load_model(loaded, str(weights))
    return loaded


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Read a user's own weights into a network, in place, executing nothing.

    Args:
        network: Gets the weights.
        path: A `.safetensors` file, or a `.pt` or `.pth` file that holds a state dict,
            alone or under the key `state_dict`; read with `weights_only=True`.

    Raises:
        ValueError: when the file is missing, of another kind, holds anything but
            weights, or does not fit the network.

    Example:
        >>> load_weights(nn.Linear(2, 2), "weights.bin")
        Traceback (most recent call last):
        ...
        ValueError: weights.bin: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(str(path))
        elif path.suffix in (".pt", ".pth"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ValueError("expected .safetensors, .pt or .pth")
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if not isinstance(state, dict):
            raise ValueError(f"expected a state dict, found {type(state).__name__}")
        network.load_state_dict(state)
    except Exception as error:
        # torch and safetensors raise many types; all of them mean: not these weights.
        raise ValueError(
            f"{path}: cannot be read as the weights of {type(network).__name__}: "
            f"{error}"
        ) from error


def _require_keys(data: Any, keys: set[str], what: str) -> None:
    """Raise a ValueError unless `data` is a dict with exactly these keys."""
    if not isinstance(data, dict) or set(data) != keys:
        came = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{what} must have the keys {sorted(keys)}; got {came}.")


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
    came = sum(p.numel() for p in module.parameters() if p.ndim >= 2)
    if came != expected:
        raise ValueError(
            f"Layer {layer.name!r} has {came} weights; at rank {rank!r} it would have "
            f"{expected}. Save a network with the ranks it was made with."
        )


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
    shape = tuple(dense.get_parameter("weight").shape)
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


def _require_tensors(network: nn.Module, path: Path) -> None:
    """Raise a ValueError unless a weights file has the network's tensors."""
    state = network.state_dict()
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            # Of tensors that share memory one is stored; the rest are in the metadata.
            shared = file.metadata() or {}
            names = set(file.keys())
            saved = {name: file.get_tensor(name) for name in sorted(names)}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    missing = sorted(set(state) - names - set(shared))
    unknown = sorted(names - set(state))
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
