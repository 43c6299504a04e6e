"""Searches with a known part: every entry point, batches, sampling, storage."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.storage.json_store.decoder import object_from_json
from ax.storage.json_store.encoder import object_to_json

from ax_pac import (
    KnownPart,
    PACStoppingStrategy,
    certificate_analyses,
    certificate_history,
    certificate_records,
    certified_generation_strategy,
    certify_experiment,
    incumbent_arm,
    latest_certificate,
    open_client,
    pac_generation_strategy,
)
from ax_pac.ax_internals import last_acquisition, strategy_of
from tests.helpers.ax_loops import SEM, experiment_of, new_client, run
from tests.integration import test_entry_points as entry_points

pytestmark = pytest.mark.filterwarnings("ignore:Optimization failed")

ROOT = Path(__file__).parents[2]
EDGES = [i / 12 for i in range(13)]
COSTS = {"x0": 0.8, "x1": 0.4}
KNOWN = KnownPart(COSTS, floor=0.0)
QUESTION: dict[str, Any] = {"delta": 0.1, "epsilon": 0.05}
SETTINGS: dict[str, Any] = {**QUESTION, "num_initial_trials": 6, "seed": 2}


def cost(p: dict[str, Any]) -> float:
    return sum(slope * p[name] for name, slope in COSTS.items())


def loss(p: dict[str, Any]) -> float:
    return 1.2 * (1.0 - p["x0"]) ** 2 + 0.4 * (1.0 - p["x1"]) ** 2


def objective(p: dict[str, Any], index: int) -> float:
    return cost(p) + loss(p) + SEM * np.random.default_rng(index).standard_normal()


def search(max_trials: int = 60, **changes: Any) -> Client:
    client = new_client(**{**SETTINGS, "known": KNOWN, **changes})
    run(client, evaluate=objective, max_trials=max_trials)
    return client


def regret(p: dict[str, Any]) -> float:
    """Against the best of a fine grid."""
    axis = np.linspace(0.0, 1.0, 201)
    grid = [cost(q) + loss(q) for x in axis for y in axis if (q := {"x0": x, "x1": y})]
    return cost(p) + loss(p) - min(grid)


@pytest.fixture(scope="module")
def whole() -> Client:
    return search()


def points(client: Client) -> list[dict[str, Any]]:
    return [trial.arm.parameters for trial in experiment_of(client).trials.values()]


def test_a_search_ends_within_delta_and_its_records_split_the_objective(whole):
    certificate = latest_certificate(whole)
    assert certificate.holds
    part = certificate.worse_incumbent_probability
    assert 0.0 < part < 0.5 * certificate.failure_probability
    arm = incumbent_arm(whole)
    assert regret(arm.parameters) < 0.1
    history = certificate_history(whole)
    last = history.iloc[-1]
    assert last["incumbent_known"] == pytest.approx(cost(arm.parameters))
    expected = cost(arm.parameters) + loss(arm.parameters)
    assert abs(last["incumbent_mean"] - expected) < 5.0 * last["incumbent_sd"] + 0.02
    cards = whole.compute_analyses(certificate_analyses(), display=False)
    [card] = [card for card in cards if card.name == "IncumbentHistory"]
    assert {"known part", "unknown part"} <= {t.name for t in card.get_figure().data}
    records = certificate_records(experiment_of(whole))
    assert json.loads(json.dumps(records)) == records


@pytest.mark.parametrize("sampling", ["challenger", "expected_improvement"])
@pytest.mark.parametrize("floor", [None, 0.0])
def test_every_sampling_rule_ends_within_delta(sampling, floor):
    client = search(sampling=sampling, known=KnownPart(COSTS, floor=floor))
    assert latest_certificate(client).holds
    assert regret(incumbent_arm(client).parameters) < 0.1


@pytest.mark.parametrize("level", ["pairwise", "joint"])
def test_every_level_ends(level):
    client = search(level=level)
    certificate = latest_certificate(client)
    assert certificate.holds
    assert certificate.reached == level
    assert certificate.worse_incumbent_probability == pytest.approx(0.001)


def test_cells_have_tables_and_proposals_are_their_centres():
    centres = [(a + b) / 2 for a, b in pairwise(EDGES)]
    tables = {name: [s * c for c in centres] for name, s in COSTS.items()}
    cells = dict.fromkeys(COSTS, EDGES)
    client = search(cells=cells, known=KnownPart(tables, floor=0.0))
    assert latest_certificate(client).holds
    assert regret(incumbent_arm(client).parameters) < 0.12
    for p in points(client)[6:]:
        assert all(min(abs(x - c) for c in centres) < 1e-12 for x in p.values())
    # A table is the same as a slope, at the centres.
    slopes = search(cells=cells)
    assert points(client) == points(slopes)


def test_a_relative_delta_is_a_share_of_the_whole_objective():
    experiment = experiment_of(search(max_trials=12))
    question = {"epsilon": 0.05, "level": "joint", "known": KNOWN}
    certificate = certify_experiment(experiment, delta=0.1, relative=True, **question)
    record = certificate_records(experiment)[-1]
    assert certificate.delta == pytest.approx(0.1 * record["incumbent_mean"])
    arm = experiment.arms_by_name[record["incumbent_arm"]]
    assert record["incumbent_known"] == pytest.approx(cost(arm.parameters))
    observed = experiment.lookup_data().df
    mean = observed.loc[observed["arm_name"] == arm.name, "mean"].mean()
    assert record["incumbent_mean"] == pytest.approx(mean, abs=0.1)


def test_a_maximised_objective_is_the_mirror_image(whole):
    client = new_client(
        objective="loss",
        **{**SETTINGS, "known": KnownPart({"x0": -0.8, "x1": -0.4}, ceiling=0.0)},
    )
    run(client, evaluate=lambda p, i: -objective(p, i), max_trials=60)
    assert len(points(client)) == len(points(whole))
    for one, two in zip(points(client), points(whole), strict=True):
        assert one == pytest.approx(two, abs=1e-5)


def test_a_batch_holds_different_points_that_can_win():
    client = search(max_trials=9, **{"delta": 0.02})
    trials = client.get_next_trials(max_trials=5)
    batch = [tuple(p.values()) for p in trials.values()]
    assert len(set(batch)) == 5
    adapter = strategy_of(client).nodes_by_name["PAC"].generator_spec.fitted_adapter
    score = last_acquisition(adapter).acqf
    assert score.rules_out
    # Others are proposed while they are running, by another call.
    more = client.get_next_trials(max_trials=2)
    assert not {tuple(p.values()) for p in more.values()} & set(batch)


def pac() -> Any:
    return pac_generation_strategy(**SETTINGS, known=KNOWN)


def stopping() -> PACStoppingStrategy:
    return PACStoppingStrategy(**QUESTION, known=KNOWN)


ENTRY_POINTS = {
    "client.run_trials": lambda: entry_points.through_run_trials(pac()),
    "AxClient": lambda: entry_points.through_ax_client(pac()),
    "AxClient, stopping": lambda: entry_points.through_ax_client(pac(), stopping()),
    "Orchestrator": lambda: entry_points.through_orchestrator(pac()),
    "Orchestrator, stopping": lambda: entry_points.through_orchestrator(
        pac(), stopping()
    ),
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_entry_point_gives_the_same_points_and_certificates(
    entry_point, whole, monkeypatch
):
    monkeypatch.setattr("ax.orchestration.orchestrator.sleep", lambda seconds: None)
    monkeypatch.setattr(entry_points, "squared_distance", objective)
    experiment = ENTRY_POINTS[entry_point]()
    assert len(experiment.trials) == len(points(whole))
    for one, two in zip(experiment.trials.values(), points(whole), strict=True):
        assert one.arm.parameters == pytest.approx(two, abs=1e-6)
    entry_points.assert_same_records(experiment, experiment_of(whole))


@pytest.mark.filterwarnings("ignore:A not p.d.")
def test_points_that_another_rule_chose_are_certified_with_a_known_part():
    question = {"delta": 0.3, "epsilon": 0.05, "level": "joint"}
    strategy = certified_generation_strategy(**question, seed=1, known=KNOWN)
    client = new_client(strategy=False)
    client.set_generation_strategy(strategy)
    run(client, evaluate=objective, max_trials=40)
    certificate = latest_certificate(client)
    assert certificate.holds
    assert certificate.worse_incumbent_probability > 0.0


CONTINUE = """
import json, sys
import ax_pac
from ax.api.client import Client
from tests.helpers.ax_loops import run
from tests.integration.test_known_part import objective

client = Client.load_from_json_file(sys.argv[1])
proposals = run(client, evaluate=objective, max_trials=60)
certificate = ax_pac.latest_certificate(client)
print(json.dumps([proposals, certificate.to_dict()]))
"""


def test_a_stored_search_continues_in_a_new_process_as_if_never_interrupted(
    whole, tmp_path
):
    client = search(max_trials=8)
    path = tmp_path / "client.json"
    client.save_to_json_file(str(path))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONTINUE, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rest, certificate = json.loads(result.stdout.splitlines()[-1])
    proposals = points(client) + rest
    assert len(proposals) == len(points(whole))
    for one, two in zip(proposals, points(whole), strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    expected = latest_certificate(whole)
    assert certificate["holds"]
    assert certificate["score"] == pytest.approx(expected.score, abs=1e-6)
    worse = expected.worse_incumbent_probability
    assert certificate["worse_incumbent_probability"] == pytest.approx(worse, rel=0.2)


def test_a_search_in_a_database_continues_with_its_known_part(whole, database):
    client = open_client(database, "known")
    client.configure_experiment(
        name="known",
        parameters=[RangeParameterConfig(name, (0, 1), "float") for name in COSTS],
    )
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(pac())
    run(client, evaluate=objective, max_trials=8)
    again = open_client(database, "known")
    run(again, evaluate=objective, max_trials=60)
    assert len(points(again)) == len(points(whole))
    for one, two in zip(points(again), points(whole), strict=True):
        assert one == pytest.approx(two, abs=1e-6)


def test_a_stopping_strategy_with_a_known_part_survives_json():
    loaded = object_from_json(json.loads(json.dumps(object_to_json(stopping()))))
    assert repr(loaded) == repr(stopping())
    assert loaded.settings == stopping().settings


def test_a_floor_that_the_data_contradict_ends_no_search():
    client = search(max_trials=14, known=KnownPart(COSTS, floor=0.3))
    certificate = latest_certificate(client)
    assert not certificate.certifiable
    assert certificate.hyperparameter_status == "bound_violated"
    assert "far below its floor of 0.3" in certificate.reason
    assert len(points(client)) == 14
