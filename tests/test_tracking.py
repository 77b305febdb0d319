"""One W&B run a training, written by our own callbacks, whatever W&B does."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from lib.credentials import Credentials
from lib.experiment import load_experiment
from lib.tracking import Tracking, configure_tracking, finish_tracking, tracking_callbacks

EXPERIMENT = load_experiment(ROOT / "experiments/001_det_baseline.yaml")


def records(folder: Path) -> Iterator[Any]:
    """Read every record of the offline runs below a folder: W&B's log of protobuf messages, as LevelDB frames them."""
    from wandb.proto import wandb_internal_pb2

    record: Any = vars(wandb_internal_pb2)["Record"]  # made at import, unknown to type checkers

    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, parts = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            room = 32768 - at % 32768
            if room < 7:
                at += room
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                yield record.FromString(parts)
                parts = b""


class Trainer(SimpleNamespace):
    """What the callbacks see of a trainer."""

    def label_loss_items(self, loss: float, prefix: str) -> dict[str, float]:
        """Name the loss as ultralytics does."""
        return {f"{prefix}/box_loss": loss}


def train(tracking: Tracking, folder: Path, epochs: int = 2) -> None:
    """Send the events of a training, the final evaluation's repeated one too."""
    events = tracking_callbacks(tracking)
    trainer = Trainer(save_dir=str(folder), epoch=0, tloss=1.0, metrics={}, lr={"lr/pg0": 0.001})
    events["on_pretrain_routine_start"](trainer)
    for epoch in range(epochs):
        trainer.epoch, trainer.tloss, trainer.metrics = epoch, 1.0 / (epoch + 1), {"metrics/mAP50(B)": epoch / 10}
        events["on_fit_epoch_end"](trainer)
    trainer.metrics = {"metrics/mAP50(B)": 0.99}
    events["on_fit_epoch_end"](trainer)
    events["on_train_end"](trainer)
    events["teardown"](trainer)


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    """Configure tracking without a key."""
    return configure_tracking(EXPERIMENT, Credentials(), tmp_path, "a-run")


def test_one_run_holds_epochs_configuration_and_results(tracking: Tracking, tmp_path: Path) -> None:
    """One id, our project, name, tags and configuration; each epoch once; the results in its summary."""
    train(tracking, tmp_path)
    time.sleep(1.1)  # W&B names an offline run's folder by the second; no evaluation is that fast
    finish_tracking(tracking, {"test/box/mAP50": 0.5, "branch": "kaggle-train-x"})
    found = list(records(tmp_path))
    runs = [record.run for record in found if record.HasField("run")]
    assert {run.run_id for run in runs} == {tracking.id}
    assert {(run.project, run.display_name) for run in runs} == {("container-id", "a-run")}
    assert set(runs[0].tags) == {"detection", "yolo11s", "baseline"}
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    epochs = [row for row in history if "epoch" in row]
    assert [(row["epoch"], row["metrics/mAP50(B)"]) for row in epochs] == [(1, 0.0), (2, 0.1)]
    assert all({"train/box_loss", "lr/pg0", "gpu_memory_gib"} <= row.keys() for row in epochs)
    summary = [item for record in found if record.HasField("summary") for item in record.summary.update]
    assert {"test/box/mAP50", "branch"} <= {item.key or "/".join(item.nested_key) for item in summary}


def test_without_a_key_the_run_is_offline_and_says_how_to_upload_it(tracking: Tracking) -> None:
    """No account, no waiting."""
    assert tracking.mode == "offline"
    assert tracking.address.startswith("offline; upload it with: wandb sync ")


def test_what_travels_to_workers_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in the environment alone; callbacks are pickled by name."""
    import cloudpickle

    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_BASE_URL", "https://curves.example.com")  # a server of one's own
    monkeypatch.setattr("lib.tracking._default_entity", lambda: "somebody")  # asks W&B's server
    tracking = configure_tracking(EXPERIMENT, Credentials(wandb_api_key="k" * 40), tmp_path, "a-run")
    assert tracking.mode == "online"
    assert tracking.address == f"https://curves.example.com/somebody/container-id/runs/{tracking.id}"
    assert b"k" * 40 not in cloudpickle.dumps(tracking_callbacks(tracking))
    assert "k" * 40 not in repr(tracking)


def test_other_ranks_open_no_run(tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under DDP every process gets the events."""
    monkeypatch.setenv("RANK", "1")
    train(tracking, tmp_path)
    assert list(tmp_path.glob("wandb/*")) == []


def test_a_disabled_wandb_is_left_alone(tmp_path: Path) -> None:
    """`wandb.enabled: false`: no event, no file."""
    experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml", {"wandb.enabled": False})
    tracking = configure_tracking(experiment, Credentials(), tmp_path, "a-run")
    assert tracking_callbacks(tracking) == {}
    finish_tracking(tracking, {"branch": "x"})
    assert list(tmp_path.iterdir()) == []


def test_training_goes_on_when_wandb_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be written is a warning, not the end of the training."""
    (tmp_path / "file").touch()
    tracking = configure_tracking(EXPERIMENT, Credentials(), tmp_path, "a-run")
    broken = Tracking(**{**vars(tracking), "project": "no/such:project?"})
    train(broken, tmp_path)
    finish_tracking(broken, {"branch": "x"})
    assert "training goes on without it" in capsys.readouterr().out
