"""Certificates of data that nobody would choose: never NaN, never lost, consistent."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from ax_pac import PACCertificate, certify, fit_model
from ax_pac.certificate.record import LEVELS

# Rounding noise up is the safe side.
pytestmark = pytest.mark.filterwarnings("ignore:Very small noise values")

KINDS = (
    *("random", "repeated", "collinear", "constant", "outlier", "flat coordinate"),
    "one cluster",
)

data_sets = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "n": st.integers(2, 60),
        "d": st.sampled_from((1, 1, 2, 2, 3, 5, 10, 20)),
        "magnitude": st.floats(-8.0, 8.0),
        "sems": st.tuples(st.floats(-6.0, 0.0), st.floats(0.0, 6.0)),
        "seed": st.integers(0, 2**16),
    }
)
quick = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def made(
    kind: str,
    n: int,
    d: int,
    magnitude: float,
    sems: tuple[float, float],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, outcomes and SEMs, which spread over up to six orders of magnitude."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, generator=rng, dtype=torch.float64)
    if kind == "repeated":
        X = X[torch.randint(max(1, n // 4), (n,), generator=rng)]
    elif kind == "collinear":
        X = X[:, :1].expand(-1, d).clone()
    elif kind == "flat coordinate":
        X[:, 0] = 0.5
    elif kind == "one cluster":
        X = 0.5 + 1e-6 * (X - 0.5)
    smallest, orders = sems
    exponent = smallest + orders * torch.rand(n, generator=rng, dtype=torch.float64)
    sem = 10.0 ** exponent.clamp_max(0.0)
    noise = torch.randn(n, generator=rng, dtype=torch.float64)
    Y = (3.0 * X).sin().mean(-1) + sem * noise
    if kind == "constant":
        Y = torch.full_like(Y, 0.7)
    elif kind == "outlier":
        Y[0] += 1e3
    scale = 10.0**magnitude
    return X, (scale * Y).unsqueeze(-1), (scale * sem).unsqueeze(-1)


def certified(
    X: Tensor, Y: Tensor, sem: Tensor, level: str, delta: float, epsilon: float = 0.1
) -> PACCertificate:
    bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(-1, X.shape[-1])
    model = fit_model(X, Y, sem.square(), bounds)
    return certify(model, X, bounds, delta=delta, epsilon=epsilon, level=level, seed=0)


@pytest.mark.parametrize("level", LEVELS)
@quick
@given(data_sets)
def test_every_data_set_has_a_verdict(level: str, data: dict[str, object]) -> None:
    X, Y, sem = made(**data)
    delta = 10.0 ** data["magnitude"] * 0.3
    certificate = certified(X, Y, sem, level, delta)
    assert 0.0 <= certificate.failure_probability <= 1.0
    assert certificate.reason
    assert all(map(math.isfinite, certificate.incumbent))
    assert all(0.0 <= x <= 1.0 for x in certificate.challenger)
    if certificate.holds:
        assert certificate.failure_probability <= certificate.epsilon
        assert certificate.hyperparameter_status in (None, "ok")
    if level != "pairwise" and len(X) < max(2 * X.shape[-1] + 3, 10):
        assert not certificate.holds


@pytest.mark.parametrize("level", LEVELS)
@quick
@given(data_sets, st.floats(-3.0, 3.0), st.floats(-1.0, 1.0))
def test_the_unit_of_the_objective_does_not_change_the_verdict(
    level: str, data: dict[str, object], power: float, shift: float
) -> None:
    X, Y, sem = made(**data)
    delta, factor = 10.0 ** data["magnitude"] * 0.3, 10.0**power
    first = certified(X, Y, sem, level, delta)
    moved = factor * Y + shift * factor * 10.0 ** data["magnitude"]
    second = certified(X, moved, factor * sem, level, factor * delta)
    # Rounding moves the fit by as much as the optimiser's tolerance, and draws with it.
    near = abs(first.failure_probability - first.epsilon) < 0.3 * first.epsilon
    assert first.holds == second.holds or near
    if data["kind"] != "constant":  # whose spread is that of rounding
        assert first.certifiable == second.certifiable or near


@pytest.mark.parametrize("level", LEVELS)
@quick
@given(data_sets, st.floats(1.2, 5.0))
def test_a_larger_tolerance_or_risk_does_not_lose_a_certificate(
    level: str, data: dict[str, object], factor: float
) -> None:
    X, Y, sem = made(**data)
    delta = 10.0 ** data["magnitude"] * 0.3
    first = certified(X, Y, sem, level, delta)
    wider = certified(X, Y, sem, level, factor * delta)
    riskier = certified(X, Y, sem, level, delta, epsilon=min(0.9, factor * 0.1))
    if first.holds:
        assert wider.holds
        assert riskier.holds
    if level == "pairwise":
        # The second search, which a certificate has, can find more by its rounding.
        assert wider.failure_probability <= first.failure_probability + 1e-6
