"""Soft clipping: what it leaves, what it compresses, and where it begins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ax_pac.surrogate.soft_clip import SoftClip, soft_clip

LOSSES = np.array([0.05, 0.1, 0.4, 1.0, 7.0, 90.0])
SEM = 0.1 * LOSSES
RATIOS = np.array([0.9, 0.3, 0.1, 0.08, 0.05, 0.02])
BOUNDS = {"best_known": 0.01, "limit": 0.0, "weight": -1.0, "times": 2.0}

# The best is the second: .3 + .1 and two standard errors of .01.
BEST = 0.42
ROOM = BEST - 0.01


def clip_of(**changes) -> SoftClip:
    clip = soft_clip(LOSSES, SEM, RATIOS, **(BOUNDS | changes))
    assert clip is not None
    return clip


def test_it_begins_beyond_what_a_better_point_can_have():
    """By hand, point by point: half of the room at least, and two standard errors."""
    clip = clip_of()
    assert clip.best == pytest.approx(BEST)
    assert clip.room == pytest.approx(ROOM)
    bounds = [max(2.0 * (BEST - r), 0.5 * ROOM) + 0.02 for r in RATIOS]
    expected = [
        loss if loss <= c else c * (1.0 + math.log(loss / c))
        for loss, c in zip(LOSSES, bounds, strict=True)
    ]
    np.testing.assert_allclose(clip(LOSSES, RATIOS), expected)
    assert expected[:3] == LOSSES[:3].tolist()


@given(
    ratio=st.floats(0.01, 2.0),
    loss=st.floats(0.0, 1e3),
    own=st.tuples(st.floats(0.01, 2.0), st.floats(0.0, 1e3)),
    times=st.floats(1.01, 5.0),
)
def test_an_incumbent_within_reach_is_beaten_by_the_same_points(
    ratio, loss, own, times
):
    clip = clip_of(times=times)
    known, unknown = np.array([ratio, own[0]]), np.array([loss, own[1]])
    (there, incumbent), (clipped, of_incumbent) = (
        known + part for part in (unknown, clip(unknown, known))
    )
    if incumbent <= clip.reach:
        assert of_incumbent == incumbent
        assert (there < incumbent - 0.02) == (clipped < of_incumbent - 0.02)
    else:  # it still counts as beyond
        assert of_incumbent > clip.reach - 1e-12


def test_to_maximise_with_a_ceiling_is_the_mirror_image():
    clip = clip_of()
    mirrored = soft_clip(
        5.0 - LOSSES, SEM, -RATIOS, best_known=-0.01, limit=5.0, weight=1.0, times=2.0
    )
    assert mirrored is not None
    assert mirrored.reach == pytest.approx(5.0 - clip.reach)
    np.testing.assert_allclose(
        mirrored(5.0 - LOSSES, -RATIOS), 5.0 - clip(LOSSES, RATIOS)
    )
    np.testing.assert_allclose(
        mirrored.slope(5.0 - LOSSES, -RATIOS), clip.slope(LOSSES, RATIOS)
    )


@given(
    times=st.floats(1.01, 5.0),
    known=st.floats(0.0, 1.0),
    losses=st.lists(st.floats(-1.0, 30.0), min_size=2, max_size=20),
)
def test_it_increases_is_smooth_and_can_be_undone(times, known, losses):
    clip = clip_of(times=times)
    losses, known = np.sort(np.array(losses)), np.full(len(losses), known)
    clipped, slope = clip(losses, known), clip.slope(losses, known)
    assert (np.diff(clipped) >= -1e-12).all()
    assert ((slope > 0.0) & (slope <= 1.0)).all()
    undone = clip.inverse(clipped, known)
    np.testing.assert_allclose(undone, losses, atol=1e-9)
    step = 1e-6
    central = (clip(losses + step, known) - clip(losses - step, known)) / (2.0 * step)
    np.testing.assert_allclose(central, slope, atol=1e-4)


@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3))
def test_it_follows_the_objectives_unit_and_a_constant(scale, shift):
    moved = soft_clip(
        scale * LOSSES,
        scale * SEM,
        scale * RATIOS + shift,
        best_known=scale * 0.01 + shift,
        limit=0.0,
        weight=-1.0,
        times=2.0,
    )
    assert moved is not None
    np.testing.assert_allclose(
        moved(scale * LOSSES, scale * RATIOS + shift),
        scale * clip_of()(LOSSES, RATIOS),
        rtol=1e-9 * (1.0 + abs(shift) / scale),
    )


def test_an_observation_that_noise_made_bad_does_not_become_a_sure_one():
    """A loss of .1 seen as 100 by a standard error of 50 stays within two of them."""
    clip = clip_of()
    seen, known, sem = np.array([100.0]), np.array([0.1]), np.array([50.0])
    truth = clip(np.array([0.1]), known)
    distance = clip(seen, known) - truth
    assert distance <= 2.0 * clip.sem(seen, sem, known)
    assert distance > 10.0 * sem * clip.slope(seen, known)
    # Where nothing is clipped nothing changes.
    assert clip.sem(truth, np.array([0.001]), known) == pytest.approx(0.001)


def test_what_is_undone_is_no_worse_than_what_was_observed():
    clip = clip_of()
    far = clip(np.array([1e9]), np.array([0.1]))
    assert clip.inverse(far, np.array([0.1])) == LOSSES.max()


def test_nothing_is_clipped_without_observations_or_room():
    nothing = np.array([math.nan])
    assert soft_clip(nothing, nothing, np.array([0.1]), **BOUNDS) is None
    # An exact observation at the lower end of everything: nothing can be better.
    exact = np.array([0.0, 3.0])
    known = np.array([0.01, 0.5])
    assert soft_clip(exact, 0.0 * exact, known, **BOUNDS) is None


def test_trials_without_a_value_are_left_out_of_where_it_begins():
    losses, ratios = np.append(LOSSES, math.nan), np.append(RATIOS, 0.1)
    clip = soft_clip(losses, np.append(SEM, 0.1), ratios, **BOUNDS)
    assert clip == clip_of()
    assert math.isnan(clip_of()(losses, ratios)[-1])
