"""An image is read as the installed ultralytics reads it for training, or is unreadable in both."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lib.data.reader import UnreadableImage, as_rgb, read_image, read_size

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged EXIF data

WIDTH, HEIGHT = 48, 32
FORMATS = {
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "jp2": "JPEG2000", "avif": "AVIF",
    "mpo": "MPO",
}  # fmt: skip
WITH_EXIF = ("jpg", "png", "webp", "tif", "avif")


def scene(mode: str = "RGB") -> Image.Image:
    """Return a smooth image without symmetry."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)).convert(mode)


def encoded(extension: str, mode: str = "RGB", **options: Any) -> bytes:
    """Return the image in a format of Pillow."""
    file = io.BytesIO()
    scene(mode).save(file, FORMATS.get(extension, extension), **options)
    return file.getvalue()


def two_frames(extension: str) -> bytes:
    """Return a file of two images: frames, or pages."""
    return encoded(extension, save_all=True, append_images=[scene().rotate(90)])


def turned(extension: str, orientation: int, mode: str = "RGB", **options: Any) -> bytes:
    """Return the image with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(extension, mode, exif=exif, **options)


def by_opencv(extension: str, kind: Any, *, colour: bool, scale: float) -> bytes:
    """Return the image with pixels of another type."""
    pixels = np.asarray(scene()) if colour else np.asarray(scene("L"))
    return cv2.imencode(f".{extension}", (pixels * scale).astype(kind))[1].tobytes()


def cut(extension: str, share: float) -> bytes:
    """Return the first part of the file."""
    whole = encoded(extension)
    return whole[: int(len(whole) * share)]


def damaged(extension: str, **options: Any) -> bytes:
    """Return the file with a few other bytes in its middle."""
    whole = bytearray(encoded(extension, **options))
    middle = len(whole) * 6 // 10
    whole[middle : middle + 8] = b"\x55\xaa" * 4
    return bytes(whole)


def bad_exif(extension: str, where: int, what: bytes) -> bytes:
    """Return the image, turned by its EXIF data, with other bytes in these."""
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    data, place = turned(extension, 6), exif.tobytes()[6:]
    begin = data.index(place[:8])
    return data[: begin + where] + what + data[begin + where + len(what) :]


def sealed(data: bytes) -> bytes:
    """Return a PNG with the checksums that belong to its chunks."""
    at, out = 8, data[:8]
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        out, at = out + data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)), at + 12 + length
    return out


def half_a_png() -> bytes:
    """Return a PNG of which half of the rows were written; its checksums are correct."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(scene()))
    whole, short = encoded("png", compress_level=0), zlib.compress(rows[: len(rows) // 2])
    at = whole.index(b"IDAT") - 4
    return sealed(whole[:at] + struct.pack(">I", len(short)) + b"IDAT" + short + bytes(4) + whole[-12:])


def other_frame(marker: int) -> bytes:
    """Return a JPEG whose header announces another way of coding."""
    return encoded("jpg").replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


CASES: dict[str, Callable[[], bytes]] = {
    **{f"plain.{e}": partial(encoded, e) for e in FORMATS},
    **{f"grey.{e}": partial(encoded, e, "L") for e in FORMATS if e != "avif"},
    **{f"alpha.{e}": partial(encoded, e, "RGBA") for e in ("png", "webp", "bmp", "tif", "avif")},
    **{f"grey-alpha.{e}": partial(encoded, e, "LA") for e in ("png", "tif", "jp2")},
    **{f"palette.{e}": partial(encoded, e, "P") for e in ("png", "bmp", "tif")},
    **{f"black-white.{e}": partial(encoded, e, "1") for e in ("png", "bmp", "tif")},
    **{f"cmyk.{e}": partial(encoded, e, "CMYK") for e in ("jpg", "tif")},
    **{f"turned-{o}.{e}": partial(turned, e, o) for e in WITH_EXIF for o in range(1, 9)},
    **{f"grey-turned-{o}.{e}": partial(turned, e, o, "L") for e in ("jpg", "png", "tif") for o in range(1, 9)},
    **{f"16-bit.{e}": partial(by_opencv, e, np.uint16, colour=True, scale=257.0) for e in ("png", "tif", "jp2")},
    **{f"grey-16-bit.{e}": partial(by_opencv, e, np.uint16, colour=False, scale=257.0) for e in ("png", "tif", "jp2")},
    "float.tif": partial(by_opencv, "tif", np.float32, colour=True, scale=1 / 255),
    "grey-float.tif": partial(by_opencv, "tif", np.float32, colour=False, scale=1),
    "grey-double.tif": partial(by_opencv, "tif", np.float64, colour=False, scale=1 / 255),
    "grey-int32.tif": partial(by_opencv, "tif", np.int32, colour=False, scale=1),
    "float-of-pillow.tif": partial(encoded, "tif", "F"),
    "int32-of-pillow.tif": partial(encoded, "tif", "I"),
    **{f"{c}.tif": partial(encoded, "tif", compression=c) for c in ("zstd", "lzma", "tiff_lzw", "jpeg", "packbits")},
    "progressive.jpg": partial(encoded, "jpg", progressive=True),
    **{f"cut-{share}.{e}": partial(cut, e, share) for e in FORMATS for share in (0.2, 0.5, 0.9)},
    **{f"damaged.{e}": partial(damaged, e) for e in FORMATS},
    "progressive-damaged.jpg": partial(damaged, "jpg", progressive=True),
    "lossless-damaged.webp": partial(damaged, "webp", lossless=True),
    **{f"empty.{e}": bytes for e in FORMATS},
    **{f"text.{e}": lambda: b"not an image, only a text of that name" for e in FORMATS},
    **{f"longer.{e}": lambda e=e: encoded(e) + b"camera" for e in FORMATS},  # type: ignore[misc]
    "turned-longer.jpg": lambda: turned("jpg", 6) + b"camera",
    "turned-cut.jpg": lambda: turned("jpg", 6)[:-30],
    **{
        f"exif-{n}.{e}": partial(bad_exif, e, *bad)
        for e in ("jpg", "png", "webp")
        for n, bad in enumerate([(0, b"garbage!"), (4, b"\xff\xff\xff\x7f"), (8, b"\xff\xff"), (12, b"\x07\x00")])
    },
    "exif-sealed.png": lambda: sealed(bad_exif("png", 0, b"garbage!")),
    "half-written.png": half_a_png,
    "no-scan.jpg": lambda: (d := encoded("jpg"))[: d.index(b"\xff\xda")] + b"\xff\xd9",
    "lossless.jpg": partial(other_frame, 0xC3),
    "hierarchical.jpg": partial(other_frame, 0xC5),
    "pages.tif": partial(two_frames, "tif"),
    "frames.png": partial(two_frames, "png"),
    "frames.webp": partial(two_frames, "webp"),
    "frames.mpo": partial(two_frames, "mpo"),
    "tiff.dng": partial(encoded, "tif"),
    "UPPER.JPG": partial(turned, "jpg", 6),
    "UPPER.TIF": partial(turned, "tif", 6),
    **{f"named-{e}.jpg": partial(turned, e, 6) for e in ("png", "webp", "tif", "avif")},
    "named-jpg.png": partial(turned, "jpg", 6),
    "named-jpg.tif": partial(turned, "jpg", 6),
    "named-bmp.jpg": partial(encoded, "bmp"),
    "named-gif.jpg": partial(encoded, "gif"),
    "named-ppm.png": partial(encoded, "ppm"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that gives the pixels of an image that ultralytics' own loader trains on, or None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        from ultralytics.data.dataset import YOLODataset
        from ultralytics.utils import DEFAULT_CFG

        def load(file: Path, channels: int) -> NDArray[np.uint8] | None:
            data = {"names": {0: "door"}, "channels": channels}
            file.with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
            listed = file.with_name("list")
            listed.write_text(f"{file}\n")
            try:
                images: Any = YOLODataset(str(listed), imgsz=WIDTH, hyp=DEFAULT_CFG, batch_size=1, data=data)
                pixels: NDArray[np.uint8] = images.load_image(0)[0].copy()
                images[0]  # with all augmentations
            except Exception:  # noqa: BLE001  training would fail on it, however
                return None
            return pixels if pixels.shape[2] == channels else None  # the network would fail on it

        yield load


def attempt(read: Callable[[Path, int], Any], file: Path, channels: int) -> Any:
    """Return what the reader returns, or None for an unreadable image."""
    with contextlib.suppress(UnreadableImage):
        return read(file, channels)
    return None


@pytest.mark.parametrize(
    ("name", "channels"),
    [(name, channels) for name in CASES for channels in (3, 1, 4) if channels == 3 or name.endswith(("png", "tif"))],
)
def test_an_image_is_read_as_ultralytics_reads_it(library: Any, tmp_path: Path, name: str, channels: int) -> None:
    """Size and pixels are those that the library's loader trains on; what it cannot train on is unreadable."""
    content, file = CASES[name](), tmp_path / name
    file.write_bytes(content)
    size, pixels = attempt(read_size, file, channels), attempt(read_image, file, channels)
    trained_on = library(file, channels)
    if file.read_bytes() != content:  # the library has rewritten a JPEG that was longer than its image
        assert size
        assert not size.complete
        pixels = read_image(file)
    assert (size is None) == (trained_on is None)
    if trained_on is not None:
        assert size is not None
        assert (size.height, size.width, channels) == trained_on.shape
        assert np.array_equal(pixels, trained_on)
        assert pixels.flags.c_contiguous  # OpenCV and torch take no other


def test_a_damaged_orientation_is_read_as_opencv_reads_it(tmp_path: Path) -> None:
    """The size from a JPEG's header alone is that of the pixels, whatever bytes of its EXIF data are damaged."""
    chance, file, sizes = np.random.default_rng(0), tmp_path / "a.jpg", set()
    for _ in range(300):
        exif = Image.Exif()
        exif[274], exif[271], exif[305] = int(chance.integers(1, 9)), "maker", "program"
        raw = bytearray(exif.tobytes())
        for _ in range(chance.integers(1, 4)):
            raw[chance.integers(6, len(raw))] = chance.integers(0, 256)
        file.write_bytes(encoded("jpg", exif=bytes(raw[: chance.integers(8, 2 * len(raw))])))
        size = read_size(file)
        assert (size.height, size.width, 3) == read_image(file).shape
        sizes.add(size)
    assert len(sizes) == 2


def test_damaged_data_of_a_baseline_jpeg_do_not_make_it_unreadable(tmp_path: Path) -> None:
    """Its header is enough to know that it is readable: OpenCV decodes whatever follows."""
    chance, file, whole = np.random.default_rng(0), tmp_path / "a.jpg", encoded("jpg", quality=95)
    begin = whole.index(b"\xff\xda") + 14
    for _ in range(300):
        data, length = bytearray(whole), int(chance.integers(1, 64))
        at = int(chance.integers(begin, len(data) - 2 - length))
        data[at : at + length] = chance.bytes(length) if chance.random() < 0.5 else bytes(length)
        file.write_bytes(data)
        assert read_size(file)[:2] == (WIDTH, HEIGHT)
        assert read_image(file).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("float.tif", "not an image of a known format"),
        ("grey-float.tif", "tiff, mode F, raw compression"),
        ("zstd.tif", "tiff, mode RGB, zstd compression"),
        ("cut-0.5.bmp", "OpenCV cannot decode it"),
        ("empty.png", "it has no bytes"),
        ("text.webp", "not an image of a known format"),
    ],
)
def test_the_reason_names_what_the_image_is(tmp_path: Path, name: str, reason: str) -> None:
    """The reason is about the file's content: format, type of pixels and compression."""
    (tmp_path / name).write_bytes(CASES[name]())
    with pytest.raises(UnreadableImage, match=reason):
        read_size(tmp_path / name)


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    """Neither function raises anything but `UnreadableImage`, and the reason holds no path of this machine."""
    for read in (read_size, read_image):
        with pytest.raises(UnreadableImage, match=r"^\[Errno 2\] No such file or directory$"):
            read(tmp_path / "a.png")


def test_pages_of_a_tiff_are_channels_if_so_many_are_named(library: Any, tmp_path: Path) -> None:
    """With `channels: 5` the five grey pages of a TIFF are its channels, as for the library."""
    file, pages = tmp_path / "a.tif", [scene("L").rotate(10 * number) for number in range(5)]
    pages[0].save(file, save_all=True, append_images=pages[1:])
    pixels = read_image(file, 5)
    assert np.array_equal(pixels, library(file, 5))
    assert np.array_equal(pixels, np.stack([np.asarray(page) for page in pages], axis=2))


def test_a_drawing_shows_red_as_red() -> None:
    """Blue, green, red become red, green, blue; of one channel grey; of four the fourth is left out."""
    four = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    assert as_rgb(four)[0, 0].tolist() == [2, 1, 0]
    assert as_rgb(four[..., :3])[0, 0].tolist() == [2, 1, 0]
    assert as_rgb(four[..., :1])[0, 1].tolist() == [4, 4, 4]
