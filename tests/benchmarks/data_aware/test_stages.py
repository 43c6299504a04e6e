"""VGG-16's stages on data-aware factors ask for no factors of the weights alone."""

from __future__ import annotations

from benchmarks.data_aware import stages
from benchmarks.networks import vgg16_stages


def test_stages_are_those_of_vgg16_with_the_default_factors(monkeypatch):
    asked = {}

    def staged(seed, settings, trained, **options):
        asked.update(settings=settings, trained=trained, options=options)
        return {"rows": []}

    monkeypatch.setattr(stages, "staged", staged)
    stages.run_stages(0, {"part": "stages", "trained": False})
    assert asked["options"] == {"start": "auto"}
    assert not asked["trained"]
    assert asked["settings"] in [row for row, _, _ in vgg16_stages._PLAN]
