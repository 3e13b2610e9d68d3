"""Build at home what `benchmarks.gpu.visit` runs on a machine with a GPU.

    python -m benchmarks.gpu.prepare                 (an H100's or H200's, Python 3.12, torch 2.11)
    python -m benchmarks.gpu.prepare --python ~/python3.12 --torch 2.13.0 --arch 80

build/gpu then holds the extension, the programs `kernels` and `limits`, and the hash of their
sources, apart from the build in place.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cpu_build
import cuda_build

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "benchmarks/gpu"
PROGRAMS = ("kernels", "limits")
PARTS = ("library", "programs")
MOST_BYTES = 64 << 20  # what can be carried to the machine
# The newest symbols that the machine's libraries may be asked for.
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 21)}
# GCC's headers call it since version 11: libtorch has it, the programs would need GLIBCXX 3.4.29.
MISSING = """\
#include <new>
namespace std {
[[noreturn]] void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
"""


def hashes() -> tuple[str, str]:
    """Of the library's sources, and of the programs' with them."""
    sources = cuda_build.sources()
    programs = [p for p in SOURCES.iterdir() if p.suffix in (".cpp", ".cu", ".h")]
    return cuda_build.source_hash(sources), cuda_build.source_hash([*sources, *programs])


def call(command: Sequence[object], **variables: str) -> None:
    words = [str(word) for word in command]
    print(*words, flush=True)
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, **variables})


def find_python(version: str) -> str:
    python = cpu_build.find_python(version)
    if python is None:
        sys.exit(f"gpu-prepare: no python{version} on the PATH or in ~/.pyenv; --python names one")
    return python


def environment(python: str, torch: str) -> str:
    """The Python of build/gpu-env, which has this torch and what a build needs."""
    asked = subprocess.run([python, "-V"], capture_output=True, text=True)
    folder = ROOT / "build/gpu-env"
    done = folder / f".torch-{torch}-{asked.stdout.strip().replace(' ', '-')}"
    if not done.exists():
        call([python, "-m", "venv", "--clear", folder])
        pip = [folder / "bin/python", "-m", "pip", "install", "-q"]
        call([*pip, f"torch=={torch}", "setuptools>=77.0.3", "ninja", "pybind11", "numpy"])
        done.touch()
    return str(folder / "bin/python")


def build_library(python: str, out: Path, arch: str, jobs: int) -> None:
    temp = f"{out}-temp"
    command = [python, "setup.py", "build_ext", "--build-lib", out, "--build-temp", temp]
    number = re.sub(r"(\d)(\w?)$", r".\1\2", arch)
    variables = {"FASTRNN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": number} if arch else {}
    call(command, **{"FASTRNN_CUDA": "0", "MAX_JOBS": str(jobs), **variables})


def build_programs(out: Path, arch: str, jobs: int) -> None:
    """With the lines of the sources, for the sanitizers; each in its place once it is whole."""
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        sys.exit("gpu-prepare: no nvcc; set CUDA_HOME or put it on the PATH")
    temp = Path(f"{out}-temp/programs")
    temp.mkdir(parents=True, exist_ok=True)
    flags = [*cuda_build.FLAGS, "-lineinfo", f"-gencode=arch=compute_{arch},code=sm_{arch}",
             "-cudart=static", f"-I{ROOT / 'csrc'}"]  # fmt: skip
    kernels = sorted(cuda_build.library_sources(), key=lambda p: -p.stat().st_size)
    limits, kernel_program = SOURCES / "limits.cu", SOURCES / "kernels.cpp"
    sources = [*kernels, kernel_program, limits]

    def compile_one(source: Path) -> Path:
        to = temp / f"{source.stem}.o"
        call([nvcc, *flags, "-c", source, "-o", to])
        return to

    with ThreadPoolExecutor(jobs) as pool:
        objects = dict(zip(sources, pool.map(compile_one, sources), strict=True))
    missing = temp / "missing.cpp"
    missing.write_text(MISSING)
    for program in (limits, kernel_program):
        mine = [objects[limits]] if program == limits else [
            o for source, o in objects.items() if source != limits
        ]  # fmt: skip
        call([nvcc, *flags, *mine, missing, "-o", temp / program.stem])
        (temp / program.stem).replace(out / program.stem)


def build(python: str, out: Path, arch: str, jobs: int, parts: Sequence[str] = PARTS) -> None:
    """Into `out`, where only what was built before is replaced. Without an architecture, the
    extension for the CPU alone."""
    built_of = hashes()
    out.mkdir(parents=True, exist_ok=True)
    (out / "HASH").unlink(missing_ok=True)
    with ThreadPoolExecutor(2) as pool:
        work = []
        if "library" in parts:
            shutil.rmtree(out / "fastrnn", ignore_errors=True)
            work.append(pool.submit(build_library, python, out, arch, jobs))
        if "programs" in parts and arch:
            for name in PROGRAMS:
                (out / name).unlink(missing_ok=True)
            work.append(pool.submit(build_programs, out, arch, max(jobs // len(parts), 1)))
        for one in work:
            one.result()
    (out / "HASH").write_text(" ".join(built_of) + "\n")


def too_new(path: Path) -> Iterator[str]:
    """Symbols of the C and C++ libraries that the machine may not have."""
    listed = subprocess.run(["objdump", "-T", path], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        found = re.search(r"\*UND\*.*\((GLIBC|GLIBCXX)_([\d.]+)\)\s+(\S+)", line)
        if found and tuple(map(int, found[2].split("."))) > NEWEST[found[1]]:
            yield f"{path}: {found[3]} of {found[1]} {found[2]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "build/gpu", metavar="DIR", help="(build/gpu)")
    add("--python", help="of the machine's version; without it, it is looked for")
    add("--version", default="3.12", help="of the machine's Python (3.12)")
    add("--torch", default="2.11.0", help="the machine's (2.11.0)")
    add("--arch", default="90a", help="the GPU's, such as 80 (90a), or empty: for the CPU alone")
    add("--jobs", type=int, default=jobs, help="compilers at once")
    add("--here", action="store_true", help="with this Python, for this machine")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    args = parser.parse_args(argv)
    if args.here:
        build(sys.executable, args.out.absolute(), args.arch, args.jobs, args.parts)
        return
    if args.python and shutil.which(args.python) is None:
        parser.error(f"--python: no such program: {args.python}")
    python = environment(args.python or find_python(args.version), args.torch)
    build(python, args.out.absolute(), args.arch, args.jobs, args.parts)
    built = [args.out / name for name in (*PROGRAMS, "HASH")]
    files = [path for path in (*built, *(args.out / "fastrnn").rglob("*")) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{args.out}: {size / 2**20:.1f} MiB, sources {(args.out / 'HASH').read_text().strip()}")
    compiled = [p for p in files if p.suffix == ".so" or p.name in PROGRAMS]
    bad = [symbol for path in compiled for symbol in too_new(path)]
    if size > MOST_BYTES:
        bad.append(f"more than {MOST_BYTES >> 20} MiB")
    if bad:
        sys.exit("\n".join(["gpu-prepare: the machine may not run this:", *bad]))


if __name__ == "__main__":
    main()
