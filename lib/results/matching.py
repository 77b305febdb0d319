"""Predictions beside labels: which belong together, how far corners are off, and pictures of both.

A prediction of at least `SHOWN` belongs to a labelled object of its class when their boxes overlap by half (IoU); the
surest chooses first, and each is taken once. Lengths are pixels of the upright picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.data.dataset import Dataset
from lib.data.labels import KEYPOINT, label_path, read_objects

SHOWN = 0.25  # score; ultralytics' own threshold for showing a prediction
OVERLAP = 0.5  # IoU
LYING = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
MOST = 12  # pictures on a sheet
CELL, HEADER, COLUMNS = 320, 28, 4  # pixels, pixels, tiles a row
TRUTH, GUESS, PAPER = "white", "#ff5a36", (24, 26, 30)
CORNER_COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffd60a")

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Thing:
    """An object in a picture, labelled or predicted."""

    category: int
    box: Points
    """Left, top, right, bottom."""
    corners: Points
    """One a row: x, y, and whether it is labelled (0: it is not) or the confidence; no rows without keypoints."""
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Case:
    """A labelled object, and what was predicted for it."""

    picture: Path
    label: Thing
    found: Thing | None

    @property
    def distances(self) -> Points:
        """How far each labelled corner is off; empty where nothing was found."""
        if self.found is None:
            return np.empty(0)
        seen = self.label.corners[:, 2] > 0
        off: Points = np.linalg.norm(self.label.corners[seen, :2] - self.found.corners[seen, :2], axis=1)
        return off

    @property
    def relative(self) -> float:
        """The mean distance as a share of the height: the mean of the left and right sides that are labelled.

        NaN where nothing was found, or no such side is there.
        """
        corners = self.label.corners
        sides = [
            float(np.linalg.norm(corners[low, :2] - corners[high, :2]))
            for low, high in ((3, 0), (2, 1))
            if self.distances.size and corners[low, 2] > 0 and corners[high, 2] > 0
        ]
        height = sum(sides) / len(sides) if sides else 0.0
        return float(self.distances.mean()) / height if height else math.nan


@dataclass(frozen=True, eq=False)
class Compared:
    """One picture: its labelled objects, what was found of them, and all predictions of at least `SHOWN`."""

    picture: Path
    cases: tuple[Case, ...]
    predicted: tuple[Thing, ...]

    @property
    def missed(self) -> int:
        """Labelled objects that were not found."""
        return sum(case.found is None for case in self.cases)

    @property
    def false(self) -> int:
        """Predictions that belong to no labelled object."""
        return len(self.predicted) - len(self.cases) + self.missed


def compare(dataset: Dataset, predictions: Path) -> list[Compared]:
    """Put the predictions of `predictions.json` beside the labels of the test split."""
    predicted: dict[str, list[Thing]] = {}
    for item in json.loads(predictions.read_text(encoding="utf-8")):
        if item["score"] >= SHOWN:
            predicted.setdefault(item["file_name"], []).append(_prediction(item))
    compared = []
    for picture in dataset.pictures("test"):
        things = sorted(predicted.get(file_name(dataset, picture), []), key=lambda thing: -thing.score)
        cases = [Case(picture, label, found) for label, found in match(_labels(dataset, picture), things)]
        compared.append(Compared(picture, tuple(cases), tuple(things)))
    return compared


def file_name(dataset: Dataset, picture: Path) -> str:
    """Name a picture by its path below the dataset, the same on every machine; one that lies elsewhere by its own."""
    inside = picture.is_relative_to(dataset.folder)
    return picture.relative_to(dataset.folder).as_posix() if inside else picture.as_posix()


def match(labels: Sequence[Thing], predictions: Iterable[Thing]) -> list[tuple[Thing, Thing | None]]:
    """Give each labelled object with the prediction that belongs to it; the predictions come with the surest first."""
    found: dict[int, Thing] = {}
    for thing in predictions:
        overlaps = [
            -1.0 if number in found or label.category != thing.category else iou(label.box, thing.box)
            for number, label in enumerate(labels)
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= OVERLAP:
            found[best] = thing
    return [(label, found.get(number)) for number, label in enumerate(labels)]


def iou(one: Points, other: Points) -> float:
    """Give the area that two boxes share, as a part of the area that they cover."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(sides.prod()) if (sides > 0).all() else 0.0
    return shared / float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared)


def corner_errors(compared: Iterable[Compared]) -> dict[str, float]:
    """Give the figures of `metrics.json`'s `corners`; those of no object are absent."""
    cases = [case for picture in compared for case in picture.cases if case.label.corners.size]
    found = [case for case in cases if case.distances.size]
    figures: dict[str, float] = {"objects": len(cases), "found": sum(case.found is not None for case in cases)}
    if found:
        distances = np.concatenate([case.distances for case in found])
        figures |= {
            "mean_px": round(float(distances.mean()), 3),
            "median_px": round(float(np.median(distances)), 3),
            "p95_px": round(float(np.percentile(distances, 95)), 3),
        }
    shares = [case.relative for case in found if not math.isnan(case.relative)]
    if shares:
        figures["mean_relative"] = round(sum(shares) / len(shares), 5)
    return figures


def _prediction(item: Mapping[str, Any]) -> Thing:
    x, y, width, height = item["bbox"]
    corners = np.array(item.get("keypoints") or [], dtype=float).reshape(-1, KEYPOINT)
    return Thing(item["category_id"] - 1, np.array([x, y, x + width, y + height]), corners, item["score"])


def _labels(dataset: Dataset, picture: Path) -> list[Thing]:
    width, height = _size(picture)
    labels = []
    for category, x, y, w, h, *rest in read_objects(label_path(str(picture)), polygons=dataset.polygons):
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * (width, height, width, height)
        corners = np.array(rest, dtype=float).reshape(-1, KEYPOINT) * (width, height, 1)
        labels.append(Thing(int(category), box, corners))
    return labels


def _size(picture: Path) -> tuple[int, int]:
    """Give a picture's width and height, upright as ultralytics reads it."""
    from PIL import ExifTags, Image

    with Image.open(picture) as image:
        width, height = image.size
        lies = image.getexif().get(ExifTags.Base.Orientation) in LYING
    return (height, width) if lies else (width, height)


# ---------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True, eq=False)
class _Tile:
    picture: Path
    caption: str
    labels: Sequence[Thing]
    predicted: Sequence[Thing]
    region: Points | None = None
    """What is shown of the picture: left, top, right, bottom; None: all of it."""


def draw_predictions(compared: Sequence[Compared], picture: Path) -> None:
    """Draw test pictures from all over the split, whole."""
    chosen = compared[:: max(1, -(-len(compared) // MOST))]
    tiles = [
        _Tile(one.picture, one.picture.name, [case.label for case in one.cases], one.predicted) for one in chosen
    ]  # fmt: skip
    _draw_sheet(tiles, f"{len(tiles)} of {len(compared)} test pictures", picture)


def draw_worst(compared: Sequence[Compared], picture: Path, *, corners: bool) -> None:
    """Draw the worst cases: by what was not found, then by how far corners are off, or by false alarms."""
    if corners:
        cases = sorted(((case, one) for one in compared for case in one.cases), key=lambda pair: -_badness(pair[0]))
        tiles = [_close_up(case, one) for case, one in cases[:MOST]]
        title = f"the worst {len(tiles)} of {len(cases)} labelled objects, by the mean distance of their corners"
    else:
        wrong = sorted((one for one in compared if one.missed or one.false), key=lambda one: (-one.missed, -one.false))
        tiles = [
            _Tile(
                one.picture,
                f"{one.missed} missed, {one.false} false: {one.picture.name}",
                [case.label for case in one.cases],
                one.predicted,
            )
            for one in wrong[:MOST]
        ]
        title = f"the worst {len(tiles)} of {len(wrong)} test pictures with objects missed or false alarms"
    _draw_sheet(tiles, title, picture)


def _badness(case: Case) -> float:
    if case.found is None:
        return math.inf
    return -1.0 if math.isnan(case.relative) else case.relative


def _close_up(case: Case, one: Compared) -> _Tile:
    box = case.label.box
    middle, side = (box[:2] + box[2:]) / 2, max(96.0, 2 * float((box[2:] - box[:2]).max())) / 2
    off = "not found" if case.found is None else "no corner labelled"
    if case.found is not None and case.distances.size:
        off = f"{case.distances.mean():.1f} px, {100 * case.relative:.0f} % of height"
    region = np.concatenate([middle - side, middle + side])
    predicted = [case.found] if case.found is not None else one.predicted
    return _Tile(case.picture, f"{off}: {case.picture.name}", [case.label], predicted, region)


def _draw_sheet(tiles: Sequence[_Tile], title: str, picture: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    columns, pitch = min(COLUMNS, max(2, len(tiles))), CELL + HEADER
    sheet = Image.new("RGB", (columns * CELL, 2 * HEADER + -(-len(tiles) // columns) * pitch), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((8, 6), title, fill="white", font=font)
    draw.text((8, 6 + HEADER), "labels white, predictions in colour with their score", fill="#c8c8c8", font=font)
    for index, tile in enumerate(tiles):
        image = _draw_tile(tile)
        left, top = index % columns * CELL, 2 * HEADER + index // columns * pitch
        sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        draw.text((left + 6, top + CELL + 5), _fit(tile.caption, font), fill="white", font=font)
    # small enough for Git; by coverage, so that the few pixels of a corner keep their colour
    sheet.quantize(256, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)


def _fit(text: str, font: Any) -> str:  # noqa: ANN401  one of Pillow's fonts
    """Shorten a caption to a tile's width."""
    while font.getlength(text) > CELL - 12:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def _draw_tile(tile: _Tile) -> Any:  # noqa: ANN401  Pillow's image
    from PIL import Image, ImageOps

    with Image.open(tile.picture) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    left, top, right, bottom = (0, 0, *image.size) if tile.region is None else tile.region.round().astype(int).tolist()
    scale = CELL / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    image = image.crop((left, top, right, bottom)).resize(size)  # what lies outside of the picture is black
    _draw_things(image, tile.labels, tile.predicted, origin=np.array([left, top]), scale=scale)
    return image


def draw_found(image: Any, predicted: Sequence[Thing], names: Mapping[int, str]) -> None:  # noqa: ANN401
    """Draw predictions into a Pillow image of the whole picture, each with its class where there are several."""
    _draw_things(image, (), predicted, pen=max(1, round(max(image.size) / 1000)), names=names)


def _draw_things(
    image: Any,  # noqa: ANN401
    labels: Sequence[Thing], predicted: Sequence[Thing], *, origin: Points | None = None, scale: float = 1.0,
    pen: int = 1, names: Mapping[int, str] | None = None,
) -> None:  # fmt: skip
    """Draw into an image that shows the picture from `origin` on, `scale` times as large, with a pen of that width."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13 * pen)
    origin = np.zeros(2) if origin is None else origin
    for thing, colour, width in [(label, TRUTH, 3) for label in labels] + [(p, GUESS, 2) for p in predicted]:
        (x0, y0), (x1, y1) = ((thing.box.reshape(2, 2) - origin) * scale).tolist()
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=width * pen)
        is_guess = colour == GUESS
        shown = thing.corners if is_guess else thing.corners[thing.corners[:, 2] > 0]  # (0, 0) stands for no label
        corners = [(float(x), float(y)) for x, y in (shown[:, :2] - origin) * scale]
        colours, radius = (CORNER_COLOURS, 3) if is_guess else ((TRUTH,) * len(corners), 4)
        _draw_corners(draw, corners, colours, radius * pen, pen)
        if is_guess:
            name = f"{names[thing.category]} " if names and len(names) > 1 else ""
            label = f"{name}{thing.score:.2f}"
            wide, high = 8 * pen * len(label) + 4 * pen, 16 * pen
            x, y = min(max(0, x0), image.width - wide), min(max(high, y0), image.height)
            draw.rectangle((x, y - high, x + wide, y), fill=GUESS)
            draw.text((x + 3 * pen, y - 15 * pen), label, fill="black", font=font)


def _draw_corners(
    draw: Any, corners: list[tuple[float, float]], colours: Sequence[str], radius: int, pen: int  # noqa: ANN401
) -> None:  # fmt: skip
    if corners:
        draw.line([*corners, corners[0]], fill=colours[0], width=pen)
    for (x, y), colour in zip(corners, colours, strict=False):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="black")
