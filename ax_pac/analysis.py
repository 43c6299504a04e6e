"""Tables and pictures of how a search came to its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ax_pac.records import certificate_records
from ax_pac.stopping import experiment_of


def certificate_history(client: Any) -> pd.DataFrame:
    """Return every certificate computed in a search, one row each.

    Args:
        client: An Ax `Client`, `AxClient` or `Experiment`.

    Returns:
        Columns `num_trials, num_observations, level, delta, epsilon, score,
        failure_probability, certifiable, holds, incumbent_arm, seconds_fit,
        seconds_propose, reason`.
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
            x=history["num_trials"],
            y=failure,
            mode="lines+markers",
            name="failure probability",
            customdata=1.0 - failure,
            hovertemplate=(
                "%{x} evaluations<br>failure probability %{y:.3g}"
                "<br>certified with %{customdata:.5f}<extra></extra>"
            ),
        )
    )
    if len(history):
        epsilon = float(history["epsilon"].iloc[-1])
        # A trace, not a shape: plotly puts a shape's label astray on a log axis.
        figure.add_scatter(
            x=[history["num_trials"].iloc[0], history["num_trials"].iloc[-1]],
            y=[epsilon, epsilon],
            mode="lines",
            line={"dash": "dash", "color": "#444"},
            name=f"certified below, with 1 - epsilon = {1 - epsilon:g}",
            hoverinfo="skip",
        )
        level = history["level"].iloc[-1]
        figure.update_layout(title=f"Certificate, level {level}", showlegend=True)
    figure.update_xaxes(title="evaluations")
    figure.update_yaxes(
        title="probability that the incumbent is not within delta", type="log"
    )
    return figure
