"""A transformer and a depthwise network: what is compared, and the page."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.traces import Trace
from benchmarks.networks import any_network
from benchmarks.networks.any_network import render_any_network
from compression_adapters import compression_problem, save_compressed


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compressed_transformer_is_the_same_after_loading_and_exports():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = torch.rand(60, 1, 28, 28)
    network = any_network.Rows().eval()
    problem = compression_problem(network, images, gamma=1.0, tie=lambda name: "all")
    small, ranks = problem.compress({"all": 0.5}), problem.ranks({"all": 0.5})
    # The projection inside nn.MultiheadAttention is left alone.
    assert not any("self_attn" in name for name in ranks)
    assert any("linear1" in name for name in ranks)
    found = any_network.differences(
        small,
        lambda folder: save_compressed(small, problem.layers, ranks, folder),
        any_network.Rows,
        images[:2],
    )
    assert found["reloaded"] == 0.0
    assert max(found.values()) < 1e-4


def test_the_page_has_a_row_for_each_network():
    result = {
        "layers": 6,
        "coordinates": 6,
        "holds": True,
        "evaluations": 30,
        "seconds": 9.6,
        "ratio": 0.301,
        "top1_original": 0.9,
        "top1": 0.89,
        "reloaded": 0.0,
        "torch_export": 1e-6,
        "onnx": 2e-6,
    }
    jobs = any_network.plan(None)
    assert [row["network"] for row, _ in jobs] == list(any_network.NETWORKS)
    traces = [
        Trace("any_network", row, seed, result, [], {"revision": "abc"})
        for row, seed in jobs
    ]
    page = render_any_network(traces)
    row = "| transformer | 6, 6 | 0.05 | yes | 30 | 10 | 30.1 | 90.00 | 89.00 | 0.0e+00"
    assert row in page
    assert "| mobilenet_v3 |" in page
