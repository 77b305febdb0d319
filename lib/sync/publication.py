"""What is published together, and what a publication returns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from lib.sync.refs import Move, Refs


class Hold(Protocol):
    """What a publication needs of the run that it is of; see `lib.sync.hold`."""

    def moved_along(self, refs: Refs) -> contextlib.AbstractContextManager[Move]:
        """Give the move that the commit push makes as well."""


@dataclass(frozen=True)
class Publication:
    """What becomes visible together.

    `root` is the clone; `folder` holds everything to publish, and `objects` those of its files that go to the DVC
    remote; both are relative to `root` with forward slashes. `stamp` is the run's time (UTC, aware): with the content
    it is all that the commit depends on, so that a retry builds the same one.
    """

    root: Path
    branch: str
    message: str
    folder: str
    objects: tuple[str, ...]
    stamp: datetime
    leave_out: frozenset[str] = frozenset()
    """Names of files in `folder` that stay on this machine."""
    supersedes: tuple[str, ...] = ()
    """Branches that this one takes the place of, in the same push: they are gone when it is visible, and after them
    the objects that nothing else names. With `branch` itself among them the branch moves."""
    hold: Hold | None = None
    """The run that this is of: the commit push is refused where another session has taken it over."""


@dataclass(frozen=True)
class Published:
    """A publication that is visible."""

    branch: str
    commit: str
    uploaded: int
    """Bytes that had to be sent; what stood on the remote already was not."""
    before: bool = False
    """Whether it had been published by an earlier call."""


Say = Callable[[str], object]
