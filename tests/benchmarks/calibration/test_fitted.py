from __future__ import annotations

import math

import pytest
import torch

from benchmarks.calibration import (
    check_cost,
    check_share,
    fitted,
    inner_maximum,
    searches,
    stopped,
)
from benchmarks.calibration.check_share import render_check_share
from benchmarks.calibration.fitted_page import (
    _mean,
    render_check_cost,
    render_fitted,
    render_inner_maximum,
)
from benchmarks.calibration.functions import (
    TEST_FUNCTIONS,
    draw_from_prior,
    known_function,
    sample_of_prior,
)
from benchmarks.calibration.searches import CertifiedSearch, gaussian


@pytest.mark.parametrize("name", TEST_FUNCTIONS)
def test_no_point_of_a_test_function_exceeds_its_maximum(name):
    function = known_function(name)
    points = torch.rand(20_000, function.dim, dtype=torch.float64)
    values = function.evaluate(points)
    assert values.shape == (20_000,)
    assert values.max() <= function.maximum + 1e-9


def test_draws_have_the_covariance_of_the_prior():
    lengthscale = torch.tensor([0.3, 0.6], dtype=torch.float64)
    X = torch.tensor([[0.2, 0.2], [0.4, 0.5], [0.2, 0.3]], dtype=torch.float64)
    num = 150
    samples = (sample_of_prior(lengthscale, 2.0, 1.0, seed) for seed in range(num))
    draws = torch.stack([sample(X) for sample in samples])
    r = math.sqrt(5) * torch.cdist(X / lengthscale, X / lengthscale)
    expected = 2.0 * (1 + r + r**2 / 3) * (-r).exp()
    error = 4.0 * 2.0 * math.sqrt(2.0 / num)
    assert (draws.mT.cov() - expected).abs().max() < error
    assert (draws.mean(0) - 1.0).abs().max() < 4.0 * math.sqrt(2.0 / num)


def test_the_maximum_of_a_draw_is_not_below_any_of_its_values():
    function = draw_from_prior(torch.tensor([0.3, 0.4]).double(), 1.0, 0.0, seed=3)
    line = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert function.evaluate(torch.cartesian_prod(line, line)).max() <= function.maximum


@pytest.fixture(scope="module")
def trace():
    """One run, with a weaker promise than the benchmark's, which is met sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted, "EPSILON", 0.3)
        patch.setattr(searches, "EPSILON", 0.3)
        yield fitted.run(0, fitted.settings("branin", 2, 0.02))


def test_a_fitted_search_ends_by_its_certificate(trace):
    stop = trace.result["stops"]["marginal"]
    assert stop["evaluations"] == trace.result["evaluations"] <= 60
    assert stop["regret"] <= searches.DELTA
    assert stop["failure_probability"] <= 0.3
    assert 0.0 <= stop["averaged"] <= 0.3
    assert "exact" not in stop  # a test function has no true hyperparameters
    # The weaker levels are met no later.
    for level in ("pairwise", "joint"):
        weaker = trace.result["stops"][level]["evaluations"]
        assert weaker <= stop["evaluations"]


def test_failures_where_a_search_stopped_agree_with_what_the_data_say(monkeypatch):
    """Few points leave a failure likely under any hyperparameters, many hardly so."""
    # The check is only asked for the model that it fits.
    monkeypatch.setattr(searches, "certify", lambda *arguments, **options: None)
    monkeypatch.setattr(stopped, "_NUM_DRAWS", 64)
    monkeypatch.setattr(stopped, "_NUM_LIKELY", 1000)
    monkeypatch.setattr(stopped, "_NUM_OTHERS", 500)
    settings = fitted.settings("set", 2, 0.1)
    hyperparameters = fitted._hyperparameters(3, settings)
    function = fitted._function(3, settings, hyperparameters)
    search = CertifiedSearch(function, gaussian(0.1), 3)
    search.check()
    few = search.failure(hyperparameters[:2])
    grid = torch.linspace(0, 1, 9, dtype=torch.float64)
    for x in torch.cartesian_prod(grid, grid):
        search._evaluate(x.unsqueeze(0))
    search.check()
    many = search.failure(hyperparameters[:2])
    for name in ("averaged", "exact"):
        assert few[name] > 0.3 > many[name] + 0.1
    sections = [{"averaged": 0.04, "exact": 0.03}, {"averaged": 0.02, "exact": 0.05}]
    assert _mean(sections, "averaged") == "0.030 ± 0.010 (2)"
    assert _mean([{}, {"exact": 0.1}], "exact") == "-"


def test_pages_have_one_row_a_level_and_dimension(trace, monkeypatch):
    page = render_fitted([trace])
    assert "| marginal | 1/1 (" in page
    assert "function = branin" in page
    monkeypatch.setattr(inner_maximum, "_MAX_STATES", 1)
    monkeypatch.setattr(inner_maximum, "STRONG_EFFORT", 2)
    monkeypatch.setattr(check_cost, "EPSILON", 0.3)
    # Each level holds at the first of them, so that the next one is asked for.
    monkeypatch.setattr(check_cost, "_DELTAS", (2.0, 2.0, 2.0))
    page = render_inner_maximum([inner_maximum.run(0, {"d": 2})])
    assert "| 2 | 2 | 0 of " in page
    page = render_check_cost([check_cost.run(0, {"d": 2, "n": 20})])
    assert "| 2 | 20 | marginal |" in page


@pytest.mark.data
@pytest.mark.usefixtures("cifar10_here")
def test_the_page_has_the_share_that_asking_adds(monkeypatch):
    small = check_share.cifar10(train=False, num_images=100)
    monkeypatch.setattr(check_share, "cifar10", lambda train: small)
    trace = check_share.run(0, {**check_share._ROW, "trials": 11})
    assert trace.result["evaluate"] > 0.0
    assert trace.result["asks"] > 0.0
    assert "| resnet18 | 11 | 1 |" in render_check_share([trace])


def test_plans_name_every_setting_that_was_asked_for():
    assert len(fitted.plan(None, d=2, function="set")) == 100
    assert len(inner_maximum.plan(2, d=4)) == 2
    assert all(fitted.minutes(job) > 0 for job in fitted.plan(1))
    with pytest.raises(ValueError, match="unknown settings"):
        fitted.plan(1, level="joint")
    with pytest.raises(ValueError, match="unknown settings"):
        inner_maximum.plan(1, noise=0.1)
    with pytest.raises(ValueError, match="unknown settings"):
        check_cost.plan(1, level="joint")
