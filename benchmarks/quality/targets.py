"""Ask for a quality, and measure it on images that had no part in it."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.data_aware.subjects import subject
from benchmarks.networks.evaluation import NetworkData, outputs_on
from compression_adapters import compress
from compression_adapters.search.result import CompressionResult


def run_target(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Compress to a target, without a search, and look at all test images."""
    name = settings["network"]
    data = subject(name)
    chosen, labels, others = pool_of(data, settings["pool"], seed)
    target = {settings["target"]: settings["value"]}
    start = time.process_time()
    found = compress(
        data.network,
        chosen,
        labels=labels,
        search=False,
        choose=data.choose,
        seed=seed,
        calibration_seed=seed,
        progress=False,
        **target,
    )
    return {
        "cpu_seconds": time.process_time() - start,
        "pool": len(chosen),
        **measured(name, found, others),
    }


def run_default(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Take the network of the path that a weight of the relative loss asks for."""
    name = settings["network"]
    data = subject(name)
    chosen, _, others = pool_of(data, settings["pool"], seed)
    start = time.process_time()
    found = compress(
        data.network,
        chosen,
        gamma=settings["gamma"],
        loss="relative_squared_l2",
        search=False,
        choose=data.choose,
        seed=seed,
        calibration_seed=seed,
        progress=False,
    )
    return {
        "cpu_seconds": time.process_time() - start,
        "loss": found.loss.mean,
        **measured(name, found, others),
    }


def pool_of(data: NetworkData, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels to compress with, and which test images are others.

    Args:
        data: Network and images.
        kind: `"train"`: the images that the network was trained on; all test images are
            others. `"fresh"`: half of the test images, chosen by the seed; the other
            half are others.
        seed: Of the choice.
    """
    if kind == "train":
        everything = torch.arange(len(data.test))
        return data.pool[torch.arange(len(data.pool))], data.pool_labels, everything
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.test), generator=rng)
    half = len(order) // 2
    mine, others = order[:half], order[half:]
    return data.test[mine], data.test_labels[mine], others


def measured(name: str, found: CompressionResult, others: Tensor) -> dict[str, Any]:
    """What was found, and its quality on the test images.

    Args:
        name: Of the network.
        found: The result.
        others: Indices of the test images that were not in the pool.
    """
    data, before = subject(name), reference(name)
    after = outputs_on(found.network, data.test, len(data.test))
    same = (after.argmax(1) == before.argmax(1)).double()
    right = [(one.argmax(1) == data.test_labels).double() for one in (before, after)]
    weights = found.layers[["weights", "weights_before"]].sum()
    said = found.statement
    return {
        "ratio": float(weights["weights"] / weights["weights_before"]),
        "ranks": dict(found.ranks),
        "statement": None if said is None else said.to_dict(),
        "agreement": float(same.mean()),
        "agreement_others": float(same[others].mean()),
        "drop": float((right[0] - right[1]).mean()),
        "drop_others": float((right[0] - right[1])[others].mean()),
        "top1_original": float(right[0].mean()),
        "top1": float(right[1].mean()),
    }


@cache
def reference(name: str) -> Tensor:
    """Outputs of the original on all test images."""
    data = subject(name)
    return outputs_on(data.network, data.test, len(data.test))
