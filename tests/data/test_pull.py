"""A dataset on Google Drive: what is requested, at which pace, and what is done about wrong and missing files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Stores
from drive_emulator import DriveEmulator, configure_clone, drive_client

from lib.data.pull import pull_objects
from lib.errors import RemoteError
from lib.remotes.credentials import Credentials
from lib.sync.stores import gdrive
from lib.sync.stores.places import find_missing

FILES = 60


@pytest.fixture
def drive() -> Iterator[DriveEmulator]:
    """Return a Drive, whose client in this process repeats a request up to six times, at once."""
    with DriveEmulator() as drive, drive_client(drive):
        yield drive


@pytest.fixture
def pull(drive: DriveEmulator, stores: Stores, tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Return a function that pulls a dataset of 60 files into an empty folder and returns their bytes by path."""
    folder = stores.clone / "data"
    (folder / "images").mkdir(parents=True)
    for number in range(FILES):
        (folder / f"images/{number}.bin").write_bytes(os.urandom(1000))
    (folder / "empty.txt").touch()
    (folder / "copy.bin").write_bytes((folder / "images/0.bin").read_bytes())
    subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "data"], cwd=stores.clone, check=True)
    cache = stores.clone / ".dvc/cache"
    for file in cache.rglob("*"):
        if file.is_file():
            drive.put(file.relative_to(cache).as_posix(), file.read_bytes())
    configure_clone(stores.clone, drive, tmp_path / "credentials")
    cache.rename(tmp_path / "their-cache")
    drive.requests.clear()

    def pull() -> dict[str, bytes]:
        pointers = {"data.dvc": (stores.clone / "data.dvc").read_text(encoding="utf-8")}
        place = pull_objects(stores.clone, tmp_path / "place", pointers, Credentials(), "Pulling") / "data"
        pulled = {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}
        assert pulled == {
            file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
        }
        return pulled

    return pull


def listing(drive: DriveEmulator) -> str:
    """Return the path of the dataset's listing on the Drive."""
    return next(path for path in drive.files() if path.endswith(".dir"))


def test_a_file_costs_one_request(drive: DriveEmulator, pull: Callable[[], dict[str, bytes]]) -> None:
    """Each folder of objects is listed once, each distinct file is downloaded once, and DVC asks for nothing."""
    assert len(pull()) == FILES + 2
    folders = {path.rpartition("/")[0] for path in drive.files()}
    assert drive.count("alt=media") == FILES + 2  # the listing, and no second copy of equal files
    assert len(drive.requests) <= FILES + 2 + len(folders) + 12


def test_the_pace_falls_to_the_limit_of_the_account(
    drive: DriveEmulator, pull: Callable[[], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's rate limit is met, and most requests are accepted at the first attempt."""
    monkeypatch.setattr(gdrive, "PAUSES", (0.1, 0.2, 0.4, 0.8, 1.6))
    drive.rate, drive.latency = 20, 0.3
    pull()
    assert 0 < drive.refused < len(drive.requests) / 4


def test_the_copy_with_the_right_md5_is_read(drive: DriveEmulator, pull: Callable[[], dict[str, bytes]]) -> None:
    """One path may hold several files; one that was damaged lies beside a right one."""
    for path in list(drive.files()):
        drive.put(path, b"damaged")
    pull()


def test_a_file_that_arrives_damaged_is_not_used(drive: DriveEmulator, pull: Callable[[], dict[str, bytes]]) -> None:
    """Drive reports the MD5 of what it has sent only in listings: what arrives is hashed again, and DVC fetches it."""
    drive.add_fault("alt=media", "damaged", times=3)
    pull()


@pytest.mark.usefixtures("pull")
def test_every_file_is_looked_for_by_one_request_a_folder(drive: DriveEmulator, stores: Stores) -> None:
    """Only the listing of the dataset is downloaded; a file that was never pushed is named."""
    path = next(path for path in drive.files() if not path.endswith(".dir"))
    pointers = {"data.dvc": (stores.clone / "data.dvc").read_text(encoding="utf-8")}
    folders = {path.rpartition("/")[0] for path in drive.files()}
    assert find_missing(stores.clone, pointers, str) == {}
    assert len(drive.requests) <= len(folders) + 16
    drive.trash(drive.files()[path][0][0])
    (missing,) = find_missing(stores.clone, pointers, str).values()
    assert missing.what.endswith(" is not on the DVC remote")
    assert missing.remedy.startswith("run `dvc push data`")
    for identity, _ in drive.files()[listing(drive)]:
        drive.trash(identity)
    (missing,) = find_missing(stores.clone, pointers, str).values()
    assert ".dir is not" in missing.what


@pytest.mark.usefixtures("pull")
def test_a_file_is_found_in_each_of_several_twin_folders(drive: DriveEmulator, stores: Stores) -> None:
    """Also in one that another machine has made since the last look, and if Drive refuses to answer for a moment."""
    pointers = {"data.dvc": (stores.clone / "data.dvc").read_text(encoding="utf-8")}
    drive.narrow = True
    assert find_missing(stores.clone, pointers, str) == {}
    taken = listing(drive).rpartition("/")[0]  # DVC itself reads the listing, by a search in all twins at once
    path = next(path for path in drive.files() if path.rpartition("/")[0] != taken)
    ((identity, content),) = drive.files()[path]
    drive.put(path, content, folder=drive.make_folder(path.rpartition("/")[0], twin=True))
    drive.trash(identity)
    drive.add_fault("fields=nextPageToken", "too many", 2)
    drive.add_fault("fields=nextPageToken", "cut", 2)
    assert find_missing(stores.clone, pointers, str) == {}


def test_a_full_disk_is_named(
    drive: DriveEmulator, pull: Callable[[], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC itself asks whether its cache is up to date."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for identity, _ in drive.files()[listing(drive)]:
        drive.trash(identity)
    with pytest.raises(RemoteError, match=r"0\.0 MiB are free in .*, and the files have \d") as caught:
        pull()
    assert "free some space, or name a folder on another disk" in caught.value.remedy


@pytest.mark.parametrize("lost", ["listing", "file"])
def test_a_missing_object_is_reported_by_dvc(
    drive: DriveEmulator, pull: Callable[[], dict[str, bytes]], lost: str, tmp_path: Path
) -> None:
    """Nothing is checked out; what has arrived stays in DVC's cache for the next attempt."""
    path = listing(drive) if lost == "listing" else next(path for path in drive.files() if not path.endswith(".dir"))
    for identity, _ in drive.files()[path]:
        drive.trash(identity)
    with pytest.raises(RemoteError, match=r"CheckoutError|failed to|missing"):
        pull()
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_listing_does_not_show_yet_is_fetched_by_dvc(
    drive: DriveEmulator, pull: Callable[[], dict[str, bytes]]
) -> None:
    """A title in another case, as Drive's search returns it too, is no copy; DVC finds the file that was added late."""
    path = next(path for path in drive.files() if not path.endswith(".dir"))
    ((identity, content),) = drive.files()[path]
    drive.trash(identity)
    drive.put(path.upper().replace("FILES/MD5", "files/md5"), b"other")
    drive.put(path, content)
    pull()
