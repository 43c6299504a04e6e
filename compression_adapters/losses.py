"""Fidelity and risk, one value a sample."""

import math
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression_adapters.sampling import Batch, forward

Loss = Callable[[nn.Module, Batch], Tensor]
"""`(network, batch) -> values` of shape `m`: one value a sample, never reduced."""


def squared_l2(network: nn.Module, batch: Batch) -> Tensor:
    """Compare outputs by their squared Euclidean distance.

        l(x) = ||f(x) - f*(x)||^2

    with f the compressed and f* the reference network; summed over all output
    dimensions. Its mean is the squared L2 distance of the two functions. No labels.

    Args:
        network: The compressed network.
        batch: With `reference_outputs`.

    Returns:
        Shape `m`. Unit: squared unit of the outputs.

    Raises:
        ValueError: when the reference outputs are missing or of another shape.

    Source: Ma et al. 2019, Eq. (5).

    Example:
        >>> batch = Batch(torch.ones(3, 2), reference_outputs=torch.zeros(3, 2))
        >>> squared_l2(nn.Identity(), batch)
        tensor([2., 2., 2.])
    """
    outputs, reference = _outputs_and_reference(network, batch)
    return (outputs - reference).square().flatten(1).sum(dim=1)


def kl_divergence(temperature: float = 1.0) -> Loss:
    """Make a loss that compares the predicted class probabilities.

        l(x) = T^2 KL(p*(x) || p(x)),  p = softmax(f(x) / T)

    with p* of the reference and p of the compressed network, over the last output
    dimension, summed over any others. The factor T^2 keeps the size of the loss
    comparable between temperatures. No labels.

    Args:
        temperature: T > 0; above 1 it brings out the unlikely classes.

    Returns:
        The loss; its values have shape `m`. Unit: nats.

    Raises:
        ValueError: when the temperature is not positive and finite.

    Source: Hinton et al. 2015, through Ma et al. 2019, Eq. (4).

    Example:
        >>> batch = Batch(torch.ones(3, 2), reference_outputs=torch.ones(3, 2))
        >>> kl_divergence(2.0)(nn.Identity(), batch)
        tensor([0., 0., 0.])
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite; got {temperature}.")

    def kl_divergence_loss(network: nn.Module, batch: Batch) -> Tensor:
        outputs, reference = _outputs_and_reference(network, batch)
        log_p = F.log_softmax(outputs / temperature, dim=-1)
        log_p_reference = F.log_softmax(reference / temperature, dim=-1)
        terms = log_p_reference.exp() * (log_p_reference - log_p)
        # Non-negative by definition; rounding may leave -1e-9.
        kl = terms.flatten(1).sum(dim=1).clamp_min(0.0)
        return kl * temperature**2

    return kl_divergence_loss


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    """Compare predicted class probabilities with the labels.

        l(x, y) = -log softmax(f(x))_y

    Args:
        network: The compressed network, with outputs of shape `m x classes`.
        batch: With `labels`.

    Returns:
        Shape `m`. Unit: nats.

    Raises:
        ValueError: when the batch has no labels or the outputs another shape.

    Source: Ma et al. 2019, Eq. (1).

    Example:
        >>> batch = Batch(torch.zeros(2, 10), labels=torch.tensor([3, 7]))
        >>> cross_entropy(nn.Identity(), batch)
        tensor([2.3026, 2.3026])
    """
    outputs, labels = _outputs_and_labels(network, batch, "cross_entropy")
    return F.cross_entropy(outputs, labels, reduction="none")


def top1_error(network: nn.Module, batch: Batch) -> Tensor:
    """Count wrong predictions: 1 where the likeliest class is not the label, else 0.

    Args:
        network: The compressed network, with outputs of shape `m x classes`.
        batch: With `labels`.

    Returns:
        Shape `m`, zeros and ones. Dimensionless.

    Raises:
        ValueError: when the batch has no labels or the outputs another shape.

    Source: Ma et al. 2019, Eq. (1).

    Example:
        >>> batch = Batch(torch.eye(3), labels=torch.tensor([0, 1, 1]))
        >>> top1_error(nn.Identity(), batch)
        tensor([0., 0., 1.])
    """
    outputs, labels = _outputs_and_labels(network, batch, "top1_error")
    return (outputs.argmax(dim=1) != labels).to(outputs.dtype)


LOSSES: dict[str, Loss] = {
    "squared_l2": squared_l2,
    "kl_divergence": kl_divergence(),
    "cross_entropy": cross_entropy,
    "top1_error": top1_error,
}
"""Losses by name, for the command line."""

BINARY_LOSSES: Final[tuple[Loss, ...]] = (top1_error,)
"""Losses known to be 0 or 1, whose SEM gets the binomial floor."""


def _outputs_and_reference(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the network and check the reference outputs against it."""
    outputs = forward(network, batch.inputs)
    reference = batch.reference_outputs
    if reference is None:
        raise ValueError(
            "This loss compares with the reference network, but the batch has no "
            "reference_outputs; evaluate it through CompressionProblem, or fill them "
            "in with ReferenceCache."
        )
    if reference.shape != outputs.shape or outputs.ndim < 2:
        raise ValueError(
            "Outputs and reference outputs must have one shape (m, ...); got "
            f"{tuple(outputs.shape)} and {tuple(reference.shape)}."
        )
    return outputs, reference


def _outputs_and_labels(
    network: nn.Module, batch: Batch, loss: str
) -> tuple[Tensor, Tensor]:
    """Run the network and check the labels against it."""
    if batch.labels is None:
        raise ValueError(
            f"The loss {loss!r} needs labels, and there are none. Pass `labels`, or "
            "choose a loss without labels: squared_l2 or kl_divergence."
        )
    outputs = forward(network, batch.inputs)
    if outputs.ndim != 2:
        raise ValueError(
            f"The loss {loss!r} needs outputs of shape (m, classes); got "
            f"{tuple(outputs.shape)}."
        )
    labels = batch.labels
    if labels.shape != outputs.shape[:1] or labels.dtype.is_floating_point:
        raise ValueError(
            f"labels must be {len(outputs)} integers, one a sample; got shape "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= outputs.shape[1]:
        raise ValueError(
            f"labels must lie in 0 to {outputs.shape[1] - 1}, the classes of the "
            f"network; got {int(labels.min())} to {int(labels.max())}."
        )
    return outputs, labels.to(torch.int64)
