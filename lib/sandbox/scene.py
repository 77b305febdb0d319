"""Plan and photograph a container yard: the light, the ground, the doors and the camera.

Guarantees: labels and images come from the same camera, which has all doors in front of it. Lengths are in
millimetres: x to the right, y down, z away from the viewer; the origin is the top left corner of the first door end.
Positions in an image are fractions of its size, measured from its top left corner.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from lib.sandbox import container
from lib.sandbox.container import LOW, WIDTH, Colour, Door, Plate, Points, clouds, tint, upright

DEPTH = 6058  # a side of 20 feet; a longer side looks the same from the door end
CHASSIS = 1150  # height of a trailer's deck above the ground
TRAILERS, LAMP = ((36, 52, 112), (50, 50, 52), (150, 120, 40), (110, 34, 34)), (190, 40, 32)
FOCAL = 1.1  # focal length in image widths, as of a phone's main lens
SCALE = 0.3  # pixels per millimetre of a flat door, for images up to 320 pixels
SUPERSAMPLING = 2  # shapes are drawn without antialiasing; halving the image smooths them
VISIBLE = 0.4  # the least share of a door that an image shows
MARGIN = 0.02  # the least distance of an ID from the image's edge
SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float32)


class Light(NamedTuple):
    """The light of a scene: its share of all scenes, and its colours and gains."""

    share: float
    zenith: Colour
    horizon: Colour
    ground: Colour
    gain: tuple[float, float, float]  # of red, green, blue
    sun: bool  # casts hard shadows
    noise: float  # of the sensor, in grey levels


LIGHTS = (
    Light(0.28, (82, 138, 205), (206, 222, 236), (142, 138, 130), (1.0, 1.0, 0.97), sun=True, noise=3),
    Light(0.22, (120, 165, 215), (225, 228, 228), (160, 150, 134), (1.06, 1.03, 0.96), sun=True, noise=3),
    Light(0.28, (188, 192, 198), (222, 224, 226), (112, 112, 112), (0.88, 0.9, 0.93), sun=False, noise=4),
    Light(0.13, (62, 66, 110), (238, 164, 104), (88, 80, 80), (0.8, 0.68, 0.62), sun=False, noise=5),
    Light(0.09, (14, 15, 24), (40, 36, 40), (52, 48, 44), (0.72, 0.66, 0.56), sun=False, noise=6),
)


class Camera(NamedTuple):
    """A pinhole camera in the yard."""

    eye: Points
    axes: Points  # rows are unit vectors: right, down, forward

    def project(self, points: Points) -> Points:
        """Return the image positions, (n, 2) in fractions, of points in the yard, (n, 3) in millimetres."""
        right, down, forward = self.axes @ (points - self.eye).T
        return 0.5 + FOCAL * np.stack([right / forward, down / forward], axis=1)

    def faces(self, points: Points) -> bool:
        """Return whether all points are in front of the camera; one behind it would be projected upside down."""
        return bool(((points - self.eye) @ self.axes[2]).min() > 100)  # noqa: PLR2004


class Scene(NamedTuple):
    """What an image shows, except what is drawn at random around it."""

    light: Light
    doors: tuple[Door, ...]
    subjects: tuple[Points, ...]  # what is labelled: the corners of each door end, or of the ID
    ground: float  # y of the ground
    camera: Camera


def plan_scene(rng: Generator, module: str) -> Scene:
    """Choose a scene at random: one or two doors for "detection", a close-up of an ID for "localization"."""
    doors = [container.plan_door(rng)]
    if module == "detection" and rng.binomial(1, 0.18):
        doors.append(container.plan_door(rng, left=WIDTH + rng.uniform(90, 700), height=doors[0].height))
    light = LIGHTS[rng.choice(len(LIGHTS), p=[light.share for light in LIGHTS])]
    ground = doors[0].height + CHASSIS * rng.binomial(1, 0.4)
    if module == "detection":
        subjects = tuple(door.corners() for door in doors)
        shares, heights, shift = (0.5, 1.05), (ground - 2000, ground - 1300), (0.0, 0.0, 0.0)
        spread = 0.36 if rng.binomial(1, 0.3) else 0.12
    else:
        subjects = (doors[0].id_corners(),)
        shares, heights, shift = (0.38, 0.64), (100, 1200), (-0.07, 0.14, 0.0)
        spread = 0.23

    def is_framed(corners: Points) -> bool:
        if module == "detection":
            return visible_part(corners)[0] > VISIBLE
        return bool(abs(corners - 0.5).max() < 0.5 - MARGIN)

    low, high = np.min(subjects, axis=(0, 1)), np.max(subjects, axis=(0, 1))
    centre = (low + high) / 2
    while True:  # one or two attempts
        distance, yaw = FOCAL * (high - low).max() / rng.uniform(*shares), rng.uniform(-0.6, 0.6)
        eye = np.array([centre[0] + distance * np.sin(yaw), rng.uniform(*heights), -distance * np.cos(yaw)])
        target = centre + (shift + rng.uniform(-spread, spread, 3) * (1, 1, 0)) * distance / FOCAL
        camera = _look(eye, target, rng.normal(0, 0.035))
        faced = all(camera.faces(door.corners()) for door in doors)
        if faced and all(is_framed(camera.project(subject)) for subject in subjects):
            return Scene(light, tuple(doors), subjects, ground, camera)


def _look(eye: Points, target: Points, roll: float) -> Camera:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rolled, _ = cv2.Rodrigues(np.array([0, 0, -roll]))
    return Camera(eye, rolled @ np.stack([right, np.cross(forward, right), forward]))


def visible_part(corners: Points) -> tuple[float, Points]:
    """Return the share of a convex polygon's area that is in the image, and the corners of this visible part."""
    polygon = corners.astype(np.float32)
    area, part = cv2.intersectConvexConvex(polygon, SQUARE)
    return area / cv2.contourArea(polygon), np.array(part if area else [], dtype=float).reshape(-1, 2)


def photograph(rng: Generator, scene: Scene, size: int, *, with_id: bool = True) -> Image.Image:
    """Draw a scene as a phone would photograph it, with vignette, exposure, slight blur and sensor noise."""
    canvas = _draw_background(rng, scene, size * SUPERSAMPLING)
    _draw_stacks(rng, canvas, scene)
    _draw_containers(rng, canvas, scene, SCALE * max(1, size / 320), with_id=with_id)
    pixels = np.asarray(canvas.convert("RGB").reduce(SUPERSAMPLING), dtype=np.float32)
    pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.15, 0.6) * size / 320), dtype=np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    pixels *= rng.uniform(0.88, 1.1) * (1 - rng.uniform(0.04, 0.16) * (axis[:, None] ** 2 + axis**2))[..., None]
    pixels += scene.light.noise * rng.standard_normal((size, size, 1), dtype=np.float32)
    pixels += scene.light.noise / 3 * rng.standard_normal((size, size, 3), dtype=np.float32)
    return _image(pixels)


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_background(rng: Generator, scene: Scene, size: int) -> Image.Image:
    """Draw the sky and the ground."""
    light, camera = scene.light, scene.camera
    zenith, horizon, ground = np.array([light.zenith, light.horizon, light.ground], dtype=np.float32)
    (x0, y0), (x1, y1) = camera.project(camera.eye + np.array([(-0.6, 0, 1), (0.6, 0, 1)]) * 1e7)
    axis = np.linspace(0, 1, size // 2)
    depth = (axis[:, None] - y0 - (axis - x0) * (y1 - y0) / (x1 - x0)).astype(np.float32)  # positive: the ground
    cover = (clouds(rng, depth.shape, (10, 5)) * rng.uniform(0.1, 0.5)).clip(0, 0.6)[..., None]
    sky = horizon + (zenith - horizon) * (-depth * 1.4).clip(0, 1)[..., None]
    sky += ((235 if light.sun else horizon.mean()) - sky) * cover
    grain = rng.standard_normal(depth.shape, dtype=np.float32) * rng.uniform(4, 16)  # from asphalt to gravel
    grain = grain * (depth * 3).clip(0.15, 1) + clouds(rng, depth.shape, (16, 4)) * 14
    floor = ground * rng.uniform(0.75, 1.1) + grain[..., None]
    floor += (horizon - floor) * 0.35 * (1 - depth * 4).clip(0, 1)[..., None]  # haze
    return _image(np.where(depth[..., None] > 0, floor, sky)).resize((size, size)).convert("RGBA")


def _draw_stacks(rng: Generator, canvas: Image.Image, scene: Scene) -> None:
    """Draw distant containers with their long sides to the viewer, as unlabelled background."""
    for distance in sorted(rng.uniform(22_000, 60_000, rng.integers(1, 6)), reverse=True):
        left, length = scene.camera.eye[0] + rng.uniform(-0.7, 0.5) * distance, DEPTH * int(rng.integers(1, 3))
        liveries = rng.choice(container.LIVERIES, rng.integers(1, 4)) * rng.uniform(0.5, 0.85)
        stack = container.paint_side(length, LOW, SCALE / 10, [tint(livery) for livery in liveries])
        stack.putalpha(190)  # haze
        box = (left, scene.ground - LOW * len(liveries), left + length, scene.ground)
        _paste(canvas, scene, stack, upright(box, distance))


def _draw_containers(rng: Generator, canvas: Image.Image, scene: Scene, scale: float, *, with_id: bool) -> None:
    eye, ground = scene.camera.eye[0], scene.ground
    # All sides before all ends: in the gap between two containers a side is visible behind the neighbour's end.
    for door in scene.doors:
        left, right, bottom = door.left, door.left + WIDTH, door.height
        shadow = Image.new("RGBA", (42, 106), (16, 16, 18))
        shadow.putalpha(ImageOps.expand(Image.new("L", (34, 98), 165), 4).filter(ImageFilter.GaussianBlur(2)))
        # what lies flat, or goes into the distance, is an upright box with two axes exchanged
        _paste(canvas, scene, shadow, upright((left - 500, 9000, right + 500, -600), ground)[:, [0, 2, 1]])
        side = container.paint_side(DEPTH, bottom, SCALE / 2, [tint(door.colour, rng.uniform(0.55, 0.8))])
        if eye < left:
            _paste(canvas, scene, side, upright((DEPTH, 0, 0, bottom), left)[:, [2, 1, 0]])
        elif eye > right:
            _paste(canvas, scene, side, upright((0, 0, DEPTH, bottom), right)[:, [2, 1, 0]])
    for door in scene.doors:
        if ground > door.height:
            _draw_trailer(rng, canvas, scene, door)
        flat = container.paint_door(rng, door, scale, sun=scene.light.sun, with_id=with_id)
        _paste(canvas, scene, flat, door.corners())


def _draw_trailer(rng: Generator, canvas: Image.Image, scene: Scene, door: Door) -> None:
    left, right, top = door.left, door.left + WIDTH, door.height
    for x in (left + 90, right - 700):
        wheels = Image.new("RGB", (64, 64), container.BLACK)
        _paste(canvas, scene, wheels, upright((x, top + 200, x + 610, scene.ground)))
    deck = Plate(WIDTH, 300, SCALE / 2, container.BLACK)
    deck.bar((0, 0, WIDTH, 300), tint(rng.choice(TRAILERS)), 25)
    for x, colour in ((120, LAMP), (1070, container.WHITE), (WIDTH - 420, LAMP)):
        deck.bar((x, 80, x + 300, 210), colour)
    _paste(canvas, scene, deck.image, upright((left, top, right, top + 300)))


def _paste(canvas: Image.Image, scene: Scene, flat: Image.Image, corners: Points) -> None:
    """Draw a flat image in the scene's light, with its corners at `corners` in the yard, if the camera faces them."""
    if not scene.camera.faces(corners):
        return
    targets = (scene.camera.project(corners) * canvas.width).astype(np.float32)
    while flat.width > 64 and cv2.contourArea(targets) * 5 < flat.width * flat.height:  # noqa: PLR2004
        flat = flat.reduce(2)  # the warp samples single pixels: an oversized drawing would alias
    low, high = np.floor(targets.min(axis=0)).clip(0), np.ceil(targets.max(axis=0)).clip(None, canvas.width)
    left, top, width, height = (int(value) for value in (*low, *(high - low)))
    if min(width, height) < 1:
        return
    # OpenCV counts from the middle of the first pixel
    sources, targets = (SQUARE * flat.size - 0.5).astype(np.float32), targets - low - np.float32(0.5)
    matrix = cv2.getPerspectiveTransform(sources, targets)
    warped = cv2.warpPerspective(np.asarray(flat.convert("RGBA")), matrix, (width, height))
    canvas.alpha_composite(_image(warped * np.array([*scene.light.gain, 1], dtype=np.float32)), (left, top))
