"""Write a network as ONNX, for batches of any size, and check what was written."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.structured_inputs import (
    Inputs,
    as_arguments,
    as_inputs,
    call_network,
    leaves,
    map_tensors,
    repeated,
)

_TOLERANCE: Final = 1e-3
"""Difference of an output to that of PyTorch, as a share of the largest output."""


def export_onnx(network: nn.Module, inputs: Any, path: str | Path) -> Path:
    """Write a network as ONNX; the number of inputs in a batch stays open.

    Where ONNX Runtime is installed, the file is run on the inputs and on a batch of
    another size, and has to give the outputs of the network.

    Args:
        network: Any network, compressed or not. Runs in eval mode on the device it is
            on; its modes are restored.
        inputs: A few inputs, one tensor or several, as for `compress`. Shape `n x ...`.
        path: Of the file; an existing one is replaced. Networks of more than 2 GB get
            a file with their weights beside it.

    Returns:
        The path.

    Raises:
        ImportError: when the extra `export` is missing.
        ValueError: when the network cannot be written for batches of any size, or the
            file gives other outputs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(
        ...         nn.Linear(4, 2), torch.ones(3, 4), f"{folder}/small.onnx"
        ...     )
        ...     path.is_file()
        True
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ImportError(
            "To write ONNX, PyTorch needs onnx and onnxscript: pip install "
            '"ax-pac[export]", which also brings ONNX Runtime.'
        )
    path, few = Path(path), as_inputs(inputs)
    # Of one input, the number would be taken for a constant.
    few = repeated(few, max(2, len(few)))
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    few = few.to(device)
    with evaluation_mode(network):
        positional, named = as_arguments(network, few)
        shapes = map_tensors(lambda tensor: {0: "batch"}, positional or named)
        try:
            with warnings.catch_warnings():
                # Of PyTorch's exporter about its own parts.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    network,
                    positional,
                    str(path),
                    kwargs=named,
                    dynamo=True,
                    dynamic_shapes=shapes,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise ValueError(
                f"The network cannot be written for batches of any size: {reason}. "
                "Does its forward pass use the number of inputs as a constant, or "
                "branch on values? torch.onnx.export writes it for one size."
            ) from error
        if importlib.util.find_spec("onnxruntime") is not None:
            for size in (len(few), len(few) + 1):
                _require_same(network, repeated(few, size), path)
    return path


def _require_same(network: nn.Module, inputs: Inputs, path: Path) -> None:
    """Refuse a file that gives other outputs than the network."""
    import onnxruntime

    expected = list(leaves(call_network(network, inputs)))
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, _feed(network, inputs, session.get_inputs()))
    for one, other in zip(expected, map(torch.from_numpy, found), strict=True):
        one = one.detach().cpu().to(other.dtype)
        if one.shape != other.shape:
            raise ValueError(
                f"{path}: for {len(inputs)} inputs ONNX Runtime gives outputs of shape "
                f"{tuple(other.shape)}, the network {tuple(one.shape)}."
            )
        off = float((one - other).abs().max()) if one.numel() else 0.0
        allowed = _TOLERANCE * max(1e-6, float(one.abs().max()) if one.numel() else 0.0)
        if not off <= allowed:
            raise ValueError(
                f"{path}: for {len(inputs)} inputs the outputs of ONNX Runtime differ "
                f"from the network's by up to {off:.3g}. Does it draw random numbers, "
                "or branch on values?"
            )


def _feed(network: nn.Module, inputs: Inputs, wanted: Any) -> dict[str, Any]:
    """Return the inputs of a session by name, in the order of their tensors."""
    positional, named = as_arguments(network, inputs)
    tensors = [t for t in leaves(positional or named) if isinstance(t, Tensor)]
    if len(wanted) != len(tensors):  # those without influence are left out
        kept = {each.name for each in wanted}
        tensors = [named[name] for name in named if name in kept]
    return {
        each.name: tensor.detach().cpu().numpy()
        for each, tensor in zip(wanted, tensors, strict=True)
    }
