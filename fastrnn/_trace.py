"""How our modules appear to torch.fx and TorchScript."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy


def is_leaf(module: torch.nn.Module, forward: Any, input: Any) -> bool:
    """Whether ``torch.fx.symbolic_trace`` records the module as one call, as it does torch's."""
    return (
        isinstance(input, Proxy)
        and type(module).forward is forward
        and getattr(input.tracer, "root", module) is not module
    )


def call_leaf(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Record a call of the module; the first argument is a proxy."""
    tracer = args[0].tracer
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


def refuse_script(module: torch.nn.Module) -> None:
    """Raise the error of ``torch.jit.script`` for one of our modules."""
    raise RuntimeError(
        f"fastrnn.{type(module).__name__} does not support torch.jit.script. Use torch.jit.trace "
        "or torch.export, or give TorchScript torch's own modules: fastrnn.restore(model)"
    )
