"""Options: one place for defaults, choices, checks and the command line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields

import click
import pytest

from ax_pac import DEFAULT_LEVEL, LEVELS
from ax_pac.experiment.settings import SAMPLING, CertificateSettings
from compression_adapters import ENCODINGS, LOSSES, compress
from compression_adapters.cli import main
from compression_adapters.cli.options import IN_STAGES, SourceRequest
from compression_adapters.options import (
    KEYWORDS,
    PATH,
    PRESET_NAMES,
    CompressionOptions,
    ProblemOptions,
    SearchOptions,
    Target,
    type_of,
)
from compression_adapters.presets.registry import PRESETS

GROUPS = (Target, ProblemOptions, SearchOptions)
DECLARED = {declared.name: declared for kind in GROUPS for declared in fields(kind)}
NOT_FOR_COMPRESS = {"client"}


def choices(name: str) -> tuple[str, ...]:
    return DECLARED[name].metadata["choices"]


def test_compress_has_every_option_with_its_default():
    signature = inspect.signature(compress).parameters
    flat = {n: p for n, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    assert set(flat) - NOT_FOR_COMPRESS == set(KEYWORDS)
    documented = inspect.getdoc(compress)
    for name, declared in DECLARED.items():
        if name != "choose":  # None stands for choose_low_rank
            assert flat[name].default == declared.default, name
        assert f"\n    {name}: " in documented, name


def test_choices_are_those_of_the_code_behind_them():
    assert choices("level") == LEVELS
    assert DECLARED["level"].default == DEFAULT_LEVEL
    assert choices("sampling") == SAMPLING
    assert set(choices("encoding")) == {*ENCODINGS, PATH}
    assert choices("loss") == tuple(LOSSES)
    assert tuple(PRESETS) == PRESET_NAMES
    settings = {f.name: f.default for f in fields(CertificateSettings)}
    for name in ("level", "sampling", "relative"):
        assert settings[name] == DECLARED[name].default


@pytest.mark.parametrize("command", ["compress", "stages"])
def test_the_command_line_takes_choices_and_defaults_from_the_options(command):
    options = {o.name: o for o in main.commands[command].params}
    wanted = {n for n, f in DECLARED.items() if f.metadata.get("help")}
    wanted &= set(IN_STAGES) if command == "stages" else wanted
    wanted |= {f.name for f in fields(SourceRequest)}
    assert wanted <= set(options)
    for name in wanted & set(DECLARED):
        if choices(name):
            assert tuple(options[name].type.choices) == choices(name)
        assert options[name].default == DECLARED[name].default
        if isinstance(options[name].type, click.IntRange):
            assert options[name].type.min == DECLARED[name].metadata["at_least"]


def test_help_imports_nothing_slow():
    code = (
        "import sys; from compression_adapters.cli import main\n"
        "main(['compress', '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'ax', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["compress", "compress_to", "EvaluationError"])
def test_imports_say_nothing(name):
    command = [sys.executable, "-c", f"from compression_adapters import {name}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"gamma": 0.0}, "gamma, the weight of the loss, must be positive"),
        ({"gamma": float("nan")}, "gamma, the weight of the loss, must be positive"),
        ({"loss_at_most": -1.0}, "loss_at_most must be positive; got -1.0"),
        ({"ratio": "130%"}, "ratio must lie between 0 and 1, or be text"),
        ({"loss": "l2"}, "loss must be one of squared_l2, .*, or a function; got 'l2'"),
        ({"num_samples": 1}, "num_samples must be at least 2, for a standard error"),
        ({"objective": "size"}, "objective must be 'ratio' or 'rate'; got 'size'"),
        ({"tie": "layer"}, "tie must be a function of a layer's name, None, or"),
        (
            {"encoding": "cubic"},
            "encoding must be one of log, energy, linear, path; got",
        ),
        ({"at_max": "all"}, "at_max must be 'dense' or 'factor'; got 'all'"),
        ({"min_rank": 0}, "min_rank must be at least 1; got 0"),
        ({"round_to": 0}, "round_to must be at least 1; got 0"),
        ({"max_trials": 1}, "max_trials must be at least 2, got 1"),
        ({"refit": "no"}, "refit must be True or False; got 'no'"),
        ({"search": "no"}, "search must be True or False; got 'no'"),
        ({"start": "dense"}, "start must be one of auto, path, line, space-filling"),
        ({"start": "line", "workers": 2}, "got 'line' and workers=2"),
        ({"timeout": 2.0}, "give a number of workers too"),
        ({"workers": 2, "timeout": -1.0}, "timeout must be positive"),
        ({"workers": 2, "resources": {"num_gpus": -1}}, "names and amounts"),
        ({"db": "a.db", "num_samples": "auto"}, "'auto' depends on wall times"),
        ({"workers": 2, "num_samples": "auto"}, "'auto' weighs an evaluation"),
    ],
)
def test_options_that_cannot_be_used_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        CompressionOptions.of(**keywords)


def test_an_unknown_option_is_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"no option 'gama';.*Did you mean 'gamma'\?"):
        CompressionOptions.of(gama=1.0)


@pytest.mark.parametrize(
    ("keywords", "got"),
    [({}, "got none"), ({"gamma": 1.0, "ratio": 0.5}, "got gamma and ratio")],
)
def test_exactly_one_target_is_required(keywords, got):
    with pytest.raises(ValueError, match=got):
        CompressionOptions.of(**keywords).target.require_one()


def test_options_are_sorted_changed_and_given_back():
    options = CompressionOptions.of(gamma=0.5, delta=0.2, loss="kl_divergence", seed=3)
    assert options.target == Target(gamma=0.5)
    assert options.search == SearchOptions(delta=0.2, seed=3)
    assert CompressionOptions.of(**options.to_keywords()) == options
    # A target takes the place of another one, and no target leaves it.
    assert options.changed(ratio="30%").target == Target(ratio="30%")
    assert options.changed(delta=0.1).target == options.target


def test_text_is_read_as_the_type_of_its_option():
    names = ("max_trials", "min_rank", "gamma", "delta", "ratio", "db")
    assert [type_of(name) for name in names] == [int, int, float, float, str, str]
