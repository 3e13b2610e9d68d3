"""What notebooks do: loading the package again, and after its modules were forgotten."""

from __future__ import annotations

import subprocess
import sys

import pytest

AFTER = """
x = torch.randn(5, 2, 3, requires_grad=True)
rnn = fastrnn.RNN(3, 4)
(grad,) = torch.autograd.grad(rnn(x)[0].sum(), x, create_graph=True)
grad.square().sum().backward()
theirs = torch.nn.RNN(3, 4)
theirs.load_state_dict(rnn.state_dict())
(expected,) = torch.autograd.grad(theirs(x)[0].sum(), x)
torch.testing.assert_close(grad, expected)
torch.testing.assert_close(torch.compile(rnn, backend="aot_eager")(x)[0], theirs(x)[0])
torch.testing.assert_close(before(x)[0].shape, torch.Size([5, 2, 4]))
with FlopCounterMode(display=False) as mode:
    rnn(x)
assert mode.get_total_flops() == 2 * 10 * 4 * (3 + 4)
"""

WAYS = {
    "reload": "fastrnn = importlib.reload(fastrnn)",
    "reload of every module": (
        "for name in [name for name in sys.modules if name.startswith('fastrnn.')]:\n"
        "    if hasattr(sys.modules[name], '__file__') and name != 'fastrnn._C':\n"
        "        importlib.reload(sys.modules[name])\n"
        "importlib.reload(fastrnn)"
    ),
    "modules forgotten": (
        "for name in [name for name in sys.modules if name.split('.')[0] == 'fastrnn']:\n"
        "    del sys.modules[name]\n"
        "import fastrnn"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_loading_again(way: str) -> None:
    program = (
        "import importlib, sys, torch, fastrnn\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        f"before = fastrnn.RNN(3, 4)\n{WAYS[way]}\n{AFTER}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
