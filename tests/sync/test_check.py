"""`check` reports what is wrong with both remotes, and nothing else; it changes neither."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drive_emulator
import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git, write_run
from drive_emulator import DriveEmulator
from publications import (
    BRANCH,
    CHECKPOINT,
    OTHER,
    checkpoints,
    drive_client,
    lock_of,
    md5_of,
    path_of,
    publish,
    publish_checkpoint,
    refuse,
)
from s3_emulator import S3Emulator

from lib.errors import GitPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import Checked, RunLock, check, recover
from lib.sync.record import DeclaredCopy
from lib.sync.refs import Refs
from lib.sync.remotes import CHECKPOINT as FILE
from lib.sync.remotes import REPOSITORY
from lib.sync.stores.folder import FolderObjects


@pytest.fixture
def published(stores: Stores) -> Stores:
    """Publish the run, so that there is something to check."""
    publish(stores.clone)
    return stores


def look(stores: Stores) -> Checked:
    """Check from another clone, and assert that this changes nothing."""
    clone = stores.clone_again(f"look-{len(list(stores.folder.iterdir()))}")
    before = stores.refs(), stores.objects()
    checked = check(clone)
    assert (stores.refs(), stores.objects()) == before
    return checked


def kinds(checked: Checked) -> list[str]:
    """Return the kinds of the findings."""
    return sorted(finding.kind for finding in checked.findings)


def first_object(stores: Stores) -> Path:
    """Return the path of one published object."""
    return stores.storage / min(stores.objects())


def cut(path: Path) -> None:
    """Leave only the first bytes of a file, as a broken disk does."""
    written = path.stat().st_mtime_ns
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    os.utime(path, ns=(written, written))


def move_dvc_remote(clone: Path) -> None:
    """Make another DVC remote and commit its address."""
    (clone.parent / "elsewhere").mkdir()
    path = clone / ".dvc/config"
    path.write_text(path.read_text().replace("/storage", "/elsewhere"))
    run_git("commit", "--quiet", "--all", "--message=another remote", cwd=clone)


def test_healthy_remotes_have_no_findings(published: Stores) -> None:
    """The remotes contain a publication and nothing else."""
    checked = look(published)
    assert checked.is_healthy
    assert checked.findings == ()
    assert (checked.objects, checked.runs) == (2, 0)


def test_a_missing_object_is_reported_with_its_branch_and_path(published: Stores) -> None:
    """`dvc pull` would fail on it."""
    first_object(published).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert not checked.is_healthy
    assert f"refs/heads/{BRANCH}: {RUN}/train/weights/" in checked.findings[0].what


def test_an_object_of_another_size_is_damaged(published: Stores) -> None:
    """Half a file has the right name."""
    cut(first_object(published))
    checked = look(published)
    assert kinds(checked) == ["damaged"]
    assert "100 bytes instead of 5000" in checked.findings[0].what


def test_an_object_of_other_content_is_damaged(published: Stores) -> None:
    """The size is right: the files of a folder are read."""
    path = first_object(published)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    checked = look(published)
    assert kinds(checked) == ["damaged"]
    assert "has other content (MD5 " in checked.findings[0].what


def test_an_object_that_nothing_names_is_reported(published: Stores) -> None:
    """It was stored by hand, or by another repository."""
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"stray")
    checked = look(published)
    assert kinds(checked) == ["unnamed"]
    assert "0123456789abcdef0123456789abcdef (5 bytes)" in checked.findings[0].what


def test_an_object_that_only_an_older_commit_names_is_named(published: Stores) -> None:
    """The objects of a publication are still named after a later commit has removed its `.dvc` files."""
    clone = published.clone_again("later", branch=BRANCH)
    run_git("rm", "--quiet", "-r", RUN, cwd=clone)
    run_git("commit", "--quiet", "--message=remove", cwd=clone)
    run_git("push", "--quiet", "origin", BRANCH, cwd=clone)
    assert look(published).findings == ()


@pytest.mark.parametrize("name", ["heads/user/topic", "tags/v1", "exps/ab/cd", "pull/1/head", "merge-requests/1/head"])
def test_every_kind_of_ref_that_names_objects_is_checked(published: Stores, name: str) -> None:
    """Branches with slashes too; a missing object is reported for each ref."""
    ref = f"refs/{name}"
    run_git("update-ref", ref, BRANCH, cwd=published.origin)
    run_git("update-ref", "-d", f"refs/heads/{BRANCH}", cwd=published.origin)
    assert look(published).findings == ()
    first_object(published).unlink()
    (finding,) = look(published).findings
    assert (finding.kind, finding.what.partition(":")[0]) == ("missing", ref)


def test_a_branch_of_another_dvc_remote_is_not_judged(published: Stores) -> None:
    """A clone of `main`, which names another one now, cannot say that its objects are missing here."""
    main = published.clone_again("moved")
    move_dvc_remote(main)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=main)
    first_object(published).unlink()
    checked = look(published)
    assert checked.is_healthy
    assert kinds(checked) == ["elsewhere"]
    assert (
        f"refs/heads/{BRANCH} has its objects on {published.storage}, which was not checked" in checked.findings[0].what
    )


def test_objects_that_only_a_branch_of_another_dvc_remote_names_are_named(published: Stores) -> None:
    """They may have been moved there and back."""
    clone = published.clone_again("moved", branch=BRANCH)
    move_dvc_remote(clone)
    run_git("push", "--quiet", "origin", f"HEAD:{BRANCH}", cwd=clone)
    assert kinds(look(published)) == ["elsewhere"]


def test_beside_another_repository_no_object_is_called_unnamed(published: Stores) -> None:
    """Its refs are not read here."""
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of another repository")
    (published.storage / f"{REPOSITORY}0123456789abcdef").touch()
    checked = look(published)
    assert kinds(checked) == ["foreign"]
    assert checked.is_healthy


@pytest.mark.parametrize(
    "ref", ["refs/intents/x", "refs/heads/kaggle-intents/x", "refs/heads/kaggle-runs/x", "refs/runs/x"]
)
def test_a_ref_of_another_version_is_unreadable_and_may_name_any_object(published: Stores, ref: str) -> None:
    """It is reported with what to do, and nothing that it may name is called unnamed."""
    run_git("update-ref", ref, "main", cwd=published.origin)
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"named by the ref")
    checked = look(published)
    assert kinds(checked) == ["unreadable"]
    assert not checked.is_healthy
    assert ref in checked.findings[0].what
    assert "of that version" in checked.findings[0].remedy


# ── runs and checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_publication_under_way_is_reported_with_the_command_that_recovers_it(published: Stores) -> None:
    """Its objects are not reported as unnamed: its ref declares them."""
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"stray")
    lock = lock_of(published.clone)
    lock.take()
    assert lock.record is not None
    copy = DeclaredCopy(oid="0123456789abcdef0123456789abcdef", size=5, identity="1", store="folder x")
    lock.push(lock.record.but(publishing=(copy,)))
    checked = look(published)
    lock.release()
    assert kinds(checked) == ["unfinished"]
    assert checked.is_healthy
    assert "python -m lib recover" in checked.findings[0].remedy


@pytest.fixture
def held(published: Stores) -> Iterator[RunLock]:
    """Publish a checkpoint, and yield the lock of its session."""
    lock = lock_of(published.clone)
    with checkpoints(published.clone, lock) as publisher:
        publish_checkpoint(publisher, published.clone)
    yield lock
    lock.release()


def checkpoint_files(stores: Stores) -> list[Path]:
    """Return the checkpoint files of the DVC remote."""
    return sorted(stores.storage.glob(f"{FILE}*"))


def test_a_checkpoint_has_no_findings(published: Stores, held: RunLock) -> None:
    """While its session lives, and afterwards."""
    assert look(published).findings == ()
    held.release()
    assert look(published).findings == ()
    assert len(checkpoint_files(published)) == len(WEIGHTS)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(("damage", "kind"), [(Path.unlink, "missing"), (cut, "damaged")])
def test_a_checkpoint_without_a_whole_file_is_reported(
    published: Stores, damage: Callable[[Path], object], kind: str
) -> None:
    """It cannot be resumed: the remedy is to start over."""
    path = checkpoint_files(published)[0]
    damage(path)
    checked = look(published)
    assert kinds(checked) == [kind]
    assert f"refs/heads/{CHECKPOINT}: {path.name}" in checked.findings[0].what
    assert "session.resume never" in checked.findings[0].remedy


@pytest.mark.usefixtures("held")
def test_a_checkpoint_on_another_dvc_remote_is_not_judged(published: Stores) -> None:
    """Its files are missing here, and that is right."""
    clone = published.clone_again("moved")
    move_dvc_remote(clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=clone)
    for path in checkpoint_files(published):
        path.unlink()
    assert [finding.what.split()[0] for finding in look(published).findings if finding.kind == "elsewhere"] == [
        f"refs/heads/{CHECKPOINT}",
        f"refs/heads/{BRANCH}",
    ]
    assert look(published).is_healthy


def test_files_of_a_dead_session_that_no_checkpoint_names_are_waste(published: Stores, held: RunLock) -> None:
    """Those of a session that lives are not; `recover` deletes them, and keeps the checkpoint."""
    named = checkpoint_files(published)
    late = named[0].with_name(named[0].name.replace("-1-", "-2-"))
    shutil.copy2(named[0], late)
    assert look(published).findings == ()
    held.release()
    checked = look(published)
    assert checked.is_healthy
    (finding,) = checked.findings
    assert (finding.kind, finding.what.split()[0]) == ("waste", late.name)
    assert finding.remedy == "run `python -m lib recover`"
    assert recover(published.clone, patience=0, say=str) == 0
    assert look(published).findings == ()
    assert checkpoint_files(published) == named


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listing(published: Stores) -> Path:
    """Push a branch that names a folder; return the path of the folder's listing on the DVC remote."""
    from dvc.repo import Repo

    clone = published.clone_again("folder")
    (clone / "data").mkdir()
    for name in ("a", "b"):
        (clone / "data" / name).write_text(name)
    with Repo(str(clone)) as repo:
        (stage,) = repo.add([str(clone / "data")])
        repo.push()
        oid = stage.outs[0].hash_info.value
    run_git("add", "data.dvc", ".gitignore", cwd=clone)
    run_git("commit", "--quiet", "--message=data", cwd=clone)
    run_git("push", "--quiet", "origin", "HEAD:refs/heads/data", cwd=clone)
    return published.object_path(oid)


def test_a_folder_is_checked_file_by_file(published: Stores, listing: Path) -> None:
    """The listing is there, one of the files that it names is not."""
    assert look(published).findings == ()
    (part,) = [item["md5"] for item in json.loads(listing.read_text()) if item["relpath"] == "a"]
    published.object_path(part).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert f"data needs {part}" in checked.findings[0].what


def test_a_damaged_listing_is_reported_and_its_files_are_not(published: Stores, listing: Path) -> None:
    """The objects that the listing names are unknown; everything else is still checked."""
    listing.chmod(0o644)
    listing.write_text("[")
    model = md5_of((published.clone / WEIGHTS[0]).read_bytes())
    published.object_path(model).unlink()
    checked = look(published)
    assert kinds(checked) == ["damaged", "missing"]
    assert f"refs/heads/data: data needs {listing.parent.name}{listing.name}" in checked.findings[0].what


def run_elsewhere(stores: Stores, seed: int) -> None:
    """Publish a checkpoint on another machine, and make the publication of another run fail there."""
    clone = stores.folder / "elsewhere"
    if not clone.exists():
        stores.clone_again("elsewhere")
    write_run(clone, seed=seed)
    lock = lock_of(clone)
    with checkpoints(clone, lock) as publisher:
        publish_checkpoint(publisher, clone, seed)
    lock.release()
    refuse(stores, "refs/heads/kaggle-train-refused")
    write_run(clone, seed=100 + seed)
    with pytest.raises(GitPushError):
        publish(clone, "kaggle-train-refused")
    stores.remove_hook("pre-receive")


@pytest.mark.slow
def test_runs_that_continue_during_a_check_cause_no_findings(
    published: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refs, objects and files that change between any two reads of the check are no damage."""
    monkeypatch.setattr("lib.remotes.repository.PAUSES", (0.01,))
    run_elsewhere(published, 1)
    clone = published.clone_again()
    reads = 0
    moment = 1
    is_away = False

    def run_in_between(kind: type[Any], name: str) -> None:
        real = getattr(kind, name)

        def wrapper(*given: Any) -> Any:
            nonlocal reads, is_away
            if not is_away:
                reads += 1
                if reads == moment:
                    is_away = True
                    run_elsewhere(published, moment + 1)
                    is_away = False
            return real(*given)

        monkeypatch.setattr(kind, name, wrapper)

    for name in ("read_runs", "list_refs", "named_objects", "read_files_of_all"):
        run_in_between(Refs, name)
    for name in ("survey", "look", "find", "flat"):
        run_in_between(FolderObjects, name)
    while True:
        reads = 0
        checked = check(clone)
        assert checked.findings == (), f"before read {moment}"
        if reads < moment:
            break
        moment += 1
    assert moment > 12


# ── other stores ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_objects_on_drive_are_checked(stores: Stores) -> None:
    """Each publication has its own copy there; copies that are gone are reported, and only for their branches."""
    drive_credentials = Credentials(drive=drive_emulator.CANARIES)
    with DriveEmulator() as drive, drive_client(drive):
        drive_emulator.configure_clone(stores.clone, drive, stores.folder)
        for branch in (BRANCH, OTHER):
            publish(stores.clone, branch, credentials=drive_credentials)
        assert kinds(check(stores.clone, drive_credentials)) == ["twins", "twins"]
        for copies in drive.files().values():
            drive.trash(copies[0][0])
        assert check(stores.clone, drive_credentials).findings == ()
        gone = path_of(stores.clone / WEIGHTS[0])
        drive.trash(drive.files()[gone][0][0])
        checked = check(stores.clone, drive_credentials)
        assert [(finding.kind, finding.what.partition(":")[0]) for finding in checked.findings] == [
            ("missing", f"refs/heads/{BRANCH}"),
            ("missing", f"refs/heads/{OTHER}"),
        ]


def test_objects_on_s3_are_checked(stores: Stores) -> None:
    """An object is compared by the MD5 that S3 reports."""
    with S3Emulator() as s3:
        s3.make_bucket("bucket")
        s3.configure_clone(stores.clone, "bucket")
        publish(stores.clone)
        assert check(stores.clone).findings == ()
        key = f"dvc/{path_of(stores.clone / WEIGHTS[0])}"
        s3.client().put_object(Bucket="bucket", Key=key, Body=bytes(5000))
        assert kinds(check(stores.clone)) == ["damaged"]
        s3.client().delete_object(Bucket="bucket", Key=key)
        assert kinds(check(stores.clone)) == ["missing"]


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dvc_remote_that_cannot_be_read_is_an_error(published: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never reported as one that has lost its objects."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refused)
    with pytest.raises(SyncError, match="checking stopped: PermissionError") as caught:
        check(published.clone)
    assert "check the DVC remote" in caught.value.remedy


@pytest.mark.parametrize("damage", [False, True])
def test_the_exit_status_of_the_command_depends_on_the_findings(published: Stores, damage: bool) -> None:
    """The status is 0 or 1; `--json` reports the same as the text."""
    if damage:
        shutil.rmtree(published.storage / "files")
    done = {
        word: subprocess.run(
            [sys.executable, "-m", "lib", "check", *word.split()],
            cwd=published.clone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )
        for word in ("", "--json")
    }  # fmt: skip
    assert {one.returncode for one in done.values()} == {1 if damage else 0}
    report = json.loads(done["--json"].stdout)
    assert report["healthy"] is not damage
    assert [finding["kind"] for finding in report["findings"]] == ["missing"] * (2 if damage else 0)
    assert ("Nothing is wrong." in done[""].stdout) is not damage
    assert done[""].stdout.count("What to do:") == (2 if damage else 0)
