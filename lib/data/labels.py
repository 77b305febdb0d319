"""Read a dataset's labels as ultralytics reads them, and gather everything that is wrong in one report.

A label file holds one object a line: its class, then its box (centre x, centre y, width, height) and, for a pose, its
keypoints (x, y, visibility), or the corners of its polygon (x, y); lengths are fractions of the picture.

Guarantees: a file without an error here is one that ultralytics keeps whole: it drops a picture with a bad label
without stopping, and goes on training with the rest. The same files give the same report, line by line.

Not guaranteed: that a label fits its picture. A box around the wrong thing is a well-formed box.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lib.data.findings import SMALLEST, Findings, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]  # one object a row
    Mask = NDArray[np.bool_] | np.bool_  # one value an object

T = TypeVar("T")
R = TypeVar("R")

BOX = 5  # columns: class, centre x, centre y, width, height
KEYPOINT = 3  # columns: x, y, visibility
POLYGON = 7  # columns at least: class, and x, y of three corners; the library takes a line of 6 for a box
CORNERS = 4
ROUNDING = 1e-6
"""What six decimals may lie outside of 0 to 1; ultralytics lets a hundredth pass."""
NO_AREA = 1e-9
"""Of the picture's: a thousandth of a pixel in one of a megapixel."""
MARGIN = 0.01
"""What a box may reach out of the picture before it is told, and at least what a keypoint may of its box."""
LABEL_SHARE = 0.2
"""More pictures of a split than this share without any object are told."""
CHUNK = 64  # files a task: a thread's bookkeeping costs as much as reading a small file


class Picture(NamedTuple):
    """A picture of a split: its path and name, those of its label, and its size in pixels (0: not known)."""

    split: str
    path: str
    name: str
    label: str
    label_name: str
    width: int = 0
    height: int = 0


class Form(NamedTuple):
    """What labels must look like: `classes` 0 if not known, `keypoints` a line, whether they are trained (`poses`).

    `polygons`: a line holds an object's outline in place of its box.
    """

    classes: int
    keypoints: int
    poses: bool
    image_size: int
    polygons: bool = False


class _Line(NamedTuple):
    picture: Picture
    number: int
    words: list[str]

    @property
    def place(self) -> str:
        return f"{self.picture.label_name}:{self.number}"


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Give the function's value for each item, in order; for functions that wait for files."""
    items = list(items)
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return [
            value for values in pool.map(lambda chunk: [function(item) for item in chunk], chunks) for value in values
        ]


def label_path(picture: str) -> str:
    """Give the path where ultralytics looks for a picture's label: in `labels` beside the last folder `images`."""
    head, found, tail = picture.rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}" if found else picture
    return moved.rpartition(".")[0] + ".txt"


def read_objects(label: str, *, polygons: bool = False) -> list[list[float]]:
    """Give each object of a label file that was checked: class, box, keypoints; none where there is no such file.

    Of a polygon the box is the one around it. A line that stands there twice counts once, as ultralytics counts it.
    """
    content = _read(label)
    rows = [] if isinstance(content, str) else [tuple(float(word) for word in words) for _, words in content]
    return [[row[0], *box_around(row[1:])] if polygons else list(row) for row in dict.fromkeys(rows)]


def box_around(outline: Sequence[float]) -> list[float]:
    """Give the box (centre x, centre y, width, height) of an outline: x, y, x, y, …."""
    x, y = outline[::2], outline[1::2]
    return [(max(x) + min(x)) / 2, (max(y) + min(y)) / 2, max(x) - min(x), max(y) - min(y)]


def check_labels(pictures: Sequence[Picture], form: Form, names: dict[int, str], findings: Findings) -> None:
    """Read the labels of all pictures and note what is wrong with them."""
    labelled = {picture.label: picture for picture in reversed(pictures)}  # two pictures may share one
    labelled = dict(sorted(labelled.items(), key=lambda item: item[1].label_name))
    lines, table = [], []
    filled = set()
    for picture, content in zip(labelled.values(), in_threads(_read, labelled), strict=True):
        if isinstance(content, str):
            findings.add(Kind.TEXT, picture.label_name, content)
            filled.add(picture.label)
            continue
        for number, words in content:
            filled.add(picture.label)
            line = _Line(picture, number, words)
            values = _parse(line, form, findings)
            if values:
                lines.append(line)
                table.append(values)
    if table:
        import numpy as np

        _check_rows(lines, np.array(table), form, findings)
    _check_splits(pictures, filled, lines, names, findings)


def _read(label: str) -> list[tuple[int, list[str]]] | str:
    """Give the lines of a label file that are not blank, with their numbers; or why it cannot be read."""
    try:
        with open(label, "rb") as file:  # noqa: PTH123  ten thousand Path objects take longer than the reading
            text = file.read().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return []
    except UnicodeDecodeError as error:
        return f"byte {error.start} is {error.object[error.start : error.start + 1]!r}"
    except OSError as error:
        return str(error.strerror)
    return [(number, words) for number, line in enumerate(text.splitlines(), start=1) if (words := line.split())]


def _parse(line: _Line, form: Form, findings: Findings) -> list[float] | None:
    """Give a line's class, box and as many keypoints as the form has (absent ones are NaN); None if they are none."""
    columns = BOX + KEYPOINT * form.keypoints
    if form.polygons:
        if len(line.words) < POLYGON or len(line.words) % 2 == 0:
            told = f"{len(line.words)} columns, not {POLYGON} or more, an odd number"
            findings.add(Kind.COLUMNS, line.place, told)
            return None
    elif len(line.words) != columns and (form.poses or len(line.words) != BOX):
        either = "" if form.poses or columns == BOX else f"{BOX} or "
        findings.add(Kind.COLUMNS, line.place, f"{len(line.words)} columns, not {either}{columns}")
        return None
    values = []
    for word in line.words:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            findings.add(Kind.NUMBER, line.place, _short(word))
            return None
        values.append(value)
    if form.polygons:
        return _around(line, values, findings)
    return values + [math.nan] * (columns - len(values))


def _around(line: _Line, values: list[float], findings: Findings) -> list[float] | None:
    """Give the class of a polygon and the box around it; None where one of its corners lies outside of the picture."""
    category, *outline = values
    for word, value in zip(line.words[1:], outline, strict=True):
        if not -ROUNDING <= value <= 1 + ROUNDING:
            findings.add(Kind.COORDINATE, line.place, _short(word))
            return None
    x, y = outline[::2], outline[1::2]
    area = sum(x[at - 1] * y[at] - x[at] * y[at - 1] for at in range(len(x))) / 2
    if abs(area) < NO_AREA:
        findings.add(Kind.SIDE, line.place, f"{len(x)} corners on a line")
        return None
    return [category, *box_around(outline)]


def _check_rows(lines: list[_Line], rows: Table, form: Form, findings: Findings) -> None:
    """Note what is wrong in well-formed lines, all at once: a row of `rows` is a line's numbers.

    Every comparison with NaN is false, so that a keypoint which is absent is never wrong.
    """
    import numpy as np

    numbers, boxes = rows[:, 0], rows[:, 1:BOX]
    points = rows[:, BOX:].reshape(len(rows), form.keypoints, KEYPOINT)
    places, visibility = points[:, :, :2], points[:, :, 2]

    def note(kind: Kind, wrong: Mask, tell: Callable[[int], str]) -> None:
        for index in np.flatnonzero(wrong).tolist():
            findings.add(kind, lines[index].place, tell(index))

    def first(wrong: NDArray[np.bool_], columns: Sequence[int]) -> Callable[[int], str]:
        return lambda index: _short(lines[index].words[columns[int(wrong[index].argmax())]])

    unknown = (numbers < 0) | (numbers % 1 != 0) | ((numbers >= form.classes) & (form.classes > 0))
    note(Kind.CLASS, unknown, lambda index: _short(lines[index].words[0]))
    where = [1, 2, 3, 4, *(BOX + KEYPOINT * point + axis for point in range(form.keypoints) for axis in (0, 1))]
    below = rows[:, where] < -ROUNDING
    below[:, 2:4] = False  # a side below 0 is told as such
    outside = below | (rows[:, where] > 1 + ROUNDING)
    note(Kind.COORDINATE, outside.any(axis=1), first(outside, where))
    flat = boxes[:, 2:] <= 0
    note(Kind.SIDE, flat.any(axis=1), first(flat, (3, 4)))
    odd = (visibility < 0) | (visibility > 2) | (visibility % 1 > 0)  # noqa: PLR2004  the three states
    seen_columns = [BOX + KEYPOINT * point + 2 for point in range(form.keypoints)]
    note(Kind.VISIBILITY, odd.any(axis=1), first(odd, seen_columns))

    sound = ~(outside.any(axis=1) | flat.any(axis=1) | odd.any(axis=1))
    note(
        Kind.TWICE,
        _repeated(lines, _identities(lines, rows, form)),
        lambda index: " ".join(lines[index].words[:BOX]),
    )
    sizes = np.array([(line.picture.width, line.picture.height) for line in lines], dtype=float)
    longer = sizes.max(axis=1)
    pixels = boxes[:, 2:] * sizes * (form.image_size / np.maximum(longer, 1))[:, None]
    small = sound & (longer > 0) & (pixels.min(axis=1) <= SMALLEST)
    note(Kind.SMALL, small, lambda index: f"{pixels[index, 0]:.1f} x {pixels[index, 1]:.1f} pixels")
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    beyond = np.maximum(-low, high - 1).max(axis=1)
    note(Kind.BEYOND, sound & (beyond > MARGIN), lambda index: f"by {beyond[index]:.3f} of the picture")
    if not form.poses:
        return
    labelled = visibility > 0
    slack = np.maximum(boxes[:, 2:] / 10, MARGIN)[:, None, :]
    away = labelled & ((places < low[:, None, :] - slack) | (places > high[:, None, :] + slack)).any(axis=2)
    note(Kind.AWAY, sound & away.any(axis=1), lambda index: f"keypoint {int(away[index].argmax())}")
    if form.keypoints == CORNERS:
        shape = np.where(sizes > 0, sizes, 1)[:, None, :]
        orders = _orders(places * shape)
        told = sound & labelled.all(axis=1) & np.array([bool(order) for order in orders])
        note(Kind.ORDER, told, lambda index: f"{orders[index]} ({int(told.sum())} of {len(rows)} objects)")


def _identities(lines: list[_Line], rows: Table, form: Form) -> Iterable[Table]:
    """Give of each line what makes it another one: its class, and the box, the keypoints or the outline trained."""
    import numpy as np

    if form.polygons:
        return (np.array(line.words, dtype=float) for line in lines)
    return rows if form.poses else rows[:, :BOX]


def _repeated(lines: list[_Line], identities: Iterable[Table]) -> NDArray[np.bool_]:
    """Say which lines a file holds already, as ultralytics compares them: in single precision."""
    import numpy as np

    seen: set[tuple[str, bytes]] = set()
    repeated = []
    for line, identity in zip(lines, identities, strict=True):
        key = line.picture.label, identity.astype(np.float32).tobytes()
        repeated.append(key in seen)
        seen.add(key)
    return np.array(repeated)


def _orders(corners: NDArray[np.float64]) -> list[str]:
    """Say of each four corners (in pixels) how they differ from the order that is asked for; nothing if they do not.

    A rectangle seen from anywhere is convex, and its corners run clockwise when y points down. Where the text starts
    cannot be seen here: its upper edge is taken to run to the right, up to 60 degrees from level.
    """
    import numpy as np

    edges = np.roll(corners, -1, axis=1) - corners
    after = np.roll(edges, -1, axis=1)
    turns = edges[:, :, 0] * after[:, :, 1] - edges[:, :, 1] * after[:, :, 0]
    upper = edges[:, 0] - edges[:, 2]  # both long edges, one the other way round
    level = upper[:, 0] > np.hypot(upper[:, 0], upper[:, 1]) / 2
    told = []
    for turn, is_level in zip(turns, level.tolist(), strict=True):
        if (turn < 0).all():
            told.append("they run counter-clockwise")
        elif not (turn > 0).all():
            told.append("they make no convex shape")
        else:
            told.append("" if is_level else "the first is not the top-left one")
    return told


def _check_splits(
    pictures: Sequence[Picture], filled: set[str], lines: list[_Line], names: dict[int, str], findings: Findings
) -> None:
    """Note which splits lack labels, and which classes a split lacks."""
    classes: dict[str, set[float]] = {}
    for line in lines:
        classes.setdefault(line.picture.label, set()).add(float(line.words[0]))
    for split in dict.fromkeys(picture.split for picture in pictures):
        labels = [picture.label for picture in pictures if picture.split == split]
        empty = sum(label not in filled for label in labels)
        if empty == len(labels):
            findings.add(Kind.UNLABELLED, split, f"none of {len(labels)} pictures has an object")
            continue
        if empty > LABEL_SHARE * len(labels):
            findings.add(Kind.BACKGROUND, split, f"{empty} of {len(labels)} pictures")
        there = set().union(*(classes.get(label, set()) for label in labels))
        for number in sorted(set(names) - there):
            findings.add(Kind.ABSENT, split, f"{number} {names[number]}")


def _short(word: str) -> str:
    return word if len(word) <= 40 else f"{word[:40]}…"  # noqa: PLR2004  a line of the report
