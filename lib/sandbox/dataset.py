"""Draw a dataset of container doors, so that the whole project runs without a real photograph.

Guarantees: the same seed produces the same bytes, independent of what else is drawn, because each image has its own
random stream, derived from (seed, module, split, index). An image's labels are projected by the same camera that drew
it. A dataset appears under its name only when it is complete.

Cannot: produce the same bytes with another release of Pillow, NumPy or OpenCV, or train a model that works on real
containers. These images test the pipeline, not the task. No network, font file or external image is used.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from lib.sandbox.container import Points
from lib.sandbox.scene import photograph, plan_scene, visible_part

Row = list[float]  # one line of a label file

# A YOLO11n learns this many images from scratch in about a minute and a half on two CPU cores.
COUNTS = {"train": 192, "val": 24, "test": 24}
CLASSES = {"detection": "container_door", "localization": "container_id"}
EMPTY = 20  # every twentieth image has no door


def draw_dataset(
    folder: Path, module: str, *, seed: int = 0, counts: Mapping[str, int] | None = None, size: int = 320
) -> None:
    """Write a dataset in YOLO format: `images/SPLIT/SPLIT_NNNN.jpg`, `labels/SPLIT/SPLIT_NNNN.txt`, `data.yaml`.

    `module` is "detection" (one row `0 cx cy w h` for the visible part of each door end; every twentieth image has no
    door) or "localization" (one row: the ID's box, then its corners top left, top right, bottom right, bottom left in
    the text's own orientation, each as `x y 2`). Coordinates are fractions of the image. `counts` maps a split to its
    number of images; a missing split keeps its default. Images are squares of `size` pixels. `folder` must be missing
    or empty, else `FileExistsError` is raised; it is filled atomically, by a rename.
    """
    if module not in CLASSES:
        raise ValueError(f"There is no module {module!r}: it is one of {', '.join(CLASSES)}.")
    counts = {**COUNTS, **(counts or {})}
    if counts.keys() != COUNTS.keys() or min(counts.values()) < 0:
        raise ValueError(f"Counts are numbers of images, 0 or more, for {', '.join(COUNTS)}; got {counts}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; nothing was drawn.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workplace:
        drawn = Path(workplace, "dataset")
        for split, count in counts.items():
            for kind in ("images", "labels"):
                (drawn / kind / split).mkdir(parents=True)
            for index in range(count):
                empty = module == "detection" and (index + 1) % EMPTY == 0
                image, rows = draw_image(_stream(seed, module, split, index), module, size=size, empty=empty)
                image.save(drawn / f"images/{split}/{split}_{index:04d}.jpg", quality=90)
                lines = [" ".join(f"{round(value, 6):g}" for value in row) + "\n" for row in rows]
                (drawn / f"labels/{split}/{split}_{index:04d}.txt").write_text("".join(lines), encoding="utf-8")
        _write_description(drawn, module)
        if folder.exists():
            folder.rmdir()  # a rename onto an existing folder, even an empty one, fails on some systems
        drawn.rename(folder)


def _stream(seed: int, module: str, split: str, index: int) -> Generator:
    # hash() differs between processes; SHA-256 does not.
    digest = hashlib.sha256(f"{seed}/{module}/{split}/{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def draw_image(
    rng: Generator, module: str, *, size: int, empty: bool = False, with_id: bool = True
) -> tuple[Image.Image, list[Row]]:
    """Draw one image and return it with its label rows; `empty` omits the doors, `with_id=False` only their IDs."""
    scene = plan_scene(rng, module)
    if empty:
        scene = scene._replace(doors=(), subjects=())
    image = photograph(rng, scene, size, with_id=with_id)
    return image, [_row(scene.camera.project(subject), module) for subject in scene.subjects]


def _row(corners: Points, module: str) -> Row:
    _, part = visible_part(corners)
    low, high = part.min(axis=0), part.max(axis=0)
    if module == "detection":
        return [0, *(low + high) / 2, *(high - low)]
    return [0, *(low + high) / 2, *(high - low + 0.008), *np.insert(corners, 2, 2, axis=1).ravel()]


def _write_description(drawn: Path, module: str) -> None:
    lines = ["path: .", *(f"{split}: images/{split}" for split in COUNTS), f"names: {{0: {CLASSES[module]}}}"]
    if module == "localization":
        lines += ["kpt_shape: [4, 3]", "flip_idx: [0, 1, 2, 3]"]
    (drawn / "data.yaml").write_text("\n".join([*lines, ""]), encoding="utf-8")
