"""The guard in front of kernels that nobody has proved on a GPU, over the emulated kernels.

Faults are planted in what they leave behind, in their launches, their waits and the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

from fastrnn import reference

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)  # as in csrc/rnn.h
TILE, CLUSTER = "tile:64x8x1", "cluster:384x8x4"
# As the CUDA runtime numbers them.
OUT_OF_MEMORY, LAUNCH_FAILURE, INVALID_CLUSTER_SIZE = 2, 719, 912


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


@pytest.fixture
def plant(cuda: Any) -> Iterator[Callable[..., None]]:
    yield cuda.plant
    cuda.plant()


@pytest.fixture
def guard(cuda: Any) -> Any:
    return cuda.Guard()


def test_what_is_right_serves(guard: Any) -> None:
    assert guard.why_not(TILE, FLOAT16) == ""
    assert guard.why_not("step", FLOAT64) == ""
    assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=True) == TILE


@pytest.mark.parametrize(
    ("spoiled", "name", "where"),
    [
        ("unit", TILE, r"(output|copy|hn)\[0\], t 0, b 8, j 55"),
        ("packed", TILE, r"(output|copy|hn)\[0\], t \d, b 8, j 60"),
        ("grad_hx", TILE, r"grad_hx\[0\], t 5, b 8, j 55"),
        ("unit", CLUSTER, r"(output|copy|hn)\[0\], t 0, b 8, j 375"),
        ("packed", CLUSTER, r"(output|copy|hn)\[0\], t \d, b 8, j 380"),
        ("grad_hx", CLUSTER, r"grad_hx\[0\], t 5, b 8, j 375"),
    ],
)
def test_one_wrong_number_is_found(
    plant: Callable[..., None], guard: Any, spoiled: str, name: str, where: str
) -> None:
    """Eight roundings of float16, of the last unit of the last row."""
    plant(spoiled)
    with pytest.warns(UserWarning, match=where) as caught:
        why = guard.why_not(name, FLOAT16)
    (warning,) = caught
    for part in (name, "float16", "an H200", "sm_90", torch.__version__.split("+")[0],
                 "python -m fastrnn check", "/issues"):  # fmt: skip
        assert part in str(warning.message)
    plant()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert guard.why_not(name, FLOAT16) == why  # once
    assert guard.why_not(name, BFLOAT16) == ""


def test_a_wrong_gradient_of_weights_is_found(plant: Callable[..., None], guard: Any) -> None:
    """With the step kernels, without which nothing serves."""
    plant("grad_w_hh")
    with pytest.warns(UserWarning, match=r"grad_w_hh\[0\], t 0, b 0, j 60"):
        assert guard.why_not(TILE, FLOAT16)
    assert guard.why_none()


def test_the_call_and_its_kind_take_another_way(plant: Callable[..., None], guard: Any) -> None:
    plant("unit")
    with pytest.warns(UserWarning, match="is off by"):
        assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=True) == "torch"
    assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=False) == "step"
    plant()
    assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=True) == "torch"
    assert guard.kernel(BFLOAT16, 64, 64, torch_can_serve=True) == TILE


def test_a_hang_ends_and_is_named(plant: Callable[..., None], guard: Any) -> None:
    plant(hang=1)
    with pytest.warns(UserWarning, match=r"block \d, thread \d+ waited in vain for exchange \d"):
        assert guard.why_not(CLUSTER, FLOAT16)


@pytest.mark.parametrize(
    ("exchange", "marks"), [(0, False), (3, False), (3, True), (6, False)], ids=str
)
def test_a_hang_after_the_check(
    cuda: Any,
    plant: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    exchange: int,
    marks: bool,
) -> None:
    """What comes of it is NaN or right; the next call is warned, and goes by steps."""
    monkeypatch.setenv("FASTRNN_CHECK", "0")
    guard = cuda.Guard()
    arguments = call(300, marks)
    sound, sound_hn, _ = guard.forward(arguments)
    plant(hang=exchange + 1)
    output, hn, _ = guard.forward(arguments)
    plant()
    assert (output.isnan() | (output == sound)).all()
    assert (hn.isnan() | (hn == sound_hn)).all()
    assert output.isnan().any() == (exchange < 6)
    with pytest.warns(UserWarning, match="in an earlier call, whose results are NaN"):
        again, _, _ = guard.forward(arguments)
    torch.testing.assert_close(again, sound, rtol=2e-3, atol=2e-3)


def call(hidden_size: int, marks: bool = False) -> tuple[Any, ...]:
    """The operator's arguments, of a call that takes a cluster where they are wide."""
    x = torch.randn(6, 9, 5, dtype=torch.float16)
    weights = [torch.randn(hidden_size, n, dtype=torch.float16) / 20 for n in (5, hidden_size)]
    reset = torch.rand(6, 9) < 0.3 if marks else None
    return (x, None, weights, None, None, reset, None, False, 1, "tanh", False, False)


def truth(arguments: tuple[Any, ...]) -> Tensor:
    x, _, weights, *rest = arguments
    return reference.rnn(x.double(), None, [w.double() for w in weights], *rest)[0]


def test_a_refused_launch_goes_by_steps(plant: Callable[..., None], guard: Any) -> None:
    """Found in the check, or where that had passed in a call."""
    arguments = call(300)
    guard.forward(arguments)
    plant(of_launches=INVALID_CLUSTER_SIZE)
    with pytest.warns(UserWarning, match="invalid cluster size"):
        output, _, _ = guard.forward(arguments)
    torch.testing.assert_close(output.double(), truth(arguments), rtol=2e-3, atol=2e-3)
    assert guard.kernel(FLOAT16, 9, 300, torch_can_serve=True) == "torch"  # warned once
    with pytest.warns(UserWarning, match="invalid cluster size"):  # of another configuration
        assert guard.kernel(FLOAT16, 9, 512, torch_can_serve=True) == "torch"


def test_a_launch_refused_in_the_check(plant: Callable[..., None], guard: Any) -> None:
    plant(of_launches=INVALID_CLUSTER_SIZE)
    with pytest.warns(UserWarning, match="invalid cluster size"):
        output, _, _ = guard.forward(call(300))
    assert not output.isnan().any()


def test_no_memory_is_no_fault(plant: Callable[..., None], guard: Any) -> None:
    plant(of_launches=OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match=f"not enough memory .* to check {CLUSTER}"):
        guard.why_not(CLUSTER, FLOAT16)
    plant()
    assert guard.why_not(CLUSTER, FLOAT16) == ""


def test_a_dead_device_raises(plant: Callable[..., None], guard: Any) -> None:
    plant(of_device=LAUNCH_FAILURE)
    message = rf"{CLUSTER} in float16 .* stopped the device: .*FASTRNN_CUDA_KERNEL=torch avoids"
    for name in (CLUSTER, TILE, "step"):
        with pytest.raises(RuntimeError, match=message):
            guard.why_not(name, FLOAT16)


def test_a_kernel_without_an_end_raises(plant: Callable[..., None], guard: Any) -> None:
    plant(endless=True)
    with pytest.raises(RuntimeError, match=rf"{CLUSTER} .* did not end within 1 s.*GPU is busy"):
        guard.why_not(CLUSTER, FLOAT16)


def test_no_check_while_a_stream_captures(plant: Callable[..., None], guard: Any) -> None:
    plant(capturing=True)
    assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=True) == "torch"
    with pytest.raises(RuntimeError, match=r"once before .*, or set FASTRNN_CHECK=0"):
        guard.kernel(FLOAT16, 64, 64, torch_can_serve=False)
    plant()
    assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=True) == TILE
    plant(capturing=True)
    assert guard.kernel(FLOAT16, 64, 64, torch_can_serve=True) == TILE


@pytest.mark.parametrize("marked", ["lengths", "packed"])
def test_a_refusal_leaves_the_capture_as_it_was(
    cuda: Any, plant: Callable[..., None], guard: Any, marked: str
) -> None:
    """It comes before the first kernel: a capture has room for nothing that fails."""
    x, hx, weights, _, _, *rest = call(64)
    arguments = (x, hx, weights, None, torch.tensor([6, 3, 0, 1, 2, 3, 4, 5, 6]), *rest)
    if marked == "packed":
        arguments = (x.flatten(0, 1), hx, weights, torch.full((6,), 9), None, *rest)
    plant(capturing=True)
    with pytest.raises(RuntimeError, match="call it once before"):
        guard.forward(arguments)
    assert cuda.captured() == 0
    plant()
    expected, _, _ = guard.forward(arguments)
    plant(capturing=True)
    output, _, _ = guard.forward(arguments)
    assert cuda.captured() > 0
    assert torch.equal(output, expected)


def test_wrong_step_kernels_take_the_device_out(plant: Callable[..., None], guard: Any) -> None:
    """Nothing is left that could serve every call."""
    assert guard.why_none() == ""
    plant("step")
    with pytest.warns(UserWarning, match="step in float16"):
        assert "step in float16" in guard.why_not(TILE, FLOAT16)
    assert "step in float16" in guard.why_none()
    plant()
    assert guard.why_not(TILE, BFLOAT16) == guard.why_none()


@pytest.mark.parametrize("value", ["0", "1", "always", ""])
def test_the_environment_decides(
    cuda: Any, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FASTRNN_CHECK", value)
    guard = cuda.Guard()
    plant("unit")
    if value == "0":
        assert guard.why_not(TILE, FLOAT16) == ""
    else:
        with pytest.warns(UserWarning, match="is off by"):
            assert guard.why_not(TILE, FLOAT16)


def test_an_unknown_value(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_CHECK", "yes")
    with pytest.raises(ValueError, match="expected FASTRNN_CHECK to be 0, 1 or always, got yes"):
        cuda.Guard()


def test_the_faster_of_two_is_kept(guard: Any) -> None:
    calls: list[str] = []

    def quick() -> None:
        calls.append("quick")

    def slow() -> None:
        calls.append("slow")
        sum(range(100_000))

    assert guard.is_faster([1, 2], quick, slow)
    assert not guard.is_faster([1, 3], slow, quick)
    count = len(calls)
    assert guard.is_faster([1, 2], slow, quick)  # as timed before
    assert len(calls) == count


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        (90, "sm_80 sm_90a", 90),
        (89, "sm_80 sm_90a", 80),
        (90, "sm_80", 80),  # its PTX
        (90, "sm_80 sm_86", 86),
        (100, "sm_90a", 90),
        (86, "sm_90a", 0),
        (75, "sm_80", 0),
        (121, "sm_90a sm_120", 120),
        (103, "sm_90a sm_100 sm_120", 100),
        (110, "sm_90a sm_120", 0),
    ],
)
def test_what_a_device_runs(cuda: Any, capability: int, built: str, expected: int) -> None:
    assert cuda.compiled_for(capability, built) == expected


def test_code_of_an_older_architecture_takes_no_cluster(cuda: Any) -> None:
    """Its kernels would trap: what counts is what they were compiled for, not the device."""
    h100 = [90, 132, 227 << 10, 228 << 10, 65536]
    assert cuda.choose(FLOAT16, False, False, 512, 64, 512, 1, h100, "")[0] == "cluster"
    assert cuda.choose(FLOAT16, False, False, 512, 64, 512, 1, [*h100, 80], "")[0] == "step"
    assert cuda.choose(BFLOAT16, False, False, 512, 64, 64, 1, [*h100, 75], "")[0] == "step"


def test_lengths_are_read_once(cuda: Any) -> None:
    """The kernels read a copy: who changes the lengths meanwhile cannot make a cluster wait."""
    lengths = torch.tensor([6, 3, 0])
    copy = cuda.checked_lengths(lengths, 6)
    lengths.fill_(99)
    assert copy.tolist() == [6, 3, 0]


def test_ranks_are_those_of_a_stable_sort(cuda: Any) -> None:
    torch.manual_seed(0)
    for batch in (1, 2, 33, 255, 256):
        lengths = torch.randint(0, 9, (batch,))
        expected = lengths.argsort(stable=True, descending=True)
        assert torch.equal(cuda.ranked(lengths), expected)
