"""Draw a contact sheet of a dataset: the first images of each split with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lib.data.dataset import check_names, keypoint_shape
from lib.data.findings import Findings
from lib.data.labels import CORNER_COLOURS, POLYGON, LabelledImage, box_around, read_objects
from lib.data.reader import UnreadableImage, as_rgb, read_image
from lib.data.splits import SPLITS, find_images, list_files
from lib.errors import DatasetError
from lib.experiment.load import read_yaml

CELL, GUTTER, HEADER_ROWS, TITLE = 256, 8, 72, 26
COLUMNS = 6  # 1592 pixels wide
PAPER, INK, BOX = (24, 26, 30), (236, 236, 236), (255, 214, 0)
CORNERS = ("top left", "top right", "bottom right", "bottom left")


def draw_contact_sheet(dataset: Path, file: Path, *, per_split: int = 6) -> None:
    """Write a PNG, at most 1600 pixels wide, with the first images of each split and their labels.

    `dataset` is the folder of any dataset in YOLO format: boxes, boxes with keypoints, or polygons. Only the images
    that are shown are opened, even in a large dataset. Raises `DatasetError` if `data.yaml`, an image or a label file
    is invalid.
    """
    if not (dataset / "data.yaml").is_file():
        raise _invalid(f"data.yaml not found in {dataset}.", "Name the folder of a dataset in YOLO format.")
    description, inside = read_yaml(dataset / "data.yaml", DatasetError), list_files(dataset)
    classes, points = check_names(description, Findings()), keypoint_shape(description)
    rows = {}
    for split in SPLITS:
        images = find_images(dataset, inside, description, split, Findings())
        if images:
            title = f"{split}: {len(images)} image{'s' * (len(images) != 1)}"
            rows[title] = [_draw_cell(image, classes, points) for image in images[:per_split]]
    sheet = _lay_out(rows, columns=max(2, min(per_split, COLUMNS)))
    _draw_legend(sheet, ", ".join(f"{number} {name}" for number, name in classes.items()), points[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, format="PNG")


def _invalid(what: str, remedy: str = "Mend the file, or take it out of the dataset.") -> DatasetError:
    return DatasetError(what, state="No contact sheet was drawn.", remedy=remedy)


def _draw_cell(labelled: LabelledImage, classes: Mapping[int, str], points: Sequence[int]) -> Image.Image:
    try:
        image = Image.fromarray(as_rgb(read_image(labelled.path)))
    except UnreadableImage as error:
        raise _invalid(f"{labelled.path} cannot be opened: {error}") from error
    image = ImageOps.contain(image, (CELL, CELL), Image.Resampling.LANCZOS)
    try:
        for number, *values in read_objects(labelled.label):
            _draw_label(image, classes.get(int(number), f"class {number:g}"), values, points)
    except (ValueError, OverflowError) as error:
        raise _invalid(f"{labelled.label} holds a row that is no label: {error}") from error
    return image


def _draw_label(image: Image.Image, name: str, values: Sequence[float], points: Sequence[int]) -> None:
    """Draw a box with its keypoints, or a polygon with its bounding box."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    if len(values) >= POLYGON - 1 and not points[0]:
        numbers, outline, box = [], np.reshape(values, (-1, 2)), box_around(values)
    else:
        # a row of a pose dataset may be a box alone
        keypoints, box = np.reshape(values[4:], points if values[4:] else (0, 3)), list(values[:4])
        seen = keypoints[:, 2:].all(axis=1)
        numbers, outline = np.flatnonzero(seen).tolist(), keypoints[seen, :2]
    centre, half = np.reshape(box, (2, 2)) * image.size / ((1,), (2,))
    (x0, y0), (x1, y1) = (centre - half).tolist(), (centre + half - 1).tolist()
    draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=BOX, width=2)
    corner = max(0, x0), max(0, y0 - 17)
    left, top, right, bottom = draw.textbbox(corner, name, font=font)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=BOX)
    draw.text(corner, name, fill=PAPER, font=font)
    spots = (outline * image.size).tolist()
    draw.line([tuple(spot) for spot in (*spots, *spots[:1])], fill=INK)
    for number, (x, y) in zip(numbers, spots, strict=False):
        colour = CORNER_COLOURS[number % len(CORNER_COLOURS)]
        draw.circle((x, y), 3, fill=colour, outline=PAPER)
        # Place the number outside the quadrilateral, where it covers nothing.
        across, along = np.sign([x, y] - np.mean(spots, axis=0)) * 9
        beside = (x + across, y + along)
        draw.text(beside, str(number + 1), fill=colour, font=font, anchor="mm", stroke_width=2, stroke_fill=PAPER)


def _lay_out(rows: Mapping[str, Sequence[Image.Image]], columns: int) -> Image.Image:
    pitch, y = CELL + GUTTER, HEADER_ROWS
    height = y + sum(TITLE + -(-len(cells) // columns) * pitch for cells in rows.values()) + GUTTER
    sheet = Image.new("RGB", (columns * pitch + GUTTER, height), PAPER)
    for title, cells in rows.items():
        ImageDraw.Draw(sheet).text((GUTTER, y + 4), title, fill=INK, font=ImageFont.load_default(15))
        for index, cell in enumerate(cells):
            sheet.paste(cell, (GUTTER + index % columns * pitch, y + TITLE + index // columns * pitch))
        y += TITLE + -(-len(cells) // columns) * pitch
    return sheet


def _draw_legend(sheet: Image.Image, classes: str, corners: int) -> None:
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(14), float(GUTTER)
    draw.rectangle((GUTTER, 13, GUTTER + 22, 27), outline=BOX, width=2)
    draw.text((GUTTER + 32, 12), f"box of {classes}", fill=INK, font=font)
    for number in range(corners):
        colour = CORNER_COLOURS[number % len(CORNER_COLOURS)]
        words = f"{number + 1} {CORNERS[number] if corners == len(CORNERS) else ''}"
        draw.circle((x + 10, 48), 6, fill=colour)
        draw.text((x + 24, 40), words, fill=colour, font=font)
        x += 48 + draw.textlength(words, font=font)
