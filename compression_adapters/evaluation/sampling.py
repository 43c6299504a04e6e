"""Draw the samples of a trial, and cache the reference network's outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from compression_adapters.network.modes import forward


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one trial.

    Args:
        inputs: Inputs of the network. Shape `m x ...`.
        labels: One class index per sample, or None. Shape `m`.
        indices: Positions in the pool, or None for generated samples. Shape `m`.
        reference_outputs: The reference network's outputs, or None before they are
            computed. Shape `m x ...`.
    """

    inputs: Tensor
    labels: Tensor | None = None
    indices: Tensor | None = None
    reference_outputs: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its inputs and labels on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, inputs=self.inputs.to(device), labels=labels)


Sampler = Callable[[int, torch.Generator], Batch]
"""`(num_samples, rng) -> Batch`: fresh independent samples at each call."""


def dataset_sampler(
    inputs: Tensor | Dataset[Any],
    labels: Tensor | None = None,
    *,
    positions: Tensor | None = None,
) -> Sampler:
    """Sample from a pool, with replacement.

    With replacement, the samples of a trial are independent, and the estimated loss is
    the mean over the pool.

    Args:
        inputs: The pool: a tensor of shape `n x ...`, or a dataset with a length whose
            items are an input or a pair of input and label. A dataset must return the
            same input each time: the reference outputs are cached by index.
        labels: One class index per sample. Shape `n`. With a dataset, leave it None:
            its own labels are used.
        positions: The part of the pool that is sampled, as indices; None: all of it.

    Returns:
        The sampler. The indices of its batches are those of the whole pool.

    Raises:
        ValueError: when the pool has fewer than two samples, entries of a tensor are
            not finite, or labels do not match; drawing raises it for fewer than two
            samples and for dataset items that are not finite.
        TypeError: when `inputs` is neither a tensor nor a dataset.

    Example:
        >>> draw = dataset_sampler(torch.arange(10.0).reshape(10, 1))
        >>> batch = draw(4, torch.Generator().manual_seed(0))
        >>> bool((batch.inputs[:, 0] == batch.indices).all())
        True
    """
    if isinstance(inputs, Tensor):
        return _tensor_sampler(inputs, labels, positions)
    if not isinstance(inputs, Dataset) or not hasattr(inputs, "__len__"):
        raise TypeError(
            "inputs must be a tensor or a torch.utils.data.Dataset with a length; got "
            f"{type(inputs).__name__}. Of a DataLoader pass `loader.dataset`; turn an "
            "array into a tensor with torch.as_tensor."
        )
    if labels is not None:
        raise ValueError(
            "labels must be None with a dataset, whose items hold their own labels."
        )
    size = len(inputs)
    _require_pool(size)

    def draw(num_samples: int, rng: torch.Generator) -> Batch:
        indices = _draw_indices(size, num_samples, rng, positions)
        batch, batch_labels = _collate([_item(inputs, int(i)) for i in indices])
        _require_finite(batch)
        return Batch(batch, batch_labels, indices)

    return draw


def generator_sampler(
    generate: Callable[[int, torch.Generator], Tensor],
) -> Sampler:
    """Sample from a function that generates any number of inputs.

    The paper's case of a GAN or a VAE: without a pool there are no labels and no
    indices, and the reference network is evaluated on each batch.

    Args:
        generate: `(num_samples, rng) -> inputs`; all its randomness must come from
            `rng`, otherwise a seed does not reproduce a trial. Shape
            `num_samples x ...`.

    Returns:
        The sampler, which raises a ValueError for fewer than two samples, for inputs
        of the wrong length, and for inputs that are not finite.

    Source: Ma et al. 2019, section 3.1.

    Example:
        >>> draw = generator_sampler(lambda m, rng: torch.randn(m, 3, generator=rng))
        >>> draw(4, torch.Generator().manual_seed(0)).inputs.shape
        torch.Size([4, 3])
    """

    def draw(num_samples: int, rng: torch.Generator) -> Batch:
        _require_num_samples(num_samples)
        inputs = generate(num_samples, rng)
        if not isinstance(inputs, Tensor) or inputs.shape[:1] != (num_samples,):
            came = (
                f"shape {tuple(inputs.shape)}"
                if isinstance(inputs, Tensor)
                else type(inputs).__name__
            )
            raise ValueError(
                f"The generating function must return a tensor of {num_samples} "
                f"samples, batch first; got {came}."
            )
        _require_finite(inputs)
        return Batch(inputs.clone())  # it may be a tensor that the function keeps

    return draw


class ReferenceCache:
    """The reference network's outputs, computed on first use and then cached.

    A pool of 60,000 images costs nothing in advance, and no sample is evaluated twice.
    Batches without indices (generated samples) are evaluated every time.

    Args:
        network: The reference network. The caller ensures that it is in eval mode and
            has its own layers when outputs are requested.
        outputs_of: `(network, inputs) -> outputs`, shape `m x ...`: what is cached.
            None: the outputs of the network.

    Example:
        >>> cache = ReferenceCache(nn.Identity())
        >>> cache.outputs(Batch(torch.ones(2, 1), indices=torch.tensor([7, 3]))).shape
        torch.Size([2, 1])
        >>> len(cache)
        2
    """

    def __init__(
        self,
        network: nn.Module,
        outputs_of: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        self._network = network
        self._outputs_of = forward if outputs_of is None else outputs_of
        self._position = torch.empty(0, dtype=torch.int64)  # by pool index; -1: none
        self._rows: Tensor | None = None  # filled from the front, grown by doubling
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def outputs(self, batch: Batch) -> Tensor:
        """Return the reference outputs of a batch. Shape `m x ...`.

        Raises:
            ValueError: when the network does not return one output per sample.
        """
        if batch.indices is None:
            return self._outputs_of(self._network, batch.inputs)
        indices = batch.indices.cpu()
        self._grow_positions(int(indices.max()) + 1)
        new = torch.nonzero(self._position[indices] < 0).flatten()
        if len(new):
            # A sample that is drawn twice is evaluated once.
            unique, inverse = torch.unique(indices[new], return_inverse=True)
            first = torch.empty_like(unique).scatter_(0, inverse, new)
            inputs = batch.inputs[first.to(batch.inputs.device)]
            self._store(unique, self._outputs_of(self._network, inputs))
        if self._rows is None:  # cannot happen: a batch is never empty
            raise ValueError("The batch is empty.")
        return self._rows[self._position[indices].to(self._rows.device)]

    def _grow_positions(self, size: int) -> None:
        """Make room for pool indices below `size`."""
        missing = size - len(self._position)
        if missing > 0:
            with torch.inference_mode(False):
                new = torch.full((missing,), -1)
                self._position = torch.cat([self._position, new])

    def _store(self, indices: Tensor, outputs: Tensor) -> None:
        """Keep the outputs of new samples."""
        end = self._filled + len(indices)
        # Outside inference mode, so that the rows can be written in any mode later.
        with torch.inference_mode(False), torch.no_grad():
            if self._rows is None or end > len(self._rows):
                size = max(2 * self._filled, end)
                grown = torch.empty(
                    (size, *outputs.shape[1:]),
                    dtype=outputs.dtype,
                    device=outputs.device,
                )
                if self._rows is not None:
                    grown[: self._filled] = self._rows[: self._filled]
                self._rows = grown
            self._rows[self._filled : end] = outputs.detach()
            self._position[indices] = torch.arange(self._filled, end)
        self._filled = end


def pool_inputs(inputs: Tensor | Dataset[Any], positions: Tensor) -> Tensor:
    """Return some inputs of a pool, in order.

    Args:
        inputs: The pool, as for `dataset_sampler`.
        positions: Their indices. Shape `n`.

    Returns:
        Shape `n x ...`.

    Raises:
        ValueError: when items of a dataset do not fit together or are not finite.
    """
    if isinstance(inputs, Tensor):
        return inputs[positions.to(inputs.device)]
    chosen, _ = _collate([_item(inputs, int(i)) for i in positions])
    _require_finite(chosen)
    return chosen


def _item(dataset: Dataset[Any], index: int) -> Any:
    """Read one item, and name it if that fails."""
    try:
        return dataset[index]
    except Exception as error:
        raise ValueError(
            f"Item {index} of the dataset cannot be read: {type(error).__name__}: "
            f"{error}. Repair it, or leave it out (torch.utils.data.Subset)."
        ) from error


def _tensor_sampler(
    inputs: Tensor, labels: Tensor | None, positions: Tensor | None
) -> Sampler:
    """Sample rows of a tensor that has already been checked."""
    size = inputs.shape[0] if inputs.ndim else 0
    _require_pool(size)
    _require_finite(inputs)
    if labels is not None and labels.shape != (size,):
        raise ValueError(
            f"labels must have shape ({size},), one class index for each of the "
            f"{size} inputs; got {tuple(labels.shape)}."
        )

    def draw(num_samples: int, rng: torch.Generator) -> Batch:
        indices = _draw_indices(size, num_samples, rng, positions)
        batch_labels = None if labels is None else labels[indices.to(labels.device)]
        return Batch(inputs[indices.to(inputs.device)], batch_labels, indices)

    return draw


def _collate(items: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Stack the inputs of dataset items, and their labels if they have any."""
    if not isinstance(items[0], tuple | list):
        return _stack(items, "inputs"), None
    parts = {len(item) if isinstance(item, tuple | list) else 0 for item in items}
    if len(parts) > 1 or not parts <= {1, 2}:
        raise ValueError(
            "A dataset's items must be an input or a pair of input and label; got "
            f"{', '.join(map(str, sorted(parts)))} parts."
        )
    batch = _stack([item[0] for item in items], "inputs")
    if len(items[0]) == 1:
        return batch, None
    return batch, _stack([item[1] for item in items], "labels")


def _stack(items: list[Any], what: str) -> Tensor:
    """Make one tensor of the inputs or labels of dataset items, refused by name."""
    tensors = []
    for item in items:
        try:
            tensors.append(torch.as_tensor(item))
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"{type(item).__module__}.{type(item).__name__}"
            raise ValueError(
                f"The {what} of a dataset must be tensors, arrays or numbers; got "
                f"{kind.removeprefix('builtins.')}{_remedy(item)}"
            ) from error
    shapes = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(shapes) > 1:
        found = " and ".join(
            f"{shape} of {dtype}" for shape, dtype in sorted(shapes, key=str)[:2]
        )
        raise ValueError(
            f"The {what} of a dataset must have one shape and dtype; got {found}. "
            "Bring them to one size in the dataset (resize, crop or pad)."
        )
    return torch.stack(tensors)


def _remedy(item: Any) -> str:
    """Say how an item that is no tensor becomes one."""
    if isinstance(item, Mapping):
        return (
            f" with the keys {', '.join(map(str, item))}. Wrap the dataset in one that "
            "returns the tensor, such as item['input'], and the label."
        )
    if type(item).__module__.startswith("PIL."):
        return (
            ". Give the dataset a transform that makes tensors, such as "
            "torchvision.transforms.ToTensor()."
        )
    return ". Wrap the dataset in one that returns tensors."


def _draw_indices(
    size: int, num_samples: int, rng: torch.Generator, positions: Tensor | None
) -> Tensor:
    """Draw indices of a pool, or of a part of it, with replacement."""
    _require_num_samples(num_samples)
    if positions is not None:
        size = len(positions)
    drawn = torch.randint(size, (num_samples,), generator=rng, device=rng.device).cpu()
    return drawn if positions is None else positions[drawn]


def _require_num_samples(num_samples: int) -> None:
    """Raise a ValueError for a trial too small for a standard error."""
    if num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2, for a standard error; got {num_samples}."
        )


def _require_pool(size: int) -> None:
    """Raise a ValueError for a pool too small to vary."""
    if size < 2:
        raise ValueError(
            f"The pool of inputs must have at least 2 samples; got {size}."
        )


def _require_finite(inputs: Tensor) -> None:
    """Raise a ValueError that counts the samples with NaN or infinite entries."""
    finite = torch.isfinite(inputs)
    if not bool(finite.all()):
        bad = int((~finite.flatten(1).all(dim=1)).sum())
        raise ValueError(
            f"inputs must be finite; {bad} of {len(inputs)} samples hold NaN or "
            "infinite entries. Leave these samples out, or correct them."
        )
