"""A page on the searches in a database, which reads them again while they run."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from plotly.offline import get_plotlyjs

DATA_PATH = "/searches.json"
"""Where a page that refreshes itself asks for the searches."""

SCRIPT_PATH = "/plotly.js"
"""Where it loads plotly from."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
.certified { color: #1b7a1b; } .running { color: #1f5fb4; }
.interrupted, .stopped { color: #a35a00; } .note { color: #555; }
.plots { display: flex; flex-wrap: wrap; }
.plots > div { flex: 1 1 30rem; height: 20rem; }
"""

# Text is set as text, never as HTML: names of searches are the user's.
_SCRIPT = """
const columns = ["search", "state", "trials", "best (mean, sd)", "failure probability",
                 "allowed", "left (a guess)"];
const number = x => x === null ? "-" : Number(x).toPrecision(4);
const duration = s => s === null ? "-" : s < 90 ? Math.round(s) + " s"
  : s < 5400 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h";
function cell(row, tag, text, kind) {
  const one = document.createElement(tag);
  one.textContent = text;
  if (kind) one.className = kind;
  row.appendChild(one);
}
function show(searches) {
  const table = document.getElementById("searches");
  table.replaceChildren();
  const head = table.insertRow();
  columns.forEach(name => cell(head, "th", name));
  searches.forEach(search => {
    const row = table.insertRow();
    const trials = Object.entries(search.trials).sort()
      .map(([status, count]) => count + " " + status.toLowerCase()).join(", ");
    cell(row, "td", search.name);
    cell(row, "td", search.state + (search.held_by ? ": " + search.held_by : ""),
         search.state);
    cell(row, "td", trials || "-");
    cell(row, "td", search.best_mean === null ? "-"
         : number(search.best_mean) + ", " + number(search.best_sd));
    cell(row, "td", number(search.failure_probability));
    cell(row, "td", number(search.epsilon));
    cell(row, "td", duration(search.seconds_left));
  });
  const line = (x, y, name, extra) =>
    ({x, y, name, mode: "lines+markers", ...extra});
  const layout = (title, extra) => ({title: {text: title}, margin: {t: 40, r: 10},
    xaxis: {title: {text: "completed trials"}}, showlegend: searches.length < 21,
    ...extra});
  const failure = searches.map(s => line(
    s.history.map(h => h[0]), s.history.map(h => h[1]), s.name));
  searches.filter(s => s.epsilon !== null && s.history.length).forEach(s =>
    failure.push({x: s.history.map(h => h[0]), y: s.history.map(() => s.epsilon),
      mode: "lines", line: {dash: "dot", color: "#7f7f7f"}, showlegend: false,
      name: "allowed"}));
  Plotly.react("failure", failure,
    layout("Failure probability of the certificate", {yaxis: {type: "log"}}));
  Plotly.react("best", searches.map(s => line(
    s.means.map(m => m[0]), s.means.map(m => m[1]), s.name,
    {error_y: {array: s.means.map(m => m[2]), visible: true}})),
    layout("Objective at the incumbent, mean and standard deviation"));
}
"""

_REFRESH = """
async function refresh() {
  const note = document.getElementById("read");
  try {
    const answer = await fetch(DATA);
    const read = await answer.json();
    if (!answer.ok) throw new Error(read.error);
    show(read.searches);
    note.textContent = "Read at " + new Date().toLocaleTimeString() + ".";
  } catch (error) {
    note.textContent = "Not read since: " + error.message;
  }
  setTimeout(refresh, SECONDS);
}
refresh();
"""


def live_page(
    searches: Sequence[dict[str, Any]] | None, *, title: str, seconds: float = 0.0
) -> str:
    """Return a page on searches: a table of states, and two plots.

    Args:
        searches: What `ax_pac.SearchStatus.to_dict` returned, for a page that stays as
            it is and needs no connection; None for one that asks for them.
        title: Of the page.
        seconds: Until such a page asks again.

    Returns:
        HTML.
    """
    safe = html.escape(title)
    if searches is None:
        plotly = f'<script src="{SCRIPT_PATH}"></script>'
        script = _REFRESH.replace("DATA", json.dumps(DATA_PATH))
        script = script.replace("SECONDS", json.dumps(round(1000.0 * seconds)))
    else:
        plotly = f"<script>{get_plotlyjs()}</script>"
        # Inside a script, `</` would end it.
        data = json.dumps(list(searches)).replace("</", "<\\/")
        script = f"show({data});"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{safe}</title>
<style>{_STYLE}</style>{plotly}</head>
<body><h1>{safe}</h1><p class="note" id="read"></p>
<table id="searches"></table>
<p class="note">The time left is a guess: it continues the trend of the last ten failure
probabilities, which fall by chance and in steps.</p>
<div class="plots"><div id="failure"></div><div id="best"></div></div>
<script>{_SCRIPT}{script}</script></body></html>
"""
