"""What every loss promises: one value per sample, never reduced."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from compression_adapters.evaluation.losses import (
    BINARY_LOSSES,
    LABELLED_LOSSES,
    LOSSES,
    IntermediateSquaredL2,
    PairedTop1Error,
    RelativeSquaredL2,
    disagreement,
    kl_divergence,
)
from compression_adapters.evaluation.sampling import Batch

# name -> (loss, does it need labels)
CASES = {name: (loss, name in LABELLED_LOSSES) for name, loss in LOSSES.items()}
CASES["relative_squared_l2"] = (RelativeSquaredL2(4.0), False)
CASES["kl_divergence(4)"] = (kl_divergence(4.0), False)
CASES["squared_l2 inside"] = (IntermediateSquaredL2("0"), False)
# Zero at identity, as losses without labels, and the only one that may be negative.
CASES["paired_top1_error"] = (PairedTop1Error(), False)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5))


@pytest.fixture
def batch(network):
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, 6, generator=rng)
    reference = network(inputs) + torch.randn(16, 5, generator=rng)
    labels = torch.randint(5, (16,), generator=rng)
    return Batch(inputs, labels, torch.arange(16), reference.detach())


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_loss_is_one_finite_value_a_sample(case, network, batch):
    values = case[0](network, batch)
    assert values.shape == (16,)
    assert bool(torch.isfinite(values).all())
    smallest = -1.0 if isinstance(case[0], PairedTop1Error) else 0.0
    assert bool((values >= smallest).all())


def test_loss_of_a_sample_does_not_depend_on_the_others(case, network, batch):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))[:7]
    part = Batch(
        batch.inputs[order],
        batch.labels[order],
        batch.indices[order],
        batch.reference_outputs[order],
    )
    torch.testing.assert_close(case[0](network, part), case[0](network, batch)[order])


def test_loss_at_identity_is_zero_or_that_of_the_network(case, network, batch):
    loss, needs_labels = case
    same = replace(batch, reference_outputs=network(batch.inputs).detach())
    values = loss(network, same)
    if needs_labels:
        assert torch.equal(values, loss(network, batch))
    else:
        torch.testing.assert_close(values, torch.zeros(16))


def test_loss_without_what_it_needs_is_refused(case, network, batch):
    loss, needs_labels = case
    if needs_labels:
        with pytest.raises(ValueError, match="needs labels, and there are none"):
            loss(network, replace(batch, labels=None))
    else:
        with pytest.raises(ValueError, match="the batch has no reference_outputs"):
            loss(network, replace(batch, reference_outputs=None))


def test_loss_refuses_a_network_without_tensor_output(case, batch):
    class Words(nn.Module):
        def forward(self, x):
            return ["no", "tensor"]

    # A loss that looks inside asks it of the layer.
    with pytest.raises(ValueError, match=r"holds no tensor|must return a tensor"):
        case[0](nn.Sequential(Words()), batch)


def test_binary_losses_are_zero_or_one_and_the_others_are_not(network, batch):
    for loss, _ in CASES.values():
        values = loss(network, batch)
        # A disagreement is one where an input has one prediction, a share of many else.
        binary = loss in BINARY_LOSSES or loss is disagreement
        assert bool(((values == 0) | (values == 1)).all()) == binary
