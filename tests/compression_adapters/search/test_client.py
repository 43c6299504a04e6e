"""The search space as Ax sees it."""

import pytest

from compression_adapters.decompositions import TruncatedSVD
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.parameters import rank_parameters
from compression_adapters.search.client import range_parameters


def test_every_rank_parameter_becomes_a_float_in_the_unit_interval():
    layers = [
        LayerSpec(name, TruncatedSVD(), (20, 30), 12, 600) for name in ("0.fc", "b")
    ]
    configs = range_parameters(rank_parameters(layers))
    assert [config.name for config in configs] == ["layer_0__fc", "b"]
    assert all(config.parameter_type == "float" for config in configs)
    assert all(config.bounds == (0.0, 1.0) for config in configs)


def test_a_generator_of_parameters_is_read_once():
    layers = [LayerSpec("b", TruncatedSVD(), (20, 30), 12, 600)]
    assert len(range_parameters(p for p in rank_parameters(layers))) == 1


def test_an_empty_search_space_is_refused():
    with pytest.raises(ValueError, match=r"one or more parameters.*got \[\]"):
        range_parameters([])
