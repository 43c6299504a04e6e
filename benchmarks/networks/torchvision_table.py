"""Networks of torchvision with random weights: profile, cut, save, load, export."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, revisions, table
from benchmarks.harness.traces import Trace, recorded
from compression_adapters import as_inputs, compress, forward, load_compressed, profile
from compression_adapters.network.structured_inputs import leaves
from compression_adapters.search.result import CompressionResult

NAME = "torchvision"
DESCRIPTION = "Fifty networks of torchvision: profile, cut, save, load, export"
MINUTES_ONCE = 0.0

RATIO, CLASSES, POOL = 0.5, 10, 24
# Pixels, where 32 are too few.

_FEW = {"num_samples": 2, "calibrate": 4, "held_out": 0}
STEPS = ("profile", "cut", "save", "load", "export")

# Pixels, where 32 are too few.
_SIZES: dict[str, int] = {
    **{"inception_v3": 80, "alexnet": 64, "maxvit_t": 64, "s3d": 64, "mvit_v1_b": 64},
    **{"densenet121": 32, "squeezenet1_0": 48, "squeezenet1_1": 48},
}
# Two functions of torchvision fix what depends on the size of inputs, and would take
# twenty minutes each at that size: these arguments replace theirs.
_FIXED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "maxvit_t": (torchvision.models.maxvit, "_maxvit", {"partition_size": 2}),
    "mvit_v1_b": (
        torchvision.models.video.mvit,
        "_mvit",
        {"spatial_size": (64, 64), "temporal_size": 8},
    ),
}
_CLASSIFICATION = (
    *("alexnet", "convnext_tiny", "densenet121", "densenet169", "efficientnet_b0"),
    *("efficientnet_b1", "efficientnet_b2", "efficientnet_v2_s", "googlenet"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet1_0", "mobilenet_v2"),
    *("mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_x_800mf"),
    *("regnet_y_400mf", "regnet_y_800mf", "resnet18", "resnet34", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    *("shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vit_b_16", "wide_resnet50_2"),
)
_SEGMENTATION = (
    *("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"),
    *("fcn_resnet50", "deeplabv3_resnet50"),
)
_DETECTION = (
    *("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    *("fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn"),
    *("fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"),
)
_VIDEO = ("mc3_18", "r3d_18", "r2plus1d_18", "s3d", "mvit_v1_b")
_FLOW = ("raft_small",)
TASKS = {
    "classification": _CLASSIFICATION,
    "segmentation": _SEGMENTATION,
    "detection": _DETECTION,
    "video": _VIDEO,
    "optical flow": _FLOW,
}
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = tuple(
    ({"task": task, "network": name}, 1, 0.5)
    for task, names in TASKS.items()
    for name in names
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def build(task: str, name: str) -> nn.Module:
    """Make a network with random weights."""
    options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if task in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if task == "detection" and not name.startswith("ssd"):
        options |= {"min_size": 64, "max_size": 64}
    if task == "optical flow":
        options = {"weights": None}
    if name in ("vit_b_16", "maxvit_t"):
        size = _SIZES.get(name, 32)
        options["image_size" if name == "vit_b_16" else "input_size"] = (
            size if name == "vit_b_16" else (size, size)
        )
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with _resized(name):
            made: nn.Module = torchvision.models.get_model(name, **options)
        if name == "vit_b_16":  # whose head begins at zero, and so would the outputs
            nn.init.normal_(made.get_submodule("heads.head").weight, std=0.02)
    return made.eval()


@contextmanager
def _resized(name: str) -> Iterator[None]:
    """Let torchvision make a network for small inputs, where its function has one size.

    Args:
        name: Of the network.
    """
    if name not in _FIXED:
        yield
        return
    module, function, changes = _FIXED[name]
    made = getattr(module, function)
    replaced = {function: lambda **options: made(**options | changes)}
    with patch.multiple(module, **replaced):
        yield


def inputs_of(task: str, name: str, count: int = POOL) -> Tensor | tuple[Tensor, ...]:
    """Random images, videos or pairs of images."""
    rng = torch.Generator().manual_seed(0)
    size = _SIZES.get(name, 64 if task == "detection" else 32)
    if task == "video":
        frames = 16 if name == "s3d" else 8
        return torch.rand(count, 3, frames, size, size, generator=rng)
    if task == "optical flow":
        two = (torch.rand(count, 3, 128, 128, generator=rng) for _ in range(2))
        return tuple(two)
    return torch.rand(count, 3, size, size, generator=rng)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Do one step after the other, and keep the sentence of the one that is refused."""
    task, name = settings["task"], settings["network"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tour = Tour(partial(build, task, name), inputs_of(task, name), seed, folder)
        result = tour.taken()
    result["seconds"] = time.perf_counter() - start
    return recorded(NAME, settings, seed, result)


class Tour:
    """The steps of one network, each with what those before it made.

    Args:
        make: Makes the network, with the same weights each time.
        pool: Its inputs.
        seed: Of the cut.
        folder: Where the compressed network is saved.
    """

    def __init__(
        self, make: Callable[[], nn.Module], pool: Any, seed: int, folder: str
    ) -> None:
        self.make, self.pool, self.seed = make, pool, seed
        self.folder = Path(folder) / "small"
        self.network = make()
        self.few = as_inputs(pool)[:2]
        self.result: CompressionResult | None = None
        self.counts: dict[str, Any] = {}

    def taken(self) -> dict[str, Any]:
        """Take the steps; `works`, or the sentence of the step that is refused."""
        steps: dict[str, str] = {}
        for name in STEPS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    getattr(self, name)()
            except Exception as error:  # whatever it is: the table shows it
                sentence = str(error).strip().split("\n")[0]
                steps[name] = f"{type(error).__name__}: {sentence}"
                break
            steps[name] = "works"
        return {"steps": steps, **self.counts}

    def profile(self) -> None:
        """Tabulate the layers."""
        found = profile(self.network, self.few)
        self.counts |= {"layers": len(found.layers), "left_out": len(found.skipped)}

    def cut(self) -> None:
        """Take the network of half the size from the price path."""
        self.result = compress(
            self.network,
            self.pool,
            ratio=RATIO,
            search=False,
            loss="relative_squared_l2",
            seed=self.seed,
            progress=False,
            **_FEW,
        )
        weights = self.result.layers[["weights", "weights_before"]].sum()
        self.counts |= {
            "cut": len(self.result.layers),
            "ratio": float(weights["weights"] / weights["weights_before"]),
        }

    def save(self) -> None:
        """Save it."""
        self._result.save(self.folder)

    def load(self) -> None:
        """Load it onto a fresh network, and compare the outputs."""
        loaded = load_compressed(self.folder, self.make()).eval()
        with torch.no_grad():
            one, other = (forward(n, self.few) for n in (loaded, self._result.network))
        if not torch.equal(one, other):
            raise ValueError("after loading it has other outputs")

    def export(self) -> None:
        """Export it by torch.export, and compare the outputs."""
        small = self._result.network
        arguments: tuple[Any, ...] = (self.few,)
        if not isinstance(self.few, Tensor):
            arguments, _ = self.few.arguments(small)
        program = torch.export.export(small, arguments, strict=False)
        with torch.no_grad():
            one = next(leaves(program.module()(*arguments)))
            other = next(leaves(small(*arguments)))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

    @property
    def _result(self) -> CompressionResult:
        if self.result is None:
            raise RuntimeError("nothing was cut")
        return self.result


def render_torchvision(traces: Sequence[Trace]) -> str:
    """One row per network, then the sentences of what was refused."""
    lines = opening(
        "Networks of torchvision",
        "For those who want to know whether their network is taken: networks for five "
        f"tasks with random weights, {CLASSES} outputs and small inputs, profiled, "
        f"cut to {RATIO:.0%} of the weights of its layers (`search=False`), saved, "
        "loaded onto a fresh one (equal outputs), exported by `torch.export` (equal up "
        "to rounding). No network has a wrapper or an option of its own.",
        "*Layers* are those that some rank makes smaller, and those that take part: "
        "the outputs depend on them. A step that fails is shown with its sentence, and "
        "what follows it is not tried. Seconds are wall seconds of one thread on a "
        "shared machine.",
        NAME,
    )
    done = sum(
        all(trace.result["steps"].get(step) == "works" for step in STEPS)
        for trace in traces
    )
    cut = sum(trace.result["steps"].get("load") == "works" for trace in traces)
    lines += [
        f"Of {len(traces)} networks, {cut} are cut, saved and loaded, and {done} are "
        f"exported too. {revisions(traces)}",
        "",
    ]
    rows, sentences = [], []
    order = list(TASKS)
    for trace in sorted(
        traces, key=lambda t: (order.index(t.settings["task"]), t.settings["network"])
    ):
        r, name = trace.result, trace.settings["network"]
        steps = [r["steps"].get(step, "-") for step in STEPS]
        rows.append(
            [
                *(name, trace.settings["task"]),
                f"{r.get('layers', '-')}, {r.get('cut', '-')}",
                f"{100 * r['ratio']:.1f}" if "ratio" in r else "-",
                *(said if said in ("works", "-") else "refused" for said in steps),
                f"{r['seconds']:.0f}",
            ]
        )
        sentences += [
            f"- **{name}**, {step}: {said}"
            for step, said in zip(STEPS, steps, strict=True)
            if said not in ("works", "-")
        ]
    lines += table(
        "network | task | layers, in play | ratio % | profile | cut | save | load "
        "| export | seconds",
        rows,
    )
    if sentences:
        lines += ["## What was refused, and how", "", *sentences, ""]
    return "\n".join(lines)
