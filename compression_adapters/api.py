"""The entry point: compress a network until a certificate holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from ax_pac.experiment.settings import CertificateSettings
from compression_adapters.evaluation.losses import Loss
from compression_adapters.layers.selection import Choose, Selectors, choose_low_rank
from compression_adapters.network.latency import LatencyTable
from compression_adapters.network.structured_inputs import OutputChoice
from compression_adapters.options import (
    AUTO,
    AtMax,
    ChooseName,
    CompressionOptions,
    Objective,
    ProblemOptions,
    SearchOptions,
    SizeName,
    SizeOf,
    Start,
)
from compression_adapters.rank_space.parameters import Tie
from compression_adapters.search.auto import search_auto
from compression_adapters.search.dry_run import checked_problem
from compression_adapters.search.no_search import take_from_path
from compression_adapters.search.quality_target import stated
from compression_adapters.search.result import CompressionResult, timed
from compression_adapters.search.run import search_problem
from compression_adapters.search.sample_size import most_samples
from compression_adapters.search.speedup import search_speedup
from compression_adapters.search.stored_choices import with_stored_choices
from compression_adapters.search.targets import search_target
from compression_adapters.search.time_limit import TimeLimit

if TYPE_CHECKING:
    from ax.api.client import Client


def compress(
    network: nn.Module,
    inputs: Any,
    *,
    gamma: float | None = None,
    ratio: float | str | None = None,
    loss_at_most: float | None = None,
    agreement_at_least: float | None = None,
    accuracy_drop_at_most: float | None = None,
    speedup: float | None = None,
    delta: float = SearchOptions.delta,
    epsilon: float = SearchOptions.epsilon,
    level: str = SearchOptions.level,
    relative: bool = SearchOptions.relative,
    labels: Tensor | None = None,
    collate: Callable[[list[Any]], Any] | None = ProblemOptions.collate,
    output: OutputChoice = ProblemOptions.output,
    loss: str | Loss = ProblemOptions.loss,
    num_samples: int | Literal["auto"] = ProblemOptions.num_samples,
    calibrate: int = ProblemOptions.calibrate,
    calibration_seed: int = ProblemOptions.calibration_seed,
    held_out: int | None = ProblemOptions.held_out,
    choose: Choose | ChooseName = choose_low_rank,
    include: Selectors | None = None,
    exclude: Selectors = (),
    tie: Tie | None = None,
    coordinates: int | None = ProblemOptions.coordinates,
    encoding: str = ProblemOptions.encoding,
    at_max: AtMax = ProblemOptions.at_max,
    min_rank: int = ProblemOptions.min_rank,
    round_to: int = ProblemOptions.round_to,
    skip_no_gain: bool = ProblemOptions.skip_no_gain,
    objective: Objective = ProblemOptions.objective,
    binary_loss: bool | None = None,
    size: SizeName | LatencyTable | str | Path = ProblemOptions.size,
    size_of: SizeOf = ProblemOptions.size_of,
    latency_batch: int | None = None,
    latency_seconds: float = ProblemOptions.latency_seconds,
    num_initial_trials: int | None = None,
    sampling: str = SearchOptions.sampling,
    start: Start = SearchOptions.start,
    search: bool = SearchOptions.search,
    max_trials: int = SearchOptions.max_trials,
    minutes: float | None = SearchOptions.minutes,
    seed: int = SearchOptions.seed,
    refit: bool = SearchOptions.refit,
    progress: bool | None = None,
    client: Client | None = None,
    db: str | Path | None = None,
    name: str = SearchOptions.name,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    timeout: float | None = None,
) -> CompressionResult:
    """Compress a network: search its layers' ranks until a certificate holds.

    `compress(network, inputs)` needs no number: the loss is then the squared distance
    of the outputs in units of their squared size, and a tenth of a per cent of it
    weighs as much as one per cent of the weights (docs/benchmarks/quality.md).

    Minimises `gamma * loss + compression_ratio` over the ranks, where the ratio counts
    what `size` says (weights, multiply-adds, bytes, or measured time), with
    `num_samples` fresh samples per evaluation. Stops when the best network found is
    within `delta` of the best one with the probability that `level` stands for.

    Args:
        network: Any PyTorch network. It is left exactly as it is: all runs on a copy.
        inputs: A pool of inputs, or a function `(num_samples, rng)` that generates
            them. A pool is a tensor; several in a mapping (as a tokenizer returns
            them), a tuple or a dataclass; a dataset or a list of items; or a
            `DataLoader`. See `open_pool`.
        gamma: Weight of the loss, positive. A larger one keeps more weights. Pass
            at most one of this and the next five; with none, see above.
        ratio: In place of gamma: the largest compression ratio, as a number in (0, 1)
            or as text such as `"30%"`. Several gammas are tried, see `compress_to`.
        loss_at_most: In place of gamma: the largest loss, in its own unit.
        agreement_at_least: In place of gamma: the smallest share of inputs on which the
            largest output is the original's, such as 0.98. Needs no labels. The result
            says on how many it surely is (`CompressionResult.statement`), by inputs
            that are held out; pass inputs that the network was not trained on, because
            on those it was it is surer of itself.
        accuracy_drop_at_most: In place of gamma: the largest drop in accuracy, such as
            0.01 for one point. Needs labels.
        speedup: In place of gamma: how many times faster the whole network has to be,
            such as 2.0, measured on this machine. The size is then the time of the
            whole network, see `search_speedup`.
        delta: Tolerance, positive. Unit: objective units (with the default objective,
            0.02 is two percentage points of compression ratio); or a share, see
            `relative`. A delta near the objective itself, which is about 0.1 for a
            network that data-aware factors cut well, says nothing.
        epsilon: Allowed failure probability, in (0, 1).
        level: What the certificate accounts for, see `PACCertificate`.
        relative: Whether delta is a share of the objective at the incumbent.
        labels: Class indices of a tensor pool, for losses that need them.
        collate: Makes a batch of a list of items of a dataset, for items that differ in
            size or are of an unusual type; that of a `DataLoader` is used by default.
        output: Which output is compared, of a network that returns several: a name, an
            index, the path of a module, or a function of what it returns. None: the
            logits, the last hidden state or whatever there is, see `read_output`.
        loss: `"squared_l2"`, `"relative_squared_l2"` (relative to the size of the
            outputs) and `"kl_divergence"` need no labels, `"cross_entropy"` and
            `"top1_error"` do; or a function `(network, batch) -> (m,)`, such as
            `IntermediateSquaredL2("layer2")`.
        num_samples: m, samples per evaluation; `"auto"` draws as many as take about as
            long as the rest of a trial, at least 50, see `search_auto`.
        calibrate: How many inputs the factors are fitted to, without labels; at most a
            fifth of a pool. Trials draw from the others only. 0: the factors are those
            of the weights alone, the paper's way. See `docs/how_to/data_aware.md`.
        calibration_seed: Determines which; a search that is continued needs the same.
        held_out: How many inputs are kept apart from both calibration and trials, for
            the statement about quality at the end; at most 40 % of a pool.
        choose: Which layers to compress, and how; by default all linear layers and 2d
            convolutions. `"best"` offers each convolution every form that it can have
            and takes at each size the one that loses least, see `Ladder`; it takes
            longer to decompose and to time. See `find_layers`, and `profile` to inspect
            them first.
        include: Globs for layer names, types, or predicates; only layers that match.
        exclude: The same; layers that match are left alone.
        tie: Layer name to group, for a common coordinate; or `"threshold"`.
        coordinates: Layers share so many coordinates, at most: in their order, in
            groups of about the same size, each along its own price path (encoding
            `"path"`). None: more than three layers share three, unless `tie` or
            `encoding` says otherwise or `calibrate` is 0. The certificate is of the
            networks that the coordinates reach. See `docs/rank_space.md`.
        encoding: `"log"`, `"energy"` or `"linear"`; or `"path"`, with which tied layers
            move along their own price path, so that few coordinates reach every network
            of it. See `docs/rank_space.md`.
        at_max: What the last bin of a coordinate means, see `rank_scale`.
        min_rank: Smallest rank.
        round_to: Use multiples of this as ranks, such as 8.
        skip_no_gain: Whether to leave out ranks that save no multiply-adds, see
            `compression_problem`.
        objective: `"ratio"` (Eq. 3, minimised) or `"rate"` (Eq. 2, maximised).
        binary_loss: Whether a loss of your own is 0 or 1 for each sample, so that its
            standard error gets the binomial floor. None: known for the losses here.
        size: What the ratio counts: `"weights"`; `"multiply-adds"` per sample;
            `"bytes"` as they are stored; or `"latency"`, seconds per batch, for which
            the layers are first timed at their ranks, see `measure_latency`. Or a
            `LatencyTable` of an earlier search or another machine, or the path of one.
            See `docs/how_to/size.md`.
        size_of: `"layers"`: the ratio is that of the layers in play; `"network"`: of
            the whole network, what cannot be compressed included.
        latency_batch: Inputs in a batch that is timed; None: those of an evaluation.
        latency_seconds: Budget for timing the layers.
        num_initial_trials: Space-filling evaluations first; default `max(6, d + 2)`.
        sampling: What to evaluate next, see `pac_generation_strategy`.
        start: What to evaluate first. `"path"`: networks on the price path, where
            data-aware factors point, and the dense one, see `price_path`. `"line"`:
            networks whose layers are all cut alike, the dense one among them: in a deep
            network a random point has some layer cut to almost nothing.
            `"space-filling"`: neither. `"auto"`: the path with data-aware factors, else
            the line from four coordinates on; space-filling with `workers`.
        search: False takes the network from the price path, at once and without a
            certificate: for `ratio` the largest that is no larger, for a gamma or a
            loss after some twenty evaluations.
        max_trials: Evaluations after which to stop without a certificate.
        minutes: Minutes after which to end with the best network so far, certified or
            not. Kept to between two evaluations; what comes before the first one
            (calibration, decomposition) is not interrupted. Not with `workers`.
        seed: Determines samples and proposals.
        refit: Whether to refit the network that is kept, in sequence, and to move the
            statistics of its batch norm, on the calibration inputs. Each step is kept
            only if the loss is smaller on fresh samples, see `finish_network`. The
            certificate is of the networks as the trials measured them. Without effect
            if `calibrate` is 0.
        progress: Whether to show a progress bar; None: on a terminal only.
        client: The client of an earlier search on the same layers, to continue it,
            typically with a smaller delta. Not with a target.
        db: A database that keeps the search, a path (SQLite) or an SQLAlchemy URL. The
            one that it holds is continued; `max_trials` counts all its trials, all
            other settings must be as they were, see `docs/how_to/storage.md`.
        name: Name of the search in the database.
        workers: Evaluations at the same time, on Ray. None makes one after the other in
            this process. See `docs/how_to/many_machines.md`.
        resources: What an evaluation on Ray reserves, such as `{"num_gpus": 1}`:
            `num_cpus`, `num_gpus`, `memory` (bytes), or a name that the cluster's nodes
            were given. With a GPU, network, factors and pool are on that of the worker.
            None: one CPU.
        timeout: Seconds after which an evaluation on Ray is cancelled and its trial
            fails. None: no limit.

    Returns:
        The compressed network, its certificate, and the trials. If interrupted
        (Ctrl-C), the best result so far.

    Raises:
        ValueError: When an argument is invalid; the message states which and why.
        ImportError: When an extra is missing: `sql` for `db`, `ray` for `workers`.
        EvaluationError: When three evaluations in a row fail.
        SearchHeldError: When another process is at work on the search in `db`.
        UnmeasuredNetworkError: When the network to return does not lose what the search
            measured, so that its certificate would be of another network.
            Whatever fails after the search began carries its `client`.

    Source: Ma et al. 2019. Deviations: the log encoding, "left dense" as the last bin,
    and bounds on the likelihood fit are not in the source.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        >>> pool = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
        >>> result = compress(network, pool, gamma=1.0, delta=0.5, epsilon=0.05)
        >>> result.certificate.holds
        True
        >>> size, quality, certified = result.sentences()
        >>> certified.split(":")[0]
        'Certified'
    """
    options = CompressionOptions.of(
        gamma=gamma,
        ratio=ratio,
        loss_at_most=loss_at_most,
        agreement_at_least=agreement_at_least,
        accuracy_drop_at_most=accuracy_drop_at_most,
        speedup=speedup,
        labels=labels,
        collate=collate,
        output=output,
        loss=loss,
        num_samples=num_samples,
        calibrate=calibrate,
        calibration_seed=calibration_seed,
        held_out=held_out,
        choose=choose,
        include=include,
        exclude=exclude,
        tie=tie,
        coordinates=coordinates,
        encoding=encoding,
        at_max=at_max,
        min_rank=min_rank,
        round_to=round_to,
        skip_no_gain=skip_no_gain,
        objective=objective,
        binary_loss=binary_loss,
        size=str(size) if isinstance(size, Path) else size,
        size_of=size_of,
        latency_batch=latency_batch,
        latency_seconds=latency_seconds,
        delta=delta,
        epsilon=epsilon,
        level=level,
        relative=relative,
        num_initial_trials=num_initial_trials,
        sampling=sampling,
        start=start,
        search=search,
        max_trials=max_trials,
        minutes=minutes,
        seed=seed,
        refit=refit,
        progress=progress,
        db=db,
        name=name,
        workers=workers,
        resources=resources,
        timeout=timeout,
    )
    return compress_with(network, inputs, options, client=client)


def compress_with(
    network: nn.Module,
    inputs: Any,
    options: CompressionOptions,
    *,
    client: Client | None = None,
) -> CompressionResult:
    """Compress a network: `compress` with its options in one value.

    Args:
        network: See `compress`.
        inputs: See `compress`.
        options: What is asked for.
        client: See `compress`.
    """
    options = options.with_held_out().with_default_target()
    options.target.require_one()
    limit = TimeLimit.of(options.search.minutes, refit=options.search.refit)
    search, gamma = options.search, options.target.gamma
    # Refuses what no certificate can be asked before a network is factorized.
    CertificateSettings(
        delta=search.delta,
        epsilon=search.epsilon,
        level=search.level,
        relative=search.relative,
        sampling=search.sampling,
    )
    if not search.search and client is not None:
        raise ValueError("search=False evaluates anew; leave the client out.")
    if search.db is not None and client is not None:
        raise ValueError("Expected a client or a database to continue from; got both.")
    if gamma is None and client is not None:
        raise ValueError(
            f"A search for a target ({options.target.given[0]}) cannot continue a "
            "client; pass gamma, or leave the client out."
        )
    options = with_stored_choices(options, client)
    if options.target.speedup is not None:
        found = search_speedup(network, inputs, options)
        return stated(found, search, options.target)
    if not search.search:
        return timed(_without_search(network, inputs, options, limit))
    if gamma is None:
        return timed(search_target(network, inputs, options, limit=limit))
    began = time.perf_counter()
    problem = checked_problem(network, inputs, gamma, options.problem)
    factorize_seconds = time.perf_counter() - began
    if options.problem.num_samples == AUTO:
        most = most_samples(problem)
        result = search_auto(problem, search, most=most, client=client, limit=limit)
    else:
        result = search_problem(problem, search, client=client, limit=limit)
    result = timed(result)
    seconds = {"factorize": factorize_seconds, "total": time.perf_counter() - began}
    result = stated(result, search, options.target)
    return replace(result, timings=result.timings | seconds)


def _without_search(
    network: nn.Module,
    inputs: Any,
    options: CompressionOptions,
    limit: TimeLimit,
) -> CompressionResult:
    """Take a network from the price path."""
    began = time.perf_counter()
    gamma = 1.0 if options.target.gamma is None else options.target.gamma
    problem = checked_problem(network, inputs, gamma, options.problem)
    factorize_seconds = time.perf_counter() - began
    result = take_from_path(problem, options.search, options.target, limit=limit)
    seconds = {"factorize": factorize_seconds, "total": time.perf_counter() - began}
    return replace(result, timings=result.timings | seconds)
