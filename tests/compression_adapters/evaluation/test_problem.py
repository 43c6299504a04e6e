"""From a point of the search space to its observation."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from compression_adapters import (
    DECOMPOSITIONS,
    MeanSEM,
    compression_problem,
    squared_l2,
    top1_error,
)

POINT = {"layer_0": 0.4, "layer_3": 0.7}
DENSE = {"layer_0": 1.0, "layer_3": 1.0}


def make_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)
        )


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def inputs():
    return torch.randn(200, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(network, inputs):
    return network.eval()(inputs).argmax(dim=1)


def test_evaluation_equals_the_loss_of_the_compressed_network(network, inputs):
    problem = compression_problem(network, inputs, gamma=0.1, calibrate=0)
    result = problem.evaluate(POINT, seed=3)
    rng = torch.Generator().manual_seed(3)
    sample = inputs[torch.randint(200, (50,), generator=rng)]
    small = problem.compress(POINT).eval()
    with torch.no_grad():
        values = (small(sample) - network.eval()(sample)).square().sum(1).numpy()
    ratio = sum(p.numel() for p in small.parameters() if p.ndim == 2) / (192 + 80)
    loss = (values.mean(), values.std(ddof=1) / math.sqrt(50))
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["compression_ratio"] == pytest.approx((ratio, 0.0))
    assert result["objective"] == pytest.approx(
        (0.1 * loss[0] + ratio, 0.1 * loss[1]), rel=1e-4
    )
    assert problem.minimize


def test_rate_objective_is_maximised(network, inputs):
    options = {"gamma": 0.1, "objective": "rate"}
    problem = compression_problem(network, inputs, **options)
    result = problem.evaluate(POINT, seed=3)
    expected = -0.1 * result["loss"].mean + 1 / result["compression_ratio"].mean
    assert result["objective"].mean == pytest.approx(expected)
    assert not problem.minimize


def test_evaluation_is_pure(network, inputs):
    problem = compression_problem(network, inputs, gamma=0.1)
    first = problem.evaluate(POINT, seed=3)
    problem.evaluate({"layer_0": 0.1, "layer_3": 0.1}, seed=4)
    assert problem.evaluate(POINT, seed=3) == first
    assert problem.evaluate(POINT, seed=4)["loss"] != first["loss"]


def test_evaluation_is_unbiased_for_the_pool(network, inputs):
    problem = compression_problem(network, inputs, gamma=0.1)
    small = problem.compress(POINT).eval()
    with torch.no_grad():
        truth = float((small(inputs) - network.eval()(inputs)).square().sum(1).mean())
    results = [problem.evaluate(POINT, seed=seed)["loss"] for seed in range(400)]
    means = np.array([r.mean for r in results])
    assert abs(means.mean() - truth) < 4 * means.std() / 20
    hits = np.mean([abs(r.mean - truth) <= 2.0096 * r.sem for r in results])
    # Nominal 95 %, less skewness at m = 50 (0.03) and four binomial errors.
    assert hits > 0.95 - 0.03 - 4 * math.sqrt(0.95 * 0.05 / 400)


def test_network_and_its_modes_are_left_as_they_were(network, inputs):
    network.train()
    network[3].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modules = list(network)
    problem = compression_problem(network, inputs, gamma=0.1)
    problem.evaluate(POINT, seed=0)
    assert [m.training for m in network] == [True, True, True, False]
    assert all(a is b for a, b in zip(network, modules, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_trial_decomposes_nothing_copies_nothing_and_asks_the_reference_once(
    monkeypatch, inputs
):
    network = nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    problem = compression_problem(network, inputs, gamma=0.1)
    calls = []
    problem.network[1].register_forward_pre_hook(
        lambda module, _: calls.append(type(module).__name__)
    )

    def refuse(*args, **kwargs):
        raise AssertionError("decomposed or copied")

    point = {"layer_1": 0.5, "layer_3": 0.5}
    with monkeypatch.context() as patch:
        for owner, name in (
            *((torch.linalg, "svd"), (torch.linalg, "eigh")),
            *((copy, "deepcopy"), (nn.Module, "state_dict")),
        ):
            patch.setattr(owner, name, refuse)
        problem.evaluate(point, seed=0)
        problem.evaluate({"layer_1": 0.1, "layer_3": 0.9}, seed=0)
    # The dense layer ran for the reference outputs of the first trial only.
    assert calls == ["Conv2d", "LowRankConv2d", "LowRankConv2d"]


def test_dropout_does_not_act_during_an_evaluation(network, inputs):
    problem = compression_problem(network.train(), inputs, gamma=0.1)
    assert problem.evaluate(DENSE, seed=0)["loss"].mean == pytest.approx(0.0, abs=1e-10)


def test_network_is_restored_when_the_loss_raises(network, inputs):
    def broken(network, batch):
        raise RuntimeError("out of memory")

    modules = list(network)
    problem = compression_problem(network, inputs, gamma=0.1, loss=broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        problem.evaluate(POINT, seed=0)
    assert all(a is b for a, b in zip(network, modules, strict=True))
    assert network.training


def test_a_dense_network_never_has_a_standard_error_of_zero(network, inputs):
    problem = compression_problem(network, inputs, gamma=0.1)
    earlier = [problem.evaluate(POINT, seed=0)["loss"]]
    result = problem.evaluate(DENSE, seed=1, earlier=earlier)
    assert result["loss"].sem == pytest.approx(earlier[0].sem)
    assert result["objective"].sem > 0
    assert result["compression_ratio"] == MeanSEM(1.0, 0.0)


def test_top1_error_gets_the_binomial_floor(network, inputs, labels):
    problem = compression_problem(
        network, inputs, gamma=1.0, labels=labels, loss="top1_error"
    )
    result = problem.evaluate(DENSE, seed=0)
    # Labels are the network's own predictions: no error, Jeffreys' floor.
    p = 0.5 / 51
    assert result["loss"] == pytest.approx((0.0, math.sqrt(p * (1 - p) / 50)))


def test_a_loss_of_ones_own_is_binary_only_if_declared(network, inputs, labels):
    def wrong(network, batch):
        return (network(batch.inputs).argmax(1) != batch.labels).float()

    def sem(flag):
        problem = compression_problem(
            network, inputs, gamma=1.0, labels=labels, loss=wrong, binary_loss=flag
        )
        return problem.evaluate(DENSE, seed=0)["loss"].sem

    assert sem(None) == sem(False) != sem(True)


def test_a_loss_declared_binary_that_is_not_is_refused(network, inputs):
    problem = compression_problem(network, inputs, gamma=1.0, binary_loss=True)
    with pytest.raises(ValueError, match="'squared_l2' was declared binary"):
        problem.evaluate(POINT, seed=0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda v: v.mean(), r"shape \(50,\); got shape \(\). Do not average"),
        (lambda v: v[:-1], r"got shape \(49,\)"),
        (lambda v: v[:, None], r"got shape \(50, 1\)"),
        (lambda v: v.tolist(), "got list"),
        (lambda v: v * math.nan, "must be finite; 50 of 50 values"),
    ],
)
def test_a_loss_that_is_not_one_value_a_sample_is_refused(
    network, inputs, returned, message
):
    def mine(network, batch):
        return returned(squared_l2(network, batch))

    problem = compression_problem(network, inputs, gamma=1.0, loss=mine)
    with pytest.raises(ValueError, match=f"'mine'.*{message}"):
        problem.evaluate(POINT, seed=0)


def test_inputs_may_be_generated_without_end(network):
    problem = compression_problem(
        network, lambda m, rng: torch.randn(m, 12, generator=rng), gamma=0.1
    )
    first = problem.evaluate(POINT, seed=0)
    assert problem.evaluate(POINT, seed=0) == first
    assert len(problem.reference) == 0


def test_inputs_may_be_a_dataset_with_labels(network, inputs, labels):
    options = {"gamma": 0.1, "loss": top1_error}
    dataset = compression_problem(network, TensorDataset(inputs, labels), **options)
    tensors = compression_problem(network, inputs, labels=labels, **options)
    assert dataset.evaluate(POINT, seed=0) == tensors.evaluate(POINT, seed=0)


def test_a_pool_smaller_than_a_trial_is_refused(network, inputs):
    with pytest.raises(ValueError, match="pool has 49 inputs, fewer than the 50 sampl"):
        compression_problem(network, inputs[:49], gamma=0.1)
    assert compression_problem(network, inputs[:50], gamma=0.1).num_samples == 50


def test_search_space_options_reach_the_parameters(network, inputs):
    problem = compression_problem(
        network,
        inputs,
        gamma=0.1,
        choose=lambda name, module: (
            DECOMPOSITIONS["svd"] if isinstance(module, nn.Linear) else None
        ),
        tie=lambda name: "all",
        encoding="energy",
        at_max="factor",
        min_rank=2,
    )
    assert problem.ranks({"all": 0.0}) == {"0": 2, "3": 2}
    assert problem.ranks({"all": 1.0}) == {"0": 6, "3": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma.*must be positive and finite; got 0.0"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"objective": "size"}, "'ratio' or 'rate'; got 'size'"),
        ({"loss": "l1"}, "loss must be one of squared_l2.*got 'l1'"),
        ({"encoding": "cubic"}, "encoding must be one of"),
        ({"choose": lambda name, module: None}, "No layer to compress"),
    ],
)
def test_arguments_that_make_no_problem_are_refused(network, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        compression_problem(network, inputs, **({"gamma": 0.1} | options))


def test_inputs_of_an_unsupported_kind_are_refused_by_name(network, inputs):
    with pytest.raises(TypeError, match="got ndarray"):
        compression_problem(network, inputs.numpy(), gamma=0.1)


def test_labels_of_generated_inputs_are_refused(network, labels):
    with pytest.raises(ValueError, match="labels and collate must be None when inputs"):
        compression_problem(
            network, lambda m, rng: torch.zeros(m, 12), gamma=0.1, labels=labels
        )


def test_a_label_loss_without_labels_is_refused(network, inputs):
    problem = compression_problem(network, inputs, gamma=0.1, loss="cross_entropy")
    with pytest.raises(ValueError, match="'cross_entropy' needs labels"):
        problem.evaluate(POINT, seed=0)


def test_a_point_of_another_search_space_is_refused(network, inputs):
    problem = compression_problem(network, inputs, gamma=0.1)
    with pytest.raises(ValueError, match=r"missing: layer_3; unknown: fc"):
        problem.evaluate({"layer_0": 0.5, "fc": 0.5}, seed=0)
