"""Inputs of a network that are more than one tensor: mappings, tuples, dataclasses."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

_PADDING: Final = ("src_key_padding_mask", "key_padding_mask", "padding_mask")
"""Names under which torch's transformers take the positions that are padding."""

LABEL_NAMES: Final = ("labels", "label")
"""Keys of a mapping that are labels, and no inputs of the network."""

OutputChoice: TypeAlias = str | int | Callable[[Any], Tensor] | None
"""Which output is compared: its name, its index, a function, or None for the default.

See `read_output`."""


@dataclass(frozen=True, eq=False)
class NetworkInputs:
    """A batch of inputs that are several tensors, or of which one output is chosen.

    It behaves as a tensor of inputs does where batches are made: it has a length, can
    be indexed by samples, split, copied and moved. Every tensor in it has the samples
    in its first dimension.

    How a network is called with it (`arguments`): a mapping gives keywords if any of
    its keys is a parameter of `forward`; a tuple gives positional arguments if
    `forward` takes as many; anything else is the one argument.

    Args:
        parts: A tensor, mapping, tuple or dataclass of tensors, nested in any way.
            Entries that are None stay None.
        output: Which output of the network is compared, see `read_output`.

    Example:
        >>> batch = NetworkInputs({"a": torch.zeros(3, 2), "b": torch.ones(3)})
        >>> len(batch), batch[:2].parts["b"]
        (3, tensor([1., 1.]))
    """

    parts: Any
    output: OutputChoice = field(default=None)

    def __len__(self) -> int:
        return len(next(self.tensors()))

    def __getitem__(self, index: Any) -> NetworkInputs:
        return self.changed(
            lambda t: t[index.to(t.device) if isinstance(index, Tensor) else index]
        )

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over the tensors, in the order of the structure."""
        return leaves(self.parts)

    def changed(self, change: Callable[[Tensor], Tensor]) -> NetworkInputs:
        """Return the same structure with every tensor changed."""
        return NetworkInputs(map_tensors(change, self.parts), self.output)

    def clone(self) -> NetworkInputs:
        """Return a copy with tensors of its own."""
        return self.changed(torch.clone)

    def to(self, device: torch.device, *, copy: bool = False) -> NetworkInputs:
        """Return it with its tensors on a device."""
        return self.changed(lambda t: t.to(device, copy=copy))

    def contiguous(self, *, memory_format: torch.memory_format) -> NetworkInputs:
        """Return it with its images, the tensors of four dimensions, in a layout."""
        return self.changed(
            lambda t: t.contiguous(memory_format=memory_format) if t.ndim == 4 else t
        )

    def split(self, size: int) -> list[NetworkInputs]:
        """Divide it into batches of a size; the last one may be smaller."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    def tensor_split(self, sections: int) -> list[NetworkInputs]:
        """Divide it into batches of nearly the same size."""
        order = torch.arange(len(self))
        return [self[part] for part in order.tensor_split(sections)]

    @property
    def mask(self) -> Tensor | None:
        """Which positions of each sequence count; None if nothing says so.

        Read from `attention_mask` (of an encoder and a decoder, from
        `decoder_attention_mask`), where nonzero is a position that counts, or from
        torch's `src_key_padding_mask`, where True is padding.

        Returns:
            Boolean. Shape `n x positions`.
        """
        found = _named(self.parts)
        if "decoder_input_ids" in found:
            mask = found.get("decoder_attention_mask")
            return mask.bool() if isinstance(mask, Tensor) else None
        mask = found.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.bool()
        for name in _PADDING:
            padding = found.get(name)
            if isinstance(padding, Tensor) and padding.ndim == 2:
                return ~padding.bool()
        return None

    def arguments(self, network: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments that a network is called with.

        Both are what `torch.export.export` and `torch.onnx.export` take.

        Args:
            network: The network; its `forward` says which.

        Raises:
            ValueError: when some keys of a mapping are parameters and others are not.
        """
        parts = self.parts
        if isinstance(parts, Mapping):
            return _of_mapping(network, parts)
        if isinstance(parts, tuple):
            try:
                inspect.signature(network.forward).bind(*parts)
            except TypeError:
                return (parts,), {}
            return parts, {}
        return (parts,), {}


Inputs: TypeAlias = Tensor | NetworkInputs
"""A batch of inputs: one tensor, or several in a structure."""


def as_inputs(parts: Any, output: OutputChoice = None) -> Inputs:
    """Return a batch of inputs, checked; a tensor as it is.

    Args:
        parts: A tensor, mapping, tuple, list or dataclass of tensors, or inputs. Labels
            of a mapping (`LABEL_NAMES`) are left out.
        output: Which output of the network is compared; None: the default, or what
            `parts` says.

    Raises:
        ValueError: when something in it is no tensor, or the tensors differ in the
            number of samples.

    Example:
        >>> as_inputs((torch.zeros(3, 2), torch.zeros(2, 2)))
        Traceback (most recent call last):
        ...
        ValueError: All tensors of the inputs must have the samples in their first...
    """
    if isinstance(parts, NetworkInputs):
        return parts if output is None else NetworkInputs(parts.parts, output)
    if isinstance(parts, Tensor):
        return parts if output is None else NetworkInputs(parts, output)
    if isinstance(parts, Mapping):
        parts = {k: value for k, value in parts.items() if k not in LABEL_NAMES}
    sizes = {name: tuple(t.shape) for name, t in _described(parts)}
    if not sizes:
        raise ValueError(f"Inputs must hold at least one tensor; got {parts!r}.")
    if len({shape[:1] for shape in sizes.values()}) > 1 or () in sizes.values():
        found = ", ".join(f"{name or 'input'} {shape}" for name, shape in sizes.items())
        raise ValueError(
            "All tensors of the inputs must have the samples in their first dimension; "
            f"got {found}."
        )
    return NetworkInputs(map_tensors(lambda t: t, parts), output)


def split_labels(
    batch: Any, output: OutputChoice = None
) -> tuple[Inputs, Tensor | None]:
    """Divide a batch into inputs and labels.

    Args:
        batch: Inputs; a tuple or list of inputs and labels, or of inputs alone, as a
            data loader gives it; or a mapping of inputs, whose `labels` or `label` are
            taken out, because a network that gets them returns a loss.
        output: See `as_inputs`.

    Returns:
        The inputs, and the labels or None.

    Raises:
        ValueError: when there are more than two parts, or labels are no tensor.

    Example:
        >>> inputs, labels = split_labels({"x": torch.zeros(2), "label": torch.ones(2)})
        >>> sorted(inputs.parts), labels
        (['x'], tensor([1., 1.]))
    """
    labels = None
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        if len(batch) not in (1, 2):
            raise ValueError(
                "A batch must be inputs or a pair of inputs and labels; got "
                f"{len(batch)} parts. Put several inputs into a tuple or mapping of "
                "their own: ((first, second), labels)."
            )
        labels = batch[1] if len(batch) == 2 else None
        batch = batch[0]
    if isinstance(batch, Mapping):
        batch = dict(batch)
        for name in LABEL_NAMES:
            found = batch.pop(name, None)
            labels = found if labels is None else labels
    if labels is not None and not isinstance(labels, Tensor):
        raise ValueError(
            f"The labels of a batch must be a tensor; got {type(labels).__name__}."
        )
    return as_inputs(batch, output), labels


def call_network(network: nn.Module, inputs: Inputs) -> Any:
    """Run a network on its own copy of the inputs, and return whatever it returns.

    Args:
        network: Any network.
        inputs: One tensor or several. Shape `n x ...`.
    """
    positional, named = as_arguments(network, inputs.clone())
    return network(*positional, **named)


def as_arguments(
    network: nn.Module, inputs: Inputs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that inputs stand for, see `NetworkInputs.arguments`."""
    return ((inputs,), {}) if isinstance(inputs, Tensor) else inputs.arguments(network)


def mask_of(inputs: Inputs) -> Tensor | None:
    """Return which positions of each sequence count, see `NetworkInputs.mask`."""
    return inputs.mask if isinstance(inputs, NetworkInputs) else None


def real_positions(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return which rows of a layer's input or output are no padding.

    Args:
        mask: Of the batch, `n x positions`, or None.
        shape: Of what the layer sees without its last dimension; its rows are numbered
            in this order.

    Returns:
        Indices of the rows that count, ascending; None: all of them, or rows that are
        no positions.
    """
    if mask is None or mask.shape != shape:
        return None
    return mask.flatten().nonzero().flatten()


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """List the tensors of a batch of inputs."""
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.tensors())


def describe_inputs(inputs: Inputs) -> str:
    """Describe a batch of inputs by its shapes and dtypes, for a message.

    Example:
        >>> describe_inputs(torch.zeros(2, 3))
        'shape (2, 3) and torch.float32'
        >>> describe_inputs(NetworkInputs({"ids": torch.zeros(2, 3)}))
        "'ids' of shape (2, 3) and torch.float32"
    """
    if isinstance(inputs, Tensor):
        return f"shape {tuple(inputs.shape)} and {inputs.dtype}"
    return "; ".join(
        f"{name!r} of shape {tuple(t.shape)} and {t.dtype}"
        if name
        else f"shape {tuple(t.shape)} and {t.dtype}"
        for name, t in _described(inputs.parts)
    )


def joined_inputs(batches: list[Inputs]) -> Inputs:
    """Join batches of inputs of one structure into one.

    Args:
        batches: At least one. Shapes `n_i x ...`.

    Raises:
        ValueError: when the shapes of a sample differ.
    """
    first = batches[0]
    try:
        if isinstance(first, Tensor):
            return torch.cat([b for b in batches if isinstance(b, Tensor)])
        columns = [tensors_of(batch) for batch in batches]
        joined = iter([torch.cat(column) for column in zip(*columns, strict=True)])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Batches of inputs cannot be joined: {error}. Pad all inputs to one size."
        ) from error
    return first.changed(lambda _: next(joined))


def repeated(inputs: Inputs, size: int) -> Inputs:
    """Repeat inputs until they fill a batch.

    Args:
        inputs: At least one. Shape `n x ...`.
        size: Of the batch.
    """
    return inputs[torch.arange(size) % len(inputs)]


def map_tensors(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """Change every tensor of a structure, and keep the structure.

    Mappings become plain dictionaries and lists become tuples, so that inputs have one
    form whatever they came from.

    Args:
        change: Called with each tensor, in order.
        tree: Mappings, tuples, lists and dataclasses of tensors.
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(change, value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [map_tensors(change, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if is_dataclass(tree) and not isinstance(tree, type):
        changed = copy.copy(tree)
        for one in fields(tree):
            value = map_tensors(change, getattr(tree, one.name))
            object.__setattr__(changed, one.name, value)
        return changed
    return tree


def leaves(tree: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of a structure, in order."""
    return (tensor for _, tensor in _described(tree))


def _described(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors of a structure with their dotted names."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    if tree is None:
        return
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        entries: Mapping[Any, Any] = dict(enumerate(tree))
    else:
        entries = _named(tree)
        if not entries and not isinstance(tree, Mapping):
            kind = type(tree).__name__
            raise ValueError(
                f"Inputs must be tensors, or mappings, tuples or dataclasses of these; "
                f"got {kind}{f' at {name!r}' if name else ''}. Leave it out of the "
                "inputs, or turn it into a tensor with one row per sample."
            )
    for key, value in entries.items():
        yield from _described(value, f"{name}.{key}" if name else str(key))


def _named(tree: Any) -> Mapping[Any, Any]:
    """Return the named entries of a mapping, named tuple or dataclass."""
    if isinstance(tree, Mapping):
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree, strict=True))
    if is_dataclass(tree) and not isinstance(tree, type):
        return {one.name: getattr(tree, one.name) for one in fields(tree)}
    return {}


def _of_mapping(
    network: nn.Module, parts: Mapping[Any, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that a mapping stands for."""
    known = inspect.signature(network.forward).parameters.values()
    names = {
        p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known)
    if not takes_any and not names & set(parts):
        return (parts,), {}
    unknown = [] if takes_any else [key for key in parts if key not in names]
    if unknown:
        raise ValueError(
            f"The inputs have {', '.join(map(repr, unknown))}, which the network's "
            f"forward does not take; it takes {', '.join(sorted(names))}. Leave it "
            "out of the inputs, or name it as the parameter."
        )
    return (), {str(key): value for key, value in parts.items()}
