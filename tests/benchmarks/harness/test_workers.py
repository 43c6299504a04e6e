"""Runs in processes of their own, which end with the one that asked for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]

WAIT = """
import os, sys, time
from pathlib import Path
from benchmarks.harness.workers import completed_runs

def wait(seed, settings):
    Path(settings["file"]).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    list(completed_runs(wait, [({"file": sys.argv[1]}, 0)], workers=1, threads=1))
"""


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for yet is listed, but runs no more.
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_a_worker_ends_with_the_process_that_was_killed(tmp_path):
    script, file = tmp_path / "wait.py", tmp_path / "worker"
    script.write_text(WAIT)
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", script, file],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        while not (file.exists() and file.read_text()):
            assert parent.poll() is None
            time.sleep(0.1)
        worker = int(file.read_text())
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # Without a deadline: a busy machine may take longer than any.
        while is_running(worker):
            time.sleep(0.05)
    finally:
        parent.kill()
