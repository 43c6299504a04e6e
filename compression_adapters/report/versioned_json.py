"""Records as JSON files that say which format they have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def write_versioned(path: Path, content: dict[str, Any], version: int) -> None:
    """Write a record; the file is there as a whole or not at all.

    Args:
        path: Of the file; its folder exists.
        content: Plain values. Numbers that are not finite become null.
        version: Of the format.
    """
    record = {"format_version": version, **_plain(content)}
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_versioned(path: Path, version: int) -> dict[str, Any]:
    """Read what `write_versioned` wrote.

    Args:
        path: Of the file.
        version: The newest format that is understood.

    Returns:
        The record, with its `format_version`.

    Raises:
        ValueError: when the file is damaged or of a newer format.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = record["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not isinstance(found, int) or found > version:
        raise ValueError(
            f"{path} has format {found!r}, this version reads up to {version}: update "
            "ax-pac"
        )
    return record


def _plain(value: Any) -> Any:
    """Convert mappings, sequences and floats to JSON values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
