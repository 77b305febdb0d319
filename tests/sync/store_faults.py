"""Drive and S3 for the fault suite: their content, seen from the store's side, and requests that fail.

One `DvcRemote` of `faults.py` for each emulator. Uploads to Drive are sent in pieces here, although the models are
small, so that they can break in the middle. With an `on_the_wire` fault the Nth call is the Nth HTTP request to the
store.

Cannot break what the emulators do not emulate: a store that answers from an older state, or two concurrent requests.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
from conftest import Stores, run_git
from drive_emulator import DriveEmulator
from faults import WIRE, Call, Copies, Decide, Died, DvcRemote, FaultInjector, Kind
from publications import drive_client
from s3_emulator import S3Emulator

from lib.sync.stores import gdrive as drive_module

BUCKET = "bucket"
PIECE = 2000  # bytes: a model of 5000 makes two whole pieces and a rest


class DriveRemote(DvcRemote):
    """The emulated Drive. A copy's file id is never used again; folders do not count as content."""

    def __init__(self, drive: DriveEmulator, stores: Stores) -> None:
        self._drive, self._credentials = drive, stores.folder / "credentials"
        self._kept: dict[str, Any] = {}

    def connect(self, clone: Path) -> None:
        """Configure the credentials, which are in no commit."""
        drive_emulator.configure_clone(clone, self._drive, self._credentials)

    def copies(self) -> Copies:
        """Return every file that is not in the trash, twins too."""
        return {path: dict(copies) for path, copies in self._drive.files().items()}

    def put(self, path: str, content: bytes) -> None:
        """Store one more file."""
        self._drive.put(path, content)

    def clear(self, *, cold: bool = False) -> None:  # noqa: ARG002
        """Delete everything except the root folder."""
        root = self._drive.root_id
        self._drive._items = {root: self._drive._items[root]}

    def keep(self) -> None:
        """Save a copy of the items."""
        self._kept = copy.deepcopy(self._drive._items)

    def restore(self) -> None:
        """Restore the items; uploads in progress are lost."""
        self._drive._items = copy.deepcopy(self._kept)
        self._drive._sessions.clear()

    def full_state(self) -> object:
        """Return every item, with twins, trash and folders, and the progress of each upload."""
        drive = self._drive
        items = [(drive._path(item), item.trashed, item.mime_type, item.md5) for item in drive._items.values()]
        uploads = [(str(each.body["title"]), each.size, bytes(each.data)) for each in drive._sessions.values()]
        return sorted(items), sorted(uploads)

    @contextlib.contextmanager
    def requests(self, decide: Decide, /) -> Iterator[None]:
        """Call `decide` for every request within the block."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._drive, "_take_fault", decide)
            yield


class _InOrder(ThreadPoolExecutor):
    """One job after the other, so that a number means the same request in each run."""

    def submit(self, *words: Any, **options: Any) -> Future[Any]:
        """Do the job and wait for it."""
        job = super().submit(*words, **options)
        wait([job])
        return job


class S3Remote(DvcRemote):
    """A bucket of moto's, read in memory: a request of the test's own would be counted among the others."""

    def __init__(self, s3: S3Emulator) -> None:
        self._s3 = s3
        self._kept: dict[str, list[Any]] = {}

    @property
    def _bucket(self) -> Any:
        from moto.s3.models import s3_backends

        return s3_backends["123456789012"]["aws"].buckets[BUCKET]

    def connect(self, clone: Path) -> None:
        """Do nothing: the address is committed, and the keys are in the environment."""

    def copies(self) -> Copies:
        """Return every version of every object, delete markers too."""
        keys = self._bucket.keys
        return {
            key.removeprefix("dvc/"): {_identity(item): getattr(item, "value", b"") for item in keys.getlist(key)}
            for key in list(keys)
        }

    def full_state(self) -> object:
        """Return every version of every object."""
        keys = self._bucket.keys
        return sorted(
            (key, [(type(item).__name__, getattr(item, "value", b"")) for item in keys.getlist(key)])
            for key in list(keys)
        )

    def put(self, path: str, content: bytes) -> None:
        """Store an object as another client would."""
        self._s3.client().put_object(Bucket=BUCKET, Key=f"dvc/{path}", Body=content)

    def clear(self, *, cold: bool = False) -> None:  # noqa: ARG002
        """Empty the bucket."""
        self._fill({})

    def keep(self) -> None:
        """Save a copy of the objects."""
        keys = self._bucket.keys
        self._kept = copy.deepcopy({key: keys.getlist(key) for key in list(keys)})

    def restore(self) -> None:
        """Restore the objects."""
        self._fill(copy.deepcopy(self._kept))

    def _fill(self, versions: dict[str, list[Any]]) -> None:
        keys = self._bucket.keys
        for key in list(keys):
            keys.pop(key)
        for key, items in versions.items():
            keys.setlist(key, items)

    @contextlib.contextmanager
    def requests(self, decide: Decide, /) -> Iterator[None]:
        """Call `decide` for every request within the block."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._s3, "_take_fault", decide)
            yield


def _identity(item: Any) -> str:
    """Return the mark of a version, or what tells a stranger's from others."""
    mark = next((value for name, value in getattr(item, "metadata", {}).items() if name.endswith("-copy")), "")
    return str(mark or f"{item.last_modified.isoformat()} {getattr(item, 'version_id', '')}")


@contextlib.contextmanager
def drive_remote(stores: Stores) -> Iterator[DvcRemote]:
    """Yield a Drive as the DVC remote of the clones of `stores`; uploads are sent in pieces."""
    with (
        pytest.MonkeyPatch.context() as patch,
        DriveEmulator() as drive,
        drive_client(drive, retries=2),
    ):
        patch.setattr(drive_module, "PIECE", PIECE)
        patch.setattr(drive_module, "ThreadPoolExecutor", _InOrder)
        patch.setattr(drive_emulator, "STEP", PIECE)
        remote = DriveRemote(drive, stores)
        remote.connect(stores.clone)
        _commit_the_address(stores)
        yield remote


@contextlib.contextmanager
def s3_remote(stores: Stores, *, versions: bool = False) -> Iterator[DvcRemote]:
    """Yield a bucket as the DVC remote of the clones of `stores`."""
    from botocore.loaders import create_loader

    async def no_sleep(*_: object) -> None:
        """Retry at once."""

    with pytest.MonkeyPatch.context() as patch, S3Emulator() as s3:
        patch.setattr("aiobotocore.endpoint.AioEndpoint._sleep", no_sleep)
        # the description of S3 is a large file, which every client would read again
        patch.setattr("botocore.session.create_loader", functools.cache(create_loader))
        s3.make_bucket(BUCKET, versions=versions)
        s3.configure_clone(stores.clone, BUCKET)
        _commit_the_address(stores)
        yield S3Remote(s3)


def _commit_the_address(stores: Stores) -> None:
    run_git("commit", "--quiet", "--all", "--message=the remote", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)


# ── the kinds of fault ────────────────────────────────────────────────────────────────────────────────────────────────


def _on_the_wire(name: str, fault: str, *, on: bool = False) -> Kind:
    """Return the kind that gives the Nth request, or all requests from then on, a fault of the emulators."""

    def later(_injector: FaultInjector, call: Call) -> Any:
        return fault if on and call.boundary == WIRE else call.act()

    return Kind(name, lambda _injector, _call: fault, later, on_the_wire=True)


def _dies_with(name: str, fault: str) -> Kind:
    """Return the kind that ends the process at a request: it gets no further answer and makes no further call."""

    def later(_injector: FaultInjector, call: Call) -> str:
        if call.boundary == WIRE:
            return "cut"
        raise Died

    return Kind(name, lambda _injector, _call: fault, later, on_the_wire=True)


BUSY = _on_the_wire("a request is answered 503", "unavailable")
BUSY_ON = _on_the_wire("requests are answered 503 from then on", "unavailable", on=True)
CUT = _on_the_wire("a request is cut", "cut")
CUT_MIDWAY = _on_the_wire("a request is cut midway", "cut body")
CUT_ON = _on_the_wire("requests are cut from then on", "cut", on=True)
NO_ANSWER = _on_the_wire("a request is done and its answer is lost", "lost answer")
NO_ANSWERS = _on_the_wire("requests are done and answers are lost from then on", "lost answer", on=True)
DENIED_ON_DRIVE = _on_the_wire("a request is denied", "quota")
DENIED_ON_S3 = _on_the_wire("a request is denied", "full")
DIES_BEFORE_A_REQUEST = _dies_with("dies before a request", "cut")
DIES_AFTER_A_REQUEST = _dies_with("dies after a request", "lost answer")
