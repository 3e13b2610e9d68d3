"""The raw CPU kernels, compiled for aarch64 and run by an emulator: `make test-aarch64`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import cpu_build

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/aarch64"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"  # of Debian's cross compiler


def build() -> Path:
    """Compile the kernels with the flags that they have everywhere, and the program."""
    for name in (COMPILER, EMULATOR):
        if shutil.which(name) is None:
            sys.exit(
                f"no {name}. On Debian and Ubuntu: apt install g++-aarch64-linux-gnu qemu-user"
            )
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [COMPILER, *cpu_build.FLAGS, "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]

    def compile_one(source: Path) -> Path:
        made = BUILD / f"{source.stem}.o"
        subprocess.run([*command, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = [*cpu_build.kernel_sources(), ROOT / "tests/kernels/on_aarch64.cpp"]
        objects = list(pool.map(compile_one, sources))
    program = BUILD / "kernels"
    subprocess.run([*command, *objects, *cpu_build.LIBRARIES, "-o", program], check=True)
    return program


class Kernels:
    """As the module of tests/kernels/kernels_module.cpp, in a process of the emulator."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [EMULATOR, "-L", LIBRARIES, build()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        name, leaves_large_steps = self.process.stdout.readline().split()
        self.name, self.leaves_large_steps = name.decode(), leaves_large_steps == b"1"
        assert self.name == "neon"

    def close(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def available(self, isa: str) -> bool:
        return isa == self.name

    def forward(self, isa, plan, output, hn, saved, *call) -> None:
        self._run(0, plan, call, [], [output, hn, saved])

    def backward(self, isa, plan, saved, grad_output, grad_hn, grad_input, grad_hx, grads, *call):
        self._run(1, plan, call, [saved, grad_output, grad_hn], [grad_input, grad_hx, *grads])

    def _run(self, backward: int, plan, call, read: list, written: list) -> None:
        input, weights, hx, lengths, dtype, relu, bias, num_layers, bidirectional = call
        seq_len, batch, input_size = input.shape
        active = None
        if lengths:
            active = (np.arange(seq_len)[:, None] < np.array(lengths)).sum(1)
        header = [backward, dtype, relu, bias, num_layers, 2 if bidirectional else 1, seq_len,
                  batch, input_size, weights[1].shape[0], plan.get("threads", 1)]  # fmt: skip
        send, receive = self.process.stdin, self.process.stdout
        send.write(np.array(header, np.int64).tobytes())
        # Of what is written to all the memory, with the guards behind it.
        written = [x if x is None or x.base is None else x.base for x in written]
        for x in (*weights, input, hx, active, *read, *written):
            send.write(np.int64(-1 if x is None else x.nbytes).tobytes())
            if x is not None:
                send.write(x.tobytes())
        send.flush()
        for x in written:
            if x is not None:
                x.reshape(-1).view(np.uint8)[:] = np.frombuffer(receive.read(x.nbytes), np.uint8)
