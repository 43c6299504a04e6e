"""Refit the last factors of a network's cut layers, in the order of a forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from compression_adapters.calibration.gather import BATCH, gram, rows_of
from compression_adapters.decompositions import LowRankLinear
from compression_adapters.decompositions.moments import RIDGE
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.replacement import copy_network
from compression_adapters.network.structured_inputs import (
    Inputs,
    call_network,
    mask_of,
    real_positions,
)

ROWS_PER_COLUMN: Final = 10
"""Patches or tokens of a layer that are used, at most, as a multiple of the unknowns of
one output: what is fitted to n rows loses p / n of what it gains on others."""

MOST_PASSES: Final = 20_000
"""Inputs that are passed through the network, for all layers together; with many layers
fewer inputs are used, but not fewer than `_FEWEST_INPUTS`."""

MOST_BYTES: Final = 2**30
"""Memory for the outputs that layers are fitted to; for more there are more passes."""

_FEWEST_ROWS = 10_000
_FEWEST_INPUTS = 100
_PATCHES = 2**25  # numbers in the patches that are looked at together


def refit_in_sequence(
    reference: nn.Module,
    compressed: nn.Module,
    layers: Iterable[str],
    inputs: Inputs,
    *,
    seed: int = 0,
    ridge: float = RIDGE,
    progress: bool | None = None,
    is_over: Callable[[], bool] | None = None,
) -> nn.Module:
    """Refit the last factor of each cut layer, so that it makes up for those before it.

    With z what the last factor of a layer is multiplied with in the cut network, and y
    the output of the dense layer in the original one, on the same inputs,

        argmin_{H, b} E |y - H z - b|^2 + rho |H - H_0|^2,  rho = ridge tr(Cov z) / p

    with H_0 the present factor and p the entries of z. Layers are taken in the order in
    which they are first called: those before a layer are refitted when z is seen. The
    factors of a search know the original inputs of a layer only, because they must
    serve all ranks before it; this is for one network, the one that is kept.

    The outputs of the original are gathered first, `MOST_BYTES` at a time. A pass of
    the cut network ends after the layer that it is for, and layers that share an input,
    such as the projections of an attention, share a pass. Sums are in double precision,
    and need `8 p^2` bytes.

    Args:
        reference: The original network; runs in eval mode, its modes are restored.
        compressed: A network made from it; not modified.
        layers: Names of the layers in play. Left as they are: dense and pruned ones,
            those that are not called, complex ones, and those whose last part is no
            linear layer or 2d convolution that returns the output.
        inputs: Calibration inputs, one tensor or several. Shape `n x ...`. Positions of
            a sequence that are padding are left out.
        seed: Of the choice of patches.
        ridge: Share of the trace that holds the present factor, positive.
        progress: Whether to show a progress bar; None: on a terminal, where it takes
            more than three seconds.
        is_over: Asked before each layer whether time is up; None: it never is.

    Returns:
        A copy of `compressed` with other last factors and biases.

    Raises:
        TimeoutError: when `is_over` says so.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> dense = nn.Sequential(nn.Linear(4, 4))
        >>> cut = LowRankLinear(torch.zeros(4, 2), torch.eye(4)[:2], torch.zeros(4))
        >>> inputs = torch.eye(4)[:2].repeat(50, 1)
        >>> new = refit_in_sequence(dense, nn.Sequential(cut), ["0"], inputs)
        >>> bool(torch.allclose(new(inputs), dense(inputs), atol=1e-2))
        True
    """
    refitted = copy_network(compressed)
    lasts = [
        last
        for last in (_last_factor(name, reference, refitted) for name in layers)
        if last is not None
    ]
    with evaluation_mode(reference), evaluation_mode(refitted):
        groups = _in_order(reference, refitted, lasts, inputs[:2])
        if not groups:
            return refitted
        few = max(_FEWEST_INPUTS, MOST_PASSES // len(groups))
        batches = _Batches(inputs[:few].split(BATCH), _device_of(refitted), seed)
        disable = None if progress is None else not progress
        bar = tqdm(
            total=len(groups),
            desc="refitting",
            unit="layer",
            delay=3.0,
            disable=disable,
        )
        with bar:
            for together in _within_memory(groups):
                wanted = [last for group in together for last in group]
                outputs = batches.outputs(reference, wanted)
                for group in together:
                    if is_over is not None and is_over():
                        raise TimeoutError(
                            "there was no time left to refit all layers (minutes)"
                        )
                    for last, sums in batches.sums(refitted, group, outputs).items():
                        _fit(last, sums, ridge)
                    bar.update()
    return refitted


@dataclass(frozen=True, eq=False)
class _LastFactor:
    """The last factor of a cut layer.

    Args:
        name: Of the layer.
        dense: The layer of the original network.
        small: The cut layer.
        part: The part of it that holds the last factor; of a linear layer, itself.
        calls: How often the layer is called in a forward pass.
    """

    name: str
    dense: nn.Module
    small: nn.Module
    part: nn.Module
    calls: int = 0

    @property
    def weight(self) -> Tensor:
        """Shape `out x p`, of a convolution `out x in / groups x height x width`."""
        return self.part.left if isinstance(self.part, LowRankLinear) else self._own

    @property
    def _own(self) -> Tensor:
        return self.part.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """Shape `out`, or None."""
        bias = getattr(self.part, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def groups(self) -> int:
        """Groups of the last factor."""
        return self.part.groups if isinstance(self.part, nn.Conv2d) else 1

    @property
    def matrix(self) -> Tensor:
        """The weight in double precision. Shape `groups x out / groups x p`."""
        flat = self.weight.detach().double().flatten(1)
        return flat.unflatten(0, (self.groups, -1))

    @property
    def most_rows(self) -> int:
        """Patches or tokens that are used, at most."""
        return max(_FEWEST_ROWS, ROWS_PER_COLUMN * self.weight[0].numel())

    @property
    def bytes(self) -> int:
        """Memory of the outputs that it is fitted to, at most."""
        return self.most_rows * len(self.weight) * max(4, self.weight.itemsize)

    def inputs(self, inputs: Tensor) -> Tensor:
        """Return what the last factor is multiplied with, for inputs of the part."""
        if isinstance(self.part, LowRankLinear):
            return F.linear(inputs, self.part.right)
        return inputs

    def output_rows(self, outputs: Tensor) -> Tensor:
        """Return an output by rows. Shape `groups x rows x out / groups`."""
        if isinstance(self.part, nn.Conv2d):
            outputs = outputs.movedim(-3, -1)
        rows = outputs.reshape(-1, outputs.shape[-1])
        return rows.unflatten(1, (self.groups, -1)).transpose(0, 1)

    def input_rows(self, inputs: Tensor, chosen: Tensor | None) -> Tensor:
        """Return some of the inputs by rows, in order. Shape `groups x rows x p`.

        Args:
            inputs: From `inputs`.
            chosen: Indices of the rows, ascending; None: all.
        """
        if chosen is None:
            return rows_of(self.part, inputs)
        if not isinstance(self.part, nn.Conv2d):
            return rows_of(self.part, inputs)[:, chosen]
        if inputs.ndim == 3:
            inputs = inputs[None]
        # Patches are many times as large as the input.
        size = inputs[0].numel() * self.part.kernel_size[0] * self.part.kernel_size[1]
        found, before = [], 0
        for piece in inputs.split(max(1, _PATCHES // size)):
            rows = rows_of(self.part, piece)
            here = (chosen >= before) & (chosen < before + rows.shape[1])
            found.append(rows[:, chosen[here] - before])
            before += rows.shape[1]
        return torch.cat(found, 1)


@dataclass(eq=False)
class _Sums:
    """Sums over rows z and y: z z^T, z y^T, z, y, and their number."""

    second: Tensor
    cross: Tensor
    first: Tensor
    target: Tensor
    count: int


_Outputs = Mapping[str, Sequence[tuple[int, Tensor]]]
"""Layer name to the rows of each call: how many there were, and those that are used."""


@dataclass(frozen=True, eq=False)
class _Batches:
    """Calibration inputs, passed through both networks with the same choice of rows."""

    batches: Sequence[Inputs]
    device: torch.device
    seed: int

    def outputs(self, reference: nn.Module, lasts: Sequence[_LastFactor]) -> _Outputs:
        """Gather outputs of layers of the original network."""
        found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        rngs = self._rngs(lasts)
        mask: Tensor | None = None

        def see(last: _LastFactor, _: Tensor, outputs: Tensor) -> None:
            rows = last.output_rows(outputs)
            real = real_positions(mask, outputs.shape[:-1])
            chosen = self._chosen(last, rows.shape[1], rngs[last.name], real)
            some = rows if chosen is None else rows[:, chosen]
            found[last.name].append((rows.shape[1], _single(some).clone()))

        for batch in self.batches:
            mask = mask_of(batch.to(self.device))
            _pass(reference, batch.to(self.device), lasts, "dense", see)
        return found

    def sums(
        self, refitted: nn.Module, lasts: Sequence[_LastFactor], outputs: _Outputs
    ) -> dict[_LastFactor, _Sums]:
        """Gather what a fit needs; without layers that were called otherwise."""
        left = {last.name: iter(outputs.get(last.name, ())) for last in lasts}
        found: dict[str, _Sums] = {}
        rngs, other = self._rngs(lasts), set[str]()
        mask: Tensor | None = None

        def see(last: _LastFactor, inputs: Tensor, own: Tensor) -> None:
            count, rows = next(left[last.name], (0, own))
            if count != last.output_rows(own).shape[1]:
                other.add(last.name)
            if last.name in other:
                return
            real = real_positions(mask, own.shape[:-1])
            chosen = self._chosen(last, count, rngs[last.name], real)
            z = _single(last.input_rows(last.inputs(inputs), chosen))
            cross = (z.transpose(1, 2) @ rows).double()
            sums = (gram(z), cross, z.sum(1).double(), rows.sum(1).double())
            if last.name not in found:
                found[last.name] = _Sums(*sums, z.shape[1])
                return
            known = found[last.name]
            for total, new in zip(
                (known.second, known.cross, known.first, known.target),
                sums,
                strict=True,
            ):
                total += new
            known.count += z.shape[1]

        for batch in self.batches:
            mask = mask_of(batch.to(self.device))
            _pass(refitted, batch.to(self.device), lasts, "part", see)
        other |= {n for n, rest in left.items() if next(rest, None) is not None}
        return {
            last: found[last.name]
            for last in lasts
            if last.name in found and last.name not in other
        }

    def _rngs(self, lasts: Sequence[_LastFactor]) -> dict[str, torch.Generator]:
        """Return one stream of choices for each layer, the same in every pass."""
        return {last.name: torch.Generator().manual_seed(self.seed) for last in lasts}

    def _chosen(
        self,
        last: _LastFactor,
        rows: int,
        rng: torch.Generator,
        real: Tensor | None,
    ) -> Tensor | None:
        """Choose as many rows as are of use, spread evenly over all batches.

        Of those that are no padding, if `real` lists them.
        """
        enough = max(1, last.most_rows // len(self.batches))
        if real is not None:
            order = torch.randperm(len(real), generator=rng)[:enough]
            return real[order.sort().values.to(real.device)]
        if rows <= enough:
            return None
        order = torch.randperm(rows, generator=rng)[:enough]
        return order.sort().values.to(self.device)


class _Seen(Exception):
    """All that a pass is for has been seen."""


_See = Callable[[_LastFactor, Tensor, Tensor], None]


def _pass(
    network: nn.Module,
    batch: Inputs,
    lasts: Sequence[_LastFactor],
    where: str,
    see: _See,
) -> None:
    """Run a network until all layers have been called as often as they will be.

    Args:
        network: The network.
        batch: Inputs, on its device.
        lasts: The layers.
        where: `"dense"` or `"part"`: the module that is watched.
        see: Called with the layer, and input and output of each call.
    """
    left = {last.name: last.calls for last in lasts}

    def seen(last: _LastFactor, inputs: Tensor, outputs: Tensor) -> None:
        if left[last.name] > 0:
            see(last, inputs, outputs)
            left[last.name] -= 1
        if not any(left.values()):
            raise _Seen

    with _watched([(last, getattr(last, where)) for last in lasts], seen):
        try:
            call_network(network, batch)
        except _Seen:
            return


@contextmanager
def _watched(
    modules: Iterable[tuple[_LastFactor, nn.Module]], see: _See
) -> Iterator[None]:
    """Call a function after each call of modules, before any hooks of the user."""

    def hook(last: _LastFactor) -> Callable[..., None]:
        def seen(
            module: nn.Module, args: tuple[Any, ...], kwargs: Any, outputs: Tensor
        ) -> None:
            see(last, args[0] if args else kwargs["input"], outputs)

        return seen

    handles = [
        module.register_forward_hook(hook(last), with_kwargs=True, prepend=True)
        for last, module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_factor(
    name: str, reference: nn.Module, refitted: nn.Module
) -> _LastFactor | None:
    """Find the last factor of a layer, None of one that is dense or pruned."""
    dense, small = reference.get_submodule(name), refitted.get_submodule(name)
    if type(small) is type(dense) or any(p.is_complex() for p in small.parameters()):
        return None
    parts = [small, *small.children()]
    last = small if isinstance(small, LowRankLinear) else parts[-1]
    known = isinstance(last, LowRankLinear) or type(last) in (nn.Linear, nn.Conv2d)
    return _LastFactor(name, dense, small, last) if known else None


def _in_order(
    reference: nn.Module,
    refitted: nn.Module,
    lasts: Sequence[_LastFactor],
    few: Inputs,
) -> list[list[_LastFactor]]:
    """Group layers by their input, in the order of their first call.

    Layers that are not called, or not equally often in both networks, or that do
    something with the output of their last part, are left out.
    """
    few = few.to(_device_of(refitted))
    order: list[_LastFactor] = []
    calls: dict[tuple[str, str], int] = defaultdict(int)
    # Kept, so that no other takes their place; and how often they were changed.
    inputs_of: dict[str, tuple[Tensor, int]] = {}
    returned: dict[str, Tensor] = {}
    otherwise: set[str] = set()

    def see_dense(last: _LastFactor, inputs: Tensor, outputs: Tensor) -> None:
        calls[last.name, "dense"] += 1
        if last.name not in inputs_of:
            order.append(last)
            inputs_of[last.name] = inputs, inputs._version

    def see_part(last: _LastFactor, inputs: Tensor, outputs: Tensor) -> None:
        calls[last.name, "part"] += 1
        returned[last.name] = outputs

    def see_whole(last: _LastFactor, inputs: Tensor, outputs: Tensor) -> None:
        calls[last.name, "small"] += 1
        if returned.get(last.name) is not outputs:
            otherwise.add(last.name)

    with _watched([(last, last.dense) for last in lasts], see_dense):
        call_network(reference, few)
    with (
        # The hook that is registered last is called first, where both are one module.
        _watched([(last, last.small) for last in lasts], see_whole),
        _watched([(last, last.part) for last in lasts], see_part),
    ):
        call_network(refitted, few)
    groups: list[list[_LastFactor]] = []
    for last in order:
        name = last.name
        times = {calls[name, where] for where in ("dense", "part", "small")}
        if len(times) > 1 or name in otherwise:
            continue
        known = _LastFactor(name, last.dense, last.small, last.part, times.pop())
        if groups and _alike(groups[-1][0], known, inputs_of):
            groups[-1].append(known)
        else:
            groups.append([known])
    return groups


def _alike(
    one: _LastFactor, two: _LastFactor, inputs_of: Mapping[str, tuple[Tensor, int]]
) -> bool:
    """Return whether two layers see the same, whatever either of them makes of it."""
    first, second = inputs_of[one.name], inputs_of[two.name]
    same = first[0] is second[0] and first[1] == second[1]
    # A layer that is called again may see what the other one has made.
    return same and one.calls == two.calls == 1


def _within_memory(
    groups: Sequence[Sequence[_LastFactor]],
) -> Iterator[list[Sequence[_LastFactor]]]:
    """Divide groups into runs whose outputs fit into memory together."""
    together: list[Sequence[_LastFactor]] = []
    used = 0
    for group in groups:
        size = sum(last.bytes * last.calls for last in group)
        if together and used + size > MOST_BYTES:
            yield together
            together, used = [], 0
        together.append(group)
        used += size
    if together:
        yield together


def _fit(last: _LastFactor, sums: _Sums, ridge: float) -> None:
    """Solve for the last factor and the bias, and put them in place.

    What comes out as no finite number is left as it was.
    """
    before, count = last.matrix, sums.count
    second, cross = sums.second / count, sums.cross / count
    mean, target = sums.first / count, sums.target / count
    if last.bias is not None:
        second = second - mean[:, :, None] * mean[:, None, :]
        cross = cross - mean[:, :, None] * target[:, None, :]
    size = second.shape[-1]
    level = second.diagonal(dim1=1, dim2=2).mean(1) * ridge
    level = torch.where(level > 0, level, 1.0)
    identity = torch.eye(size, dtype=second.dtype, device=second.device)
    root, failed = torch.linalg.cholesky_ex(second + level[:, None, None] * identity)
    if bool(failed.any()):
        return
    # From the present factor: what the rows say nothing about stays.
    change = torch.cholesky_solve(cross - second @ before.mT, root).mT
    matrix = before + change
    weight = matrix.flatten(0, 1).reshape(last.weight.shape).to(last.weight.dtype)
    bias = (target - (matrix @ mean[:, :, None]).squeeze(2)).flatten()
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        return
    last.weight.copy_(weight)
    if last.bias is not None:
        last.bias.copy_(bias.to(last.bias.dtype))


def _single(rows: Tensor) -> Tensor:
    """Return rows in at least single precision."""
    return rows.float() if rows.itemsize < 4 else rows


def _device_of(network: nn.Module) -> torch.device:
    """Return where a network is."""
    return next(network.parameters()).device
