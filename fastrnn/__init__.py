"""Fused kernels for the Elman RNN, behind the API of ``torch.nn.RNN``."""

from fastrnn import _library

__path__ = _library.package_path()
if _library.load():
    from fastrnn import _fake  # noqa: F401  (registers shapes for torch.compile)
from fastrnn import functional
from fastrnn._info import info
from fastrnn._onnx import decompositions
from fastrnn._replace import as_torch, replace, restore
from fastrnn._version import __version__
from fastrnn.cell import RNNCell
from fastrnn.leaky import LeakyRNN
from fastrnn.rnn import RNN

__all__ = [
    "RNN",
    "LeakyRNN",
    "RNNCell",
    "__version__",
    "as_torch",
    "decompositions",
    "functional",
    "info",
    "replace",
    "restore",
]
