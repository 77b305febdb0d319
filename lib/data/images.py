"""Check the images of a dataset by their headers, and find duplicates within and across splits.

Guarantees: every image that ultralytics would skip or rewrite is reported; files with equal bytes are reported as
duplicates. Cannot: detect damage in the middle of a JPEG, or a duplicate that was re-encoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

from lib.data.findings import Findings, Issue
from lib.data.labels import Picture, in_threads
from lib.data.splits import PICTURES, SPLITS

SMALLEST_SIDE = 10  # pixels; ultralytics drops images with a shorter side


END_OF_JPEG = b"\xff\xd9"


TAIL = 4096  # bytes; the last bytes of two different compressed images almost always differ, even at equal file sizes


def check_pictures(pictures: Sequence[Picture], findings: Findings) -> list[Picture]:
    """Return the images with their sizes, and report those that ultralytics would skip or rewrite."""
    paths = list(dict.fromkeys(picture.path for picture in pictures))
    looked = dict(zip(paths, in_threads(_look_at, paths), strict=True))
    told: set[str] = set()
    sized = []
    for picture in pictures:
        width, height, kind, complaint = looked[picture.path]
        if kind and picture.path not in told:
            told.add(picture.path)
            findings.add(kind, picture.name, complaint)
        sized.append(picture._replace(width=width, height=height))
    return sized


def _look_at(path: str) -> tuple[int, int, Issue | None, str]:
    """Return an image's width and height as training sees them, the issue (None if there is none) and its text."""
    try:
        form, width, height, complete = _read_header(path)
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise many kinds of exception
        return 0, 0, Issue.PICTURE, str(error) or type(error).__name__
    if min(width, height) < SMALLEST_SIDE:
        return width, height, Issue.PICTURE, f"{width} x {height} pixels: a side has fewer than {SMALLEST_SIDE}"
    if form not in PICTURES | {"jpeg2000"}:
        return width, height, Issue.PICTURE, f"{form} is a format that ultralytics does not take"
    return width, height, None if complete else Issue.TRAILING, "its last bytes are not those of a JPEG"


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
            raise ValueError("it is no picture of a known format") from error
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


def check_copies(pictures: Sequence[Picture], findings: Findings) -> None:
    """Report images with equal bytes, in several splits or more than once in one split."""
    for group in _same_files(pictures):
        by_split = {split: [picture for picture in group if picture.split == split] for split in SPLITS}
        train, val, test = (by_split[split] for split in SPLITS)
        for other in (val, test):
            if train and other:
                findings.add(Issue.LEAK, train[0].name, f"the same as {other[0].name} ({other[0].split})")
        if val and test:
            findings.add(Issue.REUSED, val[0].name, f"the same as {test[0].name}")
        for same in by_split.values():
            for picture in same[1:]:
                findings.add(Issue.REPEATED, picture.name, f"the same as {same[0].name} ({picture.split})")


def _same_files(pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Yield each group of images with equal bytes; read a whole file only if another has its size and last bytes."""
    groups = [list(pictures)]
    for key in (_size, _tail, _content):
        paths = list(dict.fromkeys(picture.path for group in groups for picture in group))
        keys = dict(zip(paths, in_threads(key, paths), strict=True))
        finer: list[list[Picture]] = []
        for group in groups:
            parts: dict[object, list[Picture]] = {}
            for picture in group:
                parts.setdefault(keys[picture.path], []).append(picture)
            finer += [part for part in parts.values() if len(part) > 1]
        groups = finer
    yield from groups


def _guarded(read: Callable[[str], object]) -> Callable[[str], object]:
    """Return `read`, except that an unreadable file equals only itself; `check_pictures` reports the file."""

    def guarded(path: str) -> object:
        try:
            return read(path)
        except OSError:
            return path

    return guarded


@_guarded
def _size(path: str) -> object:
    size = os.stat(path).st_size  # noqa: PTH116  creating ten thousand Path objects is slow
    return size or path  # empty files do not count as copies of each other


@_guarded
def _tail(path: str) -> object:
    with open(path, "rb") as file:  # noqa: PTH123  creating ten thousand Path objects is slow
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return blake2b(file.read(), digest_size=16).digest()


@_guarded
def _content(path: str) -> object:
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:  # noqa: PTH123  creating ten thousand Path objects is slow
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()
