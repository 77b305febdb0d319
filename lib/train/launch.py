"""Train one experiment: run its worker processes, and handle their failures.

Training runs in subprocesses (`worker.py`), one per GPU, even if there is only one GPU or none: a hung worker can be
killed, a retry after an out-of-memory error starts with all memory free, and the notebook's kernel survives. The first
workers start long before the training (`start_workers`), since their imports take seconds.

Guarantees: the run trains with the experiment's values, each under ultralytics' own argument name; nothing is
installed; older results in the same folder are moved aside; no subprocess outlives this process, even if this process
is killed; whatever was trained is returned, however training ended.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from lib.errors import TrainingError
from lib.experiment.modules import Task
from lib.experiment.schema import Experiment, ultralytics_arguments
from lib.process import MINUTE, SideBySide, found_from
from lib.progress import is_watched
from lib.session import Session
from lib.train.failures import find_remedy
from lib.train.plots import guarded_plots
from lib.train.tracking import Tracking
from lib.train.weights import StartingPoint

State = Literal["finished", "stopped", "interrupted", "failed"]
WorkerState = Literal["memory", "failed", "killed", "stalled", "stopped", "interrupted", "finished"]
"""How a worker ended. Of several workers the first of these states counts: one failure ends the other workers."""


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""Makes glibc (mallopt(3)) keep the memory of an image's arrays for those of the next one. By default it gives much of
it back to the system, which must zero it again: up to a third of the time of loading an image for the validation."""


@dataclass(frozen=True)
class Trained:
    """The result of a training: its folder (`train/`), its two checkpoints, and how it ended."""

    folder: Path
    best: Path
    last: Path
    seconds: float
    state: State = "finished"
    reason: str = ""
    """Why it was stopped, was interrupted or failed."""
    batch_size: int = 0
    """Images per step at the end of training; fewer than requested if memory ran short."""
    device: str = "cpu"
    """The device in use at the end of training."""
    error: TrainingError | None = None
    """The error to raise after everything that can be saved is saved."""


class WorkerPlan(BaseModel, frozen=True):
    """The instructions for the workers of a training, passed to them as a file."""

    task: Task
    arguments: Mapping[str, Any]
    """Ultralytics' train arguments."""
    folder: Path
    """Where the workers touch the heartbeat file and write their outcomes."""
    stop_at: float | None
    """The end of the session's time, in seconds of this machine's monotonic clock; None for no limit."""
    expected: float | None
    """The seconds that an epoch is expected to take; None if not known."""
    tracking: Tracking
    watched: bool
    """Whether a user sees the workers' output live."""
    port: int | None = None
    """The port of this machine at which rank 0 answers the other ranks; None for one worker."""

    def write(self) -> Path:
        """Write the plan into its folder, which is emptied first; return the file's path."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.beat.touch()
        file = self.folder / "plan.json"
        file.write_text(self.model_dump_json(), encoding="utf-8")
        return file

    @property
    def stop(self) -> Path:
        """Return the path of the file that exists once training is to end after the epoch under way."""
        return self.folder / "stop"

    @property
    def beat(self) -> Path:
        """Return the path of the heartbeat file; its modification time is that of the last finished batch."""
        return self.folder / "beat"

    def outcome(self, rank: int) -> Path:
        """Return the path of the file in which a rank writes its outcome."""
        return self.folder / f"outcome-{rank}.json"


class Outcome(BaseModel):
    """How one worker, or all workers together, ended."""

    state: WorkerState
    reason: str = ""


def prepare_library(scratch: Path) -> None:
    """Configure ultralytics for a run, before its first import: separate settings, no installs, no other trackers."""
    config = _prepare_environment(scratch)
    # lib/train/tracking.py writes the only W&B run; the library's own integrations would open more
    from ultralytics import settings
    from ultralytics.utils import LOGGER

    LOGGER.setLevel(logging.WARNING)
    trackers = dict.fromkeys(("clearml", "comet", "dvc", "mlflow", "neptune", "raytune", "tensorboard", "wandb"), False)
    known = {name: value for name, value in trackers.items() if name in settings}
    settings.update({**known, "sync": False, "weights_dir": str(config / "weights"), "runs_dir": str(config / "runs")})


def _prepare_environment(scratch: Path) -> Path:
    """Set what ultralytics reads from the environment, here and in subprocesses; return its folder of settings."""
    config = scratch / "ultralytics"
    config.mkdir(parents=True, exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"] = str(config)
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_VERBOSE"] = "false"  # it prints five lines per epoch; lib/train/trainer.py prints one
    return config


def train(
    session: Session,
    data_file: Path,
    start: StartingPoint,
    tracking: Tracking,
    *,
    worker: str = "lib.train.trainer",
    expected: float | None = None,
    confirm: Callable[[], object] = bool,
    workers: SideBySide | None = None,
) -> Trained:
    """Train into `artifacts/{module}/{name}/train` of the clone and return the result.

    Each GPU of the session's device has its own worker process, which runs the module `worker`; `workers` are those
    that wait already. A training that fails after its first epoch is returned with the state `failed`, so that its
    files can be saved. Raises `TrainingError` for a failed training without a checkpoint. `expected` are the seconds
    that an epoch is expected to take. `confirm` is called about twice a second: an error that it raises ends the
    training at once, and something true that it returns, after the epoch under way.
    """
    experiment, folder = session.experiment, session.artifacts
    keep_earlier(folder)
    batch_size, device, smallest = experiment.training.batch_size, session.device, experiment.training.min_batch_size
    last = folder / "train" / "weights" / "last.pt"
    begun = time.monotonic()
    while True:
        weights = str(start.weights) if start.weights else False
        arguments = {
            **ultralytics_arguments(experiment),
            "data": str(data_file),
            "model": f"{experiment.model.architecture}.yaml",
            "batch": batch_size,
            "device": device,
            "resume": weights if start.epoch else False,
            "pretrained": False if start.epoch else weights,
            # explicit: on resume, the library would write into the folder in which the checkpoint was made
            "save_dir": str(folder / "train"),
            # not used as a folder: the checkpoint stores in it the W&B run that it belongs to
            "project": tracking.run_path,
            "plots": True,
            "exist_ok": True,
        }
        if workers is None or not workers.are_alive:
            if workers is not None:
                workers.close()  # one has died, but the other ranks still wait
            workers = start_workers(session, device, worker)
        processes = len(workers)
        outcome = _run(session, workers, arguments, tracking, expected, confirm)
        workers = None
        if outcome.state == "memory" and smallest is not None and batch_size // 2 >= max(smallest, processes):
            batch_size //= 2
            retry = f"Training continues with batches of {batch_size}; training.min_batch_size is {smallest}."
        elif outcome.state == "stalled" and processes > 1:
            device, retry = "0", "Training continues with one GPU."
        else:
            break
        print(f"Warning: {outcome.reason}. {retry}", flush=True)
        if last.is_file():
            start = StartingPoint(last, 1)
    for part in last.parent.glob(".*.pt*"):  # left by a worker that was killed while writing
        part.unlink()
    state: State = outcome.state if outcome.state in ("finished", "stopped", "interrupted") else "failed"
    error = None
    if state == "failed":
        error = _failure(experiment, outcome, batch_size, folder)
        if not last.is_file():
            raise error
        with guarded_plots():
            from ultralytics.utils import plotting

            plotting.plot_results(file=folder / "train" / "results.csv")  # the library does this at a training's end
    return Trained(
        folder / "train", last.with_name("best.pt"), last, time.monotonic() - begun, state, outcome.reason, batch_size,
        device, error,
    )  # fmt: skip


def _failure(experiment: Experiment, outcome: Outcome, batch_size: int, folder: Path) -> TrainingError:
    what, remedy = f"training failed: {outcome.reason}", find_remedy(outcome.reason)
    if outcome.state == "memory":
        where = "CUDA out" if "cuda" in outcome.reason.lower() else "Out"
        what = (
            f"{where} of memory: training.batch_size is {batch_size}, training.image_size "
            f"{experiment.training.image_size}: {outcome.reason.splitlines()[0]}"
        )
        remedy = (
            "reduce training.batch_size, or set training.min_batch_size to let it be halved, or "
            "reduce training.image_size, and render again."
        )
    return TrainingError(what, state=f"what was trained until then is in {folder}.", remedy=remedy)


def start_workers(session: Session, device: str = "", worker: str = "lib.train.trainer") -> SideBySide:
    """Start the processes of a training, one per GPU of the device (default: the session's).

    They import the libraries, which takes seconds, and wait for `train`; until then they use no GPU.
    """
    _prepare_environment(session.scratch)
    environment = {
        **found_from(session.root),
        "PYTHONUNBUFFERED": "1",  # the workers' output must appear at once
        # ultralytics' own default, which it sets too late here: torch is imported before it
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1",
        **ALLOCATOR,
    }
    count = len((device or session.device).split(","))
    identities = [{"WORLD_SIZE": "1"}]
    if count > 1:  # as torchrun sets them
        identities = [
            {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
            for rank in map(str, range(count))
        ]
    return SideBySide(
        [sys.executable, "-m", "lib.train.worker", worker, str(os.getpid())],
        [environment | identity for identity in identities],
        cwd=session.root,
    )


def _run(
    session: Session, workers: SideBySide, arguments: dict[str, Any], tracking: Tracking, expected: float | None,
    confirm: Callable[[], object],
) -> Outcome:  # fmt: skip
    """Run the workers until all have ended, and return their outcome; no worker is ever left behind."""
    stall, port = session.experiment.hardware.stall_minutes, None
    if len(workers) > 1:
        from ultralytics.utils.dist import find_free_network_port

        port = find_free_network_port()  # as late as possible: another program may take it
    plan = WorkerPlan(
        task=session.experiment.about.task,
        arguments=arguments,
        folder=session.scratch / "training",
        stop_at=session.stop_at,
        expected=expected,
        tracking=tracking,
        watched=is_watched(sys.stdout),
        port=port,
    )

    def look() -> None:
        if confirm():
            plan.stop.touch()

    statuses = workers.run(str(plan.write()), beat=plan.beat, stall=stall * MINUTE, confirm=look)
    if statuses is None:
        return Outcome(state="stalled", reason=f"no batch was finished for {stall:g} minutes (hardware.stall_minutes)")
    outcomes = [_outcome(plan.outcome(rank), status) for rank, status in enumerate(statuses)]
    return min(outcomes, key=lambda outcome: get_args(WorkerState).index(outcome.state))


def _outcome(file: Path, status: int) -> Outcome:
    """Return the outcome that a worker wrote to `file`; without one, how its process ended."""
    if file.is_file():
        try:
            return Outcome.model_validate_json(file.read_bytes())
        except ValueError:  # it was cut off while it was written
            return Outcome(state="failed", reason=f"{file.name} is incomplete: No space left on device?")
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return Outcome(state="killed", reason=f"a training process {how}")


def keep_earlier(folder: Path) -> Path | None:
    """Move an earlier run's files from `folder` to a sibling folder, so that no unpublished model is overwritten."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    stamp = datetime.fromtimestamp(folder.stat().st_mtime, UTC).strftime("%Y%m%d-%H%M%S")
    aside = folder.with_name(f"{folder.name}.until-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.until-{stamp}-{number}")
    shutil.move(folder, aside)
    print(f"The files of an earlier run in {folder} were moved to {aside}.", flush=True)
    return aside


def free_gpu_memory() -> str:
    """Release the GPU memory that this process caches; return one line on what is still reserved."""
    gc.collect()
    import torch

    if not torch.cuda.is_available():
        return "There is no GPU to clear."
    torch.cuda.empty_cache()
    held = sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))
    return f"GPU cache cleared; {held / 2**20:.0f} MiB are still reserved."
