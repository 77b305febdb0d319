"""`run.json` and the model card record what happened, not what was requested."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Stores

from lib.data.dataset import Dataset
from lib.errors import EvaluationError
from lib.experiment.load import load_experiment
from lib.kaggle.host import Gpu, Host
from lib.remotes.credentials import Credentials
from lib.results.evaluate import Evaluated
from lib.results.record import Metrics
from lib.results.report import Results, publication, write_report
from lib.session import Session
from lib.sync import LARGEST, Refs, RunLock
from lib.train.export import Exported
from lib.train.launch import Trained
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint

SMALL = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", {"wandb.enabled": False})
TWO = (Gpu("Tesla T4", 15360), Gpu("Tesla T4", 15360))


def run_in(folder: Path, missing: EvaluationError | None = None, **ended: Any) -> tuple[Session, Results]:
    """Return a run on two T4 that ended in this way."""
    session = Session(
        folder, folder, folder, SMALL, Credentials(), Host(TWO, on_kaggle=True), "0" * 40, "https://host/x",
        started=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    made = folder / SMALL.artifacts
    (made / "train").mkdir(parents=True)
    trained = Trained(made / "train", made / "best.pt", made / "last.pt", 60.0, batch_size=8, device="0,1")
    dataset = Dataset(folder, folder / "data.yaml", "0" * 32, {"train": 1, "val": 1, "test": 1}, {0: "door"})
    evaluated, tracking = Evaluated(made / "test", Metrics(epochs=3), missing), configure_tracking(session)
    return session, Results(dataset, StartingPoint(None), tracking, replace(trained, **ended), evaluated, Exported())


def report(folder: Path, missing: EvaluationError | None = None, **ended: Any) -> tuple[dict[str, Any], str]:
    """Report a run on two T4 that ended in this way; return the content of `run.json` and of the model card."""
    write_report(*run_in(folder, missing, **ended))
    made = folder / SMALL.artifacts
    return json.loads((made / "run.json").read_text()), (made / "README.md").read_text()


def test_files_that_are_too_large_for_a_git_host_go_to_the_dvc_remote(stores: Stores, tmp_path: Path) -> None:
    """The predictions on a large test split may exceed GitHub's 100 MB."""
    session, results = run_in(tmp_path)
    for name, size in {"best.pt": 9, "test/predictions.json": LARGEST + 1, "test/worst.png": LARGEST}.items():
        (session.artifacts / name).parent.mkdir(exist_ok=True)
        (session.artifacts / name).write_bytes(b"x" * size)
    (session.artifacts / "run.log").write_bytes(b"x" * (LARGEST + 1))
    hold = RunLock(Refs(stores.clone, Credentials()), "x")
    published = publication(session, results, hold)
    assert published.objects == tuple(f"{SMALL.artifacts}/{name}" for name in ("best.pt", "test/predictions.json"))


def test_a_complete_run_has_no_reason_and_nothing_missing(tmp_path: Path) -> None:
    """It records both GPUs and the experiment's batch size."""
    run, _ = report(tmp_path)
    assert (run["state"], run["batch_size"], run["machine"]["device"]) == ("finished", 8, "0,1")
    assert run["experiment"]["training"]["batch_size"] == 8
    assert not {"reason", "missing"} & run.keys()


def test_a_halved_batch_and_a_lost_gpu_are_recorded(tmp_path: Path) -> None:
    """The experiment keeps the requested values, which `rerun` uses again."""
    run, card = report(tmp_path, batch_size=4, device="0")
    assert (run["batch_size"], run["machine"]["device"]) == (4, "0")
    assert run["experiment"]["training"]["batch_size"] == 8
    assert len(run["machine"]["gpus"]) == 2
    assert "batch 4," in card


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_run_that_ended_early_records_how_and_why(tmp_path: Path, state: Any) -> None:
    """In `run.json` and at the top of the model card."""
    run, card = report(tmp_path, state=state, reason="ended after epoch 3 of 9")
    assert (run["state"], run["reason"]) == (state, "ended after epoch 3 of 9")
    assert "ended after epoch 3 of 9" in card.partition("## Metrics")[0]


def test_a_failed_evaluation_is_recorded_as_missing_with_its_reason(tmp_path: Path) -> None:
    """The state of the training is still `finished`."""
    run, card = report(tmp_path, EvaluationError("not everything could be measured: the test: no such image"))
    assert run["state"] == "finished"
    assert run["missing"] == "not everything could be measured: the test: no such image"
    assert "the test: no such image" in card.partition("## Metrics")[0]


def test_the_command_that_uploads_an_offline_wandb_run_can_be_copied_from_the_card(tmp_path: Path) -> None:
    """The raw text of the card has it as the run printed it, whatever the path holds."""
    session, results = run_in(tmp_path / "a_b*c")
    tracking = replace(results.tracking, mode="offline")
    write_report(session, replace(results, tracking=tracking))
    assert f"`{tracking.address}`" in (session.artifacts / "README.md").read_text()
