"""The arguments and weights that a training starts with, and what becomes of an earlier run's files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lib.errors import TrainingError, WeightsError
from lib.experiment.load import load_experiment
from lib.experiment.schema import ALWAYS, KEYS, Experiment, ultralytics_arguments
from lib.process import SideBySide
from lib.session import Session
from lib.train.launch import WorkerPlan, keep_earlier, train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint, fetch_weights, find_weights

BASELINE = ROOT / "experiments/001_det_baseline.yaml"

# Keys of an experiment, and the ultralytics argument that each becomes.
BECOMES = {
    "training.epochs": "epochs",
    "training.batch_size": "batch",
    "training.image_size": "imgsz",
    "training.learning_rate": "lr0",
    "training.final_learning_rate_ratio": "lrf",
    "training.cosine_schedule": "cos_lr",
    "training.optimizer": "optimizer",
    "training.momentum": "momentum",
    "training.weight_decay": "weight_decay",
    "training.warmup_epochs": "warmup_epochs",
    "training.nominal_batch_size": "nbs",
    "training.patience": "patience",
    "hardware.num_workers": "workers",
    "hardware.mixed_precision": "amp",
    "seed": "seed",
}


def test_a_training_gets_only_the_documented_arguments(tmp_path: Path) -> None:
    """A worker that does not exist leaves its plan, whose arguments are those that `explain` shows."""
    experiment, file, start = load_experiment(BASELINE), tmp_path / "data.yaml", StartingPoint(None)
    session = Session(tmp_path, tmp_path, tmp_path, experiment)
    with pytest.raises(TrainingError, match="ended with status 1"):
        train(session, file, start, configure_tracking(session), worker="nobody")
    arguments = set(WorkerPlan.model_validate_json((tmp_path / "training/plan.json").read_bytes()).arguments)
    named = {key.argument for key in KEYS.values() if key.argument}
    assert arguments == named | {*ALWAYS, "save_dir", "project", "plots", "exist_ok"}


def test_a_worker_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    """The system may kill it before the training begins, when memory is short; the other rank ends, too."""
    session = Session(tmp_path, tmp_path, tmp_path, load_experiment(BASELINE))
    workers = SideBySide(["sh", "-c", "$THEN"], [{"THEN": "exit 7"}, {"THEN": "sleep 600"}], cwd=tmp_path)
    while workers.are_alive:
        time.sleep(0.01)
    given = session, tmp_path / "data.yaml", StartingPoint(None), configure_tracking(session)
    with pytest.raises(TrainingError, match="ended with status 1"):
        train(*given, worker="nobody", workers=workers)
    assert len(workers) == 0


@pytest.mark.parametrize("key", [key for key in KEYS if key in BECOMES or key.startswith("augmentation.")])
def test_every_value_reaches_ultralytics_under_its_name(key: str) -> None:
    """Two experiments that differ in one key differ in one ultralytics argument, with the same values."""
    other = {"cosine_schedule": False, "optimizer": "SGD", "mixed_precision": False, "perspective": 0.0005}
    first = load_experiment(BASELINE)
    name = key.rpartition(".")[2]
    value = other.get(name, 96 if name == "image_size" else 17 if name in {"close_mosaic", "epochs"} else None)
    if value is None:
        now = first.model_dump()[key.partition(".")[0]]
        now = now[name] if isinstance(now, dict) else now
        value = now + 1 if isinstance(now, int) else 0.125
    second = load_experiment(BASELINE, {key: value})
    one, two = ultralytics_arguments(first), ultralytics_arguments(second)
    assert {name for name in one if one[name] != two[name]} == {BECOMES.get(key, name)}
    assert two[BECOMES.get(key, name)] == value


def test_ultralytics_knows_every_argument(tmp_path: Path) -> None:
    """The library's own check of names and types accepts them all."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG

    arguments = ultralytics_arguments(load_experiment(BASELINE))
    checked = vars(get_cfg(DEFAULT_CFG, arguments))
    assert {name: checked[name] for name in arguments} == arguments


def session_with(values: dict[str, Any], root: Path = ROOT) -> Session:
    """Return a session of the baseline with other values."""
    return Session(root, root, root, load_experiment(BASELINE, values))


def test_random_weights_need_no_file() -> None:
    """With `pretrained: false` no weights are fetched."""
    assert fetch_weights(session_with({"model.pretrained": False})).weights is None


@pytest.mark.parametrize("key", ["model.pretrained", "model.resume_from"])
def test_a_missing_checkpoint_is_named_in_the_error(key: str) -> None:
    """The error has key and value, and the remedy names the folder of attached datasets."""
    with pytest.raises(WeightsError, match=rf"{key} is 'nowhere/last.pt'") as caught:
        fetch_weights(session_with({key: "nowhere/last.pt"}))
    assert "/kaggle/input" in caught.value.remedy


@pytest.mark.parametrize("key", ["model.pretrained", "model.resume_from"])
def test_a_path_may_be_absolute_or_in_the_repository(tmp_path: Path, key: str) -> None:
    """Attached datasets are outside the repository, artifacts inside."""
    (tmp_path / "a.pt").touch()
    for given in ("a.pt", str(tmp_path / "a.pt")):
        assert find_weights(session_with({key: given}, tmp_path)) == tmp_path / "a.pt"


def test_a_failed_download_of_published_weights_has_three_remedies(tmp_path: Path) -> None:
    """Without a network the library's download fails; it runs in a subprocess, since settings are read only once."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom lib.experiment.load import load_experiment\n"
        "from lib.session import Session\nfrom lib.train.launch import prepare_library\n"
        "from lib.train.weights import fetch_weights\nprepare_library(Path(sys.argv[1]))\n"
        "experiment = load_experiment('experiments/001_det_baseline.yaml')\n"
        "fetch_weights(Session(Path(), Path(), Path(), experiment))"
    )
    proxy = "http://127.0.0.1:9"  # no proxy listens there: no request leaves the machine
    env = {**os.environ, "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("WeightsError") :]
    assert "yolo11s.pt could not be downloaded" in message
    assert all(remedy in message for remedy in ("internet on", "model.pretrained", "pretrained: false"))


def test_the_library_neither_installs_nor_tracks(tmp_path: Path) -> None:
    """The run has its own settings file with every tracker off; the user's settings are not read."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom lib.train.launch import prepare_library\n"
        "prepare_library(Path(sys.argv[1]))\n"
        "from ultralytics import settings\nfrom ultralytics.utils import AUTOINSTALL\n"
        "on = [name for name in ('wandb', 'dvc', 'mlflow', 'clearml', 'comet', 'sync') if settings[name]]\n"
        "print(AUTOINSTALL, settings.file, on)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"False {tmp_path}/ultralytics/Ultralytics/settings.json []"


def test_an_earlier_runs_files_are_moved_aside(tmp_path: Path) -> None:
    """An unpublished model is never overwritten, however many runs follow."""
    folder = tmp_path / "exp"
    for number in range(3):
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "best.pt").write_text(str(number))
        aside = keep_earlier(folder)
        assert aside is not None
        assert not folder.exists()
    kept = sorted(path.read_text() for path in tmp_path.glob("exp.until-*/train/best.pt"))
    assert kept == ["0", "1", "2"]


def test_an_empty_or_missing_folder_is_not_moved(tmp_path: Path) -> None:
    """An empty or missing folder has nothing to keep."""
    assert keep_earlier(tmp_path / "nowhere") is None
    assert keep_earlier(tmp_path) is None


def test_the_baseline_has_every_key() -> None:
    """Users look the keys up in the baseline."""
    written = BASELINE.read_text(encoding="utf-8")
    assert [key for key in KEYS if f"{key.rpartition('.')[2]}:" not in written] == []
    assert isinstance(load_experiment(BASELINE), Experiment)
