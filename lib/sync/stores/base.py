"""Define what the transaction needs from a DVC remote: copies of files, each with an identity of its own.

An identity names one stored copy for ever, and is known before the copy exists: `new_identities` returns it, the caller
writes it down, and `create` stores the copy under it. To add a kind of store, write one class with these methods:

- `address()` returns the same text on every machine that uses this store, and another one for every other store.
- `limits(probe)` returns why nothing may be deleted under objects' paths; empty where the store offers what that needs
  (a conditional create, and identities that it keeps). Tried once with a flat file of that name, then remembered.
- `new_identities(count)` returns identities that no copy has.
- `create(path, source, identity, progress)` stores the file as a copy with that identity, and returns the copy when it
  is complete. An interrupted copy is not visible under the path. May be repeated with the same identity: there is one
  copy afterwards. Where a path holds only one copy (`keeps_twins` is False) it never overwrites: it returns None if
  another copy is there. The returned copy has another identity than the one asked for if the store cannot keep that.
  Its MD5 is that of the stored bytes. After an error the copy may be there or not.
- `find(path)` returns the copies of one path, `look(oids)` those of several objects, as listings show them.
- `verify(path, identity)` asks for that one copy, never by a listing; None if it is not there.
- `delete(path, identity)` deletes that one copy, if it is still there, and what an interrupted `create` with that
  identity has left. May be repeated.
- `read(path, identity, target, progress)` writes that copy into a file. Raises `FileNotFoundError` if it is not there;
  after any error the file may be incomplete.
- `flat(prefix)` lists the files of the remote's own folder (beside DVC's objects) whose names begin so. What an
  interrupted `create` has left is listed under the name and the identity that it was for, so that it can be deleted.
- `survey()` returns every object of the store with its copies, and the MD5 of each copy if the store can report it. The
  number of requests grows with the pages of the listing, not with the correct objects. An identity is empty if the
  listing does not show it.
- `room()` returns the bytes that can still be stored, or None if this is unknown.
- `close()` releases what the store holds.

A path is relative to the remote's own folder: `path_of(oid)` for an object, a name without a slash for a flat file.
Methods may be called from several threads.

Each class has a module of its own, which is listed in `KINDS` and returns the class's instance for DVC's object
database from `open_remote(odb)`. A class whose paths hold one copy each may inherit from `OneCopyStore`.
`tests/sync/test_stores.py` tests every kind against this contract: a new kind needs one more fixture.

Cannot: decide what may be deleted; `lib/sync/remotes.py` does.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lib.errors import DvcPushError, RunError, SyncError

FLAT = "kaggle-training-"
"""Prefix of the flat files that this project stores beside DVC's objects."""
"""Prefix of the flat files that try a store; only a session that was killed leaves one."""
NOTICE = b"Kaggle Training needs this file; only its name counts. `python -m lib check` explains it.\n"
"""Content of a flat file whose name is the information."""


def home_of(path: str) -> str:
    """Return the remote's own folder: DVC keeps objects some folders below it."""
    return path.rstrip("/").removesuffix("/files/md5")


Progress = Callable[[int], object]
"""Called with the number of bytes sent since the last call."""


@dataclass(frozen=True)
class StoredCopy:
    """One stored copy: its identity, its size in bytes and, if the store reports it, the MD5 of its content (hex)."""

    identity: str
    size: int
    md5: str | None = None


class Store(Protocol):
    """The interface of a kind of DVC remote; the module's docstring defines what each method promises."""

    name: str
    keeps_twins: bool
    """Whether one path can hold several copies side by side."""

    def address(self) -> str:
        """Return what names this store on every machine."""

    def limits(self, probe: str) -> str:
        """Return why nothing may be deleted under objects' paths; empty if it may."""

    def path_of(self, oid: str) -> str:
        """Return the path of an object, relative to the remote's own folder."""

    def new_identities(self, count: int) -> list[str]:
        """Return identities for copies to come."""

    def create(self, path: str, source: Path, identity: str, progress: Progress = int) -> StoredCopy | None:
        """Store a copy with that identity; return None if the path holds another one."""

    def find(self, path: str) -> list[StoredCopy]:
        """Return the copies that are stored under a path."""

    def look(self, oids: Iterable[str]) -> dict[str, list[StoredCopy]]:
        """Return the copies of each object that is there."""

    def verify(self, path: str, identity: str) -> StoredCopy | None:
        """Return that one copy, asked for by its identity."""

    def delete(self, path: str, identity: str) -> None:
        """Delete that one copy."""

    def read(self, path: str, identity: str, target: Path, progress: Progress = int) -> None:
        """Write that copy into a file."""

    def flat(self, prefix: str) -> dict[str, list[StoredCopy]]:
        """Return the flat files whose names begin with the prefix, with their copies."""

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object of the store with its copies."""

    def room(self) -> int | None:
        """Return the bytes that can still be stored; None if unknown."""

    def close(self) -> None:
        """Release connections and locks."""


class OneCopyStore(Store):
    """What the stores have in common whose paths hold one copy each."""

    keeps_twins = False
    loses = ""
    """What such a store does if it overwrites files or loses identities; completes the sentence of `limits`."""

    def __init__(self, odb: Any, name: str) -> None:  # noqa: ANN401  DVC's object database
        self.name = name
        self._home = home_of(str(odb.path))
        self._object_path: Callable[[str], str] = odb.oid_to_path
        self._lack = ""  # what `create` has found to be missing
        self._tried = False

    def limits(self, probe: str) -> str:
        """Store a small file twice and delete it; return what the store lacks."""
        if not self._tried:
            try:
                kept = self._try_out(f"{probe}{secrets.token_hex(4)}.txt")
            except OSError as error:
                raise DvcPushError(
                    f"{self.name}: a small file cannot be stored and deleted there ({error}).",
                    remedy="free some space there, let this account write to the folder, and run again.",
                ) from error
            self._lack = self._lack or ("" if kept else self.loses)
            self._tried = True
        return self._lack and f"{self.name} {self._lack}, so that no object is ever deleted there."

    def _try_out(self, path: str) -> bool:
        """Return whether the store keeps an identity and refuses to overwrite."""
        first, second = self.new_identities(2)
        try:
            with notice() as file:
                made = self.create(path, file, first)
                refused = self.create(path, file, second) is None
        finally:
            for _ in range(2):  # if the second was not refused, a bucket with versions has both
                for copy in self.find(path):
                    self.delete(path, copy.identity)
        if self.find(path):
            raise DvcPushError(
                f"{self.name}: the file {path} was deleted and is still there.",
                remedy="let this account delete files there: publishing rolls back what has failed.",
            )
        return refused and made is not None and made.identity == first

    def path_of(self, oid: str) -> str:
        """Return the path of an object below the remote's own folder."""
        return self._object_path(oid).removeprefix(f"{self._home}/")

    def look(self, oids: Iterable[str]) -> dict[str, list[StoredCopy]]:
        """Return the one copy of each object that is there."""
        return {oid: copies for oid in oids if (copies := self.find(self.path_of(oid)))}

    def verify(self, path: str, identity: str) -> StoredCopy | None:
        """Return the copy of the path if it has that identity."""
        return next((copy for copy in self.find(path) if copy.identity == identity), None)

    def room(self) -> int | None:
        """Return None: the store reports no limit."""
        return None

    def close(self) -> None:
        """Do nothing: no resource is held."""


KINDS = {"local": "folder", "gdrive": "gdrive", "s3": "s3"}
"""The module of this package that implements a kind of DVC remote, by DVC's name for the kind."""


def open_store(repo: Any) -> Store:  # noqa: ANN401  dvc.repo.Repo
    """Open the default remote of a DVC repository. Raises `SyncError` if there is none or its kind is unknown."""
    from dvc.exceptions import DvcException

    try:
        remote = repo.cloud.get_remote()
        if remote.fs.version_aware or remote.worktree:
            raise SyncError(
                f"the DVC remote {remote.name} is version_aware or a worktree: it stores no objects by their MD5.",
                state="nothing was uploaded.",
                remedy="name another default remote with `dvc remote add -d storage URL`, and commit .dvc/config.",
            )
        odb = remote.odb
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
    store: Store = import_module(f"lib.sync.stores.{KINDS[kind]}").open_remote(odb)
    return store


@contextlib.contextmanager
def notice() -> Iterator[Path]:
    """Yield a file with the content of a flat file whose name is the information."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(NOTICE)
        file.flush()
        yield Path(file.name)


def absent(store: Store, path: str, identity: str) -> FileNotFoundError:
    """Return the error for a copy that is not there."""
    return FileNotFoundError(f"{store.name}: {path} is not there (copy {identity})")


def mismatch(oid: str, size: int, copy: StoredCopy | None) -> str | None:
    """Return how a copy, which may be missing, differs from the object; None if it does not.

    A size below 0 is unknown and not compared. The size of a directory listing is not compared either: DVC records the
    size of the directory's files together.
    """
    if copy is None:
        return "is not there"
    if 0 <= size != copy.size and not oid.endswith(".dir"):
        return f"has {copy.size} bytes instead of {size}"
    if copy.md5 is not None and copy.md5 != oid.removesuffix(".dir"):
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
