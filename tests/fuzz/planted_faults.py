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
    """In csrc, ``new`` in place of ``old``, which occurs once; found with an instruction set."""

    name: str
    old: str
    new: str
    isa: str = "avx2"

    def source(self, file: Path) -> str:
        """What compiles the file: a kernel, or what includes it."""
        includes = {"places.h", "team.h", "weights.h", "workspace.h"}
        if file.suffix == ".cpp":
            return str(file)
        return "cpu/stack.cpp" if file.name in includes else f"cpu/kernels_{self.isa}.cpp"


def file_of(text: str, csrc: Path) -> Path:
    """The one file of the CPU's half that contains a text, below csrc; it does so once."""
    files = [*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp"), *csrc.glob("cpu/*.h")]
    counts = {path.relative_to(csrc): path.read_text().count(text) for path in files}
    found = [path for path, count in counts.items() if count]
    if len(found) != 1 or counts[found[0]] != 1:
        raise ValueError(f"expected once: {text}, got {[(str(p), counts[p]) for p in found]}")
    return found[0]


FAULTS = [
    # thresholds and how the work is cut
    Fault("the last row of the last thread is left out",
          "if (index == size) return s.batch;", "if (index == size) return s.batch - 1;"),
    Fault("sums are split where threads have rows for other tiles",
          "kSplitBatch = 2;", "kSplitBatch = 8;"),
    Fault("blocks of 96 rows drop what does not divide",
          "(end - begin + blocks - i - 1) / (blocks - i)", "(end - begin) / blocks"),
    Fault("a chunk of steps has more rows than its buffers",
          "fused_ ? 1 : kBlockRows / block.rows)", "fused_ ? 1 : kBlockRows / block.rows + 1)"),
    Fault("a chunk's later steps start from its first rows",
          "step(s, gate_rows_ + done);", "step(s, gate_rows_);"),
    Fault("a block of 256 rows overwrites the sums of the block before",
          "panel_, w_ih, add);", "panel_, w_ih, false);"),
    Fault("units from the 257th on take the gradients of the first",
          "grad_rows_[k] + first, size * sizeof(C)", "grad_rows_[k], size * sizeof(C)"),
    Fault("two panels at once begin at the wrong one, walking back",
          "panels.begin(p.back ? other : panel)", "panels.begin(panel)"),
    # strides
    Fault("hx has dense layers",
          "index * s_.hx_layer_stride * bytes_", "index * s_.steps.batch * H_ * bytes_"),
    Fault("hx has dense rows",
          "const S*>(hx) + block_.original(i) * task_.hx_row_stride;",
          "const S*>(hx) + block_.original(i) * H_;"),
    Fault("hx has dense rows in a weight's gradient",
          "original_row(steps, i) * task_.hx_row_stride;", "original_row(steps, i) * H_;"),
    Fault("reset has dense rows", "row * steps.reset_row_stride", "row"),
    Fault("padded sequences have dense steps",
          "return data + t * x.step_stride +", "return data + t * steps.batch * x.row_stride +"),
    # packed, lengths, reverse, reset
    Fault("packed data has as many rows at the last step as at the first",
          "s.start[s.seq_len - 1] + s.active[s.seq_len - 1]", "s.start[s.seq_len - 1] + s.batch"),
    Fault("packed rows begin a row late",
          "(steps.start[t] + i) * x.row_stride", "(steps.start[t] + i + (t > 8)) * x.row_stride"),
    Fault("hn stands in the order of the lengths",
          "static_cast<S*>(task_.hn) + block_.original(i) * H_",
          "static_cast<S*>(task_.hn) + (block_.begin + i) * H_"),
    Fault("a row without a step forgets hx",
          "std::memcpy(hn_row(i), hx_row(hx, i), H_ * sizeof(S));",
          "std::memset(hn_row(i), 0, H_ * sizeof(S));"),
    Fault("a row without a step has any hn, where there is no hx",
          "std::memset(hn_row(i), 0, H_ * sizeof(S));", ";"),
    Fault("a row without a step forgets the gradient of hn",
          "i >= block_.present() && task_.grad_hn", "i > block_.present() && task_.grad_hn"),
    Fault("hn is the last step's in the reverse direction too",
          "return !walk.present(walk.after(t), begin + i);",
          "return !walk.present(t + 1, begin + i);"),
    Fault("a reset cuts a step early in the reverse direction",
          "const int64_t later = t > neighbour ? t : neighbour,",
          "const int64_t later = reverse ? t : t > neighbour ? t : neighbour,"),
    Fault("a sequence that begins anew takes hx",
          "block_.begins_anew(t, i) ? zeros_ : hx_rows_[i];", "hx_rows_[i];"),
    Fault("gradients pass a reset",
          "carry_rows_[i] = block_.goes_on(t, i) ?", "carry_rows_[i] = !block_.is_last(t, i) ?"),
    Fault("a weight's gradient takes hx at a reset",
          "if (!task_.hx || walk_.begins_anew(t, i)) return nullptr;",
          "if (!task_.hx) return nullptr;"),
    # dropout, layers, directions
    Fault("dropout is left out forward", "&(m *= buffer[k])", "&(m = buffer[k])"),
    Fault("dropout is left out back", "out_rows[r][k] *= m;", "(void)m;"),
    Fault("each thread that shares columns drops out",
          "r < n && share.part == 0; ++r", "r < n; ++r"),
    Fault("layers without gradients share one buffer",
          "buffers_[layer & 1]", "buffers_[0]"),
    Fault("the reverse direction hands no gradient down",
          "if (task.num_directions == 2) product.terms[1].depth = H;", ""),
    # dtypes and the tails of vectors
    Fault("the last of the halves behind a vector is not written",
          "for (; i < n; ++i) from_float(from[i], to[i]);",
          "for (; i + 1 < n; ++i) from_float(from[i], to[i]);"),
    Fault("halves behind the end of a row are read",
          "widen(buffer, p, n);", "widen(buffer, p, kLanes<C>);"),
    Fault("halves as subnormal as they come are read as normal",
          "if (rest < 0x400) return", "if (rest < 0x400 && rest > 0x3ff) return", "baseline"),
    Fault("the last of an odd depth is not packed in a pair",
          "const int64_t pairs = (depth + 1) / 2;", "const int64_t pairs = depth / 2;",
          "avx512_bf16"),
    Fault("a pair is read behind the end of an odd row",
          "return uint32_t{p[depth - 1].bits};", "return pair_at(p + depth - 1);", "avx512_bf16"),
    Fault("the row behind the last of an odd number is paired with it",
          "k + 1 < depth ? grad_rows_[k + 1] + first : nullptr",
          "k + 1 < kDepthBlock ? grad_rows_[k] + first : nullptr", "avx512_bf16"),
    Fault("a tile is written to the end of its last vector",
          "    const int whole = at.last < L ? vectors - 1 : vectors;\n    for",
          "    const int whole = vectors;\n    for"),
    Fault("a dot product is written to the end of its vector",
          "n < L ? store_first(p.out[r] + c, y, n) : store(p.out[r] + c, y);",
          "store(p.out[r] + c, y);"),
    Fault("a dot product reads whole vectors",
          "step(k, static_cast<int>(depth - k));", "step(k, L);"),
    Fault("weights as they came are read in whole vectors",
          "load_widened<C>(at, kWhole || v < kVectors - 1 ? L : panel.last);",
          "load_widened<C>(at, L);"),
    Fault("rows behind the end of a matrix are packed",
          "block[c] = c < inside(v) ? load_widened<C>(from + c * ld + k, steps) : Vec<C>{};",
          "block[c] = load_widened<C>(from + c * ld + k, steps);"),
    Fault("a split sum forgets the last of an odd depth",
          "if (depth % 2) step(acc, k);", ""),
    Fault("relu's gradient passes at zero",
          "h <= 0 ? Vec<C>{} : x", "h < 0 ? Vec<C>{} : x"),
    # barriers
    Fault("no wait at the end of a step whose columns are shared",
          "run_product<S>(step_, n, share);\n    wait(share);", "run_product<S>(step_, n, share);"),
    Fault("no wait for the weights to be packed",
          "memory += size(i, 2);\n    }\n    team.wait();", "memory += size(i, 2);\n    }"),
    # gradients
    Fault("the gradient of w_hh takes the state of its own step",
          "row_of<const S>(task_.state, steps, walk_.before(t), i);",
          "row_of<const S>(task_.state, steps, t, i);"),
    Fault("b_hh has no gradient", "? grads[3] : nullptr", "? grads[2] : nullptr"),
]  # fmt: skip


# These are in what turns tensors into structs, and are found in the extension.
OF_THE_EXTENSION = [
    Fault("packed data has dense rows",
          "return {data, 0, x.stride(0)};", "return {data, 0, x.size(1)};"),
    Fault("a reset before a row without a step takes its hx away",
          "if (lengths) begun = begun.logical_and(lengths->gt(0));", ""),
    Fault("the mask of packed data has no more rows than it",
          "= packed && input.size(0) != shape.rows;", "= false;"),
    # In the kernels, for what the problems of the raw kernels do not have.
    Fault("the rate form forgets the state before",
          "next = (1 - alpha) * carried + alpha * rate;", "next = rate;"),
    Fault("the gradient of a rate does not leak back",
          "return {alpha * F{}(g, h), (1 - alpha) * g, g};",
          "return {alpha * F{}(g, h), 0 * g, g};"),
    Fault("alpha's gradient of the current form forgets the current",
          "return {F{}(next, h), next, x - carried};", "return {F{}(next, h), next, x};"),
    Fault("the last unit does not leak",
          "std::copy_n(given->const_data_ptr<C>() + i * H, H, values + i * padded(H));",
          "std::copy_n(given->const_data_ptr<C>() + i * H, H - 1, values + i * padded(H));"),
    Fault("the layers' gradient is left out",
          "grad = sum(buffer, grad, block_.row<const S>(task_.grad_layer, t, i));", ";"),
    Fault("the gates' gradient is that of the output",
          "narrow(block_.row<S>(task_.grad_gates, t, i), out_rows_[i], H_);",
          "narrow(block_.row<S>(task_.grad_gates, t, i), grad_rows_[i], H_);"),
]  # fmt: skip

# These are in the checks, and are found by malformed arguments.
OF_THE_CHECKS = [
    Fault("no storage is looked at",
          "if (!has_own_storage(impl) || impl.numel() == 0) return;", "return;"),
    Fault("weights are not counted",
          "static_cast<int64_t>(weights.size()) == expected", "expected > 0"),
    Fault("hx may have any size",
          'if (hx) check_tensor("hx", *hx, {s.states(), s.batch, s.hidden_size}, input);', ""),
    Fault("w_hh may have any size",
          'check_tensor("w_hh", weights[first + 1], {H, H}, input, first + 1);', ""),
    Fault("a tensor may have any dtype",
          "TORCH_CHECK(x.scalar_type() == like.scalar_type(),", "TORCH_CHECK(true,"),
    Fault("biases may have any size",
          'check_tensor(k == first + 2 ? "b_ih" : "b_hh", weights[k], {H}, input, k);', ";"),
    Fault("a row may be longer than the input",
          "length[b] >= 0 && length[b] <= shape.seq_len,", "length[b] >= 0,"),
    Fault("a gradient may have any size",
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


def of_torch(csrc: Path) -> list[str]:
    """The sources of libfastrnn.so besides those in cpu/."""
    return [path.name for path in csrc.glob("*.cpp") if path.name != "python.cpp"]


def link_extension(objects: Iterable[Path], package: Path, more: Sequence[str] = ()) -> None:
    """In a copy of the package, its library anew."""
    libraries = [f"-L{path}" for path in library_paths()]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-Wl,-soname,libfastrnn.so"]
    link(objects, package / "libfastrnn.so", [*libraries, *more])


class Build:
    """csrc, and what it compiles to: the raw kernels' module, or the extension."""

    def __init__(self, extension: bool) -> None:
        self.csrc, self.extension = PLANTED / "csrc", extension
        shutil.rmtree(PLANTED, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", self.csrc)
        sources = [f"cpu/{path.name}" for path in (self.csrc / "cpu").glob("*.cpp")]
        if extension:
            sources += of_torch(self.csrc)
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
            link_extension(objects.values(), EXTENSION)
        else:
            link(objects.values(), KERNELS)

    def plant(self, fault: Fault) -> None:
        file = file_of(fault.old, self.csrc)
        source, path = fault.source(file), self.csrc / file
        right = path.read_text()
        path.write_text(right.replace(fault.old, fault.new))
        faulty = self.compile(source, "fault")
        path.write_text(right)
        self.link(self.objects | {source: faulty})

    def fuzz(self, isa: str, seconds: float) -> str:
        """The first failure, or nothing."""
        command = [sys.executable, str(ROOT / "tests/fuzz/fuzz.py"), "--isa", isa, "--no-shrink"]
        command += ["--seconds", str(seconds), "--entries"]
        environment = dict(os.environ)
        if self.extension:
            command += ["RNN", "functional", "operator", "kernels_of_operators"]
            command += ["extended", "kernels_of_extended", "LeakyRNN"]
            environment["PYTHONPATH"] = str(PLANTED)
        else:
            command += ["raw", "--kernels", str(KERNELS)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ended.returncode == 0:
            return ""
        if f"this machine has no {isa}" in ended.stdout + ended.stderr:
            raise UnavailableError(isa)
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


class UnavailableError(Exception):
    """The machine lacks an instruction set."""


def missed(faults: list[Fault], extension: bool, seconds: float) -> list[str]:
    """The faults that are not found, or what is found where there is none."""
    build = Build(extension)
    find = build.malformed if faults[0] in OF_THE_CHECKS else build.fuzz
    for isa in sorted({fault.isa for fault in faults}):
        try:
            wrong = find(isa, seconds)
        except UnavailableError:
            for fault in faults:
                if fault.isa == isa:
                    print(f"{fault.name}: not planted, as this machine has no {isa}", flush=True)
            faults = [fault for fault in faults if fault.isa != isa]
            continue
        if wrong:
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
    print("\n".join(["not found:", *names]) if names else "every planted fault was found")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
