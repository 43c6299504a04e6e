"""Which of a network's outputs is compared, as one tensor with a row per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from compression_adapters.network.structured_inputs import (
    Inputs,
    NetworkInputs,
    OutputChoice,
    call_network,
    leaves,
    tensors_of,
)

DEFAULT_OUTPUTS: Final = (
    ("logits",),
    ("out",),
    ("start_logits", "end_logits"),
    ("prediction_logits",),
    ("last_hidden_state",),
    ("image_embeds", "text_embeds"),
    ("pooler_output",),
    ("sample",),
)
"""Names of outputs that are compared by default: the first one that there is.

`out` is torchvision's segmentation; the two logits of a question-answering head, and
the two embeddings of an image-text model, are compared together."""

_GRID: Final = 3
"""Boxes per side of the grid that the second stage of a detector is compared on."""


def read_output(network: nn.Module, inputs: Inputs) -> Tensor:
    """Run a network on its own copy of the inputs, and return the output to compare.

    The output is chosen by `inputs.output`:

    - a name: an entry of what the network returns (a key or an attribute), or else the
      dotted path of a module, whose output is taken;
    - an index, of a tuple or list;
    - a function of what the network returns;
    - None, the default: a tensor as it is. Of a mapping, dataclass or `ModelOutput` the
      first of `DEFAULT_OUTPUTS` that it has, or its only tensor; of a tuple its first
      entry. A detector of torchvision's form is compared before boxes are selected:
      what its head says of each anchor, or, with a second stage, what its proposal head
      says, and what its box, mask and keypoint heads say of a fixed grid of boxes. A
      selection has another number of boxes for each network, so it has no distance.

    Several tensors are compared together, flattened, if the choice gives several.
    Outputs of sequences are zero where `NetworkInputs.mask` says that a position is
    padding, in every network alike, so that padding adds nothing to a loss.

    Args:
        network: Any network.
        inputs: Shape `n x ...`.

    Returns:
        Shape `n` or `n x ...`; not yet checked.

    Raises:
        ValueError: when there is no such output, or no default; the message lists what
            there is.

    Example:
        >>> network = nn.LSTM(2, 3, batch_first=True)
        >>> read_output(network, torch.zeros(5, 4, 2)).shape
        torch.Size([5, 4, 3])
    """
    output: OutputChoice = None
    if isinstance(inputs, NetworkInputs):
        output = inputs.output
    if output is None and _is_detector(network):
        return _detector_output(network, inputs)
    if isinstance(output, str) and output in _modules(network):
        with _kept(network.get_submodule(output)) as seen:
            raw = call_network(network, inputs)
        if output not in _entries(raw):
            if not seen:
                raise ValueError(
                    f"Module {output!r} (output) was not called when the network ran; "
                    "name one that the forward pass calls."
                )
            return masked(_one(seen[-1], f"module {output!r}"), inputs)
    else:
        raw = call_network(network, inputs)
    return masked(_chosen(raw, output), inputs)


def masked(outputs: Tensor, inputs: Inputs) -> Tensor:
    """Return outputs with zeros at the positions that are padding.

    Args:
        outputs: Of sequences, shape `n x positions x ...`; others are returned as they
            are.
        inputs: What they were computed from.
    """
    mask = inputs.mask if isinstance(inputs, NetworkInputs) else None
    if mask is None or outputs.ndim < 3 or outputs.shape[:2] != mask.shape:
        return outputs
    padding = ~mask.to(outputs.device)
    return outputs.masked_fill(padding[(...,) + (None,) * (outputs.ndim - 2)], 0)


def _chosen(raw: Any, output: OutputChoice) -> Tensor:
    """Return the output that was asked for."""
    if output is None:
        return _default(raw)
    if callable(output):
        found = output(raw)
        if not isinstance(found, Tensor):
            raise ValueError(
                "The function that chooses an output (output) must return a tensor; "
                f"got {type(found).__name__}."
            )
        return found
    if isinstance(output, int):
        if not isinstance(raw, Sequence) or not -len(raw) <= output < len(raw):
            raise ValueError(
                f"output={output} is an index of a tuple; the network returns "
                f"{_listed(raw)}."
            )
        return _one(raw[output], f"output {output}")
    entries = _entries(raw)
    if output not in entries:
        raise ValueError(
            f"There is no output and no module {output!r}; the network returns "
            f"{_listed(raw)}."
        )
    return _one(entries[output], f"output {output!r}")


def _default(raw: Any) -> Tensor:
    """Return the output that is compared unless another one is asked for."""
    if isinstance(raw, Tensor):
        return raw
    entries = _entries(raw)
    for names in DEFAULT_OUTPUTS:
        if all(isinstance(entries.get(name), Tensor) for name in names):
            found = [entries[name] for name in names]
            if len(found) == 1:
                return found[0]
            if len({t.shape for t in found}) == 1:
                return torch.stack(found, dim=1)
            return _joined(found)
    tensors = [value for value in entries.values() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    if isinstance(raw, tuple | list) and not entries and len(raw):
        first = raw[0]
        if isinstance(first, Tensor) or (
            isinstance(raw, tuple) and isinstance(first, Mapping | tuple)
        ):
            return _default(first)
    raise ValueError(
        "The network must return a tensor, or something with one that is compared by "
        f"default; got {_listed(raw)}. Choose with output=: a name, an index, the path "
        "of a module, or a function that returns a tensor."
    )


def _one(found: Any, what: str) -> Tensor:
    """Return a tensor, or several as one."""
    if isinstance(found, Tensor):
        return found
    try:
        several = list(leaves(found))
    except ValueError:
        several = []
    if not several:
        raise ValueError(f"The {what} holds no tensor; got {type(found).__name__}.")
    return several[0] if len(several) == 1 else _joined(several)


def _joined(several: Sequence[Tensor]) -> Tensor:
    """Flatten tensors with a row per sample and put them side by side."""
    return torch.cat([t.reshape(len(t), -1) for t in several], dim=1)


def _entries(raw: Any) -> Mapping[Any, Any]:
    """Return named outputs; empty if they have no names."""
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, tuple) and hasattr(raw, "_fields"):
        return dict(zip(raw._fields, raw, strict=True))
    if is_dataclass(raw) and not isinstance(raw, type):
        return {one.name: getattr(raw, one.name) for one in fields(raw)}
    return {}


def _listed(raw: Any) -> str:
    """Say what a network returned."""
    entries = _entries(raw)
    if not entries and isinstance(raw, tuple | list):
        entries = dict(enumerate(raw))
    if not entries:
        return type(raw).__name__
    found = ", ".join(
        f"{name!r} {tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}"
        for name, v in entries.items()
        if v is not None
    )
    return f"{type(raw).__name__} with {found}"


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules inside a network by their paths."""
    return {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if name
    }


@contextmanager
def _kept(module: nn.Module) -> Iterator[list[Any]]:
    """Keep what a module returns while the network runs."""
    seen: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # A copy, because a module that works in place may follow.
        seen.append(output.clone() if isinstance(output, Tensor) else output)

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _is_detector(network: nn.Module) -> bool:
    """Whether a network has the form of torchvision's detectors."""
    one_stage = hasattr(network, "head") and hasattr(network, "anchor_generator")
    two_stages = hasattr(network, "rpn") and hasattr(network, "roi_heads")
    return hasattr(network, "backbone") and (one_stage or two_stages)


def _detector_output(network: Any, inputs: Inputs) -> Tensor:
    """Return what the heads of a detector say, before boxes are selected."""
    device = next(network.parameters()).device
    images = [image for batch in tensors_of(inputs) for image in batch.clone()]
    batch, _ = network.transform([image.to(device) for image in images], None)
    features = network.backbone(batch.tensors)
    features = {"0": features} if isinstance(features, Tensor) else dict(features)
    maps = list(features.values())
    if not hasattr(network, "rpn"):
        return _one(network.head(maps), "head of the detector")
    found = list(leaves(network.rpn.head(maps)))
    heads, boxes = network.roi_heads, _grid(batch.image_sizes, batch.tensors)
    for part in ("box", "mask", "keypoint"):
        pool = getattr(heads, f"{part}_roi_pool", None)
        if pool is None:
            continue
        inside = pool(features, boxes, batch.image_sizes)
        inside = getattr(heads, f"{part}_head")(inside)
        for one in leaves(getattr(heads, f"{part}_predictor")(inside)):
            # One row per box; the boxes of an image follow each other.
            found.append(one.reshape(len(images), -1))
    return _joined(found)


def _grid(sizes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
    """Return the same grid of boxes, and the whole image, for each image."""
    boxes = []
    for height, width in sizes:
        steps = torch.linspace(0, 1, _GRID + 1, device=like.device, dtype=like.dtype)
        low, high = steps[:-1], steps[1:]
        y0, x0 = (g.flatten() for g in torch.meshgrid(low, low, indexing="ij"))
        y1, x1 = (g.flatten() for g in torch.meshgrid(high, high, indexing="ij"))
        cells = torch.stack([x0 * width, y0 * height, x1 * width, y1 * height], 1)
        whole = cells.new_tensor([[0.0, 0.0, width, height]])
        boxes.append(torch.cat([cells, whole]))
    return boxes
