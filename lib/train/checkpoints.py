"""Publish checkpoints during a training, so that a later session can resume it.

A checkpoint is the branch `kaggle-checkpoint-{module}-{experiment}`, which moves, with both weights as private files on
the DVC remote. It is published by the protocol of `lib.sync`: the files that it replaces are deleted, and the push that
creates the finished run's branch also deletes the checkpoint.

Guarantees: a checkpoint upload never blocks or fails the training; every uploaded checkpoint is complete, loads, and is
resumable; a session resumes only a training of the same experiment, code and dataset, unless `session.resume`
is `always`.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

from lib.data.dataset import read_pointer
from lib.data.pull import pull_objects
from lib.errors import CheckpointError, DiscardedError, RemoteError, RunError, SyncError, TakenOverError
from lib.experiment.load import flat
from lib.experiment.schema import Experiment, ExperimentValues
from lib.process import MINUTE
from lib.progress import file_size, say
from lib.remotes.credentials import Credentials
from lib.session import Session
from lib.sync import (
    CHECKPOINTS,
    CheckpointPublisher,
    Publication,
    Refs,
    RunLock,
    discard,
    fetch_file,
    open_remotes,
    recover,
    short_name,
)
from lib.train.tracking import Tracking, finish_tracking
from lib.train.weights import epochs_behind

WEIGHTS = ("train/weights/best.pt", "train/weights/last.pt")
"""The weights in the order in which they are copied: `best.pt` may never be newer than `last.pt`."""
LOOK = 2.0  # seconds between two checks of the training's folder
AGAIN = 5 * MINUTE  # longest wait before a failed upload is retried


def checkpoint_branch(experiment: Experiment) -> str:
    """Return the name of the branch that holds an experiment's checkpoint."""
    return f"{CHECKPOINTS.removeprefix('refs/heads/')}{short_name(experiment.key)}"


class Record(BaseModel):
    """The content of `checkpoint.json`: the training that the checkpoint belongs to."""

    version: int = Field(default=2, alias="schema")
    epoch: int
    """Completed epochs."""
    saved: datetime
    commit: str
    dataset: str
    """DVC's MD5 of the dataset's folder."""
    experiment: ExperimentValues
    files: tuple[dict[str, Any], ...] = ()
    """The weights on the DVC remote; none in checkpoints of version 1, whose weights have `.dvc` files."""

    def differences(self, experiment: Experiment, commit: str, dataset: str) -> list[str]:
        """Return the differences between the checkpoint's training and the current one, one text each."""
        # these have no effect on the model
        mine, ours = (dict(flat(values)) for values in (self.experiment, experiment.model_dump(mode="json")))
        without = ("session.", "description", "export", "hardware.prepare_images")
        keys = sorted(key for key in mine | ours if not key.startswith(without))
        found = [f"{key} {mine.get(key)} → {ours.get(key)}" for key in keys if mine.get(key) != ours.get(key)]
        found += [f"the code {self.commit[:12]} → {commit[:12]}"] * (self.commit != commit)
        return found + [f"the dataset {self.dataset[:12]} → {dataset[:12]}"] * (self.dataset != dataset)


# ── resume ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that an earlier session of the experiment published."""

    branch: str
    record: Record

    def describe(self) -> str:
        """Return one line for the user."""
        when = f"{self.record.saved.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return f"Training will resume from the checkpoint of epoch {self.record.epoch}, {when} ({self.branch})."


def recover_here(session: Session) -> str:
    """Recover the dead sessions of this clone; return the number of runs under way, or why it is not known.

    Preflight, which follows, tries the same remotes and reports an error's cause and remedy with all others.
    """
    try:
        return str(recover(session.root, session.credentials, patience=0, say=say))
    except RunError as error:
        return f"not known yet: {error.what}"


def hold_run(session: Session) -> RunLock:
    """Return the lock of the experiment's run; if another session holds it, that one is asked whether it lives.

    Raises `RunHeldError` if the run's ref is that of another experiment, and can never be held.
    """
    experiment = session.experiment
    hold = RunLock(
        Refs(session.root, session.credentials),
        experiment.key,
        full_name=f"{experiment.module}/{experiment.name}",
        lease=experiment.session.lease_minutes * MINUTE,
        say=say,
    )
    try:
        state = "is held by this session" if hold.try_take() else "is held by another session, which is being asked"
    except SyncError as error:  # preflight reports its cause and remedy, with all other errors
        state = f"could not be held yet: {error.what}"
    print(f"The run {experiment.key} {state}.", flush=True)
    return hold


def find_checkpoint(session: Session) -> Checkpoint | None:
    """Return the experiment's checkpoint on the Git remote; None if there is none or `session.resume` is `never`.

    Raises `CheckpointError` for a checkpoint of other values, code or dataset if `session.resume` is `auto`, for an
    unreadable record, and for a checkpoint of another experiment, which this one would replace.
    """
    experiment = session.experiment
    branch, path = checkpoint_branch(experiment), f"{experiment.artifacts}/checkpoint.json"
    ref, refs = f"refs/heads/{branch}", Refs(session.root, session.credentials)
    if ref not in refs.list_refs(ref):
        return None
    records = refs.read_files(ref, "artifacts/*/checkpoint.json")
    if records and path not in records:
        (other, *_) = (Path(name).parent.relative_to("artifacts").as_posix() for name in records)
        raise CheckpointError(
            f"{branch} is the checkpoint of {other}, and {experiment.module}/{experiment.name} has the same branches.",
            state="nothing was trained; the checkpoint stays.",
            remedy=f"give this experiment another name; or, if {other} is not to be resumed, delete that branch.",
        )
    if experiment.session.resume == "never":
        return None
    try:
        record = Record.model_validate_json(records[path])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{branch} has no {path} that can be read ({type(error).__name__}).",
            state="nothing was trained; the branch stays.",
            remedy="render with -p session.resume never to start over, or look at the branch.",
        ) from None
    changed = record.differences(experiment, session.commit, read_pointer(session.root, experiment).md5)
    if changed and experiment.session.resume == "auto":
        raise CheckpointError(
            f"{branch} holds epoch {record.epoch} of a training that differs from this one: {', '.join(changed)}.",
            state="nothing was trained; the checkpoint stays.",
            remedy="render with -p session.resume always to resume it anyway, or -p session.resume never "
            "to start over (the new training's checkpoints then take its place), or under another name.",
        )
    if changed:
        print(f"Warning: the checkpoint is of a training that differs: {', '.join(changed)}.", flush=True)
    return Checkpoint(branch, record)


def fetch_checkpoint(session: Session, checkpoint: Checkpoint) -> Path:
    """Download a checkpoint's weights from the DVC remote into the scratch folder; return the path of its `last.pt`.

    Raises `CheckpointError` if the DVC remote does not deliver them.
    """
    place, artifacts = session.scratch / "checkpoint", session.experiment.artifacts
    last = place / artifacts / WEIGHTS[1]
    try:
        if checkpoint.record.files:
            fetch_weights_of(session.root, checkpoint.record, place, session.credentials)
        else:
            _pull_first_version(session, checkpoint, place)
        cause = "it names no last.pt"
    except (RemoteError, SyncError, FileNotFoundError) as error:
        cause = error.what if isinstance(error, RunError) else str(error)
    if last.is_file():
        return last
    raise CheckpointError(
        f"the weights of {checkpoint.branch} cannot be downloaded: {cause}",
        state="nothing was trained; the checkpoint stays.",
        remedy="ensure the DVC remote is accessible, or start over with -p session.resume never.",
    )


def fetch_weights_of(root: Path, record: Record, place: Path, credentials: Credentials) -> list[Path]:
    """Download the weights that a checkpoint's record names into the folder `place`, and return their paths.

    Raises `FileNotFoundError` if one is gone and `SyncError` if the DVC remote does not deliver it.
    """
    with open_remotes(root, credentials) as remotes:
        for file in record.files:
            fetch_file(remotes, file, place / file["path"])
    return [place / file["path"] for file in record.files]


def _pull_first_version(session: Session, checkpoint: Checkpoint, place: Path) -> None:
    """Pull the weights of a checkpoint that an earlier version of this project published."""
    refs = Refs(session.root, session.credentials)
    pattern = f"{session.experiment.artifacts}/train/weights/*.pt.dvc"
    files = refs.read_files(f"refs/heads/{checkpoint.branch}", pattern)
    pull_objects(session.root, place, files, session.credentials, f"Pulling {checkpoint.branch}")


# ── publish ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class CheckpointUploader:
    """Publishes the checkpoints of a training from a background thread; a context manager around the training.

    It publishes one checkpoint at a time, always the newest: the first after the first epoch, then one every
    `session.checkpoint_minutes`, and at the end the last one if it is not published yet, unless the training is
    finished. A failure is reported and retried. The evaluation does not wait for uploads. Only the finished run's
    publication must `wait`, because it replaces the checkpoint.
    """

    def __init__(self, session: Session, dataset: str, hold: RunLock) -> None:
        self._session, self._experiment = session, session.experiment
        self._dataset, self._hold = dataset, hold
        self._saved = 0  # epochs of the newest published checkpoint
        self._stop, self._last = threading.Event(), True
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._remotes = ExitStack()
        self._publisher: CheckpointPublisher | None = None

    @property
    def is_at_work(self) -> bool:
        """Return whether the background thread is still running."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C must not wait: the next run finishes or rolls back a publication in progress
        self._last = kind is None or issubclass(kind, Exception)
        self._stop.set()
        if self._last and kind is not None:
            self.wait()  # the process may exit on the error and would kill the thread

    def wait(self) -> None:
        """Wait until every pending checkpoint is published or has failed."""
        if self.is_at_work:
            self._thread.join()

    def fail(self, error: BaseException, tracking: Tracking) -> None:
        """End the run after an error: wait for uploads unless it is an interrupt, release the lock, report to W&B."""
        if isinstance(error, Exception):
            self.wait()
        self._hold.release()
        state = "discarded" if isinstance(error, DiscardedError) else "failed"
        finish_tracking(tracking, state, {}, self._session.credentials.redact(str(error)))

    def discard_if_asked(self) -> None:
        """Delete the run's checkpoint and raise `DiscardedError` if a person wants the run to be discarded."""
        if self._is_discarded:
            self.wait()
            discard(self._session.root, self._session.credentials, self._hold, say)
            raise DiscardedError(
                f"the run {self._experiment.key} is discarded, as `python -m lib stop --discard` asked.",
                state="nothing is published, and its checkpoint is deleted; what it trained is on this machine alone.",
                remedy="train again from the start if you want to; a push and a sweep need --resume for it.",
            )

    @property
    def _is_discarded(self) -> bool:
        return self._hold.stop is not None and self._hold.stop.action == "discard"

    def _work(self) -> None:
        minutes, last = self._experiment.session.checkpoint_minutes, self._session.artifacts / WEIGHTS[1]
        due, interval = (math.inf, math.inf) if minutes is None else (0.0, minutes * MINUTE)
        with self._remotes:
            while not self._stop.wait(LOOK):
                if time.monotonic() >= due and last.is_file():
                    due = time.monotonic() + (interval if self._try() else min(interval, AGAIN))
            if self._last and last.is_file() and not self._is_discarded:
                self._try()
            if self._publisher is not None:
                self._try_to(self._publisher.end)

    def _try(self) -> bool:
        """Publish the current checkpoint; return False if that failed."""
        return self._try_to(self._publish)

    def _try_to(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except Exception as error:  # noqa: BLE001  a failed upload must not stop the training
            what = error.what if isinstance(error, RunError) else self._session.credentials.redact(str(error))
            again = "" if isinstance(error, TakenOverError) else "; it is retried"
            say(f"Warning: the checkpoint upload failed ({type(error).__name__}: {what}){again}.")
            return False
        return True

    def _publish(self) -> None:
        session, experiment = self._session, self._experiment
        copy = session.scratch / "checkpoint-upload"
        shutil.rmtree(copy, ignore_errors=True)
        (copy / "train/weights").mkdir(parents=True)
        for name in (*WEIGHTS, "train/results.csv", "train/args.yaml"):
            if (session.artifacts / name).is_file():  # each is complete at every moment
                shutil.copyfile(session.artifacts / name, copy / name)
        epoch = epochs_behind(copy / WEIGHTS[1])
        # a finished model counts 0 epochs, and after the last epoch nothing is left to resume
        if not self._saved < epoch < experiment.training.epochs:
            return
        now, branch = datetime.now(UTC), checkpoint_branch(experiment)
        record = Record(
            schema=2, epoch=epoch, saved=now, commit=session.commit, dataset=self._dataset,
            experiment=experiment.model_dump(mode="json"),
        )  # fmt: skip
        title = f"{experiment.about.title}: {experiment.name}, checkpoint of epoch {epoch}"
        if self._publisher is None:
            remotes = self._remotes.enter_context(open_remotes(session.root, session.credentials))
            self._publisher = CheckpointPublisher(remotes, self._hold, say)
        sent = self._publisher.publish(
            Publication(
                root=session.root,
                branch=branch,
                message=f"{title} [skip ci]\n\nTrained from {session.commit}.\n",
                folder=experiment.artifacts,
                objects=tuple(f"{experiment.artifacts}/{name}" for name in WEIGHTS if (copy / name).is_file()),
                stamp=now,
                source=copy,
            ),
            record.model_dump(mode="json", by_alias=True, exclude={"files"}),
        )
        self._saved = epoch
        took = f"{file_size(sent)} in {(datetime.now(UTC) - now).total_seconds():.0f} s"
        say(f"Checkpoint: epoch {epoch} is uploaded ({took}): {branch}")
