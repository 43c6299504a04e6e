"""Several decompositions of one layer as the rungs of one ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import (
    Decomposition,
    Factors,
    require_rank,
)
from compression_adapters.decompositions.moments import MomentKind, Moments


@dataclass(frozen=True)
class Rung:
    """One form of a layer.

    Args:
        kind: Name of the decomposition.
        rank: Its rank.
    """

    kind: str
    rank: int


@dataclass(frozen=True, eq=False)
class LadderFactors:
    """The factors of a layer, once for each decomposition.

    Args:
        of: Name of the decomposition to its factors.
    """

    of: Mapping[str, Factors]


@dataclass(frozen=True)
class Ladder:
    """Several decompositions of one layer; its rank is the number of a rung.

    Each rung is one decomposition at one rank. A ladder begins with all forms that a
    layer can have, decomposition by decomposition (`Ladder.of`). Once their sizes and
    errors are known, those that no other one beats in both are kept, by growing size,
    so that the error falls from rung to rung (`only`): a search walks those like the
    ranks of a single decomposition. A recipe records decomposition and rank of a rung,
    so that loading knows nothing of ladders.

    The factors of each decomposition are computed once and sliced, as they are alone.

    Args:
        kinds: The decompositions, each with a name of its own.
        rungs: From the first on, which is rank 1.
        sizes: Of each rung, and of the dense layer last, in the unit of the search;
            empty before they are known.

    Source: not in Ma et al. 2019.

    Example:
        >>> from compression_adapters.decompositions import DECOMPOSITIONS
        >>> kinds = [DECOMPOSITIONS[name] for name in ("low_rank_conv", "tucker")]
        >>> ladder = Ladder.of(kinds, nn.Conv2d(16, 32, 3))
        >>> len(ladder.rungs), ladder.rung(33)
        (59, Rung(kind='tucker', rank=1))
        >>> [len(span) for span in ladder.spans]
        [32, 27]
    """

    kinds: tuple[Decomposition, ...]
    rungs: tuple[Rung, ...]
    sizes: tuple[float, ...] = ()
    searchable: bool = True

    @classmethod
    def of(cls, kinds: Sequence[Decomposition], layer: nn.Module) -> Ladder:
        """Return all forms of a layer.

        Args:
            kinds: Decompositions that support it.
            layer: The dense layer.
        """
        forms = (
            Rung(kind.name, rank)
            for kind in kinds
            for rank in range(1, kind.max_rank(layer) + 1)
        )
        return cls(tuple(kinds), tuple(forms))

    @property
    def name(self) -> str:
        """The names of the decompositions, in their order."""
        return "|".join(kind.name for kind in self.kinds)

    @property
    def spans(self) -> tuple[range, ...]:
        """Rungs in a row that are one decomposition at consecutive ranks."""
        starts = [
            number
            for number, rung in enumerate(self.rungs, 1)
            if number == 1 or self.rungs[number - 2] != Rung(rung.kind, rung.rank - 1)
        ]
        ends = [*starts[1:], len(self.rungs) + 1]
        return tuple(range(a, b) for a, b in zip(starts, ends, strict=True))

    def rung(self, number: int) -> Rung:
        """Return a rung by its number, from 1.

        Raises:
            ValueError: when there is no such rung.
        """
        require_rank(number, len(self.rungs), f"a ladder of {self.name}")
        return self.rungs[number - 1]

    def only(self, numbers: Sequence[int], sizes: Sequence[float] = ()) -> Ladder:
        """Return the ladder of some rungs.

        Args:
            numbers: Of the rungs that stay, in their new order.
            sizes: Of these, and of the dense layer last.
        """
        rungs = tuple(self.rung(number) for number in numbers)
        return replace(self, rungs=rungs, sizes=tuple(sizes))

    def supports(self, layer: nn.Module) -> bool:
        """Accept what all of the decompositions accept, with these ranks."""
        return all(
            kind.supports(layer)
            and max((r.rank for r in self.rungs if r.kind == kind.name), default=1)
            <= kind.max_rank(layer)
            for kind in self.kinds
        )

    def max_rank(self, layer: nn.Module) -> int:
        """Return the number of rungs."""
        return len(self.rungs)

    def moments_of(self, layer: nn.Module) -> MomentKind | None:
        """Return the kind that serves all: of the inputs, if one needs these.

        Raises:
            ValueError: when the decompositions use moments that have nothing in common.
        """
        wanted: set[MomentKind] = set()
        for kind in self.kinds:
            moments_of = getattr(kind, "moments_of", None)
            found: MomentKind | None = moments_of(layer) if moments_of else None
            if found is not None:
                wanted.add(found)
        if not wanted <= {"inputs", "outputs"}:
            raise ValueError(
                "A ladder takes decompositions that are fitted to moments of a layer's "
                f"inputs or outputs; {self.name} are fitted to "
                f"{', '.join(sorted(wanted))}. Leave one of them out."
            )
        if not wanted:
            return None
        return "inputs" if "inputs" in wanted else "outputs"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> LadderFactors:
        """Decompose the layer once by each decomposition."""
        found: dict[str, Factors] = {}
        for kind in self.kinds:
            if moments is None or getattr(kind, "moments_of", None) is None:
                found[kind.name] = kind.factorize(layer)
            else:
                found[kind.name] = kind.factorize(layer, moments)
        return LadderFactors(found)

    def truncate(self, factors: LadderFactors, rank: int) -> nn.Module:
        """Slice the factors of the rung's decomposition."""
        kind, rung = self._at(rank)
        return kind.truncate(factors.of[kind.name], rung.rank)

    def finalize(self, factors: LadderFactors, rank: int) -> nn.Module:
        """Build what the rung's decomposition keeps."""
        kind, rung = self._at(rank)
        return kind.finalize(factors.of[kind.name], rung.rank)

    def errors(self, factors: LadderFactors) -> list[float]:
        """Return what each rung leaves out of the squared norm, as a share.

        Args:
            factors: From `factorize`.

        Returns:
            One number in [0, 1] per rung; of the weight, or with moments the expected
            one of the output. Dimensionless.
        """
        shares = {
            kind.name: error_shares(kind, factors.of[kind.name]) for kind in self.kinds
        }
        return [shares[rung.kind][rung.rank] for rung in self.rungs]

    def singular_values(self, factors: LadderFactors) -> Tensor:
        """Return what each rung adds, as a share, and what the last one leaves out.

        Shape `rungs + 1`; the squares sum to 1.

        Raises:
            ValueError: when the error does not fall from rung to rung.
        """
        left = torch.tensor([1.0, *self.errors(factors), 0.0], dtype=torch.float64)
        added = -left.diff()
        if bool((added < 0).any()):
            raise ValueError(
                f"The {len(self.rungs)} rungs of {self.name} are not ordered by their "
                "error; choose those of a search first (Ladder.only)."
            )
        return added.sqrt()

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count the weights of a rung."""
        kind, rung = self._at(rank)
        return kind.num_weights(weight_shape, rung.rank, groups)

    def empty(self, layer: nn.Module, rank: int) -> nn.Module:
        """Build the module of a rung, with uninitialised weights."""
        kind, rung = self._at(rank)
        return kind.empty(layer, rung.rank)

    def _at(self, number: int) -> tuple[Decomposition, Rung]:
        """Return the decomposition of a rung, and the rung."""
        rung = self.rung(number)
        return next(kind for kind in self.kinds if kind.name == rung.kind), rung


def error_shares(decomposition: Decomposition, factors: Factors) -> list[float]:
    """Return the share of the squared norm that each rank leaves out.

    Args:
        decomposition: One that can be searched.
        factors: Of a layer.

    Returns:
        For ranks from 0 to full rank, from 1.0 down to 0.0; zeros for a layer whose
        norm is zero. Dimensionless.
    """
    squares = decomposition.singular_values(factors).double().square()
    tails = squares.flip(0).cumsum(0).flip(0)
    total = float(tails[0])
    if total <= 0.0:
        return [0.0] * (len(tails) + 1)
    return [*(tails / total).tolist(), 0.0]
