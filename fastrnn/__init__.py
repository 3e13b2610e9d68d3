"""Fused kernels for the Elman RNN, behind the API of ``torch.nn.RNN``."""

import torch  # noqa: F401  (its libraries must be there before _C loads)

try:
    from fastrnn import _C
except ImportError as e:
    raise ImportError(
        f"fastrnn: the extension does not load from {__path__[0]}. In a source folder run "
        "`make build`, or leave the folder to use an installed fastrnn; after an update of torch, "
        "build again."
    ) from e
from fastrnn import functional
from fastrnn._info import info
from fastrnn._onnx import onnx_translation
from fastrnn._version import __version__
from fastrnn.rnn import RNN, RNNCell, replace, restore

del _C

__all__ = [
    "RNN",
    "RNNCell",
    "__version__",
    "functional",
    "info",
    "onnx_translation",
    "replace",
    "restore",
]
