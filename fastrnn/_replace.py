"""The swap of a model's modules for ours, and back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils import parametrize

from fastrnn.cell import RNNCell
from fastrnn.rnn import RNN

_Model = TypeVar("_Model", bound=torch.nn.Module)
_PAIRS: tuple[tuple[type, type], ...] = ((torch.nn.RNN, RNN), (torch.nn.RNNCell, RNNCell))
_TO_TORCH = {ours: theirs for theirs, ours in _PAIRS}


def replace(model: _Model) -> _Model:
    """Make every ``torch.nn.RNN`` and ``torch.nn.RNNCell`` of a model ours, in place.

    The modules stay the same objects, with their parameters, buffers, hooks, parametrisations and
    training flag: only their class changes. Subclasses are left alone.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module.

    Warns:
        UserWarning: A subclass was left alone, or there is nothing to replace.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.replace(torch.nn.Sequential(torch.nn.RNN(3, 4)))
        >>> type(model[0]) is fastrnn.RNN
        True
    """
    _check_module(model)
    changed = _change_classes(model.modules(), dict(_PAIRS))
    left = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, tuple(theirs for theirs, _ in _PAIRS))
    ]
    if left:
        warnings.warn(
            f"fastrnn.replace left alone what derives from torch's modules: {', '.join(left)}. "
            "Derive the class from fastrnn's",
            stacklevel=2,
        )
    elif not changed and not any(isinstance(m, RNN | RNNCell) for m in model.modules()):
        warnings.warn(
            f"fastrnn.replace found no torch.nn.RNN or RNNCell in {type(model).__name__}",
            stacklevel=2,
        )
    return model


def restore(model: _Model) -> _Model:
    """Make every ``fastrnn.RNN`` and ``fastrnn.RNNCell`` of a model torch's own, in place.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.restore(torch.nn.Sequential(fastrnn.RNN(3, 4)))
        >>> type(model[0]) is torch.nn.RNN
        True
    """
    _check_module(model)
    _change_classes(model.modules(), _TO_TORCH)
    return model


@contextlib.contextmanager
def as_torch(model: _Model) -> Iterator[_Model]:
    """Make a model's modules torch's own as :func:`restore` does, and ours again at the end.

    For tools that go by a module's class: exporters, converters, counters of FLOPs.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        A context manager, which gives ``model``.

    Raises:
        TypeError: ``model`` is no module.

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
    changed = _change_classes(model.modules(), _TO_TORCH)
    try:
        yield model
    finally:
        _change_classes(changed, dict(_PAIRS))


def _check_module(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        what = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(f"expected a torch.nn.Module, got {what}")


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
        module.__class__ = target
        if isinstance(module, RNNBase):
            flat: list[Any] = module._flat_weights
            for i, (name, w) in enumerate(zip(module._flat_weights_names, flat, strict=True)):
                if type(w) not in (Tensor, Parameter):  # expanded weights that a call left
                    flat[i] = module._parameters.get(name, w)
                elif not w.is_leaf:  # a computed weight, which stops deepcopy
                    flat[i] = w.detach()
        changed.append(module)
    return changed
