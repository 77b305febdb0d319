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
    output = session.communicate(timeout=600)[0]
    return session.returncode, output


def refs(folder: Path) -> set[str]:
    """Return the refs of the repository, except main and its identity."""
    listed = run_git("for-each-ref", "--format=%(refname)", cwd=folder / "sandbox/origin.git").splitlines()
    return {ref for ref in listed if ref != "refs/heads/main" and not ref.startswith("refs/kaggle/")}


def show(folder: Path, ref: str, path: str) -> Any:
    """Return a JSON file of a branch's run."""
    return json.loads(run_git("show", f"{ref}:{ARTIFACTS}/{path}", cwd=folder / "sandbox/origin.git"))


def test_a_stopped_run_is_published_and_can_be_resumed(tmp_path: Path) -> None:
    """As stopped, with the epochs that it has; its checkpoint stays, and the next session finishes the same curve."""
    status, output = stop_in_the_middle(tmp_path, start(tmp_path, 200))
    assert status == 0, output[-5000:]
    assert "This run was asked to stop: it ends after the epoch under way, and publishes what it has." in output
    assert "is stopped and published" in output
    assert "refs/stops" not in str(refs(tmp_path))
    (branch,) = refs(tmp_path) - {CHECKPOINT}
    record, epochs = show(tmp_path, branch, "run.json"), show(tmp_path, branch, "train/metrics.json")["epochs"]
    assert record["state"] == "stopped"
    assert record["reason"] == f"stopped after epoch {epochs} of 200, as `python -m lib stop` asked"
    assert show(tmp_path, CHECKPOINT, "checkpoint.json")["epoch"] == epochs
    again = start(tmp_path, epochs + 1)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output[-5000:]
    (newer,) = refs(tmp_path) - {branch}
    assert show(tmp_path, newer, "run.json")["state"] == "finished"
    curve = run_git("show", f"{newer}:{ARTIFACTS}/train/results.csv", cwd=tmp_path / "sandbox/origin.git")
    assert [int(row["epoch"]) for row in csv.DictReader(curve.splitlines())] == list(range(1, epochs + 2))


def test_a_discarded_run_leaves_nothing_but_its_stop(tmp_path: Path) -> None:
    """No branch, no checkpoint, no object; the error says that a person wanted it."""
    status, output = stop_in_the_middle(tmp_path, start(tmp_path, 200), "--discard")
    assert status == 1
    assert "DiscardedError" in output or "is discarded, as `python -m lib stop --discard` asked" in output
    assert refs(tmp_path) == {STOP}
    stored = [path.name for path in (tmp_path / "sandbox/dvc-remote").rglob("*.pt")]
    assert not [name for name in stored if "checkpoint" in name]
