"""The values of the losses, against formulas written out."""

import math
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from torch import nn

from compression_adapters import compress, compression_problem
from compression_adapters.evaluation.losses import (
    LOSSES,
    IntermediateSquaredL2,
    PairedTop1Error,
    RelativeSquaredL2,
    cross_entropy,
    is_stored_loss,
    kl_divergence,
    loss_floor,
    squared_l2,
    stored_loss_name,
    top1_error,
)
from compression_adapters.evaluation.sampling import Batch
from compression_adapters.search.known_part import known_part
from tests.helpers.networks import labels, pool, small_network

identity = nn.Identity()
rng = np.random.default_rng(0)
OUTPUTS, REFERENCE = rng.normal(size=(2, 8, 5))
LABELS = rng.integers(5, size=8)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def batch(**changes):
    fields = {
        "inputs": torch.from_numpy(OUTPUTS),
        "labels": torch.from_numpy(LABELS),
        "reference_outputs": torch.from_numpy(REFERENCE),
    }
    return Batch(**(fields | changes))


def test_squared_l2_sums_over_all_output_dimensions():
    expected = ((OUTPUTS - REFERENCE) ** 2).sum(axis=1)
    np.testing.assert_allclose(squared_l2(identity, batch()), expected, rtol=1e-12)
    image = Batch(torch.ones(3, 2, 4, 4), reference_outputs=torch.zeros(3, 2, 4, 4))
    assert squared_l2(identity, image).tolist() == [32.0] * 3


def test_relative_loss_is_the_same_in_any_unit_of_the_outputs():
    point = {"layer_0": 0.5, "layer_2": 0.5}
    means = []
    for unit in (1.0, 100.0):
        network = small_network()
        with torch.no_grad():
            for weight in network[2].parameters():
                weight.mul_(unit)
        problem = compression_problem(
            network, pool(), gamma=1.0, loss="relative_squared_l2"
        )
        means.append(problem.evaluate(point, seed=3)["loss"].mean)
    assert means[1] == pytest.approx(means[0], rel=1e-3)


def test_relative_loss_of_zeros_is_one_on_the_samples_of_its_scale():
    problem = compression_problem(
        small_network(), pool(), gamma=1.0, loss="relative_squared_l2", num_samples=50
    )

    class Zeros(nn.Module):
        def forward(self, inputs):
            return torch.zeros_like(problem.network(inputs))

    # The scale is the mean over the samples of these four seeds, to four digits.
    means = [problem.network_loss(Zeros(), seed=seed).mean for seed in range(4)]
    assert np.mean(means) == pytest.approx(1.0, abs=1e-3)


def test_relative_loss_keeps_a_scale_that_was_given():
    loss = RelativeSquaredL2(7.0)
    problem = compression_problem(small_network(), pool(), gamma=1.0, loss=loss)
    assert problem.loss is loss


def test_relative_loss_says_what_is_missing():
    batch = Batch(torch.ones(2, 3), reference_outputs=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="use compression_problem to measure it"):
        RelativeSquaredL2()(identity, batch)
    with pytest.raises(ValueError, match="outputs are all zero"):
        RelativeSquaredL2().measured(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scale must be positive"):
        RelativeSquaredL2(0.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_divergence_equals_its_formula(temperature):
    p, q = softmax(OUTPUTS / temperature), softmax(REFERENCE / temperature)
    expected = temperature**2 * (q * np.log(q / p)).sum(axis=1)
    values = kl_divergence(temperature)(identity, batch())
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_kl_divergence_tends_to_a_squared_distance_at_high_temperature():
    # Hinton et al. 2015: T^2 KL -> ||centred difference||^2 / (2 classes).
    d = OUTPUTS - REFERENCE
    d = d - d.mean(axis=1, keepdims=True)
    values = kl_divergence(1e4)(identity, batch())
    np.testing.assert_allclose(values, (d**2).sum(axis=1) / 10, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_kl_divergence_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        kl_divergence(temperature)


def test_cross_entropy_equals_its_formula():
    expected = -np.log(softmax(OUTPUTS)[np.arange(8), LABELS])
    np.testing.assert_allclose(cross_entropy(identity, batch()), expected, rtol=1e-12)


def test_top1_error_equals_its_formula():
    expected = (OUTPUTS.argmax(axis=1) != LABELS).astype(float)
    assert top1_error(identity, batch()).tolist() == expected.tolist()


def test_reference_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got \(8, 5\) and \(8, 4\)"):
        squared_l2(identity, batch(reference_outputs=torch.zeros(8, 4)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(7, dtype=torch.int64), r"8 integers.*got shape \(7,\)"),
        (torch.zeros(8), "got shape .* of torch.float32"),
        (torch.full((8,), 5), "must lie in 0 to 4.*got 5 to 5"),
    ],
)
@pytest.mark.parametrize("loss", [cross_entropy, top1_error])
def test_labels_that_do_not_fit_are_refused(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(identity, batch(labels=labels))


def test_label_losses_refuse_outputs_that_are_no_classes():
    images = Batch(torch.zeros(2, 3, 4), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(m, classes\); got \(2, 3, 4\)"):
        cross_entropy(identity, images)


def hooks(network):
    return [hook for module in network.modules() for hook in module._forward_hooks]


def test_loss_at_a_layer_is_that_of_the_network_up_to_there():
    network, inputs = small_network(), pool()
    inside = compression_problem(
        network, inputs, gamma=1.0, loss=IntermediateSquaredL2("1"), exclude="2"
    )
    cut = compression_problem(network[:2], inputs, gamma=1.0)
    for u in (0.1, 0.6):
        came = inside.evaluate({"layer_0": u}, seed=3)["loss"]
        assert came == cut.evaluate({"layer_0": u}, seed=3)["loss"]
        assert came.mean > 0
    assert not hooks(network)
    # What comes after the layer makes no difference to the loss.
    whole = compression_problem(
        network, inputs, gamma=1.0, loss=IntermediateSquaredL2("1")
    )
    losses = [
        whole.evaluate({"layer_0": 0.6, "layer_2": u}, seed=3)["loss"] for u in (0, 1)
    ]
    assert losses == [came, came]


def test_an_output_is_kept_as_it_was_before_a_layer_that_works_in_place():
    network = nn.Sequential(nn.Linear(20, 6), nn.ReLU(inplace=True)).eval()
    with torch.no_grad():
        inside = IntermediateSquaredL2("0").outputs(network, pool(50))
        torch.testing.assert_close(inside, network[0](pool(50)))
    assert bool((inside < 0).any())


def test_a_search_compares_the_layer_that_is_named():
    loss = IntermediateSquaredL2(layer="0")
    result = compress(
        small_network(),
        pool(),
        loss=loss,
        exclude="2",
        **{"gamma": 0.1, "delta": 0.3, "epsilon": 0.1},
    )
    assert result.certificate.holds
    # One coordinate of a dozen cells: enough of them are visited to say anything.
    assert len(result.trials) <= 40
    assert result.problem.loss == loss
    assert not hooks(result.network)


class Odd(nn.Module):
    """A pair, a tensor without rows, a module that never runs, one that fails."""

    def __init__(self):
        super().__init__()
        self.pair, self.mean, self.idle = nn.LSTM(20, 4), nn.Flatten(0), nn.ReLU()
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        self.pair(x)
        self.mean(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("haed", r"\(Odd\) has no layer 'haed'; similar names are head. network.named"),
        ("backbone.7", "no layer 'backbone.7'; no name is similar"),
        ("", "no layer ''"),
        ("pair", "'pair' must return a tensor; got tuple. Name a layer inside"),
        ("mean", r"'mean' must return one row per sample: 2 samples went in.*\(40,\)"),
        ("idle", "'idle' was not called when the network ran"),
    ],
)
def test_a_layer_that_cannot_be_compared_is_refused_before_the_search(layer, message):
    network = Odd().eval()
    loss = IntermediateSquaredL2(layer)
    with pytest.raises(ValueError, match=message):
        compression_problem(network, pool(), gamma=1.0, loss=loss)
    assert not hooks(network)


def test_no_hook_is_left_where_the_network_fails():
    network = small_network()
    with pytest.raises(RuntimeError):
        IntermediateSquaredL2("0").outputs(network, torch.ones(3, 7))
    assert not hooks(network)


def own_loss(network, batch):
    return network(batch.inputs).flatten(1).sum(1)


def test_a_paired_error_is_the_error_less_that_of_the_reference():
    wrong = OUTPUTS.argmax(axis=1) != LABELS
    wrong_before = REFERENCE.argmax(axis=1) != LABELS
    found = PairedTop1Error()(identity, batch()).numpy()
    np.testing.assert_array_equal(found, wrong.astype(float) - wrong_before)
    assert found.min() == -1.0  # a prediction that compression makes right
    same = batch(reference_outputs=torch.from_numpy(OUTPUTS))
    assert PairedTop1Error()(identity, same).tolist() == [0.0] * 8


def test_a_paired_error_has_a_smaller_variance_where_predictions_mostly_agree():
    """P(l = 1) + P(l = -1) - mean^2, against p (1 - p) of the error by itself."""
    logits = torch.from_numpy(rng.normal(size=(4000, 5)))
    shaken = logits + 0.2 * torch.from_numpy(rng.normal(size=(4000, 5)))
    classes = torch.from_numpy(rng.integers(5, size=4000))
    drawn = Batch(shaken, classes, reference_outputs=logits)
    paired, alone = PairedTop1Error()(identity, drawn), top1_error(identity, drawn)
    before = float((logits.argmax(1) != classes).double().mean())
    assert float(paired.mean()) == pytest.approx(float(alone.mean()) - before, abs=1e-6)
    lost, won = (float((paired == sign).double().mean()) for sign in (1.0, -1.0))
    expected = lost + won - float(paired.double().mean()) ** 2
    assert float(paired.double().var()) == pytest.approx(expected, rel=1e-3)
    assert expected < 0.5 * float(alone.double().var())


def test_a_paired_error_needs_labels_and_reference_outputs():
    with pytest.raises(ValueError, match="needs labels, and there are none"):
        PairedTop1Error()(identity, batch(labels=None))
    with pytest.raises(ValueError, match="has no reference_outputs"):
        PairedTop1Error()(identity, batch(reference_outputs=None))


@pytest.mark.parametrize("error", [-0.1, 1.1, float("nan")])
def test_an_error_of_the_reference_is_a_share(error):
    with pytest.raises(ValueError, match="reference_error must be a share"):
        PairedTop1Error(error)


def test_the_floor_of_a_loss_is_known_for_those_of_the_package_only():
    assert {loss_floor(loss) for loss in LOSSES.values()} == {0.0}
    assert loss_floor(own_loss) is None
    assert loss_floor(PairedTop1Error()) is None
    # Reached by a network that is always right, on any inputs.
    drawn = batch(inputs=torch.eye(5)[LABELS], labels=torch.from_numpy(LABELS))
    before = float((REFERENCE.argmax(axis=1) != LABELS).mean())
    found = float(PairedTop1Error()(identity, drawn).mean())
    assert found == pytest.approx(loss_floor(PairedTop1Error(before)))


def test_the_floor_of_the_objective_is_gamma_times_that_of_the_loss():
    for loss, floor in (
        (PairedTop1Error(0.25), -0.5),
        (PairedTop1Error(), None),
        ("top1_error", 0.0),
    ):
        problem = compression_problem(
            small_network(), pool(), labels=labels(), gamma=2.0, loss=loss
        )
        assert known_part(problem).floor == floor


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        *((loss, key) for key, loss in LOSSES.items() if not is_dataclass(loss)),
        (kl_divergence(), "kl_divergence(temperature=1.0)"),
        (kl_divergence(2.5), "kl_divergence(temperature=2.5)"),
        (RelativeSquaredL2(1.235), "RelativeSquaredL2(scale=1.235)"),
        (IntermediateSquaredL2("1"), "IntermediateSquaredL2(layer='1')"),
        (PairedTop1Error(0.25), "PairedTop1Error(reference_error=0.25)"),
        (own_loss, f"{__name__}.own_loss"),
    ],
)
def test_a_loss_is_stored_by_its_own_name(loss, name):
    assert stored_loss_name(loss) == name
    assert is_stored_loss(name, name)


@pytest.mark.parametrize("name", ["squared_l2", "cross_entropy", "top1_error"])
def test_version_0_1_stored_the_path_of_a_loss(name):
    assert is_stored_loss(f"compression_adapters.losses.{name}", name)
    assert not is_stored_loss("compression_adapters.losses.other", name)
    assert not is_stored_loss(f"elsewhere.losses.{name}", name)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_version_0_1_stored_no_temperature(temperature):
    old = "compression_adapters.losses.kl_divergence.<locals>.kl_divergence_loss"
    assert is_stored_loss(old, stored_loss_name(kl_divergence(temperature)))
    assert not is_stored_loss(old, "squared_l2")


def test_another_temperature_is_another_loss():
    names = [stored_loss_name(kl_divergence(t)) for t in (1.0, 2.0)]
    assert not is_stored_loss(*names)


class Tokens(nn.Module):
    """A prediction for each of four positions."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(20, 12)

    def forward(self, x):
        return self.dense(x).unflatten(1, (4, 3))


@pytest.mark.parametrize(("make", "expected"), [(small_network, True), (Tokens, False)])
def test_a_disagreement_of_one_prediction_an_input_is_binary(make, expected):
    problem = compression_problem(make(), pool(), gamma=1.0, loss="disagreement")
    assert problem.binary_loss is expected
    # Where nothing differs, the standard error is that of what 50 inputs can show.
    names = [parameter.name for parameter in problem.parameters]
    found = problem.evaluate(dict.fromkeys(names, 1.0), seed=0)["loss"]
    assert found.mean == 0.0
    assert found.sem > 0.0
