"""Try before a search what follows it, so that no search is lost to what was known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ax.api.client import Client
from torch import nn

from compression_adapters.evaluation.build import build_problem
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.checkpoint import load_compressed, save_compressed
from compression_adapters.network.checks import agree
from compression_adapters.network.costs import layer_losses, measure_cost
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.recipe import recipe_of
from compression_adapters.options import ProblemOptions


def checked_problem(
    network: nn.Module,
    inputs: Any,
    gamma: float,
    options: ProblemOptions,
) -> CompressionProblem:
    """Build a problem, and try on it what a search does and what follows it.

    Args:
        network: See `build_problem`.
        inputs: See `build_problem`.
        gamma: See `build_problem`.
        options: See `build_problem`.
    """
    problem = build_problem(network, inputs, gamma, options)
    dry_run(problem)
    return problem


def dry_run(problem: CompressionProblem) -> None:
    """Evaluate, copy, save, load, count and measure before a search.

    One evaluation at the largest ranks, where every loss is defined; all else with the
    network at the smallest ranks, on two inputs. It is saved in a temporary folder, and
    loaded again unless the reference network was itself compressed, for then the
    original is not at hand.

    Args:
        problem: The problem of the search.

    Raises:
        ValueError: when something fails; the message says what, and what raised it.
    """
    smallest, largest = (
        {parameter.name: u for parameter in problem.parameters} for u in (0.0, 1.0)
    )
    # Its own errors say what to do, and no search has been made that could be lost.
    problem.evaluate(largest, seed=0)
    ranks, reference, layers = problem.ranks(smallest), problem.network, problem.layers
    device = next(reference.parameters()).device
    few = problem.sampler(2, torch.Generator().manual_seed(0)).inputs.to(device)
    with _attempt("copied"):
        small = problem.compress(smallest).eval()
    with _attempt("run"), evaluation_mode(small):
        outputs = forward(small, few)
    with tempfile.TemporaryDirectory() as folder:
        with _attempt("saved"):
            save_compressed(small, layers, ranks, folder)
        if not recipe_of(reference).layers:
            with _attempt("loaded"):
                own = {kind.name: kind for layer in layers for kind in layer.kinds}
                loaded = load_compressed(folder, reference, decompositions=own)
                with evaluation_mode(loaded):
                    if not agree(outputs, forward(loaded, few)):
                        raise ValueError(
                            "after loading it has other outputs than before. What the "
                            "outputs depend on has to be in its state_dict"
                        )
    with _attempt("measured"):
        layer_losses(reference, small, layers, problem.factors, ranks, few)
        for network in (reference, small):
            measure_cost(network, few, batch_sizes=())


@contextmanager
def carrying(client: Client) -> Iterator[None]:
    """Let errors carry the client, so that the trials of a search are not lost.

    Args:
        client: It becomes the attribute `client` of an error that has none.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "client", None) is None:
            error.client = client  # type: ignore[attr-defined]
            error.add_note(
                "The search is not lost: its client, with all completed trials, is the "
                "attribute `client` of this error."
            )
        raise


@contextmanager
def _attempt(done: str) -> Iterator[None]:
    """Say of an error what could not be done."""
    try:
        yield
    except OSError:
        raise  # of the temporary folder
    except Exception as error:  # whatever the network raises
        raise ValueError(
            f"The result of a search could not be {done}, so none was begun; at the "
            f"smallest ranks: {error}"
        ) from error
