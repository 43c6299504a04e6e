"""One set of options: declared, defaulted, checked and stored in one place."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
from ax.api.client import Client

from ax_pac import (
    CertificateSettings,
    PACStoppingStrategy,
    certificate_records,
    certified_generation_strategy,
    certify_experiment,
    pac_generation_strategy,
)
from tests.helpers.ax_loops import experiment_of, new_client, run

ENTRY_POINTS = [
    pac_generation_strategy,
    certified_generation_strategy,
    certify_experiment,
    PACStoppingStrategy,
]
DEFAULTS = {f.name: f.default for f in dataclasses.fields(CertificateSettings)}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_entry_point_has_the_same_options_with_the_same_defaults(entry_point):
    parameters = inspect.signature(entry_point).parameters
    options = DEFAULTS.keys() - (
        set() if entry_point is pac_generation_strategy else {"sampling"}
    )
    assert options <= parameters.keys()
    for name in options - {"delta", "epsilon", "cells"}:
        assert parameters[name].default == DEFAULTS[name], name
    for name in ("min_trials", "num_initial_trials"):
        if name in parameters:
            assert parameters[name].default is None


def test_settings_are_given_by_keyword_and_cannot_be_changed():
    with pytest.raises(TypeError):
        CertificateSettings(0.1, 0.05)
    settings = CertificateSettings(delta=0.1, epsilon=0.05)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.delta = 0.2


def test_no_seed_draws_one_that_is_stored():
    seeds = [CertificateSettings(delta=1, epsilon=0.1, seed=None).seed for _ in "ab"]
    assert all(isinstance(seed, int) for seed in seeds)
    assert seeds[0] != seeds[1]
    strategy = PACStoppingStrategy(delta=1, epsilon=0.1, seed=None)
    assert strategy.to_dict()["seed"] == strategy.settings.seed


def test_settings_survive_json_and_those_of_a_newer_version_are_refused():
    settings = CertificateSettings(delta=0.1, epsilon=0.05, cells={"x": [0, 0.5, 1]})
    fields = json.loads(json.dumps(settings.to_dict()))
    assert CertificateSettings.from_dict(fields) == settings
    with pytest.raises(ValueError, match=r"know: tomorrow.* update ax-pac"):
        CertificateSettings.from_dict({**fields, "tomorrow": 1})
    with pytest.raises(ValueError, match=r"know: tomorrow.* update ax-pac"):
        settings.asks_the_same_as({**settings.to_record(), "tomorrow": 1})


def test_a_search_of_a_newer_version_is_refused_when_it_goes_on(tmp_path):
    client = new_client(delta=1e-4)
    run(client, max_trials=6)
    path = tmp_path / "client.json"
    client.save_to_json_file(str(path))
    text = path.read_text()
    assert '"num_samples": 50' in text
    path.write_text(text.replace('"num_samples": 50', '"tomorrow": 1'))
    loaded = Client.load_from_json_file(str(path))
    with pytest.raises(ValueError, match=r"know: tomorrow.* update ax-pac"):
        loaded.get_next_trials(max_trials=1)


def test_a_certificate_record_of_a_newer_version_is_refused():
    client = new_client(delta=1e-4)
    run(client, max_trials=6)
    client.get_next_trials(max_trials=1)
    certificate_records(experiment_of(client))[-1]["tomorrow"] = 1
    with pytest.raises(ValueError, match=r"know: tomorrow.* update ax-pac"):
        client.get_next_trials(max_trials=1)


def test_the_stopping_strategy_waits_for_as_many_observations_as_the_others():
    strategy = PACStoppingStrategy(delta=9.0, epsilon=0.05, level="pairwise")
    client = new_client(d=6, strategy=False)
    for i in range(8):
        point = {f"x{j}": (0.37 * (i + 1) * (j + 1)) % 1 for j in range(6)}
        client.complete_trial(client.attach_trial(point), {"loss": (0.1 * i, 0.02)})
        stop, reason = strategy.should_stop_optimization(experiment_of(client))
        assert stop == (i == 7), reason  # max(6, d + 2)
