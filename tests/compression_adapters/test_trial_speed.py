"""What a trial costs beside the forward pass that it cannot do without."""

import time

import pytest
import torch

from compression_adapters import (
    compression_problem,
    factorize_network,
    truncate_network,
)
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.presets.registry import PRESETS


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "limit", "speedup"),
    [
        ("resnet18", 32, None, 20),
        ("resnet18", 224, 1.15, 3),
        ("vgg16", 224, 1.15, None),
    ],
)
def test_a_trial_costs_little_more_than_a_forward_pass(name, size, limit, speedup):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PRESETS[name].build()
        pool = torch.randn(60, 3, size, size)
    problem = compression_problem(
        network,
        pool,
        gamma=0.1,
        choose=PRESETS[name].choose,
        exclude=torch.nn.Linear if name == "vgg16" else (),
    )
    point = {parameter.name: 0.6 for parameter in problem.parameters}
    ranks = problem.ranks(point)
    compressed = problem.compress(point).eval()
    batch = problem._batch(3)  # the reference outputs of these samples are known now

    def forward():
        with torch.inference_mode():
            compressed(batch.inputs)

    def naive():
        factors = factorize_network(network, problem.layers)
        small = truncate_network(network, factors, problem.layers, ranks).eval()
        with torch.inference_mode(), evaluation_mode(network):
            (small(pool[:50]) - network(pool[:50])).square().sum(1)

    def trial():
        problem.evaluate(point, seed=3)

    trial()
    times = [(seconds(trial), seconds(forward)) for _ in range(5)]
    # The least of five: whatever else runs on the machine only adds.
    trial_seconds, forward_seconds = map(min, zip(*times, strict=True))
    if limit is not None:
        assert trial_seconds <= limit * forward_seconds
    if speedup is not None:
        assert seconds(naive) >= speedup * trial_seconds
