"""The state of every experiment is read from the Git remote alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git, write_run

from lib.cli.app import app
from lib.experiment.load import load_experiment
from lib.remotes.credentials import Credentials
from lib.results.status import read_status, show_status
from lib.sync import Publication, RunLock, sync_outputs
from lib.sync.record import DeclaredCopy
from lib.sync.refs import Refs, RefUpdate

EXPERIMENT = load_experiment(
    ROOT / "experiments/001_det_baseline.yaml", {"name": "exp001", "training.epochs": 9}
).model_dump(mode="json")
COMMIT = "c" * 40
STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
OLDER, NEWER = (f"kaggle-train-detection-exp001-2025010{day}-030405" for day in (2, 3))
CHECKPOINT = "kaggle-checkpoint-detection-exp001"


def publish(stores: Stores, branch: str, files: dict[str, Any]) -> None:
    """Publish a run whose artifacts' folder holds these JSON files."""
    clone = stores.clone_again(branch)
    write_run(clone)
    for name, content in files.items():
        path = clone / RUN / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    sync_outputs(Publication(clone, branch, "a run", RUN, WEIGHTS, STARTED), say=str)


def run_of(branch: str, started: datetime, **more: Any) -> dict[str, Any]:
    """Return the content of a run.json, as far as these tests need it."""
    made_from = {"commit": COMMIT, "experiment": EXPERIMENT, "machine": {"gpus": []}}
    return {"branch": branch, **made_from, "started": started.isoformat(), **more}


@pytest.fixture
def remote(stores: Stores) -> Iterator[Stores]:
    """Return remotes with two runs, a checkpoint, two sessions, and a run and two refs that cannot be read."""
    metrics = {"epochs": 9, "test": {"images": 3, "box": {"mAP50": 0.875}}}
    publish(stores, OLDER, {"run.json": run_of(OLDER, STARTED), "train/metrics.json": metrics})
    newer = run_of(NEWER, STARTED + timedelta(days=1), state="interrupted")
    publish(stores, NEWER, {"run.json": newer, "train/metrics.json": {"epochs": 4}})
    saved = (STARTED + timedelta(days=2)).isoformat()
    checkpoint = {"epoch": 5, "saved": saved, "commit": COMMIT, "dataset": "d" * 32, "experiment": EXPERIMENT}
    publish(stores, CHECKPOINT, {"checkpoint.json": checkpoint})
    publish(stores, "kaggle-train-x", {"run.json": "{"})
    refs = Refs(stores.clone, Credentials())
    holds = [RunLock(refs, f"detection-exp00{number}", full_name=f"detection/exp00{number}") for number in (2, 3)]
    for hold in holds:
        assert hold.try_take()
    publishing, record = holds[0], holds[0].record
    assert record
    copy = DeclaredCopy(oid="0" * 32, size=1, identity="1", store="folder")
    publishing.push(record.but(publishing=(copy,)), RefUpdate("refs/asks/detection-exp002", None, refs.head()))
    later = refs.write_record(record.but(protocol=3))
    refs.push(RefUpdate("refs/runs/detection-exp004", None, later), RefUpdate("refs/intents/1", None, later))
    yield stores
    publishing.push(record)
    for hold in holds:
        hold.release()


def test_every_ref_of_a_run_is_shown(remote: Stores) -> None:
    """By experiment, newest first; what this version cannot read is shown as such and hides nothing else."""
    clone = remote.clone_again()
    entries = read_status(clone, Credentials())
    assert [(entry.experiment, entry.state, entry.epochs) for entry in entries] == [
        ("detection-exp004", "unreadable", ""),
        ("detection/exp001", "checkpoint", "5/9"),
        ("detection/exp001", "interrupted", "4/9"),
        ("detection/exp001", "finished", "9/9"),
        ("detection/exp002", "publishing, asked", ""),
        ("detection/exp003", "session", ""),
        ("kaggle-train-x", "unreadable", ""),
        ("of another version", "unreadable", ""),
    ]
    assert entries[3].metrics == {"test/box/mAP50": 0.875}
    shown = show_status(entries, now=STARTED + timedelta(days=2, hours=3))
    assert "0.875" in shown
    assert "3 h" in shown
    assert OLDER in shown
    assert run_git("status", "--porcelain", cwd=clone) == ""


def test_an_empty_remote_is_reported(stores: Stores) -> None:
    """A message replaces a table without rows."""
    assert "No run has been published" in show_status(read_status(stores.clone, Credentials()))


def test_the_command_prints_a_table_or_json(remote: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table by default, JSON with `--json`."""
    monkeypatch.chdir(remote.clone_again())
    assert "detection/exp001" in CliRunner().invoke(app, ["status"], catch_exceptions=False).output
    entries = json.loads(CliRunner().invoke(app, ["status", "--json"], catch_exceptions=False).output)
    assert [entry["when"] for entry in entries if entry["state"] == "finished"] == ["2025-01-02T03:04:05+00:00"]
    assert {entry["ref"] for entry in entries} >= {f"refs/heads/{OLDER}", "refs/runs/detection-exp003"}
