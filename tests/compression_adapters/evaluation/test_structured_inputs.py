"""Several inputs, data loaders, and which output is compared."""

from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from compression_adapters import (
    compress,
    compression_problem,
    fine_tune,
    load_compressed,
    profile,
    reestimate_batch_norm,
)
from compression_adapters.calibration.gather import gather_moments
from compression_adapters.calibration.refit import refit_in_sequence
from compression_adapters.evaluation.calibration_split import split_inputs
from compression_adapters.evaluation.sampling import ReferenceCache, dataset_sampler
from compression_adapters.network.costs import measure_cost
from compression_adapters.network.modes import forward
from compression_adapters.network.output_error import output_errors
from compression_adapters.network.structured_inputs import (
    NetworkInputs,
    as_inputs,
    joined_inputs,
    repeated,
)
from tests.helpers.structured import Encoder, Pair, TwoInputs, sentences

SENTENCES = sentences(200)
LEFT = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
RIGHT = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
QUICK = {"search": False, "ratio": "60%", "num_samples": 20, "progress": False}


def cut(network, inputs, **options):
    return compress(network, inputs, **{**QUICK, **options})


def smallest_loss(network, inputs, **options):
    """Loss at the smallest ranks, and at the largest."""
    problem = compression_problem(
        network, inputs, gamma=1.0, **{"num_samples": 20, **options}
    )
    low, high = ({p.name: u for p in problem.parameters} for u in (0.0, 1.0))
    return (
        problem.evaluate(low, seed=0)["loss"].mean,
        problem.evaluate(high, seed=0)["loss"].mean,
    )


class TupleInputs(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Items(Dataset):
    """Reads one input as it is asked for."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 200

    def __getitem__(self, i):
        return self.item(i)


class OfAnotherLibrary:
    """Has items and a length, and no class of torch's."""

    def __len__(self):
        return 200

    def __getitem__(self, i):
        return {name: values[i].tolist() for name, values in SENTENCES.items()}


@pytest.mark.parametrize(
    "inputs",
    [
        SENTENCES,
        UserDict(SENTENCES),
        Items(lambda i: {name: values[i] for name, values in SENTENCES.items()}),
        OfAnotherLibrary(),
        [{name: values[i] for name, values in SENTENCES.items()} for i in range(200)],
        DataLoader(OfAnotherLibrary(), batch_size=7, shuffle=True),
        SENTENCES | {"labels": torch.arange(200)},
        Items(lambda i: ({n: v[i] for n, v in SENTENCES.items()}, i)),
    ],
)
def test_sentences_in_any_form_give_the_same_losses(inputs):
    expected = smallest_loss(Encoder("logits"), SENTENCES)
    assert expected[0] > 0
    assert expected[1] == 0
    assert smallest_loss(Encoder("logits"), inputs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("inputs", "whole"),
    [
        ((LEFT, RIGHT), False),
        (TupleInputs(LEFT, RIGHT), False),
        ({"left": LEFT, "right": RIGHT}, False),
        (Pair(LEFT, RIGHT), True),
        (Items(lambda i: Pair(LEFT[i], RIGHT[i])), True),
        (Items(lambda i: ((LEFT[i], RIGHT[i]), 1)), False),
        (Items(lambda i: TupleInputs(LEFT[i], RIGHT[i])), False),
        (
            DataLoader(
                TensorDataset(LEFT, RIGHT),
                collate_fn=lambda items: (
                    tuple(map(torch.stack, zip(*items, strict=True))),
                ),
            ),
            False,
        ),
    ],
)
def test_two_inputs_in_any_form_give_the_same_losses(inputs, whole):
    expected = smallest_loss(TwoInputs(), (LEFT, RIGHT))
    with torch.no_grad():
        outputs = TwoInputs()(LEFT, RIGHT)
    assert expected[0] > 0.01 * float(outputs.square().sum(1).mean())
    assert smallest_loss(TwoInputs(whole), inputs) == pytest.approx(expected)


def test_generated_inputs_may_be_several():
    def generate(m, rng):
        return {"left": torch.randn(m, 8, generator=rng), "right": RIGHT[:m]}

    low, high = smallest_loss(TwoInputs(), generate)
    assert low > 0
    assert high == 0
    with pytest.raises(ValueError, match=r"must return 20 samples.*got 3"):
        smallest_loss(TwoInputs(), lambda m, rng: (LEFT[:3], RIGHT[:3]))


@pytest.mark.parametrize("outputs", ["hidden", "logits", "tuple", "dataclass", "plain"])
def test_a_network_with_any_output_is_cut_saved_and_loaded(outputs, tmp_path):
    network = Encoder(outputs).eval()
    unused = {"exclude": "head"} if outputs == "tuple" else {}
    result = cut(network, SENTENCES, **unused)
    assert result.layers["weights"].sum() <= 0.6 * result.layers["weights_before"].sum()
    assert result.finish is not None
    result.save(tmp_path / "small")
    loaded = load_compressed(tmp_path / "small", Encoder(outputs)).eval()
    inputs = as_inputs(SENTENCES)
    with torch.no_grad():
        assert torch.equal(forward(loaded, inputs), forward(result.network, inputs))
    before, after = result.costs(batch_sizes=(1, 3), repeats=1)
    assert after.weights < before.weights
    assert set(after.latency) == {1, 3}


@pytest.mark.parametrize(
    ("outputs", "output", "shape"),
    [
        ("hidden", None, (200, 9, 16)),
        ("hidden", "pooler_output", (200, 16)),
        ("logits", None, (200, 5)),
        ("logits", "hidden_states", (200, 9, 16)),
        ("logits", "one", (200, 9, 32)),
        ("tuple", None, (200, 9, 16)),
        ("tuple", 1, (200, 21)),
        ("tuple", lambda raw: raw[1][1], (200, 5)),
        ("dataclass", "hidden", (200, 9, 16)),
    ],
)
def test_the_output_to_compare_is_chosen(outputs, output, shape):
    inputs = as_inputs(SENTENCES, output)
    with torch.no_grad():
        found = forward(Encoder(outputs), inputs)
    assert found.shape == shape
    if found.ndim == 3:
        assert bool((found[SENTENCES["attention_mask"] == 0] == 0).all())


@pytest.mark.filterwarnings("ignore")
def test_the_choice_of_an_output_decides_what_takes_part():
    with pytest.warns(UserWarning, match="'head': the outputs do not depend on it"):
        result = cut(Encoder("dataclass"), SENTENCES, output="hidden")
    assert "head" not in result.ranks
    assert "head" in cut(Encoder("dataclass"), SENTENCES).ranks


def other_padding():
    """The same sentences with other tokens where nothing is read."""
    ids, mask = SENTENCES["input_ids"], SENTENCES["attention_mask"]
    return {"input_ids": torch.where(mask == 1, ids, 49), "attention_mask": mask}


@pytest.mark.parametrize("outputs", ["hidden", "tokens"])
@pytest.mark.parametrize("loss", ["squared_l2", "kl_divergence", "relative_squared_l2"])
def test_padding_counts_neither_in_the_loss_nor_in_the_factors(outputs, loss):
    one, other = (
        smallest_loss(Encoder(outputs), inputs, loss=loss)
        for inputs in (SENTENCES, other_padding())
    )
    assert one[0] > 0
    assert one == pytest.approx(other, rel=1e-5)


def test_moments_refit_and_errors_leave_padding_out():
    network, kinds = Encoder("logits").eval(), {"embed": "frequencies", "one": "inputs"}
    one, other = (
        gather_moments(network, kinds, as_inputs(inputs))
        for inputs in (SENTENCES, other_padding())
    )
    real = SENTENCES["attention_mask"].bool()
    assert one["one"].count == int(real.sum())
    with torch.no_grad():
        rows = network.embed(SENTENCES["input_ids"][real]).double()
    torch.testing.assert_close(one["one"].mean[0], rows.mean(0), rtol=1e-5, atol=1e-7)
    for name in kinds:
        torch.testing.assert_close(one[name].second, other[name].second)
    problem = compression_problem(network, SENTENCES, gamma=1.0, num_samples=20)
    point = {p.name: 0.3 for p in problem.parameters}
    small = problem.compress(point)
    fits = [
        refit_in_sequence(network, small, problem.ranks(point), as_inputs(inputs))
        for inputs in (SENTENCES, other_padding())
    ]
    for a, b in zip(*(fit.parameters() for fit in fits), strict=True):
        torch.testing.assert_close(a, b)
    errors = [
        output_errors(network, small, ["one"], as_inputs(inputs))["one"]
        for inputs in (SENTENCES, other_padding())
    ]
    assert 0 < errors[0] == pytest.approx(errors[1], rel=1e-5)


def test_padding_in_torchs_own_form_is_left_out_too():
    inputs = as_inputs(
        {
            "src": torch.zeros(2, 3, 4),
            "src_key_padding_mask": torch.tensor(
                [[False, True, True], [False, False, True]]
            ),
        }
    )
    assert inputs.mask.tolist() == [[True, False, False], [True, True, False]]
    crossed = as_inputs(SENTENCES | {"decoder_input_ids": torch.ones(200, 9).long()})
    assert crossed.mask is None


def ragged(i):
    size = int(SENTENCES["attention_mask"][i].sum())
    return {"input_ids": SENTENCES["input_ids"][i, :size], "label": i % 5}


def padded(items):
    """As a data collator of transformers: padded to the longest of the batch."""
    ids = nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], True)
    labels = torch.tensor([item["label"] for item in items])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


@pytest.mark.parametrize("outputs", ["logits", "hidden"])
def test_sentences_of_any_length_are_padded_by_the_loader(outputs):
    loader = DataLoader(Items(ragged), batch_size=4, collate_fn=padded)
    found = smallest_loss(Encoder(outputs), loader)
    assert found == pytest.approx(smallest_loss(Encoder(outputs), SENTENCES), rel=1e-3)
    by_option = smallest_loss(Encoder(outputs), Items(ragged), collate=padded)
    assert by_option == pytest.approx(found)
    labelled = compression_problem(
        Encoder("logits"), loader, gamma=1.0, loss="top1_error", num_samples=20
    )
    batch = labelled.sampler(20, torch.Generator().manual_seed(0))
    assert torch.equal(batch.labels, batch.indices % 5)
    with pytest.raises(ValueError, match=r"one shape and dtype.*pass collate="):
        smallest_loss(Encoder(outputs), Items(ragged))


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda items: 1 / 0, "collate. failed on .* items with ZeroDivisionError"),
        (lambda items: torch.zeros(3, 9).long(), "returned 3 inputs for 40 items"),
        (lambda items: (1, 2, 3), "pair of inputs and labels; got 3 parts"),
    ],
)
def test_a_function_that_makes_no_batches_is_refused(collate, message):
    with pytest.raises(ValueError, match=message):
        smallest_loss(Encoder("logits"), Items(ragged), collate=collate)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"left": LEFT, "right": RIGHT[:9]}, {}, r"left \(200, 8\), right \(9, 6\)"),
        ({"left": LEFT, "wrong": RIGHT}, {}, "'wrong', which the network's forward"),
        ({"left": LEFT, "right": "text"}, {}, "got str at 'right'"),
        ({"left": LEFT, "right": RIGHT / 0}, {}, "200 of 200 samples hold NaN"),
        ({}, {}, "at least one tensor"),
        ((LEFT, RIGHT), {"collate": padded}, "collate makes batches of a dataset's"),
        ((LEFT, RIGHT), {"labels": LEFT[:, 0]}, None),
        ((LEFT, RIGHT), {"labels": LEFT}, r"labels must have shape \(200,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs, options, message):
    if message is None:
        assert smallest_loss(TwoInputs(), inputs, **options)[0] > 0
        return
    with pytest.raises(ValueError, match=message):
        smallest_loss(TwoInputs(), inputs, **options)


def test_reference_outputs_of_other_lengths_are_not_mixed_up():
    network = Encoder("hidden").eval()
    cache = ReferenceCache(network)
    draw = dataset_sampler(DataLoader(Items(ragged), collate_fn=padded))
    shapes = set()
    for seed in range(12):
        batch = draw(2, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            found, expected = cache.outputs(batch), forward(network, batch.inputs)
        shapes.add(expected.shape)
        torch.testing.assert_close(found, expected)
    assert len(shapes) > 1


def test_a_batch_of_several_behaves_as_a_tensor_does():
    batch = as_inputs({"a": LEFT, "b": (RIGHT, None)})
    assert [len(part) for part in batch.split(90)] == [90, 90, 20]
    assert [len(part) for part in batch.tensor_split(3)] == [67, 67, 66]
    joined = joined_inputs(batch.split(90))
    assert torch.equal(joined.parts["a"], LEFT)
    assert joined.parts["b"][1] is None
    assert torch.equal(repeated(batch[:2], 5).parts["a"], LEFT[[0, 1, 0, 1, 0]])
    assert batch.clone().parts["a"].data_ptr() != LEFT.data_ptr()
    with pytest.raises(ValueError, match=r"cannot be joined.*Pad all inputs"):
        joined_inputs([torch.zeros(1, 2), torch.zeros(1, 3)])


def test_calibration_and_trials_divide_several_inputs():
    split = split_inputs(
        SENTENCES | {"position": torch.arange(200)},
        None,
        num_samples=20,
        calibrate=30,
        seed=0,
        held_out=40,
    )
    known = set(split.calibration.inputs.parts["position"].tolist())
    held = set()
    for inputs, labels in split.held_out.batches(7):
        assert labels is None
        held |= set(inputs.parts["position"].tolist())
    drawn = set()
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        drawn |= set(split.sampler(20, rng).inputs.parts["position"].tolist())
    assert (len(known), len(held)) == (30, 40)
    assert known | held | drawn == set(range(200))
    assert not known & held | known & drawn | held & drawn
    other = as_inputs(SENTENCES)
    assert (
        split.calibration.digest()
        != split_inputs(
            other, None, num_samples=20, calibrate=30, seed=0
        ).calibration.digest()
    )


def test_held_out_inputs_that_are_generated_are_the_same_each_time():
    def generate(m, rng):
        return torch.randn(m, 2, generator=rng)

    held = split_inputs(
        generate, None, num_samples=20, calibrate=0, seed=1, held_out=101
    ).held_out
    one, two = (torch.cat([x for x, _ in held.batches(50)]) for _ in range(2))
    assert one.shape == (101, 2)
    assert torch.equal(one, two)
    assert len(one.unique()) == 202


def test_profile_cost_and_training_take_several_inputs():
    network = Encoder("logits").eval()
    table = profile(network, SENTENCES, calibrate=SENTENCES).layers
    assert table.set_index("layer").loc["one", "macs"] == 9 * 16 * 32
    assert measure_cost(network, as_inputs(SENTENCES), batch_sizes=(2,)).macs > 0
    loader = DataLoader(Items(ragged), batch_size=20, collate_fn=padded)
    before = [p.clone() for p in network.parameters()]
    trained = fine_tune(network, loader, epochs=1, learning_rate=0.1)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True)
    )
    normed = TwoInputs().eval()
    normed.head = nn.Sequential(nn.BatchNorm1d(8), normed.head).eval()
    renewed = reestimate_batch_norm(normed, [((LEFT, RIGHT), None)])
    assert not torch.equal(renewed.head[0].running_mean, torch.zeros(8))


def test_a_search_takes_sentences_and_is_certified():
    result = compress(
        Encoder("hidden"),
        SENTENCES,
        gamma=1.0,
        delta=0.5,
        loss="relative_squared_l2",
        progress=False,
    )
    assert result.certificate.holds
    assert isinstance(result.problem.calibration.inputs, NetworkInputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_with_keywords_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small = cut(Encoder("plain"), SENTENCES).network
    few = as_inputs(SENTENCES)[:3]
    args, keywords = few.arguments(small)
    assert not args
    path = str(tmp_path / "small.onnx")
    torch.onnx.export(small, args, path, kwargs=keywords, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {i.name: keywords[i.name].numpy() for i in session.get_inputs()}
    with torch.no_grad():
        expected = small(**keywords)
    found = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(8, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        outputs, _ = self.recurrent(x)
        return self.head(outputs)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_named_with_the_reason(kind):
    network = Recurrent(kind).eval()
    skipped = profile(network).skipped.set_index("layer")
    assert "cannot be cut so far" in skipped.loc["recurrent", "reason"]
    inputs = torch.randn(60, 4, 8, generator=torch.Generator().manual_seed(0))
    assert list(cut(network, inputs, ratio=0.9).ranks) == ["head"]
    with pytest.raises(ValueError, match="recurrent layer cannot be cut so far"):
        cut(nn.Sequential(kind(8, 12, batch_first=True)), inputs)


def test_detectors_are_compared_before_boxes_are_selected():
    detection = pytest.importorskip("torchvision.models.detection")
    network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    ).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = forward(network, images)
        changed = [network.roi_heads.box_head.fc7, network.rpn.head.bbox_pred]
        for layer in changed:
            layer.weight.mul_(2.0)
            other = forward(network, images)
            assert outputs.shape == other.shape
            assert not torch.equal(outputs, other)
            outputs = other
