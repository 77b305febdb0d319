"""Claims on whole publications over Drive and S3: a real Git remote, DVC's own clients, and faults of HTTP requests.

The promises of the protocol are in `test_sync.py`; these tests check them for DVC remotes other than a folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
import s3_emulator
from conftest import ROOT, RUN, SMALL_FILES, WEIGHTS, Stores, run_git, write_run
from drive_emulator import DriveEmulator
from publications import (
    BRANCH,
    OTHER,
    STAMP,
    assert_no_secret,
    drive_client,
    lock_of,
    models_of,
    nothing_changes,
    objects_of,
    path_of,
    publish_checkpoint,
    refuse,
)
from publications import publish as publish_run
from s3_emulator import S3Emulator

from lib.errors import DvcPushError, GitPushError, SyncError, TakenOverError
from lib.remotes.credentials import Credentials
from lib.sync import CheckpointPublisher, Published, Refs, RunLock, check, fetch_file, open_remotes, recover
from lib.sync.refs import RefUpdate
from lib.sync.stores import gdrive as drive_module
from lib.sync.stores import s3 as s3_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

RUNS = "refs/heads/kaggle-train-*"
OBJECT = r"(?!.*kaggle-training-)"  # requests for objects, not for marks
SECRETS = (*drive_emulator.SECRETS, *s3_emulator.SECRETS)
CREDENTIALS = Credentials(drive=drive_emulator.CANARIES, source="the test")


@dataclass(frozen=True)
class Remote:
    """A DVC remote behind HTTP: how to configure a clone, read its content and break its uploads."""

    kind: str
    connect: Callable[[Path], object]
    objects: Callable[[], dict[str, list[bytes]]]
    """Returns every visible file except the marks of repositories: its path from `files/`, and its copies."""
    hidden: Callable[[], list[str]]
    """Returns what is stored but not visible."""
    plant: Callable[[str, bytes], object]
    """Stores one more copy, as an unrelated client would."""
    disturb: Callable[[str, int], object]
    """Breaks the next uploads: `full`, `cut` or `lost`."""
    heal: Callable[[], object]
    environment: dict[str, str]
    """The variables with which a child process reaches the remote; empty if this process is used."""

    def content(self) -> object:
        """Return everything that is stored, visible or not."""
        return self.objects(), self.hidden()


@contextmanager
def drive_remote(folder: Path) -> Iterator[Remote]:
    """Yield a Drive."""
    kinds: dict[str, drive_emulator.Kind] = {"full": "quota", "cut": "cut body", "lost": "lost answer"}
    with DriveEmulator() as drive, drive_client(drive):
        yield Remote(
            "drive",
            lambda clone: drive_emulator.configure_clone(clone, drive, folder / "credentials"),
            lambda: {p: [data for _, data in copies] for p, copies in drive.files().items()},
            list,
            drive.put,
            lambda kind, times: drive.add_fault(
                f"^{'POST /upload' if kind == 'full' else f'PUT {OBJECT}'}", kinds[kind], times
            ),
            drive.clear_faults,
            {"PYTHONPATH": str(drive_emulator.write_sitecustomize(folder / "site", drive))},
        )


@contextmanager
def s3_remote(_folder: Path) -> Iterator[Remote]:
    """Yield a bucket."""
    kinds: dict[str, s3_emulator.Kind] = {"full": "full", "cut": "cut body", "lost": "lost answer"}
    with S3Emulator() as s3:
        s3.make_bucket("bucket")
        yield Remote(
            "s3",
            lambda clone: s3.configure_clone(clone, "bucket"),
            lambda: {
                k.removeprefix("dvc/"): [data] for k, data in s3.files("bucket").items() if "-repository-" not in k
            },
            lambda: s3.remains("bucket"),
            lambda path, data: s3.client().put_object(Bucket="bucket", Key=f"dvc/{path}", Body=data),
            lambda kind, times: s3.add_fault(f"^PUT {OBJECT}", kinds[kind], times),
            s3.clear_faults,
            {},
        )


@pytest.fixture(params=[drive_remote, s3_remote], ids=["drive", "s3"])
def remote(
    request: pytest.FixtureRequest, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Remote]:
    """Yield each kind of DVC remote, as configured in the clone of `stores` and in every later clone."""
    monkeypatch.setattr("lib.remotes.repository.PAUSES", (0.01, 0.02))
    with request.param(tmp_path) as remote:
        remote.connect(stores.clone)
        run_git("commit", "--quiet", "--all", "--message=the remote", cwd=stores.clone)
        run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
        yield remote


def publish(clone: Path, branch: str = BRANCH) -> Published:
    """Publish the run of a clone."""
    return publish_run(clone, branch, credentials=CREDENTIALS)


def wanted(clone: Path, times: int = 1) -> dict[str, list[bytes]]:
    """Return the content of the remote after so many publications of the run and nothing else."""
    return {path: [content] * times for path, content in objects_of(clone).items()}


def test_a_second_machine_pulls_the_same_bytes(stores: Stores, remote: Remote) -> None:
    """DVC itself pulls them, for Drive in a subprocess."""
    from dvc.repo import Repo

    assert publish(stores.clone).uploaded == 10_000
    assert remote.objects() == wanted(stores.clone)
    assert stores.runs() == []
    second = stores.clone_again(branch=BRANCH)
    remote.connect(second)
    if remote.environment:
        pull = [sys.executable, "-m", "dvc", "pull", "--quiet"]
        subprocess.run(pull, cwd=second, check=True, env={**os.environ, **remote.environment})
    else:
        with Repo(str(second)) as repo:
            repo.pull()
    for name in (*WEIGHTS, *SMALL_FILES):
        assert (second / name).read_bytes() == (stores.clone / name).read_bytes()


def test_publishing_the_same_content_again(stores: Stores, remote: Remote) -> None:
    """The same branch uploads nothing. Another one relies on the objects, or stores copies of its own on Drive."""
    first = publish(stores.clone)
    assert publish(stores.clone) == Published(BRANCH, first.commit, 0, before=True)
    twins = remote.kind == "drive"
    assert publish(stores.clone, OTHER).uploaded == (10_000 if twins else 0)
    assert remote.objects() == wanted(stores.clone, 2 if twins else 1)


def test_a_refused_git_push_deletes_exactly_the_new_objects(stores: Stores, remote: Remote) -> None:
    """One of the two models was stored before and stays, as does an unrelated object."""
    remote.plant(path_of(stores.clone / WEIGHTS[0]), (stores.clone / WEIGHTS[0]).read_bytes())
    remote.plant("files/md5/00/1122", b"unrelated")
    refuse(stores, RUNS)
    with nothing_changes(stores, remote.content), pytest.raises(GitPushError, match="no new branches today") as caught:
        publish(stores.clone)
    assert_no_secret(caught.value, SECRETS, stores.clone, stores.origin)
    stores.remove_hook("pre-receive")
    publish(stores.clone)
    found = remote.objects()
    assert found.pop("files/md5/00/1122") == [b"unrelated"]
    assert {path: copies[:1] for path, copies in found.items()} == wanted(stores.clone)


def test_unrelated_copies_of_the_same_content_stay(stores: Stores, remote: Remote) -> None:
    """All copies stay if the store keeps twins: none was ours."""
    for name in WEIGHTS:
        for _ in range(2):
            remote.plant(path_of(stores.clone / name), (stores.clone / name).read_bytes())
    refuse(stores, RUNS)
    with nothing_changes(stores, remote.content), pytest.raises(GitPushError):
        publish(stores.clone)
    assert [len(copies) for copies in remote.objects().values()] == [2 if remote.kind == "drive" else 1] * 2


@pytest.mark.parametrize(
    ("kind", "remedy"), [("full", "free space"), ("cut", "check that internet is on")], ids=["full", "cut"]
)
def test_an_upload_that_fails_leaves_nothing(stores: Stores, remote: Remote, kind: str, remedy: str) -> None:
    """There is no object, branch or .dvc file; the models are in place, and the next call publishes."""
    remote.disturb(kind, 100)
    with nothing_changes(stores, remote.content), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert remedy in caught.value.remedy
    assert "everything is rolled back" in caught.value.state
    assert_no_secret(caught.value, SECRETS, stores.clone, stores.origin)
    remote.heal()
    publish(stores.clone)
    assert remote.objects() == wanted(stores.clone)


def test_a_run_is_published_although_an_upload_is_cut_once(stores: Stores, remote: Remote) -> None:
    """Nothing of the first attempt is left."""
    remote.disturb("cut", 1)
    publish(stores.clone)
    assert remote.objects() == wanted(stores.clone)
    assert remote.hidden() == []


def test_a_run_is_published_once_although_the_answer_to_an_upload_is_lost(stores: Stores, remote: Remote) -> None:
    """The client asks for the state of the upload, or repeats it."""
    remote.disturb("lost", 1)
    publish(stores.clone)
    assert remote.objects() == wanted(stores.clone)
    assert stores.runs() == []


def test_files_are_uploaded_concurrently_where_copies_lie_side_by_side(
    stores: Stores, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each upload to Drive waits here until the other one has begun; elsewhere they are stored in order of name."""
    begun, paths = threading.Barrier(len(WEIGHTS), timeout=30), list[str]()
    real = STORE[remote.kind].create

    def create(store: Any, path: str, *rest: Any) -> Any:
        if path.startswith("files/"):
            paths.append(path)
            if remote.kind == "drive":
                begun.wait()
        return real(store, path, *rest)

    monkeypatch.setattr(STORE[remote.kind], "create", create)
    publish(stores.clone)
    assert remote.kind == "drive" or paths == sorted(paths)
    assert remote.objects() == wanted(stores.clone)


def test_a_checkpoint_goes_on_to_the_finished_run(stores: Stores, remote: Remote) -> None:
    """Its files are stored, moved and deleted; a later session and `python -m lib fetch` read them."""
    for epochs in ((1, 2), (3,)):
        lock = lock_of(stores.clone)
        lock.take()
        with open_remotes(stores.clone, CREDENTIALS) as remotes:
            publisher = CheckpointPublisher(remotes, lock, str)
            for epoch in epochs:
                write_run(stores.clone, seed=epoch)
                publish_checkpoint(publisher, stores.clone, epoch)
                assert sorted(copies[0] for copies in remote.objects().values()) == sorted(
                    models_of(stores.clone).values()
                )
            text = (stores.clone / RUN / "checkpoint.json").read_text()
            for file in json.loads(text)["files"]:
                fetch_file(remotes, file, stores.folder / "fetched")
                assert (stores.folder / "fetched").read_bytes() == (stores.clone / file["path"]).read_bytes()
        if epochs == (1, 2):
            lock.release()
    publish_run(stores.clone, hold=lock, credentials=CREDENTIALS)
    assert list(stores.refs()) == [f"refs/heads/{BRANCH}"]
    assert remote.objects() == wanted(stores.clone)


def test_an_owner_that_was_taken_over_during_its_upload(
    stores: Stores, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It publishes nothing. On Drive it deletes its copies; elsewhere others may rely on them: `check` names them."""
    real, calls = STORE[remote.kind].create, list[str]()
    other = stores.clone_again()
    remote.connect(other)

    def create(store: Any, path: str, *rest: Any) -> Any:
        calls.append(path)
        if path.startswith("files/") and len([each for each in calls if each.startswith("files/")]) == 1:
            refs = Refs(other, Credentials())
            (run,) = refs.read_runs().values()
            assert run.record is not None
            taken = run.record.but(session="0" * 16, publishing=(), undo=run.record.declared)
            refs.push(RefUpdate(f"refs/runs/{run.name}", run.commit, refs.write_record(taken)))
            with open_remotes(other, CREDENTIALS) as remotes:
                for copy in taken.undo:
                    remotes.store.delete(remotes.store.path_of(copy.oid), copy.identity)
            refs.push(RefUpdate(f"refs/runs/{run.name}", refs.list_refs("refs/runs/*").popitem()[1], None))
        return real(store, path, *rest)

    monkeypatch.setattr(STORE[remote.kind], "create", create)
    with pytest.raises(TakenOverError):
        publish(stores.clone)
    assert stores.refs() == {}
    left = remote.objects()
    assert left == {} or remote.kind == "s3"
    assert {finding.kind for finding in check(stores.clone, CREDENTIALS).findings} == ({"unnamed"} if left else set())


def test_uploads_without_any_answer_are_rolled_back_or_known(stores: Stores, remote: Remote) -> None:
    """The objects have arrived: Drive's client has no answer, and they are deleted; a bucket shows our marks."""
    remote.disturb("lost", 100)
    if remote.kind == "drive":
        with nothing_changes(stores, remote.content), pytest.raises(DvcPushError):
            publish(stores.clone)
    else:
        publish(stores.clone)
        assert remote.objects() == wanted(stores.clone)


def test_a_rollback_that_cannot_delete_is_finished_by_recover(stores: Stores, remote: Remote) -> None:
    """The run's ref stays while the objects cannot be deleted; `recover` deletes both later."""
    with nothing_changes(stores, remote.content):
        refuse(stores, RUNS)
        real = STORE[remote.kind].delete

        def fail(store: Any, path: str, identity: str) -> None:
            if path.startswith("files/"):
                raise DvcPushError("the remote does not delete today.")
            real(store, path, identity)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(STORE[remote.kind], "delete", fail)
            with pytest.raises(SyncError, match="no new branches today") as caught:
                publish(stores.clone)
        assert "recover" in caught.value.state
        assert len(stores.runs()) == 1
        assert recover(stores.clone, patience=0, say=str) == 0


STORE: dict[str, Any] = {"drive": drive_module.DriveObjects, "s3": s3_module.S3Objects}


PUBLISH_LARGE_FILES = """
import json, os, sys
from datetime import datetime
from pathlib import Path
from typing import Any
from lib.sync import Publication, sync_outputs

clone, folder, stamp, names = Path(sys.argv[1]), sys.argv[2], datetime.fromisoformat(sys.argv[3]), tuple(sys.argv[4:])

def publish(branch):
    return sync_outputs(Publication(clone, branch, "x", folder, names, stamp), say=str, progress=False).uploaded

def read(file, key):
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

publish("kaggle-train-detection-small-20250102-030405")  # loads every library
for name in names:
    os.replace(clone / f"{name}.large", clone / name)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
memory, bytes_read = read("status", "VmRSS"), read("io", "rchar")
uploaded = publish("kaggle-train-detection-large-20250102-030405")
print(json.dumps([uploaded, read("io", "rchar") - bytes_read, 1024 * (read("status", "VmHWM") - memory)]))
"""
LARGE = 48 * 2**20  # bytes of each of the two models: more than may be in memory of both


def assert_large_files_are_read_little(clone: Path, environment: dict[str, str], times: int) -> None:
    """Publish two large files in a subprocess, and check how many bytes it has read and had in memory."""
    for number, name in enumerate(WEIGHTS):
        with (clone / f"{name}.large").open("wb") as file:
            for block in range(LARGE // 2**20):
                file.write(bytes([number, block]) * 2**19)
    words = [sys.executable, "-c", PUBLISH_LARGE_FILES, str(clone), RUN, STAMP.isoformat(), *WEIGHTS]
    paths = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run(words, cwd=clone, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uploaded, read, held = json.loads(done.stdout.splitlines()[-1])
    assert uploaded == 2 * LARGE
    assert read < (times + 0.2) * uploaded
    assert held < LARGE


@pytest.mark.slow
def test_large_files_are_read_for_hash_and_upload_and_never_held_in_memory(stores: Stores, remote: Remote) -> None:
    """For S3 they are hashed once more; over plain HTTP, as here, its client computes two checksums before it sends."""
    assert_large_files_are_read_little(stores.clone, remote.environment, 5 if remote.kind == "s3" else 2)


def test_large_files_are_copied_to_a_folder_and_never_held_in_memory(stores: Stores) -> None:
    """They are read for their hash and for the copy."""
    assert_large_files_are_read_little(stores.clone, {}, 2)


@pytest.fixture
def drive(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveEmulator]:
    """Yield a Drive as the DVC remote of the clone."""
    monkeypatch.setattr("lib.remotes.repository.PAUSES", (0.01, 0.02))
    with DriveEmulator() as drive, drive_client(drive, retries=1):
        drive_emulator.configure_clone(stores.clone, drive, stores.folder / "credentials")
        yield drive


class TestDrive:
    """Claims on Drive alone: what it costs, and listings that lag."""

    @pytest.fixture
    def held(self, stores: Stores, drive: DriveEmulator) -> Iterator[tuple[RunLock, CheckpointPublisher]]:
        """Yield a run's lock, and what publishes its checkpoints."""
        assert drive.files() == {}
        lock = lock_of(stores.clone)
        lock.take()
        with open_remotes(stores.clone, CREDENTIALS) as remotes:
            yield lock, CheckpointPublisher(remotes, lock, str)
        lock.release()

    def test_a_checkpoint_costs_six_requests(
        self, stores: Stores, drive: DriveEmulator, held: tuple[RunLock, CheckpointPublisher]
    ) -> None:
        """Two of each upload, and one for each file that is deleted; ids come by the hundred."""
        publish_checkpoint(held[1], stores.clone)
        for epoch in (2, 3):
            before = len(drive.requests)
            write_run(stores.clone, seed=epoch)
            publish_checkpoint(held[1], stores.clone)
            assert len(drive.requests) - before == 6

    @pytest.mark.parametrize("before", [[], ["files/md5/00/stored-before"]], ids=["empty", "used"])
    def test_a_publication_of_two_weights_costs_fourteen_requests_in_nine_rounds(
        self, stores: Stores, drive: DriveEmulator, held: tuple[RunLock, CheckpointPublisher], before: list[str]
    ) -> None:
        """With the files of the last checkpoint, which are deleted, and the folders of the objects, which are new."""
        for path in before:
            drive.put(path, b"of another run")
        publish_checkpoint(held[1], stores.clone)
        write_run(stores.clone, seed=2)
        requests, rounds, drive.latency = len(drive.requests), drive.rounds, 0.5
        publish_run(stores.clone, hold=held[0], credentials=CREDENTIALS)
        assert (len(drive.requests) - requests, drive.rounds - rounds) == (14, 9)
        assert set(drive.files()) == {*objects_of(stores.clone), *before}

    def test_listings_that_lag_hide_nothing_that_counts(
        self, stores: Stores, drive: DriveEmulator, held: tuple[RunLock, CheckpointPublisher]
    ) -> None:
        """Copies are known by their ids: every branch is complete, and a roll back deletes all."""
        drive.lag = True
        for epoch in (1, 2, 3):
            write_run(stores.clone, seed=epoch)
            publish_checkpoint(held[1], stores.clone)
        drive.lag = False
        assert len(drive.files()) == 2
        drive.lag = True
        refuse(stores, RUNS)
        with pytest.raises(GitPushError, match="no new object"):
            publish_run(stores.clone, hold=held[0], credentials=CREDENTIALS)
        assert len(drive.files()) == 2
        stores.remove_hook("pre-receive")
        publish_run(stores.clone, hold=held[0], credentials=CREDENTIALS)
        contents = {path: copies[0][1] for path, copies in drive.files().items() if path.startswith("files/")}
        assert contents == objects_of(stores.clone)
        drive.lag = False
        recover(stores.clone, CREDENTIALS, patience=0, say=str)  # what the sweep could not list yet
        assert len(drive.files()) == 2


class TestRevoked:
    """Claims on Drive alone: the user revokes the permission."""

    def test_before_a_publication_nothing_is_started(self, stores: Stores, drive: DriveEmulator) -> None:
        """There is no object, branch or .dvc file; the error explains how to create new credentials."""
        drive.revoke()
        files = sorted((stores.clone / "artifacts").rglob("*"))
        with pytest.raises(DvcPushError, match="invalid_grant") as caught:
            publish(stores.clone)
        assert "GDRIVE_USER_CREDENTIALS" in caught.value.remedy
        assert sorted((stores.clone / "artifacts").rglob("*")) == files
        assert stores.refs() == {}
        assert drive.files() == {}
        assert_no_secret(caught.value, SECRETS, stores.clone, stores.origin)

    def test_during_a_publication_recover_finishes_with_new_credentials(
        self, stores: Stores, drive: DriveEmulator
    ) -> None:
        """The run's ref stays, since nothing can be deleted; `recover` succeeds with new credentials."""
        refuse(stores, RUNS)
        real = drive._take_fault

        def revoke_at_the_first_upload(line: str) -> drive_emulator.Kind | None:
            if line.startswith("PUT"):
                drive.revoke()
            return real(line)

        drive._take_fault = revoke_at_the_first_upload  # type: ignore[method-assign]
        with pytest.raises(DvcPushError, match="invalid_grant") as caught:
            publish(stores.clone)
        assert "GDRIVE_USER_CREDENTIALS" in caught.value.remedy
        assert "recover" in caught.value.state
        assert len(stores.runs()) == 1
        assert_no_secret(caught.value, SECRETS, stores.clone, stores.origin)
        drive._take_fault = real  # type: ignore[method-assign]
        drive.restore()
        drive_emulator.configure_clone(stores.clone, drive, stores.folder / "credentials")
        assert recover(stores.clone, patience=0, say=str) == 0
        assert drive.files() == {}
        assert stores.refs() == {}


def test_check_reads_a_store_and_reports_twins_as_a_remark(stores: Stores, remote: Remote) -> None:
    """Every copy is checked: a second correct one is not an error, a second damaged one is."""
    publish(stores.clone)

    def kinds() -> list[str]:
        checked = check(stores.clone, CREDENTIALS)
        assert checked.is_healthy == (not {f.kind for f in checked.findings} - {"twins"})
        return [finding.kind for finding in checked.findings]

    assert kinds() == []
    path, (content,) = next(iter(wanted(stores.clone).items()))
    remote.plant(path, content)
    assert kinds() == (["twins"] if remote.kind == "drive" else [])
    remote.plant(path, content[:-1])
    assert kinds() == (["damaged", "twins"] if remote.kind == "drive" else ["damaged"])
    remote.plant("files/md5/00/112233445566778899aabbccddeeff", b"unrelated")
    assert kinds()[-1 if remote.kind == "s3" else -2] == "unnamed"
