"""Store tensors with many zeros as values and positions."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

VALUES: Final = ":values"


BITS: Final = ":bits"


INDICES: Final = ":indices"
"""Suffixes of the names of the parts of a stored tensor. No tensor of a module has a
colon in its name, unless a user put it there; then it stays dense."""


_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each tensor that is smaller in a sparse format by its parts.

    The parts are the nonzero values, in order, and their positions: one bit per entry,
    or a 32-bit index per value, whichever is smaller, as `sparse_bytes` counts. Only an
    entry whose bits are all zero is left out, so a negative zero is restored as one.

    Args:
        tensors: Contiguous tensors by name.

    Returns:
        The same, packed where it saves bytes.

    Example:
        >>> packed = pack({"weight": torch.eye(100), "bias": torch.ones(3)})
        >>> {name: tuple(part.shape) for name, part in packed.items()}
        {'weight:values': (100,), 'weight:indices': (100,), 'bias': (3,)}
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = _parts(tensor) if ":" not in name else None
        if parts is None:
            packed[name] = tensor
        else:
            packed |= {name + ending: part for ending, part in parts.items()}
    return packed


def unpack(
    stored: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Restore tensors from their parts, exactly.

    Args:
        stored: From `pack`, or the contents of any file.
        shapes: Name to shape of the expected tensors. Parts of others are returned as
            they are, for the caller to refuse.

    Returns:
        Dense tensors by name.

    Raises:
        ValueError: when parts are missing or do not fit the shape; the message names
            the tensor.

    Example:
        >>> packed = pack({"weight": torch.eye(100)})
        >>> whole = unpack(packed, {"weight": torch.Size([100, 100])})
        >>> torch.equal(whole["weight"], torch.eye(100))
        True
    """
    tensors = dict(stored)
    for part in stored:
        name, _, ending = part.rpartition(":")
        if f":{ending}" == VALUES and name in shapes and part not in shapes:
            tensors[name] = _whole(name, tensors, shapes[name])
    return tensors


def _parts(tensor: Tensor) -> dict[str, Tensor] | None:
    """Return a tensor's parts, or None if the tensor itself is smaller."""
    each, size = tensor.element_size(), tensor.numel()
    if tensor.ndim < 2 or tensor.is_complex() or each not in _INTEGERS:
        return None
    flat = tensor.flatten()
    places = flat.view(_INTEGERS[each]) != 0
    kept = int(places.count_nonzero())
    bits, indices = -(-size // 8), 4 * kept
    if size >= 2**31 or kept * each + min(bits, indices) >= size * each:
        return None
    values = flat[places].contiguous()
    if indices < bits:
        return {VALUES: values, INDICES: places.nonzero().flatten().to(torch.int32)}
    packed = np.packbits(places.cpu().numpy())
    return {VALUES: values, BITS: torch.from_numpy(packed)}


def _whole(name: str, tensors: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """Remove a tensor's parts and return it dense."""
    values, size = tensors.pop(name + VALUES), shape.numel()
    bits, indices = tensors.pop(name + BITS, None), tensors.pop(name + INDICES, None)
    wrong = ValueError(
        f"Weight {name!r} is stored sparse, and its parts do not fit a tensor of shape "
        f"{tuple(shape)}: the file is damaged, or of another network."
    )
    if name in tensors or values.ndim != 1 or (bits is None) == (indices is None):
        raise wrong
    if bits is not None:
        if bits.dtype != torch.uint8 or bits.shape != (-(-size // 8),):
            raise wrong
        # Only the existing entries of the last byte count.
        places = np.unpackbits(bits.numpy())[:size].nonzero()[0]
        where = torch.from_numpy(places)
    else:
        if indices is None or indices.dtype != torch.int32 or indices.ndim != 1:
            raise wrong
        where = indices.to(torch.int64)
        rising = bool((where.diff() > 0).all())
        inside = not len(where) or (int(where[0]) >= 0 and int(where[-1]) < size)
        if not rising or not inside:
            raise wrong
    if len(where) != len(values):
        raise wrong
    whole = torch.zeros(size, dtype=values.dtype)
    whole[where] = values
    return whole.reshape(shape)
