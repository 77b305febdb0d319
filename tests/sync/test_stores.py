"""Claims on the three kinds of DVC remote: the contract with the transaction, through DVC's own clients.

Drive is an emulator and S3 is moto's server, both reached over HTTP on loopback. Every test stores different content,
so that tests may share the stores.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
import s3_emulator
from conftest import assert_no_secret, run_git
from drive_emulator import FOLDER, STEP, DriveEmulator, drive_client
from s3_emulator import S3Emulator

from lib.errors import DvcPushError
from lib.process import SILENCE
from lib.sync.stores import gdrive as drive_module
from lib.sync.stores import s3 as s3_module
from lib.sync.stores.base import FLAT, Store, StoredCopy, mismatch, open_store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

_SEEDS = count()


@dataclass(frozen=True)
class Blob:
    """A file to store: its path on a remote, and the file with its content."""

    oid: str
    path: Path
    key: str

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.path.stat().st_size

    @property
    def content(self) -> bytes:
        """Return the bytes to store."""
        return self.path.read_bytes()

    @property
    def md5(self) -> str:
        """Return the MD5 of the content."""
        return self.oid.removesuffix(".dir")


Make = Callable[..., Blob]


@dataclass(frozen=True)
class Backend:
    """One kind of store, with a clone that uses it as its DVC remote."""

    kind: str
    clone: Path
    cut_uploads: Callable[[], contextlib.AbstractContextManager[object]]
    """Returns a context in which every upload breaks in the middle."""
    leave_remains: Callable[[Store, Blob, str], object]
    """Creates the remains of a machine that died during `create` with this identity."""
    has_remains: Callable[[Blob], bool]
    """Returns whether there are such remains."""
    opened: list[Store] = field(default_factory=list)


@contextlib.contextmanager
def opened(clone: Path) -> Iterator[Any]:
    """Open a clone's DVC remote as a new process would."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        store = open_store(repo)
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
def failing(function: str, code: int) -> Iterator[None]:
    """Make a function of `os` fail with this error number."""

    def fail(*_words: object, **_more: object) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, function, fail)
        yield


def folder_backend(folder: Path) -> Backend:
    """Return a folder as DVC remote."""
    clone, storage = new_clone(folder / "clone"), folder / "storage"
    storage.mkdir()
    (clone / ".dvc" / "config").write_text(
        f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {storage}\n", encoding="utf-8"
    )

    def leave(_store: Store, blob: Blob, identity: str) -> None:
        part = storage / blob.key
        part.parent.mkdir(parents=True, exist_ok=True)
        part.with_name(f".{part.name}.{identity}.part").write_bytes(b"half")

    return Backend(
        "folder",
        clone,
        cut_uploads=lambda: failing("fsync", errno.ENOSPC),
        leave_remains=leave,
        has_remains=lambda blob: any(blob.path.name[2:] in path.name for path in storage.rglob(".*")),
    )


def drive_backend(folder: Path, drive: DriveEmulator) -> Backend:
    """Return a Drive as DVC remote."""
    clone = new_clone(folder / "clone")
    drive_emulator.configure_clone(clone, drive, folder)
    return Backend(
        "drive",
        clone,
        cut_uploads=lambda: faulty(drive, "^PUT /upload", "cut body"),
        leave_remains=lambda _store, _blob, _identity: None,
        has_remains=lambda _blob: False,
    )


def s3_backend(folder: Path, s3: S3Emulator, *, versions: bool) -> Backend:
    """Return a bucket as DVC remote; an upload is one request, which leaves nothing."""
    clone, bucket = new_clone(folder / "clone"), "versions" if versions else "plain"
    s3.make_bucket(bucket, versions=versions)
    s3.configure_clone(clone, bucket)

    return Backend(
        bucket,
        clone,
        cut_uploads=lambda: faulty(s3, "^PUT ", "cut body"),
        leave_remains=lambda _store, _blob, _identity: None,
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
def store(backend: Backend) -> Store:
    """Return this machine's client."""
    return backend.opened[0]


@pytest.fixture
def other(backend: Backend) -> Store:
    """Return another machine's client."""
    return backend.opened[1]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes new content: an object, or a flat file with a title of its own."""

    def make(size: int = 2000, *, listing: bool = False, prefix: str = "", flat: bool = False) -> Blob:
        chance = random.Random(next(_SEEDS))
        while True:
            content = chance.randbytes(size)
            md5 = hashlib.md5(content).hexdigest()
            if md5.startswith(prefix):
                break
        path, oid = tmp_path / md5, md5 + (".dir" if listing else "")
        path.write_bytes(content)
        return Blob(oid, path, f"{FLAT}test-{oid}.pt" if flat else f"files/md5/{oid[:2]}/{oid[2:]}")

    return make


def send(store: Store, blob: Blob, identity: str = "") -> StoredCopy:
    """Store one more copy, which no other prevents; return it."""
    copy = store.create(blob.key, blob.path, identity or store.new_identities(1)[0])
    assert copy is not None
    return copy


def stored(store: Store, blob: Blob) -> set[str]:
    """Return the identities that a listing shows under a path."""
    return {copy.identity for copy in store.find(blob.key)}


def store_with_dvc(clone: Path, blob: Blob) -> None:
    """Store the file as DVC itself does on another machine."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        odb = repo.cloud.get_remote_odb()
        odb.fs.put_file(str(blob.path), odb.oid_to_path(blob.oid))


class TestContract:
    """The contract of every kind of store."""

    def test_a_file_that_was_not_stored_is_not_found(self, store: Store, make: Make, tmp_path: Path) -> None:
        """It has no entry anywhere, cannot be read, and looking for no object returns nothing."""
        blob, (identity,) = make(), store.new_identities(1)
        assert store.find(blob.key) == []
        assert store.look([blob.oid]) == store.look([]) == store.flat(f"{FLAT}nothing") == {}
        assert store.verify(blob.key, identity) is None
        with pytest.raises(FileNotFoundError, match=re.escape(blob.key)):
            store.read(blob.key, identity, tmp_path / "read")

    def test_identities_are_never_the_same(self, store: Store, other: Store) -> None:
        """No two of several calls, threads and machines are equal."""
        with ThreadPoolExecutor(4) as pool:
            taken = pool.map(lambda number: (store, other)[number % 2].new_identities(40), range(6))
            assert len({identity for identities in taken for identity in identities}) == 240

    @pytest.mark.parametrize("flat", [False, True], ids=["object", "flat"])
    def test_a_created_copy_has_the_identity_size_and_content(self, store: Store, make: Make, flat: bool) -> None:
        """The answer to the upload, a listing, and the answer to the identity agree."""
        blob, (identity,) = make(flat=flat), store.new_identities(1)
        assert send(store, blob, identity) == StoredCopy(identity, blob.size, blob.md5)
        (listed,) = store.flat(blob.key)[blob.key] if flat else store.look([blob.oid])[blob.oid]
        assert store.verify(blob.key, identity) == listed == store.find(blob.key)[0]
        assert (listed.identity, listed.size) == (identity, blob.size)
        assert mismatch(blob.oid, blob.size, listed) is None

    def test_other_content_than_the_name_says_is_reported(self, store: Store, make: Make) -> None:
        """The file was changed after it was hashed: the answer has the MD5 of what was stored."""
        blob = make()
        blob.path.write_bytes(bytes(blob.size))
        copy = send(store, blob)
        assert copy.md5 == hashlib.md5(bytes(blob.size)).hexdigest()
        store.delete(blob.key, copy.identity)

    def test_a_copy_is_read_by_its_identity(self, store: Store, other: Store, make: Make, tmp_path: Path) -> None:
        """Another machine reads all bytes, which replace those of the file, and not those of another copy."""
        blob, target = make(300_000, flat=True), tmp_path / "read"
        target.write_bytes(b"before")
        other.read(blob.key, send(store, blob).identity, target)
        assert target.read_bytes() == blob.content
        with pytest.raises(FileNotFoundError):
            other.read(blob.key, store.new_identities(1)[0], target)

    def test_progress_adds_up_to_the_size(self, store: Store, make: Make) -> None:
        """Every byte of an upload is reported once."""
        blob, counts = make(300_000), [0]
        store.create(blob.key, blob.path, store.new_identities(1)[0], counts.append)
        assert sum(counts) == blob.size

    def test_creating_twice_with_one_identity_makes_one_copy(self, store: Store, other: Store, make: Make) -> None:
        """The second call, from any machine, returns the copy of the first."""
        blob, (identity,) = make(), store.new_identities(1)
        assert send(store, blob, identity) == send(store, blob, identity) == send(other, blob, identity)
        assert [copy.identity for copy in store.find(blob.key)] == [identity]

    def test_another_identity_makes_a_twin_or_nothing(self, store: Store, make: Make) -> None:
        """The first copy stays in either case; where paths hold one copy, the answer is None."""
        blob, (first, second) = make(), store.new_identities(2)
        send(store, blob, first)
        made = store.create(blob.key, blob.path, second)
        assert (made is not None) is store.keeps_twins
        assert stored(store, blob) == ({first, second} if store.keeps_twins else {first})
        store.delete(blob.key, second)
        assert stored(store, blob) == {first}

    def test_one_of_many_machines_creates_the_copy(self, store: Store, other: Store, make: Make) -> None:
        """Of eight at the same time exactly one is told that its copy is there; twins are all there."""
        blob, identities = make(), store.new_identities(8)

        def create(number: int) -> StoredCopy | None:
            return (store, other)[number % 2].create(blob.key, blob.path, identities[number])

        with ThreadPoolExecutor(8) as pool:
            made = {copy.identity for copy in pool.map(create, range(8)) if copy}
        assert stored(store, blob) == made
        assert len(made) == (8 if store.keeps_twins else 1)

    def test_a_strangers_copy_survives(self, backend: Backend, store: Store, make: Make) -> None:
        """DVC has stored the object before: it is not overwritten, and no deletion of ours removes it."""
        blob, (identity,) = make(), store.new_identities(1)
        store_with_dvc(backend.clone, blob)
        before = stored(store, blob)
        assert len(before) == 1
        store.create(blob.key, blob.path, identity)
        store.delete(blob.key, identity)
        assert stored(store, blob) == before

    def test_deleting_twice_is_not_an_error(self, store: Store, other: Store, make: Make) -> None:
        """The same machine or another one may repeat a deletion; afterwards the file can be stored again."""
        blob = make()
        identity = send(store, blob).identity
        for client in (store, store, other):
            client.delete(blob.key, identity)
        assert stored(store, blob) == set()
        assert store.verify(blob.key, identity) is None
        send(store, blob)
        assert len(stored(other, blob)) == 1

    def test_an_interrupted_create_is_never_visible(
        self, backend: Backend, store: Store, other: Store, make: Make
    ) -> None:
        """Neither this machine nor another one finds the copy, and the same call works later."""
        blob, (identity,) = make(400_000), store.new_identities(1)
        with backend.cut_uploads(), pytest.raises((DvcPushError, OSError)):
            store.create(blob.key, blob.path, identity)
        assert store.find(blob.key) == other.find(blob.key) == []
        assert not backend.has_remains(blob)
        assert send(store, blob, identity).identity == identity

    @pytest.mark.parametrize("flat", [False, True], ids=["object", "flat"])
    def test_the_remains_of_a_dead_machine_are_deleted_by_identity(
        self, backend: Backend, store: Store, other: Store, make: Make, flat: bool
    ) -> None:
        """Any machine may do so, several times; another identity's remains stay, and a flat file's are listed."""
        blob, (dead, alive) = make(flat=flat), store.new_identities(2)
        backend.leave_remains(store, blob, dead)
        leaves = backend.kind == "folder"
        assert backend.has_remains(blob) is leaves
        assert other.find(blob.key) == other.look([blob.oid]).get(blob.oid, []) == []
        listed = {name: [copy.identity for copy in copies] for name, copies in other.flat(blob.key).items()}
        assert listed == ({blob.key: [dead]} if flat and leaves else {})
        other.delete(blob.key, alive)
        assert backend.has_remains(blob) is leaves
        for _ in range(2):
            other.delete(blob.key, dead)
        assert not backend.has_remains(blob)
        assert other.flat(blob.key) == {}

    def test_a_create_after_a_death_leaves_no_remains(self, backend: Backend, store: Store, make: Make) -> None:
        """The call with the identity of the interrupted one completes it."""
        blob, (identity,) = make(), store.new_identities(1)
        backend.leave_remains(store, blob, identity)
        assert send(store, blob, identity).identity == identity
        store.delete(blob.key, identity)
        assert not backend.has_remains(blob)

    def test_a_look_finds_what_another_machine_has_changed_since_the_last_one(
        self, store: Store, other: Store, make: Make
    ) -> None:
        """No cache is used, neither for a missing object nor for a stored one."""
        blob = make()
        assert store.look([blob.oid]) == {}
        identity = send(other, blob).identity
        assert [copy.identity for copy in store.look([blob.oid])[blob.oid]] == [identity]
        other.delete(blob.key, identity)
        assert store.look([blob.oid]) == {}

    def test_many_objects_are_distinguished(self, store: Store, make: Make) -> None:
        """Files and directory listings are uploaded concurrently; some are stored and some are not."""
        there = [make(100 + number, listing=number % 5 == 0) for number in range(30)]
        missing = [make(100) for _ in range(10)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda blob: send(store, blob), there))
        found = store.look([blob.oid for blob in (*missing, *there)])
        assert {oid: [copy.size for copy in copies] for oid, copies in found.items()} == {
            blob.oid: [blob.size] for blob in there
        }

    def test_a_survey_returns_every_object_and_nothing_else(self, backend: Backend, store: Store, make: Make) -> None:
        """Files and listings have the names that `look` takes; flat files and remains are no objects."""
        before = store.survey()
        there = [make(100 + number, listing=number == 2) for number in range(4)]
        for blob in (*there, make(flat=True)):
            send(store, blob)
        backend.leave_remains(store, make(), store.new_identities(1)[0])
        after = store.survey()
        for blob in there:
            (copy,) = after.pop(blob.oid)
            assert (copy.size, copy.md5) == (blob.size, blob.md5)
            assert copy.identity in ("", *stored(store, blob))
        assert after == before

    def test_dvc_itself_reads_what_was_stored(self, backend: Backend, store: Store, make: Make) -> None:
        """The object is where DVC looks for it, byte for byte."""
        from dvc.repo import Repo

        blob = make()
        send(store, blob)
        with Repo(str(backend.clone)) as repo:
            odb = repo.cloud.get_remote_odb()
            assert odb.exists(blob.oid)
            target = blob.path.with_suffix(".read")
            odb.fs.get_file(odb.oid_to_path(blob.oid), str(target))
        assert target.read_bytes() == blob.content

    def test_dvc_leaves_flat_files_alone(self, backend: Backend, store: Store, make: Make) -> None:
        """`dvc gc` of the remote deletes the objects that nothing names, and no other file."""
        from dvc.repo import Repo

        flat, blob = make(flat=True), make()
        for each in (flat, blob):
            send(store, each)
        with Repo(str(backend.clone)) as repo:
            repo.gc(workspace=True, cloud=True, force=True)
        assert store.find(blob.key) == []
        assert len(store.find(flat.key)) == 1

    def test_an_address_names_one_store(self, backend: Backend, store: Store, tmp_path: Path) -> None:
        """It is the same for every clone, and another one for a folder in the same place."""
        clones = [shutil.copytree(backend.clone, tmp_path / name) for name in ("same", "elsewhere")]
        config = clones[1] / ".dvc" / "config"
        config.write_text(re.sub(r"(url = .*)", r"\1/elsewhere", config.read_text(encoding="utf-8")), encoding="utf-8")
        if (backend.clone.parent / "storage").is_dir():
            (backend.clone.parent / "storage/elsewhere").mkdir()
        with opened(clones[0]) as same, opened(clones[1]) as elsewhere:
            assert store.address() == same.address() != elsewhere.address()

    def test_a_good_store_has_no_limits(self, backend: Backend, store: Store) -> None:
        """The trial leaves nothing, and is made once."""
        before = store.flat(FLAT)
        assert store.limits("kaggle-training-probe") == ""
        assert store.flat(FLAT) == before
        with backend.cut_uploads():
            assert store.limits("kaggle-training-probe") == ""


# ── folder ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Backend]:
    """Yield an empty folder as DVC remote, with a client."""
    backend = folder_backend(tmp_path)
    with opened(backend.clone) as store:
        backend.opened.append(store)
        yield backend


class TestFolder:
    """Claims on folders alone."""

    def test_an_identity_survives_what_keeps_times(self, folder: Backend, make: Make, tmp_path: Path) -> None:
        """`dvc pull` and `dvc push` of the object, and a move of the whole folder with `cp -p`, keep it."""
        (store,), storage = folder.opened, tmp_path / "storage"
        blob = make()
        identity, address = send(store, blob).identity, store.address()
        pointer = folder.clone / "weights.pt.dvc"
        pointer.write_text(f"outs:\n- md5: {blob.md5}\n  size: {blob.size}\n  hash: md5\n  path: weights.pt\n")
        for command in ("pull", "push", "gc --cloud --workspace --force"):
            subprocess.run(["dvc", *command.split()], cwd=folder.clone, check=True, capture_output=True)
        assert (folder.clone / "weights.pt").read_bytes() == blob.content
        assert store.verify(blob.key, identity)
        subprocess.run(["cp", "-rp", storage, tmp_path / "copy"], check=True)
        shutil.rmtree(storage)
        (tmp_path / "copy").rename(storage)
        with opened(folder.clone) as moved:
            assert moved.verify(blob.key, identity)
            assert moved.address() == address
            moved.delete(blob.key, identity)
            assert moved.find(blob.key) == []

    def test_a_replaced_copy_is_another_one(self, folder: Backend, make: Make, tmp_path: Path) -> None:
        """A plain copy over the file has the present time: the deletion of the first identity leaves it."""
        (store,), blob = folder.opened, make()
        identity = send(store, blob).identity
        target = tmp_path / "storage" / blob.key
        target.unlink()
        shutil.copyfile(blob.path, target)
        assert store.verify(blob.key, identity) is None
        store.delete(blob.key, identity)
        assert target.exists()

    def test_without_hard_links_nothing_is_deleted(self, folder: Backend, make: Make) -> None:
        """The copy is stored with no identity of ours, a second one is refused, and the reason is reported."""
        (store,), blob, (first, second) = folder.opened, make(), folder.opened[0].new_identities(2)
        with failing("link", errno.EPERM):
            made = send(store, blob, first)
            assert made.identity not in (first, second)
            assert store.create(blob.key, blob.path, second) is None
            assert "hard links" in store.limits("kaggle-training-probe")
        for identity in (first, second):
            store.delete(blob.key, identity)
        assert store.find(blob.key) == [StoredCopy(made.identity, blob.size)]
        assert not folder.has_remains(blob)
        assert store.flat(FLAT) == {}

    def test_another_error_of_link_is_no_missing_feature(self, folder: Backend, make: Make) -> None:
        """A full disk is an error, and nothing is stored."""
        (store,), blob = folder.opened, make()
        with failing("link", errno.ENOSPC), pytest.raises(OSError, match="No space"):
            send(store, blob)
        assert store.find(blob.key) == []
        assert store.limits("kaggle-training-probe") == ""

    def test_a_folder_without_times_is_reported(self, folder: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        """The trial sees that the identity was not kept, and removes its file."""
        monkeypatch.setattr(os, "utime", lambda *_words: None)
        (store,) = folder.opened
        assert "modification times" in store.limits("kaggle-training-probe")
        assert store.flat(FLAT) == {}

    @pytest.mark.parametrize(("function", "code"), [("unlink", errno.EPERM), ("fsync", errno.ENOSPC)])
    def test_a_folder_that_refuses_the_trial_names_a_remedy(self, folder: Backend, function: str, code: int) -> None:
        """Whoever can store and not delete cannot roll back."""
        with failing(function, code), pytest.raises(DvcPushError, match="stored and deleted") as caught:
            folder.opened[0].limits("kaggle-training-probe")
        assert "let this account write" in caught.value.remedy

    def test_machines_that_name_a_folder_at_the_same_moment_agree(self, folder: Backend, tmp_path: Path) -> None:
        """The name is never half-written, and one wins."""
        (tmp_path / "storage" / f"{FLAT}store").unlink(missing_ok=True)
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
            stores = [stack.enter_context(opened(folder.clone)) for _ in range(8)]
            assert len({*pool.map(lambda store: store.address(), stores)}) == 1

    def test_remains_are_deleted_alone(self, folder: Backend, make: Make) -> None:
        """The copy that is visible stays; where a file is in its folder's place, there are none."""
        blob, store = make(), folder.opened[0]
        copy = send(store, blob)
        folder.leave_remains(store, blob, copy.identity)
        store.delete_part(blob.key, copy.identity)
        assert not folder.has_remains(blob)
        assert len(stored(store, blob)) == 1
        store.delete_part(f"{blob.key}/below", copy.identity)

    def test_the_part_of_a_name_that_a_killed_process_left_is_deleted(self, folder: Backend, tmp_path: Path) -> None:
        """No listing shows it, so that every process that closes the store deletes it."""
        name = folder.opened[0].address()
        part = tmp_path / "storage" / f".{FLAT}store.1009843200.part"
        part.write_text("", encoding="utf-8")
        with opened(folder.clone) as store:
            assert store.address() == name
        assert not part.exists()

    def test_the_free_space_is_that_of_the_disk(self, folder: Backend, tmp_path: Path) -> None:
        """The folder of the objects need not exist yet."""
        room = folder.opened[0].room()
        assert not (tmp_path / "storage/files").exists()
        assert room is not None
        assert 0 < room <= shutil.disk_usage(tmp_path).total


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
def on_drive(own_drive: DriveEmulator, drive_repo: Any) -> Iterator[Store]:
    """Yield a client of that Drive."""
    clone = Path(drive_repo.root_dir)
    drive_emulator.configure_clone(clone, own_drive, clone.parent)  # an earlier test may have renewed the token
    store = open_store(drive_repo)
    yield store
    store.close()


class TestDrive:
    """Claims on Drive alone."""

    def test_a_checkpoint_costs_six_requests(self, own_drive: DriveEmulator, on_drive: Store, make: Make) -> None:
        """Two uploads of two requests each, and two deletions; ids and folders are known from before."""
        old = [(blob, send(on_drive, blob)) for blob in (make(flat=True), make(flat=True))]
        before = len(own_drive.requests)
        for blob in (make(flat=True), make(flat=True)):
            send(on_drive, blob)
        for blob, copy in old:
            on_drive.delete(blob.key, copy.identity)
        assert len(own_drive.requests) - before == 6

    def test_one_request_makes_a_hundred_identities(self, own_drive: DriveEmulator, on_drive: Store) -> None:
        """They are used up before the next request."""
        taken = [identity for _ in range(50) for identity in on_drive.new_identities(2)]
        assert own_drive.count("generateIds") == 1
        assert len({*taken, *on_drive.new_identities(250)}) == 350
        assert own_drive.count("generateIds") == 4

    @pytest.mark.parametrize("answers", [2, 100], ids=["found complete", "error"])
    def test_a_lost_answer_makes_no_twin(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make, answers: int
    ) -> None:
        """The session reports a complete file, or the next call finds the id in use and asks for the copy."""
        blob, (identity,) = make(), on_drive.new_identities(1)
        failure = pytest.raises(DvcPushError, match="connection") if answers > 2 else contextlib.nullcontext()
        with faulty(own_drive, "^PUT /upload", "lost answer", answers), failure:
            send(on_drive, blob, identity)
        assert send(on_drive, blob, identity) == StoredCopy(identity, blob.size, blob.md5)
        assert own_drive.files() == {blob.key: [(identity, blob.content)]}

    def test_an_id_of_a_deleted_copy_is_an_error(self, on_drive: Store, make: Make) -> None:
        """Drive refuses the id, and no copy has it: the answer must not look like a stored copy."""
        blob = make()
        identity = send(on_drive, blob).identity
        on_drive.delete(blob.key, identity)
        with pytest.raises(DvcPushError, match="fileIdInUse"):
            send(on_drive, blob, identity)

    def test_a_copy_is_verified_while_listings_lag(self, own_drive: DriveEmulator, on_drive: Store, make: Make) -> None:
        """A listing shows neither the new copy nor that the old one is gone; the answers to their ids do."""
        old, new = make(flat=True), make(flat=True)
        first = send(on_drive, old).identity
        for _ in range(drive_emulator.LAG):
            on_drive.verify(old.key, first)
        own_drive.lag = True
        second = send(on_drive, new)
        on_drive.delete(old.key, first)
        assert (stored(on_drive, old), stored(on_drive, new)) == ({first}, set())
        assert on_drive.verify(old.key, first) is None
        assert on_drive.verify(new.key, second.identity) == second

    def test_objects_in_twin_folders_are_all_found(self, own_drive: DriveEmulator, on_drive: Store, make: Make) -> None:
        """Another machine has created twins of each folder on the path after the first look."""
        blob = make()
        first = send(on_drive, blob).identity
        ids = {first}
        for path in ("files", "files/md5", f"files/md5/{blob.oid[:2]}"):
            here, rest = own_drive.make_folder(path, twin=True), blob.key.removeprefix(f"{path}/")
            for title in rest.split("/")[:-1]:
                with own_drive._lock:
                    here = own_drive._add({"title": title, "parents": [{"id": here}], "mimeType": FOLDER}, b"").id
            ids.add(own_drive.put(blob.key, blob.content, folder=here))
        assert {copy.identity for copy in on_drive.look([blob.oid])[blob.oid]} == stored(on_drive, blob) == ids
        on_drive.delete(blob.key, first)
        assert stored(on_drive, blob) == ids - {first}

    def test_uploads_at_the_same_time_create_each_folder_once(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
    ) -> None:
        """Two into each of two folders that are not there yet, and neither are those above them."""
        own_drive.latency = 0.1
        blobs = [make(prefix=prefix) for prefix in ("11", "22", "11", "22")]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda blob: send(on_drive, blob), blobs))
        made = own_drive.folders()
        assert {path: len(ids) for path, ids in made.items()} == dict.fromkeys(
            ("files", "files/md5", "files/md5/11", "files/md5/22"), 1
        )

    def test_files_in_the_trash_are_not_found(self, own_drive: DriveEmulator, on_drive: Store, make: Make) -> None:
        """Neither a file in the trash nor one in a trashed folder counts; the next upload creates the folder again."""
        blob, twin = make(), make(prefix="a")
        first, second = (send(on_drive, item).identity for item in (blob, twin))
        own_drive.trash(first)
        own_drive.trash(own_drive.folders()[twin.key.rpartition("/")[0]][0])
        assert on_drive.verify(blob.key, first) is on_drive.verify(twin.key, second) is None
        assert on_drive.look([blob.oid, twin.oid]) == {}
        send(on_drive, twin)
        assert len(stored(on_drive, twin)) == 1

    def test_an_upload_into_a_folder_in_the_trash_is_an_error(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
    ) -> None:
        """The folder was known from before; the next upload creates another one."""
        blob = make(prefix="a")
        send(on_drive, blob)
        own_drive.trash(own_drive.folders()["files/md5"][0])
        with pytest.raises(DvcPushError, match="moved to the trash") as caught:
            send(on_drive, blob)
        assert "restore it" in caught.value.remedy
        send(on_drive, blob)
        assert len(stored(on_drive, blob)) == 1

    def test_a_root_folder_in_the_trash_is_reported(self, own_drive: DriveEmulator, drive_repo: Any) -> None:
        """Opening works, so that copies can be read and deleted; preflight asks for the limits."""
        own_drive.trash(own_drive.root_id)
        store = open_store(drive_repo)
        with pytest.raises(DvcPushError, match="in the trash") as caught:
            store.limits("kaggle-training-probe")
        assert "restore it" in caught.value.remedy
        store.close()

    def test_a_folder_that_was_deleted_meanwhile_is_created_again(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
    ) -> None:
        """Another machine has deleted what this one knew; other folders are found by their paths."""
        blob = make()
        send(on_drive, blob)
        with own_drive._lock:
            own_drive._remove(own_drive.folders()["files/md5"][0])
        send(on_drive, blob)
        assert len(own_drive.files()[blob.key]) == 1
        assert len(own_drive.folders()["files"]) == 1

    def test_every_page_of_a_listing_is_read(self, own_drive: DriveEmulator, on_drive: Store, make: Make) -> None:
        """Folders and files may each need several pages."""
        blobs = [make(prefix=prefix) for prefix in ("1", "1", "1", "2", "3", "4")]
        for blob in blobs:
            send(on_drive, blob)
        own_drive.largest_page = 1
        assert set(on_drive.look([blob.oid for blob in blobs])) == {blob.oid for blob in blobs}

    def test_titles_that_differ_in_case_are_different(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
    ) -> None:
        """Drive's search finds `FILES` for `files`."""
        blob = make(prefix="a")
        own_drive.put(blob.key.upper(), b"another")
        folder, _, title = blob.key.rpartition("/")
        own_drive.put(f"{folder.replace('a', 'A')}/{title}", b"another")
        own_drive.put(f"{folder}/{title.upper()}", b"another")
        assert on_drive.look([blob.oid]) == {}
        assert stored(on_drive, blob) == set()
        send(on_drive, blob)
        assert blob.key in own_drive.files()

    def test_a_look_costs_one_listing_for_each_folder_and_three_more(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
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

    def test_a_lost_answer_to_a_new_folder_leaves_twins_that_work(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
    ) -> None:
        """The client repeats the request, and Drive creates two folders; objects are found in both."""
        blob = make()
        own_drive.add_fault("^POST /drive/v2/files", "lost answer", 6)
        send(on_drive, blob)
        assert max(len(ids) for ids in own_drive.folders().values()) > 1
        assert len(stored(on_drive, blob)) == 1
        send(on_drive, blob)
        assert len(stored(on_drive, blob)) == 2

    def test_an_interrupted_upload_of_a_large_file_is_resumed(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pieces that have arrived are not sent again, and every byte is reported once."""
        monkeypatch.setattr(drive_module, "PIECE", STEP)
        blob, counts = make(4 * STEP + 1), [0]
        own_drive.add_fault(r"^PUT .*\[bytes 524288-", "cut body", 2)
        on_drive.create(blob.key, blob.path, on_drive.new_identities(1)[0], counts.append)
        assert own_drive.files()[blob.key][0][1] == blob.content
        assert own_drive.count(r"\[bytes 0-") == own_drive.count(r"\[bytes 262144-") == 1
        assert sum(counts) == blob.size

    @pytest.mark.parametrize("kind", ["unavailable", "cut", "cut answer"])
    def test_a_download_goes_on_after_a_transient_error(
        self,
        own_drive: DriveEmulator,
        on_drive: Store,
        make: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: drive_emulator.Kind,
    ) -> None:
        """A file of several pieces arrives whole."""
        monkeypatch.setattr(drive_module, "PIECE", STEP)
        blob = make(3 * STEP + 1)
        identity = send(on_drive, blob).identity
        own_drive.add_fault("alt=media", kind, 2, after=1)
        on_drive.read(blob.key, identity, tmp_path / "read")
        assert (tmp_path / "read").read_bytes() == blob.content
        assert own_drive.count("alt=media") == 6

    def test_a_token_that_expires_during_uploads_is_renewed(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """This works in four threads at once; all bytes of the refused piece are sent again."""
        monkeypatch.setattr(drive_module, "PIECE", STEP)
        blobs, ended = [make(3 * STEP) for _ in range(4)], iter([own_drive.expire])

        def create(blob: Blob) -> None:
            on_drive.create(
                blob.key, blob.path, on_drive.new_identities(1)[0], lambda _count: next(ended, lambda: None)()
            )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(create, blobs))
        files = own_drive.files()
        assert [files[blob.key][0][1] for blob in blobs] == [blob.content for blob in blobs]
        assert own_drive.count("^POST /token") > 0

    @pytest.mark.parametrize("kind", ["rate limit", "too many", "unavailable", "cut", "cut answer", "lost answer"])
    def test_a_request_is_repeated_after_a_transient_error(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make, kind: drive_emulator.Kind
    ) -> None:
        """This holds for every kind of request: ids, listing, folders, starting and sending an upload, deleting."""
        blob = make()
        for match in ("generateIds", "^GET .*in parents", "^POST /drive", "^POST /upload", "^PUT", "^DELETE"):
            own_drive.add_fault(match, kind, 2)
        identity = send(on_drive, blob).identity
        assert [found for found, _ in own_drive.files()[blob.key]] == [identity]
        own_drive.add_fault(f"files/{identity}", kind, 2)
        assert on_drive.verify(blob.key, identity)
        on_drive.delete(blob.key, identity)
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
        on_drive: Store,
        make: Make,
        kind: drive_emulator.Kind,
        match: str,
        remedy: str,
    ) -> None:
        """The error contains no credential."""
        with faulty(own_drive, "^POST /upload", kind), pytest.raises(DvcPushError, match=match) as caught:
            send(on_drive, make())
        assert remedy in caught.value.remedy
        assert_no_secret(caught.value, drive_emulator.SECRETS)

    def test_the_free_space_is_that_of_the_account(self, own_drive: DriveEmulator, on_drive: Store, make: Make) -> None:
        """It is the unused part of the quota; an account without a quota has no limit."""
        assert on_drive.room() is None
        send(on_drive, make(2000))
        own_drive.capacity = 5000
        assert on_drive.room() == 3000
        own_drive.capacity = 1000  # the quota was reduced meanwhile
        assert on_drive.room() == 0

    def test_an_upload_to_a_full_account_is_not_repeated(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
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
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
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
        self, own_drive: DriveEmulator, on_drive: Store, make: Make
    ) -> None:
        """Most members of a shared drive may only trash files."""
        blob = make()
        identity = send(on_drive, blob).identity
        own_drive.add_fault("^DELETE", "forbidden")
        on_drive.delete(blob.key, identity)
        assert stored(on_drive, blob) == set()
        assert on_drive.verify(blob.key, identity) is None
        assert own_drive.count("/trash") == 1

    def test_a_late_answer_is_not_mistaken_for_the_next_one(
        self, own_drive: DriveEmulator, on_drive: Store, make: Make, monkeypatch: pytest.MonkeyPatch
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
                on_drive.find(blob.key)
        finally:
            socket.setdefaulttimeout(limit)
        assert len(stored(on_drive, blob)) == 1

    @pytest.mark.usefixtures("on_drive")
    def test_a_silent_connection_times_out(self) -> None:
        """The client has no time limit, so that every socket of the process gets one."""
        assert socket.getdefaulttimeout() == SILENCE


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_BUCKETS = count()


@dataclass(frozen=True)
class Bucket:
    """One test's bucket, with a client."""

    name: str
    s3: S3Emulator
    store: Store

    def put(self, blob: Blob, body: bytes, **words: str) -> str:
        """Store a file under the blob's path as another client would; return its version, if there is one."""
        key = f"dvc/{blob.key}"
        return str(self.s3.client().put_object(Bucket=self.name, Key=key, Body=body, **words).get("VersionId"))

    @property
    def files(self) -> dict[str, bytes]:
        """Return the files below the remote, as a reader sees them."""
        return {key.removeprefix("dvc/"): content for key, content in self.s3.files(self.name).items()}

    def versions(self) -> tuple[list[str], list[str]]:
        """Return the ids of all versions and of all delete markers."""
        listed = self.s3.client().list_object_versions(Bucket=self.name)
        versions, markers = ([item["VersionId"] for item in listed.get(kind, ())] for kind in _KINDS)
        return versions, markers


_KINDS = ("Versions", "DeleteMarkers")


@pytest.fixture
def bucket(request: pytest.FixtureRequest, s3: S3Emulator, tmp_path: Path) -> Iterator[Bucket]:
    """Yield an empty bucket; with the parameter True it keeps versions."""
    name, clone = f"bucket-{next(_BUCKETS)}", new_clone(tmp_path / "clone")
    s3.make_bucket(name, versions=getattr(request, "param", False))
    s3.configure_clone(clone, name)
    with opened(clone) as store:
        yield Bucket(name, s3, store)
    s3.conditions = "kept"


with_versions = pytest.mark.parametrize("bucket", [True], indirect=True, ids=["versions"])
both = pytest.mark.parametrize("bucket", [False, True], indirect=True, ids=["plain", "versions"])


class TestS3:
    """Claims on S3 alone."""

    @with_versions
    def test_a_hidden_copy_of_ours_is_waste_and_no_other_version_is_deleted(self, bucket: Bucket, make: Make) -> None:
        """It lies under a version of DVC, which readers see, and above an older one: all three stay."""
        blob = make()
        oldest = bucket.put(blob, b"oldest")
        bucket.s3.client().delete_object(Bucket=bucket.name, Key=f"dvc/{blob.key}")
        assert stored(bucket.store, blob) == set()
        identity = send(bucket.store, blob).identity
        newest = bucket.put(blob, b"newest")
        assert bucket.store.verify(blob.key, identity) is None
        assert stored(bucket.store, blob) == {newest}
        bucket.store.delete(blob.key, identity)
        versions, markers = bucket.versions()
        assert {oldest, newest} < set(versions)
        assert (len(versions), len(markers)) == (3, 1)

    @with_versions
    def test_a_copy_under_a_delete_marker_is_not_there(self, bucket: Bucket, make: Make, tmp_path: Path) -> None:
        """DVC deletes this way: no reader sees the copy, which a deletion leaves, and the path is free."""
        blob = make()
        identity = send(bucket.store, blob).identity
        bucket.s3.client().delete_object(Bucket=bucket.name, Key=f"dvc/{blob.key}")
        assert bucket.store.find(blob.key) == []
        assert bucket.store.verify(blob.key, identity) is None
        with pytest.raises(FileNotFoundError):
            bucket.store.read(blob.key, identity, tmp_path / "read")
        before = bucket.versions()
        bucket.store.delete(blob.key, identity)
        assert bucket.versions() == before
        second = send(bucket.store, blob).identity
        bucket.store.delete(blob.key, second)
        assert bucket.versions() == before

    @with_versions
    @pytest.mark.parametrize("conditions", ["kept", "ignored"])
    def test_every_version_of_a_repeated_upload_is_deleted(
        self, bucket: Bucket, make: Make, conditions: s3_emulator.Conditions
    ) -> None:
        """The answer is lost and botocore repeats the upload, which only `If-None-Match` keeps from storing twice."""
        blob, (identity,) = make(), bucket.store.new_identities(1)
        older = bucket.put(make(), b"of another path")
        bucket.s3.conditions = conditions
        with faulty(bucket.s3, "^PUT", "lost answer", 1):
            assert send(bucket.store, blob, identity).identity == identity
        assert len(bucket.versions()[0]) == (2 if conditions == "kept" else 3)
        for _ in range(2):
            bucket.store.delete(blob.key, identity)
        assert bucket.versions() == ([older], [])

    @both
    @pytest.mark.parametrize("stranger", [False, True], ids=["ours", "stranger's"])
    def test_a_copy_from_before_versioning_is_deleted_by_its_mark(
        self, bucket: Bucket, make: Make, stranger: bool
    ) -> None:
        """A copy of DVC from then has one identity, too, whatever the bucket does since."""
        blob = make()
        if stranger:
            bucket.put(blob, blob.content)
            (identity,) = stored(bucket.store, blob)
        else:
            identity = send(bucket.store, blob).identity
        enabled = {"Status": "Enabled"}
        bucket.s3.client().put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=enabled)
        assert stored(bucket.store, blob) == {identity}
        bucket.store.delete(blob.key, identity)
        assert stored(bucket.store, blob) == set()

    @both
    @pytest.mark.parametrize(("conditions", "reason"), [("ignored", "ignores"), ("refused", "does not know")])
    def test_a_store_without_conditional_writes_is_reported_and_works(
        self, bucket: Bucket, make: Make, conditions: s3_emulator.Conditions, reason: str
    ) -> None:
        """The trial leaves nothing; later a look comes before each upload, so that a known copy is not overwritten."""
        bucket.s3.conditions = conditions
        assert reason in bucket.store.limits("kaggle-training-probe")
        assert bucket.files == {}
        assert bucket.versions()[0] == []
        blob, (first, second) = make(), bucket.store.new_identities(2)
        assert send(bucket.store, blob, first) == send(bucket.store, blob, first)
        assert bucket.store.create(blob.key, blob.path, second) is None
        assert stored(bucket.store, blob) == {first}

    def test_a_store_that_refuses_the_header_takes_uploads_without_a_trial(self, bucket: Bucket, make: Make) -> None:
        """The refused upload is sent again from the beginning, and all later ones are not refused."""
        bucket.s3.conditions = "refused"
        blobs = [make(400_000), make()]
        before = bucket.s3.count("^PUT")
        for blob in blobs:
            send(bucket.store, blob)
        assert bucket.files == {blob.key: blob.content for blob in blobs}
        assert bucket.s3.count("^PUT") - before == 3

    @both
    def test_a_store_that_refuses_deletions_names_a_remedy(self, bucket: Bucket) -> None:
        """The bucket locks its objects, or the keys may not delete."""
        with faulty(bucket.s3, "^DELETE", "denied"), pytest.raises(DvcPushError, match="AccessDenied") as caught:
            bucket.store.limits("kaggle-training-probe")
        assert "delete its objects" in caught.value.remedy

    def test_a_file_that_changes_while_it_is_sent_is_refused(self, bucket: Bucket, make: Make) -> None:
        """S3 compares the MD5 of what arrives with that of the file before, and nothing is visible."""
        blob, (identity,) = make(), bucket.store.new_identities(1)
        with pytest.raises(DvcPushError, match="BadDigest"):
            bucket.store.create(blob.key, blob.path, identity, lambda _count: blob.path.write_bytes(b"changed"))
        assert bucket.files == {}

    def test_a_deletion_leaves_another_uploads_parts_alone(self, bucket: Bucket, make: Make) -> None:
        """Another client is uploading parts of the same object."""
        blob, client = make(), bucket.s3.client()
        client.create_multipart_upload(Bucket=bucket.name, Key=f"dvc/{blob.key}")
        bucket.store.delete(blob.key, bucket.store.new_identities(1)[0])
        assert bucket.s3.remains(bucket.name) == [f"dvc/{blob.key}"]

    def test_an_upload_that_is_cut_once_is_repeated_completely(self, bucket: Bucket, make: Make) -> None:
        """The client rewinds the file."""
        blob = make(400_000)
        bucket.s3.add_fault("^PUT", "cut body")
        send(bucket.store, blob)
        assert bucket.files == {blob.key: blob.content}

    def test_no_upload_is_repeated_from_the_middle_of_the_file(self, bucket: Bucket, make: Make) -> None:
        """The retry of s3fs would continue where the file stopped; only botocore's is used, which rewinds."""
        before = bucket.s3.count("^PUT")
        with faulty(bucket.s3, "^PUT", "cut body"), pytest.raises(DvcPushError, match="connection"):
            send(bucket.store, make(400_000))
        assert bucket.files == {}
        assert bucket.s3.count("^PUT") - before <= 4

    @pytest.mark.parametrize("times", [1, 100])
    def test_a_copy_whose_answer_is_lost_is_returned(self, bucket: Bucket, make: Make, times: int) -> None:
        """Botocore repeats the request, and S3 refuses it because of our own copy, or no answer arrives at all."""
        blob, (identity,) = make(), bucket.store.new_identities(1)
        with faulty(bucket.s3, "^PUT", "lost answer", times):
            assert send(bucket.store, blob, identity) == StoredCopy(identity, blob.size, blob.md5)
        assert bucket.files == {blob.key: blob.content}

    def test_a_download_goes_on_after_a_transient_error(
        self, bucket: Bucket, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer ends in the middle twice, and the file arrives whole; a third time is an error."""
        blob, target = make(400_000), tmp_path / "read"
        identity = send(bucket.store, blob).identity
        monkeypatch.setattr(s3_module, "PAUSES", (0.01, 0.01))
        with faulty(bucket.s3, "^GET", "cut answer", 2):
            bucket.store.read(blob.key, identity, target)
        assert target.read_bytes() == blob.content
        with faulty(bucket.s3, "^GET", "cut answer"), pytest.raises(DvcPushError):
            bucket.store.read(blob.key, identity, target)

    def test_an_etag_of_a_key_service_is_not_an_md5(self, bucket: Bucket, make: Make) -> None:
        """Only the size of such a copy is known; the MD5 of a plain copy is known too."""
        blob = make()
        for words, md5 in (({"ServerSideEncryption": "aws:kms"}, None), ({}, blob.oid)):
            bucket.put(blob, blob.content, **words)
            (copy,) = bucket.store.find(blob.key)
            assert (copy.size, copy.md5) == (blob.size, md5)
        # a listing does not show which ETags come from a key service
        bucket.put(blob, bytes(blob.size), ServerSideEncryption="aws:kms")
        (copy,) = bucket.store.survey()[blob.oid]
        assert (copy.size, copy.md5) == (blob.size, None)

    def test_a_survey_makes_extra_requests_only_for_what_a_listing_does_not_show(
        self, bucket: Bucket, make: Make
    ) -> None:
        """The copy whose ETag is not its name costs a request, and is reported with other content."""
        right, wrong = make(), make()
        send(bucket.store, right)
        bucket.put(wrong, bytes(wrong.size))
        before = bucket.s3.count("^HEAD")
        found = bucket.store.survey()
        assert bucket.s3.count("^HEAD") - before == 1
        assert {oid: [(copy.size, copy.md5) for copy in copies] for oid, copies in found.items()} == {
            right.oid: [(right.size, right.oid)],
            wrong.oid: [(wrong.size, hashlib.md5(bytes(wrong.size)).hexdigest())],
        }

    @pytest.mark.parametrize("kind", ["slow", "unavailable", "cut body"])
    def test_what_passes_by_itself_is_waited_for(
        self, bucket: Bucket, make: Make, kind: s3_emulator.Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Botocore has given up; the whole file is sent again. What stays is not repeated."""
        blob = make()
        with faulty(bucket.s3, "^PUT", kind, 3):
            monkeypatch.setattr(s3_module, "PAUSES", (0.01, 0.01, 0.01))
            send(bucket.store, blob)
        assert bucket.files[blob.key] == blob.content
        before = bucket.s3.count("^PUT")
        with faulty(bucket.s3, "^PUT", "denied"), pytest.raises(DvcPushError):
            send(bucket.store, make())
        assert bucket.s3.count("^PUT") - before == 1

    @pytest.mark.parametrize(
        ("kind", "match", "remedy"),
        [
            ("denied", "AccessDenied", "let these keys"),
            ("full", "StorageFull", "free space"),
            ("cut body", "connection", "internet"),
        ],
    )
    def test_a_persistent_error_names_its_remedy(
        self, bucket: Bucket, make: Make, kind: s3_emulator.Kind, match: str, remedy: str
    ) -> None:
        """The error contains no credential."""
        with faulty(bucket.s3, "^PUT", kind), pytest.raises(DvcPushError, match=match) as caught:
            send(bucket.store, make())
        assert remedy in caught.value.remedy
        assert_no_secret(caught.value, s3_emulator.SECRETS)

    def test_a_missing_bucket_is_reported(self, s3: S3Emulator, tmp_path: Path, make: Make) -> None:
        """The first upload fails at the latest."""
        clone = new_clone(tmp_path / "clone")
        s3.configure_clone(clone, "nowhere")
        with opened(clone) as store, pytest.raises(DvcPushError, match="NoSuchBucket") as caught:
            send(store, make())
        assert ".dvc/config" in caught.value.remedy

    def test_missing_keys_are_reported(
        self, s3: S3Emulator, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The remedy contains the names of the variables."""
        for name in s3_emulator.KEYS:
            monkeypatch.delenv(name)
        clone = new_clone(tmp_path / "clone")
        s3.configure_clone(clone, "nowhere")
        with pytest.raises(DvcPushError, match="keys") as caught, opened(clone) as store:
            store.find(make().key)
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy
