from __future__ import annotations

import pandas as pd
import pytest

from compression_adapters.report.plots import (
    SizeAxis,
    plot_ladders,
    plot_layer_errors,
    plot_objective,
    plot_ranks,
    plot_ratio_against_accuracy,
    plot_ratio_against_loss,
)
from tests.compression_adapters.report.test_run import TRIALS


def test_objective_shows_every_completed_trial_with_its_interval():
    figure = plot_objective(TRIALS, incumbent=1)
    shown = [x for trace in figure.data[:-1] for x in trace.x]
    assert shown == [0, 1]
    assert figure.data[0].error_y.array[0] == pytest.approx(1.96 * 0.1)
    assert list(figure.data[-1].x) == [1]


def test_the_networks_that_a_search_begins_with_are_shown_too():
    trials = TRIALS.assign(node=[None, *TRIALS["node"].iloc[1:]])
    figure = plot_objective(trials, incumbent=1)
    assert figure.data[0].name.startswith("first trials")
    shown = sorted(x for trace in figure.data[:-1] for x in trace.x)
    assert shown == [0, 1]


def test_a_dense_layer_is_drawn_at_its_maximal_rank():
    layers = pd.DataFrame(
        {
            "layer": ["a", "b"],
            "rank": [3, "dense"],
            "max_rank": [10, 5],
            "ratio": [0.3, 1.0],
        }
    )
    figure = plot_ranks(layers)
    assert list(figure.data[1].y) == [3, 5]
    assert figure.data[1].text[1].startswith("dense")


def test_predicted_and_measured_errors_stand_side_by_side():
    layers = pd.DataFrame(
        {"layer": ["a", "b"], "predicted_error": [0.1, 0.0], "output_error": [0.2, 0.0]}
    )
    figure = plot_layer_errors(layers)
    assert [list(trace.y) for trace in figure.data] == [[0.1, 0.0], [0.2, 0.0]]
    assert list(figure.data[0].x) == ["a", "b"]


def test_loss_and_accuracy_are_drawn_against_the_ratio():
    figure = plot_ratio_against_loss(TRIALS, incumbent=1)
    assert [list(trace.x) for trace in figure.data] == [[0.5], [0.1]]
    points = pd.DataFrame(
        {"name": ["original"], "compression_ratio": [1.0], "accuracy": [0.9]}
    )
    assert list(plot_ratio_against_accuracy(points).data[0].y) == [0.9]


LADDERS = [
    {
        "layer": "a",
        "kinds": ["low_rank_conv", "tucker", "low_rank_conv"],
        "ranks": [1, 4, 9],
        "sizes": [0.001, 0.002, 0.003],
        "errors": [0.5, 0.1, 0.02],
        "dense": 0.004,
        "chosen": 1,
    },
    {
        "layer": "b",
        "kinds": ["svd"],
        "ranks": [2],
        "sizes": [0.0005],
        "errors": [0.0],
        "dense": 0.001,
        "chosen": None,
    },
]


def test_a_ladder_shows_its_forms_and_the_one_that_was_chosen():
    figure = plot_ladders(LADDERS, "milliseconds", 1e3)
    by_axis = {
        axis: [trace for trace in figure.data if (trace.xaxis or "x") == axis]
        for axis in ("x", "x2")
    }
    low_rank, tucker, dense, chosen = by_axis["x"]
    assert list(low_rank.x) == pytest.approx([1.0, 3.0])
    assert list(low_rank.y) == [0.5, 0.02]
    assert tucker.text == ("tucker, rank 4",)
    assert list(dense.x) == pytest.approx([4.0])
    assert (list(chosen.x), list(chosen.y)) == ([2.0], [0.1])
    svd, dense, chosen = by_axis["x2"]
    # No error is drawn below the smallest one, on a log axis.
    assert list(svd.y) == list(dense.y) == list(chosen.y) == [0.01]
    assert list(svd.customdata) == [0.0]
    assert list(chosen.x) == list(dense.x)
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(shown) == [
        *("chosen", "dense, no error", "low_rank_conv", "svd", "tucker")
    ]


def test_only_the_largest_of_many_layers_are_drawn():
    many = [
        {**LADDERS[1], "layer": str(i), "dense": 1.0 + i % 7 + 0.01 * i}
        for i in range(40)
    ]
    figure = plot_ladders(many, "weights", 1.0)
    titles = [a.text for a in figure.layout.annotations[:24]]
    expected = sorted(many, key=lambda each: -each["dense"])[:24]
    assert sorted(titles) == sorted(each["layer"] for each in expected)
    assert "24 largest of 40" in figure.layout.title.text


def test_networks_are_drawn_in_the_unit_that_was_asked_for():
    axis = SizeAxis("milliseconds", 40.0)
    figure = plot_ratio_against_loss(TRIALS, incumbent=None, axis=axis)
    assert [list(trace.x) for trace in figure.data] == [[20.0, 4.0]]
    assert figure.layout.xaxis.title.text == "milliseconds"
    assert figure.layout.shapes[0].x0 == 40.0
    points = pd.DataFrame(
        {
            "name": ["original", "3", "compressed"],
            "compression_ratio": [1.0, 0.5, 0.1],
            "accuracy": [0.9, 0.8, 0.85],
        }
    )
    evaluated, named = plot_ratio_against_accuracy(points, axis).data
    assert list(evaluated.x) == [20.0]
    assert list(named.text) == ["original", "compressed"]
