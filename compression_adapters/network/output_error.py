"""Measure what layers' outputs lose, each on the inputs of the original network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from compression_adapters.network.modes import evaluation_mode, in_float
from compression_adapters.network.structured_inputs import (
    Inputs,
    call_network,
    mask_of,
    real_positions,
)

_BATCH: Final = 50


def output_errors(
    reference: nn.Module, compressed: nn.Module, layers: Iterable[str], inputs: Inputs
) -> dict[str, float]:
    """Measure each layer's error on the inputs that it has in the original network.

        E |y - y_K|^2 / E |y - E y|^2

    with y the output of the dense layer and y_K that of the cut one on the same input.
    A layer without a bias, which cannot make up for a mean, is compared with E |y|^2.
    This is what factors predict by their singular values; errors of the layers before
    are not in it, so what a refit in sequence makes up for is not either.

    Args:
        reference: The original network; runs in eval mode, its modes are restored.
        compressed: A network made from it.
        layers: Names of layers.
        inputs: Other inputs than those that factors were fitted to. Shape `n x ...`.

    Returns:
        Layer name to the relative squared error, dimensionless; NaN of a layer that is
        not called, or gives nothing but its mean.

    Example:
        >>> import torch
        >>> dense, cut = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
        >>> _ = cut.load_state_dict(dense.state_dict())
        >>> output_errors(dense, cut, ["0"], torch.randn(9, 2))
        {'0': 0.0}
    """
    sums = {
        name: _Errors(reference.get_submodule(name), compressed.get_submodule(name))
        for name in layers
    }
    device = next((p.device for p in reference.parameters()), torch.device("cpu"))
    with evaluation_mode(reference), evaluation_mode(compressed), _watched(sums):
        for batch in inputs.split(_BATCH):
            here = batch.to(device)
            mask = mask_of(here)
            for one in sums.values():
                one.mask = mask
            call_network(reference, here)
    return {name: one.relative() for name, one in sums.items()}


class _Errors:
    """Sums over the calls of one layer so far."""

    def __init__(self, dense: nn.Module, small: nn.Module) -> None:
        self.dense, self.small = dense, small
        self.error = self.square = 0.0
        self.total: Tensor | None = None
        self.mask: Tensor | None = None  # of the batch: positions that count
        self.count = 0

    def add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Any, outputs: Tensor
    ) -> None:
        """Compare one call; `forward`, without the hooks of a copy."""
        rows = self._rows(outputs)
        small = self._rows(self.small.forward(*args, **kwargs))
        real = real_positions(self.mask, outputs.shape[:-1])
        if real is not None:
            rows, small = rows[real], small[real]
        self.error += float((rows - small).square().sum())
        self.square += float(rows.square().sum())
        self.total = rows.sum(0) if self.total is None else self.total + rows.sum(0)
        self.count += len(rows)

    def relative(self) -> float:
        """Return the relative error, NaN if there is none."""
        if self.total is None or not self.count:
            return float("nan")
        about_mean = getattr(self.dense, "bias", None) is not None
        mean = float(self.total.square().sum()) / self.count if about_mean else 0.0
        size = self.square - mean
        # Below that, a difference of sums is rounding.
        if size > 1e-6 * self.square:
            return self.error / size
        return 0.0 if self.error == 0.0 else float("nan")

    def _rows(self, outputs: Tensor) -> Tensor:
        """Return outputs with their channels last, in double precision."""
        if isinstance(self.dense, nn.Conv2d):
            outputs = outputs.movedim(-3, -1)
        return in_float(outputs).double().reshape(-1, outputs.shape[-1])


@contextmanager
def _watched(sums: dict[str, _Errors]) -> Iterator[None]:
    """Add up errors in the `with` block, before hooks of the user change outputs."""
    handles = [
        one.dense.register_forward_hook(one.add, with_kwargs=True, prepend=True)
        for one in sums.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
