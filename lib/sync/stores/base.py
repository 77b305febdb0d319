"""Define what the transaction needs from a DVC remote: the copies of objects, each with its own identity.

To add a kind of store, write one class with these ten methods:

- `look(oids)` returns, for each object that is there, its identities, each with a `StoredCopy` (its size in bytes). An
  identity names one stored copy for ever: storing the object again makes another identity. It queries the store, never
  a cache.
- `upload(oid, source, label, progress)` stores one more copy and returns when the copy is complete. An interrupted
  copy is not visible under the path. After an error the copy may be there or not. May run in several threads. `label`
  is the id of the intent that is responsible for the copy.
- `delete(oid, identity)` deletes that one copy, if it is still there. May be repeated.
- `discard(oid, label)` deletes the remains of an interrupted upload of that label, if the store keeps any.
- `survey()` returns every object of the store with its copies, and the MD5 of each copy if the store can report it. The
  number of requests grows with the pages of the listing, not with the correct objects.
- `mark(name)`, `unmark(name)` and `marks()` create, delete and list small files in the remote's own folder, outside
  DVC's objects. The name (after `MARK`) is the whole information. `mark` and `unmark` may be repeated. A mark is
  written in the same way as an object, so that creating one proves what an upload needs.
- `room()` returns the bytes that can still be stored, or None if this is unknown.
- `close()` releases what the store holds.

Each class has a module of its own; the module is listed in `KINDS` and returns the class's instance for DVC's object
database from `open_remote(odb)`. `tests/sync/test_stores.py` tests every kind against this contract: a new kind needs
one more fixture.

Cannot: decide what may be deleted; `lib/sync/remotes.py` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lib.errors import DvcPushError, RunError, SyncError

if TYPE_CHECKING:
    from lib.sync.intent import StoredObject


MARK = "kaggle-training-"
"""Prefix of the files that `mark` creates."""
MARK_TEXT = b"Kaggle Training needs this file; only its name counts. `python -m lib check` explains it.\n"


def home_of(path: str) -> str:
    """Return the remote's own folder: DVC keeps objects some folders below it."""
    return path.rstrip("/").removesuffix("/files/md5")


Progress = Callable[[int], object]
"""Called with the number of bytes sent since the last call."""


@dataclass(frozen=True)
class StoredCopy:
    """One stored copy of an object: its size in bytes and, if the store reports it, the MD5 of its content."""

    size: int
    md5: str | None = None


class Objects(Protocol):
    """The interface of a kind of DVC remote; the module's docstring defines what each method promises."""

    name: str

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, StoredCopy]]:
        """Return the identities that are stored under each object's path, with their copies."""

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Store one more copy of the object."""

    def delete(self, oid: str, identity: str) -> None:
        """Delete that one copy of the object."""

    def discard(self, oid: str, label: str) -> None:
        """Delete the remains of an interrupted upload."""

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object of the store with its copies."""

    def marks(self) -> set[str]:
        """Return the names of the marks."""

    def mark(self, name: str) -> None:
        """Create a mark."""

    def unmark(self, name: str) -> None:
        """Delete a mark."""

    def room(self) -> int | None:
        """Return the bytes that can still be stored; None if unknown."""

    def close(self) -> None:
        """Release connections and locks."""


KINDS = {"local": "folder", "gdrive": "gdrive", "s3": "s3"}
"""The module of this package that implements a kind of DVC remote, by DVC's name for the kind."""


def open_objects(repo: Any) -> Objects:  # noqa: ANN401  dvc.repo.Repo
    """Open the default remote of a DVC repository. Raises `SyncError` if there is none or its kind is unknown."""
    from dvc.exceptions import DvcException

    try:
        odb = repo.cloud.get_remote_odb()
    except DvcException as error:
        raise SyncError(
            f"the DVC remote cannot be opened: {error}.",
            state="nothing was uploaded.",
            remedy="name one with `dvc remote add -d storage URL`, commit .dvc/config, and run again.",
        ) from None
    kind = odb.fs.protocol
    if kind not in KINDS:
        raise SyncError(
            f"the DVC remote is of kind {kind}; publishing knows {', '.join(KINDS)}.",
            state="nothing was uploaded.",
            remedy="use a DVC remote of one of these kinds.",
        )
    # imported lazily: each kind pulls in its own client library
    objects: Objects = import_module(f"lib.sync.stores.{KINDS[kind]}").open_remote(odb)
    return objects


def damaged(wanted: StoredObject, copies: Mapping[str, StoredCopy]) -> str | None:
    """Return what is wrong with the stored copies of an object; None if every copy is correct."""
    if not copies:
        return "it is not there"
    for identity, copy in copies.items():
        wrong = mismatch(wanted, copy)
        if wrong:
            return f"its copy {identity} {wrong}"
    return None


def mismatch(wanted: StoredObject, copy: StoredCopy) -> str | None:
    """Return how a copy differs from the object; None if it does not.

    A size below 0 is unknown and not compared. The size of a directory listing is not compared either: DVC records the
    size of the directory's files together.
    """
    if 0 <= wanted.size != copy.size and not wanted.oid.endswith(".dir"):
        return f"has {copy.size} bytes instead of {wanted.size}"
    if copy.md5 is not None and copy.md5 != wanted.oid.removesuffix(".dir"):
        return f"has other content (MD5 {copy.md5})"
    return None


@contextlib.contextmanager
def push_errors(name: str, explain: Callable[[BaseException], tuple[str, str]], state: str) -> Iterator[None]:
    """Raise errors of a store's client as `DvcPushError`; `explain` returns what happened and the remedy.

    A `RunError` passes unchanged.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        what, remedy = explain(error)
        raise DvcPushError(f"{name}: {what}", state=state, remedy=remedy) from error
