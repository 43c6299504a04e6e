"""The loop of a search whose evaluations run on several workers of Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ax.api.client import Client
from ax.orchestration.orchestrator import FailureRateExceededError

from ax_pac.orchestration.ray_orchestrator import ray_orchestrator
from ax_pac.orchestration.ray_runner import import_ray, require_workers
from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.search.loop import EvaluationError, SearchLoop, StopReason
from compression_adapters.search.trials import trial_seed


def search_loop(
    problem: CompressionProblem,
    client: Client,
    options: SearchOptions,
    *,
    known: int | None = None,
) -> SearchLoop:
    """Return the loop for a number of workers.

    Args:
        problem: The problem.
        client: Holds trials and strategy.
        options: How; without `workers` this process evaluates, one trial after the
            other.
        known: See `SearchLoop`.
    """
    kind = SearchLoop if options.workers is None else ParallelLoop
    return kind(problem, client, options, known=known)


def check_workers(problem: CompressionProblem, workers: int | None) -> None:
    """Refuse settings that do not work with workers, before a search begins.

    Raises:
        ImportError: when Ray is not installed.
        ValueError: when there are no workers, or for a network that is not on the CPU.
    """
    if workers is None:
        return
    require_workers(workers)
    device = next(problem.network.parameters()).device
    if device.type != "cpu":
        raise ValueError(
            f"Workers evaluate on the CPU, but the network is on {device}: move it "
            "with network.cpu() (--device cpu), or leave workers out."
        )
    import_ray()


@dataclass(frozen=True)
class ProblemEvaluation:
    """One evaluation on a worker, with the same samples as in one process.

    Args:
        problem: The problem; read once by each worker.
        seed: Seed of the search.
    """

    problem: CompressionProblem
    seed: int

    def __call__(
        self,
        parameters: Mapping[str, float],
        trial_index: int,
        earlier: Sequence[MeanSEM],
    ) -> dict[str, MeanSEM]:
        """Evaluate a trial.

        Args:
            parameters: Parameter name to unit coordinate.
            trial_index: With the seed it determines the samples.
            earlier: Losses of the trials that were completed when this one started.
        """
        seed = trial_seed(self.seed, trial_index)
        return self.problem.evaluate(parameters, seed=seed, earlier=earlier)


class ParallelLoop(SearchLoop):
    """One run of the loop with evaluations on Ray, through Ax's Orchestrator."""

    def run(self, max_trials: int) -> StopReason:
        """Search; return why the search ended. No trial is left running."""
        left = max_trials - (len(self.experiment.trials) - self.known)
        try:
            with ray_orchestrator(
                self.client,
                ProblemEvaluation(self.problem, self.options.seed),
                workers=self.options.workers or 1,
                told=lambda: (self._completed("loss"),),
                on_end=self._show,
            ) as orchestrator:
                try:
                    orchestrator.run_n_trials(max(0, left))
                finally:
                    self.ask_seconds = orchestrator.ask_seconds
                    self.evaluate_seconds = orchestrator.wait_seconds
                return "certified" if orchestrator.is_finished else "max_trials"
        except FailureRateExceededError as error:
            raise EvaluationError(
                f"{error} Completed trials are kept in the client of this error.",
                self.client,
            ) from error
        except KeyboardInterrupt:
            if len(self._completed("loss")) < 2:
                raise  # there is no result yet to return
            return "interrupted"
        finally:
            self.bar.close()
