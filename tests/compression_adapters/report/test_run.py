from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from compression_adapters.report.run import read_run, write_report, write_run

SUMMARY = {
    "network": "<toy>",
    "seed": 0,
    "stop_reason": "certified",
    "compression_ratio": 0.1,
    "whole_network_ratio": 0.2,
    "incumbent_trial": 1,
    "certificate": {
        "holds": True,
        "level": "pairwise",
        "reason": "because",
        "num_observations": 2,
    },
    "layers": [{"layer": "fc", "rank": "dense", "max_rank": 5, "ratio": 1.0}],
    "timings": {"fit": 1.0},
    "versions": {"torch": "2"},
    "undefined": math.nan,
}
TRIALS = pd.DataFrame(
    {
        "trial_index": [0, 1, 2],
        "status": ["COMPLETED", "COMPLETED", "FAILED"],
        "node": ["Sobol", "PAC", "PAC"],
        "objective": [0.5, 0.2, math.nan],
        "objective_sem": [0.1, 0.1, math.nan],
        "loss": [1.0, 0.5, math.nan],
        "loss_sem": [0.1, 0.1, math.nan],
        "compression_ratio": [0.5, 0.1, math.nan],
    }
)


def test_a_run_is_read_as_it_was_written(tmp_path):
    write_run(tmp_path, SUMMARY, TRIALS)
    summary, trials = read_run(tmp_path)
    assert summary == {**SUMMARY, "format_version": 1, "undefined": None}
    pd.testing.assert_frame_equal(trials, TRIALS)


def test_a_report_without_accuracies_leaves_that_picture_out(tmp_path):
    write_run(tmp_path, SUMMARY, TRIALS)
    page = write_report(tmp_path).read_text()
    assert page.count("<figure>") == 3
    assert "&lt;toy&gt;" in page
    assert "<toy>" not in page


def test_a_report_shows_what_followed_the_search_and_errors_of_layers(tmp_path):
    finish = {
        "num_samples": 300,
        "before": {"mean": 4.7, "sem": 0.4},
        "steps": [
            {
                "name": "refit",
                "loss": {"mean": 3.9, "sem": 0.3},
                "change": {"mean": -0.8, "sem": 0.1},
                "accepted": True,
            },
            {"name": "batch_norm", "loss": None, "change": None, "accepted": False},
        ],
        "sentence": "Loss was <4.7>.",
    }
    layers = [{**SUMMARY["layers"][0], "predicted_error": 0.1, "output_error": 0.2}]
    accuracies = {"accuracy_original": 0.9, "accuracy_compressed": 0.8}
    top5 = {"top5_original": 1.0, "top5_compressed": 0.9}
    summary = {**SUMMARY, **accuracies, **top5, "finish": finish, "layers": layers}
    write_run(tmp_path, summary, TRIALS.assign(accuracy=[0.5, 0.7, math.nan]))
    page = write_report(tmp_path).read_text()
    assert page.count("<figure>") == 5
    for text in ("Loss was &lt;4.7&gt;.", "-0.8 &plusmn; 0.1", "not kept"):
        assert text in page
    assert "before the refit" in page
    finish["steps"][0]["accepted"] = False
    write_run(tmp_path, summary, TRIALS.assign(accuracy=[0.5, 0.7, math.nan]))
    assert "before the refit" not in write_report(tmp_path).read_text()


def test_what_the_user_pays_for_comes_first(tmp_path):
    latency = {
        "before": 0.04,
        "after": 0.02,
        "ratio": 0.5,
        "machine": {"batch": 50},
        "sentence": "Twice as <fast>.",
        "disagreement": "Predicted less.",
    }
    size = {
        "size": "latency",
        "size_of": "network",
        "before": 0.04,
        "after": 0.018,
        "quantity": "predicted milliseconds per batch, whole network",
        "scale": 1e3,
    }
    layers = [{**SUMMARY["layers"][0], "size": 0.01, "size_before": 0.03}]
    summary = {**SUMMARY, "latency": latency, "size": size, "layers": layers}
    write_run(tmp_path, summary | {"weights_ratio": 0.07}, TRIALS)
    page = write_report(tmp_path).read_text()
    order = [
        "<td>milliseconds, whole network, batch 50</td><td>40</td><td>20 (50.0%)",
        "<td>predicted milliseconds per batch, whole network</td><td>40</td><td>18 (45",
        "<td>weights, layers in play</td><td>100 %</td><td>7.00%",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "Twice as &lt;fast&gt;." in page
    assert "Predicted less." in page
    assert page.count("<figure>") == 4
    assert "Size of each layer" in page


def test_the_page_begins_with_before_after_and_quality(tmp_path):
    said = {
        "quantity": "agreement",
        "estimate": 0.9712,
        "count": 4000,
        "sentence": "agrees <often>",
    }
    size = {
        **{"size": "bytes", "size_of": "network", "before": 2000.0, "after": 500.0},
        **{"quantity": "bytes as stored, whole network", "scale": 1.0},
    }
    layers = [{**SUMMARY["layers"][0], "size": 10.0, "size_before": 30.0}]
    ladder = {
        **{"layer": "fc", "kinds": ["svd"], "ranks": [1], "sizes": [10.0]},
        **{"errors": [0.2], "dense": 30.0, "chosen": 0},
    }
    summary = {**SUMMARY, "size": size, "statement": said, "layers": layers}
    write_run(tmp_path, summary | {"ladders": [ladder]}, TRIALS)
    page = write_report(tmp_path).read_text()
    headline = page.index("<b>500 (25.0%)</b>bytes as stored, whole network, 2,000")
    agreement = page.index("<b>97.12%</b>agreement with the original, on 4,000")
    verdict, table = page.index("class='verdict"), page.index("<table>")
    assert headline < agreement < verdict < table
    pictures = [
        page.index(f"<figcaption>{caption}")
        for caption in ("What each layer costs", "Size and loss", "What each layer cou")
    ]
    assert pictures == sorted(pictures)
    assert "Rank per layer" not in page


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("{}", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({"format_version": 2}), "has format 2.*update ax-pac"),
    ],
)
def test_a_damaged_or_newer_run_is_refused(tmp_path, content, message):
    write_run(tmp_path, SUMMARY, TRIALS)
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)
