"""Trainings in subprocesses, on machines that fail: finished epochs are never lost, and can be resumed."""

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
from lib.train.checkpoints import CheckpointUploader, checkpoint_branch, hold_run
from lib.train.launch import Trained, prepare_library, train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint, fetch_weights

pytestmark = pytest.mark.slow

EPOCHS = 4
NEW = StartingPoint(None)


@dataclass(frozen=True)
class Machine:
    """A machine with a dataset; each training has its own folder."""

    folder: Path
    module: str
    data: Path

    def experiment(self, **values: Any) -> Experiment:
        """Return the module's sandbox experiment, even smaller; `training__epochs=3` changes a value."""
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
        how = {name: values.pop(name) for name in ("worker", "expected", "confirm") if name in values}
        hours = None if stop_after is None else 1.0
        experiment = self.experiment(session__max_hours=hours, **values)
        begun = time.monotonic() + (stop_after or 0.0) - HOUR
        session = self.session(name, experiment, host=host, begun=begun)
        data_file = self.dataset(name, experiment).data_file
        tracking = configure_tracking(session).resumed(start.run_path)
        return train(session, data_file, start, tracking, **how)


def make_machine(folder: Path, module: str) -> Machine:
    """Draw a dataset of a few images."""
    draw_dataset(folder / "data", module, counts={"train": 8, "val": 4, "test": 4}, size=64)
    return Machine(folder, module, folder / "data")


@pytest.fixture(scope="module", autouse=True)
def _processes_find_the_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("YOLO_CONFIG_DIR", "YOLO_AUTOINSTALL", "YOLO_VERBOSE"):
            patch.setenv(name, os.environ.get(name, ""))  # restored afterwards
        patch.setenv("PYTHONPATH", SEARCHED)
        prepare_library(tmp_path_factory.mktemp("library"))
        yield


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Return a machine for detection."""
    return make_machine(tmp_path_factory.mktemp("machine"), "detection")


@pytest.fixture(scope="module")
def finished(machine: Machine) -> Trained:
    """Train without any fault."""
    return machine.train("finished")


@pytest.fixture(scope="module")
def interrupted(machine: Machine) -> Trained:
    """Train in a session whose time is over at once: one epoch fits."""
    return machine.train("interrupted", stop_after=0.0)


def load(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint; raise if it is torn."""
    from ultralytics.utils.patches import torch_load

    loaded: dict[str, Any] = torch_load(checkpoint, map_location="cpu")
    return loaded


def rows(trained: Trained) -> list[dict[str, str]]:
    """Return the rows of `results.csv`."""
    with (trained.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(checkpoint: Path) -> Any:
    """Return all parameters of a checkpoint's model as one vector."""
    import torch

    content = load(checkpoint)
    model = (content.get("ema") or content["model"]).float()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def read_history(folder: Path) -> list[dict[str, str]]:
    """Return the rows that W&B recorded, in order."""
    found = [record.history for record in records(folder) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): item.value_json for item in row.item} for row in found]


# ── a successful training ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_training_leaves_two_complete_models(finished: Trained) -> None:
    """best.pt and last.pt load, without an optimizer; no temporary file is left; `results.csv` has every epoch once."""
    assert (finished.state, finished.reason, finished.error) == ("finished", "", None)
    assert sorted(path.name for path in finished.best.parent.iterdir()) == ["best.pt", "last.pt"]
    assert [load(path)["optimizer"] for path in (finished.best, finished.last)] == [None, None]
    assert [row["epoch"] for row in rows(finished)] == ["1", "2", "3", "4"]


def test_every_epoch_is_in_the_one_wandb_run(machine: Machine, finished: Trained) -> None:
    """Losses, metrics, learning rate and memory, one row per epoch, and the plots; read from W&B's own file."""
    history = read_history(machine.folder / "finished/curves")
    epochs = [row for row in history if "train/box_loss" in row]
    assert [json.loads(row["epoch"]) for row in epochs] == [1, 2, 3, 4]
    measured = {f"metrics/{name}(B)" for name in ("precision", "recall", "mAP50", "mAP50-95")}
    losses = {f"{part}/{name}_loss" for part in ("train", "val") for name in ("box", "cls", "dfl")}
    expected = measured | losses | {"lr/pg0", "gpu_memory_gib"}
    assert all(expected <= row.keys() for row in epochs)
    assert [float(f"{float(row['lr/pg0']):.6g}") for row in epochs] == [float(row["lr/pg0"]) for row in rows(finished)]
    assert any(key.startswith("plots/results") for row in history for key in row)


def test_the_first_epoch_is_compared_with_the_estimate(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """The line stands once, below the first epoch."""
    machine.train("estimated", expected=3600.0, training__epochs=2)
    lines = capfd.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("Expected were")]
    assert lines[at - 1].split()[0] == "1/2"
    assert re.fullmatch(r"Expected were 1 h 0 min an epoch \(step 7\): it took 0\.\d+ times as long\.", lines[at])


def test_a_checkpoint_is_complete_whenever_it_is_read(machine: Machine) -> None:
    """A thread loads both files in a loop during a whole training, also while the optimizer is stripped at its end."""
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


def test_no_epoch_waits_for_an_upload_that_takes_longer_than_an_epoch(
    machine: Machine, stores: Stores, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Git remote accepts the first push only after three more epochs: if training waited, neither would end."""
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
    hold = hold_run(session)
    hold.take()
    with CheckpointUploader(session, "0" * 32, hold) as uploader:
        trained = here.train("clone", **values)
    uploader.wait()
    hold.release()
    assert trained.state == "finished"
    output = capfd.readouterr().out
    assert "checkpoint upload failed" not in output
    uploaded = [int(epoch) for epoch in re.findall(r"Checkpoint: epoch (\d+) is uploaded", output)]
    assert [later for later in uploaded[1:] if later < uploaded[0] + 3] == []  # the newest is uploaded, not the next
    ends = [float(row["time"]) for row in rows(trained)]
    seconds = [after - before for before, after in pairwise(ends)]
    during, others = seconds[uploaded[0] : uploaded[0] + 2], [*seconds[1 : uploaded[0]], *seconds[uploaded[0] + 2 :]]
    with capfd.disabled():
        print(f"\nAn epoch during a checkpoint upload: {median(during):.2f} s; others: {median(others):.2f} s")


# ── the session's time ────────────────────────────────────────────────────────────────────────────────────────────────


def test_training_ends_with_the_last_epoch_that_fits(interrupted: Trained) -> None:
    """The state is interrupted, with the reason; best.pt is a model, last.pt can be resumed."""
    assert interrupted.state == "interrupted"
    assert "after epoch 1 of 4" in interrupted.reason
    assert "session.max_hours" in interrupted.reason
    last = load(interrupted.last)
    assert last["epoch"] == 0
    assert last["optimizer"] is not None
    assert load(interrupted.best)["optimizer"] is None
    assert len(rows(interrupted)) == 1


def test_a_limit_that_is_not_reached_changes_nothing(machine: Machine, finished: Trained) -> None:
    """The schedule covers all epochs, and the numbers are the same as without a limit."""
    limited = machine.train("limited", stop_after=3600.0)
    assert limited.state == "finished"
    same = [[{**row, "time": ""} for row in rows(trained)] for trained in (limited, finished)]
    assert same[0] == same[1]


# ── resuming ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_training_ends_after_the_epoch_in_which_it_is_asked_to_stop(machine: Machine) -> None:
    """The state is stopped; best.pt is a model, last.pt can be resumed."""
    trained = machine.train("asked", confirm=lambda: True)
    assert (trained.state, trained.error) == ("stopped", None)
    assert trained.reason == "stopped after epoch 1 of 4, as `python -m lib stop` asked"
    assert load(trained.last)["optimizer"] is not None
    assert load(trained.best)["optimizer"] is None
    assert len(rows(trained)) == 1


def test_a_stop_in_the_last_epoch_changes_nothing(machine: Machine) -> None:
    """The training is finished, and so is its state."""
    trained = machine.train("asked-late", confirm=lambda: True, training__epochs=1)
    assert (trained.state, trained.reason) == ("finished", "")


@pytest.fixture(scope="module")
def attached(machine: Machine, interrupted: Trained) -> Path:
    """Copy the interrupted `last.pt` alone into another folder, like an attached dataset."""
    folder = machine.folder / "input"
    folder.mkdir()
    return folder / "last.pt" if (folder / "last.pt").exists() else copy(interrupted.last, folder / "last.pt")


def copy(source: Path, target: Path) -> Path:
    """Copy a file."""
    target.write_bytes(source.read_bytes())
    return target


@pytest.fixture(scope="module")
def resumed(machine: Machine, attached: Path) -> Trained:
    """Resume the interrupted training in another folder."""
    start = machine.start(model__resume_from=str(attached))
    assert start.epoch == 1
    return machine.train("resumed", start, model__resume_from=str(attached))


def test_a_resumed_training_is_one_curve_with_the_interrupted_one(resumed: Trained, finished: Trained) -> None:
    """Every epoch occurs once, the learning rates are those of an uninterrupted training, and the time increases."""
    assert resumed.state == "finished"
    assert [row["epoch"] for row in rows(resumed)] == ["1", "2", "3", "4"]
    assert [row["lr/pg0"] for row in rows(resumed)] == [row["lr/pg0"] for row in rows(finished)]
    assert rows(resumed)[0] | {"time": ""} == rows(finished)[0] | {"time": ""}
    times = [float(row["time"]) for row in rows(resumed)]
    assert times == sorted(times)


def test_a_resumed_training_is_close_to_the_uninterrupted_one(
    resumed: Trained, finished: Trained, interrupted: Trained
) -> None:
    """The images come in the same order; the weights differ, since a checkpoint has half precision.

    Four epochs on eight images amplify the rounding: to 0.1 or 0.3 of the way that the training goes, by the images.
    """
    difference = (weights(resumed.last) - weights(finished.last)).norm()
    distance = (weights(finished.last) - weights(interrupted.last)).norm()
    assert difference < distance / 2
    losses = [float(rows(trained)[1]["train/box_loss"]) for trained in (resumed, finished)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_resumed_training_continues_the_same_wandb_run(machine: Machine, attached: Path, resumed: Trained) -> None:
    """The checkpoint names the run; the new epochs are added to it."""
    runs = {
        record.run.run_id
        for name in ("interrupted", "resumed")
        for record in records(machine.folder / name / "curves")
        if record.HasField("run")
    }
    assert len(runs) == 1
    assert {machine.start(model__resume_from=str(attached)).run_path.rpartition("/")[2]} == runs


def test_the_best_weights_before_the_interruption_are_not_lost(machine: Machine, interrupted: Trained) -> None:
    """No later epoch beats the best.pt in the folder of last.pt: its weights are the best ones at the end too."""
    folder = machine.folder / "with-best"
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
    trained = machine.train("with-best-resumed", start, model__resume_from=str(last))
    assert (weights(trained.best) == weights(best)).all()
    assert not (weights(trained.last) == weights(best)).all()


def test_a_finished_checkpoint_starts_a_new_training_from_its_weights(machine: Machine, finished: Trained) -> None:
    """A finished checkpoint has no optimizer state to resume from, and the description mentions this."""
    start = machine.start(model__resume_from=str(finished.last))
    assert (start.weights, start.epoch) == (finished.last, 0)
    assert "finished" in start.describe()


def test_values_that_differ_from_the_checkpoint_are_reported(machine: Machine, attached: Path) -> None:
    """Training uses the experiment's values; the description shows the checkpoint's as well."""
    start = machine.start(model__resume_from=str(attached), training__learning_rate=0.004)
    assert "lr0 0.002 → 0.004" in start.describe()
    assert "epochs" not in start.describe()


def test_the_optimizer_of_a_resumed_training_has_the_values_of_the_experiment(
    machine: Machine, attached: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint's state would bring its own."""
    monkeypatch.setenv("FAULT", "show")
    changed: dict[str, Any] = {"training__learning_rate": 0.004, "training__weight_decay": 0.05}
    changed["model__resume_from"] = str(attached)
    machine.train("other-values", machine.start(**changed), worker="faulty_trainer", **changed)
    assert "Optimizer: initial rates [0.004], decays [0.0, 0.05]" in capfd.readouterr().out


@pytest.mark.parametrize(
    "fault",
    ["torn", "no checkpoint", "another size", "another task", "no epochs left", "another optimizer", "no curves"],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(
    machine: Machine, attached: Path, tmp_path: Path, fault: str
) -> None:
    """One error shows key, value and reason before the training starts."""
    path, values = copy(attached, tmp_path / "a.pt"), {"model__resume_from": str(tmp_path / "a.pt")}
    reason = {
        "torn": "damaged", "no checkpoint": "not a checkpoint", "another size": "it is of yolo11n",
        "another task": r"it is of yolo11n \(detect\), the experiment is of yolo11n-pose \(pose\)",
        "no epochs left": "it has completed 1 epochs, and training.epochs is 1",
        "another optimizer": r"another optimizer \(step, exp_avg, exp_avg_sq\) than training.optimizer, SGD",
        "no curves": "it lacks the curves of its training",
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
    if fault == "another optimizer":
        experiment = machine.experiment(**values, training__optimizer="SGD")
    if fault == "no curves":
        import torch

        content = load(path)
        del content["train_results"]["time"]
        torch.save(content, path)
    if fault == "no epochs left":
        experiment = machine.experiment(**values, training__epochs=1)
    with pytest.raises(WeightsError, match=reason) as caught:
        fetch_weights(machine.session("any", experiment))
    assert f"model.resume_from is '{path}'" in caught.value.what


# ── machines that fail ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gpu_without_enough_memory_is_one_clear_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error of the requirements: it names what to change, and the batch is not halved silently."""
    monkeypatch.setenv("FAULT", "memory:4")
    with pytest.raises(TrainingError, match=r"CUDA out of memory: training.batch_size is 8") as caught:
        machine.train("small", worker="faulty_trainer")
    assert "reduce training.batch_size" in caught.value.remedy


@pytest.mark.parametrize("gpus", [0, 2])
def test_batches_are_halved_if_the_experiment_allows_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: int
) -> None:
    """Batches are halved until they fit, gradients are accumulated to the nominal batch, the new size is reported."""
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
    """Training stops with an error when `training.min_batch_size` does not fit."""
    monkeypatch.setenv("FAULT", "memory:2")
    with pytest.raises(TrainingError, match=r"training.batch_size is 4"):
        machine.train("bound", worker="faulty_trainer", training__min_batch_size=4)


@pytest.mark.parametrize("fault", ["killed:2", "torn:5"])
def test_a_killed_process_leaves_the_newest_complete_checkpoint(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Killed between two epochs or while it writes a checkpoint: the previous one is left, and can be resumed."""
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


def test_an_error_of_the_library_is_reported_in_its_words(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no epoch is finished, the training ends with this one error."""
    monkeypatch.setenv("FAULT", "error:0")
    with pytest.raises(TrainingError, match="unspecified launch failure"):
        machine.train("error", worker="faulty_trainer")


def wait_for_workers(parent: int, count: int) -> list[int]:
    """Wait until a process has `count` training processes, and return their PIDs."""
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
    """When the kernel is interrupted or killed, its training ends too: nothing else would end it."""
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
        while not beat.exists():  # until then the process has no plan
            assert parent.poll() is None
            time.sleep(0.1)
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
    """DDP with gloo, both tasks: one W&B run with every epoch once, one `results.csv`, complete checkpoints."""
    monkeypatch.setenv("GLOO", "1")
    here = machine if module == "detection" else make_machine(tmp_path, module)
    trained = here.train("two", gpus=2, worker="faulty_trainer")
    assert (trained.state, trained.device) == ("finished", "0,1")
    assert [row["epoch"] for row in rows(trained)] == ["1", "2", "3", "4"]
    assert load(trained.best)["optimizer"] is None
    assert len(list(here.folder.glob("two/curves/wandb/offline-run-*"))) == 1
    assert sum("train/box_loss" in row for row in read_history(here.folder / "two/curves")) == EPOCHS


def test_two_processes_stop_together_when_the_time_is_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 decides that the time is over; rank 1 does not wait for an epoch that never starts."""
    monkeypatch.setenv("GLOO", "1")
    trained = machine.train("two-stop", gpus=2, worker="faulty_trainer", stop_after=0.0)
    assert trained.state == "interrupted"
    assert load(trained.last)["optimizer"] is not None
    trained = machine.train("two-asked", gpus=2, worker="faulty_trainer", confirm=lambda: True)
    assert trained.state == "stopped"
    assert load(trained.last)["optimizer"] is not None


def test_a_launch_that_hangs_continues_with_one_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 1 hangs: after `hardware.stall_minutes` both processes are ended, and training continues on one GPU."""
    monkeypatch.setenv("GLOO", "1")
    monkeypatch.setenv("FAULT", "hang")
    trained = machine.train("hang", gpus=2, worker="faulty_trainer", hardware__stall_minutes=0.6)
    assert (trained.state, trained.device) == ("finished", "0")
    assert len(rows(trained)) == EPOCHS
    output = capsys.readouterr().out
    assert "no batch was finished for 0.6 minutes" in output
    assert "continues with one GPU" in output
