"""Training goes on in the structure that a search has found."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from compression_adapters import (
    choose_low_rank,
    choose_pruning,
    factorize_network,
    find_layers,
    load_compressed,
    save_compressed,
    squared_l2,
    truncate_network,
)
from compression_adapters.evaluation.sampling import Batch
from compression_adapters.network.fine_tuning import (
    _factor,
    fine_tune,
    move_batch_norm,
    reestimate_batch_norm,
)
from tests.helpers.networks import labels, pool, small_network


def compressed(network, choose=choose_low_rank, rank=3):
    layers = find_layers(network, choose)
    ranks = {layer.name: min(rank, layer.max_rank) for layer in layers}
    factors = factorize_network(network, layers)
    return truncate_network(network, factors, layers, ranks), layers, ranks


def loader(with_labels=True):
    data = TensorDataset(pool(), labels()) if with_labels else TensorDataset(pool())
    return DataLoader(data, batch_size=50)


def distance(network):
    with torch.no_grad():
        reference = small_network()(pool())
        return float(
            squared_l2(network, Batch(pool(), reference_outputs=reference)).mean()
        )


def hits(network):
    with torch.no_grad():
        return float((network(pool()).argmax(1) == labels()).float().mean())


@pytest.mark.parametrize("schedule", ["step", "cyclical", "constant"])
def test_training_with_labels_brings_accuracy_back(schedule):
    small, _, _ = compressed(small_network(), rank=2)
    trained = fine_tune(
        small, loader(), epochs=12, learning_rate=0.1, schedule=schedule
    )
    assert hits(trained) > hits(small)
    assert repr(trained) == repr(small)
    assert not trained.training
    assert all(p.grad is None for p in trained.parameters())


def test_training_without_labels_learns_from_the_reference_network(tmp_path):
    small, layers, ranks = compressed(small_network(), rank=1)
    reference = small_network()
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with torch.inference_mode():
        trained = fine_tune(
            *(small, loader(with_labels=False)),
            **{"epochs": 10, "learning_rate": 0.01, "reference_network": reference},
        )
    assert distance(trained) < 0.9 * distance(small)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    # The record of the search survives, so that the result can be saved.
    save_compressed(trained, layers, ranks, tmp_path)
    loaded = load_compressed(tmp_path, small_network(seed=1))
    assert torch.equal(loaded(pool()), trained(pool()))


def test_pruned_weights_stay_zero_and_others_move():
    small, _, _ = compressed(small_network())
    small, layers, _ = compressed(small, choose_pruning, rank=40)
    trained = fine_tune(small, loader(), epochs=2, weight_decay=1e-3)
    for before, after in zip(small.parameters(), trained.parameters(), strict=True):
        if before.ndim >= 2:
            zero = before == 0
            assert bool(zero.any())
            assert bool((after[zero] == 0).all())
            assert not bool((after[~zero] == before[~zero]).any())
    assert {layer.name for layer in layers} == {"0", "2"}


def test_learning_rates_follow_their_schedule():
    assert [_factor("step", e, 2) for e in (0, 1.9, 2, 4)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )
    assert [_factor("cyclical", e, 2) for e in (0, 0.5, 1, 1.5, 2)] == pytest.approx(
        [0.1, 0.55, 1.0, 0.55, 0.1]
    )
    assert _factor("constant", 9.5, 2) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1.*got 0 and 0.01"),
        ({"epochs": 1, "learning_rate": 0.0}, "positive and finite; got 1 and 0.0"),
        ({"epochs": 1, "schedule": "square"}, "schedule must be.*got 'square'"),
        ({"epochs": 9, "learning_rate": 1e9}, "try a smaller learning_rate than 10000"),
    ],
)
def test_training_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(small_network(), loader(), **options)


def test_batches_without_labels_and_frozen_networks_are_refused():
    with pytest.raises(ValueError, match=r"no labels. Pass pairs.*reference_network"):
        fine_tune(small_network(), [pool()], epochs=1)
    with pytest.raises(
        ValueError, match=r"Inputs must be tensors, or mappings.*got str"
    ):
        fine_tune(small_network(), ["text"], epochs=1)
    frozen = small_network().requires_grad_(False)
    with pytest.raises(ValueError, match="No weight of the network is trainable"):
        fine_tune(frozen, loader(), epochs=1)


def normed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Dropout(0.5), nn.Linear(30, 5)
        )
        network(pool())
    return network


def test_batch_norm_gets_the_statistics_of_what_it_now_sees():
    network = normed().eval()
    small, _, _ = compressed(network)
    renewed = reestimate_batch_norm(small, [pool()])
    with torch.no_grad():
        seen = renewed[0](pool())
    torch.testing.assert_close(renewed[1].running_mean, seen.mean(0))
    torch.testing.assert_close(renewed[1].running_var, seen.var(0))
    assert not torch.allclose(small[1].running_mean, seen.mean(0))
    assert renewed[1].momentum == 0.1
    assert not any(module.training for module in renewed.modules())


def test_batch_norm_moves_by_what_compression_changed_on_the_same_inputs():
    network = normed().eval()
    with torch.no_grad():  # stale statistics, as of other inputs
        network[1].running_mean.add_(0.3)
        network[1].running_var.mul_(2.0)
    small, _, _ = compressed(network)
    few = pool()[:20]
    moved = move_batch_norm(small, network, [few])
    with torch.no_grad():
        dense, cut = network[0](few), small[0](few)
    own = network[1]
    change = cut.mean(0) - dense.mean(0)
    torch.testing.assert_close(moved[1].running_mean, own.running_mean + change)
    ratio = cut.var(0) / dense.var(0)
    torch.testing.assert_close(moved[1].running_var, own.running_var * ratio)
    assert not any(module.training for module in moved.modules())
    # A network that was not cut keeps them, however few the inputs are.
    same = move_batch_norm(network, network, iter([few[:5]]))
    torch.testing.assert_close(same[1].running_mean, own.running_mean)
    torch.testing.assert_close(same[1].running_var, own.running_var)
    assert torch.equal(same[1].num_batches_tracked, own.num_batches_tracked)


def test_only_as_many_batches_are_used_as_asked_for():
    renewed = reestimate_batch_norm(normed().eval(), loader(), max_batches=2)
    assert int(renewed[1].num_batches_tracked) == 2


def test_nothing_to_re_estimate_is_refused():
    with pytest.raises(ValueError, match=r"\(Sequential\) has no batch norm"):
        reestimate_batch_norm(small_network(), loader())
    with pytest.raises(ValueError, match="no batch to estimate statistics from"):
        reestimate_batch_norm(normed(), [])
