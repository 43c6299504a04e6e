from __future__ import annotations

import warnings

import pytest
import torch
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.exceptions.warnings import OptimizationWarning
from botorch.models import SingleTaskGP

from ax_pac import KnownFunction, PACAcquisition, fit_model
from ax_pac.acquisition.optimize import (
    find_challenger,
    more_informative,
    predicted_noise,
)
from ax_pac.cells import Cells
from tests.ax_pac.acquisition.test_analytic import as_other
from tests.conftest import bowl


def model_with_noise(noise_of) -> tuple[SingleTaskGP, torch.Tensor]:
    X = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()
    Yvar = noise_of(X).reshape(-1, 1).double()
    return fit_model(X, bowl(X), Yvar), X


def variance_after(model: SingleTaskGP, score: PACAcquisition, challenger, point):
    """Variance of the difference once a point is evaluated again, by conditioning."""
    noise = predicted_noise(score, point)
    stdvs = model.outcome_transform.stdvs.squeeze(0)
    after = model.condition_on_observations(
        point,
        model.posterior(point).mean.detach(),
        noise=(noise / stdvs.square()).reshape(1, 1),
    )
    covariance = after.posterior(
        torch.cat([challenger, score.incumbent])
    ).distribution.covariance_matrix
    contrast = torch.tensor([1.0, -1.0]).double()
    return (contrast @ covariance @ contrast).item()


@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("convert", [lambda model: model, as_other])
def test_chosen_point_leaves_the_smaller_variance_of_the_difference(level, convert):
    model, X = model_with_noise(lambda X: torch.full((len(X),), level**2))
    reference, _ = model_with_noise(lambda X: torch.full((len(X),), level**2))
    score = PACAcquisition(convert(model), X, 0.1)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        challenger = torch.rand(1, 2, generator=generator, dtype=torch.float64)
        chosen = more_informative(score, challenger)
        left = {
            name: variance_after(reference, score, challenger, point)
            for name, point in (("c", challenger), ("i", score.incumbent))
        }
        name = "c" if torch.equal(chosen, challenger) else "i"
        assert left[name] == pytest.approx(min(left.values()), rel=1e-6)


def test_the_incumbent_is_looked_at_again_once_the_challenger_is_known_better():
    X = torch.tensor([[0.2], [0.5], [0.8]]).double()
    X = torch.cat([X, X[2:].repeat(30, 1)])  # 0.8 evaluated thirty times more
    Y = torch.where(X == 0.5, 1.0, 0.9) - (X == 0.2).double()
    model = fit_model(X, Y, torch.full_like(Y, 0.05))
    score = PACAcquisition(model, X.unique(dim=0), 0.1)
    assert score.incumbent.item() == 0.5
    challenger = torch.tensor([[0.8]]).double()
    assert torch.equal(more_informative(score, challenger), score.incumbent)


def test_pending_incumbents_count():
    model, X = model_with_noise(lambda X: torch.full((len(X),), 0.04))
    score = PACAcquisition(model, X, 0.1)
    before = score.pair_covariance(X[:1])[1, 1]
    score.set_X_pending(score.incumbent)
    assert score.pair_covariance(X[:1])[1, 1] < before


def test_noise_is_predicted_from_the_neighbourhood():
    model, X = model_with_noise(lambda X: 10.0 ** (-4 + 3 * X[:, 0]))
    score = PACAcquisition(model, X, 0.1)
    low, high = predicted_noise(score, torch.tensor([[0.1, 0.5], [0.9, 0.5]]).double())
    assert low < high
    everywhere, _ = model_with_noise(lambda X: torch.full((len(X),), 0.02))
    constant = predicted_noise(PACAcquisition(everywhere, X, 0.1), X + 0.01)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.02))


def test_a_model_with_one_inferred_noise_predicts_it():
    X = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()
    model = SingleTaskGP(X, bowl(X)).eval()
    noise = predicted_noise(PACAcquisition(model, X, 0.1), X[:3])
    expected = model.likelihood.noise * model.outcome_transform.stdvs.square()
    torch.testing.assert_close(noise, expected.detach().reshape(1).expand(3))


def test_a_line_search_that_ends_early_is_no_news_but_other_warnings_are(monkeypatch):
    def failing(starts, score, **kwargs):
        with warnings.catch_warnings():  # as BoTorch does
            warnings.simplefilter("always", category=OptimizationWarning)
            warnings.warn("ABNORMAL", OptimizationWarning, stacklevel=2)
        if noisy:
            warnings.warn("something else", UserWarning, stacklevel=2)
        return starts, score(starts)

    monkeypatch.setattr("ax_pac.acquisition.optimize.gen_candidates_scipy", failing)
    # As of a model without gradients in closed form.
    monkeypatch.setattr(PACAcquisition, "score_with_gradient", lambda *_, **__: None)
    model, X = model_with_noise(lambda X: torch.full((len(X),), 0.01))
    score = PACAcquisition(model, X, 0.1)
    box = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    noisy = False
    with warnings.catch_warnings(record=True) as caught:
        find_challenger(score, X, box, seed=0)
    assert caught == []
    noisy = True
    with pytest.warns(UserWarning, match="something else"):
        find_challenger(score, X, box, seed=0)


@pytest.mark.parametrize("seed", range(40))
def test_a_search_among_few_cells_that_can_win_finds_one_of_them(seed):
    d, rng = 5, torch.Generator().manual_seed(seed)
    edges = tuple(
        (0.0, *sorted(torch.rand(12, generator=rng).tolist()), 1.0) for _ in range(d)
    )
    X = torch.rand(14, d, generator=rng, dtype=torch.float64)
    # Near the corner at which the known part is least.
    X[0] = 0.25 * torch.rand(d, generator=rng).double()
    Y = 0.03 * (1.0 - X).square().sum(-1, keepdim=True)
    score = PACAcquisition(
        fit_model(X, Y, torch.full_like(Y, 1e-6)),
        X,
        delta=0.02,
        posterior_transform=ScalarizedPosteriorTransform(torch.tensor([-1.0]).double()),
        known=KnownFunction(lambda X: X.sum(-1), floor=0.0, bends=((),) * d),
        negligible=1e-3,
    )
    box = torch.tensor([[0.0] * d, [1.0] * d], dtype=torch.float64)
    search = find_challenger(score, X, box, seed=seed, cells=Cells(edges))
    assert search.none_can_win or bool(score.can_win(search.challenger).all())
