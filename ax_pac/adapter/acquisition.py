"""The one Ax `Acquisition` subclass: certificate, starting points, what to evaluate."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
import torch
from ax.generators.torch.botorch_modular.acquisition import Acquisition
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.optimize import (
    find_challenger,
    more_informative,
    relative_lengthscales,
)
from ax_pac.adapter.fitted import state_of
from ax_pac.adapter.transforms import with_unevaluated
from ax_pac.ax_internals import objective_model, objective_transform
from ax_pac.cells import Cells
from ax_pac.certificate.levels import certify
from ax_pac.certificate.record import PACCertificate
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.surrogate.fit import fewest_distinct_points

# Points this close, in length scales of at most the box, are the same to the model
# (correlation 0.998); one of them is enough while it is under evaluation.
_SAME_DISTANCE = 0.05


class CertifyingAcquisition(Acquisition):
    """Ax's `Acquisition` with a certificate, and a search that does not miss it.

    Ax maximises an acquisition function from space-filling points. They miss the thin
    shell around the incumbent in which the challenger lies, and Ax accepts no other
    starting points, so this class uses `find_challenger`. It proposes the challenger
    that was found for the certificate, or the incumbent where that is more informative
    about their difference (`sampling="leader_challenger"`, see `more_informative`). The
    score reported with a proposal is always the challenger's, so that of a repeated
    incumbent does not look like a certificate.

    With `cells` its challengers are cells other than the incumbent's, and the transform
    `CanonicalPoints` makes the centre of a cell its only point.

    Its options (`acquisition_options`) are the fields of `CertificateSettings`.

    The certificate is about the box that contains the search space: parameter
    constraints, integers and choices only remove points from it, so it stays valid
    there. Proposals in such spaces are left to Ax's own optimisers.

    Checked on Ax 1.3.1, whose contract for subclasses is not guaranteed.
    """

    # Set by Ax's constructor; declared here because Ax publishes no types.
    botorch_acqf_classes_with_options: list[tuple[type[Any], dict[str, Any]]]
    X_pending: Tensor | None

    @functools.cached_property
    def settings(self) -> CertificateSettings:
        """The options of the certificate."""
        return CertificateSettings.from_dict(self.options)

    @property
    def certificate(self) -> PACCertificate:
        """The certificate for the data of this model, without pending points."""
        settings = self.settings
        model = objective_model(self)
        computed = state_of(model).certificates
        if settings not in computed:
            computed[settings] = certify(
                model,
                self._observed,
                self._bounds,
                delta=settings.delta,
                epsilon=settings.epsilon,
                level=settings.level,
                relative=settings.relative,
                posterior_transform=objective_transform(self, PACAcquisition),
                seed=self._seed(0),
                cells=self._cells,
            )
        return computed[settings]

    def optimize(
        self,
        n: int,
        search_space_digest: Any,
        inequality_constraints: list[tuple[Tensor, Tensor, float]] | None = None,
        equality_constraints: list[tuple[Tensor, Tensor, float]] | None = None,
        fixed_features: dict[int, float] | None = None,
        rounding_func: Any = None,
        optimizer_options: dict[str, Any] | None = None,
        candidate_set: Tensor | None = None,
        sampling_strategy: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Propose `n` points: challengers, or incumbents to compare them with.

        Args:
            n: Number of points. The second and later ones are conditioned on those
                before them.
            search_space_digest: Ax's description of the search space.
            inequality_constraints: As in Ax; if any, Ax's optimiser is used.
            equality_constraints: As in Ax; if any, Ax's optimiser is used.
            fixed_features: As in Ax; if any, Ax's optimiser is used.
            rounding_func: As in Ax.
            optimizer_options: As in Ax; of no effect on a plain box.
            candidate_set: As in Ax; if given, Ax selects from it.
            sampling_strategy: As in Ax.

        Returns:
            Candidates, shape `n x d`; their scores, shape `n`; weights, shape `n`.
        """
        if (
            not isinstance(self.acqf, PACAcquisition)
            or search_space_digest.ordinal_features
            or search_space_digest.categorical_features
            or inequality_constraints
            or equality_constraints
            or fixed_features
            or candidate_set is not None
        ):
            with warnings.catch_warnings():
                # A line search that ends early, as at the drop around the incumbent,
                # has climbed nevertheless, and BoTorch starts it again elsewhere.
                warnings.filterwarnings("ignore", message="Optimization failed")
                result: tuple[Tensor, Tensor, Tensor] = super().optimize(
                    n=n,
                    search_space_digest=search_space_digest,
                    inequality_constraints=inequality_constraints,
                    equality_constraints=equality_constraints,
                    fixed_features=fixed_features,
                    rounding_func=rounding_func,
                    optimizer_options=optimizer_options,
                    candidate_set=candidate_set,
                    sampling_strategy=sampling_strategy,
                )
            return result
        points, scores = self._propose(n)
        if rounding_func is not None:
            points = rounding_func(points)
        return points, scores, torch.ones(n, dtype=self.dtype)

    def _propose(self, n: int) -> tuple[Tensor, Tensor]:
        """Find `n` points one after the other, each pending for the next.

        A point is not proposed while it is pending, the incumbent included. Nor is a
        visited one, as long as there are too few different points for a certificate.
        """
        pending = [] if self.X_pending is None else [self.X_pending]
        points, scores = [], []
        for _ in range(n):
            X_pending = torch.cat([self._observed[:0], *pending])
            X_taken = X_pending
            if self._needs_new_points(len(X_pending)):
                X_taken = torch.cat([self._observed, *pending])
            if len(X_taken) == 0:
                challenger = torch.tensor(
                    [self.certificate.challenger], dtype=torch.float64
                )
                score = self.certificate.score
            else:
                challenger, score = self._challenger_beside(X_pending, X_taken)
            point = challenger
            if self.settings.sampling == "leader_challenger" and not bool(
                self._are_among(self.acqf.incumbent, X_taken).any()
            ):
                point = more_informative(self.acqf, challenger)
            pending.append(point)
            points.append(point)
            scores.append(score)
        return torch.cat(points), torch.tensor(scores, dtype=torch.float64)

    def _needs_new_points(self, num_pending: int) -> bool:
        """Whether there are too few different points for the level asked for."""
        if (
            self.settings.level == "pairwise"
            or self.settings.sampling != "leader_challenger"
        ):
            return False
        num_cells = math.inf if self._cells is None else self._cells.number
        num_distinct, dim = self._observed.shape
        return num_distinct + num_pending < fewest_distinct_points(dim, num_cells)

    def _challenger_beside(
        self, X_pending: Tensor, X_taken: Tensor
    ) -> tuple[Tensor, float]:
        """Find the best challenger that is not taken, given the pending points."""
        if len(X_pending):
            self.acqf.set_X_pending(X_pending)
        search = find_challenger(
            self.acqf,
            self._observed,
            self._bounds,
            seed=self._seed(len(X_pending)),
            cells=self._cells,
        )
        taken = self._are_among(search.points, X_taken)
        scores = search.scores.masked_fill(taken, -math.inf)
        best = int(scores.argmax())
        if scores[best] == -math.inf:  # fewer cells than evaluations under way
            return search.challenger, search.score
        return search.points[best : best + 1], float(scores[best])

    def _are_among(self, points: Tensor, others: Tensor) -> Tensor:
        """Whether points (`N x d`) are the same as one of the others, `N`."""
        if self._cells is not None:
            same = [self._cells.are_same(points, x.unsqueeze(0)) for x in others]
            none = torch.zeros(len(points), dtype=torch.bool)
            return torch.stack([none, *same]).any(0)
        width = self._bounds[1] - self._bounds[0]
        scale = width * relative_lengthscales(objective_model(self), len(width))
        near = torch.cdist(points / scale, others / scale) < _SAME_DISTANCE
        return near.any(-1)

    def _instantiate_acquisition(self) -> None:
        """Set the tolerance in objective units, and the points not to be proposed."""
        self.X_pending = with_unevaluated(self.surrogate.model, self.X_pending)
        acqf_class, options = self.botorch_acqf_classes_with_options[0]
        if issubclass(acqf_class, PACAcquisition):
            options = {**options, "delta": self.certificate.delta}
            self.botorch_acqf_classes_with_options = [(acqf_class, options)]
        super()._instantiate_acquisition()

    @property
    def _observed(self) -> Tensor:
        """Visited points inside the search space, `n x d`."""
        if self.X_observed is None:
            raise ValueError(
                "no visited point lies inside the search space: there is no incumbent "
                "to certify. Evaluate some points first."
            )
        return self.X_observed

    @property
    def _bounds(self) -> Tensor:
        """The box, `2 x d`."""
        return torch.tensor(self.search_space_digest.bounds, dtype=torch.float64).T

    @functools.cached_property
    def _cells(self) -> Cells | None:
        """The cells by coordinate; None without any."""
        edges = dict(self.settings.cells)
        names = self.search_space_digest.feature_names
        cells = Cells(tuple(edges.get(name, ()) for name in names))
        # With a single cell there is no challenger and nothing to certify.
        return cells if edges and cells.number > 1 else None

    def _seed(self, num_pending: int) -> int:
        """Derive a seed from the seed of the search and the data.

        A reloaded search has the same data, hence proposes the same point.
        """
        num_observations = self.surrogate.Xs[0].shape[0]
        seed: Any = self.settings.seed
        entropy = (seed, num_observations, num_pending)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])
