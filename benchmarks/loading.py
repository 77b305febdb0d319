"""Loading images for training and for its validation, against ultralytics' own loader, on one core.

The images are drawn JPEGs of three sizes. Both sides read them with the loader of `yolo train`, without processes of
its own; ours reads what step 6 has prepared, in the environment of a training process. The values are milliseconds an
image in the second epoch; the time that preparing takes is noted, with the growth of each process's memory while it
reads.

    uv run python benchmarks/loading.py [--turns 3] [--images 48]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]

from dataclasses import replace

import numpy as np
from measure import Case, compare, report
from PIL import Image

from lib.data.dataset import Dataset, check_dataset
from lib.data.prepare import prepare_images
from lib.experiment.load import load_experiment
from lib.sandbox.dataset import draw_image
from lib.session import Session
from lib.train.launch import ALLOCATOR

SIZES = {(960, 720): 1.4, (1920, 1080): 2.0, (4000, 3000): 6.0}
"""Width and height of the images, and how many times as fast the loading of a training is to be."""
LOAD = """
import json, resource, sys, time
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

file, split = sys.argv[1:]
about, settings = check_det_dataset(file), get_cfg(overrides={"task": "detect", "imgsz": 640})
mode = "train" if split == "train" else "val"
built = build_yolo_dataset(settings, about[split], 16, about, mode=mode, rect=mode == "val")
# the mosaic's buffer holds a few of a large dataset's images; here it would hold all of them
built.max_buffer_length = len(built) // 8
loader = build_dataloader(built, 16, 0, shuffle=mode == "train")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for count in (0, 0):  # the first epoch also imports, and fills the buffer
    begun = time.process_time()
    for batch in loader:
        count += len(batch["img"])
    seconds = time.process_time() - begun
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"ms": 1000 * seconds / count, "MiB": grown / 1024}))
"""


def draw(folder: Path, size: tuple[int, int], images: int) -> tuple[Session, Dataset]:
    """Draw a dataset of JPEGs of that size and check it."""
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (folder / "data" / kind / split).mkdir(parents=True)
        for number in range(images if split != "test" else 1):
            generator = np.random.default_rng([len(split), number])
            image, rows = draw_image(generator, "detection", size=640)
            image.resize(size, Image.Resampling.BICUBIC).save(folder / f"data/images/{split}/{number}.jpg", quality=90)
            text = "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows)
            (folder / f"data/labels/{split}/{number}.txt").write_text(text)
    names = "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: {0: door}\n"
    (folder / "data/data.yaml").write_text(names)
    experiment = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", {"training.image_size": 640})
    session = Session(folder, folder, folder / "scratch", experiment)
    return session, check_dataset(folder / "data", experiment, session.scratch, md5="")


def load(file: Path, split: str, grown: list[float], settings: Mapping[str, str]) -> float:
    """Load a split in a process of its own with these settings; return the milliseconds an image."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, file, split], capture_output=True, text=True, check=True,
        env={**os.environ, **settings},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    grown.append(found["MiB"])
    return float(found["ms"])


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, default=48)
    args = parser.parse_args()
    cases: list[Case] = []
    for size, times in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            session, dataset = draw(Path(name), size, args.images)
            prepared = prepare_images(session, dataset)
            for split in ("train", "val"):
                memory: tuple[list[float], list[float]] = [], []
                case = compare(
                    f"{split}-{size[0]}x{size[1]}",
                    partial(load, prepared.training_file, split, memory[0], ALLOCATOR),
                    partial(load, dataset.data_file, split, memory[1], {}),
                    turns=args.turns,
                    reach=1 / times if split == "train" else 1.0,
                )
                notes = {
                    "times as fast": round(1 / case.ratio, 2),
                    "preparing, ms an image": round(1000 * prepared.prepared.seconds / prepared.prepared.images, 1),
                    "MiB grown, ours": round(max(memory[0])),
                    "MiB grown, other side": round(max(memory[1])),
                }
                cases.append(replace(case, unit="ms", notes=notes))
    report("loading", cases, "How long does the loader take for an image, against ultralytics' own reading?")


if __name__ == "__main__":
    main()
