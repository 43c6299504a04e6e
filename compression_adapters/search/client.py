"""Ax clients of a search: search space, objective, metrics."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator

from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.core.trial_status import TrialStatus

from ax_pac.ax_internals import experiment_of, properties
from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.rank_space.parameters import RankParameter
from compression_adapters.search.sample_size import SAMPLE_SIZE_PROPERTY
from compression_adapters.search.settings import first_difference, problem_settings

_METRICS = ("objective", "loss", "compression_ratio")
PROBLEM_PROPERTY = "compression_problem"
"""Where an experiment keeps what its trials were evaluated on. Never renamed."""

# Of a search that is continued these may differ: the number of samples shows in the
# standard errors.
_MAY_DIFFER = ("num_samples",)


def new_client(problem: CompressionProblem) -> Client:
    """Set up an Ax client for a problem."""
    client = Client()
    configure_client(client, problem, "compression")
    return client


def configure_client(client: Client, problem: CompressionProblem, name: str) -> None:
    """Configure an empty client with the search space and the name of a search."""
    client.configure_experiment(
        name=name, parameters=range_parameters(problem.parameters)
    )
    sign = "-" if problem.minimize else ""
    client.configure_optimization(objective=f"{sign}objective")
    client.configure_tracking_metrics(["loss", "compression_ratio"])
    properties(experiment_of(client))[PROBLEM_PROPERTY] = problem_settings(problem)


def reweighted_client(client: Client, problem: CompressionProblem) -> Client:
    """Set up a client for another gamma, with all evaluations of an earlier one.

    Loss, its SEM and ratio are stored separately from the objective, so that the
    results so far can be weighted with another gamma.

    Args:
        client: Client of an earlier search of the same layers.
        problem: The problem with the new gamma.

    Returns:
        A new client; failed trials are not copied.

    Raises:
        ValueError: when the client belongs to another search.
    """
    check_same_space(client, problem)
    experiment = experiment_of(client)
    data = experiment.lookup_data().df
    fresh = new_client(problem)
    if SAMPLE_SIZE_PROPERTY in properties(experiment):
        chosen = properties(experiment)[SAMPLE_SIZE_PROPERTY]
        properties(experiment_of(fresh))[SAMPLE_SIZE_PROPERTY] = chosen
    for index, trial in experiment.trials.items():
        if trial.status != TrialStatus.COMPLETED:
            continue
        rows = data[data["trial_index"] == index].set_index("metric_name")
        loss, ratio = (
            MeanSEM(float(rows["mean"][name]), float(rows["sem"][name]))
            for name in ("loss", "compression_ratio")
        )
        outcome = problem.outcome(loss, ratio.mean)
        point = {name: float(value) for name, value in trial.arm.parameters.items()}
        with quiet_ax():
            fresh.complete_trial(
                fresh.attach_trial(point),
                {name: tuple(outcome[name]) for name in _METRICS},
            )
    return fresh


def check_same_space(client: Client, problem: CompressionProblem) -> None:
    """Refuse to continue a search of other layers."""
    known = set(experiment_of(client).search_space.parameters)
    expected = {parameter.name for parameter in problem.parameters}
    if known != expected:
        raise ValueError(
            "the client belongs to another search: its parameters are "
            f"{sorted(known)}, this network's are {sorted(expected)}"
        )


def check_same_problem(client: Client, problem: CompressionProblem) -> None:
    """Refuse to continue a search whose trials were evaluated on something else.

    Their objectives would be taken for those of this problem, and a certificate would
    speak of neither. A client from before such settings were kept is checked by its
    trials alone: size and objective have to be those of this problem.

    Args:
        client: Client of an earlier search.
        problem: What is searched now.

    Raises:
        ValueError: with the setting, or the trial, that differs.
    """
    check_same_space(client, problem)
    experiment = experiment_of(client)
    remedy = (
        "Its objectives do not hold here. Search without `client`; compress_at and "
        "compress_to use the evaluations of one gamma for others."
    )
    kept = properties(experiment).get(PROBLEM_PROPERTY)
    if isinstance(kept, dict):
        stored, asked = (
            {name: v for name, v in settings.items() if name not in _MAY_DIFFER}
            for settings in (kept, problem_settings(problem))
        )
        difference = first_difference(stored, asked)
        if difference is not None:
            setting, before, now = difference
            raise ValueError(
                f"the client's search was made with {setting} = {before}, now "
                f"{setting} = {now}. {remedy}"
            )
    data = experiment.lookup_data().df
    for index, trial in experiment.trials.items():
        rows = data[data["trial_index"] == index].set_index("metric_name")["mean"]
        if trial.status != TrialStatus.COMPLETED or not set(_METRICS) <= set(
            rows.index
        ):
            continue
        ratio = problem.ratio(problem.ranks(trial.arm.parameters))
        now_is = problem.outcome(MeanSEM(float(rows["loss"]), 0.0), ratio)
        for name in ("compression_ratio", "objective"):
            if not math.isclose(now_is[name].mean, rows[name], rel_tol=1e-6):
                raise ValueError(
                    f"the client belongs to another search: {name} of its trial "
                    f"{index} is {rows[name]:.6g}, here it would be "
                    f"{now_is[name].mean:.6g}. {remedy}"
                )


@contextlib.contextmanager
def quiet_ax() -> Iterator[None]:
    """Hide Ax's report of every trial while our own progress bar shows them."""
    logger = logging.getLogger("ax.api.client")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # GPyTorch raises noise below 1e-6 of the data's variance to that value at
            # every fit. More noise makes a certificate harder to obtain.
            warnings.filterwarnings("ignore", message="Very small noise values")
            # And it raises variances that are negative by rounding error to 1e-10 of
            # the data's variance, at points of which the model is certain.
            warnings.filterwarnings("ignore", message="Negative variance values")
            yield
    finally:
        logger.setLevel(level)


def range_parameters(
    parameters: Iterable[RankParameter],
) -> list[RangeParameterConfig]:
    """Describe rank parameters to Ax, for `Client.configure_experiment`.

    Args:
        parameters: From `rank_parameters`.

    Returns:
        One float parameter in [0, 1] each, in the same order.

    Raises:
        ValueError: when there are none, or two share a name.

    Example:
        >>> from compression_adapters.layers.survey import LayerSpec
        >>> from compression_adapters.rank_space.parameters import rank_parameters
        >>> layers = [LayerSpec("fc", None, (30, 20), 12, 600)]
        >>> [p.name for p in range_parameters(rank_parameters(layers))]
        ['fc']
    """
    names = [parameter.name for parameter in parameters]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected one or more parameters with different names; got {names}."
        )
    return [
        RangeParameterConfig(name=name, parameter_type="float", bounds=(0.0, 1.0))
        for name in names
    ]
