"""Methods that run on an Ax client: PAC, improvement criteria, and Ax's default."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ax.adapter.registry import Generators
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.exceptions.core import OptimizationComplete
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.generator_spec import GeneratorSpec
from ax.generation_strategy.transition_criterion import MinTrials
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.acquisition.analytic import LogProbabilityOfImprovement as LogPI

from ax_pac import (
    KnownPart,
    certificate_records,
    incumbent_arm,
    pac_generation_strategy,
)
from ax_pac.adapter.generator import generator_kwargs
from ax_pac.experiment.settings import CertificateSettings
from benchmarks.harness.optimiser import (
    Ask,
    Observation,
    Point,
    Seconds,
    Task,
    best_observation,
)
from compression_adapters import CompressionProblem
from compression_adapters.search.client import quiet_ax
from compression_adapters.search.initial_design import diagonal_points
from compression_adapters.search.known_part import known_part


class AxSearch:
    """A search on an Ax client.

    Args:
        task: What is searched.
        strategy: Ax's generation strategy; None for the client's default.
        first: Points to evaluate before the strategy is asked.
    """

    def __init__(
        self,
        task: Task,
        strategy: GenerationStrategy | None,
        first: Sequence[Point] = (),
    ) -> None:
        self.task = task
        self.observations: list[Observation] = []
        self.client = Client(random_seed=task.seed)
        self.client.configure_experiment(
            parameters=[
                RangeParameterConfig(name, (0.0, 1.0), "float") for name in task.names
            ]
        )
        self.client.configure_optimization(objective="-objective")
        if strategy is None:
            self.client.configure_generation_strategy(
                initialization_budget=task.initial,
                initialization_random_seed=task.seed,
                initialize_with_center=False,
            )
        else:
            self.client.set_generation_strategy(strategy)
        self.running = -1
        self.first = list(first)

    @property
    def fit_seconds(self) -> Seconds:
        """Of models fitted for proposals, and for certificates where there are any.

        Ax counts the clock on the wall. With one thread that is the processor's time,
        as long as nobody else uses it.
        """
        experiment = self.client._experiment
        fit = sum(
            run.fit_time or 0.0
            for trial in experiment.trials.values()
            for run in trial.generator_runs
        )
        fit += sum(
            record["seconds"]["fit"] for record in certificate_records(experiment)
        )
        return Seconds(fit, fit)

    def ask(self) -> Ask | None:
        if self.first:
            point = self.first.pop(0)
            with quiet_ax():
                parameters = dict(zip(self.task.names, point, strict=True))
                self.running = self.client.attach_trial(parameters)
            return Ask(point, self.task.num_samples)
        try:
            with quiet_ax():
                trials = self.client.get_next_trials(max_trials=1)
        except OptimizationComplete:
            return None
        ((self.running, parameters),) = trials.items()
        point = tuple(float(parameters[name]) for name in self.task.names)
        return Ask(point, self.task.num_samples)

    def tell(self, observation: Observation) -> None:
        self.observations.append(observation)
        outcome = {"objective": (observation.mean, observation.sem)}
        with quiet_ax():
            self.client.complete_trial(self.running, outcome)

    def incumbent(self) -> Point:
        """The certificate's incumbent, else Ax's own best; at first, the best seen."""
        arm = incumbent_arm(self.client)
        if arm is not None:
            return tuple(float(arm.parameters[name]) for name in self.task.names)
        if len(self.observations) <= self.task.initial:
            return best_observation(self.observations)
        with quiet_ax():
            parameters, *_ = self.client.get_best_parameterization()
        return tuple(float(parameters[name]) for name in self.task.names)


def pac(
    task: Task,
    *,
    level: str,
    epsilon: float,
    sampling: str = "leader_challenger",
    noise: str = "smoothed",
    line: bool = False,
) -> AxSearch:
    """Search by the PAC criterion until its certificate holds.

    With `line` networks whose layers are all cut alike come first, as in `compress`.
    Where factors are fitted to the data it knows the ratio, as `compress` does.
    """
    first, known, problem = list(task.first), None, task.compression
    if problem is not None and problem.calibration is not None:
        known = _known_part(problem, task.names)
    if line:
        if problem is None:
            raise ValueError(
                "a line of networks needs a network, and this problem has none"
            )
        first = [tuple(point.values()) for point in diagonal_points(problem)]
    strategy = pac_generation_strategy(
        delta=task.delta,
        epsilon=epsilon,
        level=level,
        sampling=sampling,
        noise=noise,
        num_initial_trials=task.initial,
        num_samples=task.num_samples,
        seed=task.seed,
        cells=task.edges or None,
        known=known,
    )
    return AxSearch(task, strategy, first)


def _known_part(problem: CompressionProblem, names: Sequence[str]) -> KnownPart | None:
    """The known part of a problem, by the names of a task's coordinates."""
    known = known_part(problem)
    if known is None:
        return None
    own = {p.name: name for p, name in zip(problem.parameters, names, strict=True)}
    terms = {own[name]: term for name, term in known.items}
    return dataclasses.replace(known, terms=terms)


def ax_default(task: Task) -> AxSearch:
    """Ax's default generation strategy."""
    return AxSearch(task, None, task.first)


def expected_improvement(task: Task) -> AxSearch:
    """Log expected improvement on the surrogate and the noise of PAC."""
    return _on_the_same_surrogate(task, LogExpectedImprovement)


def improvement(task: Task) -> AxSearch:
    """Log probability of improvement on the surrogate and the noise of PAC."""
    return _on_the_same_surrogate(task, LogPI)


def _on_the_same_surrogate(
    task: Task, acquisition: type[AcquisitionFunction]
) -> AxSearch:
    """The strategy of PAC with another criterion, which never ends."""
    kwargs = generator_kwargs(
        CertificateSettings(
            delta=task.delta,
            epsilon=0.05,
            level="pairwise",
            seed=task.seed,
            num_samples=task.num_samples,
        )
    )
    # Without the class that brings certificates and the search for a challenger.
    for name in ("acquisition_class", "acquisition_options"):
        del kwargs[name]
    kwargs["botorch_acqf_class"] = acquisition
    kwargs["transforms"] = [
        transform
        for transform in kwargs["transforms"]
        if transform.__name__ != "UnevaluatedPoints"
    ]
    model = GenerationNode(
        name="model",
        generator_specs=[
            GeneratorSpec(Generators.BOTORCH_MODULAR, generator_kwargs=kwargs)
        ],
        should_deduplicate=False,
    )
    sobol = GenerationNode(
        name="Sobol",
        generator_specs=[
            GeneratorSpec(Generators.SOBOL, generator_kwargs={"seed": task.seed})
        ],
        transition_criteria=[MinTrials(task.initial, "model")],
        should_deduplicate=True,
    )
    strategy = GenerationStrategy(name=acquisition.__name__, nodes=[sobol, model])
    return AxSearch(task, strategy, task.first)
