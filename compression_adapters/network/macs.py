"""Count multiply-adds, and drop ranks that save none."""

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compression_adapters.decompositions import LowRankEmbedding
from compression_adapters.layers.survey import (
    LayerSpec,
    layer_weights,
)
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.replacement import bare_copy
from compression_adapters.network.structured_inputs import Inputs, call_network


def drop_ranks_without_gain(
    network: nn.Module, layers: Sequence[LayerSpec], example: Inputs
) -> tuple[LayerSpec, ...]:
    """Lower maximal ranks until a layer needs fewer multiply-adds than dense.

    A rank can save weights and still cost time: of two convolutions that replace one
    with a stride, the first runs at more positions. Layers that keep their structure,
    such as pruned ones, are unchanged. An embedding is left out: to look up a row takes
    no multiply-adds.

    Args:
        network: The reference network.
        layers: The layers, from `find_layers`.
        example: A batch of inputs; one sample is enough. Shape `n x ...`.

    Returns:
        The layers that some rank makes cheaper in weights and multiply-adds.

    Raises:
        ValueError: when no layer is left.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2))
        >>> layers = find_layers(network)
        >>> few = drop_ranks_without_gain(network, layers, torch.zeros(1, 8, 9, 9))
        >>> layers[0].max_rank, few[0].max_rank
        (12, 7)
    """
    inputs, _ = run_counted(network, layers, example)
    kept = []
    for layer in layers:
        module = bare_copy(network.get_submodule(layer.name))
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

        # Both grow with the rank of a decomposition, so all ranks above the first one
        # without gain have none.
        with_gain = [
            rank
            for span in layer.spans
            for rank in span[: bisect_left(span, True, key=lambda r: not gains(r))]
        ]
        if with_gain and layer.ladder is None:
            kept.append(replace(layer, max_rank=with_gain[-1]))
        elif with_gain and layer.ladder is not None:
            ladder = layer.ladder.only(with_gain)
            kept.append(replace(layer, decomposition=ladder, max_rank=len(with_gain)))
    if not kept:
        raise ValueError(
            "No layer gains from any rank: none needs fewer multiply-adds than dense. "
            f"Layers: {', '.join(layer.name for layer in layers)}. Choose other "
            "layers, or leave skip_no_gain out."
        )
    return tuple(kept)


def count_macs(module: nn.Module, inputs: Inputs) -> int:
    """Count the multiply-adds of one call.

    Args:
        module: Any module; its mode is used.
        inputs: Shape `n x ...`; also on the meta device, if the module is.

    Returns:
        Multiply-adds of matrix products and convolutions, for all n samples together.

    Example:
        >>> count_macs(nn.Linear(30, 20), torch.zeros(2, 30))
        1200
    """
    with _counted() as counter, torch.no_grad():
        call_network(module, inputs)
    # One multiply-add is two floating point operations.
    return int(counter.get_total_flops()) // 2


def run_counted(
    network: nn.Module, layers: Sequence[LayerSpec], example: Inputs
) -> tuple[dict[str, list[torch.Size]], int]:
    """Run a network once and see which of its layers are called.

    Args:
        network: Its hooks and modes are left as they are.
        layers: Layers of it.
        example: A batch of inputs. Shape `n x ...`.

    Returns:
        The shapes of the inputs of each layer, one per call; and the multiply-adds of
        the network, for all n samples together.
    """
    # Scaled dot products are not counted where they are one operation.
    with (
        input_shapes(network, layers) as shapes,
        evaluation_mode(network),
        sdpa_kernel(SDPBackend.MATH),
        _counted() as counter,
    ):
        forward(network, example)
    return shapes, int(counter.get_total_flops()) // 2


@contextmanager
def input_shapes(
    network: nn.Module, layers: Iterable[LayerSpec]
) -> Iterator[dict[str, list[torch.Size]]]:
    """Note the shapes of the inputs of layers while the network runs.

    Args:
        network: Its hooks are left as they are.
        layers: Layers of it.

    Yields:
        Layer name to the shapes, one per call; filled by forward passes.
    """
    shapes: dict[str, list[torch.Size]] = {layer.name: [] for layer in layers}
    handles = []
    for name, seen in shapes.items():

        def note(
            module: nn.Module,
            arguments: tuple[Tensor, ...],
            keywords: dict[str, Tensor],
            seen: list[torch.Size] = seen,
        ) -> None:
            (first, *_) = (*arguments, *keywords.values())
            seen.append(first.shape)

        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with _unfused():
            yield shapes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unfused() -> Iterator[None]:
    """Let torch call the parts of encoder layers and attention.

    Without gradients it runs them whole, as one operation that calls no part and whose
    multiply-adds are not counted.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """Count operations without the warning that compiled modules raise."""
    with (
        _unfused(),
        warnings.catch_warnings(),
        FlopCounterMode(display=False) as counter,
    ):
        warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)`")
        yield counter


def _meta_macs(module: nn.Module, shapes: list[torch.Size]) -> int:
    """Count the multiply-adds of a module on the meta device, for all its calls."""
    dtype = layer_weights(module)[0].dtype
    if isinstance(module, nn.Embedding | LowRankEmbedding):
        dtype = torch.long
    return sum(
        count_macs(module, torch.empty(shape, dtype=dtype, device="meta"))
        for shape in shapes
    )
