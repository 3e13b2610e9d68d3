"""How the CUDA half is compiled: by nvcc, which never sees torch. setup.py uses this file.

As a program it compiles every kernel for every architecture, without a GPU, prints what each needs,
and fails where a kernel keeps registers in memory:

    python cuda_build.py --archs 80 90a
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parent
# 90a and not 90: the same machine code, and room for what only Hopper has.
ARCHS = ["75", "80", "86", "89", "90a", "100", "120"]
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]
# No --use_fast_math: it changes divisions, square roots and denormals everywhere. No -lineinfo: it
# makes the kernels three times as large; add it to profile them.

MAY_USE_STACK = {"check_lengths_kernel"}  # for the arguments of printf


def find_nvcc() -> str | None:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin/nvcc").exists():
            return str(Path(home) / "bin/nvcc")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def toolkit(nvcc: str) -> Path:
    """The folder that holds include/ and lib/, also where nvcc is a script that calls another."""
    run = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
                         capture_output=True, text=True)  # fmt: skip
    top = re.search(r"^#\$ TOP=(.+)$", run.stderr, re.MULTILINE)
    if top is None:
        sys.exit(f"fastrnn: {nvcc} does not say where its toolkit is:\n{run.stderr}")
    return Path(top[1].strip()).resolve()


def library_folder(home: Path) -> Path:
    for folder in (home / "lib64", home / "lib", home / "targets/x86_64-linux/lib"):
        if (folder / "libcudart_static.a").exists():
            return folder
    sys.exit(f"fastrnn: no libcudart_static.a below {home}")


def archs(nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST where it is set ("8.0 9.0a+PTX"), else what of ARCHS nvcc knows."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wanted:
        return [a.replace(".", "").removesuffix("+PTX") for a in re.split(r"[ ;]+", wanted.strip())]
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"sm_(\d+)", listed.stdout))
    return [a for a in ARCHS if a.rstrip("a") in known]


def gencode(names: list[str]) -> list[str]:
    """Machine code of each, and PTX of the newest for those that come later."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in names]
    newest = max(names, key=lambda a: int(re.sub(r"\D", "", a)))
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def compile_flags(nvcc: str) -> list[str]:
    return [*FLAGS, *gencode(archs(nvcc)), f"-I{ROOT / 'csrc'}"]


def resources(nvcc: str, source: str, arch: str) -> list[tuple[str, dict[str, int]]]:
    """What ptxas says of each kernel of a file: registers, stack, spills, barriers."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [nvcc, *FLAGS, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-cubin",
             source, "-o", f"{folder}/kernels.cubin"],
            capture_output=True, text=True,
        )  # fmt: skip
    if run.returncode:
        sys.exit(f"{source}, sm_{arch}:\n{run.stdout}{run.stderr}")
    found = []
    pattern = (
        r"Compiling entry function '(?P<name>\S+)'.*?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers"
    )
    for match in re.finditer(pattern, run.stderr, re.DOTALL):
        numbers = {k: int(v) for k, v in match.groupdict().items() if k != "name"}
        found.append((match["name"], numbers))
    return found


def demangled(names: list[str]) -> list[str]:
    filt = shutil.which("cu++filt") or shutil.which("c++filt")
    if filt is None or not names:
        return names
    run = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True, check=True)
    short = [re.sub(r"fastrnn::cuda::|\(anonymous namespace\)::|^void ", "", line)
             for line in run.stdout.splitlines()]  # fmt: skip
    return [re.sub(r"\(fastrnn.*|\((?![^<]*>).*$", "", line) for line in short]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--archs", nargs="+", help="such as 80 90a; without it, all that are built")
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("cuda-check: no nvcc; set CUDA_HOME or put it on the PATH")
    sources = [s for s in sorted(glob(str(ROOT / "csrc/cuda/*.cu"))) if options.only in s]
    work = [(s, a) for s in sources for a in options.archs or archs(nvcc)]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: resources(nvcc, *job), work))
    bad = 0
    print(f"{'kernel':<88} {'arch':>5} {'registers':>9} {'stack':>5} {'spilled':>7}")
    for (_, arch), kernels in zip(work, results, strict=True):
        names = demangled([name for name, _ in kernels])
        for name, (_, used) in sorted(zip(names, kernels, strict=True)):
            spilled = used["stores"] + used["loads"]
            print(f"{name:<88} {arch:>5} {used['registers']:>9} {used['stack']:>5} {spilled:>7}")
            bad += bool(spilled or (used["stack"] and name not in MAY_USE_STACK))
    if not work or not any(results):
        sys.exit("cuda-check: found no kernel")
    if bad:
        sys.exit(f"cuda-check: {bad} kernels keep registers in memory")


if __name__ == "__main__":
    main()
