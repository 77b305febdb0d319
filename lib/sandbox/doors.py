"""Draw the door end of a shipping container, flat and face on, from a random generator."""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib.sandbox.paint import Light, chance, clouds, mix, pick, shade, vary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.random import Generator

    from lib.sandbox.paint import Box, Colour, Points


OWNERS = ("MSKU", "TGHU", "SEGU", "DFSU", "HASU", "FANU", "GCXU", "WHLU", "YMLU", "CSQU", "TCLU", "OOLU", "CMAU")


def check_digit(code: str) -> int:
    """Return the check digit (0 to 9) of a container code: four capital letters, then six digits, without separators.

    ISO 6346, annex A: each character has a value (a digit its own; letters count up from A = 10 and skip multiples of
    11). The value at position i, counted from 0, is multiplied by 2 to the power of i, and the sum is taken modulo 11.
    A remainder of 10 counts as 0. Raises `ValueError` if the code has another form.
    """
    letters, digits = code[:4], code[4:]
    well_formed = set(letters) <= set(string.ascii_uppercase) and set(digits) <= set(string.digits)
    if not well_formed or (len(letters), len(digits)) != (4, 6):
        raise ValueError(f"A container's code is four letters A-Z and six digits, not {code!r}.")
    free = [value for value in range(10, 39) if value % 11]
    values = {**dict(zip(string.ascii_uppercase, free, strict=True)), **{digit: int(digit) for digit in string.digits}}
    return sum(values[character] << position for position, character in enumerate(code)) % 11 % 10


LIVERIES: tuple[Colour, ...] = (
    (103, 133, 148),  # blue-grey
    (124, 54, 44),  # red-brown
    (104, 44, 48),
    (28, 112, 88),  # green
    (205, 92, 38),  # orange
    (198, 198, 190),  # white
    (38, 56, 98),  # dark blue
    (32, 88, 146),
    (168, 40, 44),  # red
    (208, 168, 52),  # yellow
    (96, 98, 100),  # grey
)


def upright(box: Box, z: float = 0) -> Points:
    """Return the corners of a box that faces the viewer, clockwise from the top left, (4, 3)."""
    x0, y0, x1, y1 = box
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], dtype=float)


WIDTH = 2438  # ISO 668: 8 feet


DEPTH = 6058  # a side of 20 feet; a longer side looks the same from the door end


CHASSIS = 1150  # height of a trailer's deck above the ground


POST = 100


HEADER, SILL = 125, 165


RODS = (360, 830, 1400, 1860)


ID_LEFT, ID_RIGHT, ID_HEIGHT = 1452, 2322, 132


@dataclass(frozen=True)
class Door:
    """One door end: where it is, its size, its colours and its code; lengths in millimetres."""

    left: float
    height: int  # 2591 or, for a high cube, 2896
    colour: Colour
    rods: Colour
    code: str  # with its check digit, e.g. CSQU3054383
    kind: str  # size and type, e.g. 45G1
    id_top: float

    def corners(self) -> Points:
        """Return the door end's corners in the yard, clockwise from the top left, (4, 3)."""
        return upright((self.left, 0, self.left + WIDTH, self.height))

    def id_corners(self) -> Points:
        """Return the corners of the ID and its boxed check digit in the yard, clockwise from the top left, (4, 3)."""
        return upright((self.left + ID_LEFT, self.id_top, self.left + ID_RIGHT, self.id_top + ID_HEIGHT))


def plan_door(rng: Generator, left: float = 0, height: int | None = None) -> Door:
    """Choose a door at random, its left edge at `left` and, where given, of this height."""
    height = height or (2896 if chance(rng, 0.65) else 2591)
    colour = vary(rng, pick(rng, LIVERIES))
    galvanised = pick(rng, ((176, 178, 178), (196, 190, 174), (150, 154, 158)))
    rods = shade(colour, 1.12) if chance(rng, 0.25) else galvanised
    code = OWNERS[rng.integers(len(OWNERS))] + f"{rng.integers(1_000_000):06d}"
    kind = "45G1" if height == 2896 else ("22G1", "42G1")[rng.integers(2)]  # noqa: PLR2004
    return Door(left, height, colour, rods, f"{code}{check_digit(code)}", kind, id_top=float(rng.uniform(270, 330)))


def paint_door(rng: Generator, door: Door, light: Light, scale: float, *, with_id: bool) -> Image.Image:
    """Return the door end as a flat frontal drawing, with `scale` pixels per millimetre."""
    plate = _Plate(WIDTH, door.height, scale, shade(door.colour, 0.92))
    _paint_frame(plate, door)
    for leaf in ((POST + 18, WIDTH / 2 - 10), (WIDTH / 2 + 10, WIDTH - POST - 18)):
        _paint_leaf(plate, door, *leaf)
    _paint_emblem(rng, plate, door)
    _paint_decals(rng, plate, door)
    _paint_weights(rng, plate, door)
    if with_id:
        _paint_id(plate, door)
    for rod in RODS:
        _paint_rod(plate, door, rod)
    _paint_handles(plate, door)
    _weather(rng, plate, door, light)
    return plate.image


def _paint_frame(plate: _Plate, door: Door) -> None:
    height, colour = door.height, door.colour
    for left in (0, WIDTH - POST):
        plate.rect((left, 0, left + 22, height), shade(colour, 1.18))
        plate.rect((left + POST - 22, 0, left + POST, height), shade(colour, 0.6))
    plate.rect((0, 0, WIDTH, 22), shade(colour, 1.2))
    plate.rect((POST, HEADER - 22, WIDTH - POST, HEADER), shade(colour, 0.5))
    plate.rect((POST, height - SILL, WIDTH - POST, height - SILL + 25), shade(colour, 1.15))
    plate.rect((POST, height - 30, WIDTH - POST, height), shade(colour, 0.45))
    if door.kind == "45G1":
        for left in (230, WIDTH - 620):  # the warning stripes that a high cube must carry
            plate.stripes((left, 30, left + 390, 92))
    for left in (0, WIDTH - 178):
        for top in (0, height - 130):
            plate.rect((left, top, left + 178, top + 130), shade(colour, 0.72))
            plate.rect((left, top, left + 178, top + 14), shade(colour, 1.15))
            plate.ellipse((left + 42, top + 34, left + 136, top + 100), (18, 16, 16))
    plate.rect((POST, HEADER, WIDTH - POST, height - SILL), (24, 24, 25))  # the gasket shows around the leaves


def _paint_leaf(plate: _Plate, door: Door, left: float, right: float) -> None:
    colour, top, bottom = door.colour, HEADER + 16, door.height - SILL - 16
    plate.rect((left, top, right, bottom), colour)
    plate.rect((left, top, right, top + 12), shade(colour, 1.2))
    plate.rect((left, top, left + 12, bottom), shade(colour, 1.15))
    plate.rect((right - 14, top, right, bottom), shade(colour, 0.62))
    plate.rect((left, bottom - 14, right, bottom), shade(colour, 0.6))
    heights = np.linspace(top + 70, bottom - 30, 6)
    for start, end in itertools.pairwise(heights):
        # A pressed panel: its upper slope is in shade, its lower slope reflects the sky.
        plate.rect((left + 70, start, right - 70, end - 60), shade(colour, 0.97))
        plate.rect((left + 70, start, right - 70, start + 34), shade(colour, 0.72))
        plate.rect((left + 70, start, left + 84, end - 60), shade(colour, 0.8))
        plate.rect((right - 84, start, right - 70, end - 60), shade(colour, 1.12))
        plate.rect((left + 70, end - 90, right - 70, end - 60), shade(colour, 1.22))
    outer = left - 30 if left < WIDTH / 2 else right - 40
    for share in (0.08, 0.36, 0.64, 0.92):
        middle = top + share * (bottom - top)
        plate.rect((outer, middle - 62, outer + 70, middle + 62), shade(colour, 0.78))
        plate.rect((outer, middle - 62, outer + 70, middle - 50), shade(colour, 1.2))
        plate.rect((outer, middle + 50, outer + 70, middle + 62), shade(colour, 0.4))


def _paint_rod(plate: _Plate, door: Door, x: float) -> None:
    height, colour = door.height, door.rods
    plate.rect((x + 26, 70, x + 52, height - 60), shade(door.colour, 0.5))  # its shadow on the leaf
    plate.rect((x - 19, 40, x + 19, height - 45), colour)
    plate.rect((x - 19, 40, x - 10, height - 45), shade(colour, 0.78))
    plate.rect((x - 6, 40, x + 4, height - 45), shade(colour, 1.22))
    plate.rect((x + 9, 40, x + 19, height - 45), shade(colour, 0.6))
    for top in (42, height - 135):  # the locking cam in its keeper
        plate.rect((x - 62, top, x + 62, top + 92), shade(colour, 0.72))
        plate.rect((x - 62, top, x + 62, top + 12), shade(colour, 1.15))
        plate.rect((x - 30, top + 22, x + 34, top + 78), shade(colour, 1.05))
        plate.rect((x - 62, top + 80, x + 62, top + 92), shade(colour, 0.4))
    for share in (0.08, 0.3, 0.5, 0.66, 0.9):  # the guides
        y = share * height
        plate.rect((x - 46, y - 30, x + 46, y + 30), shade(colour, 0.88))
        plate.rect((x - 46, y + 18, x + 46, y + 30), shade(colour, 0.5))
        for bolt in (x - 36, x + 24):
            plate.ellipse((bolt, y - 8, bolt + 14, y + 8), shade(colour, 0.45))


def _paint_handles(plate: _Plate, door: Door) -> None:
    colour = door.rods
    for rod, towards, share in zip(RODS, (1, 1, -1, -1), (0.735, 0.765, 0.765, 0.735), strict=True):
        y = share * door.height
        reach = 330 if rod in (RODS[1], RODS[2]) else 400
        left, right = sorted((rod, rod + towards * reach))
        plate.rect((left, y + 20, right, y + 38), shade(door.colour, 0.45))
        plate.rect((left, y - 17, right, y + 17), colour)
        plate.rect((left, y - 17, right, y - 6), shade(colour, 1.2))
        plate.rect((left, y + 9, right, y + 17), shade(colour, 0.55))
        plate.ellipse((rod - 44, y - 44, rod + 44, y + 44), shade(colour, 0.8))
        plate.ellipse((rod - 22, y - 22, rod + 22, y + 22), shade(colour, 0.5))
        hasp = rod + towards * (reach - 110)
        plate.rect((hasp - 40, y - 62, hasp + 40, y + 70), shade(colour, 0.85))
        plate.rect((hasp - 40, y - 62, hasp + 40, y - 52), shade(colour, 1.2))
        plate.rect((hasp - 14, y - 30, hasp + 14, y + 46), shade(colour, 0.4))


def _paint_id(plate: _Plate, door: Door) -> None:
    """Paint owner code, serial number and boxed check digit, so that they fill the ID's rectangle to its edges."""
    ink, top, bottom = _ink(door), door.id_top, door.id_top + ID_HEIGHT
    box = ID_RIGHT - 92
    plate.text(door.code[:4], (ID_LEFT, top + 10, ID_LEFT + 340, bottom - 10), ink)
    plate.text(door.code[4:10], (ID_LEFT + 470, top + 10, box - 22, bottom - 10), ink)
    plate.outline((box, top, ID_RIGHT, bottom), ink, 10)
    plate.text(door.code[10], (box + 22, top + 22, ID_RIGHT - 22, bottom - 22), ink)


def _paint_weights(rng: Generator, plate: _Plate, door: Door) -> None:
    ink, top = _ink(door), door.id_top + ID_HEIGHT + 50
    plate.text(door.kind, (RODS[3] + 60, top, RODS[3] + 310, top + 100), ink)
    tare, gross = int(rng.integers(218, 400)) * 10, int(rng.choice([24_000, 30_480, 32_500]))
    lines = (("MAX GROSS", gross), ("TARE", tare), ("NET", gross - tare))
    y = top + rng.uniform(210, 330)
    for word, weight in lines:
        plate.text(word, (RODS[2] + 70, y + 8, RODS[2] + 70 + 36 * len(word), y + 62), ink)
        plate.text(f"{weight:,} KG".replace(",", "."), (RODS[3] + 70, y, RODS[3] + 380, y + 46), ink)
        pounds = f"{round(weight * 2.20462 / 10) * 10:,} LB".replace(",", ".")
        plate.text(pounds, (RODS[3] + 70, y + 58, RODS[3] + 380, y + 104), ink)
        y += 165
    plate.text("CU.CAP.", (RODS[2] + 70, y + 8, RODS[2] + 320, y + 62), ink)
    plate.text("76.4 CU.M", (RODS[3] + 70, y, RODS[3] + 350, y + 46), ink)


def _paint_emblem(rng: Generator, plate: _Plate, door: Door) -> None:
    """Paint the logo of a fictitious shipping line on the left leaf."""
    ink, word = _ink(door), pick(rng, ("NORDLINE", "BLUE STAR", "PACIFICA", "ATLANTA", "ORIENTIS"))
    y, shape = rng.uniform(420, 620), rng.integers(4)
    if shape == 0:
        plate.ellipse((460, y, 740, y + 280), ink)
        plate.ellipse((500, y + 40, 700, y + 240), door.colour)
    elif shape == 1:
        plate.polygon([(600, y), (740, y + 280), (600, y + 200), (460, y + 280)], ink)
    elif shape == 2:  # noqa: PLR2004
        plate.rect((440, y, 760, y + 280), (206, 206, 200))
        plate.polygon([(470, y + 250), (600, y + 30), (730, y + 250)], (170, 44, 40))
    if chance(rng, 0.6):
        plate.text(word, (420, y + 340, 780, y + 420), ink)


def _paint_decals(rng: Generator, plate: _Plate, door: Door) -> None:
    for x, y in ((600, 1250), (1640, door.height * 0.83)):
        if chance(rng, 0.7):
            y += rng.uniform(-80, 80)  # noqa: PLW2901
            plate.polygon([(x - 105, y + 90), (x, y - 95), (x + 105, y + 90)], (24, 24, 20))
            plate.polygon([(x - 86, y + 79), (x, y - 72), (x + 86, y + 79)], (232, 190, 30))
            plate.polygon([(x - 24, y + 62), (x, y - 34), (x + 24, y + 62)], (24, 24, 20))
    if chance(rng, 0.8):
        plate.rect((500, 1600, 720, 1860), (188, 180, 160))  # the safety approval plate
        for y in range(1630, 1850, 26):
            plate.rect((520, y, 520 + rng.uniform(90, 180), y + 9), (104, 98, 88))
    if door.kind == "45G1" and chance(rng, 0.5):
        plate.rect((1960, 1560, 2230, 1900), (228, 186, 36))
        for line, word in enumerate(("CAUTION", "9'6\"", "HIGH")):
            plate.text(word, (1985, 1590 + 100 * line, 2205, 1665 + 100 * line), (24, 22, 20))
    plate.rect((2010, door.height - 330, 2230, door.height - 250), (204, 206, 206))
    plate.rect((2030, door.height - 308, 2210, door.height - 272), (60, 84, 132))


def _weather(rng: Generator, plate: _Plate, door: Door, light: Light) -> None:
    """Apply dirt, rust, shadow and the scene's light to the painted door."""
    for _ in range(rng.integers(2, 16)):
        _paint_rust(rng, plate, door)
    pixels = np.array(plate.image.convert("RGB"), dtype=np.float32)
    height, width, _ = pixels.shape
    age = rng.uniform(0.02, 0.1)
    gain = 1 + age * clouds(rng, (height, width), cell=width // 4)
    gain += rng.uniform(0.02, 0.07) * clouds(rng, (1, width), cell=max(width // 25, 1))  # rain leaves vertical streaks
    gain -= np.linspace(-0.05, rng.uniform(0, 0.2), height, dtype=np.float32)[:, None]
    if light.sun and chance(rng, 0.45):  # a neighbouring container casts a shadow
        slope, start = rng.uniform(-0.6, 0.6), rng.uniform(0.2, 0.9)
        edge = np.linspace(0, slope, width, dtype=np.float32)[None, :] + start
        gain *= np.where(np.linspace(0, 1, height, dtype=np.float32)[:, None] > edge, 0.62, 1)
    pixels *= gain[..., None] * np.array(light.door, dtype=np.float32)
    plate.image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGBA")


def _paint_rust(rng: Generator, plate: _Plate, door: Door) -> None:
    x, y = rng.uniform(60, WIDTH - 60), door.height * rng.beta(3, 1.4)
    # The ID stays legible; all random values are drawn first, so that the stream is the same in both cases.
    covers_id = ID_LEFT - 60 < x < ID_RIGHT + 60 and y < door.id_top + 2 * ID_HEIGHT
    colour = mix(vary(rng, (112, 62, 34)), door.colour, rng.uniform(0.1, 0.6))
    radius, length = rng.uniform(8, 34), rng.uniform(60, 330)
    if covers_id:
        return
    plate.ellipse((x - radius, y - radius * 0.7, x + radius, y + radius * 0.7), colour)
    plate.polygon([(x - radius * 0.6, y), (x + radius * 0.5, y), (x + 3, y + length)], mix(colour, door.colour, 0.45))


def _ink(door: Door) -> Colour:
    red, green, blue = door.colour
    return (236, 236, 230) if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else (22, 22, 24)  # noqa: PLR2004


class _Plate:
    """A flat drawing surface with coordinates in millimetres."""

    def __init__(self, width: float, height: float, scale: float, colour: Colour | None) -> None:
        fill = (0, 0, 0, 0) if colour is None else (*colour, 255)
        self.image = Image.new("RGBA", (round(width * scale), round(height * scale)), fill)
        self._draw = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(72)
        # Rounding the plate to whole pixels must not shift its content.
        self._scale = (self.image.width / width, self.image.height / height)

    def rect(self, box: Box, colour: Colour) -> None:
        left, top, right, bottom = self._pixels(box)
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)

    def outline(self, box: Box, colour: Colour, width: float) -> None:
        x0, y0, x1, y1 = box
        for bar in ((x0, y0, x1, y0 + width), (x0, y1 - width, x1, y1)):
            self.rect(bar, colour)
        for bar in ((x0, y0, x0 + width, y1), (x1 - width, y0, x1, y1)):
            self.rect(bar, colour)

    def ellipse(self, box: Box, colour: Colour) -> None:
        self._draw.ellipse(self._pixels(box), fill=colour)

    def polygon(self, points: Iterable[tuple[float, float]], colour: Colour) -> None:
        across, along = self._scale
        self._draw.polygon([(x * across, y * along) for x, y in points], fill=colour)

    def stripes(self, box: Box) -> None:
        self.rect(box, (226, 182, 36))
        x0, y0, x1, y1 = box
        slant = y1 - y0
        for start in np.arange(x0, x1 - slant - 30, 78):
            self.polygon([(start, y1), (start + slant, y0), (start + slant + 38, y0), (start + 38, y1)], (26, 26, 26))

    def text(self, words: str, box: Box, colour: Colour) -> None:
        """Draw the words stretched to the edges of the box, which makes them condensed or wide."""
        ink = tuple(round(edge) for edge in self._font.getbbox(words, stroke_width=3))
        mask = Image.new("L", (ink[2] - ink[0], ink[3] - ink[1]))
        ImageDraw.Draw(mask).text((-ink[0], -ink[1]), words, fill=255, font=self._font, stroke_width=3)
        left, top, right, bottom = self._pixels(box)
        mask = mask.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BOX)
        self.image.paste(colour, (left, top), mask)

    def _pixels(self, box: Box) -> tuple[int, int, int, int]:
        across, along = self._scale
        x0, y0, x1, y1 = box
        return round(x0 * across), round(y0 * along), round(x1 * across), round(y1 * along)
