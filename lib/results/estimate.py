"""Estimate how long a training will take on Kaggle, from the runs that were published before it.

Guarantees: only runs of the same module, architecture, image size and accelerator on Kaggle count, and of these the
newest; a run with another dataset is scaled by its number of files. Cannot: know what other augmentation, batch size or
a busy W&B change: hours are said as "about".
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.dataset import read_pointer
from lib.errors import BranchError, DatasetError, GitPushError, KaggleError, RunError
from lib.experiment.schema import Experiment
from lib.progress import duration
from lib.remotes.credentials import Credentials
from lib.results.published import HEADS, RUNS, completed_epochs, find_own, find_stops
from lib.results.record import Metrics, RunRecord, parse
from lib.sync import CHECKPOINTS, Refs, short_name

HOUR = 3600.0
LONGEST_SESSION = 12.0  # hours, Kaggle's limit


@dataclass(frozen=True)
class Estimate:
    """What is left of a training: the epochs, the seconds of one, and those from a session's start to its first epoch.

    `branch` is the run that this follows from, and `most` the hours that a session trains.
    """

    epochs: int
    epoch: float
    start: float
    branch: str
    most: float

    @property
    def sessions(self) -> int:
        """Return the number of sessions that the training will take."""
        return math.ceil(self.epochs * self.epoch / max(self.most * HOUR - self.start, self.epoch))

    @property
    def hours(self) -> float:
        """Return the GPU hours that the training will take."""
        return (self.epochs * self.epoch + self.sessions * self.start) / HOUR

    @property
    def needed(self) -> float:
        """Return the GPU hours that a session needs to get beyond its newest checkpoint: one epoch."""
        return (self.start + self.epoch) / HOUR

    def __str__(self) -> str:
        sessions = f"{self.sessions} session{'s' * (self.sessions > 1)}"
        return (
            f"about {self.hours:.1f} GPU hours in {sessions}: {self.epochs} epochs of {duration(self.epoch)} "
            f"(as in {self.branch})"
        )


def hours_to_push(
    root: Path, credentials: Credentials, experiment: Experiment, accelerator: str, *, resume: bool, anyway: bool
) -> float:
    """Show the estimate of an experiment; return the GPU hours that its session needs, 0 if not known or `anyway`.

    Raises `KaggleError` for an experiment that a person has stopped, without `resume`: a push must not go on with it by
    itself.
    """
    found = show_estimate(root, credentials, experiment, accelerator)
    with contextlib.suppress(GitPushError):  # said above: the published runs cannot be read
        stops = () if resume else find_stops(Refs(root, credentials), experiment)
        if stops:
            remedy = "push with --resume, which goes on from its checkpoint if it has one."
            raise KaggleError(f"{stops[0]}.", remedy=remedy)
    return found.needed if found and not anyway else 0.0


def show_estimate(root: Path, credentials: Credentials, experiment: Experiment, accelerator: str) -> Estimate | None:
    """Print how long the rest of an experiment's training will take, and return it; None if it is not known."""
    try:
        found = estimate(root, Refs(root, credentials), experiment, accelerator)
    except RunError as error:
        print(f"Duration: not known, since the published runs cannot be read ({error.what})", flush=True)
        return None
    print(f"Duration: {found or 'not known: no run like this one is published yet'}", flush=True)
    return found


def estimate(root: Path, refs: Refs, experiment: Experiment, accelerator: str) -> Estimate | None:
    """Return how long the rest of an experiment's training will take; None if no published run says so.

    Raises `GitPushError` if the Git remote cannot be read.
    """
    files = [f"artifacts/*/{name}.json" for name in ("run", "metrics", "checkpoint")]
    values = experiment.model_dump(mode="json", warnings=False)  # those of an old run may lack keys
    session = values.get("session", {})
    ref = f"{CHECKPOINTS}{short_name(experiment.key)}"
    found = refs.read_files_of_all((RUNS, f"{ref}*"), *files)
    checkpoint = found.pop(ref, {})
    similar = [
        (branch, record, seconds)
        for branch, record, seconds in _runs(found)
        if record.machine.kaggle
        and (record.machine.accelerator, _kind(record.experiment)) == (accelerator, _kind(values))
    ]
    if not similar:
        return None
    branch, record, seconds = max(similar, key=lambda run: run[0][-len("YYYYMMDD-HHMMSS") :])
    # a session resumes from the checkpoint, unless the experiment says not to
    done = 0 if session.get("resume") == "never" else completed_epochs(checkpoint, experiment.key)
    start = sum(took for step, took in record.seconds.items() if step[:1].isdecimal() and not step.startswith("9/"))
    return Estimate(
        epochs=max(0, values["training"]["epochs"] - done),
        epoch=seconds * _scale(root, experiment, record),
        start=start,
        branch=branch,
        most=min(session.get("max_hours") or LONGEST_SESSION, LONGEST_SESSION),
    )


def _runs(published: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, RunRecord, float]]:
    """Yield each readable run with its branch and the seconds of an epoch."""
    for ref, texts in published.items():
        branch = ref.removeprefix(HEADS)
        try:
            folder, record = find_own(branch, texts, RunRecord)
            metrics = parse(Metrics, texts.get(f"{folder}/train/metrics.json", "{}"))
        except (BranchError, ValueError):
            continue
        epochs, seconds = (metrics.epochs or 0) - record.start.epoch, record.seconds.get("training", 0.0)
        if epochs > 0 and seconds > 0:
            yield branch, record, seconds / epochs


def _kind(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what the seconds of an epoch depend on, of an experiment's values."""
    training, model, hardware = (values.get(name, {}) for name in ("training", "model", "hardware"))
    return values["module"], model.get("architecture"), training["image_size"], hardware.get("multi_gpu", True)


def _scale(root: Path, experiment: Experiment, record: RunRecord) -> float:
    """Return how many times as many images an epoch has as in the run, from the files of both datasets."""
    then = 2 * sum(record.dataset.images.values())  # an image and its label
    try:
        pointer = read_pointer(root, experiment)
    except DatasetError:
        return 1.0
    return pointer.files / then if pointer.files and then and pointer.md5 != record.dataset.md5 else 1.0
