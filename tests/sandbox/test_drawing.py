from __future__ import annotations

import hashlib
import shutil
import string
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from ruamel.yaml import YAML

from lib.errors import DatasetError
from lib.sandbox import dataset as drawing
from lib.sandbox.container import WIDTH, check_digit
from lib.sandbox.dataset import draw_dataset, draw_image
from lib.sandbox.scene import Scene, photograph, plan_scene, visible_part
from lib.sandbox.sheet import draw_contact_sheet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MODULES = ("detection", "localization")
FEW = {"train": 5, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Draw one small dataset a module; tests only read them."""
    folder = tmp_path_factory.mktemp("datasets")
    for module in MODULES:
        draw_dataset(folder / module, module, seed=3, counts=FEW)
    return {module: folder / module for module in MODULES}


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under the folder, by its relative path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows(folder: Path) -> list[list[float]]:
    """Return the rows of all label files."""
    files = sorted(folder.glob("labels/*/*.txt"))
    return [[float(field) for field in line.split()] for file in files for line in file.read_text().splitlines()]


def corners(row: list[float]) -> NDArray[Any]:
    """Return a row's keypoints, (4, 2) in fractions."""
    return np.array(row[5:]).reshape(4, 3)[:, :2]


# -------------------------------------------------------------------------------------------------------- the code


@pytest.mark.parametrize(
    "number",
    ["CSQU3054383", "SEGU5306693", "DRYU9269143", "DFSU7625647", "FANU1869720", "HASU4287338", "GCXU5907050"],
)
def test_check_digit_is_the_one_painted_on_real_containers(number: str) -> None:
    """The first is the standard's own example; the others were read off photographs."""
    assert check_digit(number[:10]) == int(number[10])


def test_a_remainder_of_ten_is_written_as_zero() -> None:
    """ISO 6346 writes 0 where the sum modulo 11 is 10."""
    letters = dict(zip(string.ascii_uppercase, (n for n in range(10, 39) if n % 11), strict=True))
    remainders = {}
    for serial in range(200):
        code = f"MSKU{serial:06d}"
        remainders[code] = sum(letters.get(c, ord(c) - ord("0")) * 2**i for i, c in enumerate(code)) % 11
    tens = [code for code, remainder in remainders.items() if remainder == 10]
    assert tens
    assert {check_digit(code) for code in tens} == {0}


@pytest.mark.parametrize(
    "code", ["", "MSKU30543", "MSKU3054383", "msku305438", "MSK1305438", "MSKUA05438", "MSKU ٣05438"]
)
def test_a_malformed_code_is_rejected(code: str) -> None:
    """A code with a missing, surplus, lower-case or foreign character has no check digit."""
    with pytest.raises(ValueError, match="four letters"):
        check_digit(code)


# -------------------------------------------------------------------------------------------------------- the dataset


@pytest.mark.parametrize("module", MODULES)
def test_the_same_seed_draws_the_same_bytes(datasets: dict[str, Path], tmp_path: Path, module: str) -> None:
    """Every file is reproduced, and no image depends on how many others are drawn."""
    draw_dataset(tmp_path / "again", module, seed=3, counts={"train": 2, "val": 1, "test": 1})
    first, again = digests(datasets[module]), digests(tmp_path / "again")
    assert len(again) == 9
    assert again.items() <= first.items()


def test_another_seed_draws_other_images(datasets: dict[str, Path], tmp_path: Path) -> None:
    """The datasets of two seeds share no image."""
    draw_dataset(tmp_path / "other", "detection", seed=4, counts={"train": 2, "val": 1, "test": 1})
    first, other = digests(datasets["detection"]), digests(tmp_path / "other")
    assert not {first[name] for name in first if name.endswith("jpg")} & set(other.values())


@pytest.mark.parametrize("module", MODULES)
def test_no_image_is_in_two_splits(datasets: dict[str, Path], module: str) -> None:
    """All images of a dataset differ."""
    images = [digest for name, digest in digests(datasets[module]).items() if name.endswith("jpg")]
    assert len(set(images)) == len(images) == sum(FEW.values())


@pytest.mark.parametrize("module", MODULES)
def test_each_image_has_a_label_file_and_the_promised_size(datasets: dict[str, Path], module: str) -> None:
    """`images/SPLIT/NAME.jpg` and `labels/SPLIT/NAME.txt` come in pairs."""
    images = sorted(datasets[module].glob("images/*/*.jpg"))
    assert [p.stem for p in images] == [p.stem for p in sorted(datasets[module].glob("labels/*/*.txt"))]
    assert {Image.open(image).size for image in images} == {(320, 320)}
    assert {split: len(list(datasets[module].glob(f"images/{split}/*"))) for split in FEW} == FEW


def test_data_yaml_describes_each_module(datasets: dict[str, Path]) -> None:
    """The description holds what ultralytics needs, keypoints for localization only."""
    read = {module: YAML(typ="safe", pure=True).load(datasets[module] / "data.yaml") for module in MODULES}
    common = {"path": ".", "train": "images/train", "val": "images/val", "test": "images/test"}
    assert read["detection"] == {**common, "names": {0: "container_door"}}
    points = {"kpt_shape": [4, 3], "flip_idx": [0, 1, 2, 3]}
    assert read["localization"] == {**common, "names": {0: "container_id"}, **points}


@pytest.mark.parametrize(("module", "fields"), [("detection", 5), ("localization", 17)])
def test_labels_are_fractions_of_the_image(datasets: dict[str, Path], module: str, fields: int) -> None:
    """Each row has its number of fields, and its box is inside the image."""
    labels = rows(datasets[module])
    assert len(labels) >= sum(FEW.values())
    for row in labels:
        assert len(row) == fields
        assert row[0] == 0
        x, y, width, height = row[1:5]
        assert min(width, height) > 0.01
        assert min(x - width / 2, y - height / 2) > -1e-5
        assert max(x + width / 2, y + height / 2) < 1 + 1e-5


def test_corners_run_clockwise_from_the_texts_top_left(datasets: dict[str, Path]) -> None:
    """The first edge follows the text to the right, and each next edge turns right, y pointing down."""
    for row in rows(datasets["localization"]):
        quad = corners(row)
        edges = np.roll(quad, -1, axis=0) - quad
        after = np.roll(edges, -1, axis=0)
        assert edges[0, 0] > 2 * abs(edges[0, 1])
        assert (edges[:, 0] * after[:, 1] - edges[:, 1] * after[:, 0] > 0).all()
        assert row[7::3] == [2, 2, 2, 2]


def test_the_box_contains_the_corners_and_is_large_enough_to_learn(datasets: dict[str, Path]) -> None:
    """An ID is wholly in the image and fills at least a quarter of its width."""
    for row in rows(datasets["localization"]):
        quad, centre, half = corners(row), np.array(row[1:3]), np.array(row[3:5]) / 2
        assert (abs(quad - centre) <= half + 1e-6).all()
        assert quad.min() >= 0
        assert quad.max() <= 1
        assert np.ptp(quad[:, 0]) > 0.25


def difference(one: Image.Image, other: Image.Image) -> NDArray[Any]:
    """Return the largest difference of each pixel's channels."""
    change: NDArray[Any] = np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max(axis=2)
    return change


@pytest.mark.parametrize("index", range(6))
def test_the_id_is_drawn_at_the_labelled_corners(index: int) -> None:
    """Drawn with and without the ID, an image differs inside the labelled corners and nowhere else."""
    (painted, labels), (bare, _) = (
        draw_image(drawing._stream(5, "localization", "train", index), "localization", size=320, with_id=on)
        for on in (True, False)
    )
    change = difference(painted, bare)
    inside = Image.new("L", painted.size)
    spots = [(float(x), float(y)) for x, y in corners(labels[0]) * 320]
    ImageDraw.Draw(inside).polygon(spots, fill=255)
    near = np.asarray(inside.filter(ImageFilter.MaxFilter(9))) > 0
    assert change[~near].max() == 0
    assert change[np.asarray(inside) > 0].mean() > 15
    ys, xs = np.nonzero(change > 25)
    quad = np.array(spots)
    assert abs(xs.min() - quad[:, 0].min()) < 4
    assert abs(xs.max() - quad[:, 0].max()) < 4
    assert abs(ys.min() - quad[:, 1].min()) < 6
    assert abs(ys.max() - quad[:, 1].max()) < 6


def planned(module: str, count: int) -> list[Scene]:
    """Return the first scenes of a module."""
    return [plan_scene(drawing._stream(0, module, "train", index), module) for index in range(count)]


@pytest.mark.parametrize("index", range(6))
def test_the_door_is_drawn_inside_the_labelled_box(index: int) -> None:
    """With its door end repainted, an image differs inside the labelled box, to its edges, and nowhere else.

    The container's sides have its colour too: only views that hide them are compared.
    """
    frontal = [
        scene for scene in planned("detection", 120) if 0 < scene.camera.eye[0] < WIDTH and len(scene.doors) == 1
    ]
    scene = frontal[index]
    images = [
        photograph(np.random.default_rng(0), scene._replace(doors=(replace(scene.doors[0], colour=colour),)), 320)
        for colour in ((40, 60, 90), (90, 120, 150))
    ]
    ys, xs = np.nonzero(difference(*images) > 6)
    x, y, width, height = drawing._row(scene.camera.project(scene.subjects[0]), "detection")[1:]
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 320
    assert found == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2], abs=3 / 320)


def test_the_visible_part_of_a_door_is_clipped_at_the_image_s_edges() -> None:
    """It is a rectangle's overlap with the image, also for a rectangle wholly inside, around it or outside."""
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
    for quad, share, box in (
        (square / 2 + 0.25, 1, (0.25, 0.25, 0.75, 0.75)),
        (square * 2 - 0.5, 0.25, (0, 0, 1, 1)),
        (square - (0.4, 0.2), 0.48, (0, 0, 0.6, 0.8)),
        (np.array([(0.5, -0.5), (1.5, 0.5), (0.5, 1.5), (-0.5, 0.5)]), 0.5, (0, 0, 1, 1)),
    ):
        seen, part = visible_part(quad)
        assert seen == pytest.approx(share, abs=1e-6)
        assert (*part.min(axis=0), *part.max(axis=0)) == pytest.approx(box, abs=1e-6)
    diamond = np.array([(1.3, 0.8), (1.8, 1.3), (1.3, 1.8), (0.8, 1.3)])  # passes the corner of the image
    for outside in (square + 2, square + np.array((1, 0)), diamond):
        seen, part = visible_part(outside)
        assert (seen, part.shape) == (0, (0, 2))


@pytest.mark.parametrize("module", MODULES)
def test_no_door_reaches_behind_the_camera(module: str) -> None:
    """What lies behind a camera is projected upside down: no planned scene has such a door."""
    for scene in planned(module, 150):
        assert all(scene.camera.faces(door.corners()) for door in scene.doors)


def test_a_planned_scene_shows_what_it_labels() -> None:
    """An ID is wholly in the image and at least a quarter as wide; of a door 40 % is visible."""
    for scene in planned("localization", 150):
        seen = scene.camera.project(scene.subjects[0])
        assert 0 < seen.min() < seen.max() < 1
        assert np.ptp(seen[:, 0]) > 0.25
    for scene in planned("detection", 150):
        assert len(scene.subjects) == len(scene.doors)
        assert all(visible_part(scene.camera.project(subject))[0] > 0.4 for subject in scene.subjects)


def test_every_twentieth_image_shows_no_door(tmp_path: Path) -> None:
    """An image without a container has an empty label file, not a missing one."""
    draw_dataset(tmp_path / "drawn", "detection", counts={"train": 20, "val": 0, "test": 0}, size=96)
    sizes = [file.stat().st_size for file in sorted(tmp_path.glob("drawn/labels/train/*.txt"))]
    assert [index for index, size in enumerate(sizes) if not size] == [19]


def test_a_folder_with_files_is_left_unchanged(tmp_path: Path) -> None:
    """Drawing into a folder with files is rejected; an empty folder is filled."""
    (tmp_path / "mine").mkdir()
    draw_dataset(tmp_path / "mine", "detection", counts=dict.fromkeys(FEW, 0))
    before = digests(tmp_path)
    with pytest.raises(FileExistsError):
        draw_dataset(tmp_path / "mine", "detection", counts=dict.fromkeys(FEW, 0))
    assert digests(tmp_path) == before


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset appears complete or not at all: here the last file cannot be written."""

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(drawing, "_write_description", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_dataset(tmp_path / "drawn", "detection", counts=dict.fromkeys(FEW, 1), size=64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"module": "segmentation"}, {"counts": {"trian": 3}}, {"counts": {"val": -1}}])
def test_an_unknown_module_or_split_is_rejected(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """A misspelled request draws nothing."""
    with pytest.raises(ValueError, match=r"module|Counts"):
        draw_dataset(tmp_path / "drawn", **{"module": "detection", **arguments})
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------- the sheet


@pytest.mark.parametrize("module", MODULES)
def test_the_sheet_shows_the_labelled_boxes(datasets: dict[str, Path], tmp_path: Path, module: str) -> None:
    """Every labelled box leaves its outline on the sheet, in the cell of its image."""
    draw_contact_sheet(datasets[module], tmp_path / "sheet.png", per_split=3)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copytree(datasets[module] / "images", bare / "images")
    (bare / "data.yaml").write_bytes((datasets[module] / "data.yaml").read_bytes())
    draw_contact_sheet(bare, tmp_path / "bare.png", per_split=3)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "bare.png") as empty:
        assert sheet.format == "PNG"
        assert sheet.size == empty.size == (800, 950)
        change = np.asarray(sheet, dtype=int) - np.asarray(empty, dtype=int)
    for line, split in enumerate(FEW):
        for column, file in enumerate(sorted((datasets[module] / "labels" / split).iterdir())[:3]):
            left, top = 8 + column * 264, 72 + 26 + line * 290
            for row in file.read_text().splitlines():
                x, y, _, height = (float(field) * 256 for field in row.split()[1:5])
                bottom = top + int(y + height / 2) - 2
                assert np.abs(change[bottom - 2 : bottom + 3, left + int(x)]).max() > 20


def test_the_sheet_opens_only_the_images_that_it_shows(datasets: dict[str, Path], tmp_path: Path) -> None:
    """Images beyond those shown are not opened: here they are invalid."""
    dataset = tmp_path / "large"
    for split in FEW:
        folder = dataset / "images" / split
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes((datasets["detection"] / f"images/{split}/{split}_0000.jpg").read_bytes())
        for number in range(400):
            (folder / f"b{number}.jpg").write_bytes(b"no image")
    (dataset / "data.yaml").write_bytes((datasets["detection"] / "data.yaml").read_bytes())
    draw_contact_sheet(dataset, tmp_path / "sheet.png", per_split=1)
    with pytest.raises(DatasetError, match=r"b0\.jpg"):
        draw_contact_sheet(dataset, tmp_path / "sheet.png", per_split=2)


@pytest.mark.parametrize("suffix", ["jpeg", "PNG", "bmp", "webp"])
def test_the_sheet_takes_any_size_and_format(tmp_path: Path, suffix: str) -> None:
    """Wide images, other formats, a list of names and an image without a label file are accepted."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (900, 200), (90, 20, 20)).save(tmp_path / "images" / f"one.{suffix}")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [door]\n")
    draw_contact_sheet(tmp_path, tmp_path / "sheet.png", per_split=40)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width <= 1600


@pytest.mark.parametrize("keys", ["names: [2024-01-02]", "names: {'0': 7}", "nc: 1", "names: [a]\nkpt_shape: (4, 3)"])
def test_the_sheet_reads_data_yaml_as_the_check_does(tmp_path: Path, keys: str) -> None:
    """Class names of any type are text, and an invalid `kpt_shape` counts as none: the check reports it."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(tmp_path / "images" / "one.png")
    (tmp_path / "images" / "one.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\n{keys}\n")
    draw_contact_sheet(tmp_path, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.convert("RGB").getpixel((100, 110)) == (156, 156, 156)  # the high byte of 16 bits


def test_a_folder_without_data_yaml_is_rejected(tmp_path: Path) -> None:
    """The error names what is missing, the state and the remedy."""
    with pytest.raises(DatasetError, match=r"data\.yaml not found") as caught:
        draw_contact_sheet(tmp_path, tmp_path / "sheet.png")
    assert caught.value.state
    assert caught.value.remedy
    assert not (tmp_path / "sheet.png").exists()


def test_a_malformed_label_stops_the_sheet(datasets: dict[str, Path], tmp_path: Path) -> None:
    """The error names the label file."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "one.png")
    (tmp_path / "labels" / "one.txt").write_text("0 0.5 0.5 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: {0: door}\n")
    with pytest.raises(DatasetError, match=r"one\.txt"):
        draw_contact_sheet(tmp_path, tmp_path / "sheet.png")
