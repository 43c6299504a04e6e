"""A user's own weights: read by name, refused in a sentence, never unpickled."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn

from compression_adapters import load_weights
from tests.helpers.networks import pool, small_network


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_read_whatever_wrapped_them(suffix, wrapped, prefix, tmp_path):
    network, path = small_network(), tmp_path / f"weights{suffix}"
    state = {f"{prefix}{name}": w for name, w in network.state_dict().items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, str(path))
    else:
        torch.save({"state_dict": state} if wrapped else state, path)
    fresh = small_network(seed=1)
    load_weights(fresh, path)
    assert torch.equal(fresh(pool(3)), network(pool(3)))


def test_a_prefix_that_is_the_networks_own_stays(tmp_path):
    network = nn.ModuleDict({"module": nn.Linear(3, 3)})
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with torch.no_grad():
        network["module"].weight.zero_()
    load_weights(network, tmp_path / "a.pt")
    assert network["module"].weight.any()


def written(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def shapes_of(*wrong):
    state = small_network().state_dict()
    return {k: torch.ones(7, 7) if k in wrong else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "pickled.pt",
            small_network(),
            r"more than weights.*network.state_dict",
        ),
        ("text.pt", b"hello", r"damaged.*Save the weights"),
        ("empty.pt", b"", r"damaged.*Save the weights"),
        ("text.safetensors", b"hello, no safetensors", r"damaged.*Save the weights"),
        ("weights.bin", b"", r"expected .safetensors, .pt or .pth"),
        ("tensor.pt", torch.ones(3), "expected a state dict, found Tensor"),
        ("list.pt", [1, 2], "expected a state dict, found list"),
        (
            "other.pt",
            nn.Linear(2, 2).state_dict(),
            r"of its 4 entries and the 2 of the file, 4 missing \(0.weight, 0.bias, "
            r"2.weight, ...\); 2 extra \(weight, bias\). Are they the weights of this",
        ),
        (
            "shape.pt",
            shapes_of("0.weight"),
            r"1 of another shape \(0.weight \(7, 7\) for \(30, 20\)\). Are they",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[-12:] else "",
)
def test_weights_that_cannot_be_used_are_refused_in_a_sentence(
    name, content, message, tmp_path
):
    path, network = written(tmp_path, name, content), small_network()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as info:
        load_weights(network, path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    for key, weight in network.state_dict().items():
        assert torch.equal(weight, before[key])


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_weights(small_network(), tmp_path / "none.pt")
