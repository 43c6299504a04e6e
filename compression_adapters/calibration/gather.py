"""Gather moments of what layers see, in one pass over calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from compression_adapters.decompositions import MomentKind, Moments, parts_of
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.structured_inputs import (
    Inputs,
    call_network,
    mask_of,
    real_positions,
)

BATCH: Final = 50
"""Calibration inputs in one forward pass."""

ROWS_PER_COLUMN: Final = 2
"""Patches or tokens of a layer that are used, at most, as a multiple of their size.

More say nothing new: those of one input are alike. Measured in
docs/benchmarks/data_aware.md."""

_FEWEST_ROWS = 10_000
_TOGETHER = 4096  # rows that are multiplied at once
_BLOCK = 512  # columns; products of symmetric matrices are made in blocks


def gather_moments(
    network: nn.Module,
    wanted: Mapping[str, MomentKind],
    inputs: Inputs,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Moments]:
    """Run a network on calibration inputs, and gather moments of its layers.

    Products are made in the layers' own precision, at least single, batch by batch,
    about the mean of the first batch, which keeps what is left of a large mean exact,
    and summed in double precision on the network's device. Of a layer with more than
    `ROWS_PER_COLUMN` patches (tokens) per entry of one, a random part is used.

    Args:
        network: Runs in eval mode; its modes are restored.
        wanted: Layer name to what is gathered.
        inputs: Calibration inputs, one tensor or several. Shape `n x ...`. Positions of
            a sequence that are padding (`NetworkInputs.mask`) are left out.
        seed: Of the choice of patches.
        progress: Whether to show a progress bar; None: on a terminal, where it takes
            more than three seconds.

    Returns:
        Layer name to moments, in memory `8 p^2` bytes for a layer with patches (or
        outputs) of p entries. A layer that was not called has none.

    Raises:
        ValueError: when a layer saw something that is not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2))
        >>> moments = gather_moments(network, {"0": "inputs"}, torch.ones(4, 3))
        >>> moments["0"].second[0].tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    sums = {
        name: _Sums(name, network.get_submodule(name), kind, len(inputs), seed)
        for name, kind in wanted.items()
    }
    device = next(network.parameters()).device
    with evaluation_mode(network), ExitStack() as stack:
        for one in sums.values():
            stack.enter_context(one.watching())
        for batch in _shown(inputs.split(BATCH), progress):
            here = batch.to(device)
            mask = mask_of(here)
            for one in sums.values():
                one.mask = mask
            call_network(network, here)
    found = {name: one.moments() for name, one in sums.items()}
    return {name: moments for name, moments in found.items() if moments is not None}


def rows_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a layer multiplies with its weight, one row per position.

    Args:
        layer: A linear layer, or a 2d convolution.
        inputs: Its input.

    Returns:
        Shape `groups x rows x p`; of a convolution, patches (channel, row, column).
    """
    if not isinstance(layer, nn.Conv2d):
        return inputs.reshape(1, -1, inputs.shape[-1])
    if inputs.ndim == 3:
        inputs = inputs[None]
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )
    # n (g p) l -> g (n l) p
    grouped = patches.unflatten(1, (layer.groups, -1))
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def output_rows(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Return W x of a layer, one row per position, without its bias.

    Args:
        layer: A linear layer, or a 2d convolution.
        outputs: Its output.

    Returns:
        Shape `groups x rows x out_channels / groups`.
    """
    groups = 1
    if isinstance(layer, nn.Conv2d):
        groups = layer.groups
        outputs = outputs.movedim(-3, -1)
    rows = outputs.reshape(-1, outputs.shape[-1])
    bias = getattr(layer, "bias", None)
    if bias is not None:
        rows = rows - bias
    return rows.unflatten(1, (groups, -1)).transpose(0, 1)


def gram(rows: Tensor) -> Tensor:
    """Return `rows^T rows`, each half once, in double precision.

    Args:
        rows: Shape `groups x n x p`, in at least single precision.

    Returns:
        Shape `groups x p x p`.
    """
    size = rows.shape[-1]
    product = rows.new_zeros((len(rows), size, size), dtype=torch.float64)
    _add_upper(product, rows)
    return _mirrored(product)


def _add_upper(product: Tensor, rows: Tensor) -> None:
    """Add `rows^T rows` to the blocks on and above the diagonal."""
    for start in range(0, rows.shape[-1], _BLOCK):
        here = slice(start, start + _BLOCK)
        product[:, here, start:] += rows[..., here].transpose(1, 2) @ rows[..., start:]


def _mirrored(product: Tensor) -> Tensor:
    """Fill in the blocks below the diagonal; changes the tensor in place."""
    for start in range(0, product.shape[-1], _BLOCK):
        end = start + _BLOCK
        product[:, end:, start:end] = product[:, start:end, end:].mT
    return product


class _Sums:
    """Sums over the rows of one layer so far."""

    def __init__(
        self, name: str, layer: nn.Module, kind: MomentKind, total: int, seed: int
    ) -> None:
        self.name, self.layer, self.kind = name, layer, kind
        self.total = total  # calibration inputs
        self.rng = torch.Generator().manual_seed(seed)
        self.origins: list[Tensor] = []  # of each part, groups x p
        self.second: Tensor | None = None  # of the differences to the origins
        self.mean: Tensor | None = None
        self.count = 0
        self.mask: Tensor | None = None  # of the batch: positions that count
        self.waiting: list[Tensor] = []  # rows that are not yet in the products

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add up what the layer sees, inside the `with` block."""

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            outputs: Tensor = type(layer).forward(layer, *args, **kwargs)
            self._add(args[0] if args else kwargs["input"], outputs)
            return outputs

        layer: Any = self.layer
        # Not by a hook, because some networks call `layer.forward`. The hook is there
        # for PyTorch's fused attention, which calls no layer unless one has a hook.
        hook = layer.register_forward_hook(lambda *_: None)
        layer.forward = watched
        try:
            yield
        finally:
            del layer.forward
            hook.remove()

    def moments(self) -> Moments | None:
        """Return the means, None of a layer that was not called."""
        self._multiply()
        if self.second is None or self.mean is None:
            return None
        matrix = self.second.ndim == 3
        own = self.second.diagonal(dim1=1, dim2=2) if matrix else self.second
        # Whatever is not finite is so on the diagonal too.
        if not bool(torch.isfinite(own).all()):
            raise ValueError(
                f"Layer {self.name!r} saw or gave NaN or infinite values on the "
                "calibration inputs; look for an overflow in half precision, or leave "
                "out the inputs that cause them."
            )
        second, shift = self.second.div_(self.count), self.mean / self.count
        if matrix:
            _mirrored(second)
        if not self.origins:
            return Moments(self.kind, second, shift, self.count)
        about = torch.cat([one.flatten() for one in self.origins]).double()
        about = about.reshape(shift.shape)
        # E[x x^T] from s = x - o: E[s s^T] + o E[s]^T + E[s] o^T + o o^T.
        if not matrix:
            second = second + about * (2 * shift + about)
        else:
            half = shift + about / 2
            second.baddbmm_(about[:, :, None], half[:, None, :])
            second.baddbmm_(half[:, :, None], about[:, None, :])
        return Moments(self.kind, second, shift + about, self.count)

    def _add(self, inputs: Tensor, outputs: Tensor) -> None:
        layer = self.layer
        if self.kind == "frequencies":
            rows = inputs.flatten()
            real = real_positions(self.mask, inputs.shape)
            rows = rows if real is None else rows[real]
            counts = rows.bincount(
                minlength=layer.get_parameter("weight").shape[0]
            ).double()[None]
            self._sum(counts, counts, len(rows))
            return
        if self.kind == "squares":
            self._add_squares(layer, inputs)
            return
        found = self.kind == "outputs"
        rows = output_rows(layer, outputs) if found else rows_of(layer, inputs)
        rows = self._without_padding(rows, inputs)
        rows = self._about_origin(0, self._some(rows, len(inputs)))
        if not rows.shape[1]:
            return
        self.waiting.append(rows)
        if sum(each.shape[1] for each in self.waiting) >= _TOGETHER:
            self._multiply()

    def _multiply(self) -> None:
        """Add the products of the rows that are waiting."""
        if not self.waiting:
            return
        rows = torch.cat(self.waiting, dim=1)
        self.waiting = []
        if self.second is None or self.mean is None:
            size = rows.shape[-1]
            self.second = rows.new_zeros((len(rows), size, size), dtype=torch.float64)
            self.mean = rows.new_zeros((len(rows), size), dtype=torch.float64)
        _add_upper(self.second, rows)
        self.mean += rows.sum(1)
        self.count += rows.shape[1]

    def _add_squares(self, layer: nn.Module, inputs: Tensor) -> None:
        """Add up the inputs of a layer, of a factored one those of all its parts."""
        parts, batch = parts_of(layer), len(inputs)
        second, first, count = [], [], 0
        for i, part in enumerate(parts):
            rows = self._without_padding(rows_of(part, inputs), inputs)
            rows = self._about_origin(i, self._some(rows, batch))
            if not rows.shape[1]:
                return
            count = count or rows.shape[1]
            # Where a part has more rows than the first one, they count less.
            share = count / rows.shape[1]
            second.append(rows.square().sum(1).double() * share)
            first.append(rows.sum(1).double() * share)
            if i < len(parts) - 1:
                inputs = part(inputs)
        if len(parts) == 1:
            self._sum(second[0], first[0], count)
            return
        flat = [torch.cat([one.flatten() for one in sums]) for sums in (second, first)]
        self._sum(flat[0][None], flat[1][None], count)

    def _without_padding(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """Leave out the rows of positions that are padding."""
        real = real_positions(self.mask, inputs.shape[:-1])
        return rows if real is None else rows[:, real]

    def _about_origin(self, part: int, rows: Tensor) -> Tensor:
        """Subtract the mean of the first rows, the same one from all."""
        if not rows.shape[1]:
            return rows
        if part == len(self.origins):
            mean = rows.sum(1, dtype=torch.float64) / rows.shape[1]
            self.origins.append(mean.to(rows.dtype))
        return rows - self.origins[part][:, None]

    def _some(self, rows: Tensor, batch: int) -> Tensor:
        """Return as many rows as are of use, spread evenly over all batches.

        In at least single precision.
        """
        rows = rows.float() if rows.itemsize < 4 else rows
        most = max(ROWS_PER_COLUMN * rows.shape[-1], _FEWEST_ROWS)
        enough = most * batch / self.total
        here = rows.shape[1]
        if here <= enough:
            return rows
        chosen = torch.randperm(here, generator=self.rng)[: max(1, int(enough))]
        return rows[:, chosen.to(rows.device)]

    def _sum(self, second: Tensor, first: Tensor, count: int) -> None:
        self.second = second if self.second is None else self.second + second
        self.mean = first if self.mean is None else self.mean + first
        self.count += count


def _shown(batches: Sequence[Inputs], progress: bool | None) -> Iterable[Inputs]:
    """Iterate with a progress bar where it takes a while."""
    disable = None if progress is None else not progress
    return tqdm(batches, desc="calibrating", unit="batch", delay=3.0, disable=disable)
