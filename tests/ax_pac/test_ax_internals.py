"""Each private name of Ax that is used: does it still do what its function says?

Where one of these fails after an update of Ax, the function of `ax_pac.ax_internals`
that the test names has to be adapted, and nothing else.
"""

from __future__ import annotations

import ast
import copy
import inspect
from pathlib import Path

import pytest
import torch
from ax.adapter.registry import Generators
from ax.adapter.transforms.base import Transform
from ax.adapter.transforms.one_hot import OneHot
from ax.api.client import Client
from ax.core.experiment import Experiment
from ax.core.parameter import ChoiceParameter, ParameterType
from ax.core.search_space import SearchSpace
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generators.torch.botorch_modular.acquisition import Acquisition
from ax.global_stopping.strategies.base import BaseGlobalStoppingStrategy
from ax.orchestration.orchestrator import Orchestrator
from botorch.models import SingleTaskGP

import ax_pac
from ax_pac import PACAcquisition, ax_internals, pac_generation_strategy
from ax_pac.experiment.observations import Source
from tests.helpers.ax_loops import SETTINGS, new_client, run

PACKAGE = Path(ax_pac.__file__).parent


@pytest.fixture(scope="module")
def client() -> Client:
    client = new_client(delta=1e-4)
    run(client, max_trials=7)
    return client


@pytest.fixture(scope="module")
def node(client):
    return ax_internals.strategy_of(client).nodes_by_name["PAC"]


@pytest.fixture(scope="module")
def adapter(client, node):
    return ax_internals.fit(node, ax_internals.experiment_of(client), Source.of)


def test_experiment_of_and_strategy_of_give_what_a_client_holds(client):
    experiment = ax_internals.experiment_of(client)
    assert isinstance(experiment, Experiment)
    assert ax_internals.experiment_of(experiment) is experiment
    assert ax_internals.maybe_experiment_of(client) is experiment
    strategy = ax_internals.strategy_of(client)
    assert isinstance(strategy, GenerationStrategy)
    assert ax_internals.maybe_strategy_of(client) is strategy
    assert ax_internals.is_of(strategy, experiment)
    empty = Client()
    assert ax_internals.maybe_experiment_of(empty) is None
    assert ax_internals.maybe_strategy_of(empty) is None
    with pytest.raises(AssertionError, match="Experiment not set"):
        ax_internals.experiment_of(empty)
    assert not ax_internals.has_storage(empty)


def test_resume_makes_a_client_go_on_with_what_was_stored():
    first, second = new_client(), Client()
    (expected,) = new_client().get_next_trials(max_trials=1).values()
    experiment = ax_internals.experiment_of(first)
    strategy = pac_generation_strategy(**SETTINGS)
    ax_internals.resume(second, experiment, strategy)
    assert ax_internals.is_of(strategy, experiment)
    assert list(second.get_next_trials(max_trials=1).values()) == [expected]


def test_properties_travel_with_an_experiment(tmp_path):
    client = new_client()
    ax_internals.properties(ax_internals.experiment_of(client))["kept"] = {"a": 1}
    client.save_to_json_file(str(tmp_path / "a.json"))
    loaded = Client.load_from_json_file(str(tmp_path / "a.json"))
    assert ax_internals.properties(ax_internals.experiment_of(loaded))["kept"] == {
        "a": 1
    }


def test_put_back_replaces_the_trials_of_an_experiment(client):
    experiment = ax_internals.experiment_of(client)
    before = dict(experiment.trials)
    other = copy.copy(before[0])
    ax_internals.put_back(experiment, {0: other})
    assert experiment.trials[0] is other
    ax_internals.put_back(experiment, before)
    assert dict(experiment.trials) == before


def test_new_runs_and_node_of_name_every_proposal(client):
    runs = ax_internals.new_runs(ax_internals.strategy_of(client))
    assert [ax_internals.node_of(r) for r in runs] == ["Sobol"] * 5 + ["PAC"] * 2


def test_set_transition_criteria_is_what_a_node_is_asked_for():
    node = pac_generation_strategy(**SETTINGS).nodes_by_name["PAC"]
    ax_internals.set_transition_criteria(node, [])
    assert list(node.transition_criteria) == []


def test_an_adapter_gives_its_experiment_its_model_and_its_acquisition(client, adapter):
    assert ax_internals.experiment_of_adapter(adapter) is ax_internals.experiment_of(
        client
    )
    model = ax_internals.fitted_model(adapter)
    assert isinstance(model, SingleTaskGP)
    assert model is adapter.botorch_model
    assert ax_internals.fitted_model(None) is None
    adapter.gen(n=1)
    acquisition = ax_internals.last_acquisition(adapter)
    assert isinstance(acquisition, Acquisition)
    assert ax_internals.objective_model(acquisition) is model
    transform = ax_internals.objective_transform(acquisition, PACAcquisition)
    assert torch.equal(transform.weights, torch.tensor([-1.0]).double())


def test_forget_saved_argument_empties_what_is_saved_with_a_run(client):
    sobol = Generators.SOBOL(
        experiment=ax_internals.experiment_of(client),
        seed=0,
        fallback_to_sample_polytope=True,
    )
    ax_internals.forget_saved_argument(sobol, "seed")
    saved = sobol.gen(n=1)
    assert saved._generator_kwargs["seed"] == {}
    assert saved._generator_kwargs["fallback_to_sample_polytope"] is True


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (Acquisition, ["_instantiate_acquisition", "optimize"]),
        (BaseGlobalStoppingStrategy, ["_should_stop_optimization"]),
        (
            Client,
            [
                "_load_experiment_and_generation_strategy",
                "_save_experiment_to_db_if_possible",
                "_save_generation_strategy_to_db_if_possible",
                "_save_or_update_trials_in_db_if_possible",
                "_update_runner_on_experiment_in_db_if_possible",
            ],
        ),
        (
            Orchestrator,
            [
                "_save_or_update_trials_in_db_if_possible",
                "_save_or_update_trials_and_generation_strategy_if_possible",
                "run_trials",
                "wait_for_completed_trials_and_report_results",
            ],
        ),
        (Transform, ["transform_optimization_config", "transform_experiment_data"]),
    ],
)
def test_the_methods_that_our_subclasses_override_are_there(base, names):
    for name in names:
        assert inspect.isfunction(getattr(base, name)), name


def test_the_functions_that_write_to_a_database_are_there():
    save = pytest.importorskip("ax.storage.sqa_store.save")
    for name, first in (
        ("_save_experiment", "experiment"),
        ("_save_generation_strategy", "generation_strategy"),
        ("_update_generation_strategy", "generation_strategy"),
        ("_bulk_merge_into_session", "objs"),
    ):
        assert next(iter(inspect.signature(getattr(save, name)).parameters)) == first


def private_names(path: Path) -> list[str]:
    """Private attributes that a file reads of objects which are not its own."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    own = {n.name for n in nodes if isinstance(n, ast.FunctionDef)} | {
        n.attr
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    return sorted(
        {
            f"{path.name}: {n.attr}"
            for n in nodes
            if isinstance(n, ast.Attribute)
            and n.attr.startswith("_")
            and not n.attr.startswith("__")
            and n.attr not in own
        }
    )


# Of their own base class, in Ax or here, or of torch.
ALLOWED = {
    "client.py: _load_experiment_and_generation_strategy",
    "database.py: _sqa_config",
    "mcmc.py: _standard_gamma",
    *("ray_loop.py: _completed", "ray_loop.py: _show"),
}


def test_no_other_module_reads_a_private_name_of_ax():
    found = {
        name
        # The other package meets Ax in its search, and reads torch's private names
        # elsewhere.
        for folder in (PACKAGE, PACKAGE.parent / "compression_adapters" / "search")
        for path in folder.rglob("*.py")
        if path.name != "ax_internals.py"
        for name in private_names(path)
    }
    assert found <= ALLOWED


def test_indicators_of_one_choice_are_found_by_their_names():
    choice = ChoiceParameter(
        "o",
        ParameterType.STRING,
        ["a", "b", "c"],
        is_ordered=False,
        sort_values=False,
    )
    transform = OneHot(SearchSpace([choice]))
    names = list(transform.transform_search_space(SearchSpace([choice])).parameters)
    assert ax_internals.one_hot_groups(["x", *names, "y"]) == ((1, 2, 3),)
    assert ax_internals.one_hot_groups(["x", "_OH_PARAM_", "a_OH_PARAM_b"]) == ()


def test_a_sobol_node_that_may_repeat_proposes_a_point_again():
    strategy = pac_generation_strategy(delta=0.1, epsilon=0.05)
    node = strategy.nodes_by_name["Sobol"]
    assert node.should_deduplicate
    ax_internals.allow_repetitions(node)
    assert not node.should_deduplicate
    (spec,) = node.generator_specs
    assert spec.generator_kwargs["deduplicate"] is False
