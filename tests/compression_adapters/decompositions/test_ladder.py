"""Several decompositions of one layer: every rung is the real thing, none is beaten."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from compression_adapters.calibration.gather import gather_moments
from compression_adapters.decompositions import (
    DECOMPOSITIONS,
    Ladder,
    Rung,
    error_shares,
)
from compression_adapters.layers.selection import choose_best
from compression_adapters.layers.survey import find_layers
from compression_adapters.network.sizes import (
    LayerSizes,
    by_error,
    count_weights,
    with_ranks,
)

KINDS = ("low_rank_conv", "channel_conv", "tucker")
LAYERS = {
    "plain": lambda: nn.Conv2d(6, 9, 3, padding=1),
    "no bias, stride": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False),
    "dilation": lambda: nn.Conv2d(5, 8, 3, padding=2, dilation=2),
    "not square": lambda: nn.Conv2d(6, 8, (3, 5), padding=(1, 2)),
    "groups": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
}


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(layer, n=40):
    noise = torch.randn(n, layer.in_channels, 8, 9)
    return noise + noise.roll(1, -1) + noise.roll(1, 1) + 0.5


def ladder_of(layer):
    """All forms of a layer, their factors on its inputs, and the inputs."""
    ladder, x = choose_best("", layer), images(layer)
    network = nn.Sequential(layer)
    moments = gather_moments(network, {"0": ladder.moments_of(layer)}, x)
    return ladder, ladder.factorize(layer, moments["0"]), x


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_every_rung_is_its_decomposition_at_its_rank(make):
    layer = make()
    ladder, factors, x = ladder_of(layer)
    assert ladder.max_rank(layer) == sum(kind.max_rank(layer) for kind in ladder.kinds)
    for number in range(1, len(ladder.rungs) + 1, 5):
        rung = ladder.rung(number)
        kind = DECOMPOSITIONS[rung.kind]
        alone = kind.truncate(factors.of[rung.kind], rung.rank)
        for build in (ladder.truncate, ladder.finalize):
            assert torch.equal(build(factors, number)(x), alone(x))
        empty = ladder.empty(layer, number)
        assert type(empty) is type(alone)
        shapes = {n: p.shape for n, p in alone.named_parameters()}
        assert {n: p.shape for n, p in empty.named_parameters()} == shapes
        weights = sum(p.numel() for p in alone.parameters() if p.ndim > 1)
        shape = tuple(layer.weight.shape)
        assert ladder.num_weights(shape, number, layer.groups) == weights


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_errors_of_all_rungs_are_those_of_the_outputs(make):
    layer = make()
    ladder, factors, x = ladder_of(layer)
    with torch.no_grad():
        y = layer(x)
        about = y.mean((0, 2, 3), keepdim=True) if layer.bias is not None else 0.0
        total = (y - about).square().sum()
        for number in range(1, len(ladder.rungs) + 1, 3):
            cut = ladder.truncate(factors, number)(x)
            measured = float((cut - y).square().sum() / total)
            # The ridge shifts both by up to a thousandth of the inputs' size.
            assert ladder.errors(factors)[number - 1] == pytest.approx(
                measured, rel=0.05, abs=4e-3
            )


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_rungs_are_those_that_no_other_form_beats_in_both(make, dense):
    network = nn.Sequential(make())
    (spec,) = find_layers(network, "best")
    _, factors, _ = ladder_of(network[0])
    sizes = count_weights(network, [spec]).layers["0"]
    order = by_error(spec, factors, sizes, range(1, spec.max_rank + 1))
    chosen, costs = with_ranks(spec, sizes, sizes.worthwhile(order, dense=dense))
    errors = spec.ladder.errors(factors)
    forms = [
        (sizes.at(number), error, spec.ladder.rung(number))
        for number, error in enumerate(errors, 1)
    ]
    if dense:
        forms.append((sizes.dense, 0.0, None))
    unbeaten = {
        rung
        for size, error, rung in forms
        if rung is not None
        and not any(
            (s <= size and e < error) or (s < size and e <= error) for s, e, _ in forms
        )
    }
    assert set(chosen.ladder.rungs) == unbeaten
    assert len(unbeaten) == chosen.max_rank
    assert {r.kind for r in unbeaten} <= set(KINDS)
    # By growing size and falling error.
    values = list(costs.sizes)
    assert values[:-1] == sorted(set(values[:-1]))
    left = chosen.ladder.errors(factors)
    assert left == sorted(left, reverse=True)
    squares = chosen.ladder.singular_values(factors).square()
    assert float(squares.sum()) == pytest.approx(1.0)
    assert (1.0 - squares.cumsum(0))[:-1].tolist() == pytest.approx(left, abs=1e-12)
    assert error_shares(chosen.ladder, factors)[1:-1] == pytest.approx(left, abs=1e-12)


def test_a_margin_is_what_a_rung_has_to_save():
    sizes = LayerSizes((1, 2, 3, "dense"), (5.0, 9.9, 9.7, 10.0))
    # In the order in which the errors fall: 3 loses more than 2.
    assert sizes.worthwhile([1, 3, 2]) == (1, 3, 2)
    assert sizes.worthwhile([1, 3, 2], margin=0.02) == (1, 3)
    assert sizes.worthwhile([3, 2, 1]) == (1,)


def test_what_has_one_form_is_no_ladder():
    for layer in (nn.Linear(8, 6), nn.Conv2d(8, 6, 1), nn.Embedding(9, 4)):
        assert not isinstance(choose_best("", layer), Ladder)
    assert choose_best("", nn.ReLU()) is None
    assert choose_best("", nn.Conv2d(8, 6, 3, groups=2)).name == (
        "low_rank_conv|channel_conv"
    )


def test_a_ladder_travels_to_another_process():
    ladder, factors, x = ladder_of(nn.Conv2d(6, 9, 3, padding=1))
    there, same = pickle.loads(pickle.dumps((ladder, factors)))
    assert there == ladder
    assert torch.equal(there.truncate(same, 9)(x), ladder.truncate(factors, 9)(x))


def test_the_weights_alone_give_a_ladder_too():
    layer = nn.Conv2d(6, 9, 3, padding=1)
    ladder = choose_best("", layer)
    factors = ladder.factorize(layer)
    dense = layer.weight.detach()
    for number in (1, 7, len(ladder.rungs)):
        weight = ladder.truncate(factors, number).weight.detach()
        error = float((weight - dense).square().sum() / dense.square().sum())
        assert ladder.errors(factors)[number - 1] == pytest.approx(error, abs=1e-5)


def test_misuse_is_refused_by_name():
    layer = nn.Conv2d(6, 9, 3, padding=1)
    ladder = choose_best("", layer)
    factors = ladder.factorize(layer)
    last = len(ladder.rungs)
    with pytest.raises(ValueError, match=f"1 to {last} for a ladder of low_rank_conv"):
        ladder.truncate(factors, last + 1)
    with pytest.raises(ValueError, match="not ordered by their error"):
        ladder.singular_values(factors)
    kinds = [DECOMPOSITIONS["svd"], DECOMPOSITIONS["pruning"]]
    other = Ladder.of(kinds, nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"fitted to .*squares"):
        other.moments_of(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="function or one of low_rank, best"):
        find_layers(nn.Sequential(layer), "bets")


@dataclass(frozen=True)
class _Own:
    """A decomposition of a user's that borrows a name of the package's."""

    name: str = "low_rank_conv"


def test_a_decomposition_of_ones_own_stays_what_it_is():
    from compression_adapters.layers.selection import best_of

    own = _Own()
    assert best_of(lambda name, module: own)("", nn.Conv2d(6, 9, 3)) is own


def test_a_rung_says_what_it_is():
    (spec,) = find_layers(nn.Sequential(nn.Conv2d(16, 32, 3)), "best")
    assert spec.ladder.rung(1) == Rung("low_rank_conv", 1)
    assert tuple(spec.form_of(1)) == ("low_rank_conv", 1)
    assert tuple(spec.form_of("dense")) == ("low_rank_conv", "dense")
    assert [kind.name for kind in spec.kinds] == list(KINDS)
