from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import polygamma

from ax_pac import (
    certify_experiment,
    pac_generation_strategy,
    smoothed_sems,
)
from ax_pac.adapter.generator import generator_kwargs
from ax_pac.adapter.transforms import SmoothedNoise
from ax_pac.experiment.observations import observed_data
from ax_pac.experiment.records import certificate_records
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.surrogate.noise import MIN_TRIALS
from tests.helpers.ax_loops import experiment_of, new_client, run


def search(
    seed: int, *, n: int = 30, d: int = 2, m: int = 10, constant: bool = False
) -> tuple[np.ndarray, ...]:
    """Trials whose noise is proportional to the mean (or constant): X, mean, SEMs."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, d))
    size = np.exp(2.0 * X[:, 0] - X[:, -1])
    spread = np.ones(n) if constant else size
    samples = size[:, None] + spread[:, None] * rng.standard_normal((n, m))
    sem = samples.std(1, ddof=1) / m**0.5
    return X, samples.mean(1), sem, spread / m**0.5


@pytest.mark.parametrize("constant", [False, True])
def test_smoothing_removes_most_of_the_sampling_error(constant):
    raw, smooth = [], []
    for seed in range(40):
        X, mean, sem, truth = search(seed, constant=constant)
        raw.append(np.log(sem / truth))
        smooth.append(np.log(smoothed_sems(X, mean, sem, num_samples=10) / truth))
    raw_scatter, smooth_scatter = np.std(raw), np.std(smooth)
    # log s of ten normal values has the deviation sqrt(trigamma(9 / 2)) / 2 = .25.
    assert raw_scatter == pytest.approx(math.sqrt(polygamma(1, 4.5)) / 2, rel=0.05)
    # Thirty trials and two to four coefficients leave about sqrt(3 / 30) = .3 of it.
    assert smooth_scatter < 0.5 * raw_scatter
    # E[log s] is -.057; the smearing takes most of that bias out.
    assert abs(np.mean(smooth)) < 0.035


def test_intervals_cover_what_they_claim_where_raw_ones_do_not():
    covered = {"raw": 0, "smoothed": 0, "true": 0}
    num = 0
    for seed in range(60):
        X, mean, sem, true_sem = search(seed, m=5)
        truth = np.exp(2.0 * X[:, 0] - X[:, -1])
        sems = {
            "raw": sem,
            "smoothed": smoothed_sems(X, mean, sem, num_samples=5),
            "true": true_sem,
        }
        for name, value in sems.items():
            covered[name] += int((np.abs(mean - truth) <= 1.96 * value).sum())
        num += len(sem)
    # 1,800 intervals: binomial deviation .005, three of them.
    assert covered["true"] / num == pytest.approx(0.95, abs=0.016)
    # Student's t with 4 degrees of freedom is within 1.96 with probability .878.
    assert covered["raw"] / num == pytest.approx(0.878, abs=0.024)
    assert covered["smoothed"] / num > 0.92


def test_most_of_the_luck_drops_out_of_the_trust_a_trial_gets():
    """With skewed samples a low mean comes with a low SEM; smoothing cuts the tie."""
    luck, raw, smooth = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        X = rng.random((30, 2))
        truth = np.exp(X.sum(1))
        samples = truth[:, None] * rng.gamma(2.0, 0.5, (30, 50))
        mean = samples.mean(1)
        sem = samples.std(1, ddof=1) / 50**0.5
        luck.append(np.log(mean / truth))
        raw.append(np.log(sem / truth))
        smooth.append(np.log(smoothed_sems(X, mean, sem, num_samples=50) / truth))

    def slope(y: list[np.ndarray]) -> float:
        return np.polyfit(np.concatenate(luck), np.concatenate(y), 1)[0]

    # For gamma values cov(mean, variance) / var(mean) is the third cumulant over the
    # second; in units of mean and variance that is 2, and half of it is log s's slope.
    assert slope(raw) == pytest.approx(1.0, abs=0.25)
    assert slope(smooth) < 0.5 * slope(raw)


def test_variances_that_truly_differ_by_place_are_followed():
    """Noise that the mean does not explain, a hundred times larger on one side."""
    rng = np.random.default_rng(1)
    X = rng.random((60, 2))
    truth = 0.1 * np.exp(4.6 * X[:, 1])
    sem = truth * np.sqrt(rng.chisquare(49, 60) / 49)
    smooth = smoothed_sems(X, rng.standard_normal(60), sem)
    assert np.abs(np.log(smooth / truth)).max() < 0.4
    assert np.log(smooth / truth).std() < np.log(sem / truth).std()


def test_errors_that_the_model_cannot_explain_are_left_nearly_as_they_came():
    """A cliff: the smoother would be wrong by a factor of a thousand."""
    rng = np.random.default_rng(2)
    X = rng.random((30, 3))
    truth = np.where(X.max(1) > 0.95, 1e-3, 1.0)
    assert 1 <= (truth < 1).sum() <= 6
    sem = truth * np.sqrt(rng.chisquare(49, 30) / 49)
    smooth = smoothed_sems(X, rng.standard_normal(30), sem, num_samples=50)
    # Two deviations of log s, sqrt(2.5 trigamma(24.5)) / 2 each, and the final scaling.
    limit = 1.5 * 2 * math.sqrt(2.5 * polygamma(1, 24.5)) / 2
    assert np.abs(np.log(smooth / sem)).max() < limit


def test_more_samples_leave_less_to_smooth():
    X, mean, sem, _ = search(4)
    moves = [
        np.abs(np.log(smoothed_sems(X, mean, sem, num_samples=m) / sem)).max()
        for m in (10, 100, 1000, 100_000)
    ]
    assert all(a > b for a, b in itertools.pairwise(moves))
    assert moves[-1] < 0.01
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        smoothed_sems(X, mean, sem, num_samples=1)


def test_few_trials_are_pooled():
    sem = np.array([1.0, 2.0, 0.0, 4.0])
    X = np.arange(4.0)[:, None]
    pooled = smoothed_sems(X, np.ones(4), sem)
    np.testing.assert_allclose(pooled, math.sqrt((1 + 4 + 16) / 3), rtol=1e-12)
    assert (sem > 0).sum() < MIN_TRIALS


def test_exact_zeros_get_what_their_neighbours_say():
    X, mean, sem, truth = search(3)
    sem = sem.copy()
    sem[[2, 7]] = 0.0
    smooth = smoothed_sems(X, mean, sem)
    assert (smooth > 0).all()
    assert np.abs(np.log(smooth[[2, 7]] / truth[[2, 7]])).max() < 0.5


def test_an_objective_known_exactly_stays_so():
    sem = np.zeros(8)
    X = np.random.default_rng(0).random((8, 2))
    assert np.array_equal(smoothed_sems(X, X[:, 0], sem), sem)


def test_equal_errors_are_left_as_they_are():
    X, mean, *_ = search(0)
    np.testing.assert_allclose(
        smoothed_sems(X, mean, np.full(30, 0.02)), 0.02, rtol=1e-12
    )


def test_smoothed_errors_stay_in_the_range_of_the_raw_ones():
    for seed in range(10):
        X, mean, sem, _ = search(seed, n=7, d=5)
        smooth = smoothed_sems(X, mean, sem)
        assert smooth.min() >= sem.min()
        assert smooth.max() <= sem.max()


@pytest.mark.parametrize("unit", [1e-150, 1e-8, 1e8, 1e150])
def test_units_do_not_matter(unit):
    X, mean, sem, _ = search(5)
    expected = smoothed_sems(X, mean, sem)
    np.testing.assert_allclose(
        smoothed_sems(1e3 * X - 7, unit * mean, unit * sem), unit * expected, rtol=1e-8
    )
    np.testing.assert_allclose(smoothed_sems(X, -mean, sem), expected, rtol=1e-10)


def test_repeated_trials_and_a_single_place_are_no_trouble():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.random((4, 2)), 5, axis=0)
    sem = 0.1 * np.sqrt(rng.chisquare(9, 20) / 9)
    assert np.isfinite(smoothed_sems(X, X[:, 0] - 0.5, sem)).all()
    # Everything at one place, one mean: nothing to regress on but the pool.
    one = smoothed_sems(np.zeros((20, 2)), np.ones(20), sem, num_samples=10)
    np.testing.assert_allclose(one, math.sqrt((sem**2).mean()), rtol=1e-9)


@pytest.mark.parametrize(
    ("X", "mean", "sem", "message"),
    [
        (np.zeros(3), np.zeros(3), np.ones(3), "expected X of shape"),
        (np.zeros((3, 1)), np.zeros(2), np.ones(3), "expected X of shape"),
        (np.zeros((2, 1)), np.array([0.0, np.nan]), np.ones(2), "must be finite"),
        (np.zeros((2, 1)), np.zeros(2), np.array([1.0, -1.0]), "at least 0"),
        (np.zeros((2, 1)), np.zeros(2), np.array([1.0, np.inf]), "at least 0"),
    ],
)
def test_what_is_no_observation_is_refused(X, mean, sem, message):
    with pytest.raises(ValueError, match=message):
        smoothed_sems(X, mean, sem)


def noisy_client(noise: str):
    """A finished search whose SEM differs from trial to trial by luck."""
    client = new_client(noise=noise, num_samples=10, delta=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(8):
        for index, parameters in client.get_next_trials(max_trials=1).items():
            value = sum((v - 0.3) ** 2 for v in parameters.values())
            sem = 0.02 * math.sqrt(rng.chisquare(9) / 9)
            client.complete_trial(index, {"loss": (value, sem)})
    return client


def model_of(client) -> torch.nn.Module:
    node = client._generation_strategy.current_node
    node._fit(experiment=experiment_of(client))
    return node.generator_spec.fitted_adapter.generator.surrogate.model


@pytest.mark.parametrize("noise", ["smoothed", "raw"])
def test_the_model_sees_the_noise_asked_for_and_ax_keeps_the_raw_one(noise):
    client = noisy_client(noise)
    data = observed_data(experiment_of(client))
    rng = np.random.default_rng(0)
    reported = [0.02 * math.sqrt(rng.chisquare(9) / 9) for _ in range(8)]
    assert data["sem"].tolist() == reported
    model = model_of(client)
    scale = model.outcome_transform.stdvs.item()
    believed = scale * model.likelihood.noise.sqrt().detach().numpy()
    experiment = experiment_of(client)
    X = np.array([list(t.arm.parameters.values()) for t in experiment.trials.values()])
    expected = np.array(reported)
    if noise == "smoothed":
        expected = smoothed_sems(X, data["mean"].to_numpy(), expected, num_samples=10)
        assert np.abs(expected / reported - 1).max() > 0.05
    np.testing.assert_allclose(believed, expected, rtol=1e-6)


def test_certificates_on_other_noise_are_other_certificates():
    client = noisy_client("smoothed")
    experiment = experiment_of(client)
    before = len(certificate_records(experiment))
    arguments = {"delta": 0.1, "epsilon": 0.05}
    certify_experiment(experiment, **arguments)
    smoothed = len(certificate_records(experiment))
    certify_experiment(experiment, noise="raw", **arguments)
    certify_experiment(experiment, noise="raw", **arguments)
    records = certificate_records(experiment)
    assert len(records) == smoothed + 1
    assert smoothed >= before
    assert records[-1]["settings"]["noise"] == "raw"
    old = {k: v for k, v in records[-1]["settings"].items() if k != "noise"}
    assert CertificateSettings(**records[-1]["settings"]).asks_the_same_as(old)


def test_the_option_survives_json(tmp_path):
    from ax.api.client import Client

    client = noisy_client("smoothed")
    path = tmp_path / "client.json"
    client.save_to_json_file(str(path))
    loaded = Client.load_from_json_file(str(path))
    torch.testing.assert_close(
        model_of(loaded).likelihood.noise, model_of(client).likelihood.noise
    )
    ((again,), (once,)) = run(loaded, max_trials=1), run(client, max_trials=1)
    # Refitted from where the fit before it ended: equal to the optimiser's tolerance.
    assert again == pytest.approx(once, abs=1e-5)


def test_integer_and_choice_parameters_are_smoothed_too():
    from ax.api.client import Client
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    client = Client()
    client.configure_experiment(
        parameters=[
            RangeParameterConfig(name="n", parameter_type="int", bounds=(1, 9)),
            ChoiceParameterConfig(
                name="kind",
                parameter_type="str",
                values=["a", "b", "c"],
                is_ordered=False,
            ),
        ]
    )
    client.configure_optimization(objective="-loss")
    rng = np.random.default_rng(0)
    for i in range(8):
        parameters = {"n": int(rng.integers(1, 10)), "kind": "abc"[i % 3]}
        index = client.attach_trial(parameters)
        sem = 0.1 * math.sqrt(rng.chisquare(9) / 9)
        client.complete_trial(index, {"loss": (float(parameters["n"]), sem)})
    certificate = certify_experiment(experiment_of(client), delta=0.5, epsilon=0.05)
    assert certificate.num_observations == 8


def test_unknown_noise_is_refused_and_raw_uses_axs_transforms_alone():
    with pytest.raises(ValueError, match="noise must be one of"):
        pac_generation_strategy(delta=0.1, epsilon=0.05, noise="guessed")
    raw = generator_kwargs(CertificateSettings(delta=0.1, epsilon=0.05, noise="raw"))
    smoothed = generator_kwargs(
        CertificateSettings(delta=0.1, epsilon=0.05, noise="smoothed")
    )
    without = [t for t in smoothed["transforms"] if t is not SmoothedNoise]
    assert without == raw["transforms"]
