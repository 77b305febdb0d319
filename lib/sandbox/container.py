"""Paint a shipping container's sides, flat and face on.

Lengths are in millimetres from the top left corner. Light and shade are translucent white and black over any colour.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom
Colour = tuple[int, ...]  # red, green, blue and, if translucent, alpha
Points = NDArray[np.float64]  # one point per row

WIDTH, LOW, HIGH = 2438, 2591, 2896  # ISO 668: 8 feet wide; a standard container and a high cube
POST, HEADER, SILL = 100, 125, 165  # of the frame
RODS, HANDLES = (360, 830, 1400, 1860), (400, 330, -330, -400)  # where the rods are, and how far their handles reach
ID_LEFT, ID_RIGHT, ID_HEIGHT = 1452, 2322, 132

GLEAM, LIT, DIM, DARK = (255, 255, 255, 90), (255, 255, 255, 50), (0, 0, 0, 95), (0, 0, 0, 135)
BLACK, WHITE, YELLOW, STEEL = (24, 24, 22), (236, 236, 230), (228, 184, 34), (176, 178, 178)
LIVERIES = (
    (103, 133, 148), (124, 54, 44), (104, 44, 48), (28, 112, 88), (205, 92, 38), (198, 198, 190), (38, 56, 98),
    (32, 88, 146), (168, 40, 44), (208, 168, 52), (96, 98, 100),
)  # fmt: skip
OWNERS = ("MSKU", "TGHU", "SEGU", "DFSU", "HASU", "FANU", "GCXU", "WHLU", "YMLU", "CSQU", "TCLU", "OOLU", "CMAU")
LINES = ("NORDLINE", "BLUE STAR", "PACIFICA", "ATLANTA", "ORIENTIS")  # fictitious
EMBLEMS = (
    [(600, 0), (740, 280), (600, 200), (460, 280)],
    [(600, 0), (740, 140), (600, 280), (460, 140)],
    [(530, 0), (670, 0), (740, 140), (670, 280), (530, 280), (460, 140)],
)


def check_digit(code: str) -> int:
    """Return the check digit (0 to 9) of a container code: four capital letters, then six digits, without separators.

    ISO 6346, annex A: each character has a value (a digit its own; letters count up from A = 10 and skip multiples of
    11). The value at position i, counted from 0, is multiplied by 2 to the power of i, and the sum is taken modulo 11.
    A remainder of 10 counts as 0. Raises `ValueError` if the code has another form.
    """
    if not re.fullmatch("[A-Z]{4}[0-9]{6}", code):
        raise ValueError(f"A container's code is four letters A-Z and six digits, not {code!r}.")
    values = "0123456789A-BCDEFGHIJK-LMNOPQRSTU-VWXYZ"
    return sum(values.index(character) << position for position, character in enumerate(code)) % 11 % 10


def upright(box: Box, z: float = 0) -> Points:
    """Return the corners of a box that faces the viewer, clockwise from the top left, (4, 3)."""
    x0, y0, x1, y1 = box
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], dtype=float)


def tint(colour: ArrayLike, gain: float = 1.0) -> Colour:
    """Return a colour made darker (below 1) or lighter (above 1) by a factor."""
    return tuple((np.asarray(colour) * gain).clip(0, 255).astype(int).tolist())


def clouds(rng: Generator, shape: tuple[int, int], spots: tuple[int, int]) -> NDArray[np.float32]:
    """Return smooth noise (mean 0, deviation about 1) with so many spots down and across."""
    total = np.zeros(shape, dtype=np.float32)
    for octave, weight in ((1, 0.8), (3, 0.5), (9, 0.3)):
        noise = rng.standard_normal((spots[0] * octave, spots[1] * octave), dtype=np.float32)
        total += weight * cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return total


@dataclass(frozen=True)
class Door:
    """A door end: where it is, its size, its colour and its code, e.g. CSQU3054383; lengths in millimetres."""

    left: float
    height: int
    colour: Colour
    code: str
    id_top: float

    def corners(self) -> Points:
        """Return the door end's corners in the yard, clockwise from the top left, (4, 3)."""
        return upright((self.left, 0, self.left + WIDTH, self.height))

    def id_corners(self) -> Points:
        """Return the corners of the ID and its boxed check digit in the yard, clockwise from the top left, (4, 3)."""
        return upright((self.left + ID_LEFT, self.id_top, self.left + ID_RIGHT, self.id_top + ID_HEIGHT))


def plan_door(rng: Generator, left: float = 0, height: int | None = None) -> Door:
    """Choose a door at random, its left edge at `left` and, where given, of this height."""
    height = height or (HIGH if rng.binomial(1, 0.65) else LOW)
    colour = tint((rng.choice(LIVERIES) * rng.uniform(0.82, 1.15) + rng.normal(0, 6, 3)).clip(8, 240))
    code = f"{rng.choice(OWNERS)}{rng.integers(1_000_000):06d}"
    return Door(left, height, colour, f"{code}{check_digit(code)}", id_top=rng.uniform(270, 330))


class Plate:
    """A flat drawing surface with coordinates in millimetres; translucent colours are blended."""

    def __init__(self, width: float, height: float, scale: float, colour: Colour) -> None:
        self.image = Image.new("RGB", (round(width * scale), round(height * scale)), colour)
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        # Rounding the plate to whole pixels must not shift its content.
        self._scale = np.array([self.image.width / width, self.image.height / height])

    def _pixels(self, box: Box) -> list[int]:
        return [round(edge) for edge in (np.reshape(box, (2, 2)) * self._scale).ravel().tolist()]

    def rect(self, box: Box, colour: Colour) -> None:
        """Draw a filled rectangle."""
        left, top, right, bottom = self._pixels(box)
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)

    def frame(self, box: Box, width: float, upper: Colour, lower: Colour) -> None:
        """Draw a rectangle's outline: one colour for its upper and left edge, another for its lower and right edge."""
        x0, y0, x1, y1 = box
        self.rect((x0, y0, x1, y0 + width), upper)
        self.rect((x0, y0 + width, x0 + width, y1 - width), upper)
        self.rect((x0, y1 - width, x1, y1), lower)
        self.rect((x1 - width, y0 + width, x1, y1 - width), lower)

    def bar(self, box: Box, colour: Colour, width: float = 12) -> None:
        """Draw a raised bar, lit from above."""
        self.rect(box, colour)
        self.frame(box, width, LIT, DIM)

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        """Draw a filled polygon."""
        self._draw.polygon((np.asarray(points) * self._scale).ravel().tolist(), fill=colour)

    def text(self, words: str, box: Box, colour: Colour) -> None:
        """Draw words, stretched to the edges of the box."""
        font = ImageFont.load_default(72)
        left, top, right, bottom = map(round, font.getbbox(words, stroke_width=3))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).text((-left, -top), words, fill=255, font=font, stroke_width=3)
        x0, y0, x1, y1 = self._pixels(box)
        self.image.paste(colour, (x0, y0), mask.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BOX))


def paint_side(length: float, height: float, scale: float, colours: Sequence[Colour]) -> Image.Image:
    """Return the corrugated long sides of stacked containers, each of this height, as a flat frontal drawing."""
    plate = Plate(length, height * len(colours), scale, BLACK)
    for level, colour in enumerate(colours):
        top, bottom = level * height, (level + 1) * height
        plate.bar((0, top, length, bottom - 30), colour, 60)
        for x in np.arange(100, length - 280, 280):
            plate.rect((x, top + 130, x + 140, bottom - 160), DIM)
            plate.rect((x + 210, top + 130, x + 280, bottom - 160), LIT)
    return plate.image


def paint_door(rng: Generator, door: Door, scale: float, *, sun: bool, with_id: bool) -> Image.Image:
    """Return the door end as a flat frontal drawing, with `scale` pixels per millimetre.

    With `with_id=False` all other pixels stay the same, because painting the ID takes no values from `rng`.
    """
    plate = Plate(WIDTH, door.height, scale, door.colour)
    ink = WHITE if np.dot(door.colour, (0.3, 0.59, 0.11)) < 140 else BLACK  # noqa: PLR2004
    _paint_frame(plate, door)
    _paint_decals(rng, plate, door, ink)
    _paint_weights(rng, plate, door, ink)
    if with_id:  # owner, serial number and boxed check digit fill the ID's rectangle to its edges
        top, bottom, box = door.id_top, door.id_top + ID_HEIGHT, ID_RIGHT - 92
        plate.text(door.code[:4], (ID_LEFT, top + 10, ID_LEFT + 340, bottom - 10), ink)
        plate.text(door.code[4:10], (ID_LEFT + 470, top + 10, box - 22, bottom - 10), ink)
        plate.frame((box, top, ID_RIGHT, bottom), 10, ink, ink)
        plate.text(door.code[10], (box + 22, top + 22, ID_RIGHT - 22, bottom - 22), ink)
    _paint_locks(rng, plate, door)
    return _weather(rng, plate, door, sun=sun)


def _paint_frame(plate: Plate, door: Door) -> None:
    """Paint the corner castings, the frame and both leaves."""
    top, bottom = HEADER, door.height - SILL
    for edge in ((0, 0, WIDTH, top), (0, bottom, WIDTH, door.height), (0, 0, POST, door.height)):
        plate.frame(edge, 22, LIT, DARK)
    plate.frame((WIDTH - POST, 0, WIDTH, door.height), 22, LIT, DARK)
    for x, y in itertools.product((0, WIDTH - 178), (0, door.height - 130)):
        plate.bar((x, y, x + 178, y + 130), DIM)
        plate.rect((x + 50, y + 40, x + 128, y + 90), BLACK)
    if door.height == HIGH:  # the warning stripes that a high cube must carry
        for x in (*range(230, 620, 78), *range(WIDTH - 620, WIDTH - 230, 78)):
            plate.rect((x, 30, x + 78, 92), YELLOW)
            plate.polygon([(x, 92), (x + 50, 30), (x + 78, 30), (x + 28, 92)], BLACK)
    plate.rect((POST, top, WIDTH - POST, bottom), BLACK)  # the gasket is visible around the leaves
    for left, hinge in ((POST + 18, 88), (WIDTH / 2 + 10, WIDTH - 158)):
        right = left + WIDTH / 2 - POST - 28
        plate.bar((left, top + 16, right, bottom - 16), door.colour)
        for start, end in itertools.pairwise(np.linspace(top + 86, bottom - 46, 6)):
            plate.frame((left + 70, start, right - 70, end - 60), 28, DIM, LIT)  # a pressed panel
        for y in np.linspace(top + 200, bottom - 200, 4):
            plate.bar((hinge, y - 62, hinge + 70, y + 62), tint(door.colour, 0.85))


def _paint_decals(rng: Generator, plate: Plate, door: Door, ink: Colour) -> None:
    """Paint the logo of a shipping line, warnings and the safety approval plate."""
    y = rng.uniform(420, 620)
    plate.polygon(np.add(EMBLEMS[rng.integers(len(EMBLEMS))], (0, y)), ink)
    if rng.binomial(1, 0.6):
        plate.text(str(rng.choice(LINES)), (420, y + 340, 780, y + 420), ink)
    for x, y in ((600, 1250), (1640, door.height * 0.83)):
        for size, colour in ((105, BLACK), (84, YELLOW), (34, BLACK)):
            plate.polygon([(x - size, y + size * 0.8), (x, y - size), (x + size, y + size * 0.8)], colour)
    plate.bar((500, 1600, 720, 1860), (188, 180, 160))
    plate.bar((2010, door.height - 330, 2230, door.height - 250), WHITE)
    if door.height == HIGH and rng.binomial(1, 0.5):
        plate.bar((1960, 1560, 2230, 1900), YELLOW)
        for line, word in enumerate(("CAUTION", "9'6\"", "HIGH")):
            plate.text(word, (1985, 1590 + 100 * line, 2205, 1665 + 100 * line), BLACK)


def _paint_weights(rng: Generator, plate: Plate, door: Door, ink: Colour) -> None:
    y, left, right = door.id_top + ID_HEIGHT + 50, RODS[2] + 70, RODS[3] + 70
    plate.text("45G1" if door.height == HIGH else "42G1", (right, y, right + 250, y + 100), ink)
    y += rng.uniform(210, 330)
    tare, gross = rng.integers(218, 400) * 10, rng.choice((24_000, 30_480, 32_500))
    for word, weight in (("MAX GROSS", gross), ("TARE", tare), ("NET", gross - tare)):
        plate.text(word, (left, y + 8, left + 36 * len(word), y + 62), ink)
        for line, text in enumerate((f"{weight:,} KG", f"{weight * 2.2046:,.0f} LB")):
            plate.text(text.replace(",", "."), (right, y + 58 * line, right + 310, y + 58 * line + 46), ink)
        y += 165


def _paint_locks(rng: Generator, plate: Plate, door: Door) -> None:
    """Paint the locking rods, each with its cams, guides and handle."""
    height = door.height
    colour = tint(door.colour, 1.12) if rng.binomial(1, 0.25) else tint(STEEL, rng.uniform(0.85, 1.1))
    for x, handle, share in zip(RODS, HANDLES, (0.735, 0.765, 0.765, 0.735), strict=True):
        plate.rect((x + 26, 70, x + 52, height - 60), DARK)  # its shadow on the leaf
        plate.bar((x - 19, 40, x + 19, height - 45), colour, 10)
        plate.rect((x - 6, 40, x + 4, height - 45), GLEAM)
        for y in (88, 0.08 * height, 0.3 * height, 0.5 * height, 0.66 * height, 0.9 * height, height - 90):
            plate.bar((x - 50, y - 34, x + 50, y + 34), tint(colour, 0.85))
        left, right, grip, level = min(x, x + handle), max(x, x + handle), x + 0.7 * handle, share * height
        plate.rect((left, level + 20, right, level + 38), DARK)
        plate.bar((left, level - 17, right, level + 17), colour, 10)
        plate.bar((grip - 40, level - 62, grip + 40, level + 70), tint(colour, 0.85))


def _weather(rng: Generator, plate: Plate, door: Door, *, sun: bool) -> Image.Image:
    """Return the painted door with dirt, rain streaks, shade and the shadow of a neighbouring container."""
    if sun and rng.binomial(1, 0.45):
        left, right = door.height * (rng.uniform(0.2, 0.9) + np.array((0, rng.uniform(-0.6, 0.6))))
        plate.polygon([(0, left), (WIDTH, right), (WIDTH, 9999), (0, 9999)], (0, 0, 0, 97))
    width, height = plate.image.width // 4, plate.image.height // 4
    gain = 1 + rng.uniform(0.02, 0.1) * clouds(rng, (height, width), (5, 4))
    gain += rng.uniform(0.02, 0.07) * clouds(rng, (1, width), (1, 25))
    gain -= np.linspace(-0.05, rng.uniform(0, 0.2), height, dtype=np.float32)[:, None]
    pixels = np.asarray(plate.image) * cv2.resize(gain, plate.image.size)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
