"""A call without a number, within a time, and what it says."""

import re
import time

import pytest
import torch
from torch import nn

from compression_adapters import compress, compress_to
from compression_adapters.options import DEFAULT_GAMMA, CompressionOptions
from compression_adapters.search.loop import SearchLoop
from compression_adapters.search.time_limit import TimeLimit
from tests.helpers.networks import pool, small_network
from tests.helpers.structured import Encoder, sentences

QUICK = {"delta": 0.2, "level": "pairwise", "progress": False}


def test_no_number_is_the_relative_loss_at_the_default_weight():
    result = compress(small_network(), pool(), **QUICK)
    assert result.problem.gamma == DEFAULT_GAMMA
    assert result.problem.loss.__name__ == "relative_squared_l2"
    assert result.certificate.holds
    held_out = int(0.4 * 400)
    assert result.statement.count == held_out
    scaled = small_network()
    with torch.no_grad():
        scaled[-1].weight.mul_(1000.0)
        scaled[-1].bias.mul_(1000.0)
    # The unit of the outputs does not matter.
    assert compress(scaled, pool(), **QUICK).ranks == result.ranks


@pytest.mark.parametrize("loss", ["disagreement", "cosine_distance"])
def test_losses_with_a_unit_of_their_own_need_no_number_either(loss):
    asked = CompressionOptions.of(loss=loss).with_default_target()
    assert asked.target.gamma == DEFAULT_GAMMA
    assert asked.problem.loss == loss


def test_other_losses_do():
    with pytest.raises(
        ValueError, match=r"Expected one of gamma, ratio.*got none\. Only"
    ):
        compress(small_network(), pool(), loss="kl_divergence")


def test_three_sentences_say_what_came_out():
    result = compress(small_network(), pool(), search=False, progress=False)
    size, quality, certified = str(result).split("\n")
    assert re.fullmatch(
        r"[\d.]+% of the weights of 2 layers are left, [\d.]+% of the whole network\.",
        size,
    )
    share = result.layers["weights"].sum() / result.layers["weights_before"].sum()
    assert size.startswith(f"{share:.1%} of")
    assert quality == f"It {result.statement.sentence()}."
    assert certified.startswith("Not certified: it was taken from the price path")
    shown = result._repr_html_()
    assert shown.count("<p>") == 3
    assert "<table" in shown
    assert "rank" in shown


def test_the_sentences_of_a_search_name_its_certificate_and_its_loss():
    found = compress(small_network(), pool(), gamma=1.0, **QUICK)
    _, quality, certified = found.sentences()
    assert quality == f"The loss (squared_l2) is {found.loss.mean:.4g}."
    assert "Certified: with confidence 0.95" in certified
    assert "by more than 0.2 (level pairwise" in certified
    open_ended = compress(
        small_network(),
        pool(),
        gamma=1.0,
        loss="relative_squared_l2",
        max_trials=3,
        delta=1e-6,
        progress=False,
    )
    _, quality, certified = open_ended.sentences()
    assert quality.startswith("The squared error of the outputs is")
    assert "used all its evaluations" in certified
    hidden = compress(Encoder("hidden").eval(), sentences(200), search=False)
    assert "has a cosine of" in str(hidden)


def slow_trials(monkeypatch, seconds):
    """Let each trial take so long by the clock, and no time at all in fact."""
    now = [time.perf_counter()]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    evaluate = SearchLoop._evaluate

    def later(self, index, parameterization):
        now[0] += seconds
        return evaluate(self, index, parameterization)

    monkeypatch.setattr(SearchLoop, "_evaluate", later)


def test_a_search_ends_when_its_time_is_over(monkeypatch):
    slow_trials(monkeypatch, 20.0)
    result = compress(
        small_network(), pool(), gamma=1.0, delta=1e-6, minutes=4.0, progress=False
    )
    completed = (result.trials["status"] == "COMPLETED").sum()
    # Seven tenths of four minutes, twenty seconds a trial, and the last one as reserve.
    assert result.stop_reason == "out_of_time"
    assert 7 <= completed <= 9
    assert "the time was over (minutes)" in str(result)


@pytest.mark.filterwarnings("ignore")
def test_without_any_time_there_is_a_result_of_two_evaluations():
    with pytest.warns(UserWarning, match="not refitted: TimeoutError.*no time left"):
        result = compress(
            small_network(), pool(), gamma=1.0, delta=1e-6, minutes=1e-6, progress=False
        )
    assert result.stop_reason == "out_of_time"
    assert (result.trials["status"] == "COMPLETED").sum() == 2
    assert result.finish is None


@pytest.mark.filterwarnings("ignore")
def test_every_way_to_ask_ends_in_time():
    common = {"minutes": 1e-6, "progress": False}
    for options in ({"ratio": 0.9}, {"loss_at_most": 1e6}, {"agreement_at_least": 0.5}):
        for search in (True, False):
            result = compress(
                small_network(), pool(), delta=1e-6, search=search, **options, **common
            )
            assert len(result.trials) <= 12
            assert result.network is not None
    assert len(compress(small_network(), pool(), search=False, **common).trials) <= 10
    found = compress_to(small_network(), pool(), ratio=0.9, delta=1e-6, **common)
    assert len(found.gammas) == 1


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf")])
def test_minutes_are_positive(minutes):
    with pytest.raises(ValueError, match="minutes must be positive and finite"):
        compress(small_network(), pool(), minutes=minutes)


def test_minutes_and_workers_exclude_each_other():
    with pytest.raises(ValueError, match="minutes cannot be combined with workers"):
        compress(small_network(), pool(), minutes=1.0, workers=2)


def test_a_limit_keeps_time_back_for_the_end():
    limit = TimeLimit.of(10.0, refit=True)
    assert limit.leaves(6.9 * 60)
    assert not limit.leaves(7.1 * 60)
    assert TimeLimit.of(10.0, refit=False).leaves(9.4 * 60)
    assert TimeLimit().leaves(1e12)
    assert isinstance(small_network(), nn.Module)
