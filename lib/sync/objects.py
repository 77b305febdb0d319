"""The DVC remote as the transaction sees it: identities under the paths of objects.

A kind of store joins by one class with five methods, `look`, `upload`, `delete`, `discard` and `close`:

- `look(oids)` gives, for each object that is there, its identities with their size in bytes. An identity names one
  stored copy for ever: whoever stores the object again makes another one. It asks the store, never a cache.
- `upload(oid, source, label)` stores one more copy and returns when it is whole; a cut one is not seen under the path.
  After an error the copy may be there or not. May run in several threads. `label` is the intent that pays for it.
- `delete(oid, identity)` removes that one copy, if it still stands there. May be repeated.
- `discard(oid, label)` removes what a cut upload of that label left elsewhere, if the store keeps such things.
- `close()` gives back what it holds.

Nothing here decides what may be deleted: `transaction.py` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lib.errors import SyncError

if TYPE_CHECKING:
    from lib.sync.intent import StoredObject

SILENCE = 120.0  # seconds without a byte after which a connection is given up: Google's client would wait for ever

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

    def close(self) -> None:
        """Give back connections and locks."""


class DirectoryObjects:
    """A folder. The identity of a copy is its time of writing and its inode: replacing the file makes another."""

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        self.name = str(odb.path)
        self._path_of: Callable[[str], str] = odb.oid_to_path

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """Give the one copy that a path can hold."""
        found = {}
        for oid in oids:
            with contextlib.suppress(FileNotFoundError):
                status = Path(self._path_of(oid)).stat()
                found[oid] = {f"{status.st_mtime_ns}-{status.st_ino}": Copy(status.st_size)}
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Write beside the path, then rename: a reader never sees half an object."""
        target, part = Path(self._path_of(oid)), self._part(oid, label)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(0o444)  # as DVC keeps its objects
            part.replace(target)
            _fsync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
        progress(source.stat().st_size)

    def delete(self, oid: str, identity: str) -> None:
        """Remove the file if it is still that copy."""
        if identity in self.look([oid]).get(oid, {}):
            Path(self._path_of(oid)).unlink(missing_ok=True)

    def discard(self, oid: str, label: str) -> None:
        """Remove the file that the upload was writing to."""
        self._part(oid, label).unlink(missing_ok=True)

    def _part(self, oid: str, label: str) -> Path:
        target = Path(self._path_of(oid))
        return target.with_name(f".{target.name}.{label}.tmp")

    def close(self) -> None:
        """Nothing is held."""


class DriveObjects:
    """A Google Drive folder. The identity of a copy is its file id; two copies of one path may stand side by side."""

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        # the client sets no limit of its own, and one cut connection would hold the run for ever
        if socket.getdefaulttimeout() is None:
            socket.setdefaulttimeout(SILENCE)
        self.name = f"gdrive://{odb.path}"
        self._odb = odb
        self._drive = odb.fs.fs  # pydrive2's file system: authenticates here

    def _folders_and_name(self, oid: str) -> tuple[list[str], str]:
        """Give the ids of the folders that stand for the object's folder (Drive allows twins) and the file's name."""
        folder, _, name = self._odb.oid_to_path(oid).rpartition("/")
        _, base = self._drive.split_path(folder)
        ids = self._drive._path_to_item_ids(base)  # noqa: SLF001  pydrive2 has no public way to see twin folders
        return list(ids or []), name

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """List each object's folder and keep the files of its name."""
        found: dict[str, dict[str, Copy]] = {}
        for oid in oids:
            folders, name = self._folders_and_name(oid)
            if not folders:
                continue
            copies = {
                item["id"]: Copy(int(item.get("fileSize") or 0), item.get("md5Checksum"))
                for item in self._drive._gdrive_list_ids(folders)  # noqa: SLF001  retries as DVC's own pushes do
                if item["title"] == name
            }
            if copies:
                found[oid] = copies
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:  # noqa: ARG002
        """Insert one more file; Drive shows it when it is whole."""
        from fsspec.callbacks import Callback

        class Report(Callback):  # type: ignore[misc]  # fsspec has no types
            def relative_update(self, inc: int = 1) -> None:
                progress(inc)

        self._drive.put_file(str(source), self._odb.oid_to_path(oid), callback=Report())

    def delete(self, oid: str, identity: str) -> None:  # noqa: ARG002  a file id needs no path
        """Delete by file id: another copy of the same path is another id."""
        from pydrive2.files import ApiRequestError

        try:
            self._drive.client.CreateFile({"id": identity}).Delete()
        except ApiRequestError as error:
            if error.error.get("code") != 404:  # noqa: PLR2004  not there any more is what was wanted
                raise

    def discard(self, oid: str, label: str) -> None:
        """Drive keeps nothing of a cut upload that could be seen."""

    def close(self) -> None:
        """Nothing is held."""


KINDS: Mapping[str, Callable[[Any], Objects]] = {"local": DirectoryObjects, "gdrive": DriveObjects}


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
    return KINDS[kind](odb)


def damaged(wanted: StoredObject, copies: Mapping[str, Copy]) -> str | None:
    """Say what is wrong with the stored copies of an object; None where every one is right."""
    if not copies:
        return "it is not there"
    for identity, copy in copies.items():
        if copy.size != wanted.size:
            return f"its copy {identity} has {copy.size} bytes instead of {wanted.size}"
        if copy.md5 is not None and copy.md5 != wanted.oid.removesuffix(".dir"):
            return f"its copy {identity} has other content (MD5 {copy.md5})"
    return None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
