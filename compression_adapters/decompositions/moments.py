"""What a decomposition can know of the data: moments of a layer's inputs or outputs."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

MomentKind = Literal["inputs", "outputs", "squares", "frequencies"]
"""What is gathered for a layer, see `Moments`."""

RIDGE: Final = 1e-3
"""Share of the moments' trace that is added as a multiple of the identity."""

_ROUNDING: Final = 1e-12


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments over calibration inputs, of one layer.

    Args:
        kind: `"inputs"`: E[x x^T] of the input, for a convolution of its patches
            (channel, row, column), in groups. `"outputs"`: E[y y^T] of y = W x, without
            the bias. `"squares"`: E[x_j^2] alone. `"frequencies"`: the share of each
            row of an embedding among those that were looked up.
        second: Shape `groups x p x p`; of squares and frequencies `groups x p`. Double
            precision. Unit: squares of inputs or outputs; frequencies: dimensionless.
            Squares of a factored layer: those of all its parts, one after another, as
            `1 x p`.
        mean: E[x] or E[y]. Shape `groups x p`.
        count: Number of patches, rows or tokens they are means of; at least 1.
    """

    kind: MomentKind
    second: Tensor
    mean: Tensor
    count: int

    def __post_init__(self) -> None:
        expected = 3 if self.kind in ("inputs", "outputs") else 2
        if self.second.ndim != expected or self.mean.ndim != 2 or self.count < 1:
            raise ValueError(
                f"Moments of {self.kind} must have shapes groups x p"
                f"{' x p' if expected == 3 else ''} and groups x p, of at least one "
                f"input; got {tuple(self.second.shape)}, {tuple(self.mean.shape)} and "
                f"{self.count}."
            )

    def of_entries(self, *, centred: bool) -> Tensor:
        """Return the squares of each entry, without a ridge.

        Args:
            centred: As for `of_inputs`.

        Returns:
            Shape `groups x p`.
        """
        if not centred:
            return self.second
        about = self.second - self.mean.square()
        return torch.where(about > _ROUNDING * self.second, about, 0.0)

    def of_inputs(self, *, centred: bool) -> Tensor:
        """Return the second moments of inputs, with the ridge.

            C + rho I,  rho = RIDGE * tr(C) / p

        Where the calibration inputs say nothing, factors then are those of the weights
        alone; nothing is singular, however few inputs there were.

        Args:
            centred: About the mean, which the bias of a layer can make up for; else
                about zero.

        Returns:
            Shape `groups x p x p`. If no input differs from zero (from the mean): the
            identity.
        """
        second = self._about(centred)
        level = _trace(second) * (RIDGE / second.shape[-1])
        level = torch.where(level > 0, level, 1.0)
        # In place, because these are the largest matrices there are.
        second = second.clone() if second is self.second else second
        second.diagonal(dim1=1, dim2=2).add_(level[:, None])
        return second

    def of_outputs(self, weight: Tensor, *, centred: bool) -> Tensor:
        """Return the second moments of the outputs W x, with the ridge of the inputs.

        From moments of inputs, `W (C + rho I) W^T`; from moments M of outputs,

            M + rho W W^T,  rho = RIDGE * tr(M) / tr(W W^T)

        Args:
            weight: W. Shape `groups x out x p`.
            centred: As for `of_inputs`.

        Returns:
            Shape `groups x out x out`.
        """
        if self.kind == "inputs":
            return weight @ self.of_inputs(centred=centred) @ weight.transpose(1, 2)
        second, gram = self._about(centred), weight @ weight.transpose(1, 2)
        trace = _trace(second)
        rho = torch.where(trace > 0, RIDGE * trace / _trace(gram).clamp_min(1e-300), 1)
        return second + rho[:, None, None] * gram

    def output_mean(self, weight: Tensor) -> Tensor:
        """Return E[W x]. Shape `groups x out`."""
        if self.kind == "inputs":
            return (weight @ self.mean[:, :, None]).squeeze(2)
        return self.mean

    def _about(self, centred: bool) -> Tensor:
        if not centred:
            return self.second
        about = self.second - self.mean[:, :, None] * self.mean[:, None, :]
        # Of inputs that are all alike, rounding is left.
        alike = _trace(about) <= _ROUNDING * _trace(self.second)
        if bool(alike.any()):
            about[alike] = 0.0
        return about


def _trace(matrices: Tensor) -> Tensor:
    """Return the trace of each matrix."""
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def leading_eigenvectors(second: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues, in descending order, and their eigenvectors.

    Args:
        second: Symmetric. Shape `... x p x p`.
        rank: How many.

    Returns:
        Shape `... x rank`, and orthonormal columns of shape `... x p x rank`.
    """
    values, vectors = torch.linalg.eigh(second)
    return values.flip(-1)[..., :rank], vectors.flip(-1)[..., :rank]
