"""A training is ended by the session that watches it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import ROOT, Stores, is_alive
from publications import lock_of, take_over

from lib.errors import TakenOverError
from lib.experiment.load import load_experiment
from lib.session import Session
from lib.sync import RunLock
from lib.train.launch import train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint

SLEEPER = """
import os, pathlib, time
pathlib.Path("pid.part").write_text(str(os.getpid()))
os.rename("pid.part", "pid")
time.sleep(600)
"""


def test_a_training_ends_when_another_session_has_taken_the_run_over(stores: Stores) -> None:
    """The holder notices it within a tenth of its lease; the error says so, and no worker is left running."""
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
