"""Finished runs as the Git remote has them: which there are, and what the branch of one says.

Guarantees: only the remote is asked, and nothing of the checkout at hand is used or touched; a record is the one that
its branch was published with, also where the branch holds those of other runs.
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
SHOWN = 10  # branches that are offered to choose from
UNREADABLE = (KeyError, ValueError, TypeError, AttributeError)
"""What is raised by files that somebody has made by hand."""


@dataclass(frozen=True)
class PublishedRun:
    """A branch, the folder of its run's artifacts in the repository, and the content of the `run.json` in it."""

    branch: str
    folder: str
    record: dict[str, Any]
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The other files that were asked for, by their paths in the folder."""

    @property
    def ref(self) -> str:
        """The branch by its full name."""
        return f"{HEADS}{self.branch}"


def list_runs(refs: Refs) -> list[str]:
    """Give the branches of finished runs, the newest first."""
    names = [ref.removeprefix(HEADS) for ref in refs.list_refs(RUNS)]
    return sorted(names, key=lambda name: (name[-len("YYYYMMDD-HHMMSS") :], name), reverse=True)


def series_of(branch: str) -> str:
    """Give a branch without its time: what all runs of one experiment have in common."""
    return re.sub(f"{STAMP}$", "", branch)


def find_run(refs: Refs, branch: str) -> str:
    """Give the name of a finished run's branch as the remote has it; `origin/` before it is no part of it.

    Raises `BranchError` where there is none, naming those that may be meant.
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
    """Read the record of a finished run, and these text files of its folder where they are there.

    Raises `BranchError` where there is no such branch, or no record of its own in it.
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
    """Give folder and content of the JSON file `name` that a branch was published with, among those of other runs.

    Raises `KeyError` where there is none that can be read.
    """
    for path, text in texts.items():
        if path.endswith(f"/{name}"):
            with contextlib.suppress(*UNREADABLE):  # another run's may be damaged
                content = json.loads(text)
                slug = f"{content['experiment']['module']}-"
                if content.get("branch", branch) == branch and slug in branch:
                    return path.removesuffix(f"/{name}"), dict(content)
    raise KeyError(name)


def measured(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Give the values of a `metrics.json` by one name each: `test/box/mAP50`."""
    for split in ("validation", "test"):
        for part, values in metrics.get(split, {}).items():
            if isinstance(values, Mapping):
                yield from ((f"{split}/{part}/{name}", float(value)) for name, value in values.items())


def ask_for_run(names: Sequence[str], *, terminal: bool) -> str:
    """Let a person choose among the newest of these branches. Raises `BranchError` where there is nobody to ask."""
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
