"""Read a kernel's machine code: what a step of its main loop does, and about how long that takes.

`nvdisasm -c -hex` prints each instruction with its encoding, whose upper bits say how a warp waits:
an instruction is issued when the scoreboards of its wait mask are clear, and the next one a stall
count later. One without a fixed latency sets a scoreboard until its operands have been read, and
another until its result is there (Jia et al. 2018, arXiv:1804.06826, section 2.1).

The clocks are an estimate: of one warp in order, beside which the block's other warps do the same
at the same time. They compare builds of one kernel; what a kernel takes must be measured.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

# Clocks until a result is there, by the first pattern that the opcode begins with. Shared memory,
# and L2 for loads from global memory: after Luo et al. 2024, arXiv:2402.13499. MUFU and SHFL: after
# Abdelkhalik et al. 2022, arXiv:2208.11174. Barriers, and STAS until the other block sees it:
# benchmarks/gpu/limits.cu on an H200. The others are assumed.
LATENCIES = {
    "LDG": 263,
    "LDSM": 33,
    "LDS": 29,
    "LDC|S2": 38,
    "MUFU": 22,
    "SHFL": 24,
    "BAR.SYNC": 21,
    "SYNCS": 24,
    "STAS": 360,
    "": 25,
}
READ = 20  # clocks until operands have been read, assumed

# Clocks that a warp's instruction keeps a pipe, and how many such pipes a multiprocessor has. HMMA
# and STAS: limits.cu; others: the throughputs in the CUDA C++ Programming Guide, and 128 bytes a
# clock of shared memory. Two lanes are taken to read the same 16 bytes, as in vector.cuh.
PIPES = {
    "HMMA": ("tensor", 6, 4),
    "MUFU": ("special", 8, 4),
    "LDSM|STS.128": ("shared", 4, 1),
    "LDS.128": ("shared", 2, 1),
    "LDS|STS|SHFL": ("shared", 1, 1),
    "STAS": ("cluster", 28, 1),
    "": ("none", 0, 1),
}
SCHEDULERS = 4  # each issues an instruction a clock

# What is counted in the main loop, beside waits.
COUNTED = {
    "CCTL": "CCTL", "MEMBAR": "MEMBAR", "S2R": "S2R|S2UR", "local": "LDL|STL", "LDC": "LDC",
}  # fmt: skip
ALL_SCOREBOARDS = 0b111111
GLOBAL_LOAD = "LDG"  # LDGSTS too, of which LDGDEPBAR closes a group
LOST = "LDG|LDC|S2R|S2UR"  # what a time step need not wait for
MULTIPLY = "FFMA|HMMA|DFMA"
RECEIVE = "BAR.SYNC|SYNCS.PHASECHK"  # one in each step

LINE = re.compile(
    r"^ +/\*[0-9a-f]+\*/ +(?P<text>\S.*?) *; +/\* 0x[0-9a-f]{16} \*/\n"
    r" +/\* 0x(?P<control>[0-9a-f]{16}) \*/"
    r"|^(?P<label>\.L_\w+):"
    r"|^\s*\.section\s+\.text\.(?P<kernel>\w+)",
    re.MULTILINE,
)


@dataclass
class Instruction:
    text: str
    wait: int = 0  # a bit for each scoreboard that must be clear before
    reads: int | None = None  # the scoreboard that is set until the operands have been read
    writes: int | None = None  # until the result is there
    stall: int = 1  # clocks until the next one
    target: int | None = None  # of a branch: where in the code

    def __post_init__(self) -> None:
        words = self.text.split()
        self.conditional = words[0].startswith("@")
        self.opcode = words[1 if self.conditional else 0]
        # A second condition stands before the target.
        self.conditional |= self.opcode.startswith("BRA") and len(words) > 2 + self.conditional

    def matches(self, pattern: str) -> bool:
        return matches(self.opcode, pattern)


Code = list[Instruction]


@cache
def matches(opcode: str, pattern: str) -> bool:
    return re.match(pattern, opcode) is not None


@cache
def latency(opcode: str) -> int:
    return next(clocks for pattern, clocks in LATENCIES.items() if matches(opcode, pattern))


@cache
def pipe(opcode: str) -> tuple[str, int, int]:
    return next(pipe for pattern, pipe in PIPES.items() if matches(opcode, pattern))


def has(part: Code, pattern: str) -> bool:
    return any(x.matches(pattern) for x in part)


def parse(text: str) -> dict[str, Code]:
    """The instructions of each kernel, by its mangled name."""
    kernels: dict[str, Code] = {}
    labels: dict[str, int] = {}
    code: Code = []
    for found in LINE.finditer(text):
        if found["text"]:
            code.append(decoded(found["text"], int(found["control"], 16)))
        elif found["label"]:
            labels[found["label"]] = len(code)
        else:
            code = kernels.setdefault(found["kernel"], [])
    for code in kernels.values():
        for x in code:
            if x.opcode.startswith("BRA"):
                label = re.search(r"`\((\.L_\w+)\)", x.text)
                x.target = labels.get(label[1]) if label else None
    return kernels


def decoded(text: str, upper: int) -> Instruction:
    """From the upper half of the encoding: above bit 41 4 bits of the stall count, 1 of yield, 3
    each of the scoreboards of writes and reads, 6 of the wait mask."""
    control = upper >> 41
    writes, reads = control >> 5 & 7, control >> 8 & 7
    return Instruction(
        text,
        wait=control >> 11 & ALL_SCOREBOARDS,
        reads=None if reads == 7 else reads,
        writes=None if writes == 7 else writes,
        stall=control & 15,
    )


# --- The main loop, and a plain way through it


class Loop:
    """The loop over a kernel's time steps."""

    def __init__(self, code: Code, turn: range) -> None:
        self.code = code
        self.turn = turn
        # Loops within: the second try of a wait, and those that follow.
        self.again = {
            j for i in turn if (t := code[i].target) is not None and turn.start < t <= i
            for j in range(t, i + 1)
        }  # fmt: skip

    def plain_path(self) -> Code:
        """Once around: past what ends the loop, and past what only few calls need."""
        path, i = Code(), self.turn.start
        while i in self.turn and len(path) <= len(self.turn):
            x = self.code[i]
            path.append(x)
            i = x.target if x.target is not None and self.takes(i, x.target) else i + 1
            if i == self.turn.start:
                return path
        raise ValueError(f"no way through the loop of {len(self.turn)} instructions")

    def takes(self, i: int, target: int) -> bool:
        """Whether a call takes the branch that has whole rows, tanh, and no wait in vain."""
        x = self.code[i]
        if "DIV" in x.opcode:  # of a warp whose threads are apart
            return False
        if target == self.turn.start or not x.conditional:
            return True
        if target < i or target not in self.turn:
            return False
        skipped = self.code[i + 1 : target]
        waits = [j for j in range(i + 1, target) if self.code[j].matches(RECEIVE)]
        if waits:  # for what has come, or for a step
            return self.again.issuperset(waits)
        other = Code()  # where the skipped part ends with a jump: over an else
        if skipped and (end := skipped[-1].target) and not skipped[-1].conditional and end > target:
            other = self.code[target:end]
        if has(skipped, "MUFU") != has(other, "MUFU"):
            return has(other, "MUFU")
        # relu's, a mark of reset, or the start of a packed step.
        return has(skipped, "FMNMX") or has(skipped, "LDG.*U8") or waits_for_own_load(skipped)


def main_loop(code: Code) -> Loop | None:
    """The smallest loop with the most multiplications, of those that wait for other threads."""
    ends = {x.target: i for i, x in enumerate(code) if x.target is not None and x.target <= i}
    found: list[tuple[int, int, range]] = []
    for head, end in ends.items():
        turn = code[head : end + 1]
        multiplications = sum(x.matches(MULTIPLY) for x in turn)
        if multiplications and has(turn, RECEIVE):
            found.append((multiplications, -len(turn), range(head, end + 1)))
    return Loop(code, max(found, key=lambda x: x[:2])[2]) if found else None


def waits_for_own_load(part: Code) -> bool:
    asked = 0
    for x in part:
        if x.wait & asked:
            return True
        if x.matches(GLOBAL_LOAD) and x.writes is not None:
            asked |= 1 << x.writes
    return False


# --- A warp on its way


@dataclass
class Pending:
    """What a scoreboard waits for."""

    done: int  # the clock
    opcode: str = ""  # whose result it is
    issued: int = 0  # instructions before it


class Warp:
    """One of `warps` that run through the same code. Waits for a global load are early less than
    `step` instructions after it. Clocks are lost that pass in waits for what LOST matches."""

    def __init__(self, warps: int = 1, step: int = 0) -> None:
        self.warps = warps
        self.step = step
        self.clock = self.issued = self.early = self.lost = 0
        self.received = 0  # when the last that was sent to another block is there
        self.scoreboards: list[list[Pending]] = [[] for _ in range(6)]
        self.free: dict[str, int] = {}  # when each pipe is

    def run(self, code: Code) -> None:
        for x in code:
            self.issue(x)

    def issue(self, x: Instruction) -> None:
        for scoreboard in range(6):
            if x.wait >> scoreboard & 1:
                self.wait(scoreboard)
        if x.opcode == "DEPBAR.LE":
            scoreboard, left = re.findall(r"SB(\d), 0x([0-9a-f]+)", x.text)[0]
            self.wait(int(scoreboard), int(left, 16))
        if x.matches("SYNCS.PHASECHK"):
            self.clock = max(self.clock, self.received)
        if not x.text.startswith("@!PT"):
            self.occupy(*pipe(x.opcode))
        done = self.clock + latency(x.opcode)
        if x.reads is not None:
            self.scoreboards[x.reads].append(Pending(self.clock + READ))
        if x.writes is not None:
            self.scoreboards[x.writes].append(Pending(done, x.opcode, self.issued))
        self.clock += max(x.stall, -(-self.warps // SCHEDULERS))
        if x.matches("BAR.SYNC"):
            self.clock = max(self.clock, done)
        if x.matches("STAS"):
            self.received = done
        self.issued += 1

    def occupy(self, pipe: str, clocks: int, pipes: int) -> None:
        self.clock = max(self.clock, self.free.get(pipe, 0))
        self.free[pipe] = self.clock + clocks * -(-self.warps // pipes)

    def wait(self, scoreboard: int, left: int = 0) -> None:
        """Until no more than `left` are on their way: as they came, so they go."""
        pending = self.scoreboards[scoreboard]
        gone = [pending.pop(0) for _ in range(len(pending) - left)]
        last = max(gone, key=lambda x: x.done, default=Pending(0))
        late = max(0, last.done - self.clock)
        self.clock += late
        self.lost += late if matches(last.opcode, LOST) else 0
        loads = [x.issued for x in gone if matches(x.opcode, GLOBAL_LOAD)]
        self.early += bool(loads) and self.issued - max(loads) < self.step


@dataclass
class Step:
    """A time step of a kernel's main loop, whose turns have several."""

    instructions: int
    clocks: int
    lost: int  # of the clocks
    found: dict[str, int]  # in a turn: COUNTED; waits for all scoreboards; Warp.early


def main_step(code: Code, warps: int = 1) -> Step | None:
    """Of a kernel with a main loop, by the plain path, in a block of so many warps."""
    loop = main_loop(code)
    if loop is None:
        return None
    path = loop.plain_path()
    steps = sum(x.matches(RECEIVE) for x in path)
    warp = Warp(warps, len(path) // steps)
    for _ in range(2):  # the first turns find nothing on its way
        warp.run(path)
    clock, early, lost = warp.clock, warp.early, warp.lost
    warp.run(path)
    counts = Counter({"drained": sum(x.wait == ALL_SCOREBOARDS for x in path)})
    counts |= {name: sum(x.matches(p) for x in path) for name, p in COUNTED.items()}
    counts["early"] = warp.early - early
    return Step(
        round(len(path) / steps),
        round((warp.clock - clock) / steps),
        round((warp.lost - lost) / steps),
        {name: n for name, n in counts.items() if n},
    )
