from __future__ import annotations

import pandas as pd
import pytest

from compression_adapters.report.plots import (
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
