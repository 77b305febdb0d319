"""A session is killed as Kaggle does it, all processes at once; the next one, on an empty machine, resumes it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, processes_with, run_git
from publications import take_over

from lib.sandbox.dataset import draw_dataset

EPOCHS = 8
ARTIFACTS = "artifacts/detection/exp000_sandbox"
CHECKPOINT = "refs/heads/kaggle-checkpoint-detection-exp000-sandbox"
MARK = "KAGGLE_TRAINING_SESSION"
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
MOMENTS = {
    "in an epoch": "",
    "while a checkpoint is uploaded": "refs/heads/kaggle-checkpoint-",
    "while it is published": "refs/heads/kaggle-train-",
}
"""Each moment of a kill, and the prefix of the ref whose push the remote blocks until then."""


def namespaces() -> list[str]:
    """Return the prefix that starts a command in its own process namespace; empty if the machine does not allow it."""
    allowed = shutil.which("unshare") and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    return NAMESPACE if allowed else []


@dataclass(frozen=True)
class Machine:
    """A sandbox, and the sessions on it, which it outlives."""

    folder: Path

    @property
    def sandbox(self) -> Path:
        """The sandbox's folder."""
        return self.folder / "sandbox"

    @property
    def origin(self) -> Path:
        """The sandbox's Git repository."""
        return self.sandbox / "origin.git"

    @property
    def blocked(self) -> Path:
        """The file that exists once the remote blocks a push."""
        return self.sandbox / "reached"

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a session as a user does, with checkpoints as often as possible."""
        data = self.folder / "data"
        if not data.exists():
            draw_dataset(data, "detection", counts={"train": 64, "val": 8, "test": 8}, size=160)
        keys = {"epochs": EPOCHS, "session.checkpoint_minutes": 0.01, "session.lease_minutes": 0.2}
        parameters = [str(word) for key, value in keys.items() for word in ("-p", key, value)]
        output = self.folder / f"rendered-{name}"
        folders = ["--data", str(data), "--sandbox", str(self.sandbox), "--output", str(output)]
        with self.log(name).open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                [*namespaces(), sys.executable, "render.py", "detection", "--run", *folders, *parameters],
                cwd=ROOT, env={**os.environ, MARK: str(self.sandbox)}, stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def log(self, name: str) -> Path:
        """Return the file with the output of a session."""
        return self.folder / f"{name}.log"

    def uploads(self) -> int:
        """Return the number of checkpoints that the first session has uploaded; an epoch may be passed over."""
        return self.log("first").read_text().count(" is uploaded (")

    def kill(self, session: subprocess.Popen[str]) -> None:
        """Kill all processes of a session at once, also those in other process groups."""
        session.kill()
        session.wait()
        mark = f"{MARK}={self.sandbox}".encode()
        while left := processes_with(mark):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def refs(self) -> list[str]:
        """Return the refs of the repository, except main and the repository's identity."""
        listed = run_git("for-each-ref", "--format=%(refname)", cwd=self.origin).splitlines()
        return [ref for ref in listed if ref != "refs/heads/main" and not ref.startswith("refs/kaggle/")]

    def block(self, ref: str) -> None:
        """Let the remote block in the middle of the next push of a ref that starts with `ref`."""
        hook = self.origin / "hooks/pre-receive"
        hook.parent.mkdir(exist_ok=True)
        lines = f'while read old new ref; do case "$ref" in {ref}*) touch {self.blocked}; sleep 300;; esac; done'
        hook.write_text(f"#!/bin/sh\n{lines}\n")
        hook.chmod(0o755)

    def unblock(self) -> None:
        """Let the remote accept every push again."""
        (self.origin / "hooks/pre-receive").unlink(missing_ok=True)

    def sessions(self) -> list[Path]:
        """Return the folders of the sessions, in order."""
        return sorted(self.sandbox.glob("runs/*"))

    def lib(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m lib` in another machine's clone."""
        clone = self.folder / "by-hand"
        if not clone.exists():
            run_git("clone", "--quiet", self.origin, clone, cwd=self.sandbox)
        return subprocess.run([sys.executable, "-m", "lib", *arguments], cwd=clone, capture_output=True, text=True)


def rows(session: Path) -> list[int]:
    """Return the epochs in a session's `results.csv`."""
    table = session / "origin" / ARTIFACTS / "train/results.csv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def wait_for(machine: Machine, session: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for a condition while the first session runs."""
    end = time.monotonic() + 300
    while not condition():
        output = machine.log("first").read_text()
        assert session.poll() is None, output[-5000:]
        assert time.monotonic() < end, output[-5000:]
        time.sleep(0.05)


def kill_in(machine: Machine, moment: str) -> None:
    """Run a session up to the moment, and kill it."""
    session = machine.start("first")
    wait_for(machine, session, lambda: machine.uploads() > 0)
    if ref := MOMENTS[moment]:
        machine.block(ref)
        wait_for(machine, session, machine.blocked.exists)
    else:
        wait_for(machine, session, lambda: machine.uploads() > 1)
    machine.kill(session)
    machine.unblock()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_next_session_resumes_a_killed_one(tmp_path: Path, moment: str, capfd: pytest.CaptureFixture[str]) -> None:
    """There is one finished branch and one W&B run, with every epoch once; no checkpoint, run or object is left."""
    machine = Machine(tmp_path)
    kill_in(machine, moment)
    (first,) = machine.sessions()
    assert CHECKPOINT in machine.refs()
    done = max(rows(first))
    assert (done == EPOCHS) == (moment == "while it is published")
    second = machine.start("second")
    second.wait(600)
    assert second.returncode == 0, machine.log("second").read_text()[-5000:]
    _, other = machine.sessions()
    run = json.loads((other / "origin" / ARTIFACTS / "run.json").read_text())
    lost = done - run["start"]["epoch"]
    with capfd.disabled():
        print(f"\nWork lost when killed {moment}: {lost} of {done} epochs")
    assert 0 <= lost <= 2  # the epoch that was not uploaded yet, and the one being uploaded
    assert run["state"] == "finished"
    assert rows(other) == list(range(1, EPOCHS + 1))
    recorded = machine.sandbox.glob("runs/*/wandb/offline-run-*")
    assert len({path.name.rpartition("-")[2] for path in recorded}) == 1
    assert machine.lib("recover").returncode == 0
    assert machine.refs() == [f"refs/heads/{run['branch']}"]
    checked = machine.lib("check")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_a_session_that_was_taken_over_stops_its_training(tmp_path: Path) -> None:
    """It ends with the reason and publishes nothing; the checkpoint stays for the session that has the run now."""
    machine = Machine(tmp_path)
    session = machine.start("first")
    wait_for(machine, session, lambda: machine.uploads() > 0)
    run_git("clone", "--quiet", machine.origin, tmp_path / "other", cwd=tmp_path)
    other = take_over(tmp_path / "other", "detection-exp000-sandbox")
    assert session.wait(120) == 1
    output = machine.log("first").read_text()
    assert "another session has taken over detection/exp000_sandbox" in output[output.rindex("Error: ") :]
    assert machine.refs() == [CHECKPOINT, other.ref]
    other.release()
