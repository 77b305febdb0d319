"""Arrays are kept for later runs: never a damaged one, none from a folder of others, none taken from a run."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.data.arrays import UNUSED, VARIABLE, ArrayCache, open_cache

NAMES = ("a.jpg", "b/a.jpg")
SIZE = 1000  # bytes of an array


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    """Return an empty cache."""
    (tmp_path / "cache").mkdir(mode=0o700)
    return ArrayCache(tmp_path / "cache")


def paths(folder: Path, *, made: bool = False) -> dict[str, Path]:
    """Return the paths of a run's arrays; with `made`, write them."""
    folder.mkdir()
    found = {name: folder / f"{number}.npy" for number, name in enumerate(NAMES)}
    for name, path in found.items():
        if made:
            path.write_bytes(name.encode().ljust(SIZE, b"-"))
    return found


def damage(file: Path, data: bytes) -> None:
    """Replace the content of a file, which may be read-only."""
    file.chmod(0o600)
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "other bytes", "no array", "no list", "torn list", "other list", "fewer"])
def test_a_damaged_entry_is_replaced(cache: ArrayCache, tmp_path: Path, how: str) -> None:
    """After a full disk or a power failure nothing of an entry is used, and the next run keeps its own arrays."""
    made = paths(tmp_path / "made", made=True)
    cache.keep("key", {NAMES[0]: made[NAMES[0]]} if how == "fewer" else made)
    array, listed = cache.folder / "key/0.npy", cache.folder / "key/checksums.json"
    match how:
        case "truncated":
            damage(array, array.read_bytes()[:-1])
        case "other bytes":
            damage(array, array.read_bytes()[:-1] + b"+")
        case "torn list":
            damage(listed, listed.read_bytes()[:-1])
        case "other list":
            damage(listed, b"[1]")
        case "no array" | "no list":
            (array if how == "no array" else listed).unlink()
    again = paths(tmp_path / "again")
    assert not cache.reuse("key", again)
    assert not list((tmp_path / "again").iterdir())
    whole = paths(tmp_path / "whole", made=True)
    cache.keep("key", whole)
    assert cache.reuse("key", again)
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: path.read_bytes() for name, path in whole.items()
    }


def test_nothing_is_kept_in_part(cache: ArrayCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs the run nothing, and leaves nothing behind."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    made = paths(tmp_path / "made", made=True)
    cache.keep("key", made)
    assert not list(cache.folder.iterdir())
    assert all(path.exists() for path in made.values())


def test_old_entries_make_room_and_no_run_loses_an_array(
    cache: ArrayCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used entry goes first; one that was not used for weeks goes in any case."""
    runs = {key: paths(tmp_path / key, made=True) for key in ("newest", "oldest", "older", "unused", ".1.part")}
    for (key, arrays), age in zip(list(runs.items()), (100, 300, 200, UNUSED, 250), strict=True):
        cache.keep(key, arrays)
        if key == "oldest":
            runs["reuses it"] = paths(tmp_path / "reuses it")
            assert cache.reuse(key, runs["reuses it"])
        os.utime(cache.folder / key, (time.time() - age,) * 2)
    entry = sum(file.stat().st_size for file in (cache.folder / "newest").iterdir())
    # two entries and a new one are half of the disk that would be free without those two
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2 * 3 * entry - 2 * entry))
    cache.make_room(entry)
    assert {file.name for file in cache.folder.iterdir()} == {"newest", "older"}
    assert all(path.stat().st_size == SIZE for arrays in runs.values() for path in arrays.values())


def test_an_entry_is_deleted_weeks_after_its_last_use(cache: ArrayCache, tmp_path: Path) -> None:
    """Reuse counts as use; room for others is no reason to keep what nobody uses."""
    for key in ("used", "unused"):
        cache.keep(key, paths(tmp_path / key, made=True))
        os.utime(cache.folder / key, (0, 0))
    assert cache.reuse("used", paths(tmp_path / "again"))
    cache.make_room(0)
    assert [file.name for file in cache.folder.iterdir()] == ["used"]


@pytest.mark.parametrize("how", ["writable by others", "a link", "not absolute", "owned by another user"])
def test_a_folder_that_is_not_safe_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Arrays are then kept in the run's scratch folder, where a run that is resumed there finds them."""
    folder, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    assert open_cache(scratch).folder == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    match how:
        case "writable by others":
            folder.chmod(0o770)
        case "a link":
            folder.rename(tmp_path / "elsewhere")
            folder.symlink_to(tmp_path / "elsewhere")
        case "not absolute":
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv(VARIABLE, "cache")
        case "owned by another user":
            monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert open_cache(scratch).folder == scratch / "arrays"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")
def test_a_folder_on_another_file_system_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard links cannot reach it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setenv(VARIABLE, folder)
        assert open_cache(tmp_path).folder == tmp_path / "arrays"
        assert open_cache(Path(folder)).folder == Path(folder)


def test_without_a_variable_the_user_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is `~/.cache`, or what `XDG_CACHE_HOME` names."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache(tmp_path).folder == tmp_path / ".cache/kaggle-training"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_cache(tmp_path).folder == tmp_path / "xdg/kaggle-training"
