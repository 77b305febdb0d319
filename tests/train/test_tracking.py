"""Each training is one W&B run, written by our own callbacks; a W&B failure never stops a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from wandb_emulator import KEY, WandbEmulator
from wandb_files import records

from lib.experiment.load import load_experiment
from lib.remotes.credentials import Credentials
from lib.session import Session
from lib.train.launch import WorkerPlan
from lib.train.tracking import Recorder, Tracking, configure_tracking, finish_tracking

EXPERIMENT = load_experiment(ROOT / "experiments/001_det_baseline.yaml")


def write(tracking: Tracking, folder: Path, epochs: int = 2) -> None:
    """Record as a training does: one row per epoch, the plots at its end."""
    recorder = Recorder(tracking)
    for epoch in range(epochs):
        recorder.log({"epoch": epoch + 1, "train/box_loss": 1.0, "metrics/mAP50(B)": epoch / 10})
    recorder.log_plots(folder)
    recorder.close()


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    """Configure tracking without a key."""
    return configure_tracking(Session(tmp_path, tmp_path, tmp_path, EXPERIMENT))


def test_one_run_has_its_epochs_and_results(tracking: Tracking, tmp_path: Path) -> None:
    """The run has one id, our project, name and tags, each epoch once, and the results in its summary."""
    write(tracking, tmp_path)
    time.sleep(1.1)  # W&B names an offline run's folder by the second; an evaluation takes longer
    finish_tracking(tracking, "finished", {"test/box/mAP50": 0.5, "branch": "kaggle-train-x"}, "all is well")
    found = list(records(tmp_path))
    runs = [record.run for record in found if record.HasField("run")]
    assert {run.run_id for run in runs} == {tracking.id}
    assert {(run.project, run.display_name) for run in runs} == {("container-id", tracking.name)}
    assert set(runs[0].tags) == {"detection", "yolo11s", "baseline"}
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    epochs = [row for row in history if "epoch" in row]
    assert [(row["epoch"], row["metrics/mAP50(B)"]) for row in epochs] == [(1, 0.0), (2, 0.1)]
    summary = [item for record in found if record.HasField("summary") for item in record.summary.update]
    assert {"test/box/mAP50", "branch", "state"} <= {item.key or "/".join(item.nested_key) for item in summary}
    (alert,) = [record.alert for record in found if record.HasField("alert")]
    assert (alert.title, alert.text) == (f"{tracking.name} is finished", "all is well")


def test_a_run_without_a_key_is_offline_and_its_address_is_the_upload_command(tracking: Tracking) -> None:
    """No account is needed, and nothing waits for W&B."""
    assert tracking.mode == "offline"
    assert tracking.address.startswith("offline; upload it with: wandb sync ")


def test_the_plan_of_a_worker_has_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is only in the environment, not in the file that the training's subprocesses read."""
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_BASE_URL", "https://curves.example.com")  # a self-hosted server
    monkeypatch.setattr("lib.train.tracking._default_entity", lambda: "somebody")  # asks W&B's server
    tracking = configure_tracking(
        Session(tmp_path, tmp_path, tmp_path, EXPERIMENT, Credentials(wandb_api_key="k" * 40))
    )
    assert tracking.mode == "online"
    assert tracking.address == f"https://curves.example.com/somebody/container-id/runs/{tracking.id}"
    plan = WorkerPlan(
        task="detect", arguments={}, folder=tmp_path / "plan", stop_at=None, expected=60.0, tracking=tracking,
        watched=False,
    )  # fmt: skip
    written = plan.write().read_bytes()
    assert b"k" * 40 not in written
    assert WorkerPlan.model_validate_json(written) == plan


@pytest.mark.parametrize(
    ("default", "given", "address"),
    [
        ("a-team", None, "a-team/container-id"),
        ("a-team", "others", "others/container-id"),
        (None, "others", "others/container-id"),
        (None, None, "offline; "),
    ],
)
def test_curves_are_online_in_the_experiments_or_the_users_entity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: str | None, given: str | None, address: str
) -> None:
    """A user without a default entity needs one in the experiment; without both, the curves are offline."""
    with WandbEmulator() as service:
        service.entity = default
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        monkeypatch.setenv("WANDB_API_KEY", "")  # restored after the test
        experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml", {"wandb.entity": given})
        account = Credentials(wandb_api_key=KEY)
        found = configure_tracking(Session(tmp_path, tmp_path, tmp_path, experiment, account))
    assert address in found.address


OWN_SERVER = """
import sys
from pathlib import Path
from lib.experiment.load import load_experiment
from lib.remotes.accounts import check_wandb
from lib.remotes.credentials import Credentials
from lib.session import Session
from lib.train.tracking import configure_tracking
folder, key, file = Path(sys.argv[1]), Credentials(wandb_api_key=sys.argv[2]), sys.argv[3]
print(check_wandb(key))
print(configure_tracking(Session(folder, folder, folder, load_experiment(file), key)).address)
"""


@pytest.mark.parametrize("file", ["home/.config/wandb/settings", "wandb/settings"])
def test_the_server_of_wandb_login_is_checked_and_shown(tmp_path: Path, file: str) -> None:
    """W&B keeps it in a file. In a subprocess: the client reads that once per process."""
    dropped = ("WANDB_BASE_URL", "WANDB_CONFIG_DIR", "XDG_CONFIG_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    with WandbEmulator() as service:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(f"[default]\nbase_url = {service.url}\n")
        done = subprocess.run(
            [sys.executable, "-c", OWN_SERVER, tmp_path / "run", KEY, ROOT / "experiments/001_det_baseline.yaml"],
            cwd=tmp_path, env={**environment, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    account, address = done.stdout.splitlines()
    assert account.startswith("W&B: a-user")
    assert address.startswith(f"{service.url}/a-team/container-id/runs/")


def test_a_resumed_training_continues_the_run_of_its_checkpoint(tracking: Tracking) -> None:
    """A value that another tool has written there, and that names no run, is ignored."""
    assert tracking.resumed("container-id/0123abcd").address.endswith("-0123abcd")
    for other in ("", "runs/detect", "container-id/0123abcd/x", "container-id/0123ABCD"):
        assert tracking.resumed(other) == tracking


def test_a_failure_is_an_alert(tracking: Tracking, tmp_path: Path) -> None:
    """W&B notifies the user, with the reason."""
    finish_tracking(tracking, "failed", {}, "CUDA out of memory")
    (alert,) = [record.alert for record in records(tmp_path) if record.HasField("alert")]
    assert (alert.title, alert.text) == (f"{tracking.name} failed", "CUDA out of memory")


def test_a_slow_wandb_delays_nothing(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recording never blocks while W&B opens a run, closing waits a bounded time, and the rest can be uploaded."""
    import wandb

    opened = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: opened.wait(60) and None)
    monkeypatch.setattr("lib.train.tracking.CLOSING", 0.2)
    recorder = Recorder(tracking)
    started = time.monotonic()
    recorder.log({"epoch": 1})
    assert not opened.is_set()
    recorder.close()
    assert time.monotonic() - started < 30
    opened.set()
    assert f"upload the rest with: wandb sync {tracking.folder}" in capsys.readouterr().out


def test_a_disabled_wandb_writes_nothing(tmp_path: Path) -> None:
    """With `wandb.enabled: false` there is no event and no file."""
    experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml", {"wandb.enabled": False})
    tracking = configure_tracking(Session(tmp_path, tmp_path, tmp_path, experiment))
    write(tracking, tmp_path)
    finish_tracking(tracking, "finished", {"branch": "x"})
    assert list(tmp_path.iterdir()) == []


def test_training_continues_when_wandb_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that W&B cannot write causes a warning, not an error."""
    (tmp_path / "file").touch()
    tracking = configure_tracking(Session(tmp_path, tmp_path, tmp_path, EXPERIMENT))
    broken = Tracking(**{**vars(tracking), "project": "no/such:project?"})
    write(broken, tmp_path)
    finish_tracking(broken, "finished", {"branch": "x"})
    assert "training continues without it" in capsys.readouterr().out
