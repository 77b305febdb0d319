"""Both remotes are tried with real writes before a run, which leave nothing behind."""

from __future__ import annotations

import pytest
from conftest import Stores, run_git
from publications import nothing_changes, refuse

from lib.errors import DvcPushError, GitPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import recover, rehearse
from lib.sync.refs import Refs
from lib.sync.rehearse import BRANCHES
from lib.sync.stores.folder import FolderObjects


def test_a_rehearsal_pushes_and_writes_and_leaves_nothing(stores: Stores) -> None:
    """The host's hook has seen a branch and an intent."""
    stores.write_hook("post-receive", f"cat >> {stores.folder}/seen")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    seen = (stores.folder / "seen").read_text()
    assert f"refs/heads/{BRANCHES}" in seen
    assert "refs/intents/" in seen
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


def test_a_rehearsal_reports_the_branch_prefix_if_the_host_refuses_intents(stores: Stores) -> None:
    """A publication uses the same prefix."""
    refuse(stores, "refs/intents/*")
    lines: list[str] = []
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=lines.append)
    assert "kaggle-intents" in str(found.git)
    assert any("refuses refs/intents/" in line for line in lines)


def test_a_rehearsal_finds_that_the_dvc_remote_is_not_writable(stores: Stores) -> None:
    """Git is still tried."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc/kaggle\n")
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert isinstance(found.git, str)


def test_the_remains_of_a_killed_rehearsal_are_deleted(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recover` deletes the intent and the mark, the next rehearsal deletes the branch."""

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    push = Refs.push
    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "unmark", kill)
        with pytest.raises(Killed):
            rehearse(stores.clone, say=str)
    assert len(stores.intents()) == 1
    assert len(list(stores.storage.glob("*-probe-*"))) == 1
    run_git("update-ref", f"refs/heads/{BRANCHES}old", "main", cwd=stores.origin)
    monkeypatch.setattr(Refs, "push", push)
    assert recover(stores.clone_again(), older_than=0, say=str) == 0
    rehearse(stores.clone, say=str)
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_clone_without_a_dvc_remote_cannot_rehearse(stores: Stores) -> None:
    """The error names the cause."""
    (stores.clone / ".dvc/config").write_text("")
    with pytest.raises(SyncError, match="cannot be opened"):
        rehearse(stores.clone, Credentials(), say=str)
