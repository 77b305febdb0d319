"""Branches that replace others: the moving checkpoint, and the finished run that replaces it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WEIGHTS, Stores, run_git, write_run
from publications import BRANCH as FINAL
from publications import CHECKPOINT, objects_of, publish, refuse

from lib.errors import DvcPushError, GitPushError
from lib.sync import Published, check, recover
from lib.sync import publish as publish_module
from lib.sync.intent import Intent
from lib.sync.refs import Refs
from lib.sync.stores.folder import FolderObjects


def save(stores: Stores, seed: int) -> Published:
    """Publish the checkpoint of a new state of the run."""
    write_run(stores.clone, seed=seed)
    return publish(stores.clone, CHECKPOINT, CHECKPOINT)


def finish(stores: Stores, say: Any = str) -> Published:
    """Publish the finished run, which replaces the checkpoint."""
    return publish(stores.clone, FINAL, CHECKPOINT, say=say)


def heads(stores: Stores) -> list[str]:
    """Return all branches except the main one."""
    assert stores.intents() == []
    return [ref.removeprefix("refs/heads/") for ref in stores.refs()]


def test_a_checkpoint_moves_its_branch_and_deletes_the_objects_of_the_old_one(stores: Stores) -> None:
    """The branch is one commit on top of the code each time, and the DVC remote contains the newest weights only."""
    commits = set()
    for seed in (1, 2, 3):
        published = save(stores, seed)
        commits.add(published.commit)
        assert heads(stores) == [CHECKPOINT]
        assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == published.commit
        assert stores.objects() == objects_of(stores.clone)
        assert run_git("rev-list", "--count", f"main..{published.commit}", cwd=stores.origin) == "1"
    assert len(commits) == 3


def test_a_branch_whose_name_ends_like_the_checkpoints_is_untouched(stores: Stores) -> None:
    """`git ls-remote` also lists refs whose names only end in the requested one."""
    backup = f"refs/heads/backup/refs/heads/{CHECKPOINT}"
    run_git("push", "--quiet", "origin", f"HEAD:{backup}", cwd=stores.clone)
    save(stores, 1)
    finish(stores)
    assert sorted(stores.refs()) == sorted([backup, f"refs/heads/{FINAL}"])


def test_a_dataset_that_only_a_replaced_checkpoint_names_is_kept(stores: Stores) -> None:
    """The run was trained from a branch with a dataset, which is deleted; then training starts over from `main`."""
    from dvc.repo import Repo

    (stores.clone / "data.zip").write_bytes(b"a dataset")
    with Repo(str(stores.clone)) as repo:
        repo.add([str(stores.clone / "data.zip")])
        repo.push()
    dataset = stores.objects()
    main = run_git("rev-parse", "HEAD", cwd=stores.clone)
    run_git("add", "data.zip.dvc", ".gitignore", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=data", cwd=stores.clone)
    save(stores, 1)
    run_git("switch", "--quiet", "--detach", main, cwd=stores.clone)
    save(stores, 2)
    assert stores.objects() == objects_of(stores.clone) | dataset
    finish(stores)
    assert dataset.items() <= stores.objects().items()


def test_an_object_of_both_checkpoints_is_neither_uploaded_again_nor_deleted(stores: Stores) -> None:
    """The best weights may be those of the last checkpoint."""
    save(stores, 1)
    best = (stores.clone / WEIGHTS[0]).read_bytes()
    write_run(stores.clone, seed=2)
    (stores.clone / WEIGHTS[0]).write_bytes(best)
    published = publish(stores.clone, CHECKPOINT, CHECKPOINT)
    assert published.uploaded == len((stores.clone / WEIGHTS[1]).read_bytes())
    assert stores.objects() == objects_of(stores.clone)


def test_the_same_checkpoint_again_changes_nothing(stores: Stores) -> None:
    """The result reports the earlier publication."""
    first = save(stores, 1)
    again = save(stores, 1)
    assert (again.commit, again.before, again.uploaded) == (first.commit, True, 0)
    assert heads(stores) == [CHECKPOINT]


def test_a_finished_run_replaces_its_checkpoint(stores: Stores) -> None:
    """One branch is left, with the objects that it names."""
    save(stores, 1)
    write_run(stores.clone, seed=2)
    finish(stores)
    assert heads(stores) == [FINAL]
    assert stores.objects() == objects_of(stores.clone)
    assert finish(stores).before


def test_a_run_without_a_checkpoint_is_published(stores: Stores) -> None:
    """The branch to replace need not exist."""
    finish(stores)
    assert heads(stores) == [FINAL]


def test_a_refused_publication_leaves_the_checkpoint_as_it_was(stores: Stores) -> None:
    """Neither the branch nor the objects of the old checkpoint are changed before the new one is visible."""
    save(stores, 1)
    before = stores.refs(), stores.objects()
    write_run(stores.clone, seed=2)
    refuse(stores, "refs/heads/*")
    for branch in (CHECKPOINT, FINAL):
        with pytest.raises(GitPushError):
            publish(stores.clone, branch, CHECKPOINT)
        assert (stores.refs(), stores.objects()) == before


def test_a_checkpoint_that_another_process_moved_meanwhile_is_not_overwritten(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push is a compare-and-swap from the commit that was read."""
    save(stores, 1)
    other = stores.clone_again()
    write_run(other, seed=3)
    push = Refs.push
    pushed: list[str] = []

    def after_the_other(refs: Refs, *updates: Any) -> None:
        if not pushed and refs.root == stores.clone and len(updates) > 1:
            pushed.append(publish(other, CHECKPOINT, CHECKPOINT).commit)
        push(refs, *updates)

    monkeypatch.setattr(Refs, "push", after_the_other)
    write_run(stores.clone, seed=2)
    with pytest.raises(GitPushError, match="stale info"):
        publish(stores.clone, CHECKPOINT, CHECKPOINT)
    assert stores.refs() == {f"refs/heads/{CHECKPOINT}": pushed[0]}
    assert stores.objects() == objects_of(other)


def test_a_checkpoint_is_published_although_the_answer_to_its_push_is_lost(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent shows that the push has happened: its state is `cleaning`."""
    save(stores, 1)
    push = Refs.push

    def lose(refs: Refs, *updates: Any) -> None:
        push(refs, *updates)
        if len(updates) > 1:
            raise GitPushError("the answer was lost")

    monkeypatch.setattr(Refs, "push", lose)
    published = save(stores, 2)
    assert stores.refs() == {f"refs/heads/{CHECKPOINT}": published.commit}
    assert stores.objects() == objects_of(stores.clone)


def test_a_run_whose_clean_up_fails_is_published_and_cleaned_up_by_recover(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old checkpoint's weights are deleted as soon as the DVC remote allows it."""
    save(stores, 1)
    old = stores.objects()
    write_run(stores.clone, seed=2)

    def fail(*_: object) -> None:
        raise DvcPushError("not now")

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "delete", fail)
        finish(stores, lines.append)
    assert any("published, but not cleaned up" in line for line in lines)
    assert stores.objects() == old | objects_of(stores.clone)
    other = stores.clone_again()
    checked = check(other, older_than=0, say=str)
    assert [finding.kind for finding in checked.findings] == ["expired"]
    assert "clean-up after" in checked.findings[0].what
    assert recover(other, older_than=0, say=lines.append) == 0
    assert "is published, and the objects that it replaced are deleted" in lines[-1]
    assert heads(stores) == [FINAL]
    assert stores.objects() == objects_of(stores.clone)
    assert finish(stores).before


def test_an_old_checkpoints_object_that_another_branch_names_stays(stores: Stores) -> None:
    """A user has tagged the checkpoint."""
    kept = save(stores, 1).commit
    run_git("update-ref", "refs/tags/keep", kept, cwd=stores.origin)
    tagged = objects_of(stores.clone)
    save(stores, 2)
    assert stores.objects() == tagged | objects_of(stores.clone)


def publish_what_is_being_deleted(stores: Stores, patch: pytest.MonkeyPatch) -> list[Exception]:
    """Move the checkpoint; right before its first old object is deleted, publish this object from another clone."""
    save(stores, 1)
    other = stores.clone_again()
    write_run(other, seed=1)
    delete = FolderObjects.delete
    failures: list[Exception] = []
    begun: list[bool] = []

    def after_the_other(store: FolderObjects, oid: str, identity: str) -> None:
        if not begun:
            begun.append(True)
            try:
                publish(other, FINAL)
            except DvcPushError as error:
                failures.append(error)
        delete(store, oid, identity)

    with patch.context() as inner:
        inner.setattr(FolderObjects, "delete", after_the_other)
        inner.setattr(publish_module, "LONGEST_WAIT", 0.0)  # each would wait for the other
        save(stores, 2)
    if failures:
        publish(other, FINAL)
    return failures


def findings(stores: Stores) -> list[str]:
    """Return the findings of `check`."""
    return [finding.what for finding in check(stores.clone, older_than=0, say=str).findings]


def test_a_publication_waits_while_another_is_deleting_its_objects(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uploads them again afterwards: both branches are complete."""
    (refused,) = publish_what_is_being_deleted(stores, monkeypatch)
    assert "has been cleaning up the same objects" in str(refused)
    assert findings(stores) == []
    assert len(stores.objects()) == 4


def test_without_the_declaration_of_what_is_superseded_a_branch_would_lack_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rule of the test above switched off, the damage happens."""
    monkeypatch.setattr(Intent, "is_deleting", lambda *_: False)
    assert publish_what_is_being_deleted(stores, monkeypatch) == []
    assert any(FINAL in what and "is not there" in what for what in findings(stores))


# ── marks on the DVC remote ────────────────────────────────────────────────────────────────────────────────────────


def marks(stores: Stores) -> set[str]:
    """Return the marks on the DVC remote."""
    return {path.name for path in stores.storage.glob("kaggle-training-*")}


def test_the_first_publication_marks_the_dvc_remote_as_its_repositorys(stores: Stores) -> None:
    """The mark names the first commit, once, from any clone; the test write is deleted."""
    publish(stores.clone)
    assert marks(stores) == {f"kaggle-training-owner-{stores.root()}"}
    other = stores.clone_again()
    run_git("fetch", "--quiet", "--depth=1", cwd=other)
    write_run(other, seed=2)
    publish(other, f"{FINAL[:-1]}6")
    assert marks(stores) == {f"kaggle-training-owner-{stores.root()}"}


def test_a_dvc_remote_that_is_not_writable_is_found_before_the_first_upload(stores: Stores) -> None:
    """No upload starts, and nothing is left."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc/kaggle\n")
    with pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert "/proc/kaggle/files/md5 is not writable" in caught.value.what
    assert "make it writable" in caught.value.remedy
    assert "everything is rolled back" in caught.value.state
    assert stores.refs() == {}


@pytest.fixture
def guest(stores: Stores, tmp_path: Path) -> Stores:
    """Return another repository with the same DVC remote, which is marked as the first one's."""
    publish(stores.clone)
    folder = tmp_path / "guest"
    guest = replace(stores, folder=folder, origin=folder / "origin.git", clone=folder / "clone")
    run_git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", guest.origin, cwd=tmp_path)
    run_git("clone", "--quiet", guest.origin, guest.clone, cwd=tmp_path)
    for name in (".dvc", ".dvcignore"):
        copy = shutil.copytree if (stores.clone / name).is_dir() else shutil.copy
        copy(stores.clone / name, guest.clone / name)
    run_git("add", "--all", cwd=guest.clone)
    run_git("commit", "--quiet", "--message=another project", cwd=guest.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=guest.clone)
    write_run(guest.clone, seed=7)
    return guest


def test_nothing_is_deleted_from_the_dvc_remote_of_another_repository(stores: Stores, guest: Stores) -> None:
    """The guest publishes; when it fails, nothing is deleted, and the error gives the reason."""
    lines: list[str] = []
    publish(guest.clone, say=lines.append)
    assert any("marked as that of the repository" in line for line in lines)
    write_run(guest.clone, seed=8)
    refuse(guest, "refs/heads/*")
    with pytest.raises(GitPushError) as caught:
        publish(guest.clone, f"{FINAL[:-1]}6")
    assert "what was uploaded stays" in caught.value.state
    assert "no new object" not in caught.value.state
    assert guest.intents() == []
    assert len(stores.objects()) == 6
    assert len(marks(stores)) == 1


def test_check_names_the_owner_of_a_shared_dvc_remote(stores: Stores, guest: Stores) -> None:
    """In the guest's clone this is a remark; the owner's objects are not reported."""
    publish(guest.clone)
    checked = check(guest.clone, older_than=0, say=str)
    assert checked.is_healthy
    assert [finding.kind for finding in checked.findings] == ["foreign"]
    assert stores.root() in checked.findings[0].what


def test_a_repository_without_a_branch_of_its_own_is_an_error(stores: Stores) -> None:
    """Branches of runs do not identify a repository."""
    run_git("update-ref", "-d", "refs/heads/main", cwd=stores.origin)
    with pytest.raises(GitPushError, match="no branch that a run could have been trained from") as caught:
        publish(stores.clone)
    assert "push the branch" in caught.value.remedy
    assert stores.refs() == {}
    assert marks(stores) == set()
