"""Run the tutorials and turn them into pages of the documentation site.

A hook of mkdocs: each `docs/tutorials/*.ipynb` is kept in the repository without
outputs, run when the site is built, and shown as a page like any other, so that links,
search and colours work as everywhere. An executed copy in `build/tutorials` is used
again as long as neither the notebook nor the packages have changed.

`python docs/hooks/tutorials.py` runs all of them and prints the seconds that each took.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
EXECUTED = ROOT / "build" / "tutorials"
PACKAGES = ("ax_pac", "compression_adapters")

# One tutorial may take this long, on a busy machine; it should take two minutes.
TIMEOUT_SECONDS = 900

FIGURE = "application/vnd.plotly.v1+json"

log = logging.getLogger("mkdocs.hooks.tutorials")


class NotebookPage(File):
    """A notebook among the files of the site, which mkdocs takes for a page."""

    def is_documentation_page(self) -> bool:
        """Whether it becomes a page; files of other kinds are copied."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make pages of the notebooks."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            page = NotebookPage(
                file.src_uri,
                src_dir=config.docs_dir,
                dest_dir=config.site_dir,
                use_directory_urls=config.use_directory_urls,
                inclusion=file.inclusion,
            )
            files.append(page)
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Return the Markdown of a notebook, run if it has changed; None for a page."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    path = Path(str(page.file.abs_src_path))
    notebook, seconds = executed(path)
    log.info("%s took %.0f s to run", page.file.src_uri, seconds)
    return markdown(notebook, path.name, seconds)


def on_post_build(config: MkDocsConfig) -> None:
    """Add what the figures are drawn with, and the notebooks to download."""
    import plotly

    site = Path(config.site_dir)
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copy(script, site / "assets" / "plotly.min.js")
    for path in TUTORIALS.glob("*.ipynb"):
        shutil.copy(path, site / "tutorials" / path.name)


def executed(path: Path) -> tuple[Any, float]:
    """Return a notebook with its outputs and the seconds that it took to run.

    Args:
        path: Of the notebook.

    Returns:
        The notebook, and the seconds of the run that made its outputs.
    """
    key = _key(path)
    copy = EXECUTED / path.name
    if copy.exists():
        notebook = nbformat.read(copy, as_version=4)
        if notebook.metadata.get("ax_pac", {}).get("key") == key:
            return notebook, float(notebook.metadata["ax_pac"]["seconds"])
    notebook = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute(env=_environment())
    seconds = time.perf_counter() - began
    notebook.metadata["ax_pac"] = {"key": key, "seconds": round(seconds, 1)}
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, copy)
    return notebook, seconds


def markdown(notebook: Any, name: str, seconds: float) -> str:
    """Write a notebook as a page.

    Args:
        notebook: With outputs.
        name: Of its file.
        seconds: What it took to run.

    Returns:
        Markdown with the outputs as HTML.
    """
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(f"```python\n{cell.source}\n```")
            parts += filter(None, map(_output, _merged(cell.outputs)))
    parts.append(
        f'<p class="notebook-source">This page is a notebook that ran in '
        f'{seconds:.0f} seconds when the site was built. <a href="{name}" '
        "download>Download the notebook</a>.</p>"
    )
    return "\n\n".join(parts)


def _merged(outputs: list[Any]) -> list[Any]:
    """Join what a cell printed in several pieces, and drop what went to stderr."""
    merged: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":  # progress and warnings of other packages
            log.debug("stderr: %s", output.text.strip())
            continue
        last = merged[-1] if merged else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last["text"] += output.text
        else:
            merged.append(dict(output))
    return [nbformat.from_dict(output) for output in merged]


def _output(output: Any) -> str:
    """Write one output of a cell."""
    if output.output_type == "stream":
        return _text(output.text)
    data = output.get("data", {})
    if FIGURE in data:
        return _figure(data[FIGURE])
    if "image/png" in data:
        url = "data:image/png;base64," + "".join(data["image/png"].split())
        return f'<div class="output"><img alt="Output" src="{url}"></div>'
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        table = re.sub(r"<table[^>]*>", "<table>", table)
        lines = "".join(line.strip() for line in table.splitlines())
        return f'<div class="output">{lines}</div>'
    return _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    """Write plain output as a block without highlighting."""
    if not text.strip():
        return ""
    # A blank line would end the block for Markdown.
    lines = html.escape(text.strip("\n")).replace("\n", "&#10;")
    return f'<pre class="output-text">{lines}</pre>'


def _figure(figure: dict[str, Any]) -> str:
    """Write a plotly figure as data, which `assets/figures.js` draws."""
    layout = {k: v for k, v in figure["layout"].items() if k != "template"}
    content = json.dumps({"data": figure["data"], "layout": layout})
    # Base64, because neither Markdown nor HTML shall read it.
    encoded = base64.b64encode(content.encode()).decode()
    return f'<div class="figure" data-figure="{encoded}"></div>'


def _environment() -> dict[str, str]:
    """Return the environment of a kernel: this checkout, figures as data."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PLOTLY_RENDERER": "plotly_mimetype",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _key(path: Path) -> str:
    """Return a digest of everything that the outputs of a notebook depend on."""
    digest = hashlib.sha256(path.read_bytes())
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Run every tutorial and print the seconds that each took."""
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        _, seconds = executed(path)
        print(f"{seconds:6.1f} s  {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
