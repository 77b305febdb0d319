"""Read an image as ultralytics reads it for training: the same pixels, size, orientation and bit depth.

Guarantees: the check of a dataset, evaluation, prediction and every sheet of images read images here only.
`read_image` returns the array that the library's loader returns. An image that training would leave out or fail on
raises `UnreadableImage` with the reason. A header that is damaged in its EXIF part alone counts as one without EXIF.

Cannot: detect damage that OpenCV decodes without an error, such as in the middle of a baseline JPEG or in the pixels
of a BMP: training reads the same noise. Phone images (HEIC) are not read: the library would install a plugin for them.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

FORMATS = frozenset(("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"))
"""File name extensions that ultralytics accepts as images; a file with any other extension is ignored."""
CONTENTS = FORMATS | {"jpeg2000"}
"""Pillow's names of the formats that ultralytics accepts; the extension need not match."""
TIFF = (".tif", ".tiff")
BY_PILLOW = (".avif", ".heic", ".heif")
SMALLEST_SIDE = 10  # pixels; ultralytics drops images with a shorter side
COLOUR, GREY = 3, 1  # channels
END_OF_JPEG = b"\xff\xd9"
BASELINE = (b"\xff\xc0", b"\xff\xc1")


class UnreadableImage(ValueError):
    """Training would leave this image out, or fail on it; the message is the reason."""


class Size(NamedTuple):
    """The size of an image as it is read, in pixels, and whether the file ends where the image does."""

    width: int
    height: int
    complete: bool = True


def is_image(name: str) -> bool:
    """Return whether a file name has an extension that ultralytics accepts as an image."""
    return name.rpartition(".")[2].lower() in FORMATS and "." in name


def read_image(path: str | Path, channels: int = COLOUR) -> Pixels:
    """Return the pixels of an image: height x width x channels, in the order blue, green, red.

    `channels` is the key of `data.yaml`; with 1, colours become grey. Raises `UnreadableImage`.
    """
    import cv2
    import numpy as np

    try:
        data = np.fromfile(path, np.uint8)
        pixels = _decode(str(path), data, channels) if data.size else None
    except (OSError, cv2.error) as error:
        raise UnreadableImage(_reason(error)) from error
    if pixels is None:
        raise UnreadableImage("OpenCV cannot decode it" if data.size else "it has no bytes")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    pixels = np.ascontiguousarray(np.atleast_3d(pixels))
    if pixels.dtype != np.uint8:
        raise UnreadableImage(f"its pixels are of type {pixels.dtype}; only 8 and 16 bits can be trained on")
    if pixels.shape[2] != channels:
        raise UnreadableImage(f"it has {pixels.shape[2]} channels, and channels of data.yaml is {channels}")
    return pixels


def _decode(name: str, data: Pixels, channels: int) -> Any:  # noqa: ANN401  an array of any type, or None
    import cv2
    import numpy as np

    flag = {GREY: cv2.IMREAD_GRAYSCALE, COLOUR: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    if flag != cv2.IMREAD_GRAYSCALE and name.lower().endswith(TIFF):
        read, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)
        if read and pages[0].ndim > 2:  # noqa: PLR2004  of several pages in colour the first counts
            return pages[0][..., :COLOUR] if flag == cv2.IMREAD_COLOR else pages[0]
        if read and flag == cv2.IMREAD_UNCHANGED and len({page.shape for page in pages}) == 1 < len(pages):
            return np.stack(pages, axis=2)  # each grey page is a channel
    pixels = _decode_by_pillow(name, flag == cv2.IMREAD_GRAYSCALE) if name.lower().endswith(BY_PILLOW) else None
    return cv2.imdecode(data, flag) if pixels is None else pixels


def _decode_by_pillow(name: str, grey: bool) -> Pixels | None:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(name) as opened:
            image = np.asarray(ImageOps.exif_transpose(opened).convert("L" if grey else "RGB"))
    except Exception:  # noqa: BLE001  OpenCV tries next, as in ultralytics
        return None
    return image if grey else image[..., ::-1]


def as_rgb(pixels: Pixels) -> Pixels:
    """Return the pixels in the order red, green, blue, for a drawing; of other channels the first ones are shown."""
    import numpy as np

    first = pixels[..., :COLOUR][..., ::-1] if pixels.shape[2] >= COLOUR else pixels[..., [0, 0, 0]]
    return np.ascontiguousarray(first)


def read_size(path: str | Path, channels: int = COLOUR) -> Size:
    """Return the size of an image as `read_image` returns it; a baseline JPEG is not decoded.

    Raises `UnreadableImage` for an image that ultralytics leaves out of training, or that `read_image` cannot read.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  creating ten thousand Path objects is slow
            size = _look_at(path, file, channels)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of exception
        raise UnreadableImage(_reason(error)) from error
    if min(size.width, size.height) < SMALLEST_SIDE:
        raise UnreadableImage(f"{size.width} x {size.height} pixels: a side has fewer than {SMALLEST_SIDE}")
    return size


def _look_at(path: str | Path, file: BinaryIO, channels: int) -> Size:
    """Return an image's size; Pillow's exceptions pass through."""
    from PIL import Image

    length = file.seek(0, os.SEEK_END)
    if not length:
        raise UnreadableImage("it has no bytes")
    file.seek(max(0, length - len(END_OF_JPEG)))
    ends = file.read() == END_OF_JPEG
    file.seek(0)
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        raise
    except Exception as error:  # ultralytics patches Pillow's `open`, and its version raises other errors
        raise UnreadableImage("it is not an image of a known format") from error
    with image:
        form, size = str(image.format).lower(), None
        if form not in CONTENTS:
            raise UnreadableImage(f"{form} is a format that ultralytics does not read")
        kind = f"{form}, mode {image.mode}, {image.info.get('compression', 'no')} compression"
        if form != "jpeg":
            image.verify()
        else:
            header = file.tell()
            file.seek(0)
            # OpenCV turns no image that has another number of channels, or a name of a TIFF
            usual = channels in {GREY, COLOUR} and not str(path).lower().endswith((*TIFF, *BY_PILLOW))
            size = _size_of_jpeg(image, file.read(header)) if usual else None
            if not ends:  # truncated or followed by extra bytes: only decoding can tell which
                image.draft("L", (1, 1))
                image.load()
    if size is None:
        try:
            height, width = read_image(path, channels).shape[:2]
        except UnreadableImage as error:
            raise UnreadableImage(f"{error} ({kind})") from error
        size = Size(width, height)
    return size._replace(complete=ends or form != "jpeg")


def _size_of_jpeg(image: Any, header: bytes) -> Size | None:  # noqa: ANN401  Pillow's image
    """Return the size of a JPEG as OpenCV turns it, from the header alone; None if only decoding can tell.

    OpenCV decodes any data that follow the header of a baseline JPEG with one scan. Others, such as progressive ones,
    have more headers among their data.
    """
    import cv2
    import numpy as np

    (width, height), layers = image.size, image.layers
    frame = struct.pack(">HBHHB", 8 + 3 * layers, 8, height, width, layers)
    scan = struct.pack(">HHB", 0xFFDA, 6 + 2 * layers, layers)
    if not any(marker + frame in header for marker in BASELINE) or not header[-8 - 2 * layers :].startswith(scan):
        return None
    # OpenCV turns an image twice as wide as high that has the same metadata
    sample = cv2.imencode(".jpg", np.zeros((8, 16), np.uint8))[1].tobytes()
    segments = (
        b"\xff%c" % (0xE0 + int(name[3:])) + struct.pack(">H", 2 + len(data)) + data
        for name, data in image.applist
        if name.startswith("APP")
    )
    metadata = b"".join(segments)
    turned = cv2.imdecode(np.frombuffer(sample[:2] + metadata + sample[2:], np.uint8), cv2.IMREAD_GRAYSCALE)
    if turned is None:
        return None
    return Size(width, height) if turned.shape == (8, 16) else Size(height, width)


def _reason(error: Exception) -> str:
    """Return an error's text in one line, without the path."""
    text = f"[Errno {error.errno}] {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
