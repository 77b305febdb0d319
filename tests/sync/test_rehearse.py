"""Both remotes are tried with real writes before a run, which leave nothing behind."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
import s3_emulator
from conftest import Stores, run_git
from drive_emulator import DriveEmulator
from publications import drive_client, nothing_changes, refuse
from s3_emulator import S3Emulator

from lib.errors import DvcPushError, GitPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import CHECKPOINTS, LARGEST, check, recover, rehearse
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
    """The host's hook has seen both kinds of branches, a checkpoint's one also moved, and every ref of the protocol."""
    stores.write_hook("post-receive", f"cat >> {stores.folder}/seen; echo push >> {stores.folder}/seen")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    lines = (stores.folder / "seen").read_text().splitlines()
    assert lines.count("push") == 4
    seen = [line.split() for line in lines if line != "push"]
    moves = {
        place: [
            (set(old) != {"0"}, set(new) != {"0"}) for old, new, ref in seen if ref.startswith(f"{place}{BRANCHES}")
        ]
        for place in (CHECKPOINTS, "refs/heads/")
    }
    assert moves[CHECKPOINTS] == [(False, True), (True, True), (True, False)]
    assert moves["refs/heads/"] == [(False, True), (True, False)]
    for place in ("refs/runs/", "refs/asks/", "refs/kaggle/"):
        assert any(ref.startswith(place) and set(new) != {"0"} for _, new, ref in seen)
    assert isinstance(found.git, str)
    assert isinstance(found.dvc, str)
    assert found.room is not None
    assert found.room > 2**20


NAMES = ["artifacts/a/worst.png", "artifacts/a/weights/best.pt.dvc", "artifacts/a/.gitattributes"]
TITLE = "Detection: exp001, rehearsal"


def test_a_rehearsal_commits_files_named_and_sized_like_a_runs(stores: Stores) -> None:
    """Ignore rules, filters, a signing key and hooks of the clone have no part in it."""
    (stores.clone / ".gitignore").write_text("artifacts/\n*.dvc\n")
    (stores.clone / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    run_git("add", "--all", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=rules", cwd=stores.clone)
    run_git("config", "commit.gpgSign", "true", cwd=stores.clone)
    run_git("config", "gpg.program", "/bin/false", cwd=stores.clone)
    show = 'git ls-tree -r -l "$new" artifacts; git log -1 --format="%G? %s" "$new"'
    hooked = stores.folder / "seen"
    stores.write_hook(
        "post-receive",
        f'while read old new ref; do case "$ref $new" in *" 0000"*) ;; refs/heads/*) {show};; esac; done >> {hooked}',
    )
    with nothing_changes(stores):
        found = rehearse(stores.clone, names=NAMES, title=TITLE, say=str)
    assert isinstance(found.git, str), found.git
    lines = hooked.read_text().splitlines()
    listed = {line.split()[4]: int(line.split()[3]) for line in lines if " blob " in line}
    assert {name: listed[name] for name in NAMES}[NAMES[0]] == LARGEST
    assert [line for line in lines if TITLE in line][:2] == [f"N {TITLE} [skip ci]", f"N {TITLE}, moved [skip ci]"]


RULES = {
    "extension": ("git ls-tree -r --name-only $new | grep '[.]dvc$'", "File extension .dvc is restricted", "allow"),
    "path": ("git ls-tree -r --name-only $new | grep ^artifacts/a/w", "File path artifacts/a is restricted", "allow"),
    "size": ("git ls-tree -rl $new | awk '$4 > 1048576' | grep blob", "x is larger than the allowed size", "limit"),
    "signature": ("git log -1 --format=%G? $new | grep N", "Commit must be signed with a GPG key", "exempt"),
    "message": ("! git log -1 --format=%s $new | grep JIRA", "Commit message does not follow the pattern", "exempt"),
    "checkpoints": ("expr $ref : refs/heads/kaggle-checkpoint-", "protected branches on this project", "branch rules"),
    "runs": ("expr $ref : refs/heads/kaggle-train-", "GH013: Repository rule violations found", "branch rules"),
    "moves": ("test $old != $zero", "not allowed to force push code to a protected branch", "forced updates"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_rehearsal_finds_what_a_rule_of_the_host_would_refuse(stores: Stores, rule: str) -> None:
    """Each is refused in the host's own words, and the remedy names the rule; nothing is left."""
    matches, words, remedy = RULES[rule]
    stores.write_hook(
        "pre-receive",
        "zero=0000000000000000000000000000000000000000\n"
        'while read old new ref; do case "$ref" in refs/heads/*) if [ $new != $zero ] && '
        f"{{ {matches}; }} >/dev/null; then echo '{words}' >&2; exit 1; fi;; esac; done",
    )
    with nothing_changes(stores):
        found = rehearse(stores.clone, names=NAMES, title=TITLE, say=str)
    assert isinstance(found.git, GitPushError)
    assert words in found.git.what
    assert remedy in found.git.remedy
    assert isinstance(found.dvc, str)


def test_a_rehearsal_reports_a_clone_that_cannot_be_written_to(stores: Stores) -> None:
    """It is one error with a remedy; the DVC remote is tried all the same."""
    shutil.rmtree(stores.clone / ".git/kaggle-sync", ignore_errors=True)
    (stores.clone / ".git/kaggle-sync").write_text("a file in place of the folder")
    found = rehearse(stores.clone, say=str)
    assert isinstance(found.git, SyncError)
    assert "stopped: FileExistsError" in found.git.what
    assert "free some space" in found.git.remedy


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
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc\n")
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


@pytest.mark.parametrize("address", ["../../elsewhere", "file://{}", "{}/gone"])
def test_a_folder_that_this_machine_does_not_have_is_not_made(stores: Stores, address: str) -> None:
    """DVC would make it, on the disk of a session that ends: the branch would name weights that are nowhere."""
    before = sorted(stores.clone.rglob("*"))
    config = f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {address.format(stores.storage)}\n"
    (stores.clone / ".dvc/config").write_text(config)
    with pytest.raises(SyncError, match=r"is the folder .*, which this machine does not have") as caught:
        rehearse(stores.clone, say=str)
    assert "without file://" in caught.value.remedy
    assert [path for path in sorted(stores.clone.rglob("*")) if "/.dvc/tmp" not in str(path)] == before
    assert not (stores.storage / "gone").exists()


def test_a_rehearsal_passes_none_of_the_users_push_options(stores: Stores) -> None:
    """A host that takes none would refuse every push."""
    run_git("config", "push.pushOption", "ci.skip", cwd=stores.clone)
    assert isinstance(rehearse(stores.clone, say=str).git, str)


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


@pytest.mark.parametrize("folder", ["", "files", "files/md5"])
def test_a_rehearsal_finds_that_the_drive_folder_is_in_the_trash(
    stores: Stores, drive: DriveEmulator, folder: str
) -> None:
    """Drive accepts uploads into it or into a new one of its name; nobody would see the objects that are there."""
    drive.trash(drive.make_folder(folder) if folder else drive.root_id)
    with nothing_changes(stores):
        found = rehearse(stores.clone, DRIVE, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert "in the trash" in found.dvc.what
    assert "restore it there" in found.dvc.remedy
    assert isinstance(found.git, str)


def test_a_rehearsal_that_both_remotes_refuse_leaves_no_branch(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run's ref stays, which lists the object that could not be deleted."""
    refuse(stores, "refs/heads/kaggle-train-*")
    with monkeypatch.context() as patch:
        refusing(errno.EPERM, "unlink", lambda path: path.parent.parent.name == "md5" and path.suffix != ".part", patch)
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.git, GitPushError)
    assert isinstance(found.dvc, DvcPushError)
    assert [ref for ref in stores.refs() if ref.startswith("refs/heads/")] == []
    assert recover(stores.clone, patience=0, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_rehearsal_on_a_full_drive_leaves_nothing(stores: Stores, drive: DriveEmulator) -> None:
    """What could not be stored is not listed in the run's ref for others to delete."""
    rehearse(stores.clone, DRIVE, say=str)  # makes the mark
    drive.capacity = 0
    with nothing_changes(stores, drive.files):
        found = rehearse(stores.clone, DRIVE, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert "free space" in found.dvc.remedy
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
    """`recover` deletes the run's ref, the object and the branches; so does a rehearsal with those of an ended one."""
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
    assert clear(stores)
    for place in ("refs/heads/", CHECKPOINTS):
        run_git("push", "--quiet", "origin", f"HEAD:{place}{BRANCHES}ended", cwd=stores.clone)
    assert isinstance(rehearse(stores.clone_again(), say=str).git, str)
    assert clear(stores)
