"""What this build contains, and which kernel a call uses."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _C, _path
from fastrnn._version import __version__
from fastrnn.cell import RNNCell
from fastrnn.leaky import LeakyRNN
from fastrnn.rnn import RNN


def info(
    module: torch.nn.Module | None = None, input: Tensor | PackedSequence | None = None
) -> dict[str, Any]:
    """Describe the build, the machine and, for a module and an input, the kernel of the call.

    On CUDA this checks the kernel, as its first call would, unless it has been checked already.

    Args:
        module: A :class:`fastrnn.RNN` or :class:`fastrnn.RNNCell`.
        input: An input for it. The answer holds for a call in eager mode without ``lengths`` or
            ``reset`` and, for an RNN, without ``hx``. Arguments that the call would reject are not
            detected.

    Returns:
        Names and values: versions, the library of the operators for C++ programs, the instruction
        set of the CPU kernels, threads, CUDA devices and, if ``module`` is given, ``kernel``:

        - ``"cpu avx2 float32"``: our kernels, their instruction set, and the dtype they compute in.
        - ``"cuda tile:64x8x1, backward tile:64x8x1 float16"``: likewise, with the configurations of
          the forward and the backward pass, or ``step``.
        - ``"torch (why)"``: the operator behind ``torch.nn.RNN``; on CUDA that is cuDNN.
        - ``"reference (why)"``: a loop over time in PyTorch.
        - ``"meta shapes only float32"``: no values, on the meta device.

    Raises:
        TypeError: ``module`` or ``input`` is of another type.

    Example:
        >>> import torch, fastrnn
        >>> facts = fastrnn.info(fastrnn.RNN(3, 4), torch.zeros(5, 2, 3))
        >>> facts["kernel"].startswith("cpu ")
        True
    """
    facts: dict[str, Any] = {
        "fastrnn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library": str(Path(_C.__file__).parent / "libfastrnn.so")
        if _path.HAS_OPERATORS
        else "none",
        "processor": platform.machine(),
        "cpu_kernels": _C.cpu_kernels(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda_kernels": _C.cuda_kernels() if _path.WITH_CUDA else "not built",
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if module is not None:
        if not isinstance(module, RNN | RNNCell):
            cls = type(module)
            name = f"{cls.__module__}.{cls.__qualname__}"
            raise TypeError(f"info: expected a fastrnn.RNN or fastrnn.RNNCell, got {name}")
        if not isinstance(input, Tensor | PackedSequence | None):
            raise TypeError(
                f"info: expected a tensor or a PackedSequence as input, got {type(input).__name__}"
            )
        facts["kernel"] = _kernel(module, input)
    return facts


def _kernel(module: torch.nn.Module, input: Tensor | PackedSequence | None) -> str:
    tensors = [input.data if isinstance(input, PackedSequence) else input, *module.parameters()]
    why = _path.why_only_reference(tensors)
    if why is not None:
        return f"reference ({why})"
    why = _path.why_no_kernel(tensors)
    if why is not None:
        return f"torch ({why})"
    like = next(x for x in tensors if x is not None)
    device, dtype = like.device.type, like.dtype
    if dtype != torch.float64 and _path.autocast_is_on(device):
        dtype = torch.get_autocast_dtype(device)
    hidden_size: int = module.hidden_size  # type: ignore[assignment]
    steps, batch = (1, 1) if input is None else (_steps(module, input), _batch(module, input))
    drops = module.training and getattr(module, "dropout", 0.0) > 0 and module.num_layers > 1  # type: ignore[operator]
    trains = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    kernels = "shapes only"
    if device == "cpu":
        torchs = not isinstance(module, LeakyRNN) and not drops
        if input is not None and torchs and _C.cpu_prefers_torch(batch, hidden_size):
            return f"torch (faster than the {_C.cpu_kernels()} kernels for steps of this size)"
        kernels = _C.cpu_kernels()
    elif device == "cuda":
        bidirectional = bool(getattr(module, "bidirectional", False))
        is_cell = isinstance(module, RNNCell)
        like = like.new_empty(0, dtype=dtype)
        if isinstance(module, LeakyRNN):
            return f"cuda step, backward step {str(dtype).removeprefix('torch.')}"
        kernels = _C.cuda_kernels_for(
            like, steps, batch, hidden_size, bidirectional, is_cell, bool(trains), bool(drops)
        )
        if kernels.startswith("torch"):
            return kernels
    return f"{device} {kernels} {str(dtype).removeprefix('torch.')}"


def _batch(module: torch.nn.Module, input: Tensor | PackedSequence) -> int:
    if isinstance(input, PackedSequence):
        return int(input.batch_sizes[0])
    is_cell = not hasattr(module, "num_layers")
    if input.dim() == (1 if is_cell else 2):
        return 1
    return input.size(0 if is_cell or module.batch_first else 1)


def _steps(module: torch.nn.Module, input: Tensor | PackedSequence) -> int:
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes)
    if not hasattr(module, "num_layers"):
        return 1
    return input.size(1 if input.dim() == 3 and module.batch_first else 0)
