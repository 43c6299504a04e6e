"""Draw the samples of a trial, and cache the reference network's outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from compression_adapters.network.modes import forward
from compression_adapters.network.structured_inputs import (
    LABEL_NAMES,
    Inputs,
    NetworkInputs,
    OutputChoice,
    as_inputs,
    split_labels,
    tensors_of,
)


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one trial.

    Args:
        inputs: Inputs of the network, one tensor or several. Shape `m x ...`.
        labels: One class index per sample, or None. Shape `m`.
        indices: Positions in the pool, or None for generated samples. Shape `m`.
        reference_outputs: The reference network's outputs, or None before they are
            computed. Shape `m x ...`.
    """

    inputs: Inputs
    labels: Tensor | None = None
    indices: Tensor | None = None
    reference_outputs: Tensor | None = None

    def channels_last(self) -> "Batch":
        """Return the batch with its images in that layout."""
        layout = torch.channels_last
        return replace(self, inputs=self.inputs.contiguous(memory_format=layout))

    def with_reference(self, outputs: Tensor) -> "Batch":
        """Return the batch with the reference network's outputs."""
        return replace(self, reference_outputs=outputs)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its inputs and labels on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, inputs=self.inputs.to(device), labels=labels)


Sampler = Callable[[int, torch.Generator], Batch]
"""`(num_samples, rng) -> Batch`: fresh independent samples at each call."""

Collate: TypeAlias = Callable[[list[Any]], Any]
"""Makes a batch of a list of a dataset's items, as `collate_fn` of a data loader."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Inputs to sample from: how many there are, and how to read some of them.

    Build it with `open_pool`.

    Args:
        source: Inputs with a row per sample, or a dataset.
        labels: One class index per sample, or None. Shape `n`.
        collate: Makes a batch of items of a dataset; None: stacks them.
        output: Which output of the network is compared, see `read_output`.
    """

    source: Any
    labels: Tensor | None = None
    collate: Collate | None = None
    output: OutputChoice = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions: Tensor) -> tuple[Inputs, Tensor | None]:
        """Return the inputs at positions, in order, and their labels if any.

        Args:
            positions: Indices. Shape `n`.

        Raises:
            ValueError: when items of a dataset cannot be read, do not fit together, or
                are not finite.
        """
        if isinstance(self.source, Tensor | NetworkInputs):
            where = tensors_of(self.source)[0].device
            labels = self.labels
            if labels is not None:
                labels = labels[positions.to(labels.device)]
            return self.source[positions.to(where)], labels
        items = [_item(self.source, int(i)) for i in positions]
        made = _collate(items) if self.collate is None else _collated(self, items)
        inputs, labels = split_labels(made, self.output)
        _require_finite(inputs)
        return inputs, labels


def open_pool(
    inputs: Any,
    labels: Tensor | None = None,
    *,
    collate: Collate | None = None,
    output: OutputChoice = None,
) -> Pool:
    """Open what a user passes as a pool of inputs.

    Args:
        inputs: A tensor of shape `n x ...`; several, as a mapping (such as the output
            of a tokenizer), a tuple (several arguments) or a dataclass, whose entries
            `labels` or `label` are taken as labels; a dataset or list with a length,
            whose items are an input or a pair of input and label; or a `DataLoader`
            over such a dataset, which gives the dataset and `collate_fn`: its batch
            size, order and sampler are not used. A dataset must return the same input
            each time: the reference outputs are cached by index.
        labels: One class index per sample. Shape `n`. With a dataset, leave it None:
            its own labels are used.
        collate: Makes a batch of a list of items of a dataset, for items that differ
            in size or are of an unusual type.
        output: Which output of the network is compared, see `read_output`.

    Raises:
        ValueError: when there are fewer than two inputs, entries are not finite, or
            labels do not fit.
        TypeError: when `inputs` is of an unsupported type.
    """
    if isinstance(inputs, DataLoader):
        if inputs.batch_size is None or isinstance(inputs.dataset, IterableDataset):
            raise TypeError(
                "inputs must be a DataLoader over a dataset with a length, in batches; "
                "got one over "
                f"{type(inputs.dataset).__name__} (batch_size={inputs.batch_size}). "
                "Read the inputs into a list or tensor, and pass that."
            )
        if collate is None and inputs.collate_fn is not default_collate:
            collate = inputs.collate_fn
        inputs = inputs.dataset
    several = isinstance(inputs, Mapping | tuple | NetworkInputs) or (
        is_dataclass(inputs) and not isinstance(inputs, Dataset | type)
    )
    if isinstance(inputs, Tensor) or several:
        return _open_tensors(inputs, labels, collate, output)
    if not _has_items(inputs):
        raise TypeError(
            "inputs must be a tensor, several (a mapping, tuple or dataclass), a "
            "torch.utils.data.Dataset with a length, a list of items or a DataLoader; "
            f"got {type(inputs).__name__}. Turn an array into a tensor with "
            "torch.as_tensor."
        )
    if labels is not None:
        raise ValueError(
            "labels must be None with a dataset, whose items hold their own labels."
        )
    _require_pool(len(inputs))
    return Pool(inputs, None, collate, output)


def _open_tensors(
    inputs: Any, labels: Tensor | None, collate: Collate | None, output: OutputChoice
) -> Pool:
    """Open a pool of inputs that are all in memory."""
    if collate is not None:
        raise ValueError(
            "collate makes batches of a dataset's items; leave it out with "
            f"{type(inputs).__name__}, whose samples are rows of tensors."
        )
    if isinstance(inputs, Mapping):
        own: Tensor | None
        inputs, own = split_labels(inputs)
        labels = own if labels is None else labels
    opened = as_inputs(inputs, output)
    size = len(opened) if all(t.ndim for t in tensors_of(opened)) else 0
    _require_pool(size)
    _require_finite(opened)
    if labels is not None and labels.shape != (size,):
        raise ValueError(
            f"labels must have shape ({size},), one class index for each of the "
            f"{size} inputs; got {tuple(labels.shape)}."
        )
    return Pool(opened, labels, None, output)


def _has_items(inputs: Any) -> bool:
    """Whether this is a dataset or list: items by index, and a length."""
    if isinstance(inputs, Dataset):
        return hasattr(inputs, "__len__")
    if isinstance(inputs, list):
        return not (inputs and isinstance(inputs[0], int | float))
    # Datasets of other libraries, such as Hugging Face's, by what they can do.
    own = type(inputs)
    return (
        hasattr(own, "__len__")
        and hasattr(own, "__getitem__")
        and not hasattr(own, "__array__")
        and not isinstance(inputs, str | bytes)
    )


def dataset_sampler(
    inputs: Any,
    labels: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    collate: Collate | None = None,
    output: OutputChoice = None,
) -> Sampler:
    """Sample from a pool, with replacement.

    With replacement, the samples of a trial are independent, and the estimated loss is
    the mean over the pool.

    Args:
        inputs: The pool, from `open_pool` or what it takes.
        labels: See `open_pool`.
        positions: The part of the pool that is sampled, as indices; None: all of it.
        collate: See `open_pool`.
        output: See `open_pool`.

    Returns:
        The sampler. The indices of its batches are those of the whole pool.

    Raises:
        ValueError: as `open_pool` does; drawing raises it for fewer than two samples
            and for dataset items that are not finite.
        TypeError: as `open_pool` does.

    Example:
        >>> draw = dataset_sampler(torch.arange(10.0).reshape(10, 1))
        >>> batch = draw(4, torch.Generator().manual_seed(0))
        >>> bool((batch.inputs[:, 0] == batch.indices).all())
        True
    """
    pool = (
        inputs
        if isinstance(inputs, Pool)
        else open_pool(inputs, labels, collate=collate, output=output)
    )

    def draw(num_samples: int, rng: torch.Generator) -> Batch:
        indices = _draw_indices(len(pool), num_samples, rng, positions)
        return Batch(*pool.read(indices), indices)

    return draw


def generator_sampler(
    generate: Callable[[int, torch.Generator], Any], output: OutputChoice = None
) -> Sampler:
    """Sample from a function that generates any number of inputs.

    The paper's case of a GAN or a VAE: without a pool there are no labels and no
    indices, and the reference network is evaluated on each batch.

    Args:
        generate: `(num_samples, rng) -> inputs`; all its randomness must come from
            `rng`, otherwise a seed does not reproduce a trial. One tensor, or several
            in a mapping, tuple or dataclass. Shape `num_samples x ...`.
        output: Which output of the network is compared, see `read_output`.

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
        made = generate(num_samples, rng)
        if isinstance(made, Tensor):
            came = f"shape {tuple(made.shape)}"
            fits = made.shape[:1] == (num_samples,)
        else:
            came, fits = type(made).__name__, _is_structure(made)
        if not fits:
            raise ValueError(
                f"The generating function must return a tensor of {num_samples} "
                "samples, batch first, or a mapping, tuple or dataclass of such; got "
                f"{came}."
            )
        inputs = as_inputs(made, output)
        if len(inputs) != num_samples:
            raise ValueError(
                f"The generating function must return {num_samples} samples, batch "
                f"first; got {len(inputs)}."
            )
        _require_finite(inputs)
        return Batch(inputs.clone())  # it may be a tensor that the function keeps

    return draw


def _is_structure(made: Any) -> bool:
    """Whether this is several tensors in a structure."""
    return isinstance(made, Mapping | tuple | NetworkInputs) or (
        is_dataclass(made) and not isinstance(made, type)
    )


class ReferenceCache:
    """The reference network's outputs, computed on first use and then cached.

    A pool of 60,000 images costs nothing in advance, and no sample is evaluated twice.
    Batches without indices (generated samples) are evaluated every time, and so are
    batches whose outputs have another shape than those before, as sequences have that
    are padded batch by batch.

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
        outputs_of: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        self._network = network
        self._outputs_of = forward if outputs_of is None else outputs_of
        self._position = torch.empty(0, dtype=torch.int64)  # by pool index; -1: none
        self._rows: Tensor | None = None  # filled from the front, grown by doubling
        self._filled = 0
        self._shape: torch.Size | None = None  # of one sample's outputs

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
            where = tensors_of(batch.inputs)[0].device
            found = self._outputs_of(self._network, batch.inputs[first.to(where)])
            if self._shape not in (None, found.shape[1:]):
                return self._outputs_of(self._network, batch.inputs)
            self._shape = found.shape[1:]
            self._store(unique, found)
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


def _item(dataset: Dataset[Any], index: int) -> Any:
    """Read one item, and name it if that fails."""
    try:
        return dataset[index]
    except Exception as error:
        raise ValueError(
            f"Item {index} of the dataset cannot be read: {type(error).__name__}: "
            f"{error}. Repair it, or leave it out (torch.utils.data.Subset)."
        ) from error


def _collated(pool: Pool, items: list[Any]) -> Any:
    """Make a batch by the user's function, and say whose error it is if it fails."""
    if pool.collate is None:
        raise ValueError("There is no function to make a batch by.")
    try:
        made = pool.collate(items)
    except Exception as error:
        raise ValueError(
            f"The function that makes batches (collate) failed on {len(items)} items "
            f"with {type(error).__name__}: {error}. It takes a list of the dataset's "
            "items."
        ) from error
    inputs, _ = split_labels(made, pool.output)
    if len(inputs) != len(items):
        raise ValueError(
            f"The function that makes batches (collate) returned {len(inputs)} inputs "
            f"for {len(items)} items; it has to return one for each."
        )
    return made


def _collate(items: list[Any]) -> Any:
    """Stack the inputs of dataset items, and their labels if they have any."""
    first = items[0]
    if not isinstance(first, tuple | list) or hasattr(first, "_fields"):
        if isinstance(first, Mapping):
            return _stacked(items, "inputs")
        return (_stacked(items, "inputs"),)
    parts = {len(item) if isinstance(item, tuple | list) else 0 for item in items}
    if len(parts) > 1 or not parts <= {1, 2}:
        raise ValueError(
            "A dataset's items must be an input or a pair of input and label; got "
            f"{', '.join(map(str, sorted(parts)))} parts. Put several inputs into a "
            "tuple or mapping of their own: ((first, second), label)."
        )
    inputs = _stacked([item[0] for item in items], "inputs")
    if len(first) == 1:
        return (inputs,)
    return inputs, _stack([item[1] for item in items], "labels")


def _stacked(items: Sequence[Any], what: str) -> Any:
    """Stack inputs of any structure, part by part."""
    first = items[0]
    if isinstance(first, Tensor):
        return _stack(items, what)
    same = all(type(item) is type(first) for item in items)
    if isinstance(first, Mapping):
        if not same or any(item.keys() != first.keys() for item in items):
            raise ValueError(
                f"The {what} of a dataset must be of one kind with the same keys; the "
                f"first has {', '.join(map(str, first))}."
            )
        return {
            name: _stacked([item[name] for item in items], _part(what, name))
            for name in first
        }
    if isinstance(first, tuple):
        if not same or len({len(item) for item in items}) > 1:
            raise ValueError(
                f"The {what} of a dataset must be tuples of one length, if any is; got "
                f"{', '.join(sorted({type(item).__name__ for item in items}))}."
            )
        columns = [
            _stacked(column, _part(what, str(i)))
            for i, column in enumerate(zip(*items, strict=True))
        ]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    if is_dataclass(first) and not isinstance(first, type) and same:
        return replace(
            first,
            **{
                one.name: _stacked(
                    [getattr(item, one.name) for item in items], _part(what, one.name)
                )
                for one in fields(first)
            },
        )
    return _stack(items, what)


def _part(what: str, name: str) -> str:
    """Name a part of the inputs, or the labels among them."""
    return "labels" if name in LABEL_NAMES else f"{what} ({name})"


def _stack(items: Sequence[Any], what: str) -> Tensor:
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
            "Bring them to one size in the dataset (resize, crop or pad), or pass "
            "collate=, a function that makes a batch of a list of items."
        )
    return torch.stack(tensors)


def _remedy(item: Any) -> str:
    """Say how an item that is no tensor becomes one."""
    if isinstance(item, Mapping):
        return f" with the keys {', '.join(map(str, item))}. Return tensors instead."
    if type(item).__module__.startswith("PIL."):
        return (
            ". Give the dataset a transform that makes tensors, such as "
            "torchvision.transforms.ToTensor()."
        )
    return (
        ". Leave them out of the dataset, wrap it in one that returns tensors, or pass "
        "collate=, a function that makes a batch of a list of items."
    )


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


def _require_finite(inputs: Inputs) -> None:
    """Raise a ValueError that counts the samples with NaN or infinite entries."""
    for tensor in tensors_of(inputs):
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            bad = int((~finite.flatten(1).all(dim=1)).sum())
            raise ValueError(
                f"inputs must be finite; {bad} of {len(tensor)} samples hold NaN or "
                "infinite entries. Leave these samples out, or correct them."
            )
