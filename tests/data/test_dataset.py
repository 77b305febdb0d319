"""An unusable dataset is rejected before training, and a usable one is read exactly as ultralytics reads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Stores, run_git
from ruamel.yaml import YAML

from lib.data.dataset import check_dataset, leave_out_unreadable, pull_dataset
from lib.data.labels import label_path, read_objects
from lib.data.reader import read_image
from lib.errors import DatasetError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.remotes.clone import configure_dvc
from lib.remotes.credentials import Credentials
from lib.sandbox.dataset import draw_dataset
from lib.session import Session

LOCALIZATION = load_experiment(ROOT / "experiments/000_loc_sandbox.yaml")
DETECTION = load_experiment(ROOT / "experiments/000_det_sandbox.yaml")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Return the folder of a small drawn dataset of localization."""
    draw_dataset(tmp_path / "drawn", "localization", counts={"train": 2, "val": 1, "test": 1}, size=64)
    return tmp_path / "drawn"


EMPTY = object()
"""A key of data.yaml without a value."""


def change(folder: Path, **values: object) -> None:
    """Change keys of data.yaml; None removes one."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((folder / "data.yaml").read_text()) | values
    with (folder / "data.yaml").open("w") as file:
        kept = {key: value for key, value in content.items() if value is not None}
        yaml.dump({key: None if value is EMPTY else value for key, value in kept.items()}, file)


def check(folder: Path, experiment: Experiment = LOCALIZATION) -> str:
    """Return the text of the error that checking raises."""
    with pytest.raises(DatasetError) as caught:
        check_dataset(folder, experiment, folder.parent / "scratch", md5="0" * 32)
    return str(caught.value)


def test_training_reads_a_copy_with_absolute_paths(drawn: Path, tmp_path: Path) -> None:
    """Training reads a copy with absolute paths; the tracked data.yaml stays unchanged."""
    before = (drawn / "data.yaml").read_bytes()
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    assert (drawn / "data.yaml").read_bytes() == before
    read = YAML(typ="safe", pure=True).load(dataset.data_file.read_text())
    assert read["path"] == str(drawn)
    assert read["kpt_shape"] == [4, 3]
    assert dataset.counts == {"train": 2, "val": 1, "test": 1}
    assert dataset.names == {0: "container_id"}


def test_a_missing_data_yaml_is_reported_as_the_requirements_word_it(tmp_path: Path) -> None:
    """The error contains `data.yaml not found`."""
    assert "data.yaml not found" in check(tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"names": None}, "names is missing"),
        ({"test": None}, "test is None"),
        ({"test": 5}, "test is 5"),
        ({"test": []}, "test is []"),
        ({"val": "images/nowhere"}, "val is 'images/nowhere': there is no such folder or list in drawn"),
        ({"val": "../../images/nowhere"}, "val is '../../images/nowhere': there is no such folder"),
        ({"val": "C:\\\\data\\\\valid"}, "val is 'C:\\\\\\\\data\\\\\\\\valid': there is no such folder"),
        ({"path": ["a"], "val": "val"}, "val is 'val' (path is ['a'])"),
        ({"path": "/home/x", "val": "val"}, "val is 'val' (path is '/home/x'): there is no such folder"),
        ({"val": "labels/val"}, "val is 'labels/val': there is no image in it"),
        ({"val": ["images/val", "labels"]}, "val is 'labels': there is no image in it"),
        ({"nc": 2}, "nc is 2, and names has 1 classes"),
        ({"nc": "many"}, "nc is 'many'"),
        ({"nc": 1.5}, "nc is 1.5"),
        ({"names": "id"}, "names is 'id'"),
        ({"names": {1: "id"}}, "names has the numbers 1: they must be 0 to 0"),
        ({"names": {"id": 0}}, "names has the numbers id"),
        ({"kpt_shape": [5, 3]}, "kpt_shape is [5, 3]: localization needs [4, 3]"),
        ({"kpt_shape": [4, 2]}, "kpt_shape is [4, 2]: localization needs [4, 3]"),
        ({"kpt_shape": None}, "kpt_shape is None"),
        ({"kpt_shape": [4.0, 3]}, "kpt_shape is [4.0, 3]"),
        ({"flip_idx": [0, 1, 2]}, "flip_idx is [0, 1, 2]"),
        ({"flip_idx": ""}, "flip_idx is ''"),
        ({"flip_idx": EMPTY}, "flip_idx is None: it must name each of the 4 keypoints once, or be left out"),
        ({"flip_idx": ["1", "0", "3", "2"]}, "flip_idx is ['1', '0', '3', '2']"),
        ({"kpt_oks_sigmas": [0.1, 0.1]}, "kpt_oks_sigmas is [0.1, 0.1]: it must be 4 positive numbers"),
        ({"channels": EMPTY}, "channels is None"),
        ({"channels": "rgb"}, "channels is 'rgb'"),
        ({"channels": True}, "channels is True"),
    ],
)
def test_an_invalid_key_of_data_yaml_is_reported(drawn: Path, values: dict[str, object], expected: str) -> None:
    """The error names the key, its value and what is required."""
    change(drawn, **values)
    assert expected in check(drawn)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kpt_shape": EMPTY}, "kpt_shape is None: detection trains no keypoints; leave it out"),
        ({"kpt_shape": "(4, 3)"}, "kpt_shape is '(4, 3)': detection trains no keypoints"),
        ({"kpt_shape": [4]}, "kpt_shape is [4]"),
        ({"kpt_shape": [0, 3]}, "kpt_shape is [0, 3]"),
        ({"kpt_shape": [4, 4]}, "kpt_shape is [4, 4]"),
        ({"kpt_shape": 4}, "kpt_shape is 4"),
        ({"flip_idx": ""}, "flip_idx is ''"),
        ({"flip_idx": EMPTY}, "flip_idx is None"),
    ],
)
def test_invalid_keys_of_poses_are_reported_for_boxes(drawn: Path, values: dict[str, object], expected: str) -> None:
    """Training of boxes would end at keys that it seems not to need."""
    change(drawn, **{"kpt_shape": [4, 3], **values})
    assert expected in check(drawn, DETECTION)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return ultralytics' functions that read a dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        from ultralytics.data import dataset, utils

        patch.setattr(utils, "check_font", lambda _: None)  # it would be downloaded
        yield utils.check_det_dataset, dataset.YOLODataset


def lists(folder: Path) -> None:
    """List the images of train and val in text files, with each kind of path that occurs."""
    (folder / "lists").mkdir()
    (folder / "lists/train.txt").write_text(
        "./../images/train/train_0000.jpg\n\n/home/x/a/images/train/train_0001.jpg\n"
    )
    (folder / "val.txt").write_text("\ufeffimages/val/val_0000.jpg\n")


def by_split(folder: Path) -> None:
    """Put the images and labels of each split into a folder of the split, as Roboflow does."""
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (folder / split).mkdir(exist_ok=True)
            (folder / kind / split).rename(folder / split / kind)
    shutil.rmtree(folder / "images")


def next_to_each_other(folder: Path) -> None:
    """Put labels next to their images, in folders that are not called `images`."""
    (folder / "images").rename(folder / "pictures")
    for file in (folder / "labels").rglob("*.txt"):
        file.rename(folder / "pictures" / file.relative_to(folder / "labels"))


def as_it_is(folder: Path) -> None:
    """Leave everything where it is."""


@pytest.mark.parametrize(
    ("arrange", "values"),
    [
        (as_it_is, {"path": None}),
        (as_it_is, {"path": "."}),
        (as_it_is, {"path": ""}),
        (as_it_is, {"path": "images", "train": "train", "val": "val", "test": "test"}),
        (as_it_is, {"path": "../datasets/drawn"}),
        (as_it_is, {"path": "/home/x/data"}),
        (as_it_is, {"path": "C:\\\\data\\\\doors", "train": "images\\\\train"}),
        (as_it_is, {"path": "/home/x", "train": "/home/x/images/train", "val": "D:/y/images/val"}),
        (as_it_is, {"train": ["images/train", "images/train"], "val": ["./images/val/"]}),
        (as_it_is, {"val": None, "validation": "images/val"}),
        (as_it_is, {"names": ["no"], "nc": "1"}),
        (as_it_is, {"names": None, "nc": 1}),
        (as_it_is, {"download": "raise SystemExit", "path": None}),
        (lists, {"train": "lists/train.txt", "val": ["val.txt"]}),
        (lists, {"path": None, "train": ["lists/train.txt", "images/train"], "val": "./val.txt"}),
        (by_split, {"path": None, "train": "../train/images", "val": "../val/images", "test": "../test/images"}),
        (next_to_each_other, {"train": "pictures/train", "val": "pictures/val", "test": "pictures/test"}),
    ],
)
def test_ultralytics_finds_the_dataset_for_each_form_of_data_yaml(
    library: Any, drawn: Path, tmp_path: Path, arrange: Any, values: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library reads the copy from another folder, and finds the same images, labels and classes."""
    arrange(drawn)
    change(drawn, **values)
    before = (drawn / "data.yaml").read_bytes()
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    assert (drawn / "data.yaml").read_bytes() == before
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_det_dataset, read = library
    seen = check_det_dataset(str(dataset.data_file))
    assert seen["names"] == dataset.names
    assert "download" not in seen
    for split in ("train", "val", "test"):
        found = read(img_path=seen[split], data=seen, task="pose", augment=False)
        assert tuple(dataset.links[Path(path)] for path in found.im_files) == dataset.files[split]
        assert {Path(path).name for path in found.im_files} == {
            f"{split}_000{n}.jpg" for n in range(1 + (split == "train"))
        }
        assert all(len(item["cls"]) == 1 for item in found.labels)


def test_paths_of_another_machine_are_a_warning(drawn: Path, tmp_path: Path) -> None:
    """Paths of another machine are resolved by their last parts, with a warning."""
    lists(drawn)
    change(drawn, train="lists/train.txt", val="/home/x/images/val")
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    message = dataset.show_warnings()
    assert "data.yaml: val is '/home/x/images/val', taken as images/val" in message
    assert "lists/train.txt:3: /home/x/a/images/train/train_0001.jpg, taken as images/train/train_0001.jpg" in message


def test_a_relative_path_is_never_shortened(drawn: Path) -> None:
    """`other/images/val` does not match `images/val`; nothing outside of the dataset is found."""
    shutil.copytree(drawn / "images/val", drawn.parent / "outside")
    change(drawn, val="other/images/val", test="../outside")
    message = check(drawn)
    assert "val is 'other/images/val': there is no such folder" in message
    assert "test is '../outside': there is no such folder" in message


def write(path: Path, content: bytes | str) -> None:
    """Write a file, and create its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def png(width: int, height: int) -> bytes:
    """Return a random image as PNG."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((width, height), 50).save(file, "PNG")
    return file.getvalue()


def gif() -> bytes:
    """Return an image in a format that ultralytics does not read."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (20, 20)).save(file, "GIF")
    return file.getvalue()


IMAGE = "images/train/train_0000.jpg"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it has no bytes"),
        (b"no image", "it is not an image of a known format"),
        (png(9, 64), "9 x 64 pixels: a side has fewer than 10"),
        (png(64, 64)[:-40], "Truncated File Read"),
        (png(64, 64)[:99] + b"damage" + png(64, 64)[105:], "broken PNG file"),
        (gif(), "gif is a format that ultralytics does not read"),
        (None, "image file is truncated"),
    ],
)
def test_an_image_that_training_would_drop_is_an_error(drawn: Path, content: bytes | None, expected: str) -> None:
    """An empty, damaged, tiny or unsupported image is an error, with its path."""
    if content is None:
        content = (drawn / IMAGE).read_bytes()[:-200]
    write(drawn / IMAGE, content)
    message = check(drawn)
    assert "images that cannot be read (1)" in message
    assert f"{IMAGE}: {expected}" in message


def test_a_folder_named_like_an_image_is_an_error(drawn: Path) -> None:
    """A folder `a.jpg` is an error: ultralytics would try to open it."""
    (drawn / "images/train/a.jpg").mkdir()
    assert "images/train/a.jpg: [Errno 21] Is a directory" in check(drawn)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("train", "test", "images/train/train_0000.jpg: the same as images/test/copy.jpg (test)"),
        ("train", "val", "images/train/train_0000.jpg: the same as images/val/copy.jpg (val)"),
    ],
)
def test_an_image_in_train_and_in_val_or_test_is_an_error(drawn: Path, source: str, target: str, expected: str) -> None:
    """Equal bytes in train and in val or test are an error, whatever the file names are."""
    shutil.copy(drawn / f"images/{source}/{source}_0000.jpg", drawn / f"images/{target}/copy.jpg")
    message = check(drawn)
    assert "images that are trained on and measured on (1)" in message
    assert expected in message


def test_files_of_equal_size_and_end_are_not_copies(drawn: Path, tmp_path: Path) -> None:
    """Images are compared by all their bytes, not by size and last bytes."""
    content = (drawn / IMAGE).read_bytes()
    for number, folder in enumerate(("train", "val", "test")):
        comment = b"\xff\xfe" + (5002).to_bytes(2) + bytes([number]) + bytes(4999)
        write(drawn / f"images/{folder}/like.jpg", content[:2] + comment + content[2:])
    assert "the same" not in check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32).show_warnings()


def cut_end(drawn: Path) -> None:
    """Append bytes to a JPEG."""
    write(drawn / IMAGE, (drawn / IMAGE).read_bytes() + b"camera")


def leave_label(drawn: Path) -> None:
    """Write a label without an image into a folder where labels are next to their images."""
    write(drawn / "more/a.png", png(20, 20))
    write(drawn / "more/b.txt", "")


def reuse(drawn: Path) -> None:
    """Copy a val image to test."""
    shutil.copy(drawn / "images/val/val_0000.jpg", drawn / "images/test/again.jpg")


def repeat(drawn: Path) -> None:
    """Copy a train image and its label within train."""
    shutil.copy(drawn / IMAGE, drawn / "images/train/twice.jpg")
    shutil.copy(drawn / "labels/train/train_0000.txt", drawn / "labels/train/twice.txt")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut_end, f"{IMAGE}: its last bytes are not the end of a JPEG"),
        (leave_label, "more/b.txt: there is no image of this name"),
        (reuse, "images/val/val_0000.jpg: the same as images/test/again.jpg"),
        (repeat, f"images/train/twice.jpg: the same as {IMAGE} (train)"),
        (lambda drawn: write(drawn / "labels/train/lost.txt", ""), "labels/train/lost.txt: there is no image"),
        (
            lambda drawn: write(drawn / "labels/train/train_0000.TXT", ""),
            "labels/train/train_0000.TXT: only a label that",
        ),
        (lambda drawn: write(drawn / "labels/old/lost.txt", ""), "labels/old/lost.txt: there is no image"),
        (
            lambda drawn: write(drawn / "more/images/a.png", png(20, 20)),
            "more/images/a.png: no split of data.yaml holds it",
        ),
        (lambda drawn: (drawn / "labels/train/train_0001.txt").unlink(), "train: 1 of 2 images"),
        (lambda drawn: change(drawn, names=["container_id", "door"]), "val: 1 door"),
    ],
)
def test_what_training_tolerates_is_a_warning(drawn: Path, tmp_path: Path, spoil: Any, expected: str) -> None:
    """An issue that training tolerates is reported as a warning and raises nothing."""
    spoil(drawn)
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    assert f"    {expected}" in dataset.show_warnings()
    assert "\n" not in dataset.describe()  # it is shown in a table of the model card


def test_a_sound_dataset_has_no_warnings(drawn: Path, tmp_path: Path) -> None:
    """Files of labelling tools, caches and hidden files cause no warning."""
    for name in (
        "labels/classes.txt",
        "labels/train.cache",
        "README.txt",
        "images/train/.DS_Store",
        ".tmp/images/a.jpg",
    ):
        write(drawn / name, "door")
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    assert dataset.warnings == ()
    assert "nothing was found" in dataset.show_warnings()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("images/train/nowhere.jpg", "train.txt:1: images/train/nowhere.jpg: there is no such file"),
        ("images/train/train_0000.jpg\ndata.yaml", "train.txt:2: data.yaml: ultralytics reads no such images"),
        (b"\xff\xd8", "train.txt: it is not a list of paths"),
    ],
)
def test_a_list_with_a_wrong_entry_is_an_error(drawn: Path, content: str | bytes, expected: str) -> None:
    """A list that is not text, or an entry that is not an image of the dataset, is an error with its line."""
    write(drawn / "train.txt", content)
    change(drawn, train="train.txt")
    assert expected in check(drawn)


def test_keys_that_were_not_checked_do_not_reach_training(library: Any, drawn: Path, tmp_path: Path) -> None:
    """Of the keys that the library knows, those that would change a training unseen are left out."""
    other = {"bg_class_idx": 5, "complete": True, "masks_dir": "masks", "minival": "nowhere", "roboflow": {"a": 1}}
    change(drawn, **other, kpt_oks_sigmas=[0.1] * 4, channels=3.0)
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    read = YAML(typ="safe", pure=True).load(dataset.data_file.read_text())
    assert read.keys() == {
        "path", "train", "val", "test", "names", "channels", "kpt_shape", "flip_idx", "kpt_oks_sigmas"
    }  # fmt: skip
    seen = library[0](str(dataset.data_file))
    assert (seen["channels"], seen["kpt_shape"], seen["kpt_oks_sigmas"]) == (3, [4, 3], [0.1] * 4)


def arrays(folder: Path) -> None:
    """Leave the arrays and label caches of another training beside the images, newer than these."""
    import numpy as np

    for image in (folder / "images").rglob("*.jpg"):
        np.save(image.with_suffix(".npy"), np.zeros((64, 64, 3), np.uint8))
    for split in ("train", "val", "test"):
        (folder / f"labels/{split}.cache").write_bytes(b"\x80pickle")


def odd_names(folder: Path) -> None:
    """Rename images to names that a list of paths cannot hold, or that differ in their extension alone."""
    (folder / "images/train/train_0000.jpg").rename(folder / "images/train/./a\nb.JPG")
    (folder / "labels/train/train_0000.txt").rename(folder / "labels/train/a\nb.txt")
    shutil.copy(folder / "labels/train/train_0001.txt", folder / "labels/train/a_b.txt")
    write(folder / "images/train/a_b.png", png(64, 64))
    write(folder / "images/train/a_b.bmp", png(64, 48))
    write(folder / os.fsdecode(b"images/train/\xff.png"), png(48, 64))
    (folder / "images/val/val_0000.jpg").rename(folder / "images/val/\u2028 #%.jpg")
    (folder / "labels/val/val_0000.txt").rename(folder / "labels/val/\u2028 #%.txt")


def linked(folder: Path) -> None:
    """Make links of all images."""
    for image in list((folder / "images").rglob("*.jpg")):
        (folder / "store").mkdir(exist_ok=True)
        image.symlink_to(image.rename(folder / "store" / image.name))


@pytest.mark.parametrize("spoil", [arrays, odd_names, linked, next_to_each_other])
@pytest.mark.parametrize("place", ["scratch", "images/scratch"])
def test_training_reads_the_checked_files_alone(library: Any, tmp_path: Path, place: str, spoil: Any) -> None:
    """The real loader reads each checked image and its label, never a file beside them; the dataset stays unchanged."""
    import numpy as np

    drawn = tmp_path / place / "drawn"
    draw_dataset(drawn, "localization", counts={"train": 2, "val": 1, "test": 1}, size=64)
    spoil(drawn)
    if spoil is next_to_each_other:
        change(drawn, train="pictures/train", val="pictures/val", test="pictures/test")
    before = {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()}
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / place / "scratch", md5="0" * 32)
    seen, arrays_of = library[0](str(dataset.data_file)), set()
    for split, files in dataset.files.items():
        found = library[1](img_path=seen[split], data=seen, task="pose", augment=False, imgsz=64)
        assert sorted(dataset.links[Path(path)] for path in found.im_files) == sorted(files)
        for number, link in enumerate(found.im_files):
            pixels, _, _ = found.load_image(number)
            image = dataset.links[Path(link)]
            assert np.array_equal(pixels, read_image(image))
            name = image.relative_to(drawn).as_posix()
            assert len(found.labels[number]["cls"]) == len(read_objects(str(drawn / label_path(name))))
            arrays_of.add(found.npy_files[number])
    assert len(arrays_of) == sum(dataset.counts.values())
    assert before == {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()}


def test_a_jpeg_that_the_library_rewrites_stays_as_it_is(library: Any, drawn: Path, tmp_path: Path) -> None:
    """The library saves a JPEG with bytes after its end again, at quality 100: in place of the link."""
    content = (drawn / IMAGE).read_bytes() + b"camera"
    write(drawn / IMAGE, content)
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    seen = library[0](str(dataset.data_file))
    found = library[1](img_path=seen["train"], data=seen, task="pose", augment=False)
    link = next(link for link, image in dataset.links.items() if image == drawn / IMAGE)
    assert not link.is_symlink()
    assert (drawn / IMAGE).read_bytes() == content
    assert [dataset.links[Path(path)] for path in found.im_files] == list(dataset.files["train"])


def test_a_second_check_replaces_the_links_of_the_first(drawn: Path, tmp_path: Path) -> None:
    """Step 6 may be run again after the dataset has changed."""
    check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    (drawn / "images/train/train_0001.jpg").rename(drawn / "images/train/other.jpg")
    (drawn / "labels/train/train_0001.txt").rename(drawn / "labels/train/other.txt")
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    links = [path for path in (tmp_path / "scratch").rglob("*") if path.is_symlink()]
    assert {link.resolve() for link in links if link.suffix == ".jpg"} == set(drawn.rglob("*.jpg"))
    assert all(link.exists() for link in links)
    assert dataset.counts["train"] == 2


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_is_damaged_later_is_left_out_by_name(drawn: Path, tmp_path: Path, content: bytes | None) -> None:
    """The split's other images stay; the list that the library reads holds them alone."""
    shutil.copy(drawn / IMAGE, drawn / "images/val/more.jpg")
    (drawn / IMAGE).write_bytes((drawn / "images/train/train_0001.jpg").read_bytes() + b" ")  # no copy of it
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    if content is None:
        (drawn / "images/val/more.jpg").unlink()
    else:
        (drawn / "images/val/more.jpg").write_bytes(content)
    left, problems = leave_out_unreadable(dataset, "val")
    assert [problem.partition(":")[0] for problem in problems] == ["images/val/more.jpg"]
    assert [path.name for path in left.files["val"]] == ["val_0000.jpg"]
    assert (left.counts["val"], left.counts["train"]) == (1, 2)
    listed = (tmp_path / "scratch/data-localization-val.txt").read_text().split()
    assert [left.links[Path(path)] for path in listed] == list(left.files["val"])
    assert leave_out_unreadable(dataset, "train") == (dataset, [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.tif", "float32", "OpenCV cannot decode it (tiff, mode F"),
        ("a.tif", "int32", "OpenCV cannot decode it (tiff, mode I"),
        ("a.tif", "zstd", "OpenCV cannot decode it (tiff, mode L, zstd compression"),
        ("a.bmp", "cut", "OpenCV cannot decode it (bmp"),
        ("a.jp2", "cut", "OpenCV cannot decode it (jpeg2000"),
        ("A.TIFF", "cut", "OpenCV cannot decode it (tiff"),
    ],
)
def test_an_image_that_opencv_cannot_decode_is_an_error(drawn: Path, name: str, content: str, reason: str) -> None:
    """Training would end at it in its first epoch: it is named before."""
    from PIL import Image

    image = Image.effect_noise((64, 48), 50)
    mode = {"float32": "F", "int32": "I"}.get(content, "L")
    file = drawn / "images/test" / name
    image.convert(mode).save(file, **({"compression": "zstd"} if content == "zstd" else {}))
    if content == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = check(drawn)
    assert "images that cannot be read (1)" in message
    assert f"images/test/{name}: {reason}" in message


@pytest.mark.parametrize(
    "change_text", [lambda t: f"\ufeff{t}", lambda t: t.replace("\n", "\r\n")], ids=["BOM", "CRLF"]
)
def test_data_yaml_may_come_from_windows(drawn: Path, tmp_path: Path, change_text: Any) -> None:
    """A byte-order mark and CRLF line ends change nothing."""
    text = change_text((drawn / "data.yaml").read_text())
    (drawn / "data.yaml").write_bytes(text.encode())
    assert check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32).names == {0: "container_id"}


def test_an_impossible_date_in_data_yaml_is_an_error(drawn: Path) -> None:
    """The error names the file and the date."""
    with (drawn / "data.yaml").open("a") as file:
        file.write("date: 2024-02-30\n")
    assert "data.yaml: this is not YAML" in check(drawn)


@pytest.mark.parametrize(
    "names",
    [
        "[2024-01-02]",
        "[1.10]",
        "[no]",
        "[null]",
        "{'0': 007}",
        "[12:30]",
        "[12e3]",
        "[0o12]",
        '["a\\nb"]',
        "[n01440764]",
        "['']",
        "[' a|b $x ']",
    ],
)
def test_class_names_of_any_type_are_those_that_training_uses(
    library: Any, drawn: Path, tmp_path: Path, names: str
) -> None:
    """The names in the report are the model's; the library replaces codes of ImageNet by their names."""
    text = (drawn / "data.yaml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("names", "  0:", "- "))]
    (drawn / "data.yaml").write_text("\n".join([*kept, f"names: {names}"]))
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    seen = library[0](str(dataset.data_file))["names"]
    assert seen == ({0: "tench"} if "n01440764" in names else dataset.names)


def test_errors_and_warnings_of_all_kinds_make_one_report(drawn: Path) -> None:
    """One report lists errors before warnings, always in the same order, with the remedy."""
    (drawn / "labels/train/train_0000.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    (drawn / "labels/test/test_0000.txt").unlink()
    write(drawn / "labels/train/lost.txt", "")
    write(drawn / IMAGE, b"")
    write(drawn / "images/test/test_0000.jpg", b"")
    message = check(drawn)
    assert "the same as" not in message
    places = [
        message.index(word) for word in ("it has no bytes", "none of 1 images", "5 columns", "Warnings", "lost.txt")
    ]
    assert places == sorted(places)
    assert "the dataset has 4 errors" in message
    assert "dvc add data/localization" in message
    assert message == check(drawn)


def test_all_errors_of_data_yaml_are_reported_at_once(drawn: Path) -> None:
    """One error names each invalid key."""
    change(drawn, names=None, kpt_shape=None, test="images/nowhere")
    message = check(drawn)
    assert all(word in message for word in ("names", "kpt_shape", "images/nowhere"))


def test_a_data_yaml_that_is_not_yaml_is_rejected(drawn: Path) -> None:
    """The error names the file."""
    (drawn / "data.yaml").write_text("names: [unclosed")
    assert "data.yaml: this is not YAML" in check(drawn)


def test_a_dataset_without_a_dvc_file_is_rejected_with_the_remedy(stores: Stores, tmp_path: Path) -> None:
    """The commit must contain `<dataset>.dvc`."""
    with pytest.raises(DatasetError, match=r"no data/detection\.dvc") as caught:
        pull_dataset(Session(stores.clone, tmp_path, tmp_path, DETECTION))
    assert "dvc add data/detection" in caught.value.remedy


def track(stores: Stores) -> Path:
    """Track a small drawn dataset with DVC, push it and return its folder."""
    from dvc.repo import Repo

    folder = stores.clone / "data/detection"
    draw_dataset(folder, "detection", counts={"train": 2, "val": 1, "test": 1}, size=64)
    with Repo(str(stores.clone)) as repo:
        repo.add([str(folder)])
        repo.push()
    run_git("add", "--all", "data", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    return folder


def test_the_pulled_dataset_equals_the_tracked_one(stores: Stores, tmp_path: Path) -> None:
    """The dataset is pulled from the real DVC remote, and stored with its cache outside of the clone."""
    tracked = track(stores)
    other, scratch = stores.clone_again(), tmp_path / "scratch"
    configure_dvc(other, scratch, Credentials())
    dataset = pull_dataset(Session(other, scratch, scratch, DETECTION))
    assert dataset.counts["train"] == 2
    assert_same(dataset.folder, tracked)
    assert dataset.folder.is_relative_to(scratch)
    assert not (other / "data/detection").exists()  # on Kaggle it would become part of the run's output
    assert dataset.md5 in (other / "data/detection.dvc").read_text()
    assert not (other / ".dvc/cache").exists()
    assert (scratch / "dvc-cache").is_dir()


def assert_same(folder: Path, tracked: Path) -> None:
    """Assert that both folders hold the same files with the same bytes."""
    here, there = ({p.relative_to(top): p.read_bytes() for p in top.rglob("*.*")} for top in (folder, tracked))
    assert here == there


@pytest.mark.parametrize("place", ["copy", "datasets/somebody/copy"])
def test_an_attached_copy_of_the_remote_supplies_the_dataset(stores: Stores, tmp_path: Path, place: str) -> None:
    """A copy in either mount of a Kaggle dataset supplies all files; the DVC remote supplies only the listing."""
    tracked, scratch = track(stores), tmp_path / "scratch"
    shutil.copytree(stores.storage / "files", tmp_path / "input" / place / "files")
    for path in (stores.storage / "files").rglob("*"):
        if path.is_file() and not path.name.endswith(".dir"):
            path.unlink()
    other = stores.clone_again()
    configure_dvc(other, scratch, Credentials())
    assert_same(pull_dataset(Session(other, scratch, scratch, DETECTION), inputs=tmp_path / "input").folder, tracked)


def test_an_attached_copy_serves_a_dataset_with_a_remote_of_its_own(
    stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its remote has the listing and one file that the copy lacks."""
    tracked, scratch, own = track(stores), tmp_path / "scratch", stores.folder / "own"
    copy = tmp_path / "input/copy"
    shutil.copytree(stores.storage / "files", copy / "files")
    own.mkdir()
    (stores.storage / "files").rename(own / "files")
    first, *others = [path for path in own.rglob("*") if path.is_file() and not path.name.endswith(".dir")]
    (copy / first.relative_to(own)).unlink()
    for path in others:
        path.unlink()
    with (stores.clone / ".dvc/config").open("a") as config:
        config.write(f"['remote \"datasets\"']\n    url = {own}\n")
    file = stores.clone / "data/detection.dvc"
    file.write_text(f"{file.read_text()}  remote: datasets\n")
    configure_dvc(stores.clone, scratch, Credentials())
    pulled = pull_dataset(Session(stores.clone, scratch, scratch, DETECTION), inputs=tmp_path / "input")
    assert_same(pulled.folder, tracked)
    assert f"came from {copy}; the rest comes from" in capsys.readouterr().out


def spoilt(path: Path) -> None:
    """Overwrite an object with other bytes."""
    path.chmod(0o644)
    path.write_bytes(b"other bytes")


@pytest.mark.parametrize("spoil", [spoilt, Path.unlink], ids=["damaged", "lacking"])
@pytest.mark.parametrize("which", ["listing", "images"])
def test_missing_and_damaged_objects_of_an_attached_copy_come_from_the_remote(
    stores: Stores, tmp_path: Path, spoil: Any, which: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The hash of every object of a copy is checked; DVC's complaints about the copy are not shown."""
    tracked, scratch, copy = track(stores), tmp_path / "scratch", tmp_path / "input/copy/files"
    shutil.copytree(stores.storage / "files", copy)
    objects = [path for path in copy.rglob("*") if path.is_file()]
    for path in [path for path in objects if path.name.endswith(".dir") == (which == "listing")][:2]:
        spoil(path)
    other = stores.clone_again()
    configure_dvc(other, scratch, Credentials())
    assert_same(pull_dataset(Session(other, scratch, scratch, DETECTION), inputs=tmp_path / "input").folder, tracked)
    assert "ERROR" not in capfd.readouterr().err


def test_a_lost_object_is_reported_with_the_remedy(stores: Stores, tmp_path: Path) -> None:
    """The `.dvc` file exists, and its object is missing on the remote."""
    pointer = (
        "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  size: 3\n  nfiles: 1\n  hash: md5\n  path: detection\n"
    )
    (stores.clone / "data").mkdir()
    (stores.clone / "data/detection.dvc").write_text(pointer)
    with pytest.raises(DatasetError, match="dvc pull") as caught:
        pull_dataset(Session(stores.clone, tmp_path, tmp_path, DETECTION))
    assert "0123456789abcdef0123456789abcdef.dir is not on the DVC remote" in caught.value.what
    assert "run `dvc push data/detection` in a clone that has it" in caught.value.remedy
