"""Draw sheets of images with their labels and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.labels import CORNER_COLOURS
from lib.data.reader import UnreadableImage, as_rgb, read_image
from lib.escape import visible
from lib.results.matching import Detection, ImageMatches, Match, Points

MOST = 12  # images per sheet
CELL, HEADER, COLUMNS = 320, 28, 4  # pixels, pixels, tiles per row
TRUTH, GUESS, PAPER = "white", "#ff5a36", (24, 26, 30)

Tile = tuple[str, Any]
"""A caption and Pillow's image."""


def draw_predictions(compared: Sequence[ImageMatches], file: Path) -> None:
    """Draw test images, spread evenly over the split and uncropped, into a sheet."""
    chosen = compared[:: max(1, -(-len(compared) // MOST))]
    _draw_sheet([_whole(one) for one in chosen], f"{len(chosen)} of {len(compared)} test images", file)


def draw_worst(compared: Sequence[ImageMatches], file: Path, *, corners: bool) -> None:
    """Draw the worst cases into a sheet: missed objects, then the largest corner errors or most false predictions."""
    if corners:
        pairs = sorted(((match, one) for one in compared for match in one.matches), key=lambda pair: -_badness(pair[0]))
        tiles = [_close_up(match, one) for match, one in pairs[:MOST]]
        title = f"the worst {len(tiles)} of {len(pairs)} labelled objects, by the mean distance of their corners"
    else:
        wrong = sorted((one for one in compared if one.missed or one.false), key=lambda one: (-one.missed, -one.false))
        tiles = [_whole(one, f"{one.missed} missed, {one.false} false: ") for one in wrong[:MOST]]
        title = f"the worst {len(tiles)} of {len(wrong)} test images with objects missed or false alarms"
    _draw_sheet(tiles, title, file)


def _whole(one: ImageMatches, caption: str = "") -> Tile:
    labels = [match.label for match in one.matches]
    return f"{caption}{one.image.name}", _draw_tile(one, labels, one.predicted)


def _badness(match: Match) -> float:
    if match.found is None:
        return math.inf
    return -1.0 if math.isnan(match.relative) else match.relative


def _close_up(match: Match, one: ImageMatches) -> Tile:
    box = match.label.box
    middle, side = (box[:2] + box[2:]) / 2, max(96.0, 2 * float((box[2:] - box[:2]).max())) / 2
    off = "not found" if match.found is None else "no corner labelled"
    if match.found is not None and match.distances.size:
        share = "" if math.isnan(match.relative) else f", {100 * match.relative:.0f} % of height"
        off = f"{match.distances.mean():.1f} px{share}"
    region = np.concatenate([middle - side, middle + side])
    predicted = [match.found] if match.found is not None else one.predicted
    return f"{off}: {one.image.name}", _draw_tile(one, [match.label], predicted, region)


def _draw_sheet(tiles: Sequence[Tile], title: str, file: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    columns, pitch = min(COLUMNS, max(2, len(tiles))), CELL + HEADER
    sheet = Image.new("RGB", (columns * CELL, 2 * HEADER + -(-len(tiles) // columns) * pitch), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((8, 6), title, fill="white", font=font)
    draw.text((8, 6 + HEADER), "labels white, predictions in colour with their score", fill="#c8c8c8", font=font)
    for index, (caption, image) in enumerate(tiles):
        left, top = index % columns * CELL, 2 * HEADER + index // columns * pitch
        sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        draw.text((left + 6, top + CELL + 5), _fit(visible(caption), font), fill="white", font=font)
    # quantized to stay small enough for Git; MAXCOVERAGE keeps the colour of a corner's few pixels
    sheet.quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)


def _fit(text: str, font: Any) -> str:  # noqa: ANN401  one of Pillow's fonts
    """Return a caption, shortened to a tile's width."""
    while font.getlength(text) > CELL - 12:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def _draw_tile(
    one: ImageMatches, labels: Sequence[Detection], predicted: Sequence[Detection], region: Points | None = None
) -> Any:  # noqa: ANN401  Pillow's image
    """Draw the part `region` (left, top, right, bottom) of an image, or the whole image, enlarged to a tile.

    The tile of an image that cannot be read holds the reason.
    """
    from PIL import Image, ImageDraw

    try:
        image = Image.fromarray(as_rgb(read_image(one.image, one.channels)))
    except UnreadableImage as error:
        image = Image.new("RGB", (CELL, CELL), PAPER)
        ImageDraw.Draw(image).text((8, CELL // 2), f"it cannot be read:\n{error}", fill="white")
        return image
    left, top, right, bottom = (0, 0, *image.size) if region is None else region.round().astype(int).tolist()
    scale = CELL / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    image = image.crop((left, top, right, bottom)).resize(size)  # areas outside the image become black
    _draw_detections(image, labels, predicted, origin=np.array([left, top]), scale=scale)
    return image


def draw_found(image: Any, predicted: Sequence[Detection], names: Mapping[int, str]) -> None:  # noqa: ANN401
    """Draw predictions into a whole, uncropped Pillow image, each with its class name if there are several classes."""
    _draw_detections(image, (), predicted, pen=max(1, round(max(image.size) / 1000)), names=names)


def _draw_detections(
    image: Any,  # noqa: ANN401
    labels: Sequence[Detection], predicted: Sequence[Detection], *, origin: Points | int = 0, scale: float = 1.0,
    pen: int = 1, names: Mapping[int, str] | None = None,
) -> None:  # fmt: skip
    """Draw objects into an image that starts at `origin`, enlarged `scale` times, with lines `pen` times as wide."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13 * pen)
    for detection, colour, width in [(label, TRUTH, 3) for label in labels] + [(p, GUESS, 2) for p in predicted]:
        (x0, y0), (x1, y1) = ((detection.box.reshape(2, 2) - origin) * scale).tolist()
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=width * pen)
        is_guess = colour == GUESS
        # a corner without a label is at (0, 0)
        shown = detection.corners if is_guess else detection.corners[detection.corners[:, 2] > 0]
        corners = [(float(x), float(y)) for x, y in (shown[:, :2] - origin) * scale]
        colours, radius = (CORNER_COLOURS, 3 * pen) if is_guess else ((TRUTH,) * len(corners), 4 * pen)
        if corners:
            draw.line([*corners, corners[0]], fill=colours[0], width=pen)
        for (x, y), fill in zip(corners, colours, strict=False):
            draw.circle((x, y), radius, fill=fill, outline="black")
        if is_guess:
            name = f"{visible(names[detection.category])} " if names and len(names) > 1 else ""
            label = f"{name}{detection.score:.2f}"
            wide, high = 8 * pen * len(label) + 4 * pen, 16 * pen
            x, y = min(max(0, x0), image.width - wide), min(max(high, y0), image.height)
            draw.rectangle((x, y - high, x + wide, y), fill=GUESS)
            draw.text((x + 3 * pen, y - 15 * pen), label, fill="black", font=font)
