"""A branch that takes the place of others: the moving checkpoint, and the finished run that ends it."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import RUN, WEIGHTS, Stores, run_git, write_run

from lib.errors import DvcPushError, GitPushError
from lib.sync import Publication, Published, check, recover, sync_outputs
from lib.sync import publish as publish_module
from lib.sync.intent import Intent
from lib.sync.refs import Refs
from lib.sync.stores.folder import DirectoryObjects

CHECKPOINT = "kaggle-checkpoint-detection-exp001"
FINAL = "kaggle-train-detection-exp001-20250102-030405"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def publication(clone: Path, branch: str, *supersedes: str) -> Publication:
    """Describe the run in a clone under a branch that takes the place of others."""
    return Publication(clone, branch, "a run [skip ci]\n", RUN, WEIGHTS, STAMP, supersedes=supersedes)


def save(stores: Stores, seed: int) -> Published:
    """Train on, and publish the next checkpoint."""
    write_run(stores.clone, seed=seed)
    return sync_outputs(publication(stores.clone, CHECKPOINT, CHECKPOINT), say=str)


def finish(stores: Stores, say: Any = str) -> Published:
    """Publish the finished run, which ends the checkpoint."""
    return sync_outputs(publication(stores.clone, FINAL, CHECKPOINT), say=say)


def wanted(clone: Path) -> set[str]:
    """Give the paths of the run's objects on the DVC remote."""
    oids = [hashlib.md5((clone / name).read_bytes()).hexdigest() for name in WEIGHTS]
    return {f"files/md5/{oid[:2]}/{oid[2:]}" for oid in oids}


def heads(stores: Stores) -> list[str]:
    """Give the branches beside the main one."""
    assert stores.intents() == []
    return [ref.removeprefix("refs/heads/") for ref in stores.refs()]


def test_a_checkpoint_moves_its_branch_and_deletes_what_the_old_one_had(stores: Stores) -> None:
    """One commit on top of the code each time, and only the newest weights on the DVC remote."""
    commits = set()
    for seed in (1, 2, 3):
        published = save(stores, seed)
        commits.add(published.commit)
        assert heads(stores) == [CHECKPOINT]
        assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == published.commit
        assert set(stores.objects()) == wanted(stores.clone)
        assert run_git("rev-list", "--count", f"main..{published.commit}", cwd=stores.origin) == "1"
    assert len(commits) == 3


def test_an_object_of_both_checkpoints_is_neither_sent_again_nor_deleted(stores: Stores) -> None:
    """The best weights may be those of the last checkpoint."""
    save(stores, 1)
    best = (stores.clone / WEIGHTS[0]).read_bytes()
    write_run(stores.clone, seed=2)
    (stores.clone / WEIGHTS[0]).write_bytes(best)
    published = sync_outputs(publication(stores.clone, CHECKPOINT, CHECKPOINT), say=str)
    assert published.uploaded == len((stores.clone / WEIGHTS[1]).read_bytes())
    assert set(stores.objects()) == wanted(stores.clone)


def test_the_same_checkpoint_again_changes_nothing(stores: Stores) -> None:
    """It says that it is there."""
    first = save(stores, 1)
    again = save(stores, 1)
    assert (again.commit, again.before, again.uploaded) == (first.commit, True, 0)
    assert heads(stores) == [CHECKPOINT]


def test_a_finished_run_takes_the_place_of_its_checkpoint(stores: Stores) -> None:
    """One branch is left, with the objects it names."""
    save(stores, 1)
    write_run(stores.clone, seed=2)
    finish(stores)
    assert heads(stores) == [FINAL]
    assert set(stores.objects()) == wanted(stores.clone)
    assert finish(stores).before


def test_a_run_without_a_checkpoint_finishes_all_the_same(stores: Stores) -> None:
    """What would be replaced need not be there."""
    finish(stores)
    assert heads(stores) == [FINAL]


def test_a_refused_publication_leaves_the_checkpoint_as_it_was(stores: Stores) -> None:
    """Neither branch nor objects of the old checkpoint are touched before the new one is visible."""
    save(stores, 1)
    before = stores.refs(), stores.objects()
    write_run(stores.clone, seed=2)
    stores.write_hook("pre-receive", 'while read old new ref; do case "$ref" in refs/heads/*) exit 1;; esac; done')
    for branch in (CHECKPOINT, FINAL):
        with pytest.raises(GitPushError):
            sync_outputs(publication(stores.clone, branch, CHECKPOINT), say=str)
        assert (stores.refs(), stores.objects()) == before


def test_a_checkpoint_that_somebody_else_moved_meanwhile_is_not_overwritten(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push is a compare-and-swap from the commit that was read."""
    save(stores, 1)
    other = stores.clone_again()
    write_run(other, seed=3)
    push = Refs.push
    pushed: list[str] = []

    def after_the_other(refs: Refs, *moves: Any) -> None:
        if not pushed and refs.root == stores.clone and len(moves) > 1:
            pushed.append(sync_outputs(publication(other, CHECKPOINT, CHECKPOINT), say=str).commit)
        push(refs, *moves)

    monkeypatch.setattr(Refs, "push", after_the_other)
    write_run(stores.clone, seed=2)
    with pytest.raises(GitPushError, match="stale info"):
        sync_outputs(publication(stores.clone, CHECKPOINT, CHECKPOINT), say=str)
    assert stores.refs() == {f"refs/heads/{CHECKPOINT}": pushed[0]}
    assert set(stores.objects()) == wanted(other)


def test_a_lost_answer_to_the_move_is_settled(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intent says that it happened: it is cleaning."""
    save(stores, 1)
    push = Refs.push

    def lose(refs: Refs, *moves: Any) -> None:
        push(refs, *moves)
        if len(moves) > 1:
            raise GitPushError("the answer was lost")

    monkeypatch.setattr(Refs, "push", lose)
    published = save(stores, 2)
    assert stores.refs() == {f"refs/heads/{CHECKPOINT}": published.commit}
    assert set(stores.objects()) == wanted(stores.clone)


def test_what_cannot_be_cleaned_up_is_published_and_left_to_recover(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished run is safe; the old checkpoint's weights go when the DVC remote lets them."""
    save(stores, 1)
    old = set(stores.objects())
    write_run(stores.clone, seed=2)

    def refuse(*_: object) -> None:
        raise DvcPushError("not now")

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryObjects, "delete", refuse)
        finish(stores, told.append)
    assert any("published, but not cleaned up after" in line for line in told)
    assert set(stores.objects()) == old | wanted(stores.clone)
    other = stores.clone_again()
    checked = check(other, older_than=0, say=str)
    assert [finding.kind for finding in checked.findings] == ["expired"]
    assert "clean-up after" in checked.findings[0].what
    assert recover(other, older_than=0, say=told.append) == 0
    assert "is published, and what it took the place of is deleted" in told[-1]
    assert heads(stores) == [FINAL]
    assert set(stores.objects()) == wanted(stores.clone)
    assert finish(stores).before


def test_an_old_checkpoints_object_that_another_branch_names_stays(stores: Stores) -> None:
    """A person has kept the checkpoint under a tag."""
    kept = save(stores, 1).commit
    run_git("update-ref", "refs/tags/keep", kept, cwd=stores.origin)
    names = wanted(stores.clone)
    save(stores, 2)
    assert set(stores.objects()) == names | wanted(stores.clone)


def publish_what_is_being_deleted(stores: Stores, patch: pytest.MonkeyPatch) -> list[Exception]:
    """Move the checkpoint on, and right before the old one's first object goes let another clone publish that one."""
    save(stores, 1)
    other = stores.clone_again()
    write_run(other, seed=1)
    delete = DirectoryObjects.delete
    failures: list[Exception] = []
    begun: list[bool] = []

    def after_the_other(store: DirectoryObjects, oid: str, identity: str) -> None:
        if not begun:
            begun.append(True)
            try:
                sync_outputs(publication(other, FINAL), say=str)
            except DvcPushError as error:
                failures.append(error)
        delete(store, oid, identity)

    with patch.context() as inner:
        inner.setattr(DirectoryObjects, "delete", after_the_other)
        inner.setattr(publish_module, "PATIENCE", 0.0)  # it would wait for us, and we for it
        save(stores, 2)
    if failures:
        sync_outputs(publication(other, FINAL), say=str)
    return failures


def lost_objects(stores: Stores) -> list[str]:
    """Give what `check` says visible branches lack."""
    return [finding.what for finding in check(stores.clone, older_than=0, say=str).findings]


def test_who_publishes_what_another_is_deleting_waits_for_it(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """And sends it anew when it is gone: both branches are whole."""
    (refused,) = publish_what_is_being_deleted(stores, monkeypatch)
    assert "has been cleaning up the same objects" in str(refused)
    assert lost_objects(stores) == []
    assert len(stores.objects()) == 4


def test_without_the_declaration_of_what_is_superseded_a_branch_would_lack_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule that the test above rests on, switched off: the damage is seen."""
    monkeypatch.setattr(Intent, "is_deleting", lambda *_: False)
    assert publish_what_is_being_deleted(stores, monkeypatch) == []
    assert any(FINAL in what and "is not there" in what for what in lost_objects(stores))


# ── marks on the DVC remote ────────────────────────────────────────────────────────────────────────────────────────


def marks(stores: Stores) -> set[str]:
    """Give the marks on the DVC remote."""
    return {path.name for path in stores.storage.glob("kaggle-training-*")}


def publish(clone: Path, branch: str = FINAL, say: Any = str) -> Published:
    """Publish the run of a clone."""
    return sync_outputs(publication(clone, branch), say=say)


def test_the_first_publication_marks_the_dvc_remote_as_its_repositorys(stores: Stores) -> None:
    """By the first commit, once, from whatever clone; nothing of the proof of writing is left."""
    publish(stores.clone)
    assert marks(stores) == {f"kaggle-training-owner-{stores.root()}"}
    other = stores.clone_again()
    run_git("fetch", "--quiet", "--depth=1", cwd=other)
    write_run(other, seed=2)
    publish(other, f"{FINAL[:-1]}6")
    assert marks(stores) == {f"kaggle-training-owner-{stores.root()}"}


def test_a_dvc_remote_that_takes_no_writes_is_found_before_the_first_byte(stores: Stores) -> None:
    """No upload is begun, and nothing is left."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc/kaggle\n")
    with pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert "/proc/kaggle/files/md5 takes no writes" in caught.value.what
    assert "make it writable" in caught.value.remedy
    assert "everything is undone" in caught.value.state
    assert stores.refs() == {}


@pytest.fixture
def guest(stores: Stores, tmp_path: Path) -> Stores:
    """Another repository with the same DVC remote, which has been marked as the first one's."""
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


def test_a_shared_dvc_remote_keeps_what_the_other_repository_leaves(stores: Stores, guest: Stores) -> None:
    """The guest publishes; when it fails nothing is deleted, and the error says so and why."""
    told: list[str] = []
    publish(guest.clone, say=told.append)
    assert any("marked as that of the repository" in line for line in told)
    write_run(guest.clone, seed=8)
    guest.write_hook("pre-receive", 'while read old new ref; do case "$ref" in refs/heads/*) exit 1;; esac; done')
    with pytest.raises(GitPushError) as caught:
        publish(guest.clone, f"{FINAL[:-1]}6")
    assert "what was uploaded stays" in caught.value.state
    assert "no new object" not in caught.value.state
    assert guest.intents() == []
    assert len(stores.objects()) == 6
    assert len(marks(stores)) == 1


def test_check_says_whose_a_shared_dvc_remote_is(stores: Stores, guest: Stores) -> None:
    """In the guest's clone, as a remark; what the owner has there is no complaint."""
    publish(guest.clone)
    checked = check(guest.clone, older_than=0, say=str)
    assert checked.is_healthy
    assert [finding.kind for finding in checked.findings] == ["foreign"]
    assert stores.root() in checked.findings[0].what


def test_a_repository_with_nothing_but_runs_is_told_to_push_its_branch(stores: Stores) -> None:
    """Without a branch of its own nothing names it."""
    run_git("update-ref", "-d", "refs/heads/main", cwd=stores.origin)
    with pytest.raises(GitPushError, match="no branch that a run could have been trained from") as caught:
        publish(stores.clone)
    assert "push the branch" in caught.value.remedy
    assert stores.refs() == {}
    assert marks(stores) == set()
