"""Fused kernels for the Elman RNN, behind the API of ``torch.nn.RNN``."""

import torch  # noqa: F401  (its libraries must be there before _C loads)

from fastrnn import functional
from fastrnn._info import info
from fastrnn._version import __version__
from fastrnn.rnn import RNN, RNNCell, replace, restore

__all__ = ["RNN", "RNNCell", "__version__", "functional", "info", "replace", "restore"]
