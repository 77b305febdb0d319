"""Checkpoints are uploaded while a training runs, and the next session resumes from them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Stores, run_git

from lib.errors import CheckpointError, SyncError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.session import Session
from lib.sync import Publication, check, sync_outputs
from lib.sync.refs import Refs
from lib.train import checkpoints
from lib.train.checkpoints import (
    Checkpoint,
    CheckpointUploader,
    Record,
    checkpoint_branch,
    fetch_checkpoint,
    find_checkpoint,
)

EXPERIMENT = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", {"training.epochs": 9})
BRANCH = checkpoint_branch(EXPERIMENT)
REF = f"refs/heads/{BRANCH}"
DATASET = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture
def machine(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """Return remotes and a clone with a dataset; an uploader there looks for checkpoints many times a second."""
    monkeypatch.setattr(checkpoints, "LOOK", 0.02)
    pointer = stores.clone / f"{EXPERIMENT.dataset}.dvc"
    pointer.parent.mkdir()
    pointer.write_text(f"outs:\n- md5: {DATASET}\n  path: detection\n", encoding="utf-8")
    run_git("add", "--all", "data", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    return stores


def commit_of(stores: Stores) -> str:
    """Return the commit that is trained."""
    return run_git("rev-parse", "HEAD", cwd=stores.clone)


def train_epoch(stores: Stores, epoch: int, *, finished: bool = False) -> None:
    """Write the files of a training after `epoch` epochs; like the trainer, replace each file atomically."""
    folder = stores.clone / EXPERIMENT.artifacts / "train"
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("epoch\n" + "".join(f"{number + 1}\n" for number in range(epoch)))
    content = {"epoch": -1, "optimizer": None} if finished else {"epoch": epoch - 1, "optimizer": {"state": epoch}}
    for name in ("last.pt", "best.pt"):
        temporary = folder / "weights" / f".{name}"
        torch.save({**content, "model": [name, epoch]}, temporary)
        temporary.replace(folder / "weights" / name)


def uploader_of(stores: Stores, **session: Any) -> CheckpointUploader:
    """Return the uploader of a training in the clone."""
    keys = {f"session.{key}": value for key, value in session.items()}
    experiment = load_experiment(EXPERIMENT.model_dump(), keys)
    return CheckpointUploader(session_of(stores, stores.clone, experiment), DATASET)


def session_of(stores: Stores, clone: Path, experiment: Experiment, commit: str = "") -> Session:
    """Return a session in `clone`, by default of the newest commit."""
    scratch = stores.folder / "scratch"
    return Session(clone, scratch, scratch, experiment, commit=commit or commit_of(stores))


@contextlib.contextmanager
def uploading(stores: Stores, **session: Any) -> Iterator[None]:
    """Upload checkpoints while the block trains, and wait for the last upload."""
    with uploader_of(stores, **session) as uploader:
        yield
    uploader.wait()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until another thread has done its work; a minute is far more than it takes."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def uploaded_record(stores: Stores) -> Record | None:
    """Return the record on the checkpoint branch, read by Git alone; None without a branch."""
    if REF not in stores.refs():
        return None
    text = run_git("cat-file", "blob", f"{REF}:{EXPERIMENT.artifacts}/checkpoint.json", cwd=stores.origin)
    return Record.model_validate_json(text)


def uploaded_epoch(stores: Stores) -> int:
    """Return the epoch of the uploaded checkpoint; 0 without one."""
    record = uploaded_record(stores)
    return record.epoch if record else 0


# ── uploading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_is_uploaded_after_the_first_epoch_and_then_the_newest(machine: Stores) -> None:
    """One branch moves forward, and the DVC remote has the complete weights of one checkpoint."""
    with uploading(machine, checkpoint_minutes=0.001):
        train_epoch(machine, 1)
        wait_until(lambda: uploaded_epoch(machine) == 1)
        train_epoch(machine, 2)
        train_epoch(machine, 3)
        wait_until(lambda: uploaded_epoch(machine) == 3)
    assert list(machine.refs()) == [REF]
    assert len(machine.objects()) == 2
    findings = check(machine.clone_again(), older_than=0, say=str).findings
    assert [found for found in findings if DATASET not in found.what] == []  # it was never pushed
    message = run_git("show", "--no-patch", "--format=%B", REF, cwd=machine.origin)
    assert "[skip ci]" in message
    assert run_git("rev-parse", f"{REF}^", cwd=machine.origin) == commit_of(machine)
    record = uploaded_record(machine)
    assert record is not None
    assert record.differences(EXPERIMENT, commit_of(machine), DATASET) == []


def test_the_clone_that_trains_is_not_touched(machine: Stores) -> None:
    """No `.dvc` file, no ignore line, nothing staged: the final publication finds the clone as the training left it."""
    before = run_git("status", "--porcelain", "--ignored", cwd=machine.clone)
    with uploading(machine):
        train_epoch(machine, 1)
    assert uploaded_epoch(machine) == 1
    assert not list(machine.clone.rglob("*.pt.dvc"))
    assert run_git("status", "--porcelain", "--ignored", cwd=machine.clone) == before


def test_a_slow_upload_does_not_delay_training(machine: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs continue during an upload; after it the newest checkpoint is uploaded, and those between are skipped."""
    sent: list[str] = []

    def upload_slowly(run: Publication, *args: Any, **kwargs: Any) -> Any:
        sent.append(run.message)
        if len(sent) == 1:
            for epoch in (2, 3, 4):
                train_epoch(machine, epoch)
        return sync_outputs(run, *args, **kwargs)

    monkeypatch.setattr(checkpoints, "sync_outputs", upload_slowly)
    with uploading(machine, checkpoint_minutes=0.0001):
        train_epoch(machine, 1)
        wait_until(lambda: uploaded_epoch(machine) == 4)
    assert len(sent) == 2


def test_the_last_checkpoint_is_uploaded_when_training_ends_early(machine: Stores) -> None:
    """If the session's time is over before the next checkpoint is due, the last epoch is not lost."""
    with uploading(machine, checkpoint_minutes=500.0):
        train_epoch(machine, 1)
        wait_until(lambda: uploaded_epoch(machine) == 1)
        train_epoch(machine, 5)
    assert uploaded_epoch(machine) == 5


@pytest.mark.parametrize("minutes", [500.0, None])
def test_the_checkpoint_of_a_failed_training_is_uploaded(machine: Stores, minutes: float | None) -> None:
    """The last checkpoint is uploaded even if none was before; the error is raised all the same."""
    train_epoch(machine, 2)
    with pytest.raises(RuntimeError), uploading(machine, checkpoint_minutes=minutes):
        raise RuntimeError("CUDA error")
    assert uploaded_epoch(machine) == 2


def test_a_finished_training_uploads_no_checkpoint(machine: Stores) -> None:
    """After the last epoch nothing is left to resume; finished models have no optimizer state either."""
    with uploading(machine):
        train_epoch(machine, 9)
    assert machine.refs() == {}
    with uploading(machine):
        train_epoch(machine, 9, finished=True)
    assert machine.refs() == {}


def test_a_failed_upload_is_reported_and_retried(
    machine: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Git host refuses the first push; the training succeeds, and the checkpoint is uploaded later."""
    monkeypatch.setattr(checkpoints, "AGAIN", 0.1)
    machine.write_hook("pre-receive", "exit 1")
    with uploading(machine):
        train_epoch(machine, 1)
        output = ""
        while "the checkpoint upload failed (GitPushError" not in output:
            output += capsys.readouterr().out
            time.sleep(0.02)
        machine.remove_hook("pre-receive")
        wait_until(lambda: uploaded_epoch(machine) == 1)
    assert "Checkpoint: epoch 1 is uploaded" in capsys.readouterr().out


def test_ctrl_c_does_not_wait_for_an_upload(machine: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that the user interrupts ends at once."""
    started, ended = threading.Event(), threading.Event()

    def upload(*_: Any, **__: Any) -> None:
        started.set()
        ended.wait(60)
        raise SyncError("too late")

    def interrupt() -> None:
        started.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "sync_outputs", upload)
    train_epoch(machine, 1)
    uploader = uploader_of(machine)
    with pytest.raises(KeyboardInterrupt), uploader:
        interrupt()
    assert uploader.is_at_work
    ended.set()
    wait_until(lambda: not uploader.is_at_work)


def test_the_publication_waits_for_the_running_upload_and_the_evaluation_does_not(
    machine: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends during the upload of the second epoch; the third epoch is uploaded after it, and nothing more."""
    started, evaluated = threading.Event(), threading.Event()

    def upload(*args: Any, **kwargs: Any) -> Any:
        started.set()
        assert evaluated.wait(60)
        return sync_outputs(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "sync_outputs", upload)
    train_epoch(machine, 2)
    with uploader_of(machine) as uploader:
        assert started.wait(60)
        train_epoch(machine, 3)
    assert uploader.is_at_work
    assert machine.refs() == {}
    evaluated.set()
    uploader.wait()
    assert not uploader.is_at_work
    assert uploaded_epoch(machine) == 3


# ── resuming ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def uploaded(machine: Stores) -> Stores:
    """Upload the checkpoint of a session's third epoch."""
    with uploading(machine):
        train_epoch(machine, 3)
    return machine


def find(stores: Stores, clone: Path, commit: str = "", **keys: Any) -> Checkpoint | None:
    """Look for a checkpoint in another machine's clone."""
    changed = {name.replace("__", "."): value for name, value in keys.items()}
    experiment = load_experiment(EXPERIMENT.model_dump(), changed)
    return find_checkpoint(session_of(stores, clone, experiment, commit))


def fetch(stores: Stores, clone: Path, found: Checkpoint) -> Any:
    """Fetch a checkpoint as a new session does, and load its `last.pt`."""
    last = fetch_checkpoint(session_of(stores, clone, EXPERIMENT), found)
    assert last.with_name("best.pt").is_file()
    return torch.load(last, weights_only=False)


def test_the_next_session_resumes_from_the_checkpoint(uploaded: Stores) -> None:
    """Another machine finds the checkpoint and fetches all of it."""
    other = uploaded.clone_again()
    found = find(uploaded, other)
    assert found is not None
    assert "epoch 3" in found.describe()
    assert fetch(uploaded, other, found) == {"epoch": 2, "optimizer": {"state": 3}, "model": ["last.pt", 3]}
    assert run_git("status", "--porcelain", cwd=other) == ""


def test_training_starts_over_without_a_checkpoint(machine: Stores) -> None:
    """Without a checkpoint, or with `session.resume: never`, nothing is found."""
    assert find(machine, machine.clone_again()) is None
    with uploading(machine):
        train_epoch(machine, 3)
    assert find(machine, machine.clone_again("third"), session__resume="never") is None


@pytest.mark.parametrize(
    ("keys", "commit", "expected"),
    [
        ({"training__learning_rate": 0.5}, "", "training.learning_rate 0.002 → 0.5"),
        ({"augmentation__degrees": 3.0}, "", "augmentation.degrees 0.0 → 3.0"),
        ({}, "f" * 40, "the code "),
    ],
)
def test_a_checkpoint_that_differs_stops_the_run_unless_resume_is_always_or_never(
    uploaded: Stores, keys: dict[str, Any], commit: str, expected: str
) -> None:
    """The error names the difference, and how to resume in spite of it or to start over."""
    other = uploaded.clone_again()
    with pytest.raises(CheckpointError) as caught:
        find(uploaded, other, commit, **keys)
    assert expected in caught.value.what
    assert "-p session.resume always" in caught.value.remedy
    assert "-p session.resume never" in caught.value.remedy
    assert find(uploaded, other, commit, session__resume="always", **keys) is not None
    assert find(uploaded, other, commit, session__resume="never", **keys) is None


def test_a_checkpoint_of_another_dataset_is_refused(uploaded: Stores) -> None:
    """The error shows the first digits of both DVC hashes."""
    other = uploaded.clone_again()
    pointer = other / f"{EXPERIMENT.dataset}.dvc"
    pointer.write_text(pointer.read_text().replace(DATASET, f"f{DATASET[1:]}"))
    with pytest.raises(CheckpointError, match=f"the dataset {DATASET[:12]} → f"):
        find(uploaded, other)


def test_session_and_export_settings_do_not_count_as_differences(uploaded: Stores) -> None:
    """A shorter session, or one with other exports, resumes all the same."""
    assert find(uploaded, uploaded.clone_again(), session__max_hours=2.0, session__checkpoint_minutes=5.0) is not None
    assert find(uploaded, uploaded.clone_again("third"), export=["onnx"]) is not None


def test_a_damaged_checkpoint_record_stops_the_run(uploaded: Stores) -> None:
    """Nothing is guessed or overwritten; the remedy is `session.resume never`."""
    other = uploaded.clone_again(branch=BRANCH)
    (other / EXPERIMENT.artifacts / "checkpoint.json").write_text("{")
    run_git("commit", "--quiet", "--all", "--message=damage", cwd=other)
    run_git("push", "--quiet", "origin", f"HEAD:{REF}", cwd=other)
    with pytest.raises(CheckpointError, match="that can be read") as caught:
        find(uploaded, uploaded.clone_again("third"))
    assert "session.resume never" in caught.value.remedy


def test_a_checkpoint_that_is_replaced_during_the_fetch_is_read_again(
    uploaded: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session replaces it between the reading of the branch and the pull, so the objects read are gone."""
    other = uploaded.clone_again()
    found = find(uploaded, other)
    assert found is not None
    read = Refs.read_files
    replaced: list[bool] = []

    def read_and_replace(refs: Refs, *args: Any, **kwargs: Any) -> dict[str, str]:
        files = read(refs, *args, **kwargs)
        if not replaced:
            replaced.append(True)
            with uploading(uploaded):
                train_epoch(uploaded, 7)
        return files

    monkeypatch.setattr(Refs, "read_files", read_and_replace)
    assert fetch(uploaded, other, found)["model"] == ["last.pt", 7]


def test_a_checkpoint_whose_weights_are_deleted_stops_the_run(uploaded: Stores) -> None:
    """The branch stays as it is; the remedy is `session.resume never`."""
    for name in uploaded.objects():
        (uploaded.storage / name).unlink()
    other = uploaded.clone_again()
    found = find(uploaded, other)
    assert found is not None
    with pytest.raises(CheckpointError, match="dvc pull") as caught:
        fetch(uploaded, other, found)
    assert "session.resume never" in caught.value.remedy
    assert REF in uploaded.refs()


def test_the_finished_run_deletes_its_checkpoint(uploaded: Stores) -> None:
    """One push creates the run's branch and deletes the checkpoint's; objects of the checkpoint alone are deleted."""
    train_epoch(uploaded, 9, finished=True)
    weights = tuple(f"{EXPERIMENT.artifacts}/{name}" for name in checkpoints.WEIGHTS)
    record = uploaded_record(uploaded)
    assert record is not None
    final = Publication(
        uploaded.clone, "kaggle-train-x", "finished", EXPERIMENT.artifacts, weights, record.saved, supersedes=(BRANCH,)
    )
    sync_outputs(final, say=str)
    assert list(uploaded.refs()) == ["refs/heads/kaggle-train-x"]
    assert len(uploaded.objects()) == 2
