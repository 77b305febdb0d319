"""Step 1 as the notebook has it: the exact commit, with a token that stays in the environment, and once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Stores, run_git
from git_host_emulator import GitHost
from test_git_host import NAME, TOKEN, WRONG, places_of

from lib.kaggle.notebook import bake, read_notebook

LAST = 'say(f"{repository} at {commit} is in {root}")\n'


@dataclass(frozen=True)
class Session:
    """A machine that runs the notebook's first cells, as far as the clone, over a host with a private repository."""

    host: GitHost
    stores: Stores

    @property
    def clone(self) -> Path:
        """Where the repository comes to stand."""
        return self.stores.folder / "session/working/name"

    def run(self, commit: str, token: str | None = TOKEN, git: str = "") -> subprocess.CompletedProcess[str]:
        """Run them; `git` is what the machine's own configuration of git holds."""
        folder = self.stores.folder / "session"
        folder.mkdir(exist_ok=True)
        (folder / "secrets.json").write_text(json.dumps({"GITHUB_TOKEN": token} if token else {}))
        (folder / "gitconfig").write_text(git)
        values = {
            "repository": self.host.address(NAME), "commit": commit, "secrets": str(folder / "secrets.json"),
            "accelerator": "none", "working": str(folder / "working"),
        }  # fmt: skip
        notebook = bake(read_notebook((ROOT / "notebooks/train.py").read_text(encoding="utf-8")), values, "none")
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        before, found, _ = code.partition(LAST)
        assert found
        return subprocess.run(
            [sys.executable, "-c", before + found], cwd=folder, capture_output=True, text=True,
            env={**os.environ, "GIT_CONFIG_GLOBAL": str(folder / "gitconfig")}, timeout=120,
        )  # fmt: skip


@pytest.fixture
def session(stores: Stores) -> Iterator[Session]:
    """Give one; the repository has three commits."""
    for number in (2, 3):
        run_git("commit", "--quiet", "--allow-empty", f"--message={number}", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    with GitHost(stores.folder / "hosted") as host:
        host.add_repository(NAME, stores.origin)
        host.add_token(TOKEN)
        yield Session(host, stores)


def test_the_exact_commit_is_cloned_shallow_and_the_token_is_left_nowhere(session: Session) -> None:
    """The second of three commits, alone; the token stands in `secrets.json`, and in nothing that is made of it."""
    commit = run_git("rev-parse", "HEAD~1", cwd=session.stores.clone)
    done = session.run(commit)
    assert done.returncode == 0, done.stderr
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == commit
    assert run_git("rev-list", "--count", "HEAD", cwd=session.clone) == "1"
    assert places_of(TOKEN, session.clone.parent) == []
    assert TOKEN not in done.stdout + done.stderr


def test_a_clone_of_the_same_session_is_used_again(session: Session) -> None:
    """What stands in it stays, artifacts that were not published above all; only what is new comes over the wire."""
    first = run_git("rev-parse", "HEAD~1", cwd=session.stores.clone)
    assert session.run(first).returncode == 0
    model = session.clone / "artifacts/detection/exp/train/weights/best.pt"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"unpublished")
    born = (session.clone / "code.py").stat().st_ino
    for commit in (first, run_git("rev-parse", "HEAD", cwd=session.stores.clone)):
        again = session.run(commit)
        assert again.returncode == 0, again.stderr
        assert run_git("rev-parse", "HEAD", cwd=session.clone) == commit
    assert model.read_bytes() == b"unpublished"
    assert (session.clone / "code.py").stat().st_ino == born
    assert run_git("remote", cwd=session.clone) == "origin"


def test_a_host_that_gives_no_single_commits_is_cloned_whole(session: Session) -> None:
    """An older git protocol, and a host that lets nobody ask for a commit that no branch ends in."""
    run_git("config", "uploadpack.allowAnySHA1InWant", "false", cwd=session.stores.origin)
    commit = run_git("rev-parse", "HEAD~1", cwd=session.stores.clone)
    done = session.run(commit, git="[protocol]\n\tversion = 0\n")
    assert done.returncode == 0, done.stderr
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == commit
    assert run_git("rev-list", "--count", "origin/main", cwd=session.clone) == "3"


def test_a_public_repository_needs_no_token(session: Session) -> None:
    """To be cloned; publishing is another matter, and a later step's."""
    session.host.public.add(NAME)
    assert session.run("", token=None).returncode == 0
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == run_git("rev-parse", "HEAD", cwd=session.stores.clone)


@pytest.mark.parametrize("token", [None, WRONG])
def test_a_repository_that_cannot_be_cloned_is_told_with_its_remedy(session: Session, token: str | None) -> None:
    """A private one without a right token, in the session's first second."""
    done = session.run("", token=token)
    assert done.returncode == 1
    assert f"{session.host.address(NAME)} at its newest commit cannot be cloned" in done.stderr
    assert "GITHUB_TOKEN in secrets.json" in done.stderr
    assert WRONG not in done.stdout + done.stderr


def test_a_commit_that_is_not_on_the_host_is_told(session: Session) -> None:
    """It was rendered from a commit that was never pushed, or that is gone."""
    done = session.run("0123456789" * 4)
    assert done.returncode == 1
    assert "cannot be cloned" in done.stderr
    assert "that the commit is pushed" in done.stderr
