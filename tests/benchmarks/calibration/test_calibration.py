from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.calibration import calibration
from benchmarks.calibration.calibration import render_calibration
from benchmarks.networks import fc3


@pytest.fixture(scope="module")
def trace():
    """One short run, on a smaller domain and budget than the benchmark's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(calibration._DOMAIN_POINTS, 2, 256)
        patch.setitem(calibration._MAX_EVALUATIONS, 2, 40)
        calibration._domain.cache_clear()
        calibration._prior_root.cache_clear()
        yield calibration.run(0, calibration.settings(2, noise=0.05))
    calibration._domain.cache_clear()
    calibration._prior_root.cache_clear()


def test_stricter_rules_stop_later_and_regrets_are_not_negative(trace):
    stops = trace.result["stops"]
    for level in ("pairwise", "joint"):
        loose, strict = stops[f"{level} 0.05"], stops[f"{level} 0.005"]
        assert loose["evaluations"] <= strict["evaluations"]
    for epsilon in calibration.EPSILONS:
        pairwise, joint = stops[f"pairwise {epsilon}"], stops[f"joint {epsilon}"]
        assert pairwise["evaluations"] <= joint["evaluations"]
    assert all(stop["regret"] >= 0 for stop in stops.values())


def test_exact_probability_of_a_joint_stop_is_what_was_promised(trace):
    for epsilon in calibration.EPSILONS:
        stop = trace.result["stops"][f"joint {epsilon}"]
        assert stop["posterior_failure"] <= epsilon


def test_the_prior_has_unit_variance_and_the_stated_correlation():
    domain = calibration._domain(4)[:50]
    K = calibration._kernel(4)(domain).to_dense()
    torch.testing.assert_close(K.diagonal(), torch.ones(50).double())
    difference = (domain[0] - domain[1]) / torch.tensor(calibration._LENGTHSCALES[4])
    a = (5 * difference.square().sum()).sqrt()
    expected = (1 + a + a**2 / 3) * (-a).exp()
    assert K[0, 1].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_page_is_rendered_with_every_rule(trace):
    page = render_calibration([trace, trace])
    for level in ("pairwise", "joint"):
        for epsilon in calibration.EPSILONS:
            assert f"| {level} {epsilon} |" in page


def test_list_prints_every_benchmark_with_its_cost():
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0
    for name in BENCHMARKS:
        assert name in result.output
    assert "core-minutes" in result.output


def test_plans_can_be_narrowed_and_refuse_unknown_settings():
    assert {job[0]["d"] for job in calibration.plan(2, d=4)} == {4}
    assert len(fc3.plan(3)) == 15
    assert all(job[0]["gamma"] == 0.01 for job in fc3.plan(1, gamma=0.01))
    for benchmark in (calibration, fc3):
        with pytest.raises(ValueError, match="unknown settings"):
            benchmark.plan(1, colour="red")
    result = CliRunner().invoke(main, ["run", "fc3", "--set", "colour=red"])
    assert result.exit_code == 2
    assert "unknown settings" in result.output
