"""Claims on the three kinds of DVC remote: the contract with the transaction, through DVC's own clients.

Drive is an emulator and S3 is moto's server, both reached over HTTP on loopback. Every test stores different content,
so that tests may share the stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
import s3_emulator
from conftest import run_git
from drive_emulator import DriveEmulator
from publications import assert_no_secret, drive_client, object_name
from s3_emulator import S3Emulator

from lib.errors import DvcPushError
from lib.process import SILENCE
from lib.sync.intent import StoredObject
from lib.sync.stores import gdrive as drive_module
from lib.sync.stores import s3 as s3_module
from lib.sync.stores.base import Objects, StoredCopy, damaged, open_objects
from lib.sync.stores.s3 import S3Objects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

_SEEDS = count()


@dataclass(frozen=True)
class Blob:
    """An object to store: its name, and the file with its content."""

    oid: str
    path: Path

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.path.stat().st_size

    @property
    def key(self) -> str:
        """Return the path on a remote."""
        return object_name(self.oid)


@dataclass(frozen=True)
class Backend:
    """One kind of store, with a clone that uses it as its DVC remote."""

    kind: str
    clone: Path
    keeps_twins: bool
    cut_uploads: Callable[[], contextlib.AbstractContextManager[object]]
    """Returns a context in which every upload breaks in the middle."""
    leave_remains: Callable[[Objects, Blob], object]
    """Creates the remains of a machine that died during an upload for the intent `dead`."""
    has_remains: Callable[[Blob], bool]
    """Returns whether there are such remains."""
    opened: list[Objects] = field(default_factory=list)


@contextlib.contextmanager
def opened(clone: Path) -> Iterator[Any]:
    """Open a clone's DVC remote as a new process would."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        store = open_objects(repo)
        try:
            yield store
        finally:
            store.close()


@pytest.fixture(scope="module")
def drive() -> Iterator[DriveEmulator]:
    """Yield one Drive for all tests that do not change its settings."""
    with DriveEmulator() as drive, drive_client(drive):
        yield drive


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Emulator]:
    """Yield an S3 server."""
    with S3Emulator() as s3:
        yield s3


def new_clone(folder: Path) -> Path:
    """Return a new repository that DVC can open."""
    folder.mkdir()
    run_git("init", "--quiet", folder, cwd=folder)
    (folder / ".dvc").mkdir()
    return folder


@contextlib.contextmanager
def faulty(emulator: Any, match: str, kind: str, times: int = 100) -> Iterator[None]:
    """Break matching requests within the block."""
    emulator.add_fault(match, kind, times)
    try:
        yield
    finally:
        emulator.clear_faults()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Make every fsync fail, as on a full disk."""

    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def folder_backend(folder: Path) -> Backend:
    """Return a folder as DVC remote."""
    clone, storage = new_clone(folder / "clone"), folder / "storage"
    (clone / ".dvc" / "config").write_text(
        f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {storage}\n", encoding="utf-8"
    )

    def leave(store: Any, blob: Blob) -> None:
        part = store._part(blob.oid, "dead")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")

    return Backend(
        "folder",
        clone,
        keeps_twins=False,
        cut_uploads=full_disk,
        leave_remains=leave,
        has_remains=lambda blob: len(list((storage / blob.key).parent.glob(f".{blob.oid[2:]}*"))) > 0,
    )


def drive_backend(folder: Path, drive: DriveEmulator) -> Backend:
    """Return a Drive as DVC remote."""
    clone = new_clone(folder / "clone")
    drive_emulator.configure_clone(clone, drive, folder)
    return Backend(
        "drive",
        clone,
        keeps_twins=True,
        cut_uploads=lambda: faulty(drive, "^PUT /upload", "cut body"),
        leave_remains=lambda _store, _blob: None,
        has_remains=lambda _blob: False,
    )


def s3_backend(folder: Path, s3: S3Emulator, *, versions: bool) -> Backend:
    """Return a bucket as DVC remote; its remains are those of an upload in parts."""
    clone, bucket = new_clone(folder / "clone"), "versions" if versions else "plain"
    s3.make_bucket(bucket, versions=versions)
    s3.configure_clone(clone, bucket)

    def leave(store: Objects, blob: Blob) -> None:
        with pytest.MonkeyPatch.context() as patch, faulty(s3, "partNumber|^DELETE", "denied"):
            patch.setattr(s3_module, "WHOLE", 0)
            with pytest.raises(DvcPushError):
                store.upload(blob.oid, blob.path, "dead", int)

    return Backend(
        bucket,
        clone,
        keeps_twins=versions,
        cut_uploads=lambda: faulty(s3, "^PUT ", "cut body"),
        leave_remains=leave,
        has_remains=lambda blob: any(blob.key in key for key in (*s3.remains(bucket), *s3.files(bucket))),
    )


@pytest.fixture(scope="module", params=["folder", "drive", "s3", "s3 with versions"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Yield each kind of store with two clients, as two machines have them."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    if request.param == "folder":
        backend = folder_backend(folder)
    elif request.param == "drive":
        backend = drive_backend(folder, request.getfixturevalue("drive"))
    else:
        backend = s3_backend(folder, request.getfixturevalue("s3"), versions="versions" in request.param)
    with opened(backend.clone) as one, opened(backend.clone) as two:
        backend.opened.extend((one, two))
        yield backend


@pytest.fixture
def store(backend: Backend) -> Objects:
    """Return this machine's client."""
    return backend.opened[0]


@pytest.fixture
def other(backend: Backend) -> Objects:
    """Return another machine's client."""
    return backend.opened[1]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Blob]:
    """Return a function that creates an object with new content."""

    def make(size: int = 2000, *, listing: bool = False, prefix: str = "") -> Blob:
        chance = random.Random(next(_SEEDS))
        while True:
            content = chance.randbytes(size)
            oid = hashlib.md5(content).hexdigest()
            if oid.startswith(prefix):
                break
        path = tmp_path / oid
        path.write_bytes(content)
        return Blob(oid + (".dir" if listing else ""), path)

    return make


def send(store: Objects, blob: Blob) -> None:
    """Upload an object."""
    store.upload(blob.oid, blob.path, "label", int)


def look(store: Objects, blob: Blob) -> dict[str, StoredCopy]:
    """Return the stored copies of one object."""
    return store.look([blob.oid]).get(blob.oid, {})


class TestContract:
    """The contract of every kind of store."""

    def test_an_object_that_was_not_stored_is_not_found(self, store: Objects, make: Callable[..., Blob]) -> None:
        """It has no entry, and looking for no object returns nothing."""
        assert store.look([make().oid]) == {}
        assert store.look([]) == {}

    def test_an_upload_makes_one_copy_of_the_right_size_and_content(
        self, store: Objects, make: Callable[..., Blob]
    ) -> None:
        """The store reports the size and, if it reports an MD5, that of the content."""
        blob = make()
        send(store, blob)
        (copy,) = look(store, blob).values()
        assert copy.size == blob.size
        assert copy.md5 in (None, blob.oid)
        assert damaged(StoredObject(blob.oid, blob.size), look(store, blob)) is None

    def test_progress_adds_up_to_the_size(self, store: Objects, make: Callable[..., Blob]) -> None:
        """Every byte is reported once."""
        blob, counts = make(300_000), [0]
        store.upload(blob.oid, blob.path, "label", counts.append)
        assert sum(counts) == blob.size

    def test_storing_it_again_makes_another_identity(
        self, backend: Backend, store: Objects, make: Callable[..., Blob]
    ) -> None:
        """The first copy stays if the store keeps twins, and is replaced otherwise."""
        blob = make()
        send(store, blob)
        first = set(look(store, blob))
        send(store, blob)
        both = set(look(store, blob))
        assert both - first
        assert (first <= both) is backend.keeps_twins

    def test_deleting_one_identity_leaves_the_other_copy(self, store: Objects, make: Callable[..., Blob]) -> None:
        """The second copy stays: it is a twin of the first, or has replaced it."""
        blob = make()
        send(store, blob)
        (first,) = look(store, blob)
        send(store, blob)
        rest = {identity: copy for identity, copy in look(store, blob).items() if identity != first}
        store.delete(blob.oid, first)
        assert look(store, blob) == rest

    def test_deleting_every_copy_leaves_nothing(self, store: Objects, make: Callable[..., Blob]) -> None:
        """The path is empty afterwards, and the object can be stored again."""
        blob = make()
        for _ in range(2):
            send(store, blob)
        for identity in look(store, blob):
            store.delete(blob.oid, identity)
        assert look(store, blob) == {}
        send(store, blob)
        assert len(look(store, blob)) == 1

    def test_deleting_twice_is_not_an_error(self, store: Objects, other: Objects, make: Callable[..., Blob]) -> None:
        """The same machine or another one may repeat a deletion."""
        blob = make()
        send(store, blob)
        (identity,) = look(store, blob)
        for client in (store, store, other):
            client.delete(blob.oid, identity)
        assert look(store, blob) == {}

    def test_an_interrupted_upload_is_never_visible(
        self, backend: Backend, store: Objects, other: Objects, make: Callable[..., Blob]
    ) -> None:
        """Neither this machine nor another one finds it, and uploading again works."""
        blob = make(400_000)
        with backend.cut_uploads(), pytest.raises((DvcPushError, OSError)):
            send(store, blob)
        assert look(store, blob) == look(other, blob) == {}
        assert not backend.has_remains(blob)
        send(store, blob)
        assert len(look(other, blob)) == 1

    def test_discard_deletes_the_remains_of_a_dead_machine(
        self, backend: Backend, store: Objects, other: Objects, make: Callable[..., Blob]
    ) -> None:
        """It deletes those of one intent, from any machine, and may be repeated."""
        blob = make()
        backend.leave_remains(store, blob)
        assert backend.has_remains(blob) is (backend.kind != "drive")
        other.discard(blob.oid, "alive")
        assert backend.has_remains(blob) is (backend.kind != "drive")
        for _ in range(2):
            other.discard(blob.oid, "dead")
        assert not backend.has_remains(blob)

    def test_a_look_finds_what_another_machine_has_changed_since_the_last_one(
        self, store: Objects, other: Objects, make: Callable[..., Blob]
    ) -> None:
        """No cache is used, neither for a missing object nor for a stored one."""
        blob = make()
        assert look(store, blob) == {}
        send(other, blob)
        (identity,) = look(store, blob)
        other.delete(blob.oid, identity)
        assert look(store, blob) == {}

    def test_many_objects_are_distinguished(self, store: Objects, make: Callable[..., Blob]) -> None:
        """Files and directory listings are uploaded concurrently; some are stored and some are not."""
        there = [make(100 + number, listing=number % 5 == 0) for number in range(30)]
        missing = [make(100) for _ in range(10)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda blob: send(store, blob), there))
        found = store.look([blob.oid for blob in (*missing, *there)])
        assert {oid: [copy.size for copy in copies.values()] for oid, copies in found.items()} == {
            blob.oid: [blob.size] for blob in there
        }

    def test_a_survey_returns_every_object_and_nothing_else(self, store: Objects, make: Callable[..., Blob]) -> None:
        """Files and listings have the names that `look` takes, their sizes and the MD5 of their content."""
        before = store.survey()
        there = [make(100 + number, listing=number == 2) for number in range(4)]
        for blob in there:
            send(store, blob)
        after = store.survey()
        assert {oid: after.pop(oid) for oid in [blob.oid for blob in there]} == {
            blob.oid: [StoredCopy(blob.size, blob.oid.removesuffix(".dir"))] for blob in there
        }
        assert after == before

    def test_dvc_itself_reads_what_was_stored(
        self, backend: Backend, store: Objects, make: Callable[..., Blob]
    ) -> None:
        """The object is where DVC looks for it, byte for byte."""
        from dvc.repo import Repo

        blob = make()
        send(store, blob)
        with Repo(str(backend.clone)) as repo:
            odb = repo.cloud.get_remote_odb()
            target = blob.path.with_suffix(".read")
            odb.fs.get_file(odb.oid_to_path(blob.oid), str(target))
        assert target.read_bytes() == blob.path.read_bytes()


# ── Drive ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def lone_drive() -> Iterator[DriveEmulator]:
    """Yield a Drive that only these tests use, one after the other."""
    with DriveEmulator() as drive:
        yield drive


@pytest.fixture(scope="module")
def drive_repo(lone_drive: DriveEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield the repository that uses this Drive."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("lone")
    clone = new_clone(folder / "clone")
    drive_emulator.configure_clone(clone, lone_drive, folder)
    with Repo(str(clone)) as repo:
        yield repo


@pytest.fixture
def own_drive(lone_drive: DriveEmulator) -> Iterator[DriveEmulator]:
    """Yield a Drive for one test: empty, without faults."""
    lone_drive.reset()
    with drive_client(lone_drive):
        yield lone_drive


@pytest.fixture
def on_drive(own_drive: DriveEmulator, drive_repo: Any) -> Iterator[Objects]:
    """Yield a client of that Drive."""
    clone = Path(drive_repo.root_dir)
    drive_emulator.configure_clone(clone, own_drive, clone.parent)  # an earlier test may have renewed the token
    store = open_objects(drive_repo)
    yield store
    store.close()


class TestDrive:
    """Claims on Drive alone."""

    def test_objects_in_twin_folders_are_all_found(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """Another machine has created twins of each folder on the path after the first look."""
        blob = make()
        send(on_drive, blob)
        (first,) = look(on_drive, blob)
        ids = {first}
        for path in ("files", "files/md5", f"files/md5/{blob.oid[:2]}"):
            here, rest = own_drive.make_folder(path, twin=True), blob.key.removeprefix(f"{path}/")
            for title in rest.split("/")[:-1]:
                with own_drive._lock:
                    here = own_drive._add(
                        {"title": title, "parents": [{"id": here}], "mimeType": drive_emulator.FOLDER}, b""
                    ).id
            ids.add(own_drive.put(blob.key, blob.path.read_bytes(), folder=here))
        assert set(look(on_drive, blob)) == ids
        on_drive.delete(blob.oid, first)
        assert set(look(on_drive, blob)) == ids - {first}

    def test_files_in_the_trash_are_not_found(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """Neither a file in the trash nor one in a trashed folder counts; the next upload creates the folder again."""
        blob, twin = make(), make(prefix="a")
        for item in (blob, twin):
            send(on_drive, item)
        (identity,) = look(on_drive, blob)
        own_drive.trash(identity)
        own_drive.trash(own_drive.folders()[twin.key.rpartition("/")[0]][0])
        assert on_drive.look([blob.oid, twin.oid]) == {}
        send(on_drive, twin)
        assert len(look(on_drive, twin)) == 1

    def test_every_page_of_a_listing_is_read(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """Folders and files may each need several pages."""
        blobs = [make(prefix=prefix) for prefix in ("1", "1", "1", "2", "3", "4")]
        for blob in blobs:
            send(on_drive, blob)
        own_drive.largest_page = 1
        assert set(on_drive.look([blob.oid for blob in blobs])) == {blob.oid for blob in blobs}

    def test_titles_that_differ_in_case_are_different(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """Drive's search finds `FILES` for `files`."""
        blob = make(prefix="a")
        own_drive.put(blob.key.upper(), b"another")
        folder, _, title = blob.key.rpartition("/")
        own_drive.put(f"{folder.replace('a', 'A')}/{title}", b"another")
        own_drive.put(f"{folder}/{title.upper()}", b"another")
        assert look(on_drive, blob) == {}
        send(on_drive, blob)
        assert blob.key in own_drive.files()

    def test_a_look_costs_one_listing_for_each_folder_and_three_more(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """The number of objects does not matter; an upload after it costs no listing."""
        blobs = [make(prefix=prefix) for prefix in "11112222"]
        for blob in blobs:
            send(on_drive, blob)
        folders = {blob.oid[:2] for blob in blobs}
        before = own_drive.count("^GET")
        on_drive.look([blob.oid for blob in blobs])
        assert own_drive.count("^GET") - before == len(folders) + 3
        assert own_drive.count(r" in parents or ") == 0
        send(on_drive, blobs[0])
        assert own_drive.count("^GET") - before == len(folders) + 3

    def test_an_upload_whose_answer_is_lost_is_found_complete(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """The session reports a complete file: there is one copy, no twin and no error."""
        blob = make()
        own_drive.add_fault("^PUT /upload", "lost answer", 2)
        send(on_drive, blob)
        assert len(own_drive.files()[blob.key]) == len(look(on_drive, blob)) == 1

    def test_an_upload_that_never_gets_an_answer_is_an_error_and_may_be_stored(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """After an error the copy may be there, and a look finds it."""
        blob = make()
        with faulty(own_drive, "^PUT /upload", "lost answer"), pytest.raises(DvcPushError, match="connection"):
            send(on_drive, blob)
        assert len(look(on_drive, blob)) == 1

    def test_a_lost_answer_to_a_new_folder_leaves_twins_that_work(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """The client repeats the request, and Drive creates two folders; objects are found in both."""
        blob = make()
        own_drive.add_fault("^POST /drive/v2/files", "lost answer", 6)
        send(on_drive, blob)
        assert max(len(ids) for ids in own_drive.folders().values()) > 1
        assert len(look(on_drive, blob)) == 1
        send(on_drive, blob)
        assert len(look(on_drive, blob)) == 2

    def test_an_interrupted_upload_of_a_large_file_is_resumed(
        self,
        own_drive: DriveEmulator,
        on_drive: Objects,
        make: Callable[..., Blob],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Pieces that have arrived are not sent again, and every byte is reported once."""
        monkeypatch.setattr(drive_module, "PIECE", drive_emulator.STEP)
        blob, counts = make(4 * drive_emulator.STEP + 1), [0]
        own_drive.add_fault(r"^PUT .*\[bytes 524288-", "cut body", 2)
        on_drive.upload(blob.oid, blob.path, "label", counts.append)
        assert own_drive.files()[blob.key][0][1] == blob.path.read_bytes()
        assert own_drive.count(r"\[bytes 0-") == own_drive.count(r"\[bytes 262144-") == 1
        assert sum(counts) == blob.size

    def test_a_token_that_expires_during_uploads_is_renewed(
        self,
        own_drive: DriveEmulator,
        on_drive: Objects,
        make: Callable[..., Blob],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """This works in four threads at once; all bytes of the refused piece are sent again."""
        monkeypatch.setattr(drive_module, "PIECE", drive_emulator.STEP)
        blobs = [make(3 * drive_emulator.STEP) for _ in range(4)]
        ended = iter([own_drive.expire])

        def progress(_count: int) -> None:
            next(ended, lambda: None)()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda blob: on_drive.upload(blob.oid, blob.path, "label", progress), blobs))
        files = own_drive.files()
        assert [files[blob.key][0][1] for blob in blobs] == [blob.path.read_bytes() for blob in blobs]
        assert own_drive.count("^POST /token") > 0

    @pytest.mark.parametrize("kind", ["rate limit", "too many", "unavailable", "cut", "cut answer", "lost answer"])
    def test_a_request_is_repeated_after_a_transient_error(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob], kind: drive_emulator.Kind
    ) -> None:
        """This holds for every kind of request: listing, creating folders, starting and sending an upload, deleting."""
        blob = make()
        for match in ("^GET .*in parents", "^POST /drive", "^POST /upload", "^PUT", "^DELETE"):
            own_drive.add_fault(match, kind, 2)
        send(on_drive, blob)
        assert len(own_drive.files()[blob.key]) == 1
        (identity,) = look(on_drive, blob)
        on_drive.delete(blob.oid, identity)
        assert own_drive.files() == {}

    @pytest.mark.parametrize(
        ("kind", "match", "remedy"),
        [
            ("quota", "quota", "free space"),
            ("rate limit", "userRateLimitExceeded", "rate limit"),
            ("too many", "429", "rate limit"),
            ("forbidden", "insufficientFilePermissions", "share it as Editor"),
            ("unavailable", "503", "wait some minutes"),
            ("cut", "connection", "internet"),
        ],
    )
    def test_a_persistent_error_names_its_remedy(
        self,
        own_drive: DriveEmulator,
        on_drive: Objects,
        make: Callable[..., Blob],
        kind: drive_emulator.Kind,
        match: str,
        remedy: str,
    ) -> None:
        """The error contains no credential."""
        with faulty(own_drive, "^POST /upload", kind), pytest.raises(DvcPushError, match=match) as caught:
            send(on_drive, make())
        assert remedy in caught.value.remedy
        assert_no_secret(caught.value, drive_emulator.SECRETS)

    def test_the_free_space_is_that_of_the_account(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """It is the unused part of the quota; an account without a quota has no limit."""
        assert on_drive.room() is None
        send(on_drive, make(2000))
        own_drive.capacity = 5000
        assert on_drive.room() == 3000
        own_drive.capacity = 1000  # the quota was reduced meanwhile
        assert on_drive.room() == 0

    def test_an_upload_to_a_full_account_is_not_repeated(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """Waiting does not free any quota."""
        own_drive.capacity = 100
        with pytest.raises(DvcPushError, match="storageQuotaExceeded"):
            send(on_drive, make())
        assert own_drive.count("^POST /upload") == 1
        assert own_drive.files() == {}

    @pytest.mark.parametrize("expiry", ["2099-01-01T00:00:00Z", "2020-01-01T00:00:00Z"])
    def test_revoked_credentials_are_reported_when_the_remote_is_opened(
        self, own_drive: DriveEmulator, tmp_path: Path, expiry: str
    ) -> None:
        """The client knows by itself that the token has expired, or learns it from the refusal of a request."""
        clone = new_clone(tmp_path / "revoked")
        drive_emulator.configure_clone(clone, own_drive, tmp_path, token_expiry=expiry)
        own_drive.revoke()
        with pytest.raises(DvcPushError, match="invalid_grant") as caught, opened(clone):
            pass
        assert "GDRIVE_USER_CREDENTIALS" in caught.value.remedy
        assert "nothing was uploaded" in caught.value.state
        assert_no_secret(caught.value, drive_emulator.SECRETS)

    def test_credentials_that_are_revoked_later_are_reported(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """The refused request causes the same error and remedy."""
        own_drive.revoke()
        with pytest.raises(DvcPushError, match="invalid_grant") as caught:
            send(on_drive, make())
        assert "GDRIVE_USER_CREDENTIALS" in caught.value.remedy
        assert_no_secret(caught.value, drive_emulator.SECRETS)

    def test_a_folder_that_cannot_be_opened_is_reported_at_once(self, own_drive: DriveEmulator, tmp_path: Path) -> None:
        """The id is wrong, or the folder is not shared with the account."""
        clone = new_clone(tmp_path / "wrong")
        drive_emulator.configure_clone(clone, own_drive, tmp_path)
        config = clone / ".dvc" / "config"
        config.write_text(config.read_text(encoding="utf-8").replace(own_drive.root_id, "nowhere"), encoding="utf-8")
        with pytest.raises(DvcPushError, match="notFound") as caught, opened(clone):
            pass
        assert ".dvc/config" in caught.value.remedy

    def test_a_file_is_moved_to_the_trash_if_deleting_is_forbidden(
        self, own_drive: DriveEmulator, on_drive: Objects, make: Callable[..., Blob]
    ) -> None:
        """Most members of a shared drive may only trash files."""
        blob = make()
        send(on_drive, blob)
        (identity,) = look(on_drive, blob)
        own_drive.add_fault("^DELETE", "forbidden")
        on_drive.delete(blob.oid, identity)
        assert look(on_drive, blob) == {}
        assert own_drive.count("/trash") == 1

    def test_a_late_answer_is_not_mistaken_for_the_next_one(
        self,
        own_drive: DriveEmulator,
        on_drive: Objects,
        make: Callable[..., Blob],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """After a timeout the next request uses another connection."""
        blob = make()
        send(on_drive, blob)
        on_drive.close()
        monkeypatch.setattr(drive_module, "PAUSES", ())
        limit = socket.getdefaulttimeout()
        socket.setdefaulttimeout(0.5)
        try:
            own_drive.add_fault("title='md5'", "late")
            with pytest.raises(DvcPushError, match="timed out"):
                look(on_drive, blob)
        finally:
            socket.setdefaulttimeout(limit)
        assert len(look(on_drive, blob)) == 1

    @pytest.mark.usefixtures("on_drive")
    def test_a_silent_connection_times_out(self) -> None:
        """The client has no time limit, so that every socket of the process gets one."""
        assert socket.getdefaulttimeout() == SILENCE

    def test_a_piece_is_read_in_blocks_and_may_be_sent_again(self, make: Callable[..., Blob]) -> None:
        """Memory use does not depend on the size, and a second iteration starts at the beginning."""
        blob = make(10 * drive_module.BLOCK + 1)
        piece = drive_module._Piece(blob.path, 5, 9 * drive_module.BLOCK, int)
        wanted = blob.path.read_bytes()[5 : 5 + len(piece)]
        for _ in range(2):
            blocks = list(piece)
            assert b"".join(blocks) == wanted
            assert max(map(len, blocks)) <= drive_module.BLOCK


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_BUCKETS = count()


@dataclass(frozen=True)
class Bucket:
    """One test's bucket, with a client."""

    name: str
    s3: S3Emulator
    objects: S3Objects

    def key(self, blob: Blob) -> str:
        """Return an object's key in the bucket."""
        return f"dvc/{blob.key}"


@pytest.fixture
def bucket(request: pytest.FixtureRequest, s3: S3Emulator, tmp_path: Path) -> Iterator[Bucket]:
    """Yield an empty bucket; with the parameter True it keeps versions."""
    name, clone = f"bucket-{next(_BUCKETS)}", new_clone(tmp_path / "clone")
    s3.make_bucket(name, versions=getattr(request, "param", False))
    s3.configure_clone(clone, name)
    with opened(clone) as store:
        yield Bucket(name, s3, store)


with_versions = pytest.mark.parametrize("bucket", [True], indirect=True, ids=["versions"])


class TestS3:
    """Claims on S3 alone."""

    @with_versions
    def test_deleting_the_newest_version_restores_the_one_before(
        self, bucket: Bucket, make: Callable[..., Blob]
    ) -> None:
        """A reader gets the earlier version, and no delete marker hides it."""
        blob = make()
        bucket.s3.client().put_object(Bucket=bucket.name, Key=bucket.key(blob), Body=b"before")
        (before,) = look(bucket.objects, blob)
        send(bucket.objects, blob)
        (new,) = set(look(bucket.objects, blob)) - {before}
        bucket.objects.delete(blob.oid, new)
        assert set(look(bucket.objects, blob)) == {before}
        assert bucket.s3.files(bucket.name) == {bucket.key(blob): b"before"}

    @with_versions
    def test_a_version_under_a_delete_marker_is_not_found_and_not_deleted(
        self, bucket: Bucket, make: Callable[..., Blob]
    ) -> None:
        """DVC deletes this way: a look finds only the upload, and its rollback changes no older version."""
        blob, client = make(), bucket.s3.client()
        hidden = client.put_object(Bucket=bucket.name, Key=bucket.key(blob), Body=b"hidden")["VersionId"]
        client.delete_object(Bucket=bucket.name, Key=bucket.key(blob))
        assert look(bucket.objects, blob) == {}
        send(bucket.objects, blob)
        (new,) = look(bucket.objects, blob)
        bucket.objects.delete(blob.oid, new)
        assert look(bucket.objects, blob) == {}
        left = client.list_object_versions(Bucket=bucket.name)["Versions"]
        assert [version["VersionId"] for version in left] == [hidden]

    @with_versions
    def test_the_newest_version_is_found_if_versions_may_not_be_listed(
        self, bucket: Bucket, make: Callable[..., Blob]
    ) -> None:
        """Keys with only read and write permission are enough."""
        blob = make()
        for _ in range(2):
            send(bucket.objects, blob)
        with faulty(bucket.s3, r"^GET .*versions", "denied"):
            assert len(look(bucket.objects, blob)) == 1
        assert len(look(bucket.objects, blob)) == 2

    @with_versions
    def test_the_note_of_an_upload_in_parts_leaves_no_versions(
        self, bucket: Bucket, make: Callable[..., Blob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bucket contains the object's version and nothing else, not even a delete marker."""
        monkeypatch.setattr(s3_module, "WHOLE", 0)
        send(bucket.objects, make())
        listed = bucket.s3.client().list_object_versions(Bucket=bucket.name)
        assert len(listed["Versions"]) == 1
        assert "DeleteMarkers" not in listed

    @pytest.mark.parametrize("bucket", [False, True], indirect=True, ids=["plain", "versions"])
    def test_a_version_older_than_versioning_is_one_identity(self, bucket: Bucket, make: Callable[..., Blob]) -> None:
        """A copy from before versioning has the same identity as the newest version and as an older one."""
        blob, client = make(), bucket.s3.client()
        send(bucket.objects, blob)
        before = set(look(bucket.objects, blob))
        client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
        send(bucket.objects, blob)
        after = set(look(bucket.objects, blob))
        assert before < after
        for identity in after - before:
            bucket.objects.delete(blob.oid, identity)
        assert set(look(bucket.objects, blob)) == before
        for identity in before:
            bucket.objects.delete(blob.oid, identity)
        assert look(bucket.objects, blob) == {}

    def test_a_large_file_is_sent_in_parts_and_its_md5_is_unknown(
        self, bucket: Bucket, make: Callable[..., Blob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The object is complete, and no part and no note is left."""
        monkeypatch.setattr(s3_module, "WHOLE", 2**20)
        monkeypatch.setattr(s3_module, "PART", 5 * 2**20)
        blob, counts = make(5 * 2**20 + 7), [0]
        bucket.objects.upload(blob.oid, blob.path, "label", counts.append)
        assert list(look(bucket.objects, blob).values()) == [StoredCopy(blob.size, None)]
        assert bucket.s3.files(bucket.name) == {bucket.key(blob): blob.path.read_bytes()}
        assert bucket.s3.remains(bucket.name) == []
        assert sum(counts) == blob.size

    @pytest.mark.parametrize("match", [r"partNumber=2", r"^POST .*uploadId", r"^PUT .*\.upload\?"])
    def test_an_interrupted_upload_in_parts_is_aborted(
        self, bucket: Bucket, make: Callable[..., Blob], monkeypatch: pytest.MonkeyPatch, match: str
    ) -> None:
        """Nothing is stored, visible or hidden, wherever the upload breaks."""
        monkeypatch.setattr(s3_module, "WHOLE", 2**20)
        monkeypatch.setattr(s3_module, "PART", 5 * 2**20)
        blob = make(5 * 2**20 + 7)
        with faulty(bucket.s3, match, "cut body"), pytest.raises(DvcPushError):
            send(bucket.objects, blob)
        assert bucket.s3.files(bucket.name) == {}
        assert bucket.s3.remains(bucket.name) == []

    def test_discard_leaves_another_publications_parts_alone(self, bucket: Bucket, make: Callable[..., Blob]) -> None:
        """Another publication is uploading parts of the same object."""
        blob, client = make(), bucket.s3.client()
        client.create_multipart_upload(Bucket=bucket.name, Key=bucket.key(blob))
        bucket.objects.discard(blob.oid, "label")
        assert bucket.s3.remains(bucket.name) == [bucket.key(blob)]

    def test_an_upload_that_is_cut_once_is_repeated_completely(self, bucket: Bucket, make: Callable[..., Blob]) -> None:
        """The client rewinds the file."""
        blob = make(400_000)
        bucket.s3.add_fault("^PUT", "cut body")
        send(bucket.objects, blob)
        assert bucket.s3.files(bucket.name) == {bucket.key(blob): blob.path.read_bytes()}

    def test_no_upload_is_repeated_from_the_middle_of_the_file(self, bucket: Bucket, make: Callable[..., Blob]) -> None:
        """The retry of s3fs would continue where the file stopped; only botocore's is used, which rewinds."""
        before = len(bucket.s3.requests)
        with faulty(bucket.s3, "^PUT", "cut body"), pytest.raises(DvcPushError, match="connection"):
            send(bucket.objects, make(400_000))
        assert bucket.s3.files(bucket.name) == {}
        assert sum(line.startswith("PUT") for line in bucket.s3.requests[before:]) <= 4

    def test_a_copy_whose_answer_is_lost_is_found(self, bucket: Bucket, make: Callable[..., Blob]) -> None:
        """After an error the copy may be there, and a look finds it."""
        blob = make()
        with faulty(bucket.s3, "^PUT", "lost answer"), pytest.raises(DvcPushError, match="connection"):
            send(bucket.objects, blob)
        assert len(look(bucket.objects, blob)) == 1

    def test_an_etag_of_a_key_service_is_not_an_md5(self, bucket: Bucket, make: Callable[..., Blob]) -> None:
        """Only the size of such a copy is known; the MD5 of a plain copy is known too."""
        blob, client = make(), bucket.s3.client()
        words = {"Bucket": bucket.name, "Key": bucket.key(blob), "Body": blob.path.read_bytes()}
        client.put_object(**words, ServerSideEncryption="aws:kms")
        assert list(look(bucket.objects, blob).values()) == [StoredCopy(blob.size, None)]
        client.put_object(**words)
        assert list(look(bucket.objects, blob).values()) == [StoredCopy(blob.size, blob.oid)]
        # a listing does not show which ETags come from a key service
        client.put_object(**{**words, "Body": bytes(blob.size)}, ServerSideEncryption="aws:kms")
        assert bucket.objects.survey() == {blob.oid: [StoredCopy(blob.size, None)]}

    def test_a_survey_makes_extra_requests_only_for_what_a_listing_does_not_show(
        self, bucket: Bucket, make: Callable[..., Blob]
    ) -> None:
        """The copy whose ETag is not its name costs a request, and is reported with other content."""
        right, wrong = make(), make()
        send(bucket.objects, right)
        other = bytes(wrong.size)
        bucket.s3.client().put_object(Bucket=bucket.name, Key=bucket.key(wrong), Body=other)
        before = bucket.s3.count("^HEAD")
        found = bucket.objects.survey()
        assert bucket.s3.count("^HEAD") - before == 1
        assert found == {
            right.oid: [StoredCopy(right.size, right.oid)],
            wrong.oid: [StoredCopy(wrong.size, hashlib.md5(other).hexdigest())],
        }

    @pytest.mark.parametrize(
        ("kind", "match", "remedy"),
        [
            ("denied", "AccessDenied", "let these keys"),
            ("full", "StorageFull", "free space"),
            ("cut body", "connection", "internet"),
        ],
    )
    def test_a_persistent_error_names_its_remedy(
        self, bucket: Bucket, make: Callable[..., Blob], kind: s3_emulator.Kind, match: str, remedy: str
    ) -> None:
        """The error contains no credential."""
        with faulty(bucket.s3, "^PUT", kind), pytest.raises(DvcPushError, match=match) as caught:
            send(bucket.objects, make())
        assert remedy in caught.value.remedy
        assert_no_secret(caught.value, s3_emulator.SECRETS)

    def test_a_missing_bucket_is_reported(self, s3: S3Emulator, tmp_path: Path, make: Callable[..., Blob]) -> None:
        """The first upload fails at the latest."""
        clone = new_clone(tmp_path / "clone")
        s3.configure_clone(clone, "nowhere")
        with opened(clone) as store, pytest.raises(DvcPushError, match="NoSuchBucket") as caught:
            send(store, make())
        assert ".dvc/config" in caught.value.remedy

    def test_missing_keys_are_reported(
        self, s3: S3Emulator, tmp_path: Path, make: Callable[..., Blob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The remedy contains the names of the variables."""
        for name in s3_emulator.KEYS:
            monkeypatch.delenv(name)
        clone = new_clone(tmp_path / "clone")
        s3.configure_clone(clone, "nowhere")
        with pytest.raises(DvcPushError, match="keys") as caught, opened(clone) as store:
            look(store, make())
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy
