"""Soft clipping: what it leaves, what it compresses, and where it begins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ax_pac.surrogate.soft_clip import SoftClip, reach_of, soft_clip

LOSSES = np.array([0.05, 0.1, 0.4, 1.0, 7.0, 90.0])
SEM = 0.1 * LOSSES
RATIOS = np.array([0.9, 0.3, 0.1, 0.08, 0.05, 0.02])
BOUNDS = {"best_known": 0.01, "limit": 0.0, "weight": -1.0, "times": 2.0}


def room() -> float:
    """Of the best network, .3 + .1 with two standard errors, less .01."""
    return 0.4 + 2.0 * 0.01 - 0.01


def test_it_begins_at_twice_what_a_better_point_can_have():
    clip = soft_clip(LOSSES, SEM, RATIOS, **BOUNDS)
    assert clip is not None
    assert clip.bound == pytest.approx(2.0 * room())
    assert clip.width == pytest.approx(2.0 * room())
    assert reach_of(clip, 0.01) == pytest.approx(0.01 + 2.0 * room())
    # By hand: bound (1 + log(loss / bound)) beyond the bound.
    bound = 2.0 * room()
    expected = [x if x <= bound else bound * (1 + math.log(x / bound)) for x in LOSSES]
    np.testing.assert_allclose(clip(LOSSES), expected)


def test_to_maximise_with_a_ceiling_is_the_mirror_image():
    clip = soft_clip(LOSSES, SEM, RATIOS, **BOUNDS)
    mirrored = soft_clip(
        5.0 - LOSSES, SEM, -RATIOS, best_known=-0.01, limit=5.0, weight=1.0, times=2.0
    )
    assert clip is not None
    assert mirrored is not None
    np.testing.assert_allclose(mirrored(5.0 - LOSSES), 5.0 - clip(LOSSES))
    np.testing.assert_allclose(mirrored.slope(5.0 - LOSSES), clip.slope(LOSSES))


@given(
    bound=st.floats(-1e3, 1e3),
    width=st.floats(1e-3, 1e3),
    weight=st.sampled_from([-1.0, 1.0]),
    share=st.lists(st.floats(-50.0, 50.0), min_size=2, max_size=20),
)
def test_it_increases_is_smooth_and_can_be_undone(bound, width, weight, share):
    clip = SoftClip(bound, width, weight)
    outcomes = bound + width * np.sort(np.array(share))
    clipped, slope = clip(outcomes), clip.slope(outcomes)
    scale = 1e-9 * (abs(bound) + width)
    kept = weight * (outcomes - bound) >= 0.0
    assert (clipped[kept] == outcomes[kept]).all()
    assert (slope[kept] == 1.0).all()
    assert (np.diff(clipped) >= -scale).all()
    assert ((slope > 0.0) & (slope <= 1.0)).all()
    np.testing.assert_allclose(clip.inverse(clipped), outcomes, atol=100 * scale)
    step = 1e-5 * width
    central = (clip(outcomes + step) - clip(outcomes - step)) / (2.0 * step)
    np.testing.assert_allclose(central, slope, atol=1e-4 + 1e-11 * abs(bound) / step)


@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3))
def test_it_follows_the_objectives_unit_and_a_constant(scale, shift):
    plain = soft_clip(LOSSES, SEM, RATIOS, **BOUNDS)
    moved = soft_clip(
        scale * LOSSES,
        scale * SEM,
        scale * RATIOS + shift,
        best_known=scale * 0.01 + shift,
        limit=0.0,
        weight=-1.0,
        times=2.0,
    )
    assert plain is not None
    assert moved is not None
    np.testing.assert_allclose(
        moved(scale * LOSSES),
        scale * plain(LOSSES),
        rtol=1e-9 * (1.0 + abs(shift) / scale),
    )


def test_nothing_is_clipped_without_observations_or_room():
    nothing = np.array([math.nan])
    assert soft_clip(nothing, nothing, np.array([0.1]), **BOUNDS) is None
    # An exact observation at the lower end of everything: nothing can be better.
    exact = np.array([0.0, 3.0])
    known = np.array([0.01, 0.5])
    assert soft_clip(exact, 0.0 * exact, known, **BOUNDS) is None


def test_trials_without_a_value_are_left_out_of_where_it_begins():
    with_missing = np.append(LOSSES, math.nan)
    clip = soft_clip(
        with_missing, np.append(SEM, 0.1), np.append(RATIOS, 0.1), **BOUNDS
    )
    assert clip == soft_clip(LOSSES, SEM, RATIOS, **BOUNDS)
    assert clip is not None
    assert math.isnan(clip(with_missing)[-1])
