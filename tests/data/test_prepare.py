"""Images are decoded once for a training, and the library's loader gives the same batches as without."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import ROOT
from loaders import SIDE, compare, compare_on_ranks
from PIL import Image

from lib.data import arrays
from lib.data.arrays import VARIABLE
from lib.data.dataset import Dataset, check_dataset
from lib.data.prepare import prepare_images, shrunk
from lib.data.reader import Size
from lib.errors import DatasetError
from lib.experiment.load import load_experiment
from lib.sandbox.dataset import draw_dataset
from lib.session import Session

COUNTS = {"train": 6, "val": 3, "test": 2}
TASKS = {"detection": "detect", "localization": "pose"}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set a folder for each test in which its runs keep arrays."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))


def make(folder: Path, module: str, **keys: object) -> tuple[Session, Dataset]:
    """Return a session and a checked dataset with images larger than, smaller than, and as large as `SIDE`."""
    draw_dataset(folder / "drawn", module, counts=COUNTS, size=150)
    sizes = [(150, 150), (150, 101), (101, 150), (40, 30), (SIDE, 50), (SIDE, SIDE)]
    for number, file in enumerate(sorted((folder / "drawn/images").rglob("*.jpg"))):
        with Image.open(file) as image:
            image.resize(sizes[number % len(sizes)]).save(file)
    kind = "det" if module == "detection" else "loc"
    values = {"training.image_size": SIDE} | keys
    experiment = load_experiment(ROOT / f"experiments/000_{kind}_sandbox.yaml", values)
    scratch = folder / "scratch"
    md5 = ("0" if module == "detection" else "1") * 32
    return Session(folder, folder, scratch, experiment), check_dataset(folder / "drawn", experiment, scratch, md5=md5)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what builds the library's dataset as its trainer does, in a folder of its own."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "ultralytics"))
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    return SimpleNamespace(cfg=get_cfg, dataset=build_yolo_dataset, read=lambda file: check_det_dataset(str(file)))


def prepare(folder: Path, module: str) -> tuple[str, str]:
    """Return the `data.yaml` of a checked dataset and that of its prepared images."""
    session, dataset = make(folder, module)
    prepared = prepare_images(session, dataset)
    assert prepared.prepared.images == COUNTS["train"] + COUNTS["val"]
    assert prepared.training_file != dataset.data_file == dataset.training_file
    return str(dataset.data_file), str(prepared.training_file)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("mosaic", [1.0, 0.0], ids=["mosaic", "plain"])
@pytest.mark.parametrize("module", TASKS)
def test_batches_are_the_same(tmp_path: Path, module: str, mosaic: float) -> None:
    """Every tensor of two epochs has the same bytes, with augmentation in training and in order in validation."""
    files = prepare(tmp_path, module)
    for split in ("train", "val"):
        assert len(compare(files, TASKS[module], split, mosaic)) == 2 * COUNTS[split]


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_batches_are_the_same_on_two_ranks(tmp_path: Path) -> None:
    """Each of two processes gets the same batches with prepared images; together they get every image."""
    files = {module: prepare(tmp_path / module, module) for module in TASKS}
    cases = [
        (files[module], task, split, mosaic)
        for module, task in TASKS.items()
        for split, mosaic in (("train", 1.0), ("train", 0.0), ("val", 0.0))
    ]
    seen = compare_on_ranks(tmp_path, cases)
    for case, *names in zip(cases, *seen, strict=True):
        _, _, split, _ = case
        assert all(0 < len(set(each)) < COUNTS[split] for each in names)
        assert len(set().union(*names)) == COUNTS[split]


def test_arrays_are_read_and_no_image_is(library: Any, tmp_path: Path) -> None:
    """The library takes them, although an image's time is in the future; no array is beside a test image."""
    session, dataset = make(tmp_path, "detection")
    for image in dataset.files["train"]:
        os.utime(image, (2e9, 2e9))
    prepared = prepare_images(session, dataset)
    about = library.read(prepared.training_file)
    settings = library.cfg(overrides={"task": "detect", "imgsz": SIDE})
    built = library.dataset(settings, about["train"], 4, about, mode="train")
    for number, (link, array) in enumerate(zip(built.im_files, built.npy_files, strict=True)):
        assert max(built.load_image(number)[1]) <= SIDE, (link, array)
    assert not [link for link in dataset.links if link.with_suffix(".npy").exists()]
    assert "test" not in about or not about["test"]
    assert prepared.files == dataset.files
    assert prepared.links == dataset.links


def test_every_damaged_image_is_named(tmp_path: Path) -> None:
    """They are found before the training begins, all at once."""
    session, dataset = make(tmp_path, "detection")
    for name in ("train/train_0001.jpg", "val/val_0002.jpg", "test/test_0000.jpg"):
        (dataset.folder / "images" / name).write_bytes(b"damaged")
    with pytest.raises(DatasetError) as caught:
        prepare_images(session, dataset)
    assert "2 images cannot be read" in caught.value.what
    assert "images/train/train_0001.jpg: OpenCV cannot decode it" in caught.value.what
    assert "images/val/val_0002.jpg: OpenCV cannot decode it" in caught.value.what


def test_nothing_is_prepared_on_request(tmp_path: Path) -> None:
    """`hardware.prepare_images: never` leaves training the images."""
    session, dataset = make(tmp_path, "detection", **{"hardware.prepare_images": "never"})
    left = prepare_images(session, dataset)
    assert left.training_file == dataset.data_file
    assert left.prepared.reason == "hardware.prepare_images is never"


@pytest.mark.parametrize("short", ["memory", "disk"])
def test_nothing_is_prepared_without_room(
    tmp_path: Path, short: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the free memory and disk must hold the arrays; else the reason is printed."""
    session, dataset = make(tmp_path, "detection")
    dataset = replace(dataset, md5="")  # nothing is kept
    need = prepare_images(session, dataset).prepared.bytes
    room = {"memory": 2 * need, "disk": 2 * need} | {short: 2 * need - 2}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=room["memory"]))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room["disk"]))
    left = prepare_images(session, dataset)
    assert left == replace(dataset, prepared=left.prepared)
    assert left.prepared.images == 0
    assert f"of free {short}" in left.prepared.reason
    assert left.prepared.reason in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "expected"),
    [((150, 101), (64, 44)), ((101, 150), (44, 64)), ((64, 64), (64, 64)), ((30, 20), (30, 20)), ((4000, 1), (64, 1))],
)
def test_an_image_is_shrunk_as_the_library_rounds(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The long side becomes `image_size`, the short one is rounded up; nothing is enlarged."""
    assert shrunk(Size(*size), SIDE) == expected


def test_a_disk_that_is_full_leaves_training_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the arrays stays, and the run goes on."""
    import numpy as np

    def save(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    session, dataset = make(tmp_path, "detection")
    monkeypatch.setattr(np, "save", save)
    left = prepare_images(session, dataset)
    assert left.training_file == dataset.data_file
    assert "No space left on device" in left.prepared.reason
    assert not list(session.scratch.glob("prepared-*"))


def run_again(session: Session, dataset: Dataset, scratch: Path, **keys: object) -> tuple[Dataset, dict[Path, bytes]]:
    """Check and prepare the same dataset for another run; return the dataset and the arrays."""
    values = session.experiment.model_dump(mode="json")
    values["training"] |= keys
    experiment = type(session.experiment).model_validate(values)
    checked = check_dataset(dataset.folder, experiment, scratch, md5=dataset.md5)
    prepared = prepare_images(replace(session, scratch=scratch, experiment=experiment), checked)
    top = scratch / f"prepared-{experiment.module}"
    return prepared, {path.relative_to(top): path.read_bytes() for path in top.rglob("*.npy")}


def test_a_later_run_on_the_machine_decodes_no_image(
    tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next trial of a sweep reuses the arrays, although the folder of the first is deleted."""
    session, dataset = make(tmp_path, "detection")
    first, arrays = run_again(session, dataset, tmp_path / "sweep/a/scratch")
    shutil.rmtree(tmp_path / "sweep/a")
    for image in dataset.files["train"]:
        os.utime(image)  # a new checkout: newer than what the first run wrote
    monkeypatch.setattr("lib.data.prepare.read_image", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))  # links need no room
    second, same = run_again(session, dataset, tmp_path / "sweep/b/scratch")
    assert same == arrays
    assert (first.prepared.reused, second.prepared.reused) == (False, True)
    assert (second.prepared.images, second.prepared.bytes) == (9, first.prepared.bytes)
    assert "Reused 9 prepared images of an earlier run: " in capsys.readouterr().out
    about = library.read(second.training_file)
    built = library.dataset(library.cfg(overrides={"imgsz": SIDE}), about["train"], 4, about, mode="train")
    assert max(max(built.load_image(number)[1]) for number in range(COUNTS["train"])) <= SIDE


def test_other_pixels_are_not_reused(tmp_path: Path) -> None:
    """Another dataset and another image size are decoded; so is a dataset without a hash."""
    session, dataset = make(tmp_path, "detection")
    prepare_images(session, dataset)
    assert not run_again(session, replace(dataset, md5="2" * 32), tmp_path / "b")[0].prepared.reused
    assert not run_again(session, dataset, tmp_path / "c", image_size=32)[0].prepared.reused
    for scratch in ("d", "e"):
        assert not run_again(session, replace(dataset, md5=""), tmp_path / scratch)[0].prepared.reused


def test_runs_that_begin_together_decode_each_image_once(tmp_path: Path) -> None:
    """The trials of a sweep begin together on a machine: one prepares, the others wait for it."""
    session, dataset = make(tmp_path, "detection")
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(lambda name: run_again(session, dataset, tmp_path / name), "abc")
        assert sorted(prepared.prepared.reused for prepared, _ in runs) == [False, True, True]


def test_a_run_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is suspended while it prepares does not block the next one."""
    session, dataset = make(tmp_path, "detection")
    monkeypatch.setattr(arrays, "WAIT", 0.0)
    with arrays.open_cache(session.scratch).locked():
        assert prepare_images(session, dataset).prepared.images == 9


def test_preparing_deletes_arrays_that_nobody_uses(tmp_path: Path) -> None:
    """The cache does not grow with every dataset."""
    session, dataset = make(tmp_path, "detection")
    prepare_images(session, dataset)
    (entry,) = (tmp_path / "cache").glob("*/")
    os.utime(entry, (0, 0))
    prepare_images(session, replace(dataset, md5="2" * 32))
    assert not entry.exists()
