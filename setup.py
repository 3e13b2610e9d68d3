"""Builds fastrnn for the installed torch or, if FASTRNN_TORCHES is set, a wheel for those."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # missing when pip builds

if os.environ.get("FASTRNN_TORCHES"):
    import wheels as this_build
else:
    import torch_build as this_build

this_build.setup()
