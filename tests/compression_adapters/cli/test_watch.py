"""`ax-pac status`, `ax-pac watch` and `ax-pac report` of a database."""

from __future__ import annotations

import html
import http.client
import json
import re
import shutil
import subprocess
import threading

import pytest
from click.testing import CliRunner

from ax_pac import open_client
from compression_adapters.cli import commands, watch
from compression_adapters.report.live import live_page
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import run

pytest.importorskip("sqlalchemy")

NAME = "bowl"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """A database with a search that was certified."""
    path = tmp_path_factory.mktemp("watch") / "search.db"
    client = prepare(open_client(path, NAME))
    run(client)
    client.release()
    return path


def invoked(*arguments) -> str:
    result = CliRunner().invoke(commands.main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_status_prints_a_table_and_json(db):
    head, row = invoked("status", db).splitlines()
    assert head.split()[:3] == ["search", "state", "trials"]
    assert row.startswith("bowl    certified")
    assert "completed" in row
    (search,) = json.loads(invoked("status", db, "--json"))
    assert search["state"] == "certified"
    assert len(search["history"]) == len(search["means"]) > 0


def test_status_names_what_is_missing(tmp_path):
    result = CliRunner().invoke(commands.main, ["status", str(tmp_path / "no.db")])
    assert result.exit_code == 1
    assert "there is no file" in result.output
    assert "Traceback" not in result.output


def test_report_of_a_database_is_one_page_without_a_connection(db, tmp_path):
    output = invoked("report", db)
    assert str(db.parent / "searches.html") in output
    page = (db.parent / "searches.html").read_text()
    assert "http://" not in page.split("<script>")[0]
    assert '"name": "bowl"' in page
    invoked("report", db, "--out", tmp_path / "other.html")
    assert (tmp_path / "other.html").exists()
    result = CliRunner().invoke(
        commands.main, ["report", str(tmp_path), "--out", str(tmp_path / "a.html")]
    )
    assert "--out is for the page on a database" in result.output


@pytest.fixture
def server(db):
    """The page of a database, served."""
    one = watch.make_server(str(db), 0, 0.2)
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def get(server, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", path, headers={"Host": f"{host}:{server.server_port}"})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_the_page_is_served_to_this_machine_alone(server, db):
    assert server.server_address[0] == "127.0.0.1"
    code, page = get(server, "/")
    assert code == 200
    assert "/plotly.js" in page
    code, answer = get(server, "/searches.json")
    assert code == 200
    assert json.loads(answer)["searches"][0]["name"] == NAME
    assert get(server, "/plotly.js")[0] == 200
    assert get(server, "/etc/passwd")[0] == 404
    assert get(server, "/searches.json", host="evil.example")[0] == 403
    assert get(server, "/", host="localhost")[0] == 200


def test_a_database_that_is_away_is_said_and_read_again(server, db):
    db.rename(db.with_suffix(".away"))
    try:
        code, answer = get(server, "/searches.json")
        assert code == 503
        assert "there is no file" in json.loads(answer)["error"]
    finally:
        db.with_suffix(".away").rename(db)
    assert get(server, "/searches.json")[0] == 200


def dom(address: str, milliseconds: int = 5000) -> str:
    """What a browser has made of a page after some (virtual) time."""
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--virtual-time-budget={milliseconds}", "--dump-dom", address),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_a_browser_shows_the_searches_and_reads_them_again(server, db):
    read = []
    original = server.RequestHandlerClass.do_GET

    def counted(self):
        read.append(self.path)
        original(self)

    server.RequestHandlerClass.do_GET = counted
    shown = dom(f"http://127.0.0.1:{server.server_port}/")
    assert '<td class="certified">certified</td>' in shown
    assert shown.count("js-plotly-plot") >= 2
    assert "Read at" in shown
    assert read.count("/searches.json") >= 2
    client = prepare_another(db)
    try:
        again = dom(f"http://127.0.0.1:{server.server_port}/")
        assert "<td>second</td>" in again
    finally:
        client.release()


def prepare_another(db):
    client = open_client(db, "second")
    with client.one_save():
        from ax.api.configs import RangeParameterConfig

        x = RangeParameterConfig(name="x", parameter_type="float", bounds=(0, 1))
        client.configure_experiment([x])
    return client


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_names_are_text_in_a_browser_not_html(tmp_path):
    name = "</script><img src=x onerror=document.title=1>"
    search = {
        **{"name": name, "state": "stopped", "held_by": None, "trials": {}},
        **{"best_mean": None, "best_sd": None, "failure_probability": None},
        **{"epsilon": None, "seconds_left": None, "history": [], "means": []},
    }
    page = tmp_path / "page.html"
    page.write_text(live_page([search], title="a < b"))
    shown = dom(page.as_uri())
    assert f"<td>{html.escape(name)}</td>" in shown
    assert "<img" not in re.sub(r"<script>.*?</script>", "", shown, flags=re.DOTALL)
    assert "<title>a &lt; b</title>" in shown
