"""What a search could do to a network: a table, before any decomposition."""

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compression_adapters.choices import Choose, Selectors, choose_low_rank
from compression_adapters.layers import (
    LayerSpec,
    layer_weights,
    survey_layers,
    unwrap,
)
from compression_adapters.network import evaluation_mode
from compression_adapters.ranks import rank_scale
from compression_adapters.sampling import forward

_POINTS = ("min", "centre", "max")


@dataclass(frozen=True, eq=False)
class NetworkProfile:
    """What the layers of a network weigh, and what they could weigh.

    Printing it shows everything.

    Args:
        layers: One row a layer in play: `layer`, `kind` (its type), `decomposition`,
            `weight_shape`, `max_rank`, `weights`, and `rank_*` and `weights_*` at the
            smallest rank (`min`), at the coordinate 0.5 (`centre`) and at the maximal
            rank (`max`). With an example input also `macs` and `macs_*`, the
            multiply-adds of one sample; NaN for a layer that is not called.
        skipped: One row a layer with weights that takes no part: `layer`, `kind`,
            `reason`.
        num_weights: Weights of the whole network, without biases and normalisation.
        num_macs: Multiply-adds of the whole network for one sample, or None without an
            example input.
    """

    layers: pd.DataFrame = field(repr=False)
    skipped: pd.DataFrame = field(repr=False)
    num_weights: int
    num_macs: int | None

    def __str__(self) -> str:
        lines = ["No layer to compress."]
        if len(self.layers):
            in_play = int(self.layers["weights"].sum())
            lines = [
                _as_text(self.layers),
                f"{len(self.layers)} layers in play, {in_play:,} of "
                f"{self.num_weights:,} weights"
                + _share(self.layers, "weights", self.num_weights),
            ]
        if self.num_macs is not None:
            lines.append(
                f"{self.num_macs:,} multiply-adds a sample"
                + _share(self.layers, "macs", self.num_macs)
            )
        if len(self.skipped):
            lines += ["", "Left out:", _as_text(self.skipped)]
        return "\n".join(lines)


def profile(
    network: nn.Module,
    example: Tensor | None = None,
    *,
    choose: Choose = choose_low_rank,
    include: Selectors | None = None,
    exclude: Selectors = (),
    encoding: str = "log",
    min_rank: int = 1,
) -> NetworkProfile:
    """Tabulate the layers of a network before any search.

    Nothing is decomposed: weights and multiply-adds are those of the structures that a
    rank would have. Multiply-adds are counted by torch while the network runs once on
    the example, and for the factored layers on inputs of the same shapes.

    Args:
        network: Any network, in any mode; not modified.
        example: A batch of inputs, one sample is enough. Shape `n x ...`. None leaves
            the multiply-adds out.
        choose: See `find_layers`.
        include: See `find_layers`.
        exclude: See `find_layers`.
        encoding: `"log"` or `"linear"`: what the coordinate 0.5 means. `"energy"` would
            need a decomposition.
        min_rank: Smallest rank.

    Returns:
        The profile; print it. Pruned layers have the multiply-adds of dense ones,
        because zeros are multiplied as well.

    Raises:
        ValueError: when a selector matches nothing, a layer is chosen that its
            decomposition does not support, or the network does not return one output a
            sample of the example.

    Example:
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
        >>> print(profile(network, torch.zeros(1, 30)).layers[
        ...     ["layer", "max_rank", "weights", "weights_centre", "macs_centre"]])
          layer  max_rank  weights  weights_centre  macs_centre
        0     0        12      600             150          150
    """
    network = unwrap(network)
    layers, skipped = survey_layers(network, choose, include=include, exclude=exclude)
    inputs: dict[str, list[torch.Size]] = {}
    num_macs = None
    if example is not None:
        inputs, total = _run(network, layers, example)
        num_macs = total // len(example)
    rows = []
    for layer in layers:
        module = network.get_submodule(layer.name)
        shapes = inputs.get(layer.name, [])
        row = _weights_row(layer, module, encoding, min_rank)
        if example is not None:
            row |= _macs_row(layer, module, row, shapes, len(example))
        rows.append(row)
    return NetworkProfile(
        layers=pd.DataFrame(rows),
        skipped=pd.DataFrame(
            [(s.name, s.kind, s.reason) for s in skipped],
            columns=["layer", "kind", "reason"],
        ),
        num_weights=sum(weight.numel() for weight in layer_weights(network)),
        num_macs=num_macs,
    )


def drop_ranks_without_gain(
    network: nn.Module, layers: Sequence[LayerSpec], example: Tensor
) -> tuple[LayerSpec, ...]:
    """Lower maximal ranks to where a layer needs fewer multiply-adds than dense.

    A rank can save weights and still cost time: the first of two convolutions of a
    layer with a stride runs at more places than the layer did. Layers that keep their
    structure, as pruned ones do, stay as they are.

    Args:
        network: The reference network.
        layers: The layers, from `find_layers`.
        example: A batch of inputs, one is enough. Shape `n x ...`.

    Returns:
        The layers that some rank makes cheaper in weights and multiply-adds.

    Raises:
        ValueError: when no layer is left.

    Example:
        >>> from compression_adapters.layers import find_layers
        >>> network = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2))
        >>> layers = find_layers(network)
        >>> few = drop_ranks_without_gain(network, layers, torch.zeros(1, 8, 9, 9))
        >>> layers[0].max_rank, few[0].max_rank
        (12, 7)
    """
    inputs, _ = _run(network, tuple(layers), example)
    kept = []
    for layer in layers:
        module = copy.deepcopy(network.get_submodule(layer.name)).to("meta")
        smallest = layer.decomposition.empty(module, 1)
        if type(smallest) is type(module):
            kept.append(layer)
            continue
        shapes = inputs[layer.name]
        dense = _meta_macs(module, shapes)

        def gains(
            rank: int,
            layer: LayerSpec = layer,
            module: nn.Module = module,
            shapes: list[torch.Size] = shapes,
            dense: int = dense,
        ) -> bool:
            factored = layer.decomposition.empty(module, rank)
            fewer_macs = not shapes or _meta_macs(factored, shapes) < dense
            return fewer_macs and layer.weights_at(rank) < layer.num_weights

        # Both grow with the rank, so the first rank without gain ends the others.
        ranks = range(1, layer.max_rank + 1)
        largest = bisect_left(ranks, True, key=lambda rank: not gains(rank))
        if largest > 0:
            kept.append(replace(layer, max_rank=largest))
    if not kept:
        raise ValueError(
            "No layer gains from any rank: none needs fewer multiply-adds than dense. "
            f"Layers: {', '.join(layer.name for layer in layers)}. Choose other "
            "layers, or leave skip_no_gain out."
        )
    return tuple(kept)


def count_macs(module: nn.Module, inputs: Tensor) -> int:
    """Count the multiply-adds of one call.

    Args:
        module: Any module that takes one tensor; in the mode it is in.
        inputs: Shape `n x ...`; also on the meta device, if the module is.

    Returns:
        Multiply-adds of matrix products and convolutions, for all n samples together.

    Example:
        >>> count_macs(nn.Linear(30, 20), torch.zeros(2, 30))
        1200
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    # One multiply-add is two floating point operations.
    return int(counter.get_total_flops()) // 2


def _run(
    network: nn.Module, layers: tuple[LayerSpec, ...], example: Tensor
) -> tuple[dict[str, list[torch.Size]], int]:
    """Run the network once; return each layer's input shapes, and multiply-adds."""
    shapes: dict[str, list[torch.Size]] = {layer.name: [] for layer in layers}
    handles = []
    for layer in layers:
        seen = shapes[layer.name]

        def note(
            module: nn.Module,
            arguments: tuple[Tensor, ...],
            seen: list[torch.Size] = seen,
        ) -> None:
            seen.append(arguments[0].shape)

        module = network.get_submodule(layer.name)
        handles.append(module.register_forward_pre_hook(note))
    try:
        # Fused operations are not counted: without gradients torch runs whole encoder
        # layers as one, and attention as one unless told otherwise.
        with (
            evaluation_mode(network),
            torch.inference_mode(False),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            example = example.detach().clone()
            forward(network, example.requires_grad_(example.is_floating_point()))
    finally:
        for handle in handles:
            handle.remove()
    return shapes, int(counter.get_total_flops()) // 2


def _weights_row(
    layer: LayerSpec, module: nn.Module, encoding: str, min_rank: int
) -> dict[str, object]:
    """Describe a layer, and what it weighs at three ranks."""
    scale = rank_scale(layer, encoding=encoding, at_max="factor", min_rank=min_rank)
    ranks = [int(scale.rank_from_unit(u)) for u in (0.0, 0.5, 1.0)]
    return {
        "layer": layer.name,
        "kind": type(module).__name__,
        "decomposition": layer.decomposition.name,
        "weight_shape": layer.weight_shape,
        "max_rank": layer.max_rank,
        "weights": layer.num_weights,
        **{f"rank_{p}": rank for p, rank in zip(_POINTS, ranks, strict=True)},
        **{
            f"weights_{p}": layer.weights_at(rank)
            for p, rank in zip(_POINTS, ranks, strict=True)
        },
    }


def _macs_row(
    layer: LayerSpec,
    module: nn.Module,
    row: dict[str, object],
    shapes: list[torch.Size],
    samples: int,
) -> dict[str, float]:
    """Count a layer's multiply-adds for one sample, dense and at three ranks."""
    names = ["macs", *(f"macs_{p}" for p in _POINTS)]
    if not shapes:
        return dict.fromkeys(names, float("nan"))
    # Without memory and without arithmetic: the meta device knows shapes only.
    dense = copy.deepcopy(module).to("meta")
    modules = [dense]
    for point in _POINTS:
        rank = row[f"rank_{point}"]
        modules.append(layer.decomposition.empty(dense, int(str(rank))))
    counts = [_meta_macs(one, shapes) for one in modules]
    return {n: count // samples for n, count in zip(names, counts, strict=True)}


def _meta_macs(module: nn.Module, shapes: list[torch.Size]) -> int:
    """Count the multiply-adds of a module on the meta device, for all its calls."""
    dtype = layer_weights(module)[0].dtype
    return sum(
        count_macs(module, torch.empty(shape, dtype=dtype, device="meta"))
        for shape in shapes
    )


def _share(table: pd.DataFrame, column: str, total: int) -> str:
    """Say what the layers in play add up to, from smallest to largest rank."""
    if not len(table) or not total:
        return ""
    low, centre, high = (int(table[f"{column}_{p}"].sum()) for p in _POINTS)
    dense = int(table[column].sum())
    rest = total - dense
    shares = ", ".join(f"{(rest + n) / total:.1%}" for n in (low, centre, high))
    return f"; whole network at min, centre, max: {shares}"


def _as_text(table: pd.DataFrame) -> str:
    """Print a table in full width, shapes with an x between the sides."""
    table = table.copy()
    if "weight_shape" in table:
        shapes = [" x ".join(map(str, shape)) for shape in table["weight_shape"]]
        table["weight_shape"] = shapes
    number = "{:,.0f}".format
    formatters = {c: number for c in table.columns if c.startswith(("macs", "weights"))}
    return table.to_string(index=False, formatters=formatters, na_rep="not called")
