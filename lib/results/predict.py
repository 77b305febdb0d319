"""Predict with a published model on the user's images, and draw the predictions.

Guarantees: no input image is overwritten; all input paths are checked before the first prediction; images are read as
in training; coordinates are pixels of the upright image. An image that cannot be read is reported and does not stop the
others.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.labels import KEYPOINT
from lib.data.reader import COLOUR, UnreadableImage, as_rgb, is_image, read_image
from lib.errors import PredictionError
from lib.results.fetch import Model
from lib.results.matching import Detection
from lib.results.sheets import draw_found
from lib.train.launch import prepare_library


@dataclass(frozen=True, eq=False)
class Predicted:
    """An image, its predictions (highest score first) and the drawn file; or the problem that prevented them."""

    image: Path
    detections: tuple[Detection, ...] = ()
    names: Mapping[int, str] | None = None
    drawn: Path | None = None
    problem: str = ""

    def __str__(self) -> str:
        """Return one line with each object's class, confidence, box (left, top, right, bottom) and corners."""
        found = "; ".join(self._describe(detection) for detection in self.detections) or "nothing was found"
        return f"{self.image}: {self.problem or found}"

    def _describe(self, detection: Detection) -> str:
        box = " ".join(f"{value:.0f}" for value in detection.box)
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in detection.corners)
        name = (self.names or {}).get(detection.category, detection.category)
        return f"{name} {detection.score:.2f} box {box}{f' corners {corners}' if corners else ''}"


def predict(
    model: Model, images: Sequence[Path], output: Path, *, confidence: float, device: str = ""
) -> Iterator[Predicted]:
    """Yield the predictions on each image in `images`, files or folders, and draw each image into `output`.

    `device` is `cpu` or a GPU's number; if it is empty, a GPU is used if there is one. Raises `PredictionError` for a
    path that is not an image or a folder of images, an unavailable device, and a run without weights.
    """
    targets = _plan(images, output)
    if not model.best.is_file():
        raise PredictionError(
            f"{model.record.branch} was published without train/weights/best.pt.",
            remedy="choose another branch; `python -m lib status` shows them.",
        )
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as scratch:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for predictions, not for the library's messages
            prepare_library(Path(scratch))
        from ultralytics.models import YOLO
        from ultralytics.utils.torch_utils import select_device

        try:
            chosen = select_device(device, verbose=False)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise PredictionError(
                f"--device is {device!r}, and this machine has no such device ({str(error).strip().splitlines()[0]}).",
                remedy="leave --device out, or give cpu or the number of a GPU.",
            ) from None
        size = model.record.experiment["training"]["image_size"]
        network: Any = YOLO(str(model.best))
        channels = network.model.yaml.get("channels", COLOUR)
        find = partial(network.predict, conf=confidence, imgsz=size, device=chosen, verbose=False)
        for image, target in targets.items():
            yield _predict(find, image, target, channels)


def _predict(find: Callable[..., Any], file: Path, target: Path, channels: int) -> Predicted:
    from PIL import Image

    try:
        pixels = read_image(file, channels)
    except UnreadableImage as error:
        return Predicted(file, problem=f"it cannot be read ({error})")
    image = Image.fromarray(as_rgb(pixels))
    (result,) = find(pixels)
    boxes = result.boxes
    points = result.keypoints.data.cpu().numpy() if result.keypoints is not None else [[]] * len(boxes)
    rows = zip(boxes.cls.tolist(), boxes.xyxy.cpu().numpy(), points, boxes.conf.tolist(), strict=True)
    detections = tuple(
        Detection(int(category), box.astype(float), np.asarray(corners, dtype=float).reshape(-1, KEYPOINT), score)
        for category, box, corners, score in rows
    )
    draw_found(image, detections, result.names)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, quality=90)
    return Predicted(file, detections, result.names, target)


def _plan(given: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the path below `output` at which each image is drawn: its name, or its path in the given folder."""
    targets: dict[Path, Path] = {}
    for path in given:
        found = sorted(each for each in path.rglob("*") if is_image(each.name)) if path.is_dir() else [path]
        wrong = "" if path.exists() else "there is no such file or folder"
        if not wrong and not (found and all(is_image(each.name) for each in found)):
            wrong = "this folder holds no image" if path.is_dir() else "this is not an image"
        if wrong:
            raise PredictionError(f"{path}: {wrong}.", remedy="name images, or folders of images.")
        for image in found:
            inside = image.relative_to(path) if path.is_dir() else Path(image.name)
            targets.setdefault(image, _free(output / inside, set(targets.values())))
    overwritten = {image.resolve() for image in targets} & {target.resolve() for target in targets.values()}
    if overwritten:
        raise PredictionError(
            f"--output is {output}: drawing there would overwrite {min(overwritten)}.",
            remedy="name another folder with --output.",
        )
    return targets


def _free(wanted: Path, taken: set[Path]) -> Path:
    """Return a JPEG path that is not yet taken: two folders may hold images of the same name."""
    numbered = (wanted.with_name(f"{wanted.stem}-{number}.jpg") for number in count(2))
    return next(target for target in chain([wanted.with_suffix(".jpg")], numbered) if target not in taken)
