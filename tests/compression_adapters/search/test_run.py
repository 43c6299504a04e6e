from __future__ import annotations

import itertools
import logging
import warnings

import pandas as pd
import pytest
import torch
from ax.core.trial_status import TrialStatus
from torch import nn

from ax_pac import certificate_records
from compression_adapters import (
    compression_problem,
    compression_ratio,
    squared_l2,
)
from compression_adapters.api import compress
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.options import SearchOptions
from compression_adapters.rank_space.parameters import parameterization_from_ranks
from compression_adapters.search.client import new_client
from compression_adapters.search.initial_design import (
    attach_first_points,
    beginning,
    path_points,
)
from compression_adapters.search.known_part import known_part_of
from compression_adapters.search.loop import EvaluationError
from compression_adapters.search.result import CompressionResult
from compression_adapters.search.trials import trial_seed
from tests.helpers.networks import labels, pool, small_network

SETTINGS = {"gamma": 0.5, "delta": 0.2, "epsilon": 0.05, "progress": False}
# Certified after the initial design and three proposals of the model.
SHORT = {**SETTINGS, "delta": 0.05, "level": "pairwise"}
# The price path would evaluate each layer before the first trial.
CALLED_BY_TRIALS = {"start": "space-filling"}
# Certified by the initial design.
EASY = {**SHORT, "delta": 0.5}


@pytest.fixture(scope="module")
def searched():
    """A network, its tensors before a search to the certificate, and the result."""
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return network, before, compress(network, pool(), **SETTINGS)


def statuses(result: CompressionResult) -> list[str]:
    return list(result.trials["status"])


class FailingLoss:
    """The squared L2 loss, failing at some of its calls."""

    def __init__(self, calls: set[int], error: type[BaseException]) -> None:
        # The dry run before the search is call 0.
        self.calls, self.error, self.count = calls, error, -1

    def __call__(self, network, batch):
        self.count += 1
        if self.count in self.calls:
            raise self.error(f"call {self.count}")
        return squared_l2(network, batch)


def test_certified_network_is_within_delta_of_the_exhaustive_optimum(searched):
    network, _, result = searched
    inputs = pool()
    assert result.stop_reason == "certified"
    assert result.certificate.holds
    problem = result.problem

    def full_objective(ranks):
        """On the whole pool, by the definition of Eq. 3."""
        with torch.inference_mode():
            reference = network(inputs)
            small = problem.compress(
                {
                    parameter.name: parameter.scales[0].unit_from_rank(ranks[name])
                    for parameter in problem.parameters
                    for name in parameter.layers
                }
            )
            loss = (small(inputs) - reference).square().sum(-1).mean().item()
        return SETTINGS["gamma"] * loss + compression_ratio(problem.layers, ranks)

    choices = [[*range(1, layer.max_rank + 1), "dense"] for layer in problem.layers]
    names = [layer.name for layer in problem.layers]
    best = min(
        full_objective(dict(zip(names, ranks, strict=True)))
        for ranks in itertools.product(*choices)
    )
    assert full_objective(result.ranks) - best < SETTINGS["delta"]


def test_result_is_consistent_and_the_reference_network_untouched(searched):
    network, before, result = searched
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)

    assert result.problem.ranks(result.parameterization) == result.ranks
    assert list(result.layers["rank"]) == list(result.ranks.values())
    incumbent = tuple(result.parameterization.values())
    assert incumbent == pytest.approx(result.certificate.incumbent)
    weights = sum(p.numel() for p in result.network.parameters() if p.ndim == 2)
    assert weights == result.layers["weights"].sum()
    assert not result.network.training
    row = result.trials.iloc[-1]
    assert row["objective"] == pytest.approx(
        SETTINGS["gamma"] * row["loss"] + row["compression_ratio"]
    )
    assert row["compression_ratio_sem"] == 0.0
    assert set(result.timings) == {"factorize", "fit", "propose", "evaluate", "total"}
    assert sum(result.timings.values()) <= 2 * result.timings["total"] + 1e-6


def test_same_seed_gives_the_same_search():
    options = {**SHORT, "delta": 0.01, "start": "space-filling"}
    one, two = (compress(small_network(), pool(), **options) for _ in range(2))
    assert (one.trials["node"] == "PAC").sum() >= 3
    assert one.trials.equals(two.trials)
    assert len({trial_seed(0, i) for i in range(100)}) == 100
    assert trial_seed(0, 1) != trial_seed(1, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "top1_error", "labels": labels()}, "loss"),
        ({"loss": "cross_entropy", "labels": labels()}, "loss"),
        ({"loss": "kl_divergence", "tie": lambda name: "all"}, "u_all"),
        ({"objective": "rate", "gamma": 20.0, "delta": 3.0}, "loss"),
        ({"encoding": "linear", "at_max": "factor", "min_rank": 2}, "loss"),
        ({"encoding": "energy"}, "loss"),
    ],
)
def test_every_way_to_ask_is_answered(options, expected):
    settings = {**SETTINGS, "delta": 1.0, "level": "pairwise", **options}
    result = compress(small_network(), pool(), max_trials=25, **settings)
    assert expected in result.trials
    assert result.certificate.num_observations == len(result.trials)


def test_generated_samples_need_no_pool():
    def generate(num_samples, rng):
        return torch.randn(num_samples, 20, generator=rng)

    result = compress(small_network(), generate, **EASY)
    assert result.certificate.holds


def test_a_budget_ends_a_search_without_a_certificate():
    result = compress(
        small_network(), pool(), max_trials=8, **{**SETTINGS, "delta": 1e-4}
    )
    assert result.stop_reason == "max_trials"
    assert len(result.trials) == 8
    assert not result.certificate.holds
    assert result.certificate.num_observations == 8


def test_interrupting_keeps_what_has_been_done():
    loss = FailingLoss({8}, KeyboardInterrupt)
    settings = {**SETTINGS, **CALLED_BY_TRIALS, "delta": 1e-3}
    result = compress(small_network(), pool(), loss=loss, **settings)
    assert result.stop_reason == "interrupted"
    assert statuses(result) == ["COMPLETED"] * 7 + ["ABANDONED"]
    assert result.certificate.num_observations == 7


def test_interrupting_before_there_is_a_result_interrupts():
    with pytest.raises(KeyboardInterrupt):
        compress(
            small_network(),
            pool(),
            loss=FailingLoss({2}, KeyboardInterrupt),
            **SETTINGS,
            **CALLED_BY_TRIALS,
        )


def test_a_failed_evaluation_is_recorded_and_the_search_goes_on():
    loss = FailingLoss({2, 5}, ZeroDivisionError)
    settings = {**SHORT, **CALLED_BY_TRIALS}
    result = compress(small_network(), pool(), loss=loss, **settings)
    failed = result.trials[result.trials["status"] == "FAILED"]
    assert list(failed.index) == [1, 4]
    assert failed["failed_reason"].iloc[0] == "ZeroDivisionError: call 2"
    assert result.certificate.holds


def test_three_failures_in_a_row_end_the_search_with_what_was_completed():
    loss = FailingLoss({4, 5, 6}, RuntimeError)
    settings = {**SETTINGS, **CALLED_BY_TRIALS}
    with pytest.raises(EvaluationError, match="3 evaluations in a row failed") as info:
        compress(small_network(), pool(), loss=loss, **settings)
    trials = info.value.client._experiment.trials_by_status
    assert len(trials[TrialStatus.COMPLETED]) == 3
    assert not trials[TrialStatus.RUNNING]


def test_a_finished_search_is_continued_with_a_tighter_delta():
    first = compress(small_network(), pool(), **EASY)
    assert first.certificate.holds
    second = compress(small_network(), pool(), client=first.client, **SHORT)
    assert len(second.trials) > len(first.trials)
    # A column of ranks is of another type once there is a dense layer among them.
    kept = second.trials.iloc[: len(first.trials)]
    pd.testing.assert_frame_equal(kept, first.trials, check_dtype=False)
    assert second.certificate.holds
    assert second.certificate.delta == SHORT["delta"]


def test_the_client_of_another_search_is_refused(searched):
    _, _, other = searched
    network = torch.nn.Sequential(torch.nn.Linear(20, 5))
    with pytest.raises(ValueError, match="the client belongs to another search"):
        compress(network, pool(), client=other.client, **SETTINGS)


def test_progress_is_shown_when_asked_for_and_only_then(capfd):
    compress(small_network(), pool(), **EASY)
    compress(small_network(), pool(), **{**EASY, "progress": None})
    quiet = capfd.readouterr()
    assert quiet.out == quiet.err == ""
    compress(small_network(), pool(), **{**SHORT, "progress": True})
    shown = capfd.readouterr().err
    assert "ratio" in shown
    assert "of 0.95" in shown


def test_the_log_level_of_ax_is_left_as_it_was():
    logger = logging.getLogger("ax.api.client")
    level = logger.level
    compress(small_network(), pool(), **EASY)
    assert logger.level == level


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"delta": 0.0}, "delta must be"),
        ({"epsilon": 1.5}, "epsilon must be"),
        ({"max_trials": 1}, "max_trials must be at least 2"),
        ({"loss": "l3"}, "loss must be one of"),
        ({"loss": "top1_error"}, "needs labels, and there are none"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(change, message):
    with pytest.raises((ValueError, EvaluationError), match=message):
        compress(small_network(), pool(), **{**SETTINGS, **change})


@pytest.mark.filterwarnings("ignore:Very small noise values")
def test_standard_errors_are_smoothed_for_the_sample_size_of_the_search():
    result = compress(small_network(), pool(), **SETTINGS, num_samples=20, max_trials=8)
    records = certificate_records(result.client._experiment)
    assert {record["settings"]["num_samples"] for record in records} == {20}
    # The final certificate is the search's own, not a second one of another question.
    assert len({record["data"] for record in records}) == len(records)


@pytest.mark.filterwarnings("ignore:Very small noise values")
@pytest.mark.parametrize("encoding", ["log", "energy", "linear"])
def test_the_same_network_is_always_the_same_arm(encoding):
    result = compress(
        small_network(),
        pool(),
        **{**SHORT, "delta": 0.01},
        encoding=encoding,
        max_trials=9,
    )
    parameters = result.problem.parameters
    experiment = result.client._experiment
    networks = set()
    for arm in experiment.arms_by_name.values():
        ranks = result.problem.ranks(arm.parameters)
        assert arm.parameters == parameterization_from_ranks(ranks, parameters)
        networks.add(tuple(ranks.values()))
    assert len(networks) == len(experiment.arms_by_name)
    for record in certificate_records(experiment):
        points = [
            dict(zip((p.name for p in parameters), record[name], strict=True))
            for name in ("challenger", "incumbent")
        ]
        assert result.problem.ranks(points[0]) != result.problem.ranks(points[1])


@pytest.mark.filterwarnings("ignore:Very small noise values")
def test_a_search_over_points_of_its_own_choice_is_continued():
    problem = compression_problem(small_network(), pool(), gamma=SHORT["gamma"])
    client = new_client(problem)
    for index, u in enumerate((0.03, 0.31, 0.5, 0.64, 0.82, 0.97)):
        point = {parameter.name: u for parameter in problem.parameters}
        outcome = problem.evaluate(point, seed=index)
        client.complete_trial(client.attach_trial(point), outcome)
    result = compress(small_network(), pool(), **SHORT, client=client)
    assert result.ranks == result.problem.ranks(result.parameterization)
    assert len(result.trials) == len(client._experiment.trials) > 6
    assert result.certificate.holds


def deep_network():
    """Eight layers one after the other: one that is cut to nothing ends it all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(20, 20) for _ in range(8)]
        with torch.no_grad():
            for layer in layers:
                nn.init.orthogonal_(layer.weight, gain=3.0)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("start", ["auto", "line"])
def test_the_diagonal_comes_first_and_counts(start):
    options = {"gamma": 1.0, "delta": 0.05, "level": "pairwise", "max_trials": 6}
    result = compress(deep_network(), pool(), start=start, calibrate=0, **options)
    assert 4 <= len(result.trials) <= 6
    first = result.trials.iloc[:4]
    ranks = first[[f"rank_{i}" for i in range(8)]]
    assert (ranks.nunique(axis=1) == 1).all()
    assert ranks.iloc[3].tolist() == ["dense"] * 8
    assert first["objective"].iloc[3] == pytest.approx(1.0)
    assert first["compression_ratio"].is_monotonic_increasing
    assert 0 < first["loss_sem"].min()
    assert result.trials["objective"].min() <= 1.0


@pytest.mark.parametrize(("start", "calibrate"), [("auto", 40), ("path", 0)])
def test_networks_of_the_price_path_come_first_and_count(start, calibrate):
    options = {"gamma": 1.0, "delta": 0.05, "level": "pairwise", "max_trials": 7}
    result = compress(
        deep_network(), pool(), start=start, calibrate=calibrate, **options
    )
    path = price_path(result.problem)
    number = len(path_points(result.problem))
    first = result.trials.iloc[:number]
    found = [
        {str(i): row[f"rank_{i}"] for i in range(8)} for _, row in first.iterrows()
    ]
    assert all(ranks in path.networks for ranks in found)
    assert found[-1] == dict.fromkeys(map(str, range(8)), "dense")
    assert first["compression_ratio"].is_monotonic_increasing
    assert 0 < first["loss_sem"].min()
    assert 2 <= number <= 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ax, met on the way
def test_without_a_beginning_a_network_worse_than_the_original_is_warned_of():
    options = {"gamma": 1.0, "delta": 0.05, "level": "pairwise", "max_trials": 6}
    options |= {"start": "space-filling", "calibrate": 0}
    with pytest.warns(UserWarning, match=r"worse than the uncompressed.*start='line'"):
        without = compress(deep_network(), pool(), **options)
    assert without.trials["objective"].min() > 1.0


def test_a_network_that_is_wrong_itself_is_what_its_compressed_form_is_compared_to():
    def wrong(compressed, batch):
        distance = (compressed(batch.inputs) - batch.reference_outputs).square().sum(1)
        return 5.0 + distance

    options = {"gamma": 1.0, "delta": 0.05, "level": "pairwise", "max_trials": 6}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The network that was found is worse")
        compress(deep_network(), pool(), loss=wrong, start="path", **options)


@pytest.mark.parametrize("start", ["line", "path"])
def test_the_beginning_is_as_long_as_there_are_evaluations(start):
    problem = compression_problem(deep_network(), pool(), gamma=1.0)
    client = new_client(problem)
    options = SearchOptions(start=start, max_trials=2)
    assert attach_first_points(client, problem, options)
    assert len(client._experiment.trials) == 2


@pytest.mark.parametrize(
    ("start", "coordinates", "workers", "calibrate", "expected"),
    [
        ("auto", 8, None, 0, "line"),
        ("auto", 3, None, 0, "space-filling"),
        ("auto", 8, 2, 0, "space-filling"),
        ("auto", 8, None, 40, "path"),
        ("auto", 3, None, 40, "path"),
        ("auto", 8, 2, 40, "space-filling"),
        ("line", 3, None, 40, "line"),
        ("path", 3, None, 0, "path"),
        ("space-filling", 8, None, 40, "space-filling"),
    ],
)
def test_searches_begin_where_something_is_known(
    start, coordinates, workers, calibrate, expected
):
    exclude = [str(i) for i in range(coordinates, 8)]
    problem = compression_problem(
        deep_network(),
        pool(),
        gamma=1.0,
        exclude=exclude,
        calibrate=calibrate,
        tie=lambda layer: layer,
    )
    assert len(problem.parameters) == coordinates
    options = SearchOptions(start=start, workers=workers)
    assert beginning(options, problem) == expected


def test_a_search_that_is_continued_has_begun():
    options = {**SETTINGS, "level": "pairwise", "start": "line"}
    first = compress(small_network(), pool(), **options)
    dense = (first.trials[["rank_0", "rank_2"]] == "dense").all(axis=1)
    assert dense.iloc[3]
    tighter = options | {"delta": 1e-3, "max_trials": 4}
    second = compress(small_network(), pool(), client=first.client, **tighter)
    new = second.trials.iloc[len(first.trials) :]
    assert len(new) > 0
    ranks = first.trials[["rank_0", "rank_2"]].iloc[:4].to_numpy().tolist()
    assert new[["rank_0", "rank_2"]].to_numpy().tolist()[:4] != ranks[: len(new)]


def test_a_start_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="start must be one of auto, path"):
        compress(small_network(), pool(), **SETTINGS, start="dense")
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="got 'line' and workers=2"):
        compress(small_network(), pool(), **SETTINGS, start="line", workers=2)


def test_a_flat_loss_is_modelled_together_with_the_ratio():
    def flat(compressed, batch):
        return torch.zeros(len(compressed(batch.inputs)))

    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    result = compress(network, pool(), gamma=1.0, loss=flat)
    assert result.certificate.holds
    assert len(result.trials) < 20
    assert known_part_of(result.client) is None
