"""Searches on a Ray that loses machines, or has no room left in its object store.

Ray's own cluster utilities run several nodes, each with its own processes and its own
object store, on this machine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ax.orchestration.orchestrator import FailureRateExceededError

from ax_pac import latest_certificate, open_client
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import experiment_of, new_client
from tests.integration.test_ray import (
    EASY,
    bowl,
    reasons,
    require_own_samples,
    search,
    statuses,
)

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

pytestmark = pytest.mark.slow

# So small a delta that no search ends before its number of trials.
ENDLESS = {**EASY, "delta": 1e-3}
# Nothing takes as long; it turns a test that would wait for ever into a failure.
PATIENCE = 600.0
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def cluster():
    """A head with one CPU, to which each test adds the nodes that it takes away."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": 150 * MEGABYTE,
            # What Ray does when its disk is full: nothing is moved there.
            "_system_config": {"local_fs_capacity_threshold": 0.01},
        },
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; if it never is, the test fails instead."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError("it did not come to be")
        time.sleep(0.02)


def in_background(what: Callable[[], None]) -> Callable[[], None]:
    """Do something in a thread; returns a function that waits and raises its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> None:
        thread.join(PATIENCE)
        assert not thread.is_alive()
        if errors:
            raise errors[0]

    return join


def lose(cluster, node) -> None:
    """Kill all processes of a node at once, as when its machine is gone."""
    cluster.remove_node(node, allow_graceful=False)


def test_the_trial_of_a_lost_node_is_repeated_on_the_other(cluster, tmp_path):
    loses_a_node(cluster, new_client(**ENDLESS), tmp_path / "began")


def test_a_lost_node_loses_nothing_of_a_search_in_a_database(
    cluster, database, tmp_path
):
    client = prepare(open_client(database, "bowl"), **ENDLESS)
    index = loses_a_node(cluster, client, tmp_path / "began")
    stored = open_client(database, "bowl")
    assert statuses(stored) == statuses(client)
    kept, here = (experiment_of(c).trials[index] for c in (stored, client))
    assert (
        kept.run_metadata["repeated_because"] == (here.run_metadata["repeated_because"])
    )
    require_own_samples(stored)


def loses_a_node(cluster, client, began: Path) -> int:
    """Search on two nodes, one of which is lost while it evaluates.

    Returns:
        The trial that was there.
    """
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * MEGABYTE)
    doomed = node.node_id

    def act(index):
        if ray.get_runtime_context().get_node_id() == doomed:
            began.write_text(str(index))
            time.sleep(2 * PATIENCE)  # for ever, or until the test has failed
        for _ in range(60_000):  # so that the other one takes a trial too
            if began.exists():
                return
            time.sleep(0.01)

    def watch():
        until(lambda: began.exists() and began.read_text() != "")
        lose(cluster, node)

    join = in_background(watch)
    search(client, bowl(act), max_trials=6)
    join()
    index = int(began.read_text())
    assert statuses(client) == ["COMPLETED"] * 6
    trials = experiment_of(client).trials
    repeated = {i for i, t in trials.items() if "repeated_because" in t.run_metadata}
    assert repeated == {index}
    (reason,) = trials[index].run_metadata["repeated_because"]
    assert reason.startswith(("NodeDiedError", "WorkerCrashedError")), reason
    data = experiment_of(client).lookup_data().df
    (mean,) = data[data["trial_index"] == index]["mean"]
    assert mean == bowl()(trials[index].arm.parameters, index)["loss"][0]
    return index


def test_a_search_whose_only_node_is_lost_waits_for_another(cluster, tmp_path, caplog):
    # Twice: the trial that was there both times fails, and the search goes on.
    def add():
        return cluster.add_node(
            num_cpus=1, resources={"fast": 1}, object_store_memory=80 * MEGABYTE
        )

    def act(index):
        if index == 1:
            here = ray.get_runtime_context().get_node_id()
            (tmp_path / here).touch()
            time.sleep(2 * PATIENCE)  # for ever, or until the test has failed

    nodes = [add()]
    client = new_client(**ENDLESS)
    options = {"max_trials": 5, "workers": 1, "resources": {"fast": 1}}
    with caplog.at_level(logging.WARNING):
        # The search in the thread: Ray adds nodes in the main one only.
        join = in_background(lambda: search(client, bowl(act), **options))
        until(lambda: (tmp_path / nodes[0].node_id).exists())
        lose(cluster, nodes[0])
        until(lambda: "wait until the Ray cluster has 1 of 'fast'" in caplog.text)
        nodes.append(add())
        until(lambda: (tmp_path / nodes[1].node_id).exists())
        lose(cluster, nodes[1])
        nodes.append(add())
        join()
    lose(cluster, nodes[2])
    assert statuses(client) == ["COMPLETED", "FAILED", *["COMPLETED"] * 3]
    assert "trial 1 is repeated: " in caplog.text
    assert reasons(client)[1].startswith(("NodeDiedError", "WorkerCrashedError"))


class Large:
    """An evaluation that takes room in the object store.

    Args:
        megabytes: How much.
    """

    def __init__(self, megabytes: int) -> None:
        self.content = np.zeros(megabytes * MEGABYTE, dtype=np.uint8)

    def __call__(self, parameters, trial_index):
        return {"loss": (parameters["x0"], 0.02)}


def test_a_network_without_room_is_refused_and_the_search_stays(cluster, database):
    client = prepare(open_client(database, "bowl"), **EASY)
    search(client, bowl(), max_trials=2, workers=1)
    before = statuses(client)
    with pytest.raises(ValueError, match=r"does not fit into.*free space on the disk"):
        search(client, Large(200), workers=1)
    assert statuses(open_client(database, "bowl")) == before
    search(client, bowl(), workers=1)
    assert latest_certificate(client).holds


def test_a_node_without_room_for_the_network_fails_its_trials(cluster, database):
    node = cluster.add_node(
        num_cpus=1, resources={"far": 1}, object_store_memory=80 * MEGABYTE
    )
    client = prepare(open_client(database, "bowl"), **ENDLESS)
    with pytest.raises(FailureRateExceededError, match=r"does not fit.*the machine"):
        search(client, Large(120), workers=1, resources={"far": 1})
    stored = open_client(database, "bowl")
    assert statuses(stored) == ["FAILED"] * 3
    assert all("--object-store-memory" in reason for reason in reasons(stored).values())
    search(client, bowl(), max_trials=2, workers=1, resources={"far": 1})
    lose(cluster, node)
    assert statuses(open_client(database, "bowl"))[3:] == ["COMPLETED"] * 2


def test_what_an_evaluation_returns_beside_its_metrics_needs_no_room(cluster):
    def evaluate(parameters, trial_index):
        import numpy as np

        return {"loss": (0.5, 0.1), "outputs": np.zeros(200 * 2**20, dtype=np.uint8)}

    client = new_client(**ENDLESS)
    search(client, evaluate, max_trials=2, workers=1)
    assert statuses(client) == ["COMPLETED"] * 2


def test_arguments_without_room_fail_their_trial(cluster, database):
    asked = []

    def told():
        asked.append(len(asked))
        large = np.zeros(200 * MEGABYTE, dtype=np.uint8)
        return (large,) if len(asked) == 2 else ()

    def evaluate(parameters, trial_index, *told):
        return {"loss": (0.5, 0.1)}

    client = prepare(open_client(database, "bowl"), **ENDLESS)
    search(client, evaluate, max_trials=4, workers=1, told=told)
    stored = open_client(database, "bowl")
    assert statuses(stored) == ["COMPLETED", "FAILED", *["COMPLETED"] * 2]
    assert "what the trial is told does not fit" in reasons(stored)[1]
