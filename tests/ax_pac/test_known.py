"""The known part by itself: values, JSON, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ax_pac import CertificateSettings, KnownFunction, KnownPart, certify_experiment
from ax_pac.known import AdditiveFunction, Table

CELLS = {"a": [0.0, 0.5, 1.0], "b": [0.0, 0.2, 0.6, 1.0]}


def test_a_table_is_numpys_interpolation():
    rng = np.random.default_rng(0)
    at, values = np.sort(rng.random(7)), rng.standard_normal(7)
    table = Table(tuple(values), tuple(at))
    x = rng.uniform(-0.2, 1.2, 50)
    assert [table(v) for v in x] == pytest.approx(np.interp(x, at, values), abs=1e-12)
    # At its points it is exact: nothing is interpolated.
    assert [table(v) for v in at] == list(values)


def test_a_sum_of_slopes_and_tables_is_the_sum_and_has_its_gradient():
    rng = np.random.default_rng(1)
    tables = {
        1: (np.sort(rng.random(5)), rng.standard_normal(5)),
        3: ([0.4], [2.0]),
        2: (np.sort(rng.random(9)), rng.standard_normal(9)),
    }
    slopes = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    function = AdditiveFunction(slopes, tables, constant=0.5)
    X = rng.uniform(-0.3, 1.3, (40, 4))
    expected = 0.5 + 2.0 * X[:, 0]
    for j, (at, values) in tables.items():
        expected = expected + np.interp(X[:, j], at, values)
    points = torch.from_numpy(X)
    assert torch.allclose(function(points), torch.from_numpy(expected), atol=1e-12)
    assert function(points.reshape(5, 8, 4)).shape == (5, 8)
    assert torch.autograd.gradcheck(function, points[:5].clone().requires_grad_())
    assert function.bends[3] == (0.4,)


def test_coordinates_that_are_logarithms_are_taken_back():
    function = AdditiveFunction(
        torch.tensor([2.0, 0.0]).double(), {1: ([1.0, 100.0], [0.0, 99.0])}, 0.0, [0, 1]
    )
    points = torch.tensor([[1.0, 1.0], [-1.0, 2.0]]).double()
    assert function(points).tolist() == pytest.approx([29.0, 99.2])
    assert function.bends[1] == pytest.approx((0.0, 2.0))
    assert torch.autograd.gradcheck(function, points.add(0.01).requires_grad_())


def test_a_known_part_is_the_sum_of_its_terms():
    known = KnownPart(
        {"a": [1.0, 2.0], "n": 0.5, "colour": (["red", "blue"], [0.0, 3.0])},
        constant=10.0,
    ).on(CertificateSettings(delta=1, epsilon=0.1, cells=CELLS).cells)
    assert known({"a": 0.25, "n": 4, "colour": "blue"}) == 16.0
    assert known({"a": 0.75, "n": 0, "colour": "red"}) == 12.0


@pytest.mark.parametrize(
    "known",
    [
        KnownPart({"a": [1.0, 2.0], "b": 0.5}, floor=0.0),
        KnownPart({"a": ([0.0, 1.0], [0.0, 3.0])}, ceiling=1.0, weight=0.2),
        KnownPart({}, constant=1.0),
    ],
)
def test_a_known_part_survives_json_within_the_settings(known):
    settings = CertificateSettings(delta=0.1, epsilon=0.05, cells=CELLS, known=known)
    fields = json.loads(json.dumps(settings.to_dict()))
    assert CertificateSettings.from_dict(fields) == settings
    assert hash(CertificateSettings.from_dict(fields)) == hash(settings)
    record = json.loads(json.dumps(settings.to_record()))
    assert settings.asks_the_same_as(record)
    other = CertificateSettings(
        delta=0.1, epsilon=0.05, cells=CELLS, known=KnownPart({"a": 1.0})
    )
    assert not other.asks_the_same_as(record)
    without = CertificateSettings(delta=0.1, epsilon=0.05, cells=CELLS)
    assert not without.asks_the_same_as(record)
    assert without.asks_the_same_as(without.to_record())
    assert "known" not in without.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": {"a": [1.0, float("nan")]}}, "known part of 'a'.*finite"),
        ({"terms": {"a": float("inf")}}, "known part of 'a'.*inf"),
        ({"terms": {"a": ([0.0, 0.0], [1.0, 2.0])}}, "strictly increasing"),
        ({"terms": {"a": ([0.0, 1.0], [1.0])}}, "one value per point"),
        ({"terms": {"a": []}}, "one at least"),
        ({"terms": {}, "floor": float("nan")}, "floor of the known part"),
        ({"terms": {}, "floor": 1.0, "ceiling": 0.0}, "floor 1.0 is above 0.0"),
        ({"terms": {}, "weight": 0.0}, "weight must be positive"),
    ],
)
def test_what_is_no_known_part_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        KnownPart(**arguments)


def test_tables_that_do_not_fit_their_cells_are_refused():
    question = {"delta": 0.1, "epsilon": 0.05, "cells": CELLS}
    with pytest.raises(ValueError, match="'b' has 2 values, the parameter 3 cells"):
        CertificateSettings(**question, known=KnownPart({"b": [1.0, 2.0]}))
    with pytest.raises(ValueError, match="'c' has 1 values, the parameter 0 cells"):
        certify_experiment(None, **question, known=KnownPart({"c": [1.0]}))
    with pytest.raises(ValueError, match=r"does not know: tomorrow"):
        CertificateSettings(**question, known={"terms": {}, "tomorrow": 1})


def test_the_bound_that_counts_is_that_of_the_better_side():
    known = KnownFunction(lambda X: X.sum(-1), floor=-1.0, ceiling=3.0)
    assert known.limit(1.0) == 3.0
    assert known.limit(-2.0) == 2.0
    assert KnownFunction.of(lambda X: X.sum(-1)).limit(-1.0) is None


def test_what_was_stored_before_there_was_a_clip_stays_as_it_was():
    """Its model, what it stores, and with it the settings that its records are for."""
    old = {"terms": {"a": 1.0}, "constant": 0.0, "floor": 0.0, "ceiling": None}
    old |= {"weight": None}
    known = KnownPart.of(old)
    assert known.clip is None
    assert known.to_dict() == old
    clipped = KnownPart({"a": 1.0}, floor=0.0)
    assert KnownPart.of(clipped.to_dict()) == clipped
    assert clipped.clip == 1.5
    # Without a bound there is nothing to clip.
    assert KnownPart({"a": 1.0}).clip is None


@pytest.mark.parametrize("clip", [1.0, 0.5, -2.0])
def test_a_clip_that_would_change_better_points_is_refused(clip):
    with pytest.raises(ValueError, match="clip must be above 1"):
        KnownPart({"a": 1.0}, floor=0.0, clip=clip)
