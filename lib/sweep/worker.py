"""Render, execute and watch one run of a sweep on the machine that it is assigned to.

Guarantees: the worker is killed when its watcher dies; on interrupt it releases the experiment's lock. Cannot: report
more progress than the files of the run show (`run.log`, `results.csv`).

`Execution` is the watcher; `python -m lib.sweep.worker NOTEBOOK WATCHER` is the worker, a subprocess that executes the
notebook and ends with the process WATCHER.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lib.errors import RunError
from lib.experiment.modules import find_module
from lib.experiment.schema import Experiment
from lib.kaggle.notebook import GRACE, bake, execute, read_notebook, write_rendered
from lib.process import LoggedCommand, die_with
from lib.results.record import RunRecord, parse
from lib.train.curves import MAP, read_curves

State = Literal["waiting", "running", "lost", "published", "failed", "stopped"]
STEP = re.compile(r"^\[\d+:\d\d:\d\d\] (\d+/\d+: [^+(\n]*[^+(\n ])", re.MULTILINE)
SHOWN = 2000  # characters of an error message
ERROR = "error.txt"
"""The file in a run's folder with the message of the error that ended it."""


@dataclass(frozen=True)
class Job:
    """Everything that a node needs to execute one run; contains no credentials."""

    experiment: Experiment
    sources: Mapping[str, str]
    """The files that make the notebook: {path: text}."""
    parameters: Mapping[str, Any]
    """Parameters of the notebook other than the experiment: repository, commit, secrets."""
    folder: str
    """The folder in which runs work; the same path on every node."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    state: State = "waiting"
    node: str = ""
    """The node of the run, or its last node."""
    step: str = ""
    epoch: int = 0
    epochs: int = 0
    """`epoch` is the number of completed epochs, `epochs` the number requested."""
    seconds_left: float | None = None
    """Estimated seconds of training left; None if unknown."""
    best: float | None = None
    """The best mAP50-95 on the validation split so far."""
    branch: str = ""
    note: str = ""
    """Why the run failed, or why it was published before its last epoch."""

    @property
    def has_ended(self) -> bool:
        """Return whether the state is final."""
        return self.state in ("published", "failed", "stopped")


class Execution:
    """A run in its own folder; `close` ends it."""

    def __init__(self, job: Job) -> None:
        experiment = self._experiment = job.experiment
        stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
        self.folder = Path(job.folder) / experiment.module / experiment.name / stamp
        self._stopping = False
        values = {
            "module": experiment.module,
            "experiment": experiment.model_dump(mode="json"),
            "accelerator": "none",
            "working": str(self.folder),
            **job.parameters,
        }
        notebook = bake(read_notebook(job.sources), values)
        rendered = write_rendered(self.folder, find_module(experiment.module), notebook, None)
        command = [sys.executable, "-m", "lib.sweep.worker", str(rendered.notebook), str(os.getpid())]
        self._command = LoggedCommand(command, self.folder / "output.log")

    def stop(self) -> None:
        """Interrupt the worker, once; it then ends by itself, and `close` enforces a time limit."""
        if not self._stopping:
            self._stopping = True
            self._command.interrupt()

    def close(self) -> None:
        """End the worker: interrupt it if it still runs, and kill it if it does not end in time."""
        if self._command.status is None:
            self.stop()
        self._command.close(2 * GRACE)

    def look(self) -> Progress:
        """Return the current progress of the run."""
        status = self._command.status
        log = _read(self.folder / "run.log")
        progress = Progress("running", step=(STEP.findall(log) or [""])[-1], epochs=self._experiment.training.epochs)
        progress = self._trained(progress)
        if status is None:
            return progress
        progress = replace(progress, seconds_left=None)
        if status == 0:
            (file,) = self.folder.glob(f"*/{self._experiment.artifacts}/run.json")
            record = parse(RunRecord, file.read_bytes())
            return replace(progress, state="published", branch=record.branch, note=record.reason)
        note = _read(self.folder / ERROR) or f"it ended with status {status}: {_read(self.folder / 'output.log')}"
        note = f"{note.strip()[-SHOWN:]}\nEverything is in {self.folder}."
        return replace(progress, state="stopped" if self._stopping else "failed", note=note)

    def _trained(self, progress: Progress) -> Progress:
        """Return `progress` with the epochs, best metric and time left from `results.csv` (one line per epoch)."""
        for file in self.folder.glob(f"*/{self._experiment.artifacts}/train/results.csv"):
            with contextlib.suppress(KeyError, ValueError):  # a damaged file costs the display, not the run
                curves = read_curves(_read(file))
                (*_, scores) = (column for name, column in curves.items() if name.startswith(MAP))
                epoch = int(curves["epoch"][-1])
                left = curves["time"][-1] / len(scores) * (progress.epochs - epoch)
                return replace(progress, epoch=epoch, best=max(scores), seconds_left=left)
        return progress


def _read(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""


def main(notebook: Path, watcher: int) -> int:
    """Execute a run's notebook in its folder and return the exit status; write an error message to `ERROR` there."""
    die_with(watcher)
    # engines block SIGINT in their processes; without it the kernel could not be interrupted, only killed
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = notebook.parent
    try:
        execute(notebook, folder)
    except KeyboardInterrupt:
        error = "it was stopped; the same sweep, started again, resumes from its last checkpoint."
    except RunError as failure:
        error = str(failure)
    else:
        # the results stay in the run's clone; datasets and packages of many runs would fill the disk
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return 0
    (folder / ERROR).write_text(error, encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
