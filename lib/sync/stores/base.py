"""The DVC remote as the transaction sees it: identities under the paths of objects.

A kind of store joins by one class with ten methods:

- `look(oids)` gives, for each object that is there, its identities with their size in bytes. An identity names one
  stored copy for ever: whoever stores the object again makes another one. It asks the store, never a cache.
- `upload(oid, source, label)` stores one more copy and returns when it is whole; a cut one is not seen under the path.
  After an error the copy may be there or not. May run in several threads. `label` is the intent that pays for it.
- `delete(oid, identity)` removes that one copy, if it still stands there. May be repeated.
- `discard(oid, label)` removes what a cut upload of that label left elsewhere, if the store keeps such things.
- `survey()` gives every object of the store with its copies, and the MD5 of each where the store lets it be known;
  in requests that grow with the pages, not the objects that are right.
- `mark(name)`, `unmark(name)` and `marks()` make, remove and list small files in the remote's own folder, outside of
  what DVC keeps, whose names (after `MARK`) say everything. Both may be repeated; a mark is written as an object would
  be, so that making one proves what an upload needs.
- `room()` gives the bytes that may still be stored, or None where nobody can say.
- `close()` gives back what it holds.

The class stands in a module of its own, which gives it by `open_remote(odb)` for DVC's object database and which
`KINDS` names. `test_objects.py` holds every kind to this page: a new one joins by one more fixture.

Nothing here decides what may be deleted: `transaction.py` does.
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
"""How the files begin that `mark` makes."""
MARK_TEXT = b"Kaggle Training keeps this file; its name says everything. `python -m lib check` tells more.\n"


def home_of(path: str) -> str:
    """Give the remote's own folder: DVC keeps objects some folders below it."""
    return path.rstrip("/").removesuffix("/files/md5")


Progress = Callable[[int], object]
"""Is told how many more bytes have left."""


@dataclass(frozen=True)
class Copy:
    """One stored copy of an object: its size in bytes and, where the store tells it, the MD5 of its content."""

    size: int
    md5: str | None = None


class Objects(Protocol):
    """What a kind of DVC remote must offer; the module's docstring says what each method promises."""

    name: str

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """Give the identities that stand under each object's path."""

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Store one more copy of the object."""

    def delete(self, oid: str, identity: str) -> None:
        """Remove that one copy."""

    def discard(self, oid: str, label: str) -> None:
        """Remove what a cut upload left."""

    def survey(self) -> dict[str, list[Copy]]:
        """Give every object of the store with its copies."""

    def marks(self) -> set[str]:
        """Give the names of the marks."""

    def mark(self, name: str) -> None:
        """Make a mark."""

    def unmark(self, name: str) -> None:
        """Remove a mark."""

    def room(self) -> int | None:
        """Give the bytes that may still be stored."""

    def close(self) -> None:
        """Give back connections and locks."""


KINDS = {"local": "folder", "gdrive": "gdrive", "s3": "s3"}
"""The module of this package that keeps a kind of DVC remote, by DVC's name for the kind."""


def open_objects(repo: Any) -> Objects:  # noqa: ANN401  dvc.repo.Repo
    """Open the default remote of a DVC repository. Raises `SyncError` where there is none or of an unknown kind."""
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
    # imported when it is met: each brings its client's libraries
    objects: Objects = import_module(f"lib.sync.stores.{KINDS[kind]}").open_remote(odb)
    return objects


def damaged(wanted: StoredObject, copies: Mapping[str, Copy]) -> str | None:
    """Say what is wrong with the stored copies of an object; None where every one is right."""
    if not copies:
        return "it is not there"
    for identity, copy in copies.items():
        wrong = mismatch(wanted, copy)
        if wrong:
            return f"its copy {identity} {wrong}"
    return None


def mismatch(wanted: StoredObject, copy: Copy) -> str | None:
    """Say in what a copy is not the object; a size below 0 is not known (a folder's listing: of its files together)."""
    if 0 <= wanted.size != copy.size and not wanted.oid.endswith(".dir"):
        return f"has {copy.size} bytes instead of {wanted.size}"
    if copy.md5 is not None and copy.md5 != wanted.oid.removesuffix(".dir"):
        return f"has other content (MD5 {copy.md5})"
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Give the error, and what it was raised for."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


@contextlib.contextmanager
def told(name: str, trouble: Callable[[BaseException], tuple[str, str]], state: str) -> Iterator[None]:
    """Turn what a store's client raises into an error that says what happened and what to do; `trouble` knows both."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        what, remedy = trouble(error)
        raise DvcPushError(f"{name}: {what}", state=state, remedy=remedy) from error
