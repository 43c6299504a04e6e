from __future__ import annotations

from ax_pac import certificate_history, plot_certificate_history
from tests.helpers.ax_loops import new_client


def test_history_of_a_new_search_is_empty_and_can_be_drawn():
    history = certificate_history(new_client())
    assert history.empty
    assert len(plot_certificate_history(history).data[0].x) == 0


def test_history_holds_every_certificate_and_its_threshold_is_drawn(finished):
    client, _ = finished
    history = certificate_history(client)
    figure = plot_certificate_history(history)
    assert list(figure.data[0].x) == list(history["num_trials"])
    assert list(figure.data[1].y) == [0.05, 0.05]
    assert "0.95" in figure.data[1].name
    assert (history[["seconds_fit", "seconds_propose"]] >= 0).all(axis=None)
