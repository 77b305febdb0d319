"""Both remotes are tried with real writes before a run, which leave nothing behind."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
import s3_emulator
from conftest import Stores
from drive_emulator import DriveEmulator
from publications import drive_client, nothing_changes, refuse
from s3_emulator import S3Emulator

from lib.errors import DvcPushError, GitPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import check, recover, rehearse
from lib.sync.refs import Refs
from lib.sync.rehearse import BRANCHES
from lib.sync.remotes import REPOSITORY

DIED = 9


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat a refused push at once."""
    monkeypatch.setattr("lib.remotes.repository.PAUSES", (0.01, 0.02))


def clear(stores: Stores) -> bool:
    """Return whether both remotes are empty but for the marks that name the repository and the store."""
    return not stores.refs() and not stores.objects()


def test_a_rehearsal_pushes_four_times_and_leaves_nothing(stores: Stores) -> None:
    """The host's hook has seen a branch that is created, moved and deleted, and every ref of the protocol."""
    stores.write_hook("post-receive", f"cat >> {stores.folder}/seen; echo push >> {stores.folder}/seen")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    lines = (stores.folder / "seen").read_text().splitlines()
    assert lines.count("push") == 4
    seen = [line.split() for line in lines if line != "push"]
    moves = [
        (set(old) != {"0"}, set(new) != {"0"}) for old, new, ref in seen if ref.startswith(f"refs/heads/{BRANCHES}")
    ]
    assert moves == [(False, True), (True, True), (True, False)]
    for place in ("refs/runs/", "refs/asks/", "refs/kaggle/"):
        assert any(ref.startswith(place) and set(new) != {"0"} for _, new, ref in seen)
    assert isinstance(found.git, str)
    assert isinstance(found.dvc, str)
    assert found.room is not None
    assert found.room > 2**20


@pytest.mark.parametrize("names", ["refs/heads/kaggle-train-*", "refs/*"], ids=["branches", "everything"])
def test_a_rehearsal_finds_that_a_branch_would_be_refused(stores: Stores, names: str) -> None:
    """The names are protected, or the token is read-only."""
    refuse(stores, names, "GH006")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.git, GitPushError)
    assert "branch rules" in found.git.remedy
    assert isinstance(found.dvc, str)


def test_a_rehearsal_finds_that_a_branch_cannot_be_moved(stores: Stores) -> None:
    """What was stored before that push is deleted; the branch is, too."""
    stores.write_hook(
        "pre-receive", 'while read old new ref; do case "$old $new $ref" in 0000*|*" 0000"*) ;;'
        " *refs/heads/*) echo GH006 >&2; exit 1;; esac; done",
    )  # fmt: skip
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.git, GitPushError)
    assert isinstance(found.dvc, str)


# ── the DVC remote ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rehearsal_finds_that_the_dvc_remote_is_not_writable(stores: Stores) -> None:
    """Git is still tried."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc/kaggle\n")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert "let this account write" in found.dvc.remedy
    assert isinstance(found.git, str)


def refusing(number: int, name: str, of: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a function of the system fail with this error for the files that match; with 0 it does nothing."""
    real = getattr(os, name)

    def refused(*given: Any, **words: Any) -> Any:
        if of(Path(os.fspath(given[-1]))):
            if not number:
                return None
            raise OSError(number, os.strerror(number), str(given[-1]))
        return real(*given, **words)

    monkeypatch.setattr(os, name, refused)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_rehearsal_finds_that_the_folder_is_read_only(stores: Stores) -> None:
    """Nothing is left in it, and the Git remote is tried all the same."""
    stores.storage.chmod(0o500)
    try:
        with nothing_changes(stores):
            found = rehearse(stores.clone, say=str)
    finally:
        stores.storage.chmod(0o700)
    assert isinstance(found.dvc, DvcPushError)
    assert isinstance(found.git, str)


@pytest.mark.parametrize("number", [errno.EACCES, 0], ids=["error", "silence"])
@pytest.mark.parametrize("place", ["kaggle-training-", "files"])
def test_a_rehearsal_finds_that_files_cannot_be_deleted(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    """An object that stays is listed in the run's ref, another file is waste; `recover` deletes both later."""

    def concerns(path: Path) -> bool:
        inside = path.is_relative_to(stores.storage) and path.suffix != ".part"
        return inside and path.relative_to(stores.storage).as_posix().startswith(place)

    with monkeypatch.context() as patch:
        refusing(number, "unlink", concerns, patch)
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert "let this account" in found.dvc.remedy
    assert isinstance(found.git, str)
    assert len(stores.objects()) == 1
    assert [finding.kind for finding in check(stores.clone).findings] == ["waste" if "-" in place else "unfinished"]
    assert recover(stores.clone, patience=0, say=str) == 0
    assert clear(stores)


def test_a_rehearsal_says_that_nothing_is_deleted_in_a_folder_without_hard_links(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stores no object, since nothing could delete it."""
    refusing(errno.EPERM, "link", lambda path: path.is_relative_to(stores.storage), monkeypatch)
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, str)
    assert "has no hard links, so that no object is ever deleted there" in found.dvc


def test_a_rehearsal_names_the_other_repositories_of_the_dvc_remote(stores: Stores) -> None:
    """There, objects of a failed publication stay."""
    (stores.storage / f"{REPOSITORY}0123456789abcdef").touch()
    found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, str)
    assert "another repository publishes there too (0123456789abcdef)" in found.dvc


@pytest.fixture
def drive(stores: Stores) -> Iterator[DriveEmulator]:
    """Yield a Drive that is the clone's DVC remote."""
    with DriveEmulator() as emulator, drive_client(emulator):
        drive_emulator.configure_clone(stores.clone, emulator, stores.folder)
        yield emulator


@pytest.fixture
def s3(stores: Stores) -> Iterator[S3Emulator]:
    """Yield a store with the bucket `bucket`, which is the clone's DVC remote."""
    with S3Emulator() as emulator:
        emulator.make_bucket("bucket")
        emulator.configure_clone(stores.clone, "bucket")
        yield emulator


DRIVE = Credentials(drive=drive_emulator.CANARIES)


def test_a_rehearsal_leaves_only_the_mark_on_drive(stores: Stores, drive: DriveEmulator) -> None:
    """The object is deleted for good."""
    with nothing_changes(stores):
        found = rehearse(stores.clone, DRIVE, say=str)
    assert (type(found.git), type(found.dvc)) == (str, str)
    (mark,) = drive.files()
    assert REPOSITORY in mark


def test_a_rehearsal_finds_that_the_drive_folder_is_in_the_trash(stores: Stores, drive: DriveEmulator) -> None:
    """Drive accepts uploads into it, which nobody would see."""
    drive.trash(drive.root_id)
    with nothing_changes(stores):
        found = rehearse(stores.clone, DRIVE, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert "in the trash" in found.dvc.what
    assert "restore it there" in found.dvc.remedy
    assert isinstance(found.git, str)


def test_a_rehearsal_finds_that_drive_refuses_deletions(stores: Stores, drive: DriveEmulator) -> None:
    """The file that stays is listed in the run's ref, and `recover` deletes it when it may."""
    drive.add_fault(r"^(DELETE .*|POST .*/trash)", "forbidden", 10**6)
    found = rehearse(stores.clone, DRIVE, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert len(stores.runs()) == 1
    drive.clear_faults()
    assert recover(stores.clone, DRIVE, patience=0, say=str) == 0
    assert stores.refs() == {}
    assert all(REPOSITORY in path for path in drive.files())


@pytest.mark.parametrize(("conditions", "reason"), [("ignored", "ignores"), ("refused", "does not know")])
def test_a_rehearsal_says_that_nothing_is_deleted_on_s3_without_conditional_writes(
    stores: Stores, s3: S3Emulator, conditions: s3_emulator.Conditions, reason: str
) -> None:
    """It stores no object, since nothing could delete it."""
    s3.conditions = conditions
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, str)
    assert re.search(f"{reason}.* `If-None-Match`.*, so that no object is ever deleted there", found.dvc)
    assert all(REPOSITORY in path for path in s3.files("bucket"))


def test_a_rehearsal_finds_that_a_bucket_locks_its_objects(stores: Stores, s3: S3Emulator) -> None:
    """What is stored there can be deleted by nobody for a day."""
    client = s3.client()
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket="locked", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
    )
    s3.configure_clone(stores.clone, "locked")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert "AccessDenied" in found.dvc.what
    assert "delete its objects" in found.dvc.remedy
    assert isinstance(found.git, str)


def test_a_clone_without_a_dvc_remote_cannot_rehearse(stores: Stores) -> None:
    """The error names the cause."""
    (stores.clone / ".dvc/config").write_text("")
    with pytest.raises(SyncError, match="cannot be opened"):
        rehearse(stores.clone, Credentials(), say=str)


# ── a rehearsal that dies ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pushes", [1, 2, 3, 4])
def test_the_remains_of_a_killed_rehearsal_are_deleted(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, pushes: int
) -> None:
    """`recover` deletes the run's ref and the object, the next rehearsal deletes the branch."""
    push, count = Refs.push, 0

    def push_and_die(refs: Refs, *updates: Any) -> None:
        nonlocal count
        push(refs, *updates)
        count += 1
        if count == pushes:
            os._exit(DIED)

    with monkeypatch.context() as patch:
        patch.setattr(Refs, "push", push_and_die)
        if not (pid := os.fork()):
            try:
                rehearse(stores.clone, say=str)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == DIED
    assert len(stores.runs()) == (pushes < 4)
    assert recover(stores.clone, patience=0, say=str) == 0
    assert stores.objects() == {}
    assert [ref[:34] for ref in stores.refs()] == [f"refs/heads/{BRANCHES}"] * (pushes in (2, 3))
    assert isinstance(rehearse(stores.clone_again(), say=str).git, str)
    assert clear(stores)
