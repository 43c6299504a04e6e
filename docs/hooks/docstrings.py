"""Read the docstrings of this project as mkdocstrings expects them.

An extension of griffe. It changes what differs from Google's style, and makes links
of what docstrings name: `find_layers` becomes a link to its place in the reference, and
`docs/how_to/storage.md` a link to that page.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[2]
PACKAGES = ("ax_pac", "compression_adapters")


def public_names() -> dict[str, str]:
    """Return the names in `__all__` of both packages, with their full paths."""
    names = {}
    for package in PACKAGES:
        # A package whose names are imported on first use lists them in a stub.
        stub = ROOT / package / "__init__.pyi"
        listed = stub if stub.is_file() else stub.with_suffix(".py")
        tree = ast.parse(listed.read_text())
        for node in tree.body:
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "__all__"
            ):
                for name in ast.literal_eval(node.value):
                    names[name] = f"{package}.{name}"
    return names


class Docstrings(griffe.Extension):
    """Rename sections and make links."""

    def __init__(self) -> None:
        super().__init__()
        self._names = public_names()

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change one docstring."""
        if obj.docstring is None:
            return
        # Ours is one doctest; griffe takes any other title for a remark, in which code
        # would be read as prose.
        text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
        if any(str(b).endswith("NamedTuple") for b in getattr(obj, "bases", [])):
            # griffe reads no parameters from their fields.
            text = re.sub(r"(?m)^Args:$", "Attributes:", text)
        text = re.sub(r"(?ms)^(Returns|Yields):\n.*?(?=\n\n|\Z)", without_types, text)
        own = {obj.name, *(p.name for p in getattr(obj, "parameters", []))}

        def link(match: re.Match[str]) -> str:
            name = match[1]
            if name in own or name not in self._names:
                return match[0]
            return f"[`{name}`][{self._names[name]}]"

        lines = [
            # A doctest stays as it is.
            line if ">>>" in line else re.sub(r"`(\w+)`", link, line)
            for line in text.splitlines()
        ]
        obj.docstring.value = re.sub(r"`docs/([\w/]+)\.md`", page, "\n".join(lines))


def without_types(section: re.Match[str]) -> str:
    """Write the colons of a section so that griffe takes no text for a type.

    Types stand in the signature, never before a colon in the text.
    """
    title, text = section[0].split("\n", 1)
    parts = text.split("`")
    parts[::2] = [part.replace(": ", "&#58; ") for part in parts[::2]]
    return title + "\n" + "`".join(parts)


def page(match: re.Match[str]) -> str:
    """Link a page, seen from a page of the reference.

    Raises:
        FileNotFoundError: when there is none.
    """
    path = ROOT / "docs" / f"{match[1]}.md"
    title = re.search(r"(?m)^# (.+)$", path.read_text())
    return f'<a href="../{match[1]}.html">{title[1] if title else match[1]}</a>'
