"""Bad calls of the command: a sentence that names the remedy, no traceback, no loss."""

from __future__ import annotations

import os
import re
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from compression_adapters.cli import main
from tests.helpers.networks import small_network

MODULE = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from tests.helpers.networks import pool, small_network

network, inputs = small_network, pool
number = 3


class Items(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return self.item(i)


def three():
    return 3


def fails():
    raise RuntimeError("no such dongle")


def wants(x):
    return small_network()


def activations():
    return nn.Sequential(nn.ReLU(), nn.Tanh())


def one_layer():
    return nn.Linear(20, 5)


def nan_network():
    network = small_network()
    with torch.no_grad():
        network[0].weight[0, 0] = float("nan")
    return network


def images_network():
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pooled).eval()


def a_list():
    return [1, 2, 3]


def few():
    return pool(5)


def none():
    return pool(0)


def wide():
    return torch.ones(100, 21)


def nan():
    x = pool(100)
    x[3, 3] = float("nan")
    return x


def integers():
    return torch.ones(100, 20, dtype=torch.int64)


def words():
    return Items(lambda i: "word")


def ragged():
    return Items(lambda i: torch.ones(19 + i % 2))


def dictionaries():
    return Items(lambda i: {"x": torch.ones(20)})


def broken():
    return Items(lambda i: open("disk on fire"))


def wrong_labels():
    return TensorDataset(pool(100), torch.arange(100))
"""

RUN = {
    "network": "mine:network",
    "data": "mine:inputs",
    "gamma": "1",
    "delta": "0.5",
    "level": "pairwise",
    "max-trials": "7",
    "out": "out",
}


def call(command: str = "compress", *more: str, **changes: str | None) -> list[str]:
    """A call that works, but for these changes; None leaves an option out."""
    values = RUN | {name.replace("_", "-"): v for name, v in changes.items()}
    network = values.pop("network")
    given = [part for n, v in values.items() if v is not None for part in (f"--{n}", v)]
    return [command, *([network] if network else []), *given, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with everything that a call may name by mistake."""
    path = tmp_path_factory.mktemp("calls")
    (path / "mine.py").write_text(MODULE)
    (path / "a_file").write_text("x")
    state = small_network().state_dict()
    torch.save(small_network(), path / "pickled.pt")
    torch.save(nn.Linear(3, 3).state_dict(), path / "other.pt")
    torch.save(state | {"0.weight": torch.ones(7, 7)}, path / "shape.pt")
    torch.save([1, 2], path / "list.pt")
    (path / "text.pt").write_text("hello")
    (path / "empty.pt").write_bytes(b"")
    (path / "weights.bin").write_bytes(b"x")
    (path / "text.safetensors").write_text("hello")
    (path / "no_classes").mkdir()
    for name in ("no_images", "corrupt", "few_images", "images"):
        for label in ("a", "b"):
            (path / name / label).mkdir(parents=True)
    for label in ("a", "b"):
        for i in range(26):
            (path / "corrupt" / label / f"{i}.png").write_bytes(b"no picture")
            Image.new("RGB", (40, 40)).save(path / "images" / label / f"{i}.png")
        Image.new("RGB", (40, 40)).save(path / "few_images" / label / "0.png")
    return path


CASES = {
    # What is to be compressed.
    "no network": (call(network=None), "Missing argument 'NETWORK'"),
    "unknown command": (["compres"], "Did you mean 'compress'"),
    "unknown preset": (call(network="fc4"), "not one of fc3, vgg16"),
    "unknown function": (call(network="mine:nothing"), "Expected module.path:function"),
    "unknown module": (call(network="nowhere:network"), "No module named 'nowhere'"),
    "no function": (call(network="mine:number"), "must be a function; got int"),
    "no module": (call(network="mine:three"), "must return a torch.nn.Module; got int"),
    "network fails": (call(network="mine:fails"), "no such dongle.*try it in Python"),
    "network wants": (call(network="mine:wants"), "missing 1 required.*without argum"),
    "torchvision": (call(network="torchvision:resnet19"), "such as resnet1.*list_mod"),
    "its weights": (call(network="torchvision:vgg16", weights="V9"), "it has IMAGENET"),
    "no layers": (call(network="mine:activations"), "No layer to compress was found"),
    "one layer": (call(network="mine:one_layer"), r"wrap it: nn.Sequential\(network\)"),
    "NaN weights": (call(network="mine:nan_network"), "Load finite weights"),
    "layers": (call(layers="some"), "layers must be one of all, linear, 3x3"),
    "stage's layers": (
        call("stages", "--stage", "convolutions:gamma=1"),
        "matches no layer of the network",
    ),
    # Its weights.
    "no weights": (call(weights="missing.pt"), "there is no such file"),
    "a name": (call(weights="IMAGENET1K_V1"), "is not a torchvision network"),
    "pickled": (call(weights="pickled.pt"), "Save the weights alone"),
    "text": (call(weights="text.pt"), "Save the weights again"),
    "empty": (call(weights="empty.pt"), "Save the weights again"),
    "suffix": (call(weights="weights.bin"), "expected .safetensors, .pt or .pth"),
    "text, safe": (call(weights="text.safetensors"), "Save the weights again"),
    "other network": (call(weights="other.pt"), "4 missing .*2 extra"),
    "other shape": (call(weights="shape.pt"), "1 of another shape"),
    "a list": (call(weights="list.pt"), "expected a state dict, found list"),
    # Its data.
    "no data": (call(data=None), "pass --data FOLDER"),
    "no folder": (call(data="nowhere"), "there is no such folder"),
    "a file": (call(data="a_file"), "there is no such folder"),
    "no inputs": (call(data="mine:nothing"), "Expected module.path:function"),
    "list of inputs": (call(data="mine:a_list"), "returns what is no pool.*got list"),
    "inputs fail": (call(data="mine:fails"), "no such dongle.*try it in Python"),
    "few": (call(data="mine:few"), "Pass more inputs, or a smaller num_samples"),
    "none": (call(data="mine:none"), "must have at least 2 samples"),
    "wide": (call(data="mine:wide"), "Pass inputs as the network was trained on"),
    "integers": (call(data="mine:integers"), "Pass inputs as the network was trained"),
    "NaN": (call(data="mine:nan"), "Leave these samples out"),
    "words": (call(data="mine:words"), "got str. Leave them out"),
    "ragged": (call(data="mine:ragged"), "one shape and dtype.*resize, crop or pad"),
    "dictionaries": (
        call(data="mine:dictionaries"),
        "must be Tensor, not dict.*Its forward takes",
    ),
    "broken item": (call(data="mine:broken"), r"Item \d+ .*disk on fire'. Repair it"),
    "wrong labels": (
        call(data="mine:wrong_labels", loss="cross_entropy"),
        "labels must lie in 0 to 4",
    ),
    "no classes": (call(data="no_classes"), "must hold one folder of images per class"),
    "no images": (call(data="no_images"), "Found no valid file for the classes a, b"),
    "corrupt": (
        call(network="mine:images_network", data="corrupt"),
        r"corrupt.*png cannot be read as an image.*take it out",
    ),
    "few images": (
        call(network="mine:images_network", data="few_images"),
        "The pool has 2 inputs",
    ),
    "images": (call(data="images"), "Pass inputs as the network was trained on"),
    "image size": (call(image_size="0"), "not in the range x>=1"),
    # How.
    "no target": (call(gamma=None, loss="kl_divergence"), "got none"),
    "gamma 0": (call(gamma="0"), "not in the range x>0"),
    "gamma text": (call(gamma="much"), "not a valid float"),
    "two targets": (call(ratio="30%"), "expected one of --gamma, --ratio"),
    "ratio": (call(gamma=None, ratio="130%"), "between 0 and 1, or be text such as"),
    "delta": (call(delta="-1"), "not in the range x>0"),
    "delta NaN": (call(delta="nan"), "delta must be a positive, finite number"),
    "epsilon": (call(epsilon="1.5"), "not in the range 0.0<x<1.0"),
    "level": (call(level="certain"), "not one of 'pairwise', 'joint', 'marginal'"),
    "loss": (call(loss="l2"), "not one of 'squared_l2'"),
    "labels": (call(loss="cross_entropy"), "needs labels, and there are none"),
    "max_trials": (call(max_trials="1"), "not in the range x>=2"),
    "start": (call(start="dense"), "not one of 'auto', 'path', 'line'"),
    "encoding": (call(encoding="cubic"), "not one of 'log', 'energy', 'linear'"),
    "min_rank": (call(min_rank="0"), "not in the range x>=1"),
    "seed": (call(seed="-1"), "not in the range x>=0"),
    "one sample": (call(num_samples="1"), "not in the range x>=2"),
    "some samples": (call(num_samples="many"), "not a valid integer"),
    "relative": (
        call("compress", "--relative", sampling="expected_improvement"),
        "give relative=False, or another sampling",
    ),
    "device": (call(device="toaster"), "--device toaster cannot be used here"),
    # Options that exclude one another, and where things go.
    "line, workers": (call(start="line", workers="2"), "'path' and 'line' go without"),
    "db, resume": (call("compress", "--resume", db="x.db"), "one of --db and --resume"),
    "db, auto": (call(db="x.db", num_samples="auto"), "give a number with db"),
    "db's folder": (call(db="nowhere/x.db"), "Check that its folder or server exists"),
    "db's kind": (call(db="foo://x"), "expected a database as a URL"),
    "out": (call(out=None), "Missing option '--out'"),
    "out, a file": (call(out="a_file"), "'a_file' is a file"),
    "out, below": (call(out="a_file/run"), "cannot be written.*Choose another folder"),
    "report": (["report", "no_classes"], "holds no finished run"),
    "report, a file": (["report", "a_file"], "a_file holds no search: expected"),
    "stage": (call("stages", "--stage", "conv"), "one of convolutions, linear"),
    "stage's name": (
        call("stages", "--stage", "linear:gama=1"),
        "must be one of gamma",
    ),
    "stage's value": (call("stages", "--stage", "linear:gamma=x"), "must be a number"),
    "stage's targets": (
        call("stages", "--stage", "linear:gamma=1,ratio=30%"),
        "got gamma and ratio",
    ),
    "epochs": (call("stages", epochs="-1"), "not in the range x>=0"),
}


def test_there_are_sixty():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_a_bad_call_is_refused_in_a_sentence(arguments, message, folder, monkeypatch):
    if any("db" in argument for argument in arguments):
        pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(os.fspath(folder))
    before = {path: path.stat().st_size for path in folder.rglob("*.*")}
    result = CliRunner().invoke(main, arguments)
    sys.modules.pop("mine", None)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    error = result.output[result.output.index("Error:") :].strip()
    assert len(error.splitlines()) <= 3
    assert len(error) < 600
    assert "Traceback" not in result.output
    assert re.search(message, error, flags=re.DOTALL), error
    after = {path: path.stat().st_size for path in before}
    assert after == before
