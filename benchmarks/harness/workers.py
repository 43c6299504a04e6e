"""Runs in processes of their own, each result as it completes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from benchmarks.harness.traces import Trace, provenance

Job = tuple[dict[str, Any], int]


def completed_runs(
    run: Callable[[int, dict[str, Any]], Trace],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
) -> Iterator[Trace]:
    """Yield the trace of each job (settings, seed) as it is done."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (threads,)) as pool:
        running = [pool.submit(run, seed, settings) for settings, seed in jobs]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Wait for the end of the process that hands out the runs, and end too.

    The results of a worker that goes on would be lost, and it would slow down whatever
    is measured next.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start(threads: int) -> None:
    """Set a worker up: its threads, and silence about other people's packages."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    provenance(threads)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    # Rounding noise up is the safe side; GPyTorch says so at every fit.
    warnings.filterwarnings("ignore", message="Very small noise values")
