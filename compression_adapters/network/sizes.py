"""The size of a network: what is counted, for each layer and at each of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from compression_adapters.decompositions import Factors
from compression_adapters.layers.survey import LayerSpec, layer_weights
from compression_adapters.network.latency import LatencyTable
from compression_adapters.network.macs import _meta_macs, run_counted
from compression_adapters.network.replacement import bare_copy
from compression_adapters.network.sparse import pack
from compression_adapters.network.structured_inputs import Inputs
from compression_adapters.options import SizeName, SizeOf
from compression_adapters.rank_space.scales import DENSE, Rank

UNITS: Final[Mapping[SizeName, str]] = {
    "weights": "weights",
    "multiply-adds": "multiply-adds per sample",
    "bytes": "bytes as stored",
    "latency": "seconds per batch",
}
"""What each size is counted in."""

_FASTER: Final = 0.02
"""A rank is faster only if by this share: a table of times is known to no better."""


@dataclass(frozen=True)
class LayerSizes:
    """What one layer costs in each of its forms, the one with the least error last.

    Args:
        options: The forms: ranks, ascending, and `"dense"`.
        sizes: The cost of each. Unit: that of the measure.

    Raises:
        ValueError: when there is not one size for each option.

    Example:
        >>> LayerSizes((1, 2, "dense"), (50, 100, 600)).at(2)
        100
    """

    options: tuple[Rank, ...]
    sizes: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.options) != len(self.sizes) or DENSE not in self.options:
            raise ValueError(
                "Expected one size for each option, 'dense' among them; got "
                f"{len(self.options)} options and {len(self.sizes)} sizes."
            )

    def at(self, option: Rank) -> float:
        """Return the cost of a form.

        Raises:
            ValueError: when the layer has no such form.
        """
        try:
            return self._places[option]
        except KeyError:
            raise ValueError(
                f"rank must be one of {self.options[0]} to {self.options[-1]}; got "
                f"{option!r}."
            ) from None

    @property
    def dense(self) -> float:
        """The cost of the layer as it was."""
        return self._places[DENSE]

    @cached_property
    def _places(self) -> dict[Rank, float]:
        return dict(zip(self.options, self.sizes, strict=True))

    def worthwhile(
        self, allowed: Sequence[int], *, dense: bool = True, margin: float = 0.0
    ) -> tuple[int, ...]:
        """Return the ranks that are cheaper than everything with a smaller error.

        Args:
            allowed: Ranks to choose from, in the order in which their errors fall.
            dense: Whether the dense layer is a choice too.
            margin: The share by which a rank has to be cheaper.

        Returns:
            In the same order; empty where no rank is cheaper than the dense layer.

        Example:
            >>> sizes = LayerSizes((1, 2, 3, 4, "dense"), (2.0, 5.0, 3.0, 7.0, 6.0))
            >>> sizes.worthwhile(range(1, 5))
            (1, 3)
        """
        kept: list[int] = []
        least = self.dense if dense else None
        for rank in reversed(allowed):
            size = self.at(rank)
            if least is None or size < least * (1.0 - margin):
                kept.append(rank)
                least = size
        return tuple(reversed(kept))


def by_error(
    layer: LayerSpec, factors: Factors, sizes: LayerSizes, ranks: Sequence[int]
) -> list[int]:
    """Order ranks so that their errors fall; of equal errors the smallest is last.

    Args:
        layer: A layer.
        factors: Its factors.
        sizes: What each rank costs.
        ranks: Of the layer; of one decomposition, ascending ones are in order.
    """
    if layer.ladder is None:
        return sorted(ranks)
    errors = layer.ladder.errors(factors)
    return sorted(ranks, key=lambda rank: (-errors[rank - 1], -sizes.at(rank)))


def with_ranks(
    layer: LayerSpec, sizes: LayerSizes, ranks: Sequence[int]
) -> tuple[LayerSpec, LayerSizes]:
    """Keep some ranks of a layer; those of a ladder become its rungs.

    Args:
        layer: A layer.
        sizes: What each rank costs.
        ranks: Those that stay, in the order of their errors.

    Returns:
        The layer, whose maximal rank is the last one, or the number of rungs; and what
        its ranks cost.
    """
    if layer.ladder is None:
        return replace(layer, max_rank=ranks[-1]), sizes
    costs = (*map(sizes.at, ranks), sizes.dense)
    ladder = layer.ladder.only(ranks, costs)
    rungs = range(1, len(ranks) + 1)
    return (
        replace(layer, decomposition=ladder, max_rank=len(ranks)),
        LayerSizes((*rungs, DENSE), costs),
    )


@dataclass(frozen=True, eq=False)
class SizeMeasure:
    """What the size of a network is: a table for each layer in play, and the rest.

        size(ranks) = sum over layers of table(rank) + rest
        ratio(ranks) = size(ranks) / size(dense)

    The rest, which is the same for all ranks, counts with `size_of="network"` only.

    Args:
        name: `"weights"`, `"multiply-adds"`, `"bytes"` or `"latency"`.
        layers: Layer name to its costs.
        rest: The cost of everything but the layers in play.
        size_of: Whether the rest counts: `"layers"` or `"network"`.
        table: The measured times behind the size `"latency"`.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
        >>> size = count_weights(network, find_layers(network)[:1])
        >>> ranks = {"0": 3}
        >>> size.ratio(ranks), replace(size, size_of="network").ratio(ranks)
        (0.25, 0.4375)
    """

    name: SizeName
    layers: Mapping[str, LayerSizes] = field(repr=False)
    rest: float
    size_of: SizeOf = "layers"
    table: LatencyTable | None = field(default=None, repr=False)

    @property
    def unit(self) -> str:
        """What is counted."""
        return UNITS[self.name]

    @property
    def counted(self) -> str:
        """What is counted of what, in words."""
        whole = "whole network" if self.size_of == "network" else "layers in play"
        return f"{self.unit}, {whole}"

    @property
    def margin(self) -> float:
        """The share by which one size has to be smaller to be known to be smaller."""
        return _FASTER if self.name == "latency" else 0.0

    @property
    def constant(self) -> float:
        """What is counted beside the layers in play. Unit: that of the measure."""
        return self.rest if self.size_of == "network" else 0.0

    @cached_property
    def before(self) -> float:
        """The size of the original. Unit: that of the measure."""
        return sum(layer.dense for layer in self.layers.values()) + self.constant

    def after(self, ranks: Mapping[str, Rank]) -> float:
        """Return the size of a network. Unit: that of the measure.

        Args:
            ranks: Layer name to rank or `"dense"`.

        Raises:
            ValueError: when a layer has no rank, or one without a size.
        """
        return self.of_layers(ranks, self.layers) + self.constant

    def of_layers(self, ranks: Mapping[str, Rank], names: Iterable[str]) -> float:
        """Return the size of some of the layers in play.

        Args:
            ranks: Layer name to rank or `"dense"`.
            names: Of the layers.

        Raises:
            ValueError: when a layer has no rank, or one without a size.
        """
        total = 0.0
        for name in names:
            if name not in ranks:
                raise ValueError(
                    f"ranks has no entry for layer {name!r}; it has "
                    f"{', '.join(ranks) or 'none'}."
                )
            try:
                total += self.layers[name].at(ranks[name])
            except ValueError as error:
                raise ValueError(f"Layer {name!r}: {error}") from error
        return total

    def ratio(self, ranks: Mapping[str, Rank]) -> float:
        """Return size after / before, dimensionless.

        Args:
            ranks: Layer name to rank or `"dense"`.

        Raises:
            ValueError: when a layer has no rank, or one without a size.
        """
        return self.after(ranks) / self.before

    @property
    def is_default(self) -> bool:
        """Whether it is that of the paper, the weights of the layers in play."""
        return self.name == "weights" and self.size_of == "layers"

    def to_dict_at(self, ranks: Mapping[str, Rank]) -> dict[str, Any]:
        """Describe a network's size as plain JSON values.

        Args:
            ranks: Layer name to rank or `"dense"`.
        """
        return {
            "size": self.name,
            "size_of": self.size_of,
            "unit": self.unit,
            "before": self.before,
            "after": self.after(ranks),
            "machine": None if self.table is None else asdict(self.table.machine),
        }

    def only(self, names: Iterable[str]) -> SizeMeasure:
        """Return the measure with fewer layers in play; the others become the rest.

        Args:
            names: Of the layers that stay.
        """
        kept = set(names)
        left = sum(one.dense for name, one in self.layers.items() if name not in kept)
        layers = {name: one for name, one in self.layers.items() if name in kept}
        return replace(self, layers=layers, rest=self.rest + left)


def count_weights(network: nn.Module, layers: Sequence[LayerSpec]) -> SizeMeasure:
    """Count weights, without biases and normalisation.

    Args:
        network: The reference network.
        layers: The layers in play.
    """
    tables = {
        layer.name: _table(layer, layer.weights_at, layer.num_weights)
        for layer in layers
    }
    whole = sum(weight.numel() for weight in layer_weights(network))
    rest = whole - sum(layer.num_weights for layer in layers)
    return SizeMeasure("weights", tables, rest)


def count_multiply_adds(
    network: nn.Module, layers: Sequence[LayerSpec], example: Inputs
) -> SizeMeasure:
    """Count multiply-adds per sample, of matrix products and convolutions.

    Args:
        network: The reference network, which runs once.
        layers: The layers in play.
        example: A batch of inputs. Shape `n x ...`.
    """
    shapes, total = run_counted(network, layers, example)
    samples = len(example)
    tables: dict[str, LayerSizes] = {}
    for layer in layers:
        bare = bare_copy(network.get_submodule(layer.name))
        calls = shapes[layer.name]

        def count(
            rank: int,
            layer: LayerSpec = layer,
            bare: nn.Module = bare,
            calls: list[torch.Size] = calls,
        ) -> float:
            return _meta_macs(layer.decomposition.empty(bare, rank), calls) / samples

        counts = _between(count, layer)
        dense = _meta_macs(bare, calls) / samples
        tables[layer.name] = _table(layer, counts.__getitem__, dense)
    rest = total / samples - sum(one.dense for one in tables.values())
    return SizeMeasure("multiply-adds", tables, rest)


def count_bytes(network: nn.Module, layers: Sequence[LayerSpec]) -> SizeMeasure:
    """Count the bytes of all tensors as they are stored, biases included.

    A pruned weight takes its values and their positions where that is smaller, a factor
    its entries, both in the type of the network's weights.

    Args:
        network: The reference network.
        layers: The layers in play.
    """
    tables: dict[str, LayerSizes] = {}
    for layer in layers:
        module = network.get_submodule(layer.name)
        bare = bare_copy(module)

        def count(
            rank: int,
            layer: LayerSpec = layer,
            module: nn.Module = module,
            bare: nn.Module = bare,
        ) -> float:
            small = layer.decomposition.empty(bare, rank)
            if type(small) is type(module):
                return _pruned_bytes(module, layer.weights_at(rank))
            return _plain_bytes(small)

        dense = _stored_bytes(module)
        if isinstance(layer.decomposition.empty(bare, 1), type(module)):
            counts = {r: count(r) for r in range(1, layer.max_rank + 1)}
        else:
            counts = _between(count, layer)
        tables[layer.name] = _table(layer, counts.__getitem__, dense)
    rest = _stored_bytes(network) - sum(one.dense for one in tables.values())
    return SizeMeasure("bytes", tables, rest)


def size_of_table(table: LatencyTable, layers: Sequence[LayerSpec]) -> SizeMeasure:
    """Take measured times as the size.

    Args:
        table: Times of the layers, see `measure_latency`.
        layers: The layers in play.

    Raises:
        ValueError: when the table is one of other layers; the message says which.
    """
    table.require_layers(layers)
    tables = {}
    for layer in layers:
        seconds = table.seconds_at(layer.name)
        tables[layer.name] = _table(
            layer, seconds, table.layers[layer.name].seconds[-1]
        )
    known = {layer.name for layer in layers}
    # The table may be of more layers than those in play.
    left = sum(t.seconds[-1] for name, t in table.layers.items() if name not in known)
    return SizeMeasure("latency", tables, table.rest + left, table=table)


def _table(layer: LayerSpec, size: Callable[[int], float], dense: float) -> LayerSizes:
    """Tabulate a layer's cost at every rank, and dense."""
    ranks = range(1, layer.max_rank + 1)
    return LayerSizes((*ranks, DENSE), (*map(size, ranks), dense))


def _between(count: Callable[[int], float], layer: LayerSpec) -> dict[int, float]:
    """Count at every rank, calling as rarely as a count that is linear allows.

    Where the middle lies on the line between two ends, so does everything between
    them: counts of a decomposition are polynomials of the rank without negative
    coefficients.
    """
    known: dict[int, float] = {}

    def fill(low: int, high: int) -> None:
        if high - low < 2:
            return
        middle = (low + high) // 2
        known[middle] = count(middle)
        slope = (known[high] - known[low]) / (high - low)
        if abs(known[low] + slope * (middle - low) - known[middle]) < 1e-9 * max(
            1.0, known[high]
        ):
            for rank in range(low + 1, high):
                known[rank] = known[low] + slope * (rank - low)
            return
        fill(low, middle)
        fill(middle, high)

    for span in layer.spans:
        known |= {rank: count(rank) for rank in {span[0], span[-1]}}
        fill(span[0], span[-1])
    return known


def _plain_bytes(module: nn.Module) -> float:
    """Count the bytes of a module's tensors, none of which is stored sparse."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _pruned_bytes(module: nn.Module, kept: int) -> float:
    """Count the bytes of a layer whose largest weights are kept, and its bias."""
    weights = layer_weights(module)
    ids = {id(w) for w in weights}
    others = sum(
        p.numel() * p.element_size() for p in module.parameters() if id(p) not in ids
    )
    size, each = sum(w.numel() for w in weights), weights[0].element_size()
    sparse = kept * each + min(-(-size // 8), 4 * kept)
    return others + min(sparse, size * each)


def _stored_bytes(module: nn.Module) -> float:
    """Count the bytes of a module's tensors as a file has them, shared ones once."""
    state = module.state_dict().values()
    tensors = [t.detach() for t in state if isinstance(t, Tensor) and t.numel()]
    distinct = {(t.data_ptr(), t.dtype): t for t in tensors}.values()
    packed = pack({str(i): t.contiguous() for i, t in enumerate(distinct)})
    return sum(part.numel() * part.element_size() for part in packed.values())
