"""What is trained leaves the machine beside training, and the next session finds it."""

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
    """Give a session's clone with a dataset, which looks for new checkpoints many times a second."""
    monkeypatch.setattr(checkpoints, "LOOK", 0.02)
    pointer = stores.clone / f"{EXPERIMENT.dataset}.dvc"
    pointer.parent.mkdir()
    pointer.write_text(f"outs:\n- md5: {DATASET}\n  path: detection\n", encoding="utf-8")
    run_git("add", "--all", "data", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    return stores


def commit_of(stores: Stores) -> str:
    """Give the commit that is trained."""
    return run_git("rev-parse", "HEAD", cwd=stores.clone)


def train_epoch(stores: Stores, epoch: int, *, finished: bool = False) -> None:
    """Leave what a training leaves after so many epochs, as the trainer does: each file whole in one moment."""
    folder = stores.clone / EXPERIMENT.artifacts / "train"
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("epoch\n" + "".join(f"{number + 1}\n" for number in range(epoch)))
    content = {"epoch": -1, "optimizer": None} if finished else {"epoch": epoch - 1, "optimizer": {"state": epoch}}
    for name in ("last.pt", "best.pt"):
        part = folder / "weights" / f".{name}"
        torch.save({**content, "model": [name, epoch]}, part)
        part.replace(folder / "weights" / name)


def keeper_of(stores: Stores, **session: Any) -> CheckpointUploader:
    """Give what stands around a training there."""
    keys = {f"session.{key}": value for key, value in session.items()}
    experiment = load_experiment(EXPERIMENT.model_dump(), keys)
    return CheckpointUploader(session_of(stores, stores.clone, experiment), DATASET)


def session_of(stores: Stores, clone: Path, experiment: Experiment, commit: str = "") -> Session:
    """Return a session in `clone`, by default of the newest commit."""
    scratch = stores.folder / "scratch"
    return Session(clone, scratch, scratch, experiment, commit=commit or commit_of(stores))


@contextlib.contextmanager
def keep(stores: Stores, **session: Any) -> Iterator[None]:
    """Stand around a training there, until the finished run may be published."""
    with keeper_of(stores, **session) as keeper:
        yield
    keeper.wait()


def wait_until(true: Callable[[], object]) -> None:
    """Wait for another thread's work; a minute is far more than it takes."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def standing(stores: Stores) -> Record | None:
    """Give what the branch on the Git remote says, read by Git alone."""
    if REF not in stores.refs():
        return None
    text = run_git("cat-file", "blob", f"{REF}:{EXPERIMENT.artifacts}/checkpoint.json", cwd=stores.origin)
    return Record.model_validate_json(text)


def epoch_there(stores: Stores) -> int:
    """Give how far the checkpoint on the remotes is; 0 without one."""
    record = standing(stores)
    return record.epoch if record else 0


# ── leaving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_leaves_after_the_first_epoch_and_the_newest_follows(machine: Stores) -> None:
    """One branch that moves, the weights of one checkpoint on the DVC remote, all of it whole."""
    with keep(machine, checkpoint_minutes=0.001):
        train_epoch(machine, 1)
        wait_until(lambda: epoch_there(machine) == 1)
        train_epoch(machine, 2)
        train_epoch(machine, 3)
        wait_until(lambda: epoch_there(machine) == 3)
    assert list(machine.refs()) == [REF]
    assert len(machine.objects()) == 2
    findings = check(machine.clone_again(), older_than=0, say=str).findings
    assert [found for found in findings if DATASET not in found.what] == []  # it was never pushed
    message = run_git("show", "--no-patch", "--format=%B", REF, cwd=machine.origin)
    assert "[skip ci]" in message
    assert run_git("rev-parse", f"{REF}^", cwd=machine.origin) == commit_of(machine)
    record = standing(machine)
    assert record is not None
    assert record.differences(EXPERIMENT, commit_of(machine), DATASET) == []


def test_the_clone_that_trains_is_not_touched(machine: Stores) -> None:
    """No `.dvc` file, no ignore line, nothing staged: the final publication finds it as training left it."""
    before = run_git("status", "--porcelain", "--ignored", cwd=machine.clone)
    with keep(machine):
        train_epoch(machine, 1)
    assert epoch_there(machine) == 1
    assert not list(machine.clone.rglob("*.pt.dvc"))
    assert run_git("status", "--porcelain", "--ignored", cwd=machine.clone) == before


def test_training_waits_for_no_checkpoint(machine: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an upload takes its time epochs go on; afterwards it is the newest that leaves, not each."""
    sent: list[str] = []

    def slowly(run: Publication, *given: Any, **words: Any) -> Any:
        sent.append(run.message)
        if len(sent) == 1:
            for epoch in (2, 3, 4):
                train_epoch(machine, epoch)
        return sync_outputs(run, *given, **words)

    monkeypatch.setattr(checkpoints, "sync_outputs", slowly)
    with keep(machine, checkpoint_minutes=0.0001):
        train_epoch(machine, 1)
        wait_until(lambda: epoch_there(machine) == 4)
    assert len(sent) == 2


def test_what_has_not_left_leaves_when_training_ends_too_early(machine: Stores) -> None:
    """The session's time is over before the next checkpoint is due: the last epoch is not lost."""
    with keep(machine, checkpoint_minutes=500.0):
        train_epoch(machine, 1)
        wait_until(lambda: epoch_there(machine) == 1)
        train_epoch(machine, 5)
    assert epoch_there(machine) == 5


@pytest.mark.parametrize("minutes", [500.0, None])
def test_a_training_that_failed_leaves_its_checkpoint(machine: Stores, minutes: float | None) -> None:
    """Also where none leaves meanwhile; the error goes on."""
    train_epoch(machine, 2)
    with pytest.raises(RuntimeError), keep(machine, checkpoint_minutes=minutes):
        raise RuntimeError("CUDA error")
    assert epoch_there(machine) == 2


def test_a_finished_training_leaves_none(machine: Stores) -> None:
    """Its models have no optimizer; nor is there anything to go on with after the last epoch."""
    with keep(machine):
        train_epoch(machine, 9)
    assert machine.refs() == {}
    with keep(machine):
        train_epoch(machine, 9, finished=True)
    assert machine.refs() == {}


def test_a_checkpoint_that_cannot_leave_is_told_and_tried_again(
    machine: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host refuses at first; training ends well, and the checkpoint leaves when it may."""
    monkeypatch.setattr(checkpoints, "AGAIN", 0.1)
    machine.write_hook("pre-receive", "exit 1")
    with keep(machine):
        train_epoch(machine, 1)
        told = ""
        while "the checkpoint upload failed (GitPushError" not in told:
            told += capsys.readouterr().out
            time.sleep(0.02)
        machine.remove_hook("pre-receive")
        wait_until(lambda: epoch_there(machine) == 1)
    assert "Checkpoint: epoch 1 is uploaded" in capsys.readouterr().out


def test_ctrl_c_waits_for_no_upload(machine: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ends a run by hand has it ended at once."""
    begun, ended = threading.Event(), threading.Event()

    def upload(*_: Any, **__: Any) -> None:
        begun.set()
        ended.wait(60)
        raise SyncError("too late")

    def interrupt() -> None:
        begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "sync_outputs", upload)
    train_epoch(machine, 1)
    keeper = keeper_of(machine)
    with pytest.raises(KeyboardInterrupt), keeper:
        interrupt()
    assert keeper.is_at_work
    ended.set()
    wait_until(lambda: not keeper.is_at_work)


def test_the_evaluation_waits_for_no_upload_and_the_publication_for_the_one_under_way(
    machine: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends while the second epoch's checkpoint leaves; what has not left follows it, and then no more."""
    begun, evaluated = threading.Event(), threading.Event()

    def upload(*given: Any, **words: Any) -> Any:
        begun.set()
        assert evaluated.wait(60)
        return sync_outputs(*given, **words)

    monkeypatch.setattr(checkpoints, "sync_outputs", upload)
    train_epoch(machine, 2)
    with keeper_of(machine) as keeper:
        assert begun.wait(60)
        train_epoch(machine, 3)
    assert keeper.is_at_work
    assert machine.refs() == {}
    evaluated.set()
    keeper.wait()
    assert not keeper.is_at_work
    assert epoch_there(machine) == 3


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def left(machine: Stores) -> Stores:
    """Let a session leave the checkpoint of its third epoch."""
    with keep(machine):
        train_epoch(machine, 3)
    return machine


def find(stores: Stores, clone: Path, commit: str = "", **keys: Any) -> Checkpoint | None:
    """Look for a checkpoint from another machine."""
    changed = {name.replace("__", "."): value for name, value in keys.items()}
    experiment = load_experiment(EXPERIMENT.model_dump(), changed)
    return find_checkpoint(session_of(stores, clone, experiment, commit))


def bring(stores: Stores, clone: Path, found: Checkpoint) -> Any:
    """Fetch a checkpoint as a new session does, and load it."""
    last = fetch_checkpoint(session_of(stores, clone, EXPERIMENT), found)
    assert last.with_name("best.pt").is_file()
    return torch.load(last, weights_only=False)


def test_the_next_session_goes_on_where_the_other_ended(left: Stores) -> None:
    """Found by another machine, and brought whole."""
    other = left.clone_again()
    found = find(left, other)
    assert found is not None
    assert "epoch 3" in found.describe()
    assert bring(left, other, found) == {"epoch": 2, "optimizer": {"state": 3}, "model": ["last.pt", 3]}
    assert run_git("status", "--porcelain", cwd=other) == ""


def test_without_a_checkpoint_training_begins(machine: Stores) -> None:
    """And with one, if the experiment says so."""
    assert find(machine, machine.clone_again()) is None
    with keep(machine):
        train_epoch(machine, 3)
    assert find(machine, machine.clone_again("third"), session__resume="never") is None


@pytest.mark.parametrize(
    ("keys", "commit", "said"),
    [
        ({"training__learning_rate": 0.5}, "", "training.learning_rate 0.002 → 0.5"),
        ({"augmentation__degrees": 3.0}, "", "augmentation.degrees 0.0 → 3.0"),
        ({}, "f" * 40, "the code "),
    ],
)
def test_a_checkpoint_of_something_else_stops_the_run_unless_it_is_told_what_to_do(
    left: Stores, keys: dict[str, Any], commit: str, said: str
) -> None:
    """It says what differs and how to go on with it, or without."""
    other = left.clone_again()
    with pytest.raises(CheckpointError) as caught:
        find(left, other, commit, **keys)
    assert said in caught.value.what
    assert "-p session.resume always" in caught.value.remedy
    assert "-p session.resume never" in caught.value.remedy
    assert find(left, other, commit, session__resume="always", **keys) is not None
    assert find(left, other, commit, session__resume="never", **keys) is None


def test_another_dataset_is_told(left: Stores) -> None:
    """By DVC's hash of it."""
    other = left.clone_again()
    pointer = other / f"{EXPERIMENT.dataset}.dvc"
    pointer.write_text(pointer.read_text().replace(DATASET, f"f{DATASET[1:]}"))
    with pytest.raises(CheckpointError, match=f"the dataset {DATASET[:12]} → f"):
        find(left, other)


def test_how_a_session_uses_its_time_is_no_difference(left: Stores) -> None:
    """A shorter one goes on all the same."""
    assert find(left, left.clone_again(), session__max_hours=2.0, session__checkpoint_minutes=5.0) is not None
    assert find(left, left.clone_again("third"), export=["onnx"]) is not None


def test_a_damaged_record_stops_with_the_way_out(left: Stores) -> None:
    """Nothing is guessed, and nothing is trained over it."""
    other = left.clone_again(branch=BRANCH)
    (other / EXPERIMENT.artifacts / "checkpoint.json").write_text("{")
    run_git("commit", "--quiet", "--all", "--message=damage", cwd=other)
    run_git("push", "--quiet", "origin", f"HEAD:{REF}", cwd=other)
    with pytest.raises(CheckpointError, match="that can be read") as caught:
        find(left, left.clone_again("third"))
    assert "session.resume never" in caught.value.remedy


def test_a_checkpoint_that_moves_while_it_is_fetched_is_read_again(
    left: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session replaces it between the reading of the branch and the pull: what was read is gone."""
    other = left.clone_again()
    found = find(left, other)
    assert found is not None
    read = Refs.read_files
    moved: list[bool] = []

    def read_and_move(refs: Refs, *given: Any, **words: Any) -> dict[str, str]:
        files = read(refs, *given, **words)
        if not moved:
            moved.append(True)
            with keep(left):
                train_epoch(left, 7)
        return files

    monkeypatch.setattr(Refs, "read_files", read_and_move)
    assert bring(left, other, found)["model"] == ["last.pt", 7]


def test_a_checkpoint_whose_weights_are_gone_stops_with_the_way_out(left: Stores) -> None:
    """What was deleted by hand cannot be gone on from; the branch is left as it is."""
    for name in left.objects():
        (left.storage / name).unlink()
    other = left.clone_again()
    found = find(left, other)
    assert found is not None
    with pytest.raises(CheckpointError, match="dvc pull") as caught:
        bring(left, other, found)
    assert "session.resume never" in caught.value.remedy
    assert REF in left.refs()


def test_the_finished_run_ends_its_checkpoint(left: Stores) -> None:
    """In one push; what only the checkpoint had is gone from the DVC remote."""
    train_epoch(left, 9, finished=True)
    weights = tuple(f"{EXPERIMENT.artifacts}/{name}" for name in checkpoints.WEIGHTS)
    record = standing(left)
    assert record is not None
    final = Publication(
        left.clone, "kaggle-train-x", "finished", EXPERIMENT.artifacts, weights, record.saved, supersedes=(BRANCH,)
    )
    sync_outputs(final, say=str)
    assert list(left.refs()) == ["refs/heads/kaggle-train-x"]
    assert len(left.objects()) == 2
