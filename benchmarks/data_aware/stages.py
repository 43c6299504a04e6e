"""VGG-16 in three stages, on data-aware factors."""

from __future__ import annotations

from typing import Any

from benchmarks.networks.vgg16_stages import settings_of, staged

# Those of the benchmark `vgg16_stages` whose network loses about a point.
SETTINGS = settings_of("cpu", 2_000, 1_000, 0.2, head_epochs=4, tune_epochs=1)


def run_stages(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Compress in three stages, with or without training after each."""
    return staged(
        seed, settings.get("settings", SETTINGS), settings["trained"], start="auto"
    )
