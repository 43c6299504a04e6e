"""Page of the targets in words: whether they are met on other images, and how often."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.tables import folded, opening, revisions, spread, table
from benchmarks.harness.traces import Trace, by_settings

_POOLS = {
    "fresh": "half of the test images",
    "train": "the images that it was trained on",
}


def render_quality(traces: Sequence[Trace]) -> str:
    """Targets, each with how often it is met; and what a weight of the loss gives."""
    lines = opening(
        "Targets in words",
        "For those who want to know what `agreement_at_least` and "
        "`accuracy_drop_at_most` promise, and what `compress` does without a number. "
        "Networks are taken from the price path (`search=False`), without labels for "
        "an agreement and without training.",
        "The pool is half of the test images, chosen by the seed, or the images that "
        "the network was trained on. Of it, 500 images are calibration and 40 %, at "
        "most 4000, are held out; the statement is made on those, with confidence "
        "95 %. *Others* are test images that were not in the pool. Medians over seeds, "
        "the range in brackets; CPU seconds of one thread of a shared machine.",
        "quality",
    )
    targets = [t for t in traces if t.settings["part"] == "target"]
    weights = [t for t in traces if t.settings["part"] == "default"]
    lines += ["## What is promised, and what is so", ""]
    rows = []
    for group in by_settings(targets):
        settings = group[0].settings
        results = [trace.result for trace in group]
        is_drop = settings["target"] == "accuracy_drop_at_most"
        key, value = ("drop" if is_drop else "agreement"), settings["value"]

        def met(name: str, is_drop: bool = is_drop, value: float = value) -> str:
            found = [r[name] for r in results]  # noqa: B023
            good = sum(x <= value if is_drop else x >= value for x in found)
            return f"{good} of {len(found)}"

        shown = sum(r["statement"]["holds"] for r in results)
        rows.append(
            [
                *(settings["network"], f"{settings['target']}={value:g}"),
                _POOLS[settings["pool"]],
                f"{shown} of {len(results)}",
                met(key),
                met(f"{key}_others"),
                spread([100 * r[key] for r in results], 2),
                spread([100 * r["ratio"] for r in results], 1),
                spread([r["statement"]["tested"] for r in results], 0),
                spread([r["cpu_seconds"] for r in results], 0),
            ]
        )
    lines += table(
        "network | target | pool | shown on held-out images "
        "| met on 10,000 test images | met on others | on test images % | ratio % "
        "| networks tested | seconds",
        rows,
    )
    lines += [
        "A target is *shown* where the bound on the held-out images meets it; "
        "otherwise `compress` warns and returns the closest network. With confidence "
        "95 %, one network in twenty that is shown may miss its target on all inputs "
        "of the same kind; training images are of another kind than test images.",
        "",
    ]
    if weights:
        lines += [
            "## Without a number",
            "",
            "`compress(network, inputs)` minimises gamma times the squared distance of "
            "the outputs, in units of their squared size, plus the ratio. What a gamma "
            "gives, on the other half of the test images (drop in points of top-1):",
            "",
        ]
        rows = []
        for group in by_settings(weights):
            settings = group[0].settings
            results = [trace.result for trace in group]
            rows.append(
                [
                    *(settings["network"], f"{settings['gamma']:g}"),
                    spread([100 * r["ratio"] for r in results], 1),
                    spread([100 * r["loss"] for r in results], 2),
                    spread([100 * r["agreement_others"] for r in results], 1),
                    spread([100 * r["drop_others"] for r in results], 2),
                ]
            )
        lines += table("network | gamma | ratio % | loss % | agreement % | drop", rows)
        lines += [
            "At gamma = 1 a network of zeros costs as much as the dense one, and "
            "ResNet18 loses points of accuracy. The default is 10: a tenth of a per "
            "cent of the outputs' squared size weighs as much as one per cent of the "
            "weights.",
            "",
        ]
    lines += folded("Each run", _runs(targets))
    lines += [revisions(traces), ""]
    return "\n".join(lines)


def _runs(targets: Sequence[Trace]) -> list[str]:
    """One row per run."""
    rows = [
        [
            *(t.settings["network"], t.settings["pool"], t.settings["target"], t.seed),
            f"{100 * t.result['ratio']:.2f}",
            f"{100 * t.result['statement']['estimate']:.2f}",
            f"{100 * t.result['statement']['bound']:.2f}",
            "yes" if t.result["statement"]["holds"] else "no",
            f"{100 * t.result['agreement']:.2f}",
            f"{100 * t.result['agreement_others']:.2f}",
            f"{100 * t.result['drop']:.2f}",
        ]
        for t in targets
    ]
    return table(
        "network | pool | target | seed | ratio % | held out % | bound % | shown "
        "| agreement on test images % | on others % | drop",
        rows,
    )
