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
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from ruamel.yaml import YAML

from lib.sandbox.doors import CHASSIS, DEPTH, LIVERIES, WIDTH, Door, _Plate, paint_door, plan_door, upright
from lib.sandbox.paint import Light, chance, clouds, lit, mix, pick, shade

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    from lib.sandbox.paint import Points, Row


# A YOLO11n learns this many images from scratch in about a minute and a half on two CPU cores.
COUNTS = {"train": 192, "val": 24, "test": 24}
CLASSES = {"detection": "container_door", "localization": "container_id"}

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


LIGHTS = (
    Light(((82, 138, 205), (206, 222, 236)), (142, 138, 130), (1.0, 1.0, 0.97), sun=True, noise=3),
    Light(((120, 165, 215), (225, 228, 228)), (160, 150, 134), (1.06, 1.03, 0.96), sun=True, noise=3),
    Light(((188, 192, 198), (222, 224, 226)), (112, 112, 112), (0.88, 0.9, 0.93), sun=False, noise=4),
    Light(((62, 66, 110), (238, 164, 104)), (88, 80, 80), (0.8, 0.68, 0.62), sun=False, noise=5),
    Light(((14, 15, 24), (40, 36, 40)), (52, 48, 44), (0.72, 0.66, 0.56), sun=False, noise=6),
)
LIGHT_SHARES = (0.28, 0.22, 0.28, 0.13, 0.09)


@dataclass(frozen=True)
class _Scene:
    light: Light
    doors: tuple[Door, ...]
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
    doors = [plan_door(rng)]
    if chance(rng, 0.18):
        doors.append(plan_door(rng, left=WIDTH + rng.uniform(90, 700), height=doors[0].height))
    ground = _plan_ground(rng, doors[0])
    return _Scene(_plan_light(rng), tuple(doors), ground, _aim_at_doors(rng, doors, ground))


def _plan_close_up(rng: Generator) -> _Scene:
    door = plan_door(rng)
    return _Scene(_plan_light(rng), (door,), _plan_ground(rng, door), _aim_at_id(rng, door))


def _plan_light(rng: Generator) -> Light:
    return LIGHTS[rng.choice(len(LIGHTS), p=LIGHT_SHARES)]


def _plan_ground(rng: Generator, door: Door) -> float:
    return door.height + (CHASSIS if chance(rng, 0.4) else 0)


def _box_row(points: Points, margin: float = 0) -> Row:
    low, high = (points.min(axis=0) - margin).clip(0, 1), (points.max(axis=0) + margin).clip(0, 1)
    return (0, *map(float, (low + high) / 2), *map(float, high - low))


def _id_row(corners: Points) -> Row:
    keypoints = [value for x, y in corners for value in (float(x), float(y), 2)]
    return (*_box_row(corners, margin=0.004), *keypoints)


def _photograph(rng: Generator, canvas: Image.Image, light: Light, size: int) -> Image.Image:
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


def _aim_at_doors(rng: Generator, doors: Sequence[Door], ground: float) -> _Camera:
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
        spread = 0.36 if chance(rng, 0.3) else 0.12
        offset = rng.uniform(-spread, spread, 2) * reach / 0.8
        tried = _look(eye, centre + np.array([*offset, 0]), rng.normal(0, 0.03))
        shares = [_share_seen(tried.project(door.corners())) for door in doors]
        if min(shares) > 0.4:  # noqa: PLR2004
            return tried
    return camera


def _aim_at_id(rng: Generator, door: Door) -> _Camera:
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


def _sky(rng: Generator, light: Light, depth: NDArray[Any]) -> NDArray[Any]:
    top, bottom = (np.array(colour, dtype=np.float32) for colour in light.sky)
    share = (-depth * 1.4).clip(0, 1)[..., None]
    cloudy = clouds(rng, depth.shape, cell=depth.shape[0] // 5, squeeze=2)
    cover = (cloudy * rng.uniform(0.1, 0.5)).clip(0, 0.6)[..., None]
    sky: NDArray[Any] = bottom + (top - bottom) * share
    sky += (np.float32(235 if light.sun else bottom.mean()) - sky) * cover
    return sky


def _ground(rng: Generator, light: Light, depth: NDArray[Any]) -> NDArray[Any]:
    colour = np.array(light.ground, dtype=np.float32) * rng.uniform(0.75, 1.1)
    grain = rng.standard_normal(depth.shape, dtype=np.float32) * rng.uniform(4, 16)  # from asphalt to gravel
    grain *= (depth * 3).clip(0.15, 1)
    patches = clouds(rng, depth.shape, cell=depth.shape[0] // 4, squeeze=4) * 14
    haze = 1 - (depth * 4).clip(0, 1)[..., None]
    lit: NDArray[Any] = (colour + (grain + patches)[..., None]) * (0.85 + 0.15 * depth[..., None])
    lit += (np.array(light.sky[1], dtype=np.float32) - lit) * haze * 0.35
    return lit


def _draw_stacks(rng: Generator, background: Image.Image, scene: _Scene) -> None:
    """Draw distant containers with their long sides to the viewer, as unlabelled background."""
    light, camera, ground = scene.light, scene.camera, scene.ground
    draw = ImageDraw.Draw(background)
    for distance in sorted(rng.uniform(22_000, 60_000, rng.integers(1, 6)), reverse=True):
        left = camera.eye[0] + rng.uniform(-0.7, 0.5) * distance
        length = 12_192 if chance(rng, 0.6) else 6_058
        for level in range(rng.integers(1, 4)):
            colour = lit(pick(rng, LIVERIES), light, rng.uniform(0.5, 0.85))
            haze = mix(colour, light.sky[1], 0.25)
            top, bottom = ground - 2591 * (level + 1), ground - 2591 * level - 40
            draw.polygon(_spots(camera, background, upright((left, top, left + length, bottom), distance)), fill=haze)
            for start in np.arange(left, left + length, 560):
                rib = _spots(camera, background, upright((start, top + 120, start + 230, bottom - 150), distance))
                draw.polygon(rib, fill=shade(haze, 0.86))


def _spots(camera: _Camera, image: Image.Image, points: Points) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in camera.project(points) * image.size]


def _draw_containers(rng: Generator, canvas: Image.Image, scene: _Scene, *, scale: float, with_id: bool) -> None:
    camera, light = scene.camera, scene.light
    for door in scene.doors:
        _draw_shadow(canvas, camera, door, scene.ground)
    # All sides before all ends: in the gap between two containers a side is visible behind the neighbour's end.
    for door in scene.doors:
        _draw_side(rng, canvas, camera, door, light)
    for door in scene.doors:
        below = upright((door.left, door.height, door.left + WIDTH, scene.ground))
        if scene.ground > door.height and camera.faces(below):
            _warp(canvas, _paint_trailer(rng, light, scale / 2), camera.project(below))
        flat = paint_door(rng, door, light, scale, with_id=with_id)
        _warp(canvas, flat, camera.project(door.corners()))


def _draw_shadow(canvas: Image.Image, camera: _Camera, door: Door, ground: float) -> None:
    left, right, front, back = door.left - 250, door.left + WIDTH + 250, -350, 9000
    floor = np.array([(left, ground, front), (right, ground, front), (right, ground, back), (left, ground, back)])
    if not camera.faces(floor):
        return  # the camera is so near and tilted up so steeply that the ground is out of view
    mask = Image.new("L", (canvas.width // 4, canvas.height // 4))
    ImageDraw.Draw(mask).polygon(_spots(camera, mask, floor), fill=165)
    mask = mask.filter(ImageFilter.GaussianBlur(mask.width / 80)).resize(canvas.size)
    canvas.paste((16, 16, 18), (0, 0), mask)


def _draw_side(rng: Generator, canvas: Image.Image, camera: _Camera, door: Door, light: Light) -> None:
    """Draw the long side of the container that is visible next to the door end, if any."""
    gain = rng.uniform(0.55, 0.8)
    if door.left <= camera.eye[0] <= door.left + WIDTH:
        return
    on_left = camera.eye[0] < door.left
    x = door.left if on_left else door.left + WIDTH
    near, far = (DEPTH, 0) if on_left else (0, DEPTH)
    corners = np.array([(x, 0, near), (x, 0, far), (x, door.height, far), (x, door.height, near)], dtype=float)
    colour = lit(door.colour, light, gain)
    plate = _Plate(DEPTH, door.height, 0.12, colour)
    for start in range(100, DEPTH, 280):
        plate.rect((start, 140, start + 70, door.height - 170), shade(colour, 0.7))
        plate.rect((start + 70, 140, start + 140, door.height - 170), shade(colour, 0.85))
        plate.rect((start + 210, 140, start + 280, door.height - 170), shade(colour, 1.12))
    plate.rect((0, door.height - 160, DEPTH, door.height - 120), shade(colour, 0.5))
    _warp(canvas, plate.image, camera.project(corners))


def _paint_trailer(rng: Generator, light: Light, scale: float) -> Image.Image:
    colour = lit(pick(rng, ((36, 52, 112), (50, 50, 52), (150, 120, 40), (110, 34, 34))), light, 0.9)
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
    plate.rect((0, 0, WIDTH, 25), shade(colour, 1.3))
    plate.rect((0, 270, WIDTH, 300), shade(colour, 0.5))
    for left in (120, WIDTH - 420):
        plate.rect((left, 80, left + 300, 210), shade(colour, 0.5))
        plate.rect((left + 10, 90, left + 200, 200), (170, 28, 30))
        plate.rect((left + 205, 90, left + 290, 200), (214, 128, 40))
    plate.rect((WIDTH / 2 - 260, 90, WIDTH / 2 + 260, 205), lit((216, 214, 206), light))
    return plate.image
