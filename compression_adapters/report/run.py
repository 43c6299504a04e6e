"""The files of a finished search: summary, table of trials, and a web page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from compression_adapters.report.plots import (
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


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; margin: 1rem 0; }
.holds { border-color: #2ca02c; background: #f0f8f0; }
.open { border-color: #d9822b; background: #fdf6ee; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
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
        extra_figures: Further plots with their captions, placed after the objective.

    Returns:
        The page.

    Raises:
        ValueError: When the folder holds no finished run.
    """
    summary, trials = read_run(folder)
    layers = pd.DataFrame(summary["layers"])
    incumbent = summary.get("incumbent_trial")
    figures = [
        (
            "Each evaluation of the objective, on fresh samples, with its error bars.",
            plot_objective(trials, incumbent),
        ),
        *extra_figures,
        ("The rank of each layer.", plot_ranks(layers)),
        (
            "Ratio and loss of each evaluated network, as measured in the search.",
            plot_ratio_against_loss(trials, incumbent),
        ),
    ]
    if "size" in layers:
        size = summary["size"]
        figures.insert(
            0,
            (
                "What each layer costs before and after, in the size that the search "
                "was about.",
                plot_layer_sizes(layers, size["quantity"], size["scale"]),
            ),
        )
    if "output_error" in layers:
        figures.insert(
            -1,
            (
                "What each layer's rank leaves out of its output, before any refit: as "
                "its factors predict it, and on fresh inputs, with all other layers "
                "left as they were.",
                plot_layer_errors(layers),
            ),
        )
    if "accuracy_compressed" in summary:
        points = _accuracy_points(summary, trials)
        figures.append(
            (
                "Each evaluated network on the test set, which the search did not use.",
                plot_ratio_against_accuracy(points),
            )
        )
    path = folder / REPORT_FILE
    path.write_text(_page(summary, layers, trials, figures), encoding="utf-8")
    return path


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
        verdict_html(
            certificate["holds"],
            certificate["level"],
            certificate["reason"],
            certificate["num_observations"],
            reason,
        ),
        _statement_html(summary),
        _results_table(summary),
        wide(layers.to_html(index=False, border=0, float_format="{:.4f}".format)),
    ]
    for number, (caption, figure) in enumerate(figures):
        # The page contains the library once, so that it opens without a connection.
        parts.append(figure_html(figure, caption, with_library=number == 0))
    number_format = "{:.4g}".format
    table = trials.to_html(index=False, border=0, na_rep="", float_format=number_format)
    parts.append(f"<h2>Trials</h2><div class='trials'>{wide(table)}</div>")
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    parts.append(f"<p>Seed {summary['seed']}; {html.escape(versions)}.</p>")
    return html_page(f"Compression of {summary['network']}", parts)


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
    figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"t": 60},
        legend={"orientation": "h", "y": -0.2},
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
    in_play = "weights_ratio" if "weights_ratio" in summary else "compression_ratio"
    ratios = [("weights, layers in play", in_play)]
    if not costs["table"]:  # which counts the weights of the whole network
        ratios.append(("weights, whole network", "whole_network_ratio"))
    rows += [(name, "100 %", f"{summary[key]:.2%}") for name, key in ratios]
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
