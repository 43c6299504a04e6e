"""The Python blocks of the network side's pages run, top to bottom."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    "rank_space.md",
    "u_statistics.md",
    "how_to/decomposition.md",
    "how_to/loss.md",
    "how_to/network.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile("\n".join(blocks), page, "exec"), {"__name__": page})
