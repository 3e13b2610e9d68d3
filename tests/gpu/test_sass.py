"""benchmarks/gpu/sass.py, on texts as nvdisasm prints them and answers worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.gpu import sass

REAL = """
	.section	.text.a_kernel,"ax",@progbits
a_kernel:
.text.a_kernel:
        /*0010*/                   S2R R120, SR_CTAID.Y ;              /* 0x0000000000787919 */
                                                                       /* 0x000e2e0000002600 */
.L_x_0:
        /*01a0*/                   SHF.L.U32 R21, R2.reuse, 0x2, RZ ;  /* 0x0000000202157819 */
                                                                       /* 0x042fe400000006ff */
        /*1a00*/               @P0 BRA `(.L_x_0) ;                     /* 0x0000000000740947 */
                                                                       /* 0x000fea0003800000 */
.L_x_1:
"""


def text(listing: str) -> str:
    """A kernel as nvdisasm prints it, of lines with the wait mask, from scoreboard 5 down to 0, the
    scoreboards of reads and of writes, the stall count, and the instruction; or of labels."""
    lines = ["\t.section\t.text.kernel,"]
    for line in filter(str.strip, listing.splitlines()):
        if line.strip().startswith(".L"):
            lines.append(line.strip())
            continue
        wait, reads, writes, stall, instruction = line.split(maxsplit=4)
        control = int(wait, 2) << 11 | int(stall)
        control |= int(reads.replace("-", "7")) << 8 | int(writes.replace("-", "7")) << 5
        lines.append(f"        /*{16 * len(lines):04x}*/   {instruction} ;   /* 0x{0:016x} */")
        lines.append(f"                              /* 0x{control << 41:016x} */")
    return "\n".join(lines) + "\n"


def code(listing: str) -> sass.Code:
    (kernel,) = sass.parse(text(listing)).values()
    return kernel


def clocks(listing: str, warps: int = 1) -> int:
    warp = sass.Warp(warps)
    warp.run(code(listing))
    return warp.clock


def test_words_of_real_machine_code() -> None:
    ((name, (s2r, shift, branch)),) = sass.parse(REAL).items()
    assert name == "a_kernel"
    # 0x000e2e00 >> 9 is 000000 111 000 1 0111: waits for none, reads none, writes 0, stalls 7.
    assert (s2r.opcode, s2r.wait, s2r.reads, s2r.writes, s2r.stall) == ("S2R", 0, None, 0, 7)
    # 0x042fe400 >> 9 is 1000 000010 111 111 1 0010, above the mask what is used again.
    assert (shift.wait, shift.reads, shift.writes, shift.stall) == (0b10, None, None, 2)
    assert (branch.opcode, branch.conditional, branch.target, s2r.target) == ("BRA", True, 1, None)


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        pytest.param(
            """000000 - - 4 FADD R1, R2, R3
               000000 - - 2 FADD R4, R1, R3
               000000 - - 1 NOP""",
            4 + 2 + 1,
            id="stall counts",
        ),
        pytest.param(
            """000000 - 3 1 LDS R4, [R2]
               001000 - - 4 FADD R1, R4, R3""",
            29 + 4,  # the load's latency
            id="a result",
        ),
        pytest.param(
            """000000 - 3 1 LDS R4, [R2]
               000100 - - 4 FADD R1, R1, R3""",
            1 + 4,
            id="another scoreboard",
        ),
        pytest.param(
            """000000 2 - 1 STG.E desc[UR6][R2.64], R4
               000100 - - 5 IADD3 R2, R2, R5, RZ""",
            20 + 5,
            id="operands",
        ),
        pytest.param(
            """000000 - 0 1 LDS R4, [R2]
               000000 - 1 1 LDG.E R5, desc[UR6][R6.64]
               111111 - - 2 NOP""",
            1 + 263 + 2,  # the later of the two
            id="all scoreboards",
        ),
        pytest.param(
            """000000 - 0 15 LDGDEPBAR
               000000 - 0 15 LDGDEPBAR
               000000 - - 4 DEPBAR.LE SB0, 0x1""",
            263 + 4,  # for the first of two
            id="all but one",
        ),
        pytest.param(
            """000000 - - 1 STAS.128 [R2.64], R4
               000000 - 1 2 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R6
               000010 - - 5 @P0 NOP""",
            360 + 24 + 5,
            id="another block",
        ),
        pytest.param("000000 - - 6 BAR.SYNC.DEFER_BLOCKING 0x0", 21, id="barrier"),
    ],
)
def test_clocks_of_a_warp(listing: str, expected: int) -> None:
    assert clocks(listing) == expected


def test_other_warps_take_their_turns() -> None:
    adds = "000000 - - 1 FADD R1, R2, R3\n" * 10
    loads = "000000 - - 1 LDS.128 R4, [R2]\n" * 3
    assert clocks(adds, 4) == 10
    assert clocks(adds, 8) == 20  # two warps for each scheduler
    assert clocks(loads, 8) == 2 * 8 * 2 + 2  # the third after two of each of eight, 2 clocks each


# A step: a load from shared memory, a product, tanh or relu, a store and a barrier.
STEP = """
    000000 - 0 1 LDS R4, [R2]
    000001 - - 4 FFMA R5, R4, R3, R6
    000000 - - 5 @!P1 BRA `(.L_relu)
    000000 - 1 1 MUFU.TANH R5, R5
    000010 - - 5 BRA `(.L_both)
    .L_relu:
    000000 - - 4 FMNMX R5, RZ, R5, !PT
    .L_both:
    000000 3 - 1 STS [R2], R5
    000000 - - 5 BAR.SYNC.DEFER_BLOCKING 0x0
"""
STEP_CLOCKS = 29 + 4 + 5 + 22 + 5 + 1 + 21
AGAIN = """
    000000 - - 5 @!P0 BRA `(.L_loop)
    000000 - - 5 EXIT
"""


def step_of(body: str) -> sass.Step:
    step = sass.main_step(code(f".L_loop:\n{body}{AGAIN}"))
    assert step is not None
    return step


def test_a_step_takes_the_way_of_tanh() -> None:
    assert step_of(STEP) == sass.Step(instructions=7 + 1, clocks=STEP_CLOCKS + 5, lost=0, found={})


@pytest.mark.parametrize(
    "skipped",
    [
        "000000 - 2 4 LDG.E.U8 R7, desc[UR6][R8.64]",
        """000000 - 2 4 LDG.E.64 R8, desc[UR6][R8.64]
           000100 - - 4 IADD3 R8, R8, R9, RZ""",
    ],
    ids=["reset", "packed"],
)
def test_what_few_calls_need_is_skipped(skipped: str) -> None:
    branch = "    000000 - - 5 @P2 BRA `(.L_past)\n"
    plain = step_of(branch + skipped + "\n    .L_past:" + STEP)
    assert plain == sass.Step(instructions=9, clocks=5 + STEP_CLOCKS + 5, lost=0, found={})


def test_the_end_of_the_steps_is_not_taken() -> None:
    between = "    000000 - - 5 @P3 BRA `(.L_end)\n"
    labels = STEP.replace("relu", "relu2").replace("both", "both2")
    step = step_of(STEP + between + labels + "    .L_end:\n")
    assert step == sass.Step(
        instructions=8, clocks=STEP_CLOCKS + 5, lost=0, found={}
    )  # of two steps


def test_a_second_try_is_not_taken() -> None:
    """A cluster's wait, which is tried again in a loop of its own."""
    wait = """
    000000 - 1 2 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R6
    000010 - - 5 @P0 BRA `(.L_came)
    000000 - - 1 MEMBAR.ALL.GPU
    .L_try:
    000000 - 1 2 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R6
    000010 - - 5 @!P0 BRA `(.L_try)
    .L_came:
    """
    step = step_of(STEP.replace("000000 - - 5 BAR.SYNC.DEFER_BLOCKING 0x0", wait))
    assert step == sass.Step(instructions=9, clocks=STEP_CLOCKS - 21 + 24 + 5 + 5, lost=0, found={})


def test_what_is_found() -> None:
    """A load of the next step, for which a wait for another scoreboard, or for all, waits too."""
    load = "\n    000000 - 0 1 LDG.E R7, desc[UR6][R8.64]" + STEP
    assert step_of(load) == sass.Step(
        9, 263 + STEP_CLOCKS - 29 + 5, lost=263 - 2, found={"early": 1}
    )
    drained = step_of(load.replace("000001", "111111"))
    assert drained.found == {"drained": 1, "early": 1}
    others = "".join(
        f"\n    000000 - - 1 {x}" for x in ("S2R R9", "LDC R9", "STL [R1], R9", "CCTL")
    )
    assert step_of(others + STEP) == sass.Step(
        12, 4 + STEP_CLOCKS + 5, 0, {"CCTL": 1, "S2R": 1, "local": 1, "LDC": 1}
    )


def test_a_ring_is_not_waited_for_early() -> None:
    """Of copies to shared memory, all but the last two are waited for: asked for two steps ago."""
    ring = """
    000000 3 - 1 LDGSTS.E [R4], desc[UR6][R8.64]
    000000 - 2 1 LDGDEPBAR
    000000 - - 4 DEPBAR.LE SB2, 0x2
    """
    assert step_of(ring + STEP).found == {}
    assert step_of(ring.replace("0x2", "0x0") + STEP).found == {"early": 1}


def test_the_main_loop_is_that_of_the_products() -> None:
    load = """
    .L_load:
    000000 - 1 1 LDG.E R3, desc[UR6][R8.64]
    000010 - - 4 STS [R4], R3
    000000 - - 5 @!P0 BRA `(.L_load)
    .L_loop:
    """
    loop = sass.main_loop(code(load + STEP + AGAIN))
    assert loop is not None
    assert loop.turn == range(3, 12)
    assert sass.main_step(code(load + AGAIN)) is None
