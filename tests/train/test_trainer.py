"""Trainings in processes of their own, on machines that fail: what is trained is never lost, and goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from conftest import ROOT, SEARCHED, Stores, run_git
from wandb_files import records

from lib.data.dataset import Dataset, check_dataset
from lib.errors import TrainingError, WeightsError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.kaggle.host import Gpu, Host
from lib.sandbox.dataset import draw_dataset
from lib.session import HOUR, Session
from lib.train.checkpoints import CheckpointUploader, checkpoint_branch
from lib.train.launch import Trained, prepare_library, train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint, fetch_weights

pytestmark = pytest.mark.slow

EPOCHS = 4
NEW = StartingPoint(None)


@dataclass(frozen=True)
class Machine:
    """A machine with a dataset; each training has a folder of its own."""

    folder: Path
    module: str
    data: Path

    def experiment(self, **values: Any) -> Experiment:
        """Give the module's small experiment, smaller still; `training__epochs=3` changes a value."""
        keys: dict[str, Any] = {"training.epochs": EPOCHS, "training.image_size": 64}
        keys |= {name.replace("__", "."): value for name, value in values.items()}
        return load_experiment(ROOT / f"experiments/000_{self.module[:3]}_sandbox.yaml", keys)

    def dataset(self, name: str, experiment: Experiment) -> Dataset:
        """Check the dataset for one training."""
        return check_dataset(self.data, experiment, self.folder / name / "scratch", md5="0" * 32)

    def session(self, name: str, experiment: Experiment, **values: Any) -> Session:
        """Return a session in a folder of that name; W&B records offline, in its folder `curves`."""
        root = self.folder / name
        return Session(root, root / "curves", root / "scratch", experiment, **values)

    def start(self, **values: Any) -> StartingPoint:
        """Return the starting point of a training with these values."""
        return fetch_weights(self.session("any", self.experiment(**values)))

    def train(
        self, name: str, start: StartingPoint = NEW, *, stop_after: float | None = None, **values: Any
    ) -> Trained:
        """Train in a folder of that name, on `gpus` GPUs, with the module `worker`."""
        host = Host((Gpu("Tesla T4", 15360),) * values.pop("gpus", 0))
        worker = values.pop("worker", "lib.train.trainer")
        hours = None if stop_after is None else 1.0
        experiment = self.experiment(session__max_hours=hours, **values)
        begun = time.monotonic() + (stop_after or 0.0) - HOUR
        session = self.session(name, experiment, host=host, begun=begun)
        data_file = self.dataset(name, experiment).data_file
        tracking = configure_tracking(session).resumed(start.run_path)
        return train(session, data_file, start, tracking, worker=worker)


def make_machine(folder: Path, module: str) -> Machine:
    """Draw a dataset of a few pictures."""
    draw_dataset(folder / "data", module, counts={"train": 8, "val": 4, "test": 4}, size=64)
    return Machine(folder, module, folder / "data")


@pytest.fixture(scope="module", autouse=True)
def _processes_find_the_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("YOLO_CONFIG_DIR", "YOLO_AUTOINSTALL", "YOLO_VERBOSE"):
            patch.setenv(name, os.environ.get(name, ""))  # put back afterwards
        patch.setenv("PYTHONPATH", SEARCHED)
        prepare_library(tmp_path_factory.mktemp("library"))
        yield


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Give a machine for detection."""
    return make_machine(tmp_path_factory.mktemp("machine"), "detection")


@pytest.fixture(scope="module")
def finished(machine: Machine) -> Trained:
    """Train without trouble."""
    return machine.train("finished")


@pytest.fixture(scope="module")
def interrupted(machine: Machine) -> Trained:
    """Train in a session that is over at once: one epoch fits."""
    return machine.train("interrupted", stop_after=0.0)


def load(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint; one that is torn raises."""
    from ultralytics.utils.patches import torch_load

    loaded: dict[str, Any] = torch_load(checkpoint, map_location="cpu")
    return loaded


def rows(trained: Trained) -> list[dict[str, str]]:
    """Give the rows of `results.csv`."""
    with (trained.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(checkpoint: Path) -> Any:
    """Give all parameters of a checkpoint's model, as one vector."""
    import torch

    content = load(checkpoint)
    model = (content.get("ema") or content["model"]).float()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def read_history(folder: Path) -> list[dict[str, str]]:
    """Give the rows that W&B was given, in order."""
    found = [record.history for record in records(folder) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): item.value_json for item in row.item} for row in found]


# ── one that ends well ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_training_leaves_two_models_and_nothing_half_written(finished: Trained) -> None:
    """Both load, without an optimizer; the table has every epoch once."""
    assert (finished.state, finished.reason, finished.error) == ("finished", "", None)
    assert sorted(path.name for path in finished.best.parent.iterdir()) == ["best.pt", "last.pt"]
    assert [load(path)["optimizer"] for path in (finished.best, finished.last)] == [None, None]
    assert [row["epoch"] for row in rows(finished)] == ["1", "2", "3", "4"]


def test_every_epoch_is_in_the_one_wandb_run(machine: Machine, finished: Trained) -> None:
    """Losses, metrics, rate and memory, an epoch a row, and the plots; read from W&B's own file."""
    history = read_history(machine.folder / "finished/curves")
    epochs = [row for row in history if "train/box_loss" in row]
    assert [json.loads(row["epoch"]) for row in epochs] == [1, 2, 3, 4]
    measured = {f"metrics/{name}(B)" for name in ("precision", "recall", "mAP50", "mAP50-95")}
    losses = {f"{part}/{name}_loss" for part in ("train", "val") for name in ("box", "cls", "dfl")}
    wanted = measured | losses | {"lr/pg0", "gpu_memory_gib"}
    assert all(wanted <= row.keys() for row in epochs)
    assert [float(f"{float(row['lr/pg0']):.6g}") for row in epochs] == [float(row["lr/pg0"]) for row in rows(finished)]
    assert any(key.startswith("plots/results") for row in history for key in row)


def test_a_checkpoint_that_is_read_while_it_is_written_is_whole(machine: Machine) -> None:
    """A reader that never rests loads both files all through a training, the stripping at its end too."""
    torn: list[str] = []
    loads = [0]
    over = threading.Event()
    folder = machine.folder / "read" / machine.experiment().artifacts / "train" / "weights"

    def read() -> None:
        while not over.is_set():
            for name in ("last.pt", "best.pt"):
                if (folder / name).is_file():
                    try:
                        load(folder / name)
                        loads[0] += 1
                    except Exception as error:  # noqa: BLE001
                        torn.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        machine.train("read")
    finally:
        over.set()
        reader.join()
    assert loads[0] > 10
    assert torn == []


def test_no_epoch_waits_for_a_checkpoint_that_takes_longer_than_one(
    machine: Machine, stores: Stores, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Git remote answers the first checkpoint's push when three more epochs are trained: else this would hang."""
    values: dict[str, Any] = {"training__epochs": 16, "session__checkpoint_minutes": 0.001}
    here = Machine(stores.folder, machine.module, machine.data)
    experiment = here.experiment(**values)
    branch = f"refs/heads/{checkpoint_branch(experiment)}"
    table, first = stores.clone / experiment.artifacts / "train/results.csv", stores.folder / "first"
    stores.write_hook(
        "pre-receive",
        f"""while read old new ref; do [ "$ref" = {branch} ] && moves=yes; done
[ "$moves" ] && mkdir {first} || exit 0
rows=$(wc -l < {table})
for turn in $(seq 2400); do [ $(wc -l < {table}) -ge $((rows + 3)) ] && exit 0; sleep 0.05; done
exit 1""",
    )
    commit = run_git("rev-parse", "HEAD", cwd=stores.clone)
    session = here.session("clone", experiment, commit=commit)
    with CheckpointUploader(session, "0" * 32) as uploader:
        trained = here.train("clone", **values)
    uploader.wait()
    assert trained.state == "finished"
    told = capfd.readouterr().out
    assert "checkpoint upload failed" not in told
    left = [int(epoch) for epoch in re.findall(r"Checkpoint: epoch (\d+) is uploaded", told)]
    assert [later for later in left[1:] if later < left[0] + 3] == []  # the newest follows, not the next
    ends = [float(row["time"]) for row in rows(trained)]
    seconds = [after - before for before, after in pairwise(ends)]
    beside, others = seconds[left[0] : left[0] + 2], [*seconds[1 : left[0]], *seconds[left[0] + 2 :]]
    with capfd.disabled():
        print(f"\nAn epoch beside a checkpoint that leaves: {median(beside):.2f} s; others: {median(others):.2f} s")


# ── the session's time ────────────────────────────────────────────────────────────────────────────────────────────────


def test_training_ends_with_the_last_epoch_that_fits(interrupted: Trained) -> None:
    """Interrupted, and it says so; best.pt is a model, last.pt is complete."""
    assert interrupted.state == "interrupted"
    assert "after epoch 1 of 4" in interrupted.reason
    assert "session.max_hours" in interrupted.reason
    last = load(interrupted.last)
    assert last["epoch"] == 0
    assert last["optimizer"] is not None
    assert load(interrupted.best)["optimizer"] is None
    assert len(rows(interrupted)) == 1


def test_time_that_is_long_enough_changes_nothing(machine: Machine, finished: Trained) -> None:
    """The schedule is that of all epochs, and the same numbers come out as without a limit."""
    limited = machine.train("limited", stop_after=3600.0)
    assert limited.state == "finished"
    same = [[{**row, "time": ""} for row in rows(trained)] for trained in (limited, finished)]
    assert same[0] == same[1]


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def moved(machine: Machine, interrupted: Trained) -> Path:
    """Put the interrupted checkpoint alone into another folder, as a Kaggle dataset has it."""
    folder = machine.folder / "input"
    folder.mkdir()
    return folder / "last.pt" if (folder / "last.pt").exists() else copy(interrupted.last, folder / "last.pt")


def copy(source: Path, target: Path) -> Path:
    """Copy a file."""
    target.write_bytes(source.read_bytes())
    return target


@pytest.fixture(scope="module")
def resumed(machine: Machine, moved: Path) -> Trained:
    """Go on from it, in another folder."""
    start = machine.start(model__resume_from=str(moved))
    assert start.epoch == 1
    return machine.train("resumed", start, model__resume_from=str(moved))


def test_a_resumed_training_is_one_curve_with_the_interrupted_one(resumed: Trained, finished: Trained) -> None:
    """Every epoch once, the same learning rates as without the interruption, time that goes on."""
    assert resumed.state == "finished"
    assert [row["epoch"] for row in rows(resumed)] == ["1", "2", "3", "4"]
    assert [row["lr/pg0"] for row in rows(resumed)] == [row["lr/pg0"] for row in rows(finished)]
    assert rows(resumed)[0] | {"time": ""} == rows(finished)[0] | {"time": ""}
    times = [float(row["time"]) for row in rows(resumed)]
    assert times == sorted(times)


def test_a_resumed_training_comes_near_the_uninterrupted_one(
    resumed: Trained, finished: Trained, interrupted: Trained
) -> None:
    """The same pictures in the same order; not the same weights, for a checkpoint holds them in half precision."""
    apart = (weights(resumed.last) - weights(finished.last)).norm()
    moved = (weights(finished.last) - weights(interrupted.last)).norm()
    assert apart < moved / 4
    losses = [float(rows(trained)[1]["train/box_loss"]) for trained in (resumed, finished)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_resumed_training_goes_on_in_the_same_wandb_run(machine: Machine, moved: Path, resumed: Trained) -> None:
    """The checkpoint says in which; its new epochs are added there."""
    runs = {
        record.run.run_id
        for name in ("interrupted", "resumed")
        for record in records(machine.folder / name / "curves")
        if record.HasField("run")
    }
    assert len(runs) == 1
    assert {machine.start(model__resume_from=str(moved)).run_path.rpartition("/")[2]} == runs


def test_the_best_weights_before_the_interruption_are_not_lost(machine: Machine, interrupted: Trained) -> None:
    """Beside last.pt lies a best.pt that no later epoch beats: it is the best one's at the end too."""
    folder = machine.folder / "beside"
    folder.mkdir()
    last, best = copy(interrupted.last, folder / "last.pt"), copy(interrupted.best, folder / "best.pt")
    import torch

    for path in (last, best):
        content = load(path)
        content["train_metrics"]["fitness"] = 0.999  # no epoch of this training comes near
        if path == last:
            content["best_fitness"] = 0.999
        torch.save(content, path)
    start = machine.start(model__resume_from=str(last))
    trained = machine.train("beside-it", start, model__resume_from=str(last))
    assert (weights(trained.best) == weights(best)).all()
    assert not (weights(trained.last) == weights(best)).all()


def test_a_finished_checkpoint_starts_a_new_training_from_its_weights(machine: Machine, finished: Trained) -> None:
    """It has no optimizer to go on with, and the run says so."""
    start = machine.start(model__resume_from=str(finished.last))
    assert (start.weights, start.epoch) == (finished.last, 0)
    assert "finished" in start.describe()


def test_what_the_experiment_changes_is_said(machine: Machine, moved: Path) -> None:
    """The experiment's values are trained with, and the checkpoint's are named beside them."""
    start = machine.start(model__resume_from=str(moved), training__learning_rate=0.004)
    assert "lr0 0.002 → 0.004" in start.describe()
    assert "epochs" not in start.describe()


@pytest.mark.parametrize("fault", ["torn", "no checkpoint", "another size", "another task", "no epochs left"])
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(
    machine: Machine, moved: Path, tmp_path: Path, fault: str
) -> None:
    """One error with key, value and reason, before anything is trained."""
    path, values = copy(moved, tmp_path / "a.pt"), {"model__resume_from": str(tmp_path / "a.pt")}
    told = {
        "torn": "damaged", "no checkpoint": "not a checkpoint", "another size": "it is of yolo11n",
        "another task": r"it is of yolo11n \(detect\), the experiment is of yolo11n-pose \(pose\)",
        "no epochs left": "it has completed 1 epochs, and training.epochs is 1",
    }[fault]  # fmt: skip
    experiment = machine.experiment(**values)
    if fault == "torn":
        path.write_bytes(path.read_bytes()[:-1000])
    if fault == "no checkpoint":
        path.write_text("weights", encoding="utf-8")
    if fault == "another size":
        experiment = machine.experiment(**values, model__architecture="yolo11s")
    if fault == "another task":
        experiment = Machine(tmp_path, "localization", machine.data).experiment(**values)
    if fault == "no epochs left":
        experiment = machine.experiment(**values, training__epochs=1)
    with pytest.raises(WeightsError, match=told) as caught:
        fetch_weights(machine.session("any", experiment))
    assert f"model.resume_from is '{path}'" in caught.value.what


# ── machines that fail ────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_that_is_too_small_is_one_clear_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the requirements' errors: what to change, and nothing halved in silence."""
    monkeypatch.setenv("FAULT", "memory:4")
    with pytest.raises(TrainingError, match=r"CUDA out of memory: training.batch_size is 8") as caught:
        machine.train("small", worker="faulty_trainer")
    assert "reduce training.batch_size" in caught.value.remedy


@pytest.mark.parametrize("gpus", [0, 2])
def test_batches_are_halved_by_the_experiments_choice(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: int
) -> None:
    """Down to what fits, the gradients being accumulated to the nominal batch; the end says what it came to."""
    monkeypatch.setenv("FAULT", "memory:4")
    if gpus:
        monkeypatch.setenv("GLOO", "1")
    trained = machine.train(f"halved-{gpus}", gpus=gpus, worker="faulty_trainer", training__min_batch_size=2)
    assert (trained.state, trained.batch_size, trained.device) == ("finished", 4, "0,1" if gpus else "cpu")
    assert len(rows(trained)) == EPOCHS
    assert load(trained.last)["train_args"]["batch"] == 4
    assert load(trained.last)["train_args"]["nbs"] == 8
    assert "continues with batches of 4" in capsys.readouterr().out


def test_batches_are_halved_no_further_than_allowed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound is a bound."""
    monkeypatch.setenv("FAULT", "memory:2")
    with pytest.raises(TrainingError, match=r"training.batch_size is 4"):
        machine.train("bound", worker="faulty_trainer", training__min_batch_size=4)


@pytest.mark.parametrize("fault", ["killed:2", "torn:5"])
def test_a_killed_process_leaves_the_newest_whole_checkpoint(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Between two epochs, or in the middle of writing a checkpoint: the one before is there, and goes on."""
    monkeypatch.setenv("FAULT", fault)
    trained = machine.train(fault.replace(":", "-"), worker="faulty_trainer")
    assert trained.state == "failed"
    assert trained.error is not None
    assert "killed by signal 9" in trained.reason
    assert sorted(path.name for path in trained.best.parent.iterdir()) == ["best.pt", "last.pt"]
    assert load(trained.last)["epoch"] == 1
    assert load(trained.last)["optimizer"] is not None
    assert (trained.folder / "results.png").is_file()
    start = machine.start(model__resume_from=str(trained.last))
    assert start.epoch == 2


def test_an_error_of_the_library_is_told_in_its_words(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch never ended: nothing to give back, one error."""
    monkeypatch.setenv("FAULT", "error:0")
    with pytest.raises(TrainingError, match="unspecified launch failure"):
        machine.train("error", worker="faulty_trainer")


def wait_for_workers(parent: int, count: int) -> list[int]:
    """Wait until a process has as many training processes, and give their numbers."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = stat.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == parent and b"lib.train.trainer" in command:
                found.append(int(stat.parent.name))
        if len(found) == count:
            return found
        time.sleep(0.1)
    raise AssertionError("no training process was started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_training_process_outlives_its_notebook(machine: Machine, number: int) -> None:
    """Interrupted or killed, the kernel takes its training with it: nobody would end that otherwise."""
    name = f"orphan-{int(number)}"
    script = (
        "import sys, pathlib, test_trainer\n"
        f"test_trainer.Machine(pathlib.Path({str(machine.folder)!r}), 'detection', pathlib.Path({str(machine.data)!r}))"
        f".train({name!r}, training__epochs=5000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        (worker,) = wait_for_workers(parent.pid, 1)
        beat = machine.folder / name / "scratch/training/beat"
        first = beat.stat().st_mtime_ns
        while beat.stat().st_mtime_ns == first and parent.poll() is None:
            time.sleep(0.1)
        parent.send_signal(number)
        parent.communicate(timeout=60)
        end = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not Path(f"/proc/{worker}").exists()
    finally:
        parent.kill()
        parent.communicate()


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("module", ["detection", "localization"])
def test_two_processes_train_one_model(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """DDP with gloo, both tasks: one W&B run with every epoch once, one table, whole checkpoints."""
    monkeypatch.setenv("GLOO", "1")
    here = machine if module == "detection" else make_machine(tmp_path, module)
    trained = here.train("two", gpus=2, worker="faulty_trainer")
    assert (trained.state, trained.device) == ("finished", "0,1")
    assert [row["epoch"] for row in rows(trained)] == ["1", "2", "3", "4"]
    assert load(trained.best)["optimizer"] is None
    assert len(list(here.folder.glob("two/curves/wandb/offline-run-*"))) == 1
    assert sum("train/box_loss" in row for row in read_history(here.folder / "two/curves")) == EPOCHS


def test_two_processes_stop_together_when_the_time_is_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one knows the time; the other one does not wait for an epoch that never comes."""
    monkeypatch.setenv("GLOO", "1")
    trained = machine.train("two-stop", gpus=2, worker="faulty_trainer", stop_after=0.0)
    assert trained.state == "interrupted"
    assert load(trained.last)["optimizer"] is not None


def test_a_launch_that_hangs_goes_on_with_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two never takes part: ended after the time that the experiment gives, and trained on one."""
    monkeypatch.setenv("GLOO", "1")
    monkeypatch.setenv("FAULT", "hang")
    trained = machine.train("hang", gpus=2, worker="faulty_trainer", hardware__stall_minutes=0.6)
    assert (trained.state, trained.device) == ("finished", "0")
    assert len(rows(trained)) == EPOCHS
    told = capsys.readouterr().out
    assert "no batch was finished for 0.6 minutes" in told
    assert "continues with one GPU" in told
