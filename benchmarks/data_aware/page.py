"""Page of data-aware factors: curves, rules, searches, and what the factors cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.data_aware import plan as data_aware
from benchmarks.data_aware.choices import MAX_TRIALS, RULES
from benchmarks.data_aware.factors import ERROR_FRACTIONS, EVALUATIONS, FRACTIONS
from benchmarks.data_aware.subjects import SUBJECTS
from benchmarks.harness.charts import Axis, Series, chart
from benchmarks.harness.tables import folded, opening, revisions, spread, table
from benchmarks.harness.traces import Trace
from benchmarks.networks import vgg16_stages

KINDS = {"data": "data-aware", "weights": "weights alone"}
_TITLES = {
    "fc3": "FC3 on MNIST",
    "resnet18": "ResNet18 on CIFAR-10, eight layers",
    "resnet50": "ResNet50 on CIFAR-10, sixteen layers",
    "vgg16": "VGG-16's convolutions on CIFAR-10",
    "transformer": "A small transformer on MNIST",
}
# Drawn up to this ratio: what lies above loses nothing.
_DRAWN_TO = {"fc3": 0.2, "resnet18": 0.42, "resnet50": 0.42, "transformer": 0.7}
# Weights kept at which the transformer is looked at.
_TRANSFORMER_RATIOS = (0.3, 0.5)
# Rules that stand beside the searches; the others are folded.
_SHOWN = ("path", "errors", "sensitivity", "greedy")

Result = Mapping[str, Any]


def render_data_aware(
    traces: Sequence[Trace], networks: Sequence[Trace] = ()
) -> dict[str, str]:
    """The page and its figures, by path.

    Args:
        traces: Of this benchmark.
        networks: Of the benchmark `networks`: searches on factors of the weights alone.
    """
    runs = Runs(traces, networks)
    files: dict[str, str] = {}
    lines = opening(
        "Factors that know the data",
        "For those who want to know what data-aware factors (`calibrate=500`, the "
        "default) are worth, against factors of the weights alone (`calibrate=0`, the "
        "paper's): accuracy at every size, on the same rules, on the price path, and "
        "after a search. No labels and no training are used.",
        "L is the squared L2 distance of the logits to those of the original, J = "
        "gamma L + ratio. Both, and top-1, are measured on all 10,000 test images, on "
        "the ranks of a choice. Seconds are CPU seconds of one thread of a shared "
        "machine; searches without them are those of "
        "[ResNets on CIFAR-10](networks.md), made at delta = 0.05. All others are made "
        f"at delta = {data_aware.DELTA}, level marginal, epsilon = 0.05. "
        "Medians over seeds, the range in brackets; a seed chooses the calibration "
        f"inputs, the samples and the proposals. {revisions(traces)}",
        data_aware.NAME,
    )
    lines += _summary(runs)
    lines += _predicted_section(runs)
    for name in SUBJECTS:
        lines += _network_section(name, runs, files)
    lines += _taken_section(runs)
    lines += _returned_section(runs)
    lines += _transformer_section(runs)
    lines += _counts_section(runs)
    lines += _layers_section(runs)
    lines += _time_section(runs)
    lines += _delta_section(runs)
    lines += _shared_section(runs)
    lines += _clip_section(runs)
    lines += _stages_section(runs)
    lines += _missing_section(traces)
    return {"data_aware.md": "\n".join(lines), **files}


class Runs:
    """The traces, by what they are of.

    Args:
        traces: Of this benchmark.
        networks: Of the benchmark `networks`.
    """

    def __init__(self, traces: Sequence[Trace], networks: Sequence[Trace]) -> None:
        self.traces = sorted(traces, key=lambda trace: trace.seed)
        self.networks = networks

    def results(self, part: str, **settings: Any) -> list[Result]:
        """Results of the runs of a part with these settings, seed by seed."""
        return [
            trace.result
            for trace in self.traces
            if trace.settings["part"] == part
            and all(trace.settings.get(key) == value for key, value in settings.items())
        ]

    def points(self, network: str, factors: str, method: str) -> list[Result]:
        """What a rule gave at its ratios, from the smallest."""
        found = [
            point
            for result in self.results(
                "rules", network=network, factors=factors, method=method
            )
            for point in result["points"]
        ]
        if not found and factors == "weights":
            found = [
                point
                for trace in self.networks
                if trace.settings["network"] == network
                and trace.settings["method"] == method
                for point in trace.result.get("points", ())
            ]
        return sorted(found, key=lambda point: point["ratio"])

    def looks(self, network: str, factors: str, method: str) -> int:
        """Evaluations of 50 images that a rule makes before it knows its ranks."""
        settings = {"network": network, "factors": factors, "method": method}
        images = [result["images"] for result in self.results("rules", **settings)]
        images += [
            trace.result["images"]
            for trace in self.networks
            if all(trace.settings.get(k) == v for k, v in settings.items())
        ]
        return int(images[0]) // 50 if images else 0

    def searches(self, network: str, factors: str, gamma: float) -> list[Result]:
        """Searches as `compress` makes them, at the usual delta."""
        settings = data_aware.search(network, gamma, factors)
        part = settings.pop("part")
        found = self.results(part, **settings)
        if not found and factors == "weights":
            found = [
                {**trace.result, "cpu_seconds": None}
                for trace in self.networks
                if trace.settings["network"] == network
                and trace.settings["method"] == "line"
                and trace.settings["level"] == "marginal"
                and trace.settings["gamma"] == gamma
            ]
        return found

    def shared(self, network: str, gamma: float, *options: Any) -> list[Result]:
        """Searches whose layers share coordinates, see `data_aware.shared`."""
        settings = data_aware.shared(network, gamma, *options)
        return self.results(settings.pop("part"), clip=None, **settings)

    def unclipped(self, network: str, gamma: float) -> list[Result]:
        """The same whose surrogate models all losses as they are."""
        settings = data_aware.unclipped(network, gamma)
        return self.results(settings.pop("part"), **settings)


def _summary(runs: Runs) -> list[str]:
    """J of a search on the weights alone, of the path, and of a search."""
    rows = []
    for name in SUBJECTS:
        for gamma in data_aware.GAMMAS.get(name, ()):
            settings = {"network": name, "factors": "data", "gamma": gamma}
            choices = (
                runs.searches(name, "weights", gamma),
                runs.results("path", **settings),
                runs.searches(name, "data", gamma),
                runs.shared(name, gamma),
            )
            if not any(choices):
                continue
            cells: list[object] = [name, gamma]
            for results in choices:
                if not results:
                    cells += ["-", "-", "-"]
                    continue
                cells.append(spread([objective(gamma, r) for r in results], 3))
                cells.append(f"{100 * np.median([r['ratio'] for r in results]):.1f}")
                cells.append(f"{100 * np.median([r['top1'] for r in results]):.2f}")
            rows.append(cells)
    if not rows:
        return []
    each = "J | ratio % | top-1 %"
    return [
        "## In short",
        "",
        "A search on factors of the weights alone; then, on data-aware factors, the "
        "price path with its price chosen by some seventeen evaluations, a search with "
        f"one coordinate a layer, and one with {data_aware.COORDINATES} coordinates "
        "that the layers share, which is the default of `compress` where there are "
        "more layers.",
        "",
        *table(
            f"network | gamma | search, weights alone: {each} | path: {each} "
            f"| one coordinate a layer: {each} | default: {each}",
            rows,
        ),
    ]


def _predicted_section(runs: Runs) -> list[str]:
    """The network at the price of a gamma, beside the best of any choice."""
    rows = []
    for name in SUBJECTS:
        for gamma in data_aware.GAMMAS.get(name, ()):
            settings = {"network": name, "factors": "data", "gamma": gamma}
            results = runs.results("predicted", **settings)
            if not results:
                continue
            cells: list[object] = [name, gamma, len(results)]
            for each in zip(*(r["points"] for r in results), strict=True):
                cells.append(f"{100 * np.median([p['ratio'] for p in each]):.1f}")
                cells.append(f"{np.median([p['predicted_loss'] for p in each]):.3g}")
                cells.append(f"{np.median([p['loss'] for p in each]):.3g}")
                cells.append(spread([objective(gamma, p) for p in each], 3))
            others = [
                *runs.results("path", **settings),
                *runs.searches(name, "data", gamma),
                *runs.shared(name, gamma),
            ]
            best = min((objective(gamma, r) for r in others), default=None)
            rows.append([*cells, "-" if best is None else f"{best:.3f}"])
    if not rows:
        return []
    each = "ratio % | L predicted | L | J"
    return [
        "## The price of a gamma",
        "",
        "Without any evaluation of a whole network: each layer was measured alone, at "
        "three ranks, and the price path gives the network at the price 1 / gamma, "
        "which is the best where losses of layers add up, and that at half of it. "
        "*Best*: the lowest J of any evaluated choice of the path and of any search "
        "here.",
        "",
        *table(
            f"network | gamma | runs | at 1 / gamma: {each} "
            f"| at 1 / (2 gamma): {each} | best J",
            rows,
        ),
    ]


def _network_section(name: str, runs: Runs, files: dict[str, str]) -> list[str]:
    """Pictures of one network, and every choice of ranks at every gamma."""
    curves = {
        (factors, method): points
        for factors in KINDS
        for method in RULES
        if (points := runs.points(name, factors, method))
    }
    every: list[list[object]] = []
    rows, verdicts = [], []
    for gamma in data_aware.GAMMAS.get(name, ()):
        for factors, kind in KINDS.items():
            for method in RULES:
                points = curves.get((factors, method))
                if points:
                    looks = runs.looks(name, factors, method)
                    row = _rule_row(gamma, kind, method, points, looks)
                    (rows if method in _SHOWN else every).append(row)
            on_path = runs.results("path", network=name, factors=factors, gamma=gamma)
            if on_path:
                title = "path, price chosen by its evaluations"
                rows.append(_choice_row(gamma, kind, title, on_path))
            found = runs.searches(name, factors, gamma)
            if found:
                rows.append(_choice_row(gamma, kind, "**search**", found))
            if found and on_path:
                verdicts.append(_verdict(gamma, kind, found, on_path))
    if not rows and not every:
        return []
    original = next(
        (points[0]["top1_original"] for points in curves.values()), float("nan")
    )
    lines = [
        f"## {_TITLES[name]}",
        "",
        f"The original has {100 * original:.2f} % top-1. A rule chooses the ranks of "
        "all layers by one number. Its row is the best J at any ratio that was "
        "measured, or that of the original, chosen afterwards on the test images; the "
        "others are chosen by their own evaluations. *Evaluations*: of 50 images, "
        "before the ranks are known.",
        "",
        *_figures(name, curves, runs, files),
    ]
    header = (
        "gamma | factors | ranks by | runs | certified | ratio % | L | top-1 % | J "
        "| evaluations | CPU seconds"
    )
    lines += table(header, rows)
    if every:
        lines += folded("The other rules, at every gamma", table(header, every))
    if verdicts:
        lines += [
            "Does the search beat the path whose price was chosen by its own "
            "evaluations? *By more than the spread*: each of its runs is below each of "
            "those of the path.",
            "",
            *table("gamma | factors | J of the path less J of the search |", verdicts),
        ]
    return lines


def _figures(
    name: str,
    curves: Mapping[tuple[str, str], Sequence[Result]],
    runs: Runs,
    files: dict[str, str],
) -> list[str]:
    """Accuracy against ratio: both factors together, then each with all rules."""
    lines: list[str] = []
    together: dict[str, Series] = {}
    for factors, kind in KINDS.items():
        searched = _searched(name, factors, runs)
        own = {
            method: _series(name, points)
            for (of, method), points in curves.items()
            if of == factors
        }
        if searched is not None:
            own["search, each run"] = searched
        own = {method: series for method, series in own.items() if len(series.x)}
        if own:
            path = f"figures/data_aware_{name}_{factors}.svg"
            files[path] = _drawn(own)
            for method in ("fraction", "path", "search, each run"):
                if method in own:
                    title = f"{method.split(',')[0]}, {kind}"
                    together[title] = own[method]
    if together:
        path = f"figures/data_aware_{name}.svg"
        files[path] = _drawn(together)
        lines += [f"![Accuracy against ratio, both factors]({path})", ""]
    for factors, kind in KINDS.items():
        path = f"figures/data_aware_{name}_{factors}.svg"
        if path in files:
            shown = [f"![Accuracy against ratio, {kind}]({path})", ""]
            lines += folded(f"Every rule, factors: {kind}", shown)
    return lines


def _drawn(series: Mapping[str, Series]) -> str:
    return chart(series, Axis("ratio, % of the weights"), Axis("top-1, %"))


def _series(name: str, points: Sequence[Result]) -> Series:
    shown = [p for p in points if p["ratio"] <= _DRAWN_TO[name]]
    return Series(
        [100 * p["ratio"] for p in shown], [100 * p["top1"] for p in shown], joined=True
    )


def _searched(name: str, factors: str, runs: Runs) -> Series | None:
    """Points of all searches, at all gammas."""
    found = [
        result
        for gamma in data_aware.GAMMAS[name]
        for result in runs.searches(name, factors, gamma)
        if result["ratio"] <= _DRAWN_TO[name]
    ]
    if not found:
        return None
    return Series(
        [100 * r["ratio"] for r in found],
        [100 * r["top1"] for r in found],
        joined=False,
    )


def objective(gamma: float, result: Result) -> float:
    """J of a result on the test images."""
    return gamma * result["loss"] + result["ratio"]


def _rule_row(
    gamma: float, kind: str, method: str, points: Sequence[Result], looks: int
) -> list[object]:
    original = {"ratio": 1.0, "loss": 0.0, "top1": points[0]["top1_original"]}
    best = min((*points, original), key=lambda point: objective(gamma, point))
    return [
        *(gamma, kind, f"{method}, best afterwards", 1, "-"),
        f"{100 * best['ratio']:.1f}",
        f"{best['loss']:.2f}",
        f"{100 * best['top1']:.2f}",
        f"{objective(gamma, best):.3f}",
        *(looks or "-", "-"),
    ]


def _choice_row(
    gamma: float, kind: str, title: str, results: Sequence[Result]
) -> list[object]:
    seconds = [r["cpu_seconds"] for r in results if r["cpu_seconds"] is not None]
    searched = any(r["stop_reason"] != "no_search" for r in results)
    certified = f"{sum(r['holds'] for r in results)}/{len(results)}"
    return [
        *(gamma, kind, title, len(results), certified if searched else "-"),
        spread([100 * r["ratio"] for r in results], 1),
        spread([r["loss"] for r in results], 2),
        spread([100 * r["top1"] for r in results], 2),
        spread([objective(gamma, r) for r in results], 3),
        spread([r["evaluations"] for r in results], 0),
        spread(seconds, 0) if seconds else "-",
    ]


def _verdict(
    gamma: float, kind: str, found: Sequence[Result], on_path: Sequence[Result]
) -> list[object]:
    """Whether a search is better than the path, and by how much."""
    searched = [objective(gamma, result) for result in found]
    path = [objective(gamma, result) for result in on_path]
    gain = float(np.median(path) - np.median(searched))
    if min(len(searched), len(path)) < 2:
        said = "better" if gain > 0 else "the search does not beat the path"
        said += "; one run does not tell the spread"
    elif max(searched) < min(path):
        said = "better, by more than the spread"
    elif min(searched) > max(path):
        said = "the search does not beat the path: it is worse, by more than the spread"
    elif gain > 0:
        said = "better, within the spread"
    else:
        said = "the search does not beat the path"
    return [gamma, kind, f"{gain:+.3f}", said]


def _taken_section(runs: Runs) -> list[str]:
    """Networks of a size, taken from the path."""
    rows = []
    for name, ratios in data_aware.TAKEN.items():
        for ratio in ratios:
            for factors, kind in KINDS.items():
                settings = data_aware.taken(name, factors, ratio)
                results = runs.results(settings.pop("part"), **settings)
                if results:
                    rows.append(
                        [
                            *(name, f"{100 * ratio:g}", kind, len(results)),
                            spread([100 * r["ratio"] for r in results], 2),
                            spread([r["loss"] for r in results], 2),
                            spread([100 * r["top1"] for r in results], 2),
                            spread([r["returned"]["loss"] for r in results], 2),
                            spread([100 * r["returned"]["top1"] for r in results], 2),
                            spread([r["cpu_seconds"] for r in results], 0),
                        ]
                    )
    if not rows:
        return []
    return [
        "## A size in place of a gamma",
        "",
        "Networks that `compress(..., ratio=..., search=False)` takes from the price "
        "path. *Returned*: after what follows the choice of the ranks (the refit in "
        "sequence and batch norm, where they are better on fresh inputs).",
        "",
        *table(
            "network | asked % | factors | runs | ratio % | L | top-1 % "
            "| returned: L | top-1 % | CPU seconds",
            rows,
        ),
    ]


def _returned_section(runs: Runs) -> list[str]:
    """The networks returned, where they are not the slices that were searched."""
    rows = []
    for name in SUBJECTS:
        for gamma in data_aware.GAMMAS.get(name, ()):
            results = [
                result
                for result in runs.searches(name, "data", gamma)
                if "returned" in result
            ]
            changed = [
                r
                for r in results
                if abs(r["returned"]["loss"] - r["loss"]) > 1e-6 * (1 + r["loss"])
            ]
            if not changed:
                continue
            rows.append(
                [
                    *(name, gamma, f"{len(changed)}/{len(results)}"),
                    spread([r["loss"] for r in results], 2),
                    spread([r["returned"]["loss"] for r in results], 2),
                    spread([100 * r["top1"] for r in results], 2),
                    spread([100 * r["returned"]["top1"] for r in results], 2),
                    spread([objective(gamma, r) for r in results], 3),
                    spread(
                        [gamma * r["returned"]["loss"] + r["ratio"] for r in results],
                        3,
                    ),
                ]
            )
    if not rows:
        return []
    return [
        "## After the search",
        "",
        "The network that a search returns has its layers refitted in sequence, and "
        "its batch norm re-estimated, where that is better on fresh inputs. The tables "
        "above measure the slices that were searched; these the network before and "
        "after.",
        "",
        *table(
            "network | gamma | refitted | L before | after | top-1 % before | after "
            "| J before | after",
            rows,
        ),
    ]


def _transformer_section(runs: Runs) -> list[str]:
    """What the transformer loses at 30 and 50 % of the weights."""
    rows = []
    for ratio in _TRANSFORMER_RATIOS:
        for method in RULES:
            lost: dict[str, float] = {}
            cells: list[object] = [f"{100 * ratio:.0f}", method]
            for factors in ("weights", "data"):
                points = runs.points("transformer", factors, method)
                if not points:
                    break
                point = min(points, key=lambda p: abs(p["ratio"] - ratio))
                lost[factors] = 100 * (point["top1_original"] - point["top1"])
                cells += [f"{100 * point['ratio']:.1f}", f"{100 * point['top1']:.2f}"]
                cells.append(f"{lost[factors]:.2f}")
            if len(lost) == 2:
                rows.append(cells)
    if not rows:
        return []
    return [
        "## The transformer at 30 and 50 % of the weights",
        "",
        "The encoder of [a transformer and a depthwise network](any_network.md), cut "
        "by each rule to the same share of the weights of its linear layers, without "
        "training. *Lost*: points of top-1 on 10,000 test images.",
        "",
        *table(
            "weights asked % | ranks by | weights alone: kept % | top-1 % | lost "
            "| data-aware: kept % | top-1 % | lost",
            rows,
        ),
    ]


def _counts_section(runs: Runs) -> list[str]:
    """Loss and seconds against the number of calibration inputs."""
    rows = []
    for name in SUBJECTS:
        results = runs.results("counts", network=name)
        if not results:
            continue
        for place, row in enumerate(results[0]["rows"]):
            each = [result["rows"][place] for result in results]
            cells: list[object] = [name, row["count"] or "weights alone", len(each)]
            for i in range(len(FRACTIONS)):
                cells.append(spread([r["loss"][i] for r in each], 2))
                cells.append(spread([100 * r["top1"][i] for r in each], 1))
            rows.append([*cells, spread([r["seconds"] for r in each], 1)])
    if not rows:
        return []
    cuts = " | ".join(f"L at {f:g} | top-1 %" for f in FRACTIONS)
    return [
        "## How many calibration inputs",
        "",
        "All layers are cut to one fraction of their maximal rank, and measured on the "
        "first 2,000 test images; VGG-16's features end in a linear classifier on ten "
        "classes, whose outputs are compared. *Seconds*: CPU seconds for moments and "
        "factors of all layers together.",
        "",
        *table(f"network | inputs | runs | {cuts} | seconds", rows),
    ]


def _layers_section(runs: Runs) -> list[str]:
    """How much smaller the errors of the layers are."""
    rows, all_layers, worst = [], [], []
    pooled: dict[float, list[float]] = {fraction: [] for fraction in ERROR_FRACTIONS}
    for name in SUBJECTS:
        for result in runs.results("layers", network=name):
            ratios = layer_ratios(result["layers"])
            cells: list[object] = [name, len(ratios[ERROR_FRACTIONS[0]])]
            for fraction in ERROR_FRACTIONS:
                values = list(ratios[fraction].values())
                pooled[fraction] += values
                cells += [f"{np.median(values):.3f}", f"{max(values):.3f}"]
            rows.append(cells)
            all_layers += [
                [name, layer, *(f"{ratios[f][layer]:.3f}" for f in ERROR_FRACTIONS)]
                for layer in ratios[ERROR_FRACTIONS[0]]
            ]
            worst += [v for f in ERROR_FRACTIONS for v in ratios[f].values()]
    if not rows:
        return []
    total: list[object] = ["all", len(all_layers)]
    for fraction in ERROR_FRACTIONS:
        values = pooled[fraction]
        total += [f"{np.median(values):.3f}", f"{max(values):.3f}"]
    header = " | ".join(f"at {f:g}: median | largest" for f in ERROR_FRACTIONS)
    above = sum(value > 1.0 for value in worst)
    return [
        "## Errors of single layers",
        "",
        "Expected squared error of a layer's output, with data-aware factors over that "
        "with factors of the weights alone, at a fraction of the maximal rank. The "
        "layer gets what it gets in the original network, on 500 test images; the "
        "calibration inputs are training images. "
        f"{above} of {len(worst)} ratios are above 1.",
        "",
        *table(f"network | layers | {header}", [*rows, total]),
        *folded(
            "Every layer",
            table(
                "network | layer | " + " | ".join(f"at {f:g}" for f in ERROR_FRACTIONS),
                all_layers,
            ),
        ),
    ]


def layer_ratios(rows: Iterable[Mapping[str, Any]]) -> dict[float, dict[str, float]]:
    """Errors of data-aware factors over those of the weights, by fraction and layer."""
    errors = {(r["fraction"], r["layer"], r["kind"]): r["error"] for r in rows}
    found: dict[float, dict[str, float]] = {}
    for (fraction, layer, kind), error in errors.items():
        if kind == "data":
            alone = errors[fraction, layer, "weights"]
            found.setdefault(fraction, {})[layer] = error / max(alone, 1e-300)
    return found


def _time_section(runs: Runs) -> list[str]:
    """What the factors cost beside those of the weights alone."""
    rows = []
    for name in SUBJECTS:
        for result in runs.results("time", network=name):
            rounds = result["rounds"]
            ratios = [r["data"] / (r["weights"] + r["evaluations"]) for r in rounds]
            rows.append(
                [
                    *(name, result["layers"], len(rounds)),
                    spread([r["weights"] for r in rounds], 2),
                    spread([r["evaluations"] for r in rounds], 2),
                    spread([r["moments"] for r in rounds if "moments" in r] or [], 2)
                    if all("moments" in r for r in rounds)
                    else "-",
                    spread([r["data"] for r in rounds], 2),
                    spread(ratios, 2),
                ]
            )
    if not rows:
        return []
    return [
        "## Time",
        "",
        f"CPU seconds of one thread: factors of the weights alone, {EVALUATIONS} "
        "evaluations of 50 images on them, and moments over 500 inputs with the "
        "factors made of them, in turn. *Times*: the last over the first two together, "
        "within a round. The moments are part of the last, timed once more.",
        "",
        *table(
            "network | layers | rounds | factors, weights alone | evaluations "
            "| moments | moments and factors | times",
            rows,
        ),
    ]


def _search_cells(gamma: float, results: Sequence[Result]) -> list[str]:
    """Certificates, evaluations, CPU seconds, J and top-1 of some searches."""
    return [
        f"{sum(r['holds'] for r in results)}/{len(results)}",
        spread([r["evaluations"] for r in results], 0),
        spread([r["cpu_seconds"] for r in results], 0),
        spread([objective(gamma, r) for r in results], 3),
        spread([100 * r["top1"] for r in results], 2),
    ]


def _delta_section(runs: Runs) -> list[str]:
    """Evaluations to the certificate against the tolerance."""
    rows = []
    for name in SUBJECTS:
        for gamma in data_aware.GAMMAS.get(name, ()):
            for delta, relative in ((data_aware.DELTA, False), *data_aware.DELTAS):
                results = runs.results(
                    "search",
                    network=name,
                    factors="data",
                    gamma=gamma,
                    delta=delta,
                    relative=relative,
                )
                shared = runs.shared(
                    name, gamma, data_aware.COORDINATES, delta, relative
                )
                own = name, gamma, f"{100 * delta:.0f} % of J" if relative else delta
                for number, found in (
                    ("one a layer", results),
                    (data_aware.COORDINATES, shared),
                ):
                    if found:
                        cells = _search_cells(gamma, found)
                        rows.append([*own, number, len(found), *cells])
    if not rows:
        return []
    return [
        "## The tolerance",
        "",
        "Searches on data-aware factors, level marginal, epsilon = 0.05, at most 200 "
        "evaluations: how many the certificate takes at each delta.",
        "",
        *table(
            "network | gamma | delta | coordinates | runs | certified | evaluations "
            "| CPU seconds | J | top-1 %",
            rows,
        ),
    ]


def _shared_section(runs: Runs) -> list[str]:
    """Searches whose layers share coordinates, beside those that do not."""
    rows = []
    for name in data_aware.SHARED_GAMMAS:
        for gamma in data_aware.GAMMAS[name]:
            found: list[tuple[int | str, list[Result]]] = [
                (number, runs.shared(name, gamma, number))
                for number in data_aware.SHARED
            ]
            found.append(("one a layer", runs.searches(name, "data", gamma)))
            for number, results in found:
                if results:
                    own = (name, gamma, number, len(results))
                    rows.append([*own, *_search_cells(gamma, results)])
    if not rows:
        return []
    return [
        "## Few coordinates along the path",
        "",
        "`compress(..., coordinates=...)`: layers share coordinates, and those of a "
        "group move along their own price path. The certificate is of the networks "
        "that so many coordinates reach; the whole price path is among them.",
        "",
        *table(
            "network | gamma | coordinates | runs | certified | evaluations "
            "| CPU seconds | J | top-1 %",
            rows,
        ),
    ]


def _clip_section(runs: Runs) -> list[str]:
    """Searches with and without a model of what is too bad to win."""
    rows = []
    for name, gammas in data_aware.SHARED_GAMMAS.items():
        for gamma in gammas:
            for clip, results in (
                ("no", runs.unclipped(name, gamma)),
                ("yes", runs.shared(name, gamma)),
            ):
                if results:
                    cells = _search_cells(gamma, results)
                    rows.append([name, gamma, clip, len(results), *cells])
    if not rows:
        return []
    return [
        "## The clip",
        "",
        "Losses that are too large for a network to win are modelled by their "
        "logarithm ([known part](../known_part.md#what-it-does)), the default, or as "
        f"they are. Searches of {data_aware.COORDINATES} coordinates, at most "
        f"{MAX_TRIALS} evaluations.",
        "",
        *table(
            "network | gamma | clipped | runs | certified | evaluations | CPU seconds "
            "| J | top-1 %",
            rows,
        ),
    ]


def _stages_section(runs: Runs) -> list[str]:
    """VGG-16 in three stages."""
    rows = []
    for trained in (True, False):
        for trace in runs.traces:
            settings, result = trace.settings, trace.result
            if settings["part"] != "stages" or settings["trained"] != trained:
                continue
            original = result["rows"][0]["top1"]
            for row in result["rows"]:
                rows.append(
                    [
                        *("yes" if trained else "no", trace.seed, row["network"]),
                        f"{100 * row['top1']:.1f}",
                        f"{100 * (row['top1'] - original):+.1f}",
                        *(
                            f"{100 * row[part]:.2f}"
                            for part in ("convolutions", "linear", "both")
                        ),
                    ]
                )
    if not rows:
        return []
    return [
        "## VGG-16 in three stages",
        "",
        "The experiment of [VGG-16 in three stages](vgg16_stages.md) with data-aware "
        "factors, each stage with the moments of its own network: 2,000 training "
        "images, 1,000 test images, gamma 1 / 0.2 / 1, "
        f"{vgg16_stages.SEARCH['num_samples']} images per evaluation.",
        "",
        *table(
            "trained after each stage | seed | network | top-1 % "
            "| against the original | convolutions % | linear layers % | both %",
            rows,
        ),
    ]


def _missing_section(traces: Sequence[Trace]) -> list[str]:
    """What of the plan has no trace."""
    there = {trace.key for trace in traces}
    missing: dict[tuple[str, str], int] = {}
    for settings, seed in data_aware.plan(None):
        if Trace(data_aware.NAME, settings, seed, {}, []).key not in there:
            where = settings["part"], settings.get("network", "VGG-16 in three stages")
            missing[where] = missing.get(where, 0) + 1
    if not missing:
        return []
    listed = "; ".join(
        f"{part}, {network}: {number}" for (part, network), number in missing.items()
    )
    return [
        "## Not run",
        "",
        "Runs of the plan that these tables do not hold, by part and network: "
        f"{listed}.",
        "",
    ]
