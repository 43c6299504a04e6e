"""What an evaluation reserves, and what a cluster has of it; no Ray is started."""

from __future__ import annotations

import logging

import pytest

from ax_pac.orchestration.ray_runner import (
    RayRunner,
    ray_options,
    ray_session,
    require_timeout,
)

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture
def started(monkeypatch):
    """Stand in for a Ray of two CPUs and a GPU; returns what it was started with."""
    calls: list[dict] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append({"ended": True}))
    monkeypatch.setattr(
        ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0, "fast": 1.0}
    )
    return calls


def test_a_resource_that_this_machine_lacks_is_refused_not_waited_for(started):
    with (
        pytest.raises(ValueError, match=r"2 of 'GPU' \(there are 1\)"),
        ray_session(1, {"num_gpus": 2}),
    ):
        pass
    assert started[-1] == {"ended": True}
    with ray_session(1, {"num_gpus": 1, "fast": 1}):
        pass


def test_a_cluster_that_may_grow_is_waited_for_and_it_is_said(
    started, monkeypatch, caplog
):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with caplog.at_level(logging.WARNING), ray_session(1, {"slow": 3}):
        pass
    assert "wait until the Ray cluster has 3 of 'slow' (there are 0)" in caplog.text


def test_a_ray_that_is_started_has_the_cpus_that_workers_reserve(started):
    for resources, cpus in ((None, 2), ({"num_cpus": 1}, 2), ({"num_gpus": 0.5}, 2)):
        with ray_session(2, resources):
            assert started[-1]["num_cpus"] == cpus


def test_names_that_ray_does_not_know_are_resources_of_the_cluster():
    assert ray_options(None) == {"num_cpus": 1}
    assert ray_options({"num_cpus": 4, "fast": 1, "resources": {"near": 2}}) == {
        "num_cpus": 4,
        "resources": {"near": 2, "fast": 1},
    }


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_timeout_is_a_positive_number_of_seconds(timeout):
    with pytest.raises(ValueError, match="positive number of seconds"):
        require_timeout(timeout)


def test_what_does_not_fit_into_the_object_store_is_refused(monkeypatch):
    def put(value):
        raise ray.exceptions.ObjectStoreFullError("no room")

    monkeypatch.setattr(ray, "put", put)
    with pytest.raises(ValueError, match=r"object store.*object_store_memory=BYTES"):
        RayRunner(print, ["loss"], workers=1)
