"""The swap of a model's modules for ours, and back."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils import parametrize

from fastrnn.cell import RNNCell
from fastrnn.rnn import RNN

_Model = TypeVar("_Model", bound=torch.nn.Module)
_PAIRS: tuple[tuple[type, type], ...] = ((torch.nn.RNN, RNN), (torch.nn.RNNCell, RNNCell))


def replace(model: _Model) -> _Model:
    """Make every ``torch.nn.RNN`` and ``torch.nn.RNNCell`` of a model ours, in place.

    The modules stay the same objects, with their parameters, buffers, hooks, parametrisations and
    training flag: only their class changes. Subclasses are left alone.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        ``model``.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.replace(torch.nn.Sequential(torch.nn.RNN(3, 4)))
        >>> type(model[0]) is fastrnn.RNN
        True
    """
    return _change_classes(model, dict(_PAIRS))


def restore(model: _Model) -> _Model:
    """Make every ``fastrnn.RNN`` and ``fastrnn.RNNCell`` of a model torch's own, in place.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        ``model``.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.restore(torch.nn.Sequential(fastrnn.RNN(3, 4)))
        >>> type(model[0]) is torch.nn.RNN
        True
    """
    return _change_classes(model, {ours: theirs for theirs, ours in _PAIRS})


def _change_classes(model: _Model, classes: dict[type, type]) -> _Model:
    if not isinstance(model, torch.nn.Module):
        what = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(f"expected a torch.nn.Module, got {what}")
    for module in model.modules():
        original = parametrize.type_before_parametrizations(module)
        target = classes.get(original)
        if target is None:
            continue
        if original is not type(module):  # parametrize made a subclass, which holds properties
            namespace = dict(type(module).__dict__)
            target = type(f"Parametrized{target.__name__}", (target,), namespace)
        module.__class__ = target
        if isinstance(module, RNNBase):  # computed weights of a call of nn.RNN stop deepcopy
            flat: list[Any] = module._flat_weights
            module._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in flat]
    return model
