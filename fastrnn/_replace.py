"""Replace a model's modules by ours, and restore them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils import parametrize

from fastrnn.cell import RNNCell
from fastrnn.rnn import RNN

_Model = TypeVar("_Model", bound=torch.nn.Module)
_TO_OURS: dict[type, type] = {torch.nn.RNN: RNN, torch.nn.RNNCell: RNNCell}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_OURS.items()}


def replace(model: _Model) -> _Model:
    """Turn every ``torch.nn.RNN`` and ``torch.nn.RNNCell`` of a model into fastrnn's, in place.

    The modules stay the same objects, with their parameters, buffers, hooks, parametrizations and
    training flag: only their class changes. Subclasses are left alone.

    Args:
        model: Any module, even an RNN itself.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.

    Warns:
        UserWarning: A subclass was left alone, or there is nothing to replace.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.replace(torch.nn.Sequential(torch.nn.RNN(3, 4)))
        >>> type(model[0]) is fastrnn.RNN
        True
    """
    _check_module(model)
    changed = _change_classes(model.modules(), _TO_OURS)
    left = _warn_of_derived(model, _TO_OURS)
    if not (changed or left or any(isinstance(m, RNN | RNNCell) for m in model.modules())):
        warnings.warn(
            f"fastrnn.replace found no torch.nn.RNN or RNNCell in {type(model).__name__}",
            stacklevel=2,
        )
    return model


def restore(model: _Model) -> _Model:
    """Turn every ``fastrnn.RNN`` and ``fastrnn.RNNCell`` of a model into torch's own, in place.

    Args:
        model: Any module, even an RNN itself.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.

    Warns:
        UserWarning: A subclass was left alone.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.restore(torch.nn.Sequential(fastrnn.RNN(3, 4)))
        >>> type(model[0]) is torch.nn.RNN
        True
    """
    _check_module(model)
    _change_classes(model.modules(), _TO_TORCH)
    _warn_of_derived(model, _TO_TORCH)
    return model


def as_torch(model: _Model) -> AbstractContextManager[_Model]:
    """Turn a model's modules into torch's own for a ``with`` block, and back at its end.

    For tools that go by a module's class: exporters, converters, FLOP counters. A model that
    passes ``lengths`` or ``reset`` to an RNN, or calls ``step``, cannot run inside the block. A
    copy made inside keeps torch's classes.

    Args:
        model: Any module, even an RNN itself.

    Returns:
        A context manager that yields ``model``.

    Raises:
        TypeError: ``model`` is not a module.

    Warns:
        UserWarning: A subclass was left alone.

    Example:
        >>> import torch, fastrnn
        >>> model = torch.nn.Sequential(fastrnn.RNN(3, 4))
        >>> with fastrnn.as_torch(model):
        ...     print(type(model[0]) is torch.nn.RNN)
        True
        >>> type(model[0]) is fastrnn.RNN
        True
    """
    _check_module(model)
    _warn_of_derived(model, _TO_TORCH)
    return _as_torch(model)


@contextlib.contextmanager
def _as_torch(model: _Model) -> Iterator[_Model]:
    changed = _change_classes(model.modules(), _TO_TORCH)
    try:
        yield model
    finally:
        _change_classes(changed, _TO_OURS)


def _check_module(model: Any) -> None:
    if isinstance(model, torch.nn.Module):
        return
    if isinstance(model, type):
        raise TypeError(
            f"expected a torch.nn.Module, got the class {model.__name__}, not an instance"
        )
    raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")


def _warn_of_derived(model: torch.nn.Module, classes: dict[type, type]) -> bool:
    """Warn of the modules that were left alone since they are subclasses; whether there are any."""
    kinds: dict[str, type] = {
        name: parametrize.type_before_parametrizations(m) for name, m in model.named_modules()
    }
    left = [
        f"{name or 'the model itself'} ({kind.__name__})"
        for name, kind in kinds.items()
        if kind not in classes and issubclass(kind, tuple(classes))
    ]
    own = [entry for entry in left if entry.endswith("(LeakyRNN)")]
    if own:
        warnings.warn(
            f"fastrnn left these as they are, for torch has no leaky RNN: {', '.join(own)}",
            stacklevel=3,
        )
        left = [entry for entry in left if entry not in own]
    if left:
        old, new = ("torch.nn", "fastrnn") if classes is _TO_OURS else ("fastrnn", "torch.nn")
        warnings.warn(
            f"fastrnn did not change these subclasses of {old}'s RNN or RNNCell: "
            f"{', '.join(left)}. Derive classes of your own from {new}'s; apply wrappers such as "
            "fully_shard afterwards",
            stacklevel=3,
        )
    return bool(left or own)


def _change_classes(
    modules: Iterable[torch.nn.Module], classes: dict[type, type]
) -> list[torch.nn.Module]:
    """Change the classes of modules, and return those that were changed."""
    changed = []
    for module in modules:
        original = parametrize.type_before_parametrizations(module)
        target = classes.get(original)
        if target is None:
            continue
        if original is not type(module):  # parametrize made a subclass, which holds properties
            namespace = dict(type(module).__dict__)
            target = type(f"Parametrized{target.__name__}", (target,), namespace)
        if isinstance(module, RNNBase):
            module._flat_weights = [
                _left(module, name, w)
                for name, w in zip(module._flat_weights_names, module._flat_weights, strict=False)
            ]
        module.__class__ = target
        changed.append(module)
    return changed


def _left(module: RNNBase, name: str, w: Any) -> Any:
    """A weight of the list, without what a call may have added that deepcopy cannot copy."""
    if type(w) not in (Tensor, Parameter):  # expanded
        return module._parameters.get(name, w)
    return w if w.is_leaf else w.detach()  # computed
