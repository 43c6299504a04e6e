"""Which layers to compress, and how: by type, by name, or by a function."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from compression_adapters.decompositions import (
    DECOMPOSITIONS,
    Decomposition,
    Ladder,
    is_transposed_linear,
)

Choose = Callable[[str, nn.Module], Decomposition | None]
"""Maps a layer name and its module to a decomposition, or None to leave it alone."""


_LADDER: Final = ("low_rank_conv", "channel_conv", "tucker")
"""The forms of a convolution that is larger than 1 x 1, in one ladder."""


Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A glob for layer names, a module type, or a predicate of name and module."""


Selectors = Selector | Iterable[Selector]
"""One selector, or several of which any may match."""


def choose_linear(name: str, module: nn.Module) -> Decomposition | None:
    """Choose a truncated SVD for every plain linear layer that can be made smaller.

    Exactly `nn.Linear`, and Hugging Face's `Conv1D`: subclasses are left alone, among
    them the output projection of `nn.MultiheadAttention`, whose weight is read without
    calling the layer.

    Args:
        name: Layer name; not used.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> choose_linear("head", nn.Linear(8, 4)).name
        'svd'
        >>> choose_linear("head", nn.ReLU()) is None
        True
    """
    svd = DECOMPOSITIONS["svd"]
    is_linear = type(module) is nn.Linear or is_transposed_linear(module)
    return svd if is_linear and svd.supports(module) else None


def choose_low_rank(name: str, module: nn.Module) -> Decomposition | None:
    """Choose a low-rank form for linear layers, 2d convolutions, embeddings; default.

    A truncated SVD for linear layers and 1 x 1 convolutions, `low_rank_conv` for other
    convolutions, `embedding` for embeddings. Exact types only, see `choose_linear`.

    Args:
        name: Layer name; not used.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> [choose_low_rank("", layer).name for layer in
        ...  (nn.Linear(8, 4), nn.Conv2d(8, 8, 3), nn.Embedding(8, 4))]
        ['svd', 'low_rank_conv', 'embedding']
    """
    for kind in ("svd", "low_rank_conv", "embedding"):
        decomposition = DECOMPOSITIONS[kind]
        if decomposition.supports(module):
            return decomposition
    return None


def best_of(choose: Choose) -> Choose:
    """Offer every form of the layers that another function chooses.

    A convolution that can be factored in several ways gets a `Ladder` of them: at each
    size the search has the form that loses least, see `Ladder`. All other layers have
    one form and keep it. Pruned layers stay pruned.

    Args:
        choose: Which layers.

    Returns:
        A function to be passed as `choose`.

    Example:
        >>> choose = best_of(choose_low_rank)
        >>> [choose("", layer).name for layer in (nn.Linear(8, 4), nn.Conv2d(8, 8, 3))]
        ['svd', 'low_rank_conv|channel_conv|tucker']
    """

    def chosen(name: str, module: nn.Module) -> Decomposition | None:
        first = choose(name, module)
        if first is None or first.name not in _LADDER:
            return first
        kinds = [
            kind
            for kind in map(DECOMPOSITIONS.__getitem__, _LADDER)
            if kind.supports(module)
        ]
        # One of the user's own with a name of the package's stays what it is.
        known = first == DECOMPOSITIONS[first.name]
        return Ladder.of(kinds, module) if known and len(kinds) > 1 else first

    return chosen


def choose_best(name: str, module: nn.Module) -> Decomposition | None:
    """Choose the layers of `choose_low_rank`, each with all forms that it can have.

    Args:
        name: Layer name; not used.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> choose_best("conv", nn.Conv2d(8, 8, 3)).name
        'low_rank_conv|channel_conv|tucker'
    """
    return best_of(choose_low_rank)(name, module)


CHOICES: Final[Mapping[str, Choose]] = {
    "low_rank": choose_low_rank,
    "best": choose_best,
}
"""Functions that can be passed as `choose` by name; keys are those of `ChooseName`."""


def choice_of(choose: Choose | str | None) -> Choose:
    """Return the function that a name stands for; a function as it is.

    Args:
        choose: A function, a key of `CHOICES`, or None for `choose_low_rank`.

    Raises:
        ValueError: for another name.

    Example:
        >>> choice_of("best") is choose_best, choice_of(None) is choose_low_rank
        (True, True)
    """
    if choose is None:
        return choose_low_rank
    if not isinstance(choose, str):
        return choose
    if choose not in CHOICES:
        raise ValueError(
            f"choose must be a function or one of {', '.join(CHOICES)}; got {choose!r}."
        )
    return CHOICES[choose]


def choose_pruning(name: str, module: nn.Module) -> Decomposition | None:
    """Choose magnitude pruning for every supported layer, including factored ones.

    Args:
        name: Layer name; not used.
        module: The module at that name.

    Returns:
        The decomposition, or None to leave the module alone.

    Example:
        >>> choose_pruning("head", nn.Linear(8, 4)).name
        'pruning'
    """
    pruning = DECOMPOSITIONS["pruning"]
    return pruning if pruning.supports(module) else None


class Selection:
    """Selectors, with a record of which have matched.

    Args:
        argument: Where they were passed, for messages.
        selectors: One or several; a type matches exactly, subclasses do not.

    Example:
        >>> selection = Selection("exclude", ["head*", nn.Conv2d])
        >>> selection.matches("head.0", nn.ReLU())
        True
        >>> selection.matches("body", nn.Linear(2, 2))
        False
    """

    def __init__(self, argument: str, selectors: Selectors) -> None:
        self.argument = argument
        self.selectors: list[Selector]
        if isinstance(selectors, Iterable) and not isinstance(selectors, str):
            self.selectors = list(selectors)
        else:
            self.selectors = [selectors]
        self.unmatched = set(range(len(self.selectors)))

    def matches(self, name: str, module: nn.Module) -> bool:
        """Return whether any selector matches; all are tried, to record each match."""
        found = False
        for i, selector in enumerate(self.selectors):
            if isinstance(selector, str):
                hit = fnmatchcase(name, selector)
            elif isinstance(selector, type):
                hit = type(module) is selector
            else:
                hit = bool(selector(name, module))
            if hit:
                found = True
                self.unmatched.discard(i)
        return found

    def require_all_matched(self, network: nn.Module) -> None:
        """Refuse a selector that matches nothing: most likely a typing error."""
        for i in sorted(self.unmatched):
            names = [n for n, m in network.named_modules() if n and not [*m.children()]]
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            selector = self.selectors[i]
            named = selector.__name__ if isinstance(selector, type) else repr(selector)
            raise ValueError(
                f"{self.argument}={named} matches no layer of the network; its layers "
                f"are {shown}."
            )
