"""The certificate: its levels, its fields, and its verdict in a sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from ax_pac.acquisition.analytic import check_delta

LEVELS = ("pairwise", "joint", "marginal")
"""What a certificate can account for, from the weakest claim to the strongest."""

DEFAULT_LEVEL = "marginal"
"""The level whose failure rate comes closest to epsilon with fitted hyperparameters."""

EXHAUSTIVE = "exhaustive"
"""What a certificate has `reached` where every point of a finite search space was
observed, and each point's own observations decided, at any level."""

HyperparameterStatus = Literal[
    "ok",
    "too_few_observations",
    "output_scale_at_bound",
    "noise_alone",
    "chains_disagree",
    "too_few_draws",
    "bound_violated",
    "noise_understated",
    "model_too_sure",
    "other",
]
"""Whether the data determine the hyperparameters well enough for a claim;
`bound_violated`: they contradict the bound of the unknown part; `noise_understated` and
`model_too_sure`: they scatter by more than the noise, or the model, allows; `other` is
a refusal that a version before 0.2 stored as a sentence."""

MISFITS: dict[str, HyperparameterStatus] = {
    "noise": "noise_understated",
    "residuals": "model_too_sure",
}
"""Status for each kind of `ax_pac.surrogate.residuals.Misfit`."""

# What else a stored record holds, see `certificate_records`.
_RECORD_KEYS = (
    *("holds", "data", "num_trials", "settings", "incumbent_arm", "seconds"),
    *("incumbent_mean", "incumbent_sd", "before_trial", "unevaluated"),
    "incumbent_known",
)


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
            averaged over the posterior of the hyperparameters.
        score: Largest standardised gap found, at the challenger. Dimensionless.
        failure_probability: Probability that the incumbent is not good enough, of the
            level `reached`. At `pairwise`, `Phi(score)`. At `joint` and `marginal`, an
            upper bound, which is valid with probability `1 - alpha`, plus `alpha`;
            where the estimate itself is above epsilon, the estimate.
        certifiable: Whether a claim at this level can be made on these data at all.
        reason: The verdict in one sentence.
        challenger: The point whose score is highest. `d` values in the model's input
            units.
        incumbent: The visited point of highest posterior mean. `d` values.
        num_observations: Number of observations that it was computed on.
        pairwise_probability: `Phi(score)`, at every level; of the points that can win,
            plus `worse_incumbent_probability`.
        alpha: Probability that simulation error leads to a false certificate, over all
            checks of a search; part of epsilon. Zero where `pairwise` was reached.
        num_draws: Joint draws of the posterior.
        active_set_size: Points in a joint draw, at most.
        second_search_gap: Score found by the second, larger and independent search less
            that of the first; None when the first was not close to a certificate.
        effective_sample_size: Number of independent draws that would be as accurate as
            those of level `marginal`; None at the other levels.
        hyperparameter_status: `ok` at level `marginal` where the data determine the
            hyperparameters well enough, the kind of the problem where they do not, at
            `joint` and `marginal`; None where it was not examined.
        hyperparameter_text: The problem in one sentence; empty without one.
        reached: The level that was evaluated last. A weaker level comes first, and one
            that does not pass withholds the certificate on its own. `exhaustive` where
            every point of a finite search space was observed and no model was needed.
        worse_incumbent_probability: The part of `failure_probability` for an incumbent
            so much worse than thought that points count which the known part of the
            objective rules out; 0 where none are.
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
    hyperparameter_status: HyperparameterStatus | None = None
    hyperparameter_text: str = ""
    reached: str = "pairwise"
    worse_incumbent_probability: float = 0.0

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
    def from_dict(cls, fields: Mapping[str, Any]) -> PACCertificate:
        """Rebuild a certificate from what `to_dict` returned, or from a stored record.

        Raises:
            ValueError: When a field is missing, or when there is one that this version
                does not know.
        """
        known = dataclasses.fields(cls)
        names = [field.name for field in known]
        missing = [
            field.name
            for field in known
            if field.default is dataclasses.MISSING and field.name not in fields
        ]
        if missing:
            raise ValueError(f"not a certificate record, missing {missing}")
        refuse_unknown(fields, {*names, *_RECORD_KEYS}, "certificates")
        values = {name: fields[name] for name in names if name in fields}
        values["challenger"] = tuple(values["challenger"])
        values["incumbent"] = tuple(values["incumbent"])
        if "reached" not in fields:
            values.update(_since_version_0_2(fields))
        return cls(**values)


def _since_version_0_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record of version 0.1, which had a sentence as status."""
    status = fields.get("hyperparameter_status")
    if fields.get("alpha", 0.0) == 0.0:
        reached = "pairwise"
    else:
        reached = "joint" if status is None else "marginal"
    if status in (None, "ok"):
        return {"reached": reached}
    return {
        "reached": reached,
        "hyperparameter_status": "other",
        "hyperparameter_text": status,
    }


def refuse_unknown(
    fields: Mapping[str, Any], known: Collection[str], what: str
) -> None:
    """Refuse stored fields that a newer version of this package wrote.

    To ignore them could change what the stored values mean.
    """
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"the stored {what} have fields that this version of ax-pac does not know: "
            f"{', '.join(unknown)}. A newer version stored them: update ax-pac "
            "(pip install --upgrade ax-pac)."
        )


def check_settings(*, delta: float, epsilon: float, level: str) -> None:
    """Refuse a delta, epsilon or level out of range, naming the value."""
    check_delta(delta)
    if not (isinstance(epsilon, (int, float)) and 0.0 < epsilon < 1.0):
        raise ValueError(
            f"epsilon must be a probability strictly between 0 and 1, got {epsilon!r}"
        )
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}")


def reason_of(certificate: PACCertificate) -> str:
    """Return the verdict of a certificate in one sentence."""
    delta, epsilon = f"{certificate.delta:.4g}", f"{certificate.epsilon:.4g}"
    if certificate.hyperparameter_status not in (None, "ok"):
        return f"no claim can be made yet: {certificate.hyperparameter_text}"
    if not certificate.certifiable:
        return "the score of the challenger is not finite; check the fit of the model"
    verdict = "at most" if certificate.holds else "above"
    probability = (
        f"{certificate.failure_probability:.3g}, {verdict} epsilon = {epsilon}"
    )
    if certificate.reached == "pairwise":
        return (
            f"the strongest challenger beats the incumbent by more than {delta} with "
            f"probability {probability} (pairwise: each challenger on its own, which "
            "is necessary, not sufficient)"
        )
    by = "bounded by" if certificate.holds else "estimated at"
    claim = (
        f"the probability that any point beats the incumbent by more than {delta} is "
        f"{by} {probability}"
    )
    if certificate.reached == EXHAUSTIVE:
        claim = claim.replace("estimated at", "bounded by")
        return (
            f"{claim} (every point of the search space was observed: by each point's "
            "own observations, without a model)"
        )
    if certificate.reached == "joint":
        return (
            f"{claim} (joint: all points together, the model's hyperparameters taken "
            "as known)"
        )
    return f"{claim} (marginal: all points together, averaged over the hyperparameters)"
