"""Plots of a finished search, from its tables alone."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

# On a log axis over one or two decades, plotly's own tick labels overlap.
_RATIO_TICKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]


_RATIO_AXIS = {"type": "log", "tickvals": _RATIO_TICKS, "tickformat": ".1~%"}


_ACCENT, _MUTED, _FAILED = "#1f77b4", "#b0b7bf", "#d62728"
_FIRST = "first"
_COLOURS = {"Sobol": _MUTED, _FIRST: "#e69f00"}


def plot_objective(trials: pd.DataFrame, incumbent: int | None = None) -> go.Figure:
    """Plot the objective of each trial with its error bars, the incumbent marked.

    Args:
        trials: A search's trial table: `trial_index, objective, objective_sem, node`.
        incumbent: Trial index of the incumbent.
    """
    done = trials.dropna(subset=["objective"])
    figure = go.Figure()
    # No node proposed the networks that a search begins with.
    for node, rows in done.fillna({"node": _FIRST}).groupby("node", sort=False):
        figure.add_scatter(
            x=rows["trial_index"],
            y=rows["objective"],
            error_y={"type": "data", "array": 1.96 * rows["objective_sem"]},
            mode="markers",
            name=f"{node} trials, 95 % interval",
            marker_color=_COLOURS.get(str(node), _ACCENT),
        )
    best = done[done["trial_index"] == incumbent]
    figure.add_scatter(
        x=best["trial_index"],
        y=best["objective"],
        mode="markers",
        name="incumbent",
        marker={"symbol": "circle-open", "size": 16, "color": _FAILED},
        marker_line_width=2,
    )
    figure.update_layout(title="Objective")
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="gamma * loss + ratio")
    return figure


def plot_ranks(layers: pd.DataFrame) -> go.Figure:
    """Plot each layer's rank against its maximal rank.

    Args:
        layers: A layer table: `layer, rank, max_rank, ratio`.
    """
    dense = layers["rank"] == "dense"
    rank = layers["rank"].where(~dense, layers["max_rank"]).astype(int)
    figure = go.Figure()
    figure.add_bar(
        x=layers["layer"], y=layers["max_rank"], name="maximal", marker_color=_MUTED
    )
    figure.add_bar(
        x=layers["layer"],
        y=rank,
        name="chosen",
        marker_color=_ACCENT,
        text=[
            f"{r} ({ratio:.1%} of weights)"
            for r, ratio in zip(layers["rank"], layers["ratio"], strict=True)
        ],
        textposition="outside",
    )
    figure.update_layout(title="Rank per layer", barmode="group")
    figure.update_yaxes(title="rank", type="log", dtick=1)
    return figure


def plot_layer_errors(layers: pd.DataFrame) -> go.Figure:
    """Plot each layer's predicted error against that of its output on fresh inputs.

    Args:
        layers: A search's table of layers: `layer, predicted_error, output_error`.
    """
    figure = go.Figure()
    for column, name, colour in (
        ("predicted_error", "predicted by the factors", _MUTED),
        ("output_error", "measured on fresh inputs", _ACCENT),
    ):
        figure.add_bar(
            x=layers["layer"], y=layers[column], name=name, marker_color=colour
        )
    figure.update_layout(title="Error of each layer's output", barmode="group")
    figure.update_yaxes(title="share of the squared output", tickformat=".1%")
    return figure


def plot_layer_sizes(layers: pd.DataFrame, quantity: str, scale: float) -> go.Figure:
    """Plot what each layer costs, before and after.

    Args:
        layers: A search's table of layers: `layer, size_before, size`.
        quantity: What is counted, with its unit.
        scale: Factor from the table to that unit.
    """
    figure = go.Figure()
    for column, name, colour in (
        ("size_before", "before", _MUTED),
        ("size", "after", _ACCENT),
    ):
        figure.add_bar(
            x=layers["layer"], y=scale * layers[column], name=name, marker_color=colour
        )
    figure.update_layout(title="Size of each layer", barmode="group")
    figure.update_yaxes(title=quantity)
    return figure


def plot_ratio_against_loss(
    trials: pd.DataFrame, incumbent: int | None = None
) -> go.Figure:
    """Plot loss against compression ratio for every trial.

    Args:
        trials: A search's trial table.
        incumbent: Trial index of the incumbent.
    """
    done = trials.dropna(subset=["objective"])
    chosen = done["trial_index"] == incumbent
    figure = go.Figure()
    for rows, name, colour in (
        (done[~chosen], "evaluated", _ACCENT),
        (done[chosen], "incumbent", _FAILED),
    ):
        figure.add_scatter(
            x=rows["compression_ratio"],
            y=rows["loss"],
            error_y={"type": "data", "array": 1.96 * rows["loss_sem"]},
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9},
            text=rows["trial_index"],
            hovertemplate="trial %{text}<br>ratio %{x:.2%}<br>loss %{y:.4g}",
        )
    figure.update_layout(title="Loss against compression ratio")
    figure.update_xaxes(title="compression ratio", **_RATIO_AXIS)
    figure.update_yaxes(title="loss")
    return figure


def plot_ratio_against_accuracy(
    points: pd.DataFrame,
) -> go.Figure:
    """Plot test accuracy against compression ratio.

    Args:
        points: One row per network: `name, compression_ratio, accuracy`.
    """
    figure = go.Figure(
        go.Scatter(
            x=points["compression_ratio"],
            y=points["accuracy"],
            text=points["name"],
            mode="markers+text",
            textposition="top center",
            marker={"color": _ACCENT, "size": 12},
            hovertemplate="%{text}<br>ratio %{x:.2%}<br>top-1 %{y:.2%}<extra></extra>",
        )
    )
    figure.update_layout(title="Ratio against test accuracy")
    figure.update_xaxes(title="compression ratio, layers in play", **_RATIO_AXIS)
    figure.update_yaxes(title="top-1 accuracy", tickformat=".1%")
    return figure
