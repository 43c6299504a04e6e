"""Saved networks come back the same, and tampered ones do not come back."""

import copy
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from compression_adapters import factorize_network, find_layers, truncate_network
from compression_adapters.decompositions import DECOMPOSITIONS, TruncatedSVD
from compression_adapters.layers.selection import choose_low_rank, choose_pruning
from compression_adapters.network.checkpoint import (
    load_compressed,
    save_compressed,
)
from compression_adapters.network.recipe import (
    CompressionRecipe,
    LayerRecipe,
    recipe_of,
)

RANKS = {"0": 3, "2": "dense", "4": 2}


def make_network(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(30, 20, **options),
            nn.BatchNorm1d(20, **options),
            nn.Linear(20, 20, **options),
            nn.Tanh(),
            nn.Linear(20, 10, bias=False, **options),
        )


def make_compressed(network):
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    return truncate_network(network, factors, layers, RANKS), layers


@pytest.fixture
def network():
    return make_network().eval()


@pytest.fixture
def saved(network, tmp_path):
    compressed, layers = make_compressed(network)
    save_compressed(compressed, layers, RANKS, tmp_path)
    return tmp_path, compressed


def edit_recipe(folder, change):
    path = folder / "recipe.json"
    recipe = json.loads(path.read_text())
    change(recipe)
    path.write_text(json.dumps(recipe))


def test_a_loaded_network_gives_the_same_outputs(saved):
    folder, compressed = saved
    loaded = load_compressed(folder, make_network(seed=1).eval())
    inputs = torch.randn(7, 30)
    assert torch.equal(loaded(inputs), compressed(inputs))
    assert repr(loaded) == repr(compressed)


def test_loading_runs_no_decomposition(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("decomposed")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    load_compressed(saved[0], make_network(seed=1))


def test_loading_leaves_the_fresh_network_alone(saved):
    fresh = make_network(seed=1)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    loaded = load_compressed(saved[0], fresh)
    assert type(fresh[0]) is nn.Linear
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    loaded_pointers = {p.data_ptr() for p in loaded.parameters()}
    assert not loaded_pointers & {p.data_ptr() for p in fresh.parameters()}


def test_a_loaded_network_can_be_trained(saved):
    loaded = load_compressed(saved[0], make_network(seed=1))
    loaded(torch.randn(4, 30)).sum().backward()
    assert loaded[0].left.grad is not None


def test_the_folder_holds_two_files_and_no_pickle(saved):
    folder, _ = saved
    assert sorted(p.name for p in folder.iterdir()) == [
        "recipe.json",
        "weights.safetensors",
    ]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["format_version"] == 1
    assert recipe["layers"][0] == {
        "name": "0",
        "decomposition": "svd",
        "weight_shape": [20, 30],
        "rank": 3,
    }


def test_saving_again_replaces_what_was_there(saved, network):
    folder, _ = saved
    layers = find_layers(network)
    ranks = dict.fromkeys(RANKS, "dense")
    save_compressed(network, layers, ranks, folder)
    loaded = load_compressed(folder, make_network(seed=1).eval())
    inputs = torch.randn(7, 30)
    assert torch.equal(loaded(inputs), network(inputs))


def test_a_shared_module_is_saved_once_and_comes_back_shared(tmp_path):
    def make():
        layer = nn.Linear(8, 8)
        return nn.Sequential(layer, nn.ReLU(), layer)

    network = make()
    layers = find_layers(network)
    small = truncate_network(
        network, factorize_network(network, layers), layers, {"0": 2}
    )
    save_compressed(small, layers, {"0": 2}, tmp_path)
    loaded = load_compressed(tmp_path, make())
    assert loaded[0] is loaded[2]
    inputs = torch.randn(3, 8)
    assert torch.equal(loaded(inputs), small(inputs))


def test_half_precision_comes_back_in_half_precision(tmp_path):
    compressed, layers = make_compressed(make_network(dtype=torch.bfloat16))
    save_compressed(compressed, layers, RANKS, tmp_path)
    loaded = load_compressed(tmp_path, make_network(dtype=torch.bfloat16))
    assert torch.equal(loaded[0].left, compressed[0].left)
    with pytest.raises(ValueError, match=r"torch.bfloat16, the network needs"):
        load_compressed(tmp_path, make_network())


def test_a_network_loads_in_a_new_process(saved):
    folder, compressed = saved
    program = f"""
import torch
from torch import nn
from compression_adapters import load_compressed
network = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 20),
                        nn.Tanh(), nn.Linear(20, 10, bias=False)).eval()
print(float(load_compressed({str(folder)!r}, network)(torch.ones(1, 30)).sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        expected = float(compressed(torch.ones(1, 30)).sum())
    assert float(done.stdout) == pytest.approx(expected, rel=1e-6)


def test_a_decomposition_of_ones_own_is_found_where_it_is_passed(network, tmp_path):
    class Mine(TruncatedSVD):
        def __init__(self):
            super().__init__(name="mine")

    mine = Mine()
    layers = find_layers(network, lambda n, m: mine if n == "0" else None)
    small = truncate_network(
        network, factorize_network(network, layers), layers, {"0": 3}
    )
    save_compressed(small, layers, {"0": 3}, tmp_path)
    with pytest.raises(ValueError, match="unknown decomposition 'mine'; known are svd"):
        load_compressed(tmp_path, make_network())
    loaded = load_compressed(tmp_path, make_network(), decompositions={"mine": mine})
    assert loaded[0].rank == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=4), "format_version 4.*Update ax-pac"),
        (lambda r: r.update(format_version=4, new=1), "format_version 4.*Update"),
        (
            lambda r: r.update(format_version="1"),
            "format_version must be 1 to 3; got 1",
        ),
        (lambda r: r.update(format_version=0), "format_version must be 1 to 3; got 0"),
        (lambda r: r.update(extra=1), r"the recipe must have the keys.*'extra'"),
        (lambda r: r.pop("layers"), r"the recipe must have the keys"),
        (lambda r: r.update(layers=[]), "non-empty list"),
        (lambda r: r.update(layers={}), "non-empty list"),
        (lambda r: r["layers"].append(3), "a layer of the recipe.*got int"),
        (
            lambda r: r["layers"].append(r["layers"][0]),
            "no layer '0' that 'svd' supports",
        ),
        (lambda r: r["layers"][0].update(file="../x"), "a layer.*'file'"),
        (lambda r: r["layers"][0].update(rank=2.5), "'0': rank must be.*got 2.5"),
        (lambda r: r["layers"][0].update(rank=True), "'0': rank must be.*got True"),
        (lambda r: r["layers"][0].update(rank=0), "'0': rank must be.*got 0"),
        (lambda r: r["layers"][0].update(rank="thin"), "rank must be.*got 'thin'"),
        (lambda r: r["layers"][0].update(rank=None), "rank must be.*got None"),
        (lambda r: r["layers"][0].update(rank=10**12), "'0': rank must lie in 1 to 20"),
        (lambda r: r["layers"][0].update(name=7), "must be text"),
        (lambda r: r["layers"][0].update(name="9"), "no layer '9'"),
        (lambda r: r["layers"][0].update(name=""), "no layer ''"),
        (lambda r: r["layers"][0].update(name="../0"), "no layer '../0'"),
        (lambda r: r["layers"][0].update(name="__class__"), "no layer '__class__'"),
        (lambda r: r["layers"][0].update(name="3"), "no layer '3' that 'svd' supports"),
        (lambda r: r["layers"][0].update(decomposition="os"), "decomposition 'os'"),
        (lambda r: r["layers"][0].update(weight_shape=[20]), r"has shape \(20,\)"),
        (lambda r: r["layers"][0].update(weight_shape="x"), "a list of integers"),
        (lambda r: r["layers"][0].update(rank=4), r"'0.left' is \(20, 3\)"),
        (lambda r: r["layers"][0].update(rank="dense"), "missing weights: 0.weight"),
        (lambda r: r["layers"].pop(0), "missing weights: 0.weight; unknown: 0.left"),
    ],
)
def test_a_tampered_recipe_is_refused(saved, change, message):
    edit_recipe(saved[0], change)
    with pytest.raises(ValueError, match=message):
        load_compressed(saved[0], make_network())


@pytest.mark.parametrize("text", ["", "not json", "[]", "[" * 100_000, "\x00"])
def test_a_recipe_that_is_no_json_object_is_refused(saved, text):
    (saved[0] / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"not valid JSON|must have the keys"):
        load_compressed(saved[0], make_network())


def test_a_recipe_of_bytes_that_are_no_text_is_refused(saved):
    (saved[0] / "recipe.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_compressed(saved[0], make_network())


@pytest.mark.parametrize("name", ["recipe.json", "weights.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_compressed(saved[0], make_network())


@pytest.mark.parametrize("name", ["recipe.json", "weights.safetensors"])
def test_a_file_that_links_out_of_the_folder_is_refused(saved, name, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / name
    (saved[0] / name).rename(outside)
    (saved[0] / name).symlink_to(outside)
    with pytest.raises(ValueError, match="a link that leads out of its folder"):
        load_compressed(saved[0], make_network())


def test_a_folder_that_is_itself_a_link_is_read(saved, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "network"
    link.symlink_to(saved[0])
    load_compressed(link, make_network())


def test_weights_that_are_no_safetensors_are_refused(saved):
    (saved[0] / "weights.safetensors").write_bytes(b"\x80\x04pickle, perhaps")
    with pytest.raises(ValueError, match=r"weights.safetensors cannot be read"):
        load_compressed(saved[0], make_network())


def test_another_network_is_refused(saved):
    with pytest.raises(ValueError, match=r"Layer '0': .*\(20, 30\).*\(20, 31\)"):
        load_compressed(saved[0], nn.Sequential(nn.Linear(31, 20)))
    with pytest.raises(ValueError, match=r"\(Sequential\) has no layer '4'"):
        load_compressed(saved[0], make_network()[:3])


def test_saving_with_other_ranks_than_the_networks_is_refused(network, tmp_path):
    compressed, layers = make_compressed(network)
    with pytest.raises(ValueError, match=r"'0' has 150 weights; at rank 4.*200"):
        save_compressed(compressed, layers, RANKS | {"0": 4}, tmp_path)
    with pytest.raises(ValueError, match="no entry for layer '2'"):
        save_compressed(compressed, layers, {"0": 3}, tmp_path)
    with pytest.raises(ValueError, match="has no layer '2'"):
        save_compressed(compressed[:2], layers, RANKS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recipe_goes_through_json_unchanged():
    layers = (
        LayerRecipe("a.b", "svd", (20, 30), 3),
        LayerRecipe("c", "svd", (9, 9), "dense"),
    )
    recipe = CompressionRecipe(layers)
    assert CompressionRecipe.from_json(recipe.to_json()) == recipe


class Convolutional(nn.Module):
    """Convolutions, one of them at two paths, and a head."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.body = nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular")
            self.again = self.body
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.pointwise = nn.Conv2d(8, 12, 1, bias=False)
            self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.again(self.body(self.stem(x)).relu())
        return self.head(self.pointwise(self.depthwise(x)).mean((2, 3)))


def stage(network, choose, rank, **options):
    layers = find_layers(network, choose, **options)
    factors = factorize_network(network, layers)
    ranks = {layer.name: min(rank, layer.max_rank) for layer in layers}
    return truncate_network(network, factors, layers, ranks), layers, ranks


@pytest.fixture
def images():
    return torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def test_a_network_that_went_through_four_searches_comes_back(
    tmp_path, images, monkeypatch
):
    def choose_tucker(name, module):
        tucker = DECOMPOSITIONS["tucker"]
        return tucker if tucker.supports(module) else None

    network = Convolutional()
    small, _, _ = stage(network, choose_tucker, 3, include="stem")
    small, _, _ = stage(small, choose_low_rank, 4, include=nn.Conv2d)
    small, layers, ranks = stage(small, choose_low_rank, 3, include="head")
    save_compressed(small, layers, ranks, tmp_path / "third")
    # The last search goes on from what was loaded.
    third = load_compressed(tmp_path / "third", Convolutional(seed=1))
    small, layers, ranks = stage(third, choose_pruning, 40)
    save_compressed(small, layers, ranks, tmp_path / "fourth")

    def refuse(*args, **kwargs):
        raise AssertionError("decomposed")

    for function in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, function, refuse)
    loaded = load_compressed(tmp_path / "fourth", Convolutional(seed=2))
    assert torch.equal(loaded(images), small(images))
    assert loaded.again is loaded.body
    assert repr(loaded) == repr(small)
    assert recipe_of(loaded) == recipe_of(small)
    kinds = [(entry.name, entry.decomposition) for entry in recipe_of(small).layers]
    assert kinds == [
        ("stem", "tucker"),
        ("body", "low_rank_conv"),
        ("depthwise", "low_rank_conv"),
        ("pointwise", "svd"),
        ("head", "svd"),
        *((name, "pruning") for name in ("stem", "body", "depthwise")),
        *((name, "pruning") for name in ("pointwise", "head")),
    ]
    loaded(images).sum().backward()


def test_parts_of_a_factored_layer_can_be_compressed_again(tmp_path, images):
    network = Convolutional()
    small, _, _ = stage(network, choose_low_rank, 5, include="body")
    part = find_layers(nn.ModuleDict({"x": small.body.vertical}), choose_low_rank)[0]
    layer = dataclasses.replace(part, name="body.vertical")
    factors = factorize_network(small, [layer])
    twice = truncate_network(small, factors, [layer], {"body.vertical": 2})
    save_compressed(twice, [layer], {"body.vertical": 2}, tmp_path)
    loaded = load_compressed(tmp_path, Convolutional(seed=1))
    assert torch.equal(loaded(images), twice(images))


def test_a_network_without_a_record_of_an_earlier_search_is_not_saved(tmp_path):
    small, _, _ = stage(Convolutional(), choose_low_rank, 3, include="stem")
    wrapped = nn.Sequential(small)
    wrapped, layers, ranks = stage(wrapped, choose_low_rank, 2, include="0.head")
    with pytest.raises(ValueError, match=r"'0.stem' \(LowRankConv2d\) was factored by"):
        save_compressed(wrapped, layers, ranks, tmp_path)


def test_a_network_is_not_saved_as_another_search_made_it(tmp_path):
    network = Convolutional()
    small, layers, ranks = stage(network, choose_pruning, 40)
    with pytest.raises(ValueError, match=r"made with other ranks.*stem 40, body 40"):
        save_compressed(small, layers, ranks | {"body": 50}, tmp_path)


def test_a_pruned_layer_is_checked_by_its_nonzero_weights(tmp_path):
    network = Convolutional()
    small, layers, ranks = stage(network, choose_pruning, 40)
    with torch.no_grad():
        small.head.weight.fill_(1.0)
    with pytest.raises(ValueError, match="Layer 'head' has 60 weights; at rank 40 it"):
        save_compressed(small, layers, ranks, tmp_path)


@pytest.mark.parametrize(
    "kind", ["tucker", "cp", "low_rank_conv", "channel_conv", "svd", "pruning"]
)
def test_every_decomposition_comes_back(kind, tmp_path, images):
    decomposition = DECOMPOSITIONS[kind]
    small, layers, ranks = stage(
        Convolutional(),
        lambda name, m: decomposition if decomposition.supports(m) else None,
        2,
    )
    save_compressed(small, layers, ranks, tmp_path)
    loaded = load_compressed(tmp_path, Convolutional(seed=1))
    assert torch.equal(loaded(images), small(images))
    assert layers[0].decomposition.name == kind


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def test_embeddings_and_transposed_linear_layers_come_back(tmp_path):
    def make():
        return nn.Sequential(
            nn.Embedding(20, 8, padding_idx=0), Conv1D(12, 8), nn.Linear(12, 4)
        )

    tokens = torch.arange(20).reshape(4, 5)
    small, layers, ranks = stage(make(), choose_low_rank, 2)
    assert [layer.decomposition.name for layer in layers] == ["embedding", "svd", "svd"]
    save_compressed(small, layers, ranks, tmp_path)
    loaded = load_compressed(tmp_path, make())
    assert torch.equal(loaded(tokens), small(tokens))
    assert repr(loaded) == repr(small)
    assert (loaded[0].padding_idx, loaded[1].nf) == (0, 12)
    assert loaded[1].weight.shape == (8, 12)


def test_copies_and_moves_of_a_compressed_network_keep_working(tmp_path, images):
    small, layers, ranks = stage(Convolutional(), choose_low_rank, 3)
    expected = small(images)
    twin = copy.deepcopy(small)
    assert torch.equal(twin(images), expected)
    assert recipe_of(twin) == recipe_of(small)
    twin.load_state_dict(
        stage(Convolutional(seed=1), choose_low_rank, 3)[0].state_dict()
    )
    assert not torch.equal(twin(images), expected)
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(images), expected)
    double = copy.deepcopy(small).to(torch.float64)
    torch.testing.assert_close(double(images.double()).float(), expected)
    half = copy.deepcopy(small).bfloat16()
    torch.testing.assert_close(
        half(images.bfloat16()).float(), expected, rtol=0.1, atol=0.05
    )
    meta = copy.deepcopy(small).to("meta")
    assert meta(images.to("meta")).shape == expected.shape
    save_compressed(half, layers, ranks, tmp_path)
    loaded = load_compressed(tmp_path, Convolutional(seed=1).bfloat16())
    assert torch.equal(loaded(images.bfloat16()), half(images.bfloat16()))


class Versioned(nn.Module):
    """Refuses the state of an older version, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_a_network_that_asks_for_its_version_is_loaded(tmp_path):
    network = Versioned()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"layer": 2})
    save_compressed(small, layers, {"layer": 2}, tmp_path)
    loaded = load_compressed(tmp_path, Versioned())
    x = torch.ones(1, 8)
    assert torch.equal(loaded(x), small(x))
