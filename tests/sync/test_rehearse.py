"""Both remotes are tried for real before a run, and are afterwards as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import Stores, run_git

from lib.errors import DvcPushError, GitPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import recover, rehearse
from lib.sync.refs import Refs
from lib.sync.rehearse import BRANCHES
from lib.sync.stores.folder import DirectoryObjects


@contextmanager
def nothing_stays(stores: Stores) -> Iterator[None]:
    """Both remotes are after the block what they were before it, but for the owner's mark."""
    before = stores.refs(), stores.objects()
    yield
    assert (stores.refs(), stores.objects()) == before


def test_a_rehearsal_pushes_and_writes_for_real_and_leaves_nothing(stores: Stores) -> None:
    """The host's hook has seen a branch and an intent."""
    stores.write_hook("post-receive", f"cat >> {stores.folder}/seen")
    with nothing_stays(stores):
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
    """Protected names, or a token that may only read."""
    stores.write_hook(
        "pre-receive", f'while read o n ref; do case "$ref" in {names}) echo GH006 >&2; exit 1;; esac; done'
    )
    with nothing_stays(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.git, GitPushError)
    assert "branch rules" in found.git.remedy
    assert isinstance(found.dvc, str)


def test_a_rehearsal_tells_the_branch_prefix_where_intents_are_refused(stores: Stores) -> None:
    """As a publication would."""
    stores.write_hook("pre-receive", 'while read o n ref; do case "$ref" in refs/intents/*) exit 1;; esac; done')
    told: list[str] = []
    with nothing_stays(stores):
        found = rehearse(stores.clone, say=told.append)
    assert "kaggle-intents" in str(found.git)
    assert any("refuses refs/intents/" in line for line in told)


def test_a_rehearsal_finds_that_the_dvc_remote_takes_no_files(stores: Stores) -> None:
    """And tries Git all the same."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc/kaggle\n")
    with nothing_stays(stores):
        found = rehearse(stores.clone, say=str)
    assert isinstance(found.dvc, DvcPushError)
    assert isinstance(found.git, str)


def test_what_a_killed_rehearsal_leaves_is_settled_and_swept(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intent and the mark by `recover`, the branch by the next rehearsal."""

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    push = Refs.push
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryObjects, "unmark", kill)
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
    """One clear error."""
    (stores.clone / ".dvc/config").write_text("")
    with pytest.raises(SyncError, match="cannot be opened"):
        rehearse(stores.clone, Credentials(), say=str)
