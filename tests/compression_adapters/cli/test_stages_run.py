"""Stages on the command line: read, run, interrupted, continued, reported."""

import dataclasses
import json
import re

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from compression_adapters import load_compressed
from compression_adapters.cli import commands as cli
from compression_adapters.cli import stages_run as stage_pipeline
from compression_adapters.cli.options import Request, SourceRequest
from compression_adapters.cli.sources import Source
from compression_adapters.cli.stages_run import (
    StageRequest,
    Training,
    compress_source_in_stages,
    read_stage,
)
from compression_adapters.options import CompressionOptions
from compression_adapters.presets import registry as presets
from compression_adapters.report.stages import read_stages, stage_table
from tests.helpers.networks import labels, pool, small_network

pytestmark = pytest.mark.filterwarnings(
    "ignore:Very small noise values", "ignore:.*not faster"
)
LINEAR = ["--stage", "linear:gamma=0.5"]
PRUNING = ["--stage", "pruning:gamma=1,epochs=2"]
SEARCH = ["--delta", "0.5", "--epsilon", "0.1", "--level", "pairwise"]


@pytest.fixture(autouse=True)
def small_preset(monkeypatch):
    preset = dataclasses.replace(
        presets.PRESETS["fc3"],
        build=small_network,
        trained=lambda progress=None: small_network(),
        train_data=lambda: (pool(), labels()),
        test_data=lambda: (pool(), labels()),
    )
    monkeypatch.setitem(presets.PRESETS, "fc3", preset)


def invoke(out, *arguments):
    command = ["stages", "fc3", "--out", str(out), *SEARCH, *arguments]
    return CliRunner().invoke(cli.main, command)


def test_stages_follow_each_other_and_the_report_holds_all(tmp_path):
    result = invoke(tmp_path, *LINEAR, *PRUNING)
    assert result.exit_code == 0, result.output
    assert "linear + pruning" in result.output
    summary = read_stages(tmp_path)
    assert [row["network"] for row in summary["networks"]] == [
        "original",
        "linear",
        "linear + pruning",
    ]
    assert summary["networks"][0]["top1"] == 1.0
    small = load_compressed(tmp_path / "network", small_network(seed=1)).eval()
    with torch.no_grad():
        top1 = (small(pool()).argmax(1) == labels()).float().mean()
    assert summary["networks"][2]["top1"] == pytest.approx(float(top1))
    left = sum(int(p.count_nonzero()) for p in small.parameters() if p.ndim > 1)
    percent = stage_table(summary)["weights_percent"]
    assert percent[2] == pytest.approx(100 * left / 750)
    assert 100 == percent[0] > percent[1] > percent[2] > 0
    page = (tmp_path / "report.html").read_text()
    for text in ("in 2 stages", "linear + pruning", "level pairwise", "energy_kept"):
        assert text in page
    assert page.count("class='verdict") == 2
    # The report alone is written again by the command for it.
    (tmp_path / "report.html").unlink()
    again = CliRunner().invoke(cli.main, ["report", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "report.html").read_text().count("class='verdict") == 2


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke(whole, *LINEAR, *PRUNING).exit_code == 0
    tune = stage_pipeline.fine_tune

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_pipeline, "fine_tune", stopped)
    result = invoke(parts, *LINEAR, *PRUNING)
    assert result.exit_code == 1
    assert "the same command resumes" in result.output
    monkeypatch.setattr(stage_pipeline, "fine_tune", tune)
    result = invoke(parts, *LINEAR, *PRUNING)
    assert "finished before: linear\n" in result.output
    first, second = (
        load_compressed(folder / "network", small_network(seed=1)).state_dict()
        for folder in (whole, parts)
    )
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name])
    # Other training is another run.
    other = ["--stage", "pruning:gamma=1,epochs=3"]
    result = invoke(parts, *LINEAR, *other)
    assert result.exit_code == 1
    assert re.search(r"'then epochs': 2.*now they are.*'then epochs': 3", result.output)


def test_a_search_is_kept_in_a_database_for_each_stage(tmp_path):
    pytest.importorskip("sqlalchemy")
    result = invoke(tmp_path, *LINEAR, "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "search.db").is_file()


def test_what_a_stage_can_be_is_read_and_refused():
    assert read_stage("low-rank") == StageRequest("low-rank", {})
    request = read_stage("convolutions:loss_at_most=2,max_trials=30,learning_rate=.1")
    assert request.options == {
        "loss_at_most": 2.0,
        "max_trials": 30,
        "learning_rate": 0.1,
    }
    with pytest.raises(ValueError, match=r"one of convolutions, linear.*'conv'"):
        read_stage("conv")
    with pytest.raises(ValueError, match=r"'linear': a setting must be .* 'gama=1'"):
        read_stage("linear:gama=1")
    with pytest.raises(ValueError, match=r"'linear': epochs must be a whole .* '1.5'"):
        read_stage("linear:epochs=1.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "conv"], "a stage must be one of convolutions, linear"),
        (["--stage", "linear"], "stage 'linear' needs one of gamma, ratio,"),
        (["--stage", "linear:gamma=1,ratio=5%"], "got gamma and ratio"),
        (["--gamma", "1", "--ratio", "5%"], "expected one of --gamma, --ratio"),
        (["--gamma", "1"], "Conv2d"),  # the paper's stages begin with convolutions
    ],
)
def test_what_cannot_be_run_is_said(tmp_path, arguments, message):
    result = invoke(tmp_path, *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_stage_of_the_same_kind_and_its_own_target(tmp_path):
    own = ["--stage", "low-rank", "--stage", "layer-pruning:gamma=2"]
    own += ["--stage", "layer-pruning"]
    result = invoke(tmp_path, "--gamma", "0.5", *own)
    assert result.exit_code == 0, result.output
    folders = [path.name for path in sorted((tmp_path / "stages").iterdir())]
    assert folders == ["0-low-rank", "1-layer-pruning", "2-layer-pruning-2"]
    gammas = [
        json.loads((tmp_path / "stages" / folder / "stage.json").read_text())
        for folder in folders
    ]
    assert [each["settings"]["gamma"] for each in gammas] == [0.5, 2.0, 0.5]
    layers = pd.read_csv(tmp_path / "stages" / "1-layer-pruning" / "layers.csv")
    assert layers["kind"].tolist() == ["pruning", "pruning"]


class Items(Dataset):
    """Inputs alone, as many folders of pictures give them."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        return pool()[index]


@pytest.mark.parametrize(
    ("inputs", "given", "learns_from"),
    [
        (pool(), labels(), "labels"),
        (pool(), None, "reference"),
        (TensorDataset(pool(), labels()), None, "labels"),
        (Items(), None, "reference"),
    ],
)
def test_training_uses_labels_where_there_are_any(
    tmp_path, monkeypatch, inputs, given, learns_from
):
    seen = []
    tune = stage_pipeline.fine_tune

    def watched(network, loader, **options):
        batch = next(iter(loader))
        labelled = isinstance(batch, tuple | list)
        reference = options["reference_network"] is not None
        assert labelled != reference
        seen.append("labels" if labelled else "reference")
        return tune(network, loader, **options)

    monkeypatch.setattr(stage_pipeline, "fine_tune", watched)
    source = Source(
        name="own",
        description="",
        network=small_network(),
        build=small_network,
        choose=presets.choose_linear,
        inputs=inputs,
        labels=given,
    )
    request = Request(
        out=tmp_path,
        source=SourceRequest(network="own", test_samples=100),
        options=CompressionOptions.of(delta=0.5, epsilon=0.1, level="pairwise"),
    )
    summary = compress_source_in_stages(
        source,
        request,
        [StageRequest("linear", {"gamma": 0.5, "max_trials": 6})],
        Training(epochs=1, batch_size=100),
    )
    assert seen == [learns_from]
    assert "top1" not in summary["networks"][0]
    assert type(source.network[0]) is nn.Linear


@pytest.mark.parametrize("loss", ["relative_squared_l2", "top1_error"])
def test_every_stage_takes_the_loss(tmp_path, loss):
    result = invoke(tmp_path, *LINEAR, *PRUNING, "--loss", loss, "--max-trials", "8")
    assert result.exit_code == 0, result.output
    losses = [row["loss"] for row in read_stages(tmp_path)["stages"]]
    assert len(losses) == 2
    assert all(0 <= value <= 1 for value in losses)


def test_a_folder_without_stages_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no finished stages: expected stages.json"):
        read_stages(tmp_path)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(ValueError, match=r"stages.json is damaged"):
        read_stages(tmp_path)
    (tmp_path / "stages.json").write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match="has format 2, this version reads up to 1"):
        read_stages(tmp_path)
