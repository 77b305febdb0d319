"""The largest process while a dataset is checked and prepared, and weights are published, against the same by hand.

The dataset has 1,000 and 10,000 small images; by hand, ultralytics builds its own datasets of train and val. Two files
of 20 MB and 400 MB are published to a folder; by hand with `dvc add` and `dvc push`. The values are MiB of resident
memory at its peak, of the largest process; the second case of each kind notes by how much ours has grown.

    uv run python benchmarks/memory.py [--turns 3] [--images 1000 10000] [--sizes 20 400]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/emulators", "tests/sync")]

import cv2
import numpy as np
from many import FOLDER, clone, make_origin
from measure import Case, compare, report
from sync import MB, NAMES, OURS

PREPARE = """
import sys
from pathlib import Path
from lib.data.dataset import check_dataset
from lib.data.prepare import prepare_images
from lib.experiment.load import load_experiment
from lib.session import Session

root, folder, scratch = map(Path, sys.argv[1:])
experiment = load_experiment(root / "experiments/000_det_sandbox.yaml")
session = Session(root, scratch, scratch, experiment)
prepare_images(session, check_dataset(folder, experiment, scratch, md5=""))
"""
READ = """
import sys
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

about, settings = check_det_dataset(sys.argv[1]), get_cfg(overrides={"task": "detect", "imgsz": 160})
built = [build_yolo_dataset(settings, about[split], 16, about, mode=split) for split in ("train", "val")]
"""


PEAK = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""Danger: a process counts the memory of the one that has started it, which must therefore be as small as this one."""


def peak_of(*commands: Sequence[object], cwd: Path) -> float:
    """Run commands one after the other, and return the peak of the largest process in MiB."""
    peaks = []
    for command in commands:
        words, environment = [sys.executable, "-c", PEAK, *map(str, command)], os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        peaks.append(int(done.stdout) / 1024)
    return max(peaks)


def draw(folder: Path, images: int) -> None:
    """Write a dataset of small JPEGs, each of other noise: half of them for train, the others for val and test."""
    chance, splits = np.random.default_rng(images), ("train", "train", "val", "test")
    for number in range(images):
        for kind in ("images", "labels"):
            (folder / kind / splits[number % 4]).mkdir(parents=True, exist_ok=True)
        image = folder / f"images/{splits[number % 4]}/{number}.jpg"
        cv2.imwrite(str(image), chance.integers(0, 255, (48, 64, 3), np.uint8))
        (folder / f"labels/{splits[number % 4]}/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    text = f"path: {folder}\ntrain: images/train\nval: images/val\ntest: images/test\nnames: {{0: door}}\n"
    (folder / "data.yaml").write_text(text)


def of_a_dataset(images: int, turns: int) -> Case:
    """Check and prepare a dataset, and let ultralytics read it."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        draw(place / "data", images)
        ours = [sys.executable, "-c", PREPARE, ROOT, place / "data", place]
        other = [sys.executable, "-c", READ, place / "data/data.yaml"]
        return compare(
            f"dataset-{images}", partial(peak_of, ours, cwd=place), partial(peak_of, other, cwd=place), turns=turns
        )


def of_a_publication(size: int, turns: int) -> Case:
    """Publish two files of `size` MB, and push them with DVC."""
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), iter(range(1000))
        origin = make_origin(folder, str(folder / "storage"))

        def side(*, by_hand: bool) -> float:
            number = next(count)
            root, dvc = clone(origin, folder / f"clone-{number}"), [sys.executable, "-m", "dvc"]
            for each in NAMES:
                (root / FOLDER / each).parent.mkdir(parents=True, exist_ok=True)
                (root / FOLDER / each).write_bytes(os.urandom(size * MB))
            if by_hand:
                return peak_of([*dvc, "add", *(f"{FOLDER}/{each}" for each in NAMES)], [*dvc, "push"], cwd=root)
            return peak_of([sys.executable, "-c", OURS, root, f"kaggle-train-detection-exp001-{number}"], cwd=root)

        return compare(f"publication-{size}MB", partial(side, by_hand=False), partial(side, by_hand=True), turns=turns)


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 400], help="MB")
    args = parser.parse_args()
    cases: list[Case] = []
    for measure_one, given in ((of_a_dataset, args.images), (of_a_publication, args.sizes)):
        found = [replace(measure_one(each, args.turns), unit="MiB") for each in given]
        grown = round(median(found[-1].ours) - median(found[0].ours)) if found else 0
        cases += [*found[:-1], *(replace(case, notes={"MiB grown, ours": grown}) for case in found[-1:])]
    report("memory", cases, "How large does the largest process become, against the same by hand?")


if __name__ == "__main__":
    main()
