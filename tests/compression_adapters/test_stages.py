"""Stages follow each other, and an interrupted run goes on."""

import json

import pytest
import torch
from torch import nn

from compression_adapters import choose_linear, choose_pruning, load_compressed
from compression_adapters.stages import Stage, compress_in_stages
from tests.helpers.networks import pool, small_network

OPTIONS = {"gamma": 0.5, "delta": 0.5, "epsilon": 0.1, "level": "pairwise"}
LOW_RANK = Stage("low-rank", {"choose": choose_linear})
PRUNING = Stage("pruning", {"choose": choose_pruning, "gamma": 1.0})

pytestmark = pytest.mark.filterwarnings("ignore:Very small noise values")


def test_each_stage_starts_from_the_last_and_the_report_holds_all():
    network = small_network()
    small, table = compress_in_stages(network, pool(), [LOW_RANK, PRUNING], **OPTIONS)
    assert table["stage"].tolist() == ["low-rank", "pruning"]
    assert not table["resumed"].any()
    ratios = table["whole_network_ratio"].tolist()
    assert 1 > ratios[0] > ratios[1] > 0
    left = sum(int(p.count_nonzero()) for p in small.parameters() if p.ndim >= 2)
    assert ratios[1] == pytest.approx(left / (20 * 30 + 30 * 5))
    assert type(network[0]) is nn.Linear
    assert not small.training


def test_an_interrupted_run_goes_on_with_the_stage_that_is_missing(tmp_path):
    trained = []

    def then(network):
        trained.append("low-rank")
        with torch.no_grad():
            network[0].bias.add_(1.0)
        return network

    def broken(network):
        raise RuntimeError("out of memory")

    first = Stage("low-rank", LOW_RANK.options, then)
    arguments = {"folder": tmp_path, **OPTIONS}
    with pytest.raises(RuntimeError, match="out of memory"):
        compress_in_stages(
            small_network(),
            pool(),
            [first, Stage("pruning", PRUNING.options, broken)],
            **arguments,
        )
    small, table = compress_in_stages(
        small_network(), pool(), [first, PRUNING], **arguments
    )
    assert trained == ["low-rank"]
    assert table["resumed"].tolist() == [True, False]
    again, table = compress_in_stages(
        small_network(), pool(), [first, PRUNING], **arguments
    )
    assert table["resumed"].all()
    loaded = load_compressed(tmp_path / "1-pruning", small_network(seed=1))
    for network in (again, loaded):
        assert torch.equal(network(pool()), small(pool()))


def test_a_folder_of_other_settings_is_refused(tmp_path):
    arguments = {"folder": tmp_path, **OPTIONS}
    compress_in_stages(small_network(), pool(), [LOW_RANK], **arguments)
    with pytest.raises(ValueError, match=r"'low-rank' in .*was run with.*'gamma': 0.5"):
        compress_in_stages(
            small_network(), pool(), [LOW_RANK], **arguments | {"gamma": 0.7}
        )
    path = tmp_path / "0-low-rank" / "stage.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(ValueError, match="has format 2"):
        compress_in_stages(small_network(), pool(), [LOW_RANK], **arguments)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"stage.json is damaged"):
        compress_in_stages(small_network(), pool(), [LOW_RANK], **arguments)


@pytest.mark.parametrize("stages", [[], [LOW_RANK, LOW_RANK]])
def test_stages_without_a_name_of_their_own_are_refused(stages):
    with pytest.raises(ValueError, match="at least one stage, each with a name of its"):
        compress_in_stages(small_network(), pool(), stages, **OPTIONS)


@pytest.mark.parametrize("name", ["", "../up", "a b", "a/b"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ValueError, match="letters, digits"):
        Stage(name)
