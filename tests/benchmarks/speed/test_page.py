"""What the page of the speeds makes of its traces."""

from __future__ import annotations

from benchmarks.harness.traces import Trace
from benchmarks.speed import plan as speed
from benchmarks.speed.page import render_speed


def trace(settings, seed, result):
    return Trace("speed", settings, seed, result, [], {"revision": "abc"})


def found(ratio, top1, **more):
    machine = {
        **{"device": "cpu", "threads": 1, "dtype": "float32"},
        "memory_format": "contiguous",
    }
    return {
        **{
            "holds": True,
            "evaluations": 40,
            "seconds": 150.0,
            "cpu_seconds": 120.0,
            "whole_weights": 0.2,
        },
        **{"top1": top1, "top1_original": 0.8, "ranks": {"conv1": 8}},
        "latency": {"ratio": ratio, "predicted": ratio - 0.01, "machine": machine},
        "table": {
            "seconds": 30.0,
            "known": 0.75,
            "layers": {"conv1": {"dense": 0.002, "times": 9}},
        },
        **more,
    }


def test_searches_weights_and_predictions_have_their_tables():
    points = [
        {"predicted": 0.5 * (1 + 0.01 * i), "measured": 0.5, "low": 0.5, "high": 0.5}
        for i in range(10)
    ]
    predicted = {
        **{"points": points, "milliseconds": 40.0, "table_seconds": 30.0, "known": 0.8}
    }
    files = render_speed(
        [
            trace(speed.speedup(True), 0, found(0.49, 0.795)),
            trace(speed.speedup(True), 1, found(0.48, 0.793)),
            trace(speed.speedup(False, "none"), 0, found(0.5, 0.79)),
            trace(speed.weights(), 0, found(0.5, 0.794, whole_weights=0.149)),
            trace(speed.prediction(50), 0, predicted),
        ]
    )
    page = files["speed.md"]
    assert "| 2/2 | 48.5 (48.0-49.0) |" in page
    assert "| -0.60 (-0.70--0.50) |" in page
    assert "| 2 | price path, no search | 1 | - | 50.0 |" in page
    assert "| `conv1` | 2.00 | 8 |" in page
    assert "| 15 | 0 | 14.9 | -0.60 | 120 |" in page
    # Errors of 0 to 9 per cent.
    assert "| 50 | 40.0 | 10 | 4.5 | 9.0 | 30 | 80 |" in page
    assert "figures/speed_prediction.svg" in files
    assert "figures/speed_prediction.svg" in page


def test_what_is_deployed_has_its_tables():
    torch_, onnx = (
        {"runtime": name, "before": 40.0, "after": 22.0, "ratio": 0.55}
        for name in ("PyTorch", "ONNX Runtime")
    )
    exported = {
        "rows": [torch_, onnx | {"bytes": [45e6, 8e6], "difference": 1e-5}],
        **{"ratio": 0.5, "batch": 50},
    }
    quantized = {
        "rows": [
            {
                **{"form": "factored, int8", "bytes": 0.6e6, "milliseconds": 1.25},
                **{"ratio": 0.4, "top1": 0.981},
            }
        ],
        **{"ratio": 0.3, "batch": 50},
    }
    page = render_speed(
        [
            trace(speed.deploy("resnet18"), 0, exported),
            trace(speed.deploy("fc3"), 0, quantized),
        ]
    )["speed.md"]
    assert "| PyTorch | 40.0 | 22.0 | 55.0 | - |" in page
    assert "| ONNX Runtime | 40.0 | 22.0 | 55.0 | 45.0 to 8.0 |" in page
    assert "| factored, int8 | 0.60 | 1.25 | 40.0 | 98.10 |" in page


def test_every_form_is_a_row_of_its_own():
    page = render_speed(
        [
            trace(speed.speedup(False, "none"), 0, found(0.5, 0.79)),
            trace(speed.speedup(False, "none", forms="best"), 0, found(0.49, 0.795)),
        ]
    )["speed.md"]
    assert '| 2 | price path, no search, `choose="best"` | 1 | - | 49.0 |' in page
    assert "| 2 | price path, no search | 1 | - | 50.0 |" in page
