"""Store objects in a folder of this machine or of a mounted disk.

Guarantees: an object that is visible under its path is complete, and it is on the disk when `upload` returns.
Cannot: look and delete in one step; a copy that replaces the file between the two is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib.sync.stores.base import MARK, MARK_TEXT, Progress, StoredCopy, home_of


class FolderObjects:
    """A folder. The identity of a copy is its time of writing and its inode: replacing the file makes another."""

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        self.name = str(odb.path)
        self._path_of: Callable[[str], str] = odb.oid_to_path
        self._home = Path(home_of(self.name))

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, StoredCopy]]:
        """Return the one copy that each path can hold."""
        found = {}
        for oid in oids:
            with contextlib.suppress(FileNotFoundError):
                status = Path(self._path_of(oid)).stat()
                found[oid] = {f"{status.st_mtime_ns}-{status.st_ino}": StoredCopy(status.st_size)}
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Write to a temporary file in the same folder, then rename: a reader never sees half an object."""
        target, part = Path(self._path_of(oid)), self._part(oid, label)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(0o444)  # as DVC does with its objects
            part.replace(target)
            _fsync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
        progress(source.stat().st_size)

    def delete(self, oid: str, identity: str) -> None:
        """Delete the file if it is still that copy."""
        if identity in self.look([oid]).get(oid, {}):
            Path(self._path_of(oid)).unlink(missing_ok=True)

    def discard(self, oid: str, label: str) -> None:
        """Delete the temporary file of the upload."""
        self._part(oid, label).unlink(missing_ok=True)

    def _part(self, oid: str, label: str) -> Path:
        target = Path(self._path_of(oid))
        return target.with_name(f".{target.name}.{label}.tmp")

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object with its MD5, by reading every file; files that are not DVC objects are skipped."""
        found: dict[str, list[StoredCopy]] = {}
        for path in Path(self.name).glob("[0-9a-f][0-9a-f]/*"):
            if not path.name.startswith(".") and path.is_file():
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # deleted meanwhile
                    digest = hashlib.file_digest(file, "md5").hexdigest()
                    found[path.parent.name + path.name] = [StoredCopy(os.fstat(file.fileno()).st_size, digest)]
        return found

    def marks(self) -> set[str]:
        """Return the names of the marks in the remote's own folder."""
        return {path.name.removeprefix(MARK) for path in self._home.glob(f"{MARK}*")}

    def mark(self, name: str) -> None:
        """Write the mark's file; only its name counts, so that a partly written file is valid."""
        self._home.mkdir(parents=True, exist_ok=True)
        (self._home / f"{MARK}{name}").write_bytes(MARK_TEXT)

    def unmark(self, name: str) -> None:
        """Delete the mark's file."""
        (self._home / f"{MARK}{name}").unlink(missing_ok=True)

    def room(self) -> int | None:
        """Return the free bytes of the file system that the folder is on, or will be on."""
        nearest = next(folder for folder in (self._home, *self._home.parents) if folder.is_dir())
        return shutil.disk_usage(nearest).free

    def close(self) -> None:
        """Do nothing: no resource is held."""


def open_remote(odb: Any) -> FolderObjects:  # noqa: ANN401  DVC's object database
    """Open the remote that DVC has configured."""
    return FolderObjects(odb)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
