"""Read a dataset's labels as ultralytics reads them, and collect all issues in one report.

Guarantees: ultralytics uses every line of a label file that has no error here. (It silently skips an image with a bad
label and trains on the rest.) The same files always produce the same report, line by line.

Cannot: check that a label matches its image. A box around the wrong object is still well-formed.

A label file holds one object per line: its class, then its box (centre x, centre y, width, height) and, for a pose,
its keypoints (x, y, visibility); or its class and the corners (x, y) of its polygon. Coordinates and lengths are
fractions of the image's width and height.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lib.data.findings import SMALLEST, Findings, Issue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]  # one row per object
    Mask = NDArray[np.bool_] | np.bool_  # one value per object

T = TypeVar("T")
R = TypeVar("R")

BOX = 5  # columns: class, centre x, centre y, width, height
KEYPOINT = 3  # columns: x, y, visibility
POLYGON = 7  # minimum of columns: class, and x, y of three corners; ultralytics parses a line of 6 as a box
CORNERS = 4
CORNER_COLOURS = ("#ff4040", "#40e65a", "#5abeff", "#ff78f5")
"""Colours of drawn corners: top left, top right, bottom right, bottom left."""
ROUNDING = 1e-6
"""Tolerance for coordinates outside 0 to 1 that were rounded to six decimals; ultralytics tolerates 0.01."""
NO_AREA = 1e-9
"""A polygon below this fraction of the image's area has no area: 0.001 pixels in an image of one megapixel."""
MARGIN = 0.01
"""Warn when a box exceeds the image by more than this fraction; also the minimum tolerance of a keypoint to its box."""
LABEL_SHARE = 0.2
"""Warn when more than this share of a split's images have no object."""
CHUNK = 64  # files per task: scheduling a thread task costs as much as reading a small file


class LabelledImage(NamedTuple):
    """An image of a split: its path and name, the path and name of its label, its size in pixels (0 if unknown)."""

    split: str
    path: str
    name: str
    label: str
    label_name: str
    width: int = 0
    height: int = 0


class LabelFormat(NamedTuple):
    """The format that label lines must have.

    `classes` is the number of classes (0 if unknown); `keypoints` is the number of keypoints per line, `dimensions` the
    number of columns of each; `poses` is true if the keypoints are trained; `polygons` is true if a line holds an
    object's outline instead of its box.
    """

    classes: int
    keypoints: int
    poses: bool
    image_size: int
    polygons: bool = False
    dimensions: int = KEYPOINT


class _Line(NamedTuple):
    image: LabelledImage
    number: int
    words: list[str]

    @property
    def place(self) -> str:
        return f"{self.image.label_name}:{self.number}"


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return the function's value for each item, in order; threads help only functions that wait for file access."""
    with ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return pool.map(function, items, CHUNK)


def label_path(image: str) -> str:
    """Return where ultralytics looks for an image's label: the last folder `images` becomes `labels`.

    Of a path below the dataset the path below the dataset is returned, whatever the folders above are called.
    """
    head, found, tail = f"{os.sep}{image}".rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}" if found else f"{os.sep}{image}"
    return moved[1:].rpartition(".")[0] + ".txt"


def read_objects(label: str, *, polygons: bool = False, boxes: bool = False) -> list[list[float]]:
    """Return the objects of a checked label file, each as class, box, keypoints; an empty list if there is no file.

    A polygon is returned as its bounding box; with `boxes`, keypoints are left out. An object counts once, as in
    ultralytics.
    """
    content = _read(label)
    rows = [] if isinstance(content, str) else [words[: BOX if boxes else None] for _, words in content]
    numbers = [[float(word) for word in words] for words in rows]
    repeated = _repeated(((label, row) for row in numbers), polygons=polygons)
    once = [row for row, again in zip(numbers, repeated, strict=True) if not again]
    return [[row[0], *box_around(row[1:])] if polygons else row for row in once]


def _repeated(rows: Iterable[tuple[str, Sequence[float]]], *, polygons: bool) -> list[bool]:
    """Return which rows repeat an earlier one of their label file, in single precision as ultralytics reads them."""
    import numpy as np

    first: dict[tuple[str, bytes], int] = {}
    zero = np.float32(-0.0 if polygons else 0)  # added to a row: of boxes, ultralytics takes -0 for 0
    keys = ((label, (np.array(row, dtype=np.float32) + zero).tobytes()) for label, row in rows)
    return [first.setdefault(key, number) < number for number, key in enumerate(keys)]


def box_around(outline: Sequence[float]) -> list[float]:
    """Return the bounding box (centre x, centre y, width, height) of an outline (x, y, x, y, …)."""
    x, y = outline[::2], outline[1::2]
    return [(max(x) + min(x)) / 2, (max(y) + min(y)) / 2, max(x) - min(x), max(y) - min(y)]


def check_labels(images: Sequence[LabelledImage], form: LabelFormat, names: dict[int, str], findings: Findings) -> None:
    """Read the labels of all images and report their issues."""
    labelled = {image.label: image for image in reversed(images)}
    labelled = dict(sorted(labelled.items(), key=lambda item: item[1].label_name))
    lines, table = [], []
    filled = set()
    for image, content in zip(labelled.values(), in_threads(_read, labelled), strict=True):
        if isinstance(content, str):
            findings.add(Issue.TEXT, image.label_name, content)
            filled.add(image.label)
            continue
        for number, words in content:
            filled.add(image.label)
            line = _Line(image, number, words)
            values = _parse(line, form, findings)
            if values:
                lines.append(line)
                table.append(values)
    for image in images:
        first = labelled[image.label]
        if image.label in filled and image.path != first.path:
            findings.add(Issue.SHARED, image.name, f"{first.name} has the same label, {image.label_name}")
    if table:
        import numpy as np

        _check_rows(lines, np.array(table), form, findings)
    _check_splits(images, filled, lines, names, findings)


def _read(label: str) -> list[tuple[int, list[str]]] | str:
    """Return the non-blank lines of a label file with their numbers; or, as a string, why it cannot be read."""
    try:
        with open(label, "rb") as file:  # noqa: PTH123  creating ten thousand Path objects is slower than reading
            text = file.read().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return []
    except UnicodeDecodeError as error:
        return f"byte {error.start} is {error.object[error.start : error.start + 1]!r}"
    except OSError as error:
        return str(error.strerror)
    return [(number, words) for number, line in enumerate(text.splitlines(), start=1) if (words := line.split())]


def _parse(line: _Line, form: LabelFormat, findings: Findings) -> list[float] | None:
    """Return a line's class, box and trained keypoints; None, with a finding, if the line is malformed."""
    columns = BOX + form.dimensions * form.keypoints
    if form.polygons:
        if len(line.words) < POLYGON or len(line.words) % 2 == 0:
            text = f"{len(line.words)} columns, not {POLYGON} or more, an odd number"
            findings.add(Issue.COLUMNS, line.place, text)
            return None
    elif len(line.words) != columns and (form.poses or len(line.words) != BOX):
        either = "" if form.poses or columns == BOX else f"{BOX} or "
        findings.add(Issue.COLUMNS, line.place, f"{len(line.words)} columns, not {either}{columns}")
        return None
    values = []
    for word in line.words if form.poses or form.polygons else line.words[:BOX]:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            findings.add(Issue.NUMBER, line.place, _short(word))
            return None
        values.append(value)
    if form.polygons:
        return _around(line, values, findings)
    return values


def _around(line: _Line, values: list[float], findings: Findings) -> list[float] | None:
    """Return a polygon's class and bounding box; None, with a finding, for a corner outside the image or no area."""
    category, *outline = values
    for word, value in zip(line.words[1:], outline, strict=True):
        if not -ROUNDING <= value <= 1 + ROUNDING:
            findings.add(Issue.COORDINATE, line.place, _short(word))
            return None
    x, y = outline[::2], outline[1::2]
    area = sum(x[at - 1] * y[at] - x[at] * y[at - 1] for at in range(len(x))) / 2
    if abs(area) < NO_AREA:
        findings.add(Issue.SIDE, line.place, f"{len(x)} corners on a line")
        return None
    return [category, *box_around(outline)]


def _check_rows(lines: list[_Line], rows: Table, form: LabelFormat, findings: Findings) -> None:
    """Report the issues of well-formed lines in one vectorized pass; each row of `rows` holds a line's numbers."""
    import numpy as np

    numbers, boxes = rows[:, 0], rows[:, 1:BOX]
    points = rows[:, BOX:].reshape(len(rows), -1, KEYPOINT)
    places, visibility = points[:, :, :2], points[:, :, 2]

    def note(kind: Issue, wrong: Mask, describe: Callable[[int], str]) -> None:
        for index in np.flatnonzero(wrong).tolist():
            findings.add(kind, lines[index].place, describe(index))

    def first(wrong: NDArray[np.bool_], columns: Sequence[int]) -> Callable[[int], str]:
        return lambda index: _short(lines[index].words[columns[int(wrong[index].argmax())]])

    unknown = (numbers < 0) | (numbers % 1 != 0) | ((numbers >= form.classes) & (form.classes > 0))
    note(Issue.CLASS, unknown, lambda index: _short(lines[index].words[0]))
    where = [1, 2, 3, 4, *(BOX + KEYPOINT * point + axis for point in range(points.shape[1]) for axis in (0, 1))]
    below = rows[:, where] < -ROUNDING
    below[:, 2:4] = False  # a negative side is reported as Issue.SIDE
    outside = below | (rows[:, where] > 1 + ROUNDING)
    note(Issue.COORDINATE, outside.any(axis=1), first(outside, where))
    flat = boxes[:, 2:] <= 0
    note(Issue.SIDE, flat.any(axis=1), first(flat, (3, 4)))
    odd = (visibility < 0) | (visibility > 2) | (visibility % 1 > 0)  # noqa: PLR2004  the three states
    seen_columns = [BOX + KEYPOINT * point + 2 for point in range(points.shape[1])]
    note(Issue.VISIBILITY, odd.any(axis=1), first(odd, seen_columns))

    sound = ~(outside.any(axis=1) | flat.any(axis=1) | odd.any(axis=1))
    trained = None if form.poses or form.polygons else BOX
    shapes = ((line.image.label, [float(word) for word in line.words[:trained]]) for line in lines)
    note(
        Issue.TWICE,
        np.array(_repeated(shapes, polygons=form.polygons)),
        lambda index: " ".join(lines[index].words[:BOX]),
    )
    sizes = np.array([(line.image.width, line.image.height) for line in lines], dtype=float)
    longer = sizes.max(axis=1)
    pixels = boxes[:, 2:] * sizes * (form.image_size / np.maximum(longer, 1))[:, None]
    small = sound & (longer > 0) & (pixels.min(axis=1) <= SMALLEST)
    note(Issue.SMALL, small, lambda index: f"{pixels[index, 0]:.1f} x {pixels[index, 1]:.1f} pixels")
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    beyond = np.maximum(-low, high - 1).max(axis=1)
    note(Issue.BEYOND, sound & (beyond > MARGIN), lambda index: f"by {beyond[index]:.3f} of the image")
    if not form.poses:
        return
    labelled = visibility > 0
    slack = np.maximum(boxes[:, 2:] / 10, MARGIN)[:, None, :]
    away = labelled & ((places < low[:, None, :] - slack) | (places > high[:, None, :] + slack)).any(axis=2)
    note(Issue.AWAY, sound & away.any(axis=1), lambda index: f"keypoint {int(away[index].argmax())}")
    if form.keypoints == CORNERS:
        shape = np.where(sizes > 0, sizes, 1)[:, None, :]
        orders = _orders(places * shape)
        wrong = sound & labelled.all(axis=1) & np.array([bool(order) for order in orders])
        note(Issue.ORDER, wrong, lambda index: f"{orders[index]} ({int(wrong.sum())} of {len(rows)} objects)")


def _orders(corners: NDArray[np.float64]) -> list[str]:
    """Return for each four corners (in pixels) how their order deviates from the required one; empty if correct.

    In every view a rectangle is convex and, with y pointing down, its corners run clockwise. The start of the text is
    unknown here: its upper edge is assumed to run to the right, at most 60 degrees from horizontal.
    """
    import numpy as np

    edges = np.roll(corners, -1, axis=1) - corners
    after = np.roll(edges, -1, axis=1)
    turns = edges[:, :, 0] * after[:, :, 1] - edges[:, :, 1] * after[:, :, 0]
    upper = edges[:, 0] - edges[:, 2]  # sum of both long edges: the lower one points the other way
    level = upper[:, 0] > np.hypot(upper[:, 0], upper[:, 1]) / 2
    counter_clockwise, convex = (turns < 0).all(axis=1), (turns > 0).all(axis=1)
    complaints = "they run counter-clockwise", "they form no convex shape", "the first is not the top-left one"
    chosen: list[str] = np.select([counter_clockwise, ~convex, ~level], complaints, "").tolist()
    return chosen


def _check_splits(
    images: Sequence[LabelledImage], filled: set[str], lines: list[_Line], names: dict[int, str], findings: Findings
) -> None:
    """Report splits with no or few labels, and classes that a split does not contain."""
    classes: dict[str, set[float]] = {}
    for line in lines:
        classes.setdefault(line.image.label, set()).add(float(line.words[0]))
    for split in dict.fromkeys(image.split for image in images):
        labels = [image.label for image in images if image.split == split]
        empty = sum(label not in filled for label in labels)
        if empty == len(labels):
            findings.add(Issue.UNLABELLED, split, f"none of {len(labels)} images has an object")
            continue
        if empty > LABEL_SHARE * len(labels):
            findings.add(Issue.BACKGROUND, split, f"{empty} of {len(labels)} images")
        there = set().union(*(classes.get(label, set()) for label in labels))
        for number in sorted(set(names) - there):
            findings.add(Issue.ABSENT, split, f"{number} {names[number]}")


def _short(word: str) -> str:
    return word if len(word) <= 40 else f"{word[:40]}…"  # noqa: PLR2004  keeps a line of the report short
