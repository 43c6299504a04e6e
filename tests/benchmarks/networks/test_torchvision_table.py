"""Networks of torchvision: the steps of one, and the page."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.harness.traces import Trace
from benchmarks.networks import torchvision_table
from benchmarks.networks.torchvision_table import STEPS, TASKS, Tour, render_torchvision


def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 8)).eval()


INPUTS = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))


def test_a_network_takes_every_step(tmp_path):
    found = Tour(small, INPUTS, 0, str(tmp_path)).taken()
    assert found["steps"] == dict.fromkeys(STEPS, "works")
    assert (found["layers"], found["cut"]) == (2, 2)
    assert 0 < found["ratio"] <= 0.5


def test_a_step_that_fails_is_kept_by_its_sentence_and_ends_the_tour(tmp_path):
    broken = nn.Sequential(nn.LSTM(8, 8, batch_first=True))
    found = Tour(lambda: broken, INPUTS[:, None], 0, str(tmp_path)).taken()
    assert found["steps"]["profile"] == "works"
    assert found["steps"]["cut"].startswith("ValueError: No layer to compress")
    assert len(found["steps"]) == 2


def test_there_are_fifty_networks_and_their_names_are_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    names = [name for names in TASKS.values() for name in names]
    assert len(names) == len(set(names)) == 50
    assert set(names) <= set(torchvision.models.list_models())


def test_the_page_shows_what_was_refused():
    works = {"steps": dict.fromkeys(STEPS, "works"), "seconds": 9.0}
    works |= {"layers": 21, "cut": 21, "ratio": 0.4997}
    refused = {"steps": {"profile": "works", "cut": "ValueError: no"}, "seconds": 1.0}
    jobs = torchvision_table.plan(None)[:2]
    page = render_torchvision(
        [
            Trace("torchvision", row, seed, result, [], {"revision": "abc"})
            for (row, seed), result in zip(jobs, (works, refused), strict=True)
        ]
    )
    first, second = (row["network"] for row, _ in jobs)
    assert f"| {first} | classification | 21, 21 | 50.0 | works | works" in page
    assert f"| {second} | classification | -, - | - | works | refused | - |" in page
    assert f"- **{second}**, cut: ValueError: no" in page
    assert "Of 2 networks, 1 are cut, saved and loaded, and 1 are exported" in page
