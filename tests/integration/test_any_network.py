"""A transformer, a depthwise and a residual network: compressed, saved, exported."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from compression_adapters import (
    DECOMPOSITIONS,
    choose_low_rank,
    choose_pruning,
    compression_problem,
    factorize_network,
    find_layers,
    load_compressed,
    save_compressed,
    truncate_network,
)


class Transformer(nn.Module):
    """Embedding, encoder with multi-head attention, and a head; takes token ids."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 6)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(dim=1))


def tokens(n):
    return torch.randint(20, (n, 7), generator=torch.Generator().manual_seed(0))


def images(n):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Convolutional(nn.Module):
    """Strided, dilated, grouped, depthwise and 1 x 1 convolutions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2)),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular"),
            nn.Hardswish(),
            nn.Conv2d(8, 12, 3, groups=4, dilation=2),
            nn.Conv2d(12, 12, 3, groups=12, padding=1),
            nn.Conv2d(12, 16, 1, stride=2),
        )
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


NETWORKS = {
    "convolutional": (Convolutional, images),
    "transformer": (Transformer, tokens),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=6), images),
    "resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=6), images),
    "resnet18": (lambda: models.resnet18(num_classes=6), images),
}


def networks(*slow):
    """All of them, some of them for the slow tests only."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in slow else [])
        for name in NETWORKS
    ]


EXPORTED = networks("mobilenet", "resnet", "resnet18")


def make(name, seed=0):
    build, make_inputs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval(), make_inputs


def compressed(name):
    network, make_inputs = make(name)
    problem = compression_problem(
        network, make_inputs(60), gamma=1.0, num_samples=8, tie=lambda layer: "all"
    )
    return problem, problem.compress({"all": 0.7}).eval(), make_inputs(3)


@pytest.mark.parametrize("name", networks("resnet18"))
def test_a_network_is_evaluated_compressed_saved_and_reloaded(name, tmp_path):
    problem, small, inputs = compressed(name)
    assert problem.evaluate({"all": 0.7}, seed=0)["loss"].mean > 0
    assert problem.evaluate({"all": 1.0}, seed=0)["loss"].mean < 1e-8
    save_compressed(small, problem.layers, problem.ranks({"all": 0.7}), tmp_path)
    loaded = load_compressed(tmp_path, make(name, seed=1)[0])
    with torch.no_grad():
        assert torch.equal(loaded(inputs), small(inputs))
    with torch.inference_mode():  # where a transformer takes its fast path
        torch.testing.assert_close(loaded(inputs), problem_output(small, inputs))
    loaded.train()(inputs).sum().backward()


def problem_output(network, inputs):
    with torch.no_grad():
        return network(inputs).clone()


@pytest.mark.parametrize("name", EXPORTED)
def test_a_compressed_network_is_exported_by_torch(name):
    _, small, inputs = compressed(name)
    program = torch.export.export(small, (inputs,))
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(inputs), small(inputs), rtol=1e-4, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", EXPORTED)
def test_a_compressed_network_is_exported_to_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, small, inputs = compressed(name)
    path = str(tmp_path / "network.onnx")
    torch.onnx.export(small, (inputs,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    (outputs,) = session.run(None, feed)
    with torch.no_grad():
        expected = small(inputs)
    torch.testing.assert_close(
        torch.from_numpy(outputs), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["tucker", "cp", "pruning"])
def test_other_decompositions_are_exported_by_torch(kind):
    decomposition = DECOMPOSITIONS[kind]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 5), stride=(1, 2), dilation=2),
    ).eval()
    layers = find_layers(
        network, lambda n, m: decomposition if n in "02" and n else None
    )
    factors = factorize_network(network, layers)
    ranks = dict.fromkeys(("0", "2"), 3)
    small = truncate_network(network, factors, layers, ranks)
    inputs = images(2)
    program = torch.export.export(small, (inputs,))
    torch.testing.assert_close(program.module()(inputs), small(inputs))


def test_a_low_rank_stage_is_followed_by_pruning_as_in_the_paper(tmp_path):
    # td + svd + pruning of the paper's section 4.3, without training in between.
    network, make_inputs = make("mobilenet")
    whole = sum(p.numel() for p in network.parameters() if p.ndim >= 2)
    small = network
    for choose, options in (
        (choose_low_rank, {"include": nn.Conv2d}),
        (choose_low_rank, {"include": nn.Linear}),
        (choose_pruning, {}),
    ):
        problem = compression_problem(
            small,
            make_inputs(20),
            gamma=1.0,
            num_samples=4,
            choose=choose,
            tie=lambda layer: "all",
            **options,
        )
        ranks = problem.ranks({"all": 0.8})
        small = problem.compress({"all": 0.8}).eval()
    save_compressed(small, problem.layers, ranks, tmp_path)
    loaded = load_compressed(tmp_path, make("mobilenet", seed=1)[0])
    inputs = make_inputs(3)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), small(inputs))
    left = sum(int(p.count_nonzero()) for p in loaded.parameters() if p.ndim >= 2)
    assert left < 0.5 * whole


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compressed_network_is_compiled(name):
    _, small, inputs = compressed(name)
    with torch.no_grad():
        expected = small(inputs)
        compiled = torch.compile(copy.deepcopy(small), backend="aot_eager")
        torch.testing.assert_close(compiled(inputs), expected, rtol=1e-4, atol=1e-5)
