"""One network, its search space, and the evaluation of a point in it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compression_adapters.decompositions import Factors
from compression_adapters.evaluation.calibration_split import (
    CalibrationInputs,
)
from compression_adapters.evaluation.estimates import (
    MeanSEM,
    apply_sem_floor,
    mean_and_sem,
)
from compression_adapters.evaluation.held_out import HeldOutInputs
from compression_adapters.evaluation.losses import (
    BINARY_LOSSES,
    Loss,
)
from compression_adapters.evaluation.sampling import (
    Batch,
    ReferenceCache,
    Sampler,
)
from compression_adapters.evaluation.scalarization import scalarize, scalarize_rate
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.recipe import added_to_recipe, record_recipe
from compression_adapters.network.sizes import SizeMeasure, count_weights
from compression_adapters.network.truncation import (
    truncate_network,
    truncated,
)
from compression_adapters.options import (
    Objective,
    require_gamma,
    require_num_samples,
    require_objective,
)
from compression_adapters.rank_space.parameters import (
    RankParameter,
    bin_edges,
    layer_ranks,
)
from compression_adapters.rank_space.scales import Rank

# For the size of the reference outputs: gives one digit, which gamma needs.
_SCALE_SAMPLES = 200


@dataclass(frozen=True, eq=False)
class CompressionProblem:
    """Which ranks to choose for one network, as a function to optimise.

    Build it with `compression_problem`.

    Args:
        network: The reference network, a copy of the user's. Its layers are truncated
            during an evaluation and restored afterwards, so do not use it from another
            thread.
        layers: The layers in play.
        parameters: The search space.
        factors: Layer name to factors.
        sampler: Draws the samples of a trial.
        loss: Returns one value per sample.
        gamma: Weight of the loss in the objective.
        num_samples: m, the samples per trial.
        objective: `"ratio"` (Eq. 3, minimised) or `"rate"` (Eq. 2, maximised).
        binary_loss: Whether the loss is 0 or 1, so that its SEM gets the binomial
            floor. None: known for the losses of this package, False for any other.
        reference: The reference outputs; None starts an empty cache.
        channels_last: Whether images are laid out channels-last, which is faster on a
            CPU from about 64 pixels. Shapes do not change.
        calibration: The inputs that the factors were fitted to, which no trial draws;
            None: the factors are those of the weights alone.
        held_out: The inputs of the statement at the end, which no trial draws either;
            None: there will be none.
        pool_size: Inputs in the pool; None of generated inputs.
        size: What the size of a network is; None: the weights of the layers in play.
        encoding: What a coordinate means, see `rank_scale` and `path_parameters`.
        loss_curves: What each layer alone costs, once it was measured (`loss_curves`).
    """

    network: nn.Module = field(repr=False)
    layers: tuple[LayerSpec, ...]
    parameters: tuple[RankParameter, ...] = field(repr=False)
    factors: Mapping[str, Factors] = field(repr=False)
    sampler: Sampler = field(repr=False)
    loss: Loss
    gamma: float
    num_samples: int = 50
    objective: Objective = "ratio"
    binary_loss: bool | None = None
    reference: ReferenceCache | None = field(default=None, repr=False)
    channels_last: bool = False
    calibration: CalibrationInputs | None = None
    held_out: HeldOutInputs | None = None
    pool_size: int | None = None
    size: SizeMeasure | None = None
    encoding: str = "log"
    loss_curves: dict[str, Sequence[float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_gamma(self.gamma)
        require_num_samples(self.num_samples)
        require_objective(self.objective)
        # Frozen: this sets the defaults that depend on other fields.
        if self.size is None:
            counted = count_weights(self.network, self.layers)
            object.__setattr__(self, "size", counted)
        if self.binary_loss is None:
            object.__setattr__(self, "binary_loss", self.loss in BINARY_LOSSES)
        if self.reference is None:
            # A loss that looks inside the networks defines what is compared.
            outputs_of = getattr(self.loss, "outputs", None)
            cache = ReferenceCache(self.network, outputs_of)
            object.__setattr__(self, "reference", cache)

    @property
    def minimize(self) -> bool:
        """Whether the objective is to be minimised."""
        return self.objective == "ratio"

    def ranks(self, parameterization: Mapping[str, float]) -> dict[str, Rank]:
        """Return the rank of every layer at a point of the search space.

        Raises:
            ValueError: see `layer_ranks`.
        """
        return layer_ranks(parameterization, self.parameters)

    @property
    def measure(self) -> SizeMeasure:
        """What the size of a network is."""
        if self.size is None:  # set when the problem was made
            raise RuntimeError("the problem has no size; please report this")
        return self.size

    def ratio(self, ranks: Mapping[str, Rank]) -> float:
        """Return the compression ratio of a network: its size after / before.

        Args:
            ranks: Layer name to rank or `"dense"`.

        Raises:
            ValueError: when a layer has no rank.
        """
        return self.measure.ratio(ranks)

    @property
    def ratio_constant(self) -> float:
        """What everything but the layers in play adds to the compression ratio."""
        return self.measure.constant / self.measure.before

    def ratio_tables(self) -> dict[str, list[float]]:
        """Return what the bins of each coordinate add to the compression ratio.

        Returns:
            Parameter name to one share of the original's size for each of its bins (see
            `bin_edges`); a network's ratio is the sum over its coordinates, and
            `ratio_constant`.
        """
        size, edges = self.measure, bin_edges(self.parameters)
        return {
            parameter.name: [
                size.of_layers(ranks, parameter.layers) / size.before
                for ranks in parameter.ranks_of_bins(edges[parameter.name])
            ]
            for parameter in self.parameters
        }

    def compress(self, parameterization: Mapping[str, float]) -> nn.Module:
        """Build an independent network at a point of the search space.

        Raises:
            ValueError: see `layer_ranks`.
        """
        ranks = self.ranks(parameterization)
        small = truncate_network(self.network, self.factors, self.layers, ranks)
        known, size = self.calibration, self.measure
        recipe = added_to_recipe(
            small,
            calibrations=[] if known is None else [known.to_dict()],
            # Of the default one older recipes say nothing.
            sizes=[] if size.is_default else [size.to_dict_at(ranks)],
        )
        record_recipe(small, recipe)
        return small

    def evaluate(
        self,
        parameterization: Mapping[str, float],
        *,
        seed: int,
        earlier: Sequence[MeanSEM] = (),
    ) -> dict[str, MeanSEM]:
        """Estimate the objective at a point, on fresh samples.

        This is pure: the same point, seed and `earlier` give the same result. The
        network runs in eval mode, whatever mode it is in (each module's mode is
        restored), and without autograd, so a loss cannot take gradients.

        Args:
            parameterization: Parameter name to unit coordinate.
            seed: Determines the samples; use a different one for each trial.
            earlier: The `"loss"` entries of earlier trials, for the floor of an SEM
                that is exactly zero.

        Returns:
            `"objective"`, `"loss"`, and `"compression_ratio"` with SEM 0.0, because it
            is not estimated.

        Raises:
            ValueError: when the parameterization does not fit the search space, or the
                loss does not return one finite value per sample.

        Source: Ma et al. 2019, sections 3 and 3.1.
        """
        ranks = self.ranks(parameterization)
        values = self.sample_losses(ranks, seed=seed)
        loss = apply_sem_floor(
            mean_and_sem(values),
            num_samples=self.num_samples,
            binary=bool(self.binary_loss),
            earlier=earlier,
        )
        return self.outcome(loss, self.ratio(ranks))

    def outcome(self, loss: MeanSEM, ratio: float) -> dict[str, MeanSEM]:
        """Combine a measured loss and a ratio into the outcomes of `evaluate`.

        Args:
            loss: Estimate of the loss.
            ratio: The compression ratio.

        Returns:
            `"objective"`, `"loss"` and `"compression_ratio"`.
        """
        if self.minimize:
            objective = scalarize(loss, ratio, self.gamma)
        else:
            quality = MeanSEM(-loss.mean, loss.sem)
            objective = scalarize_rate(quality, 1.0 / ratio, self.gamma)
        return {
            "objective": objective,
            "loss": loss,
            "compression_ratio": MeanSEM(ratio, 0.0),
        }

    def sample_losses(self, ranks: Mapping[str, Rank], *, seed: int) -> Tensor:
        """Draw fresh samples and return the loss of each, checked.

        Args:
            ranks: Layer name to rank or `"dense"`.
            seed: Determines the samples.

        Returns:
            Shape `num_samples`. Unit: loss units.

        Raises:
            ValueError: when the loss does not return one finite value per sample.
        """
        batch = self.batch_of(seed)
        with truncated(self.network, self.factors, self.layers, ranks) as network:
            return self._losses(network, batch)

    @contextmanager
    def cut(self, ranks: Mapping[str, Rank]) -> Iterator[nn.Module]:
        """Give the reference network with its layers cut in place, and restore it.

        Draw batches before (`batch_of`): their reference outputs are of this network.

        Args:
            ranks: Layer name to rank or `"dense"`.
        """
        with truncated(self.network, self.factors, self.layers, ranks) as network:
            yield network

    def network_loss(self, network: nn.Module, *, seed: int) -> MeanSEM:
        """Estimate the loss of a final network, on fresh samples.

        The final network may differ from the one that its trial evaluated: by
        `Decomposition.finalize`, or by fine-tuning. In addition, the winning trial was
        favoured by its samples.

        Args:
            network: A compressed network, on the reference network's device.
            seed: Determines the samples; use one that no trial has used.

        Returns:
            The loss, without the floor that trials have for an SEM of zero.

        Raises:
            ValueError: when the loss does not return one finite value per sample.
        """
        return mean_and_sem(self.losses_of(network, seed=seed))

    def losses_of(self, network: nn.Module, *, seed: int) -> Tensor:
        """Return the loss of a final network on each of a trial's samples, checked.

        Args:
            network: A compressed network, on the reference network's device.
            seed: Determines the samples.

        Returns:
            Shape `num_samples`. Unit: loss units.

        Raises:
            ValueError: when the loss does not return one finite value per sample.
        """
        return self._losses(network, self.batch_of(seed))

    def _losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, checked."""
        with evaluation_mode(network):
            values = self.loss(network, batch)
        self._check_values(values)
        return values

    def batch_of(self, seed: int) -> Batch:
        """Draw a trial's samples and add the reference outputs for them.

        Args:
            seed: Determines the samples.
        """
        batch = self.sampler(self.num_samples, torch.Generator().manual_seed(seed))
        weights = next(self.network.parameters(), None)
        if weights is not None:
            batch = batch.to(weights.device)
        if self.channels_last:
            batch = batch.channels_last()
        if batch.reference_outputs is not None:
            return batch
        return batch.with_reference(self.reference_outputs(batch))

    def reference_outputs(self, batch: Batch) -> Tensor:
        """Return what the reference network gives for a batch, without its layers cut.

        Args:
            batch: On the network's device.
        """
        with evaluation_mode(self.network):
            if self.reference is None:
                return forward(self.network, batch.inputs)
            return self.reference.outputs(batch)

    def _check_values(self, values: Any) -> None:
        """Raise a ValueError unless the loss returned one finite value per sample."""
        name = getattr(self.loss, "__name__", type(self.loss).__name__)
        expected = (
            f"The loss {name!r} must return one value per sample, a tensor of shape "
            f"({self.num_samples},)"
        )
        if not isinstance(values, Tensor):
            raise ValueError(f"{expected}; got {type(values).__name__}.")
        if values.shape != (self.num_samples,):
            hint = " Do not average over the batch." if values.ndim == 0 else ""
            raise ValueError(f"{expected}; got shape {tuple(values.shape)}.{hint}")
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(
                f"The loss {name!r} must be finite; {bad} of {len(values)} values are "
                "NaN or infinite. Look for a logarithm of zero, a division by it, or "
                "an overflow (of half precision from 65504 on)."
            )
        if self.binary_loss and not bool(((values == 0) | (values == 1)).all()):
            raise ValueError(
                f"The loss {name!r} was declared binary (binary_loss=True), but has "
                "values other than 0 and 1."
            )
