"""What a decomposition of one layer has to offer."""

from typing import Any, Protocol

from torch import Tensor, nn

Factors = Any
"""What `factorize` returns and `truncate` slices: each decomposition's own type."""


class Decomposition(Protocol):
    """A family of cheaper versions of one layer, indexed by an integer rank.

    A decomposition has no state: everything expensive is in the factors, which are
    computed once a search (`factorize`) and sliced in every trial (`truncate`). Any
    object with these members can be returned by a `choose` function; an entry in
    `DECOMPOSITIONS` is only needed to load saved networks by name.
    """

    @property
    def name(self) -> str:
        """Name for storage; never renamed once networks have been saved with it."""
        ...

    def supports(self, layer: nn.Module) -> bool:
        """Say whether `layer` can be decomposed and at least rank 1 adds no weights."""
        ...

    def max_rank(self, layer: nn.Module) -> int:
        """Return the largest rank that adds no weights, at least 1."""
        ...

    def factorize(self, layer: nn.Module) -> Factors:
        """Decompose the layer's weight; slow; neither mutates nor aliases the layer."""
        ...

    def truncate(self, factors: Factors, rank: int) -> nn.Module:
        """Cut to `rank` by slicing; the module may share memory with the factors.

        Raises:
            ValueError: when `rank` is below 1 or above the weight's full rank; ranks
                between `max_rank` and full rank are legal.
        """
        ...

    def singular_values(self, factors: Factors) -> Tensor:
        """Return the size of each rank's contribution, descending. Shape `full_rank`.

        Its squares are what the `energy` encoding adds up.
        """
        ...

    def num_weights(self, weight_shape: tuple[int, ...], rank: int) -> int:
        """Count the weights (without bias) at `rank`."""
        ...

    def empty(self, layer: nn.Module, rank: int) -> nn.Module:
        """Build the module `truncate` would give, with uninitialised weights.

        No decomposition takes place: this is how a saved network is rebuilt.

        Raises:
            ValueError: as `truncate` does.
        """
        ...
