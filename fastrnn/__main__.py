"""The command ``python -m fastrnn``."""

import argparse
import os
import sys

import torch

from fastrnn import __version__, _check, _path, info

CHECK = """\
Compare every kernel with plain products, forward and backward, and whole calls with the reference
in double; time a forward pass beside torch.nn.RNN, roughly. Takes half a minute; the status is 1
where something is wrong. B is the batch, H the hidden size, us/step microseconds.
"""

parser = argparse.ArgumentParser(
    prog="python -m fastrnn", description="Print what this build of fastrnn contains."
)
parser.add_argument("--version", action="version", version=__version__)
commands = parser.add_subparsers(dest="command", metavar="command")
check = commands.add_parser("check", help="try every kernel on this machine", description=CHECK)
check.add_argument(
    "--device", choices=["cuda", "cpu"], help="(cuda where this build and torch have it, else cpu)"
)
options = parser.parse_args()
if options.command == "check":
    has_cuda = _path.WITH_CUDA and torch.cuda.is_available()
    sys.exit(_check.run(options.device or ("cuda" if has_cuda else "cpu")))
for name, value in info().items():
    print(f"{name:15} {value}")
for name in ("FASTRNN_CHECK", "FASTRNN_CUDA_KERNEL"):
    if name in os.environ:
        print(f"{name} {os.environ[name]}")
