"""Every line that ultralytics would drop is reported with its place, and a valid label causes no complaint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.data.findings import EXAMPLES, Findings, Issue
from lib.data.labels import LabelFormat, LabelledImage, check_labels, label_path, read_objects

POSE = LabelFormat(classes=2, keypoints=4, poses=True, image_size=640)
BOXES = LabelFormat(classes=2, keypoints=0, poses=False, image_size=640)
OUTLINES = LabelFormat(classes=2, keypoints=0, poses=False, image_size=640, polygons=True)
NAMES = {0: "id", 1: "door"}

RIGHT = "0 0.5 0.5 0.4 0.2 0.3 0.4 2 0.7 0.4 2 0.7 0.6 2 0.3 0.6 2"
OTHER = "1 0.5 0.5 0.4 0.2 0.3 0.4 2 0.7 0.4 2 0.7 0.6 2 0.3 0.6 2"
TRIANGLE = "0 0.1 0.1 0.5 0.2 0.3 0.6"
FILLERS = {POSE: f"{RIGHT}\n{OTHER}", OUTLINES: f"{TRIANGLE}\n1 0 0 1 0 1 1 0 1"}
"""A label of each form that lacks no class; where none is named, of boxes."""


def find(folder: Path, *texts: str | bytes, form: LabelFormat = POSE, split: str = "train") -> Findings:
    """Write a label for each text, and return the issues found in them and in one more complete label."""
    images = []
    for number, text in enumerate([*texts, FILLERS.get(form, "0 .5 .5 .1 .1\n1 .5 .5 .1 .1")]):
        file = folder / f"{number}.txt"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        name = f"{number}.jpg"
        images.append(LabelledImage(split, str(folder / name), name, str(file), file.name, 640, 480))
    findings = Findings()
    check_labels(images, form, NAMES, findings)
    return findings


def changed(column: int, word: str) -> str:
    """Return the valid line with another word in one column."""
    words = RIGHT.split()
    words[column] = word
    return " ".join(words)


@pytest.mark.parametrize(
    "text", [RIGHT, f"{RIGHT}\n\n  \n{OTHER}\r\n", f"\ufeff{RIGHT}", "", "\n \n", changed(0, "1.0")]
)
def test_a_valid_label_has_no_issues(tmp_path: Path, text: str) -> None:
    """Blank lines, a byte-order mark, CRLF line ends and an empty file are valid."""
    assert find(tmp_path, text, RIGHT, RIGHT, RIGHT).counts == {}


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        (RIGHT + " 0.5", Issue.COLUMNS, "18 columns, not 17"),
        (RIGHT.rpartition(" ")[0], Issue.COLUMNS, "16 columns, not 17"),
        ("0 0.5 0.5 0.4 0.2", Issue.COLUMNS, "5 columns, not 17"),
        (changed(3, "wide"), Issue.NUMBER, "wide"),
        (changed(3, "0,4"), Issue.NUMBER, "0,4"),
        (changed(6, "nan"), Issue.NUMBER, "nan"),
        (changed(1, "inf"), Issue.NUMBER, "inf"),
        (changed(0, "2"), Issue.CLASS, "2"),
        (changed(0, "-1"), Issue.CLASS, "-1"),
        (changed(0, "0.5"), Issue.CLASS, "0.5"),
        (changed(1, "1.005"), Issue.COORDINATE, "1.005"),
        (changed(2, "320"), Issue.COORDINATE, "320"),
        (changed(14, "-0.005"), Issue.COORDINATE, "-0.005"),
        (changed(3, "0"), Issue.SIDE, "0"),
        (changed(4, "-0.0000001"), Issue.SIDE, "-0.0000001"),
        (changed(7, "3"), Issue.VISIBILITY, "3"),
        (changed(16, "-1"), Issue.VISIBILITY, "-1"),
        (changed(10, "0.9"), Issue.VISIBILITY, "0.9"),
        (f"{OTHER}\n{OTHER}", Issue.TWICE, "1 0.5 0.5 0.4 0.2"),
        (changed(4, "0.004"), Issue.SMALL, "256.0 x 1.9 pixels"),
        (changed(1, "0.1"), Issue.BEYOND, "by 0.100 of the image"),
        (changed(15, "0.75"), Issue.AWAY, "keypoint 3"),
        ("0 .5 .5 .4 .2 .7 .4 2 .3 .4 2 .3 .6 2 .7 .6 2", Issue.ORDER, "they run counter-clockwise (1 of 4 objects)"),
        ("0 .5 .5 .4 .2 .3 .4 2 .7 .6 2 .7 .4 2 .3 .6 2", Issue.ORDER, "they form no convex shape (1 of 4 objects)"),
        (
            "0 .5 .5 .4 .2 .7 .6 2 .3 .6 2 .3 .4 2 .7 .4 2",
            Issue.ORDER,
            "the first is not the top-left one (1 of 4 objects)",
        ),
    ],
)
def test_an_invalid_line_is_reported_with_its_value(tmp_path: Path, line: str, kind: Issue, expected: str) -> None:
    """Each kind of issue is reported with file, line and value; the valid first line is not."""
    found = find(tmp_path, f"{RIGHT}\n{line}")
    number = 1 + len(line.splitlines())
    assert found.examples[kind] == [f"0.txt:{number}: {expected}"]
    assert found.counts[kind] == 1


def test_hidden_corners_have_no_order(tmp_path: Path) -> None:
    """An unlabelled keypoint at 0 0 is neither out of place nor out of order."""
    assert find(tmp_path, RIGHT.replace("0.7 0.6 2", "0 0 0")).counts == {}


@pytest.mark.parametrize("angle", [-50, -20, 0, 30, 55])
def test_a_slanting_id_is_in_order(tmp_path: Path, angle: int) -> None:
    """The corners of a rotated text are in order up to 55 degrees."""
    import numpy as np

    turn = np.radians(angle)
    corners = np.array([[-100, -20], [100, -20], [100, 20], [-100, 20]]) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    points = " ".join(f"{x / 640 + 0.5:.6f} {y / 480 + 0.5:.6f} 2" for x, y in corners)
    assert Issue.ORDER not in find(tmp_path, f"0 0.5 0.5 0.4 0.4 {points}").counts


def test_a_label_that_is_not_text_is_reported(tmp_path: Path) -> None:
    """A label that is not UTF-8 is an error: ultralytics would drop the image."""
    assert find(tmp_path, b"0 0.5 \xff").examples[Issue.TEXT] == ["0.txt: byte 6 is b'\\xff'"]


def test_a_missing_label_means_an_image_without_objects(tmp_path: Path) -> None:
    """Many images without a label are a warning; a split without any label is an error."""
    images = [LabelledImage("val", f"{n}.jpg", f"{n}.jpg", str(tmp_path / f"{n}.txt"), f"{n}.txt") for n in range(4)]
    (tmp_path / "0.txt").write_text(f"{RIGHT}\n{OTHER}")
    findings = Findings()
    check_labels(images, POSE, NAMES, findings)
    assert findings.examples == {Issue.BACKGROUND: ["val: 3 of 4 images"]}
    findings = Findings()
    check_labels(images[1:], POSE, NAMES, findings)
    assert findings.examples == {Issue.UNLABELLED: ["val: none of 3 images has an object"]}


def test_a_class_without_objects_in_a_split_is_reported(tmp_path: Path) -> None:
    """The warning names the split and the class."""
    image = LabelledImage("test", "a.jpg", "a.jpg", str(tmp_path / "a.txt"), "a.txt")
    (tmp_path / "a.txt").write_text(RIGHT)
    findings = Findings()
    check_labels([image], POSE, NAMES, findings)
    assert findings.examples == {Issue.ABSENT: ["test: 1 door"]}


def test_boxes_may_be_trained_from_labels_with_keypoints(tmp_path: Path) -> None:
    """Boxes are read from lines with keypoints if data.yaml declares them; polygons are rejected."""
    boxes = "0 0.5 0.5 0.4 0.2"
    both = LabelFormat(classes=2, keypoints=4, poses=False, image_size=640)
    assert find(tmp_path, f"{boxes}\n{OTHER}", form=both).counts == {}
    assert find(tmp_path, boxes, form=BOXES).counts == {}
    assert find(tmp_path, f"{boxes}\n{RIGHT}", form=BOXES).examples[Issue.COLUMNS] == ["0.txt:2: 17 columns, not 5"]
    message = find(tmp_path, "0 .1 .1 .2 .1 .2 .2", form=both).examples[Issue.COLUMNS]
    assert message == ["0.txt:1: 7 columns, not 5 or 17"]
    flat = both._replace(dimensions=2)
    assert find(tmp_path, f"{boxes}\n1 0.5 0.5 0.4 0.2 0.3 0.4 0.7 0.4 0.7 0.6 0.3 0.6", form=flat).counts == {}
    assert find(tmp_path, OTHER, form=flat).examples[Issue.COLUMNS] == ["0.txt:1: 17 columns, not 5 or 13"]


def test_polygons_of_any_number_of_corners_are_valid(tmp_path: Path) -> None:
    """Polygons with three and more corners are valid; two objects may share a box, but not an outline."""
    eight = "1 .2 .1 .4 .1 .5 .2 .5 .4 .4 .5 .2 .5 .1 .4 .1 .2"
    bowtie = "0 0.1 0.1 0.5 0.6 0.5 0.1 0.1 0.55"
    mirrored = "0 0.5 0.1 0.1 0.2 0.3 0.6"
    assert find(tmp_path, f"{TRIANGLE}\n{mirrored}\n{eight}", bowtie, "", form=OUTLINES).counts == {Issue.BACKGROUND: 1}


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ("0 0.5 0.5 0.4 0.2", Issue.COLUMNS, "5 columns, not 7 or more, an odd number"),
        (f"{TRIANGLE} 0.5", Issue.COLUMNS, "8 columns, not 7 or more, an odd number"),
        ("0 0.1 0.1 0.5 x 0.3 0.6", Issue.NUMBER, "x"),
        ("2 0.1 0.1 0.5 0.2 0.3 0.6", Issue.CLASS, "2"),
        ("0 0.1 0.1 0.5 0.2 0.3 1.005", Issue.COORDINATE, "1.005"),
        ("0 0.1 -0.005 0.5 0.2 0.3 0.6", Issue.COORDINATE, "-0.005"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", Issue.SIDE, "3 corners on a line"),
        (f"{TRIANGLE}", Issue.TWICE, "0 0.1 0.1 0.5 0.2"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.104 0.1 0.104", Issue.SMALL, "256.0 x 1.9 pixels"),
    ],
)
def test_an_invalid_polygon_is_reported_with_its_value(tmp_path: Path, line: str, kind: Issue, expected: str) -> None:
    """Each kind of issue of a polygon is reported with file, line and value; the valid first line is not."""
    found = find(tmp_path, f"{TRIANGLE}\n{line}", form=OUTLINES)
    assert found.examples == {kind: [f"0.txt:2: {expected}"]}


def test_a_polygon_is_read_as_its_bounding_box(tmp_path: Path) -> None:
    """A polygon is read as its bounding box; a repeated line counts as one object."""
    (tmp_path / "a.txt").write_text(f"{TRIANGLE}\n{TRIANGLE}\n")
    (row,) = read_objects(str(tmp_path / "a.txt"), polygons=True)
    assert row == pytest.approx([0, 0.3, 0.35, 0.4, 0.5])


def test_a_report_counts_all_issues_and_shows_a_few(tmp_path: Path) -> None:
    """Errors and warnings are separate; each kind has its count and at most `EXAMPLES` examples."""
    bad = "\n".join([changed(2, "7"), changed(0, "9"), RIGHT, RIGHT] + [changed(1, "5")] * 5)
    found = find(tmp_path, bad)
    assert found.count(stops=True) == 7
    errors = found.lines(stops=True)
    assert errors[0].startswith("- classes that data.yaml does not name (1): ")
    assert errors[2].startswith("- coordinates outside of 0 to 1 (6): ")
    assert errors[-1] == f"    and {6 - EXAMPLES} more"
    assert [line for line in found.lines(stops=False) if "holds twice (5)" in line]


def test_labels_are_looked_for_where_ultralytics_does() -> None:
    """The last folder `images` becomes `labels`; without one the label is next to its image."""
    assert label_path("/a/images/b/images/c/d.e.jpg") == "/a/images/b/labels/c/d.e.txt"
    assert label_path("/a/pictures/d.jpg") == "/a/pictures/d.txt"
    assert label_path("/images.jpg") == "/images.txt"
    assert label_path("images/c/d.jpg") == "labels/c/d.txt"  # a path below the dataset
    assert label_path("c/d.jpg") == "c/d.txt"


def test_two_images_that_share_a_label_are_reported(tmp_path: Path) -> None:
    """An image is trained with the objects of another one of its name; two images without objects share nothing."""
    images = [
        LabelledImage("train", str(tmp_path / name), name, str(tmp_path / f"{name[0]}.txt"), f"{name[0]}.txt")
        for name in ("a.jpg", "a.png", "a.tif", "b.jpg", "b.png", "c.jpg", "c.jpg")
    ]
    (tmp_path / "a.txt").write_text(f"{RIGHT}\n{OTHER}")
    (tmp_path / "b.txt").write_text("\n")
    (tmp_path / "c.txt").write_text(RIGHT)
    findings = Findings()
    check_labels(images, POSE, NAMES, findings)
    assert findings.examples[Issue.SHARED] == [f"a.{form}: a.jpg has the same label, a.txt" for form in ("png", "tif")]


# ---------------------------------------------------------------------------------------------------- properties

part = st.floats(0, 1).map(lambda value: f"{value:.6f}")
side = st.floats(0.001, 1).map(lambda value: f"{value:.6f}")
keypoint = st.tuples(part, part, st.sampled_from(["0", "1", "2"])).map(" ".join)
line = st.tuples(st.sampled_from(["0", "1"]), part, part, side, side, *[keypoint] * 4).map(" ".join)
label = st.lists(line, min_size=1, max_size=6)
bad_words = {
    "class": ["-1", "2", "0.5", "x", "nan", "1e9"],
    "place": ["-0.1", "1.1", "-0.001", "1.001", "640", "inf", "nan", "x", "1,5"],
    "side": ["0", "-0.2", "1.1", "nan", "-inf", "x"],
    "visibility": ["3", "-1", "0.5", "nan", "x", "1.0001"],
}


@st.composite
def corrupted(draw: st.DrawFn) -> tuple[list[str], int]:
    """Draw a label with one wrong field, and the number of its line."""
    lines = draw(label)
    number = draw(st.integers(0, len(lines) - 1))
    words = lines[number].split()
    column = draw(st.integers(0, len(words) - 1))
    if draw(st.integers(0, 5)) == 0:
        words[column : column + 1] = draw(st.sampled_from([[], [words[column], "0.5"]]))
    else:
        kind = "class" if column == 0 else "side" if column in {3, 4} else "place"
        kind = "visibility" if column > 4 and (column - 5) % 3 == 2 else kind
        words[column] = draw(st.sampled_from(bad_words[kind]))
    lines[number] = " ".join(words)
    return lines, number + 1


many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(label)
def test_no_valid_label_is_an_error(tmp_path: Path, lines: list[str]) -> None:
    """Any valid label passes without an error."""
    assert find(tmp_path, "\n".join(lines)).lines(stops=True) == []


@many
@given(corrupted())
def test_every_single_wrong_field_is_found(tmp_path: Path, wrong: tuple[list[str], int]) -> None:
    """Any single wrong field is reported with its line."""
    lines, number = wrong
    found = find(tmp_path, "\n".join(lines))
    shown = [example for kind in Issue if kind.stops for example in found.examples.get(kind, [])]
    assert [example.partition(": ")[0] for example in shown] == [f"0.txt:{number}"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return ultralytics' module that checks an image and its label."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        from ultralytics.data import utils

        yield utils


@many
@given(st.one_of(corrupted(), st.tuples(label, st.just(0))))
def test_what_ultralytics_drops_is_an_error_here(library: Any, tmp_path: Path, case: tuple[list[str], int]) -> None:
    """Each label that makes ultralytics drop its image is an error here."""
    from PIL import Image

    lines, number = case
    found = find(tmp_path, "\n".join(lines))
    if not (tmp_path / "0.jpg").exists():
        Image.new("RGB", (64, 48)).save(tmp_path / "0.jpg")
    arguments = (str(tmp_path / "0.jpg"), str(tmp_path / "0.txt"), "", True, 2, 4, 3, False)
    kept, rows, *_ = library.verify_image_label(arguments)
    if kept is None:
        assert found.lines(stops=True)
    if not number:
        assert kept
        assert len(rows) == len(lines) - found.counts.get(Issue.TWICE, 0)


corner = st.tuples(part, part).map(" ".join)
outline = st.tuples(st.sampled_from(["0", "1"]), st.lists(corner, min_size=3, max_size=9)).map(
    lambda drawn: " ".join([drawn[0], *drawn[1]])
)
odd_words = st.sampled_from(["-0.1", "1.1", "2", "nan", "x", "0.5 0.5", "", "0.25"])


@many
@given(st.lists(outline, min_size=1, max_size=5), st.data())
def test_a_polygon_that_ultralytics_drops_is_an_error_here(
    library: Any, tmp_path: Path, lines: list[str], data: st.DataObject
) -> None:
    """Each polygon label that makes ultralytics drop its image is an error here, also with a changed word."""
    from PIL import Image

    if data.draw(st.booleans()):
        words = lines[0].split()
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(odd_words)
        lines = [" ".join(words), *lines[1:]]
    errors = [kind for kind in find(tmp_path, "\n".join(lines), form=OUTLINES).counts if kind.stops]
    if not (tmp_path / "0.jpg").exists():
        Image.new("RGB", (64, 48)).save(tmp_path / "0.jpg")
    kept, rows, _, outlines, *_ = library.verify_image_label(
        (str(tmp_path / "0.jpg"), str(tmp_path / "0.txt"), "", False, 2, 0, 0, False)
    )
    assert errors or (kept is not None and len(rows) == len(outlines) > 0)


near = st.sampled_from(["0", "-0.0", "0.5", "0.500000001", "0.50001", "0.25", "2.5e-1"])
sides = st.sampled_from(["0.5", "0.500000001"])
close = st.lists(st.tuples(st.sampled_from("01"), near, near, sides, sides), min_size=1)


@many
@given(close, st.sampled_from(["boxes", "boxes of poses", "poses", "polygons"]), st.lists(near, min_size=4, max_size=4))
def test_an_object_counts_once_as_in_ultralytics(
    library: Any, tmp_path: Path, boxes: list[tuple[str, ...]], kind: str, rest: list[str]
) -> None:
    """The check, evaluation and the library find the same number of objects among lines that hardly differ."""
    from PIL import Image

    if not (tmp_path / "0.jpg").exists():
        Image.new("RGB", (64, 48)).save(tmp_path / "0.jpg")
    more = [*rest[:2], "2", *rest[2:], "2"] * 2 if kind.endswith("poses") else rest if kind == "polygons" else []
    lines = [" ".join([*box, *more]) for box in boxes]
    lines += [" ".join([*boxes[0], *more[:-2], "0.25", *more[-1:]])] * bool(more)  # only the end differs
    form = {
        "poses": POSE, "polygons": OUTLINES, "boxes": BOXES, "boxes of poses": POSE._replace(poses=False),
    }[kind]  # fmt: skip
    (tmp_path / "0.txt").write_text("\n".join(lines))
    again = find(tmp_path, "\n".join(lines), form=form).counts.get(Issue.TWICE, 0)
    objects = read_objects(str(tmp_path / "0.txt"), polygons=kind == "polygons", boxes=kind.startswith("boxes"))
    keypoints = (4, 3) if kind.endswith("poses") else (0, 0)
    arguments = (str(tmp_path / "0.jpg"), str(tmp_path / "0.txt"), "", kind == "poses", 2, *keypoints, False)
    kept, rows, *_ = library.verify_image_label(arguments)
    assert kept is not None or kind == "polygons"  # which may have no area
    if kept is not None:
        assert len(rows) == len(objects)
        assert kind == "polygons" or len(rows) == len(lines) - again  # a polygon without area is another issue


def test_labels_and_images_are_named_as_in_ultralytics(library: Any) -> None:
    """The label paths and the image formats equal those of the installed library."""
    from lib.data.reader import FORMATS

    paths = ["/a/images/b/images/c/d.e.jpg", "/a/pictures/d.jpg", "/a/images/b.PNG", "/images.jpg"]
    assert [label_path(path) for path in paths] == library.img2label_paths(paths)
    assert library.IMG_FORMATS == FORMATS
    assert os.sep == "/"
