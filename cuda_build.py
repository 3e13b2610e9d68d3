"""How the CUDA half is compiled: by nvcc, which never sees torch. For torch_build.py and wheels.py.

As a program it compiles every kernel for every architecture, without a GPU, prints what each needs,
and fails if a kernel keeps registers in memory:

    python cuda_build.py --archs 80 90a

For sm_90a it also shows what the machine code is like (benchmarks/gpu/machine_code.py).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parent
# 90a and not 90: the same machine code, and room for what only Hopper has.
ARCHS = ["75", "80", "86", "87", "89", "90a", "100", "110", "120"]
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]
LIBRARIES = ["cudart_static", "dl", "rt", "pthread"]  # the runtime; torch's is of its own version
# No --use_fast_math: it changes divisions, square roots and denormals everywhere. No -lineinfo: it
# makes the kernels three times as large; add it to profile them.

# Names that torch's TORCH_CUDA_ARCH_LIST takes as well; the kernels need Turing or later.
NAMES = {
    "Kepler": "3.5", "Maxwell": "5.0 5.2", "Pascal": "6.0 6.1", "Volta": "7.0", "Turing": "7.5",
    "Ampere": "8.0 8.6", "Ada": "8.9", "Hopper": "9.0a", "Blackwell": "10.0 10.3 12.0 12.1",
    "Kepler+Tesla": "3.7", "Maxwell+Tegra": "5.3", "Volta+Tegra": "7.2", "Ampere+Tegra": "8.7",
    "Blackwell+Tegra": "11.0",
}  # fmt: skip

# CPU seconds of a build, measured on an AMD EPYC 9004: 110 without CUDA, 277 with sm_90a, whose
# kernels take the longest; 691 for the kernels of all nine architectures (make cuda-check).
CPU_SECONDS = 110
CUDA_HOST_SECONDS = 60
CUDA_ARCH_SECONDS = 75

# The CPU time that nvcc may take for all architectures, and the size of the code: CONTRIBUTING.md.
BUDGET_SECONDS = 900
BUDGET_MB = 80

# What the compiler sees of C++: comments and white space match without a group.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\s+|(R"(\w*)\(.*?\)\2"|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|\w+|.)""",
    re.DOTALL,
)

MAY_USE_STACK = {"check_lengths_kernel"}  # for the arguments of printf


def say(message: str) -> None:
    print(f"fastrnn: {message}", file=sys.stderr)


def find_nvcc() -> str | None:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin/nvcc").exists():
            return str(Path(home) / "bin/nvcc")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def toolkit(nvcc: str) -> Path:
    """The folder that holds include/ and lib/, even if nvcc is a script that calls another."""
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


def number(arch: str) -> int:
    return int(arch.rstrip("af"))


def all_archs(nvcc: str) -> list[str]:
    """Those of ARCHS that this nvcc compiles for."""
    known = known_archs(nvcc)
    return [arch for arch in ARCHS if number(arch) in known]


def known_archs(nvcc: str) -> set[int]:
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    return {int(arch) for arch in re.findall(r"sm_(\d+)", listed.stdout)}


def too_old(arch: str) -> bool:
    return number(arch) < number(ARCHS[0])


def listed_archs(wanted: str) -> list[str]:
    """The architectures of TORCH_CUDA_ARCH_LIST, such as "7.0;8.0 9.0a+PTX" or "Ampere;Hopper".

    PTX of the newest is always built, so "+PTX" changes nothing.
    """
    entries = []
    for entry in re.split(r"[ ;,]+", wanted.strip(" ;,")):
        entries += NAMES.get(entry.removesuffix("+PTX"), entry).split()
    wrong = [e for e in entries if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", e)]
    if wrong:
        sys.exit(
            "fastrnn: expected TORCH_CUDA_ARCH_LIST to hold numbers such as 8.0 or 9.0a+PTX and "
            f"names such as {', '.join(NAMES)}, got {wrong[0]!r} in {wanted!r}."
        )
    archs = [e.removesuffix("+PTX").replace(".", "") for e in entries]
    old = [e for e, arch in zip(entries, archs, strict=True) if too_old(arch)]
    if old:
        say(f"skipping {' '.join(old)} of TORCH_CUDA_ARCH_LIST: the kernels need 7.5 or later.")
    return sorted({arch for arch in archs if not too_old(arch)}, key=number)


def archs_to_build(
    nvcc: str | None, torch_has_cuda: bool, gpus: list[tuple[int, int]]
) -> list[str]:
    """The architectures to compile the CUDA kernels for; none means a build for the CPU only.

    FASTRNN_CUDA=0 builds for the CPU, FASTRNN_CUDA=1 for CUDA, and unset means CUDA if torch has it
    and it is wanted: TORCH_CUDA_ARCH_LIST names architectures, or there is a GPU. With neither,
    FASTRNN_CUDA=1 builds for every architecture.

    Args:
        nvcc: Where it is, or None.
        torch_has_cuda: Whether torch was built with CUDA.
        gpus: Compute capabilities of the GPUs that torch sees.
    """
    choice = os.environ.get("FASTRNN_CUDA") or None
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;,")
    if choice not in (None, "0", "1"):
        sys.exit(f"fastrnn: expected FASTRNN_CUDA to be 0 or 1, got {choice!r}.")
    if choice == "0" or (choice is None and not torch_has_cuda):
        return []

    def without(why: str) -> list[str]:
        if choice == "1":
            sys.exit(f"fastrnn: FASTRNN_CUDA=1 asks for the CUDA kernels, but {why}")
        say(f"building for the CPU only, without the CUDA kernels: {why}")
        return []

    if choice is None and not wanted and not gpus:
        return without("no GPU is visible. FASTRNN_CUDA=1 builds them for every architecture.")
    if nvcc is None:
        return without("no nvcc was found. Put it on the PATH or set CUDA_HOME.")
    known = known_archs(nvcc)
    if wanted and wanted != "native":
        archs = listed_archs(wanted)
        if not archs:
            return without(f"TORCH_CUDA_ARCH_LIST={wanted} names no architecture of 7.5 or later.")
    elif gpus:
        archs = [f"{major}{minor}" for major, minor in sorted(set(gpus))]
        archs = [arch + "a" if arch + "a" in ARCHS else arch for arch in archs if not too_old(arch)]
        if not archs:
            return without("the GPU is older than compute capability 7.5.")
    else:
        return all_archs(nvcc)
    unknown = [arch for arch in archs if number(arch) not in known]
    if unknown:
        return without(f"{nvcc} does not support sm_{unknown[0]}. Install a newer CUDA toolkit.")
    return archs


def announcement(archs: list[str]) -> str:
    """What a build compiles, and about how long that takes."""
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    cuda_seconds = CUDA_HOST_SECONDS + CUDA_ARCH_SECONDS * len(archs) if archs else 0
    minutes = (CPU_SECONDS + cuda_seconds) / jobs / 60
    kernels = "CPU kernels" + (f", CUDA kernels for {' '.join(archs)}" if archs else "")
    return f"compiling with {jobs} jobs, in about {max(1, round(minutes))} min: {kernels}"


def gencode(names: list[str]) -> list[str]:
    """Machine code for each, and PTX for the newest, which serves later GPUs.

    PTX for 90a would serve no other GPU, so it is for 90.
    """
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in names]
    newest = max(map(number, names))
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def compile_flags(archs: list[str], nvcc: str) -> list[str]:
    """They name nvcc's version, so that everything is compiled again after an update of it."""
    return [*FLAGS, *gencode(archs), f"-I{ROOT / 'csrc'}", f"-DFASTRNN_NVCC={version(nvcc)}"]


def sources() -> list[Path]:
    """Every C++ and CUDA file of the library, headers too."""
    return [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu", ".h", ".cuh")]


def library_sources() -> list[Path]:
    """The sources that do not use torch: in a wheel, one library serves every torch."""
    folder = ROOT / "csrc/cuda"
    return [*sorted(folder.glob("*.cu")), folder / "choose.cpp", folder / "runtime.cpp"]


def kernel_sources() -> list[Path]:
    """What the kernels' machine code is compiled from: csrc/cuda/*.cu and all that they include."""
    found: set[Path] = set()
    left = list((ROOT / "csrc/cuda").glob("*.cu"))
    while left:
        path = left.pop()
        found.add(path)
        included = re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
        left += {p for name in included if (p := ROOT / "csrc" / name).exists()} - found
    return sorted(found)


def write_header(folder: Path, archs: list[str], nvcc: str) -> None:
    """Write what csrc/cuda/runtime.cpp says about the build."""
    names = " ".join(f"sm_{arch}" for arch in archs)
    text = (
        f'#define FASTRNN_CUDA_ARCHS "{names}"\n'
        f'#define FASTRNN_KERNELS_HASH "{source_hash(kernel_sources(), version(nvcc))}"\n'
    )
    header = folder / "cuda_build.h"
    if not header.exists() or header.read_text() != text:  # else nothing is compiled again
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


def version(nvcc: str) -> str:
    """Such as "V13.0.88"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV\d[\d.]*", text)
    return found[0] if found else text


def source_hash(paths: Iterable[Path], compiler: str = "") -> str:
    """A hash of what is compiled: the same if only comments, white space or documents differ."""
    digest = hashlib.sha256(" ".join([*FLAGS, compiler]).encode())
    for path in sorted(paths):
        tokens = (match[1] for match in TOKEN.finditer(path.read_text()))
        digest.update("\n".join(filter(None, tokens)).encode())
    return digest.hexdigest()[:12]


def resources(nvcc: str, source: str, arch: str, cubin: Path) -> list[tuple[str, dict[str, int]]]:
    """Compile a file; return what ptxas says of each kernel: registers, stack, spills."""
    run = subprocess.run(
        [nvcc, *FLAGS, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-cubin",
         source, "-o", cubin],
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
    # Configurations by their names, without the kernel's: the numbers after its two enums.
    configuration = r"Configuration\{[^}]*?\d+, [^}]*?\d+, (\d+), (\d+), (\d+), [^}]*\}"
    short = [re.sub(configuration, r"\1x\2x\3", line) for line in short]
    return [re.sub(r"\(fastrnn.*|\((?![^<]*>).*$", "", line) for line in short]


def show_resources(results: list[tuple[str, list[tuple[str, dict[str, int]]]]]) -> int:
    """Print a line for each kernel and architecture; return how many keep registers in memory."""
    bad = 0
    print(f"{'kernel':<88} {'arch':>5} {'registers':>9} {'stack':>5} {'spilled':>7}")
    for arch, kernels in results:
        names = demangled([name for name, _ in kernels])
        for name, (_, used) in sorted(zip(names, kernels, strict=True)):
            spilled = used["stores"] + used["loads"]
            print(f"{name:<88} {arch:>5} {used['registers']:>9} {used['stack']:>5} {spilled:>7}")
            bad += bool(spilled or (used["stack"] and name not in MAY_USE_STACK))
    return bad


def main() -> None:
    import resource  # not on Windows

    from benchmarks.gpu import machine_code  # not where the library alone is built

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--archs", nargs="+", help="such as 80 90a (default: all that are built)")
    parser.add_argument("--only", default="", help="only files whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--keep", action="store_true", help="write the machine code's table, to commit"
    )
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("cuda-check: no nvcc; set CUDA_HOME or put it on the PATH")
    archs = options.archs or all_archs(nvcc)
    if options.keep and (options.only or machine_code.ARCH not in archs):
        parser.error(f"--keep needs every file for {machine_code.ARCH}")
    sources = [s for s in sorted(glob(str(ROOT / "csrc/cuda/*.cu"))) if options.only in s]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        work = [(s, a, Path(folder, f"{Path(s).stem}.{a}")) for s in sources for a in archs]
        results = list(pool.map(lambda job: resources(nvcc, *job), work))
        if not any(results):
            sys.exit("cuda-check: found no kernel")
        bad = show_resources([(a, found) for (_, a, _), found in zip(work, results, strict=True)])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"nvcc: {used.ru_utime + used.ru_stime:.0f} CPU seconds, for all architectures at most "
            f"{BUDGET_SECONDS}; machine code: {sum(c.stat().st_size for *_, c in work) / 1e6:.1f} "
            f"MB, at most {BUDGET_MB}"
        )
        looked_at = [
            (cubin, found) for (_, arch, cubin), found in zip(work, results, strict=True)
            if arch == machine_code.ARCH
        ]  # fmt: skip
        if looked_at:
            machine_code.report(
                nvcc, version(nvcc), source_hash(kernel_sources(), version(nvcc)),
                [cubin for cubin, _ in looked_at],
                {name: used["registers"] for _, found in looked_at for name, used in found},
                demangled, whole=not options.only, keeps=options.keep,
            )  # fmt: skip
    if bad:
        sys.exit(f"cuda-check: {bad} kernels keep registers in memory")


if __name__ == "__main__":
    main()
