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
    ChallengerSearch,
    find_challenger,
    more_informative,
    relative_lengthscales,
)
from ax_pac.adapter.fitted import state_of
from ax_pac.adapter.search_space import domain_of
from ax_pac.adapter.transforms import with_unevaluated
from ax_pac.ax_internals import objective_model, objective_transform
from ax_pac.certificate.levels import NEGLIGIBLE_SHARE, certify
from ax_pac.certificate.record import PACCertificate
from ax_pac.domain import Domain
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.surrogate.fit import fewest_distinct_points

# Steps of a proposed coordinate, from one end of its range to the other.
_STEPS = 2.0**28

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

    Challengers, and every other point that a certificate is about, are points of the
    search space: integers, choices and linear constraints are those of `domain_of`.
    With `cells` they are cells other than the incumbent's, and the transform
    `CanonicalPoints` makes the centre of a cell its only point.

    Its options (`acquisition_options`) are the fields of `CertificateSettings`.

    Checked on Ax 1.3.1, whose contract for subclasses is not guaranteed.
    """

    # Set by Ax's constructor; declared here because Ax publishes no types.
    botorch_acqf_classes_with_options: list[tuple[type[Any], dict[str, Any]]]
    X_pending: Tensor | None
    X_observed: Tensor | None

    def __init__(
        self,
        surrogate: Any,
        search_space_digest: Any,
        torch_opt_config: Any,
        *arguments: Any,
        **options: Any,
    ) -> None:
        self._constraints = torch_opt_config.linear_constraints
        self._fixed = torch_opt_config.fixed_features or {}
        super().__init__(
            surrogate, search_space_digest, torch_opt_config, *arguments, **options
        )

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
        # Ax may be asked for a part of the search space.
        question = (settings, tuple(sorted(self._fixed.items())))
        if question not in computed:
            computed[question] = certify(
                model,
                self._observed,
                self._domain,
                delta=settings.delta,
                epsilon=settings.epsilon,
                level=settings.level,
                relative=settings.relative,
                posterior_transform=objective_transform(self, PACAcquisition),
                seed=self._seed(0),
                known=state_of(self.surrogate.model).known,
            )
        return computed[question]

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
            inequality_constraints: As in Ax; those of the constructor are used.
            equality_constraints: As in Ax; none, they are refused.
            fixed_features: As in Ax; those of the constructor are used.
            rounding_func: As in Ax.
            optimizer_options: As in Ax; for Ax's optimiser, which maximises expected
                improvement in a box.
            candidate_set: As in Ax; if given, Ax selects from it.
            sampling_strategy: As in Ax.

        Returns:
            Candidates, shape `n x d`; their scores, shape `n`; weights, shape `n`.
        """
        is_pac = isinstance(self.acqf, PACAcquisition)
        is_plain = self._domain.is_box and not (inequality_constraints or self._fixed)
        is_plain = is_plain and not self.acqf.rules_out
        if candidate_set is not None or (is_plain and not is_pac):
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
            if len(X_taken) == 0 and isinstance(self.acqf, PACAcquisition):
                challenger = torch.tensor(
                    [self.certificate.challenger], dtype=torch.float64
                )
                score = self.certificate.score
            else:
                challenger, score = self._challenger_beside(X_pending, X_taken)
            point = challenger
            incumbent = self.acqf.incumbent
            if (
                self.settings.sampling == "leader_challenger"
                and not bool(self._are_among(incumbent, X_taken).any())
                and bool(self._domain.is_box or self._domain.contains(incumbent).all())
            ):
                point = more_informative(self.acqf, challenger)
            point = self._settled(point)
            pending.append(point)
            points.append(point)
            scores.append(score)
        return torch.cat(points), torch.tensor(scores, dtype=torch.float64)

    def _settled(self, point: Tensor) -> Tensor:
        """Round continuous coordinates, so that rounding errors come to nothing.

        Two processes with the same data climb to points that differ by some 1e-11 of
        the range, by the alignment of their arrays alone. Whether a candidate is among
        those that are drawn can depend on that, and with it every later draw.
        """
        domain = self._domain
        if domain.constraints or bool((self._observed == point).all(-1).any()):
            return point
        low, high = domain.box
        continuous = high > low
        continuous[list(domain.discrete)] = False
        width = torch.where(continuous, high - low, torch.ones_like(low))
        unit = ((point - low) / width * _STEPS).round() / _STEPS
        settled = torch.minimum(torch.maximum(low + unit * width, low), high)
        return torch.where(continuous, settled, point)

    def _needs_new_points(self, num_pending: int) -> bool:
        """Whether there are too few different points for the level asked for."""
        if (
            self.settings.level == "pairwise"
            or self.settings.sampling != "leader_challenger"
        ):
            return False
        num_distinct, dim = self._observed.shape
        fewest = fewest_distinct_points(dim, self._domain.number)
        return num_distinct + num_pending < fewest

    def _challenger_beside(
        self, X_pending: Tensor, X_taken: Tensor
    ) -> tuple[Tensor, float]:
        """Find the best challenger that is not taken, given the pending points."""
        if len(X_pending):
            self.acqf.set_X_pending(X_pending)
        search = find_challenger(
            self.acqf, self._observed, self._domain, seed=self._seed(len(X_pending))
        )
        taken = self._are_among(search.points, X_taken)
        scores = search.scores.masked_fill(taken, -math.inf)
        best = int(scores.argmax()) if len(scores) else 0
        if len(scores) == 0 or scores[best] == -math.inf:
            # Fewer points, or fewer that can win, than evaluations under way.
            return self._challenger_anywhere(search, X_pending, X_taken)
        return search.points[best : best + 1], float(scores[best])

    def _challenger_anywhere(
        self, search: ChallengerSearch, X_pending: Tensor, X_taken: Tensor
    ) -> tuple[Tensor, float]:
        """Find the best challenger that is not taken among those that cannot win."""
        if self.acqf.rules_out:
            seed = self._seed(len(X_pending))
            search = find_challenger(
                self.acqf, self._observed, self._domain, seed=seed, anywhere=True
            )
            taken = self._are_among(search.points, X_taken)
            scores = search.scores.masked_fill(taken, -math.inf)
            best = int(scores.argmax())
            if scores[best] > -math.inf:
                return search.points[best : best + 1], float(scores[best])
        return search.challenger, search.score

    def _are_among(self, points: Tensor, others: Tensor) -> Tensor:
        """Whether points (`N x d`) are the same as one of the others, `N`."""
        if len(self._domain.discrete) == self._domain.dim:
            same = [self._domain.are_same(points, x.unsqueeze(0)) for x in others]
            none = torch.zeros(len(points), dtype=torch.bool)
            return torch.stack([none, *same]).any(0)
        width = self._domain.box[1] - self._domain.box[0]
        scale = width * relative_lengthscales(objective_model(self), len(width))
        near = torch.cdist(points / scale, others / scale) < _SAME_DISTANCE
        return near.any(-1)

    def _instantiate_acquisition(self) -> None:
        """Set the tolerance in objective units, and the points not to be proposed."""
        self.X_pending = with_unevaluated(self.surrogate.model, self.X_pending)
        self.X_observed = self._observed
        acqf_class, options = self.botorch_acqf_classes_with_options[0]
        if issubclass(acqf_class, PACAcquisition):
            options = {**options, "delta": self.certificate.delta}
        known = state_of(self.surrogate.model).known
        if known is not None:
            negligible = NEGLIGIBLE_SHARE * self.settings.epsilon
            options = {**options, "known": known, "negligible": negligible}
        self.botorch_acqf_classes_with_options = [(acqf_class, options)]
        super()._instantiate_acquisition()

    @property
    def _observed(self) -> Tensor:
        """Visited points inside the search space, `n x d`."""
        observed = self.X_observed
        if observed is not None and (self._domain.constraints or self._fixed):
            # Ax compares without tolerance, and drops visited points on a face of the
            # search space.
            visited = self.surrogate.Xs[0].unique(dim=0)
            observed = visited[self._domain.contains(visited)]
            if len(observed) == 0 and self._fixed:  # a part nobody visited
                observed = visited[self._whole_domain.contains(visited)]
        if observed is None or len(observed) == 0:
            raise ValueError(
                "no visited point lies inside the search space: there is no incumbent "
                "to certify. Evaluate some points first."
            )
        return observed

    @functools.cached_property
    def _domain(self) -> Domain:
        """The search space, or the part of it that is asked for."""
        domain = self._whole_domain
        return domain.fixed_at(self._fixed) if self._fixed else domain

    @functools.cached_property
    def _whole_domain(self) -> Domain:
        """The search space, in the model's input units."""
        return domain_of(
            self.search_space_digest,
            self._constraints,
            cells=dict(self.settings.cells),
            rounded=state_of(self.surrogate.model).rounded,
        )

    def _seed(self, num_pending: int) -> int:
        """Derive a seed from the seed of the search and the data.

        A reloaded search has the same data, hence proposes the same point.
        """
        num_observations = self.surrogate.Xs[0].shape[0]
        seed: Any = self.settings.seed
        entropy = (seed, num_observations, num_pending)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])
