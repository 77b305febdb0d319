"""Colours, light and chance for drawn images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    Colour = tuple[int, int, int]
    Box = tuple[float, float, float, float]  # left, top, right, bottom
    Points = NDArray[np.float64]  # one point per row
    Row = tuple[float, ...]  # one line of a label file


T = TypeVar("T")


class Light(NamedTuple):
    """The light of a scene, as colours and gains."""

    sky: tuple[Colour, Colour]  # colours at the top and at the horizon
    ground: Colour
    door: tuple[float, float, float]  # gain of red, green, blue
    sun: bool  # casts hard shadows
    noise: float  # of the sensor, in grey levels


def shade(colour: Colour, factor: float) -> Colour:
    """Return a colour made darker (below 1) or lighter (above 1) by a factor."""
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """Return a colour between two: a share of 0 is the first, of 1 the second."""
    red, green, blue = (round(one + (two - one) * share) for one, two in zip(colour, other, strict=True))
    return red, green, blue


def lit(colour: Colour, light: Light, gain: float = 1.0) -> Colour:
    """Return a colour under a scene's light."""
    red, green, blue = (min(255, round(value * part * gain)) for value, part in zip(colour, light.door, strict=True))
    return red, green, blue


def vary(rng: Generator, colour: Colour) -> Colour:
    """Return a colour near another one, at random."""
    varied = np.array(colour) * rng.uniform(0.82, 1.15) + rng.normal(0, 6, 3)
    red, green, blue = (int(value) for value in varied.clip(8, 240))
    return red, green, blue


def chance(rng: Generator, share: float) -> bool:
    """Return True with a probability of `share`."""
    return bool(rng.random() < share)


def pick(rng: Generator, choices: Sequence[T]) -> T:
    """Return one of the choices at random."""
    return choices[int(rng.integers(len(choices)))]


def clouds(rng: Generator, shape: tuple[int, ...], cell: int, squeeze: int = 1) -> NDArray[Any]:
    """Return smooth noise (mean 0, deviation about 1) with spots about `cell` pixels wide, flattened by `squeeze`."""
    height, width = shape
    total = np.zeros(shape, dtype=np.float32)
    for octave, weight in ((1, 0.8), (3, 0.5), (9, 0.3)):
        rows, columns = (max(2, side * octave // max(cell, 1)) for side in (height * squeeze, width))
        noise = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
        total += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return total
