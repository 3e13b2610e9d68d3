"""Install fastrnn in every way into environments of several Pythons and torches, and try each.

    python tests/project/try_install.py --python python3.11 python3.13 --torch 2.11.0 2.15.0 --tests

Into each environment go, one after another: `pip install .`, with and without build isolation, an
editable install, and the sdist. After each, fastrnn is imported from the source folder and from
elsewhere, and trains a step. `--tests` then runs the tests of the sdist against what it installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

STEP = """
import fastrnn, torch
rnn = fastrnn.RNN(3, 64)
rnn(torch.randn(5, 2, 3))[0].sum().backward()
facts = fastrnn.info(rnn)
print(facts["library"], facts["kernel"])
"""


def run(*command: str | Path, cwd: str | Path = "/", show: bool = False) -> str:
    """Return what a command prints, or show it and stop if it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True,
        stdout=None if show else subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nfailed in {cwd}: {' '.join(map(str, command))}")
    return (done.stdout or "").strip()


def copy_sources(folder: Path) -> Path:
    """What git tracks, as it stands in the work tree, so that nothing is built yet."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder: Path, python: str, torch: str) -> Path:
    """The Python of an environment with this torch and with what its tests need."""
    mine = folder / "bin/python"
    if not mine.exists():
        run(python, "-m", "venv", folder)
        run(mine, "-m", "pip", "install", f"torch=={torch}")
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [pin for pin in pins if pin and not pin.startswith(("#", "torch=="))]
    run(mine, "-m", "pip", "install", *pins)
    return mine


def try_out(python: Path, sources: Path) -> None:
    """Train a step from the source folder and from elsewhere: both load the same library."""
    here, elsewhere = (run(python, "-c", STEP, cwd=cwd) for cwd in (sources, "/"))
    print(f"  {here}", flush=True)
    assert here == elsewhere, elsewhere


def try_every_way(python: Path, folder: Path) -> Path:
    """Install in every way; returns the folder of the sdist, which stays installed."""
    sources = copy_sources(folder / "sources")
    pip_install = (python, "-m", "pip", "install", "--no-deps")
    run(python, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, sources)
    sdist = next(folder.glob("fastrnn-*.tar.gz"))
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    shutil.rmtree(unpacked, ignore_errors=True)
    shutil.unpack_archive(sdist, folder)
    ways = {
        "pip install .": (sources, [sources]),
        "pip install --no-build-isolation .": (sources, ["--no-build-isolation", sources]),
        "pip install --no-build-isolation -e .": (sources, ["--no-build-isolation", "-e", sources]),
        f"pip install {sdist.name}": (unpacked, [sdist]),
    }
    for way, (started_in, arguments) in ways.items():
        start = time.perf_counter()
        run(*pip_install, *arguments)
        print(f"  {way}: {time.perf_counter() - start:.0f} s", flush=True)
        try_out(python, started_in)
        if "-e" not in arguments:
            assert str(sources) not in run(python, "-c", STEP), "not what was installed"
        run(python, "-m", "pip", "uninstall", "--yes", "fastrnn")
    run(*pip_install, sdist)
    return unpacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--torch", nargs="+", required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/install")
    parser.add_argument("--tests", action="store_true", help="run the tests in each environment")
    args = parser.parse_args()
    for python in args.python:
        for torch in args.torch:
            version = run(python, "-c", "import platform; print(platform.python_version())")
            print(f"Python {version}, torch {torch}", flush=True)
            folder = args.folder.resolve() / f"python{version}-torch{torch}"
            mine = environment(folder, python, torch)
            unpacked = try_every_way(mine, folder)
            if args.tests:
                run(mine, "-m", "pytest", "-q", "-m", "not slow", "tests", cwd=unpacked, show=True)


if __name__ == "__main__":
    main()
