"""Certificates from each point's own observations, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ax_pac import Domain, PACAcquisition, PACCertificate, certify, fit_model
from ax_pac.certificate.exhaustive import exhaustive_failure

THREE = Domain(((1.0, 3.0),), ((1.0, 2.0, 3.0),))
X = torch.tensor([[1.0], [2.0], [3.0], [2.0], [2.0]]).double()
Y = torch.tensor([[0.1], [0.4], [0.35], [0.5], [0.3]]).double()
SEM = torch.tensor([[0.1], [0.1], [0.2], [0.2], [0.1]]).double()


def score(Y: torch.Tensor = Y, X: torch.Tensor = X) -> PACAcquisition:
    model = fit_model(X, Y, SEM[: len(X)] ** 2, THREE.box)
    return PACAcquisition(model, X.unique(dim=0), 0.05)


def test_the_bound_is_the_sum_over_points_of_their_own_posteriors():
    acquisition = score()
    mean, variance = {}, {}
    for point in (1.0, 2.0, 3.0):
        rows = (X == point).flatten().numpy()
        weights = 1.0 / SEM.flatten().numpy()[rows] ** 2
        mean[point] = float(weights @ Y.flatten().numpy()[rows] / weights.sum())
        variance[point] = 1.0 / weights.sum()
    best = acquisition.incumbent.item()
    expected = {
        x: norm.cdf(
            (mean[x] - mean[best] - 0.05) / np.sqrt(variance[x] + variance[best])
        )
        for x in mean
        if x != best
    }
    result = exhaustive_failure(acquisition, THREE)
    assert result.upper_bound == pytest.approx(sum(expected.values()), rel=1e-6)
    assert result.challenger.item() == max(expected, key=expected.get)
    # The union bound against draws of the three independent posteriors.
    rng = np.random.default_rng(0)
    draws = {x: rng.normal(mean[x], variance[x] ** 0.5, 100_000) for x in mean}
    share = np.mean(
        [
            max(row) > own + 0.05
            for *row, own in zip(*draws.values(), draws[best], strict=True)
        ]
    )
    assert share <= result.upper_bound + 0.005
    assert result.upper_bound < 2.0 * share


def test_without_an_observation_of_each_point_it_says_nothing():
    assert exhaustive_failure(score(Y[:2], X[:2]), THREE) is None
    assert exhaustive_failure(score(), Domain(((1.0, 3.0),))) is None
    four = Domain(((1.0, 3.0),), ((1.0, 2.0, 2.5, 3.0),))
    assert exhaustive_failure(score(), four) is None


@pytest.mark.parametrize("level", ["pairwise", "joint", "marginal"])
def test_every_level_is_certified_below_the_fewest_observations(level):
    model = fit_model(X, 10.0 * Y, SEM**2, THREE.box)
    question = {"delta": 0.05, "epsilon": 0.3, "level": level}
    certificate = certify(model, X.unique(dim=0), THREE, **question)
    assert certificate.holds
    assert certificate.reached == "exhaustive"
    assert certificate.alpha == 0.0
    assert "every point of the search space was observed" in certificate.reason
    assert PACCertificate.from_dict(certificate.to_dict()) == certificate
    # Of the box, the same few observations say nothing.
    box = certify(model, X.unique(dim=0), THREE.box, **question)
    assert box.reached != "exhaustive"


def test_a_bound_above_epsilon_is_reported_where_no_level_can_claim_anything():
    model = fit_model(X, Y, SEM**2, THREE.box)
    question = {"delta": 0.3, "epsilon": 0.05, "level": "joint"}
    certificate = certify(model, X.unique(dim=0), THREE, **question)
    assert not certificate.holds
    if certificate.reached == "exhaustive":
        assert "above epsilon = 0.05" in certificate.reason


@pytest.mark.slow
@pytest.mark.parametrize(("number", "sem"), [(3, 0.05), (3, 0.2), (6, 0.2)])
def test_on_average_over_functions_the_promise_is_kept_however_often_one_looks(
    number, sem
):
    """The rule by itself, without a GP: values uniform in [0, 1], 1500 searches."""
    rng, wrong, epsilon, delta = np.random.default_rng(0), 0, 0.05, 0.1
    for _ in range(1500):
        f = rng.random(number)
        n, total = np.ones(number), f + sem * rng.standard_normal(number)
        while True:
            mean, variance = total / n, sem**2 / n
            best = mean.argmax()
            deviation = np.sqrt(variance + variance[best])
            probability = norm.cdf((mean - mean[best] - delta) / deviation)
            probability[best] = 0.0
            if probability.sum() <= epsilon:
                break
            other = probability.argmax()
            k = other if n[other] <= n[best] else best
            n[k], total[k] = n[k] + 1, total[k] + f[k] + sem * rng.standard_normal()
        wrong += f.max() - f[best] > delta
    assert wrong / 1500 <= epsilon + 2.0 * np.sqrt(epsilon * (1 - epsilon) / 1500)
