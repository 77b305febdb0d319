"""The processes of a training: how they are started, and that the session which watches them ends them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SEARCHED, Stores, eventually, is_alive, processes_with
from publications import lock_of, take_over

from lib.errors import TakenOverError, TrainingError
from lib.experiment.load import load_experiment
from lib.session import Session
from lib.sync import RunLock
from lib.train.launch import start_workers, train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint

SLEEPER = """
import os, pathlib, time
pathlib.Path("pid.part").write_text(str(os.getpid()))
os.rename("pid.part", "pid")
time.sleep(600)
"""


def test_a_training_ends_when_another_session_has_taken_the_run_over(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder notices it within a tenth of its lease; the error says so, and no worker is left running."""
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    (stores.clone / "sleeper.py").write_text(SLEEPER)
    pid = stores.clone / "pid"
    others: list[RunLock] = []
    hold = lock_of(stores.clone, lease=2.0)
    hold.take()

    def confirm() -> None:
        if pid.exists() and not others:
            others.append(take_over(stores.clone_again()))
        hold.confirm()

    experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml", {"hardware.multi_gpu": False})
    session = Session(stores.clone, stores.folder, stores.folder / "scratch", experiment)
    data, began = Path("data.yaml"), time.monotonic()
    with pytest.raises(TakenOverError, match="another session has taken over detection-exp001"):
        train(session, data, StartingPoint(None), configure_tracking(session), worker="sleeper", confirm=confirm)
    assert time.monotonic() - began < 60
    assert not is_alive(int(pid.read_text()))
    assert stores.runs() == [hold.ref]  # the other session's
    others[0].release()


CUT_OFF = """
from lib.train.launch import WorkerPlan

def main(plan_file):
    WorkerPlan.model_validate_json(plan_file.read_bytes()).outcome(0).write_text('{"state": "fin')
    raise SystemExit(1)
"""


def test_an_outcome_that_a_full_disk_has_cut_off_is_a_failure_with_that_remedy(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker met the full disk a second time when it wrote why it failed."""
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    (stores.clone / "cutter.py").write_text(CUT_OFF)
    experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml", {"hardware.multi_gpu": False})
    session = Session(stores.clone, stores.folder, stores.folder / "scratch", experiment)
    with pytest.raises(TrainingError, match="No space left on device") as caught:
        train(session, Path("data.yaml"), StartingPoint(None), configure_tracking(session), worker="cutter")
    assert "free space in the working and the scratch folder" in caught.value.remedy


@pytest.mark.parametrize("device", ["0", "0,1"])
def test_a_worker_has_the_threads_that_ultralytics_gives_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """One each: torch, which is imported before ultralytics, would take as many as there are cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml")
    workers = start_workers(Session(ROOT, tmp_path, tmp_path, experiment), device)
    try:
        assert len(workers) == len(device.split(","))
        mark = f"YOLO_CONFIG_DIR={tmp_path}/ultralytics".encode()
        # a process that has just begun its program has no environment yet
        eventually(lambda: len(processes_with(mark)) == len(workers))
        for variable in (b"OMP_NUM_THREADS=1", b"MALLOC_TRIM_THRESHOLD_=134217728"):
            assert set(processes_with(mark)) <= set(processes_with(variable))
    finally:
        workers.close()


def test_a_worker_whose_parent_has_died_does_not_train(tmp_path: Path) -> None:
    """The parent may be killed when it has sent the plan, and before the worker asks the system to end with it."""
    (tmp_path / "toucher.py").write_text("def main(plan): plan.touch()")
    gone = subprocess.Popen(["true"])
    gone.wait()
    subprocess.run(
        [sys.executable, "-m", "lib.train.worker", "toucher", str(gone.pid)], cwd=ROOT, text=True,
        env={"PYTHONPATH": str(tmp_path)}, input=f"{tmp_path}/trained\n", timeout=60,
    )  # fmt: skip
    assert not (tmp_path / "trained").exists()
