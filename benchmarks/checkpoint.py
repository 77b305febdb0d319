"""Training with checkpoint uploads, against the same training without.

Our side uploads one checkpoint after the other to the emulated Google Drive, which answers so slowly that an upload
takes longer than an epoch; the other side trains with `session.checkpoint_minutes: null`. Measured are seconds per
epoch, from `results.csv`, without the first two. On two cores, training and uploads compete; on a GPU they do not.

    uv run python benchmarks/checkpoint.py [--turns 5] [--epochs 10]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/emulators")]

import drive_emulator
from drive_emulator import DriveEmulator, client_pointed_at
from many import clone, make_origin
from measure import compare, report
from training import seconds_an_epoch

import lib.remotes.credentials
from lib.data.dataset import check_dataset
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.remotes.clone import configure_dvc
from lib.remotes.credentials import Credentials
from lib.sandbox.dataset import draw_dataset
from lib.session import Session
from lib.train.checkpoints import CheckpointUploader, hold_run
from lib.train.launch import prepare_library, train
from lib.train.tracking import configure_tracking
from lib.train.weights import StartingPoint


class Bench:
    """A dataset, a repository and a Drive, for trainings in new clones."""

    def __init__(self, folder: Path, drive: DriveEmulator, epochs: int) -> None:
        self.folder, self.drive, self.turn = folder, drive, 0
        prepare_library(folder / "library")
        draw_dataset(folder / "data", "detection", counts={"train": 64, "val": 16, "test": 8}, size=160)
        self.keys = {"training.epochs": epochs, "training.image_size": 160}
        self.data = check_dataset(folder / "data", self.experiment(None), folder / "checked", md5="0" * 32).data_file
        self.origin = make_origin(folder, f"gdrive://{drive.root_id}")
        self.uploaded: list[int] = []
        """The number of uploaded checkpoints of each training."""

    def experiment(self, minutes: float | None) -> Experiment:
        """Return the sandbox's experiment with a name of its own and this `checkpoint_minutes`."""
        keys = {**self.keys, "name": f"exp{self.turn:03d}"}
        experiment = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", keys)
        session = experiment.session.model_copy(update={"checkpoint_minutes": minutes})
        return experiment.model_copy(update={"session": session})

    def train(self, minutes: float | None) -> float:
        """Train in a new clone, and return seconds per epoch."""
        self.turn += 1
        root, scratch = clone(self.origin, self.folder / f"clone-{self.turn}"), self.folder / f"scratch-{self.turn}"
        experiment = self.experiment(minutes)
        output = io.StringIO()
        drive = Credentials(drive=drive_emulator.CANARIES)
        configure_dvc(root, scratch, drive)
        session = Session(root, scratch / "curves", scratch, experiment, drive, commit="0" * 40)
        with contextlib.redirect_stdout(output):
            hold = hold_run(session)
            hold.take()
            with CheckpointUploader(session, "0" * 32, hold) as uploader:
                trained = train(session, self.data, StartingPoint(None), configure_tracking(session))
            uploader.wait()
            hold.release()
        self.uploaded.append(output.getvalue().count("is uploaded"))
        assert "Warning" not in output.getvalue(), output.getvalue()
        return seconds_an_epoch(trained.folder / "results.csv")


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--latency", type=int, default=200, help="ms")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as name, DriveEmulator() as drive, client_pointed_at(drive):
        lib.remotes.credentials.TOKEN_URI = f"{drive.url}/token"
        drive.latency = args.latency / 1000
        bench = Bench(Path(name), drive, args.epochs)
        case = compare("epoch", lambda: bench.train(0.001), lambda: bench.train(None), turns=args.turns, reach=1.01)
        uploaded = max(bench.uploaded)
    assert uploaded, "no checkpoint was uploaded"
    case = replace(case, notes={"checkpoints uploaded in a training": uploaded})
    report("checkpoint", [case], "How much longer does an epoch take with checkpoint uploads?")


if __name__ == "__main__":
    main()
