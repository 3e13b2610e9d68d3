"""``python -m fastrnn``: print what this build contains; ``check`` tries its kernels."""

import argparse
import sys

import torch

from fastrnn import _check, info

parser = argparse.ArgumentParser(prog="python -m fastrnn", description=__doc__)
commands = parser.add_subparsers(dest="command", metavar="command")
check = commands.add_parser("check", help="compare every kernel with plain products; time it")
check.add_argument(
    "--device", choices=["cuda", "cpu"], help="(cuda where torch finds one, else cpu)"
)
options = parser.parse_args()
if options.command == "check":
    sys.exit(_check.run(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
for name, value in info().items():
    print(f"{name:15} {value}")
