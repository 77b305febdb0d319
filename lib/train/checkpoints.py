"""A training that outlives its session: its checkpoints leave the machine, and the next session goes on from them.

A checkpoint is the branch `kaggle-checkpoint-{module}-{experiment}`, which moves: one commit on top of the trained one,
with both weights on the DVC remote. It is published by the protocol of `lib.sync`, so what it took the place of is gone
from both remotes, and it ends with the finished run's branch, in one push.

Guarantees: training never waits for a checkpoint and never ends by one; what leaves is whole, loads, and can be gone on
from; a session goes on only from what was trained of the same experiment, code and dataset, unless it is told to.
"""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

from lib.data.dataset import read_pointer
from lib.errors import CheckpointError, GitPushError, RemoteError, RunError
from lib.experiment.load import flat
from lib.experiment.schema import Experiment
from lib.process import MINUTE
from lib.progress import say
from lib.remotes.clone import set_up_copy
from lib.remotes.credentials import Credentials
from lib.remotes.pull import pull_objects
from lib.sync import Publication, Refs, RunHold, sync_outputs
from lib.train.launch import epochs_behind

WEIGHTS = ("train/weights/best.pt", "train/weights/last.pt")
"""In the order in which they are copied: `best.pt` may never be newer than `last.pt`."""
LOOK = 2.0  # seconds between two looks at the training's folder
AGAIN = 5 * MINUTE  # after a checkpoint that did not leave
TRIES = 5  # to fetch a checkpoint whose branch moves


def checkpoint_branch(experiment: Experiment) -> str:
    """Name the branch that an experiment's checkpoints move."""
    return f"kaggle-checkpoint-{experiment.module}-{experiment.slug}"


class Record(BaseModel):
    """The content of `checkpoint.json`: what the checkpoint is of."""

    version: int = Field(default=1, alias="schema")
    epoch: int
    """Epochs behind it."""
    saved: datetime
    commit: str
    dataset: str
    """DVC's MD5 of the dataset's folder."""
    experiment: dict[str, Any]

    def differences(self, experiment: Experiment, commit: str, dataset: str) -> list[str]:
        """Say what would go on with something else than what the checkpoint was trained with."""
        # how a session uses its time changes no model, nor does what it is exported to
        mine, ours = (dict(flat(values)) for values in (self.experiment, experiment.model_dump(mode="json")))
        keys = sorted(key for key in mine | ours if not key.startswith(("session.", "description", "export")))
        found = [f"{key} {mine.get(key)} → {ours.get(key)}" for key in keys if mine.get(key) != ours.get(key)]
        found += [f"the code {self.commit[:12]} → {commit[:12]}"] * (self.commit != commit)
        return found + [f"the dataset {self.dataset[:12]} → {dataset[:12]}"] * (self.dataset != dataset)


# ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Checkpoint:
    """What an earlier session of the experiment has left."""

    branch: str
    record: Record

    def describe(self) -> str:
        """Give a line for people."""
        when = self.record.saved.astimezone(UTC)
        return f"Checkpoint: epoch {self.record.epoch} of {when:%Y-%m-%d %H:%M:%S} UTC ({self.branch}); it goes on."


def hold_run(root: Path, experiment: Experiment, credentials: Credentials, noted: tuple[str, float]) -> RunHold:
    """Begin to hold the experiment's run, or to watch the session that holds it; `noted` as `RunHold` takes it."""
    name = f"{experiment.module}-{experiment.slug}"
    hold = RunHold(root, name, credentials, lease=experiment.session.lease_minutes * MINUTE, noted=noted)
    try:
        told = "is held by this session" if hold.watch() else "is held by another session, which is watched from now on"
    except GitPushError as error:  # preflight tells cause and remedy of all that is refused together
        told = f"could not be held yet: {error.what}"
    print(f"The run {name} {told}.", flush=True)
    return hold


def find_checkpoint(root: Path, experiment: Experiment, commit: str, credentials: Credentials) -> Checkpoint | None:
    """Look for the experiment's checkpoint on the Git remote; None where there is none, or it is not to be used.

    Raises `CheckpointError` for one of another experiment, code or dataset, unless `session.resume` says what to do.
    """
    branch = checkpoint_branch(experiment)
    if experiment.session.resume == "never":
        return None
    refs = Refs(root, credentials)
    record = _read(refs, experiment)
    if record is None:
        return None
    changed = record.differences(experiment, commit, read_pointer(root, experiment).md5)
    if changed and experiment.session.resume == "auto":
        raise CheckpointError(
            f"{branch} holds epoch {record.epoch} of a training that differs from this one: {', '.join(changed)}.",
            state="nothing was trained; the checkpoint stays.",
            remedy="render with -p session.resume always to go on with it all the same, or -p session.resume never "
            "to start over (the new training's checkpoints then take its place), or under another name.",
        )
    if changed:
        print(f"Warning: the checkpoint is of a training that differs: {', '.join(changed)}.", flush=True)
    return Checkpoint(branch, record)


def _read(refs: Refs, experiment: Experiment) -> Record | None:
    """Read what the branch says of its checkpoint; None where there is no such branch."""
    branch, path = checkpoint_branch(experiment), f"{experiment.artifacts}/checkpoint.json"
    ref = f"refs/heads/{branch}"
    if ref not in refs.list_refs(ref):
        return None
    try:
        return Record.model_validate_json(refs.read_files(ref, path)[path])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{branch} has no {path} that can be read ({type(error).__name__}).",
            state="nothing was trained; the branch stays.",
            remedy="render with -p session.resume never to start over, or look at the branch.",
        ) from None


def fetch_checkpoint(
    checkpoint: Checkpoint, root: Path, experiment: Experiment, scratch: Path, credentials: Credentials
) -> Path:
    """Bring a checkpoint's weights from the DVC remote into `scratch`; gives its `last.pt`.

    Raises `CheckpointError` where the remote does not give them.
    """
    ref, refs = f"refs/heads/{checkpoint.branch}", Refs(root, credentials)
    place = scratch / "checkpoint"
    last = place / experiment.artifacts / WEIGHTS[1]
    read: list[dict[str, str]] = []
    while True:
        read.append(refs.read_files(ref, f"{experiment.artifacts}/train/weights/*.pt.dvc"))
        # another session may have moved the branch, and deleted what it had, since it was read
        if read[-1] in read[:-1] or len(read) > TRIES:
            break
        cause = "it names no last.pt"
        try:
            pull_objects(root, place, read[-1], credentials, f"Pulling {checkpoint.branch}")
        except RemoteError as error:
            cause = error.what
        else:
            if last.is_file():
                return last
    raise CheckpointError(
        f"`dvc pull` of {checkpoint.branch} failed: {cause}",
        state="nothing was trained; the checkpoint stays.",
        remedy="ensure the DVC remote is accessible, or start over with -p session.resume never.",
    )


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Keeper:
    """Publishes the checkpoints of a training from a thread beside it, as a context around it.

    One at a time and always the newest: the first after the first epoch, then one every `session.checkpoint_minutes`,
    and at the end what has not left yet, unless the training is finished. What fails is said and tried again. The
    evaluation waits for none of it; only the finished run's publication, which takes the checkpoint's place, must
    `wait`.
    """

    def __init__(
        self, root: Path, experiment: Experiment, commit: str, dataset: str, credentials: Credentials,
        hold: RunHold | None = None,
    ) -> None:  # fmt: skip
        self._root, self._experiment, self._credentials = root, experiment, credentials
        self._commit, self._dataset, self._hold = commit, dataset, hold
        self._folder = root / experiment.artifacts
        self._saved = 0  # epochs of the newest checkpoint that has left
        self._stop, self._last = threading.Event(), True
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._copies = ExitStack()
        self._copy: Path | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        if self._experiment.session.checkpoint_minutes is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C waits for nothing: what is under way is settled by the next run
        self._last = kind is None or issubclass(kind, Exception)
        self._stop.set()
        if self._last and self._thread.ident is None:
            self._thread.start()
        if self._last and kind is not None:
            self.wait()  # the process may end with the error

    def wait(self) -> None:
        """Return when all that should leave has left, or could not."""
        if self.is_at_work:
            self._thread.join()

    def _work(self) -> None:
        interval = (self._experiment.session.checkpoint_minutes or 0) * MINUTE
        due = 0.0
        with self._copies:
            while not self._stop.wait(LOOK):
                if time.monotonic() >= due and (self._folder / WEIGHTS[1]).is_file():
                    due = time.monotonic() + (interval if self._try() else min(interval, AGAIN))
            if self._last:
                self._try()

    def _try(self) -> bool:
        """Publish what there is; whether nothing is left to publish."""
        try:
            self._publish()
        except Exception as error:  # noqa: BLE001  a training is worth more than its checkpoint
            what = error.what if isinstance(error, RunError) else self._credentials.redact(str(error))
            told = f"{type(error).__name__}: {what}"
            say(f"Warning: the checkpoint did not leave the machine ({told}); it is tried again.")
            return False
        return True

    def _publish(self) -> None:
        if not (self._folder / WEIGHTS[1]).is_file():
            return
        if self._copy is None:
            self._copy, _ = self._copies.enter_context(set_up_copy(self._root, self._credentials))
        folder = self._copy / self._experiment.artifacts
        self._take(folder)
        epoch = epochs_behind(folder / WEIGHTS[1])
        # a finished model has none behind it, and after the last epoch there is nothing to go on with
        if not self._saved < epoch < self._experiment.training.epochs:
            return
        now, branch = datetime.now(UTC), checkpoint_branch(self._experiment)
        record = Record(
            schema=1, epoch=epoch, saved=now, commit=self._commit, dataset=self._dataset,
            experiment=self._experiment.model_dump(mode="json"),
        )  # fmt: skip
        text = record.model_dump_json(by_alias=True, indent=2)
        (folder / "checkpoint.json").write_text(f"{text}\n", encoding="utf-8")
        weights = tuple(f"{self._experiment.artifacts}/{name}" for name in WEIGHTS if (folder / name).is_file())
        title = f"{self._experiment.about.title}: {self._experiment.name}, checkpoint of epoch {epoch}"
        published = sync_outputs(
            Publication(
                root=self._copy,
                branch=branch,
                message=f"{title} [skip ci]\n\nTrained from {self._commit}.\n",
                folder=self._experiment.artifacts,
                objects=weights,
                stamp=now,
                supersedes=(branch,),
                hold=self._hold,
            ),
            self._credentials,
            say=str,
            progress=False,
        )
        self._saved = epoch
        took = (datetime.now(UTC) - now).total_seconds()
        sent = f"{published.uploaded / 2**20:.1f} MiB in {took:.0f} s"
        say(f"Checkpoint: epoch {epoch} has left the machine ({sent}): {branch}")

    def _take(self, folder: Path) -> None:
        """Copy what training has until now; each of its files is whole at every moment."""
        shutil.rmtree(folder, ignore_errors=True)
        for name in (*WEIGHTS, "train/results.csv", "train/args.yaml"):
            if (self._folder / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._folder / name, folder / name)
