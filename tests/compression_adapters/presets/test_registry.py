"""FC3 and MNIST, unpacked into a folder of the test's own."""

import gzip
import json

import numpy as np
import pytest
import torch
from torch import nn

from compression_adapters import find_layers
from compression_adapters.evaluation.accuracy import accuracy
from compression_adapters.presets import fc3_network as fc3_module
from compression_adapters.presets import mnist_data as mnist_module
from compression_adapters.presets.fc3_network import (
    FC3_EPOCHS,
    fc3,
    train_fc3,
    trained_fc3,
)
from compression_adapters.presets.mnist_data import MNIST_MD5, cache_folder, mnist
from compression_adapters.presets.registry import PRESETS


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def data_cache(shared_cache, monkeypatch):
    monkeypatch.setenv("AX_PAC_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def few():
    """Images a linear rule separates: class k lights up row k."""
    labels = torch.arange(200) % 10
    images = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0)) / 2
    images[torch.arange(200), 0, labels] = 1.0
    return images, labels


def test_mnist_is_the_packaged_files(data_cache):
    images, labels = mnist(train=False)
    assert images.shape == (10_000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    raw = gzip.decompress(
        (mnist_module.PACKAGE_DATA / "t10k-images-idx3-ubyte.gz").read_bytes()
    )
    expected = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    np.testing.assert_array_equal((images[:, 0] * 255).round().numpy(), expected)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(labels).tolist() == counts


def test_mnist_training_images_are_sixty_thousand(data_cache):
    images, labels = mnist(train=True)
    assert len(images) == len(labels) == 60_000
    # The mean pixel of the data set, as published everywhere.
    assert float(images.mean()) == pytest.approx(0.1307, abs=5e-5)


def test_a_damaged_file_is_replaced_from_the_package(data_cache):
    path = data_cache / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    mnist(train=False)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x07")
    mnist(train=False)
    assert path.read_bytes() == good
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(MNIST_MD5)


def test_a_damaged_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("AX_PAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist_module, "PACKAGE_DATA", tmp_path)
    for name in MNIST_MD5:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"checksum.*expected 6bbc.*install ax-pac"):
        mnist(train=False)


def test_without_a_copy_the_files_are_downloaded_and_checked(
    data_cache, monkeypatch, tmp_path
):
    mnist(train=False)
    raw = {n: (data_cache / "MNIST" / "raw" / n).read_bytes() for n in MNIST_MD5}
    monkeypatch.setenv("AX_PAC_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist_module, "PACKAGE_DATA", tmp_path / "none")
    folder = tmp_path / "MNIST" / "raw"

    def downloaded(self):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in raw.items():
            (folder / name).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.MNIST.download", downloaded)
    assert len(mnist(train=False)[0]) == 10_000
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    raw["t10k-labels-idx1-ubyte"] = b"something else"
    with pytest.raises(ValueError, match=r"was downloaded.*checksum 27ae.*try again"):
        mnist(train=False)


def test_a_download_that_fails_names_the_other_ways(monkeypatch, tmp_path):
    monkeypatch.setenv("AX_PAC_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist_module, "PACKAGE_DATA", tmp_path / "none")

    def refused(self):
        raise RuntimeError("no route to host.")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", refused)
    with pytest.raises(RuntimeError, match=r"no route to host.*from a clone.*t10k-"):
        mnist(train=False)


def test_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("AX_PAC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AX_PAC_CACHE")
    assert cache_folder().name == "ax-pac"


def test_fc3_is_the_papers_network():
    layers = find_layers(fc3(), PRESETS["fc3"].choose)
    assert [layer.name for layer in layers] == ["fc1", "fc2", "fc3"]
    assert [layer.max_rank for layer in layers] == [439, 500, 9]
    assert sum(layer.num_weights for layer in layers) == 1_794_000


def test_fc3_takes_images_and_rows():
    network, images = fc3(), torch.rand(3, 1, 28, 28)
    assert torch.equal(network(images), network(images.reshape(3, 784)))


def test_training_learns_and_repeats_under_its_seed(few):
    state = torch.get_rng_state()
    seen = []
    network = train_fc3(
        seed=3,
        epochs=2,
        batch_size=50,
        data=few,
        progress=lambda epoch, epochs: seen.append((epoch, epochs)),
    )
    again = train_fc3(seed=3, epochs=2, batch_size=50, data=few)
    assert accuracy(network, *few)[0] > 0.9
    assert seen == [(1, 2), (2, 2)]
    assert not network.training
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = train_fc3(seed=4, epochs=1, batch_size=200, data=few)
    assert not torch.equal(other.fc1.weight, network.fc1.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_for_no_epoch_is_refused(few):
    with pytest.raises(ValueError, match="at least 1; got 0, 256"):
        train_fc3(epochs=0, data=few)


def test_trained_network_is_kept_and_read_again(few, monkeypatch, tmp_path):
    monkeypatch.setenv("AX_PAC_CACHE", str(tmp_path))
    monkeypatch.setattr(fc3_module, "mnist", lambda train: few)
    network = trained_fc3()
    note = json.loads((tmp_path / "fc3-seed0.json").read_text())
    assert note["seed"] == 0
    assert note["epochs"] == FC3_EPOCHS
    assert note["torch"] == torch.__version__
    assert note["test_accuracy"] == accuracy(network, *few, topk=(1,))[0]

    def refuse(**options):
        raise AssertionError("trained again")

    monkeypatch.setattr(fc3_module, "train_fc3", refuse)
    again = trained_fc3()
    assert torch.equal(again.fc1.weight, network.fc1.weight)
    assert not again.training
    with pytest.raises(AssertionError, match="trained again"):
        trained_fc3(cache=False)
    (tmp_path / "fc3-seed0.safetensors").write_bytes(b"damaged")
    with (
        pytest.warns(UserWarning, match="damaged and will be replaced"),
        pytest.raises(AssertionError, match="trained again"),
    ):
        trained_fc3()


def test_every_preset_is_complete(data_cache):
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.description
        if preset.test_data is None:
            continue
        inputs, labels = preset.test_data()
        outputs = preset.build()(inputs[:2])
        assert outputs.shape[1] > int(labels.max())
        assert preset.gamma > 0


@pytest.mark.parametrize(
    ("name", "count", "weights"),
    [
        ("fc3", 3, 1_794_000),
        ("vgg16", 16, 138_344_128),
        ("resnet18", 8, 6_266_880),
        ("resnet50", 16, 11_317_248),
    ],
)
def test_layers_in_play_have_the_papers_weights(name, count, weights):
    with torch.device("meta"):  # the structure is enough
        network = PRESETS[name].build()
    layers = find_layers(network, PRESETS[name].choose)
    assert len(layers) == count
    assert sum(layer.num_weights for layer in layers) == weights
    kinds = [layer.decomposition.name for layer in layers]
    linear = {"fc3": 3, "vgg16": 3}.get(name, 0)
    assert kinds == ["low_rank_conv"] * (count - linear) + ["svd"] * linear


def test_all_3x3_convolutions_of_resnet18_are_sixteen():
    with torch.device("meta"):
        network = PRESETS["resnet18"].build()
    layers = find_layers(network, PRESETS["resnet18"].choices["3x3"])
    assert len(layers) == 16
    assert sum(layer.num_weights for layer in layers) == 10_985_472


def test_maximal_ranks_of_vgg16s_linear_layers_are_the_papers():
    with torch.device("meta"):
        network = PRESETS["vgg16"].build()
    layers = find_layers(network, PRESETS["vgg16"].choices["linear"])
    assert [layer.max_rank for layer in layers] == [3521, 2048, 803]


def test_accuracy_equals_numpys():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(257, 10)), rng.integers(10, size=257)
    order = np.argsort(-outputs, axis=1)
    expected = [(order[:, :k] == labels[:, None]).any(axis=1).mean() for k in (1, 5)]
    came = accuracy(
        nn.Identity(), torch.from_numpy(outputs), torch.from_numpy(labels), (1, 5), 100
    )
    assert came == pytest.approx(tuple(expected))


def test_accuracy_leaves_modes_alone():
    network = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    network[0].eval()
    assert accuracy(network, torch.eye(5), torch.arange(5), (1,)) == (1.0,)
    assert [module.training for module in network.modules()] == [True, False, True]


@pytest.mark.parametrize(
    ("images", "labels", "topk", "message"),
    [
        (torch.eye(4), torch.arange(3), (1,), r"got 4 images and labels .*\(3,\)"),
        (torch.eye(4)[:0], torch.arange(0), (1,), "got 0 images"),
        (torch.eye(4), torch.arange(4), (1, 5), r"topk must lie in 1 to 4.*\(1, 5\)"),
    ],
)
def test_accuracy_refuses_what_it_cannot_measure(images, labels, topk, message):
    with pytest.raises(ValueError, match=message):
        accuracy(nn.Identity(), images, labels, topk)
