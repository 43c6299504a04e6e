"""The Python blocks of README and documents run, top to bottom; their links resolve."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig

from tests.helpers.networks import pool, small_network

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]


def client_with_one_objective() -> Client:
    client = Client()
    client.configure_experiment(
        parameters=[
            RangeParameterConfig(name="x", parameter_type="float", bounds=(0, 1))
        ]
    )
    client.configure_optimization(objective="-loss")
    return client


def evaluate(parameters: dict[str, float]) -> tuple[float, float]:
    noise = np.random.default_rng(int(1e6 * parameters["x"])).standard_normal()
    return (parameters["x"] - 0.3) ** 2 + 0.01 * noise, 0.01


# What a README block takes for granted: the reader's own network, data and client.
GIVEN = {
    "README.md": lambda: {
        "network": small_network(),
        "inputs": pool(),
        "client": client_with_one_objective(),
        "evaluate": evaluate,
    },
    "docs/how_to/ax_loops.md": lambda: {"evaluate": evaluate},
}


# On the cluster of `test_ray.py`.
NEEDS_RAY = "docs/how_to/many_machines.md"


def code_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if code_blocks(page) and page != NEEDS_RAY]
)
@pytest.mark.filterwarnings("ignore:Very small noise values")
@pytest.mark.filterwarnings("ignore:.*AxClient.*:DeprecationWarning")
# Ax's default acquisition, on a page that shows the certificate for it.
@pytest.mark.filterwarnings("ignore:Optimization failed")
@pytest.mark.filterwarnings("ignore:A not p.d.")
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Ax waits a second before it looks whether a trial has ended.
    monkeypatch.setattr("ax.orchestration.orchestrator.sleep", lambda seconds: None)
    names = GIVEN.get(page, dict)()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(
            compile("\n".join(code_blocks(page)), page, "exec", dont_inherit=True),
            {**names, "__name__": page},
        )


def test_examples_of_ax_loops_are_short():
    for block in code_blocks("docs/how_to/ax_loops.md"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_of_the_page_resolve(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target
