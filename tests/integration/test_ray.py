"""Searches whose evaluations run on real workers of Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ax.api.client import Client
from ax.api.configs import StorageConfig
from ax.exceptions.core import OptimizationComplete
from ax.orchestration.orchestrator import FailureRateExceededError
from click.testing import CliRunner

from ax_pac import (
    certificate_records,
    latest_certificate,
    open_client,
    ray_orchestrator,
)
from ax_pac.orchestration.ray_runner import RayRunner
from compression_adapters import squared_l2
from compression_adapters.api import compress
from compression_adapters.cli import commands as cli
from compression_adapters.presets import registry as presets
from compression_adapters.search.loop import EvaluationError
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import experiment_of, new_client
from tests.helpers.networks import labels, pool, small_network

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

EASY = {"delta": 0.3, "epsilon": 0.05, "level": "pairwise"}
COMPRESS = {**EASY, "gamma": 0.5, "progress": False}


def require_own_samples(client):
    """Each trial has one value, that of its point on the samples of its index."""
    data = experiment_of(client).lookup_data().df
    assert data["trial_index"].is_unique
    expected = bowl()
    for index, mean in zip(data["trial_index"], data["mean"], strict=True):
        point = experiment_of(client).trials[index].arm.parameters
        assert mean == expected(point, index)["loss"][0]


def statuses(client: Client) -> list[str]:
    return [trial.status.name for trial in experiment_of(client).trials.values()]


def reasons(client: Client) -> dict[int, str]:
    trials = experiment_of(client).trials
    return {i: t.status_reason for i, t in trials.items() if t.status_reason}


def bowl(act=lambda index: None):
    """An evaluation that does something else first; sent to workers by value."""

    def evaluate(parameters, trial_index):
        import numpy as np

        act(trial_index)
        distance = sum((value - 0.3) ** 2 for value in parameters.values())
        noise = 0.02 * np.random.default_rng(trial_index).standard_normal()
        return {"loss": (distance + noise, 0.02)}

    return evaluate


def wait_for(path: Path):
    """An action that waits for a file; sent to workers by value."""

    def wait():
        for _ in range(60_000):  # if the file never comes, the test fails instead
            if path.exists():
                return
            time.sleep(0.01)

    return wait


def search(
    client: Client, evaluate, *, max_trials: int = 30, workers: int = 2, **options
) -> None:
    with ray_orchestrator(client, evaluate, workers=workers, **options) as orchestrator:
        orchestrator.run_n_trials(max_trials)


@pytest.mark.slow
def test_compress_starts_its_own_workers_and_draws_the_samples_of_one_process():
    alone = compress(small_network(), pool(), **COMPRESS)
    result = compress(small_network(), pool(), workers=2, **COMPRESS)
    assert not ray.is_initialized()
    assert result.stop_reason == "certified"
    assert result.certificate.holds
    assert set(result.trials["status"]) <= {"COMPLETED", "ABANDONED"}
    both = alone.trials.merge(result.trials, on="trial_index", suffixes=("", "_ray"))
    both = both[(both["node_ray"] == "Sobol") & (both["status_ray"] == "COMPLETED")]
    assert len(both) >= 2
    for column in ("objective", "loss", "loss_sem", "compression_ratio"):
        assert both[column].to_numpy() == pytest.approx(
            both[f"{column}_ray"].to_numpy(), rel=1e-5
        )
    assert 0.0 < result.timings["evaluate"] < result.timings["total"]
    # The client is one like any other again.
    again = compress(
        small_network(), pool(), client=result.client, **{**COMPRESS, "delta": 0.1}
    )
    assert len(again.trials) >= len(result.trials)


@pytest.fixture(scope="module")
def cluster():
    """Two workers that all tests below share."""
    ray.init(
        address="local",
        num_cpus=2,
        resources={"fake_gpu": 2},
        log_to_driver=False,
        include_dashboard=False,
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
class TestOnOneCluster:
    def test_certificate_stops_the_search_while_an_evaluation_runs(
        self, tmp_path, monkeypatch
    ):
        began = tmp_path / "began"
        wait = wait_for(began)

        def act(index):
            if index == 3:
                began.touch()
                threading.Event().wait()  # for ever
            if index > 3:
                wait()

        client, poll = new_client(**EASY), RayRunner.poll_trial_status
        waited = []

        def watched(runner, trials):
            trials = list(trials)
            indices = [trial.index for trial in trials]
            certificate = latest_certificate(client)
            certified = certificate is not None and certificate.holds
            if (certified and indices) or (
                indices == [3] and len(statuses(client)) == 30
            ):
                waited.append(indices)
                raise RuntimeError("this would wait for ever")  # Ax abandons the trial
            return poll(runner, trials)

        monkeypatch.setattr(RayRunner, "poll_trial_status", watched)
        search(client, bowl(act), max_trials=30)
        assert waited == []
        assert latest_certificate(client).holds
        assert ray.is_initialized()  # what was there before is left alone
        assert statuses(client)[3] == "ABANDONED"
        assert reasons(client)[3] == "cancelled: the search was finished without it"
        assert set(statuses(client)) == {"COMPLETED", "ABANDONED"}
        client.save_to_json_file(str(tmp_path / "client.json"))
        loaded = Client.load_from_json_file(str(tmp_path / "client.json"))
        with pytest.raises(OptimizationComplete):
            loaded.get_next_trials(max_trials=1)

    def test_exception_and_death_fail_their_trial_and_the_search_goes_on(
        self, tmp_path
    ):
        noticed = tmp_path / "noticed"
        wait = wait_for(noticed)

        def act(index):
            if index == 1:
                raise RuntimeError("no such image")
            if index == 3:
                os._exit(1)
            if index > 3:
                wait()

        def on_end(index):
            ended.append(index)
            if index == 3:
                noticed.touch()

        client, ended = new_client(**EASY), []
        search(client, bowl(act), on_end=on_end)
        assert latest_certificate(client).holds
        status = statuses(client)
        assert [i for i, name in enumerate(status) if name == "FAILED"] == [1, 3]
        assert reasons(client)[1] == "RuntimeError: no such image"
        assert "died" in reasons(client)[3]
        assert sorted(ended) == [i for i, s in enumerate(status) if s != "ABANDONED"]

    def test_three_failures_in_a_row_give_up_and_keep_what_was_completed(self):
        here = os.getpid()

        def loss(network, batch):
            if os.getpid() == here:  # the dry run before the search
                return squared_l2(network, batch)
            raise FloatingPointError("overflow")

        # Four where the third and the fourth end between two looks at them.
        with pytest.raises(
            EvaluationError, match=r"[34] evaluations in a row failed, .* with Float"
        ) as raised:
            compress(small_network(), pool(), loss=loss, workers=2, **COMPRESS)
        assert set(statuses(raised.value.client)) <= {"FAILED", "ABANDONED"}

    def test_outcome_of_the_wrong_form_fails_with_what_was_expected(self):
        def evaluate(parameters, trial_index):
            return {"loss": 0.5}

        client = new_client(**EASY)
        with pytest.raises(FailureRateExceededError, match="mean, standard error"):
            search(client, evaluate, workers=1)

    def test_outcome_without_the_objective_fails(self):
        def evaluate(parameters, trial_index):
            return {"cost": (0.5, 0.1)}

        with pytest.raises(FailureRateExceededError, match=r"expected.*'loss'"):
            search(new_client(**EASY), evaluate, workers=1)

    def test_interrupted_compression_returns_what_it_has(self):
        def loss(network, batch):
            return squared_l2(network, batch)

        import compression_adapters.search.ray_loop as module

        shown = []

        class Interrupted(module.ParallelLoop):
            def _show(self, index):
                shown.append(index)
                if len(shown) == 4:
                    raise KeyboardInterrupt

        original, module.ParallelLoop = module.ParallelLoop, Interrupted
        try:
            result = compress(small_network(), pool(), loss=loss, workers=2, **COMPRESS)
        finally:
            module.ParallelLoop = original
        assert result.stop_reason == "interrupted"
        assert "RUNNING" not in set(result.trials["status"])

    def test_what_is_evaluated_travels_once_to_each_worker(self, tmp_path):
        log = tmp_path / "unpacked"

        def unpack(path):
            with Path(path).open("a") as file:
                file.write(f"{os.getpid()}\n")

            def evaluate(parameters, trial_index):
                return {"loss": (float(trial_index), 0.1)}

            return evaluate

        class Heavy:
            def __reduce__(self):
                return unpack, (str(log),)

        client = new_client(**{**EASY, "delta": 1e-3})
        search(client, Heavy(), max_trials=6)
        workers = log.read_text().split()
        assert statuses(client) == ["COMPLETED"] * 6
        assert 1 <= len(workers) == len(set(workers)) <= 2

    def test_trials_left_running_by_a_loop_are_evaluated(self):
        client = new_client(**{**EASY, "delta": 1e-3})
        client.get_next_trials(max_trials=2)
        search(client, bowl(), max_trials=3)
        assert statuses(client) == ["COMPLETED"] * 5

    def test_command_line_reports_a_search_on_workers(self, tmp_path, monkeypatch):
        preset = dataclasses.replace(
            presets.PRESETS["fc3"],
            build=small_network,
            trained=lambda progress=None: small_network(),
            train_data=lambda: (pool(), labels()),
            test_data=lambda: (pool(), labels()),
        )
        monkeypatch.setitem(presets.PRESETS, "fc3", preset)
        out = tmp_path / "run"
        arguments = ["compress", "fc3", "--out", str(out), "--device", "cpu"]
        arguments += ["--gamma", "0.5", "--delta", "0.3", "--epsilon", "0.05"]
        arguments += ["--level", "pairwise", "--workers", "2"]
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, result.output
        summary = json.loads((out / "summary.json").read_text())
        assert summary["certificate"]["holds"]
        assert summary["settings"]["workers"] == 2
        assert (out / "report.html").exists()
        result = CliRunner().invoke(cli.main, [*arguments, "--resume"])
        assert result.exit_code == 0, result.output
        kept = json.loads((out / "summary.json").read_text())["settings"]["db"]
        assert kept.endswith("search.db")

    def test_examples_of_the_page_run_and_are_short(self):
        page = Path(__file__).parents[2] / "docs/how_to/many_machines.md"
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
        assert len(blocks) == 2
        names = {"network": small_network(), "inputs": pool()}
        for block in blocks:
            assert len([line for line in block.splitlines() if line.strip()]) <= 15
            exec(compile(block, page.name, "exec", dont_inherit=True), names)

    @pytest.mark.slow
    def test_the_cluster_that_ray_address_names_is_used_and_left_running(self):
        code = (
            "import ray; from ax_pac.orchestration.ray_runner import ray_session\n"
            "with ray_session(7):\n"
            "    print('cpus', ray.cluster_resources()['CPU'])\n"
            "print('after', ray.is_initialized())"
        )
        address = ray.get_runtime_context().gcs_address
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "cpus 2.0\nafter False" in done.stdout
        assert ray.cluster_resources()["CPU"] == 2.0

    def test_what_cannot_be_sent_is_refused(self):
        lock = threading.Lock()
        with pytest.raises(ValueError, match="cannot be sent to Ray's workers"):
            search(new_client(**EASY), bowl(lambda index: lock.locked()))

    def test_a_search_in_a_database_is_there_trial_by_trial(self, database):
        client, seen = prepare(open_client(database, "bowl"), **EASY), []

        def on_end(index):
            trials = experiment_of(open_client(database, "bowl")).trials
            seen.append(trials[index].status.name)

        search(client, bowl(), on_end=on_end)
        assert latest_certificate(client).holds
        assert set(seen) == {"COMPLETED"}
        stored = open_client(database, "bowl")
        assert statuses(stored) == statuses(client)
        assert certificate_records(experiment_of(stored)) == certificate_records(
            experiment_of(client)
        )
        one, two = (experiment_of(c).lookup_data().df for c in (client, stored))
        assert one[["mean", "sem"]].to_numpy().tolist() == (
            two[["mean", "sem"]].to_numpy().tolist()
        )

    def test_what_ran_when_a_search_was_interrupted_is_taken_up(self, database):
        def interrupt(index):
            ended.append(index)
            if len(ended) == 3:
                raise KeyboardInterrupt

        client, ended = prepare(open_client(database, "bowl"), **EASY), []
        with pytest.raises(KeyboardInterrupt):
            search(client, bowl(), on_end=interrupt)
        client = open_client(database, "bowl")
        left = client.unfinished_trials()
        assert left
        assert statuses(client).count("COMPLETED") >= 3
        search(client, bowl())
        assert latest_certificate(client).holds
        status = statuses(open_client(database, "bowl"))
        assert {status[index] for index in left} <= {"COMPLETED", "ABANDONED"}
        assert "RUNNING" not in status
        require_own_samples(client)

    def test_compress_on_workers_goes_on_from_a_database_without_them(self, tmp_path):
        settings = {**COMPRESS, "delta": 0.1, "db": tmp_path / "a.db"}
        part = compress(small_network(), pool(), workers=2, max_trials=7, **settings)
        assert len(part.trials) == 7
        whole = compress(small_network(), pool(), **settings)
        assert whole.certificate.holds
        before, after = (r.trials["objective"].iloc[:7].tolist() for r in (part, whole))
        assert before == after

    def test_an_evaluation_that_hangs_fails_with_the_timeout(self):
        def act(index):
            if index == 1:
                threading.Event().wait()  # for ever

        # So small a delta that no search ends before its number of trials.
        client = new_client(**{**EASY, "delta": 1e-3})
        search(client, bowl(act), timeout=3.0, max_trials=5)
        assert statuses(client) == ["COMPLETED", "FAILED", *["COMPLETED"] * 3]
        assert reasons(client)[1] == (
            "TimeoutError: it ran for longer than timeout = 3 s"
        )

    def test_a_trial_whose_worker_died_is_repeated_on_the_same_samples(self, tmp_path):
        died, noticed = tmp_path / "died", tmp_path / "noticed"
        wait = wait_for(noticed)

        def act(index):
            if index == 2 and not died.exists():
                died.touch()
                os._exit(1)
            if index == 4:
                wait()

        def on_end(index):
            if index == 2:
                noticed.touch()

        client = new_client(**EASY)
        search(client, bowl(act), on_end=on_end)
        assert died.exists()
        trial = experiment_of(client).trials[2]
        assert trial.status.name == "COMPLETED"
        (reason,) = trial.run_metadata["repeated_because"]
        assert "died" in reason
        data = experiment_of(client).lookup_data().df
        (mean,) = data[data["trial_index"] == 2]["mean"]
        assert mean == bowl()(trial.arm.parameters, 2)["loss"][0]

    def test_evaluations_take_the_resources_that_they_reserve(self):
        def evaluate(parameters, trial_index):
            resources = ray.get_runtime_context().get_assigned_resources()
            return {"loss": (resources["fake_gpu"], 0.1)}

        client = new_client(**{**EASY, "delta": 1e-3})
        search(client, evaluate, max_trials=2, resources={"fake_gpu": 2})
        assert experiment_of(client).lookup_data().df["mean"].tolist() == [2.0, 2.0]
        arguments = small_network(), pool()
        result = compress(*arguments, workers=2, resources={"fake_gpu": 1}, **COMPRESS)
        assert result.certificate.holds

    def test_interruption_leaves_no_trial_running(self):
        # The last test of the cluster: it costs a worker, which takes seconds to start.
        def act(index):
            if index == 1:
                threading.Event().wait()  # for ever

        def interrupt(index):
            raise KeyboardInterrupt

        client = new_client(**EASY)
        with pytest.raises(KeyboardInterrupt):
            search(client, bowl(act), on_end=interrupt)
        assert statuses(client) == ["COMPLETED", "ABANDONED"]
        assert "cancelled: the search was interrupted" in reasons(client).values()


def test_what_workers_cannot_do_is_refused_before_anything_starts(tmp_path):
    arguments = small_network(), pool()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        compress(*arguments, workers=0, **COMPRESS)
    with pytest.raises(ValueError, match="give a number of workers too"):
        compress(*arguments, resources={"num_gpus": 1}, **COMPRESS)
    with pytest.raises(ValueError, match="timeout must be positive"):
        compress(*arguments, workers=2, timeout=0.0, **COMPRESS)
    with pytest.raises(ValueError, match="dictionary of names and amounts"):
        compress(*arguments, workers=2, resources={"num_gpus": "all"}, **COMPRESS)
    with pytest.raises(ValueError, match="give a number with workers"):
        compress(*arguments, workers=2, num_samples="auto", **COMPRESS)
    with pytest.raises(ValueError, match=r"Ax's own storage cannot.*open_client"):
        search(stored_by_ax(tmp_path / "search.db"), bowl())


def stored_by_ax(path: Path) -> Client:
    from ax_pac.storage.database import db

    url = f"sqlite:///{path}"
    with db.session_context(url=url):
        db.create_all_tables(db.get_engine())
    return Client(storage_config=StorageConfig(url=url))


def test_missing_ray_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'ax-pac\[ray\]'"):
        compress(small_network(), pool(), workers=2, **COMPRESS)
