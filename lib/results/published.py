"""Read finished runs from the Git remote: list their branches, and read the record on a branch.

Guarantees: only the remote is queried; the local checkout is neither used nor changed; a record is the one that its
branch was published with, even if the branch also holds the records of other runs.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.errors import BranchError
from lib.sync import Refs

HEADS = "refs/heads/"
RUNS = f"{HEADS}kaggle-train-*"
STAMP = r"-\d{8}-\d{6}"
SHOWN = 10  # branches offered for selection
UNREADABLE = (KeyError, ValueError, TypeError, AttributeError)
"""The exceptions that reading a hand-made file can raise."""


@dataclass(frozen=True)
class PublishedRun:
    """A run's branch, the folder of its artifacts in the repository, and the content of its `run.json`."""

    branch: str
    folder: str
    record: dict[str, Any]
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The other requested files, by path in the folder."""

    @property
    def ref(self) -> str:
        """Return the full name of the branch's ref."""
        return f"{HEADS}{self.branch}"


def list_runs(refs: Refs) -> list[str]:
    """Return the branches of finished runs, newest first."""
    names = [ref.removeprefix(HEADS) for ref in refs.list_refs(RUNS)]
    return sorted(names, key=lambda name: (name[-len("YYYYMMDD-HHMMSS") :], name), reverse=True)


def series_of(branch: str) -> str:
    """Return a branch name without its timestamp: the part that all runs of one experiment share."""
    return re.sub(f"{STAMP}$", "", branch)


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
        state="nothing was written.",
        remedy=f"{'did you mean' if meant else 'the newest are'}: {', '.join(meant or names[:3]) or 'none'}.",
    )


def read_published(refs: Refs, branch: str, *files: str) -> PublishedRun:
    """Read the record of a finished run, and those of the text files `files` that exist in its folder.

    Raises `BranchError` if the branch does not exist or holds no record of its own run.
    """
    name = find_run(refs, branch)
    texts = refs.read_files(f"{HEADS}{name}", *(f"artifacts/*/{file}" for file in ("run.json", *files)))
    try:
        folder, record = find_own(name, texts, "run.json")
    except KeyError:
        raise BranchError(
            f"{name} has no run.json of its own that can be read.",
            state="nothing was written.",
            remedy="choose a branch that a run has published; `python -m lib status` shows them.",
        ) from None
    inside = {path.removeprefix(f"{folder}/"): text for path, text in texts.items() if path.startswith(f"{folder}/")}
    return PublishedRun(name, folder, record, inside)


def find_own(branch: str, texts: Mapping[str, str], name: str) -> tuple[str, dict[str, Any]]:
    """Return the folder and the content of the JSON file `name` of a branch's own run, ignoring other runs' files.

    Raises `KeyError` if there is no readable one.
    """
    for path, text in texts.items():
        if path.endswith(f"/{name}"):
            with contextlib.suppress(*UNREADABLE):  # another run's file may be damaged
                content = json.loads(text)
                slug = f"{content['experiment']['module']}-"
                if content.get("branch", branch) == branch and slug in branch:
                    return path.removesuffix(f"/{name}"), dict(content)
    raise KeyError(name)


def measured(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield each value of a `metrics.json` with its full name, such as `test/box/mAP50`."""
    for split in ("validation", "test"):
        for part, values in metrics.get(split, {}).items():
            if isinstance(values, Mapping):
                yield from ((f"{split}/{part}/{name}", float(value)) for name, value in values.items())


def ask_for_run(names: Sequence[str], *, terminal: bool) -> str:
    """Return the branch that the user selects among the newest of `names`.

    Raises `BranchError` without a terminal to ask on, and if `names` is empty.
    """
    import click

    if not names:
        raise BranchError(
            "no run has been published yet.", remedy="train one: `python -m lib status` shows where it stands."
        )
    newest = names[:SHOWN]
    if not terminal:
        listed = "\n".join(f"  {name}" for name in newest)
        raise BranchError("no branch was named.", remedy=f"name one; the newest are:\n{listed}")
    for number, name in enumerate(newest, 1):
        click.echo(f"{number:3}  {name}")
    return newest[click.prompt("Which one?", type=click.IntRange(1, len(newest)), default=1) - 1]
