"""What is left of a speed where networks are deployed: compiled, as ONNX, as int8."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks.cifar import cifar10, resnet
from benchmarks.speed.runs import BATCH, NETWORK, SPEEDUP, choose
from compression_adapters import compress, export_onnx, plain_layers
from compression_adapters.presets import mnist, trained_fc3

_PAIRS = 41
_RATIO = 0.3


def run_deploy(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Take a network from the price path, and time it as it would be deployed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters and quantisation warn of themselves
        if settings["network"] == NETWORK:
            return _compiled_and_exported(seed)
        return _quantized(seed)


def _compiled_and_exported(seed: int) -> dict[str, Any]:
    """PyTorch, `torch.compile` and ONNX Runtime, each before and after."""
    import onnxruntime

    pool, network = cifar10(train=True)[0], resnet(NETWORK)
    found = compress(
        network,
        pool,
        speedup=SPEEDUP,
        search=False,
        choose=choose,
        latency_batch=BATCH,
        seed=seed,
        calibration_seed=seed,
        progress=False,
    )
    images = pool[:BATCH]
    rows: list[dict[str, Any]] = []
    small = found.network
    rows.append(_row("PyTorch", _call(network, images), _call(small, images)))
    rows.append(
        _row(
            "torch.compile",
            *(_call(torch.compile(each), images) for each in (network, small)),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        calls, sizes, outputs = [], [], []
        for name, each in (("before", network), ("after", small)):
            path = export_onnx(each, images[:2], Path(folder) / f"{name}.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            feed = {session.get_inputs()[0].name: images.numpy()}
            calls.append(lambda s=session, f=feed: s.run(None, f))
            outputs.append(torch.from_numpy(session.run(None, feed)[0]))
            files = Path(folder).glob(f"{name}.onnx*")
            sizes.append(sum(file.stat().st_size for file in files))
        with torch.no_grad():
            off = float((outputs[1] - small(images)).abs().max())
        rows.append(_row("ONNX Runtime", *calls) | {"bytes": sizes, "difference": off})
    return {"rows": rows, "ratio": found.size_ratio, "batch": BATCH}


def _quantized(seed: int) -> dict[str, Any]:
    """FC3 and FC3 factored, each with float and with int8 weights."""
    network, (images, _) = trained_fc3(), mnist(train=True)
    test_images, labels = mnist(train=False)
    found = compress(
        network,
        images,
        ratio=_RATIO,
        search=False,
        seed=seed,
        calibration_seed=seed,
        progress=False,
    )
    quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    forms = {"original": network, "factored": plain_layers(found.network)}
    for name, each in list(forms.items()):
        forms[f"{name}, int8"] = quantize(each, {nn.Linear}, dtype=torch.qint8)
    batch = images[:BATCH]
    times = _interleaved({name: _call(each, batch) for name, each in forms.items()})
    whole = times["original"]
    rows = []
    for name, each in forms.items():
        file = io.BytesIO()
        torch.save(each.state_dict(), file)
        with torch.no_grad():
            right = (each(test_images).argmax(1) == labels).double().mean()
        rows.append(
            {
                "form": name,
                "bytes": file.getbuffer().nbytes,
                "milliseconds": 1e3 * statistics.median(times[name]),
                "ratio": statistics.median(
                    own / all_ for own, all_ in zip(times[name], whole, strict=True)
                ),
                "top1": float(right),
            }
        )
    return {"rows": rows, "ratio": found.size_ratio, "batch": BATCH}


def _row(
    name: str, before: Callable[[], object], after: Callable[[], object]
) -> dict[str, Any]:
    """Time two in interleaved pairs."""
    times = _interleaved({"before": before, "after": after})
    one, other = times["before"], times["after"]
    return {
        "runtime": name,
        "before": 1e3 * statistics.median(one),
        "after": 1e3 * statistics.median(other),
        "ratio": statistics.median(b / a for a, b in zip(one, other, strict=True)),
    }


def _interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the seconds of each call, in turn, after two that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_PAIRS + 2):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number >= 2:
                times[name].append(time.perf_counter() - begin)
    return times


def _call(network: Any, inputs: Tensor) -> Callable[[], object]:
    """Return a forward pass without gradients."""

    def call() -> object:
        with torch.inference_mode():
            return network(inputs)

    return call
