"""Fabolas: its kernels, its sampler, its entropy, and a learning curve with bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from benchmarks.comparison import plan as comparison
from benchmarks.comparison.fabolas_page import render_fabolas
from benchmarks.comparison.learning_curve import learning_curve
from benchmarks.comparison.problems import build_problem
from benchmarks.comparison.run import Budget, search_with
from benchmarks.harness.optimiser import Observation, Task
from benchmarks.harness.traces import Trace, read_traces
from benchmarks.methods.fabolas import profile as fabolas_profile
from benchmarks.methods.fabolas.base import NUM_INITIAL_POINTS, Fabolas
from benchmarks.methods.fabolas.ensemble import stretch_moves
from benchmarks.methods.fabolas.faithful import (
    FaithfulSearch,
    information_gain,
    log_expected_improvement,
)
from benchmarks.methods.fabolas.lean import LeanSearch, cost_kernel, loss_kernel
from benchmarks.methods.fabolas.models import AveragedGP, cost_basis, loss_basis
from benchmarks.methods.registry import build_method

CURVE_SEEDS = 3


def matern(x: float, y: float, lengthscale: float) -> float:
    r = math.sqrt(5.0) * abs(x - y) / lengthscale
    return (1.0 + r + r * r / 3.0) * math.exp(-r)


# GPyTorch multiplies kernels by their roots, and a line in two dimensions has rank one.
@pytest.mark.filterwarnings("ignore:A not p.d., added jitter")
@pytest.mark.parametrize(
    ("kernel", "phi"),
    [(loss_kernel, lambda u: (1.0 - u) ** 2), (cost_kernel, lambda u: u)],
)
def test_kernels_are_a_matern_times_the_basis_of_the_source(kernel, phi):
    made = kernel(1)
    X = torch.tensor([[0.2, 0.0], [0.7, 0.4], [0.5, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        K = made(X).to_dense()
    matern_kernel = made.base_kernel.kernels[0] if kernel is loss_kernel else None
    matern_kernel = matern_kernel or made.kernels[0]
    lengthscale = matern_kernel.lengthscale.item()
    # What is left is a + b phi phi', up to a factor: two unknowns, six equations.
    rest, basis = [], []
    for i in range(3):
        for j in range(i + 1):
            x, y = X[i].tolist(), X[j].tolist()
            rest.append(K[i, j].item() / matern(x[0], y[0], lengthscale))
            basis.append([1.0, phi(x[1]) * phi(y[1])])
    weights, *_ = np.linalg.lstsq(np.array(basis), np.array(rest))
    assert np.array(basis) @ weights == pytest.approx(rest, rel=1e-6)
    assert (weights > 0).all()


def test_walkers_end_distributed_as_they_should():
    """One coordinate of a correlated normal, 200 ensembles, one walker of each."""
    precision = torch.linalg.inv(torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double())

    def log_density(x):
        return -0.5 * (x @ precision * x).sum(-1)

    rng = torch.Generator().manual_seed(3)
    start = torch.randn(200, 8, 2, generator=rng, dtype=torch.float64) * 0.1
    end = stretch_moves(log_density, start, 150, rng)
    # A false alarm once in a thousand.
    assert kstest(end[:, 0, 0].numpy(), norm.cdf).pvalue > 1e-3
    correlation = np.corrcoef(end[:, 0].T.numpy())[0, 1]
    assert abs(math.atanh(correlation) - math.atanh(0.8)) < 3.3 / math.sqrt(197)


def test_an_odd_number_of_walkers_is_refused():
    with pytest.raises(ValueError, match="even number of walkers, got 3"):
        stretch_moves(lambda x: x.sum(-1), torch.zeros(3, 1), 1, torch.Generator())


def averaged(noise: float = 0.01) -> AveragedGP:
    rng = torch.Generator().manual_seed(0)
    model = AveragedGP(1, loss_basis, rng)
    X = torch.rand(14, 2, generator=rng, dtype=torch.float64)
    Y = (3 * X[:, :1]).sin() + 0.5 * (1 - X[:, 1:]) ** 2
    model.fit(X, Y + noise * torch.randn(14, 1, generator=rng, dtype=torch.float64))
    return model


def test_an_averaged_posterior_is_the_textbook_one_for_every_walker():
    model = averaged()
    points = torch.tensor([[0.3, 1.0], [0.8, 0.2]], dtype=torch.float64)
    batch = points.expand(model.num_walkers, 2, 2)
    mean, covariance = model.joint(batch)
    marginal_mean, variance = model.marginal(batch)
    walker = 5
    log = model.walkers[walker]
    amplitude, lengthscale, a, b, noise = log.exp().tolist()

    def k(left, right):
        return torch.tensor(
            [
                [
                    amplitude
                    * matern(x[0], y[0], lengthscale)
                    * (a + b * (1 - x[1]) ** 2 * (1 - y[1]) ** 2)
                    for y in right.tolist()
                ]
                for x in left.tolist()
            ],
            dtype=torch.float64,
        )

    jitter = 1e-8 * k(model.X, model.X).diagonal().mean()
    K = k(model.X, model.X) + (noise + jitter) * torch.eye(14, dtype=torch.float64)
    cross = k(points, model.X)
    expected = model.mean + (cross @ torch.linalg.solve(K, model.residual)).squeeze()
    spread = k(points, points) - cross @ torch.linalg.solve(K, cross.T)
    torch.testing.assert_close(mean[walker], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(covariance[walker], spread, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(marginal_mean, mean, rtol=1e-7, atol=1e-9)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance, diagonal.clamp_min(1e-12))


def test_the_cost_grows_with_the_size_and_the_basis_says_so():
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert cost_basis(u).tolist() == [0.0, 0.5, 1.0]
    assert loss_basis(u).tolist() == [1.0, 0.25, 0.0]


def test_log_expected_improvement_is_the_integral_that_it_stands_for():
    gap, deviation = 0.3, 0.7
    y = np.linspace(-10.0, 10.0, 200_001)
    density = norm.pdf(y, loc=-gap, scale=deviation)
    integral = np.trapezoid(np.maximum(-y, 0.0) * density, y)
    found = log_expected_improvement(
        torch.tensor(gap).double(), torch.tensor(deviation).double()
    )
    assert found.exp().item() == pytest.approx(integral, rel=1e-6)


def test_what_is_known_of_the_minimum_grows_most_where_it_could_be():
    """An evaluation at full size near the minimum tells more than one far from it."""
    model = averaged(noise=0.2)
    rng = torch.Generator().manual_seed(1)
    grid = torch.linspace(0, 1, 50, dtype=torch.float64)
    representers = torch.stack([grid, torch.ones_like(grid)], 1)
    batch = representers.expand(model.num_walkers, 50, 2)
    flat = torch.zeros(model.num_walkers, 50, dtype=torch.float64)
    # Of 3 sin(3 x) the minimum is at 0 (or, nearly as low, at 1), the maximum at .52.
    candidates = torch.tensor([[0.02, 1.0], [0.52, 1.0], [0.02, 0.0]]).double()
    gain = information_gain(model, batch, flat, candidates, rng).mean(0)
    assert gain[0] > gain[1]
    assert gain[0] > gain[2]
    assert gain[0] > 0.0


def test_sizes_and_units_are_each_others_inverse():
    method = Fabolas(Task(dim=2, max_samples=10_000), search=LeanSearch)
    assert [method.size(u) for u in (0.0, 1.0)] == [10_000 // 256, 10_000]
    for size in (39, 100, 5_000, 10_000):
        assert method.size(method.unit(size)) == size
    sizes = [asked.num_samples for asked in method.initial]
    assert sizes == [39] * 10 + [78] * 10 + [156] * 10
    assert len({asked.point for asked in method.initial}) == NUM_INITIAL_POINTS


@pytest.mark.parametrize("search", [LeanSearch, FaithfulSearch])
def test_the_incumbent_is_judged_at_full_size_not_where_it_was_seen(
    search, monkeypatch
):
    """Small subsets flatter one point; what full size says of it counts."""
    monkeypatch.setattr("benchmarks.methods.fabolas.models.CHAIN", 40)
    rng = np.random.default_rng(0)
    method = Fabolas(Task(dim=1, max_samples=10_000, seed=3), search=search)
    for _ in range(30):
        asked = method.ask()
        u, x = method.unit(asked.num_samples), asked.point[0]
        # At full size the best is .2; on the smallest subsets it looks like .8.
        truth = 1.0 + (x - 0.2) ** 2
        bias = 2.0 * (1.0 - u) ** 2 * (1.0 - x)
        mean = truth + bias + 0.002 * rng.normal()
        method.tell(Observation(asked.point, asked.num_samples, mean, 0.002, 50.0))
    for x in (0.1, 0.25, 0.5, 0.75, 0.9):
        truth = 1.0 + (x - 0.2) ** 2
        method.tell(Observation((x,), 10_000, truth, 0.002, 10_000.0))
    assert method.incumbent()[0] == pytest.approx(0.2, abs=0.12)
    smallest = min(
        (o for o in method.observations if o.num_samples == 39), key=lambda o: o.mean
    )
    assert smallest.point[0] > 0.5


def test_another_kind_of_noise_is_refused():
    with pytest.raises(ValueError, match="noise must be 'inferred' or 'measured'"):
        LeanSearch(2, 0, noise="guessed")


def test_the_learning_curve_has_a_bias_that_falls_with_the_size():
    """Mean errors of one setting over 10 subsets fall, far beyond their noise."""
    curve = learning_curve()
    point = (0.5, 0.2)
    means, errors = [], []
    for size in (64, 256, 1024):
        values = [curve.evaluate(point, size, seed).mean for seed in range(10)]
        means.append(np.mean(values))
        errors.append(np.std(values, ddof=1) / math.sqrt(10))
    full = curve.true(point)
    assert means[0] > means[1] + 4 * (errors[0] + errors[1])
    assert means[1] > means[2] + 4 * (errors[1] + errors[2])
    assert means[2] > full
    assert full < 0.15
    # All images in any order are the same machine.
    assert curve.evaluate(point, curve.max_samples, 1).mean == pytest.approx(full)
    assert curve.cost(2048) > 7.9 * curve.cost(256)


def test_the_page_divides_what_was_spent_by_what_is_needed():
    result = {
        "models": 36,
        "stages": {"fit": 4.0, "gain": 6.0},
        "floors": {"fit": 1.0, "gain": 4.0},
        "lean": {"fit": 0.5, "propose": 0.25},
    }
    settings = fabolas_profile.settings(9, 30)
    page = render_fabolas([Trace("fabolas_profile", settings, 0, result, [], {})])
    assert "| fit | 4.00 | 1.00 | 4.0 |" in page
    assert "| an iteration | 10.00 | 5.00 | 2.0 |" in page
    assert "s_max / 256, s_max / 128, s_max / 64" in page


def test_the_baseline_is_not_slow_by_accident():
    """As measured, an iteration takes at most five times its bare linear algebra."""
    traces = read_traces("fabolas_profile")
    assert traces, "the committed traces are missing"
    for trace in traces:
        spent = sum(trace.result["stages"].values())
        assert spent < 5.0 * sum(trace.result["floors"].values())


@pytest.mark.slow
def test_a_profile_has_a_floor_for_every_stage():
    result = fabolas_profile.run(0, fabolas_profile.settings(9, 30)).result
    assert set(result["stages"]) == set(result["floors"])
    assert min(*result["stages"].values(), *result["floors"].values()) > 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeds", "evaluations"),
    [("fabolas_lean", CURVE_SEEDS, 50), ("fabolas_faithful", 1, 36)],
)
def test_small_subsets_pay_on_a_learning_curve(name, seeds, evaluations):
    """For less than one fit to all images, Fabolas is near the best setting.

    The yardstick is the best of 25 settings, each fitted to all images; the median one
    of them is far away, so that being near the best is no matter of course.
    """
    problem = build_problem("learning_curve", seed=0)
    rng = np.random.default_rng(0)
    errors = [problem.true(tuple(point)) for point in rng.random((25, 2))]
    assert np.median(errors) > min(errors) + 0.1
    found = []
    for seed in range(seeds):
        task = comparison.task_of(
            problem, seed, {"problem": "learning_curve", "num_samples": 50}
        )
        method = build_method(name, task)
        result, trials = search_with(problem, method, Budget(evaluations), seed)
        spent = sum(trial["cost"] for trial in trials)
        assert spent < problem.cost(problem.max_samples)
        found.append(result["own"]["objective"])
    assert np.median(found) <= min(errors) + 0.02
