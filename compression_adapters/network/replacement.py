"""Replace modules of a network by others, and copy a network: one mechanism for both.

A module is not swapped for another object. It stays the object that it is and becomes
the other one: it takes its class, parameters and parts. Whatever refers to the module
(its parents, a plain list, a closure, a bound method, a hook) then runs what it has
become, in trials, in the network that is kept, and in loading. The kept network is a
deep copy of the network of a trial, so the two cannot differ.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

Pair = tuple[nn.Module, nn.Module]
"""A module of a network, and a new one of which it takes class and state."""

_CONTENTS: Final = frozenset({"_parameters", "_buffers", "_modules"})
_HANGS_ON: Final = frozenset(vars(nn.Module())) - _CONTENTS
"""What hangs on a module and stays: hooks of every kind, and its mode."""


@contextmanager
def replaced(pairs: Iterable[Pair]) -> Iterator[None]:
    """Let modules become others inside the `with` block, and restore them exactly.

    A module keeps its identity, its hooks, its mode, its buffers and all attributes
    that the new one does not have. `layer.compile()` is ignored inside the block. If
    the new module has a part of the same name and type, the part becomes its part, so
    that hooks on parts are kept too.

    Args:
        pairs: Modules and what they become. The new modules are used up.

    Raises:
        ValueError: when a module cannot take the class of its replacement.

    Example:
        >>> layer, other = nn.Linear(4, 4), nn.Identity()
        >>> with replaced([(layer, other)]):
        ...     print(layer)
        Identity()
        >>> print(layer)
        Linear(in_features=4, out_features=4, bias=True)
    """
    before: list[tuple[nn.Module, type, dict[str, Any]]] = []
    try:
        for old, new in pairs:
            _become(old, new, before)
        yield
    finally:
        for module, kind, state in reversed(before):
            object.__setattr__(module, "__dict__", state)
            object.__setattr__(module, "__class__", kind)


def replace_in_place(pairs: Iterable[Pair]) -> None:
    """Let modules become others for good.

    Args:
        pairs: As for `replaced`; the new modules' parameters are cloned, because they
            may be views, and trainable where those that they replace are.
    """
    for old, new in owning(pairs):
        _become(old, new, [])


def copy_network(network: nn.Module, pairs: Iterable[Pair] = ()) -> nn.Module:
    """Copy a network, with some of its modules replaced.

    Args:
        network: Neither modified nor aliased. Functions that it holds and that refer to
            its modules (a closure, a default argument) refer to those of the copy in
            the copy.
        pairs: Modules of `network` and what they are in the copy, as for
            `replace_in_place`. The weights that they replace are not copied.

    Returns:
        The copy.

    Raises:
        ValueError: when something that the network holds cannot be copied, such as a
            lock or an open file; the message has its path.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 4))
        >>> copy_network(network, [(network[0], nn.Identity())])
        Sequential(
          (0): Identity()
        )
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        replaced(owning(tuple(pairs))),
    ):
        memo: dict[int, Any] = {}
        held = tuple(_held(network))
        for value in held:
            # Computed by masks and old-style norms, or kept by a forward pass; deepcopy
            # refuses these.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        modules = set(network.modules())
        functions = _functions(modules, held)
        memo |= {id(old): new for old, new in functions}
        computed = dict(memo)
        try:
            copied = copy.deepcopy(network, memo)
            for old, new in functions:
                _fill(old, new, modules, memo)
        except Exception as error:  # whatever an object raises that refuses
            path, value = _uncopyable(network, computed)
            raise ValueError(
                f"The network ({type(network).__name__}) cannot be copied, which is "
                f"how the network that a search returns is made: its attribute {path} "
                f"({type(value).__name__}) cannot be: {error}. Remove the attribute "
                "before the search and set it again on the result, or give its class "
                "a method __deepcopy__."
            ) from error
    return copied


def owning(pairs: Iterable[Pair]) -> list[Pair]:
    """Give new modules memory of their own, trainable where the old ones are.

    Args:
        pairs: Modules and their replacements. Weights are trainable if a weight of the
            old module is, biases if its bias is.
    """
    pairs = list(pairs)
    with torch.inference_mode(False), torch.no_grad():
        for old, new in pairs:
            trainable: dict[bool, bool] = {}
            for p in old.parameters():
                matrix = p.ndim >= 2
                trainable[matrix] = trainable.get(matrix, False) or p.requires_grad
            either = any(trainable.values())
            for module in new.modules():
                for name, p in module.named_parameters(recurse=False):
                    owned = p.detach().clone(memory_format=torch.contiguous_format)
                    wanted = trainable.get(p.ndim >= 2, either)
                    module._parameters[name] = nn.Parameter(owned, wanted)
    return pairs


def bare_copy(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device, without hooks; its attributes are shared.

    For counts, which need shapes and no memory, of layers on which something hangs that
    could not be copied.

    Args:
        module: Not modified.
    """
    bare = object.__new__(type(module))
    object.__setattr__(bare, "__dict__", {**vars(module), **vars(nn.Module())})
    bare.training = module.training
    for name, p in module._parameters.items():
        shape = None if p is None else nn.Parameter(p.detach().to("meta"), False)
        bare._parameters[name] = shape
    for name, b in module._buffers.items():
        bare._buffers[name] = None if b is None else b.detach().to("meta")
    for name, part in module._modules.items():
        bare._modules[name] = None if part is None else bare_copy(part)
    return bare


def _become(
    old: nn.Module,
    new: nn.Module,
    before: list[tuple[nn.Module, type, dict[str, Any]]],
) -> None:
    """Give a module the class and the state of another one, noting how it was."""
    kept, taken, kind = vars(old), vars(new), type(new)
    before.append((old, type(old), kept))
    state = dict(kept)
    for name in kept.keys() - _HANGS_ON:
        # Such as `in_features`, which a factored layer computes.
        computed = isinstance(getattr(kind, name, None), property)
        if computed or name == "_compiled_call_impl":
            del state[name]
    for name, value in taken.items():
        if name not in _HANGS_ON:
            state[name] = value
        elif isinstance(value, dict | set) and value:  # hooks of its own
            state[name] = type(value)(value | kept[name])
    state["_buffers"] = {**kept["_buffers"], **taken["_buffers"]}
    state["_modules"] = dict(taken["_modules"])
    for name, part in taken["_modules"].items():
        same = kept["_modules"].get(name)
        if same is not None and type(same) is type(part):
            _become(same, part, before)
            state["_modules"][name] = same
    try:
        object.__setattr__(old, "__class__", kind)
    except TypeError as error:
        raise ValueError(
            f"A {type(old).__name__} cannot become a {kind.__name__}: {error}. Return "
            "a module without __slots__ from the decomposition."
        ) from error
    object.__setattr__(old, "__dict__", state)


def _inside(value: Any) -> tuple[Any, ...]:
    """Return what a container, a function or a bound method refers to."""
    if isinstance(value, dict):
        return tuple(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(value)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, FunctionType):
        defaults = (value.__defaults__ or (), value.__kwdefaults__ or {})
        return (*_contents(value), *defaults)
    return ()


def _held(network: nn.Module) -> Iterator[Any]:
    """List what the modules of a network hold, inside of it and of functions too."""
    todo: list[Any] = [vars(module) for module in network.modules()]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield value
            todo.extend(_inside(value))


def _mentions(
    value: Any, modules: set[nn.Module], above: frozenset[int] = frozenset()
) -> bool:
    """Return whether a value refers to modules, directly or by what is inside it."""
    if isinstance(value, nn.Module):
        return value in modules
    above |= {id(value)}
    return any(
        _mentions(part, modules, above)
        for part in _inside(value)
        if id(part) not in above
    )


def _functions(
    modules: set[nn.Module], held: Iterable[Any]
) -> list[tuple[FunctionType, FunctionType]]:
    """Copy the functions that refer to modules, with their cells still empty."""
    copies = []
    for value in held:
        if isinstance(value, FunctionType) and _mentions(value, modules):
            cells = tuple(CellType() for _ in value.__closure__ or ())
            new = FunctionType(
                value.__code__, value.__globals__, value.__name__, None, cells
            )
            vars(new).update(vars(value))
            new.__qualname__ = value.__qualname__
            copies.append((value, new))
    return copies


def _contents(function: FunctionType) -> list[Any]:
    """Return what a function's closure refers to, None for what is not set yet."""
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:
            contents.append(None)
    return contents


def _fill(
    old: FunctionType,
    new: FunctionType,
    modules: set[nn.Module],
    memo: dict[int, Any],
) -> None:
    """Let a copied function refer to the copies of modules, else to what it did."""

    def copied(value: Any) -> Any:
        return copy.deepcopy(value, memo) if _mentions(value, modules) else value

    for cell, value in zip(new.__closure__ or (), _contents(old), strict=True):
        cell.cell_contents = copied(value)
    new.__defaults__ = copied(old.__defaults__)
    new.__kwdefaults__ = copied(old.__kwdefaults__)


def _uncopyable(
    value: Any, memo: dict[int, Any], path: str = "", seen: tuple[int, ...] = ()
) -> tuple[str, Any]:
    """Return the path and the value of the innermost part that deepcopy refuses."""
    for name, part in _parts(value).items():
        if id(part) in (*seen, id(value)):
            continue
        try:
            copy.deepcopy(part, dict(memo))
        except Exception:  # whatever an object raises that refuses
            inner = f"{path}{name}" if name.startswith("[") else f"{path}.{name}"
            return _uncopyable(part, memo, inner, (*seen, id(value)))
    return path.lstrip(".") or "the network itself", value


def _parts(value: Any) -> dict[str, Any]:
    """Name the parts of a value: attributes, entries, what a method is bound to."""
    if isinstance(value, nn.Module):
        own = {n: v for n, v in vars(value).items() if n not in _CONTENTS}
        return {**value._modules, **value._parameters, **value._buffers, **own}
    if isinstance(value, dict):
        return {f"[{name!r}]": part for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return {f"[{i}]": part for i, part in enumerate(value)}
    if isinstance(value, MethodType):
        return {"__self__": value.__self__}
    return dict(getattr(value, "__dict__", {}))
