"""Check the images of a dataset, and find duplicates within and across splits.

Guarantees: every image that ultralytics would skip, fail on or rewrite is reported; files with equal bytes are reported
as duplicates. Cannot: detect a duplicate that was re-encoded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import file_digest
from operator import attrgetter

from lib.data.findings import Findings, Issue
from lib.data.labels import LabelledImage, in_threads
from lib.data.reader import Size, UnreadableImage, read_size

TAIL = 4096  # bytes; the last bytes of two different compressed images almost always differ, even at equal file sizes


def check_images(images: Sequence[LabelledImage], channels: int, findings: Findings) -> list[LabelledImage]:
    """Return the images with their sizes, and report those that ultralytics would skip, fail on or rewrite."""
    names = {image.path: image.name for image in images}
    sizes = read_sizes(names, channels)
    for path, (size, problem) in sizes.items():
        if problem:
            findings.add(Issue.IMAGE, names[path], problem)
        elif not size.complete:
            findings.add(Issue.TRAILING, names[path], "its last bytes are not the end of a JPEG")
    return [image._replace(width=size.width, height=size.height) for image in images for size, _ in [sizes[image.path]]]


def read_sizes(paths: Iterable[str], channels: int) -> dict[str, tuple[Size, str]]:
    """Return each image's size by path, and why it cannot be read; of the two one is empty."""
    paths = list(paths)
    return dict(zip(paths, in_threads(partial(_size_of, channels), paths), strict=True))


def _size_of(channels: int, path: str) -> tuple[Size, str]:
    try:
        return read_size(path, channels), ""
    except UnreadableImage as error:
        return Size(0, 0), str(error)


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
