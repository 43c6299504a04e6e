"""What the page of data-aware factors makes of its traces."""

from __future__ import annotations

from benchmarks.data_aware import plan as data_aware
from benchmarks.data_aware.page import render_data_aware
from benchmarks.harness.traces import Trace


def trace(settings, seed, result):
    return Trace("data_aware", settings, seed, result, [], {"revision": "abc"})


def point(ratio, loss, top1):
    ranks = {f"layer{i}": 3 for i in range(8)}
    found = {"ratio": ratio, "loss": loss, "top1": top1, "top1_original": 0.8}
    return {**found, "ranks": ranks}


def chosen(ratio, loss, top1, evaluations, stop="certified", after=None):
    return {
        **point(ratio, loss, top1),
        "stop_reason": stop,
        "holds": stop == "certified",
        "evaluations": evaluations,
        "cpu_seconds": 40.0,
        "returned": {"loss": loss if after is None else after, "top1": top1},
    }


def test_a_search_that_does_not_beat_the_path_says_so():
    rule = {"images": 36_000, "points": [point(0.1, 1.0, 0.7), point(0.3, 0.1, 0.79)]}
    path = data_aware.on_path("resnet18", "data", 0.02)
    search = data_aware.search("resnet18", 0.02)
    worse = data_aware.search("resnet18", 1.0)
    files = render_data_aware(
        [
            trace(data_aware.rule("resnet18", "data", "greedy"), 0, rule),
            trace(data_aware.rule("resnet18", "data", "path"), 0, rule),
            trace(path, 0, chosen(0.10, 1.0, 0.78, 17, "no_search")),
            trace(search, 0, chosen(0.08, 1.0, 0.79, 60, after=0.5)),
            trace(
                data_aware.on_path("resnet18", "data", 1.0),
                0,
                chosen(0.3, 0.1, 0.79, 17, "no_search"),
            ),
            trace(worse, 0, chosen(0.35, 0.1, 0.79, 90)),
        ]
    )
    page = files["data_aware.md"]
    # The best J of the rule at .02: .1 + .02; 720 looks of 50 images.
    line = "| 0.02 | data-aware | greedy, best afterwards | 1 | - | 10.0 | 1.00 | 70.00"
    assert f"{line} | 0.120 | 720 | - |" in page
    assert "| 0.02 | data-aware | **search** | 1 | 1/1 | 8.0 | 1.00 | 79.00" in page
    assert "| 0.02 | data-aware | +0.020 | better; one run does not tell" in page
    assert "| 1.0 | data-aware | -0.050 | the search does not beat the path;" in page
    assert "| resnet18 | 0.02 | 1/1 | 1.00 | 0.50 |" in page
    assert "figures/data_aware_resnet18.svg" in files
    assert "search, resnet50" in page  # of the runs that are not there


def test_searches_on_the_weights_alone_come_from_the_benchmark_of_the_networks():
    settings = {"network": "resnet18", "method": "line", "gamma": 0.02}
    before = Trace(
        "networks",
        {**settings, "level": "marginal", "epsilon": 0.05},
        0,
        {**point(0.12, 4.0, 0.79), "stop_reason": "certified", "holds": True}
        | {"evaluations": 60},
        [],
        {"revision": "old"},
    )
    own = trace(data_aware.search("resnet18", 0.02), 0, chosen(0.08, 1.0, 0.79, 60))
    page = render_data_aware([own], [before])["data_aware.md"]
    line = "| 0.02 | weights alone | **search** | 1 | 1/1 | 12.0 | 4.00 | 79.00 | 0.200"
    assert f"{line} | 60 | - |" in page


def test_errors_counts_time_and_tolerances_have_tables():
    errors = [
        {"layer": "a", "kind": kind, "fraction": fraction, "error": error}
        for fraction in (0.1, 0.3, 0.5)
        for kind, error in (("weights", 0.4), ("data", 0.1))
    ]
    counts = [
        {
            "count": count,
            "seconds": 1.5,
            "loss": [4.0, 2.0],
            "top1": [0.5, 0.6],
        }
        for count in (0, 500)
    ]
    rounds = [{"weights": 1.0, "evaluations": 1.0, "data": 5.0, "moments": 3.0}]
    tight = data_aware.search("fc3", 0.001, "data", 0.1, True)
    page = render_data_aware(
        [
            trace({"part": "layers", "network": "fc3"}, 0, {"layers": errors}),
            trace({"part": "counts", "network": "fc3"}, 0, {"rows": counts}),
            trace(
                {"part": "time", "network": "resnet18"},
                0,
                {"rounds": rounds, "layers": 8},
            ),
            trace(tight, 0, chosen(0.08, 1.0, 0.97, 33)),
        ]
    )["data_aware.md"]
    assert "| all | 1 | 0.250 | 0.250 |" in page
    assert "0 of 3 ratios are above 1" in page
    assert "| fc3 | weights alone | 1 | 4.00 | 50.0 | 2.00 | 60.0 | 1.5 |" in page
    assert "| resnet18 | 8 | 1 | 1.00 | 1.00 | 3.00 | 5.00 | 2.50 |" in page
    assert "| fc3 | 0.001 | 10 % of J | one a layer | 1 | 1/1 | 33 | 40 |" in page


def test_the_transformer_is_compared_at_the_same_share_of_weights():
    traces = [
        trace(
            data_aware.rule("transformer", factors, "path"),
            0,
            {"images": 0, "points": [point(0.3, 1.0, top1), point(0.5, 1.0, 0.79)]},
        )
        for factors, top1 in (("data", 0.79), ("weights", 0.7))
    ]
    page = render_data_aware(traces)["data_aware.md"]
    assert "| 30 | path | 30.0 | 70.00 | 10.00 | 30.0 | 79.00 | 1.00 |" in page


def test_better_by_more_than_the_spread_takes_several_runs():
    path = data_aware.on_path("resnet18", "data", 0.02)
    search = data_aware.search("resnet18", 0.02)
    traces = [
        trace(settings, seed, chosen(ratio + 0.001 * seed, 1.0, 0.78, 17, stop))
        for settings, ratio, stop in (
            (path, 0.10, "no_search"),
            (search, 0.08, "certified"),
        )
        for seed in range(2)
    ]
    page = render_data_aware(traces)["data_aware.md"]
    assert "| 0.02 | data-aware | +0.020 | better, by more than the spread |" in page


def test_few_coordinates_stand_beside_one_a_layer():
    runs = [
        trace(data_aware.shared("resnet50", 0.02, 2), 0, chosen(0.05, 1.0, 0.58, 31)),
        trace(data_aware.search("resnet50", 0.02), 0, chosen(0.04, 1.0, 0.58, 120)),
    ]
    page = render_data_aware(runs)["data_aware.md"]
    assert "| resnet50 | 0.02 | 2 | 1 | 1/1 | 31 | 40 | 0.070 | 58.00 |" in page
    assert "| resnet50 | 0.02 | one a layer | 1 | 1/1 | 120 | 40 | 0.060 |" in page
