"""Match predictions with labels, and measure how far predicted corners are from labelled ones.

A prediction with a score of at least `SHOWN` matches a labelled object of its class if the IoU of their boxes is at
least `OVERLAP`. The prediction with the highest score is matched first; each object is matched at most once. Lengths
are in pixels of the upright image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lib.data.dataset import Dataset
from lib.data.labels import KEYPOINT, label_path, read_objects
from lib.data.reader import COLOUR, UnreadableImage, read_size

SHOWN = 0.25  # the lowest score shown; ultralytics' own threshold for showing a prediction
OVERLAP = 0.5  # IoU

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detection:
    """A labelled or predicted object in an image."""

    category: int
    box: Points
    """Left, top, right, bottom."""
    corners: Points
    """One row per corner: x, y, and its confidence or whether it is labelled (0: not); no rows without keypoints."""
    score: float = 1.0


class Match(NamedTuple):
    """A labelled object and its matching prediction, if any."""

    label: Detection
    found: Detection | None

    @property
    def distances(self) -> Points:
        """Return the distance of each labelled corner to its prediction; empty without a prediction."""
        if self.found is None:
            return np.empty(0)
        seen = self.label.corners[:, 2] > 0
        off: Points = np.linalg.norm(self.label.corners[seen, :2] - self.found.corners[seen, :2], axis=1)
        return off

    @property
    def relative(self) -> float:
        """Return the mean distance as a share of the height, which is the mean of the labelled left and right sides.

        NaN without a prediction or without such a side.
        """
        if not self.distances.size:
            return math.nan
        low, high = self.label.corners[[3, 2]], self.label.corners[[0, 1]]
        sides = np.linalg.norm(low[:, :2] - high[:, :2], axis=1)[(low[:, 2] > 0) & (high[:, 2] > 0)]
        return float(self.distances.mean() / sides.mean()) if sides.any() else math.nan


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """One image: its labelled objects with their predictions, and all predictions with a score of at least `SHOWN`."""

    image: Path
    matches: Sequence[Match]
    predicted: Sequence[Detection]
    channels: int = COLOUR
    """The number of channels that the image is read with."""

    @property
    def missed(self) -> int:
        """Return the number of labelled objects without a matching prediction."""
        return sum(match.found is None for match in self.matches)

    @property
    def false(self) -> int:
        """Return the number of predictions that match no labelled object."""
        return len(self.predicted) - len(self.matches) + self.missed


def compare(dataset: Dataset, predictions: Path) -> list[ImageMatches]:
    """Match the predictions in `predictions.json` with the labels of the test split, for each of its images.

    An image that can no longer be read is left out, with a warning: its labels have no size in pixels.
    """
    predicted: dict[str, list[Detection]] = {}
    for item in json.loads(predictions.read_text(encoding="utf-8")):
        if item["score"] >= SHOWN:
            predicted.setdefault(item["file_name"], []).append(_prediction(item))
    compared = []
    for image in dataset.files["test"]:
        detections = sorted(predicted.get(file_name(dataset, image), []), key=lambda detection: -detection.score)
        try:
            matches = match(_labels(dataset, image), detections)
        except UnreadableImage as error:
            print(f"Warning: {file_name(dataset, image)} cannot be read and is left out ({error}).", flush=True)
            continue
        compared.append(ImageMatches(image, matches, detections, dataset.channels))
    return compared


def file_name(dataset: Dataset, image: Path) -> str:
    """Return an image's path below the dataset, which is equal on every machine; its full path if it is elsewhere.

    `image` may be the link that training reads.
    """
    image = dataset.links.get(image, image)
    inside = image.is_relative_to(dataset.folder)
    return image.relative_to(dataset.folder).as_posix() if inside else image.as_posix()


def match(labels: Sequence[Detection], predictions: Iterable[Detection]) -> list[Match]:
    """Match each labelled object with a prediction, if any; `predictions` start with the highest score."""
    found: dict[int, Detection] = {}
    for detection in predictions:
        overlaps = [
            -1.0 if number in found or label.category != detection.category else iou(label.box, detection.box)
            for number, label in enumerate(labels)
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= OVERLAP:
            found[best] = detection
    return [Match(label, found.get(number)) for number, label in enumerate(labels)]


def iou(one: Points, other: Points) -> float:
    """Return the intersection over union (IoU) of two boxes."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(sides.prod()) if (sides > 0).all() else 0.0
    return shared / float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared)


def corner_errors(compared: Iterable[ImageMatches]) -> dict[str, float]:
    """Return the figures of `corners` in `metrics.json`; a figure that has no object to measure is absent."""
    matches = [one for image in compared for one in image.matches if one.label.corners.size]
    figures: dict[str, float] = {"objects": len(matches), "found": sum(one.found is not None for one in matches)}
    distances = np.concatenate([np.empty(0), *(one.distances for one in matches)])
    if distances.size:
        figures |= {
            "mean_px": round(float(distances.mean()), 3),
            "median_px": round(float(np.median(distances)), 3),
            "p95_px": round(float(np.percentile(distances, 95)), 3),
        }
    shares = [one.relative for one in matches if not math.isnan(one.relative)]
    if shares:
        figures["mean_relative"] = round(sum(shares) / len(shares), 5)
    return figures


def _prediction(item: Mapping[str, Any]) -> Detection:
    x, y, width, height = item["bbox"]
    corners = np.array(item.get("keypoints") or [], dtype=float).reshape(-1, KEYPOINT)
    return Detection(item["category_id"] - 1, np.array([x, y, x + width, y + height]), corners, item["score"])


def _labels(dataset: Dataset, image: Path) -> list[Detection]:
    width, height, _ = read_size(image, dataset.channels)
    label = dataset.folder / label_path(file_name(dataset, image))
    labels = []
    for category, x, y, w, h, *rest in read_objects(str(label), polygons=dataset.polygons, boxes=dataset.boxes):
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * (width, height, width, height)
        corners = np.array(rest, dtype=float).reshape(-1, KEYPOINT) * (width, height, 1)
        labels.append(Detection(int(category), box, corners))
    return labels
