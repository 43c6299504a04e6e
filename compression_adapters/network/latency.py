"""Measure how long layers take at their ranks, and networks before and after."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from compression_adapters.decompositions import Factors
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.replacement import copy_network, owning, replaced
from compression_adapters.network.structured_inputs import (
    Inputs,
    as_arguments,
    joined_inputs,
    tensors_of,
)
from compression_adapters.rank_space.scales import DENSE, Rank

FORMAT_VERSION: Final = 2
"""Of a stored table of times. Version 1 has no `kinds`; it is still written of tables
whose layers have one decomposition each."""

PRECISION: Final = 0.05
"""Half-width of the 95 % interval of a median at which a time counts as known."""

NEGLIGIBLE: Final = 0.0025
"""The same as a share of the whole network: enough for a layer that takes little."""

_FEWEST_ROUNDS: Final = 3

_FEW_WIDTH: Final = 0.15
"""What two or four timings are off by, as a share, at most; measured on ResNet18."""

_GROWS: Final = 0.25
"""A larger rank of a decomposition takes less than a smaller one by no more than this,
as a share: a multiple of eight, after one that is none."""

_STEP: Final = 1.2
"""Two ranks that are measured differ by this factor, from where multiples of 8 do."""

_PAIRS: Final = 11
_MOST_PAIRS: Final = 400
_DISAGREE: Final = 0.1
"""A prediction that is off by more is reported with the likely reason."""


@dataclass(frozen=True)
class Machine:
    """What times depend on beside the network.

    Args:
        device: Name of the processor or accelerator.
        threads: Threads of an operation on a CPU.
        batch: Inputs in a batch.
        dtype: Type of the network's weights.
        memory_format: Of the inputs: `"contiguous"` or `"channels_last"`.
        torch: Version of PyTorch.
    """

    device: str
    threads: int
    batch: int
    dtype: str
    memory_format: str
    torch: str

    @classmethod
    def of(cls, network: nn.Module, inputs: Inputs) -> Machine:
        """Describe where a network runs, and on what.

        Args:
            network: The network.
            inputs: The batch that is timed.
        """
        first = tensors_of(inputs)[0]
        weight = next(network.parameters(), first)
        last = first.ndim == 4 and not first.is_contiguous()
        last = last and first.is_contiguous(memory_format=torch.channels_last)
        return cls(
            device=_device_name(weight.device),
            threads=torch.get_num_threads(),
            batch=len(inputs),
            dtype=str(weight.dtype).removeprefix("torch."),
            memory_format="channels_last" if last else "contiguous",
            torch=torch.__version__,
        )

    def difference(self, other: Machine) -> str | None:
        """Say in which respect another one differs, None in none."""
        for name, value in asdict(self).items():
            now = getattr(other, name)
            if value != now:
                return f"{name.replace('_', ' ')} {value} there and {now} here"
        return None


@dataclass(frozen=True)
class LayerTimes:
    """Measured times of one layer.

    Args:
        decomposition: Name of the decomposition.
        weight_shape: Shape of the dense weight.
        input_shapes: Of each call in one pass.
        ranks: That were measured, ascending, and `"dense"` last.
        seconds: Median time of each, of all calls in one pass.
        half_widths: Of the 95 % intervals of the medians. Unit: seconds.
        kinds: Of a layer with several decompositions (`Ladder`), the name of each and
            the number of its ranks, which are counted on from one to the next.
    """

    decomposition: str
    weight_shape: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    ranks: tuple[Rank, ...]
    seconds: tuple[float, ...]
    half_widths: tuple[float, ...]
    kinds: tuple[tuple[str, int], ...] = ()

    def forms(self) -> list[tuple[str, list[tuple[Rank, int]]]]:
        """Return the ranks that were measured, by decomposition.

        Returns:
            For each decomposition its name, and pairs of its own rank and of the place
            in `ranks`; the dense layer is left out.
        """
        found, before = [], 0
        for name, number in self.kinds or ((self.decomposition, int(self._last)),):
            own: list[tuple[Rank, int]] = [
                (rank - before, place)
                for place, rank in enumerate(self.ranks)
                if rank != DENSE and before < rank <= before + number
            ]
            found.append((name, own))
            before += number
        return found

    @property
    def _last(self) -> Rank:
        """The largest rank."""
        return self.ranks[-2]


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """The times of the layers of a network at their ranks, on one machine.

    Print it for a table in milliseconds.

    Args:
        machine: Where they were measured.
        layers: Layer name to its times.
        whole: Median time of a pass through the original. Unit: seconds.
        rest: What of it is spent outside the layers in play. Unit: seconds.
        rounds: How often every rank was visited.
        known: Share of the times that are known to `PRECISION`, or to `NEGLIGIBLE` of
            the whole network, or are surely too long to matter.
        measured_in: How long the measurement took. Unit: seconds.

    Example:
        >>> times = LayerTimes("svd", (20, 30), ((1, 30),), (1, 8, "dense"),
        ...                    (1e-5, 2e-5, 4e-5), (0.0, 0.0, 0.0))
        >>> machine = Machine("cpu", 1, 1, "float32", "contiguous", "2.9")
        >>> table = LatencyTable(machine, {"fc": times}, 5e-5, 1e-5, 3, 1.0, 0.1)
        >>> round(1e6 * table.seconds_at("fc")(4), 2)
        14.29
        >>> LatencyTable.from_dict(table.to_dict()).to_dict() == table.to_dict()
        True
    """

    machine: Machine
    layers: Mapping[str, LayerTimes] = field(repr=False)
    whole: float
    rest: float
    rounds: int
    known: float
    measured_in: float

    def seconds_at(self, name: str) -> Callable[[int], float]:
        """Return the time of a layer by its rank: linear between those measured.

        Args:
            name: Of the layer.
        """
        times = self.layers[name]
        at = [float(rank) for rank in times.ranks[:-1]]
        return lambda rank: float(np.interp(rank, at, times.seconds[:-1]))

    def require_layers(self, layers: Sequence[LayerSpec]) -> None:
        """Refuse layers that the table is not of.

        Args:
            layers: The layers in play.

        Raises:
            ValueError: with the layer that is missing or another.
        """
        for layer in layers:
            times = self.layers.get(layer.name)
            if times is None:
                raise ValueError(
                    f"The table of times has no layer {layer.name!r}; its layers are "
                    f"{', '.join(self.layers)}. Measure this network (size='latency')."
                )
            kept = (times.decomposition, times.weight_shape)
            now = (layer.decomposition.name, layer.weight_shape)
            last = int(times.ranks[-2])  # before the dense layer's
            # Of several decompositions a number means nothing without the others'.
            same = times.kinds == kinds_of(layer) if times.kinds else True
            if kept != now or last < layer.max_rank or not same:
                raise ValueError(
                    f"The table of times has layer {layer.name!r} as {kept[0]} of "
                    f"shape {kept[1]} up to rank {last}; here it is "
                    f"{now[0]} of shape {now[1]} up to rank {layer.max_rank}. Measure "
                    "this network (size='latency')."
                )

    def frame(self) -> pd.DataFrame:
        """Return one row for each layer and rank that was measured.

        Returns:
            `layer`, `kind` (the decomposition), `rank`, `milliseconds`, `half_width`
            (of the 95 % interval, in milliseconds), `of_dense` and `of_network`, the
            shares.
        """
        rows = []
        for name, times in self.layers.items():
            forms: list[tuple[str, Rank, int]] = [
                (kind, rank, place)
                for kind, measured in times.forms()
                for rank, place in measured
            ]
            for kind, rank, place in (*forms, (DENSE, DENSE, len(times.ranks) - 1)):
                each, width = times.seconds[place], times.half_widths[place]
                shares = (each / times.seconds[-1], each / self.whole)
                rows.append((name, kind, rank, 1e3 * each, 1e3 * width, *shares))
        return pd.DataFrame(
            rows,
            columns=[
                *("layer", "kind", "rank", "milliseconds", "half_width"),
                *("of_dense", "of_network"),
            ],
        )

    def __str__(self) -> str:
        shown = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        rows = []
        several = any(times.kinds for times in self.layers.values())
        for name, times in self.layers.items():
            at = self.seconds_at(name)
            for kind, measured in times.forms():
                (first, place), (last, _) = measured[0], measured[-1]
                before = int(times.ranks[place]) - int(first)
                row: dict[str, str] = {"layer": name}
                if several:
                    row["kind"] = kind
                row["dense"] = f"{1e3 * times.seconds[-1]:.3f}"
                for rank in shown:
                    fits = rank <= int(last)
                    row[f"rank {rank}"] = (
                        f"{1e3 * at(before + rank):.3f}" if fits else ""
                    )
                row["largest"] = f"{1e3 * at(before + int(last)):.3f} at {last}"
                rows.append(row)
        own, machine = sum(t.seconds[-1] for t in self.layers.values()), self.machine
        number = sum(len(times.ranks) for times in self.layers.values())
        return (
            f"{pd.DataFrame(rows).to_string(index=False)}\n"
            f"Milliseconds per batch of {machine.batch} ({machine.dtype}, "
            f"{machine.memory_format}) on {machine.device}, threads: "
            f"{machine.threads}. The whole network takes {1e3 * self.whole:.2f}, these "
            f"layers {1e3 * own:.2f}. {self.known:.0%} of {number} times are known to "
            f"{PRECISION:.0%}, or to {NEGLIGIBLE:.2%} of the network, after "
            f"{self.rounds} rounds in {self.measured_in:.0f} s."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        several = any(times.kinds for times in self.layers.values())
        return {
            "format_version": FORMAT_VERSION if several else 1,
            "machine": asdict(self.machine),
            "layers": {
                name: {
                    k: _plain(v)
                    for k, v in asdict(times).items()
                    if several or k != "kinds"
                }
                for name, times in self.layers.items()
            },
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LatencyTable:
        """Read what `to_dict` returned.

        Raises:
            ValueError: when the format is newer, or entries are missing or ill-typed.
        """
        version = record.get("format_version") if isinstance(record, Mapping) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise ValueError(
                f"The table of times has format_version {version}; this version of "
                f"ax-pac reads up to {FORMAT_VERSION}. Update ax-pac."
            )
        try:
            if version not in (1, FORMAT_VERSION):
                raise ValueError(f"format_version is {version!r}")
            layers = {n: _layer_times(entry) for n, entry in record["layers"].items()}
            numbers = {name: float(record[name]) for name in _NUMBERS}
            if not layers or not all(map(math.isfinite, numbers.values())):
                raise ValueError("it has no layers, or numbers that are not finite")
            machine = Machine(**record["machine"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"This is no table of times, or a damaged one: {error!r}. Measure it "
                "again (size='latency')."
            ) from error
        rounds = int(numbers.pop("rounds"))
        return cls(machine=machine, layers=layers, rounds=rounds, **numbers)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, to be given as `size` to another search.

        Args:
            path: Of the file; an existing one is replaced.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table that `save` wrote.

        Raises:
            ValueError: when there is no such file, or it holds no table; the message
                has the path.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file, expected a saved table.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        try:
            return cls.from_dict(record)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


_NUMBERS: Final = ("whole", "rest", "rounds", "known", "measured_in")


def _plain(value: Any) -> Any:
    """Turn tuples into lists, as JSON reads them."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _layer_times(entry: Mapping[str, Any]) -> LayerTimes:
    """Check the times of one layer."""
    ranks, seconds = tuple(entry["ranks"]), tuple(map(float, entry["seconds"]))
    widths = tuple(map(float, entry["half_widths"]))
    whole = [rank for rank in ranks[:-1] if type(rank) is int and rank > 0]
    if (
        len({len(ranks), len(seconds), len(widths)}) > 1
        or len(ranks) < 2
        or ranks[-1] != DENSE
        or whole != sorted(set(ranks[:-1]))
        or not all(math.isfinite(s) and s >= 0.0 for s in (*seconds, *widths))
    ):
        raise ValueError(f"ranks {ranks[:3]}... and seconds {seconds[:3]}...")
    return LayerTimes(
        str(entry["decomposition"]),
        tuple(map(int, entry["weight_shape"])),
        tuple(tuple(map(int, shape)) for shape in entry["input_shapes"]),
        ranks,
        seconds,
        widths,
        _kinds(entry.get("kinds", []), int(ranks[-2])),
    )


def _kinds(entry: Sequence[Any], last: int) -> tuple[tuple[str, int], ...]:
    """Check which decompositions the ranks of a layer are of."""
    kinds = tuple((str(name), int(number)) for name, number in entry)
    if kinds and (sum(n for _, n in kinds) != last or min(n for _, n in kinds) < 1):
        raise ValueError(f"kinds {kinds} and ranks up to {last}")
    return kinds


def kinds_of(layer: LayerSpec) -> tuple[tuple[str, int], ...]:
    """Return the decompositions of a ladder and how many ranks each has; else none.

    Args:
        layer: A layer, with all its forms.
    """
    if layer.ladder is None:
        return ()
    return tuple((layer.form_of(span[0]).kind, len(span)) for span in layer.spans)


def forms_to_measure(layer: LayerSpec) -> tuple[int, ...]:
    """Return the ranks of a layer that are measured: of each decomposition's own.

    Args:
        layer: A layer; of a ladder, with all its forms.
    """
    return tuple(
        span[rank - 1] for span in layer.spans for rank in ranks_to_measure(len(span))
    )


def ranks_to_measure(max_rank: int) -> tuple[int, ...]:
    """Return the ranks at which the time of a layer is measured.

    Processors work in blocks: the time is flat up to a multiple of 8 and steps up
    beyond it. So these are 1, 2 and 4, multiples of 8 (all of them while they are more
    than `_STEP` apart), the rank after each, and the largest. In between the time is
    taken to be linear.

    Args:
        max_rank: The largest rank.

    Example:
        >>> ranks_to_measure(40)
        (1, 2, 4, 8, 9, 16, 17, 24, 25, 32, 33, 40)
    """
    ranks = {1, 2, 4, max_rank}
    multiple = 8
    while multiple < max_rank:
        ranks |= {multiple, multiple + 1}
        multiple = max(multiple + 8, -(-round(multiple * _STEP) // 8) * 8)
    return tuple(sorted(rank for rank in ranks if rank <= max_rank))


def measure_latency(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    inputs: Inputs,
    *,
    seconds: float = 30.0,
    seed: int = 0,
    progress: bool | None = None,
) -> LatencyTable:
    """Measure the time of every layer at the ranks that matter, inside the network.

    A layer alone in a loop finds its weights in the cache, which in the network it does
    not. So the network runs as a whole, with all its layers cut, each to the next of
    its ranks in an order of its own, and every layer is timed while it does. A pass
    through the original before and after each timed pass makes pairs: a time is the
    median of its shares of the original's time, which are the same when another process
    slows the machine down, times the median of that.

    Rounds go through all ranks. After three, a rank whose time is known is visited no
    more: the 95 % interval of its median (from the median absolute deviation) reaches
    no further than `PRECISION` of it, or than `NEGLIGIBLE` of the whole network. From
    the second on, neither is one that is surely slower than another that loses less:
    no search would choose it. Of a ladder of several decompositions that holds in the
    first round too, for ranks above one that is too slow.

    Args:
        network: The reference network; runs in eval mode where it is.
        layers: The layers in play.
        factors: From `factorize_network`.
        inputs: One batch. Shape `n x ...`.
        seconds: Budget. At least one round is made.
        seed: Of the orders.
        progress: Whether to show a bar; None: on a terminal only.

    Returns:
        The table.

    Raises:
        ValueError: when there is nothing to measure.
    """
    if not layers or len(inputs) < 1 or not seconds > 0.0:
        raise ValueError(
            "Expected layers, a batch of inputs and a positive budget to measure "
            f"times; got {len(layers)} layers, {len(inputs)} inputs, {seconds} s."
        )
    began = time.perf_counter()
    device = next((p.device for p in network.parameters()), _device_of(inputs))
    inputs = _copied(inputs, device)
    work = copy_network(network)
    names = [layer.name for layer in layers]
    rng = np.random.default_rng(seed)
    samples = _Samples(layers, factors)
    bar = tqdm(
        total=round(seconds),
        unit="s",
        desc="measuring times",
        disable=None if progress is None else not progress,
        bar_format="{desc}: {n:.0f} of at most {total} s{postfix}",
    )
    rounds = 0
    with (
        bar,
        evaluation_mode(network),
        evaluation_mode(work),
        _Watch(network, names, device) as before,
        _Watch(work, names, device) as after,
    ):
        before.run(inputs)
        while True:
            for ranks in samples.visits(rng):
                pairs = owning(
                    [
                        (
                            work.get_submodule(layer.name),
                            layer.decomposition.truncate(
                                factors[layer.name], ranks[layer.name]
                            ),
                        )
                        for layer in layers
                    ]
                )
                with replaced(pairs):
                    after.run(inputs)  # kernels of new shapes are prepared
                    left = before.run(inputs)
                    for _ in range(2):
                        here, right = after.run(inputs), before.run(inputs)
                        samples.add(ranks, left, here, right)
                        left = right
                bar.n = min(time.perf_counter() - began, seconds)
                bar.refresh()
                if rounds and time.perf_counter() - began > seconds:
                    break
            rounds += 1
            known = samples.known()
            bar.set_postfix_str(f", {known:.0%} of the times known")
            enough = rounds >= _FEWEST_ROUNDS and known == 1.0
            if enough or time.perf_counter() - began > seconds:
                break
    whole = statistics.median(samples.wholes)
    return LatencyTable(
        machine=Machine.of(network, inputs),
        layers={
            layer.name: samples.times(layer, whole, before.shapes[layer.name])
            for layer in layers
        },
        whole=whole,
        rest=whole * statistics.median(samples.rests),
        rounds=rounds,
        known=known,
        measured_in=time.perf_counter() - began,
    )


_Pass = tuple[float, dict[str, float]]
"""Seconds of a pass, and of each layer in it."""


class _Samples:
    """Shares of the original's time, by layer and rank.

    Args:
        layers: The layers.
        factors: Their factors, by which the errors of a ladder's rungs are known.
    """

    def __init__(
        self, layers: Sequence[LayerSpec], factors: Mapping[str, Factors]
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.shares: dict[str, dict[Rank, list[float]]] = {}
        self.falling: dict[str, list[int]] = {}  # by falling error
        for layer in layers:
            ranks = forms_to_measure(layer)
            self.shares[layer.name] = {rank: [] for rank in ranks}
            self.shares[layer.name][DENSE] = []
            order = list(ranks)
            if layer.ladder is not None:
                errors = layer.ladder.errors(factors[layer.name])
                order = sorted(ranks, key=[1.0, *errors].__getitem__, reverse=True)
            self.falling[layer.name] = order
        self.wholes: list[float] = []
        self.rests: list[float] = []

    def visits(self, rng: np.random.Generator) -> Iterator[dict[str, int]]:
        """Yield ranks of all layers until each that still matters had its turn."""
        left: dict[str, list[int]] = {}
        for name in self.shares:
            still = self._open(name) or self.falling[name]
            left[name] = rng.permutation(still).tolist()
        every = {name: list(queue) for name, queue in left.items()}
        turn = 0
        while True:
            for name, queue in left.items():
                matter = {*self._open(name)}
                left[name] = [rank for rank in queue if rank in matter]
            if not any(left.values()):
                return
            yield {
                name: queue.pop() if queue else every[name][turn % len(every[name])]
                for name, queue in left.items()
            }
            turn += 1

    def add(
        self, ranks: Mapping[str, int], left: _Pass, here: _Pass, right: _Pass
    ) -> None:
        """Add a pass through a cut network, with those through the original beside."""
        whole = (left[0] + right[0]) / 2.0
        self.wholes.append(right[0])
        for name, rank in ranks.items():
            self.shares[name][rank].append(here[1][name] / whole)
            self.shares[name][DENSE].append(right[1][name] / right[0])
        self.rests.append(1.0 - sum(right[1].values()) / right[0])

    def known(self) -> float:
        """Return the share of the times that are known, or do not matter."""
        unknown = sum(len(self._open(name)) for name in self.shares)
        unknown += sum(not self._is_known(name, DENSE) for name in self.shares)
        return 1.0 - unknown / sum(map(len, self.shares.values()))

    def times(
        self, layer: LayerSpec, whole: float, shapes: tuple[tuple[int, ...], ...]
    ) -> LayerTimes:
        """Return the times of a layer.

        A form that was not visited, because a smaller rank of the same decomposition
        was too slow already, has that rank's time.
        """
        found: dict[Rank, tuple[float, float]] = {}
        for rank, values in self.shares[layer.name].items():
            if values:
                median, width = statistics.median(values), _half_width(values)
                width = width if math.isfinite(width) else 0.0
            else:
                median = statistics.median(self._visited_below(layer, int(rank)))
                width = median
            found[rank] = (whole * median, whole * width)
        return LayerTimes(
            layer.decomposition.name,
            tuple(layer.weight_shape),
            shapes,
            tuple(found),
            tuple(seconds for seconds, _ in found.values()),
            tuple(width for _, width in found.values()),
            kinds_of(layer),
        )

    def _is_known(self, name: str, rank: Rank) -> bool:
        values = self.shares[name][rank]
        if len(values) < 2 * _FEWEST_ROUNDS:
            return False
        allowed = max(PRECISION * statistics.median(values), NEGLIGIBLE)
        return _half_width(values) <= allowed

    def _open(self, name: str) -> list[int]:
        """List the ranks whose time is not known, and that may be of use.

        One that is surely slower than another with a smaller error, or than the dense
        layer, is no choice of a search, however much slower it is.
        """
        found: list[int] = []
        least = self._bounds(name, DENSE)[1]
        for rank in reversed(self.falling[name]):
            low, high = self._bounds(name, rank)
            if low <= least and not self._is_known(name, rank):
                found.append(rank)
            least = min(least, high)
        return found

    def _bounds(self, name: str, rank: Rank) -> tuple[float, float]:
        """Return between which shares a time surely is."""
        values = self.shares[name][rank]
        if values:
            median = statistics.median(values)
            width = _FEW_WIDTH * median
            if len(values) >= 2 * _FEWEST_ROUNDS:
                width = _half_width(values)
            return median - width, median + width
        layer = self.layers[name]
        if rank == DENSE or layer.ladder is None:
            return 0.0, math.inf
        below = self._visited_below(layer, rank)
        low = statistics.median(below) * (1.0 - _GROWS) if below else 0.0
        return low, math.inf

    def _visited_below(self, layer: LayerSpec, rank: int) -> list[float]:
        """Return the shares of the next smaller rank of a decomposition, if any."""
        span = next(span for span in layer.spans if rank in span)
        shares = self.shares[layer.name]
        below = [r for r in shares if r != DENSE and r in span and r < rank]
        return next((shares[r] for r in reversed(below) if shares[r]), [])


def _half_width(values: Sequence[float]) -> float:
    """Return the half-width of the 95 % interval of a median, robustly.

    1.96 standard errors; that of a median of n normal values is sqrt(pi / 2 / n) of
    their standard deviation, which is 1.4826 of their median absolute deviation.
    """
    if len(values) < 2:
        return math.inf
    middle = statistics.median(values)
    deviation = 1.4826 * statistics.median([abs(value - middle) for value in values])
    return 1.96 * math.sqrt(math.pi / 2.0 / len(values)) * deviation


class _Watch:
    """Times passes through a network, and its layers in them.

    On a GPU by its own events. On one thread of a CPU by the time that the thread has
    had, which does not count when another process has the core: a pass of many layers
    is interrupted more often than the median layer, so that sums would not be those of
    the whole. Elsewhere by the clock.

    Args:
        network: Its hooks are left as they are.
        names: Of the layers.
        device: Where it runs.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], device: torch.device
    ) -> None:
        self.network, self.names, self.device = network, names, device
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = dict.fromkeys(names, ())
        self._calls: list[tuple[str, Any, Any]] = []
        self._open: list[Any] = []
        self._seen: dict[str, list[tuple[int, ...]]] | None = {n: [] for n in names}
        self._handles: list[Any] = []
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._clock = time.thread_time if alone else time.perf_counter

    def __enter__(self) -> _Watch:
        for name in self.names:
            module = self.network.get_submodule(name)
            self._handles.append(
                module.register_forward_pre_hook(self._begin(name), with_kwargs=True)
            )
            self._handles.append(module.register_forward_hook(self._end(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, inputs: Inputs) -> _Pass:
        """Run one pass; return its seconds and those of each layer."""
        own = inputs.clone()  # the forward pass may change it
        positional, named = as_arguments(self.network, own)
        self._calls.clear()
        self._open.clear()
        _wait(self.device)
        start = self._mark()
        self.network(*positional, **named)
        end = self._mark()
        _wait(self.device)
        if self._seen is not None:
            self.shapes = {name: tuple(seen) for name, seen in self._seen.items()}
            self._seen = None
        layers = dict.fromkeys(self.names, 0.0)
        for name, one, other in self._calls:
            layers[name] += self._between(one, other)
        return self._between(start, end), layers

    def _begin(self, name: str) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._seen is not None:
                first = [*args, *kwargs.values()][0]
                self._seen[name].append(tuple(first.shape))
            self._open.append(self._mark())

        return begin

    def _end(self, name: str) -> Callable[..., None]:
        def end(module: nn.Module, args: Any, output: Any) -> None:
            self._calls.append((name, self._open.pop(), self._mark()))

        return end

    def _mark(self) -> Any:
        """Return a moment in the work of the device."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        if self.device.type != "cpu":
            _wait(self.device)
        return self._clock()

    def _between(self, one: Any, other: Any) -> float:
        """Return the seconds between two moments."""
        if self.device.type == "cuda":
            return float(one.elapsed_time(other)) / 1e3
        return float(other - one)


@dataclass(frozen=True)
class LatencyComparison:
    """The time of a network before and after, measured in interleaved pairs.

    Args:
        before: Median time of a pass through the original. Unit: seconds.
        after: The same of the compressed network.
        ratio: Median of after / before over the pairs.
        low: Lower end of the 95 % interval of that median.
        high: Upper end.
        pairs: Number of pairs.
        machine: Where they were measured.
        predicted: The ratio that a table of times predicts, None without one.
        table_machine: Where that table was measured.
        table_known: The share of its times that is known, see `LatencyTable`.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    pairs: int
    machine: Machine
    predicted: float | None = None
    table_machine: Machine | None = None
    table_known: float = 1.0

    @property
    def speedup(self) -> float:
        """How many times faster the compressed network is."""
        return 1.0 / self.ratio

    @property
    def disagreement(self) -> str | None:
        """Why prediction and measurement differ by more than a tenth, None if not."""
        if self.predicted is None or self.table_machine is None:
            return None
        off = self.predicted / self.ratio - 1.0
        if abs(off) <= _DISAGREE:
            return None
        elsewhere = self.table_machine.difference(self.machine)
        if elsewhere is not None:
            why = f"the table was measured elsewhere ({elsewhere})"
        elif self.high - self.low > _DISAGREE * self.ratio:
            why = (
                "the measurement itself is uncertain: other work on the machine, or a "
                "changing clock rate"
            )
        elif self.table_known < 0.9:
            why = (
                f"only {self.table_known:.0%} of the table is known to "
                f"{PRECISION:.0%}: allow more time (latency_seconds)"
            )
        else:
            why = (
                "what lies between the layers takes another time in the compressed "
                "network: memory formats, caches, or operations that are no longer "
                "fused"
            )
        return (
            f"Predicted {self.predicted:.1%} of the time, measured {self.ratio:.1%}; "
            f"most likely {why}."
        )

    def sentence(self) -> str:
        """Describe the measurement in one sentence."""
        predicted = (
            "" if self.predicted is None else f"; predicted {self.predicted:.1%}"
        )
        return (
            f"{1e3 * self.before:.3g} ms before, {1e3 * self.after:.3g} ms after, "
            f"{self.ratio:.1%} of the time (95 % interval {self.low:.1%} to "
            f"{self.high:.1%}, {self.pairs} pairs{predicted}), batch "
            f"{self.machine.batch} on {self.machine.device}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with `speedup`, `sentence` and `disagreement`."""
        return asdict(self) | {
            "speedup": self.speedup,
            "sentence": self.sentence(),
            "disagreement": self.disagreement,
        }


def compare_latency(
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs,
    *,
    seconds: float = 10.0,
    precision: float = 0.01,
    predicted: float | None = None,
    table: LatencyTable | None = None,
) -> LatencyComparison:
    """Measure two networks in interleaved pairs.

    The two run in turn, in changing order, so that what slows the machine down slows
    both. The ratio is the median over pairs, with an interval of order statistics,
    which assumes nothing of the times. It ends when the interval reaches no further
    than `precision` of the ratio, or the seconds are over.

    Args:
        before: The original.
        after: The compressed network.
        inputs: One batch. Shape `n x ...`.
        seconds: Budget; at least eleven pairs are measured.
        precision: Half-width of the interval, as a share of the ratio.
        predicted: The ratio that was predicted.
        table: By which it was.

    Returns:
        The comparison.

    Example:
        >>> network = nn.Linear(8, 8)
        >>> found = compare_latency(network, network, torch.zeros(4, 8), seconds=0.1)
        >>> found.pairs >= 11 and found.low <= found.ratio <= found.high
        True
    """
    began = time.perf_counter()
    device = next((p.device for p in before.parameters()), _device_of(inputs))
    inputs = _copied(inputs, device)
    pairs: list[tuple[float, float]] = []
    with (
        evaluation_mode(before, compiled=True),
        evaluation_mode(after, compiled=True),
        _Watch(before, (), device) as one,
        _Watch(after, (), device) as other,
    ):
        for watch in (one, other, one, other):
            watch.run(inputs)
        while True:
            if len(pairs) % 2:
                cut, whole = other.run(inputs)[0], one.run(inputs)[0]
            else:
                whole, cut = one.run(inputs)[0], other.run(inputs)[0]
            pairs.append((whole, cut))
            if len(pairs) < _PAIRS:
                continue
            ratios = sorted(b / a for a, b in pairs)
            low, high = _median_interval(ratios)
            ratio = statistics.median(ratios)
            sure = high - low <= 2.0 * precision * ratio
            late = time.perf_counter() - began > seconds
            if sure or late or len(pairs) >= _MOST_PAIRS:
                break
    return LatencyComparison(
        before=statistics.median(a for a, _ in pairs),
        after=statistics.median(b for _, b in pairs),
        ratio=ratio,
        low=low,
        high=high,
        pairs=len(pairs),
        machine=Machine.of(before, inputs),
        predicted=predicted,
        table_machine=None if table is None else table.machine,
        table_known=1.0 if table is None else table.known,
    )


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median of a distribution, from ordered values.

    Between two order statistics: the number of values below the median is binomial.
    """
    n = len(ordered)
    chance, place = 0.5**n, 0
    total = chance
    while total <= 0.025 and place < n // 2:
        place += 1
        chance *= (n - place + 1) / place
        total += chance
    place = max(0, place - 1)
    return ordered[place], ordered[n - 1 - place]


def batch_of(example: Inputs, size: int) -> Inputs:
    """Repeat inputs until they fill a batch, in their memory format.

    Args:
        example: At least one input. Shape `n x ...`.
        size: Of the batch.
    """
    repeats = -(-size // len(example))
    batch = example if repeats == 1 else joined_inputs([example] * repeats)
    return batch[:size]


def _copied(inputs: Inputs, device: torch.device) -> Inputs:
    """Copy a batch to the device, in its memory format."""
    return inputs.to(device, copy=True)


def _device_of(inputs: Inputs) -> torch.device:
    """Return where a batch is."""
    return tensors_of(inputs)[0].device


def _device_name(device: torch.device) -> str:
    """Name the processor or accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return f"cpu ({line.partition(':')[2].strip()})"
    except OSError:
        pass
    return f"cpu ({platform.processor() or platform.machine()})"


def _wait(device: torch.device) -> None:
    """Wait for an accelerator to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()
