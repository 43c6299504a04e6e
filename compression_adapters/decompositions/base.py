"""The protocol of a decomposition of one layer."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.moments import MomentKind, Moments

Factors = Any
"""The result of `factorize`, of a type of the decomposition's own."""


class Decomposition(Protocol):
    """A family of cheaper versions of one layer, indexed by an integer rank.

    A decomposition has no state: everything expensive is in the factors, which are
    computed once per search (`factorize`) and sliced in every trial (`truncate`). The
    final network may get something better than a slice (`finalize`). A `choose`
    function can return any object with these members; an entry in `DECOMPOSITIONS` is
    only needed to load saved networks by name.
    """

    @property
    def name(self) -> str:
        """Name for storage; never renamed once networks have been saved with it."""
        ...

    @property
    def searchable(self) -> bool:
        """Whether ranks are slices of one set of factors, which a search needs.

        If not, each rank needs its own slow decomposition: `truncate` works, but a
        search refuses the decomposition by name.
        """
        ...

    def supports(self, layer: nn.Module) -> bool:
        """Return whether `layer` is supported and at least rank 1 adds no weights."""
        ...

    def max_rank(self, layer: nn.Module) -> int:
        """Return the largest rank that adds no weights, at least 1."""
        ...

    def moments_of(self, layer: nn.Module) -> MomentKind | None:
        """Return what `factorize` can use of calibration inputs, None for nothing.

        A decomposition without this member is given none.
        """
        ...

    def factorize(self, layer: nn.Module, moments: Moments | None = None) -> Factors:
        """Decompose the layer's weight; slow; neither mutates nor aliases the layer.

        Args:
            layer: The dense layer.
            moments: Of the kind that `moments_of` returns: the factors then have the
                least expected squared error of the layer's output on the calibration
                inputs, or nearly so. None: of the weight.
        """
        ...

    def truncate(self, factors: Factors, rank: int) -> nn.Module:
        """Cut to `rank` by slicing; the module may share memory with the factors.

        Raises:
            ValueError: when `rank` is below 1 or above the weight's full rank; ranks
                between `max_rank` and full rank are legal.
        """
        ...

    def finalize(self, factors: Factors, rank: int) -> nn.Module:
        """Build the final module: as `truncate`, or better but too slow for a trial.

        The structure is that of `truncate`.

        Raises:
            ValueError: as `truncate` does.
        """
        ...

    def singular_values(self, factors: Factors) -> Tensor:
        """Return the size of each rank's contribution. Shape `full_rank`.

        Not negative. The squares of the first K sum to the squared norm that rank K
        keeps: of the weight, or with moments the expected one of the output (about its
        mean, if the layer has a bias). The squares of the others sum to the error. By
        this the `energy` encoding divides [0, 1], and the price path orders networks.
        """
        ...

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count the weights (without bias) at `rank`.

        Args:
            weight_shape: Shape of the dense weight.
            rank: From 1 to full rank.
            groups: Groups of a convolution, which the shape of its weight does not
                determine.
        """
        ...

    def empty(self, layer: nn.Module, rank: int) -> nn.Module:
        """Build the module `truncate` would give, with uninitialised weights.

        This runs no decomposition; saved networks are rebuilt with it.

        Raises:
            ValueError: as `truncate` does.
        """
        ...


def require_rank(rank: int, full_rank: int, what: str) -> None:
    """Raise unless a rank lies in 1 to full rank.

    Args:
        rank: The requested rank.
        full_rank: Largest legal rank.
        what: The layer in words, such as `a linear layer of shape 20 x 30`.

    Raises:
        ValueError: when it does not.
    """
    if not 1 <= rank <= full_rank:
        raise ValueError(
            f"rank must lie in 1 to {full_rank} for {what}; got {rank}. Give one of "
            "these, or 'dense' to leave the layer unchanged."
        )


def has_plain_weight(layer: nn.Module) -> bool:
    """Return whether the layer is what its type says: a weight, a bias, its forward.

    A weight that is computed from other parameters (weight norm, pruning masks) is not:
    its layer would overwrite it. Neither is a layer with further parameters or parts,
    or whose `forward` was replaced on the instance.
    """
    return (
        isinstance(layer._parameters.get("weight"), nn.Parameter)
        and layer._parameters.keys() <= {"weight", "bias"}
        and not layer._modules
        and "forward" not in vars(layer)
    )


def in_single_precision(weight: Tensor) -> Tensor:
    """Return half precision as float32, which decompositions need; else unchanged."""
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.float() if half else weight
