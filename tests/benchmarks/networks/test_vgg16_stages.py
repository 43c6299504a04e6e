"""VGG-16 in stages: what is counted, how batches are drawn, the plan and the page."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks.harness.traces import Trace
from benchmarks.networks import vgg16_stages
from benchmarks.networks.vgg16_stages import render_vgg16_stages
from compression_adapters import (
    choose_low_rank,
    choose_pruning,
    compression_problem,
)


def test_weights_are_counted_by_kind_in_factors_and_without_zeros():
    original = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 20)
    ).eval()
    images = torch.randn(60, 4, 4, 4)
    kept = vgg16_stages.kept_weights(original, original)
    assert kept == {"convolutions": 1.0, "linear": 1.0, "both": 1.0}
    problem = compression_problem(original, images, gamma=1.0, choose=choose_low_rank)
    point = {parameter.name: 0.5 for parameter in problem.parameters}
    ranks, small = problem.ranks(point), problem.compress(point)
    convolution = ranks["0"] * (4 * 3 + 8 * 3)
    linear = ranks["2"] * (128 + 20)
    kept = vgg16_stages.kept_weights(small, original)
    assert kept["convolutions"] == convolution / 288
    assert kept["linear"] == linear / 2560
    assert kept["both"] == (convolution + linear) / 2848
    stage = compression_problem(small, images, gamma=1.0, choose=choose_pruning)
    pruned = stage.compress({parameter.name: 0.5 for parameter in stage.parameters})
    left = sum(int(p.count_nonzero()) for p in pruned.parameters() if p.ndim > 1)
    both = vgg16_stages.kept_weights(pruned, original)["both"]
    assert both == left / 2848 < kept["both"]


def test_batches_hold_every_image_once_with_its_label_some_of_them_mirrored():
    images = torch.arange(120.0).view(-1, 1, 1, 1) + torch.tensor([0.0, 0.5])
    loader = vgg16_stages.Shuffled(images, torch.arange(120), seed=0)
    assert len(loader) == 3
    first, second = list(loader), list(loader)
    assert [len(batch) for batch, _ in first] == [50, 50, 20]
    seen = torch.cat([labels for _, labels in first])
    assert sorted(seen.tolist()) == list(range(120))
    assert not torch.equal(seen, torch.cat([labels for _, labels in second]))
    batch, labels = first[0]
    assert torch.equal(batch.amin((1, 2, 3)).long(), labels)
    mirrored = (batch[:, 0, 0, 0] > batch[:, 0, 0, 1]).float().mean()
    assert 0.2 < mirrored < 0.8


def test_images_are_enlarged():
    images = torch.rand(2, 3, 32, 32)
    large = vgg16_stages.enlarged(images)
    assert large.shape == (2, 3, 64, 64)
    assert large.mean() == pytest.approx(float(images.mean()), abs=1e-3)


def test_a_gpu_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((settings, seed),) = vgg16_stages.plan(None, device="cuda")
    assert vgg16_stages.minutes((settings, seed)) > 0
    with pytest.raises(RuntimeError, match="set device=cpu"):
        vgg16_stages.run(seed, settings)


def test_the_page_puts_every_network_beside_the_original():
    settings, seed = vgg16_stages.plan(None, device="cpu")[0]
    whole = {"convolutions": 1.0, "linear": 1.0, "both": 1.0}
    small = {"convolutions": 0.3, "linear": 0.05, "both": 0.08}
    stage = {
        "certified": True,
        "level": "marginal",
        "trials": 60,
        "compression_ratio": 0.3,
        "loss": 0.02,
        "loss_sem": 0.001,
        "seconds": 100.0,
    }
    result = {
        "rows": [
            {"network": "original", "top1": 0.8, **whole},
            {"network": "td", "top1": 0.795, **small},
        ],
        "stages": [{"stage": name, **stage} for name in ("td", "svd", "pruning")],
        "seconds": 600.0,
        "gpu": None,
    }
    provenance = {"revision": "abc", "threads": 1}
    trace = Trace("vgg16_stages", settings, seed, result, [], provenance)
    page = render_vgg16_stages([trace])
    assert "| original | 80.00 | +0.00 | 100.00 | 100.00 | 100.00 |" in page
    assert "| td | 79.50 | -0.50 | 30.00 | 5.00 | 8.00 |" in page
    assert "| td | 1.0 | yes, marginal | 60 | 30.0 | 0.0200 +- 0.0010 | 100 |" in page
    on_gpu = Trace(
        "vgg16_stages",
        settings,
        seed,
        copy.deepcopy(result) | {"gpu": "a GPU"},
        [],
        provenance,
    )
    assert "On a GPU, 10 minutes" in render_vgg16_stages([on_gpu])


@pytest.mark.filterwarnings("ignore:Very small noise values", "ignore:.*worse than")
def test_a_run_measures_the_network_after_each_stage(monkeypatch, tmp_path):
    monkeypatch.setenv("AX_PAC_CACHE", str(tmp_path))
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(100, 3, 8, 8, generator=rng), torch.arange(100) % 10
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ).eval()
    search = {"delta": 0.5, "epsilon": 0.1, "num_samples": 50, "max_trials": 12}
    search["level"] = "pairwise"
    monkeypatch.setattr(vgg16_stages, "SEARCH", vgg16_stages.SEARCH | search)
    monkeypatch.setattr(
        vgg16_stages, "images_and_labels", lambda train, number: (images, labels)
    )
    monkeypatch.setattr(
        vgg16_stages, "_originals", lambda *arguments: (network, network, 0.0)
    )
    settings, seed = vgg16_stages.plan(None, device="cpu")[0]
    trace = vgg16_stages.run(seed, settings)
    names = [row["network"] for row in trace.result["rows"]]
    assert names == [
        "original",
        "original, convolutions as on ImageNet",
        "td, before training",
        "td",
        "td + svd, before training",
        "td + svd",
        "td + svd + pruning, before training",
        "td + svd + pruning",
    ]
    rows = trace.result["rows"]
    assert rows[0]["both"] == 1.0
    assert rows[3]["linear"] == 1.0
    assert rows[5]["convolutions"] == rows[3]["convolutions"]
    assert rows[7]["both"] < rows[5]["both"]
    assert "| td + svd + pruning |" in render_vgg16_stages([trace])
    # What is finished is not searched again.
    again = vgg16_stages.run(seed, settings)
    assert again.result["stages"] == trace.result["stages"]
    assert again.result["rows"][-1] == rows[-1]
