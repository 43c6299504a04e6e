"""What workers are sent."""

from __future__ import annotations

import pickle

import pytest
import torch

from compression_adapters import SearchOptions, compression_problem
from compression_adapters.search import ray_loop
from compression_adapters.search.ray_loop import (
    EvaluationOnGPU,
    ProblemEvaluation,
    check_workers,
    packed,
    unpacked,
)
from tests.helpers.networks import pool, small_network

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


def problem():
    return compression_problem(small_network(), pool(), gamma=0.5)


def tensors_of(value, seen=None):
    """Every tensor that an object holds."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        cells = getattr(value, "__closure__", None) or ()
        parts = [cell.cell_contents for cell in cells]
        parts += list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_of(part, seen)]


def test_every_tensor_of_a_problem_is_unpacked_on_the_device_of_the_worker():
    whole = problem()
    point = {parameter.name: 0.4 for parameter in whole.parameters}
    expected = whole.evaluate(point, seed=3)
    content = packed(whole)
    moved = unpacked(content, torch.device("meta"))
    for part in (moved.network, moved.factors, moved.sampler):
        found = tensors_of(part)
        assert found
        assert {tensor.device.type for tensor in found} == {"meta"}
    assert unpacked(content, torch.device("cpu")).evaluate(point, seed=3) == expected
    assert whole.evaluate(point, seed=3) == expected  # and the problem is as it was


def test_a_worker_without_a_gpu_evaluates_on_the_cpu(monkeypatch):
    whole = problem()
    point = {parameter.name: 0.4 for parameter in whole.parameters}
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
    sent = pickle.loads(pickle.dumps(EvaluationOnGPU(whole, 0)))
    assert type(sent) is ProblemEvaluation
    assert sent(point, 2, []) == ProblemEvaluation(whole, 0)(point, 2, [])


def test_a_gpu_that_pytorch_cannot_use_is_named(monkeypatch):
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [3])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"GPU 3, but PyTorch finds none"):
        ray_loop.device_of_worker()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ray_loop.device_of_worker() == torch.device("cuda")


def test_a_network_on_a_gpu_needs_workers_with_one():
    class OnGPU:
        class network:
            @staticmethod
            def parameters():
                return iter([type("Weight", (), {"device": torch.device("cuda")})])

    with pytest.raises(ValueError, match=r'resources=\{"num_gpus": 1\}'):
        check_workers(OnGPU, SearchOptions(workers=2))
    check_workers(OnGPU, SearchOptions(workers=2, resources={"num_gpus": 0.5}))
