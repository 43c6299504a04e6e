from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ax.api.client import Client
from ax.storage.json_store.decoder import object_from_json
from ax.storage.json_store.encoder import object_to_json

from ax_pac import (
    PACStoppingStrategy,
    certificate_records,
    certified_generation_strategy,
    latest_certificate,
    pac_generation_strategy,
)
from ax_pac.storage.registry import register_with_ax
from tests.helpers.ax_loops import experiment_of, new_client, run

# Ax's own proposals: BoTorch's line search may end early, and starts again elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:Optimization failed")

ROOT = Path(__file__).parents[3]

CONTINUE = """
import json, sys
import ax_pac
from ax.api.client import Client
from ax.storage.json_store.decoder import object_from_json
from tests.helpers.ax_loops import run

client = Client.load_from_json_file(sys.argv[1])
proposals = run(client)
certificate = ax_pac.latest_certificate(client)
with open(sys.argv[2]) as file:
    stop, strategy = (object_from_json(o) for o in json.load(file))
spec = strategy.nodes_by_name["PAC"].generator_spec
options = spec.generator_kwargs["acquisition_options"]
print(json.dumps([proposals, certificate.to_dict(), repr(stop), options]))
"""

LOAD_WITHOUT_THE_PLUGIN = """
import sys
from ax.api.client import Client

Client.load_from_json_file(sys.argv[1])
"""


def new_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_was_saved_continues_in_a_new_process_as_if_never_interrupted(
    tmp_path, finished
):
    whole, expected = finished
    cells = {"x0": [0.0, 0.5, 1.0], "x1": [0.0, 0.2, 1.0]}
    settings = {"cells": cells, "noise": "raw", "sampling": "challenger"}
    strategy = pac_generation_strategy(delta=0.2, epsilon=0.05, seed=4, **settings)
    stop = PACStoppingStrategy(delta=0.2, epsilon=0.05, min_trials=9, seed=4)
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps([object_to_json(stop), object_to_json(strategy)]))
    client = new_client()
    done = run(client, max_trials=7)
    path = tmp_path / "client.json"
    client.save_to_json_file(str(path))

    result = new_process(CONTINUE, str(path), str(objects))
    assert result.returncode == 0, result.stderr
    rest, certificate, shown, options = json.loads(result.stdout.splitlines()[-1])
    assert len(done + rest) == len(expected)
    for one, two in zip(done + rest, expected, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    reference = latest_certificate(whole)
    assert reference is not None
    assert certificate["holds"]
    assert certificate["score"] == pytest.approx(reference.score, abs=1e-6)
    assert shown == repr(stop)
    node = strategy.nodes_by_name["PAC"]
    assert options == node.generator_spec.generator_kwargs["acquisition_options"]
    assert options["cells"] == cells


def test_loading_without_the_plugin_names_it(tmp_path):
    client = new_client()
    run(client, max_trials=6)
    path = tmp_path / "client.json"
    client.save_to_json_file(str(path))
    result = new_process(LOAD_WITHOUT_THE_PLUGIN, str(path))
    assert result.returncode != 0
    assert "ax_pac." in result.stderr.splitlines()[-1]
    assert "not registered" in result.stderr


def test_records_are_plain_json_and_travel_with_the_experiment(tmp_path, finished):
    client, _ = finished
    path = tmp_path / "client.json"
    client.save_to_json_file(str(path))
    records = certificate_records(experiment_of(client))
    assert json.loads(json.dumps(records)) == records
    loaded = Client.load_from_json_file(str(path))
    assert certificate_records(experiment_of(loaded)) == records


def test_a_stopping_strategy_survives_json():
    strategy = PACStoppingStrategy(delta=0.2, epsilon=0.05, min_trials=9, seed=4)
    loaded = object_from_json(json.loads(json.dumps(object_to_json(strategy))))
    assert isinstance(loaded, PACStoppingStrategy)
    assert repr(loaded) == repr(strategy)
    newer = {**object_to_json(strategy), "tomorrow": 1}
    with pytest.raises(ValueError, match=r"know: tomorrow.* update ax-pac"):
        object_from_json(newer)


@pytest.mark.parametrize(
    "strategy",
    [pac_generation_strategy, certified_generation_strategy],
)
def test_transition_criteria_survive_json_and_those_of_a_newer_version_are_refused(
    strategy,
):
    for node in strategy(delta=0.2, epsilon=0.05).nodes_by_name.values():
        for criterion in node.transition_criteria:
            if not type(criterion).__module__.startswith("ax_pac"):
                continue
            stored = json.loads(json.dumps(object_to_json(criterion)))
            loaded = object_from_json(dict(stored))
            assert type(loaded) is type(criterion)
            assert vars(loaded) == vars(criterion)
            with pytest.raises(ValueError, match=r"know: tomorrow.* update ax-pac"):
                object_from_json({**stored, "tomorrow": 1})


def test_registering_twice_changes_nothing():
    register_with_ax()
    register_with_ax()
    assert object_to_json(PACStoppingStrategy(0.1, 0.1))["__type"].startswith("ax_pac.")
