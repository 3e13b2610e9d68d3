"""Peak memory of a training step, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import fastrnn

T, B, I, H = 256, 64, 64, 256  # noqa: E741  (seq_len, batch, input_size, hidden_size)

STEP = """
import re, sys, torch, fastrnn
T, B, I, H, layers = map(int, sys.argv[1:6])
bidirectional, dtype = sys.argv[6] == "True", getattr(torch, sys.argv[7])
rnn = fastrnn.RNN(I, H, layers, bidirectional=bidirectional, dtype=dtype)

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

rnn(torch.randn(2, 20, I, dtype=dtype))[0].sum().backward()
x = torch.randn(T, B, I, dtype=dtype).requires_grad_()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
before = kib("VmRSS")
rnn(x)[0].sum().backward()
print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (3, False), (2, True)])
def test_peak_memory(layers: int, bidirectional: bool, dtype: torch.dtype) -> None:
    """The peak is in the backward pass, whose tensors of all steps are counted here."""
    rnn = fastrnn.RNN(I, H, layers, bidirectional=bidirectional, dtype=dtype)
    kernel = fastrnn.info(rnn, torch.empty(T, B, I, dtype=dtype))["kernel"]
    if "torch" in kernel:
        pytest.skip("torch's own operator serves this call")
    directions, element = 1 + bidirectional, dtype.itemsize
    states = T * B * directions * H
    grad_pre = 2 if kernel == "cpu avx512_bf16 bfloat16" else 4  # bytes of an element
    limit = states * (
        layers * element  # the states of every layer
        + element  # grad_output, which sum() leaves expanded
        + grad_pre
        + (element if layers > 1 else 0)  # the gradient handed to the layer below
    )
    limit += T * B * I * element  # grad_input
    # The weights packed forward and backward, and their gradients, in float32; threads' scratch.
    limit += 3 * 4 * sum(p.numel() for p in rnn.parameters()) + 2**19
    arguments = [T, B, I, H, layers, bidirectional, str(dtype).removeprefix("torch.")]
    run = subprocess.run(
        [sys.executable, "-c", STEP, *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0 < int(run.stdout) * 1024 <= limit, f"{run.stdout.strip()} KiB, limit {limit / 1024}"


PACKED = """
import re, torch, fastrnn
torch.set_num_threads(1)
layers, H = 6, 1024
rnn = fastrnn.RNN(H, H, layers).requires_grad_(False)
x = torch.randn(40, 1, H)

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

rnn(x[:1])
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
rnn(x)
print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_weights_are_packed_a_layer_at_a_time() -> None:
    run = subprocess.run([sys.executable, "-c", PACKED], capture_output=True, text=True, check=True)
    one_layer = 2 * 1024 * 1024 * 4
    assert int(run.stdout) * 1024 < 1.75 * one_layer


@pytest.mark.parametrize("bidirectional", [False, True])
def test_results_where_weights_are_packed_a_layer_at_a_time(bidirectional: bool) -> None:
    """Three layers of 6 MB or more, against the same layers one by one."""
    size = 640
    rnn = fastrnn.RNN(size, size, 3, bidirectional=bidirectional)
    directions = 1 + bidirectional
    x = torch.randn(30, 2, size, requires_grad=True)
    output, hn = rnn(x)
    h, states, parameters = x, [], list(rnn.parameters())
    for layer in range(3):
        of_layer = parameters[layer * 4 * directions : (layer + 1) * 4 * directions]
        h, state = fastrnn.functional.rnn(h, None, of_layer, bidirectional=bidirectional)
        states.append(state)
    torch.testing.assert_close((output, hn), (h, torch.cat(states)), rtol=0, atol=0)
    wanted, grad = [x, *parameters], torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, wanted, grad, retain_graph=True),
        torch.autograd.grad(h, wanted, grad),
        rtol=1e-4,
        atol=1e-4,
    )


FROZEN: dict[str, Callable[[str], bool]] = {
    "no weight": lambda name: False,
    "w_ih": lambda name: "weight_ih" in name,
    "w_hh": lambda name: "weight_hh" in name,
    "the lower layer": lambda name: "l0" in name,
}


@pytest.mark.parametrize("second", [False, True], ids=["first derivative", "second derivative"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_nothing_is_kept_that_no_gradient_needs(frozen: str, second: bool) -> None:
    """What nn.RNN frees, ours frees, and both then have their derivatives."""
    kept, grads = [], []
    for cls in (torch.nn.RNN, fastrnn.RNN):
        torch.manual_seed(0)
        rnn = cls(3, 4, 2, dtype=torch.float64)
        for name, w in rnn.named_parameters():
            w.requires_grad_(not FROZEN[frozen](name))
        input, hx = torch.randn(5, 2, 3).double(), torch.randn(2, 2, 4).double()
        output, _ = rnn(input, hx)
        memory = [StorageWeakRef(x.untyped_storage()) for x in (input, hx)]
        del input, hx
        kept.append([not of_one.expired() for of_one in memory])
        wanted = [w for w in rnn.parameters() if w.requires_grad]
        first = torch.autograd.grad(output.square().sum(), wanted, create_graph=second)
        if second:
            first = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        grads.append(first)
    theirs, ours = kept
    assert ours == [frozen in ("no weight", "w_hh"), frozen != "w_hh"]
    assert theirs == ours
    torch.testing.assert_close(grads[1], grads[0])
