"""Fidelity and risk, one value per sample."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression_adapters.evaluation.sampling import Batch
from compression_adapters.network.modes import (
    forward,
    in_float,
    squared_distance,
)
from compression_adapters.network.outputs import masked
from compression_adapters.network.structured_inputs import (
    Inputs,
    call_network,
    mask_of,
)

Loss = Callable[[nn.Module, Batch], Tensor]
"""`(network, batch) -> values` of shape `m`: one value per sample, never reduced."""


def squared_l2(network: nn.Module, batch: Batch) -> Tensor:
    """Compare outputs by their squared Euclidean distance.

        l(x) = ||f(x) - f*(x)||^2

    with f the compressed and f* the reference network, summed over all output
    dimensions; of complex outputs the absolute value squared. Half precision is summed
    in single. Its mean is the squared L2 distance of the two functions. No labels.

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
    return squared_distance(*_outputs_and_reference(network, batch))


@dataclass(frozen=True)
class RelativeSquaredL2:
    """Compare outputs by their squared distance, relative to their size.

        l(x) = ||f(x) - f*(x)||^2 / s,  s = mean of ||f*(x)||^2

    A network with zero outputs has a loss of 1 on average, whatever the unit of the
    outputs. At gamma = 1 it costs as much as the dense network; below that, zeros win
    over the dense network. One gamma therefore means the same for several networks, and
    for the stages of one network, whose training in between may change the size of the
    outputs. No labels.

    Args:
        scale: s, in squared units of the outputs. None: `compression_problem` measures
            it once, on a few hundred samples. It is a constant of the problem, so that
            the loss stays one mean over independent samples.

    Raises:
        ValueError: when called before the scale is known.

    Source: none; Ma et al. 2019, Eq. (5), over a constant.

    Example:
        >>> batch = Batch(torch.ones(3, 2), reference_outputs=torch.zeros(3, 2))
        >>> RelativeSquaredL2(scale=4.0)(nn.Identity(), batch)
        tensor([0.5000, 0.5000, 0.5000])
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0.0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite; got {self.scale}.")

    @property
    def __name__(self) -> str:
        """Return the name of this loss in messages."""
        return "relative_squared_l2"

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return one value per sample.

        Args:
            network: The compressed network.
            batch: With `reference_outputs`.

        Returns:
            Shape `m`. Dimensionless.
        """
        if self.scale is None:
            raise ValueError(
                "The loss relative_squared_l2 does not know the size of the reference "
                "outputs yet: use compression_problem to measure it, or pass scale."
            )
        return squared_l2(network, batch) / self.scale

    def measured(self, reference_outputs: Tensor) -> "RelativeSquaredL2":
        """Return this loss with the scale of these outputs.

        Args:
            reference_outputs: Outputs for samples drawn as in a trial. Shape `n x ...`.

        Raises:
            ValueError: when they are all zero.
        """
        zeros = torch.zeros_like(reference_outputs)
        squares = squared_distance(reference_outputs, zeros)
        scale = float(squares.double().mean())
        if scale == 0.0:
            raise ValueError(
                "The network's outputs are all zero, so nothing can be measured "
                "relative to their size. Has it been pruned to nothing?"
            )
        # Rounded, for a search that is continued on another machine, where outputs
        # differ in their last digits.
        return RelativeSquaredL2(float(f"{scale:.4g}"))


def kl_divergence(temperature: float = 1.0) -> Loss:
    """Return a loss that compares the predicted class probabilities.

        l(x) = T^2 KL(p*(x) || p(x)),  p = softmax(f(x) / T)

    with p* of the reference and p of the compressed network, over the last output
    dimension, summed over any others. The factor T^2 keeps the size of the loss
    comparable between temperatures. No labels.

    Args:
        temperature: T > 0; above 1 it emphasises the unlikely classes.

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
    return _KLDivergence(temperature)


@dataclass(frozen=True)
class _KLDivergence:
    """What `kl_divergence` returns; its `repr` is stored with a search."""

    temperature: float

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature must be positive and finite; got {self.temperature}."
            )

    @property
    def __name__(self) -> str:
        """Return the name of this loss in messages."""
        return "kl_divergence"

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        outputs, reference = (
            _logits(outputs, "kl_divergence")
            for outputs in _outputs_and_reference(network, batch)
        )
        log_p = F.log_softmax(outputs / self.temperature, dim=-1)
        log_p_reference = F.log_softmax(reference / self.temperature, dim=-1)
        terms = log_p_reference.exp() * (log_p_reference - log_p)
        # Non-negative by definition; rounding may leave -1e-9.
        kl = terms.flatten(1).sum(dim=1).clamp_min(0.0)
        return kl * self.temperature**2

    def __repr__(self) -> str:
        return f"kl_divergence(temperature={self.temperature!r})"


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


def disagreement(network: nn.Module, batch: Batch) -> Tensor:
    """Count inputs whose likeliest class is not that of the reference network.

        l(x) = 1 where argmax f(x) differs from argmax f*(x), else 0

    Of outputs with many positions, the share of positions at which it differs, without
    padding: classes are the last dimension of outputs of three dimensions (tokens), and
    the second one of more (pixels). No labels.

    Args:
        network: The compressed network, with outputs of shape `m x classes`,
            `m x positions x classes` or `m x classes x ...`.
        batch: With `reference_outputs`.

    Returns:
        Shape `m`, in [0, 1]. Dimensionless.

    Raises:
        ValueError: when the outputs have no classes.

    Example:
        >>> batch = Batch(torch.eye(3), reference_outputs=torch.eye(3)[[0, 1, 1]])
        >>> disagreement(nn.Identity(), batch)
        tensor([0., 0., 1.])
    """
    return (1.0 - agreement_of(network, batch)).to(torch.float32)


def agreement_of(network: nn.Module, batch: Batch) -> Tensor:
    """Return 1 less `disagreement`, in double precision."""
    outputs, reference = _outputs_and_reference(network, batch)
    same = _likeliest(outputs) == _likeliest(reference)
    if same.ndim == 1:
        return same.double()
    mask = mask_of(batch.inputs)
    if mask is None or mask.shape != same.shape:
        return same.double().flatten(1).mean(1)
    counts = mask.to(same.device).double()
    return (same * counts).sum(1) / counts.sum(1).clamp_min(1.0)


def correctness_of(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return whether the network and the reference network predict the labels.

    Args:
        network: The compressed network, with outputs of shape `m x classes`.
        batch: With `labels` and `reference_outputs`.

    Returns:
        Two Boolean tensors of shape `m`.

    Raises:
        ValueError: when the batch has no labels or the outputs another shape.
    """
    outputs, labels = _outputs_and_labels(network, batch, "accuracy")
    reference = _reference_like(outputs, batch)
    return outputs.argmax(1) == labels, reference.argmax(1) == labels


@dataclass(frozen=True)
class PairedTop1Error:
    """Count wrong predictions, less those of the reference network on the same inputs.

        l(x, y) = [argmax f(x) differs from y] - [argmax f*(x) differs from y]

    Its mean is the top-1 error of the compressed network less that of the reference
    network, a constant. A search therefore finds the networks that it finds with
    `top1_error`, from fewer samples: inputs on which both are right, or both wrong,
    add nothing to the variance, which is

        P(l = 1) + P(l = -1) - (mean of l)^2

    One value may be negative, where compression makes a prediction right, and so may
    the mean. It is never below minus the error of the reference network, because no
    network is wrong less than never.

    Args:
        reference_error: Top-1 error of the reference network on the inputs that trials
            draw from, in [0, 1]. It bounds the loss from below by its negative, which a
            search uses (`loss_floor`). An estimate that is too small would be a wrong
            bound; for a pool, measure all of it. None: not known, and there is no
            bound.

    Raises:
        ValueError: when the error is outside [0, 1].

    Source: Ma et al. 2019, Eq. (1). Deviation: the paper does not subtract.

    Example:
        >>> labels, right = torch.tensor([0, 1, 1]), torch.eye(3)
        >>> batch = Batch(right, labels, reference_outputs=right[[0, 1, 1]])
        >>> PairedTop1Error()(nn.Identity(), batch)
        tensor([0., 0., 1.])
    """

    reference_error: float | None = None

    def __post_init__(self) -> None:
        error = self.reference_error
        if error is not None and not 0.0 <= error <= 1.0:
            raise ValueError(
                f"reference_error must be a share, between 0 and 1; got {error}."
            )

    @property
    def __name__(self) -> str:
        """Return the name of this loss in messages."""
        return "paired_top1_error"

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return one value per sample.

        Args:
            network: The compressed network, with outputs of shape `m x classes`.
            batch: With `labels` and `reference_outputs`.

        Returns:
            Shape `m`, -1, 0 or 1. Dimensionless.
        """
        after, before = correctness_of(network, batch)
        return before.to(torch.float32) - after.to(torch.float32)


def cosine_distance(network: nn.Module, batch: Batch) -> Tensor:
    """Compare outputs by the angle between them, for embeddings and hidden states.

        l(x) = 1 - <f(x), f*(x)> / (||f(x)|| ||f*(x)||)

    over all output dimensions. 0 for outputs in the same direction, whatever their
    size, 1 for orthogonal ones, at most 2. No labels.

    Args:
        network: The compressed network.
        batch: With `reference_outputs`.

    Returns:
        Shape `m`. Dimensionless.

    Raises:
        ValueError: when the reference outputs are missing, complex or of another shape.

    Example:
        >>> batch = Batch(torch.eye(2), reference_outputs=torch.ones(2, 2))
        >>> cosine_distance(nn.Identity(), batch)
        tensor([0.2929, 0.2929])
    """
    outputs, reference = (
        _logits(one, "cosine_distance").flatten(1)
        for one in _outputs_and_reference(network, batch)
    )
    # Rounding may leave -1e-7 of equal outputs.
    return (1.0 - F.cosine_similarity(outputs, reference, dim=1)).clamp_min(0.0)


def _likeliest(outputs: Tensor) -> Tensor:
    """Return the class with the largest output, of each position if there are many."""
    values = _logits(outputs, "disagreement")
    return values.argmax(dim=-1 if values.ndim < 4 else 1)


@dataclass(frozen=True)
class IntermediateSquaredL2:
    """Compare the outputs of a layer inside the networks, by squared distance.

        l(x) = ||h(x) - h*(x)||^2

    with h the output of one layer of the compressed and h* of the reference network,
    summed over all its dimensions. No labels. If a layer runs several times in one
    pass, its last output counts.

    The whole network runs, and the layer's output for each drawn sample of the pool is
    kept in memory. Layers after it do not influence this loss, so a search would make
    them as small as possible: leave them out of the search (`exclude`).

    Args:
        layer: Dotted path of any module of the network, such as `"layer2"`, compressed
            or not.

    Raises:
        ValueError: when called on a network without such a layer, or if the layer does
            not return one tensor row per sample.

    Source: Ma et al. 2019, Figs. 2 and 3.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> loss, inputs = IntermediateSquaredL2("1"), torch.ones(4, 2)
        >>> inside = loss.outputs(network, inputs)
        >>> inside.shape
        torch.Size([4, 3])
        >>> loss(network, Batch(inputs, reference_outputs=inside)).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    layer: str

    @property
    def __name__(self) -> str:
        """Return the name of this loss in messages."""
        return f"squared_l2 at {self.layer}"

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return one value per sample.

        Args:
            network: The compressed network.
            batch: Its `reference_outputs` are those of the layer, as `outputs` returns
                them for the reference network.

        Returns:
            Shape `m`. Unit: squared unit of the layer's outputs.
        """
        outputs = self.outputs(network, batch.inputs)
        return squared_distance(outputs, _reference_like(outputs, batch))

    def outputs(self, network: nn.Module, inputs: Inputs) -> Tensor:
        """Run a network and return the layer's output; no hook remains.

        Args:
            network: Compressed or reference network.
            inputs: Shape `m x ...`.

        Returns:
            Shape `m x ...`.
        """
        layer = self._find(network)
        seen: list[Any] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy, because a module that works in place may follow, such as a ReLU.
            seen[:] = [output.clone() if isinstance(output, Tensor) else output]

        handle = layer.register_forward_hook(keep)
        try:
            call_network(network, inputs)
        finally:
            handle.remove()
        if not seen:
            raise ValueError(
                f"Layer {self.layer!r} was not called when the network ran, so it has "
                "no output to compare. Name a layer that the forward pass calls."
            )
        output = seen[0]
        if not isinstance(output, Tensor):
            raise ValueError(
                f"Layer {self.layer!r} must return a tensor; got "
                f"{type(output).__name__}. Name a layer inside it, or after it."
            )
        if output.shape[:1] != (len(inputs),):
            raise ValueError(
                f"Layer {self.layer!r} must return one row per sample: "
                f"{len(inputs)} samples went in, an output of shape "
                f"{tuple(output.shape)} came out."
            )
        return masked(output, inputs)

    def _find(self, network: nn.Module) -> nn.Module:
        """Return the layer, or name similar ones."""
        names = dict(network.named_modules(remove_duplicate=False))
        names.pop("", None)
        if self.layer in names:
            return names[self.layer]
        near = difflib.get_close_matches(self.layer, names, n=4, cutoff=0.5)
        hint = f"similar names are {', '.join(near)}" if near else "no name is similar"
        raise ValueError(
            f"The network ({type(network).__name__}) has no layer {self.layer!r}; "
            f"{hint}. network.named_modules() lists them all."
        )


LOSSES: dict[str, Loss] = {
    "squared_l2": squared_l2,
    "relative_squared_l2": RelativeSquaredL2(),
    "kl_divergence": kl_divergence(),
    "cross_entropy": cross_entropy,
    "top1_error": top1_error,
    "disagreement": disagreement,
    "cosine_distance": cosine_distance,
}
"""Losses by name, for the command line."""


LABELLED_LOSSES: Final = ("cross_entropy", "top1_error")
"""Keys of `LOSSES` that need labels."""


BINARY_LOSSES: Final[tuple[Loss, ...]] = (top1_error,)
"""Losses known to be 0 or 1, whose SEM gets the binomial floor."""


def is_nonnegative(loss: Loss) -> bool:
    """Return whether a loss is known to be at least zero, as those of this package.

    Args:
        loss: A loss; of a user's own it is not known.
    """
    own = (IntermediateSquaredL2, RelativeSquaredL2, _KLDivergence)
    return isinstance(loss, own) or loss in LOSSES.values()


def loss_floor(loss: Loss) -> float | None:
    """Return what the expected loss is never below, None where that is not known.

    Args:
        loss: A loss.

    Returns:
        In the unit of the loss.

    Example:
        >>> loss_floor(squared_l2), loss_floor(PairedTop1Error(0.25))
        (0.0, -0.25)
        >>> loss_floor(PairedTop1Error()) is None
        True
    """
    if isinstance(loss, PairedTop1Error):
        return None if loss.reference_error is None else -loss.reference_error
    return 0.0 if is_nonnegative(loss) else None


def stored_loss_name(loss: Loss) -> str:
    """Return the name under which a search stores its loss.

    It is the same in every process and in later versions, wherever the code moves.

    Args:
        loss: A loss of this package is named by its key in `LOSSES`, with its
            settings if any. Of other losses, a dataclass is named by its `repr`, a
            function by its path.

    Example:
        >>> stored_loss_name(squared_l2), stored_loss_name(kl_divergence(2.0))
        ('squared_l2', 'kl_divergence(temperature=2.0)')
    """
    made: Any = loss
    if is_dataclass(made):
        return repr(made)
    path = _path_of(made)
    for name, own in LOSSES.items():
        # By path: a function that wraps one of ours goes by its name.
        if not is_dataclass(own) and path == _path_of(own):
            return name
    return path


def _path_of(loss: Any) -> str:
    """Return the path of a function, or of an object's type."""
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"


def is_stored_loss(stored: str, name: str) -> bool:
    """Whether a stored name is the present name, or an older one, of a loss.

    Version 0.1 stored the paths of functions. It stored `kl_divergence` without its
    temperature, so such a record matches any temperature.

    Args:
        stored: The name in the record of a search.
        name: From `stored_loss_name`.

    Example:
        >>> is_stored_loss("compression_adapters.losses.squared_l2", "squared_l2")
        True
    """
    older = stored.removeprefix("compression_adapters.losses.")
    if older == "kl_divergence.<locals>.kl_divergence_loss":
        return name.startswith("kl_divergence(")
    return name in (stored, older)


def _outputs_and_reference(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the network and check the reference outputs against it."""
    outputs = forward(network, batch.inputs)
    return outputs, _reference_like(outputs, batch)


def _reference_like(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the reference outputs, checked against the outputs."""
    reference = batch.reference_outputs
    if reference is None:
        raise ValueError(
            "This loss compares with the reference network, but the batch has no "
            "reference_outputs; evaluate it through CompressionProblem, or fill them "
            "in with ReferenceCache."
        )
    if reference.shape != outputs.shape:
        raise ValueError(
            "Outputs and reference outputs must have one shape; got "
            f"{tuple(outputs.shape)} and {tuple(reference.shape)}."
        )
    return reference


def _logits(outputs: Tensor, loss: str) -> Tensor:
    """Return outputs in single precision at least, refusing what has no classes."""
    if outputs.ndim < 2 or outputs.is_complex():
        raise ValueError(
            f"The loss {loss!r} needs real outputs of shape (m, ..., classes); got "
            f"{tuple(outputs.shape)} of {outputs.dtype}. Use squared_l2 or "
            "relative_squared_l2, which take any outputs."
        )
    return in_float(outputs)


def _outputs_and_labels(
    network: nn.Module, batch: Batch, loss: str
) -> tuple[Tensor, Tensor]:
    """Run the network and check the labels against it."""
    if batch.labels is None:
        raise ValueError(
            f"The loss {loss!r} needs labels, and there are none. Pass `labels`, or "
            "choose a loss without labels: squared_l2 or kl_divergence."
        )
    outputs = _logits(forward(network, batch.inputs), loss)
    if outputs.ndim != 2:
        raise ValueError(
            f"The loss {loss!r} needs outputs of shape (m, classes); got "
            f"{tuple(outputs.shape)}."
        )
    labels = batch.labels
    if labels.shape != outputs.shape[:1] or labels.dtype.is_floating_point:
        raise ValueError(
            f"labels must be {len(outputs)} integers, one per sample; got shape "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= outputs.shape[1]:
        raise ValueError(
            f"labels must lie in 0 to {outputs.shape[1] - 1}, the classes of the "
            f"network; got {int(labels.min())} to {int(labels.max())}."
        )
    return outputs, labels.to(torch.int64)
