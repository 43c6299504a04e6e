"""Counts, errors of layers, and time, on a network of two layers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.data_aware.factors import (
    ERROR_FRACTIONS,
    layer_errors,
    run_counts,
    run_layers,
    run_time,
)
from benchmarks.data_aware.page import layer_ratios
from benchmarks.data_aware.subjects import at_fraction, layers_of, subject
from compression_adapters.network.truncation import factorize_network


def test_errors_are_those_of_the_layers_on_the_inputs_of_the_original(tiny):
    data, layers = subject(tiny), layers_of(tiny)
    factors = factorize_network(data.network, layers)
    cut = {
        layer.name: [
            ("weights", 0.3, layer.decomposition.truncate(factors[layer.name], rank))
        ]
        for layer in layers
        for rank in [at_fraction([layer], 0.3)[layer.name]]
    }
    rows = layer_errors(data.network, layers, cut, data.test)
    with torch.no_grad():
        inside = data.network[1](data.network[0](data.test))
        gap = cut["2"][0][2](inside) - data.network[2](inside)
        size = inside @ data.network[2].weight.T
    assert [row["layer"] for row in rows] == ["0", "2"]
    # Single precision.
    expected = float(gap.square().sum() / size.square().sum())
    assert rows[1]["error"] == pytest.approx(expected, rel=1e-4)


def test_factors_of_inputs_near_a_plane_lose_less(tiny):
    found = run_layers(0, {"network": tiny, "calibrate": 100})
    ratios = layer_ratios(found["layers"])
    assert set(ratios) == set(ERROR_FRACTIONS)
    assert all(value < 1.0 for each in ratios.values() for value in each.values())
    counted = run_counts(0, {"network": tiny, "counts": (0, 100), "images": 50})
    alone, fitted = counted["rows"]
    assert (alone["count"], fitted["count"]) == (0, 100)
    assert fitted["loss"][1] < alone["loss"][1]
    assert fitted["seconds"] > 0.0


def test_both_factors_and_ten_evaluations_are_timed_in_each_round(tiny):
    found = run_time(0, {"network": tiny, "rounds": 2})
    assert len(found["rounds"]) == 2
    parts = {"weights", "evaluations", "data", "moments"}
    assert all(set(each) == parts for each in found["rounds"])
    assert all(seconds > 0.0 for each in found["rounds"] for seconds in each.values())
