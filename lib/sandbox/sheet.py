"""Draw a contact sheet of a dataset: the first images of each split with their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lib.data.labels import POLYGON, box_around, label_path
from lib.errors import DatasetError
from lib.sandbox.dataset import COUNTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lib.sandbox.paint import Colour, Points


CELL, GUTTER, HEADER_ROWS = 256, 8, 72


COLUMNS = 6  # 1592 pixels wide


SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


PAPER, INK, BOX = (24, 26, 30), (236, 236, 236), (255, 214, 0)


CORNER_COLOURS: tuple[Colour, ...] = ((255, 64, 64), (64, 230, 90), (90, 190, 255), (255, 120, 245))


def draw_contact_sheet(dataset: Path, picture: Path, *, per_split: int = 6) -> None:
    """Write a PNG, at most 1600 pixels wide, with the first images of each split and their labels.

    `dataset` is the folder of any dataset in YOLO format: boxes, boxes with keypoints, or polygons. Only the images
    that are shown are opened, even in a large dataset. Raises `DatasetError` if `data.yaml`, an image or a label file
    is invalid.
    """
    description = _read_description(dataset)
    names = description["names"]
    classes = dict(enumerate(names)) if isinstance(names, list) else dict(names)
    points = [int(value) for value in description.get("kpt_shape", (0, 0))]
    rows: list[tuple[str, list[Image.Image]]] = []
    for split in COUNTS:
        files = _pictures(dataset, description, split)
        if files:
            cells = [_draw_cell(file, classes, points) for file in files[:per_split]]
            rows.append((f"{split}: {len(files)} picture{'s' * (len(files) != 1)}", cells))
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet = _lay_out(rows, columns=max(2, min(per_split, COLUMNS)))
    _draw_legend(sheet, ", ".join(f"{number} {name}" for number, name in classes.items()), corners=points[0])
    sheet.save(picture, format="PNG")


def _read_description(dataset: Path) -> dict[str, Any]:
    file = dataset / "data.yaml"
    remedy = "Point to the folder of a dataset in YOLO format, or pull the dataset again."
    try:
        description = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"data.yaml not found in {dataset}.", state="Nothing was drawn.", remedy=remedy) from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise DatasetError(f"{file} cannot be read: {error}", state="Nothing was drawn.", remedy=remedy) from error
    if not isinstance(description, dict) or not isinstance(description.get("names"), dict | list):
        raise DatasetError(f"{file} names no classes.", state="Nothing was drawn.", remedy="Add `names: {0: …}` to it.")
    return description


def _pictures(dataset: Path, description: Mapping[str, Any], split: str) -> list[Path]:
    """Return a split's image files, sorted; the split is a folder, a text file of paths, or a list of these."""
    root = dataset / description.get("path", ".")
    sources = description.get(split) or []
    files: list[Path] = []
    for source in [sources] if isinstance(sources, str) else sources:
        place = root / source
        listed = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        found = (place.parent / line.strip() for line in listed) if listed else place.rglob("*")
        files += [file for file in found if file.suffix.lower() in SUFFIXES]
    return sorted(files)


def _draw_cell(file: Path, classes: Mapping[int, str], points: Sequence[int]) -> Image.Image:
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * CELL, 2 * CELL))  # decodes a large JPEG at reduced size
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (
        OSError,
        UnidentifiedImageError,
        ImportError,
    ) as error:  # once imported, ultralytics makes Pillow look for a HEIF decoder
        raise _unusable(file, f"cannot be opened: {error}") from error
    image = ImageOps.contain(image, (CELL, CELL), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for number, box, corners, outline in _read_labels(Path(label_path(str(file))), points):
        _draw_label(draw, image.size, classes.get(number, f"class {number}"), box, corners)
        draw.line([(float(x), float(y)) for x, y in outline * image.size], fill=INK, width=1)
    return image


def _read_labels(file: Path, points: Sequence[int]) -> list[tuple[int, Points, Points, Points]]:
    """Return each label as class, box (centre x, centre y, width, height), keypoints (n, 2 or 3), closed outline."""
    if not file.exists():
        return []
    labels = []
    count, values = points
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        try:
            row, outline = np.array(line.split(), dtype=float), np.empty((0, 2))
            if len(row) >= POLYGON and not count:
                outline = row[1:].reshape(-1, 2)
                row, outline = np.array([row[0], *box_around(row[1:].tolist())]), np.vstack([outline, outline[:1]])
            keypoints = row[5:].reshape(count, values)
            number, box = int(row[0]), row[1:5].reshape(4)
        except ValueError as error:
            raise _unusable(file, f"holds a row that is no label: {line.strip()[:60]!r}") from error
        labels.append((number, box, keypoints, outline))
    return labels


def _unusable(file: Path, fault: str) -> DatasetError:
    return DatasetError(
        f"{file} {fault}", state="No contact sheet was drawn.", remedy="Mend the file, or take it out of the dataset."
    )


def _draw_label(draw: ImageDraw.ImageDraw, size: tuple[int, int], name: str, box: Points, keypoints: Points) -> None:
    centre, half = box[:2], box[2:] / 2
    (x0, y0), (x1, y1) = ((centre - half) * size).tolist(), ((centre + half) * size - 1).tolist()
    draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=BOX, width=2)
    font = ImageFont.load_default(12)
    left, top, right, bottom = draw.textbbox((max(0, x0), max(0, y0 - 17)), name, font=font)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=BOX)
    draw.text((max(0, x0), max(0, y0 - 17)), name, fill=PAPER, font=font)
    seen = {number: point[:2] * size for number, point in enumerate(keypoints) if point[2:].all()}
    spots = {number: (float(x), float(y)) for number, (x, y) in seen.items()}
    if spots:
        draw.line([*spots.values(), next(iter(spots.values()))], fill=INK, width=1)
    for number, (x, y) in spots.items():
        colour = CORNER_COLOURS[number % len(CORNER_COLOURS)]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=PAPER)
        # Place the number outside the quadrilateral, where it covers nothing.
        across, along = np.sign([x, y] - np.mean(list(spots.values()), axis=0)) * 9
        beside = (x + across, y + along)
        draw.text(beside, str(number + 1), fill=colour, font=font, anchor="mm", stroke_width=2, stroke_fill=PAPER)


def _lay_out(rows: Sequence[tuple[str, list[Image.Image]]], columns: int) -> Image.Image:
    title, pitch = 26, CELL + GUTTER
    lines = [-(-len(cells) // columns) for _, cells in rows]
    height = HEADER_ROWS + sum(title + line * pitch for line in lines) + GUTTER
    sheet = Image.new("RGB", (columns * pitch + GUTTER, height), PAPER)
    draw, y = ImageDraw.Draw(sheet), HEADER_ROWS
    for (name, cells), line in zip(rows, lines, strict=True):
        draw.text((GUTTER, y + 4), name, fill=INK, font=ImageFont.load_default(15))
        y += title
        for index, cell in enumerate(cells):
            sheet.paste(cell, (GUTTER + index % columns * pitch, y + index // columns * pitch))
        y += line * pitch
    return sheet


def _draw_legend(sheet: Image.Image, classes: str, corners: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.rectangle((GUTTER, 13, GUTTER + 22, 27), outline=BOX, width=2)
    draw.text((GUTTER + 32, 12), f"box of {classes}", fill=INK, font=font)
    x = float(GUTTER)
    places = ("top left", "top right", "bottom right", "bottom left")
    for number in range(corners):
        colour = CORNER_COLOURS[number % len(CORNER_COLOURS)]
        word = f"{number + 1} {places[number] if corners == len(places) else ''}"
        draw.ellipse((x + 4, 42, x + 16, 54), fill=colour)
        draw.text((x + 24, 40), word, fill=colour, font=font)
        x += 48 + draw.textlength(word, font=font)
