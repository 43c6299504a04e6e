from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from botorch.generation import gen_candidates_scipy
from botorch.models import SingleTaskGP
from scipy.stats import norm
from torch.quasirandom import SobolEngine

from ax_pac import PACAcquisition, PACCertificate, certify, find_challenger, fit_model
from ax_pac.cells import Cells
from ax_pac.certificate.levels import _reported
from ax_pac.certificate.marginal import MarginalFailure
from ax_pac.certificate.record import reason_of
from ax_pac.domain import Domain
from tests.conftest import bowl, noisy_model


def strong_search(score: PACAcquisition, d: int) -> float:
    """A larger, independent search: many space-filling and local starts, polished."""
    generator = torch.Generator().manual_seed(99)
    filling = SobolEngine(d, scramble=True, seed=99).draw(8192).double()
    noise = torch.randn(4096, d, generator=generator).double()
    radius = 10 ** (-3 + 3 * torch.rand(4096, 1, generator=generator).double())
    cloud = (score.incumbent + radius * noise / math.sqrt(d)).clamp(0, 1)
    starts = torch.cat([filling, cloud])
    with torch.no_grad():
        values = score(starts.unsqueeze(-2))
    best = starts[values.argsort(descending=True)[:48]].unsqueeze(-2)
    _, polished = gen_candidates_scipy(
        best, score, lower_bounds=0.0, upper_bounds=1.0, options={"maxiter": 200}
    )
    return max(polished.max().item(), values.max().item())


@pytest.mark.parametrize(("d", "n"), [(2, 12), (4, 20), (4, 30), (6, 30)])
def test_no_larger_search_finds_a_stronger_challenger(d, n):
    for seed in range(3):
        model, X = noisy_model(d=d, n=n, sem=0.03, seed=seed)
        score = PACAcquisition(model, X, 0.1)
        box = torch.stack([torch.zeros(d), torch.ones(d)]).double()
        challenger, found = find_challenger(score, X, box, seed=seed)[:2]
        assert score(challenger).item() == pytest.approx(found, abs=1e-9)
        # A miss of a twentieth of a standard deviation moves no verdict.
        assert found >= strong_search(score, d) - 0.05


def test_failure_probability_is_the_normal_tail_of_the_score(
    model_and_points, unit_box
):
    model, X = model_and_points
    certificate = certify(
        model, X, unit_box, delta=0.05, epsilon=0.01, level="pairwise", seed=0
    )
    assert certificate.failure_probability == pytest.approx(norm.cdf(certificate.score))
    assert certificate.level == "pairwise"
    assert certificate.num_observations == len(X)
    assert certificate.certifiable


def test_verdict_follows_epsilon_and_delta(model_and_points, unit_box):
    model, X = model_and_points
    question = {"level": "pairwise", "seed": 0}
    wide = certify(model, X, unit_box, delta=5.0, epsilon=0.01, **question)
    narrow = certify(model, X, unit_box, delta=1e-3, epsilon=0.01, **question)
    assert wide.holds
    assert "at most epsilon" in wide.reason
    assert not narrow.holds
    assert "above epsilon" in narrow.reason
    threshold = narrow.failure_probability
    # The second search, made where a certificate may be issued, rounds differently.
    threshold *= 1.0 + 1e-9
    again = certify(model, X, unit_box, delta=1e-3, epsilon=threshold, **question)
    assert again.holds


def test_certificate_is_computed_over_the_box_that_is_given(model_and_points):
    model, X = model_and_points
    box = torch.tensor([[0.0, 0.0], [0.2, 0.2]], dtype=torch.float64)
    certificate = certify(model, X, box, delta=0.05, epsilon=0.01, seed=0)
    assert all(0.0 <= value <= 0.2 for value in certificate.challenger)


def test_same_seed_gives_the_same_certificate(model_and_points, unit_box):
    model, X = model_and_points
    one, two = (
        certify(model, X, unit_box, delta=0.05, epsilon=0.01, seed=3) for _ in range(2)
    )
    assert one == two


def test_any_botorch_model_is_certified(unit_box):
    X = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()
    inferred_noise = SingleTaskGP(X, bowl(X)).eval()
    certificate = certify(
        inferred_noise, X, unit_box, delta=3.0, epsilon=0.05, level="joint", seed=0
    )
    assert certificate.holds
    with pytest.raises(ValueError, match="Ask for level 'joint'"):
        certify(inferred_noise, X, unit_box, delta=3.0, epsilon=0.05, seed=0)


def test_record_survives_json(model_and_points, unit_box):
    model, X = model_and_points
    certificate = certify(model, X, unit_box, delta=0.05, epsilon=0.01, seed=0)
    fields = json.loads(json.dumps(certificate.to_dict()))
    assert fields["holds"] is certificate.holds
    assert PACCertificate.from_dict(fields) == certificate
    del fields["score"]
    with pytest.raises(ValueError, match=r"not a certificate record, missing \['score"):
        PACCertificate.from_dict(fields)


@pytest.mark.parametrize(
    ("delta", "level", "reached"),
    [
        (1e-3, "marginal", "pairwise"),  # the strongest challenger alone is too likely
        (0.3, "joint", "joint"),
        (5.0, "pairwise", "pairwise"),
        (5.0, "joint", "joint"),
        (5.0, "marginal", "marginal"),
    ],
)
def test_the_level_that_was_reached_is_told_apart_from_the_one_asked_for(
    model_and_points, unit_box, delta, level, reached
):
    model, X = model_and_points
    question = {"delta": delta, "epsilon": 0.05, "level": level, "seed": 0}
    certificate = certify(model, X, unit_box, **question)
    assert certificate.level == level
    assert certificate.reached == reached
    assert f"({reached}: " in certificate.reason
    assert (certificate.alpha == 0.0) == (reached == "pairwise")
    # A record of version 0.1 has neither field: the level follows from the others.
    old = certificate.to_dict()
    del old["reached"], old["hyperparameter_text"]
    assert PACCertificate.from_dict(old) == certificate


def test_a_refusal_of_version_0_1_keeps_its_sentence(model_and_points, unit_box):
    model, X = model_and_points
    few = certify(model, X[:9], unit_box, delta=5.0, epsilon=0.05, seed=0).to_dict()
    del few["reached"], few["hyperparameter_text"]
    few["hyperparameter_status"] = "9 observations are too few"
    certificate = PACCertificate.from_dict(few)
    assert certificate.hyperparameter_status == "other"
    assert reason_of(certificate).endswith("9 observations are too few")


def test_a_record_of_a_newer_version_is_refused_by_name(model_and_points, unit_box):
    model, X = model_and_points
    fields = certify(model, X, unit_box, delta=5.0, epsilon=0.05, seed=0).to_dict()
    message = r"certificates have fields .* know: tomorrow\. .* update ax-pac"
    with pytest.raises(ValueError, match=message):
        PACCertificate.from_dict({**fields, "tomorrow": 1})


def test_relative_delta_is_a_share_of_the_incumbents_mean(model_and_points, unit_box):
    model, X = model_and_points
    relative = certify(
        model, X, unit_box, delta=0.1, epsilon=0.01, relative=True, seed=0
    )
    incumbent = torch.tensor([relative.incumbent]).double()
    mean = model.posterior(incumbent).mean.item()
    assert relative.delta == pytest.approx(0.1 * abs(mean))
    absolute = certify(model, X, unit_box, delta=relative.delta, epsilon=0.01, seed=0)
    assert absolute.score == pytest.approx(relative.score)


def test_relative_delta_of_a_mean_near_zero_is_refused(unit_box):
    X = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).double()
    Y = 0.01 * torch.randn(8, 1, generator=torch.Generator().manual_seed(1)).double()
    model = fit_model(X, Y - Y.max(), torch.full_like(Y, 1.0))
    with pytest.raises(ValueError, match="not distinguishable from zero"):
        certify(model, X, unit_box, delta=0.1, epsilon=0.01, relative=True)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, 2, math.nan])
def test_epsilon_out_of_range_is_refused(model_and_points, unit_box, epsilon):
    model, X = model_and_points
    with pytest.raises(ValueError, match="epsilon must be a probability"):
        certify(model, X, unit_box, delta=0.1, epsilon=epsilon)


def test_unknown_level_is_refused(model_and_points, unit_box):
    model, X = model_and_points
    with pytest.raises(ValueError, match="level must be one of"):
        certify(model, X, unit_box, delta=0.1, epsilon=0.1, level="certain")


@pytest.mark.parametrize(
    "bounds",
    [
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
        [[1.0, 1.0], [0.0, 0.0]],
        [[0, 0], [1, 1e999]],
    ],
)
def test_impossible_bounds_are_refused(model_and_points, bounds):
    model, X = model_and_points
    with pytest.raises(ValueError, match="bounds must"):
        certify(model, X, torch.tensor(bounds), delta=0.1, epsilon=0.1)


@pytest.mark.parametrize(("d", "fewest"), [(1, 10), (2, 10), (6, 15)])
def test_no_claim_above_pairwise_on_too_few_observations(d, fewest):
    box = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    X = SobolEngine(d, scramble=True, seed=0).draw(fewest, dtype=torch.float64)
    Y = bowl(X)
    verdicts = []
    for n in (fewest - 1, fewest):
        model = fit_model(X[:n], Y[:n], torch.full_like(Y[:n], 1e-6))
        verdicts.append(
            certify(model, X[:n], box, delta=50.0, epsilon=0.05, level="joint", seed=0)
        )
    few, enough = verdicts
    assert not few.holds
    assert few.failure_probability <= few.epsilon  # it is not the bound that refuses
    assert f"at least {fewest}" in few.reason
    assert enough.holds
    assert enough.hyperparameter_status is None


def test_a_space_of_few_cells_can_be_certified():
    cells = Cells(((0.0, 0.3, 0.6, 1.0),))
    points = Domain(((0.0, 1.0),), cells=cells).all_points()
    X = points.repeat(4, 1)
    model = fit_model(X, bowl(X), torch.full((12, 1), 1e-6).double())
    box = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for level in ("joint", "marginal"):
        certificate = certify(
            model,
            points,
            box,
            delta=0.1,
            epsilon=0.05,
            level=level,
            seed=0,
            cells=cells,
        )
        assert certificate.holds, certificate.reason


def test_a_refused_check_reports_its_estimate_and_any_other_its_bound():
    def reported(estimate: float, bound: float) -> float:
        failure = MarginalFailure(estimate, 20, 20.0, bound, 9, 0, "ok")
        return _reported(failure, epsilon=0.05, alpha=0.005)

    # Twenty draws whose mean is .2 bound it by .7.
    assert reported(0.2, 0.7) == 0.2
    # Not known to be above epsilon, nor to be below.
    assert reported(0.03, 0.08) == pytest.approx(0.085)
    assert reported(0.01, 0.04) == pytest.approx(0.045)
    assert reported(0.04, 1.0) == 1.0


@pytest.mark.parametrize(
    ("probability", "says"), [(0.04, "bounded by"), (0.2, "estimated at")]
)
def test_the_reason_of_a_refusal_claims_no_bound(probability, says):
    X = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
    model = fit_model(X, -((X - 0.4) ** 2), torch.full_like(X, 1e-6))
    box = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    certificate = certify(model, X, box, delta=0.1, epsilon=0.05, seed=0)
    changed = dataclasses.replace(certificate, failure_probability=probability)
    assert f"is {says} {probability}" in reason_of(changed)
