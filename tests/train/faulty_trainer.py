"""Run the real trainer on a faulty machine: the module `faulty_trainer` of a worker, with the fault in `FAULT`.

Faults happen at the library's own calls, as hardware and operating systems cause them: too little memory for a batch,
a process that is killed between two epochs or while it writes a checkpoint, ranks that wait for each other forever.
With `GLOO=1` the ranks of DDP compute on CPUs, so that DDP can be tested without GPUs.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import ultralytics.engine.trainer
import ultralytics.engine.validator
from torch import distributed, nn
from ultralytics.utils import LOCAL_RANK, RANK

from lib.train import trainer

FAULT, _, ARGUMENT = os.environ.get("FAULT", "").partition(":")


def die() -> None:
    """Kill this process, as the system does: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class Faulty(trainer.GuardedTrainer):
    """The real trainer on a machine that fails."""

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        if GLOO and LOCAL_RANK != -1:
            self.world_size = int(os.environ["WORLD_SIZE"])  # the library counts GPUs

    def _setup_ddp(self) -> None:
        self.device = torch.device("cpu")
        distributed.init_process_group("gloo", timeout=timedelta(seconds=120), rank=RANK, world_size=self.world_size)

    def preprocess_batch(self, batch: Any) -> Any:
        """Cause the fault at the first computation on a batch."""
        if FAULT == "memory" and self.batch_size > int(ARGUMENT):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if FAULT == "show":
            groups = self.optimizer.param_groups
            rates, decays = (sorted({group[key] for group in groups}) for key in ("initial_lr", "weight_decay"))
            print(f"Optimizer: initial rates {rates}, decays {decays}")
        if FAULT == "hang" and RANK == 1:
            time.sleep(3600)
        if FAULT == "error" and self.epoch == int(ARGUMENT):
            raise RuntimeError("CUDA error: unspecified launch failure")
        if FAULT == "killed" and self.epoch == int(ARGUMENT):
            die()
        return super().preprocess_batch(batch)


GLOO = os.environ.get("GLOO") == "1"
if GLOO:
    library: Any = ultralytics.engine.trainer
    validator: Any = ultralytics.engine.validator
    cpu = torch.device("cpu")
    backend, parallel = validator.AutoBackend, nn.parallel.DistributedDataParallel
    library.select_device = validator.select_device = lambda *_, **__: cpu
    validator.get_torch_device_backend = lambda *_: SimpleNamespace(current_device=lambda: 0)
    validator.AutoBackend = lambda *args, **kwargs: backend(*args, **{**kwargs, "device": cpu})
    vars(nn.parallel)["DistributedDataParallel"] = lambda model, device_ids=None, **kwargs: parallel(model, **kwargs)  # noqa: ARG005

if FAULT == "torn":
    written, write = [0], Path.write_bytes

    def write_half(path: Path, data: Any) -> int:
        """Write half of the n-th checkpoint, and kill the process."""
        if path.suffix == ".pt":
            written[0] += 1
            if written[0] == int(ARGUMENT):
                write(path, data[: len(data) // 2])
                die()
        return write(path, data)

    Path.write_bytes = write_half  # type: ignore[method-assign, assignment]

main = partial(trainer.main, guard=Faulty)
