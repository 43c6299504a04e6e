"""A small network in the place of the transformer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.data_aware import choices, subjects
from benchmarks.networks.evaluation import NetworkData
from compression_adapters import choose_low_rank

CACHES = (
    subjects.subject,
    subjects.layers_of,
    subjects._reference,
    choices.problem_of,
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a network of two layers, whose inputs lie near a plane."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 10))
        images = torch.randn(400, 3) @ torch.randn(3, 24) + 0.2 * torch.randn(400, 24)
        labels = network(images).argmax(1)
    data = NetworkData(
        network.eval(), choose_low_rank, images[:300], labels[:300], images[300:],
        labels[300:],
    )  # fmt: skip
    for cache in CACHES:
        cache.cache_clear()
    monkeypatch.setattr(subjects, "_transformer", lambda: data)
    yield "transformer"
    for cache in CACHES:
        cache.cache_clear()
