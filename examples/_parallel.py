"""Training in several processes, as torchrun starts them, and checkpoints of it.

A program started without torchrun is one process: everything here works there, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _common import fail, make_folder
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Within, the processes of torchrun know one another, and only the first one prints.

    Gives the process's device: `device` itself, or on CUDA the one of the process's local rank.
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            local_rank, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local_rank >= devices:
                fail(f"torchrun: expected at most {devices} processes here, one for a CUDA device")
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        stack.callback(dist.destroy_process_group)
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield device


def number_of_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def parallel(model: nn.Module) -> nn.Module:
    """`model`, whose backward pass, in several processes, gives the mean of their gradients."""
    return DistributedDataParallel(model) if dist.is_initialized() else model


def own_rows(batch: Tensor) -> Tensor:
    """This process's share of a batch: as many rows in each process, always the same ones."""
    if not dist.is_initialized():
        return batch
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def mean_of_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


@dataclass
class Checkpoints:
    """The folder `path`, where `epoch-N` holds the last finished epoch of a training.

    The processes read and write together, with torch.distributed.checkpoint: there may be more or
    fewer of them when a training goes on, and they need one file system. A checkpoint is written
    under another name and renamed when all of it is there; the one before is removed after that.
    """

    path: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Mapping[str, object]  # what must be as it was for the training to go on

    def begin(self, resume: bool) -> dict[str, object]:
        """Bring model and optimizer to the last checkpoint; returns what was saved beside them.

        Returns {} where there is no checkpoint. Where there is one, `resume` must be true.
        """
        make_folder(self.path)
        last = max(self.path.glob("epoch-*"), key=epoch_of, default=None)
        if not all_agree(last and last.name):
            fail(f"{self.path}: expected one folder that all nodes share, got different ones")
        if last is None:
            return {}
        if not resume:
            fail(f"{last}: there is a checkpoint already: --resume, or another --checkpoint")
        try:
            record = json.loads((last / "record.json").read_text())
            for name, value in self.settings.items():
                if record["settings"][name] != value:
                    fail(f"{last}: expected {name} {record['settings'][name]!r}, got {value!r}")
            state = self._state()
            with _one_process_is_no_mistake():
                dcp.load(state, checkpoint_id=last)
        except (OSError, ValueError, KeyError, dcp.api.CheckpointException) as error:
            fail(f"{last}: cannot be read: {error}")
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        print(f"going on after {last}")
        return record["results"]

    def save(self, epoch: int, results: Mapping[str, object]) -> None:
        """Keep model, optimizer and `results`, which JSON can hold, as checkpoint of `epoch`."""
        finished, unfinished = self.path / f"epoch-{epoch}", self.path / "unfinished"
        if is_first():
            shutil.rmtree(unfinished, ignore_errors=True)
        wait_for_all()
        with _one_process_is_no_mistake():
            dcp.save(self._state(), checkpoint_id=unfinished)
        if is_first():
            record = json.dumps({"settings": self.settings, "results": results})
            (unfinished / "record.json").write_text(record)
            unfinished.rename(finished)
            for older in self.path.glob("epoch-*"):
                if older != finished:
                    shutil.rmtree(older)
        wait_for_all()

    def _state(self) -> dict[str, object]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}


def epoch_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("epoch-"))


def all_agree(value: object) -> bool:
    values = [value] * number_of_processes()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values.count(value) == len(values)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def _one_process_is_no_mistake() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
