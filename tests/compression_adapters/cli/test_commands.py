from __future__ import annotations

import dataclasses
import json
import sys

import pandas as pd
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from compression_adapters import load_compressed
from compression_adapters.cli import commands as cli
from compression_adapters.presets import registry as presets
from compression_adapters.search import auto as auto_search
from compression_adapters.search.sample_size import SampleSize
from tests.helpers.networks import labels, pool, small_network

ARGUMENTS = ["--gamma", "0.5", "--delta", "0.3", "--epsilon", "0.05"]
# For tests of what is around a search: it takes the fewest evaluations.
SHORT = ["--gamma", "0.5", "--delta", "0.9", "--epsilon", "0.4", "--level", "pairwise"]


@pytest.fixture
def small_preset(monkeypatch):
    """The preset's name, its network and data replaced by small ones."""
    preset = dataclasses.replace(
        presets.PRESETS["fc3"],
        build=small_network,
        trained=lambda progress=None: small_network(),
        train_data=lambda: (pool(), labels()),
        test_data=lambda: (pool(), labels()),
    )
    monkeypatch.setitem(presets.PRESETS, "fc3", preset)


def invoke(*arguments: str):
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.mark.usefixtures("small_preset")
def test_compress_writes_everything_and_report_writes_it_again(tmp_path):
    out = tmp_path / "run"
    result = invoke("compress", "fc3", "--out", str(out), *ARGUMENTS, "--no-refit")
    assert result.exit_code == 0, result.output
    assert "certified (level marginal)" in result.output

    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy_original"] == 1.0
    assert 0 < summary["accuracy_compressed"] <= 1.0
    assert 0 < summary["compression_ratio"] <= 1.0
    assert summary["whole_network_ratio"] == summary["compression_ratio"]
    assert summary["certificate"]["holds"]
    assert summary["certificate"]["level"] == "marginal"
    assert summary["reloaded_is_equal"]
    assert summary["settings"]["gamma"] == 0.5
    assert {"torch", "ax-platform", "ax-pac"} <= set(summary["versions"])
    assert len(summary["certificates"]) >= 1

    trials = pd.read_csv(out / "trials.csv")
    columns = ["trial_index", "status", "objective", "objective_sem", "loss"]
    columns += ["compression_ratio", "score", "rank_0", "rank_2", "accuracy"]
    assert set(columns) <= set(trials.columns)
    assert len(trials) == summary["num_trials"]
    incumbent = trials.set_index("trial_index").loc[summary["incumbent_trial"]]
    assert incumbent["accuracy"] == pytest.approx(summary["accuracy_compressed"])

    network = load_compressed(out / "network", small_network()).eval()
    hits = network(pool()).argmax(-1) == labels()
    assert hits.float().mean().item() == pytest.approx(summary["accuracy_compressed"])

    page = (out / "report.html").read_text()
    assert "Certified" in page
    assert "https://cdn" not in page.split("<body>")[0]
    (out / "report.html").unlink()
    again = invoke("report", str(out))
    assert again.exit_code == 0, again.output
    assert (out / "report.html").read_text().count("<figure>") == page.count("<figure>")


@pytest.mark.usefixtures("small_preset")
def test_what_followed_the_search_is_printed_and_kept(tmp_path):
    result = invoke("compress", "fc3", "--out", str(tmp_path), *SHORT)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert f"after     {summary['finish']['sentence']}" in result.output
    assert summary["settings"]["refit"] is True
    again = invoke("report", str(tmp_path))
    assert summary["finish"]["sentence"] in again.output
    page = (tmp_path / "report.html").read_text()
    assert "as the search measured it" in page
    recipe = json.loads((tmp_path / "network" / "recipe.json").read_text())
    kept = any(step["accepted"] for step in summary["finish"]["steps"])
    assert ("finishes" in recipe) == kept


@pytest.mark.usefixtures("small_preset")
def test_profile_prints_layers_with_predicted_errors():
    fitted = invoke("profile", "fc3")
    alone = invoke("profile", "fc3", "--calibrate", "0", "--encoding", "energy")
    for result in (fitted, alone):
        assert result.exit_code == 0, result.output
        assert "predicted_error_centre" in result.output
        assert "2 layers in play" in result.output
    assert fitted.output != alone.output
    refused = invoke("profile", "fc3", "--layers", "unknown")
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output


@pytest.mark.usefixtures("small_preset")
def test_labels_reach_losses_that_need_them(tmp_path):
    result = invoke(
        *("compress", "fc3", "--out", str(tmp_path), "--loss", "top1_error"),
        *(*SHORT, "--max-trials", "12"),
    )
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("small_preset")
def test_an_unfinished_search_says_so(tmp_path):
    result = invoke(
        *("compress", "fc3", "--out", str(tmp_path), "--max-trials", "3"),
        *("--gamma", "0.5", "--delta", "0.001"),
    )
    assert result.exit_code == 0, result.output
    assert "NOT certified" in result.output
    assert "Not certified (max_trials)" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("small_preset")
def test_a_target_and_a_number_of_samples_are_found_and_reported(tmp_path, monkeypatch):
    def choose(first, proposed, most):
        return SampleSize(most, 0.3, 0.0001, len(first.trials), most)

    monkeypatch.setattr(auto_search, "_choose", choose)
    result = invoke(
        *("compress", "fc3", "--out", str(tmp_path), "--ratio", "48%"),
        *("--num-samples", "auto", "--delta", "0.05", "--epsilon", "0.05"),
        *("--level", "pairwise", "--max-trials", "7", "--calibrate", "0"),
        *("--delta", "0.01"),
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["compression_ratio"] <= 0.48
    assert summary["settings"]["ratio"] == "48%"
    assert summary["settings"]["gamma"] is None
    assert summary["gamma"] in {row["gamma"] for row in summary["gammas"]}
    page = (tmp_path / "report.html").read_text()
    assert f"Target met with gamma {summary['gamma']:.4g}" in page
    assert summary["sample_size"]["num_samples"] == summary["num_samples"] == 400
    assert summary["sample_size"]["reason"] in page


def test_help_tells_a_newcomer_where_to_start():
    result = invoke("--help")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert any(line.startswith("ax-pac compress fc3 --out runs/fc3") for line in lines)
    assert "\\b" not in result.output
    assert "--gamma" in invoke("compress", "--help").output


MODULE = """
import torch
from tests.helpers.networks import pool, small_network

def network():
    return small_network()

def inputs():
    return pool()

def nothing():
    return None

number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's own module in the folder the command is called from."""
    (tmp_path / "own_module_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_module_of_a_user"
    sys.modules.pop("own_module_of_a_user", None)


def test_a_network_and_inputs_of_ones_own_are_compressed(own_module, tmp_path):
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(small_network(seed=3).state_dict(), str(weights))
    result = invoke(
        *("compress", f"{own_module}:network", "--data", f"{own_module}:inputs"),
        *("--weights", str(weights), "--out", "run", "--layers", "linear", *SHORT),
    )
    assert result.exit_code == 0, result.output
    assert "not measured: there are no labelled test images" in result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["reloaded_is_equal"]
    assert summary["settings"]["weights"] == str(weights)
    assert summary["settings"]["layers"] == "linear"
    assert "accuracy_compressed" not in summary
    assert (tmp_path / "run" / "report.html").exists()
    assert invoke("report", "run").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["M:nothing", "--data", "M:inputs"],
            "return a torch.nn.Module; got NoneType",
        ),
        (["M:number", "--data", "M:inputs"], "must be a function; got int"),
        (["M:absent", "--data", "M:inputs"], "M:absent cannot be imported"),
        (["absent.module:net", "--data", "M:inputs"], "No module named 'absent'"),
        (["M:network", "--data", "M:nothing"], "M:nothing returns what is no pool"),
        (["M:network", "--data", "absent"], "--data absent: there is no such folder"),
        (["M:network"], "M:network comes without data; pass --data FOLDER"),
        (["M:network", "--weights", "IMAGENET1K_V1"], "is not a torchvision network"),
        (["M:network", "--weights", "absent.pt"], "absent.pt: there is no such file"),
        (["M:network", "--data", "M:inputs", "--layers", "2x2"], "layers must be one"),
        (["torchvision:resnet19"], "torchvision has no network 'resnet19'"),
        (["resnet18", "--weights", "V9"], "no weights 'V9' for resnet18; it has IMAG"),
        (["resnet18", "--num-classes", "10"], "with 10 classes pass --weights FILE"),
    ],
)
def test_what_is_missing_is_said_in_one_line(own_module, arguments, message):
    arguments = [a.replace("M:", f"{own_module}:") for a in arguments]
    result = invoke("compress", *arguments, "--gamma", "1", "--out", "run")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert message.replace("M:", f"{own_module}:") in line


def test_a_pickled_network_of_ones_own_is_refused(own_module, tmp_path):
    torch.save(small_network(), tmp_path / "pickled.pt")
    result = invoke(
        *("compress", f"{own_module}:network", "--weights", "pickled.pt"),
        *("--data", f"{own_module}:inputs", "--gamma", "1", "--out", "run"),
    )
    assert result.exit_code == 1
    assert "cannot be read as the weights of Sequential" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "fc4", "--out", "x"], "module.path:factory"),
        (["compress", "fc3"], "Missing option '--out'"),
        (
            ["compress", "fc3", "--out", "x", "--gamma", "-1"],
            "is not in the range",
        ),
        (["compress", "fc3", "--out", "x", "--epsilon", "1"], "is not in the range"),
        (["compress", "fc3", "--out", "x", "--num-samples", "1"], "not in the range"),
        (["compress", "fc3", "--out", "x", "--num-samples", "all"], "not a valid int"),
        (["compress", "fc3", "--out", "x", "--ratio", "half"], "got 'half'"),
        (
            ["compress", "fc3", "--out", "x", "--ratio", "30%", "--gamma", "1"],
            "got --gamma and --ratio",
        ),
        (
            ["compress", "fc3", "--out", "x", "--ratio", "1%", "--loss-at-most", "1"],
            "got --ratio and --loss-at-most",
        ),
        (["unknown"], "No such command"),
    ],
)
def test_bad_arguments_are_usage_errors_of_one_line(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]


def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    result = invoke("compress", "fc3", "--out", str(file))
    assert result.exit_code == 2
    assert "is a file" in result.output


def test_a_folder_without_a_run_is_an_error_of_one_line(tmp_path):
    result = invoke("report", str(tmp_path))
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert "holds no finished run" in line


@pytest.mark.usefixtures("small_preset")
def test_a_network_that_reloads_differently_is_an_error(tmp_path, monkeypatch):
    def other_network(folder, network):
        return small_network(seed=5)

    monkeypatch.setattr(
        "compression_adapters.network.checkpoint.load_compressed", other_network
    )
    with torch.random.fork_rng():
        result = invoke("compress", "fc3", "--out", str(tmp_path), *SHORT)
    assert result.exit_code == 1
    assert "gives other outputs" in result.output


def test_a_command_given_again_goes_on_where_it_was(own_module, tmp_path):
    pytest.importorskip("sqlalchemy")
    command = (
        *("compress", f"{own_module}:network", "--data", f"{own_module}:inputs"),
        *("--out", "run", "--resume", "--gamma", "0.5", "--delta", "0.001"),
    )
    for budget in (2, 4):
        result = invoke(*command, "--max-trials", str(budget))
        assert result.exit_code == 0, result.output
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["num_trials"] == budget
    assert summary["settings"]["db"] == "sqlite:///run/search.db"
    result = invoke(*command, "--seed", "1")
    assert result.exit_code == 1
    assert "made with seed = 0, now seed = 1" in result.output
    assert "Traceback" not in result.output
    result = invoke(*command, "--db", "other.db")
    assert result.exit_code == 2
    assert "one of --db and --resume" in result.output


@pytest.mark.usefixtures("small_preset")
def test_a_size_is_counted_printed_and_reported_in_its_own_unit(tmp_path):
    out = tmp_path / "run"
    result = invoke(
        *("compress", "fc3", "--out", str(out), *SHORT, "--no-refit"),
        *("--size", "bytes", "--size-of", "network"),
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    size = summary["size"]
    assert size["size"] == "bytes"
    assert size["before"] == 4 * (20 * 30 + 30 + 30 * 5 + 5)
    assert summary["compression_ratio"] == size["after"] / size["before"]
    assert f"size      {size['sentence']}" in result.output
    assert "bytes as stored, whole network: 3,140 before" in result.output
    page = (out / "report.html").read_text()
    first_row = page[page.index("<td>") :][:200]
    assert "bytes as stored, whole network" in first_row
    assert "Size of each layer" in page


@pytest.mark.usefixtures("small_preset")
@pytest.mark.filterwarnings("ignore:Predicted")  # by times made up below
def test_times_are_measured_kept_and_used_again(tmp_path):
    times = tmp_path / "times.json"
    measured = invoke(
        *("profile", "fc3", "--size", "latency", "--latency-seconds", "0.5"),
        *("--save-times", str(times), "--no-progress"),
    )
    assert measured.exit_code == 0, measured.output
    assert "Milliseconds per batch of 50" in measured.output
    table = json.loads(times.read_text())
    assert set(table["layers"]) == {"0", "2"}
    shown = invoke("profile", "fc3", "--size", str(times))
    assert "Milliseconds per batch of 50" in shown.output
    # By hand, so that there is a rank that is faster.
    for layer in table["layers"].values():
        layer["seconds"] = [1e-5 * (i + 1) for i in range(len(layer["ranks"]))]
    times.write_text(json.dumps(table))
    out = tmp_path / "run"
    found = invoke(
        *("compress", "fc3", "--out", str(out), "--ratio", "60%", "--no-search"),
        *("--size", str(times), "--no-refit"),
    )
    assert found.exit_code == 0, found.output
    assert "time      " in found.output
    assert "predicted" in found.output
    assert json.loads((out / "times.json").read_text()) == table
    summary = json.loads((out / "summary.json").read_text())
    assert summary["compression_ratio"] <= 0.6
    assert summary["latency"]["machine"]["batch"] == 50
    assert "milliseconds, whole network, batch 50" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "latencies"], "Did you mean 'latency'"),
        (["--speedup", "0.5"], "0.5 is not in the range"),
        (
            ["--speedup", "2", "--gamma", "1"],
            "--speedup; got --gamma and --speedup",
        ),
    ],
)
def test_an_invalid_size_or_speed_is_a_usage_error(arguments, message, tmp_path):
    result = invoke("compress", "fc3", "--out", str(tmp_path / "run"), *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_times_that_were_not_measured_are_not_kept(tmp_path):
    result = invoke("profile", "fc3", "--save-times", str(tmp_path / "times.json"))
    assert result.exit_code == 2
    assert "--save-times keeps what --size latency measures" in result.output


CONVOLUTIONS = """
import torch
from torch import nn

def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6),
        )

def inputs():
    return torch.randn(300, 3, 9, 9, generator=torch.Generator().manual_seed(0))
"""


def test_every_form_is_offered_printed_and_reported(own_module, tmp_path):
    (tmp_path / "own_module_of_a_user.py").write_text(CONVOLUTIONS)
    source = (f"{own_module}:network", "--data", f"{own_module}:inputs")
    result = invoke(
        *("compress", *source, "--out", "run", "--choose", "best", "--no-refit"),
        *SHORT,
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["settings"]["choose"] == "best"
    layers = {layer["layer"]: layer for layer in summary["layers"]}
    for name, rank in summary["ranks"].items():
        assert layers[name]["rung"] == rank
        if "rung" in layers[name] and layers[name]["rank"] != "dense":
            form = f"{name} {layers[name]['kind']} {layers[name]['rank']}"
            assert form in result.output
    ladders = {ladder["layer"]: ladder for ladder in summary["ladders"]}
    assert len({*ladders["2"]["kinds"]}) > 1
    for name, ladder in ladders.items():
        sizes, errors = ladder["sizes"], ladder["errors"]
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)
        assert max(sizes) <= ladder["dense"]
        if ladder["chosen"] is None:
            assert layers[name]["rank"] == "dense"
        else:
            assert ladder["ranks"][ladder["chosen"]] == layers[name]["rank"]
            assert ladder["kinds"][ladder["chosen"]] == layers[name]["kind"]
    assert "Forms of each layer" in (tmp_path / "run" / "report.html").read_text()
    shown = invoke("profile", *source, "--choose", "best")
    assert shown.exit_code == 0, shown.output
    assert "low_rank_conv|channel_conv|tucker" in shown.output
    refused = invoke("compress", *source, "--out", "run", "--choose", "worst")
    assert refused.exit_code == 2
