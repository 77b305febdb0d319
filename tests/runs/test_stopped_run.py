"""A run is stopped from another clone while it trains: published as stopped, and resumed; or discarded."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_git

from lib.sandbox.dataset import draw_dataset

pytestmark = pytest.mark.slow

ARTIFACTS = "artifacts/detection/exp000_sandbox"
CHECKPOINT, STOP = (f"refs/{kind}detection-exp000-sandbox" for kind in ("heads/kaggle-checkpoint-", "stops/"))


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """Start a run in the sandbox of a folder, as a user does."""
    data = folder / "data"
    if not data.exists():
        draw_dataset(data, "detection", counts={"train": 16, "val": 8, "test": 8}, size=160)
    keys = {"epochs": epochs, "session.lease_minutes": 0.2, "session.resume": "always"}
    parameters = [str(word) for key, value in keys.items() for word in ("-p", key, value)]
    folders = ["--data", str(data), "--sandbox", str(folder / "sandbox"), "--output", str(folder / "rendered")]
    return subprocess.Popen(
        [sys.executable, "render.py", "detection", "--run", *folders, *parameters],
        cwd=ROOT, env={**os.environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def stop_in_the_middle(folder: Path, session: subprocess.Popen[str], *words: str) -> tuple[int, str]:
    """Stop the run by the command in another clone, after its first epoch; return its exit status and output."""
    sandbox = folder / "sandbox"
    while not list(sandbox.glob(f"runs/*/origin/{ARTIFACTS}/train/weights/last.pt")):
        assert session.poll() is None, session.communicate()[0]
        time.sleep(0.1)
    person = folder / "person"
    run_git("clone", "--quiet", sandbox / "origin.git", person, cwd=folder)
    command = [sys.executable, "-m", "lib", "stop", "detection/exp000_sandbox", *words]
    done = subprocess.run(command, cwd=person, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = session.communicate(timeout=800)[0]
    return session.returncode, output


def refs(folder: Path) -> set[str]:
    """Return the refs of the repository, except main and its identity."""
    listed = run_git("for-each-ref", "--format=%(refname)", cwd=folder / "sandbox/origin.git").splitlines()
    return {ref for ref in listed if ref != "refs/heads/main" and not ref.startswith("refs/kaggle/")}


def show(folder: Path, ref: str, path: str) -> Any:
    """Return a JSON file of a branch's run."""
    return json.loads(run_git("show", f"{ref}:{ARTIFACTS}/{path}", cwd=folder / "sandbox/origin.git"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was stopped in the middle."""
    folder = tmp_path_factory.mktemp("stopped")
    status, output = stop_in_the_middle(folder, start(folder, 200))
    assert status == 0, output[-5000:]
    assert "This run was asked to stop: it ends after the epoch under way, and publishes what it has." in output
    assert "is stopped and published" in output
    return folder


def test_a_stopped_run_publishes_the_epochs_that_it_has(stopped: Path) -> None:
    """As stopped, with the reason; its checkpoint stays, its stop does not."""
    (branch,) = refs(stopped) - {CHECKPOINT}
    record, epochs = show(stopped, branch, "run.json"), show(stopped, branch, "train/metrics.json")["epochs"]
    assert record["state"] == "stopped"
    assert record["reason"] == f"stopped after epoch {epochs} of 200, as `python -m lib stop` asked"
    assert show(stopped, CHECKPOINT, "checkpoint.json")["epoch"] == epochs


def test_a_stopped_run_can_be_resumed(stopped: Path) -> None:
    """The next session finishes the same curve."""
    (branch,) = refs(stopped) - {CHECKPOINT}
    epochs = show(stopped, branch, "train/metrics.json")["epochs"]
    again = start(stopped, epochs + 1)
    output = again.communicate(timeout=800)[0]
    assert again.returncode == 0, output[-5000:]
    (newer,) = refs(stopped) - {branch}
    assert show(stopped, newer, "run.json")["state"] == "finished"
    curve = run_git("show", f"{newer}:{ARTIFACTS}/train/results.csv", cwd=stopped / "sandbox/origin.git")
    assert [int(row["epoch"]) for row in csv.DictReader(curve.splitlines())] == list(range(1, epochs + 2))


def test_a_discarded_run_leaves_nothing_but_its_stop(tmp_path: Path) -> None:
    """No branch, no checkpoint, no object; the error says that a person wanted it."""
    status, output = stop_in_the_middle(tmp_path, start(tmp_path, 200), "--discard")
    assert status == 1
    assert "is discarded, as `python -m lib stop --discard` asked" in output
    assert refs(tmp_path) == {STOP}
    stored = [path.name for path in (tmp_path / "sandbox/dvc-remote").rglob("*.pt")]
    assert not [name for name in stored if "checkpoint" in name]
