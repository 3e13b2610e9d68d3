"""Builds fastrnn for the torch that is there, or a wheel for each of those in FASTRNN_TORCHES."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # not there when pip builds

if os.environ.get("FASTRNN_TORCHES"):
    import wheels as this_build
else:
    import torch_build as this_build

this_build.setup()
