"""Data parallel training in two processes, started by torchrun; the checks: parallel_worker.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrnn import RNN

WORKER = Path(__file__).parent / "parallel_worker.py"
CASES = {"ddp": 9, "fsdp": 7}


def in_two_processes(kind: str, device: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(WORKER.parents[2]), os.environ.get("PYTHONPATH")]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(WORKER), kind, device],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built")
@pytest.mark.parametrize("kind", CASES)
def test_two_processes_train_as_one(kind: str, device: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a CUDA device for each process")
    done = in_two_processes(kind, device)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed: ") == CASES[kind], done.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built")
def test_distributed_tensors_as_weights_raise(tmp_path: Path) -> None:
    from torch.distributed.tensor import (
        Replicate,
        distribute_module,
        distribute_tensor,
        init_device_mesh,
    )

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        module, x = distribute_module(RNN(3, 4), mesh), torch.randn(5, 2, 3)
        with pytest.raises(RuntimeError, match=r"got mixed torch\.Tensor and DTensor"):
            module(x)
        with pytest.raises(NotImplementedError, match="does not have a sharding strategy"):
            module(distribute_tensor(x, mesh, [Replicate()]))
    finally:
        torch.distributed.destroy_process_group()
