"""What follows a search is kept only if it is better on fresh samples."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from compression_adapters import (
    CompressionRecipe,
    FinishRecord,
    FinishStep,
    MeanSEM,
    compress,
    compression_problem,
    finish_network,
    load_compressed,
    mean_and_sem,
    squared_l2,
)
from compression_adapters.evaluation import finishing
from compression_adapters.network.recipe import recipe_of
from compression_adapters.search.trials import fresh_seed
from tests.helpers.networks import pool, small_network

SETTINGS = {"gamma": 0.5, "delta": 0.5, "epsilon": 0.05, "progress": False}


def images(n=300, seed=0):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def convolutional(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 36, 20)),
    )
    network(images())  # statistics of batch norm
    return network.eval()


def problem_and_point(network, inputs, u=0.5, **options):
    problem = compression_problem(network, inputs, gamma=1.0, **options)
    return problem, {parameter.name: u for parameter in problem.parameters}


def finished(problem, point, seed=0):
    small = problem.compress(point).eval()
    return small, *finish_network(problem, small, problem.ranks(point), seed=seed)


def test_both_steps_are_tried_and_the_loss_falls_on_other_samples():
    problem, point = problem_and_point(convolutional(), images(1000))
    small, new, record = finished(problem, point)
    assert [step.name for step in record.steps] == ["refit", "batch_norm"]
    assert record.steps[0].accepted
    assert record.num_samples == 300
    before, after = (problem.network_loss(n, seed=99).mean for n in (small, new))
    assert after < before
    assert not new.training
    assert recipe_of(new).finishes == (record.to_dict(),)
    assert recipe_of(small).finishes == ()


def test_the_record_holds_what_is_measured_by_hand(monkeypatch):
    problem, point = problem_and_point(convolutional(), images(1000))
    seeds = []
    losses_of = type(problem).losses_of

    def noting(self, network, *, seed):
        seeds.append(seed)
        return losses_of(self, network, seed=seed)

    monkeypatch.setattr(type(problem), "losses_of", noting)
    small, new, record = finished(problem, point)
    monkeypatch.undo()
    batches = 300 // problem.num_samples
    assert len(set(seeds)) == batches

    def losses(network):
        found = [problem.losses_of(network, seed=seed) for seed in seeds[:batches]]
        return torch.cat(found).double()

    assert record.before == pytest.approx(mean_and_sem(losses(small)))
    assert record.after == pytest.approx(mean_and_sem(losses(new)))
    if [step.accepted for step in record.steps] == [True, False]:
        change = mean_and_sem(losses(new) - losses(small))
        assert record.steps[0].change == pytest.approx(change)


def test_a_step_that_makes_it_worse_is_refused(monkeypatch):
    def worse(reference, compressed, *args, **kwargs):
        changed = torch.nn.Sequential(*compressed)
        with torch.no_grad():
            changed[-1].bias.add_(1.0)
        return changed

    monkeypatch.setattr(finishing, "refit_in_sequence", worse)
    problem, point = problem_and_point(small_network(), pool())
    small, new, record = finished(problem, point)
    assert new is small
    assert [step.accepted for step in record.steps] == [False]
    assert record.steps[0].change.mean > 0
    assert record.after == record.before
    assert "not kept" in record.sentence()
    assert recipe_of(new).finishes == ()


def test_a_step_without_effect_is_refused(monkeypatch):
    monkeypatch.setattr(finishing, "refit_in_sequence", lambda _, small, *a, **k: small)
    problem, point = problem_and_point(small_network(), pool())
    _, _, record = finished(problem, point)
    assert record.steps[0].change == MeanSEM(0.0, 0.0)
    assert not record.steps[0].accepted


def test_a_step_whose_loss_is_not_finite_is_refused(monkeypatch):
    def broken(reference, compressed, *args, **kwargs):
        return nn.Sequential(compressed, nn.Threshold(1e9, math.nan))

    monkeypatch.setattr(finishing, "refit_in_sequence", broken)
    problem, point = problem_and_point(small_network(), pool())
    small, new, record = finished(problem, point)
    assert new is small
    assert record.steps[0] == FinishStep("refit", None, None, accepted=False)
    assert "no finite loss" in record.sentence()
    json.dumps(record.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("calibrate", "u"), [(0, 0.5), (50, 1.0)])
def test_nothing_is_tried_without_calibration_inputs_or_where_nothing_is_cut(
    calibrate, u
):
    problem, point = problem_and_point(
        convolutional(), images(), u, calibrate=calibrate
    )
    small, new, record = finished(problem, point)
    assert new is small
    assert record is None


def test_samples_are_those_of_no_trial_and_calibration_inputs_are_not_drawn():
    problem, point = problem_and_point(small_network(), pool())
    drawn = []
    sampler = problem.sampler

    def noting(num_samples, rng):
        drawn.append(sampler(num_samples, rng))
        return drawn[-1]

    problem = dataclasses.replace(problem, sampler=noting)
    finished(problem, point)
    known = problem.calibration.inputs
    for batch in drawn:
        same = (batch.inputs[:, None] == known[None]).all(-1)
        assert not bool(same.any())


def test_the_same_seed_gives_the_same_network():
    problem, point = problem_and_point(convolutional(), images())
    (_, one, first), (_, two, second) = (finished(problem, point) for _ in range(2))
    assert first == second
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_half_precision_is_finished():
    network = convolutional().to(torch.bfloat16)
    problem, point = problem_and_point(network, images(1000).to(torch.bfloat16), 0.3)
    _, new, record = finished(problem, point)
    assert record.steps[0].accepted
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}


@pytest.fixture(scope="module")
def searched():
    return compress(convolutional(), images(600), **SETTINGS | {"gamma": 0.05})


def test_a_search_returns_the_finished_network_and_its_own_loss(searched):
    result, problem = searched, searched.problem
    assert isinstance(result.finish, FinishRecord)
    seed = fresh_seed(result.seed)
    assert result.loss == problem.network_loss(result.network, seed=seed)
    measured = problem.compress(result.parameterization).eval()
    assert result.loss.mean < problem.network_loss(measured, seed=seed).mean


def test_without_refit_the_network_is_the_one_that_was_measured(searched):
    result = compress(
        convolutional(), images(600), refit=False, **SETTINGS | {"gamma": 0.05}
    )
    assert result.finish is None
    assert result.trials.equals(searched.trials)
    assert result.ranks == searched.ranks
    measured = result.problem.compress(result.parameterization).state_dict()
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, measured[name])


def test_ctrl_c_while_finishing_returns_what_was_measured(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(finishing, "refit_in_sequence", interrupted)
    result = compress(small_network(), pool(), **SETTINGS)
    assert result.finish is None
    assert result.certificate.holds


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ax, met on the way
def test_a_refit_that_fails_does_not_cost_a_search_its_result(monkeypatch):
    def fails(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(finishing, "refit_in_sequence", fails)
    with pytest.warns(UserWarning, match="not refitted: MemoryError: no room"):
        result = compress(small_network(), pool(), **SETTINGS)
    assert result.finish is None
    assert result.certificate.holds


def test_a_finished_network_is_saved_and_loaded_equal(searched, tmp_path):
    searched.save(tmp_path)
    text = (tmp_path / "recipe.json").read_text()
    recipe = CompressionRecipe.from_json(text)
    assert recipe.format_version == json.loads(text)["format_version"] == 2
    assert recipe.finishes == (json.loads(json.dumps(searched.finish.to_dict())),)
    assert recipe.to_json() == text
    loaded = load_compressed(tmp_path, convolutional(1)).eval()
    assert torch.equal(loaded(images()), searched.network(images()))
    assert recipe_of(loaded).finishes == recipe.finishes
    known = searched.problem.calibration
    assert recipe.calibrations == (known.to_dict(),)
    assert recipe_of(loaded).calibrations == recipe.calibrations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(finishes={}), "must be a list"),
        (lambda r: r.pop("finishes"), "must have the keys"),
        (lambda r: r["finishes"][0].pop("before"), "a finish must have the keys"),
        (lambda r: r["finishes"][0].update(steps=1), "must be a list"),
        (lambda r: r["finishes"][0]["steps"][0].update(x=1), "a step of a finish"),
        (lambda r: r.update(format_version=1), "must have the keys"),
        (lambda r: r.update(calibrations=3), "'calibrations' must be a list"),
        (lambda r: r["calibrations"][0].pop("seed"), "a calibration must have"),
    ],
)
def test_a_tampered_record_is_refused(searched, tmp_path, change, message):
    searched.save(tmp_path)
    data = json.loads((tmp_path / "recipe.json").read_text())
    change(data)
    with pytest.raises(ValueError, match=message):
        CompressionRecipe.from_json(json.dumps(data))


def test_a_loss_of_the_users_own_decides():
    def better_if_worse(network, batch):
        return 100.0 - squared_l2(network, batch)

    problem, point = problem_and_point(
        convolutional(), images(1000), loss=better_if_worse
    )
    _, _, record = finished(problem, point)
    assert not record.steps[0].accepted
    assert record.steps[0].change.mean > 0
