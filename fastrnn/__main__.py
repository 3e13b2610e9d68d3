"""``python -m fastrnn``: print what this build contains."""

from fastrnn import info

for name, value in info().items():
    print(f"{name:15} {value}")
