"""Store files in a folder of this machine or of a mounted disk.

Guarantees: a file that is visible under its path is complete, and on the disk when `create` returns; no file is
overwritten where the folder has hard links.
Cannot: compare the identity and delete in one step; a copy that replaces the file between the two is deleted. Without
hard links two machines that store the same path at once may overwrite each other; neither copy is deleted then.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.sync.stores.base import FLAT, Progress, Store, StoredCopy, md5_of, notice

YEARS = range(1_009_843_200, 1_640_995_200, 2)  # 2002 to 2022, the even seconds: FAT keeps no odd ones
BLOCK = 2**20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)
_STORE = f"{FLAT}store"
_PART = re.compile(r"\.(.+)\.(\d+)\.part")


class FolderObjects(Store):
    """A folder. The identity of a copy is its modification time: a random second of the past, set before it is visible.

    DVC, `cp -p` and rsync keep that time; the copy of any other writer has the present one, and is never ours.
    """

    loses = "does not keep modification times"

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        super().__init__(odb, str(odb.path))
        self._folder = Path(self._home)
        self._address = ""

    def address(self) -> str:
        """Return the text of the folder's own mark, since machines may mount it elsewhere; create it if missing."""
        if not self._address:
            mark = self._folder / _STORE
            while not mark.exists():
                with notice(secrets.token_hex(8).encode()) as file, contextlib.suppress(FileNotFoundError):
                    # another machine that closes the store deletes our part
                    self.create(_STORE, file, self.new_identities(1)[0])
            self._address = f"folder {mark.read_text(encoding='utf-8')}"
        return self._address

    def close(self) -> None:
        """Delete what killed processes have left of the folder's mark."""
        for part in self._folder.glob(f".{_STORE}.*"):
            with contextlib.suppress(OSError):  # deleted meanwhile, or in a copy that cannot be written to
                part.unlink()

    def new_identities(self, count: int) -> list[str]:
        """Return random even seconds."""
        return [str(second) for second in random.SystemRandom().sample(YEARS, count)]

    def create(self, path: str, source: Path, identity: str, progress: Progress = int) -> StoredCopy | None:
        """Write a private file in the same folder, then link it to the path: a reader never sees half a copy."""
        target, part = self._folder / path, self._part(path, identity)
        _make_folder(target.parent)
        part.unlink(missing_ok=True)  # never written to: it may be linked to a copy that is visible already
        try:
            md5 = _write(source, part, int(identity), progress)
            made = self._show(part, target)
        finally:
            part.unlink(missing_ok=True)
        _fsync_folder(target.parent)
        # a copy that was there already may be ours, of an earlier call
        return next((replace(copy, md5=md5) for copy in self.find(path) if made or copy.identity == identity), None)

    def _show(self, part: Path, target: Path) -> bool:
        """Make the part visible under its path; return False if another file is there."""
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return True
        self._lack = "has no hard links"
        if target.exists():
            return False
        os.utime(part)  # it may overwrite a copy, or be overwritten: it gets no identity of ours and is never deleted
        part.rename(target)
        return True

    def find(self, path: str) -> list[StoredCopy]:
        """Return the one copy that a path can hold."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [_copy(self._folder / path)]
        return []

    def delete(self, path: str, identity: str) -> None:
        """Delete the part of an interrupted `create`, and the file if it is still that copy."""
        self.delete_part(path, identity)
        if self.verify(path, identity):
            target = self._folder / path
            target.unlink(missing_ok=True)
            _fsync_folder(target.parent)

    def delete_part(self, path: str, identity: str) -> None:
        """Delete the private file that `create` writes."""
        with contextlib.suppress(NotADirectoryError):  # a file may be in the folder's place
            self._part(path, identity).unlink(missing_ok=True)

    def read(self, path: str, identity: str, target: Path) -> None:
        """Copy the file, if it is that copy."""
        if self.verify(path, identity) is None:
            raise FileNotFoundError(f"{self.name}: {path} is not there (copy {identity})")
        shutil.copyfile(self._folder / path, target)

    def flat(self, prefix: str) -> dict[str, list[StoredCopy]]:
        """Return the files in the remote's own folder, and the parts that interrupted calls of `create` have left."""
        found: dict[str, list[StoredCopy]] = {}
        for path in self._folder.glob("*"):
            part = _PART.fullmatch(path.name)
            name = part[1] if part else path.name
            if name.startswith(prefix) and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    copy = _copy(path)
                    found.setdefault(name, []).append(replace(copy, identity=part[2]) if part else copy)
        return found

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object with its MD5, by reading every file; files that are not DVC objects are skipped."""
        found: dict[str, list[StoredCopy]] = {}
        for path in Path(self.name).glob("[0-9a-f][0-9a-f]/*"):
            if not path.name.startswith(".") and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found[path.parent.name + path.name] = [replace(_copy(path), md5=md5_of(path))]
        return found

    def room(self) -> int | None:
        """Return the free bytes of the file system that the folder is on."""
        return shutil.disk_usage(self._folder).free

    def _part(self, path: str, identity: str) -> Path:
        target = self._folder / path
        return target.with_name(f".{target.name}.{identity}.part")


def _copy(path: Path) -> StoredCopy:
    status = path.stat()
    second, fraction = divmod(status.st_mtime_ns, 10**9)
    # with a fraction, a time is not one that was set here
    return StoredCopy(f"{second}.{fraction:09d}" if fraction else str(second), status.st_size)


def _write(source: Path, target: Path, second: int, progress: Progress) -> str:
    """Copy a file into a new one with that modification time, on the disk; return the MD5 of what was written."""
    digest = hashlib.md5(usedforsecurity=False)
    with source.open("rb") as read, target.open("xb") as written:
        while block := read.read(BLOCK):
            written.write(block)
            digest.update(block)
            progress(len(block))
        written.flush()
        os.utime(written.fileno(), (second, second))
        os.fchmod(written.fileno(), 0o444)  # as DVC does with its objects
        os.fsync(written.fileno())
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it, on the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
