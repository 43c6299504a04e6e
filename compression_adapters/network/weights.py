"""Read a user's own weights into a network, executing nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn


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
    where = f"{path}: cannot be read as the weights of {type(network).__name__}"
    state = _without_prefix(_read_weights(path, where), network)
    _require_fit(network, state, where)
    network.load_state_dict(state)


def _read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """Read a file of weights, executing nothing that it holds."""
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{where}: expected .safetensors, .pt or .pth")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{where}: the file is damaged, or holds more than weights, such as a "
            "whole network, which would have to be unpickled. Save the weights alone: "
            "torch.save(network.state_dict(), PATH)."
        ) from error
    except Exception as error:
        # torch and safetensors raise many types; all mean that nothing can be read.
        raise ValueError(
            f"{where}: the file is damaged or of another format "
            f"({type(error).__name__}). Save the weights again: "
            "torch.save(network.state_dict(), PATH)."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(
            f"{where}: expected a state dict, found {type(state).__name__}"
        )
    return state


_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "network.")
"""What `DataParallel`, `torch.compile` and training frameworks put before names."""


def _without_prefix(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Take off prefixes that all names have and the network's names have not."""
    names = set(network.state_dict())
    for prefix in _PREFIXES * 2:  # there may be two, in either order
        if state and all(key.startswith(prefix) for key in state):
            if not any(name.startswith(prefix) for name in names):
                state = {key.removeprefix(prefix): v for key, v in state.items()}
    return state


def _require_fit(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Refuse weights of another network, with a few examples of what differs."""
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if isinstance(own[name], Tensor)
        and isinstance(state.get(name), Tensor)
        and state[name].shape != own[name].shape
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for what, names in (
            ("missing", missing),
            ("extra", extra),
            ("of another shape", reshaped),
        )
        if names
    ]
    if found:
        raise ValueError(
            f"{where}: of its {len(own)} entries and the {len(state)} of the file, "
            f"{'; '.join(found)}. Are they the weights of this network, with as many "
            "classes?"
        )
