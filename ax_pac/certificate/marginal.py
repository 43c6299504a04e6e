"""The probability that the incumbent fails, averaged over the hyperparameters."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ConstantMean
from scipy.special import chdtri
from torch import Tensor

from ax_pac.acquisition.analytic import check_delta, check_model, check_points
from ax_pac.acquisition.difference import is_plain_gp
from ax_pac.certificate.bounds import betting_upper, is_hopeless, log_wealth
from ax_pac.certificate.marginal_draws import DifferenceProblem, draw_failures
from ax_pac.certificate.record import MISFITS, HyperparameterStatus
from ax_pac.domain import Domain
from ax_pac.known import KnownFunction
from ax_pac.surrogate.fit import OUTPUTSCALE_BOUNDS, too_few_observations
from ax_pac.surrogate.mcmc import (
    JITTER,
    NUM_CHAINS,
    HyperparameterChains,
    HyperparameterSample,
    effective_sample_size,
)
from ax_pac.surrogate.residuals import misfit

# Draws at most, in multiples of the fewest independent ones that could certify if none
# had any probability of failing.
_MOST_DRAWS = 6.0

# Candidates that fail with at most this share of epsilon are left out, and a bound on
# their probability is added.
NEGLIGIBLE_SHARE = 0.04

MAX_R_HAT = 1.2

# Draws between two looks at the bound.
_BATCH = 64

# Between two looks a check gives up only after this many draws, and by this many
# standard errors: a refusal by chance costs an evaluation.
_FEWEST_TO_GIVE_UP = 16

_ERRORS_TO_GIVE_UP = 2.5


# Sweeps of the chains before the first look at a check. After two, of 64 chains, the
# failure probability is what it is later, to within its error; it is less before.
_SWEEPS_OF_FIRST_LOOK = 2

# What the first look finds is this many times as likely in truth, at the least: by the
# candidates that each setting adds later, 1.3 to 2.9 times in searches of 8 and 16
# coordinates. To expect too much withholds a certificate for an evaluation.
_MISSED_AT_FIRST_LOOK = 1.4


@dataclasses.dataclass(frozen=True)
class MarginalFailure:
    """The probability that some candidate beats the incumbent by more than delta.

    Args:
        estimate: The probability, averaged over the draws.
        num_draws: Function draws, each under a hyperparameter draw of its own.
        effective_sample_size: Number of independent draws that would be as accurate;
            the hyperparameter draws are autocorrelated.
        upper_bound: Upper confidence bound of the probability, see `betting_upper`,
            with what left-out candidates can contribute. Certified when it is at most
            epsilon and the status is "ok".
        active_set_size: Largest number of candidates that took part in a draw.
        challenger: Index of the candidate whose pairwise probability of beating the
            incumbent, averaged over the hyperparameters, is the highest; None where
            nothing was drawn.
        hyperparameter_status: `ok`, or why no claim is made, see `PACCertificate`.
        hyperparameter_text: The same in one sentence; empty for `ok`.
        worse_incumbent_probability: The part of the estimate for an incumbent worse
            than the threshold.
    """

    estimate: float
    num_draws: int
    effective_sample_size: float
    upper_bound: float
    active_set_size: int
    challenger: int | None
    hyperparameter_status: HyperparameterStatus
    hyperparameter_text: str = ""
    worse_incumbent_probability: float = 0.0


class _Diagnosis(NamedTuple):
    """Whether the hyperparameters are determined well enough, and why not."""

    status: HyperparameterStatus
    text: str = ""


_OK = _Diagnosis("ok")


def marginal_failure(
    model: SingleTaskGP,
    incumbent: Tensor,
    candidates: Tensor,
    *,
    delta: float,
    epsilon: float,
    alpha: float,
    weight: float = 1.0,
    seed: int,
    bounds: Tensor | Domain | None = None,
    known: KnownFunction | None = None,
    threshold: float = -math.inf,
) -> MarginalFailure:
    """Bound the probability that the incumbent is not good enough, marginally.

        P(max_x w f(x) - w f(incumbent) > delta | data)

    over the box, averaged over the posterior of the hyperparameters. Each draw takes
    hyperparameters from their posterior, adds candidates around those that are likely
    to fail under them, and estimates the probability from one function. The function is
    revealed point by point, the likeliest to beat the incumbent first, until the
    probability of a failure at the others is negligible: see `draw_failures`. The cost
    is linear in the number of candidates.

    Drawing ends as soon as the bound is at most epsilon, or when that has become
    unlikely, which can only withhold a certificate. The bound is valid at every look:
    whenever drawing ends, the probability of certifying a failure probability above
    epsilon is at most alpha.

    Args:
        model: A fitted plain `SingleTaskGP` in float64 with a Matern-5/2 kernel, a
            constant mean and known noise, as `fit_model` returns.
        incumbent: The point to be certified. Shape `1 x d`. Unit: the model's input
            units.
        candidates: Points that may beat it, to begin with. Shape `N x d`.
        delta: Tolerance, positive. Unit: objective units.
        epsilon: Allowed failure probability, in (0, 1).
        alpha: Allowed probability of a certificate by sampling error alone, in (0, 1).
        weight: 1 to maximise, -1 to minimise.
        seed: Seed of every random number.
        bounds: What the maximum is over: a box, `2 x d`, or a domain. Default: the
            range of the candidates.
        known: What is added to the model's outcome; None for nothing.
        threshold: Points that could only beat an incumbent with w f below this are left
            out, see `slack_of`, and the probability of such an incumbent is added under
            each setting. Unit: objective units. Minus infinity for none.

    Returns:
        Counts, bound and status.

    Raises:
        ValueError: When an argument is out of range or the model is of another kind.

    Source: Wilson 2024 (level test on joint draws). Deviation: averaged over the
    hyperparameters; probabilities instead of failures, a bound for every look.

    Example:
        >>> import torch
        >>> from ax_pac import fit_model
        >>> X = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
        >>> Y = -(X - 0.4) ** 2
        >>> model = fit_model(X, Y, torch.full_like(Y, 1e-6))
        >>> failure = marginal_failure(
        ...     model, X[4:5], X, delta=0.1, epsilon=0.05, alpha=0.05, seed=0
        ... )
        >>> failure.upper_bound <= 0.05
        True
    """
    check = MarginalCheck(
        model,
        incumbent,
        delta=delta,
        epsilon=epsilon,
        alpha=alpha,
        weight=weight,
        seed=seed,
        bounds=bounds,
        known=known,
        threshold=threshold,
    )
    return check.decided(candidates)


class MarginalCheck:
    """The check of `marginal_failure`, and a first look that can only refuse.

    Most checks of a search are far above epsilon, and most of what a check costs is
    spent to be sure of its bound. The first look takes the chains on their way, when
    they have just left their starting points, and the candidates that all settings
    share. It underestimates the failure probability, by half as a rule, since the
    maximum of a draw lies between candidates. Where even that is far above epsilon, no
    certificate is issued, and neither is it where the first draws of the check itself
    are. The check that follows otherwise draws anew, so that its bound is what it is
    without a first look.

    Args:
        model: As in `marginal_failure`, as all arguments.
        incumbent: Shape `1 x d`.
        delta: Tolerance.
        epsilon: Allowed failure probability.
        alpha: Allowed probability of a certificate by sampling error alone.
        weight: 1 to maximise, -1 to minimise.
        seed: Seed of every random number.
        bounds: What the maximum is over.
        known: What is added to the model's outcome.
        threshold: Points that could only beat a worse incumbent are left out.
    """

    def __init__(
        self,
        model: SingleTaskGP,
        incumbent: Tensor,
        *,
        delta: float,
        epsilon: float,
        alpha: float,
        weight: float = 1.0,
        seed: int,
        bounds: Tensor | Domain | None = None,
        known: KnownFunction | None = None,
        threshold: float = -math.inf,
    ) -> None:
        self._model, self._incumbent = model, incumbent
        self._delta, self._epsilon, self._alpha = delta, epsilon, alpha
        self._weight, self._seed = weight, seed
        self._bounds, self._known, self._threshold = bounds, known, threshold
        self._generator = torch.Generator().manual_seed(seed)
        self._chains: HyperparameterChains | None = None

    def first_look(self, candidates: Tensor) -> MarginalFailure | None:
        """Return a refusal, or None where the check may end otherwise.

        Twice at most: on shared candidates alone, and then as the check looks first.

        Args:
            candidates: Shape `N x d`.
        """
        problem = self._problem(candidates)
        refusal = self._refusal(problem)
        if refusal is not None:
            return refusal
        with _one_thread():
            chains = self._chains_on(problem)
            chains.sweep_until(_SWEEPS_OF_FIRST_LOOK)
            sample = HyperparameterSample(*chains.current(), math.nan, math.nan)
            missed = _MISSED_AT_FIRST_LOOK
            refusal = self._look(problem, sample, missed=missed, num_rounds=0)
            if refusal is None:
                chains.extend(_BATCH)
                refusal = self._look(problem, chains.sample(), num_errors=1.0)
        return refusal

    def _look(
        self,
        problem: DifferenceProblem,
        sample: HyperparameterSample,
        *,
        missed: float = 1.0,
        num_errors: float = _ERRORS_TO_GIVE_UP,
        **options: Any,
    ) -> MarginalFailure | None:
        """Return a refusal by draws under some settings, or None.

        Args:
            problem: With the candidates.
            sample: The settings.
            missed: How many times as likely failures are as they seem.
            num_errors: Standard errors by which all draws together give up.
            options: Of `draw_failures`.
        """
        epsilon, alpha = self._epsilon, self._alpha
        most = math.ceil(_MOST_DRAWS * math.log(alpha) / math.log1p(-epsilon))
        none = torch.zeros(0, dtype=torch.float64)

        def gives_up(failure: Tensor) -> bool:
            expected = (missed * failure).clamp_max(1.0)
            return _is_hopeless_with(none, epsilon, alpha, 1.0, most, expected)

        draws = draw_failures(
            problem,
            sample,
            NEGLIGIBLE_SHARE * epsilon,
            # Its own, so that the draws of the check do not depend on a look.
            torch.Generator().manual_seed(self._seed + 1),
            is_enough=gives_up,
            **options,
        )
        number, estimate = len(draws.failure), float(draws.failure.mean())
        expected = (missed * draws.failure).clamp_max(1.0)
        hopeless = is_hopeless(expected, epsilon, alpha, 1.0, most, num_errors)
        if estimate <= epsilon or not (hopeless or gives_up(draws.failure)):
            return None
        return MarginalFailure(
            estimate=estimate,
            num_draws=number,
            effective_sample_size=float(number),
            upper_bound=betting_upper(draws.failure, alpha),
            active_set_size=draws.active_set_size,
            challenger=int(draws.pairwise.argmax()),
            hyperparameter_status="ok",
            worse_incumbent_probability=draws.worse_incumbent / number,
        )

    def decided(self, candidates: Tensor) -> MarginalFailure:
        """Return the result of the check, see `marginal_failure`.

        Args:
            candidates: Shape `N x d`.
        """
        problem = self._problem(candidates)
        refusal = self._refusal(problem)
        if refusal is not None:
            return refusal
        with _one_thread():
            chains = self._chains_on(problem)
            result = _draw_until_decided(
                chains, problem, self._epsilon, self._alpha, self._generator
            )
            is_certified = result.upper_bound <= self._epsilon
            if not (is_certified and result.hyperparameter_status == _OK.status):
                return result
            return _unless_misfit(result, self._model, problem, chains, self._seed)

    def _problem(self, candidates: Tensor) -> DifferenceProblem:
        """Return the problem with candidates, or refuse arguments out of range."""
        _check_arguments(
            self._model,
            self._incumbent,
            candidates,
            self._epsilon,
            self._alpha,
            self._weight,
        )
        return DifferenceProblem(
            self._model,
            self._incumbent,
            candidates,
            check_delta(self._delta),
            self._weight,
            self._bounds,
            self._known,
            self._threshold,
        )

    def _refusal(self, problem: DifferenceProblem) -> MarginalFailure | None:
        """Return the result where the data support no claim."""
        refusal = _refusal(self._model, problem)
        if refusal == _OK:
            return None
        return MarginalFailure(1.0, 0, 0.0, 1.0, 0, None, *refusal)

    def _chains_on(self, problem: DifferenceProblem) -> HyperparameterChains:
        """Return the chains, which do not depend on the candidates."""
        if self._chains is None:
            kernel = self._model.covar_module
            self._chains = HyperparameterChains(
                problem.Z,
                problem.Y,
                problem.noise,
                generator=self._generator,
                initial=(
                    kernel.base_kernel.lengthscale.detach().reshape(-1),
                    float(kernel.outputscale.detach()),
                ),
                settle=False,
                highest=float(problem.Y.max()),
            )
        return self._chains


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one core: threads slow down operations on thousands of small matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw_until_decided(
    chains: HyperparameterChains,
    problem: DifferenceProblem,
    epsilon: float,
    alpha: float,
    generator: torch.Generator,
) -> MarginalFailure:
    """Draw until certified, unlikely to be, or out of draws."""
    tolerance = NEGLIGIBLE_SHARE * epsilon
    fewest = math.log(alpha) / math.log1p(-epsilon)
    most = math.ceil(_MOST_DRAWS * fewest)
    values = torch.zeros(0, dtype=torch.float64)
    pairwise = torch.zeros(len(problem.candidates), dtype=torch.float64)
    active_set_size = 0
    ess_ratio, worse = 1.0, 0.0
    while len(values) < most:
        first = len(values)
        chains.extend(first + _BATCH)
        sample = chains.sample(first=first)
        gives_up = functools.partial(
            _is_hopeless_with, values, epsilon, alpha, ess_ratio, most
        )
        draws = draw_failures(problem, sample, tolerance, generator, is_enough=gives_up)
        values = torch.cat([values, draws.failure])
        active_set_size = max(active_set_size, draws.active_set_size)
        worse += draws.worse_incumbent
        pairwise += draws.pairwise * len(sample.outputscale)
        if len(values) < first + _BATCH:  # given up half-way
            effective, diagnosis = ess_ratio * len(values), _diagnosis(sample, 0.0)
            break
        # Of the probabilities, which vary under each setting as well; the settings have
        # to be enough on their own, see `_diagnosis`.
        effective = effective_sample_size(values.reshape(-1, NUM_CHAINS).mT)
        if effective == 0.0:  # all of them equal, typically zero
            effective = sample.effective_sample_size
        ess_ratio = effective / len(values)
        is_bounded = log_wealth(values, epsilon, ess_ratio) >= -math.log(alpha)
        diagnosis = _diagnosis(sample, fewest if is_bounded else 0.0)
        if is_bounded and diagnosis == _OK:
            break
        if is_hopeless(values, epsilon, alpha, ess_ratio, most):
            break
    return MarginalFailure(
        estimate=float(values.mean()),
        num_draws=len(values),
        effective_sample_size=effective,
        upper_bound=betting_upper(values, alpha, ess_ratio),
        active_set_size=active_set_size,
        challenger=int(pairwise.argmax()),
        hyperparameter_status=diagnosis.status,
        hyperparameter_text=diagnosis.text,
        worse_incumbent_probability=worse / max(len(values), 1),
    )


def _unless_misfit(
    result: MarginalFailure,
    model: SingleTaskGP,
    problem: DifferenceProblem,
    chains: HyperparameterChains,
    seed: int,
) -> MarginalFailure:
    """Withhold a certificate where residuals say that the model is too sure."""
    # Its own, so that it can be repeated without the draws before it.
    generator = torch.Generator().manual_seed(seed + 2)
    sample = chains.sample()
    fault = misfit(problem.Z, problem.Y, problem.noise, sample, generator)
    if fault is None:
        return result
    # The next evaluation is to tell who is right, the outlier or the others.
    with torch.no_grad():
        kernel = model.covar_module
        worst = problem.Z[fault.worst].unsqueeze(0)
        relevance = kernel(problem.candidates, worst).to_dense().squeeze(-1)
        K = kernel(problem.Z).to_dense() + torch.diag(problem.noise + JITTER)
        cross = kernel(problem.candidates, problem.Z).to_dense()
        explained = torch.linalg.solve(K, cross.mT)
        variance = kernel.outputscale - (cross.mT * explained).sum(0)
    return dataclasses.replace(
        result,
        challenger=int((relevance * variance).argmax()),
        hyperparameter_status=MISFITS[fault.kind],
        hyperparameter_text=fault.sentence,
    )


def _is_hopeless_with(
    values: Tensor,
    epsilon: float,
    alpha: float,
    ess_ratio: float,
    most: int,
    failure: Tensor,
) -> bool:
    """Whether values and these failures together are unlikely to certify.

    Giving up is safe, however early: it can only withhold a certificate.
    """
    drawn = torch.cat([values, failure])
    if len(drawn) < _FEWEST_TO_GIVE_UP:
        return False
    return is_hopeless(drawn, epsilon, alpha, ess_ratio, most, _ERRORS_TO_GIVE_UP)


def _diagnosis(sample: HyperparameterSample, fewest: float) -> _Diagnosis:
    """Return whether the chains have mixed and give `fewest` independent draws."""
    if sample.r_hat > MAX_R_HAT:
        return _Diagnosis(
            "chains_disagree",
            "the hyperparameter chains still depend on where they started (R-hat "
            f"{sample.r_hat:.2f}, at most {MAX_R_HAT}); more observations help",
        )
    if sample.effective_sample_size < fewest:
        return _Diagnosis(
            "too_few_draws",
            "the hyperparameter draws have an effective sample size of "
            f"{sample.effective_sample_size:.0f}, and at least {math.ceil(fewest)} is "
            "needed for epsilon at alpha",
        )
    return _OK


def _refusal(model: SingleTaskGP, problem: DifferenceProblem) -> _Diagnosis:
    """Return why these data support no claim, `_OK` if they may."""
    too_few = too_few_observations(problem.Z, problem.domain.number)
    if too_few is not None:
        return _Diagnosis("too_few_observations", too_few)
    outputscale = float(model.covar_module.outputscale.detach())
    # At its upper bound it is not refused: a smooth function with a trend, such as
    # Branin, is fitted best by a large output scale with long length scales.
    if outputscale <= 1.01 * OUTPUTSCALE_BOUNDS[0]:
        return _Diagnosis(
            "output_scale_at_bound",
            f"the fitted output scale {outputscale:.3g} is at its lower bound: the fit "
            "explains the outcomes by noise alone; evaluate with more samples",
        )
    if is_noise_alone(problem.Y, problem.noise):
        return _Diagnosis(
            "noise_alone",
            "noise alone explains the scatter of the outcomes (chi-squared test at "
            "5 %); evaluate with more samples",
        )
    return _OK


def is_noise_alone(Y: Tensor, Yvar: Tensor) -> bool:
    """Whether a constant function explains the outcomes, by a chi-squared test."""
    precision = 1.0 / (Yvar + JITTER)
    mean = (precision * Y).sum() / precision.sum()
    statistic = float((precision * (Y - mean).square()).sum())
    return statistic <= float(chdtri(len(Y) - 1, 0.05))


def _check_arguments(
    model: SingleTaskGP,
    incumbent: Tensor,
    candidates: Tensor,
    epsilon: float,
    alpha: float,
    weight: float,
) -> None:
    """Refuse arguments out of range and models of another kind."""
    for name, value in (("epsilon", epsilon), ("alpha", alpha)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name} must be strictly between 0 and 1, got {value!r}")
    if weight not in (1.0, -1.0):
        raise ValueError(f"weight must be 1 or -1, got {weight!r}")
    check_model(model, None)
    if not has_known_kernel(model):
        raise ValueError(
            "the marginal level needs one exact GP with a scaled Matern-5/2 kernel, a "
            "constant mean and known noise, as fit_model returns; got "
            f"{type(model).__name__}. Ask for level 'joint' instead."
        )
    dim = model.train_inputs[0].shape[-1]
    check_points(candidates)
    if candidates.shape[-1] != dim or incumbent.shape != (1, dim):
        raise ValueError(
            f"expected the incumbent of shape `1 x {dim}` and candidates of shape "
            f"`N x {dim}`; got {tuple(incumbent.shape)} and {tuple(candidates.shape)}"
        )


def has_known_kernel(model: Model) -> bool:
    """Whether kernel, mean and noise are those whose posterior can be drawn from."""
    if not is_plain_gp(model):
        return False
    kernel = model.covar_module
    base = getattr(kernel, "base_kernel", None)
    return (
        isinstance(kernel, ScaleKernel)
        and isinstance(base, MaternKernel)
        and base.nu == 2.5
        and base.lengthscale.numel() == model.train_inputs[0].shape[-1]
        and isinstance(model.mean_module, ConstantMean)
        and isinstance(model.likelihood, FixedNoiseGaussianLikelihood)
    )
