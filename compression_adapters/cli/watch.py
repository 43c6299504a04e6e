"""The commands that look at searches in a database: `status`, `watch`, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from ax_pac.storage.status import SearchStatus

LOOPBACK = "127.0.0.1"
"""The only address that a page is served at."""


@click.command(short_help="Say how the searches in a database stand.")
@click.argument("db", metavar="DB")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the history.")
def status(db: str, as_json: bool) -> None:
    """Say how the searches in a database stand; works while they run.

    DB is the path of an SQLite file or the URL of a database, the --db of `ax-pac
    compress`. The time left is a guess by the trend of the failure probability.
    """
    searches = read_searches(db)
    if as_json:
        click.echo(json.dumps([search.to_dict() for search in searches]))
        return
    click.echo(status_table(searches))


@click.command(short_help="Serve a page on the searches in a database.")
@click.argument("db", metavar="DB")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on 127.0.0.1.  [default: a free one]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Seconds between two readings.",
)
def watch(db: str, port: int, seconds: float) -> None:
    """Serve a page that reads the searches in a database again and again.

    Only this machine can open it; from another one, forward the port by ssh (ssh -L).
    DB is as for `ax-pac status`. Ends with Ctrl-C.
    """
    read_searches(db)
    try:
        server = make_server(db, port, seconds)
    except OSError as error:
        raise click.ClickException(
            f"port {port} of {LOOPBACK} cannot be used: {error.strerror}. Choose "
            "another --port, or leave it out"
        ) from error
    click.echo(f"http://{LOOPBACK}:{server.server_port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("ended")
    finally:
        server.server_close()


def write_search_report(db: str, out: Path) -> None:
    """Write one page on all searches in a database, which needs no connection.

    Args:
        db: A path or a URL.
        out: The file.
    """
    from compression_adapters.report.live import live_page

    searches = read_searches(db)
    try:
        out.write_text(
            live_page([search.to_dict() for search in searches], title=_title(db))
        )
    except OSError as error:
        raise click.ClickException(
            f"{out} cannot be written: {error.strerror}"
        ) from error
    click.echo(status_table(searches))
    click.echo(f"report    {out}")


def read_searches(db: str) -> list[SearchStatus]:
    """Read the searches of a database, or say why that cannot be."""
    try:
        from ax_pac.storage.status import read_status

        return read_status(db)
    except (ImportError, ValueError) as error:
        raise click.ClickException(
            f"{error}. Searches in a database need the extra sql: pip install "
            "'ax-pac[sql]'"
            if isinstance(error, ImportError)
            else str(error)
        ) from error


def status_table(searches: list[SearchStatus]) -> str:
    """Return the states of searches as lines of text."""
    head = ("search", "state", "trials", "best", "failure", "allowed", "left (guess)")
    rows = [head]
    for search in searches:
        trials = ", ".join(
            f"{count} {name.lower()}" for name, count in sorted(search.trials.items())
        )
        best = "-"
        if search.best_mean is not None and search.best_sd is not None:
            best = f"{search.best_mean:.4g} +- {search.best_sd:.2g}"
        rows.append(
            (
                search.name,
                search.state,
                trials or "-",
                best,
                _number(search.failure_probability),
                _number(search.epsilon),
                duration(search.seconds_left),
            )
        )
    widths = [max(len(row[j]) for row in rows) for j in range(len(head))]
    lines = [
        "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{s.name} is held by {s.held_by}" for s in searches if s.held_by]
    return "\n".join(lines if searches else ["the database holds no search"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Return seconds for people.

    Example:
        >>> duration(42.0), duration(600.0), duration(7200.0), duration(None)
        ('42 s', '10 min', '2.0 h', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return (
        f"{seconds / 60.0:.0f} min" if seconds < 5400 else f"{seconds / 3600.0:.1f} h"
    )


def _title(db: str) -> str:
    """Name a database, without its password."""
    from ax_pac.storage.status import shown_name

    return f"Searches in {shown_name(db)}"


def make_server(db: str, port: int, seconds: float) -> ThreadingHTTPServer:
    """Return a server of the page, on the loopback address.

    Args:
        db: A path or a URL.
        port: 0 for a free one.
        seconds: Between two readings.

    Raises:
        OSError: when the port cannot be used.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from plotly.offline import get_plotlyjs

    from ax_pac.storage.status import read_status
    from compression_adapters.report.live import DATA_PATH, SCRIPT_PATH, live_page

    page = live_page(None, title=_title(db), seconds=seconds)

    class Page(BaseHTTPRequestHandler):
        """Answers for the page, plotly and the searches; changes nothing."""

        def do_GET(self) -> None:
            """Answer a request."""
            # A page of somebody else whose name leads here has that name as its host.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost"):
                self._answer(403, "text/plain", "this page is for this machine")
            elif self.path == "/":
                self._answer(200, "text/html; charset=utf-8", page)
            elif self.path == SCRIPT_PATH:
                self._answer(200, "text/javascript; charset=utf-8", get_plotlyjs())
            elif self.path == DATA_PATH:
                self._answer(*_searches(db, read_status))
            else:
                self._answer(404, "text/plain", "there is nothing here")

        def _answer(self, code: int, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a line per reading is of no use."""

    server = ThreadingHTTPServer((LOOPBACK, port), Page)
    server.daemon_threads = True
    return server


def _searches(db: str, read: Any) -> tuple[int, str, str]:
    """Answer with the searches, or with what went wrong; the next reading may work."""
    try:
        found = [search.to_dict() for search in read(db)]
        return 200, "application/json", json.dumps({"searches": found})
    except ValueError as error:
        return 503, "application/json", json.dumps({"error": str(error)})
