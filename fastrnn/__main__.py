"""The command ``python -m fastrnn``."""

import argparse
import os
import sys

import torch

from fastrnn import __version__, _check, _path, info

CHECK = """\
Compare every CUDA kernel with a simple implementation, and whole calls with the reference in
float64, forward and backward; time a forward pass beside torch.nn.RNN's, roughly. Takes half a
minute; the exit status is 1 if anything is wrong. B is the batch size, H the hidden size, and
us/step the microseconds of a time step.
"""


def main() -> int:
    """Run the command, and return the status to exit with."""
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn", description="Print what this build of fastrnn contains."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    check = commands.add_parser("check", help="try every kernel on this machine", description=CHECK)
    check.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        help="default: cuda if both this build and torch support it, else cpu",
    )
    options = parser.parse_args()
    if options.command == "check":
        has_cuda = _path.WITH_CUDA and torch.cuda.is_available()
        return _check.run(options.device or ("cuda" if has_cuda else "cpu"))
    for name, value in info().items():
        print(f"{name:15} {value}")
    for name in ("FASTRNN_CHECK", "FASTRNN_CUDA_KERNEL"):
        if name in os.environ:
            print(f"{name} {os.environ[name]}")
    return 0


try:
    status = main()
    sys.stdout.flush()
except BrokenPipeError:  # the reader has gone, as in `python -m fastrnn check | head -2`
    # Python flushes stdout once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = 141  # as a shell reports SIGPIPE
sys.exit(status)
