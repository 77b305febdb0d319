"""Drive and S3 as the fault suite sees them: what they hold, from behind, and requests that break on their way.

A `Shelf` of `faults.py` for each emulator. An upload goes in pieces here, however small the models are, so that it has
a middle. `ON_THE_WIRE` are kinds of fault whose Nth call is the Nth HTTP request that reaches the store.

It cannot break what the emulators do not know: a store that answers from an older state, or two requests at once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
import s3_emulator
from conftest import WEIGHTS, Stores, run_git
from drive_emulator import DriveEmulator, client_pointed_at
from faults import (
    WIRE,
    Call,
    Copies,
    Decide,
    Died,
    Doors,
    Kind,
    Scenario,
    Shelf,
    Strike,
    creates_a_branch,
    is_push,
    md5_of,
    object_name,
    one_object_stood_there,
    publish,
)
from s3_emulator import S3Emulator

from lib.sync.stores import gdrive as drive_module
from lib.sync.stores import s3 as s3_module

BUCKET = "bucket"
PIECE = 2000  # bytes: of the 5000 of a model two whole pieces and a rest
ENDED = "is not ended"


class DriveShelf:
    """The emulated Drive. A copy's file id is never given out again; folders, which hold nothing, do not count."""

    survives_forks = False

    def __init__(self, drive: DriveEmulator, stores: Stores) -> None:
        self._drive, self._credentials = drive, stores.folder / "credentials"
        self._kept: dict[str, Any] = {}

    def connect(self, clone: Path) -> None:
        """Name the credentials, which are in no commit."""
        drive_emulator.configure_clone(clone, self._drive, self._credentials)

    def copies(self) -> Copies:
        """Give every file that is not in the trash, twins too."""
        return {path: dict(copies) for path, copies in self._drive.files().items()}

    def put(self, path: str, content: bytes) -> None:
        """Store one more file."""
        self._drive.put(path, content)

    def clear(self) -> None:
        """Leave the root folder."""
        root = self._drive.root_id
        self._drive._items = {root: self._drive._items[root]}

    def keep(self) -> None:
        """Copy the items."""
        self._kept = copy.deepcopy(self._drive._items)

    def put_back(self) -> None:
        """Copy them again; uploads under way are gone."""
        self._drive._items = copy.deepcopy(self._kept)
        self._drive._sessions.clear()

    def everything(self) -> object:
        """Return every item, twins, trash and folders too, and how far each upload has come."""
        drive = self._drive
        items = [(drive._path(item), item.trashed, item.mime_type, item.md5) for item in drive._items.values()]
        uploads = [(str(each.body["title"]), each.size, bytes(each.data)) for each in drive._sessions.values()]
        return sorted(items), sorted(uploads)

    def trash(self, path: str, *, away: bool) -> None:
        """Let the owner put what stands under a path into the trash, or take it out again."""
        for item in self._drive._items.values():
            if self._drive._path(item) == path:
                item.trashed = away

    @contextlib.contextmanager
    def requests(self, decide: Decide, /) -> Iterator[None]:
        """Let every request be decided upon."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._drive, "_take_fault", decide)
            yield


class S3Shelf:
    """A bucket of moto's, read where it lies: no request of ours may stand between those that are counted."""

    survives_forks = False

    def __init__(self, s3: S3Emulator) -> None:
        self._s3 = s3
        self._kept: tuple[dict[str, list[Any]], dict[str, Any]] = ({}, {})

    @property
    def _bucket(self) -> Any:
        from moto.s3.models import s3_backends

        return s3_backends["123456789012"]["aws"].buckets[BUCKET]

    def connect(self, clone: Path) -> None:
        """Its address is committed, and the keys are in the environment."""

    def copies(self) -> Copies:
        """Give every version of every object, delete markers too, and the parts of every upload that has not ended."""
        bucket = self._bucket
        found = {
            key.removeprefix("dvc/"): {
                f"{item.last_modified.isoformat()} {getattr(item, 'version_id', '')}": getattr(item, "value", b"")
                for item in bucket.keys.getlist(key)
            }
            for key in list(bucket.keys)
        }
        for name, upload in bucket.multiparts.items():
            # what has no part yet holds nothing, costs nothing, and can be seen by nobody who does not ask for it
            if upload.parts:
                found[f"{upload.key_name} {ENDED}"] = {name: b"".join(part.value for part in upload.parts.values())}
        return found

    def everything(self) -> object:
        """Return every version of every object and every upload that is not ended, without a part too."""
        bucket = self._bucket
        objects = {
            key: [(type(item).__name__, getattr(item, "value", b"")) for item in bucket.keys.getlist(key)]
            for key in list(bucket.keys)
        }
        uploads = [(each.key_name, [part.value for part in each.parts.values()]) for each in bucket.multiparts.values()]
        return sorted(objects.items()), sorted(uploads)

    def put(self, path: str, content: bytes) -> None:
        """Put an object as another client would."""
        self._s3.client().put_object(Bucket=BUCKET, Key=f"dvc/{path}", Body=content)

    def clear(self) -> None:
        """Leave an empty bucket."""
        self._fill({}, {})

    def keep(self) -> None:
        """Copy keys and uploads."""
        bucket = self._bucket
        versions = {key: bucket.keys.getlist(key) for key in list(bucket.keys)}
        self._kept = copy.deepcopy((versions, dict(bucket.multiparts)))

    def put_back(self) -> None:
        """Copy them again."""
        self._fill(*copy.deepcopy(self._kept))

    def _fill(self, versions: dict[str, list[Any]], uploads: dict[str, Any]) -> None:
        bucket = self._bucket
        for key in list(bucket.keys):
            bucket.keys.pop(key)
        for key, items in versions.items():
            bucket.keys.setlist(key, items)
        bucket.multiparts.clear()
        bucket.multiparts.update(uploads)

    @contextlib.contextmanager
    def requests(self, decide: Decide, /) -> Iterator[None]:
        """Let every request be decided upon."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._s3, "_take_fault", decide)
            yield


@contextlib.contextmanager
def drive_shelf(stores: Stores) -> Iterator[Shelf]:
    """Give a Drive that the clones of `stores` use, with uploads in pieces."""
    with (
        pytest.MonkeyPatch.context() as patch,
        DriveEmulator() as drive,
        client_pointed_at(drive),
    ):
        patch.setenv("GDRIVE_NON_INTERACTIVE", "1")
        patch.setattr(drive_module, "PAUSES", (0.0, 0.0))
        patch.setattr(drive_module, "PIECE", PIECE)
        patch.setattr(drive_emulator, "STEP", PIECE)
        shelf = DriveShelf(drive, stores)
        shelf.connect(stores.clone)
        _commit_the_address(stores)
        yield shelf


@contextlib.contextmanager
def s3_shelf(stores: Stores, *, versions: bool = False, parts: bool = True) -> Iterator[Shelf]:
    """Give a bucket that the clones of `stores` use; a model goes in parts, or in one request."""
    from botocore.loaders import create_loader
    from moto.s3 import models

    async def no_sleep(*_: object) -> None:
        """Try again at once."""

    with pytest.MonkeyPatch.context() as patch, S3Emulator() as s3:
        for name, value in s3_emulator.ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setattr("aiobotocore.endpoint.AioEndpoint._sleep", no_sleep)
        # the description of S3 is a large file, which every client would read again
        patch.setattr("botocore.session.create_loader", functools.cache(create_loader))
        if parts:
            patch.setattr(s3_module, "WHOLE", PIECE)
            patch.setattr(s3_module, "PART", PIECE)
            patch.setattr(models, "S3_UPLOAD_PART_MIN_SIZE", PIECE)
        s3.make_bucket(BUCKET, versions=versions)
        s3.configure_clone(stores.clone, BUCKET)
        _commit_the_address(stores)
        yield S3Shelf(s3)


def _commit_the_address(stores: Stores) -> None:
    run_git("commit", "--quiet", "--all", "--message=the remote", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)


# ── the kinds of fault ────────────────────────────────────────────────────────────────────────────────────────────────


def _on_the_wire(name: str, trouble: str, *, on: bool = False) -> Kind:
    """Give the kind in which the Nth request meets a kind of trouble of the emulators, or all do from then on."""

    def first(_doors: Doors, _call: Call) -> str:
        return trouble

    def later(_doors: Doors, call: Call) -> Any:
        return trouble if call.door == WIRE else call.act()

    return Kind(name, Strike(first, later if on else None), on_the_wire=True)


def _die_with(trouble: str) -> Strike:
    """Give the process's end at a request: its client hears nothing more, and gets to do nothing more."""

    def first(_doors: Doors, _call: Call) -> str:
        return trouble

    def later(_doors: Doors, call: Call) -> str:
        if call.door == WIRE:
            return "cut"
        raise Died

    return Strike(first, later)


BUSY = _on_the_wire("a request is answered 503", "unavailable")
BUSY_ON = _on_the_wire("requests are answered 503 from then on", "unavailable", on=True)
CUT = _on_the_wire("a request is cut", "cut")
CUT_MIDWAY = _on_the_wire("a request is cut midway", "cut body")
CUT_ON = _on_the_wire("requests are cut from then on", "cut", on=True)
NO_ANSWER = _on_the_wire("a request is done and its answer is lost", "lost answer")
NO_ANSWERS = _on_the_wire("requests are done and answers are lost from then on", "lost answer", on=True)
DENIED_ON_DRIVE = _on_the_wire("a request is denied", "quota")
DENIED_ON_S3 = _on_the_wire("a request is denied", "full")
DIES_BEFORE_A_REQUEST = Kind("dies before a request", _die_with("cut"), dies=True, on_the_wire=True)
DIES_AFTER_A_REQUEST = Kind("dies after a request", _die_with("lost answer"), dies=True, on_the_wire=True)


# ── scenarios ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def a_twin_was_left(stores: Stores, shelf: Shelf) -> None:
    """Let a run die that had stored an object again beside a stranger's copy, which lay in the trash for a while."""
    assert isinstance(shelf, DriveShelf)
    path = object_name(md5_of((stores.clone / WEIGHTS[0]).read_bytes()))
    one_object_stood_there(stores, shelf)
    dead = False

    def put_away(_doors: Doors, call: Call) -> Any:
        shelf.trash(path, away=True)
        return call.act()

    def take_out_and_die(_doors: Doors, call: Call) -> Any:
        nonlocal dead
        dead = dead or creates_a_branch(call)
        if dead:
            shelf.trash(path, away=False)
            raise Died
        return call.act()

    kind = Kind("…", Strike(put_away, take_out_and_die), is_push)  # the first declares what stood there before
    with pytest.raises(Died), Doors(kind, 1).installed():
        publish(stores.clone)
    assert len(shelf.copies()[path]) == 2


TWIN = Scenario("a twin was left", a_twin_was_left, recovers=True)
