"""Factors of whole networks: memory, passes, layers without moments."""

import pytest
import torch
from torch import nn

from compression_adapters.calibration import factors as module
from compression_adapters.calibration.factors import calibrated_factors
from compression_adapters.decompositions import DECOMPOSITIONS
from compression_adapters.layers.survey import find_layers
from compression_adapters.network.truncation import factorize_network


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)
        )


INPUTS = torch.randn(90, 8, generator=torch.Generator().manual_seed(1))


def spectra(network, factors):
    return {
        layer.name: layer.decomposition.singular_values(factors[layer.name])
        for layer in find_layers(network)
    }


def test_without_inputs_the_weights_alone_are_decomposed(network):
    layers = find_layers(network)
    ours = spectra(network, calibrated_factors(network, layers, None))
    plain = spectra(network, factorize_network(network, layers))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_little_memory_takes_more_passes_with_the_same_result(network, monkeypatch):
    layers = find_layers(network)
    whole = spectra(network, calibrated_factors(network, layers, INPUTS))
    passes = []
    gather = module.gather_moments

    def counted(network, wanted, *args, **kwargs):
        passes.append(list(wanted))
        return gather(network, wanted, *args, **kwargs)

    monkeypatch.setattr(module, "gather_moments", counted)
    monkeypatch.setattr(module, "MOST_BYTES", 8 * 16**2 + 10)
    parts = spectra(network, calibrated_factors(network, layers, INPUTS))
    assert passes == [["0"], ["2"], ["4"]]
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values)


def test_a_layer_whose_moments_do_not_fit_is_decomposed_by_its_weights(
    network, monkeypatch
):
    monkeypatch.setattr(module, "MOST_BYTES", 300)
    layers = find_layers(network)
    ours = spectra(network, calibrated_factors(network, layers, INPUTS))
    plain = spectra(network, factorize_network(network, layers))
    assert torch.equal(ours["2"], plain["2"])  # 16 x 16 in double: 2,048 bytes
    assert not torch.allclose(ours["0"].float(), plain["0"])


class OfTheirOwn:
    """A user's decomposition from before there were moments."""

    def __getattr__(self, name):
        if name == "moments_of":
            raise AttributeError(name)
        return getattr(DECOMPOSITIONS["svd"], name)

    def factorize(self, layer):
        return DECOMPOSITIONS["svd"].factorize(layer)


def test_a_decomposition_that_takes_no_moments_is_given_none(network):
    layers = find_layers(
        network, lambda name, module: OfTheirOwn() if name == "0" else None
    )
    ours = calibrated_factors(network, layers, INPUTS)
    plain = DECOMPOSITIONS["svd"].factorize(network[0])
    assert torch.equal(ours["0"].left, plain.left)


def test_a_complex_layer_is_decomposed_by_its_weights():
    network = nn.Sequential(nn.Linear(8, 16, dtype=torch.complex64), nn.Identity())
    layers = find_layers(network)
    ours = calibrated_factors(network, layers, INPUTS.to(torch.complex64))
    plain = factorize_network(network, layers)
    assert torch.equal(ours["0"].left, plain["0"].left)
