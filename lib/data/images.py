"""Check the images of a dataset by their headers, and find duplicates within and across splits.

Guarantees: every image that ultralytics would skip or rewrite is reported; files with equal bytes are reported as
duplicates. Cannot: detect damage in the middle of a JPEG, or a duplicate that was re-encoded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import file_digest
from operator import attrgetter

from lib.data.findings import Findings, Issue
from lib.data.labels import LabelledImage, in_threads
from lib.data.splits import FORMATS

SMALLEST_SIDE = 10  # pixels; ultralytics drops images with a shorter side
END_OF_JPEG = b"\xff\xd9"
TAIL = 4096  # bytes; the last bytes of two different compressed images almost always differ, even at equal file sizes


def check_images(images: Sequence[LabelledImage], findings: Findings) -> list[LabelledImage]:
    """Return the images with their sizes, and report those that ultralytics would skip or rewrite."""
    names = {image.path: image.name for image in images}
    looked = dict(zip(names, in_threads(_look_at, names), strict=True))
    for path, (_, _, kind, complaint) in looked.items():
        if kind:
            findings.add(kind, names[path], complaint)
    return [image._replace(width=looked[image.path][0], height=looked[image.path][1]) for image in images]


def _look_at(path: str) -> tuple[int, int, Issue | None, str]:
    """Return an image's width and height as training sees them, the issue (None if there is none) and its text."""
    try:
        form, width, height, complete = _read_header(path)
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise many kinds of exception
        return 0, 0, Issue.IMAGE, str(error) or type(error).__name__
    if min(width, height) < SMALLEST_SIDE:
        return width, height, Issue.IMAGE, f"{width} x {height} pixels: a side has fewer than {SMALLEST_SIDE}"
    if form not in FORMATS | {"jpeg2000"}:
        return width, height, Issue.IMAGE, f"{form} is a format that ultralytics does not read"
    return width, height, None if complete else Issue.TRAILING, "its last bytes are not the end of a JPEG"


def _read_header(path: str) -> tuple[str, int, int, bool]:
    """Return an image's format, width, height and whether its end is complete; Pillow's exceptions pass through."""
    from PIL import Image

    with open(path, "rb") as file:  # noqa: PTH123  creating ten thousand Path objects is slow
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise ValueError("it has no bytes")
        file.seek(max(0, size - len(END_OF_JPEG)))
        ends = file.read() == END_OF_JPEG
        file.seek(0)
        try:
            opened = Image.open(file)
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # ultralytics patches Pillow's `open`, and its version raises other errors
            raise ValueError("it is not an image of a known format") from error
        with opened as image:
            form = str(image.format).lower()
            # only for JPEG and MPO: `getexif` would decode a whole PNG
            turned = form in {"jpeg", "mpo"} and image.getexif().get(0x0112) in {5, 6, 7, 8}
            width, height = image.size[::-1] if turned else image.size
            if form == "jpeg" and not ends:  # truncated or followed by extra bytes: only decoding can tell which
                image.draft("L", (1, 1))
                image.load()
            else:
                image.verify()
    return form, width, height, ends or form != "jpeg"


def check_copies(images: Sequence[LabelledImage], findings: Findings) -> None:
    """Report images with equal bytes, in several splits or more than once in one split; `images` are in their order."""
    for group in _same_files(images):
        by_split = [list(same) for _, same in itertools.groupby(group, attrgetter("split"))]
        for (one, *_), (other, *_) in itertools.combinations(by_split, 2):
            kind = Issue.LEAK if one.split == "train" else Issue.REUSED
            findings.add(kind, one.name, f"the same as {other.name} ({other.split})")
        for first, *rest in by_split:
            for image in rest:
                findings.add(Issue.REPEATED, image.name, f"the same as {first.name} ({first.split})")


def _same_files(images: Sequence[LabelledImage]) -> Iterator[list[LabelledImage]]:
    """Yield each group of images with equal bytes; read a whole file only if another has its size and last bytes."""
    groups = [list(images)]
    for length in (TAIL, sys.maxsize):
        paths = list(dict.fromkeys(image.path for group in groups for image in group))
        keys = dict(zip(paths, in_threads(partial(_end_of, length), paths), strict=True))
        parts: dict[tuple[int, object], list[LabelledImage]] = {}
        for number, group in enumerate(groups):
            for image in group:
                parts.setdefault((number, keys[image.path]), []).append(image)
        groups = [part for part in parts.values() if len(part) > 1]
    yield from groups


def _end_of(length: int, path: str) -> object:
    """Return a file's size and a hash of its last `length` bytes; its path if it is empty or cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123  creating ten thousand Paths is slow
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length))
        if size:
            return size, file_digest(file, "blake2b").digest()
    return path  # it equals only itself; `check_images` reports it
