"""Top-k accuracy of a network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from compression_adapters.network.modes import evaluation_mode, forward


def top_accuracies(
    network: nn.Module,
    test: tuple[Tensor, Tensor] | Dataset[Any],
    *,
    max_samples: int | None = None,
    batch_size: int = 50,
) -> tuple[float, float]:
    """Measure top-1 and top-5 accuracy.

    Args:
        network: With outputs of shape `n x classes`.
        test: Images and labels, or a dataset of such pairs.
        max_samples: Number of items of a dataset to use, evenly spaced; None: all.
        batch_size: Images of a dataset per forward pass.

    Returns:
        Shares in [0, 1]; for a network with k < 5 classes, top-5 is top-k.

    Raises:
        ValueError: as `accuracy` does.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    if isinstance(test, tuple):
        images, labels = test
        images, labels = images.to(device), labels.to(device)
        top1, top5 = accuracy(network, images, labels, (1, _top(network, images[:1])))
        return top1, top5
    # Map-style: torch gives Dataset no __len__ of its own.
    size = len(test)  # type: ignore[arg-type]
    count = size if max_samples is None else min(size, max_samples)
    if count < 1:
        raise ValueError("The test data must have at least one image; got none.")
    chosen = Subset(test, [i * size // count for i in range(count)])
    hits = torch.zeros(2, dtype=torch.float64)
    for batch in torch.utils.data.DataLoader(chosen, batch_size=batch_size):
        images, labels = (part.to(device) for part in batch)
        ks = (1, _top(network, images[:1]))
        hits += len(images) * torch.tensor(accuracy(network, images, labels, ks))
    return float(hits[0] / count), float(hits[1] / count)


def _top(network: nn.Module, sample: Tensor) -> int:
    """Return 5, or the number of classes if there are fewer."""
    with evaluation_mode(network):
        return min(5, forward(network, sample).shape[1])


def accuracy(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    topk: tuple[int, ...] = (1, 5),
    batch_size: int = 1000,
) -> tuple[float, ...]:
    """Measure top-k accuracies, in eval mode and without autograd.

    Args:
        network: With outputs of shape `n x classes`. Its modes are restored.
        images: Shape `n x ...`.
        labels: Shape `n`.
        topk: The values of k, each at most the number of classes.
        batch_size: Images per forward pass.

    Returns:
        For each k the share of images whose label is among the k likeliest classes.

    Raises:
        ValueError: when there are no images, labels do not match, or a k is not
            between 1 and the number of classes.

    Example:
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]), topk=(1,))
        (0.75,)
    """
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Expected one label for each of at least one image; got {len(images)} "
            f"images and labels of shape {tuple(labels.shape)}."
        )
    hits = dict.fromkeys(topk, 0)
    with evaluation_mode(network):
        for x, y in zip(
            images.split(batch_size), labels.split(batch_size), strict=True
        ):
            outputs = forward(network, x)
            if not all(1 <= k <= outputs.shape[1] for k in topk):
                raise ValueError(
                    f"topk must lie in 1 to {outputs.shape[1]}, the number of classes; "
                    f"got {topk}."
                )
            best = outputs.topk(max(topk), dim=1).indices == y[:, None]
            for k in topk:
                hits[k] += int(best[:, :k].sum())
    return tuple(hits[k] / len(images) for k in topk)
