"""The first five minutes: which torch a build is for, what an import finds, what either says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import fastrnn
import wheels

ROOT = Path(__file__).parents[2]
PYTHON = "{}.{}".format(*sys.version_info)
LIBRARIES = Path(fastrnn.info()["library"]).parent


def run(
    *command: str | Path, cwd: str | Path = "/", **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=inherited | environment
    )


# Import.


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with fastrnn's Python code and, if asked to, its libraries and their record."""

    def make(name: str, versions: dict[str, str] | None = None, libraries: bool = False) -> Path:
        folder = tmp_path / name
        (folder / "fastrnn").mkdir(parents=True)
        for path in LIBRARIES.glob("*.py"):
            shutil.copy(path, folder / "fastrnn")
        if libraries:
            for path in LIBRARIES.glob("*.so"):
                (folder / "fastrnn" / path.name).symlink_to(path)
        if versions is not None:
            built_for = {"torch": torch.__version__, "python": PYTHON} | versions
            (folder / "fastrnn/_built_for.json").write_text(json.dumps(built_for))
        return folder

    return make


ALONE = """
import sys, torch
from pathlib import Path
sys.path = [p for p in sys.path if p.startswith({folder!r}) or not Path(p, "fastrnn").exists()]
"""


def import_from(*folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, folders))
    return run(sys.executable, "-c", "import fastrnn; print(fastrnn.functional.__file__)",
               PYTHONPATH=path)  # fmt: skip


def import_alone(folder: Path) -> subprocess.CompletedProcess[str]:
    """Import where no other fastrnn is installed."""
    code = ALONE.format(folder=str(folder)) + "import fastrnn"
    return run(sys.executable, "-c", code, PYTHONPATH=str(folder))


def test_sources_that_are_not_compiled(package: Callable[..., Path]) -> None:
    sources = package("sources")
    (sources / "setup.py").touch()
    assert import_alone(sources).stderr.endswith(
        f"ImportError: fastrnn is not compiled in {sources}/fastrnn. Build it:\n"
        f"  {sys.executable} -m pip install {sources}\n"
    )


@pytest.mark.parametrize(
    "versions", [{"torch": "2.10.1+cu126"}, {"python": "3.9"}], ids=["torch", "python"]
)
def test_built_for_another(package: Callable[..., Path], versions: dict[str, str]) -> None:
    installed = package("installed", versions, libraries=True)
    built_for = {"torch": torch.__version__, "python": PYTHON} | versions
    assert import_alone(installed).stderr.endswith(
        f"ImportError: fastrnn in {installed}/fastrnn was built for torch {built_for['torch']} and "
        f"Python {built_for['python']}; this is torch {torch.__version__} and Python {PYTHON}. "
        f"Build it again, in its source folder:\n  {sys.executable} -m pip install .\n"
    )


def test_a_patch_release_of_torch_needs_no_build(package: Callable[..., Path]) -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    assert import_from(package("installed", {"torch": f"{minor}.99"}, libraries=True)).stdout


def test_a_library_that_does_not_load(package: Callable[..., Path]) -> None:
    """As one that is linked to the CUDA libraries of a torch beside a torch without them."""
    installed = package("installed", {"torch": torch.__version__ + ".other"}, libraries=True)
    (installed / "fastrnn/libfastrnn.so").unlink()
    for path in (installed / "fastrnn").glob("_C.*"):
        path.unlink()
        path.write_bytes(b"no library")
    message = import_alone(installed).stderr
    assert f"was built for torch {torch.__version__}.other" in message
    assert f"this is torch {torch.__version__} " in message
    assert "invalid ELF header" in message or "file too short" in message


def test_a_source_folder_uses_the_installed_package(package: Callable[..., Path]) -> None:
    installed = package("installed", {}, libraries=True)
    for sources in (package("not_built"), package("built_for_another", {"torch": "2.0.0"})):
        found = import_from(sources, installed)
        assert found.stdout == f"{installed}/fastrnn/functional.py\n", found.stderr
        started = run(sys.executable, "-m", "fastrnn", PYTHONPATH=f"{sources}:{installed}")
        assert f"{installed}/fastrnn/libfastrnn.so\n" in started.stdout, started.stderr


def test_a_source_folder_that_is_built_comes_first(package: Callable[..., Path]) -> None:
    sources, installed = package("sources", {}, True), package("installed", {}, True)
    assert import_from(sources, installed).stdout == f"{sources}/fastrnn/functional.py\n"


# Wheels: libraries for each torch, in folders of the package.


def wheel_for(folder: Path, torch_version: str, python: str = PYTHON) -> Path:
    minor = "_".join(torch_version.split(".")[:2])
    libraries = folder / f"fastrnn/_torch{minor}"
    libraries.mkdir()
    for path in LIBRARIES.glob("*.so"):
        (libraries / path.name).symlink_to(path)
    built_for = {"torch": torch_version, "python": python}
    (libraries / "_built_for.json").write_text(json.dumps(built_for))
    return libraries


def test_a_wheel_has_libraries_for_each_torch(package: Callable[..., Path]) -> None:
    installed = package("installed")
    wheel_for(installed, "2.7.0")
    libraries = wheel_for(installed, torch.__version__)
    wheel_for(installed, "99.1.0")
    started = run(sys.executable, "-m", "fastrnn", PYTHONPATH=str(installed))
    assert f"{libraries}/libfastrnn.so\n" in started.stdout, started.stderr


UNDER_A_NEWER_TORCH = """
import warnings, torch
from torch import nn
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import fastrnn
(warning,) = [w for w in said if "fastrnn" in str(w.message)]
print(warning.message)
module, theirs = fastrnn.RNN(3, 4, 2, bidirectional=True), nn.RNN(3, 4, 2, bidirectional=True)
theirs.load_state_dict(module.state_dict())
x = torch.randn(5, 2, 3)
packed = nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]])
for given, of in ((x, lambda y: y[0]), (packed, lambda y: y[0].data)):
    assert torch.equal(of(module(given)), of(theirs(given)))
module(x)[0].sum().backward()
assert module(x, lengths=[5, 2])[0][2:, 1].abs().sum() == 0
module(x, reset=torch.ones(5, 2))
fastrnn.RNN(3, 4).step(x[0])
fastrnn.RNNCell(3, 4)(x[0])
print(fastrnn.info(module, x)["kernel"])
"""


def test_a_wheel_under_a_newer_torch(package: Callable[..., Path]) -> None:
    """Torch's own operator serves, with a warning: never a crash."""
    installed = package("installed")
    wheel_for(installed, "2.7.0")
    wheel_for(installed, "2.8.1")
    code = ALONE.format(folder=str(installed)) + UNDER_A_NEWER_TORCH
    ended = run(sys.executable, "-c", code, PYTHONPATH=str(installed))
    assert ended.returncode == 0, ended.stderr
    warning, kernel = ended.stdout.splitlines()
    assert "supports torch up to 2.8, and this is torch" in warning
    assert kernel == f"torch (this wheel has no library for torch {torch.__version__})"


@pytest.mark.parametrize("versions", [{"torch_version": "99.1.0"}, {"python": "3.9"}])
def test_a_wheel_for_another(package: Callable[..., Path], versions: dict[str, str]) -> None:
    """An older torch, or another Python: there is nothing to import."""
    installed = package("installed")
    given = {"torch_version": "2.7.0", "python": PYTHON} | versions
    wheel_for(installed, **given)
    assert (
        f"ImportError: fastrnn in {installed}/fastrnn was built for torch {given['torch_version']} "
        f"and Python {given['python']}; this is torch {torch.__version__} and Python {PYTHON}."
    ) in import_alone(installed).stderr


def test_a_release_leaves_out_what_make_wheels_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    repair = shlex.split(project["tool"]["cibuildwheel"]["repair-wheel-command"])
    excluded = [word for option, word in pairwise(repair) if option == "--exclude"]
    assert excluded == wheels.NOT_OURS


def test_a_torch_that_is_too_old_for_the_package(package: Callable[..., Path]) -> None:
    installed = package("installed", {}, libraries=True)
    code = ALONE.format(folder=str(installed)) + "torch.__version__ = '2.10.0'\nimport fastrnn"
    ended = run(sys.executable, "-c", code, PYTHONPATH=str(installed))
    assert ended.stderr.endswith(
        "ImportError: fastrnn needs torch 2.11 or later, and this is torch 2.10.0. Update it:\n"
        f"  {sys.executable} -m pip install --upgrade torch\n"
    )


# Build.


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin/python"


def without_packages(folder: Path) -> str:
    """A PYTHONPATH that hides this environment's packages, as pip does for an isolated build."""
    for name in ("setuptools", "ninja"):
        package = Path(__import__(name).__file__).parent
        (folder / name).symlink_to(package)
    (folder / "sitecustomize.py").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('site-packages')]"
    )
    return str(folder)


def test_no_torch(bare: Path) -> None:
    build = run(bare, ROOT / "setup.py", "--version")
    assert build.returncode == 1
    assert build.stderr == (
        "fastrnn: the extension is compiled against the torch that will run it, and "
        f"{bare} has none.\nInstall torch first; then run\n"
        "  pip install setuptools ninja pybind11\n"
        "  pip install --no-build-isolation .\n"
    )


def test_a_torch_that_is_too_old(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.10.0+cpu'")
    build = run(bare, ROOT / "setup.py", "--version", PYTHONPATH=str(tmp_path))
    assert build.returncode == 1
    assert build.stderr == (
        f"fastrnn: expected torch 2.11 or later, got 2.10.0+cpu in {tmp_path}.\nUpdate it first:\n"
        "  pip install --upgrade torch\n"
    )


def test_an_isolated_build_finds_the_torch_that_will_run_it(tmp_path: Path) -> None:
    hidden = without_packages(tmp_path)
    assert run(sys.executable, "-c", "import torch", PYTHONPATH=hidden).returncode == 1
    build = run(sys.executable, "setup.py", "--version", cwd=ROOT, PYTHONPATH=hidden)
    assert build.stdout.splitlines()[-1:] == [fastrnn.__version__], build.stderr


def test_a_build_says_what_it_was_for() -> None:
    record = json.loads((LIBRARIES / "_built_for.json").read_text())
    assert record == {"torch": torch.__version__, "python": PYTHON}


def test_sdist_holds_what_its_tests_need(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    build = run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path,
                "sdist", "--dist-dir", tmp_path, cwd=ROOT)  # fmt: skip
    assert build.returncode == 0, build.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    listed = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    tracked = {path for path in listed if not path.startswith(".")}
    assert tracked - held == set()
    assert not [path for path in held if path.endswith((".so", ".pyc", "_built_for.json"))]
