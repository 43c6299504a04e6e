from __future__ import annotations

import pandas as pd
import pytest
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard
from ax.core.analysis_card import NotApplicableStateAnalysisCard

from ax_pac import (
    IncumbentHistory,
    certificate_analyses,
    certificate_history,
    certificate_records,
    time_table,
)
from tests.helpers.ax_loops import experiment_of, new_client, run


@pytest.fixture
def searched(finished):
    return finished[0]


def test_a_search_is_shown_by_four_cards(searched):
    cards = searched.compute_analyses(certificate_analyses(), display=False)
    assert all(isinstance(card, PlotlyAnalysisCard) for card in cards)
    certificate, gap, incumbent, times = cards
    history = certificate_history(searched)
    assert list(certificate.df["failure_probability"]) == list(
        history["failure_probability"]
    )
    assert list(gap.get_figure().data[0].y) == pytest.approx(list(history["score"]))
    # The certificate's own quantile: the score of a certified search is below it.
    assert gap.get_figure().data[0].y[-1] < gap.get_figure().data[1].y[-1] < 0
    assert list(incumbent.get_figure().data[1].y) == pytest.approx(
        list(history["incumbent_mean"])
    )
    assert len(times.df) == len(experiment_of(searched).trials)


def test_before_the_first_certificate_the_cards_say_what_they_wait_for():
    client = new_client()
    for _ in range(2):
        cards = client.compute_analyses(certificate_analyses(), display=False)
        assert all(isinstance(card, NotApplicableStateAnalysisCard) for card in cards)
        run(client, max_trials=3)
    assert "the initial design is complete (3 observations so far)" in cards[0].blob


def test_experiments_certified_by_an_earlier_version_say_so(searched):
    client = new_client()
    experiment = experiment_of(client)
    run(client, max_trials=6)
    for record in certificate_records(experiment):
        del record["incumbent_mean"], record["incumbent_sd"], record["before_trial"]
    message = IncumbentHistory().validate_applicable_state(experiment)
    assert message is not None
    assert "earlier version" in message
    assert len(time_table(client)) == 6


def test_the_incumbent_is_shown_in_the_units_and_direction_of_the_objective(searched):
    history = certificate_history(searched)
    records = certificate_records(experiment_of(searched))
    arm = experiment_of(searched).arms_by_name[records[-1]["incumbent_arm"]]
    exact = sum((value - 0.3) ** 2 for value in arm.parameters.values())
    last = history.iloc[-1]
    assert 0.0 < last["incumbent_sd"] < 0.05
    assert abs(last["incumbent_mean"] - exact) < 4 * last["incumbent_sd"]


def test_times_add_up_to_fits_certificates_proposals_and_evaluations(searched):
    times = time_table(searched)
    assert list(times["trial_index"]) == list(experiment_of(searched).trials)
    assert (times[["fit", "certify", "propose", "evaluate"]] >= 0).all(axis=None)
    # The first five trials are space-filling: no certificate was computed for them.
    assert (times["certify"] > 0).tolist() == [False] * 5 + [True] * (len(times) - 5)
    assert isinstance(times, pd.DataFrame)
