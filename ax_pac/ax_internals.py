"""All private names of Ax that this package uses, behind functions with a purpose.

Ax guarantees none of them. Each was checked on Ax 1.3.1; when a later version changes
one, `tests/ax_pac/test_ax_internals.py` fails and names the function to adapt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ax.adapter.base import Adapter
from ax.adapter.registry import Generators
from ax.adapter.transforms.one_hot import OH_PARAM_INFIX
from ax.api.client import Client
from ax.core.base_trial import BaseTrial
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.core.generator_run import GeneratorRun
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.transition_criterion import TransitionCriterion
from ax.generators.torch.botorch_modular.acquisition import Acquisition
from ax.generators.torch.botorch_modular.utils import (
    _fit_botorch_model_gpytorch,
    construct_acquisition_and_optimizer_options,
    fit_botorch_model,
)
from botorch.models import SingleTaskGP
from botorch.models.model import Model

# ------------------------------------------------------------------ client


def experiment_of(client: Any) -> Experiment:
    """Return the experiment behind an Ax `Client`, `AxClient` or `Experiment`.

    Raises:
        AssertionError: When the client has none yet (Ax's own error).

    Checked on Ax 1.3.1: `Client._experiment`; `AxClient.experiment` is public.
    """
    if isinstance(client, Experiment):
        return client
    return client.experiment if hasattr(client, "experiment") else client._experiment


def maybe_experiment_of(client: Client) -> Experiment | None:
    """Return the experiment of a client, None before it is configured.

    Checked on Ax 1.3.1: `Client._maybe_experiment`.
    """
    return client._maybe_experiment


def maybe_strategy_of(client: Client) -> GenerationStrategy | None:
    """Return the generation strategy that a client was given, None without one.

    Checked on Ax 1.3.1: `Client._maybe_generation_strategy`.
    """
    return client._maybe_generation_strategy


def strategy_of(client: Client) -> GenerationStrategy:
    """Return the generation strategy of a client.

    Raises:
        AssertionError: When the client has none yet (Ax's own error).

    Checked on Ax 1.3.1: `Client._generation_strategy`.
    """
    return client._generation_strategy


def resume(
    client: Client, experiment: Experiment, strategy: GenerationStrategy | None
) -> None:
    """Give a client an experiment and a strategy that were stored, without saving them.

    Checked on Ax 1.3.1: `Client.set_experiment` would write both to the database.
    """
    client._maybe_experiment = experiment
    client._maybe_generation_strategy = strategy
    if strategy is not None:
        strategy._experiment = experiment


def has_storage(client: Client) -> bool:
    """Whether a client saves itself to a database.

    Checked on Ax 1.3.1: `Client._storage_config`.
    """
    return client._storage_config is not None


# ------------------------------------------------------------------ experiment


def properties(experiment: Experiment) -> dict[str, Any]:
    """Return the dictionary that is stored with an experiment; changes are kept.

    Checked on Ax 1.3.1: `Experiment._properties`.
    """
    return experiment._properties


def put_back(experiment: Experiment, trials: Mapping[int, BaseTrial]) -> None:
    """Put trials into an experiment in place of those of the same index.

    Saving a new trial replaces it by a copy that was read from the database, which is
    to be forgotten where the transaction fails.

    Checked on Ax 1.3.1: `Experiment._trials`.
    """
    experiment._trials.update(trials)


# ------------------------------------------------------------------ strategy


def is_of(strategy: GenerationStrategy, experiment: Experiment) -> bool:
    """Whether a strategy proposes for this very experiment.

    Checked on Ax 1.3.1: `GenerationStrategy._experiment`; the public property raises
    for a strategy that has none.
    """
    return strategy._experiment is experiment


def new_runs(strategy: GenerationStrategy) -> list[GeneratorRun]:
    """Return the generator runs of a strategy that no database has yet.

    Checked on Ax 1.3.1: `GenerationStrategy._generator_runs`.
    """
    return [run for run in strategy._generator_runs if run.db_id is None]


def replace_last_run(
    strategy: GenerationStrategy, runs: Sequence[GeneratorRun]
) -> None:
    """Put several generator runs in place of the last one of a strategy.

    Checked on Ax 1.3.1: `GenerationStrategy._generator_runs`.
    """
    strategy._generator_runs[-1:] = runs


def split_run(run: GeneratorRun) -> list[GeneratorRun]:
    """Split a generator run of several points into one for each.

    A point that it has twice comes twice. Each has its own prediction and the value of
    its own acquisition.

    Checked on Ax 1.3.1: the arguments of `GeneratorRun`, and what `GenerationNode.gen`
    sets on it afterwards.
    """
    values = (run.gen_metadata or {}).get("expected_acquisition_value")
    runs: list[GeneratorRun] = []
    for number, (arm, weight) in enumerate(zip(run.arms, run.weights, strict=True)):
        metadata = dict(run.gen_metadata or {})
        if isinstance(values, list) and len(values) == len(run.arms):
            metadata["expected_acquisition_value"] = [values[number]]
        predictions = None
        if run.model_predictions is not None:
            means, covariances = run.model_predictions
            predictions = (
                {name: [row[number]] for name, row in means.items()},
                {
                    one: {other: [row[number]] for other, row in rows.items()}
                    for one, rows in (covariances or {}).items()
                },
            )
        for _ in range(round(weight)):
            part = GeneratorRun(
                arms=[arm],
                optimization_config=run.optimization_config,
                search_space=run.search_space,
                model_predictions=predictions,
                type=run.generator_run_type,
                # Of the whole batch, once: what is added up stays the same.
                fit_time=run.fit_time if not runs else 0.0,
                gen_time=run.gen_time if not runs else 0.0,
                generator_key=run._generator_key,
                generator_kwargs=run._generator_kwargs,
                adapter_kwargs=run._adapter_kwargs,
                gen_metadata=metadata,
                generator_state_after_gen=run._generator_state_after_gen,
                candidate_metadata_by_arm_signature=(
                    run._candidate_metadata_by_arm_signature
                ),
                generation_node_name=run._generation_node_name,
            )
            part._suggested_experiment_status = run._suggested_experiment_status
            runs.append(part)
    return runs


def node_of(run: GeneratorRun) -> str | None:
    """Return the name of the node that made a generator run.

    Checked on Ax 1.3.1: `GeneratorRun._generation_node_name`.
    """
    return run._generation_node_name


def set_transition_criteria(
    node: GenerationNode, criteria: Sequence[TransitionCriterion]
) -> None:
    """Replace the transition criteria of a node.

    Checked on Ax 1.3.1: `GenerationNode._transition_criteria`.
    """
    node._transition_criteria = criteria


def allow_repetitions(node: GenerationNode) -> None:
    """Let a node with Ax's Sobol generator propose points that were tried.

    Called before the node's first proposal, as its generator keeps its arguments.

    Checked on Ax 1.3.1: `GeneratorSpec.generator_kwargs` are what the generator is made
    of; `GenerationNode.should_deduplicate` is public.
    """
    node.should_deduplicate = False
    for spec in node.generator_specs:
        if spec.generator_enum is Generators.SOBOL:
            spec.generator_kwargs["deduplicate"] = False


class HasData(Protocol):
    """What the transformed data of an adapter depend on; compared by `==`."""

    @property
    def data(self) -> Data:
        """All data of the experiment."""


def fit(
    node: GenerationNode,
    experiment: Experiment,
    source: Callable[[Experiment], HasData],
) -> Adapter:
    """Fit the model of a node, so that Ax's own call afterwards has nothing left to do.

    Ax fits again only when the data change, but it transforms all of them to see
    whether they did, which takes a sixth of a proposal. The adapter is given a method
    in place of its own that answers for the same data from memory.

    Args:
        node: A node of one generator.
        experiment: The experiment that it proposes for.
        source: Returns what the transformed data depend on.

    Checked on Ax 1.3.1: `GenerationNode._fit`, `Adapter._process_and_transform_data`.
    """
    node._fit(experiment=experiment)
    adapter = node.generator_spec.fitted_adapter
    if "_process_and_transform_data" not in vars(adapter):
        adapter._process_and_transform_data = _TransformedOnce(
            adapter._process_and_transform_data, source
        )
    return adapter


class _TransformedOnce:
    """An adapter's method that transforms the same data once."""

    def __init__(
        self, transform: Callable[..., Any], source: Callable[[Experiment], HasData]
    ) -> None:
        self._transform, self._source = transform, source
        self._last: tuple[HasData, Any] | None = None

    def __call__(self, experiment: Experiment, data: Data | None = None) -> Any:
        source = self._source(experiment)
        if data is not None and data is not source.data:
            return self._transform(experiment=experiment, data=data)
        if self._last is None or source != self._last[0]:
            self._last = source, self._transform(experiment=experiment, data=data)
        return self._last[1]


def fit_models_by(fit: Callable[[SingleTaskGP], bool]) -> None:
    """Have Ax ask a function first whether it fits a model.

    Args:
        fit: Fits a model and returns True, or leaves it to Ax.

    Checked on Ax 1.3.1: `fit_botorch_model`, whose docstring asks for such rules;
    `_fit_botorch_model_gpytorch` is its rule for models of GPyTorch.
    """

    @fit_botorch_model.register(SingleTaskGP)
    def fit_or_leave(
        model: SingleTaskGP, mll_class: Any, mll_options: dict[str, Any] | None = None
    ) -> None:
        if not fit(model):
            _fit_botorch_model_gpytorch(model, mll_class, mll_options)


# ------------------------------------------------------------------ adapter


def experiment_of_adapter(adapter: Adapter) -> Experiment:
    """Return the experiment that an adapter was made for.

    Checked on Ax 1.3.1: `Adapter._experiment`.
    """
    return adapter._experiment


def fitted_model(adapter: Adapter | None) -> Model | None:
    """Return the BoTorch model that an adapter fitted, None for any other generator.

    Checked on Ax 1.3.1: `BoTorchGenerator._surrogate`, `Surrogate._model`.
    """
    surrogate = getattr(getattr(adapter, "generator", None), "_surrogate", None)
    return getattr(surrogate, "_model", None)


def one_hot_groups(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the coordinates that are the indicators of one unordered choice.

    Args:
        names: Names of the coordinates of a transformed search space.

    Checked on Ax 1.3.1: `OneHot` names the indicators of parameter `p`
    `p_OH_PARAM_0`, `p_OH_PARAM_1` and so on.
    """
    groups: dict[str, list[int]] = {}
    for j, name in enumerate(names):
        parameter, infix, number = name.rpartition(OH_PARAM_INFIX)
        if infix and number.isdecimal():
            groups.setdefault(parameter, []).append(j)
    return tuple(tuple(group) for group in groups.values())


def acquisition_of(adapter: Adapter) -> Acquisition:
    """Return the acquisition that an adapter would propose from with nothing pending.

    As `Adapter.gen` makes it, without what follows: a proposal, its prediction, and the
    records of both. The time of the fit is taken as told.

    Checked on Ax 1.3.1: `Adapter.gen`, `TorchAdapter._gen`, `BoTorchGenerator.gen`.
    """
    transformed = adapter._get_transformed_gen_args(search_space=adapter._search_space)
    digest, config = adapter._get_transformed_model_gen_args(
        search_space=transformed.search_space,
        pending_observations=transformed.pending_observations,
        fixed_features=transformed.fixed_features,
        model_gen_options=adapter._default_model_gen_options,
        optimization_config=transformed.optimization_config,
    )
    generator = adapter.generator
    options, of_function, _, functions = construct_acquisition_and_optimizer_options(
        acqf_options=generator.acquisition_options,
        botorch_acqf_options=generator._botorch_acqf_options,
        model_gen_options=config.model_gen_options,
        botorch_acqf_classes_with_options=generator._botorch_acqf_classes_with_options,
    )
    adapter.fit_time_since_gen = 0.0
    return generator._instantiate_acquisition(
        search_space_digest=digest,
        torch_opt_config=config,
        botorch_acqf_options=of_function,
        acq_options=options,
        botorch_acqf_classes_with_options=functions,
        n=1,
    )


def last_acquisition(adapter: Adapter) -> Acquisition:
    """Return the acquisition that an adapter's latest proposal came from.

    Checked on Ax 1.3.1: `BoTorchGenerator._acquisition`.
    """
    return adapter.generator._acquisition


def forget_saved_argument(adapter: Adapter, name: str) -> None:
    """Empty an argument of the generator in what is saved with every generator run.

    Ax 1.3.1 saves all arguments with each run and reads them nowhere.

    Checked on Ax 1.3.1: `Adapter._generator_kwargs`, `Adapter._adapter_kwargs`.
    """
    adapter._generator_kwargs = _without(adapter._generator_kwargs, name)
    adapter._adapter_kwargs = _without(adapter._adapter_kwargs, name)


def _without(value: Any, name: str) -> Any:
    """Copy nested dictionaries, every entry of a name left empty."""
    if not isinstance(value, dict):
        return value
    return {k: {} if k == name else _without(v, name) for k, v in value.items()}


def objective_model(acquisition: Acquisition) -> Model:
    """Return the fitted model of the objective alone.

    Checked on Ax 1.3.1: `Acquisition._model`.
    """
    return acquisition._model


def objective_transform(acquisition: Acquisition, acqf_class: type[Any]) -> Any:
    """Return the posterior transform that makes an acquisition maximise; -1 minimises.

    Checked on Ax 1.3.1: `Acquisition._objective_weights`, `_outcome_constraints`.
    """
    _, transform = acquisition.get_botorch_objective_and_transform(
        botorch_acqf_class=acqf_class,
        model=acquisition._model,
        objective_weights=acquisition._objective_weights,
        outcome_constraints=acquisition._outcome_constraints,
        X_observed=acquisition.X_observed,
    )
    return transform
