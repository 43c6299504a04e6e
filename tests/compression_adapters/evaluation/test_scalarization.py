"""Eq. 2 and Eq. 3, by hand."""

import math

import pytest

from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.scalarization import scalarize, scalarize_rate


def test_ratio_objective_is_equation_three():
    assert scalarize(MeanSEM(40.0, 4.0), 0.0769, 0.001) == pytest.approx(
        (0.1169, 0.004)
    )


def test_rate_objective_is_equation_two():
    assert scalarize_rate(MeanSEM(-40.0, 4.0), 13.0, 0.1) == pytest.approx((9.0, 0.4))


def test_an_exactly_known_loss_gives_an_exactly_known_objective():
    assert scalarize(MeanSEM(1.0, 0.0), 0.5, 2.0) == MeanSEM(2.5, 0.0)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("function", [scalarize, scalarize_rate])
def test_a_gamma_that_weighs_nothing_is_refused(function, gamma):
    with pytest.raises(ValueError, match=f"positive and finite; got {gamma}"):
        function(MeanSEM(1.0, 0.1), 0.5, gamma)
