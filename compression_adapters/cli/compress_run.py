"""The steps of `ax-pac compress` for a network and its data."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
import torch

from ax_pac import certificate_records
from ax_pac.analysis.cards import (
    CertificateHistory,
    ChallengerGap,
    IncumbentHistory,
    TimeSpent,
)
from ax_pac.analysis.plots import (
    history_table,
    plot_certificate_history,
    plot_challenger_gap,
    plot_incumbent_history,
    plot_times,
    time_table,
)
from ax_pac.ax_internals import experiment_of
from compression_adapters.api import compress_with
from compression_adapters.cli.options import Request
from compression_adapters.cli.reload import reloads_equal
from compression_adapters.cli.sources import Source
from compression_adapters.evaluation.accuracy import top_accuracies
from compression_adapters.evaluation.loss_curves import relative_errors
from compression_adapters.network.costs import cost_table, slower_note
from compression_adapters.network.counts import compression_ratio, whole_network_ratio
from compression_adapters.network.truncation import truncated
from compression_adapters.report.run import (
    NETWORK_FOLDER,
    read_run,
    readable,
    write_report,
    write_run,
)
from compression_adapters.search.result import CompressionResult

TIMES_FILE: Final = "times.json"
"""The table of times of a run by latency, for `--size` of another."""

_MOST_RUNGS: Final = 60
"""Forms of a layer that a report shows, beside the one that was chosen."""

_PACKAGES: Final = (
    *("ax-pac", "ax-platform", "botorch"),
    *("torch", "torchvision", "numpy"),
)


def compress_source(source: Source, request: Request) -> dict[str, Any]:
    """Search, save, reload, measure and write the report.

    Args:
        source: Network and data.
        request: What was asked for.

    Returns:
        The summary, as `read_run` reads it.

    Raises:
        ValueError: as `compress` does.
        RuntimeError: when the saved network gives other outputs.
    """
    out = request.out
    labels = source.labels_for(request.options.problem.loss)
    if request.options.target.accuracy_drop_at_most is not None:
        labels = source.labels
    options = request.options.changed(
        labels=labels, choose=source.choose_as(request.options.problem.choose)
    )
    result = compress_with(source.network, source.inputs, options)
    result.save(out / NETWORK_FOLDER)
    result.client.save_to_json_file(str(out / "experiment.json"))
    times = result.problem.measure.table
    if times is not None:
        times.save(out / TIMES_FILE)
    summary = _summary(source, result, _settings(request, result))
    summary |= _accuracies(source, result, request.source.test_samples)
    rng = torch.Generator().manual_seed(result.seed)
    inputs = result.problem.sampler(100, rng).inputs
    summary["reloaded_is_equal"] = reloads_equal(
        source, result.network, out / NETWORK_FOLDER, inputs
    )
    write_run(out, summary, _trials_with_accuracy(source, result))
    write_report(out, certificate_figures(summary))
    return read_run(out)[0]


def _settings(request: Request, result: CompressionResult) -> dict[str, Any]:
    """Return what was asked for, as plain JSON values."""
    asked = asdict(request.source) | request.options.to_keywords()
    plain = {
        name: value
        for name, value in asked.items()
        if value is None or isinstance(value, str | int | float | bool)
    }
    kept_in = getattr(result.client, "database", None)  # without a password
    return plain | {"db": kept_in}


def _summary(
    source: Source, result: CompressionResult, options: dict[str, Any]
) -> dict[str, Any]:
    """Collect settings and results as plain JSON values."""
    problem, experiment = result.problem, experiment_of(result.client)
    # None where a target chose a network beside those that were evaluated.
    incumbent = next(
        (
            index
            for index, trial in experiment.trials.items()
            if trial.arm.parameters == result.parameterization
        ),
        None,
    )
    gain, known = result.gain_over_path(), problem.calibration
    return {
        "network": source.name,
        "note": source.note,
        "stop_reason": result.stop_reason,
        "compression_ratio": result.size_ratio,
        "weights_ratio": compression_ratio(problem.layers, result.ranks),
        "size": _size(result),
        "latency": None if result.latency is None else result.latency.to_dict(),
        "whole_network_ratio": whole_network_ratio(
            problem.network, problem.layers, result.ranks
        ),
        "ranks": result.ranks,
        "parameterization": result.parameterization,
        "incumbent_trial": incumbent,
        "certificate": result.certificate.to_dict(),
        "certificates": certificate_records(experiment),
        "times": time_table(experiment).to_dict("records"),
        "layers": result.layers.to_dict("records"),
        "ladders": _ladders(result),
        "loss_fresh": {"mean": result.loss.mean, "sem": result.loss.sem},
        "gain_over_path": None if gain is None else gain._asdict(),
        "beside_incumbent": None
        if result.beside_incumbent is None
        else result.beside_incumbent._asdict(),
        "calibration": None if known is None else known.to_dict(),
        "finish": _finish(result),
        "statement": None if result.statement is None else result.statement.to_dict(),
        "costs": _costs(result),
        "num_trials": len(result.trials),
        "gamma": problem.gamma,
        "gammas": None if result.gammas is None else result.gammas.to_dict("records"),
        "num_samples": problem.num_samples,
        "sample_size": _sample_size(result),
        "timings": result.timings,
        "settings": options,
        "seed": result.seed,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _size(result: CompressionResult) -> dict[str, Any]:
    """Record what was counted, before and after."""
    size = result.problem.measure
    record = size.to_dict_at(result.ranks)
    before, after = record["before"], record["after"]
    quantity, scale = size.counted, 1.0
    if size.name == "latency":
        quantity = quantity.replace("seconds per", "predicted milliseconds per")
        scale = 1e3
    sentence = (
        f"{quantity}: {readable(scale * before)} before, {readable(scale * after)} "
        f"after ({after / before:.1%})"
    )
    return record | {"quantity": quantity, "scale": scale, "sentence": sentence}


def _ladders(result: CompressionResult) -> list[dict[str, Any]]:
    """Record what every form of each layer costs and loses, and which was chosen."""
    problem, ladders = result.problem, []
    scales = {
        name: scale
        for parameter in problem.parameters
        for name, scale in zip(parameter.layers, parameter.scales, strict=True)
    }
    for layer in problem.layers:
        errors = relative_errors(layer, problem.factors[layer.name])
        sizes, rank = problem.measure.layers[layer.name], result.ranks[layer.name]
        ranks = [int(one) for one in scales[layer.name].ranks]
        step = -(-len(ranks) // _MOST_RUNGS)
        shown = sorted({*ranks[::step], *ranks[-1:], *({rank} - {"dense"})}, key=int)
        forms = [layer.form_of(int(one)) for one in shown]
        ladders.append(
            {
                "layer": layer.name,
                "kinds": [form.kind for form in forms],
                "ranks": [form.rank for form in forms],
                "sizes": [sizes.at(one) for one in shown],
                "errors": [errors[int(one)] for one in shown],
                "dense": sizes.dense,
                "chosen": None if rank == "dense" else shown.index(rank),
            }
        )
    return ladders


def _sample_size(result: CompressionResult) -> dict[str, Any] | None:
    """Record how the number of samples was chosen, if it was."""
    chosen = result.sample_size
    return None if chosen is None else asdict(chosen) | {"reason": chosen.sentence()}


def _finish(result: CompressionResult) -> dict[str, Any] | None:
    """Record what was done to the network after the search, if anything was."""
    done = result.finish
    return None if done is None else done.to_dict() | {"sentence": done.sentence()}


def _costs(result: CompressionResult) -> dict[str, Any]:
    """Measure costs before and after; a note becomes part of the record."""
    before, after = result.costs()
    note = slower_note(before, after)
    table = cost_table(before, after).to_dict("records")
    return {"table": table, "warnings": [] if note is None else [note]}


def _accuracies(
    source: Source, result: CompressionResult, test_samples: int
) -> dict[str, float]:
    """Measure top-1 and top-5 accuracy on the test set, before and after."""
    if source.test is None:
        return {}
    measured: dict[str, float] = {}
    for name, network in (
        ("original", result.problem.network),
        ("compressed", result.network),
    ):
        top1, top5 = top_accuracies(network, source.test, max_samples=test_samples)
        measured |= {f"accuracy_{name}": top1, f"top5_{name}": top5}
    return measured


def _trials_with_accuracy(source: Source, result: CompressionResult) -> Any:
    """Add each evaluated network's test accuracy to the trial table.

    Only if the test data are tensors: reading a folder again for every trial would take
    longer than the search.
    """
    if not isinstance(source.test, tuple):
        return result.trials
    problem, experiment = result.problem, experiment_of(result.client)
    table = result.trials.copy()
    table["accuracy"] = float("nan")
    for row in table.index[table["status"] == "COMPLETED"]:
        trial = experiment.trials[int(table["trial_index"][row])]
        ranks = problem.ranks(trial.arm.parameters)
        with truncated(
            problem.network, problem.factors, problem.layers, ranks
        ) as network:
            table.loc[row, "accuracy"] = top_accuracies(network, source.test)[0]
    return table


def certificate_figures(summary: dict[str, Any]) -> list[tuple[str, go.Figure]]:
    """Plot the certificates of a search, as on Ax's analysis cards.

    Args:
        summary: As `read_run` reads it.

    Returns:
        Captions and plots. Plots for which an older run has no data are left out.
    """
    if not summary["certificates"]:
        return []
    history = history_table(summary["certificates"])
    drawn = [
        (CertificateHistory.subtitle, plot_certificate_history(history)),
        (ChallengerGap.subtitle, plot_challenger_gap(history)),
    ]
    if history["incumbent_mean"].notna().any():
        drawn.append((IncumbentHistory.subtitle, plot_incumbent_history(history)))
    if summary.get("times"):
        times = pd.DataFrame(summary["times"])
        drawn.append((TimeSpent.subtitle, plot_times(times)))
    return drawn
