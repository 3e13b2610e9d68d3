"""Install wheels where there is no compiler, beside several torches, and try each.

    python tests/project/try_wheels.py --python 3.11 3.13 --torch 2.11.0 2.13.0

Each (Python, torch) gets an environment of its own, in which torch, NumPy and the wheel for this
Python are installed, and no program is on the PATH. It trains, packs, compiles and counts
threads, also where torch is newer than the wheel knows. `--here` tries what is installed already.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements.txt"

# As in pyproject.toml: torch.compile warns on the first release of Python 3.13.
STRICT = ["-W", "error", "-W", "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"]

SMOKE = """
import os, pathlib, sys, torch, fastrnn
from torch import nn

torch.manual_seed(0)
rnn, theirs = fastrnn.RNN(8, 64, 2, bidirectional=True), nn.RNN(8, 64, 2, bidirectional=True)
theirs.load_state_dict(rnn.state_dict())
x = torch.randn(20, 50, 8)  # more rows would be left to torch by kernels with short vectors

threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(1)
rnn(x)
before = threads()
torch.set_num_threads(3)
rnn(x)
assert threads() == before + 2, "torch.set_num_threads does not reach the kernels"
maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
runtimes = {line.split()[-1] for line in maps if "omp" in line.split("/")[-1]}
assert len(runtimes) == 1, f"more than one OpenMP: {runtimes}"

lengths = torch.randint(1, 21, (50,)).sort(descending=True).values
packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
for given in (x, packed):
    grads, outputs = [], []
    for module in (rnn, theirs):
        output = module(given)[0]
        output = output if given is x else output.data
        grads.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
        outputs.append(output)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)

small = fastrnn.RNN(3, 4).double()
first = lambda w: torch.func.functional_call(small, {"weight_hh_l0": w}, (x[:4, :2, :3].double(),))
assert torch.autograd.gradgradcheck(lambda w: first(w)[0], small.weight_hh_l0)
compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x)[0], rnn(x)[0])

kernel = fastrnn.info(rnn, x)["kernel"]
device, isa, dtype = kernel.split()
assert device == "cpu" and isa in ("avx512_bf16", "avx512", "avx2", "baseline", "neon"), kernel
cuda = fastrnn.info()["cuda_kernels"]
if cuda != "not built":  # all that it needs of a torch with CUDA is there
    missing = fastrnn._C.cuda_missing()
    assert (missing == "") == (torch.version.cuda is not None), missing
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: {kernel}; CUDA: {cuda}")
"""


# Where the torch that is there is newer than those that the wheel knows.
NEWER = """
import pathlib, shutil, torch, warnings, importlib.util
package = pathlib.Path(importlib.util.find_spec("fastrnn").origin).parent
this = [int(n) for n in torch.__version__.split(".")[:2]]
for folder in package.glob("_torch*"):
    if [int(n) for n in folder.name.removeprefix("_torch").split("_")] >= this:
        shutil.rmtree(folder)
older = package / "_torch2_9"
older.mkdir()
python = "{}.{}".format(*__import__("sys").version_info)
(older / "_built_for.json").write_text('{"torch": "2.9.0", "python": "%s"}' % python)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import fastrnn
assert sum("of fastrnn supports torch up to" in str(warning.message) for warning in said) == 1
rnn, theirs = fastrnn.RNN(8, 64, 2, bidirectional=True), torch.nn.RNN(8, 64, 2, bidirectional=True)
theirs.load_state_dict(rnn.state_dict())
x = torch.randn(20, 100, 8)
assert torch.equal(rnn(x)[0], theirs(x)[0])
rnn(x)[0].sum().backward()
print("under a newer torch:", fastrnn.info(rnn, x)["kernel"])
"""


def run(*command: object, **variables: str) -> str:
    words = [str(word) for word in command]
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        words, cwd="/", env=kept | variables, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    if ended.returncode:
        sys.exit(f"{ended.stdout}\nfailed: {' '.join(words)[:200]}")
    return ended.stdout


def try_out(version: str, torch: str, args: argparse.Namespace, folder: Path) -> None:
    import cpu_build

    python = cpu_build.find_python(version)
    if python is None:
        sys.exit(f"no python{version} on the PATH or in ~/.pyenv")
    tag = "cp" + version.replace(".", "")
    wheels = list(args.dist.glob(f"fastrnn-*-{tag}-{tag}-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected one wheel for Python {version} in {args.dist}, got {len(wheels)}")
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    mine = folder / "bin/python"
    run(mine, "-m", "pip", "install", "-q", f"torch=={torch}", "numpy")
    start = time.perf_counter()
    run(mine, "-m", "pip", "install", "-q", "--no-deps", wheels[0])
    installed = time.perf_counter()
    said = run(mine, *STRICT, "-c", SMOKE, PATH="/nonexistent")
    end = time.perf_counter()
    if args.cuda and not said.strip().endswith(f"; CUDA: {args.cuda}"):
        sys.exit(f"expected CUDA kernels for {args.cuda}, got {said}")
    newer = run(mine, "-c", NEWER, PATH="/nonexistent")
    took = f"installed in {installed - start:.1f} s, tried in {end - installed:.1f} s"
    print(f"{said.strip()}; {took}\n  {newer.strip()}", flush=True)
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--python", nargs="+", help="versions (those that have wheels)")
    parser.add_argument("--torch", nargs="+", help="versions (that of requirements.txt)")
    parser.add_argument("--dist", type=lambda path: Path(path).resolve(), default=ROOT / "dist")
    parser.add_argument("--cuda", help="architectures that the wheels must have, as sm_80")
    parser.add_argument("--here", action="store_true", help="try what this Python has installed")
    args = parser.parse_args()
    if args.here:
        print(run(sys.executable, *STRICT, "-c", SMOKE).strip())
        return
    tags = {path.name.split("-")[2] for path in args.dist.glob("fastrnn-*.whl")}
    pythons = args.python or sorted(f"3.{tag.removeprefix('cp3')}" for tag in tags)
    torches = args.torch or re.findall("^torch==(.+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    if not pythons or not torches:
        sys.exit(f"expected wheels in {args.dist} and a torch, got {tags} and {torches}")
    for python, torch in itertools.product(pythons, torches):
        folder = ROOT / f"build/try-wheels/python{python}-torch{torch}"
        try_out(python, torch, args, folder.resolve())


if __name__ == "__main__":
    sys.path.append(str(ROOT))
    main()
