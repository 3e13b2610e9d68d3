"""Find compiled libraries that fit this Python and this torch, or say what to do."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

PYTHON = "{}.{}".format(*sys.version_info)


def package_path() -> list[str]:
    """Return the ``__path__`` with which ``fastrnn`` finds libraries that fit.

    A Python that starts in a source folder finds the sources first. Where they are not built for
    it, an installed fastrnn serves, with its own Python code.

    Raises:
        ImportError: Nothing fits.
    """
    here = Path(__file__).parent
    for folder in (here, *(Path(entry) / "fastrnn" for entry in sys.path)):
        if fits(folder):
            return [str(folder)]
    raise ImportError(what_to_do(here))


def load() -> None:
    """Import ``fastrnn._C``, after torch, whose libraries it needs.

    Raises:
        ImportError: It does not load.
    """
    try:
        importlib.import_module("fastrnn._C")
    except ImportError as e:
        folder = Path(sys.modules["fastrnn"].__path__[0])
        raise ImportError(f"{what_to_do(folder)}\n({e})") from e


def built_for(folder: Path) -> dict[str, str] | None:
    """Return the versions that the libraries in a folder were built for, if there are any."""
    try:
        versions: dict[str, str] = json.loads((folder / "_built_for.json").read_text())
    except FileNotFoundError:
        return None
    return versions  # written by setup.py


def fits(folder: Path) -> bool:
    """Whether its libraries may load here: torch's C++ interface changes with minor versions."""
    versions = built_for(folder)
    return (
        versions is not None
        and versions["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
        and versions["python"] == PYTHON
    )


def what_to_do(folder: Path) -> str:
    """Say why the libraries of a folder do not serve, and the command that builds new ones."""
    versions = built_for(folder)
    if versions is None:
        why = f"fastrnn is not compiled in {folder}."
    else:
        why = (
            f"fastrnn in {folder} was built for torch {versions['torch']} and Python "
            f"{versions['python']}; this is torch {torch.__version__} and Python {PYTHON}."
        )
    source = folder.parent
    if (source / "setup.py").exists():
        return f"{why} Build it:\n  {sys.executable} -m pip install {source}"
    return f"{why} Build it again, in its source folder:\n  {sys.executable} -m pip install ."
