"""Define what the transaction needs from a DVC remote: copies of files, each with an identity of its own.

An identity names one stored copy for ever, and is known before the copy exists: `new_identities` returns it, the caller
writes it down, and `create` stores the copy under it. A path is relative to the remote's own folder: `path_of(oid)` for
an object, a name without a slash for a flat file, which lies beside DVC's objects.

To add a kind of store, write a subclass of `Store` in a module of its own, and name it in `KINDS`. The docstrings of
`Store` are the contract; `tests/sync/test_stores.py` tests every kind against it and needs one more fixture.
Cannot: decide what may be deleted; `lib/sync/remotes.py` does.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pkgutil
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib.errors import DvcPushError, RunError, SyncError
from lib.remotes.dvc_config import chain_of
from lib.remotes.store_errors import explain

FLAT = "kaggle-training-"
"""Prefix of the flat files that this project stores beside DVC's objects."""
NOTICE = b"Kaggle Training needs this file; only its name counts. `python -m lib check` explains it.\n"
"""Content of a flat file whose name is the information."""
Progress = Callable[[int], object]
"""Called with the number of bytes sent since the last call."""


@dataclass(frozen=True)
class StoredCopy:
    """One stored copy: its identity, its size in bytes and, if the store reports it, the MD5 of its content (hex)."""

    identity: str
    size: int
    md5: str | None = None


class Store(Protocol):
    """A DVC remote. The methods with a body fit stores whose paths hold one copy each.

    Methods may be called from several threads. They raise `DvcPushError` or `OSError`.
    """

    name: str
    keeps_twins: bool = False
    """Whether one path can hold several copies side by side."""
    loses: str = ""
    """What such a store does if it overwrites files or loses identities; completes the sentence of `limits`."""
    _home: str
    _object_path: Callable[[str], str]
    _lack: str = ""  # what `create` has found to be missing
    _tried: bool = False

    def __init__(self, odb: Any, name: str) -> None:  # noqa: ANN401  DVC's object database
        self.name = name
        self._home = str(odb.path).rstrip("/").removesuffix("/files/md5")  # DVC keeps objects some folders below
        self._object_path = odb.oid_to_path

    def address(self) -> str:
        """Return the same text on every machine that uses this store, and another one for every other store."""

    def limits(self, probe: str) -> str:
        """Return why nothing may be deleted under objects' paths: empty if the store has what that needs.

        Needed are a conditional create, and identities that the store keeps. Tried once, by storing a small flat file
        of that name twice, then remembered.
        """
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
                    self.delete_provably(path, copy.identity)
        return refused and made is not None and made.identity == first

    def path_of(self, oid: str) -> str:
        """Return the path of an object."""
        return self._object_path(oid).partition(f"{self._home}/")[2]

    def new_identities(self, count: int) -> list[str]:
        """Return identities that no copy has."""

    def create(self, path: str, source: Path, identity: str, progress: Progress = int) -> StoredCopy | None:
        """Store the file as a copy with that identity, and return the copy, with its MD5, when it is complete.

        An interrupted copy is not visible under the path; after an error the copy may be there or not. May be repeated
        with the same identity: there is one copy afterwards. Where a path holds one copy, this never overwrites, and
        returns None if another copy is there. The returned copy has another identity if the store cannot keep that one.
        """

    def find(self, path: str) -> list[StoredCopy]:
        """Return the copies of a path, as listings show them."""

    def look(self, oids: Iterable[str]) -> dict[str, list[StoredCopy]]:
        """Return the copies of each of these objects that is there, as listings show them."""
        return {oid: copies for oid in oids if (copies := self.find(self.path_of(oid)))}

    def verify(self, path: str, identity: str) -> StoredCopy | None:
        """Return that one copy, asked for by its identity and never by a listing; None if it is not there."""
        return next((copy for copy in self.find(path) if copy.identity == identity), None)

    def delete(self, path: str, identity: str) -> None:
        """Delete that one copy if it is there, and what an interrupted `create` of it has left. May be repeated."""

    def delete_part(self, path: str, identity: str) -> None:
        """Delete what an interrupted `create` of that copy has left, and nothing that is visible. May be repeated."""

    def delete_provably(self, path: str, identity: str) -> None:
        """Delete that one copy. Raises `DvcPushError` if it is still there afterwards."""
        self.delete(path, identity)
        if self.verify(path, identity) is not None:
            raise DvcPushError(
                f"{self.name}: {path} was deleted and is still there.",
                remedy="let this account delete files there: publishing rolls back what has failed.",
            )

    def read(self, path: str, identity: str, target: Path) -> None:
        """Write that copy into a file, which may be incomplete after an error; `FileNotFoundError` if it is gone."""

    def flat(self, prefix: str) -> dict[str, list[StoredCopy]]:
        """Return the flat files whose names begin with the prefix, with their copies.

        What an interrupted `create` has left is listed under the name and the identity that it was for, so that
        `delete` can be called for it.
        """

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object with its copies, and the MD5 of each copy if the store can report it.

        The number of requests grows with the pages of the listing, not with the correct objects. An identity is empty
        if the listing does not show it.
        """

    def room(self) -> int | None:
        """Return the bytes that can still be stored; None if the store reports no limit."""
        return None

    def close(self) -> None:
        """Release what the store holds."""

    @contextlib.contextmanager
    def _push_errors(self) -> Iterator[None]:
        """Raise the errors of a service's client as `DvcPushError`, which `explain` understands."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            answer = explain(error)
            remedy = f"{answer.remedy}, then run sync_outputs() again."
            raise DvcPushError(f"{self.name}: {answer.what}", remedy=remedy) from error


KINDS = {"local": "folder:FolderObjects", "gdrive": "gdrive:DriveObjects", "s3": "s3:S3Objects"}
"""The module and class of this package for a kind of DVC remote, by DVC's name for the kind."""


def open_store(repo: Any) -> Store:  # noqa: ANN401  dvc.repo.Repo
    """Open the default remote of a DVC repository. Raises `SyncError` if there is none or its kind is unknown."""
    from dvc.exceptions import DvcException

    refusal = functools.partial(SyncError, state="nothing was uploaded.")
    try:
        chain_of(repo.config, repo.config["core"].get("remote") or "")
        remote = repo.cloud.get_remote()
        odb = remote.odb
    except (DvcException, ImportError) as error:  # ImportError: of a kind whose client is not installed
        raise refusal(
            f"the DVC remote cannot be opened: {error}.",
            remedy="name one in a folder, on Google Drive or on S3 with `dvc remote add -d storage URL`, commit "
            ".dvc/config, and run again.",
        ) from None
    if remote.fs.version_aware or remote.worktree:
        raise refusal(
            f"the DVC remote {remote.name} is version_aware or a worktree: it stores no objects by their MD5.",
            remedy="name another default remote with `dvc remote add -d storage URL`, and commit .dvc/config.",
        )
    kind = odb.fs.protocol
    if kind not in KINDS:
        raise refusal(
            f"the DVC remote is of kind {kind}; publishing knows {', '.join(KINDS)}.",
            remedy="use a DVC remote of one of these kinds.",
        )
    if kind == "local" and not Path(remote.path).is_dir():
        # DVC would create it: on another machine the address may mean nothing, or a disk that ends with the session
        raise refusal(
            f"the DVC remote {remote.name} is the folder {remote.path}, which this machine does not have.",
            remedy="mount it or create it, and name it by its absolute path without file://; for a run on another "
            "machine use Google Drive or S3.",
        )
    try:
        return open_object_store(odb)
    except DvcPushError as error:
        error.state = "nothing was uploaded or changed."
        raise


def open_object_store(odb: Any) -> Store:  # noqa: ANN401  DVC's object database
    """Open the store of a DVC remote of one of `KINDS`. Raises `DvcPushError`."""
    # imported lazily: each kind pulls in its own client library
    store: Store = pkgutil.resolve_name(f"lib.sync.stores.{KINDS[odb.fs.protocol]}")(odb)
    return store


@contextlib.contextmanager
def notice(content: bytes = NOTICE) -> Iterator[Path]:
    """Yield a file with this content, by default that of a flat file whose name is the information."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def md5_of(path: Path) -> str:
    """Return the MD5 (hex) of a file, which is its object's name on a DVC remote."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


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
