"""The outputs of a matrix projected on their leading directions: the exact form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compression_adapters.decompositions.moments import Moments, leading_eigenvectors


@dataclass(frozen=True, eq=False)
class OutputProjection:
    """Matrices as products `left @ right` with the least expected error of W x.

    Args:
        left: U, scaled. Shape `groups x out x full_rank`.
        right: U^T W, scaled inversely. Shape `groups x full_rank x p`.
        values: Roots of the eigenvalues of the output's second moments, descending.
            Shape `groups x full_rank`.
        mean: E[W x] of a layer with a bias, else None. Shape `groups x out`.
        inner_mean: With `mean`: E[right @ x]. Shape `groups x full_rank`.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    mean: Tensor | None
    inner_mean: Tensor | None


def project_outputs(
    weight: Tensor, moments: Moments, *, centred: bool
) -> OutputProjection:
    """Project W x on the leading eigenvectors U of its second moments, at every rank.

        left = U_K,  right = U_K^T W,  error = sum of the other eigenvalues

    Both factors get the same scale, which half precision needs.

    Args:
        weight: W, in double precision. Shape `groups x out x p`.
        moments: Of inputs or outputs.
        centred: About the mean, which a bias makes up for.

    Returns:
        The factors, of rank `min(out, p)`.
    """
    values, basis = output_directions(weight, moments, centred=centred)
    right = basis.mT @ weight
    scale = right.norm(dim=2).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    left, right = basis * scale[:, None, :], right / scale[:, :, None]
    if not centred:
        return OutputProjection(left, right, values, None, None)
    mean = moments.output_mean(weight)
    inner = (basis.mT @ mean[:, :, None]).squeeze(2) / scale
    return OutputProjection(left, right, values, mean, inner)


def output_directions(
    weight: Tensor, moments: Moments, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors of the second moments of W x.

    Args:
        weight: As for `project_outputs`.
        moments: As there.
        centred: As there.

    Returns:
        Roots of the eigenvalues, descending, shape `groups x rank`, and orthonormal
        columns of shape `groups x out x rank`, with rank `min(out, p)`.
    """
    out, size = weight.shape[1:]
    if moments.kind == "inputs" and size <= out:
        # As an SVD of W L, L L^T = C: its matrix is smaller than that of the outputs.
        root = square_root(moments.of_inputs(centred=centred))
        basis, values, _ = torch.linalg.svd(weight @ root, full_matrices=False)
        return values, basis
    second = moments.of_outputs(weight, centred=centred)
    squares, basis = leading_eigenvectors(second, min(out, size))
    return squares.clamp_min(0.0).sqrt(), basis


def square_root(second: Tensor) -> Tensor:
    """Return L with L L^T equal to moments that rounding may have made indefinite.

    Args:
        second: Symmetric. Shape `groups x p x p`.

    Returns:
        Shape `groups x p x p`; the Cholesky factor where there is one.
    """
    root, failed = torch.linalg.cholesky_ex(second)
    if not bool(failed.any()):
        return root
    values, vectors = torch.linalg.eigh(second)
    least = 1e-10 * values.amax(1, keepdim=True).clamp_min(1e-30)
    return vectors * values.clamp_min(least).sqrt()[:, None, :]
