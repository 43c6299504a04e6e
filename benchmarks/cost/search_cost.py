"""CPU seconds of whole searches whose evaluations cost nothing: the machinery alone.

The objective stands in for a compressed network: ranks of convolutions in the widths of
a ResNet, an error per layer that decays with its rank, a known size. A trial then costs
what model, certificate, proposal and Ax cost.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.exceptions.core import OptimizationComplete

from ax_pac import KnownPart, certificate_records, pac_generation_strategy
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, revisions, table
from benchmarks.harness.traces import Trace, by_settings, recorded
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.parameters import bin_edges, rank_parameters

NAME = "search_cost"
DESCRIPTION = "CPU seconds per trial of whole searches at level marginal, Ax included"
MINUTES_ONCE = 0.0

EPSILON = 0.05
DELTA = 0.02
GAMMA = 0.02
# Of a mean of 50 squared errors, relative to it: measured on ResNet18.
_RELATIVE_SEM = 0.08
# Widths of the convolutions, with the rank at which each error has fallen to a ninth.
_LAYERS = {
    8: ((64, 64, 128, 128, 256, 256, 512, 512), (60, 70, 60, 80, 40, 30, 12, 5)),
    16: (
        (64,) * 3 + (128,) * 4 + (256,) * 6 + (512,) * 3,
        (50, 60, 60, 30, 50, 60, 70, 20, 40, 40, 30, 20, 20, 12, 8, 4),
    ),
}
# Trials at which a search without a certificate ends.
_MOST = 120

# The bars: mean CPU seconds of a trial over a whole search.
MOST_SECONDS = {8: 0.15, 16: 0.35}

_PLAN = tuple(({"d": d}, 3, 0.3 if d == 8 else 0.8) for d in _LAYERS)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


class StandIn:
    """A network of which only sizes and errors exist.

    Args:
        d: Number of layers, a key of the widths above.
        seed: Of the noise.
    """

    def __init__(self, d: int, seed: int) -> None:
        widths, self._ranks = _LAYERS[d]
        layers = [_layer(j, width) for j, width in enumerate(widths)]
        self.parameters = rank_parameters(layers)
        self.edges = bin_edges(self.parameters)
        weights = [layer.num_weights for layer in layers]
        self._sizes = {
            parameter.name: [
                share if rank == "dense" else share * rank / (layer.max_rank + 1)
                for ranks in parameter.ranks_of_bins(self.edges[parameter.name])
                for rank in ranks.values()
            ]
            for parameter, layer, share in zip(
                self.parameters,
                layers,
                np.array(weights) / sum(weights),
                strict=True,
            )
        }
        self._seed = seed

    @property
    def known(self) -> KnownPart:
        """The size, and that the loss is not negative."""
        return KnownPart(self._sizes, floor=0.0)

    def observe(self, point: Mapping[str, Any], index: int) -> tuple[float, float]:
        """Return an estimate of the objective and its standard error."""
        size, error = 0.0, 0.0
        for parameter, decay in zip(self.parameters, self._ranks, strict=True):
            name, (scale,) = parameter.name, parameter.scales
            u = float(point[name])
            rank = scale.rank_from_unit(u)
            edges = self.edges[name]
            number = int(np.searchsorted(edges[1:-1], u, "right"))
            size += self._sizes[name][number]
            if rank != "dense":
                error += 4.0 * math.exp(-2.2 * math.sqrt(rank / decay))
        # Errors of several layers add up to more than their sum.
        loss = error * (1.0 + error / 8.0) * (8.0 / len(self.parameters))
        sem = _RELATIVE_SEM * loss
        noise = np.random.default_rng((self._seed, index)).standard_normal()
        value = GAMMA * max(loss + sem * noise, 0.0) + size
        return value, GAMMA * max(sem, 1e-3)

    def first_points(self) -> list[dict[str, float]]:
        """A few networks that cut all layers alike, and the dense one."""
        return [
            {parameter.name: u for parameter in self.parameters}
            for u in (0.3, 0.45, 0.6, 0.75, 1.0)
        ]

    def client(self, *, seed: int, level: str = "marginal") -> Client:
        """A client with the strategy of a search and its first points attached."""
        client = Client(random_seed=seed)
        client.configure_experiment(
            parameters=[
                RangeParameterConfig(
                    name=parameter.name, parameter_type="float", bounds=(0.0, 1.0)
                )
                for parameter in self.parameters
            ]
        )
        client.configure_optimization(objective="-objective")
        client.set_generation_strategy(
            pac_generation_strategy(
                delta=DELTA,
                epsilon=EPSILON,
                level=level,
                seed=seed,
                num_samples=50,
                cells=self.edges,
                known=self.known,
            )
        )
        for point in self.first_points():
            index = client.attach_trial(dict(point))
            self.report(client, index, point)
        return client

    def report(self, client: Client, index: int, point: Mapping[str, Any]) -> None:
        """Evaluate a trial and complete it."""
        client.complete_trial(index, {"objective": self.observe(point, index)})


def _layer(j: int, width: int) -> LayerSpec:
    """A square convolution, 3 x 3, in the decomposition of the presets."""
    shape = (width, width, 3, 3)
    weights = 9 * width * width
    return LayerSpec(f"conv{j}", None, shape, weights // (4 * width), weights)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search until the certificate; CPU seconds of every trial."""
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.ExitStack() as after:
        after.callback(logging.disable, quiet)
        warnings.simplefilter("ignore")
        result = searched(StandIn(settings["d"], seed), seed)
    return recorded(NAME, settings, seed, result)


def searched(problem: StandIn, seed: int, most: int = _MOST) -> dict[str, Any]:
    """Search until the certificate or so many trials."""
    client = problem.client(seed=seed)
    seconds: list[float] = []
    with contextlib.suppress(OptimizationComplete):
        while len(client._experiment.trials) < most:
            start = time.process_time()
            try:
                ((index, point),) = client.get_next_trials(max_trials=1).items()
                problem.report(client, index, dict(point))
            finally:
                seconds.append(time.process_time() - start)
    records = certificate_records(client._experiment)
    last = records[-1]
    return {
        "trials": len(client._experiment.trials),
        "holds": last["holds"],
        "failure_probability": last["failure_probability"],
        "incumbent": last["incumbent"],
        "reached": [record["reached"] for record in records],
        "draws": [record["num_draws"] for record in records],
        "seconds": seconds,
    }


def render_search_cost(traces: Sequence[Trace]) -> str:
    """One row per number of coordinates."""
    lines = opening(
        "Cost of a search without its network",
        "CPU seconds of whole searches at level `marginal` on a stand-in for a "
        "network: ranks of convolutions, an error per layer, a known size; evaluations "
        f"cost nothing. delta = {DELTA}, epsilon = {EPSILON}, standard errors of "
        f"{_RELATIVE_SEM:.0%} of the loss.",
        "*Seconds per trial*: mean over a search, Ax included, from the first proposal "
        "to the certificate; the median over searches and their range. *Pairwise*, "
        "*refused*: median of the trials whose check ended at level `pairwise`, or "
        f"was refused at level `marginal`. *Bar*: what the mean is to be. "
        f"{revisions(traces)}",
        NAME,
    )
    rows = []
    for group in by_settings(traces):
        d, results = group[0].settings["d"], [trace.result for trace in group]
        means = [sum(r["seconds"]) / r["trials"] for r in results]
        trials = [trial for r in results for trial in _with_checks(r)]
        parts = [
            [s for s, reached, holds in trials if reached in levels and not holds]
            for levels in (("pairwise",), ("joint", "marginal"))
        ]
        rows.append(
            [
                d,
                f"{sum(r['holds'] for r in results)}/{len(results)}",
                ", ".join(str(r["trials"]) for r in results),
                f"{np.median(means):.2f} ({min(means):.2f}-{max(means):.2f})",
                *(f"{np.median(part):.2f}" if part else "-" for part in parts),
                f"<= {MOST_SECONDS[d]}",
            ]
        )
    lines += table(
        "d | certified | trials | seconds per trial | pairwise | refused | bar", rows
    )
    return "\n".join(lines)


def _with_checks(result: dict[str, Any]) -> list[tuple[float, str, bool]]:
    """Seconds of the trials that had a check, the level reached, and the verdict."""
    reached = result["reached"]
    last = [False] * (len(reached) - 1) + [result["holds"]]
    seconds = result["seconds"][-len(reached) :]
    return list(zip(seconds, reached, last, strict=True))
