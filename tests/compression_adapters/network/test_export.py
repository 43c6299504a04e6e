"""What is written as ONNX runs for any number of inputs, or is refused."""

import sys

import pytest
import torch
from torch import nn

from compression_adapters import choose_low_rank, compression_problem, export_onnx
from compression_adapters.decompositions import DECOMPOSITIONS, FACTORED_LAYERS
from compression_adapters.network.modes import evaluation_mode

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def outputs_of(path, **feed):
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {name: x.numpy() for name, x in feed.items()})
    return torch.from_numpy(found)


def image_network():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
    ).eval()


@pytest.mark.parametrize("kind", ["low_rank_conv", "channel_conv", "tucker", "best"])
def test_every_form_runs_for_any_number_of_inputs(kind, tmp_path):
    def choose(name, module):
        found = DECOMPOSITIONS[kind]
        return found if found.supports(module) else choose_low_rank(name, module)

    torch.manual_seed(0)
    network, pool = image_network(), torch.randn(200, 3, 9, 9)
    problem = compression_problem(
        network, pool, gamma=1.0, choose="best" if kind == "best" else choose
    )
    small = problem.compress({p.name: 0.3 for p in problem.parameters}).train()
    assert any(isinstance(m, FACTORED_LAYERS) for m in small.modules())
    path = export_onnx(small, pool[:1], tmp_path / "small.onnx")
    assert small.training  # its modes are as they were
    for size in (1, 2, 7):
        with evaluation_mode(small):
            expected = small(pool[:size])
        found = outputs_of(path, input=pool[:size])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, one, other=None):
        return self.first(one) + self.second(other)


@pytest.mark.parametrize("as_mapping", [True, False])
def test_several_inputs_are_written_by_name_or_position(as_mapping, tmp_path):
    network, one, other = Two(), torch.randn(3, 4), torch.randn(3, 4)
    inputs = {"one": one, "other": other} if as_mapping else (one, other)
    path = export_onnx(network, inputs, tmp_path / "two.onnx")
    found = outputs_of(path, one=one[:2], other=other[:2])
    torch.testing.assert_close(found, network(one[:2], other[:2]).detach())


class Constant(nn.Module):
    def forward(self, x):
        return x + torch.arange(2.0)[:, None]


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_fixed_number_of_inputs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be written for batches of any size"):
        export_onnx(Constant(), torch.zeros(2, 3), tmp_path / "a.onnx")


def test_other_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="outputs of ONNX Runtime differ"):
        export_onnx(Random(), torch.zeros(2, 3), tmp_path / "a.onnx")


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ax-pac\[export\]"):
        export_onnx(nn.Linear(2, 2), torch.zeros(2, 2), tmp_path / "a.onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_network_is_cut_inside_and_compiled_again(tmp_path):
    torch.manual_seed(0)
    network, pool = image_network(), torch.randn(200, 3, 9, 9)
    compiled = torch.compile(network, backend="eager")
    problem = compression_problem(compiled, pool, gamma=1.0)
    assert type(problem.network) is nn.Sequential
    small = problem.compress({p.name: 0.3 for p in problem.parameters}).eval()
    again = torch.compile(small, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(again(pool[:5]), small(pool[:5]))
        assert torch.equal(compiled(pool[:5]), network(pool[:5]))
