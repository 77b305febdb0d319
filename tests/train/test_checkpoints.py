"""Checkpoints are uploaded while a training runs, and the next session resumes from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ROOT, Stores, eventually, run_git
from publications import take_over

from lib.cli.app import app
from lib.errors import BranchError, CheckpointError, RunHeldError, SyncError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.session import Session
from lib.sync import Publication, RunLock, check, sync_outputs
from lib.train import checkpoints
from lib.train.checkpoints import (
    Checkpoint,
    CheckpointUploader,
    Record,
    checkpoint_branch,
    fetch_checkpoint,
    find_checkpoint,
    hold_run,
    recover_here,
)

EXPERIMENT = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", {"training.epochs": 9})
BRANCH = checkpoint_branch(EXPERIMENT)
REF = f"refs/heads/{BRANCH}"
DATASET = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture
def machine(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """Return remotes and a clone with a dataset; an uploader there looks for checkpoints many times a second."""
    monkeypatch.setattr(checkpoints, "LOOK", 0.02)
    monkeypatch.setattr("lib.remotes.repository.PAUSES", (0.01,))
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


@pytest.mark.parametrize("resume", ["auto", "never", "always"])
def test_the_checkpoint_of_an_experiment_with_the_same_branches_is_not_touched(machine: Stores, resume: str) -> None:
    """`lr_0.01` and `lr_0-01` share the branch: the second stops in step 4, whatever `session.resume` is."""
    mine, other = (
        load_experiment(EXPERIMENT.model_dump(), {"name": name, "session.resume": resume})
        for name in ("lr_0.01", "lr_0-01")
    )
    branch = checkpoint_branch(mine)
    assert branch == checkpoint_branch(other)
    file = machine.clone / mine.artifacts / "checkpoint.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")
    run_git("add", "--force", file, cwd=machine.clone)
    run_git("commit", "--quiet", "--message=checkpoint", cwd=machine.clone)
    run_git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", cwd=machine.clone)
    with pytest.raises(
        CheckpointError, match=r"is the checkpoint of detection/lr_0\.01, and detection/lr_0-01"
    ) as caught:
        find_checkpoint(session_of(machine, machine.clone, other))
    assert "give this experiment another name" in caught.value.remedy
    assert "resume never" not in caught.value.remedy


def test_the_hold_of_an_experiment_with_the_same_ref_stops_step_4(machine: Stores) -> None:
    """It would never become free for this one by waiting."""
    names = ("lr_0.01", "lr_0-01")
    first, second = (load_experiment(EXPERIMENT.model_dump(), {"name": name}) for name in names)
    hold = hold_run(session_of(machine, machine.clone, first))
    try:
        with pytest.raises(RunHeldError, match=r"is held by detection/lr_0\.01, whose name is shortened"):
            hold_run(session_of(machine, machine.clone, second))
    finally:
        hold.release()


def hold_of(stores: Stores) -> RunLock:
    """Return the lock of the run, held by a session in the clone."""
    hold = hold_run(session_of(stores, stores.clone, EXPERIMENT))
    hold.take()
    return hold


def uploader_of(stores: Stores, hold: RunLock, **session: Any) -> CheckpointUploader:
    """Return the uploader of a training in the clone."""
    keys = {f"session.{key}": value for key, value in session.items()}
    experiment = load_experiment(EXPERIMENT.model_dump(), keys)
    return CheckpointUploader(session_of(stores, stores.clone, experiment), DATASET, hold)


def session_of(stores: Stores, clone: Path, experiment: Experiment, commit: str = "") -> Session:
    """Return a session in `clone`, by default of the newest commit."""
    scratch = stores.folder / "scratch"
    return Session(clone, scratch, scratch, experiment, commit=commit or commit_of(stores))


@contextlib.contextmanager
def uploading(stores: Stores, **session: Any) -> Iterator[CheckpointUploader]:
    """Hold the run and upload checkpoints while the block trains; wait for the last upload and release the run."""
    hold = hold_of(stores)
    try:
        with uploader_of(stores, hold, **session) as uploader:
            yield uploader
        uploader.wait()
    finally:
        hold.release()


def test_an_error_of_this_machine_while_holding_is_left_to_preflight(
    machine: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is printed; taking the run later raises one error with a remedy."""
    (machine.clone / ".git/kaggle-sync").write_text("a file in place of the folder")
    hold = hold_run(session_of(machine, machine.clone, EXPERIMENT))
    assert "could not be held yet" in capsys.readouterr().out
    with pytest.raises(SyncError, match=r"taking the run .* stopped") as caught:
        hold.take()
    assert "free some space" in caught.value.remedy


def test_a_dvc_remote_that_cannot_be_opened_is_left_to_preflight(machine: Stores) -> None:
    """Step 4 goes on, so that preflight reports it together with all other errors."""
    (machine.clone / ".dvc/config").write_text("")
    assert "cannot be opened" in recover_here(session_of(machine, machine.clone, EXPERIMENT))


class Gate:
    """A hook of the Git remote that stops the first push of a checkpoint until it is opened."""

    def __init__(self, stores: Stores) -> None:
        self._reached, self._opened = stores.folder / "reached", stores.folder / "opened"
        wait = f"touch {self._reached}; while [ ! -e {self._opened} ]; do sleep 0.02; done"
        stores.write_hook("pre-receive", f'while read o n ref; do case "$ref" in {REF}) {wait};; esac; done')

    def wait(self) -> None:
        """Wait until a push has reached the hook."""
        eventually(self._reached.exists)

    def open(self) -> None:
        """Let this push and all others pass."""
        self._opened.touch()


def uploaded_record(stores: Stores) -> Record | None:
    """Return the record on the checkpoint branch, read by Git alone; None without a branch."""
    if REF not in stores.refs():
        return None
    text = run_git("cat-file", "blob", f"{REF}:{EXPERIMENT.artifacts}/checkpoint.json", cwd=stores.origin)
    return Record.model_validate_json(text)


def count_checkpoints(stores: Stores) -> int:
    """Return the number of checkpoints in the history of the branch, each a child of the one before."""
    return int(run_git("rev-list", "--count", f"{commit_of(stores)}..{REF}", cwd=stores.origin))


def uploaded_epoch(stores: Stores) -> int:
    """Return the epoch of the uploaded checkpoint; 0 without one."""
    record = uploaded_record(stores)
    return record.epoch if record else 0


# ── uploading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_is_uploaded_after_the_first_epoch_and_then_the_newest(machine: Stores) -> None:
    """One branch moves forward, and the DVC remote has the complete weights of one checkpoint."""
    with uploading(machine, checkpoint_minutes=0.001):
        train_epoch(machine, 1)
        eventually(lambda: uploaded_epoch(machine) == 1)
        train_epoch(machine, 2)
        train_epoch(machine, 3)
        eventually(lambda: uploaded_epoch(machine) == 3)
    assert list(machine.refs()) == [REF]
    assert len(machine.objects()) == 2
    findings = check(machine.clone_again()).findings
    assert [found for found in findings if DATASET not in found.what] == []  # it was never pushed
    message = run_git("show", "--no-patch", "--format=%B", REF, cwd=machine.origin)
    assert "[skip ci]" in message
    assert count_checkpoints(machine) >= 2
    record = uploaded_record(machine)
    assert record is not None
    assert record.differences(EXPERIMENT, commit_of(machine), DATASET) == []


def test_the_clone_that_trains_is_not_touched(machine: Stores) -> None:
    """No `.dvc` file, no ignore line, nothing staged: the final publication finds the clone as the training left it."""
    before = run_git("status", "--porcelain", cwd=machine.clone)
    with uploading(machine):
        train_epoch(machine, 1)
    assert uploaded_epoch(machine) == 1
    assert not list(machine.clone.rglob("*.pt.dvc"))
    assert run_git("status", "--porcelain", cwd=machine.clone) == before


def test_a_slow_upload_does_not_delay_training(machine: Stores) -> None:
    """Epochs continue during an upload; after it the newest checkpoint is uploaded, and those between are skipped."""
    gate = Gate(machine)
    with uploading(machine, checkpoint_minutes=0.0001):
        train_epoch(machine, 1)
        gate.wait()
        for epoch in (2, 3, 4):
            train_epoch(machine, epoch)
        gate.open()
        eventually(lambda: uploaded_epoch(machine) == 4)
    assert count_checkpoints(machine) == 2


def test_the_last_checkpoint_is_uploaded_when_training_ends_early(machine: Stores) -> None:
    """If the session's time is over before the next checkpoint is due, the last epoch is not lost."""
    with uploading(machine, checkpoint_minutes=500.0):
        train_epoch(machine, 1)
        eventually(lambda: uploaded_epoch(machine) == 1)
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
    machine.write_hook("pre-receive", f'while read o n ref; do [ "$ref" != {REF} ] || exit 1; done')
    with uploading(machine):
        train_epoch(machine, 1)
        output = ""
        while "the checkpoint upload failed (GitPushError" not in output:
            output += capsys.readouterr().out
            time.sleep(0.02)
        machine.remove_hook("pre-receive")
        eventually(lambda: uploaded_epoch(machine) == 1)
    assert "Checkpoint: epoch 1 is uploaded" in capsys.readouterr().out


def test_ctrl_c_does_not_wait_for_an_upload(machine: Stores) -> None:
    """A run that the user interrupts ends at once."""
    gate, hold = Gate(machine), hold_of(machine)

    def interrupt() -> None:
        gate.wait()
        raise KeyboardInterrupt

    train_epoch(machine, 1)
    uploader = uploader_of(machine, hold)
    with pytest.raises(KeyboardInterrupt), uploader:
        interrupt()
    assert uploader.is_at_work
    gate.open()
    eventually(lambda: not uploader.is_at_work)
    hold.release()


def test_the_publication_waits_for_the_running_upload_and_the_evaluation_does_not(machine: Stores) -> None:
    """Training ends during the upload of the second epoch; the third epoch is uploaded after it, and nothing more."""
    gate, hold = Gate(machine), hold_of(machine)
    train_epoch(machine, 2)
    with uploader_of(machine, hold) as uploader:
        gate.wait()
        train_epoch(machine, 3)
    assert uploader.is_at_work
    assert REF not in machine.refs()
    gate.open()
    uploader.wait()
    assert not uploader.is_at_work
    assert uploaded_epoch(machine) == 3
    hold.release()


def test_a_session_that_was_taken_over_uploads_nothing_more(
    machine: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its uploader reports it, does not say that it retries, and leaves the other session's checkpoint as it is."""
    with uploading(machine, checkpoint_minutes=0.0001):
        train_epoch(machine, 1)
        eventually(lambda: uploaded_epoch(machine) == 1)
        other = take_over(machine.clone_again(), EXPERIMENT.key)
        train_epoch(machine, 2)
        output = ""
        while "the checkpoint upload failed (TakenOverError" not in output:
            output += capsys.readouterr().out
            time.sleep(0.02)
    assert "it is retried" not in output
    assert uploaded_epoch(machine) == 1
    assert machine.runs() == [other.ref]
    other.release()


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


def test_settings_without_effect_on_the_model_do_not_count_as_differences(uploaded: Stores) -> None:
    """A shorter session, or one with other exports or without prepared images, resumes all the same."""
    assert find(uploaded, uploaded.clone_again(), session__max_hours=2.0, session__checkpoint_minutes=5.0) is not None
    assert find(uploaded, uploaded.clone_again("third"), export=["onnx"], hardware__prepare_images="never") is not None


def test_a_damaged_checkpoint_record_stops_the_run(uploaded: Stores) -> None:
    """Nothing is guessed or overwritten; the remedy is `session.resume never`."""
    other = uploaded.clone_again(branch=BRANCH)
    (other / EXPERIMENT.artifacts / "checkpoint.json").write_text("{")
    run_git("commit", "--quiet", "--all", "--message=damage", cwd=other)
    run_git("push", "--quiet", "origin", f"HEAD:{REF}", cwd=other)
    with pytest.raises(CheckpointError, match="that can be read") as caught:
        find(uploaded, uploaded.clone_again("third"))
    assert "session.resume never" in caught.value.remedy


def test_a_checkpoint_that_has_moved_since_it_was_read_is_not_mixed_with_the_next_one(uploaded: Stores) -> None:
    """Its files are gone, which is an error; a session that holds the run reads the branch again and resumes."""
    other = uploaded.clone_again()
    found = find(uploaded, other)
    assert found is not None
    with uploading(uploaded):
        train_epoch(uploaded, 7)
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(uploaded, other, found)
    found = find(uploaded, other)
    assert found is not None
    assert fetch(uploaded, other, found)["model"] == ["last.pt", 7]


def test_a_checkpoint_whose_weights_are_deleted_stops_the_run(uploaded: Stores) -> None:
    """The branch stays as it is; the remedy is `session.resume never`."""
    for name in uploaded.objects():
        (uploaded.storage / name).unlink()
    other = uploaded.clone_again()
    found = find(uploaded, other)
    assert found is not None
    with pytest.raises(CheckpointError, match="is not there") as caught:
        fetch(uploaded, other, found)
    assert "session.resume never" in caught.value.remedy
    assert REF in uploaded.refs()


def test_the_finished_run_deletes_its_checkpoint(uploaded: Stores) -> None:
    """One push creates the run's branch and deletes the checkpoint's; objects of the checkpoint alone are deleted."""
    train_epoch(uploaded, 9, finished=True)
    publish_finished(uploaded)
    assert list(uploaded.refs()) == ["refs/heads/kaggle-train-x"]
    assert len(uploaded.objects()) == 2
    assert all(name.startswith("files/md5/") for name in uploaded.objects())


def publish_finished(stores: Stores) -> None:
    """Publish the run of the clone as finished."""
    weights = tuple(f"{EXPERIMENT.artifacts}/{name}" for name in checkpoints.WEIGHTS)
    record = uploaded_record(stores)
    assert record is not None
    hold = hold_of(stores)
    run = Publication(
        stores.clone, "kaggle-train-x", "finished", EXPERIMENT.artifacts, weights, record.saved, hold=hold
    )
    sync_outputs(run, say=str)


# ── the format of the first version ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def first_version(machine: Stores) -> Stores:
    """Return remotes with the checkpoint of a third epoch as the first version published it: with `.dvc` files."""
    train_epoch(machine, 3)
    earlier = machine.clone_again("earlier")
    folder = earlier / EXPERIMENT.artifacts
    for name in checkpoints.WEIGHTS:
        source = machine.clone / EXPERIMENT.artifacts / name
        digest = hashlib.md5(source.read_bytes()).hexdigest()
        machine.object_path(digest).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, machine.object_path(digest))
        pointer = folder / f"{name}.dvc"
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(
            f"outs:\n- md5: {digest}\n  size: {source.stat().st_size}\n  hash: md5\n  path: {source.name}\n"
        )
    record = Record(
        schema=1, epoch=3, saved=datetime.now(UTC), commit=commit_of(machine), dataset=DATASET,
        experiment=EXPERIMENT.model_dump(mode="json"),
    )  # fmt: skip
    (folder / "checkpoint.json").write_text(record.model_dump_json(by_alias=True, exclude={"files"}))
    run_git("add", "--all", "artifacts", cwd=earlier)
    run_git("commit", "--quiet", "--message=checkpoint", cwd=earlier)
    run_git("push", "--quiet", "origin", f"HEAD:{REF}", cwd=earlier)
    return machine


def test_a_checkpoint_of_the_first_version_is_resumed_and_replaced(first_version: Stores) -> None:
    """`dvc pull` brings it once; the next checkpoint is its child. `check` names its objects once the run is over."""
    stores, other = first_version, first_version.clone_again()
    old, objects = stores.refs()[REF], stores.objects()
    found = find(stores, other)
    assert found is not None
    assert fetch(stores, other, found)["model"] == ["last.pt", 3]
    with uploading(stores):
        train_epoch(stores, 4)
    assert run_git("rev-parse", f"{REF}^", cwd=stores.origin) == old
    assert objects.items() <= stores.objects().items()
    found = find(stores, other)
    assert found is not None
    assert fetch(stores, other, found)["model"] == ["last.pt", 4]
    train_epoch(stores, 9, finished=True)
    publish_finished(stores)
    unnamed = [finding.what for finding in check(other).findings if finding.kind == "unnamed"]
    assert len(unnamed) == 2
    assert all(any(f"{name[10:12]}{name[13:]}" in what for what in unnamed) for name in objects)


# ── python -m lib fetch ─────────────────────────────────────────────────────────────────────────────────────────────


def fetch_by_command(clone: Path, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> Result:
    """Run `python -m lib fetch` in a clone, made to look like a checkout of this project."""
    for name in ("render.py", "uv.lock"):
        (clone / name).touch()
    monkeypatch.chdir(clone)
    return CliRunner().invoke(app, ["fetch", *map(str, words)])


def test_fetch_brings_the_weights_of_a_checkpoint(uploaded: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints their paths; the checkout stays unchanged, and a second call brings the newest checkpoint."""
    clone, folder = uploaded.clone_again(), uploaded.folder / "model"
    for epoch in (3, 7):
        if epoch == 7:
            with uploading(uploaded):
                train_epoch(uploaded, 7)
        done = fetch_by_command(clone, monkeypatch, BRANCH, "--output", folder)
        assert done.exit_code == 0, done.output
        paths = [folder / EXPERIMENT.artifacts / name for name in checkpoints.WEIGHTS]
        assert done.output.split() == [*map(str, paths)]
        assert [torch.load(path, weights_only=False)["model"] for path in paths] == [
            ["best.pt", epoch],
            ["last.pt", epoch],
        ]
    assert run_git("status", "--porcelain", "--untracked-files=no", cwd=clone) == ""
    assert not (clone / "artifacts").exists()


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_fetch_leaves_no_file_that_is_not_whole(uploaded: Stores, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    """The DVC remote has lost the weights, or holds other bytes."""
    for path in uploaded.storage.glob("kaggle-training-checkpoint-*"):
        status = path.stat()
        path.chmod(0o644)
        path.unlink() if harm == "gone" else path.write_bytes(b"x" * status.st_size)
        if harm == "damaged":
            os.utime(path, (status.st_mtime, status.st_mtime))
    raised = fetch_by_command(
        uploaded.clone_again(), monkeypatch, BRANCH, "--output", uploaded.folder / "model"
    ).exception
    assert isinstance(raised, BranchError)
    assert f"the weights of {BRANCH} cannot be downloaded" in raised.what
    assert not [path for path in (uploaded.folder / "model").rglob("*") if path.is_file()]


def test_fetch_names_the_remedy_for_other_checkpoints(first_version: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that an earlier version published is in `.dvc` files; one that does not exist is an error."""
    clone = first_version.clone_again()
    assert f"git switch {BRANCH} && dvc pull" in fetch_by_command(clone, monkeypatch, BRANCH).output
    raised = fetch_by_command(clone, monkeypatch, "kaggle-checkpoint-nothing").exception
    assert isinstance(raised, BranchError)
    assert "has no branch" in raised.what
