"""What test_distributed.py runs in each process of torchrun: `python parallel_worker.py KIND`.

Every process holds the whole batch and a model that nothing shares. The parallel model sees the
rows of its process; its gradients, and what training makes of it, must be the other model's.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence

from fastrnn import RNN, LeakyRNN

T, B, I, H = 6, 8, 3, 5  # noqa: E741  (seq_len, batch, input_size, hidden_size)


class Model(nn.Module):
    """Scores of each step; `kind` names what the RNN is, or how its rows come."""

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        self.kind = kind
        options |= {"bidirectional": True, "batch_first": True}
        if kind == "leaky":
            alpha = nn.Parameter(torch.linspace(0.2, 1, 4 * H).view(4, H))
            self.rnn = LeakyRNN(I, H, 2, alpha=alpha, **options)
        else:
            self.rnn = RNN(I, H, 2, **options)
        self.linear = nn.Linear(2 * H, 4)

    def forward(self, x: Tensor, hx: Tensor, lengths: Tensor, reset: Tensor) -> Tensor:
        """(rows, T, I), (rows, 4, H), (rows), (rows, T) to a loss for each row, (rows)."""
        hx = hx.transpose(0, 1).contiguous()
        if self.kind == "packed":
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            _, hn = self.rnn(packed, hx)
        elif self.kind == "lengths":
            _, hn = self.rnn(x, hx, lengths=lengths)
        elif self.kind == "reset":
            output, hn = self.rnn(x, hx, reset=reset)
            hn = hn + output.sum(1)[:, :H]
        else:
            _, hn = self.rnn(x, hx)
        return self.linear(torch.cat([hn[-2], hn[-1]], 1)).square().mean(1)


def batch(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    reset = torch.rand(B, T, generator=generator) < 0.3
    x, hx = (torch.randn(sizes, generator=generator) for sizes in ((B, T, I), (B, 4, H)))
    return [x, hx, lengths, reset]


def own_rows(tensors: list[Tensor]) -> list[Tensor]:
    return [x.chunk(dist.get_world_size())[dist.get_rank()] for x in tensors]


def on(device: torch.device, tensors: list[Tensor], kind: str) -> list[Tensor]:
    """Lengths of packed sequences stay on the CPU."""
    return [x if kind == "packed" and x.dtype == torch.int64 else x.to(device) for x in tensors]


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def check(
    kind: str,
    parallel: Callable[[nn.Module], nn.Module],
    device: torch.device,
    *,
    accumulate: bool = False,
    tolerance: float = 1e-5,
    **options: object,
) -> None:
    """Train for three steps; compare gradients at each, and the weights at the end."""
    torch.manual_seed(0)
    alone = Model(kind, **options).to(device)
    model = parallel(copy.deepcopy(alone))
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (alone, model)]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for part in range(2 if accumulate else 1):
            data = batch(10 * step + part)
            alone(*on(device, data, kind)).mean().backward()
            waits = accumulate and part == 0
            with model.no_sync() if waits else contextlib.nullcontext():
                model(*on(device, own_rows(data), kind)).mean().backward()
        pairs = zip(alone.named_parameters(), model.parameters(), strict=True)
        for (name, expected), ours in pairs:
            assert expected.grad.abs().max() > 0, name
            torch.testing.assert_close(
                whole(ours.grad),
                expected.grad,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, name=name, step=step: f"step {step}, gradient of {name}: {m}",
            )
        for optimizer in optimizers:
            optimizer.step()
    # Adam divides small differences of gradients by small gradients.
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=0, atol=max(1e-3, tolerance))


def ddp(**options: object) -> Callable[[nn.Module], nn.Module]:
    return lambda model: DistributedDataParallel(model, **options)


def compressed(model: nn.Module) -> nn.Module:
    model = DistributedDataParallel(model)
    model.register_comm_hook(None, fp16_compress_hook)
    return model


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(DistributedDataParallel(model), backend="aot_eager")


def sharded(*names: str, **options: object) -> Callable[[nn.Module], nn.Module]:
    def shard(model: nn.Module) -> nn.Module:
        for name in names:
            fully_shard(model.get_submodule(name), **options)
        fully_shard(model, **options)
        assert all(isinstance(w, DTensor) for w in model.parameters())
        local = sum(w.to_local().numel() for w in model.parameters())
        assert local < sum(w.numel() for w in model.parameters())
        return model

    return shard


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

CASES: dict[str, dict[str, Callable[[torch.device], None]]] = {
    "ddp": {
        "batch": lambda d: check("batch", ddp(), d),
        "packed": lambda d: check("packed", ddp(), d),
        "lengths": lambda d: check("lengths", ddp(), d),
        "reset": lambda d: check("reset", ddp(), d),
        "leaky": lambda d: check("leaky", ddp(), d),
        "no_sync": lambda d: check("batch", ddp(), d, accumulate=True),
        "static graph, bucket views, small buckets": lambda d: check(
            "lengths",
            ddp(static_graph=True, gradient_as_bucket_view=True, bucket_cap_mb=0.0001),
            d,
            nonlinearity="relu",
        ),
        "gradients sent in float16": lambda d: check("batch", compressed, d, tolerance=2e-3),
        "compiled": lambda d: check("lengths", compiled, d),
    },
    "fsdp": {
        "batch": lambda d: check("batch", sharded(), d),
        "packed": lambda d: check("packed", sharded("rnn"), d),
        "lengths": lambda d: check("lengths", sharded("rnn", "linear"), d),
        "reset": lambda d: check("reset", sharded("rnn"), d),
        "leaky": lambda d: check("leaky", sharded("rnn"), d),
        "weights stay whole after forward": lambda d: check(
            "batch", sharded("rnn", reshard_after_forward=False), d
        ),
        "bfloat16 weights": lambda d: check(
            "batch", sharded("rnn", mp_policy=HALF), d, tolerance=2e-2
        ),
    },
}


def main(kind: str, device_type: str) -> None:
    device = torch.device(device_type)
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        assert dist.get_world_size() == 2
        for name, case in CASES[kind].items():
            case(device)
            if dist.get_rank() == 0:
                print(f"passed: {name}", flush=True)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
