"""Fused kernels for the Elman RNN, behind the API of ``torch.nn.RNN``."""

from fastrnn import _library

__path__ = _library.package_path()
_library.load()
from fastrnn import _fake, functional  # noqa: F401  (_fake registers what torch.compile asks)
from fastrnn._info import info
from fastrnn._onnx import onnx_translation
from fastrnn._version import __version__
from fastrnn.rnn import RNN, RNNCell, replace, restore

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
