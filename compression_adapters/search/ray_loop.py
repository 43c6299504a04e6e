"""The loop of a search whose evaluations run on several workers of Ray."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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


def check_workers(problem: CompressionProblem, options: SearchOptions) -> None:
    """Refuse settings that do not work with workers, before a search begins.

    Raises:
        ImportError: when Ray is not installed.
        ValueError: when there are no workers, or for a network that is not on the CPU
            while evaluations reserve no GPU.
    """
    if options.workers is None:
        return
    require_workers(options.workers)
    device = next(problem.network.parameters()).device
    if device.type != "cpu" and not _wants_gpu(options):
        raise ValueError(
            f"Workers evaluate on the CPU, but the network is on {device}: reserve a "
            'GPU for each evaluation with resources={"num_gpus": 1} (--resources '
            "num_gpus=1), move the network with network.cpu() (--device cpu), or leave "
            "workers out."
        )
    import_ray()


def _wants_gpu(options: SearchOptions) -> bool:
    """Whether an evaluation reserves a GPU, or a share of one."""
    return float((options.resources or {}).get("num_gpus", 0)) > 0


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


@dataclass(frozen=True)
class EvaluationOnGPU(ProblemEvaluation):
    """The same, with network, factors and pool on the GPU that Ray gives the worker."""

    def __reduce__(self) -> Any:
        """Send tensors without the devices that they are on here."""
        return _on_device_of_worker, (packed(self.problem), self.seed)


def packed(problem: CompressionProblem) -> bytes:
    """Return a problem as bytes, for another process and another device.

    Args:
        problem: On any device. It is not changed.
    """
    # Ray's way of sending functions, for a loss or a sampler that is one.
    from ray import cloudpickle

    buffer = io.BytesIO()
    torch.save(problem, buffer, pickle_module=cloudpickle)
    return buffer.getvalue()


def unpacked(content: bytes, device: torch.device) -> CompressionProblem:
    """Return a packed problem with all its tensors on a device.

    Args:
        content: What `packed` returned, in this search: it is unpickled.
        device: Where the evaluations run.
    """
    problem: CompressionProblem = torch.load(
        io.BytesIO(content),
        map_location=device,
        pickle_module=pickle,
        weights_only=False,
    )
    return problem


def _on_device_of_worker(content: bytes, seed: int) -> ProblemEvaluation:
    """Unpack an evaluation on a worker, on the GPU that Ray has given it."""
    return ProblemEvaluation(unpacked(content, device_of_worker()), seed)


def device_of_worker() -> torch.device:
    """Return the device of this worker: its GPU, or the CPU where it has none.

    Raises:
        RuntimeError: when Ray has given it a GPU that PyTorch cannot use.
    """
    given = import_ray().get_gpu_ids()
    if not given:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"Ray has given this worker GPU {', '.join(map(str, given))}, but PyTorch "
            "finds none there: install a build of PyTorch for it on every machine"
        )
    return torch.device("cuda")


class ParallelLoop(SearchLoop):
    """One run of the loop with evaluations on Ray, through Ax's Orchestrator."""

    def run(self, max_trials: int) -> StopReason:
        """Search; return why the search ended. No evaluation is left running."""
        left = max_trials - (len(self.experiment.trials) - self.known)
        kind = EvaluationOnGPU if _wants_gpu(self.options) else ProblemEvaluation
        try:
            with ray_orchestrator(
                self.client,
                kind(self.problem, self.options.seed),
                workers=self.options.workers or 1,
                told=lambda: (self._completed("loss"),),
                resources=self.options.resources,
                timeout=self.options.timeout,
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
