"""`ax-pac compress` of a list of searches."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from compression_adapters.cli import commands
from compression_adapters.cli.many import read_list, requests_of

pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("sqlalchemy")

# Networks and data of the user's own, found in the working directory by every worker.
MODULE = """
import time
from pathlib import Path

import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)).eval()

def inputs():
    return torch.randn(400, 20, generator=torch.Generator().manual_seed(1))

def broken():
    raise RuntimeError("no such file")

def meet(own, other):
    # Each begins only when the other one is under way too.
    Path(own).touch()
    for _ in range(6000):
        if Path(other).exists():
            return inputs()
        time.sleep(0.01)
    raise RuntimeError(f"{other} never began")

def left():
    return meet("left_began", "right_began")

def right():
    return meet("right_began", "left_began")
"""

LIST = """
[defaults]
network = "of_a_list:network"
data = "of_a_list:inputs"
delta = 0.3
epsilon = 0.05
level = "pairwise"
device = "cpu"

[[search]]
name = "small"
gamma = 0.5

[[search]]
name = "large"
gamma = 5.0
refit = false

[[search]]
name = "broken"
gamma = 0.5
data = "of_a_list:broken"
"""


@pytest.fixture
def tonight(tmp_path, monkeypatch):
    """A list of three searches, one of which fails."""
    (tmp_path / "of_a_list.py").write_text(MODULE)
    (tmp_path / "tonight.toml").write_text(LIST)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tonight.toml"


def invoke(*arguments: object):
    return CliRunner().invoke(commands.main, ["compress", *map(str, arguments)])


def test_a_list_is_made_on_workers_reported_and_gone_on_with(tonight):
    out = tonight.parent / "runs"
    result = invoke(tonight, "--out", out, "--workers", 2)
    assert result.exit_code == 1
    assert "small: begins" in result.output
    assert "failed: broken. The same command tries these again" in result.output
    assert "broken: failed, ValueError: of_a_list:broken failed" in result.output
    for name in ("small", "large"):
        assert json.loads((out / name / "summary.json").read_text())["stop_reason"]
    page = (out / "report.html").read_text()
    assert '<a href="small/report.html">small</a>' in page
    assert '<td class="failed">failed</td>' in page
    with sqlite3.connect(out / "searches.db") as connection:
        names = connection.execute("select name from experiment_v2 order by 1")
        assert [name for (name,) in names] == ["large", "small"]
    connection.close()
    status = CliRunner().invoke(commands.main, ["status", str(out / "searches.db")])
    assert "small" in status.output
    assert "held by" not in status.output

    made = (out / "small" / "summary.json").stat().st_mtime_ns
    tonight.write_text(LIST.replace("of_a_list:broken", "of_a_list:inputs"))
    result = invoke(tonight, "--out", out)
    assert result.exit_code == 0, result.output
    assert "small: done before" in result.output
    assert (out / "small" / "summary.json").stat().st_mtime_ns == made
    assert "failed" not in (out / "report.html").read_text().split("</style>")[1]

    tonight.write_text(LIST.replace("gamma = 5.0", "gamma = 6.0"))
    result = invoke(tonight, "--out", out)
    assert result.exit_code == 1
    assert "'large'" in result.output
    assert "was made with other options" in result.output


def test_searches_of_a_list_are_made_at_the_same_time(tonight):
    small, large = LIST.split("[[search]]")[1:3]
    defaults = LIST.split("[[search]]")[0].replace('data = "of_a_list:inputs"\n', "")
    text = defaults
    for search, side in ((small, "left"), (large, "right")):
        text += f'[[search]]{search}data = "of_a_list:{side}"\n\n'
    tonight.write_text(text)
    out = tonight.parent / "runs"
    result = invoke(tonight, "--out", out, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert (out / "small" / "summary.json").is_file()
    assert (out / "large" / "summary.json").is_file()


def entries(folder: Path, text: str, suffix: str = ".toml"):
    path = folder / f"list{suffix}"
    path.write_text(text)
    return read_list(path)


def test_json_and_toml_are_the_same_list(tmp_path):
    toml = entries(tmp_path, '[[search]]\nname = "a"\nnetwork = "fc3"\nrefit = false')
    content = {"search": [{"name": "a", "network": "fc3", "refit": False}]}
    assert entries(tmp_path, json.dumps(content), ".json") == toml
    assert toml[0].arguments == ("fc3", "--name", "a", "--no-refit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[search", "cannot be read"),
        ("search = []", "must have a list `search`"),
        ('[[searches]]\nname = "a"', r"got \['searches'\]"),
        ('[[search]]\nnetwork = "fc3"', "search 1 of .* expected a name"),
        ('[[search]]\nname = "../a"\nnetwork = "fc3"', r"got '../a'"),
        ('[[search]]\nname = "a"', r"\(a\): expected a network, got None"),
        ('[[search]]\nname = "a"\nnetwork = "fc3"\ndb = "b"', "of the whole list"),
        ('[[search]]\nname = "a"\nnetwork = "fc3"\ngamma = [1]', "must be text"),
        (2 * '[[search]]\nname = "a"\nnetwork = "fc3"\n', "there twice"),
    ],
)
def test_what_is_no_list_is_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        entries(tmp_path, text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('network = "nosuch"', "search 'a': .*nosuch"),
        ('network = "fc3"\ndelta = -1', "search 'a': .*delta"),
        ('network = "fc3"\ndellta = 1', "search 'a': .*--dellta"),
        ('network = "fc3"\ngamma = 1\nratio = "30%"', "search 'a': expected one of"),
    ],
)
def test_every_search_is_checked_before_the_first_begins(tmp_path, options, message):
    found = entries(tmp_path, f'[[search]]\nname = "a"\n{options}')
    with pytest.raises(ValueError, match=message):
        requests_of(found, commands.compress, tmp_path / "out", "a.db")


def test_options_of_a_search_belong_into_the_list(tonight, tmp_path):
    result = invoke(tonight, "--out", tmp_path / "out", "--gamma", 0.5)
    assert result.exit_code == 2
    assert "--gamma is an option of a search: write it into" in result.output
    result = invoke(tmp_path / "no.toml", "--out", tmp_path / "out")
    assert "there is no list of searches" in result.output
