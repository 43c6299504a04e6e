"""A search that is killed again and again comes to what one left alone comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

ROOT = Path(__file__).parents[3]

# In a process of its own, which forks: Ax is imported once, and the forks do not
# inherit the threads of the test runner.
KILL = """
import json, logging, pathlib, sys
import torch
from benchmarks.cost import kill

torch.set_num_threads(1)
logging.getLogger("ax").setLevel(logging.ERROR)
folder, runs = pathlib.Path(sys.argv[1]), int(sys.argv[2])
writes = [int(write) for write in sys.argv[3:]]
outcomes = []
for seed in range(runs):
    (folder / str(seed)).mkdir()
    result, kills = kill.killed_search(
        folder / str(seed), seed, kill._SETTINGS, kill_at_writes=writes
    )
    outcomes.append([result["broken"], len(kills), result["holds"]])
print(json.dumps(outcomes))
"""


def killed(folder: Path, runs: int, *writes: int) -> list:
    arguments = [folder, *map(str, (runs, *writes))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILL, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_search_comes_to_the_same_and_repeats_nothing(tmp_path):
    writes = (40, 10)
    ((broken, kills, holds),) = killed(tmp_path, 1, *writes)
    assert broken == []
    assert kills == len(writes)
    assert holds


@pytest.mark.slow
def test_ten_searches_are_killed_until_they_end(tmp_path):
    outcomes = killed(tmp_path, 10)
    assert [broken for broken, _, _ in outcomes] == [[]] * 10
    assert sum(kills for _, kills, _ in outcomes) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 8, 30, *range(50, 60)])
def test_a_search_killed_while_it_is_saved_comes_to_the_same(tmp_path, write):
    ((broken, kills, _),) = killed(tmp_path, 1, write)
    assert (broken, kills) == ([], 1)
