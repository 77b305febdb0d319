"""A run and a checkpoint in the formats of schema 2 and 1 are read by every reader, with the values that they hold.

The files in `published/` must never change: repositories of users hold such files. If a format changes, add files of
the new format and keep these. The `.dvc` files end in `.txt` there, because `python -m lib check` would look for the
objects of every `.dvc` file of this repository.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Stores, run_git
from pydantic import ValidationError

from lib.errors import BranchError
from lib.experiment.load import load_experiment
from lib.remotes.credentials import Credentials
from lib.results.compare import differences, read_runs
from lib.results.fetch import fetch_model
from lib.results.published import find_run, list_runs, read_published
from lib.results.record import Metrics, RunRecord, parse
from lib.results.status import Entry, read_status
from lib.session import Session
from lib.sync import Refs
from lib.train.checkpoints import fetch_checkpoint, find_checkpoint

FILES = Path(__file__).parent / "published"
RUN = "kaggle-train-localization-exp001-yolo11s-pose-baseline-20260105-083012"
CHECKPOINT = "kaggle-checkpoint-localization-exp001-yolo11s-pose-baseline"
FOLDER = "artifacts/localization/exp001_yolo11s_pose_baseline"
COMMIT = "3f1c9a7e5b2d4860917cae35d8f06b1724e9ac58"
DATASET = "5d41402abc4b2a76b9719d911017c592.dir"
POINTERS = {f"train/weights/{name}.pt.dvc": f"{name}.pt.dvc.txt" for name in ("best", "last")}
LAYOUTS = {
    RUN: {
        "run.json": "run.json",
        "train/metrics.json": "metrics.json",
        "train/results.csv": "results.csv",
        **POINTERS,
    },
    CHECKPOINT: {"checkpoint.json": "checkpoint.json", "train/results.csv": "results.csv", **POINTERS},
}
"""The files of both branches: paths in the artifacts' folder, and names in `published/`."""
METRICS = {
    "validation/box/precision": 0.98123,
    "validation/box/recall": 0.96542,
    "validation/box/mAP50": 0.98871,
    "validation/box/mAP50-95": 0.81254,
    "validation/pose/precision": 0.97214,
    "validation/pose/recall": 0.95633,
    "validation/pose/mAP50": 0.97902,
    "validation/pose/mAP50-95": 0.93417,
    "test/box/precision": 0.97841,
    "test/box/recall": 0.95987,
    "test/box/mAP50": 0.98546,
    "test/box/mAP50-95": 0.80319,
    "test/pose/precision": 0.96755,
    "test/pose/recall": 0.95102,
    "test/pose/mAP50": 0.97488,
    "test/pose/mAP50-95": 0.92761,
    "test/corners/objects": 421.0,
    "test/corners/found": 407.0,
    "test/corners/mean_px": 4.218,
    "test/corners/median_px": 2.906,
    "test/corners/p95_px": 11.473,
    "test/corners/mean_relative": 0.04127,
}


def push_branch(stores: Stores, branch: str, files: Mapping[str, str]) -> None:
    """Push a branch whose artifacts' folder holds these files."""
    clone = stores.clone_again(branch)
    for path, name in files.items():
        (clone / FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / FOLDER / path).write_bytes((FILES / name).read_bytes())
    run_git("add", "--all", "--force", FOLDER, cwd=clone)
    run_git("commit", "--quiet", "--message=published", cwd=clone)
    run_git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", cwd=clone)


@pytest.fixture
def clone(stores: Stores) -> Path:
    """Return a clone of remotes that hold both branches and the two objects that their `.dvc` files name."""
    for branch, files in LAYOUTS.items():
        push_branch(stores, branch, files)
    for name in ("best", "last"):
        content = f"the {name} weights\n".encode()
        path = stores.object_path(hashlib.md5(content).hexdigest())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    clone = stores.clone_again("user")
    pointer = clone / "data/localization.dvc"
    pointer.parent.mkdir()
    pointer.write_text(
        f"outs:\n- md5: {DATASET}\n  size: 734003200\n  nfiles: 8240\n  hash: md5\n  path: localization\n"
    )
    return clone


def published_json(name: str) -> dict[str, Any]:
    """Return the content of a JSON file in `published/`."""
    content: dict[str, Any] = json.loads((FILES / name).read_text(encoding="utf-8"))
    return content


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_published_run_is_found_and_read(clone: Path) -> None:
    """`read_published` returns the branch, its folder, the content of `run.json` and the requested file."""
    refs = Refs(clone, Credentials())
    assert list_runs(refs) == [RUN]
    assert find_run(refs, f"origin/{RUN}") == RUN
    run = read_published(refs, RUN, "train/metrics.json")
    assert (run.record.branch, run.folder, run.record.as_dict()) == (RUN, FOLDER, published_json("run.json"))
    assert json.loads(run.texts["train/metrics.json"]) == published_json("metrics.json")


def test_status_lists_a_published_run_and_checkpoint(clone: Path) -> None:
    """`read_status` returns state, epochs, time and metrics of the run, and epochs and time of the checkpoint."""
    experiment = "localization/exp001_yolo11s_pose_baseline"
    started = datetime(2026, 1, 5, 8, 30, 12, 345678, tzinfo=UTC)
    saved = datetime(2026, 1, 5, 15, 2, 44, 120931, tzinfo=UTC)
    assert read_status(clone, Credentials()) == [
        Entry(experiment, "checkpoint", f"refs/heads/{CHECKPOINT}", "41/100", saved),
        Entry(experiment, "interrupted", f"refs/heads/{RUN}", "63/100", started, METRICS),
    ]


def test_compare_reads_the_metrics_inputs_and_curves_of_a_published_run(clone: Path) -> None:
    """`read_runs` returns every measured value, the inputs by dotted key, and the columns of `results.csv`."""
    (side,) = read_runs(Refs(clone, Credentials()), [RUN])
    assert (side.branch, side.state) == (RUN, "interrupted")
    assert side.metrics == {"best_epoch": 57, "epochs": 63, **METRICS}
    expected = {
        "name": "exp001_yolo11s_pose_baseline",
        "model.architecture": "yolo11s-pose",
        "training.learning_rate": 0.001,
        "wandb.tags": ["localization", "yolo11s-pose", "baseline"],
        "commit": COMMIT,
        "dataset.md5": DATASET,
        "dataset.pictures.train": 3310,
        "versions.ultralytics": "8.4.100",
        "machine.gpus": "Tesla T4, Tesla T4",
        "machine.device": "0,1",
        "batch_size": 8,
        "start.weights": "yolo11s-pose.pt",
        "start.epoch": 0,
    }
    assert {key: side.made_from.get(key) for key in expected} == expected
    assert side.curves["epoch"] == [1.0, 2.0]
    assert side.curves["metrics/mAP50-95(P)"] == [0.31977, 0.60251]
    assert differences([side, side]) == {}


def test_a_published_run_is_fetched_with_its_weights_and_found_again(clone: Path, tmp_path: Path) -> None:
    """`fetch_model` pulls the objects that the `.dvc` files name; its second call reads the local `run.json`."""
    for _ in range(2):
        model = fetch_model(clone, RUN, Credentials(), tmp_path / "model")
        assert model.record.as_dict() == published_json("run.json")
        assert model.best.read_text() == "the best weights\n"
        assert [path.name for path in model.weights] == ["best.pt", "last.pt"]
    assert model.record.experiment["training"]["image_size"] == 640  # `predict` reads it


def test_a_published_run_can_be_run_again(clone: Path) -> None:
    """`rerun` reads branch, commit and accelerator from `run.json`."""
    record = read_published(Refs(clone, Credentials()), RUN).record
    assert (record.branch, record.commit, record.machine.accelerator) == (RUN, COMMIT, "t4x2")
    assert record.experiment == published_json("run.json")["experiment"]
    assert record.versions["torch"] == "2.8.0+cu126"
    assert record.resumed_from is None


# ── a checkpoint ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_published_checkpoint_is_found_and_fetched(clone: Path, tmp_path: Path) -> None:
    """`find_checkpoint` reads the record; `fetch_checkpoint` pulls `last.pt`; a changed key is a difference."""
    # always: a key that a later version adds is a difference, too, and must not fail this test
    given = {"session.resume": "always", "training.learning_rate": 0.002}
    experiment = load_experiment(ROOT / "experiments/001_loc_baseline.yaml", given)
    session = Session(clone, tmp_path, tmp_path / "scratch", experiment, commit=COMMIT)
    found = find_checkpoint(session)
    assert found is not None
    record = found.record
    assert (found.branch, record.version, record.epoch) == (CHECKPOINT, 1, 41)
    assert record.saved == datetime(2026, 1, 5, 15, 2, 44, 120931, tzinfo=UTC)
    assert (record.commit, record.dataset) == (COMMIT, DATASET)
    assert record.experiment == published_json("checkpoint.json")["experiment"]
    changed = record.differences(experiment, COMMIT, DATASET)
    assert "training.learning_rate 0.001 → 0.002" in changed
    assert not [text for text in changed if text.startswith(("the code", "the dataset"))]
    last = fetch_checkpoint(session, found)
    assert last.read_text() == "the last weights\n"


# ── formats ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_is_written_as_it_was_read(tmp_path: Path) -> None:
    """The text of the published `run.json` and `metrics.json` stays the same, byte for byte."""
    for name, kind in (("run.json", RunRecord), ("metrics.json", Metrics)):
        kind.model_validate_json((FILES / name).read_bytes()).write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes()


def test_a_run_of_schema_1_is_read() -> None:
    """Its `run.json` has no state, batch size, start and exported models; none of them is made up."""
    later = ("state", "batch_size", "start", "exported", "reason", "missing")
    content = {key: value for key, value in published_json("run.json").items() if key not in later} | {"schema": 1}
    record = RunRecord.model_validate(content)
    assert (record.version, record.state, record.batch_size, record.exported) == (1, "finished", None, ())
    assert record.as_dict() == content


def test_a_key_of_a_later_version_is_ignored() -> None:
    """In a section as well; a value of a known key must still be valid, and the error names the key."""
    content = published_json("run.json")
    later = {**content, "new": 1, "machine": {**content["machine"], "new": 1}}
    assert RunRecord.model_validate(later).as_dict() == content
    metrics = published_json("metrics.json")
    assert Metrics.model_validate({**metrics, "test": {**metrics["test"], "obb": {"mAP50": 0.5}}}).as_dict() == metrics
    with pytest.raises(ValidationError, match=r"^1 validation error for RunRecord\nmachine.gpus.0.name\n"):
        RunRecord.model_validate({**content, "machine": {"gpus": [{"name": 1, "memory": 2}]}})


@pytest.mark.parametrize("training", [None, 1, {"epochs": 9}])
def test_a_record_without_the_identity_of_its_experiment_is_invalid(training: Any) -> None:
    """Readers rely on its module, name, epochs and image size."""
    content = published_json("run.json")
    with pytest.raises(ValidationError, match=r"image_size is missing"):
        RunRecord.model_validate({**content, "experiment": {**content["experiment"], "training": training}})


def test_an_unreadable_record_is_reported_on_one_line(stores: Stores) -> None:
    """The error of `compare` names the branch and the problem; that of `parse` names the invalid key."""
    for text, problem in (
        ("{", "Invalid JSON: .*"),
        ('{"schema": "x"}', "schema: Input should be a valid integer, .*"),
    ):
        with pytest.raises(ValueError, match=rf"^{problem}$"):
            parse(Metrics, text)
    push_branch(stores, RUN, {"run.json": "run.json", "train/metrics.json": "results.csv"})
    with pytest.raises(BranchError, match=rf"{RUN}: {FOLDER}: .* cannot be read \(Invalid JSON: "):
        read_runs(Refs(stores.clone, Credentials()), [RUN])
