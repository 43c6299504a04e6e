"""Tables and figures of the certificates and the times of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from ax.core.experiment import Experiment
from scipy.special import ndtri

from ax_pac.ax_internals import experiment_of
from ax_pac.experiment.records import certificate_records

_TIMES = ("fit", "certify", "propose", "evaluate")

# Blue and green for this package's share, grey for the evaluation.
_TIME_COLOURS = ("#1f77b4", "#2ca02c", "#9ecae1", "#b0b7bf")

_PROBABILITY_TICKS = [*(m * 10.0**-k for k in range(1, 4) for m in (5, 2, 1)), 1e-6]
_ACCENT, _BAND, _THRESHOLD = "#1f77b4", "rgba(31, 119, 180, 0.18)", "#7f7f7f"


def certificate_history(client: Any) -> pd.DataFrame:
    """Return every certificate computed in a search, one row each.

    Args:
        client: An Ax `Client`, `AxClient` or `Experiment`.

    Returns:
        Columns `num_trials, num_observations, level, delta, epsilon, score,
        failure_probability, certifiable, holds, incumbent_arm, incumbent_mean,
        incumbent_sd, incumbent_known, seconds_fit, seconds_propose, reason`.
    """
    return history_table(certificate_records(experiment_of(client)))


def history_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Turn certificate records into a table, see `certificate_history`.

    Args:
        records: What `certificate_records` returned, or the same from a file.
    """
    columns = [
        *("num_trials", "num_observations", "level", "delta", "epsilon", "score"),
        *("failure_probability", "certifiable", "holds", "incumbent_arm"),
        *("incumbent_mean", "incumbent_sd", "incumbent_known"),
        *("seconds_fit", "seconds_propose", "reason"),
    ]
    rows = [
        {
            **{name: record[name] for name in columns if name in record},
            "seconds_fit": record["seconds"]["fit"],
            "seconds_propose": record["seconds"]["propose"],
        }
        for record in records
    ]
    return pd.DataFrame(rows, columns=columns)


def time_table(client: Any) -> pd.DataFrame:
    """Return the wall seconds of each trial, by what they were spent on.

    Args:
        client: An Ax `Client`, `AxClient` or `Experiment`.

    Returns:
        Columns `trial_index`, `fit` (surrogates), `certify` (the certificate computed
        before the trial, and the challenger that it found), `propose` (the rest of the
        proposal) and `evaluate` (from the trial's start to its completion; missing
        while it runs). Unit: seconds.
    """
    experiment: Experiment = experiment_of(client)
    rows = []
    for index, trial in sorted(experiment.trials.items()):
        started, completed = trial.time_run_started, trial.time_completed
        known = started is not None and completed is not None
        runs = trial.generator_runs
        rows.append(
            {
                "trial_index": index,
                "fit": sum(run.fit_time or 0.0 for run in runs),
                "certify": 0.0,
                "propose": sum(run.gen_time or 0.0 for run in runs),
                "evaluate": (completed - started).total_seconds() if known else None,
            }
        )
    table = pd.DataFrame(rows, columns=["trial_index", *_TIMES]).set_index(
        "trial_index", drop=False
    )
    for record in certificate_records(experiment):
        # No trial follows the last certificate.
        index = record.get("before_trial", record["num_trials"])
        if index in table.index:
            table.loc[index, "fit"] += record["seconds"]["fit"]
            table.loc[index, "certify"] += record["seconds"]["propose"]
    return table.reset_index(drop=True)


def plot_certificate_history(history: pd.DataFrame) -> go.Figure:
    """Draw the failure probability of each certificate and the line it must fall below.

    The axis is logarithmic and shows what may still go wrong, because the interesting
    part of "1 minus a small number" cannot be seen on a linear one; the certified
    probability is in the label of each point.

    Args:
        history: What `certificate_history` returned.
    """
    failure = history["failure_probability"].clip(lower=1e-12)
    figure = go.Figure(
        go.Scatter(
            x=history["num_observations"].tolist(),
            y=failure.tolist(),
            mode="lines+markers",
            line_color=_ACCENT,
            name="failure probability",
            customdata=(1.0 - failure).tolist(),
            hovertemplate=(
                "%{x} evaluations<br>failure probability %{y:.3g}"
                "<br>certified with %{customdata:.5f}<extra></extra>"
            ),
        )
    )
    if len(history):
        epsilon = float(history["epsilon"].iloc[-1])
        name = f"certified below, with 1 - epsilon = {1 - epsilon:g}"
        _add_threshold(figure, history, epsilon, name)
        level = history["level"].iloc[-1]
        figure.update_layout(title=f"Certificate, level {level}", showlegend=True)
    figure.update_xaxes(title="evaluations")
    figure.update_yaxes(
        title="probability that the incumbent is not within delta",
        type="log",
        # On one or two decades plotly labels every line, on many every third.
        tickvals=_PROBABILITY_TICKS,
        ticktext=[f"{tick:g}" for tick in _PROBABILITY_TICKS],
    )
    return figure


def plot_challenger_gap(history: pd.DataFrame) -> go.Figure:
    """Draw the strongest challenger's score and the line it must fall below.

    The score is how many standard deviations the challenger is from beating the
    incumbent by delta; a single challenger is harmless below the epsilon quantile of
    the normal distribution. Necessary at every level, sufficient at `pairwise`.

    Args:
        history: What `certificate_history` returned.
    """
    figure = go.Figure(
        go.Scatter(
            x=history["num_observations"].tolist(),
            y=history["score"].tolist(),
            mode="lines+markers",
            line_color=_ACCENT,
            name="score of the strongest challenger",
            customdata=history["delta"].tolist(),
            hovertemplate=(
                "%{x} evaluations<br>score %{y:.3f}<br>delta %{customdata:.4g}"
                "<extra></extra>"
            ),
        )
    )
    if len(history):
        epsilon = float(history["epsilon"].iloc[-1])
        name = f"no single challenger below, epsilon = {epsilon:g}"
        _add_threshold(figure, history, float(ndtri(epsilon)), name)
    figure.update_layout(title="Gap to the challenger", showlegend=True)
    figure.update_xaxes(title="evaluations")
    figure.update_yaxes(title="score (standard deviations)")
    return figure


def plot_incumbent_history(history: pd.DataFrame) -> go.Figure:
    """Draw the posterior mean of the incumbent, with a 95 % interval.

    Where a part of the objective is known, with that part and the rest.

    Args:
        history: What `certificate_history` returned.
    """
    x, mean = history["num_observations"], history["incumbent_mean"].astype(float)
    margin = 1.96 * history["incumbent_sd"].astype(float)
    figure = go.Figure()
    figure.add_scatter(
        x=pd.concat([x, x[::-1]]).tolist(),
        y=pd.concat([mean + margin, (mean - margin)[::-1]]).tolist(),
        fill="toself",
        fillcolor=_BAND,
        line_color="rgba(0, 0, 0, 0)",
        name="95 % interval of the posterior",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=x.tolist(),
        y=mean.tolist(),
        mode="lines+markers",
        line_color=_ACCENT,
        name="incumbent, posterior mean",
        customdata=history["incumbent_arm"].tolist(),
        hovertemplate="%{x} evaluations<br>arm %{customdata}, %{y:.4g}<extra></extra>",
    )
    known = history["incumbent_known"].astype(float)
    if known.notna().any():
        parts = (("known part", known), ("unknown part", mean - known))
        for (name, part), dash in zip(parts, ("dot", "dash"), strict=True):
            figure.add_scatter(
                x=x.tolist(),
                y=part.tolist(),
                mode="lines",
                line={"color": _THRESHOLD, "dash": dash},
                name=name,
                hovertemplate=f"%{{x}} evaluations<br>{name} %{{y:.4g}}<extra></extra>",
            )
    changed = history["incumbent_arm"] != history["incumbent_arm"].shift()
    figure.add_scatter(
        x=x[changed].tolist(),
        y=mean[changed].tolist(),
        mode="markers",
        marker={"symbol": "circle-open", "size": 13, "color": "#d62728"},
        marker_line_width=2,
        name="another arm became the incumbent",
        hoverinfo="skip",
    )
    figure.update_layout(title="Incumbent and its uncertainty", showlegend=True)
    figure.update_xaxes(title="evaluations")
    figure.update_yaxes(title="objective")
    return figure


def plot_times(times: pd.DataFrame) -> go.Figure:
    """Draw the times of each trial as stacked bars.

    Args:
        times: What `time_table` returned.
    """
    names = ("fit", "certificate and challenger", "rest of the proposal", "evaluation")
    figure = go.Figure()
    for column, name, colour in zip(_TIMES, names, _TIME_COLOURS, strict=True):
        seconds = times[column].astype(float)
        figure.add_bar(
            x=times["trial_index"].tolist(),
            y=seconds.tolist(),
            name=f"{name}, {seconds.sum():.1f} s in all",
            marker_color=colour,
            hovertemplate=f"trial %{{x}}, {name} %{{y:.3f}} s<extra></extra>",
        )
    figure.update_layout(
        title="Where the time went", barmode="stack", legend_traceorder="normal"
    )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="seconds")
    return figure


def _add_threshold(
    figure: go.Figure, history: pd.DataFrame, value: float, name: str
) -> None:
    """Draw a horizontal line, as a trace: plotly misplaces shapes on a log axis."""
    figure.add_scatter(
        x=[
            history["num_observations"].iloc[0],
            history["num_observations"].iloc[-1],
        ],
        y=[value, value],
        mode="lines",
        line={"dash": "dash", "color": _THRESHOLD},
        name=name,
        hoverinfo="skip",
    )
