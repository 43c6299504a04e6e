"""The files of a finished search: summary, table of trials, and a web page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from compression_adapters.report.plots import (
    SizeAxis,
    plot_ladders,
    plot_layer_errors,
    plot_layer_sizes,
    plot_objective,
    plot_ranks,
    plot_ratio_against_accuracy,
    plot_ratio_against_loss,
)
from compression_adapters.report.versioned_json import read_versioned, write_versioned

SUMMARY_FILE = "summary.json"


TRIALS_FILE = "trials.csv"


REPORT_FILE = "report.html"


NETWORK_FOLDER = "network"


FORMAT_VERSION = 1

_HEIGHT = 420
"""Pixels of a plot that does not ask for another height (`layout.meta`)."""


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; margin: 1rem 0; }
.holds { border-color: #2ca02c; background: #f0f8f0; }
.open { border-color: #d9822b; background: #fdf6ee; }
.headline { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 1.2rem 0; }
.headline p { margin: 0; max-width: 18rem; color: #555; line-height: 1.3; }
.headline b { display: block; font-size: 1.8rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; } figcaption { color: #555; }
.wide { overflow-x: auto; } .trials { font-size: .8rem; }
"""


def write_run(folder: Path, summary: dict[str, Any], trials: pd.DataFrame) -> None:
    """Write `summary.json` and `trials.csv`.

    Args:
        folder: Where to write; created if missing.
        summary: Plain JSON values. NaN and infinities become null, because JSON lacks
            them.
        trials: The trial table of a search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_versioned(folder / SUMMARY_FILE, summary, FORMAT_VERSION)
    trials.to_csv(folder / TRIALS_FILE, index=False)


def read_run(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read the files of `write_run`.

    Args:
        folder: A run's folder.

    Returns:
        Summary and trial table.

    Raises:
        ValueError: When the folder holds no finished run, a damaged one, or one of a
            newer format.
    """
    path = folder / SUMMARY_FILE
    if not path.is_file() or not (folder / TRIALS_FILE).is_file():
        raise ValueError(
            f"{folder} holds no finished run: expected {SUMMARY_FILE} and {TRIALS_FILE}"
        )
    summary = read_versioned(path, FORMAT_VERSION)
    return summary, pd.read_csv(folder / TRIALS_FILE)


def write_report(
    folder: Path, extra_figures: Sequence[tuple[str, go.Figure]] = ()
) -> Path:
    """Write `report.html` from a run's files; it opens without a connection.

    Args:
        folder: A run's folder, see `write_run`.
        extra_figures: Further plots with their captions, placed at the end.

    Returns:
        The page.

    Raises:
        ValueError: When the folder holds no finished run.
    """
    summary, trials = read_run(folder)
    layers = pd.DataFrame(summary["layers"])
    incumbent = summary.get("incumbent_trial")
    of_layer, scale, axis = _unit(summary)
    figures: list[tuple[str, go.Figure]] = []
    sizes = _with_sizes(layers)
    if sizes is not None:
        caption = f"What each layer costs before and after: {of_layer}."
        figures.append((caption, plot_layer_sizes(sizes, of_layer, scale)))
    if "accuracy_compressed" in summary:
        figures.append(
            (
                "Each evaluated network on the test set, which the search did not use.",
                plot_ratio_against_accuracy(_accuracy_points(summary, trials), axis),
            )
        )
    figures.append(
        (
            "Size and loss of each evaluated network, as measured in the search, with "
            "95 % intervals.",
            plot_ratio_against_loss(trials, incumbent, axis),
        )
    )
    if summary.get("ladders"):
        figures.append(
            (
                "What each layer could be: the size of every form that no other one "
                "beats, and what it loses of the layer's squared output. The ring is "
                "the form that was chosen.",
                plot_ladders(summary["ladders"], of_layer, scale),
            )
        )
    else:  # a run from before there were any
        figures.append(("The rank of each layer.", plot_ranks(layers)))
    if "output_error" in layers:
        figures.append(
            (
                "What each layer's rank leaves out of its output, before any refit: as "
                "its factors predict it, and on fresh inputs, with all other layers "
                "left as they were.",
                plot_layer_errors(layers),
            )
        )
    figures += [
        (
            "Each evaluation of the objective, on fresh samples, with its error bars.",
            plot_objective(trials, incumbent),
        ),
        *extra_figures,
    ]
    path = folder / REPORT_FILE
    path.write_text(_page(summary, layers, trials, figures), encoding="utf-8")
    return path


def _unit(summary: dict[str, Any]) -> tuple[str, float, SizeAxis]:
    """Return what is counted of a layer, the factor to its unit, and the axis."""
    size = summary.get("size")
    if size is None or (size["size"], size["size_of"]) == ("weights", "layers"):
        return "weights", 1.0, SizeAxis("compression ratio, layers in play")
    quantity, scale = str(size["quantity"]), float(size["scale"])
    of_layer = quantity.rpartition(",")[0] or quantity  # of what, is said last
    return of_layer, scale, SizeAxis(quantity, scale * size["before"])


def _with_sizes(layers: pd.DataFrame) -> pd.DataFrame | None:
    """Add sizes to a table of layers that has weights only; None of an older run."""
    if "size" in layers:
        return layers
    if not {"weights", "weights_before"} <= set(layers):
        return None
    return layers.assign(size=layers["weights"], size_before=layers["weights_before"])


def _accuracy_points(summary: dict[str, Any], trials: pd.DataFrame) -> pd.DataFrame:
    """Collect original network, trials and result as pairs of ratio and accuracy."""
    points = [
        {
            "name": "original",
            "compression_ratio": 1.0,
            "accuracy": summary["accuracy_original"],
        }
    ]
    if "accuracy" in trials:
        evaluated = trials.dropna(subset=["accuracy"])
        found = evaluated["trial_index"] == summary["incumbent_trial"]
        names = evaluated["trial_index"].astype(str)
        names = names.mask(found, "before the refit")
        evaluated = evaluated.assign(name=names)
        finish = summary.get("finish") or {"steps": []}
        if not any(step["accepted"] for step in finish["steps"]):
            evaluated = evaluated[~found]
        columns = ["name", "compression_ratio", "accuracy"]
        rows = evaluated[columns].to_dict("records")
        points += [{str(key): value for key, value in row.items()} for row in rows]
    points.append(
        {
            "name": "compressed",
            "compression_ratio": summary["compression_ratio"],
            "accuracy": summary["accuracy_compressed"],
        }
    )
    return pd.DataFrame(points)


def _page(
    summary: dict[str, Any],
    layers: pd.DataFrame,
    trials: pd.DataFrame,
    figures: Sequence[tuple[str, go.Figure]],
) -> str:
    """Assemble the page."""
    certificate, reason = summary["certificate"], summary["stop_reason"]
    parts = [
        _headline(summary),
        verdict_html(
            certificate["holds"],
            certificate["level"],
            certificate["reason"],
            certificate["num_observations"],
            reason,
        ),
        _statement_html(summary),
        _results_table(summary),
    ]
    for number, (caption, figure) in enumerate(figures):
        # The page contains the library once, so that it opens without a connection.
        parts.append(figure_html(figure, caption, with_library=number == 0))
    if "weight_shape" in layers:
        shapes = [" x ".join(map(str, shape)) for shape in layers["weight_shape"]]
        layers = layers.assign(weight_shape=shapes)
    number_format = "{:.4g}".format
    own = layers.to_html(index=False, border=0, float_format=number_format)
    parts.append(f"<h2>Layers</h2>{wide(own)}")
    table = trials.to_html(index=False, border=0, na_rep="", float_format=number_format)
    parts.append(f"<h2>Trials</h2><div class='trials'>{wide(table)}</div>")
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    parts.append(f"<p>Seed {summary['seed']}; {html.escape(versions)}.</p>")
    return html_page(f"Compression of {summary['network']}", parts)


def _headline(summary: dict[str, Any]) -> str:
    """Say before and after in the user's unit, and the quality, in large print."""
    (name, before, after), *_ = [
        *_size_rows(summary),
        ("weights, layers in play", "100 %", f"{_weights_ratio(summary):.1%}"),
    ]
    cells = [f"<b>{after}</b>{name}, {before} before"]
    if "accuracy_compressed" in summary:
        accuracies = (summary[f"accuracy_{n}"] for n in ("compressed", "original"))
        small, whole = (f"{value:.2%}" for value in accuracies)
        cells.append(f"<b>{small}</b>top-1 accuracy, {whole} before")
    said = summary.get("statement")
    if said:
        name = str(said["quantity"])
        percent = name in ("agreement", "accuracy_drop")
        value = f"{said['estimate']:.2%}" if percent else f"{said['estimate']:.4g}"
        label = {"agreement": "agreement with the original"}.get(name, name)
        cells.append(
            f"<b>{value}</b>{label.replace('_', ' ')}, on {said['count']:,} held-out "
            "inputs"
        )
    elif summary.get("loss_fresh"):
        cells.append(f"<b>{summary['loss_fresh']['mean']:.4g}</b>loss, fresh samples")
    return "<div class='headline'>" + "".join(f"<p>{c}</p>" for c in cells) + "</div>"


def html_page(title: str, parts: Sequence[str]) -> str:
    """Assemble a page.

    Args:
        title: Its heading, not yet escaped.
        parts: Its content.

    Returns:
        The page.
    """
    title = html.escape(title)
    head = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>"])


def readable(number: float) -> str:
    """Write a number for people: thousands in full, smaller ones with four digits.

    Example:
        >>> readable(1794000.0), readable(0.0358512)
        ('1,794,000', '0.03585')
    """
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def wide(table: str) -> str:
    """Let a table that is wider than the page be scrolled by itself."""
    return f"<div class='wide'>{table}</div>"


def figure_html(figure: go.Figure, caption: str, *, with_library: bool) -> str:
    """Render a plot with its caption.

    Args:
        figure: The plot; its layout is adapted to the page.
        caption: Not yet escaped.
        with_library: True for the first plot of a page.

    Returns:
        Part of a page.
    """
    height = (figure.layout.meta or {}).get("height", _HEIGHT)
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"t": 60},
        # Below the axis, at the same distance whatever the height is.
        legend={"orientation": "h", "y": -0.2 * _HEIGHT / height},
    )
    picture = figure.to_html(
        full_html=False, include_plotlyjs=with_library, config={"responsive": True}
    )
    caption = html.escape(caption)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def verdict_html(
    holds: bool, level: str, reason: str, evaluations: int, stop_reason: str = ""
) -> str:
    """State in one paragraph whether a search is certified, and at which level.

    Args:
        holds: Whether the certificate holds.
        level: Level of the certificate.
        reason: Reason of the certificate.
        evaluations: Number of evaluations.
        stop_reason: Why the search ended without one, if known.

    Returns:
        Part of a page.
    """
    if stop_reason == "no_search":
        return f"<p class='verdict open'><strong>Not searched</strong>: {reason}.</p>"
    why = f" ({stop_reason})" if stop_reason else ""
    head = "Certified" if holds else f"Not certified{why}"
    return (
        f"<p class='verdict {'holds' if holds else 'open'}'><strong>{head}</strong>, "
        f"level {html.escape(level)}: {html.escape(reason)}. "
        f"{evaluations} evaluations.</p>"
    )


def _statement_html(summary: dict[str, Any]) -> str:
    """State what is true of the quality, if something is; older runs have nothing."""
    said = summary.get("statement")
    return f"<p>The network {html.escape(said['sentence'])}.</p>" if said else ""


def _results_table(summary: dict[str, Any]) -> str:
    """Tabulate before and after."""
    rows = _size_rows(summary)
    if "accuracy_compressed" in summary:
        for name, key in (("top-1 accuracy", "accuracy"), ("top-5 accuracy", "top5")):
            before, after = summary[f"{key}_original"], summary[f"{key}_compressed"]
            rows.append((name, f"{before:.2%}", f"{after:.2%}"))
    costs = summary.get("costs", {"table": [], "warnings": []})
    ratios = [("weights, layers in play", _weights_ratio(summary))]
    if not costs["table"]:  # which counts the weights of the whole network
        ratios.append(("weights, whole network", summary["whole_network_ratio"]))
    rows += [(name, "100 %", f"{ratio:.2%}") for name, ratio in ratios]
    for cost in costs["table"]:
        before, after = readable(cost["before"]), readable(cost["after"])
        rows.append((cost["quantity"], before, f"{after} ({cost['ratio']:.1%})"))
    cells = "".join(
        f"<tr><td>{name}</td><td>{before}</td><td>{after}</td></tr>"
        for name, before, after in rows
    )
    seconds = ", ".join(f"{k} {v:.1f} s" for k, v in summary["timings"].items())
    fresh = summary.get("loss_fresh")
    remarks = [*costs["warnings"]]
    latency = summary.get("latency")
    if latency:
        remarks.insert(0, f"Whole network, measured in pairs: {latency['sentence']}")
        if latency["disagreement"]:
            remarks.insert(1, latency["disagreement"])
    if fresh is not None:
        remarks.append(
            f"Loss of the compressed network on fresh samples: {fresh['mean']:.4g}, "
            f"standard error {fresh['sem']:.2g}."
        )
    beside = summary.get("beside_incumbent")
    if beside is not None:
        remarks.append(
            "The certificate is of the best balance of loss and size that was found. "
            "This network just meets the target; its objective is above that one's by "
            f"{beside['mean']:.4g}, standard error {beside['sem']:.2g}."
        )
    gain = summary.get("gain_over_path")
    if gain is not None and gain["mean"] == gain["sem"] == 0.0:
        remarks.append(
            "It is a network of the price path: what the search added is the "
            "certificate."
        )
    elif gain is not None:
        remarks.append(
            "The objective is better than that of the best network of the price path "
            f"that was evaluated by {gain['mean']:.4g}, standard error "
            f"{gain['sem']:.2g}."
        )
    remarks += _choices(summary)
    if summary.get("finish"):
        remarks.append(
            f"{summary['finish']['sentence']} The certificate is of the networks as "
            "the trials measured them, before."
        )
    notes = "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)
    head = "<tr><th></th><th>original</th><th>compressed</th></tr>"
    table = wide(f"<table>{head}{cells}</table>")
    return f"{table}{_finish_table(summary)}{notes}<p>Time: {seconds}.</p>"


def _weights_ratio(summary: dict[str, Any]) -> float:
    """Return the ratio of weights, which older runs have under another name."""
    return float(summary.get("weights_ratio", summary["compression_ratio"]))


def _size_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Tabulate the size in the user's unit, the measured one first."""
    rows = []
    latency, size = summary.get("latency"), summary.get("size")
    if latency:
        rows.append(
            (
                f"milliseconds, whole network, batch {latency['machine']['batch']}",
                f"{1e3 * latency['before']:.4g}",
                f"{1e3 * latency['after']:.4g} ({latency['ratio']:.1%})",
            )
        )
    if size is not None and (size["size"], size["size_of"]) != ("weights", "layers"):
        before, after = (size["scale"] * size[key] for key in ("before", "after"))
        share = f"({after / before:.1%})"
        rows.append((size["quantity"], readable(before), f"{readable(after)} {share}"))
    return rows


def _finish_table(summary: dict[str, Any]) -> str:
    """Tabulate the loss before and after each step that followed the search."""
    finish = summary.get("finish")
    if not finish:
        return ""
    before = finish["before"]
    rows = [("as the search measured it", before, None, "")]
    for step in finish["steps"]:
        name = "refit in sequence" if step["name"] == "refit" else "batch norm moved"
        kept = "kept" if step["accepted"] else "not kept"
        rows.append((name, step["loss"], step["change"], kept))
    cells = "".join(
        f"<tr><td>{name}</td><td>{_estimate(loss)}</td><td>{_estimate(change)}</td>"
        f"<td>{kept}</td></tr>"
        for name, loss, change, kept in rows
    )
    head = "<tr><th>after the search</th><th>loss</th><th>change</th><th></th></tr>"
    return wide(f"<table>{head}{cells}</table>")


def _estimate(estimate: dict[str, float] | None) -> str:
    """Write a mean with its standard error."""
    if estimate is None:
        return ""
    return f"{estimate['mean']:.4g} &plusmn; {estimate['sem']:.2g}"


def _choices(summary: dict[str, Any]) -> list[str]:
    """State what the search chose apart from the ranks."""
    sentences = []
    if summary.get("calibration"):
        known = summary["calibration"]
        share = "" if known["share"] is None else f" ({known['share']:.2%} of the pool)"
        sentences.append(
            f"Factors fitted to {known['count']} inputs{share}, which no evaluation "
            "drew."
        )
    elif "calibration" in summary:  # older runs do not say
        sentences.append("Factors of the weights alone.")
    if summary.get("sample_size"):
        sentences.append(str(summary["sample_size"]["reason"]))
    elif summary.get("num_samples"):
        sentences.append(f"{summary['num_samples']} samples per evaluation.")
    if summary.get("gammas"):
        evaluations = sum(row["evaluations"] for row in summary["gammas"])
        sentences.append(
            f"Target met with gamma {summary['gamma']:.4g}, one of "
            f"{len(summary['gammas'])} that were tried with {evaluations} evaluations."
        )
    return sentences
