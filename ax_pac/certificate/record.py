"""What a certificate says: its record, its levels, its sentence for a person."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ax_pac.acquisition.analytic import check_delta

LEVELS = ("pairwise", "joint", "marginal")
"""Names of the levels, from the weakest claim to the strongest. `PACCertificate` says
what each of them accounts for."""

DEFAULT_LEVEL = "marginal"
"""The level that comes closest to its promise where hyperparameters are fitted; the
page of the benchmark `fitted` compares all three."""


@dataclasses.dataclass(frozen=True)
class PACCertificate:
    """A level's verdict on a search, with the failure probability behind it.

    Args:
        delta: Tolerance that was applied, absolute. Unit: objective units.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for. `pairwise`: no single point beats the
            incumbent by more than delta with probability above epsilon; necessary for
            the claim "the incumbent is within delta of the best with probability
            1 - epsilon", not sufficient for it. `joint`: the claim itself, with the
            model's hyperparameters taken as known. `marginal`: the claim itself,
            averaged over what the hyperparameters may be.
        score: Largest standardised gap found, at the challenger. Dimensionless.
        failure_probability: The level's probability that the incumbent is not good
            enough. At `pairwise`, `Phi(score)`. At `joint` and `marginal`, an upper
            bound that holds but for `alpha`, plus `alpha`; where the estimate itself is
            above epsilon, the estimate; where a weaker level alone is above epsilon,
            what that level says.
        certifiable: Whether this level can speak at all about these data.
        reason: One sentence for a person.
        challenger: The point whose score is highest. `d` values in the model's input
            units.
        incumbent: The visited point of highest posterior mean. `d` values.
        num_observations: Number of observations it was computed on.
        pairwise_probability: `Phi(score)`, at every level.
        alpha: Probability that simulation misleads a certificate, over all checks of a
            search; part of epsilon. Zero at `pairwise`.
        num_draws: Joint draws of the posterior.
        active_set_size: Points in a joint draw, at most.
        effective_sample_size: Independent draws that those of level `marginal` are
            worth; None at the other levels.
        hyperparameter_status: Why no claim can be made, at the levels above `pairwise`;
            "ok" at level `marginal` where one can.
        second_search_gap: Score found by the second, larger and independent search less
            that of the first; None when the first did not come near a certificate.
    """

    delta: float
    epsilon: float
    level: str
    score: float
    failure_probability: float
    certifiable: bool
    reason: str
    challenger: tuple[float, ...]
    incumbent: tuple[float, ...]
    num_observations: int
    pairwise_probability: float = math.nan
    alpha: float = 0.0
    num_draws: int = 0
    active_set_size: int = 0
    second_search_gap: float | None = None
    effective_sample_size: float | None = None
    hyperparameter_status: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the incumbent is certified."""
        return self.certifiable and self.failure_probability <= self.epsilon

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and `holds`, as plain JSON values."""
        fields = dataclasses.asdict(self)
        fields["challenger"] = list(self.challenger)
        fields["incumbent"] = list(self.incumbent)
        return {**fields, "holds": self.holds}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PACCertificate:
        """Rebuild a certificate from what `to_dict` returned; other keys are ignored.

        Raises:
            ValueError: When a field is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(f"not a certificate record, missing {missing}")
        values = {name: fields[name] for name in names}
        values["challenger"] = tuple(values["challenger"])
        values["incumbent"] = tuple(values["incumbent"])
        return cls(**values)


def check_settings(*, delta: float, epsilon: float, level: str) -> None:
    """Refuse a delta, epsilon or level out of range, naming what came."""
    check_delta(delta)
    if not (isinstance(epsilon, (int, float)) and 0.0 < epsilon < 1.0):
        raise ValueError(
            f"epsilon must be a probability strictly between 0 and 1, got {epsilon!r}"
        )
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}")


def reason_of(certificate: PACCertificate) -> str:
    """Say the verdict of a certificate in one sentence."""
    delta, epsilon = f"{certificate.delta:.4g}", f"{certificate.epsilon:.4g}"
    if certificate.hyperparameter_status not in (None, "ok"):
        return f"no claim can be made yet: {certificate.hyperparameter_status}"
    if not certificate.certifiable:
        return "the score of the challenger is not finite; the model cannot be trusted"
    verdict = "at most" if certificate.holds else "above"
    probability = (
        f"{certificate.failure_probability:.3g}, {verdict} epsilon = {epsilon}"
    )
    if certificate.alpha == 0.0:  # a stronger level was not asked for, or not reached
        return (
            f"the strongest challenger beats the incumbent by more than {delta} with "
            f"probability {probability} (pairwise: each challenger on its own, which "
            "is necessary, not sufficient)"
        )
    says = "bounded by" if certificate.holds else "put at"
    claim = (
        f"the probability that any point beats the incumbent by more than {delta} is "
        f"{says} {probability}"
    )
    if certificate.hyperparameter_status is None:
        return (
            f"{claim} (joint: all points together, the model's hyperparameters taken "
            "as known)"
        )
    return f"{claim} (marginal: all points together, over all likely hyperparameters)"
