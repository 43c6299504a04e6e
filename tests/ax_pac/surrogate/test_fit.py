from __future__ import annotations

import math

import pytest
import torch

from ax_pac import fit_model
from ax_pac.surrogate.fit import LENGTHSCALE_BOUNDS, OUTPUTSCALE_BOUNDS


def test_posterior_is_in_raw_objective_units():
    X = torch.linspace(0, 1, 10).double().unsqueeze(-1)
    Y = 500.0 + 100.0 * (6 * X).sin()
    mean = fit_model(X, Y, torch.full_like(Y, 1e-2)).posterior(X).mean
    # Noise is a tenth of a unit at each point.
    torch.testing.assert_close(mean, Y, rtol=0, atol=0.5)


def test_a_flat_direction_stays_within_bounds():
    X = torch.rand(15, 2, generator=torch.Generator().manual_seed(0)).double()
    Y = (5 * X[:, :1]).sin()
    kernel = fit_model(X, Y, torch.full_like(Y, 1e-6)).covar_module
    lengthscale = kernel.base_kernel.lengthscale
    assert (lengthscale >= LENGTHSCALE_BOUNDS[0]).all()
    assert (lengthscale <= LENGTHSCALE_BOUNDS[1]).all()
    assert lengthscale[0, 1] > 3 * lengthscale[0, 0]
    assert OUTPUTSCALE_BOUNDS[0] <= kernel.outputscale <= OUTPUTSCALE_BOUNDS[1]


def test_lengthscales_of_a_known_prior_are_recovered():
    generator = torch.Generator().manual_seed(1)
    X = torch.rand(120, 1, generator=generator).double()
    a = math.sqrt(5) * torch.cdist(X, X) / 0.2
    K = (1 + a + a**2 / 3) * (-a).exp() + 1e-6 * torch.eye(120).double()
    draw = torch.linalg.cholesky(K) @ torch.randn(120, 1, generator=generator).double()
    bounds = torch.tensor([[0.0], [1.0]]).double()
    kernel = fit_model(X, draw, torch.full_like(draw, 1e-6), bounds).covar_module
    # One draw holds about five length scales of information: a factor of two.
    assert 0.1 < kernel.base_kernel.lengthscale.item() < 0.4


@pytest.mark.parametrize(
    ("Y", "Yvar", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(4, 1), "shape `n x 1`"),
        (torch.full((4, 1), math.nan), torch.ones(4, 1), "must be finite"),
        (torch.zeros(4, 1), torch.full((4, 1), -1.0), "must not be negative"),
    ],
)
def test_impossible_observations_are_refused(Y, Yvar, message):
    with pytest.raises(ValueError, match=message):
        fit_model(torch.rand(4, 2).double(), Y.double(), Yvar.double())


@pytest.mark.parametrize(("d", "n"), [(2, 12), (8, 30)])
def test_the_closed_form_fits_as_botorch_does(monkeypatch, d, n):
    rng = torch.Generator().manual_seed(d)
    X = torch.rand(n, d, generator=rng).double()
    noise = torch.randn(n, 1, generator=rng).double()
    Y = (3.0 * X).sin().sum(-1, keepdim=True) + 0.1 * noise
    ours = fit_model(X, Y, torch.full_like(Y, 0.01))
    monkeypatch.setattr("ax_pac.surrogate.fit.fit_in_closed_form", lambda model: False)
    theirs = fit_model(X, Y, torch.full_like(Y, 0.01))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_covariance_without_a_factor_is_left_to_botorch(monkeypatch):
    X = torch.linspace(0, 1, 8, dtype=torch.float64).unsqueeze(-1)
    Y = (5.0 * X).sin()
    expected = fit_model(X, Y, torch.full_like(Y, 1e-2))
    monkeypatch.setattr("ax_pac.surrogate.fit.dpotrf", lambda K, **_: (K, 1))
    found = fit_model(X, Y, torch.full_like(Y, 1e-2))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            found.state_dict()[name], value, rtol=1e-4, atol=1e-6
        )
