"""A clock that counts weights, and tables of times made by a formula."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from compression_adapters.network import latency
from compression_adapters.network.latency import (
    LatencyTable,
    LayerTimes,
    Machine,
    forms_to_measure,
    kinds_of,
)

TICK = 1e-6
"""Seconds for each entry of a module's own parameters."""


@contextmanager
def clock_of_weights(monkeypatch):
    """Let a pass take a microsecond for each weight and bias of what it calls."""
    now = [0.0]

    def passed(module, arguments, output):
        own = module.named_parameters(recurse=False)
        now[0] += TICK * sum(p.numel() for _, p in own)

    for clock in ("perf_counter", "thread_time"):
        monkeypatch.setattr(latency.time, clock, lambda: now[0])
    handle = torch.nn.modules.module.register_module_forward_hook(passed)
    try:
        yield now
    finally:
        handle.remove()


MACHINE = Machine("cpu (a test)", 1, 50, "float32", "contiguous", "2.0")


def table_of(layers, seconds, *, rest=0.0, machine=MACHINE):
    """A table of times by a function of layer and rank or `"dense"`."""
    times = {}
    for layer in layers:
        ranks = (*forms_to_measure(layer), "dense")
        each = tuple(seconds(layer, rank) for rank in ranks)
        times[layer.name] = LayerTimes(
            layer.decomposition.name,
            tuple(layer.weight_shape),
            ((50, 20),),
            ranks,
            each,
            tuple(0.01 * s for s in each),
            kinds_of(layer),
        )
    whole = rest + sum(t.seconds[-1] for t in times.values())
    return LatencyTable(machine, times, whole, rest, 3, 1.0, 1.0)


def by_weights(layer, rank):
    """As many microseconds as a layer has weights at a rank."""
    count = layer.num_weights if rank == "dense" else layer.weights_at(rank)
    return TICK * count
