"""The search space as a set of points, against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ax_pac import Domain, PACAcquisition, certify, find_challenger, fit_model
from ax_pac.cells import Cells

# A float, an integer from 1 to 4, a choice of three.
BOUNDS = ((0.0, 2.0), (1.0, 4.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
MIXED = Domain(BOUNDS, ((), (1.0, 2.0, 3.0, 4.0)), groups=((2, 3, 4),))
TRIANGLE = Domain(((0.0, 1.0), (0.0, 1.0)), constraints=(((1.0, 1.0), 0.8),))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_points(domain: Domain, number: int = 2000, seed: int = 0) -> torch.Tensor:
    """Space-filling points of the box, and some far outside."""
    points = torch.rand(number, domain.dim, generator=seeded(seed)).double()
    return domain.box[0] + (1.6 * points - 0.3) * (domain.box[1] - domain.box[0])


def test_the_nearest_point_has_the_nearest_value_and_the_likeliest_choice():
    points = torch.tensor([[0.3, 2.4, 0.2, 0.9, 0.5], [3.0, 9.0, 0.6, 0.1, 0.1]])
    nearest = MIXED.nearest(points.double())
    assert nearest.tolist() == [
        [pytest.approx(0.3), 2.0, 0.0, 1.0, 0.0],
        [2.0, 4.0, 1.0, 0.0, 0.0],
    ]
    assert MIXED.contains(nearest).all()
    assert not MIXED.contains(points.double()).any()
    assert MIXED.discrete == (1, 2, 3, 4)
    assert MIXED.number == math.inf


def test_onto_one_constraint_points_are_projected_at_a_right_angle():
    points = random_points(TRIANGLE).clamp(0.3, 0.9)  # whose projections are in the box
    nearest = TRIANGLE.nearest(points)
    excess = (points.sum(-1, keepdim=True) - 0.8).clamp_min(0.0)
    # To the margin by which points keep inside.
    torch.testing.assert_close(nearest, points - excess / 2, atol=1e-8, rtol=0.0)
    assert bool((nearest.sum(-1) <= 0.8).all())  # as Ax checks it, without a tolerance


CONSTRAINED = {
    "triangle": TRIANGLE,
    "order": Domain(((0.0, 1.0),) * 2, constraints=(((1.0, -1.0), 0.0),)),
    "a simplex of six": Domain(((0.0, 1.0),) * 6, constraints=(((1.0,) * 6, 1.0),)),
    "a thin strip": Domain(
        ((0.0, 1.0), (-5.0, 5.0)),
        constraints=(((10.0, 1.0), 3.0), ((-10.0, -1.0), -2.99)),
    ),
    "beside a choice": Domain(
        ((0.0, 1.0),) * 4, groups=((2, 3),), constraints=(((1.0, 1.0, 0, 0), 0.8),)
    ),
    "an integer and a float": Domain(
        ((0.0, 5.0), (0.0, 5.0)),
        (tuple(map(float, range(6))),),
        constraints=(((1.0, 2.0), 6.0),),
    ),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_points_are_moved_into_the_domain_inside_and_onto_its_faces(name):
    domain = CONSTRAINED[name]
    points = random_points(domain)
    for moved in (domain.nearest(points), domain.spread(points)):
        inside = domain.contains(moved)
        # An integer may be rounded to where no value of the float is left.
        assert inside.double().mean() > 0.95
        assert bool((domain.excess(moved[inside]) <= 0.0).all())
    if name == "a thin strip":
        return
    slack = -domain.excess(domain.spread(points)).amax(-1)
    assert (slack > 1e-3).double().mean() > 0.2
    assert (slack < 1e-3).double().mean() > 0.1
    points = domain.nearest(points)
    points = points[domain.contains(points)]
    torch.testing.assert_close(domain.nearest(points), points, atol=1e-8, rtol=0.0)


def test_points_of_a_finite_domain_are_those_that_keep_the_constraints():
    values = tuple(map(float, range(7)))
    domain = Domain(
        ((0.0, 6.0), (0.0, 6.0), (0.0, 1.0), (0.0, 1.0)),
        (values, values),
        groups=((2, 3),),
        constraints=(((1.0, 1.0, 0.0, 0.0), 6.0), ((1.0, -1.0, 0.0, 0.0), 0.0)),
    )
    expected = {
        (a, b, float(c), float(1 - c))
        for a, b, c in itertools.product(values, values, (0, 1))
        if a + b <= 6.0 and a <= b
    }
    assert set(map(tuple, domain.all_points().tolist())) == expected
    assert domain.number == len(expected)
    for point in domain.all_points()[:5]:
        around = domain.neighbours(point.unsqueeze(0))
        assert ((around - point).abs().sum(-1) <= 2.0).all()


def test_a_part_of_a_domain_has_the_values_that_are_held():
    part = MIXED.fixed_at({1: 3.0, 3: 1.0, 2: 0.0, 4: 0.0})
    nearest = part.nearest(random_points(MIXED))
    assert nearest[:, 1:].unique(dim=0).tolist() == [[3.0, 0.0, 1.0, 0.0]]
    nearest = TRIANGLE.fixed_at({0: 0.5}).nearest(torch.ones(1, 2).double())
    assert nearest.squeeze(0).tolist() == pytest.approx([0.5, 0.3], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"constraints": (((1.0, 1.0), -0.1),)}, "leave no point of the search space"),
        ({"constraints": (((1.0,), 0.8),)}, r"2 coordinates.*have \[2, 1\]"),
        ({"values": ((0.5, 0.5),)}, "values of a coordinate must increase"),
        ({"values": ((0.5, 1.5),)}, r"must increase from 0.0 to 1.0; got 2"),
        ({"cells": Cells(((0.0, 1.0),))}, "2 coordinates"),
    ],
)
def test_what_is_no_domain_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Domain(((0.0, 1.0), (0.0, 1.0)), **arguments)


def test_cells_beside_a_domain_and_other_points_are_refused():
    with pytest.raises(ValueError, match="cells beside a domain"):
        Domain.of(TRIANGLE, Cells(((0.0, 1.0), ())))
    X = torch.rand(6, 3).double()
    model = fit_model(X, X.sum(-1, keepdim=True), torch.full((6, 1), 1e-4).double())
    with pytest.raises(ValueError, match="domain has 2 coordinates, the points have 3"):
        certify(model, X, TRIANGLE, delta=0.1, epsilon=0.05)


def bowl_at_the_corner(X: torch.Tensor) -> torch.Tensor:
    """A function with its maximum outside every constraint; `N x d -> N x 1`."""
    return -(
        (X - X.new_tensor([0.6, 0.7, 0.1, 0.3, 0.9, 0.5])[: X.shape[-1]]) ** 2
    ).sum(-1, keepdim=True)


@pytest.mark.parametrize("name", ["triangle", "order", "beside a choice", "mixed"])
def test_no_point_of_the_domain_scores_higher_than_the_challenger(name):
    domain = MIXED if name == "mixed" else CONSTRAINED[name]
    for seed in range(3):
        X = domain.spread(random_points(domain, 12, seed))
        Y = bowl_at_the_corner(X) + 0.05 * torch.randn(12, 1, generator=seeded(seed))
        model = fit_model(X, Y, torch.full_like(Y, 0.0025), domain.box)
        score = PACAcquisition(model, X.unique(dim=0), 0.05)
        search = find_challenger(score, X, domain, seed=seed)
        assert domain.contains(search.points).all()
        many = domain.spread(random_points(domain, 60_000, seed + 9))
        many = many[domain.contains(many)]
        with torch.no_grad():
            best = float(score(many.unsqueeze(-2)).max())
        # Random points come close to a maximum, the search reaches it.
        assert search.score > best - 1e-4
        for level in ("joint", "marginal"):
            question = {"delta": 0.05, "epsilon": 0.3, "level": level, "seed": seed}
            certificate = certify(model, X.unique(dim=0), domain, **question)
            challenger = torch.tensor([certificate.challenger]).double()
            assert domain.contains(challenger).all()


def test_a_box_as_a_domain_is_searched_as_the_box():
    X = torch.rand(10, 2, generator=seeded()).double()
    Y = bowl_at_the_corner(X)
    model = fit_model(X, Y, torch.full_like(Y, 1e-3))
    box = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    question = {"delta": 0.05, "epsilon": 0.3, "seed": 4}
    one, two = (certify(model, X, b, **question) for b in (box, Domain.of(box)))
    assert one == two
