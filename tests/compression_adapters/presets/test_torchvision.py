"""torchvision's networks, weights and folders of images, without a connection."""

import urllib.error

import pytest
import torch
from PIL import Image

from compression_adapters.cli.sources import open_source
from compression_adapters.evaluation.accuracy import top_accuracies
from compression_adapters.presets.torchvision import (
    image_folder,
    pretrained,
    torchvision_network,
)


@pytest.fixture
def images(tmp_path):
    """Six images of two classes: dark and bright."""
    for label, value in (("bright", 220), ("dark", 30)):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 36), (value, value, i)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_without_a_connection_the_message_says_what_to_do(offline):
    expected = (
        r"weights IMAGENET1K_V1 of resnet18 .*no connection.*Download https://.*"
        r"resnet18.*\.pth .*put it into .*checkpoints, or pass its path"
    )
    with pytest.raises(ValueError, match=expected):
        pretrained("resnet18")


def test_weights_are_read_from_the_cache_and_not_unpickled(offline, monkeypatch):
    network = torchvision_network("squeezenet1_1")
    folder = offline / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    asked = {}
    load = torch.load

    def watch(*args, **kwargs):
        asked.update(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr("torch.hub.torch.load", watch)
    torch.save(network.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    found = pretrained("squeezenet1_1")
    assert asked["weights_only"] is True
    for a, b in zip(found.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_of_images_is_resized_cut_and_normalised(images):
    dataset = image_folder(images, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert dataset.classes == ["bright", "dark"]
    image, label = dataset[0]
    assert image.shape == (3, 32, 32)
    assert label == 0
    assert float(image[0, 0, 0]) == pytest.approx((220 / 255 - 0.5) / 0.25, abs=1e-5)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_images_is_refused(tmp_path, make):
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(ValueError, match="one folder of images per class"):
        image_folder(folder)


def test_train_and_val_are_pool_and_test(images, tmp_path):
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "train").symlink_to(images)
    (layout / "val").symlink_to(images)
    weights = tmp_path / "weights.pt"
    torch.save(torchvision_network("squeezenet1_1", 2).state_dict(), weights)
    options = {"weights": str(weights), "num_classes": 2, "image_size": 32}
    source = open_source("torchvision:squeezenet1_1", data=str(layout), **options)
    assert len(source.inputs) == len(source.test) == 6
    assert source.note == ""
    whole = open_source("torchvision:squeezenet1_1", data=str(images), **options)
    assert "images that the search drew from" in whole.note
    top1, top2 = top_accuracies(whole.network, whole.test, batch_size=4)
    assert 0 <= top1 <= 1
    assert top2 == 1.0
    assert top_accuracies(whole.network, whole.test, max_samples=2)[1] == 1.0
