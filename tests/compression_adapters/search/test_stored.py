"""A search in a database is found again, checked, and goes on."""

from __future__ import annotations

import logging

import pytest
import torch
from ax.core.trial_status import TrialStatus

from ax_pac import certificate_records, open_client
from compression_adapters import choose_pruning, squared_l2
from compression_adapters.api import compress
from compression_adapters.decompositions import moments
from compression_adapters.search.loop import EvaluationError
from compression_adapters.search.settings import network_digest
from compression_adapters.search.stored import SEARCH_PROPERTY
from compression_adapters.search.targets import compress_to
from compression_adapters.stages import Stage, compress_in_stages
from tests.helpers.networks import pool, small_network

pytest.importorskip("sqlalchemy")
logging.getLogger("ax.storage.sqa_store.with_db_settings_base").setLevel(logging.ERROR)

SETTINGS = {"gamma": 0.5, "delta": 0.2, "epsilon": 0.05, "progress": False}
# Certified after the initial design and three proposals of the model.
# The price path would evaluate each layer before the first trial.
SHORT = {
    **{**SETTINGS, "delta": 0.05, "level": "pairwise"},
    "start": "space-filling",
}


class Interrupting:
    """The squared L2 loss, interrupted at one call or failing from it on."""

    def __init__(self, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        # The dry run before the search is call 0.
        self.at, self.error, self.count = at, error, -1

    def __call__(self, network, batch):
        self.count += 1
        once = self.error is KeyboardInterrupt
        if self.count == self.at or (self.count > self.at and not once):
            raise self.error("stop")
        return squared_l2(network, batch)


Interrupting.__qualname__, Interrupting.__module__ = "squared_l2", squared_l2.__module__


def same(one, two):
    assert one.ranks == two.ranks
    # Reference outputs that were computed in other batches differ by rounding, and with
    # them the score, in units of a standard deviation.
    assert one.certificate.score == pytest.approx(two.certificate.score, rel=1e-5)
    columns = ["objective", "objective_sem", "loss", "compression_ratio"]
    assert one.trials[columns].to_numpy() == pytest.approx(
        two.trials[columns].to_numpy(), abs=1e-6
    )


def test_a_finished_search_is_only_read(tmp_path):
    options = {**SHORT, "refit": False}
    first = compress(small_network(), pool(), db=tmp_path / "a.db", **options)
    # For the loss of the network that was found, and of the dense one.
    once = Interrupting(3)
    options = {**SHORT, "loss": once, "refit": False}
    again = compress(small_network(), pool(), db=tmp_path / "a.db", **options)
    assert again.stop_reason == "certified"
    assert once.count == 2
    assert len(again.trials) == len(first.trials)
    same(again, first)
    records = certificate_records(again.client._experiment)
    assert records == certificate_records(first.client._experiment)


def test_an_interrupted_search_goes_on_with_the_trial_it_was_at(tmp_path):
    # Of a loss that is not ours no floor is known, which changes what is proposed.
    never = SHORT | {"loss": Interrupting(10**9)}
    whole = compress(small_network(), pool(), **never)
    part = compress(
        small_network(),
        pool(),
        db=tmp_path / "a.db",
        **(SHORT | {"loss": Interrupting(6)}),
    )
    assert part.stop_reason == "interrupted"
    assert list(part.trials["status"])[-1] == "RUNNING"
    rest = compress(small_network(), pool(), db=tmp_path / "a.db", **never)
    assert set(rest.trials["status"]) == {"COMPLETED"}
    same(rest, whole)


def test_the_budget_counts_the_trials_of_earlier_runs(tmp_path):
    budget = {**SHORT, "delta": 1e-6, "db": tmp_path / "a.db"}
    first = compress(small_network(), pool(), max_trials=3, **budget)
    assert len(first.trials) == 3
    second = compress(small_network(), pool(), max_trials=3, **budget)
    assert (len(second.trials), second.stop_reason) == (3, "max_trials")
    assert second.timings["evaluate"] == 0.0
    third = compress(small_network(), pool(), max_trials=5, **budget)
    assert len(third.trials) == 5


def test_a_search_that_gave_up_can_be_tried_again(tmp_path):
    options = {**SHORT, "db": tmp_path / "a.db"}
    with pytest.raises(EvaluationError):
        compress(small_network(), pool(), loss=Interrupting(3, RuntimeError), **options)
    result = compress(small_network(), pool(), **options)
    assert result.certificate.holds
    statuses = [trial.status for trial in result.client._experiment.trials.values()]
    assert statuses.count(TrialStatus.FAILED) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.6}, r"gamma = 0.5, now gamma = 0.6. To continue it, pass gamma"),
        ({"delta": 0.1}, "delta = 0.2, now delta = 0.1"),
        ({"epsilon": 0.01}, "epsilon = 0.05, now epsilon = 0.01"),
        ({"level": "pairwise"}, "level = 'marginal', now level = 'pairwise'"),
        ({"seed": 1}, "seed = 0, now seed = 1"),
        ({"num_samples": 60}, "num_samples = 50, now num_samples = 60"),
        ({"encoding": "linear"}, "made with encoding of the ranks"),
        ({"sampling": "challenger"}, "made with sampling = 'leader_challenger'"),
        ({"loss": "kl_divergence"}, "made with loss = "),
        ({"include": "0"}, "made with layers = "),
        ({"num_initial_trials": 4}, "num_initial_trials = None, now"),
        ({"relative": True}, "relative = False, now relative = True"),
        ({"objective": "rate"}, "objective = 'ratio', now objective = 'rate'"),
    ],
)
def test_another_search_is_refused_by_the_setting_that_differs(change, message, stored):
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), db=stored, **{**SETTINGS, **change})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "a.db"
    compress(small_network(), pool(), db=path, max_trials=2, **SETTINGS)
    return path


def test_another_network_is_refused_and_another_name_is_another_search(stored):
    other = small_network(seed=1)
    with pytest.raises(ValueError, match="made with network = "):
        compress(other, pool(), db=stored, **SETTINGS)
    result = compress(other, pool(), db=stored, name="other", max_trials=2, **SETTINGS)
    assert result.client._experiment.name == "other"
    assert len(open_client(stored, "compression")._experiment.trials) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrate": 0}, "made with calibrate = 80, now calibrate = 0"),
        ({"calibrate": 40}, "made with calibrate = 80, now calibrate = 40"),
        ({"calibration_seed": 1}, "made with calibration_seed = 0, now"),
    ],
)
def test_other_calibration_inputs_are_refused(change, message, tmp_path):
    settings = {**SHORT, "max_trials": 5, "db": tmp_path / "a.db"}
    compress(small_network(), pool(), **settings)
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), **settings, **change)


def test_a_search_from_before_there_were_calibration_inputs_names_the_remedy(tmp_path):
    settings = {**SHORT, "max_trials": 5, "db": tmp_path / "a.db"}
    compress(small_network(), pool(), **settings, calibrate=0)
    with pytest.raises(ValueError, match=r"calibrate = 0, now .* pass calibrate as"):
        compress(small_network(), pool(), **settings)


def test_factors_that_do_not_come_out_the_same_are_refused(tmp_path, monkeypatch):
    settings = {**SHORT, "max_trials": 5, "db": tmp_path / "a.db"}
    compress(small_network(), pool(), **settings)
    # As another version that adds another ridge would.
    monkeypatch.setattr(moments, "RIDGE", 0.1)
    with pytest.raises(ValueError, match="made with factors = "):
        compress(small_network(), pool(), **settings)


def test_an_experiment_of_something_else_is_refused(tmp_path):
    from tests.ax_pac.storage.test_client import prepare

    prepare(open_client(tmp_path / "a.db", "bowl"))
    with pytest.raises(ValueError, match=r"'bowl' in .* is not a search of ax-pac"):
        compress(small_network(), pool(), db=tmp_path / "a.db", name="bowl", **SETTINGS)


def test_a_newer_format_is_refused(tmp_path):
    options = {**SETTINGS, "db": tmp_path / "a.db", "max_trials": 2}
    client = compress(small_network(), pool(), **options).client
    client._experiment._properties[SEARCH_PROPERTY]["format_version"] = 99
    client.save_records()
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        compress(small_network(), pool(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": "auto"}, "depends on wall times"),
        ({"name": ""}, "a name of 1 to 100 characters"),
        ({"client": object()}, "a client or a database"),
    ],
)
def test_what_a_database_cannot_do_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compress(
            small_network(), pool(), db=tmp_path / "a.db", **{**SETTINGS, **options}
        )


def test_the_digest_of_a_network_is_that_of_its_numbers():
    assert network_digest(small_network()) == network_digest(small_network())
    assert network_digest(small_network()) != network_digest(small_network(seed=1))
    half = small_network().to(torch.bfloat16)
    assert network_digest(half) != network_digest(small_network())


def test_a_target_goes_on_where_it_was(tmp_path):
    options = {
        **{"delta": 0.5, "epsilon": 0.05, "level": "pairwise", "progress": False},
        **{"ratio": "60%", "max_gammas": 2, "db": tmp_path / "a.db"},
        "start": "space-filling",
    }
    with pytest.raises(EvaluationError):
        # Seven calls are for the price path, two are of completed trials.
        compress_to(
            small_network(), pool(), loss=Interrupting(10, RuntimeError), **options
        )
    kept = open_client(tmp_path / "a.db", "compression/1")._experiment.trials
    assert [kept[index].status.name for index in (0, 1, 2)] == [
        *("COMPLETED", "COMPLETED", "FAILED")
    ]
    found = compress_to(small_network(), pool(), **options)
    statuses = list(found.gammas["evaluations"])
    trials = open_client(tmp_path / "a.db", "compression/1")._experiment.trials
    assert statuses[0] == len(trials)
    assert trials[0].arm == kept[0].arm


def test_stages_keep_a_search_each_and_need_a_folder(tmp_path):
    stages = [Stage("one"), Stage("two", {"choose": choose_pruning})]
    options = {**SHORT, "db": tmp_path / "a.db", "max_trials": 6}
    with pytest.raises(ValueError, match="need a folder"):
        compress_in_stages(small_network(), pool(), stages, **options)
    compress_in_stages(
        small_network(), pool(), stages, folder=tmp_path / "stages", **options
    )
    for name in ("compression-one", "compression-two"):
        assert open_client(tmp_path / "a.db", name)._experiment.trials
