"""Tensors with zeros come back bit for bit, and are never larger than before."""

import pytest
import safetensors.torch
import torch
from torch import nn

from compression_adapters import factorize_network, find_layers, truncate_network
from compression_adapters.decompositions import sparse_bytes
from compression_adapters.layers.selection import choose_pruning
from compression_adapters.network.checkpoint import load_compressed, save_compressed
from compression_adapters.network.sparse import pack, unpack

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def sparse(kept, shape=(40, 50), dtype=torch.float32):
    rng = torch.Generator().manual_seed(kept)
    tensor = torch.zeros(shape).flatten()
    tensor[torch.randperm(len(tensor), generator=rng)[:kept]] = 1.5
    return tensor.reshape(shape).to(dtype)


def size_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [0, 1, 60, 65, 1000, 1999, 2000])
def test_a_tensor_comes_back_exactly_and_no_larger(kept, dtype):
    tensor = sparse(kept, dtype=dtype)
    packed = pack({"a.weight": tensor})
    (whole,) = unpack(packed, {"a.weight": tensor.shape}).values()
    assert torch.equal(whole, tensor)
    assert whole.dtype == dtype
    each = tensor.element_size()
    assert size_of(packed) == min(sparse_bytes(2000, kept, each), 2000 * each)


def test_negative_zeros_infinities_and_odd_sizes_come_back_bit_for_bit():
    tensor = torch.zeros(7, 9)
    tensor[0, :4] = torch.tensor([-0.0, float("inf"), float("nan"), 1e-42])
    packed = pack({"weight": tensor})
    assert set(packed) == {"weight:values", "weight:bits"}
    (whole,) = unpack(packed, {"weight": tensor.shape}).values()
    assert torch.equal(whole.view(torch.int32), tensor.view(torch.int32))


def test_vectors_and_names_with_a_colon_stay_as_they_are():
    tensors = {"bias": torch.zeros(100), "odd:values": torch.zeros(10, 10)}
    packed = pack(tensors)
    assert set(packed) == set(tensors)
    assert set(unpack(packed, {n: t.shape for n, t in tensors.items()})) == set(tensors)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.pop("w:indices"),
        lambda p: p.update({"w:bits": torch.zeros(250, dtype=torch.uint8)}),
        lambda p: p.update({"w": torch.zeros(40, 50)}),
        lambda p: p.update({"w:values": p["w:values"][:-1].clone()}),
        lambda p: p.update({"w:values": p["w:values"].reshape(1, -1)}),
        lambda p: p.update({"w:indices": p["w:indices"].flip(0)}),
        lambda p: p.update({"w:indices": p["w:indices"] - 3000}),
        lambda p: p.update({"w:indices": p["w:indices"] + 3000}),
        lambda p: p.update({"w:indices": p["w:indices"].to(torch.int64)}),
        lambda p: (
            p.pop("w:indices"),
            p.update({"w:bits": torch.zeros(3, dtype=torch.uint8)}),
        ),
    ],
)
def test_damaged_parts_are_refused_by_name(damage):
    parts = pack({"w": sparse(20)})
    assert set(parts) == {"w:values", "w:indices"}
    damage(parts)
    with pytest.raises(ValueError, match=r"'w' is stored sparse.*\(40, 50\)"):
        unpack(parts, {"w": torch.Size([40, 50])})


class Tied(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(60, 60), nn.Linear(60, 20)
        self.again = self.first

    def forward(self, x):
        return self.last(self.again(self.first(x)).relu())


@pytest.mark.parametrize("rank", [30, 200, 990])
def test_a_pruned_network_is_saved_small_and_loaded_exactly(rank, tmp_path):
    network = Tied(0)
    layers = find_layers(network, choose_pruning)
    ranks = {layer.name: min(rank, layer.max_rank) for layer in layers}
    small = truncate_network(network, factorize_network(network, layers), layers, ranks)
    save_compressed(small, layers, ranks, tmp_path)
    loaded = load_compressed(tmp_path, Tied(1))
    state = small.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    assert loaded.again is loaded.first
    file = (tmp_path / "weights.safetensors").stat().st_size
    weights = sum(
        min(sparse_bytes(w.numel(), int(w.count_nonzero()), 4), 4 * w.numel())
        for w in (small.first.weight, small.last.weight)
    )
    assert file <= weights + 4 * 80 + 1000  # biases, and names of the tensors
    assert file < 4 * (3600 + 1200 + 80) or rank == 990


def test_a_damaged_file_is_refused_by_file_and_weight(tmp_path):
    network = Tied(0)
    layers = find_layers(network, choose_pruning)
    ranks = {layer.name: 20 for layer in layers}
    small = truncate_network(network, factorize_network(network, layers), layers, ranks)
    save_compressed(small, layers, ranks, tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = safetensors.torch.load_file(str(path))
    tensors["last.weight:values"] = tensors["last.weight:values"][1:].clone()
    safetensors.torch.save_file(tensors, str(path))
    with pytest.raises(ValueError, match=r"weights.safetensors: Weight 'last.weight'"):
        load_compressed(tmp_path, Tied(1))
