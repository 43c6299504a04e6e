"""Find the layers of a network that a search may compress."""

import warnings
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch.nn.utils.parametrize
from torch import nn

from compression_adapters.decompositions import (
    FACTORED_LAYERS,
    Decomposition,
    Ladder,
    LowRankEmbedding,
    is_transposed_linear,
)
from compression_adapters.layers.selection import (
    Choose,
    Selection,
    Selectors,
    choice_of,
    choose_low_rank,
)

_LAYER_TYPES: Final = (
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.conv._ConvTransposeNd),
    *FACTORED_LAYERS,
)
"""Modules that a profile lists, even if only with a reason."""


class Form(NamedTuple):
    """A layer as it is after a search.

    Args:
        kind: Name of the decomposition.
        rank: Its rank, or `"dense"`.
    """

    kind: str
    rank: int | Literal["dense"]


@dataclass(frozen=True)
class LayerSpec:
    """One compressible layer.

    Args:
        name: Layer name: its dotted path, the first one if it has several.
        decomposition: How it is decomposed; the object itself, not its name. Of a
            `Ladder`, ranks are the numbers of its rungs.
        weight_shape: Shape of the dense weight.
        max_rank: Largest rank that adds no weights.
        num_weights: Entries of the dense weight, without bias.
        groups: Groups of a convolution; 1 for every other layer.
    """

    name: str
    decomposition: Decomposition
    weight_shape: tuple[int, ...]
    max_rank: int
    num_weights: int
    groups: int = 1

    def weights_at(self, rank: int) -> int:
        """Count the weights at a rank, without bias."""
        return self.decomposition.num_weights(self.weight_shape, rank, self.groups)

    @property
    def ladder(self) -> Ladder | None:
        """Its ladder, where its ranks are rungs of several decompositions."""
        return self.decomposition if isinstance(self.decomposition, Ladder) else None

    @property
    def kinds(self) -> tuple[Decomposition, ...]:
        """The decompositions that its ranks are of."""
        ladder = self.ladder
        return (self.decomposition,) if ladder is None else ladder.kinds

    @property
    def spans(self) -> tuple[range, ...]:
        """Ranks in a row that are one decomposition at consecutive ranks."""
        ladder = self.ladder
        return (range(1, self.max_rank + 1),) if ladder is None else ladder.spans

    def form_of(self, rank: int | Literal["dense"]) -> Form:
        """Return which decomposition a rank is, and at which rank of its own.

        Args:
            rank: Of the layer, or `"dense"`.

        Example:
            >>> svd = find_layers(nn.Sequential(nn.Linear(30, 20)))[0]
            >>> svd.form_of(3)
            Form(kind='svd', rank=3)
        """
        if self.ladder is None or rank == "dense":
            return Form(self.kinds[0].name, rank)
        rung = self.ladder.rung(rank)
        return Form(rung.kind, rung.rank)


@dataclass(frozen=True)
class SkippedLayer:
    """A layer with weights that is left out.

    Args:
        name: Layer name.
        kind: Name of its type.
        reason: Why it is left out, and the remedy.
        is_tied: Whether it was chosen, but shares its weight with another module.
    """

    name: str
    kind: str
    reason: str
    is_tied: bool = False


def find_layers(
    network: nn.Module,
    choose: Choose | str = choose_low_rank,
    *,
    include: Selectors | None = None,
    exclude: Selectors = (),
) -> tuple[LayerSpec, ...]:
    """List the layers of a search, in the order of the network.

    A module that is registered at several paths is one layer, found at its first path
    and replaced at all of them. A layer that shares its weight with another module is
    left out with a warning, because the sharing would be lost. The parts of a layer
    that was factored before are not layers of their own.

    Args:
        network: The reference network; not modified.
        choose: Called with each layer name and module; or the name of such a function
            in `CHOICES`: `"low_rank"` or `"best"`.
        include: Globs for layer names, types, or predicates `(name, module)`; only
            layers that match one are considered. None: all.
        exclude: The same; layers that match any of these are left alone.

    Returns:
        One entry per layer.

    Raises:
        ValueError: when no layer is chosen, a chosen decomposition does not support
            its layer, the network itself is the chosen layer, or a selector matches
            nothing; the message names the layers and why they were left out.

    Example:
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
        >>> [(layer.name, layer.max_rank) for layer in find_layers(network)]
        [('0', 12), ('2', 6)]
        >>> len(find_layers(network, exclude="2"))
        1
    """
    layers, skipped = survey_layers(network, choose, include=include, exclude=exclude)
    for layer in skipped:
        if layer.is_tied:
            warnings.warn(f"Layer {layer.name!r} {layer.reason}", stacklevel=2)
    if not layers:
        kinds = sorted({type(m).__name__ for m in network.modules()})
        reasons = "".join(f"\n  {s.name} ({s.kind}): {s.reason}" for s in skipped)
        raise ValueError(
            "No layer to compress was found in the network, which has modules of the "
            f"types {', '.join(kinds)}. Choose layers that can be made smaller "
            "(choose, include, exclude; profile(network) lists them). Layers with "
            f"weights:{reasons or ' none.'}"
        )
    return layers


def survey_layers(
    network: nn.Module,
    choose: Choose | str = choose_low_rank,
    *,
    include: Selectors | None = None,
    exclude: Selectors = (),
) -> tuple[tuple[LayerSpec, ...], tuple[SkippedLayer, ...]]:
    """List the layers in play, and the layers with weights left out, with reasons.

    Args:
        network: The reference network; not modified.
        choose: See `find_layers`.
        include: See `find_layers`.
        exclude: See `find_layers`.

    Returns:
        Layers in play and layers left out, both in the order of the network.

    Raises:
        ValueError: as `find_layers`, except when no layer is chosen.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
        >>> layers, skipped = survey_layers(network)
        >>> skipped[0].reason
        'no rank makes it smaller'
    """
    layers: list[LayerSpec] = []
    skipped: list[SkippedLayer] = []
    owners = _weight_owners(network)
    choose = choice_of(choose)
    included = None if include is None else Selection("include", include)
    excluded = Selection("exclude", exclude)
    closed: set[nn.Module] = set()  # parts of layers handled as a whole
    for name, module in network.named_modules():
        if module in closed:
            continue
        if isinstance(module, FACTORED_LAYERS):
            closed.update(module.modules())
        reason = tied_to = decomposition = None
        if included is not None and not included.matches(name, module):
            reason = "not included"
        elif excluded.matches(name, module):
            reason = "excluded"
        else:
            decomposition = choose(name, module)
        if decomposition is not None:
            _require_usable(name, module, decomposition)
            closed.update(module.modules())
            reason = tied_to = _tied(name, module, owners)
            if tied_to is None:
                layers.append(_layer_spec(name, module, decomposition))
                continue
        weight = module._parameters.get("weight")
        if isinstance(module, _LAYER_TYPES) or (weight is not None and weight.ndim > 1):
            kind = type(module).__name__
            reason = reason or _why_left(module) or "not chosen"
            skipped.append(SkippedLayer(name, kind, reason, tied_to is not None))
    for selection in (included, excluded):
        if selection is not None:
            selection.require_all_matched(network)
    return tuple(layers), tuple(skipped)


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside `DataParallel` or `torch.compile`.

    Args:
        network: Any network.

    Returns:
        The innermost network; layer names are those in it.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    inner: object = None
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = network.module
    elif "_orig_mod" in network._modules:  # torch.compile
        inner = network._modules["_orig_mod"]
    return unwrap(inner) if isinstance(inner, nn.Module) else network


def layer_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weight tensors of a layer, including all parts of a factored one.

    Args:
        module: A layer.

    Returns:
        Its parameters with at least two dimensions, which excludes biases.
    """
    return [p for p in module.parameters() if p.ndim >= 2]


def weight_shape_of(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, or a factored layer's weight count.

    Args:
        module: A layer.

    Returns:
        Shape of its `weight`, or `(n,)` if the weight consists of several tensors.
    """
    weight = module._parameters.get("weight")
    if weight is not None:
        return tuple(weight.shape)
    return (sum(weight.numel() for weight in layer_weights(module)),)


def _require_usable(name: str, module: nn.Module, decomposition: Decomposition) -> None:
    """Refuse the network itself, and a layer that its decomposition rejects."""
    if not name:
        raise ValueError(
            f"The network is itself the layer to compress ({type(module).__name__})"
            " and cannot be replaced inside itself; wrap it: nn.Sequential(network)."
        )
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(
            f"Layer {name!r} is a {type(module).__name__} that has seen no input and "
            "has no weight yet; run the network once on an input first."
        )
    if not decomposition.supports(module):
        why = _why_left(module)
        because = "" if why is None else f" (it is left alone as {why})"
        raise ValueError(
            f"Layer {name!r}: decomposition {decomposition.name!r} does not "
            f"support {type(module).__name__}: {module!r}{because}. Return None for it "
            "in `choose`, or another decomposition."
        )


def _why_left(module: nn.Module) -> str | None:
    """Say why no decomposition takes a layer, None where it was simply not chosen."""
    if any("forward" in vars(part) for part in module.modules()):
        return (
            "its forward was replaced on the instance, so that it may do something "
            "else; take that off by `del layer.forward`, or use a forward hook"
        )
    if torch.nn.utils.parametrize.is_parametrized(module):
        return (
            "its weight is computed by a parametrization; make it permanent by "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )
    if hasattr(module, "weight_mask"):
        return (
            "its weight is masked by torch.nn.utils.prune; make it permanent by "
            "torch.nn.utils.prune.remove(layer, 'weight')"
        )
    if hasattr(module, "weight") and "weight" not in module._parameters:
        if isinstance(module, LowRankEmbedding):
            return "factored already"
        if isinstance(module, FACTORED_LAYERS):
            return "factored already; only magnitude pruning can follow"
        return "its weight is computed and not a parameter of the layer itself"
    if is_transposed_linear(module):
        return None if choose_low_rank("", module) else "no rank makes it smaller"
    for plain in (nn.Linear, nn.Conv2d, nn.Embedding):
        if type(module) is plain:
            extra = [
                *(module._parameters.keys() - {"weight", "bias"}),
                *module._modules,
            ]
            if extra:
                return f"holds more than a weight and a bias: {', '.join(extra)}"
            special = [
                option
                for option in ("max_norm", "sparse", "scale_grad_by_freq")
                if getattr(module, option, None)
            ]
            if special:
                return f"an embedding with {', '.join(special)}"
            if choose_low_rank("", module) is None:
                return "no rank makes it smaller"
            return None
        if isinstance(module, plain):
            return f"a subclass of nn.{plain.__name__}, which may do something else"
    if isinstance(module, nn.RNNBase):
        return (
            "a recurrent layer cannot be cut so far: torch multiplies its weights, of "
            "all gates and steps, inside one operation that takes no factors. The "
            "layers around it are cut; or write it as cells of nn.Linear"
        )
    return f"no decomposition supports {type(module).__name__}"


def _tied(
    name: str,
    module: nn.Module,
    owners: dict[int, list[tuple[str, nn.Module]]],
) -> str | None:
    """Return which other module uses a layer's weight, if any."""
    parts = set(module.modules())
    for weight in layer_weights(module):
        for owner, holder in owners[id(weight)]:
            if holder not in parts:
                shared = f"shares its weight with {owner or 'the network'!r}"
                if isinstance(module, nn.Embedding) != isinstance(holder, nn.Embedding):
                    return (
                        f"{shared} and is left alone: one table is both the embedding "
                        "of tokens and the weight of an output layer, which want other "
                        "factors. Give one of them a weight of its own (layer.weight = "
                        "nn.Parameter(layer.weight.detach().clone())) to compress both."
                    )
                return (
                    f"{shared} and is left alone: compressing one of two tied weights "
                    "would untie them. Give each layer a weight of its own to compress "
                    "it."
                )
    return None


def _layer_spec(
    name: str, module: nn.Module, decomposition: Decomposition
) -> LayerSpec:
    """Describe one layer."""
    return LayerSpec(
        name=name,
        decomposition=decomposition,
        weight_shape=weight_shape_of(module),
        max_rank=decomposition.max_rank(module),
        num_weights=sum(weight.numel() for weight in layer_weights(module)),
        groups=int(getattr(module, "groups", 1)),
    )


def _weight_owners(network: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Map each parameter's identity to the modules that hold it, and their names."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in network.named_modules():
        held: list[object] = [*module._parameters.values()]
        for value in vars(module).values():
            # A plain list of weights is used without calling their layers.
            if isinstance(value, list | tuple):
                held += value
            elif isinstance(value, dict) and value is not module._modules:
                held += value.values()
        for parameter in {id(p): p for p in held if isinstance(p, nn.Parameter)}:
            owners.setdefault(parameter, []).append((name, module))
    return owners
