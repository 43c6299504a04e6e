from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig

from ax_pac import (
    Cells,
    CertificateSettings,
    PACAcquisition,
    PACStoppingStrategy,
    certificate_records,
    certify,
    certify_experiment,
    find_challenger,
    fit_model,
    incumbent_arm,
    latest_certificate,
    pac_generation_strategy,
)
from ax_pac.cells import Lookup, frozen_edges
from ax_pac.domain import Domain
from tests.conftest import noisy_model
from tests.helpers.ax_loops import SEM, SETTINGS, experiment_of, new_client, run

STAIRS = (0.0, 0.25, 0.5, 0.75, 1.0)
EDGES = {"x0": [0.0, 0.1, 0.3, 0.6, 1.0], "x1": [0.0, 0.2, 0.5, 0.7, 1.0]}


def box(d: int) -> torch.Tensor:
    return torch.tensor([[0.0] * d, [1.0] * d]).double()


def grid(bins: int, d: int = 2) -> Cells:
    return Cells((tuple(torch.linspace(0, 1, bins + 1).double().tolist()),) * d)


def test_points_of_one_cell_have_one_canonical_point():
    cells = Cells((STAIRS, ()))
    points = torch.tensor([[0.0, 0.1], [0.2499, 0.2], [0.25, 0.3], [1.0, 0.4]]).double()
    canonical = cells.canonical(points)
    assert canonical[:, 0].tolist() == [0.125, 0.125, 0.375, 0.875]
    assert torch.equal(canonical[:, 1], points[:, 1])
    assert torch.equal(cells.canonical(canonical), canonical)
    assert not cells.are_same(points, points[:1])[1]  # another second coordinate
    assert cells.number == math.inf
    with pytest.raises(ValueError, match="no finite set"):
        Domain.of(box(2), cells).all_points()


def test_neighbours_are_one_bin_away_and_inside():
    cells = Cells((STAIRS, (0.0, 1.0)))
    domain = Domain.of(box(2), cells)
    found = domain.neighbours(torch.tensor([[0.125, 0.5], [0.625, 0.5]]).double())
    assert sorted(found[:, 0].tolist()) == [0.375, 0.375, 0.875]
    domain = Domain.of(box(3), grid(3, d=3))
    assert len(domain.all_points()) == domain.number == grid(3, d=3).number == 27


@pytest.mark.parametrize("edges", [[0.0], [0.0, 0.5, 0.5, 1.0], [0.0, math.nan]])
def test_edges_that_are_none_are_refused(edges):
    with pytest.raises(ValueError, match="edges of the cells of 'x'"):
        frozen_edges({"x": edges})


def test_cells_are_given_in_one_form_to_model_and_experiment():
    named = Cells.of(EDGES)
    assert named == Cells(tuple(tuple(bins) for bins in EDGES.values()), ("x0", "x1"))
    assert Cells.of(named) is named
    assert Cells.of({}) is Cells.of(None) is None
    assert frozen_edges(named) == frozen_edges(EDGES)
    assert frozen_edges({"x": STAIRS, "y": ()}) == (("x", STAIRS),)
    model, X = noisy_model(n=12)
    question = {"delta": 0.5, "epsilon": 0.05, "level": "pairwise", "seed": 0}
    by_edges, by_cells = (
        certify(model, X, box(2), cells=cells, **question) for cells in (EDGES, named)
    )
    assert by_edges == by_cells
    strategies = (
        pac_generation_strategy(**SETTINGS, cells=cells) for cells in (EDGES, named)
    )
    options = [
        s.nodes_by_name["PAC"].generator_spec.generator_kwargs["acquisition_options"]
        for s in strategies
    ]
    assert options[0] == options[1]
    assert options[0]["cells"] == EDGES
    with pytest.raises(ValueError, match="need the names of its parameters"):
        pac_generation_strategy(**SETTINGS, cells=grid(3))
    with pytest.raises(ValueError, match="cells have 3 coordinates, the points 2"):
        certify(model, X, box(2), cells=grid(3, d=3), **question)
    with pytest.raises(ValueError, match="a name for each of 2 coordinates"):
        Cells((STAIRS, STAIRS), ("x",))


def staircase_model(seed: int):
    """Four steps with few evaluations: two thirds of the noise is unresolved."""
    rng = torch.Generator().manual_seed(seed)
    X = Domain.of(box(1), grid(4, d=1)).all_points()
    X = torch.cat([X, X[1:3]])
    Y = -2.0 * (X - 0.4) ** 2 + 0.1 * torch.randn(X.shape, generator=rng).double()
    return fit_model(X, Y, torch.full_like(Y, 0.01)), X


def test_a_challenger_is_never_the_same_step_as_the_incumbent():
    cells, same = Cells((STAIRS,)), 0
    for seed in range(8):
        model, X = staircase_model(seed)
        score = PACAcquisition(model, X, 0.05)
        plain = find_challenger(score, X, box(1), seed=seed)
        same += int(cells.are_same(plain.challenger, score.incumbent))
        search = find_challenger(score, X, box(1), seed=seed, cells=cells)
        assert not cells.are_same(search.challenger, score.incumbent)
        assert (
            search.scores[cells.are_same(search.points, score.incumbent)] == -math.inf
        )
        for level in ("pairwise", "joint"):
            settings = {"delta": 0.05, "epsilon": 0.4, "level": level, "seed": seed}
            certificate = certify(model, X, box(1), cells=cells, **settings)
            challenger = torch.tensor([certificate.challenger]).double()
            assert torch.equal(cells.canonical(challenger), challenger)
            assert not cells.are_same(challenger, score.incumbent)
    assert same > 0  # what the cells are for


@pytest.mark.parametrize(("d", "bins"), [(2, 90), (3, 17)])
def test_no_cell_scores_higher_than_the_challenger(d, bins):
    cells = grid(bins, d)
    everything = Domain.of(box(d), cells).all_points()
    for seed in range(3):
        model, X = noisy_model(d=d, n=14, sem=0.03, seed=seed)
        score = PACAcquisition(model, X, 0.1)
        with torch.no_grad():
            scores = score(everything.unsqueeze(-2))
        scores[cells.are_same(everything, score.incumbent)] = -math.inf
        found = find_challenger(score, X, box(d), seed=seed, cells=cells)
        assert found.score == pytest.approx(scores.max().item(), abs=1e-9)
        assert len(found.points.unique(dim=0)) == len(found.points)


@pytest.mark.parametrize("level", ["joint", "marginal"])
def test_fine_cells_change_no_verdict(level):
    settings = {"delta": 0.5, "epsilon": 0.05, "level": level, "seed": 3}
    model, X = noisy_model(d=2, n=24, sem=0.02, seed=1)
    plain = certify(model, X, box(2), **settings)
    fine = certify(model, X, box(2), cells=grid(2000), **settings)
    assert plain.holds
    assert fine.holds
    assert fine.incumbent == plain.incumbent
    difference = fine.failure_probability - plain.failure_probability
    assert abs(difference) < 0.01


def staircase(parameters, index: int) -> float:
    """A bowl of the centres of the cells, so flat within each."""
    point = torch.tensor([[parameters["x0"], parameters["x1"]]]).double()
    centre = Cells(tuple(map(tuple, EDGES.values()))).canonical(point)
    noise = math.sin(1000.0 * (index + 1)) * SEM
    return float((centre - 0.3).square().sum()) + noise


def centre_of(parameters) -> tuple[float, ...]:
    point = torch.tensor([[parameters["x0"], parameters["x1"]]]).double()
    cells = Cells(tuple(map(tuple, EDGES.values())))
    return tuple(cells.canonical(point)[0].tolist())


def test_proposals_are_centres_and_the_same_thing_is_the_same_arm():
    client = new_client(delta=0.03, cells=EDGES)
    proposals = run(client, evaluate=staircase, max_trials=14)
    points = [tuple(parameters.values()) for parameters in proposals]
    assert points == [centre_of(parameters) for parameters in proposals]
    experiment = experiment_of(client)
    assert len(experiment.arms_by_name) == len(set(points))
    nodes = [
        t.generator_runs[0]._generation_node_name for t in experiment.trials.values()
    ]
    assert nodes == ["Sobol"] * 5 + ["PAC"] * (len(nodes) - 5)
    for record in certificate_records(experiment):
        assert record["challenger"] != record["incumbent"]
        assert len(record["settings"]["cells"]) == 16  # a digest, not the edges
    best = incumbent_arm(client)
    assert best is not None
    assert tuple(best.parameters.values()) == latest_certificate(client).incumbent


def test_cells_survive_storage(tmp_path):
    path = str(tmp_path / "client.json")
    client = new_client(delta=0.001, cells=EDGES)
    run(client, evaluate=staircase, max_trials=7)
    client.save_to_json_file(path)
    loaded = Client.load_from_json_file(path)
    assert loaded.get_next_trials(max_trials=2) == client.get_next_trials(max_trials=2)
    records = [certificate_records(experiment_of(c)) for c in (client, loaded)]
    assert records[0][-1]["settings"] == records[1][-1]["settings"]
    assert records[0][-1]["challenger"] == records[1][-1]["challenger"]
    # The edges are stored with the strategy, not again with every trial.
    longer = str(tmp_path / "longer.json")
    run(client, evaluate=staircase, max_trials=3)
    client.save_to_json_file(longer)
    copies = [
        Path(p).read_text().count(json.dumps(EDGES["x0"])) for p in (path, longer)
    ]
    assert copies[0] == copies[1] > 0
    settings = CertificateSettings(delta=0.1, epsilon=0.05, cells=EDGES)
    again = CertificateSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert hash(again) == hash(settings)
    strategy = PACStoppingStrategy(delta=0.1, epsilon=0.05, cells=EDGES)
    rebuilt = PACStoppingStrategy(**json.loads(json.dumps(strategy.to_dict())))
    assert rebuilt.settings == strategy.settings


def test_points_that_another_rule_chose_are_pooled_in_their_cells():
    client = new_client(strategy=False)
    for i in range(14):
        point = {"x0": (0.37 * i) % 1, "x1": (0.61 * i) % 1}
        index = client.attach_trial(point)
        client.complete_trial(index, {"loss": (staircase(point, i), SEM)})
    experiment = experiment_of(client)
    question = {"delta": 0.1, "epsilon": 0.05}
    certificate = certify_experiment(experiment, **question, cells=EDGES)
    best = incumbent_arm(client)
    assert best is not None
    assert centre_of(best.parameters) == certificate.incumbent
    assert centre_of(best.parameters) != tuple(best.parameters.values())
    # Other cells are another question, and so are none; the same are not.
    certify_experiment(experiment, **question, cells=EDGES)
    assert len(certificate_records(experiment)) == 1
    certify_experiment(experiment, **question)
    assert len(certificate_records(experiment)) == 2


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"parameter_type": "int", "bounds": (0, 1)}, "float parameter"),
        ({"parameter_type": "float", "bounds": (0.1, 1), "scaling": "log"}, "linear"),
        ({"parameter_type": "float", "bounds": (0, 2)}, "not its range"),
    ],
)
def test_cells_that_do_not_fit_their_parameter_are_refused(parameter, message):
    client = Client()
    client.configure_experiment(parameters=[RangeParameterConfig("x", **parameter)])
    client.configure_optimization(objective="-loss")
    strategy = pac_generation_strategy(**SETTINGS, cells={"x": STAIRS})
    client.set_generation_strategy(strategy)
    with pytest.raises(ValueError, match=message):
        client.get_next_trials(max_trials=1)


@pytest.mark.parametrize("power", [1.0, 8.0])
def test_a_lookup_counts_as_searchsorted_does(power):
    rng = torch.Generator().manual_seed(0)
    rows = [
        torch.rand(k, generator=rng).double().pow(power).sort().values.unique()
        for k in (0, 1, 5, 300)
    ]
    numbers = torch.rand(4000, len(rows), generator=rng).double() * 1.4 - 0.2
    for j, row in enumerate(rows):  # on a limit, and just below
        numbers[: len(row), j] = row
        below = torch.nextafter(row, torch.tensor(-1.0).double())
        numbers[len(row) : 2 * len(row), j] = below
    expected = [
        torch.searchsorted(row, column.contiguous(), right=True)
        for row, column in zip(rows, numbers.unbind(-1), strict=True)
    ]
    assert torch.equal(Lookup(rows)(numbers), torch.stack(expected, -1))
