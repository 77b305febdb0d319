"""`python -m lib stop`, with real Git remotes, the real kaggle client and an emulated Kaggle on loopback."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, Stores, run_git
from kaggle_emulator import LOST, USER, Act, Fault, KaggleEmulator, Kernel, Session
from publications import CHECKPOINT, checkpoints, publication

from lib.cli.app import app
from lib.errors import DiscardedError, ExperimentError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.remotes.credentials import Credentials
from lib.results.published import find_stops
from lib.results.status import read_status
from lib.session import Session as RunSession
from lib.sync import Refs, RunLock, Stop, sync_outputs
from lib.sync import lock as lock_module
from lib.sync.refs import ANY, RefUpdate
from lib.train.checkpoints import CheckpointUploader, Record
from lib.train.stop import key_of

NAME = "detection-exp001"
REF, STOP, HEAD = f"refs/runs/{NAME}", f"refs/stops/{NAME}", f"refs/heads/{CHECKPOINT}"
KERNEL = f"{USER}/train-{NAME}"
BASELINE = ROOT / "experiments/001_det_baseline.yaml"
LEASE = 1.0  # seconds


def experiment(name: str = "exp001") -> Experiment:
    """Return the experiment of the run."""
    return load_experiment(BASELINE, {"name": name})


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleEmulator]:
    """Yield an emulated Kaggle with the user's key in the environment, and a running kernel of the experiment."""
    with KaggleEmulator() as service:
        given = service.environment(tmp_path)
        for name in set(os.environ) - set(given):
            monkeypatch.delenv(name)
        for name in set(given) - {"PYTEST_CURRENT_TEST"}:
            monkeypatch.setenv(name, given[name])
        service.kernels[KERNEL] = Kernel(sessions=[Session(Act("RUNNING"))])
        yield service


@pytest.fixture
def held(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunLock]:
    """Yield the lock of a session on another machine, which looks often; the current folder is a person's clone."""
    monkeypatch.setattr(lock_module, "POLL", 0.1)
    monkeypatch.chdir(stores.clone_again("person"))
    lock = RunLock(Refs(stores.clone, Credentials()), NAME, full_name="detection/exp001", lease=LEASE, say=str)
    lock.take()
    yield lock
    lock.release()


def publish_checkpoint(stores: Stores, lock: RunLock) -> None:
    """Publish a checkpoint of epoch 7, which is two minutes old."""
    values = experiment().model_dump(mode="json")
    saved = datetime.now(UTC) - timedelta(minutes=2)
    record = Record(schema=2, epoch=7, saved=saved, commit="c" * 40, dataset="d", experiment=values)
    with checkpoints(stores.clone, lock) as publisher:
        publisher.publish(publication(stores.clone, CHECKPOINT), record.model_dump(mode="json", by_alias=True))


def stop(*words: str, answer: str = "") -> Result:
    """Run the command as a user does."""
    return CliRunner().invoke(app, ["stop", *words], input=answer)


def wish(stores: Stores) -> str:
    """Return the action of the stop on the Git remote."""
    return str(json.loads(run_git("show", f"{STOP}:stop.json", cwd=stores.origin))["action"])


# ── which run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "given",
    [
        *("detection/exp001_yolo11s_baseline", "detection-exp001-yolo11s-baseline", str(BASELINE)),
        *("kaggle-checkpoint-detection-exp001-yolo11s-baseline", "refs/runs/detection-exp001-yolo11s-baseline"),
        *(f"{before}kaggle-train-detection-exp001-yolo11s-baseline-20260102-030405" for before in ("", "origin/")),
    ],
)
def test_a_run_is_named_by_its_experiment_or_a_branch(given: str) -> None:
    """Whatever `status`, `--push` and the run's log show."""
    assert key_of(given) == "detection-exp001-yolo11s-baseline"


def test_an_experiment_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """The file is named."""
    with pytest.raises(ExperimentError, match=r"missing\.yaml"):
        key_of(str(tmp_path / "missing.yaml"))


# ── after the epoch under way ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("action", ["publish", "discard"])
def test_the_session_gets_the_wish(stores: Stores, held: RunLock, action: str) -> None:
    """In one push; `status` shows it."""
    done = stop("detection/exp001", *["--discard"] * (action == "discard"))
    assert done.exit_code == 0, done.output
    assert f"{NAME} was asked to stop" in done.output
    assert wish(stores) == action
    assert [entry.state for entry in read_status(stores.clone, Credentials())] == ["session, stop asked"]
    while held.stop is None:
        assert held.record is not None
    assert held.stop.action == action


def test_a_run_that_is_not_under_way_cannot_be_asked(stores: Stores, held: RunLock) -> None:
    """A finished or dead run, and a wrong name: nothing is created."""
    done = stop("detection/exp002")
    assert done.exit_code == 1
    assert "no session holds the run detection-exp002" in str(done.exception)
    assert set(stores.refs()) == {REF}


def test_a_run_of_another_repository_cannot_be_asked(stores: Stores, held: RunLock) -> None:
    """`git push --mirror` has copied its ref: its session does not look here."""
    assert held.record is not None
    held._ended.set()
    copy = held.refs.write_record(held.record.but(repository="0" * 16))
    run_git("push", "--force", "origin", f"{copy}:{REF}", cwd=stores.clone)
    done = stop(NAME)
    assert "copied from another repository" in str(done.exception)
    assert set(stores.refs()) == {REF}


def test_a_run_that_ends_while_it_is_asked_leaves_no_stop(stores: Stores, held: RunLock) -> None:
    """Its session has published before the stop was there: a later push is not refused for it."""
    held._ended.set()
    end = f'while read old new ref; do case "$ref" in refs/stops/*) git update-ref -d {REF};; esac; done'
    stores.write_hook("post-receive", end)
    done = stop(NAME)
    assert "has just ended by itself" in str(done.exception)
    assert stores.refs() == {}


# ── at once, on Kaggle ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_kernel_is_deleted_and_its_run_recovered(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """It says what is lost, and asks; the checkpoint stays, and the stop keeps others from going on by themselves."""
    publish_checkpoint(stores, held)
    held._ended.set()
    done = stop(NAME, "--now", answer="y\n")
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"This deletes {KERNEL} on Kaggle" in done.output
    assert re.search(r"Its newest checkpoint, of epoch 7 and \d+ min \d\d s old, stays; what it has", done.output)
    assert kaggle.kernels == {}
    assert set(stores.refs()) == {HEAD, STOP}
    assert len(stores.objects()) == 2
    assert "was asked to stop" in find_stops(Refs(stores.clone, Credentials()), experiment())[0]
    states = [(entry.experiment, entry.state) for entry in read_status(stores.clone, Credentials())]
    assert states == [(NAME, "stop asked"), ("detection/exp001", "checkpoint")]


def test_discarding_at_once_deletes_the_checkpoint(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """Branch and files; the stop stays."""
    publish_checkpoint(stores, held)
    held._ended.set()
    done = stop(NAME, "--now", "--discard", "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "is deleted, too" in done.output
    assert kaggle.kernels == {}
    assert set(stores.refs()) == {STOP}
    assert wish(stores) == "discard"
    assert stores.objects() == {}


def test_a_queued_kernel_without_a_run_is_deleted(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """It has not taken its run yet."""
    held.release()
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(Act("QUEUED"))])
    done = stop(NAME, "--now", "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "It has no checkpoint" in done.output
    assert kaggle.kernels == {}
    assert set(stores.refs()) == {STOP}


def test_nothing_is_deleted_without_a_yes(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """Neither by another answer nor without one."""
    for answer in ("n\n", ""):
        assert stop(NAME, "--now", answer=answer).exit_code == 1
    assert list(kaggle.kernels) == [KERNEL]
    assert set(stores.refs()) == {REF}


def test_a_run_that_is_not_on_kaggle_cannot_be_deleted(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """No kernel, or none whose session is under way."""
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(Act("COMPLETE"))])
    for _ in range(2):
        done = stop(NAME, "--now", "--yes")
        assert f"no version of {KERNEL} is queued or running" in str(done.exception)
        assert set(stores.refs()) == {REF}
        kaggle.kernels.clear()


def test_a_lost_answer_to_the_deletion_is_settled(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """The kernel is gone, which counts."""
    held._ended.set()
    kaggle.add_fault("DeleteKernel", LOST)
    done = stop(NAME, "--now", "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert set(stores.refs()) == {STOP}


def test_a_kernel_that_kaggle_keeps_is_asked_to_stop(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """The error says so: the run ends after its epoch."""
    kaggle.add_fault("DeleteKernel", Fault(500), 9)
    done = stop(NAME, "--now", "--yes")
    assert f"Kaggle did not delete {KERNEL}" in str(done.exception)
    assert list(kaggle.kernels) == [KERNEL]
    assert set(stores.refs()) == {REF, STOP}


def test_a_session_that_outlives_its_kernel_is_reported(stores: Stores, held: RunLock, kaggle: KaggleEmulator) -> None:
    """It runs elsewhere, answers, and stops after its epoch."""
    done = stop(NAME, "--now", "--yes")
    assert "yet a session of detection-exp001 is alive" in str(done.exception)
    assert set(stores.refs()) == {REF, STOP}


# ── afterwards ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_newest_branch_decides_whether_a_run_was_stopped(stores: Stores) -> None:
    """Older ones, those of experiments with a longer name, and unreadable ones do not count."""
    refs = Refs(stores.clone, Credentials())

    def push(name: str, stamp: str, state: str) -> str:
        chosen = experiment(name)
        branch, folder = f"kaggle-train-{chosen.key}-{stamp}", stores.clone / chosen.artifacts
        record = {"branch": branch, "commit": "c" * 40, "experiment": chosen.model_dump(mode="json"), "machine": {}}
        run_git("checkout", "--quiet", "-b", branch, "main", cwd=stores.clone)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(record | {"state": state}) if state else "{")
        run_git("add", "--force", folder / "run.json", cwd=stores.clone)
        run_git("commit", "--quiet", "--message=run", cwd=stores.clone)
        run_git("push", "--quiet", "origin", branch, cwd=stores.clone)
        return branch

    assert find_stops(refs, experiment()) == ()
    push("exp001", "20260101-000000", "finished")
    push("exp001-b", "20260109-000000", "stopped")
    assert find_stops(refs, experiment()) == ()
    branch = push("exp001", "20260102-000000", "stopped")
    push("exp001", "20260103-000000", "")
    assert find_stops(refs, experiment()) == (f"{NAME} was stopped: {branch}",)
    push("exp001", "20260104-000000", "interrupted")
    assert find_stops(refs, experiment()) == ()


def test_a_run_that_is_to_be_discarded_ends_with_an_error(stores: Stores, held: RunLock) -> None:
    """Its checkpoint goes, nothing is published; without that wish the run goes on."""
    session = RunSession(stores.clone, stores.folder / "working", stores.folder / "scratch", experiment())
    publish_checkpoint(stores, held)
    uploader = CheckpointUploader(session, "d", held)
    uploader.discard_if_asked()
    for action in ("publish", "discard"):
        held.stop = Stop.model_validate({"action": action})
        if action == "publish":
            uploader.discard_if_asked()
    with pytest.raises(DiscardedError, match="detection-exp001 is discarded"):
        uploader.discard_if_asked()
    assert set(stores.refs()) == {STOP}
    assert stores.objects() == {}
    held.refs.push(RefUpdate(STOP, ANY, None))
    sync_outputs(publication(stores.clone), say=str)  # another run is not touched
