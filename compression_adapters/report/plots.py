"""Plots of a finished search, from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# On a log axis over one or two decades, plotly's own tick labels overlap.
_RATIO_TICKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]


_RATIO_AXIS = {"type": "log", "tickvals": _RATIO_TICKS, "tickformat": ".1~%"}


_ACCENT, _MUTED, _FAILED = "#1f77b4", "#b0b7bf", "#d62728"
_FIRST = "first"
_COLOURS = {"Sobol": _MUTED, _FIRST: "#e69f00"}
_OTHER = "#666666"
_KINDS = {
    **{"svd": "#1f77b4", "low_rank_conv": "#1f77b4", "channel_conv": "#e69f00"},
    **{"tucker": "#2ca02c", "embedding": "#9467bd", "pruning": "#8c564b"},
}
"""Colours of decompositions; those that a layer can have together differ."""

_COLUMNS: Final = 4
_MOST_LADDERS: Final = 24


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


@dataclass(frozen=True)
class SizeAxis:
    """The horizontal axis of networks by size.

    Args:
        title: What is counted, with its unit.
        factor: From a compression ratio to that unit; None draws ratios, on a log axis.
    """

    title: str = "compression ratio"
    factor: float | None = None

    def values(self, ratios: pd.Series) -> pd.Series:
        """Return where networks of these ratios are drawn."""
        return ratios if self.factor is None else self.factor * ratios

    def update(self, figure: go.Figure) -> None:
        """Label the axis."""
        if self.factor is None:
            figure.update_xaxes(title=self.title, **_RATIO_AXIS)
        else:
            figure.update_xaxes(title=self.title, rangemode="tozero")
            figure.add_vline(
                self.factor,
                line={"color": _MUTED, "dash": "dash"},
                annotation={"text": "original", "font": {"color": "#777"}},
                annotation_position="top left",
            )

    @property
    def hover(self) -> str:
        """What is shown of a network's size under the mouse."""
        return "ratio %{x:.2%}" if self.factor is None else "%{x:.4g}"


_RATIOS = SizeAxis()


def plot_ratio_against_loss(
    trials: pd.DataFrame, incumbent: int | None = None, axis: SizeAxis = _RATIOS
) -> go.Figure:
    """Plot loss against size for every trial.

    Args:
        trials: A search's trial table.
        incumbent: Trial index of the incumbent, None where none is the result.
        axis: How sizes are drawn.
    """
    done = trials.dropna(subset=["objective"])
    chosen = done["trial_index"] == incumbent
    figure = go.Figure()
    for rows, name, colour in (
        (done[~chosen], "evaluated", _ACCENT),
        (done[chosen], "incumbent", _FAILED),
    ):
        if name == "incumbent" and not len(rows) and incumbent is None:
            continue
        figure.add_scatter(
            x=axis.values(rows["compression_ratio"]),
            y=rows["loss"],
            error_y={"type": "data", "array": 1.96 * rows["loss_sem"]},
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9},
            text=rows["trial_index"],
            hovertemplate=f"trial %{{text}}<br>{axis.hover}<br>loss %{{y:.4g}}",
        )
    figure.update_layout(title="Loss against size")
    axis.update(figure)
    figure.update_yaxes(title="loss")
    return figure


def plot_ratio_against_accuracy(
    points: pd.DataFrame,
    axis: SizeAxis = SizeAxis("compression ratio, layers in play"),
) -> go.Figure:
    """Plot test accuracy against size.

    Args:
        points: One row per network: `name, compression_ratio, accuracy`. Networks whose
            name is a number are drawn small, without it.
        axis: How sizes are drawn.
    """
    trials = points["name"].astype(str).str.isdigit()
    figure = go.Figure()
    for rows, named in ((points[trials], False), (points[~trials], True)):
        if not len(rows):
            continue
        figure.add_scatter(
            x=axis.values(rows["compression_ratio"]),
            y=rows["accuracy"],
            text=rows["name"],
            mode="markers+text" if named else "markers",
            textposition="bottom center",
            name="original and result" if named else "evaluated",
            marker={"color": _FAILED if named else _ACCENT, "size": 12 if named else 8},
            hovertemplate=(
                f"%{{text}}<br>{axis.hover}<br>top-1 %{{y:.2%}}<extra></extra>"
            ),
        )
    figure.update_layout(title="Test accuracy against size")
    axis.update(figure)
    figure.update_yaxes(title="top-1 accuracy", tickformat=".1%")
    return figure


def plot_ladders(
    ladders: Sequence[Mapping[str, Any]], quantity: str, scale: float
) -> go.Figure:
    """Plot what every form of a layer costs and loses, and which one was chosen.

    Args:
        ladders: One entry for each layer: `layer`, `dense`, the size of the dense
            layer, `chosen`, the place of its form in the next four or None for dense,
            and `kinds`, `ranks`, `sizes` and `errors`, of the squared output, as
            shares. The largest `_MOST_LADDERS` layers are drawn.
        quantity: What is counted, with its unit.
        scale: Factor from the sizes to that unit.
    """
    largest = sorted(ladders, key=lambda each: -each["dense"])[:_MOST_LADDERS]
    shown = [each for each in ladders if each in largest]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[str(each["layer"]) for each in shown],
        horizontal_spacing=0.05,
        vertical_spacing=0.35 / rows,
        x_title=quantity,
        y_title="error of the layer's output",
    )
    known: set[str] = set()
    errors = [error for each in shown for error in each["errors"] if error > 0.0]
    # Below all of them: where a form without an error is drawn on a log axis.
    floor = 0.5 * min(errors, default=1.0)
    for number, each in enumerate(shown):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        table = pd.DataFrame(
            {name: each[name] for name in ("kinds", "ranks", "sizes", "errors")}
        )
        for kind, own in table.groupby("kinds", sort=False):
            figure.add_scatter(
                x=scale * own["sizes"],
                y=own["errors"].clip(lower=floor),
                customdata=own["errors"],
                text=[f"{kind}, rank {rank}" for rank in own["ranks"]],
                hovertemplate=(
                    "%{text}<br>%{x:.4g}<br>error %{customdata:.2%}<extra></extra>"
                ),
                mode="markers",
                name=str(kind),
                legendgroup=str(kind),
                showlegend=kind not in known,
                marker={"color": _KINDS.get(str(kind), _OTHER), "size": 5},
                **place,
            )
            known.add(str(kind))
        dense = each["chosen"] is None
        size = each["dense"] if dense else each["sizes"][each["chosen"]]
        error = floor if dense else max(floor, each["errors"][each["chosen"]])
        figure.add_scatter(
            x=[scale * each["dense"]],
            y=[floor],
            mode="markers",
            name="dense, no error",
            legendgroup="dense",
            showlegend=number == 0,
            marker={"color": _MUTED, "size": 8, "symbol": "square"},
            hovertemplate="dense<br>%{x:.4g}<extra></extra>",
            **place,
        )
        figure.add_scatter(
            x=[scale * size],
            y=[error],
            mode="markers",
            name="chosen",
            legendgroup="chosen",
            showlegend=number == 0,
            marker={"symbol": "circle-open", "size": 13, "color": _FAILED},
            marker_line_width=2,
            hovertemplate="chosen<br>%{x:.4g}<extra></extra>",
            **place,
        )
    figure.update_layout(
        title="Forms of each layer"
        if len(shown) == len(ladders)
        else (f"Forms of the {len(shown)} largest of {len(ladders)} layers"),
        meta={"height": 130 + 190 * rows},
    )
    figure.update_annotations(font_size=11)
    figure.update_xaxes(rangemode="tozero", nticks=4, tickfont_size=10)
    figure.update_yaxes(
        type="log",
        tickvals=[0.0001, 0.001, 0.01, 0.1, 1.0],
        tickformat="~%",
        tickfont_size=10,
    )
    return figure
