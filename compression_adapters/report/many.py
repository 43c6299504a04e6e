"""The report of a list of searches: one page with a row for each."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression_adapters.report.run import REPORT_FILE, read_run

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
.failed { color: #b00020; } .certified { color: #1b7a1b; }
"""
_COLUMNS = ("search", "state", "size", "loss", "evaluations", "seconds", "")


def row_of(name: str, out: Path) -> dict[str, Any]:
    """Return what became of a search that has ended.

    Args:
        name: Of the search, and of its folder.
        out: Folder of the list.

    Returns:
        `name`, `state` (`certified`, or why it ended without a certificate), `ratio`
        (compression ratio), `loss` (on fresh samples, in its unit), `trials`,
        `seconds`, and `reason`.
    """
    summary, _ = read_run(out / name)
    holds = summary["certificate"]["holds"]
    return {
        "name": name,
        "state": "certified" if holds else summary["stop_reason"],
        "ratio": summary["compression_ratio"],
        "loss": summary["loss_fresh"]["mean"],
        "trials": summary["num_trials"],
        "seconds": summary["timings"]["total"],
        "reason": summary["certificate"]["reason"],
    }


def cells_of(row: dict[str, Any]) -> list[str]:
    """Return one row of the table as text, for the columns before the reason.

    Args:
        row: From `row_of`, or with name, state and reason alone.
    """
    if "ratio" not in row:
        return [row["name"], row["state"], "-", "-", "-", "-"]
    return [
        row["name"],
        row["state"],
        f"{row['ratio']:.2%}",
        f"{row['loss']:.4g}",
        str(row["trials"]),
        f"{row['seconds']:.1f}",
    ]


def write_list_report(out: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write `report.html` of a list, with a link to the report of each search.

    Args:
        out: Folder of the list.
        rows: One per search, see `row_of`.

    Returns:
        The page.
    """
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = []
    for row in rows:
        cells = [html.escape(cell) for cell in cells_of(row)]
        if (out / row["name"] / REPORT_FILE).is_file():
            cells[0] = f'<a href="{cells[0]}/{REPORT_FILE}">{cells[0]}</a>'
        state = f'<td class="{cells[1]}">{cells[1]}</td>'
        rest = "".join(f"<td>{cell}</td>" for cell in cells[2:])
        reason = html.escape(row["reason"])
        body.append(f"<tr><td>{cells[0]}</td>{state}{rest}<td>{reason}</td></tr>")
    page = out / REPORT_FILE
    page.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Searches</title><style>{_STYLE}</style></head><body>"
        f"<h1>{len(rows)} searches</h1><table><tr>{head}</tr>{''.join(body)}</table>"
        "</body></html>"
    )
    return page
