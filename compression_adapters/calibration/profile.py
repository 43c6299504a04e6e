"""A table of a network's layers and possible ranks, before any search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from compression_adapters.calibration.factors import calibrated_factors
from compression_adapters.decompositions import Factors
from compression_adapters.layers.selection import Choose, Selectors, choose_low_rank
from compression_adapters.layers.survey import (
    LayerSpec,
    layer_weights,
    survey_layers,
    unwrap,
)
from compression_adapters.network.costs import energy_kept
from compression_adapters.network.latency import LatencyTable, measure_latency
from compression_adapters.network.macs import (
    _meta_macs,
    run_counted,
)
from compression_adapters.network.replacement import bare_copy, copy_network
from compression_adapters.network.sizes import by_error, count_weights, with_ranks
from compression_adapters.network.structured_inputs import (
    Inputs,
    NetworkInputs,
    as_inputs,
)
from compression_adapters.rank_space.scales import rank_scale

_POINTS = ("min", "centre", "max")


@dataclass(frozen=True, eq=False)
class NetworkProfile:
    """The weights of a network's layers, dense and at several ranks.

    Print it to see the whole table.

    Args:
        layers: One row per layer in play: `layer`, `kind` (its type), `decomposition`,
            `weight_shape`, `max_rank`, `weights`, and `rank_*` and `weights_*` at the
            smallest rank (`min`), at the coordinate 0.5 (`centre`) and at the maximal
            rank (`max`). With an example input also `macs` and `macs_*`, the
            multiply-adds per sample; NaN for a layer that is not called. With errors
            also `predicted_error_*`, the share of the layer's squared output that the
            rank leaves out, or of its squared weights.
        skipped: One row per layer with weights that is left out: `layer`, `kind`,
            `reason`.
        num_weights: Weights of the whole network, without biases and normalisation.
        num_macs: Multiply-adds of the whole network per sample, or None without an
            example input.
        latency: The times of the layers at their ranks, None if they were not timed.
    """

    layers: pd.DataFrame = field(repr=False)
    skipped: pd.DataFrame = field(repr=False)
    num_weights: int
    num_macs: int | None
    latency: LatencyTable | None = None

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
                f"{self.num_macs:,} multiply-adds per sample"
                + _share(self.layers, "macs", self.num_macs)
            )
        if self.latency is not None:
            lines += ["", str(self.latency)]
        if len(self.skipped):
            lines += ["", "Left out:", _as_text(self.skipped)]
        return "\n".join(lines)


def profile(
    network: nn.Module,
    example: Any = None,
    *,
    choose: Choose | str = choose_low_rank,
    include: Selectors | None = None,
    exclude: Selectors = (),
    encoding: str = "log",
    min_rank: int = 1,
    errors: bool = False,
    calibrate: Any = None,
    seed: int = 0,
    times: LatencyTable | Any = None,
    latency_seconds: float = 30.0,
    progress: bool | None = None,
) -> NetworkProfile:
    """Tabulate the layers of a network before any search.

    Unless errors are asked for, nothing is decomposed: weights and multiply-adds are
    computed from the structure of each rank. torch counts the multiply-adds while the
    network runs once on the example, and those of the factored layers on inputs of the
    same shapes.

    Args:
        network: Any network, in any mode; not modified.
        example: A batch of inputs, one tensor or several (a mapping, a tuple, a
            dataclass); one sample is enough. Shape `n x ...`. None omits the
            multiply-adds.
        choose: See `find_layers`.
        include: See `find_layers`.
        exclude: See `find_layers`.
        encoding: `"log"` or `"linear"`: the meaning of the coordinate 0.5. `"energy"`
            needs errors.
        min_rank: Smallest rank.
        errors: Whether to decompose each layer, for its errors at three ranks. Layers
            with several decompositions (`choose="best"`) are decomposed in any case:
            their ranks are the rungs by weights.
        calibrate: Inputs that the factors are fitted to, as in a search; with them
            there are errors too, those of the output. None: of the weights alone.
        seed: Of the choice of patches, see `gather_moments`.
        times: A batch of inputs to time the layers on, at the ranks that matter, see
            `measure_latency`; or a table of times, which has to be of these layers.
            Shape `n x ...`.
        latency_seconds: Budget for timing.
        progress: Whether to show a bar while the layers are timed.

    Returns:
        The profile; print it. Pruned layers have the multiply-adds of dense ones,
        because zeros are multiplied as well.

    Raises:
        TypeError: when `calibrate` is no batch of inputs, such as their number.
        ValueError: when a selector matches nothing, a layer is chosen that its
            decomposition does not support, or the network does not return one output
            per sample of the example.

    Example:
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
        >>> print(profile(network, torch.zeros(1, 30)).layers[
        ...     ["layer", "max_rank", "weights", "weights_centre", "macs_centre"]])
          layer  max_rank  weights  weights_centre  macs_centre
        0     0        12      600             150          150
    """
    example = None if example is None else as_inputs(example)
    calibrate = _calibration_inputs(calibrate)
    network = unwrap(network)
    layers, skipped = survey_layers(network, choose, include=include, exclude=exclude)
    factors: dict[str, Factors] = {}
    if times is not None and not isinstance(times, LatencyTable):
        times = as_inputs(times)
    ladders = any(layer.ladder is not None for layer in layers)
    timed = isinstance(times, Tensor | NetworkInputs)
    if errors or ladders or calibrate is not None or timed:
        # A forward pass may change what a network keeps.
        factors = calibrated_factors(
            copy_network(network), layers, calibrate, seed=seed
        )
    latency = None
    if isinstance(times, Tensor | NetworkInputs) and layers:
        latency = measure_latency(
            copy_network(network),
            layers,
            factors,
            times,
            seconds=latency_seconds,
            seed=seed,
            progress=progress,
        )
    elif isinstance(times, LatencyTable):
        times.require_layers(layers)
        latency = times
    if ladders:
        layers = _with_rungs(network, layers, factors)
    inputs: dict[str, list[torch.Size]] = {}
    num_macs = None
    if example is not None:
        inputs, total = run_counted(network, layers, example)
        num_macs = total // len(example)
    rows = []
    for layer in layers:
        module = network.get_submodule(layer.name)
        shapes = inputs.get(layer.name, [])
        found = factors.get(layer.name)
        row = _weights_row(layer, module, encoding, min_rank, found)
        if example is not None:
            row |= _macs_row(layer, module, row, shapes, len(example))
        if found is not None:
            row |= {
                f"predicted_error_{point}": 1.0
                - energy_kept(layer, found, int(str(row[f"rank_{point}"])))
                for point in _POINTS
            }
        rows.append(row)
    return NetworkProfile(
        layers=pd.DataFrame(rows),
        skipped=pd.DataFrame(
            [(s.name, s.kind, s.reason) for s in skipped],
            columns=["layer", "kind", "reason"],
        ),
        num_weights=sum(weight.numel() for weight in layer_weights(network)),
        num_macs=num_macs,
        latency=latency,
    )


def _with_rungs(
    network: nn.Module, layers: Sequence[LayerSpec], factors: Mapping[str, Factors]
) -> tuple[LayerSpec, ...]:
    """Choose the rungs of ladders by weights."""
    sizes = count_weights(network, layers).layers
    found = []
    for layer in layers:
        each = sizes[layer.name]
        ranks = range(1, layer.max_rank + 1)
        order = by_error(layer, factors[layer.name], each, ranks)
        found.append(with_ranks(layer, each, each.worthwhile(order))[0])
    return tuple(found)


def _calibration_inputs(calibrate: Any) -> Inputs | None:
    """Return calibration inputs, or refuse what is none."""
    if calibrate is None:
        return None
    empty = isinstance(calibrate, Tensor) and not (calibrate.ndim and len(calibrate))
    if empty or isinstance(calibrate, int | float | str):
        got = "none" if empty else type(calibrate).__name__
        raise TypeError(
            "calibrate must be a tensor of inputs here, or several, one input at "
            f"least, such as inputs[:500]; got {got}."
        )
    return as_inputs(calibrate)


def _weights_row(
    layer: LayerSpec,
    module: nn.Module,
    encoding: str,
    min_rank: int,
    factors: Factors | None,
) -> dict[str, object]:
    """Describe a layer, with its weights at three ranks."""
    values = None
    if factors is not None and layer.decomposition.searchable:
        values = layer.decomposition.singular_values(factors)
    scale = rank_scale(
        layer,
        encoding=encoding,
        at_max="factor",
        min_rank=min_rank,
        singular_values=values,
    )
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
    """Count a layer's multiply-adds per sample, dense and at three ranks."""
    names = ["macs", *(f"macs_{p}" for p in _POINTS)]
    if not shapes:
        return dict.fromkeys(names, float("nan"))
    # Without memory and without arithmetic: the meta device knows shapes only.
    dense = bare_copy(module)
    modules = [dense]
    for point in _POINTS:
        rank = row[f"rank_{point}"]
        modules.append(layer.decomposition.empty(dense, int(str(rank))))
    counts = [_meta_macs(one, shapes) for one in modules]
    return {n: count // samples for n, count in zip(names, counts, strict=True)}


def _share(table: pd.DataFrame, column: str, total: int) -> str:
    """State the share of the whole network that remains at three ranks."""
    if not len(table) or not total:
        return ""
    low, centre, high = (int(table[f"{column}_{p}"].sum()) for p in _POINTS)
    dense = int(table[column].sum())
    rest = total - dense
    shares = ", ".join(f"{(rest + n) / total:.1%}" for n in (low, centre, high))
    return f"; whole network at min, centre, max: {shares}"


def _as_text(table: pd.DataFrame) -> str:
    """Format a table in full width, with shapes such as 3 x 4."""
    table = table.copy()
    if "weight_shape" in table:
        shapes = [" x ".join(map(str, shape)) for shape in table["weight_shape"]]
        table["weight_shape"] = shapes
    number = "{:,.0f}".format
    formatters = {c: number for c in table.columns if c.startswith(("macs", "weights"))}
    errors = [c for c in table.columns if c.startswith("predicted_error")]
    formatters |= dict.fromkeys(errors, "{:.2%}".format)
    return table.to_string(index=False, formatters=formatters, na_rep="not called")
