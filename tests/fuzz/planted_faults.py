"""Plant one fault after the other in the CPU's code, and see that each is found.

``make planted`` copies csrc to build/planted, where only the object that a fault is in is compiled
again. The fuzzer finds those of the kernels, malformed arguments those of the checks. First they
run as long without a fault, and must find nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pybind11
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
PLANTED = ROOT / "build/planted"


@dataclass(frozen=True)
class Fault:
    """In a file of csrc, ``new`` in place of ``old``; found with an instruction set."""

    name: str
    file: str
    old: str
    new: str
    isa: str = "avx2"

    @property
    def source(self) -> str:
        """What compiles the file."""
        return self.file if self.file.endswith(".cpp") else f"cpu/kernels_{self.isa}.cpp"

    def planted(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {text.count(self.old)} places in {self.file}, not one")
        return text.replace(self.old, self.new)


FAULTS = [
    # thresholds and how the work is cut
    Fault("the last row of the last thread is left out", "cpu/choose.cpp",
          "if (index == size) return s.batch;", "if (index == size) return s.batch - 1;"),
    Fault("sums are split where threads have rows for other tiles", "cpu/choose.cpp",
          "kSplitBatch = 2;", "kSplitBatch = 8;"),
    Fault("blocks of 96 rows drop what does not divide", "cpu/layer.h",
          "(end - begin + blocks - i - 1) / (blocks - i)", "(end - begin) / blocks"),
    Fault("a chunk of steps has more rows than its buffers", "cpu/layer.h",
          "fused ? 1 : kBlockRows / rows;", "fused ? 1 : kBlockRows / rows + 1;"),
    Fault("a chunk's later steps start from its first rows", "cpu/layer.h",
          "fused ? nullptr : gate_rows + done;", "fused ? nullptr : gate_rows;"),
    Fault("a block of 256 rows overwrites the sums of the block before", "cpu/grads.h",
          "panel, w_ih, add);", "panel, w_ih, false);"),
    Fault("units from the 257th on take the gradients of the first", "cpu/grads.h",
          "grad_rows[k] + first, size * sizeof(C)", "grad_rows[k], size * sizeof(C)"),
    Fault("two panels at once begin at the wrong one, walking back", "cpu/tile.h",
          "panels.begin(both && p.back ? other : panel);", "panels.begin(panel);"),
    # strides
    Fault("hx has dense layers", "cpu/stack.cpp",
          "index * s_.hx_layer_stride * bytes_", "index * s_.steps.batch * H_ * bytes_"),
    Fault("hx has dense rows", "cpu/layer.h",
          "original_row(steps, begin + i) * task.hx_row_stride;",
          "original_row(steps, begin + i) * H;"),
    Fault("hx has dense rows in a weight's gradient", "cpu/grads.h",
          "original_row(steps, i) * task.hx_row_stride;", "original_row(steps, i) * H;"),
    Fault("reset has dense rows", "cpu/layer.h", "row * steps.reset_row_stride", "row"),
    Fault("padded sequences have dense steps", "cpu/layer.h",
          "return data + t * x.step_stride +", "return data + t * steps.batch * x.row_stride +"),
    # packed, lengths, reverse, reset
    Fault("packed data has as many rows at the last step as at the first", "cpu/stack.cpp",
          "s.start[s.seq_len - 1] + s.active[s.seq_len - 1]", "s.start[s.seq_len - 1] + s.batch"),
    Fault("packed rows begin a row late", "cpu/layer.h",
          "(steps.start[t] + i) * x.row_stride", "(steps.start[t] + i + (t > 8)) * x.row_stride"),
    Fault("hn stands in the order of the lengths", "cpu/layer.h",
          "static_cast<S*>(task.hn) + original_row(steps, begin + i) * H",
          "static_cast<S*>(task.hn) + (begin + i) * H"),
    Fault("a row without a step forgets hx", "cpu/layer.h",
          "std::memcpy(hn_row(i), hx_row(i), H * sizeof(S));",
          "std::memset(hn_row(i), 0, H * sizeof(S));"),
    Fault("a row without a step forgets the gradient of hn", "cpu/layer.h",
          "if (i >= present && task.grad_hn) {", "if (i > present && task.grad_hn) {"),
    Fault("hn is the last step's in the reverse direction too", "cpu/layer.h",
          "if (!walk.present(walk.after(t), begin + i)) std::memcpy(hn_row(i)",
          "if (!walk.present(t + 1, begin + i)) std::memcpy(hn_row(i)"),
    Fault("a reset cuts a step early in the reverse direction", "cpu/layer.h",
          "const int64_t later = t > neighbour ? t : neighbour,",
          "const int64_t later = reverse ? t : t > neighbour ? t : neighbour,"),
    Fault("a sequence that begins anew takes hx", "cpu/layer.h",
          "walk.begins_anew(t, begin + i) ? zeros : hx_rows[i];", "hx_rows[i];"),
    Fault("gradients pass a reset", "cpu/layer.h",
          "carry_rows[i] = walk.goes_on(t, begin + i) ?",
          "carry_rows[i] = walk.present(walk.after(t), begin + i) ?"),
    Fault("a weight's gradient takes hx at a reset", "cpu/grads.h",
          "} else if (task.hx && !walk.begins_anew(t, i)) {", "} else if (task.hx) {"),
    # dropout, layers, directions
    Fault("dropout is left out forward", "cpu/layer.h", "&(m *= buffer[k])", "&(m = buffer[k])"),
    Fault("dropout is left out back", "cpu/grads.h", "out_rows[r][k] *= m;", "(void)m;"),
    Fault("each thread that shares columns drops out", "cpu/grads.h",
          "r < n && share.part == 0; ++r", "r < n; ++r"),
    Fault("layers without gradients share one buffer", "cpu/stack.cpp",
          "buffers[layer & 1]", "buffers[0]"),
    Fault("the reverse direction hands no gradient down", "cpu/grads.h",
          "if (task.num_directions == 2) product.terms[1].depth = H;", ""),
    # dtypes and the tails of vectors
    Fault("the last of the halves behind a vector is not written", "cpu/simd.h",
          "for (; i < n; ++i) from_float(from[i], to[i]);",
          "for (; i + 1 < n; ++i) from_float(from[i], to[i]);"),
    Fault("halves behind the end of a row are read", "cpu/simd.h",
          "widen(buffer, p, n);", "widen(buffer, p, kLanes<C>);"),
    Fault("halves as subnormal as they come are read as normal", "cpu/simd.h",
          "if (rest < 0x400) return", "if (rest < 0x400 && rest > 0x3ff) return", "baseline"),
    Fault("the last of an odd depth is not packed in a pair", "cpu/pack.h",
          "const int64_t pairs = (depth + 1) / 2;", "const int64_t pairs = depth / 2;",
          "avx512_bf16"),
    Fault("a pair is read behind the end of an odd row", "cpu/tile.h",
          "return uint32_t{p[depth - 1].bits};", "return pair_at(p + depth - 1);", "avx512_bf16"),
    Fault("the row behind the last of an odd number is paired with it", "cpu/grads.h",
          "k + 1 < depth ? grad_rows[k + 1] + first : nullptr",
          "k + 1 < kDepthBlock ? grad_rows[k] + first : nullptr", "avx512_bf16"),
    Fault("a tile is written to the end of its last vector", "cpu/tile.h",
          "const int whole = last < L ? vectors - 1 : vectors;", "const int whole = vectors;"),
    Fault("a dot product is written to the end of its vector", "cpu/product.h",
          "n < L ? store_first(p.out[r] + c, y, n) : store(p.out[r] + c, y);",
          "store(p.out[r] + c, y);"),
    Fault("a dot product reads whole vectors", "cpu/product.h",
          "step(k, static_cast<int>(depth - k));", "step(k, L);"),
    Fault("weights as they came are read in whole vectors", "cpu/tile.h",
          "load_widened<C>(at, kWhole || v < kVectors - 1 ? L : last);",
          "load_widened<C>(at, L);"),
    Fault("rows behind the end of a matrix are packed", "cpu/pack.h",
          "block[c] = c < inside(v) ? load_widened<C>(from + c * ld + k, steps) : Vec<C>{};",
          "block[c] = load_widened<C>(from + c * ld + k, steps);"),
    Fault("a split sum forgets the last of an odd depth", "cpu/tile.h",
          "if (depth % 2) step(acc, k);", ""),
    Fault("relu's gradient passes at zero", "cpu/tile.h",
          "h <= 0 ? Vec<C>{} : x", "h < 0 ? Vec<C>{} : x"),
    # barriers
    Fault("no wait at the end of a step whose columns are shared", "cpu/layer.h",
          "done += n;\n      wait(share);", "done += n;"),
    Fault("no wait for the weights to be packed", "cpu/stack.cpp",
          "memory += size(i, 2);\n    }\n    team.wait();", "memory += size(i, 2);\n    }"),
    # gradients
    Fault("the gradient of w_hh takes the state of its own step", "cpu/grads.h",
          "row_of<const S>(task.state, steps, walk.before(t), i);",
          "row_of<const S>(task.state, steps, t, i);"),
    Fault("b_hh has no gradient", "cpu/stack.cpp", "? grads[3] : nullptr", "? grads[2] : nullptr"),
]  # fmt: skip


# These are in what turns tensors into structs, and are found in the extension.
OF_THE_EXTENSION = [
    Fault("packed data has dense rows", "arguments.cpp",
          "return {data, 0, x.stride(0)};", "return {data, 0, x.size(1)};"),
    Fault("a reset before a row without a step takes its hx away", "arguments.cpp",
          "if (lengths) begun = begun.logical_and(lengths->gt(0));", ""),
    Fault("the mask of packed data has no more rows than it", "arguments.cpp",
          "= packed && input.size(0) != shape.rows;", "= false;"),
]  # fmt: skip

# These are in the checks, and are found by malformed arguments.
OF_THE_CHECKS = [
    Fault("no storage is looked at", "arguments.cpp",
          "if (!has_own_storage(impl) || impl.numel() == 0) return;", "return;"),
    Fault("weights are not counted", "arguments.cpp",
          "static_cast<int64_t>(weights.size()) == expected", "expected > 0"),
    Fault("hx may have any size", "arguments.cpp",
          'if (hx) check_tensor("hx", *hx, {count, s.batch, H}, input);', ""),
    Fault("w_hh may have any size", "arguments.cpp",
          'check_tensor("w_hh", weights[first + 1], {H, H}, input, first + 1);', ""),
    Fault("a tensor may have any dtype", "arguments.cpp",
          "TORCH_CHECK(x.scalar_type() == like.scalar_type(),", "TORCH_CHECK(true,"),
    Fault("biases may have any size", "arguments.cpp",
          'check_tensor(k == first + 2 ? "b_ih" : "b_hh", weights[k], {H}, input, k);', ";"),
    Fault("a row may be longer than the input", "cpu/rnn_cpu.cpp",
          "length[b] >= 0 && length[b] <= shape.seq_len,", "length[b] >= 0,"),
    Fault("a gradient may have any size", "arguments.cpp",
          'check_tensor("grad_hn", *grad_hn, {s.states(), s.batch, s.hidden_size}, like);', ""),
]  # fmt: skip

KERNELS = PLANTED / "fastrnn_kernels.so"
EXTENSION = PLANTED / "fastrnn"  # a copy of the package
COMMON = ["-std=c++20", "-g0", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
COMMON += ["-ffp-contract=fast", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=fastrnn_kernels"]


def compile_object(source: Path, to: Path, csrc: Path, more: Sequence[str] = ("-O1",)) -> None:
    includes = [f"-I{csrc}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    includes += [f"-isystem{path}" for path in include_paths()]
    command = ["g++", *COMMON, *more, *includes, "-c", str(source), "-o", str(to)]
    subprocess.run(command, check=True)


def link(objects: Iterable[Path], to: Path, more: Sequence[str] = ()) -> None:
    command = ["g++", "-shared", *map(str, objects), "-lgomp", "-o", str(to), *more]
    subprocess.run(command, check=True)


class Build:
    """csrc, and what it compiles to: the raw kernels' module, or the extension."""

    def __init__(self, extension: bool) -> None:
        self.csrc, self.extension = PLANTED / "csrc", extension
        shutil.rmtree(PLANTED, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", self.csrc)
        sources = [f"cpu/{path.name}" for path in (self.csrc / "cpu").glob("*.cpp")]
        if extension:
            sources += [path.name for path in self.csrc.glob("*.cpp") if path.name != "python.cpp"]
            shutil.copytree(ROOT / "fastrnn", EXTENSION)
        else:
            sources.remove("cpu/rnn_cpu.cpp")
        self.objects = {source: self.compile(source) for source in sources}
        if not extension:
            module = PLANTED / "kernels_module.o"
            compile_object(ROOT / "tests/kernels/kernels_module.cpp", module, self.csrc)
            self.objects["kernels_module.cpp"] = module
        self.link(self.objects)

    def compile(self, source: str, name: str = "") -> Path:
        to = PLANTED / f"{name or Path(source).stem}.o"
        compile_object(self.csrc / source, to, self.csrc)
        return to

    def link(self, objects: dict[str, Path]) -> None:
        if self.extension:
            libraries = [f"-L{path}" for path in library_paths()]
            libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-Wl,-soname,libfastrnn.so"]
            link(objects.values(), EXTENSION / "libfastrnn.so", libraries)
        else:
            link(objects.values(), KERNELS)

    def plant(self, fault: Fault) -> None:
        path = self.csrc / fault.file
        right = path.read_text()
        path.write_text(fault.planted(right))
        faulty = self.compile(fault.source, "fault")
        path.write_text(right)
        self.link(self.objects | {fault.source: faulty})

    def fuzz(self, isa: str, seconds: float) -> str:
        """The first failure, or nothing."""
        command = [sys.executable, str(ROOT / "tests/fuzz/fuzz.py"), "--isa", isa, "--no-shrink"]
        command += ["--seconds", str(seconds), "--entries"]
        environment = dict(os.environ)
        if self.extension:
            command += ["RNN", "functional", "operator", "kernels_of_operators"]
            environment["PYTHONPATH"] = str(PLANTED)
        else:
            command += ["raw", "--kernels", str(KERNELS)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ended.returncode == 0:
            return ""
        if "--repeat" not in ended.stdout:
            raise RuntimeError(ended.stdout + ended.stderr)
        return ended.stdout.split("\n  ")[1].splitlines()[0]

    def malformed(self, isa: str, seconds: float) -> str:
        """The same, of calls with malformed arguments."""
        command = [sys.executable, str(ROOT / "tests/fuzz/malformed.py"), "--count", "20000"]
        environment = dict(os.environ, PYTHONPATH=str(PLANTED))
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process:
            assert process.stdout is not None
            timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            found = next((line for line in process.stdout if "FAULT" in line), "")
            timer.cancel()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return found.split("FAULT: ")[-1].strip()


def missed(faults: list[Fault], extension: bool, seconds: float) -> list[str]:
    """The faults that are not found, or what is found where there is none."""
    build = Build(extension)
    find = build.malformed if faults[0] in OF_THE_CHECKS else build.fuzz
    for isa in sorted({fault.isa for fault in faults}):
        if wrong := find(isa, seconds):
            return [f"without a fault, on {isa}: {wrong}"]
    names = []
    for fault in faults:
        build.plant(fault)
        begin = time.monotonic()
        wrong = find(fault.isa, seconds)
        found = f"found in {time.monotonic() - begin:.0f} s: {wrong[:90]}"
        print(f"{fault.name}: {found if wrong else 'MISSED'}", flush=True)
        if not wrong:
            names.append(fault.name)
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each fault")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name has such words")
    options = parser.parse_args()
    names = []
    for faults, extension in ((FAULTS, False), (OF_THE_EXTENSION, True), (OF_THE_CHECKS, True)):
        chosen = [f for f in faults if any(words in f.name for words in options.only)]
        if chosen:
            names += missed(chosen, extension, options.seconds)
    print("\n".join(["not found:", *names]) if names else "every fault was found")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
