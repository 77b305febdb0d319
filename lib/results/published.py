"""Read finished runs from the Git remote: list their branches, and read the record on a branch.

Guarantees: only the remote is queried; the local checkout is neither used nor changed; a record is the one that its
branch was published with, even if the branch also holds the records of other runs.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import click

from lib.errors import BranchError
from lib.experiment.schema import Experiment
from lib.results.record import RunRecord, parse
from lib.sync import STOPS, Refs, short_name
from lib.train.checkpoints import Record

HEADS = "refs/heads/"
RUNS = f"{HEADS}kaggle-train-*"
SHOWN = 10  # branches offered for selection

AnyRecord = TypeVar("AnyRecord", RunRecord, Record)
"""The record of a finished run or of a checkpoint."""


@dataclass(frozen=True)
class PublishedRun:
    """A run's record, which names its branch, and the folder of its artifacts in the repository."""

    folder: str
    record: RunRecord
    texts: Mapping[str, str]
    """The other requested files, by path in the folder."""

    @property
    def ref(self) -> str:
        """Return the full name of the branch's ref."""
        return f"{HEADS}{self.record.branch}"


def list_runs(refs: Refs) -> list[str]:
    """Return the branches of finished runs, newest first."""
    names = [ref.removeprefix(HEADS) for ref in refs.list_refs(RUNS)]
    return sorted(names, key=lambda name: (name[-len("YYYYMMDD-HHMMSS") :], name), reverse=True)


def find_run(refs: Refs, branch: str) -> str:
    """Return the name of a finished run's branch on the remote; a leading `origin/` is removed.

    Raises `BranchError` if the branch does not exist; the error suggests similar or recent names.
    """
    name, names = branch.removeprefix("origin/"), list_runs(refs)
    if name in names:
        return name
    meant = difflib.get_close_matches(name, names, n=3)
    raise BranchError(
        f"{refs.url} has no branch {name!r} of a finished run.",
        remedy=f"{'did you mean' if meant else 'the newest are'}: {', '.join(meant or names[:3]) or 'none'}.",
    )


def read_published(refs: Refs, branch: str, *files: str) -> PublishedRun:
    """Read the record of a finished run, and those of the text files `files` that exist in its folder.

    Raises `BranchError` if the branch does not exist or holds no record of its own run.
    """
    name = find_run(refs, branch)
    texts = refs.read_files(f"{HEADS}{name}", *(f"artifacts/*/{file}" for file in ("run.json", *files)))
    folder, record = find_own(name, texts, RunRecord)
    inside = {path.removeprefix(f"{folder}/"): text for path, text in texts.items() if path.startswith(f"{folder}/")}
    return PublishedRun(folder, record, inside)


def find_own(branch: str, texts: Mapping[str, str], kind: type[AnyRecord]) -> tuple[str, AnyRecord]:
    """Return the folder and the record of a branch's own run or checkpoint; ignore the records of other runs.

    Raises `BranchError` if there is none that can be read.
    """
    file, problems = "run.json" if kind is RunRecord else "checkpoint.json", []
    for path, text in texts.items():
        if path.endswith(f"/{file}"):
            try:
                record = parse(kind, text)
            except ValueError as error:
                problems.append(f"{path}: {error}")  # it may be another run's file
                continue
            # a checkpoint names no branch
            if getattr(record, "branch", branch) == branch and f"-{record.experiment['module']}-" in branch:
                return path.removesuffix(f"/{file}"), record
    problem = f" ({', '.join(problems)})" if problems else ""
    raise BranchError(
        f"{branch} has no {file} of its own that can be read{problem}.",
        remedy="choose a branch that a run has published; `python -m lib status` shows them.",
    )


def own_records(texts: Mapping[str, Mapping[str, str]], experiment: Experiment) -> Iterator[RunRecord]:
    """Yield the readable records of the published runs of an experiment, of any commit and values, newest first.

    `texts` holds the text files of each ref, by path; other refs are passed over.
    """
    for ref in sorted(texts, reverse=True):
        if ref.startswith(f"{HEADS}kaggle-train-{experiment.key}-"):
            try:
                _, record = find_own(ref.removeprefix(HEADS), texts[ref], RunRecord)
            except BranchError:
                continue
            # another name may make the same branches
            if (record.experiment["module"], record.experiment["name"]) == (experiment.module, experiment.name):
                yield record


def completed_epochs(texts: Mapping[str, str], key: str) -> int:
    """Return the completed epochs of the checkpoint of the experiment `key`; 0 if there is none that can be read."""
    try:
        return find_own(f"kaggle-checkpoint-{short_name(key)}", texts, Record)[1].epoch
    except BranchError:
        return 0


def find_published(refs: Refs, experiment: Experiment, commit: str) -> str:
    """Return the branch of a finished run of exactly this experiment and commit; empty if there is none."""
    wanted = experiment.model_dump(mode="json")
    for record in _runs_of(refs, experiment):
        if (record.experiment, record.commit, record.state) == (wanted, commit, "finished"):
            return record.branch
    return ""


def find_stops(refs: Refs, experiment: Experiment) -> tuple[str, ...]:
    """Return why only a person may begin or resume the experiment, who stopped it; empty if nobody has.

    A stop without a branch is of a session that ended before it obeyed, was deleted, or was to publish nothing. Two
    stops never have the same text.
    """
    stop = f"{STOPS}{short_name(experiment.key)}"
    commit = refs.list_refs(stop).get(stop)
    asked = [f"{experiment.key} was asked to stop ({stop}, {commit[:12]})"] if commit else []
    newest = next(_runs_of(refs, experiment), None)
    published = [f"{experiment.key} was stopped: {newest.branch}"] if newest and newest.state == "stopped" else []
    return (*asked, *published)


def _runs_of(refs: Refs, experiment: Experiment) -> Iterator[RunRecord]:
    """Yield the readable records of the published runs of an experiment, newest first."""
    texts = refs.read_files_of_all(f"{HEADS}kaggle-train-{experiment.key}-*", "artifacts/*/run.json")
    yield from own_records(texts, experiment)


def ask_for_run(refs: Refs) -> str:
    """Return the branch that the user selects among those of the newest finished runs.

    Raises `BranchError` without a terminal to ask on, and if there is no finished run.
    """
    newest = list_runs(refs)[:SHOWN]
    if not newest:
        raise BranchError("no run has been published yet.", remedy="train one; `python -m lib status` shows its state.")
    if not sys.stdin.isatty():
        listed = "\n".join(f"  {name}" for name in newest)
        raise BranchError("no branch was named.", remedy=f"name one; the newest are:\n{listed}")
    for number, name in enumerate(newest, 1):
        click.echo(f"{number:3}  {name}")
    return newest[click.prompt("Which one?", type=click.IntRange(1, len(newest)), default=1) - 1]
