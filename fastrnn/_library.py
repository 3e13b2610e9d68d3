"""Find compiled libraries that fit this Python and this torch, or say what to do."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

import torch

PYTHON = "{}.{}".format(*sys.version_info)
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
OLDEST_TORCH = (2, 11)
OF_A_WHEEL = "_torch{}_{}"  # a wheel has libraries for each torch, in folders of these names


def package_path() -> list[str]:
    """Return the ``__path__`` with which ``fastrnn`` finds libraries that fit.

    A Python that starts in a source folder finds the sources first. If they are not built for it,
    an installed fastrnn is used, with its own Python code.

    Raises:
        ImportError: No library fits.
    """
    here = Path(__file__).parent
    for folder in (here, *(Path(entry) / "fastrnn" for entry in sys.path)):
        if fits(folder):
            return [str(folder)]
        if fits(folder / OF_A_WHEEL.format(*TORCH)):
            return [str(folder), str(folder / OF_A_WHEEL.format(*TORCH))]
    if newest_torch(here) < TORCH:
        return [str(here)]
    raise ImportError(what_to_do(here))


def newest_torch(folder: Path) -> tuple[int, ...]:
    """Return the newest torch that a wheel supports; if this is no wheel, the largest version."""
    known = [built_for(path) or {} for path in folder.glob(OF_A_WHEEL.format("*", "*"))]
    minors = [minor_of(versions) for versions in known if versions.get("python") == PYTHON]
    return max(minors, default=(sys.maxsize,))


def load() -> bool:
    """Import ``fastrnn._C``, after torch, whose libraries it needs.

    Returns:
        Whether there is one. In a wheel that is older than torch, another module stands in, with a
        warning, and leaves every call to torch's own operator.

    Raises:
        ImportError: It does not load.
    """
    folder, *of_a_wheel = map(Path, sys.modules["fastrnn"].__path__)
    if not of_a_wheel and not fits(folder):
        known = ".".join(map(str, newest_torch(folder)))
        warnings.warn(
            f"this wheel of fastrnn supports torch up to {known}, and this is torch "
            f"{torch.__version__}: every call uses torch's own operator, as torch.nn.RNN does. "
            "Update fastrnn, or build it from source: see its README",
            stacklevel=3,
        )
        sys.modules["fastrnn._C"] = importlib.import_module("fastrnn._without_library")
        return False
    try:
        importlib.import_module("fastrnn._C")
    except ImportError as e:
        raise ImportError(f"{what_to_do(folder)}\n({e})") from e
    return True


def built_for(folder: Path) -> dict[str, str] | None:
    """Return the versions that the libraries in a folder were built for, if there are any."""
    try:
        versions: dict[str, str] = json.loads((folder / "_built_for.json").read_text())
    except FileNotFoundError:
        return None
    return versions  # written by torch_build.py or wheels.py


def fits(folder: Path) -> bool:
    """Whether a folder's libraries fit: torch's C++ interface changes with each minor version."""
    versions = built_for(folder)
    return versions is not None and minor_of(versions) == TORCH and versions["python"] == PYTHON


def minor_of(versions: dict[str, str]) -> tuple[int, ...]:
    """Return the part of a torch's version that its C++ interface depends on."""
    return tuple(map(int, versions["torch"].split(".")[:2]))


def what_to_do(folder: Path) -> str:
    """Say why the libraries of a folder cannot be used, and what to do."""
    if TORCH < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        return (
            f"fastrnn needs torch {needed} or later, and this is torch {torch.__version__}. "
            f"Update it:\n  {sys.executable} -m pip install --upgrade torch"
        )
    of_a_wheel = sorted(folder.glob(OF_A_WHEEL.format("*", "*")))
    found = [versions for path in (folder, *of_a_wheel) if (versions := built_for(path))]
    if found:
        why = (
            f"fastrnn in {folder} was built for torch {', '.join(v['torch'] for v in found)} and "
            f"Python {found[0]['python']}; this is torch {torch.__version__} and Python {PYTHON}."
        )
    else:
        why = f"fastrnn is not compiled in {folder}."
    source = folder.parent
    if (source / "setup.py").exists():
        return f"{why} Build it:\n  {sys.executable} -m pip install {source}"
    return f"{why} Build it again, in its source folder:\n  {sys.executable} -m pip install ."
