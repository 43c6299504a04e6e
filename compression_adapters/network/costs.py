"""Measure the costs of a network and the errors of its layers."""

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from compression_adapters.decompositions import Factors, sparse_bytes
from compression_adapters.layers.survey import LayerSpec, layer_weights
from compression_adapters.network.macs import count_macs
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.output_error import output_errors
from compression_adapters.network.structured_inputs import (
    Inputs,
    as_arguments,
    repeated,
    tensors_of,
)
from compression_adapters.rank_space.scales import DENSE, Rank


@dataclass(frozen=True)
class NetworkCost:
    """The costs of a network.

    Args:
        weights: Entries of its weight tensors that are not zero, without biases and
            normalisation.
        macs: Multiply-adds per sample; zeros are multiplied as well.
        bytes_dense: Bytes of all its tensors in memory, including zeros.
        bytes_sparse: The same with its pruned layers in a sparse format, as in a file;
            see `sparse_bytes`.
        latency: Batch size to the median time of a forward pass. Unit: seconds.
    """

    weights: int
    macs: int
    bytes_dense: int
    bytes_sparse: int
    latency: dict[int, float]


def measure_cost(
    network: nn.Module,
    example: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 9,
    pruned: Sequence[str] = (),
) -> NetworkCost:
    """Count and time a network.

    Args:
        network: Runs in eval mode on the device it is on; its modes are restored.
        example: At least one input; repeated to fill a batch. Shape `n x ...`.
        batch_sizes: Batch sizes of the timed forward passes; empty to time nothing.
        repeats: Timed passes per batch size, after one that is not timed.
        pruned: Names of the layers that were pruned.

    Returns:
        Its costs.

    Raises:
        ValueError: when there is no input or `repeats` is below 1.

    Example:
        >>> cost = measure_cost(nn.Linear(30, 20), torch.zeros(1, 30), batch_sizes=(1,))
        >>> cost.weights, cost.macs, cost.bytes_dense
        (600, 600, 2480)
    """
    if len(example) < 1 or repeats < 1:
        raise ValueError(
            "Expected at least one input and one repetition; got "
            f"{len(example)} and {repeats}."
        )
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    sample = example[:1].to(device)
    with evaluation_mode(network):
        macs = count_macs(network, sample)
    with evaluation_mode(network, compiled=True):
        latency = {
            size: _median_seconds(network, repeated(example, size).to(device), repeats)
            for size in batch_sizes
        }
    size = sum(t.numel() * t.element_size() for t in _distinct(network))
    saved = 0
    for name in pruned:
        for weight in layer_weights(network.get_submodule(name)):
            each, kept = weight.element_size(), int(weight.count_nonzero())
            sparse = sparse_bytes(weight.numel(), kept, each)
            saved += max(0, weight.numel() * each - sparse)
    return NetworkCost(
        weights=sum(int(w.count_nonzero()) for w in layer_weights(network)),
        macs=macs,
        bytes_dense=size,
        bytes_sparse=size - saved,
        latency=latency,
    )


def compare_costs(before: NetworkCost, after: NetworkCost) -> pd.DataFrame:
    """Tabulate the changes in cost, and warn where the network is not faster.

    Args:
        before: Of the reference network.
        after: Of the compressed network, with the same batch sizes.

    Returns:
        One row per quantity: `quantity`, `before`, `after`, `ratio`. Latency is in
        milliseconds, for the whole batch.

    Warns:
        UserWarning: what `slower_note` says, if anything.

    Example:
        >>> cost = NetworkCost(100, 100, 400, 400, {})
        >>> compare_costs(cost, NetworkCost(50, 80, 200, 200, {}))["ratio"].tolist()
        [0.5, 0.8, 0.5, 0.5]
    """
    note = slower_note(before, after)
    if note is not None:
        warnings.warn(note, stacklevel=2)
    return cost_table(before, after)


def cost_table(before: NetworkCost, after: NetworkCost) -> pd.DataFrame:
    """Tabulate two costs: `compare_costs` without its warning."""
    rows: list[tuple[str, float, float]] = [
        ("weights, whole network", before.weights, after.weights),
        ("multiply-adds per sample", before.macs, after.macs),
        ("bytes", before.bytes_dense, after.bytes_dense),
        ("bytes, pruned layers sparse", before.bytes_sparse, after.bytes_sparse),
    ]
    rows += [
        (f"milliseconds, batch {size}", 1e3 * seconds, 1e3 * after.latency[size])
        for size, seconds in before.latency.items()
    ]
    table = pd.DataFrame(rows, columns=["quantity", "before", "after"])
    table["ratio"] = table["after"] / table["before"]
    return table


def slower_note(before: NetworkCost, after: NetworkCost) -> str | None:
    """Say at which batch sizes a compressed network is not faster, None at none."""
    slower = [n for n, seconds in before.latency.items() if after.latency[n] >= seconds]
    if not slower:
        return None
    return (
        "The compressed network is not faster at batch size "
        f"{', '.join(map(str, slower))}: fewer weights do not always save time. "
        "Try round_to=8, skip_no_gain=True, or fewer layers."
    )


def layer_losses(
    reference_network: nn.Module,
    compressed: nn.Module,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    ranks: Mapping[str, Rank],
    inputs: Inputs | None = None,
) -> pd.DataFrame:
    """Tabulate the errors of each layer: of its weight and of its output.

    Args:
        reference_network: With the dense layers.
        compressed: The network that is kept.
        layers: The layers in play.
        factors: From `factorize_network`.
        ranks: Layer name to rank or `"dense"`.
        inputs: Fresh inputs to measure outputs on, or None. Shape `n x ...`.

    Returns:
        One row per layer: `layer`; `energy_kept`, the share of the squared norm of the
        weight that its rank keeps, of factors that were fitted to inputs of the
        expected one of the output; `predicted_error`, the rest of it; `local_error`,
        the norm of the difference of the weights divided by that of the dense one; with
        inputs `output_error`, see `output_errors`, which of factors that were fitted is
        close to `predicted_error`. All dimensionless; NaN if the decomposition does not
        define it.
    """
    measured: dict[str, float] = {}
    if inputs is not None:
        cut = [layer.name for layer in layers if ranks[layer.name] != DENSE]
        measured = output_errors(reference_network, compressed, cut, inputs)
    rows = []
    for layer in layers:
        rank = ranks[layer.name]
        energy, error = 1.0, 0.0
        if rank != DENSE:
            energy = energy_kept(layer, factors[layer.name], rank)
            dense = reference_network.get_submodule(layer.name)
            error = _relative_error(dense, compressed.get_submodule(layer.name))
        rows.append((layer.name, energy, 1.0 - energy, error))
    columns = ["layer", "energy_kept", "predicted_error", "local_error"]
    table = pd.DataFrame(rows, columns=columns)
    if inputs is not None:
        table["output_error"] = [measured.get(name, 0.0) for name in table["layer"]]
    return table


def energy_kept(layer: LayerSpec, factors: Factors, rank: int) -> float:
    """Return the share of the squared norm that a rank keeps.

    Args:
        layer: The layer.
        factors: Of its decomposition.
        rank: From 1 to full rank.

    Returns:
        The squares of the singular values up to the rank, divided by all; NaN if the
        decomposition has none.
    """
    if not layer.decomposition.searchable:
        return float("nan")
    squares = layer.decomposition.singular_values(factors).double().square()
    total = float(squares.sum())
    return float(squares[:rank].sum()) / total if total > 0 else 1.0


def _relative_error(dense: nn.Module, small: nn.Module) -> float:
    """Return the relative Frobenius norm of the difference of two weights."""
    with torch.no_grad():
        before, after = (getattr(layer, "weight", None) for layer in (dense, small))
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return float("nan")
        norm = float(before.double().norm())
        error = float((after.double() - before.double()).norm())
    return error / norm if norm > 0 else error


def _distinct(network: nn.Module) -> list[Tensor]:
    """List the tensors of a saved network, shared ones once."""
    state = network.state_dict().values()
    # The state may hold what is no tensor, from get_extra_state.
    tensors = [t for t in state if isinstance(t, Tensor) and t.numel()]
    return list({t.data_ptr(): t for t in tensors}.values())


def _median_seconds(network: nn.Module, inputs: Inputs, repeats: int) -> float:
    """Time forward passes; the first one is a warm-up and not counted."""
    times = []
    (first, *_) = tensors_of(inputs)
    for _ in range(repeats + 1):
        own = inputs.clone()  # the forward pass may change it
        positional, named = as_arguments(network, own)
        _wait(first.device)
        start = time.perf_counter()
        network(*positional, **named)
        _wait(first.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
