"""The files of several searches in a row: one summary and one web page."""

from __future__ import annotations

import html
import shutil
from pathlib import Path
from typing import Any, Final

import pandas as pd

from compression_adapters.report.plots import plot_ratio_against_accuracy
from compression_adapters.report.run import (
    REPORT_FILE,
    figure_html,
    html_page,
    verdict_html,
    wide,
)
from compression_adapters.report.versioned_json import read_versioned, write_versioned

STAGES_FOLDER: Final = "stages"


STAGES_FILE: Final = "stages.json"


FORMAT_VERSION: Final = 1


def write_stages(
    out: Path, summary: dict[str, Any], last_stage: Path, network: Path
) -> None:
    """Write `stages.json`, the page, and the last network.

    Args:
        out: Folder of the run.
        summary: Plain JSON values.
        last_stage: Folder of the last stage, whose network is copied.
        network: Where to copy it.
    """
    network.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.json", "weights.safetensors"):
        shutil.copyfile(last_stage / name, network / name)
    write_versioned(out / STAGES_FILE, summary, FORMAT_VERSION)
    write_stage_report(out)


def read_stages(out: Path) -> dict[str, Any]:
    """Read the files of `write_stages`.

    Args:
        out: Folder of the run.

    Returns:
        The summary.

    Raises:
        ValueError: when there is none, it is damaged or of a newer format.
    """
    path = out / STAGES_FILE
    if not path.is_file():
        raise ValueError(f"{out} holds no finished stages: expected {STAGES_FILE}")
    return read_versioned(path, FORMAT_VERSION)


def stage_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Tabulate the original and the network after each stage.

    Args:
        summary: From `read_stages`.

    Returns:
        One row per network: `network`, `weights_percent` of the whole network, `top1`
        and `top5` in per cent if there are test data, `evaluations`, `certified`.
    """
    rows = []
    for number, network in enumerate(summary["networks"]):
        stage = summary["stages"][number - 1] if number else None
        row: dict[str, Any] = {
            "network": network["network"],
            "weights_percent": 100 * (stage["whole_network_ratio"] if stage else 1.0),
        }
        for name in ("top1", "top5"):
            if name in network:
                row[f"{name}_percent"] = 100 * network[name]
        row["evaluations"] = stage["trials"] if stage else 0
        row["certified"] = ("yes" if stage["certified"] else "NO") if stage else ""
        rows.append(row)
    return pd.DataFrame(rows)


def write_stage_report(out: Path) -> Path:
    """Write `report.html` from the files of a run.

    Args:
        out: Folder of the run.

    Returns:
        The page.

    Raises:
        ValueError: as `read_stages` does.
    """
    summary = read_stages(out)
    number_format = "{:.4g}".format
    plain: dict[str, Any] = {
        "index": False,
        "border": 0,
        "na_rep": "",
        "float_format": number_format,
    }
    title = f"Compression of {summary['network']} in {len(summary['stages'])} stages"
    parts = [wide(stage_table(summary).to_html(**plain))]
    if summary["note"]:
        parts.append(f"<p>{html.escape(summary['note'])}</p>")
    if "top1" in summary["networks"][0]:
        ratios = [1.0, *(stage["whole_network_ratio"] for stage in summary["stages"])]
        networks = summary["networks"]
        points = pd.DataFrame(
            {
                "name": [network["network"] for network in networks],
                "compression_ratio": ratios,
                "accuracy": [network["top1"] for network in networks],
            }
        )
        caption = "Each network on the test set, against its remaining weights."
        figure = plot_ratio_against_accuracy(points)
        parts.append(figure_html(figure, caption, with_library=True))
    parts += [
        "<h2>Original and result</h2>",
        wide(pd.DataFrame(summary["costs"]).to_html(**plain)),
    ]
    for folder, stage in zip(summary["folders"], summary["stages"], strict=True):
        parts.append(f"<h2>{html.escape(stage['stage'])}</h2>")
        parts.append(
            verdict_html(
                stage["certified"], stage["level"], stage["reason"], stage["trials"]
            )
        )
        parts.append(
            f"<p>Loss on fresh samples, before training: {stage['loss']:.4g}, standard "
            f"error {stage['loss_sem']:.2g}. {100 * stage['compression_ratio']:.2f} % "
            f"of the weights of these layers. Search: {stage['seconds']:.1f} s.</p>"
        )
        if stage.get("finish"):
            parts.append(f"<p>{html.escape(stage['finish'])}</p>")
        layers = pd.read_csv(out / STAGES_FOLDER / folder / "layers.csv")
        parts.append(wide(layers.to_html(**plain)))
    parts.append(f"<p>Seed {summary['seed']}.</p>")
    path = out / REPORT_FILE
    path.write_text(html_page(title, parts), encoding="utf-8")
    return path
