"""The steps of `ax-pac compress` for a list of searches: a TOML or a JSON file."""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from compression_adapters.cli.options import Request, take_source

DATABASE_FILE: Final = "searches.db"
REQUEST_FILE: Final = "request.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_OF_THE_LIST = ("out", "db", "workers", "resources", "timeout", "resume", "progress")
# A search whose process died on another machine is held for a minute and a half.
_HELD_SECONDS, _HELD_PAUSE = 150.0, 5.0
# Workers that a search may cost: it goes on from the database each time.
_RETRIES = 3


@dataclass(frozen=True)
class Entry:
    """One search of a list.

    Args:
        name: Of the search, of its folder, and in the database.
        arguments: As `ax-pac compress` takes them, without `--out` and `--db`.
    """

    name: str
    arguments: tuple[str, ...]


def read_list(path: Path) -> list[Entry]:
    """Read a list of searches.

    The file has a table `defaults`, which may be absent, and a list `search`. Both have
    the options of `ax-pac compress` by their names (`num_samples = 100`), and each
    search has a `name` and a `network`.

    Args:
        path: A TOML or a JSON file.

    Raises:
        ValueError: when it cannot be read, or an entry has no name, no network, the
            name of another one, or an option of the whole list.
    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"the list {path} cannot be read: {error}") from error
    is_list = isinstance(content, dict) and isinstance(content.get("search"), list)
    if not is_list or not content["search"] or set(content) - {"defaults", "search"}:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"the list {path} must have a list `search` ([[search]] in TOML) with an "
            f"entry per search, and may have a table `defaults`; got {got}"
        )
    entries: list[Entry] = []
    for number, own in enumerate(content["search"], 1):
        where = f"search {number} of {path}"
        entry = _entry(where, {**content.get("defaults", {}), **own})
        if entry.name in [other.name for other in entries]:
            raise ValueError(f"{where}: the name {entry.name!r} is there twice")
        entries.append(entry)
    return entries


def _entry(where: str, options: Mapping[str, Any]) -> Entry:
    """Turn the options of one search into arguments of the command."""
    given = dict(options)
    name, network = given.pop("name", None), given.pop("network", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: expected a name of up to 80 letters, digits, dots, dashes and "
            f"underscores, which its folder gets; got {name!r}"
        )
    if not isinstance(network, str) or network.startswith("-"):
        raise ValueError(f"{where} ({name}): expected a network, got {network!r}")
    shared = [key for key in _OF_THE_LIST if key in given]
    if shared:
        raise ValueError(
            f"{where} ({name}): {shared[0]} is that of the whole list, an option of "
            "the command line"
        )
    arguments = [network, "--name", name]
    for key, value in given.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, str | int | float):
            arguments += [flag, str(value)]
        else:
            raise ValueError(
                f"{where} ({name}): {key} must be text, a number or true or false; "
                f"got {value!r}"
            )
    return Entry(name, tuple(arguments))


def requests_of(
    entries: Sequence[Entry], command: click.Command, out: Path, db: str
) -> dict[str, Request]:
    """Check every search before the first one begins.

    Args:
        entries: From `read_list`.
        command: `ax-pac compress`.
        out: Folder of the list.
        db: The database of all searches.

    Returns:
        Name to request.

    Raises:
        ValueError: when an entry is not what the command takes.
    """
    requests = {}
    for entry in entries:
        folder = out / entry.name
        arguments = [*entry.arguments, "--out", str(folder), "--db", db]
        try:
            with command.make_context(command.name, arguments) as context:
                values = dict(context.params)
                values.pop("resume")
                requests[entry.name] = Request.of(values.pop("out"), False, **values)
        except click.ClickException as error:
            raise ValueError(
                f"search {entry.name!r}: {error.format_message()}"
            ) from error
    return requests


def compress_list(
    path: Path,
    command: click.Command,
    out: Path,
    *,
    db: str | None,
    workers: int,
    resources: Mapping[str, float] | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Make the searches of a list, several at a time, each on a worker of Ray.

    A search that has a summary is not made again; one that was interrupted or failed
    goes on from the database.

    Args:
        path: The list.
        command: `ax-pac compress`.
        out: Folder with a folder per search, and the report.
        db: The database of all searches; None for an SQLite file in `out`.
        workers: Searches at the same time.
        resources: What a search reserves, see `ray_orchestrator`.
        say: Called with each line of progress.

    Returns:
        One row per search, see `report.many`, in the order of the list.

    Raises:
        ValueError: when the list is not one, or a finished search was made with other
            options.
    """
    from ax_pac.orchestration.ray_runner import (
        import_ray,
        ray_options,
        ray_session,
        reason_of,
    )
    from compression_adapters.report.many import row_of, write_list_report

    entries = read_list(path)
    db = db or str(out.absolute() / DATABASE_FILE)
    requests = requests_of(entries, command, out, db)
    ended = {e.name: row_of(e.name, out) for e in entries if _is_made(e, out)}
    for name in ended:
        say(f"{name}: done before")
    todo = [entry for entry in entries if entry.name not in ended]
    ray = import_ray()
    with ray_session(workers, resources):
        run = ray.remote(max_retries=_RETRIES, **ray_options(resources))(_run_on_worker)
        tasks: dict[Any, Entry] = {}
        while todo or tasks:
            while todo and len(tasks) < workers:
                entry = todo.pop(0)
                say(f"{entry.name}: begins")
                _write_request(entry, out)
                request = requests[entry.name]
                tasks[run.remote(request, str(Path.cwd()))] = entry
            ready, _ = ray.wait(list(tasks), num_returns=1)
            entry = tasks.pop(ready[0])
            try:
                ray.get(ready[0])
                ended[entry.name] = row_of(entry.name, out)
            except Exception as error:
                reason = reason_of(error)
                ended[entry.name] = {
                    "name": entry.name,
                    "state": "failed",
                    "reason": reason,
                }
            row = ended[entry.name]
            say(f"{entry.name}: {row['state']}, {row['reason']}")
            rows = [ended.get(e.name, _waiting(e, tasks)) for e in entries]
            write_list_report(out, rows)
    rows = [ended[entry.name] for entry in entries]
    write_list_report(out, rows)
    return rows


def _waiting(entry: Entry, tasks: Mapping[Any, Entry]) -> dict[str, Any]:
    state = "running" if entry in tasks.values() else "waiting"
    return {"name": entry.name, "state": state, "reason": ""}


def _is_made(entry: Entry, out: Path) -> bool:
    """Whether a search has ended; refuses one that was made with other options."""
    folder = out / entry.name
    if not (folder / "summary.json").is_file():
        return False
    made = folder / REQUEST_FILE
    before = json.loads(made.read_text())["arguments"] if made.is_file() else None
    if before != list(entry.arguments):
        raise ValueError(
            f"the search {entry.name!r} in {folder} was made with other options "
            f"({before}, now {list(entry.arguments)}): give the new one another name, "
            "or remove the folder"
        )
    return True


def _write_request(entry: Entry, out: Path) -> None:
    """Keep what a search was asked for beside its result."""
    folder = out / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REQUEST_FILE).write_text(json.dumps({"arguments": entry.arguments}))


def _run_on_worker(request: Request, folder: str) -> None:
    """Make one search, in a worker process."""
    import torch

    from ax_pac import SearchHeldError
    from compression_adapters.cli.compress_run import compress_source

    torch.set_num_threads(1)
    if Path(folder).is_dir():  # where modules of the user's are found
        os.chdir(folder)
    began = time.monotonic()
    while True:
        try:
            compress_source(take_source(request.source), request)
            return
        except SearchHeldError:
            # By the worker that had it before, on a machine that is gone.
            if time.monotonic() - began > _HELD_SECONDS:
                raise
            time.sleep(_HELD_PAUSE)
