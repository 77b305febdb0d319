"""Train as one worker of a training, in a process of `worker.py`.

Guarantees: training uses the plan's arguments, also on resume; a checkpoint in its folder is complete at every moment,
even while the library writes it; every finished batch updates the heartbeat file; training stops before an epoch that
does not fit into the session's time, or once it is asked to, while its schedule is planned for all epochs; the outcome
is written to a file.

Cannot: make a resumed training identical to an uninterrupted one. Ultralytics saves only the moving average of the
weights, in half precision, and the data loader's processes (on GPUs) restart their random streams.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ultralytics.engine import trainer as library
from ultralytics.models import YOLO
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK
from ultralytics.utils.callbacks import get_default_callbacks
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import init_seeds, torch_distributed_zero_first

from lib.experiment.modules import Task
from lib.files import replacing
from lib.progress import REDRAWN, Bar, duration
from lib.train.failures import is_memory
from lib.train.launch import Outcome, WorkerPlan
from lib.train.plots import guarded_plots
from lib.train.tracking import Recorder

FIRST = RANK in {-1, 0}
"""Whether this process writes the files: it is the only worker, or rank 0 of several."""
UNWATCHED = 300.0  # seconds between two states of a bar in a log; a shorter epoch shows progress by its own line

BaseTrainer: Any = library.BaseTrainer  # the library is untyped


class GuardedTrainer(BaseTrainer):  # type: ignore[misc]
    """This project's extensions of the library's trainer; `trainer_of` combines it with the trainer of a task."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self.outcome = Outcome(state="finished")
        """How training ends, with the reason if that is before its last epoch."""
        self._evaluating = False  # the library's final validation repeats an epoch's events
        self._recorder: Recorder | None = None
        self._seconds_before = 0.0  # training time of the earlier sessions
        self._begun = 0.0
        self._bar: Bar | None = None  # progress of the current epoch
        self._batches = 0  # finished batches of the current epoch
        events = get_default_callbacks()
        for event, calls in events.items():
            if own := getattr(self, f"_{event}", None):
                calls.append(own)
        super().__init__(overrides=dict(plan.arguments), _callbacks=events)

    # ------------------------------------------------------------------------------------------------- resuming

    def check_resume(self, overrides: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Resume with the plan's arguments; the library would use the checkpoint's."""
        self.resume = bool(self.args.resume)
        if self.resume:
            self.args.model = self.args.resume

    def resume_training(self, ckpt: Any) -> None:  # noqa: ANN401  the library's; None for a new training
        """Resume from a checkpoint, with its curves and the best weights of the earlier epochs."""
        groups = [{**group} for group in self.optimizer.param_groups]
        super().resume_training(ckpt)
        if not self.resume:
            return
        # the loaded state also brought the rates, decays and momenta of its training: the experiment's count
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update({**values, "params": group["params"]})
        rows = ckpt.get("train_results") or {}
        self._seconds_before = float(rows["time"][-1]) if rows.get("time") else 0.0
        if FIRST:
            _write_rows(self.csv, rows)
            self._bring_best(ckpt, Path(self.args.resume))

    def _bring_best(self, ckpt: Mapping[str, Any], last: Path) -> None:
        """Restore the best weights so far: the `best.pt` in the checkpoint's folder, or the checkpoint itself."""
        best = last.with_name("best.pt")
        if best.is_file() and _fitness(best) == ckpt["best_fitness"]:
            if best != self.best:
                _copy(best, self.best)
            return
        own = ckpt["train_metrics"]["fitness"]
        if own != ckpt["best_fitness"]:
            print(f"Warning: {best} is not from the best earlier epoch; the weights of {last.name} count as the best.")
        _copy(last, self.best)
        self.best_fitness = own

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save_model(self) -> bool:
        """Write `last.pt`, and `best.pt` if it is due, each atomically."""
        with self._beside():
            return bool(super().save_model())

    def final_eval(self) -> None:
        """Validate the best weights and strip both files to models; an early end keeps `last.pt` complete."""
        self._evaluating = True
        with self._beside() as parts:
            with torch_distributed_zero_first(LOCAL_RANK):
                if FIRST:
                    for whole, part in parts:
                        if whole.exists() and not (self.outcome.reason and whole.name == "last.pt"):
                            shutil.copyfile(whole, part)
            super().final_eval()

    @contextlib.contextmanager
    def _beside(self) -> Iterator[list[tuple[Path, Path]]]:
        """Redirect the library's in-place checkpoint writes to temporary files, and rename these once complete."""
        names = ("last.pt", "best.pt")  # the order matters: best.pt may never be newer than last.pt
        (last, self.last), (best, self.best) = parts = [(self.wdir / name, self.wdir / f".{name}") for name in names]
        try:
            yield parts
            for whole, part in parts:
                if FIRST and part.exists():
                    part.replace(whole)
        finally:
            self.last, self.best = last, best

    # ----------------------------------------- events of the library: `_on_train_start` is called on `on_train_start`

    def _on_pretrain_routine_start(self, _: object) -> None:
        if FIRST:
            self._recorder = Recorder(self.plan.tracking)

    def _on_train_start(self, _: object) -> None:
        self.train_time_start -= self._seconds_before  # the curves continue, so their time must too
        self._begun = time.monotonic()
        if FIRST:
            size = sum(each.numel() for each in self.model.parameters())
            network = f"{Path(self.plan.arguments['model']).stem}: {size:,} parameters, torch {torch.__version__}"
            train, val = (len(loader.dataset) for loader in (self.train_loader, self.test_loader))
            batches = f"{len(self.train_loader)} batches of {self.batch_size} an epoch"
            print(f"{network}; {train} train, {val} val images; {batches}", flush=True)

    def _on_train_epoch_start(self, _: object) -> None:
        # out of memory, the library would silently halve the batch up to three times, and only on one GPU: disable that
        self._oom_retries = 3
        # seeded by the epoch's number alone, so that a resumed training draws the same random numbers
        seed = self.args.seed + 1 + RANK + self.epoch * 1009
        init_seeds(seed, deterministic=self.args.deterministic)
        self.train_loader.sampler.generator = torch.Generator().manual_seed(seed)

        if FIRST:
            batches = len(self.train_loader) + len(self.test_loader)
            every = REDRAWN if self.plan.watched else UNWATCHED
            self._bar, self._batches = Bar(f"epoch {self.epoch + 1}/{self.epochs}", batches, every=every), 0

    def _on_train_batch_end(self, _: object) -> None:
        if FIRST:
            os.utime(self.plan.beat)
        if self._bar is not None:
            self._batches += 1
            self._bar.show(self._batches)

    _on_val_batch_end = _on_train_batch_end

    def _on_fit_epoch_end(self, _: object) -> None:
        if self._evaluating or not FIRST:
            return
        values = {**self.label_loss_items(self.tloss, prefix="train"), **self.metrics, **self.lr}
        if self._recorder is not None:
            self._recorder.log({**values, "gpu_memory_gib": self._get_memory(), "epoch": self.epoch + 1})
        self._show_epoch(values)
        if self.stop and self.epoch + 1 < self.epochs:
            better = f"training.patience is {self.args.patience}, the best epoch is {self.stopper.best_epoch}"
            print(f"Training stops: it has not improved for too long ({better}).", flush=True)
        if not self.stop and (outcome := self._early_end()):
            self.outcome = outcome
            print(f"Training is {outcome.reason}.", flush=True)
            self.stop: bool = True  # the library broadcasts this to the other ranks

    def _early_end(self) -> Outcome | None:
        """Return the outcome of a training that ends after this epoch; None if it goes on."""
        at = f"stopped after epoch {self.epoch + 1} of {self.epochs}"
        if self.plan.stop.exists():
            return Outcome(state="stopped", reason=f"{at}, as `python -m lib stop` asked")
        left = math.inf if self.plan.stop_at is None else self.plan.stop_at - time.monotonic()
        if self.epoch_time <= left:
            return None
        another = f"another one takes {self.epoch_time:.0f} s, and {max(left, 0):.0f} s are left of session.max_hours"
        return Outcome(state="interrupted", reason=f"{at}: {another}")

    def _show_epoch(self, values: Mapping[str, float]) -> None:
        """Replace the epoch's progress bar with its line of results."""
        done, left = self.epoch + 1 - self.start_epoch, self.epochs - self.epoch - 1
        only = "(B)" if self.plan.task == "detect" else "(none)"  # a single head needs no suffix
        cells = {"epoch": f"{self.epoch + 1}/{self.epochs}"}
        for key, value in values.items():
            kind, _, name = key.partition("/")
            if kind == "train" or name.startswith("mAP"):
                cells[name.removesuffix("_loss").removesuffix(only)] = f"{value:.3f}"
        if self.device.type != "cpu":
            cells["GPU GiB"] = f"{self._get_memory():.1f}"
        cells["time"] = duration(self.epoch_time)
        cells["left"] = duration((time.monotonic() - self._begun) / done * left) if left else "none"
        widths = [max(len(name), 10 if name in {"time", "left"} else 7) for name in cells]
        lines = [list(cells)] * (done == 1) + [list(cells.values())]
        text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        if done == 1 and (expected := self.plan.expected):
            took = f"it took {self.epoch_time / expected:.2g} times as long"
            text.append(f"Expected were {duration(expected)} an epoch (step 7): {took}.")
        if self._bar is not None:
            self._bar.end("\n".join(text))
            self._bar = None

    def _on_train_end(self, _: object) -> None:
        if self._recorder is not None:
            self._recorder.log_plots(self.save_dir)

    def _teardown(self, _: object) -> None:
        if self._recorder is not None:
            self._recorder.close()


def trainer_of(task: Task, guard: type[GuardedTrainer] = GuardedTrainer) -> type[GuardedTrainer]:
    """Return the library's trainer class of a task, extended by `guard`."""
    tasks: Any = YOLO.__new__(YOLO).task_map  # read without loading a model
    return type(f"{guard.__name__}{task.capitalize()}", (guard, tasks[task]["trainer"]), {})


def _write_rows(file: Path, columns: Mapping[str, list[float]]) -> None:
    """Write `results.csv` in the library's format: one column per value, six significant digits."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{value:.6g}" for value in row] for row in zip(*columns.values(), strict=True))


def _fitness(checkpoint: Path) -> float | None:
    """Return the fitness of a checkpoint's epoch; None if the file cannot be read."""
    try:
        return float(torch_load(checkpoint, map_location="cpu")["train_metrics"]["fitness"])
    except Exception:  # noqa: BLE001  a torn file can raise any exception of its reader
        return None


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as part:
        shutil.copyfile(source, part)


def main(plan_file: Path, guard: type[GuardedTrainer] = GuardedTrainer) -> None:
    """Train according to a plan and write the outcome; exit with status 0 unless the training raised."""
    plan = WorkerPlan.model_validate_json(plan_file.read_bytes())
    if plan.port is not None:
        os.environ["MASTER_PORT"] = str(plan.port)
    status = 1
    LOGGER.setLevel(logging.WARNING if FIRST else logging.ERROR)
    try:
        with guarded_plots():
            trainer = trainer_of(plan.task, guard)(plan)
            trainer.train()
        outcome, status = trainer.outcome, 0
    except Exception as error:  # noqa: BLE001  every failure becomes the outcome
        reason = f"{type(error).__name__}: {error}"
        outcome = Outcome(state="memory" if is_memory(reason) else "failed", reason=reason)
        traceback.print_exc()
    plan.outcome(max(RANK, 0)).write_text(outcome.model_dump_json(), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that still waits for the network must not delay the exit
