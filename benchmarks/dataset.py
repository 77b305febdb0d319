"""Pulling a dataset of small images as the notebook does, against plain `dvc pull`, from the emulated Google Drive.

The dataset has 100, 1,000 and 5,000 images. It is pulled from Drive alone, and with an attached copy of the DVC remote
that is complete or lacks a tenth of the files. Each pull is a whole process in a new clone.

    uv run python benchmarks/dataset.py [--turns 3] [--images 100 1000 5000] [--latency 50]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/emulators")]

import drive_emulator
from drive_emulator import DriveEmulator
from measure import Case, compare, report, seconds_of

PULL = """
import sys
from pathlib import Path
import lib.data.dataset
from lib.experiment.load import load_experiment
from lib.session import Session

lib.data.dataset.check_dataset = lambda folder, *_, **__: folder  # only the pull is measured
experiment = load_experiment(Path(sys.argv[1]) / "experiments/000_det_sandbox.yaml", {"dataset": "data"})
place, inputs = map(Path, sys.argv[2:4])
session = Session(Path.cwd(), place, place, experiment)
folder = lib.data.dataset.pull_dataset(session, inputs=inputs)
assert len(list(folder.iterdir())) == int(sys.argv[4])
"""
SIZE = 3000  # bytes of an image
REACHES = {("whole", 1000): 0.2, ("none", 1000): 0.36}


class Bench:
    """A dataset on a Drive, and copies of the remote as attached datasets."""

    def __init__(self, folder: Path, drive: DriveEmulator, images: int) -> None:
        self.folder, self.images, self.turn = folder, images, 0
        self.seed = folder / "seed"
        dvc = [sys.executable, "-m", "dvc"]
        subprocess.run(["git", "init", "--quiet", self.seed], check=True)
        subprocess.run([*dvc, "init", "--quiet"], cwd=self.seed, check=True)
        subprocess.run(
            [*dvc, "remote", "add", "-q", "-d", "storage", f"gdrive://{drive.root_id}"], cwd=self.seed, check=True
        )
        (self.seed / "data").mkdir()
        for number in range(images):
            (self.seed / f"data/{number}.png").write_bytes(os.urandom(SIZE))
        subprocess.run([*dvc, "add", "--quiet", "data"], cwd=self.seed, check=True)
        cache = self.seed / ".dvc/cache"
        for file in sorted(path for path in cache.rglob("*") if path.is_file()):
            drive.put(file.relative_to(cache).as_posix(), file.read_bytes())
        drive_emulator.configure_clone(self.seed, drive, folder / "credentials")
        self.env = {"PYTHONPATH": f"{drive_emulator.write_sitecustomize(folder / 'site', drive)}:{ROOT}"}
        for name in ("none", "whole", "part"):
            (folder / name).mkdir()
        shutil.move(cache, folder / "whole/copy")
        shutil.copytree(folder / "whole/copy", folder / "part/copy")
        for path in [*(folder / "part/copy").rglob("*")][::10]:
            if path.is_file() and not path.name.endswith(".dir"):
                path.unlink()
        shutil.rmtree(self.seed / "data")

    def _clone(self) -> Path:
        self.turn += 1
        clone = self.folder / f"clone-{self.turn}"
        shutil.copytree(self.seed, clone)
        shutil.rmtree(clone / ".dvc/tmp", ignore_errors=True)
        os.sync()
        return clone

    def ours(self, attached: str) -> float:
        """Pull as step 6 does, and return the seconds."""
        clone = self._clone()
        arguments = [ROOT, clone / "scratch", self.folder / attached, str(self.images)]
        return seconds_of([sys.executable, "-c", PULL, *arguments], cwd=clone, env=self.env)

    def plain(self) -> float:
        """Pull with `dvc pull`, and return the seconds."""
        clone = self._clone()
        return seconds_of([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, env=self.env)


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, nargs="*", default=[100, 1000, 5000])
    parser.add_argument("--latency", type=int, default=200, help="ms")
    args = parser.parse_args()
    cases: list[Case] = []
    for images in args.images:
        with tempfile.TemporaryDirectory() as name, DriveEmulator() as drive:
            bench = Bench(Path(name), drive, images)
            drive.latency = args.latency / 1000
            turns = args.turns if images <= 1000 else 1  # noqa: PLR2004  minutes each
            for label, attached in (("drive-alone", "none"), ("attached", "whole"), ("attached-less-a-tenth", "part")):
                reach = REACHES.get((attached, images), 1.0)
                ours = partial(bench.ours, attached)
                cases.append(compare(f"{label}-{images}", ours, bench.plain, turns=turns, reach=reach))
    report("dataset", cases, "How long does pulling a dataset take, against plain `dvc pull` from Google Drive?")


if __name__ == "__main__":
    main()
