"""Plant one fault after the other in the CPU's kernels, and see that the fuzzer finds each.

``make planted`` copies csrc to build/planted, where only the object that a fault is in is compiled
again. First the fuzzer runs as long without a fault, and must find nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[1]
PLANTED = ROOT / "build/planted"


@dataclass(frozen=True)
class Fault:
    """In a file of csrc/cpu, ``new`` in place of ``old``; found with an instruction set."""

    name: str
    file: str
    old: str
    new: str
    isa: str = "avx2"

    @property
    def source(self) -> str:
        """What compiles the file."""
        return self.file if self.file.endswith(".cpp") else f"kernels_{self.isa}.cpp"

    def planted(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {text.count(self.old)} places in {self.file}, not one")
        return text.replace(self.old, self.new)


FAULTS = [
    # thresholds and how the work is cut
    Fault("the last row of the last thread is left out", "choose.cpp",
          "if (index == size) return s.batch;", "if (index == size) return s.batch - 1;"),
    Fault("sums are split where threads have rows for other tiles", "choose.cpp",
          "kSplitBatch = 2;", "kSplitBatch = 8;"),
    Fault("blocks of 96 rows drop what does not divide", "layer.h",
          "(end - begin + blocks - i - 1) / (blocks - i)", "(end - begin) / (blocks - i)"),
    Fault("a chunk of steps has more rows than its buffers", "layer.h",
          "fused ? 1 : kBlockRows / rows;", "fused ? 1 : kBlockRows / rows + 1;"),
    Fault("a chunk's later steps start from its first rows", "layer.h",
          "fused ? nullptr : gate_rows + done;", "fused ? nullptr : gate_rows;"),
    Fault("a block of 256 rows overwrites the sums of the block before", "grads.h",
          "panel, w_ih, add);", "panel, w_ih, false);"),
    Fault("units from the 257th on take the gradients of the first", "grads.h",
          "grad_rows[k] + first, size * sizeof(C)", "grad_rows[k], size * sizeof(C)"),
    Fault("two panels at once begin at the wrong one, walking back", "tile.h",
          "panels.begin(both && p.back ? other : panel);", "panels.begin(panel);"),
    # strides
    Fault("hx has dense layers", "stack.cpp",
          "index * s_.hx_layer_stride * bytes_", "index * s_.steps.batch * H_ * bytes_"),
    Fault("hx has dense rows", "layer.h",
          "original_row(steps, begin + i) * task.hx_row_stride;",
          "original_row(steps, begin + i) * H;"),
    Fault("hx has dense rows in a weight's gradient", "grads.h",
          "original_row(steps, i) * task.hx_row_stride;", "original_row(steps, i) * H;"),
    Fault("reset has dense rows", "layer.h", "row * steps.reset_row_stride", "row"),
    Fault("padded sequences have dense steps", "layer.h",
          "return data + t * x.step_stride +", "return data + t * steps.batch * x.row_stride +"),
    # packed, lengths, reverse, reset
    Fault("packed data has as many rows at the last step as at the first", "stack.cpp",
          "s.start[s.seq_len - 1] + s.active[s.seq_len - 1]", "s.start[s.seq_len - 1] + s.batch"),
    Fault("packed rows begin a row late", "layer.h",
          "(steps.start[t] + i) * x.row_stride", "(steps.start[t] + i + (t > 8)) * x.row_stride"),
    Fault("hn stands in the order of the lengths", "layer.h",
          "static_cast<S*>(task.hn) + original_row(steps, begin + i) * H",
          "static_cast<S*>(task.hn) + (begin + i) * H"),
    Fault("a row without a step forgets hx", "layer.h",
          "std::memcpy(hn_row(i), hx_row(i), H * sizeof(S));",
          "std::memset(hn_row(i), 0, H * sizeof(S));"),
    Fault("a row without a step forgets the gradient of hn", "layer.h",
          "if (i >= present && task.grad_hn) {", "if (i > present && task.grad_hn) {"),
    Fault("hn is the last step's in the reverse direction too", "layer.h",
          "if (!walk.present(walk.after(t), begin + i)) std::memcpy(hn_row(i)",
          "if (!walk.present(t + 1, begin + i)) std::memcpy(hn_row(i)"),
    Fault("a reset cuts a step early in the reverse direction", "layer.h",
          "const int64_t later = t > neighbour ? t : neighbour,",
          "const int64_t later = reverse ? t : t > neighbour ? t : neighbour,"),
    Fault("a sequence that begins anew takes hx", "layer.h",
          "walk.begins_anew(t, begin + i) ? zeros : hx_rows[i];", "hx_rows[i];"),
    Fault("gradients pass a reset", "layer.h",
          "carry_rows[i] = walk.goes_on(t, begin + i) ?",
          "carry_rows[i] = walk.present(walk.after(t), begin + i) ?"),
    Fault("a weight's gradient takes hx at a reset", "grads.h",
          "} else if (task.hx && !walk.begins_anew(t, i)) {", "} else if (task.hx) {"),
    # dropout, layers, directions
    Fault("dropout is left out forward", "layer.h", "&(m *= buffer[k])", "&(m = buffer[k])"),
    Fault("dropout is left out back", "grads.h", "out_rows[r][k] *= m;", "(void)m;"),
    Fault("each thread that shares columns drops out", "grads.h",
          "r < n && share.part == 0; ++r", "r < n; ++r"),
    Fault("layers without gradients share one buffer", "stack.cpp",
          "buffers[layer & 1]", "buffers[0]"),
    Fault("the reverse direction hands no gradient down", "grads.h",
          "if (task.num_directions == 2) product.terms[1].depth = H;", ""),
    # dtypes and the tails of vectors
    Fault("the last of the halves behind a vector is not written", "simd.h",
          "for (; i < n; ++i) from_float(from[i], to[i]);",
          "for (; i + 1 < n; ++i) from_float(from[i], to[i]);"),
    Fault("halves behind the end of a row are read", "simd.h",
          "widen(buffer, p, n);", "widen(buffer, p, kLanes<C>);"),
    Fault("halves as subnormal as they come are read as normal", "simd.h",
          "if (rest < 0x400) return", "if (rest < 0x400 && rest > 0x3ff) return", "baseline"),
    Fault("the last of an odd depth is not packed in a pair", "pack.h",
          "const int64_t pairs = (depth + 1) / 2;", "const int64_t pairs = depth / 2;",
          "avx512_bf16"),
    Fault("a pair is read behind the end of an odd row", "tile.h",
          "return uint32_t{p[depth - 1].bits};", "return pair_at(p + depth - 1);", "avx512_bf16"),
    Fault("the row behind the last of an odd number is paired with it", "grads.h",
          "k + 1 < depth ? grad_rows[k + 1] + first : nullptr",
          "k + 1 < kDepthBlock ? grad_rows[k] + first : nullptr", "avx512_bf16"),
    Fault("a tile is written to the end of its last vector", "tile.h",
          "const int whole = last < L ? vectors - 1 : vectors;", "const int whole = vectors;"),
    Fault("a dot product is written to the end of its vector", "product.h",
          "n < L ? store_first(p.out[r] + c, y, n) : store(p.out[r] + c, y);",
          "store(p.out[r] + c, y);"),
    Fault("a dot product reads whole vectors", "product.h",
          "step(k, static_cast<int>(depth - k));", "step(k, L);"),
    Fault("weights as they came are read in whole vectors", "tile.h",
          "load_widened<C>(at, kWhole || v < kVectors - 1 ? L : last);",
          "load_widened<C>(at, L);"),
    Fault("rows behind the end of a matrix are packed", "pack.h",
          "block[c] = c < inside(v) ? load_widened<C>(from + c * ld + k, steps) : Vec<C>{};",
          "block[c] = load_widened<C>(from + c * ld + k, steps);"),
    Fault("a split sum forgets the last of an odd depth", "tile.h",
          "if (depth % 2) step(acc, k);", ""),
    Fault("relu's gradient passes at zero", "tile.h",
          "h <= 0 ? Vec<C>{} : x", "h < 0 ? Vec<C>{} : x"),
    # barriers
    Fault("no wait at the end of a step whose columns are shared", "layer.h",
          "done += n;\n      wait(share);", "done += n;"),
    Fault("no wait for the weights to be packed", "stack.cpp",
          "memory += size(i, 2);\n    }\n    team.wait();", "memory += size(i, 2);\n    }"),
    # gradients
    Fault("the gradient of w_hh takes the state of its own step", "grads.h",
          "row_of<const S>(task.state, steps, walk.before(t), i);",
          "row_of<const S>(task.state, steps, t, i);"),
    Fault("b_hh has no gradient", "stack.cpp", "? grads[3] : nullptr", "? grads[2] : nullptr"),
]  # fmt: skip


def compile_object(csrc: Path, source: str, to: Path, more: Sequence[str] = ()) -> None:
    flags = ["-std=c++20", "-O1", "-g0", "-fPIC", "-fopenmp", "-fno-math-errno"]
    flags += ["-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
    flags += ["-DTORCH_EXTENSION_NAME=fastrnn_kernels", f"-I{csrc}"]
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    path = ROOT / "tests" / source if source == "kernels_module.cpp" else csrc / "cpu" / source
    subprocess.run(["g++", *flags, *more, "-c", str(path), "-o", str(to)], check=True)


def link(objects: dict[str, Path], to: Path, more: Sequence[str] = ()) -> None:
    command = ["g++", "-shared", "-fopenmp", *more, *map(str, objects.values()), "-o", str(to)]
    subprocess.run(command, check=True)


def fuzz(module: Path, isa: str, seconds: float) -> str:
    """The first failure, or nothing."""
    command = [sys.executable, str(ROOT / "tests/fuzz.py"), "--entries", "raw", "--no-shrink"]
    command += ["--isa", isa, "--seconds", str(seconds), "--kernels", str(module)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode == 0:
        return ""
    if "--repeat" not in ended.stdout:
        raise RuntimeError(ended.stdout + ended.stderr)
    return ended.stdout.split("\n  ")[1].splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each fault")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name has such words")
    parser.add_argument("--skip-clean", action="store_true", help="no run without a fault")
    options = parser.parse_args()
    csrc = PLANTED / "csrc"
    shutil.rmtree(csrc, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", csrc)
    sources = [path.name for path in (csrc / "cpu").glob("*.cpp") if path.name != "rnn_cpu.cpp"]
    objects = {name: PLANTED / f"{name}.o" for name in [*sources, "kernels_module.cpp"]}
    for source, to in objects.items():
        compile_object(csrc, source, to)
    clean = PLANTED / "fastrnn_kernels.so"
    link(objects, clean)
    faults = [f for f in FAULTS if any(words in f.name for words in options.only)]
    for isa in sorted({f.isa for f in faults}) if not options.skip_clean else []:
        wrong = fuzz(clean, isa, options.seconds)
        if wrong:
            print(f"without a fault, {isa}: {wrong}")
            return 1
    missed = []
    for fault in faults:
        path = csrc / "cpu" / fault.file
        right = path.read_text()
        path.write_text(fault.planted(right))
        to, module = PLANTED / "fault.o", PLANTED / "fault.so"
        compile_object(csrc, fault.source, to)
        path.write_text(right)
        link(objects | {fault.source: to}, module)
        begin = time.monotonic()
        wrong = fuzz(module, fault.isa, options.seconds)
        seconds = time.monotonic() - begin
        found = f"found in {seconds:.0f} s: {wrong[:90]}" if wrong else "MISSED"
        print(f"{fault.name}: {found}", flush=True)
        if not wrong:
            missed.append(fault.name)
    print(f"{len(faults) - len(missed)} of {len(faults)} faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
