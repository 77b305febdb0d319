"""Draw a dataset of container doors, so that the whole project runs without a real photograph.

Guarantees: the same seed produces the same bytes, independent of what else is drawn, because each image has its own
random stream, derived from (seed, module, split, index). An image's labels are projected by the same camera that drew
it. A dataset appears under its name only when it is complete.

Cannot: produce the same bytes with another release of Pillow or NumPy, or train a model that works on real containers.
These images test the pipeline, not the task.

Lengths are in millimetres: x to the right, y down, z away from the viewer; the origin is the top left corner of a door
end. Positions in an image are fractions of its size, measured from its top left corner. This module uses no network,
no font file and no external image.
"""

from __future__ import annotations

import hashlib
import itertools
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, UnidentifiedImageError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lib.data.labels import POLYGON, box_around, label_path
from lib.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    Colour = tuple[int, int, int]
    Box = tuple[float, float, float, float]  # left, top, right, bottom
    Points = NDArray[np.float64]  # one point per row
    Row = tuple[float, ...]  # one line of a label file

T = TypeVar("T")

# A YOLO11n learns this many images from scratch in about a minute and a half on two CPU cores.
COUNTS = {"train": 192, "val": 24, "test": 24}
CLASSES = {"detection": "container_door", "localization": "container_id"}

# ---------------------------------------------------------------------------------------------------- the ID's code

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


# ---------------------------------------------------------------------------------------------------- the dataset


def draw_dataset(
    folder: Path, module: str, *, seed: int = 0, counts: Mapping[str, int] | None = None, size: int = 320
) -> None:
    """Write a dataset in YOLO format: `images/SPLIT/SPLIT_NNNN.jpg`, `labels/SPLIT/SPLIT_NNNN.txt`, `data.yaml`.

    `module` is "detection" (one row `0 cx cy w h` for the visible part of each door end; every twentieth image has no
    door) or "localization" (one row: the ID's box, then its corners top left, top right, bottom right, bottom left in
    the text's own orientation, each as `x y 2`). Coordinates are fractions of the image. `counts` maps a split to its
    number of images; a missing split keeps its default. Images are squares of `size` pixels. `folder` must be missing
    or empty, else `FileExistsError` is raised; it is filled atomically, by a rename.
    """
    if module not in CLASSES:
        raise ValueError(f"There is no module {module!r}: it is one of {', '.join(CLASSES)}.")
    counts = {**COUNTS, **(counts or {})}
    if counts.keys() != COUNTS.keys() or min(counts.values()) < 0:
        raise ValueError(f"Counts are numbers of pictures, 0 or more, for {', '.join(COUNTS)}; got {counts}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; nothing was drawn.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workplace:
        drawn = Path(workplace, "dataset")
        for split, count in counts.items():
            _draw_split(drawn, module, split, seed=seed, count=count, size=size)
        _write_description(drawn, module)
        if folder.exists():
            folder.rmdir()  # a rename onto an existing folder, even an empty one, fails on some systems
        drawn.rename(folder)


def _draw_split(drawn: Path, module: str, split: str, *, seed: int, count: int, size: int) -> None:
    images, labels = drawn / "images" / split, drawn / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        image, rows = _draw_picture(_stream(seed, module, split, index), module, size=size, empty=index % 20 == 19)  # noqa: PLR2004
        name = f"{split}_{index:04d}"
        image.save(images / f"{name}.jpg", quality=90)
        (labels / f"{name}.txt").write_text("".join(_label_line(row) for row in rows), encoding="utf-8")


def _stream(seed: int, module: str, split: str, index: int) -> Generator:
    # hash() differs between processes; SHA-256 does not.
    digest = hashlib.sha256(f"{seed}/{module}/{split}/{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def _label_line(row: Row) -> str:
    fields = [f"{round(value, 6):.6f}" if isinstance(value, float) else str(value) for value in row]
    return " ".join(fields) + "\n"


def _write_description(drawn: Path, module: str) -> None:
    description: dict[str, Any] = {"path": ".", **{split: f"images/{split}" for split in COUNTS}}
    description["names"] = {0: CLASSES[module]}
    if module == "localization":
        description |= {"kpt_shape": [4, 3], "flip_idx": [0, 1, 2, 3]}
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(description, drawn / "data.yaml")


# ---------------------------------------------------------------------------------------------------- one image

SUPERSAMPLING = 2  # shapes are drawn without antialiasing; halving the image smooths them
SCALE = 0.3  # pixels per millimetre of a flat door, for images up to 320 pixels


class _Light(NamedTuple):
    sky: tuple[Colour, Colour]  # colours at the top and at the horizon
    ground: Colour
    door: tuple[float, float, float]  # gain of red, green, blue
    sun: bool  # casts hard shadows
    noise: float  # of the sensor, in grey levels


LIGHTS = (
    _Light(((82, 138, 205), (206, 222, 236)), (142, 138, 130), (1.0, 1.0, 0.97), sun=True, noise=3),
    _Light(((120, 165, 215), (225, 228, 228)), (160, 150, 134), (1.06, 1.03, 0.96), sun=True, noise=3),
    _Light(((188, 192, 198), (222, 224, 226)), (112, 112, 112), (0.88, 0.9, 0.93), sun=False, noise=4),
    _Light(((62, 66, 110), (238, 164, 104)), (88, 80, 80), (0.8, 0.68, 0.62), sun=False, noise=5),
    _Light(((14, 15, 24), (40, 36, 40)), (52, 48, 44), (0.72, 0.66, 0.56), sun=False, noise=6),
)
LIGHT_SHARES = (0.28, 0.22, 0.28, 0.13, 0.09)


@dataclass(frozen=True)
class _Scene:
    light: _Light
    doors: tuple[_Door, ...]
    ground: float  # y of the ground
    camera: _Camera


def _draw_picture(
    rng: Generator, module: str, *, size: int, empty: bool = False, with_id: bool = True
) -> tuple[Image.Image, list[Row]]:
    """Draw one image and return it with its label rows; `empty` omits the doors (detection only).

    With `with_id=False` all other pixels stay the same, because painting the ID takes no values from `rng`.
    """
    if module == "detection":
        scene = _plan_yard(rng)
        rows = [_box_row(_visible_part(scene.camera.project(door.corners()))) for door in scene.doors if not empty]
    else:
        scene = _plan_close_up(rng)
        rows = [_id_row(scene.camera.project(door.id_corners())) for door in scene.doors]
    canvas = _draw_background(rng, scene, size * SUPERSAMPLING)
    if rows:
        _draw_containers(rng, canvas, scene, scale=SCALE * max(1, size / 320), with_id=with_id)
    return _photograph(rng, canvas, scene.light, size), rows


def _plan_yard(rng: Generator) -> _Scene:
    doors = [_plan_door(rng)]
    if _chance(rng, 0.18):
        doors.append(_plan_door(rng, left=WIDTH + rng.uniform(90, 700), height=doors[0].height))
    ground = _plan_ground(rng, doors[0])
    return _Scene(_plan_light(rng), tuple(doors), ground, _aim_at_doors(rng, doors, ground))


def _plan_close_up(rng: Generator) -> _Scene:
    door = _plan_door(rng)
    return _Scene(_plan_light(rng), (door,), _plan_ground(rng, door), _aim_at_id(rng, door))


def _plan_light(rng: Generator) -> _Light:
    return LIGHTS[rng.choice(len(LIGHTS), p=LIGHT_SHARES)]


def _plan_ground(rng: Generator, door: _Door) -> float:
    return door.height + (CHASSIS if _chance(rng, 0.4) else 0)


def _box_row(points: Points, margin: float = 0) -> Row:
    low, high = (points.min(axis=0) - margin).clip(0, 1), (points.max(axis=0) + margin).clip(0, 1)
    return (0, *map(float, (low + high) / 2), *map(float, high - low))


def _id_row(corners: Points) -> Row:
    keypoints = [value for x, y in corners for value in (float(x), float(y), 2)]
    return (*_box_row(corners, margin=0.004), *keypoints)


def _photograph(rng: Generator, canvas: Image.Image, light: _Light, size: int) -> Image.Image:
    """Return the canvas as a phone would photograph it, with vignette, exposure, slight blur and sensor noise."""
    image = canvas.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 0.6) * size / 320))
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    vignette = 1 - rng.uniform(0.04, 0.16) * (axis[:, None] ** 2 + axis[None, :] ** 2)
    pixels = np.asarray(image, dtype=np.float32) * (vignette * rng.uniform(0.88, 1.1))[..., None]
    pixels += rng.standard_normal((size, size, 1), dtype=np.float32) * light.noise
    pixels += rng.standard_normal((size, size, 3), dtype=np.float32) * light.noise / 3
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------- the camera

FOCAL = 1.1  # focal length in image widths, as of a phone's main lens
TRIES = 60


@dataclass(frozen=True)
class _Camera:
    eye: Points
    axes: Points  # rows are unit vectors: right, down, forward

    def project(self, points: Points) -> Points:
        """Return the image positions, (n, 2) in fractions, of points in the yard, (n, 3) in millimetres."""
        right, down, forward = self.axes @ (points - self.eye).T
        return np.stack([0.5 + FOCAL * right / forward, 0.5 + FOCAL * down / forward], axis=1)

    def faces(self, points: Points) -> bool:
        """Return whether all points lie in front of the camera; a point behind it would be projected upside down."""
        return bool(((points - self.eye) @ self.axes[2]).min() > 100)  # noqa: PLR2004


def _look(eye: Points, target: Points, roll: float) -> _Camera:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    return _Camera(eye, np.stack([cos * right + sin * down, cos * down - sin * right, forward]))


def _aim_at_doors(rng: Generator, doors: Sequence[_Door], ground: float) -> _Camera:
    """Return a camera at eye height that shows over 40 % of every door; a frontal one if all `TRIES` attempts fail."""
    width = doors[-1].left + WIDTH
    centre = np.array([width / 2, doors[0].height / 2, 0.0])
    reach = max(width, doors[0].height)
    camera = _look(centre - [0, 0, 2 * reach], centre, 0)
    for _ in range(TRIES):
        distance = FOCAL * reach / rng.uniform(0.5, 1.05)
        yaw = rng.uniform(-0.7, 0.7)
        height = ground - rng.uniform(1300, 2000)
        eye = np.array([centre[0] + distance * np.sin(yaw), height, -distance * np.cos(yaw)])
        spread = 0.36 if _chance(rng, 0.3) else 0.12
        offset = rng.uniform(-spread, spread, 2) * reach / 0.8
        tried = _look(eye, centre + np.array([*offset, 0]), rng.normal(0, 0.03))
        shares = [_share_seen(tried.project(door.corners())) for door in doors]
        if min(shares) > 0.4:  # noqa: PLR2004
            return tried
    return camera


def _aim_at_id(rng: Generator, door: _Door) -> _Camera:
    """Return a camera that shows the whole ID at 1/4 to 2/3 of the image's width; a frontal one if all tries fail."""
    corners = door.id_corners()
    centre = corners.mean(axis=0)
    length = float(corners[1, 0] - corners[0, 0])
    camera = _look(centre - [0, 0, FOCAL * length / 0.4], centre, 0)
    for _ in range(TRIES):
        distance = FOCAL * length / rng.uniform(0.33, 0.62)
        yaw, rise = rng.uniform(-0.6, 0.6), rng.uniform(-0.1, 0.45)
        eye = centre + distance * np.array([np.sin(yaw), np.sin(rise), -np.cos(yaw) * np.cos(rise)])
        offset = rng.uniform([-0.3, -0.1], [0.15, 0.38]) * distance / FOCAL
        tried = _look(eye, centre + np.array([*offset, 0]), rng.normal(0, 0.04))
        seen = tried.project(corners)
        inside = seen.min() > 0.02 and seen.max() < 0.98  # noqa: PLR2004
        if tried.faces(door.corners()) and inside and 0.26 < np.ptp(seen[:, 0]) < 0.66:  # noqa: PLR2004
            return tried
    return camera


def _visible_part(polygon: Points) -> Points:
    """Return the polygon clipped to the image (Sutherland-Hodgman: one side of the image after the other)."""
    for axis, limit, sign in ((0, 0.0, 1), (0, 1.0, -1), (1, 0.0, 1), (1, 1.0, -1)):
        kept: list[Points] = []
        for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            depth, next_depth = sign * (start[axis] - limit), sign * (end[axis] - limit)
            if depth >= 0:
                kept.append(start)
            if depth * next_depth < 0:
                kept.append(start + (end - start) * depth / (depth - next_depth))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _share_seen(polygon: Points) -> float:
    return _area(_visible_part(polygon)) / _area(polygon)


def _area(polygon: Points) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _warp(canvas: Image.Image, flat: Image.Image, corners: Points) -> None:
    """Paste a flat RGBA drawing onto the canvas, warped so that its corners meet `corners` (fractions, clockwise)."""
    while flat.width > 64 and _area(corners) * canvas.width * canvas.height * 5 < flat.width * flat.height:  # noqa: PLR2004
        flat = flat.reduce(2)  # the warp samples single pixels: an oversized drawing would alias
    width, height = flat.size
    targets = corners * canvas.size
    left, top = (int(value) for value in np.floor(targets.min(axis=0)).clip(0, canvas.width))
    right, bottom = (int(value) for value in np.ceil(targets.max(axis=0)).clip(0, canvas.width))
    if right <= left or bottom <= top:
        return
    sources = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float)
    coefficients = _homography(targets - [left, top], sources)
    warped = flat.transform(
        (right - left, bottom - top), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    canvas.paste(warped, (left, top), warped)


def _homography(points: Points, images: Points) -> tuple[float, ...]:
    """Return the eight coefficients, in Pillow's order, of the perspective transform of four points to `images`."""
    equations, values = [], []
    for (x, y), (u, v) in zip(points, images, strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(equations), np.array(values)).tolist())


# ---------------------------------------------------------------------------------------------------- the yard

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


def _draw_background(rng: Generator, scene: _Scene, size: int) -> Image.Image:
    light, camera = scene.light, scene.camera
    far = camera.eye + np.array([(-0.6, 0, 1), (0.6, 0, 1)]) * 1e7
    (x0, y0), (x1, y1) = camera.project(far)
    axis = np.linspace(0, 1, size // 2, dtype=np.float32)
    depth = axis[:, None] - (y0 + (axis - x0) * (y1 - y0) / (x1 - x0))[None, :]  # positive below the horizon
    pixels = np.where(depth[..., None] > 0, _ground(rng, light, depth), _sky(rng, light, depth))
    background = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
    _draw_stacks(rng, background, scene)
    return background


def _sky(rng: Generator, light: _Light, depth: NDArray[Any]) -> NDArray[Any]:
    top, bottom = (np.array(colour, dtype=np.float32) for colour in light.sky)
    share = (-depth * 1.4).clip(0, 1)[..., None]
    clouds = _clouds(rng, depth.shape, cell=depth.shape[0] // 5, squeeze=2)
    cover = (clouds * rng.uniform(0.1, 0.5)).clip(0, 0.6)[..., None]
    sky: NDArray[Any] = bottom + (top - bottom) * share
    sky += (np.float32(235 if light.sun else bottom.mean()) - sky) * cover
    return sky


def _ground(rng: Generator, light: _Light, depth: NDArray[Any]) -> NDArray[Any]:
    colour = np.array(light.ground, dtype=np.float32) * rng.uniform(0.75, 1.1)
    grain = rng.standard_normal(depth.shape, dtype=np.float32) * rng.uniform(4, 16)  # from asphalt to gravel
    grain *= (depth * 3).clip(0.15, 1)
    patches = _clouds(rng, depth.shape, cell=depth.shape[0] // 4, squeeze=4) * 14
    haze = 1 - (depth * 4).clip(0, 1)[..., None]
    lit: NDArray[Any] = (colour + (grain + patches)[..., None]) * (0.85 + 0.15 * depth[..., None])
    lit += (np.array(light.sky[1], dtype=np.float32) - lit) * haze * 0.35
    return lit


def _clouds(rng: Generator, shape: tuple[int, ...], cell: int, squeeze: int = 1) -> NDArray[Any]:
    """Return smooth noise (mean 0, deviation about 1) with spots about `cell` pixels wide, flattened by `squeeze`."""
    height, width = shape
    total = np.zeros(shape, dtype=np.float32)
    for octave, weight in ((1, 0.8), (3, 0.5), (9, 0.3)):
        rows, columns = (max(2, side * octave // max(cell, 1)) for side in (height * squeeze, width))
        noise = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
        total += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return total


def _draw_stacks(rng: Generator, background: Image.Image, scene: _Scene) -> None:
    """Draw distant containers with their long sides to the viewer, as unlabelled background."""
    light, camera, ground = scene.light, scene.camera, scene.ground
    draw = ImageDraw.Draw(background)
    for distance in sorted(rng.uniform(22_000, 60_000, rng.integers(1, 6)), reverse=True):
        left = camera.eye[0] + rng.uniform(-0.7, 0.5) * distance
        length = 12_192 if _chance(rng, 0.6) else 6_058
        for level in range(rng.integers(1, 4)):
            colour = _lit(_pick(rng, LIVERIES), light, rng.uniform(0.5, 0.85))
            haze = _mix(colour, light.sky[1], 0.25)
            top, bottom = ground - 2591 * (level + 1), ground - 2591 * level - 40
            draw.polygon(_spots(camera, background, _upright((left, top, left + length, bottom), distance)), fill=haze)
            for start in np.arange(left, left + length, 560):
                rib = _spots(camera, background, _upright((start, top + 120, start + 230, bottom - 150), distance))
                draw.polygon(rib, fill=_shade(haze, 0.86))


def _spots(camera: _Camera, image: Image.Image, points: Points) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in camera.project(points) * image.size]


def _upright(box: Box, z: float = 0) -> Points:
    """Return the corners of a box that faces the viewer, clockwise from the top left, (4, 3)."""
    x0, y0, x1, y1 = box
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], dtype=float)


def _draw_containers(rng: Generator, canvas: Image.Image, scene: _Scene, *, scale: float, with_id: bool) -> None:
    camera, light = scene.camera, scene.light
    for door in scene.doors:
        _draw_shadow(canvas, camera, door, scene.ground)
    # All sides before all ends: in the gap between two containers a side is visible behind the neighbour's end.
    for door in scene.doors:
        _draw_side(rng, canvas, camera, door, light)
    for door in scene.doors:
        below = _upright((door.left, door.height, door.left + WIDTH, scene.ground))
        if scene.ground > door.height and camera.faces(below):
            _warp(canvas, _paint_trailer(rng, light, scale / 2), camera.project(below))
        flat = _paint_door(rng, door, light, scale, with_id=with_id)
        _warp(canvas, flat, camera.project(door.corners()))


def _draw_shadow(canvas: Image.Image, camera: _Camera, door: _Door, ground: float) -> None:
    left, right, front, back = door.left - 250, door.left + WIDTH + 250, -350, 9000
    floor = np.array([(left, ground, front), (right, ground, front), (right, ground, back), (left, ground, back)])
    if not camera.faces(floor):
        return  # the camera is so near and tilted up so steeply that the ground is out of view
    mask = Image.new("L", (canvas.width // 4, canvas.height // 4))
    ImageDraw.Draw(mask).polygon(_spots(camera, mask, floor), fill=165)
    mask = mask.filter(ImageFilter.GaussianBlur(mask.width / 80)).resize(canvas.size)
    canvas.paste((16, 16, 18), (0, 0), mask)


def _draw_side(rng: Generator, canvas: Image.Image, camera: _Camera, door: _Door, light: _Light) -> None:
    """Draw the long side of the container that is visible next to the door end, if any."""
    gain = rng.uniform(0.55, 0.8)
    if door.left <= camera.eye[0] <= door.left + WIDTH:
        return
    on_left = camera.eye[0] < door.left
    x = door.left if on_left else door.left + WIDTH
    near, far = (DEPTH, 0) if on_left else (0, DEPTH)
    corners = np.array([(x, 0, near), (x, 0, far), (x, door.height, far), (x, door.height, near)], dtype=float)
    colour = _lit(door.colour, light, gain)
    plate = _Plate(DEPTH, door.height, 0.12, colour)
    for start in range(100, DEPTH, 280):
        plate.rect((start, 140, start + 70, door.height - 170), _shade(colour, 0.7))
        plate.rect((start + 70, 140, start + 140, door.height - 170), _shade(colour, 0.85))
        plate.rect((start + 210, 140, start + 280, door.height - 170), _shade(colour, 1.12))
    plate.rect((0, door.height - 160, DEPTH, door.height - 120), _shade(colour, 0.5))
    _warp(canvas, plate.image, camera.project(corners))


def _paint_trailer(rng: Generator, light: _Light, scale: float) -> Image.Image:
    colour = _lit(_pick(rng, ((36, 52, 112), (50, 50, 52), (150, 120, 40), (110, 34, 34))), light, 0.9)
    plate = _Plate(WIDTH, CHASSIS, scale, None)
    plate.rect((500, 200, WIDTH - 500, 480), (22, 22, 24))
    plate.rect((300, 640, WIDTH - 300, 760), (34, 33, 33))
    plate.ellipse((WIDTH / 2 - 190, 560, WIDTH / 2 + 190, 840), (40, 38, 37))
    for left in (90, 420, WIDTH - 700, WIDTH - 370):
        plate.rect((left, 330, left + 280, 1100), (24, 24, 25))
        plate.ellipse((left, 1040, left + 280, 1150), (24, 24, 25))
        for groove in range(40, 280, 60):
            plate.rect((left + groove, 330, left + groove + 16, 1120), (44, 44, 45))
    plate.rect((0, 0, WIDTH, 300), colour)
    plate.rect((0, 0, WIDTH, 25), _shade(colour, 1.3))
    plate.rect((0, 270, WIDTH, 300), _shade(colour, 0.5))
    for left in (120, WIDTH - 420):
        plate.rect((left, 80, left + 300, 210), _shade(colour, 0.5))
        plate.rect((left + 10, 90, left + 200, 200), (170, 28, 30))
        plate.rect((left + 205, 90, left + 290, 200), (214, 128, 40))
    plate.rect((WIDTH / 2 - 260, 90, WIDTH / 2 + 260, 205), _lit((216, 214, 206), light))
    return plate.image


# ---------------------------------------------------------------------------------------------------- the door

WIDTH = 2438  # ISO 668: 8 feet
DEPTH = 6058  # a side of 20 feet; a longer side looks the same from the door end
CHASSIS = 1150  # height of a trailer's deck above the ground
POST = 100
HEADER, SILL = 125, 165
RODS = (360, 830, 1400, 1860)
ID_LEFT, ID_RIGHT, ID_HEIGHT = 1452, 2322, 132


@dataclass(frozen=True)
class _Door:
    left: float
    height: int  # 2591 or, for a high cube, 2896
    colour: Colour
    rods: Colour
    code: str  # with its check digit, e.g. CSQU3054383
    kind: str  # size and type, e.g. 45G1
    id_top: float

    def corners(self) -> Points:
        """Return the door end's corners in the yard, clockwise from the top left, (4, 3)."""
        return _upright((self.left, 0, self.left + WIDTH, self.height))

    def id_corners(self) -> Points:
        """Return the corners of the ID and its boxed check digit in the yard, clockwise from the top left, (4, 3)."""
        return _upright((self.left + ID_LEFT, self.id_top, self.left + ID_RIGHT, self.id_top + ID_HEIGHT))


def _plan_door(rng: Generator, left: float = 0, height: int | None = None) -> _Door:
    height = height or (2896 if _chance(rng, 0.65) else 2591)
    colour = _vary(rng, _pick(rng, LIVERIES))
    galvanised = _pick(rng, ((176, 178, 178), (196, 190, 174), (150, 154, 158)))
    rods = _shade(colour, 1.12) if _chance(rng, 0.25) else galvanised
    code = OWNERS[rng.integers(len(OWNERS))] + f"{rng.integers(1_000_000):06d}"
    kind = "45G1" if height == 2896 else ("22G1", "42G1")[rng.integers(2)]  # noqa: PLR2004
    return _Door(left, height, colour, rods, f"{code}{check_digit(code)}", kind, id_top=float(rng.uniform(270, 330)))


def _paint_door(rng: Generator, door: _Door, light: _Light, scale: float, *, with_id: bool) -> Image.Image:
    """Return the door end as a flat frontal drawing, with `scale` pixels per millimetre."""
    plate = _Plate(WIDTH, door.height, scale, _shade(door.colour, 0.92))
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


def _paint_frame(plate: _Plate, door: _Door) -> None:
    height, colour = door.height, door.colour
    for left in (0, WIDTH - POST):
        plate.rect((left, 0, left + 22, height), _shade(colour, 1.18))
        plate.rect((left + POST - 22, 0, left + POST, height), _shade(colour, 0.6))
    plate.rect((0, 0, WIDTH, 22), _shade(colour, 1.2))
    plate.rect((POST, HEADER - 22, WIDTH - POST, HEADER), _shade(colour, 0.5))
    plate.rect((POST, height - SILL, WIDTH - POST, height - SILL + 25), _shade(colour, 1.15))
    plate.rect((POST, height - 30, WIDTH - POST, height), _shade(colour, 0.45))
    if door.kind == "45G1":
        for left in (230, WIDTH - 620):  # the warning stripes that a high cube must carry
            plate.stripes((left, 30, left + 390, 92))
    for left in (0, WIDTH - 178):
        for top in (0, height - 130):
            plate.rect((left, top, left + 178, top + 130), _shade(colour, 0.72))
            plate.rect((left, top, left + 178, top + 14), _shade(colour, 1.15))
            plate.ellipse((left + 42, top + 34, left + 136, top + 100), (18, 16, 16))
    plate.rect((POST, HEADER, WIDTH - POST, height - SILL), (24, 24, 25))  # the gasket shows around the leaves


def _paint_leaf(plate: _Plate, door: _Door, left: float, right: float) -> None:
    colour, top, bottom = door.colour, HEADER + 16, door.height - SILL - 16
    plate.rect((left, top, right, bottom), colour)
    plate.rect((left, top, right, top + 12), _shade(colour, 1.2))
    plate.rect((left, top, left + 12, bottom), _shade(colour, 1.15))
    plate.rect((right - 14, top, right, bottom), _shade(colour, 0.62))
    plate.rect((left, bottom - 14, right, bottom), _shade(colour, 0.6))
    heights = np.linspace(top + 70, bottom - 30, 6)
    for start, end in itertools.pairwise(heights):
        # A pressed panel: its upper slope is in shade, its lower slope reflects the sky.
        plate.rect((left + 70, start, right - 70, end - 60), _shade(colour, 0.97))
        plate.rect((left + 70, start, right - 70, start + 34), _shade(colour, 0.72))
        plate.rect((left + 70, start, left + 84, end - 60), _shade(colour, 0.8))
        plate.rect((right - 84, start, right - 70, end - 60), _shade(colour, 1.12))
        plate.rect((left + 70, end - 90, right - 70, end - 60), _shade(colour, 1.22))
    outer = left - 30 if left < WIDTH / 2 else right - 40
    for share in (0.08, 0.36, 0.64, 0.92):
        middle = top + share * (bottom - top)
        plate.rect((outer, middle - 62, outer + 70, middle + 62), _shade(colour, 0.78))
        plate.rect((outer, middle - 62, outer + 70, middle - 50), _shade(colour, 1.2))
        plate.rect((outer, middle + 50, outer + 70, middle + 62), _shade(colour, 0.4))


def _paint_rod(plate: _Plate, door: _Door, x: float) -> None:
    height, colour = door.height, door.rods
    plate.rect((x + 26, 70, x + 52, height - 60), _shade(door.colour, 0.5))  # its shadow on the leaf
    plate.rect((x - 19, 40, x + 19, height - 45), colour)
    plate.rect((x - 19, 40, x - 10, height - 45), _shade(colour, 0.78))
    plate.rect((x - 6, 40, x + 4, height - 45), _shade(colour, 1.22))
    plate.rect((x + 9, 40, x + 19, height - 45), _shade(colour, 0.6))
    for top in (42, height - 135):  # the locking cam in its keeper
        plate.rect((x - 62, top, x + 62, top + 92), _shade(colour, 0.72))
        plate.rect((x - 62, top, x + 62, top + 12), _shade(colour, 1.15))
        plate.rect((x - 30, top + 22, x + 34, top + 78), _shade(colour, 1.05))
        plate.rect((x - 62, top + 80, x + 62, top + 92), _shade(colour, 0.4))
    for share in (0.08, 0.3, 0.5, 0.66, 0.9):  # the guides
        y = share * height
        plate.rect((x - 46, y - 30, x + 46, y + 30), _shade(colour, 0.88))
        plate.rect((x - 46, y + 18, x + 46, y + 30), _shade(colour, 0.5))
        for bolt in (x - 36, x + 24):
            plate.ellipse((bolt, y - 8, bolt + 14, y + 8), _shade(colour, 0.45))


def _paint_handles(plate: _Plate, door: _Door) -> None:
    colour = door.rods
    for rod, towards, share in zip(RODS, (1, 1, -1, -1), (0.735, 0.765, 0.765, 0.735), strict=True):
        y = share * door.height
        reach = 330 if rod in (RODS[1], RODS[2]) else 400
        left, right = sorted((rod, rod + towards * reach))
        plate.rect((left, y + 20, right, y + 38), _shade(door.colour, 0.45))
        plate.rect((left, y - 17, right, y + 17), colour)
        plate.rect((left, y - 17, right, y - 6), _shade(colour, 1.2))
        plate.rect((left, y + 9, right, y + 17), _shade(colour, 0.55))
        plate.ellipse((rod - 44, y - 44, rod + 44, y + 44), _shade(colour, 0.8))
        plate.ellipse((rod - 22, y - 22, rod + 22, y + 22), _shade(colour, 0.5))
        hasp = rod + towards * (reach - 110)
        plate.rect((hasp - 40, y - 62, hasp + 40, y + 70), _shade(colour, 0.85))
        plate.rect((hasp - 40, y - 62, hasp + 40, y - 52), _shade(colour, 1.2))
        plate.rect((hasp - 14, y - 30, hasp + 14, y + 46), _shade(colour, 0.4))


def _paint_id(plate: _Plate, door: _Door) -> None:
    """Paint owner code, serial number and boxed check digit, so that they fill the ID's rectangle to its edges."""
    ink, top, bottom = _ink(door), door.id_top, door.id_top + ID_HEIGHT
    box = ID_RIGHT - 92
    plate.text(door.code[:4], (ID_LEFT, top + 10, ID_LEFT + 340, bottom - 10), ink)
    plate.text(door.code[4:10], (ID_LEFT + 470, top + 10, box - 22, bottom - 10), ink)
    plate.outline((box, top, ID_RIGHT, bottom), ink, 10)
    plate.text(door.code[10], (box + 22, top + 22, ID_RIGHT - 22, bottom - 22), ink)


def _paint_weights(rng: Generator, plate: _Plate, door: _Door) -> None:
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


def _paint_emblem(rng: Generator, plate: _Plate, door: _Door) -> None:
    """Paint the logo of a fictitious shipping line on the left leaf."""
    ink, word = _ink(door), _pick(rng, ("NORDLINE", "BLUE STAR", "PACIFICA", "ATLANTA", "ORIENTIS"))
    y, shape = rng.uniform(420, 620), rng.integers(4)
    if shape == 0:
        plate.ellipse((460, y, 740, y + 280), ink)
        plate.ellipse((500, y + 40, 700, y + 240), door.colour)
    elif shape == 1:
        plate.polygon([(600, y), (740, y + 280), (600, y + 200), (460, y + 280)], ink)
    elif shape == 2:  # noqa: PLR2004
        plate.rect((440, y, 760, y + 280), (206, 206, 200))
        plate.polygon([(470, y + 250), (600, y + 30), (730, y + 250)], (170, 44, 40))
    if _chance(rng, 0.6):
        plate.text(word, (420, y + 340, 780, y + 420), ink)


def _paint_decals(rng: Generator, plate: _Plate, door: _Door) -> None:
    for x, y in ((600, 1250), (1640, door.height * 0.83)):
        if _chance(rng, 0.7):
            y += rng.uniform(-80, 80)  # noqa: PLW2901
            plate.polygon([(x - 105, y + 90), (x, y - 95), (x + 105, y + 90)], (24, 24, 20))
            plate.polygon([(x - 86, y + 79), (x, y - 72), (x + 86, y + 79)], (232, 190, 30))
            plate.polygon([(x - 24, y + 62), (x, y - 34), (x + 24, y + 62)], (24, 24, 20))
    if _chance(rng, 0.8):
        plate.rect((500, 1600, 720, 1860), (188, 180, 160))  # the safety approval plate
        for y in range(1630, 1850, 26):
            plate.rect((520, y, 520 + rng.uniform(90, 180), y + 9), (104, 98, 88))
    if door.kind == "45G1" and _chance(rng, 0.5):
        plate.rect((1960, 1560, 2230, 1900), (228, 186, 36))
        for line, word in enumerate(("CAUTION", "9'6\"", "HIGH")):
            plate.text(word, (1985, 1590 + 100 * line, 2205, 1665 + 100 * line), (24, 22, 20))
    plate.rect((2010, door.height - 330, 2230, door.height - 250), (204, 206, 206))
    plate.rect((2030, door.height - 308, 2210, door.height - 272), (60, 84, 132))


def _weather(rng: Generator, plate: _Plate, door: _Door, light: _Light) -> None:
    """Apply dirt, rust, shadow and the scene's light to the painted door."""
    for _ in range(rng.integers(2, 16)):
        _paint_rust(rng, plate, door)
    pixels = np.array(plate.image.convert("RGB"), dtype=np.float32)
    height, width, _ = pixels.shape
    age = rng.uniform(0.02, 0.1)
    gain = 1 + age * _clouds(rng, (height, width), cell=width // 4)
    gain += rng.uniform(0.02, 0.07) * _clouds(rng, (1, width), cell=max(width // 25, 1))  # rain leaves vertical streaks
    gain -= np.linspace(-0.05, rng.uniform(0, 0.2), height, dtype=np.float32)[:, None]
    if light.sun and _chance(rng, 0.45):  # a neighbouring container casts a shadow
        slope, start = rng.uniform(-0.6, 0.6), rng.uniform(0.2, 0.9)
        edge = np.linspace(0, slope, width, dtype=np.float32)[None, :] + start
        gain *= np.where(np.linspace(0, 1, height, dtype=np.float32)[:, None] > edge, 0.62, 1)
    pixels *= gain[..., None] * np.array(light.door, dtype=np.float32)
    plate.image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGBA")


def _paint_rust(rng: Generator, plate: _Plate, door: _Door) -> None:
    x, y = rng.uniform(60, WIDTH - 60), door.height * rng.beta(3, 1.4)
    # The ID stays legible; all random values are drawn first, so that the stream is the same in both cases.
    covers_id = ID_LEFT - 60 < x < ID_RIGHT + 60 and y < door.id_top + 2 * ID_HEIGHT
    colour = _mix(_vary(rng, (112, 62, 34)), door.colour, rng.uniform(0.1, 0.6))
    radius, length = rng.uniform(8, 34), rng.uniform(60, 330)
    if covers_id:
        return
    plate.ellipse((x - radius, y - radius * 0.7, x + radius, y + radius * 0.7), colour)
    plate.polygon([(x - radius * 0.6, y), (x + radius * 0.5, y), (x + 3, y + length)], _mix(colour, door.colour, 0.45))


def _ink(door: _Door) -> Colour:
    red, green, blue = door.colour
    return (236, 236, 230) if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else (22, 22, 24)  # noqa: PLR2004


# ---------------------------------------------------------------------------------------------------- paint


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


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(one + (two - one) * share) for one, two in zip(colour, other, strict=True))
    return red, green, blue


def _lit(colour: Colour, light: _Light, gain: float = 1.0) -> Colour:
    red, green, blue = (min(255, round(value * part * gain)) for value, part in zip(colour, light.door, strict=True))
    return red, green, blue


def _vary(rng: Generator, colour: Colour) -> Colour:
    varied = np.array(colour) * rng.uniform(0.82, 1.15) + rng.normal(0, 6, 3)
    red, green, blue = (int(value) for value in varied.clip(8, 240))
    return red, green, blue


def _chance(rng: Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _pick(rng: Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


# ---------------------------------------------------------------------------------------------------- the contact sheet

CELL, GUTTER, HEADER_ROWS = 256, 8, 72
COLUMNS = 6  # 1592 pixels wide
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
PAPER, INK, BOX = (24, 26, 30), (236, 236, 236), (255, 214, 0)
CORNER_COLOURS: tuple[Colour, ...] = ((255, 64, 64), (64, 230, 90), (90, 190, 255), (255, 120, 245))


def draw_contact_sheet(dataset: Path, picture: Path, *, per_split: int = 6) -> None:
    """Write a PNG, at most 1600 pixels wide, with the first images of each split and their labels.

    `dataset` is the folder of any dataset in YOLO format: boxes, boxes with keypoints, or polygons. Only the images
    that are shown are opened, even in a large dataset. Raises `DatasetError` if `data.yaml`, an image or a label file
    is invalid.
    """
    description = _read_description(dataset)
    names = description["names"]
    classes = dict(enumerate(names)) if isinstance(names, list) else dict(names)
    points = [int(value) for value in description.get("kpt_shape", (0, 0))]
    rows: list[tuple[str, list[Image.Image]]] = []
    for split in COUNTS:
        files = _pictures(dataset, description, split)
        if files:
            cells = [_draw_cell(file, classes, points) for file in files[:per_split]]
            rows.append((f"{split}: {len(files)} picture{'s' * (len(files) != 1)}", cells))
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet = _lay_out(rows, columns=max(2, min(per_split, COLUMNS)))
    _draw_legend(sheet, ", ".join(f"{number} {name}" for number, name in classes.items()), corners=points[0])
    sheet.save(picture, format="PNG")


def _read_description(dataset: Path) -> dict[str, Any]:
    file = dataset / "data.yaml"
    remedy = "Point to the folder of a dataset in YOLO format, or pull the dataset again."
    try:
        description = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"data.yaml not found in {dataset}.", state="Nothing was drawn.", remedy=remedy) from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise DatasetError(f"{file} cannot be read: {error}", state="Nothing was drawn.", remedy=remedy) from error
    if not isinstance(description, dict) or not isinstance(description.get("names"), dict | list):
        raise DatasetError(f"{file} names no classes.", state="Nothing was drawn.", remedy="Add `names: {0: …}` to it.")
    return description


def _pictures(dataset: Path, description: Mapping[str, Any], split: str) -> list[Path]:
    """Return a split's image files, sorted; the split is a folder, a text file of paths, or a list of these."""
    root = dataset / description.get("path", ".")
    sources = description.get(split) or []
    files: list[Path] = []
    for source in [sources] if isinstance(sources, str) else sources:
        place = root / source
        listed = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        found = (place.parent / line.strip() for line in listed) if listed else place.rglob("*")
        files += [file for file in found if file.suffix.lower() in SUFFIXES]
    return sorted(files)


def _draw_cell(file: Path, classes: Mapping[int, str], points: Sequence[int]) -> Image.Image:
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * CELL, 2 * CELL))  # decodes a large JPEG at reduced size
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (
        OSError,
        UnidentifiedImageError,
        ImportError,
    ) as error:  # once imported, ultralytics makes Pillow look for a HEIF decoder
        raise _unusable(file, f"cannot be opened: {error}") from error
    image = ImageOps.contain(image, (CELL, CELL), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for number, box, corners, outline in _read_labels(Path(label_path(str(file))), points):
        _draw_label(draw, image.size, classes.get(number, f"class {number}"), box, corners)
        draw.line([(float(x), float(y)) for x, y in outline * image.size], fill=INK, width=1)
    return image


def _read_labels(file: Path, points: Sequence[int]) -> list[tuple[int, Points, Points, Points]]:
    """Return each label as class, box (centre x, centre y, width, height), keypoints (n, 2 or 3), closed outline."""
    if not file.exists():
        return []
    labels = []
    count, values = points
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        try:
            row, outline = np.array(line.split(), dtype=float), np.empty((0, 2))
            if len(row) >= POLYGON and not count:
                outline = row[1:].reshape(-1, 2)
                row, outline = np.array([row[0], *box_around(row[1:].tolist())]), np.vstack([outline, outline[:1]])
            keypoints = row[5:].reshape(count, values)
            number, box = int(row[0]), row[1:5].reshape(4)
        except ValueError as error:
            raise _unusable(file, f"holds a row that is no label: {line.strip()[:60]!r}") from error
        labels.append((number, box, keypoints, outline))
    return labels


def _unusable(file: Path, fault: str) -> DatasetError:
    return DatasetError(
        f"{file} {fault}", state="No contact sheet was drawn.", remedy="Mend the file, or take it out of the dataset."
    )


def _draw_label(draw: ImageDraw.ImageDraw, size: tuple[int, int], name: str, box: Points, keypoints: Points) -> None:
    centre, half = box[:2], box[2:] / 2
    (x0, y0), (x1, y1) = ((centre - half) * size).tolist(), ((centre + half) * size - 1).tolist()
    draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=BOX, width=2)
    font = ImageFont.load_default(12)
    left, top, right, bottom = draw.textbbox((max(0, x0), max(0, y0 - 17)), name, font=font)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=BOX)
    draw.text((max(0, x0), max(0, y0 - 17)), name, fill=PAPER, font=font)
    seen = {number: point[:2] * size for number, point in enumerate(keypoints) if point[2:].all()}
    spots = {number: (float(x), float(y)) for number, (x, y) in seen.items()}
    if spots:
        draw.line([*spots.values(), next(iter(spots.values()))], fill=INK, width=1)
    for number, (x, y) in spots.items():
        colour = CORNER_COLOURS[number % len(CORNER_COLOURS)]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=PAPER)
        # Place the number outside the quadrilateral, where it covers nothing.
        across, along = np.sign([x, y] - np.mean(list(spots.values()), axis=0)) * 9
        beside = (x + across, y + along)
        draw.text(beside, str(number + 1), fill=colour, font=font, anchor="mm", stroke_width=2, stroke_fill=PAPER)


def _lay_out(rows: Sequence[tuple[str, list[Image.Image]]], columns: int) -> Image.Image:
    title, pitch = 26, CELL + GUTTER
    lines = [-(-len(cells) // columns) for _, cells in rows]
    height = HEADER_ROWS + sum(title + line * pitch for line in lines) + GUTTER
    sheet = Image.new("RGB", (columns * pitch + GUTTER, height), PAPER)
    draw, y = ImageDraw.Draw(sheet), HEADER_ROWS
    for (name, cells), line in zip(rows, lines, strict=True):
        draw.text((GUTTER, y + 4), name, fill=INK, font=ImageFont.load_default(15))
        y += title
        for index, cell in enumerate(cells):
            sheet.paste(cell, (GUTTER + index % columns * pitch, y + index // columns * pitch))
        y += line * pitch
    return sheet


def _draw_legend(sheet: Image.Image, classes: str, corners: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.rectangle((GUTTER, 13, GUTTER + 22, 27), outline=BOX, width=2)
    draw.text((GUTTER + 32, 12), f"box of {classes}", fill=INK, font=font)
    x = float(GUTTER)
    places = ("top left", "top right", "bottom right", "bottom left")
    for number in range(corners):
        colour = CORNER_COLOURS[number % len(CORNER_COLOURS)]
        word = f"{number + 1} {places[number] if corners == len(places) else ''}"
        draw.ellipse((x + 4, 42, x + 16, 54), fill=colour)
        draw.text((x + 24, 40), word, fill=colour, font=font)
        x += 48 + draw.textlength(word, font=font)
