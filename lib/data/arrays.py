"""Keep the arrays of prepared images on this machine, so that later runs with the same images decode none of them.

The cache is a folder of the user: `KAGGLE_TRAINING_CACHE`, or `kaggle-training` in the user's cache folder. Each of its
entries holds arrays and `CHECKSUMS`, is made under a temporary name and then renamed. A run never reads an entry: it
has hard links of its own to the arrays, so that deleting an entry takes nothing from a run that trains.

Guarantees: an array is used only if its key is equal and its checksum is right, so that a full disk, a kill or a power
failure costs time and nothing else. A folder that another user owns or can write is never read. One run at a time
prepares images; the others wait, and reuse what it kept. Keeping arrays fails no run.

Cannot: link across file systems. If the cache is on another one than the run, arrays are kept in the run's scratch
folder, where only a run in the same folder finds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "KAGGLE_TRAINING_CACHE"
CHECKSUMS = "checksums.json"
SHARE = 0.5  # of the disk that would be free without any kept arrays
UNUSED = 14 * 24 * 3600.0  # seconds after which an entry is deleted
WAIT = 900.0  # seconds; a run that has prepared for longer may be suspended, and the next one goes on without it
POLL = 0.2  # seconds between two attempts to lock


@dataclass(frozen=True)
class ArrayCache:
    """The arrays that are kept in a folder. An entry's arrays are given as {name: path of the run's own array}."""

    folder: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache's lock during the block, after waiting at most `WAIT` seconds for another run's block.

        The lock saves work: without it, entries would still be complete.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks
                file = stack.enter_context((self.folder / ".lock").open("w"))
                deadline, told = time.monotonic() + WAIT, False
                while not _lock(file.fileno()) and time.monotonic() < deadline:
                    if not told:
                        print("Another run is preparing images on this machine: waiting for it.", flush=True)
                    told = True
                    time.sleep(POLL)
            yield

    def reuse(self, key: str, arrays: Mapping[str, Path]) -> bool:
        """Link an entry's arrays to the given paths and return whether all are there and undamaged.

        Otherwise no path is left, and the entry is deleted.
        """
        entry = self.folder / key
        try:
            checksums = dict(json.loads((entry / CHECKSUMS).read_bytes()))
            numbers = {name: number for number, name in enumerate(checksums)}
            for name, path in arrays.items():
                os.link(entry / f"{numbers[name]}.npy", path)
            found = _checksums(arrays)
            if found == {name: checksums[name] for name in arrays}:
                os.utime(entry)
                return True
        except (OSError, ValueError, TypeError, KeyError):
            pass
        for path in arrays.values():
            path.unlink(missing_ok=True)
        shutil.rmtree(entry, ignore_errors=True)
        return False

    def keep(self, key: str, arrays: Mapping[str, Path]) -> None:
        """Keep arrays as an entry, as far as that is possible; they become read-only."""
        part = self.folder / f".{secrets.token_hex(4)}.part"
        try:
            part.mkdir(mode=0o700)
            for number, path in enumerate(arrays.values()):
                path.chmod(0o444)
                os.link(path, part / f"{number}.npy")
            (part / CHECKSUMS).write_text(json.dumps(_checksums(arrays)), encoding="utf-8")
            part.rename(self.folder / key)
        except OSError:  # the disk is full, or another run kept the same arrays
            shutil.rmtree(part, ignore_errors=True)

    def make_room(self, size: int) -> None:
        """Delete unused entries, then the least recently used ones until `size` more bytes fit into the disk's share.

        What a killed run left counts as an entry.
        """
        with contextlib.suppress(OSError):  # without a lock, another run may delete the same entry
            entries = [entry for entry in self.folder.iterdir() if entry.is_dir()]
            used = {entry: entry.stat().st_mtime for entry in entries}
            kept = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
            for entry in sorted(entries, key=used.__getitem__):
                total = sum(kept.values())
                fits = total + size <= SHARE * (total + shutil.disk_usage(self.folder).free)
                if fits and time.time() - used[entry] < UNUSED:
                    break
                shutil.rmtree(entry, ignore_errors=True)
                del kept[entry]


def open_cache(scratch: Path) -> ArrayCache:
    """Return this machine's cache, or one in the scratch folder if that one cannot be used. Raises `OSError`."""
    top = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  `Path` raises without a home
    folder = Path(os.environ.get(VARIABLE) or f"{top}/kaggle-training")
    with contextlib.suppress(OSError):
        if folder.is_absolute():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if ours and found.st_dev == scratch.stat().st_dev and os.access(folder, os.W_OK):
                return ArrayCache(folder)
    folder = scratch / "arrays"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ArrayCache(folder)


def _lock(number: int) -> bool:
    """Lock a file, until it is closed, and return whether no other process has."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _checksums(arrays: Mapping[str, Path]) -> dict[str, int]:
    """Return the checksum of each array's file."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: zlib.crc32(path.read_bytes()), arrays.values())
        return dict(zip(arrays, found, strict=True))
