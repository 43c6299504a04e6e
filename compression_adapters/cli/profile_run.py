"""The steps of `ax-pac profile`."""

from __future__ import annotations

import torch

from compression_adapters.calibration.profile import NetworkProfile, profile
from compression_adapters.cli.sources import Source
from compression_adapters.evaluation.calibration_split import split_inputs
from compression_adapters.network.latency import LatencyTable
from compression_adapters.network.structured_inputs import Inputs
from compression_adapters.options import FEWEST_SAMPLES, LATENCY_SECONDS


def profile_source(
    source: Source,
    *,
    calibrate: int,
    calibration_seed: int,
    encoding: str,
    min_rank: int,
    choose: str | None = None,
    output: str | int | None = None,
    size: str = "weights",
    latency_batch: int | None = None,
    latency_seconds: float = LATENCY_SECONDS,
    progress: bool | None = None,
) -> NetworkProfile:
    """Profile a network with the factors that a search would have.

    Args:
        source: Network and data.
        calibrate: Inputs that factors are fitted to, of its pool; 0: none.
        calibration_seed: Determines which.
        encoding: The meaning of the coordinate 0.5.
        min_rank: Smallest rank.
        choose: `"best"`: every form of each layer.
        output: Which output of the network is compared.
        size: `"latency"` times the layers, the path of a table reads their times.
        latency_batch: Inputs in a batch that is timed; None: 50.
        latency_seconds: Budget for it.
        progress: Whether to show a bar while they are timed.

    Returns:
        The profile, with predicted errors.
    """
    sampler, known, *_ = split_inputs(
        source.inputs,
        None,
        num_samples=2,
        calibrate=calibrate,
        seed=calibration_seed,
        output=output,
    )
    device = next(source.network.parameters()).device
    few = sampler(2, torch.Generator().manual_seed(0)).inputs.to(device)
    times: LatencyTable | Inputs | None = None
    if size == "latency":
        rng = torch.Generator().manual_seed(0)
        times = sampler(latency_batch or FEWEST_SAMPLES, rng).inputs
    elif size.endswith(".json"):
        times = LatencyTable.load(size)
    return profile(
        source.network,
        few,
        choose=source.choose_as(choose),
        encoding=encoding,
        min_rank=min_rank,
        errors=True,
        calibrate=None if known is None else known.inputs,
        seed=calibration_seed,
        times=times,
        latency_seconds=latency_seconds,
        progress=progress,
    )
