"""Training as the notebook does, against ultralytics' own command with the same arguments.

`uv run python benchmarks/training.py [--turns 5] [--epochs 12] [--cpu]` trains both sides in turns on one drawn
dataset. Measured are seconds per epoch, from `results.csv`, without the first two, and the share of an epoch that our
callbacks take.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measure import Case, report

from lib.data.dataset import check_dataset
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment, ultralytics_arguments
from lib.kaggle.host import Host, find_gpus
from lib.sandbox.dataset import draw_dataset
from lib.session import Session
from lib.train.launch import prepare_library, train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint

WARM_UP = 2  # epochs that are not counted: caches, allocators


def seconds_an_epoch(results: Path) -> float:
    """Return the mean seconds of an epoch after the warm-up."""
    with results.open(encoding="utf-8", newline="") as file:
        times = [float(row["time"]) for row in csv.DictReader(file)]
    return (times[-1] - times[WARM_UP - 1]) / (len(times) - WARM_UP)


def train_plainly(experiment: Experiment, data: Path, folder: Path, device: str) -> float:
    """Train with ultralytics' own command, and return seconds per epoch."""
    arguments = {**ultralytics_arguments(experiment), "data": data, "device": device, "save_dir": folder, "plots": True}
    given = [f"{key}={value}" for key, value in arguments.items()]
    model = f"model={experiment.model.architecture}.yaml"
    command = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"]
    subprocess.run([*command, "detect", "train", model, "pretrained=False", *given], check=True, capture_output=True)
    return seconds_an_epoch(folder / "results.csv")


def train_here(experiment: Experiment, data: Path, folder: Path, host: Host) -> tuple[float, float]:
    """Train as the notebook does; return seconds per epoch and the share of them that callbacks took."""
    session = Session(folder, folder / "curves", folder / "scratch", experiment, host=host)
    trained = train(session, data, StartingPoint(None), configure_tracking(session), worker="timed_trainer")
    spent = json.loads((folder / "scratch/training/callbacks.json").read_text(encoding="utf-8"))
    with (trained.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        total = float([*csv.DictReader(file)][-1]["time"])
    return seconds_an_epoch(trained.folder / "results.csv"), spent / total


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--cpu", action="store_true", help="do not use the GPUs")
    args = parser.parse_args()
    host = Host() if args.cpu else Host(find_gpus())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_library(folder / "library")
        draw_dataset(folder / "data", "detection", counts={"train": 64, "val": 16, "test": 8}, size=160)
        keys = {"training.epochs": args.epochs, "training.image_size": 160}
        experiment = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", keys)
        data = check_dataset(folder / "data", experiment, folder / "checked", md5="0" * 32).data_file
        device = Session(folder, folder, folder, experiment, host=host).device
        plain, here, shares = [], [], []
        for turn in range(args.turns):
            plain.append(train_plainly(experiment, data, folder / f"plain-{turn}", device))
            seconds, share = train_here(experiment, data, folder / f"here-{turn}", host)
            here.append(seconds)
            shares.append(share)
    case = Case("epoch", here, plain, notes={"callbacks, percent of an epoch at most": round(100 * max(shares), 2)})
    report("training", [case], "How long does an epoch take, against ultralytics' own command?")


if __name__ == "__main__":
    main()
