"""After a search: train further or re-estimate batch norm, with the same ranks."""

import copy
import math
from collections.abc import Callable, Iterable, Sized
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression_adapters.layers.survey import layer_weights
from compression_adapters.network.modes import (
    evaluation_mode,
    forward,
    in_float,
    squared_distance,
)
from compression_adapters.network.recipe import recipe_of
from compression_adapters.network.structured_inputs import (
    Inputs,
    call_network,
    split_labels,
)
from compression_adapters.rank_space.scales import DENSE

Schedule = Literal["step", "cyclical", "constant"]


def fine_tune(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: Schedule = "step",
    step_epochs: int | None = None,
    reference_network: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Train a compressed network with stochastic gradient descent; ranks stay.

    The structure does not change: factors are trained, and weights that pruning set to
    zero stay zero. With a reference network no labels are needed: its outputs are the
    target, under the squared L2 distance that the search used too.

    Args:
        network: From a search. Not modified.
        loader: Batches of inputs and class indices, or of inputs alone together with a
            reference network; iterated once per epoch.
        epochs: Passes over the loader.
        learning_rate: The largest learning rate.
        momentum: Momentum of the gradient descent.
        weight_decay: Weight decay of the gradient descent.
        schedule: `"step"` divides the learning rate by ten every `step_epochs` epochs;
            `"cyclical"` lets it rise from a tenth and fall again in each `step_epochs`
            epochs; `"constant"`.
        step_epochs: See `schedule`; a third of the epochs if None, at least one.
        reference_network: The network to learn from without labels.
        progress: Called as `progress(epoch, epochs)` after each epoch.

    Returns:
        The trained network, an independent copy in eval mode, on the same device.

    Raises:
        ValueError: when an argument is invalid, no weight is trainable, a batch has no
            labels and there is no reference network, or the loss is not finite; the
            message states the remedy.

    Source: Ma et al. 2019, section 4.3, which trains with stepwise and cyclical
        learning rates. Deviation: learning from the reference network is not in the
        source.

    Example:
        >>> network, data = nn.Linear(4, 3), [(torch.ones(8, 4), torch.zeros(8).long())]
        >>> trained = fine_tune(network, data, epochs=3, learning_rate=0.5)
        >>> bool((trained(torch.ones(1, 4)).argmax() == 0).all())
        True
    """
    if epochs < 1 or not 0.0 < learning_rate < math.inf:
        raise ValueError(
            "epochs must be at least 1 and learning_rate positive and finite; got "
            f"{epochs} and {learning_rate}."
        )
    if schedule not in ("step", "cyclical", "constant"):
        raise ValueError(
            f"schedule must be 'step', 'cyclical' or 'constant'; got {schedule!r}."
        )
    with torch.inference_mode(False), torch.enable_grad():
        trained = copy.deepcopy(network).train()
        weights = [p for p in trained.parameters() if p.requires_grad]
        if not weights:
            raise ValueError(
                "No weight of the network is trainable. Set requires_grad on those of "
                "the reference network before it is compressed, or on these."
            )
        masks = _masks(trained)
        optimizer = torch.optim.SGD(
            weights, lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        span = step_epochs or max(1, epochs // 3)
        for epoch in range(epochs):
            # A loader without a length has one learning rate per epoch.
            batches = len(loader) if isinstance(loader, Sized) else 1
            for i, batch in enumerate(loader):
                now = epoch + min(i, batches - 1) / batches
                rate = learning_rate * _factor(schedule, now, span)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                loss = _loss(trained, batch, reference_network)
                if not math.isfinite(loss.item()):
                    raise ValueError(
                        f"The loss is {loss.item()} in epoch {epoch + 1}, batch "
                        f"{i + 1}; try a smaller learning_rate than {learning_rate}."
                    )
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for weight, mask in masks:
                        weight.mul_(mask)
            if progress is not None:
                progress(epoch + 1, epochs)
    trained.zero_grad()
    return trained.eval()


def reestimate_batch_norm(
    network: nn.Module, loader: Iterable[Any], *, max_batches: int | None = None
) -> nn.Module:
    """Recompute the statistics of batch norm, without training.

    Compression changes the mean and the variance of the inputs of a batch norm, but its
    statistics are still those of the dense network. No labels are needed.

    Args:
        network: From a search. Not modified.
        loader: Batches of inputs, or of inputs with labels, which are ignored.
        max_batches: How many to use; None: all.

    Returns:
        The network with the statistics averaged over these batches, an independent copy
        in eval mode.

    Raises:
        ValueError: when the network has no batch norm that keeps statistics, or the
            loader is empty.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm1d(1, momentum=0.5))
        >>> new = reestimate_batch_norm(network, [torch.tensor([[1.0], [3.0]])])
        >>> new[0].running_mean.item(), new[0].momentum
        (2.0, 0.5)
    """
    with torch.inference_mode(False), torch.no_grad():
        renewed = copy.deepcopy(network).eval()
        norms = [
            module
            for module in renewed.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        if not norms:
            raise ValueError(
                f"The network ({type(network).__name__}) has no batch norm that keeps "
                "statistics; there is nothing to re-estimate."
            )
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average over all batches
            norm.train()
        device = next(b.device for b in renewed.buffers())
        used = 0
        for batch in loader:
            if max_batches is not None and used >= max_batches:
                break
            call_network(renewed, _inputs_of(batch).to(device))
            used += 1
        if used == 0:
            raise ValueError("There was no batch to estimate statistics from.")
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return renewed.eval()


def move_batch_norm(
    network: nn.Module, reference_network: nn.Module, loader: Iterable[Any]
) -> nn.Module:
    """Move the statistics of batch norm by what compression has changed.

        mean' = mean + (m_cut - m_ref),  var' = var v_cut / v_ref

    with mean and var of the original network, and m and v re-estimated on the same
    batches in both (`reestimate_batch_norm`). What a few inputs say wrongly is the same
    in both and cancels, and so does what was stale in the original: a network that was
    not cut keeps its statistics. Measured on ResNet18 (docs/how_to/data_aware.md), the
    loss falls where a plain re-estimation raises it.

    Args:
        network: From a search. Not modified.
        reference_network: The original, with the same batch norms; not modified.
        loader: Batches of inputs, or of inputs with labels, which are ignored; iterated
            twice.

    Returns:
        The network with the statistics moved, an independent copy in eval mode.

    Raises:
        ValueError: as `reestimate_batch_norm` does.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> new = move_batch_norm(network, network, [torch.tensor([[1.0], [3.0]])])
        >>> new[0].running_mean.item(), new[0].running_var.item()
        (0.0, 1.0)
    """
    batches = list(loader)
    now, then = (
        reestimate_batch_norm(one, batches) for one in (network, reference_network)
    )
    with torch.inference_mode(False), torch.no_grad():
        moved = copy.deepcopy(network).eval()
        for name, norm in moved.named_modules():
            if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
                continue
            own, cut, dense = (
                _statistics(one, name) for one in (reference_network, now, then)
            )
            change = torch.where(dense[1] > 0, cut[1] / dense[1], 1.0)
            _set(norm, "running_mean", own[0] + (cut[0] - dense[0]))
            _set(norm, "running_var", own[1] * change)
    return moved


def _statistics(network: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a batch norm, in double precision."""
    norm = network.get_submodule(name)
    return (
        norm.get_buffer("running_mean").double(),
        norm.get_buffer("running_var").double(),
    )


def _set(norm: nn.Module, name: str, value: Tensor) -> None:
    """Write a buffer in its own precision."""
    buffer = norm.get_buffer(name)
    buffer.copy_(value.to(buffer.dtype))


def _factor(schedule: Schedule, epoch: float, span: int) -> float:
    """Return the share of the largest learning rate at a time, in epochs."""
    if schedule == "step":
        return 0.1 ** int(epoch // span)
    if schedule == "cyclical":
        place = epoch / span % 1.0
        return 0.1 + 0.9 * (1.0 - abs(2.0 * place - 1.0))
    return 1.0


def _masks(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """List the weights of pruned layers with masks of their nonzero entries."""
    masks: list[tuple[Tensor, Tensor]] = []
    for entry in recipe_of(network).layers:
        if entry.decomposition == "pruning" and entry.rank != DENSE:
            for weight in layer_weights(network.get_submodule(entry.name)):
                masks.append((weight, weight.detach() != 0))
    return masks


def _inputs_of(batch: Any) -> Inputs:
    """Return the inputs of a batch with or without labels."""
    return split_labels(batch)[0]


def _loss(
    network: nn.Module, batch: Any, reference_network: nn.Module | None
) -> Tensor:
    """Return the mean loss of a batch, against the reference network or labels."""
    device = next(network.parameters()).device
    inputs = _inputs_of(batch).to(device)
    outputs = forward(network, inputs)
    if reference_network is not None:
        with evaluation_mode(reference_network):
            target = forward(reference_network, inputs)
        return squared_distance(outputs, target).mean()
    labels = split_labels(batch)[1]
    if labels is None:
        raise ValueError(
            "The loader gives no labels. Pass pairs of inputs and labels, or "
            "reference_network, which needs none."
        )
    return F.cross_entropy(in_float(outputs), labels.to(device))
