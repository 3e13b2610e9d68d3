"""Build wheels: `make wheels`, or `python wheels.py --python 3.11 3.12 --torch 2.13.0 2.15.0`.

The kernels know no torch and are compiled once. What touches torch is compiled for each torch, and
the extension for each Python and torch. A wheel for one Python holds all of these, and
fastrnn/_library.py chooses by the torch that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ninja.ninja_syntax import Writer

import cpu_build

ROOT = Path(__file__).parent
BUILD = ROOT / "build/wheels"
TORCHES = ["2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"]  # the newest patch release of each
OLDEST_PYTHON, NEWEST_PYTHON = 11, 15
NOT_OURS = [
    "libtorch*.so",
    "libc10*.so",
    "libgomp.so.1",
]  # torch brings them; never a second OpenMP

LINKED = ["libtorch", "libtorch_cpu", "libc10", "libtorch_python"]

PYTHON_MODULE = "python.cpp"
KERNELS, OPERATORS = "libfastrnn_kernels.so", "libfastrnn.so"

# What the staging folder is built by: the libraries are there, and make the wheel a platform's.
SETUP = """\
from setuptools import Distribution, setup
class WithLibraries(Distribution):
    def has_ext_modules(self): return True
setup(distclass=WithLibraries)
"""
SOURCES_DATA, WHEEL_DATA = '["py.typed", "*.pyi"]', '["py.typed", "*.pyi", "*.so", "_torch*/*"]'


@dataclass(frozen=True)
class Python:
    version: str  # 3.11
    include: str
    suffix: str  # of an extension's file name


@dataclass(frozen=True)
class Torch:
    version: str
    folder: Path  # holds include and lib

    @property
    def name(self) -> str:
        """Of the folder in the package: fastrnn/_library.py looks for it."""
        return "_torch" + "_".join(self.version.split(".")[:2])


def run(*command: object, **variables: str) -> str:
    words = [str(word) for word in command]
    ended = subprocess.run(
        words, cwd=ROOT, text=True, stdout=subprocess.PIPE, env={**os.environ, **variables}
    )
    if ended.returncode:
        sys.exit(f"wheels: failed: {' '.join(words)}\n{ended.stdout}")
    return ended.stdout


def pythons(asked: list[str]) -> Iterator[Python]:
    """Those of these versions, or every one that is on the machine."""
    for version in asked or [f"3.{n}" for n in range(OLDEST_PYTHON, NEWEST_PYTHON + 1)]:
        path = cpu_build.find_python(version)
        if path is None:
            if asked:
                sys.exit(f"wheels: no python{version} on the PATH or in ~/.pyenv")
            continue
        facts = (
            "import sysconfig as s; print(s.get_path('include'), s.get_config_var('EXT_SUFFIX'))"
        )
        yield Python(version, *run(path, "-c", facts).split())


def fetch(version: str) -> Torch:
    """The headers of a torch and the libraries that are linked to, out of its own wheel.

    Nothing of it runs, so any Python's will do, and none of what it depends on is fetched.
    """
    folder = BUILD / f"torch-{version}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder,
            f"torch=={version}")  # fmt: skip
        (wheel,) = folder.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                library = name.startswith("torch/lib/") and Path(name).stem in LINKED
                if name.startswith("torch/include/") or library:
                    archive.extract(name, folder)
        wheel.unlink()
        (folder / "done").touch()
    return Torch(version, folder / "torch")


def write_ninja(pythons: list[Python], torches: list[Torch]) -> None:
    plain = [*cpu_build.FLAGS, "-Wall", "-Wextra", "-fPIC", f"-I{ROOT}/csrc"]
    flags = [*plain, "-fvisibility=hidden"]
    compiler = cpu_build.find_compiler()
    with (BUILD / "build.ninja").open("w") as file:
        ninja = Writer(file)
        ninja.rule(
            "compile", f"{compiler} -MMD -MF $out.d $flags -c $in -o $out",
            depfile="$out.d", deps="gcc",
        )  # fmt: skip
        ninja.rule("link", f"{compiler} -shared -Wl,-s -Wl,-z,defs $in $flags -o $out")

        def objects(sources: list[Path], folder: str, flags: list[str]) -> list[str]:
            made = [f"objects/{folder}/{source.stem}.o" for source in sources]
            for source, to in zip(sources, made, strict=True):
                ninja.build(to, "compile", str(source), variables={"flags": " ".join(flags)})
            return made

        def library(to: str, inputs: list[str], libraries: list[str], flags: list[str]) -> str:
            words = {"flags": " ".join([*libraries, *cpu_build.OPENMP_FLAGS, *flags])}
            ninja.build(to, "link", inputs, implicit=libraries, variables=words)
            return to

        kernels = library(
            KERNELS,
            objects(cpu_build.kernel_sources(), "kernels", [*plain, "-fno-semantic-interposition"]),
            [],
            [f"-Wl,-soname,{KERNELS}"],
        )
        rest = sorted({*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc/cpu").glob("*.cpp")}
                      - {*cpu_build.kernel_sources(), ROOT / "csrc" / PYTHON_MODULE})  # fmt: skip
        for torch in torches:
            include = [
                f"-isystem{torch.folder}/include{under}"
                for under in ("", "/torch/csrc/api/include")
            ]
            linked = [f"-L{torch.folder}/lib", "-ltorch_cpu", "-lc10", "-Wl,-rpath,'$$ORIGIN/..'"]
            operators = library(
                f"{torch.name}/{OPERATORS}",
                objects(rest, torch.name, flags + include),
                [kernels],
                [*linked, f"-Wl,-soname,{OPERATORS}"],
            )
            for python in pythons:
                made = objects(
                    [ROOT / "csrc" / PYTHON_MODULE],
                    f"{torch.name}-{python.version}",
                    [*flags, *include, f"-isystem{python.include}", "-DTORCH_EXTENSION_NAME=_C"],
                )
                library(
                    f"{torch.name}/_C{python.suffix}",
                    made,
                    [operators, kernels],
                    # Python's own symbols are in the process, in no library.
                    [*linked, "-ltorch_python", "-Wl,-rpath,'$$ORIGIN'", "-Wl,-z,undefs"],
                )


def wheel_of(python: Python, torches: list[Torch], dist: Path) -> Path:
    """Gather what a Python needs, and pack it."""
    stage = BUILD / f"stage-{python.version}"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "fastrnn").mkdir(parents=True)
    for path in [ROOT / "README.md", ROOT / "LICENSE"]:
        shutil.copy(path, stage)
    project = (ROOT / "pyproject.toml").read_text()
    assert SOURCES_DATA in project
    (stage / "pyproject.toml").write_text(project.replace(SOURCES_DATA, WHEEL_DATA))
    for path in (ROOT / "fastrnn").glob("*.py*"):
        if path.is_file():
            shutil.copy(path, stage / "fastrnn")
    shutil.copy(ROOT / "fastrnn/py.typed", stage / "fastrnn")
    shutil.copy(BUILD / KERNELS, stage / "fastrnn")
    for torch in torches:
        folder = stage / "fastrnn" / torch.name
        folder.mkdir()
        for name in (OPERATORS, f"_C{python.suffix}"):
            shutil.copy(BUILD / torch.name / name, folder)
        built_for = {"torch": torch.version, "python": python.version}
        (folder / "_built_for.json").write_text(json.dumps(built_for))
    (stage / "setup.py").write_text(SETUP)
    out = stage / "dist"
    run(
        sys.executable,
        "-m",
        "build",
        "-q",
        "--wheel",
        "--no-isolation",
        "-x",
        "--outdir",
        out,
        stage,
    )
    tag = "cp" + python.version.replace(".", "")
    (made,) = out.iterdir()
    run(
        sys.executable,
        "-m",
        "wheel",
        "tags",
        "--remove",
        "--python-tag",
        tag,
        "--abi-tag",
        tag,
        made,
    )
    (made,) = out.iterdir()
    excluded = [word for name in NOT_OURS for word in ("--exclude", name)]
    repaired = stage / "repaired"
    print(run(sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", repaired, made))
    (wheel,) = repaired.iterdir()
    return Path(shutil.copy(wheel, dist))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--python", nargs="+", default=[], help="versions (all on this machine)")
    parser.add_argument("--torch", nargs="+", default=TORCHES, help=f"({' '.join(TORCHES)})")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    args.dist.mkdir(exist_ok=True)
    found = list(pythons(args.python))
    torches = [fetch(version) for version in args.torch]
    write_ninja(found, torches)
    subprocess.run(["ninja", "-C", str(BUILD)], check=True)
    for python in found:
        wheel = wheel_of(python, torches, args.dist)
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
