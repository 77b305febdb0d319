"""Define the types of a publication: what is published together, and what the call returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib.sync.lock import RunLock


@dataclass(frozen=True)
class Publication:
    """The files of a run that become visible together.

    `root` is the clone. `folder` holds everything to publish; `objects` are those of its files that go to the DVC
    remote. Both are relative to `root`, with forward slashes. `stamp` is the run's time (UTC, aware): it is
    the commit's only input besides its content, so that a retry builds the same commit.
    """

    root: Path
    branch: str
    message: str
    folder: str
    objects: tuple[str, ...]
    stamp: datetime
    leave_out: frozenset[str] = frozenset()
    """Names of files in `folder` that are not published and stay on this machine."""
    hold: RunLock | None = None
    """The lock of the run, which the commit push ends. None: a publication without a run."""
    keeps_checkpoint: bool = False
    """Whether the run's checkpoint stays, for a later session to resume; else the commit push deletes it, too."""
    source: Path | None = None
    """The folder in which the content of `folder` is; None: in the clone itself."""

    def find(self, name: str) -> Path:
        """Return where the content of a published path is on this machine."""
        if self.source is None:
            return self.root / name
        return self.source / PurePosixPath(name).relative_to(self.folder)

    def files(self) -> dict[str, Path]:
        """Return the path in the commit of every file of `folder`, and where its content is."""
        top = self.find(self.folder)
        found = (path for path in sorted(top.rglob("*")) if path.is_file() and path.name not in self.leave_out)
        return {f"{self.folder}/{path.relative_to(top).as_posix()}": path for path in found}


@dataclass(frozen=True)
class Published:
    """The result of a publication that is visible."""

    branch: str
    commit: str
    uploaded: int
    """Bytes that were uploaded; objects that were already on the remote do not count."""
    before: bool = False
    """Whether an earlier call had already published it."""


Say = Callable[[str], object]
