"""Read the docstrings of this project as mkdocstrings expects them.

An extension of griffe. Our section is called `Example:`, one doctest; griffe knows
`Examples:` and takes the other for a remark, in which code would be read as prose. It
reads no parameters from the fields of a `NamedTuple`; those are attributes.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """Rename sections of docstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the sections of one docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
        bases = getattr(obj, "bases", [])
        if any(str(base).endswith("NamedTuple") for base in bases):
            text = re.sub(r"(?m)^Args:$", "Attributes:", text)
        obj.docstring.value = text
