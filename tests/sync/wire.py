"""Faults at the boundaries of this project: between it and git, and between it and the file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Stores, run_git
from publications import lock_of, md5_of, publish

from lib.errors import RunError
from lib.process import CommandTimedOut, Completed, run_command
from lib.remotes import repository as repository_module

Fault = Callable[[list[str]], str]


class Wire:
    """The boundary between this project and git: it can break a command, or do something just before one.

    A fault is what happens to a command that contacts the remote: `refused` (it does not happen and fails), `late` (it
    does not happen and gets no answer), `lost` (it happens and gets no answer), or empty for no fault.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fault: Fault = lambda _words: ""
        self.before_commit: dict[str, Callable[[], object]] = {}
        """{branch: what happens just before the first push that creates it}."""
        self.commands: list[list[str]] = []
        patch.setattr(repository_module, "run_command", self.run_command)
        patch.setattr(repository_module, "PAUSES", (0.01, 0.02))

    def run_command(self, command: Sequence[str | Path], **options: Any) -> Completed:
        """Run a command with the current fault."""
        words = [str(word) for word in command]
        begin = next((at for at, word in enumerate(words) if word in ("push", "ls-remote", "fetch")), 0)
        if not begin:
            return run_command(command, **options)
        words[1:begin] = []  # options of git itself
        if created := created_branch(words):
            self.before_commit.pop(created, lambda: None)()
        self.commands.append(words)
        fault = self.fault(words)
        if fault == "refused":
            command = ["sh", "-c", "echo 'fatal: unable to access the remote' >&2; exit 128"]
        elif fault == "late":
            raise CommandTimedOut("git", 1)
        answer = run_command(command, **options)
        if fault == "lost":
            raise CommandTimedOut("git", 1)
        return answer

    def count(self, command: str) -> int:
        """Return how often a git command was run since the last call, and forget all commands."""
        counted = sum(words[1] == command for words in self.commands)
        self.commands = []
        return counted

    def cut_at_the_commit(self, kind: str = "refused") -> None:
        """Break the commit push with this fault, and answer no command from then on."""
        cut: list[bool] = []

        def fault(words: list[str]) -> str:
            first = not cut and created_branch(words)
            cut.extend([True] * bool(first))
            return kind if first else "refused" if cut else ""

        self.fault = fault

    def heal(self) -> None:
        """Break nothing from now on."""
        self.fault = lambda _words: ""


def created_branch(words: Sequence[str]) -> str:
    """Return the branch that a command creates or moves on the remote."""
    if words[1] != "push":
        return ""
    created = (word.partition(":refs/heads/")[2] for word in words if word[0] not in "-:")
    return next(filter(None, created), "")


def when(fits: Callable[[list[str]], object], fault: str) -> Fault:
    """Return the fault for every command that fits, and none for others."""
    return lambda words: fault if fits(words) else ""


def once(fits: Callable[[list[str]], object], fault: str) -> Fault:
    """Return the fault for the first command that fits, and none for others."""
    left = [fault]
    return lambda words: left.pop() if left and fits(words) else ""


def at_each_copy(patch: pytest.MonkeyPatch, act: Callable[[int, Path], object]) -> None:
    """Call `act` for each file that is written to a folder, when it is complete and before it is visible.

    `act` receives the file's number, from 1, and its path.
    """
    real, seen = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.suffix == ".part" and "-probe." not in path.name and "-repository-" not in path.name:
            seen.append(str(path))
            act(len(seen), path)
        real(descriptor)

    patch.setattr("lib.sync.stores.folder.os.fsync", fsync)


def leave_a_run(wire: Wire, clone: Path, branch: str, *, lease: float = 0.5) -> str:
    """Publish, lose the network at the commit push and end the session: objects and a run's ref stay.

    Returns the ref.
    """
    wire.cut_at_the_commit()
    lock = lock_of(clone, branch, lease=lease)
    with pytest.raises(RunError):
        publish(clone, branch, hold=lock)
    lock.release()
    wire.heal()
    return lock.ref


def assert_branches_are_complete(stores: Stores) -> None:
    """Check that every object that a visible branch names is on the DVC remote, with its content."""
    for ref in stores.refs():
        if not ref.startswith("refs/heads/"):
            continue
        for name in run_git("ls-tree", "-r", "--name-only", ref, cwd=stores.origin).splitlines():
            if not name.endswith(".dvc"):
                continue
            text = run_git("show", f"{ref}:{name}", cwd=stores.origin)
            wanted = next(line.split("md5: ")[1] for line in text.splitlines() if "md5: " in line)
            path = stores.object_path(wanted)
            assert path.is_file(), f"{ref} names {name}, whose object is not there"
            assert md5_of(path.read_bytes()) == wanted.removesuffix(".dir")
