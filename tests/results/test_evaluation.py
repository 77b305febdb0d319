"""Metrics follow from the predictions, and a failed step does not affect the other steps."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from lib.data.dataset import Dataset, check_dataset
from lib.experiment.load import load_experiment, read_yaml
from lib.experiment.schema import Experiment
from lib.results import evaluate as evaluation
from lib.results.evaluate import Evaluated, evaluate
from lib.results.matching import Detection, ImageMatches, Match, compare, corner_errors, iou, match
from lib.results.record import Metrics
from lib.results.sheets import _badness, _close_up, draw_predictions, draw_worst
from lib.session import Session
from lib.train.launch import Trained

EPOCHS = 20
SIZE = 64  # pixels of a training image's side; the drawn images are twice as large


def draw_plates(folder: Path) -> None:
    """Draw a dataset that is learnt in seconds: a bright, slightly rotated plate on a dark background."""
    from PIL import Image, ImageDraw

    chance, side = np.random.default_rng(0), 2 * SIZE
    for split, count in {"train": 64, "val": 12, "test": 12}.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            half, turn = chance.uniform((20, 9), (40, 16)), chance.uniform(-0.2, 0.2)
            spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ spin + chance.uniform(46, side - 46, 2)
            image = Image.fromarray(chance.integers(0, 60, (side, side, 3), dtype=np.uint8))
            ImageDraw.Draw(image).polygon([(x, y) for x, y in corners], fill=(230, 220, 200))
            image.save(folder / f"images/{split}/{split}-{number}.png")
            low, high = corners.min(axis=0) / side, corners.max(axis=0) / side
            points = np.hstack([corners / side, np.full((4, 1), 2)]).ravel()
            row = [0, *(low + high) / 2, *(high - low), *points]
            (folder / f"labels/{split}/{split}-{number}.txt").write_text(" ".join(f"{value:.6f}" for value in row))
    splits = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    form = "names: {0: plate}\nkpt_shape: [4, 3]\nflip_idx: [0, 1, 2, 3]\n"
    (folder / "data.yaml").write_text(f"path: .\n{splits}{form}")


class Model:
    """A model that ultralytics' own trainer trained on drawn plates, and its evaluation."""

    def __init__(self, module: str, folder: Path) -> None:
        from ultralytics.models import YOLO

        draw_plates(folder / "data")
        keys = {"training.image_size": SIZE}
        self.experiment: Experiment = load_experiment(ROOT / f"experiments/000_{module[:3]}_sandbox.yaml", keys)
        self.dataset: Dataset = check_dataset(folder / "data", self.experiment, folder / "scratch", md5="0" * 32)
        made = folder / "run/train"
        trainer: Any = YOLO(f"{self.experiment.model.architecture}.yaml", task=self.experiment.about.task)
        trainer.train(
            data=str(self.dataset.data_file), epochs=EPOCHS, imgsz=SIZE, batch=8, nbs=8, lr0=0.002, optimizer="AdamW",
            warmup_epochs=0.0, mosaic=0.0, fliplr=0.0, device="cpu", plots=False, save_dir=str(made), exist_ok=True,
            verbose=False, pretrained=False,
        )  # fmt: skip
        self.trained = Trained(made, made / "weights/best.pt", made / "weights/last.pt", 1.0)
        self.evaluated: Evaluated = self.evaluate()

    def evaluate(self, trained: Trained | None = None, dataset: Dataset | None = None) -> Evaluated:
        """Evaluate the model, another training, or on another dataset."""
        folder = self.trained.folder
        session = Session(folder, folder, folder, self.experiment)
        return evaluate(session, dataset or self.dataset, trained or self.trained)

    def in_another_folder(self, folder: Path) -> Trained:
        """Return a copy of the training, for an evaluation that may fail."""
        shutil.copytree(self.trained.folder, folder / "train")
        weights = folder / "train/weights"
        return replace(self.trained, folder=folder / "train", best=weights / "best.pt", last=weights / "last.pt")

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """Return the predictions on the test split."""
        found: list[dict[str, Any]] = json.loads((self.evaluated.folder / "predictions.json").read_text())
        return found


@pytest.fixture(scope="module")
def localization(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Train a small model of corners."""
    return Model("localization", tmp_path_factory.mktemp("localization"))


def labels(model: Model, name: str) -> list[list[float]]:
    """Return an image's labels, in pixels of the drawn square: class, x0, y0, x1, y1, then the corners."""
    side = 2 * SIZE
    lines = (model.dataset.folder / name.replace("images", "labels")).with_suffix(".txt").read_text().splitlines()
    found = []
    for line in lines:
        number, x, y, w, h, *points = map(float, line.split())
        box = [(x - w / 2) * side, (y - h / 2) * side, (x + w / 2) * side, (y + h / 2) * side]
        found.append([number, *box, *(value * side if index % 3 < 2 else value for index, value in enumerate(points))])
    return found


def average_precision(model: Model, threshold: float) -> float:
    """Return the AP of boxes from `predictions.json` and the label files alone, interpolated as by ultralytics."""
    truth = {
        f"images/test/{path.name}": labels(model, f"images/test/{path.name}") for path in model.dataset.files["test"]
    }
    taken: set[tuple[str, int]] = set()
    hits = []
    for item in sorted(model.predictions, key=lambda item: -item["score"]):
        x, y, w, h = item["bbox"]
        box = np.array([x, y, x + w, y + h])
        overlaps = [iou(np.array(label[1:5]), box) for label in truth[item["file_name"]]]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= threshold and (item["file_name"], best) not in taken
        if hit:
            taken.add((item["file_name"], best))
        hits.append(hit)
    found = np.cumsum(hits)
    recall = np.concatenate([[0.0], found / sum(map(len, truth.values())), [1.0]])
    precision = np.concatenate([[1.0], found / np.arange(1, len(hits) + 1), [0.0]])
    envelope = np.flip(np.maximum.accumulate(np.flip(precision)))
    steps = np.linspace(0, 1, 101)
    return float(np.trapezoid(np.interp(steps, recall, envelope), steps))


@pytest.mark.slow
def test_the_mean_average_precision_follows_from_the_predictions(localization: Model) -> None:
    """It equals the one computed here from `predictions.json` and the labels."""
    assert localization.evaluated.missing is None
    assert localization.evaluated.metrics.as_dict()["test"]["box"]["mAP50"] > 0.2
    again = average_precision(localization, 0.5)
    assert again == pytest.approx(localization.evaluated.metrics.as_dict()["test"]["box"]["mAP50"], abs=0.02)


@pytest.mark.slow
def test_the_validation_metrics_are_those_of_the_best_epoch(localization: Model) -> None:
    """As in `results.csv`, within a tolerance: best.pt holds the weights in half precision."""
    metrics = localization.evaluated.metrics.as_dict()
    with (localization.trained.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert metrics["epochs"] == len(rows) == EPOCHS
    row = rows[metrics["best_epoch"] - 1]
    fitness = [float(one["metrics/mAP50-95(B)"]) + float(one["metrics/mAP50-95(P)"]) for one in rows]
    assert metrics["best_epoch"] == max(range(EPOCHS), key=lambda index: (fitness[index], index)) + 1
    for head, letter in (("box", "B"), ("pose", "P")):
        for name, value in metrics["validation"][head].items():
            assert value == pytest.approx(float(row[f"metrics/{name}({letter})"]), abs=0.03), (head, name)


@pytest.mark.slow
def test_corner_errors_follow_from_the_predictions(localization: Model) -> None:
    """They equal those computed here with plain arithmetic: each image holds one object."""
    distances, shares, objects, found = [], [], 0, 0
    for path in localization.dataset.files["test"]:
        name = f"images/test/{path.name}"
        shown = [item for item in localization.predictions if item["file_name"] == name and item["score"] >= 0.25]
        for label in labels(localization, name):
            objects += 1
            near = [
                item for item in sorted(shown, key=lambda item: -item["score"])
                if iou(np.array(label[1:5]), boxed(item["bbox"])) >= 0.5
            ]  # fmt: skip
            if not near:
                continue
            found += 1
            off = [
                math.dist(label[5 + 3 * k : 7 + 3 * k], near[0]["keypoints"][3 * k : 3 * k + 2])
                for k in range(4)
                if label[7 + 3 * k] > 0
            ]
            height = (math.dist(label[5:7], label[14:16]) + math.dist(label[8:10], label[11:13])) / 2
            distances += off
            shares.append(sum(off) / len(off) / height)
    corners = localization.evaluated.metrics.as_dict()["test"]["corners"]
    assert found > 0
    assert (corners["objects"], corners["found"]) == (objects, found)
    assert corners["mean_px"] == pytest.approx(np.mean(distances), abs=0.01)
    assert corners["median_px"] == pytest.approx(np.median(distances), abs=0.01)
    assert corners["p95_px"] == pytest.approx(np.percentile(distances, 95), abs=0.01)
    assert corners["mean_relative"] == pytest.approx(np.mean(shares), abs=0.001)
    assert localization.evaluated.metrics.flat()["test/corners/mean_px"] == corners["mean_px"]


def boxed(bbox: list[float]) -> Any:
    """Return left, top, right and bottom of a box given as left, top, width and height."""
    return np.array([bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]])


@pytest.mark.slow
def test_every_field_of_a_prediction_is_as_documented(localization: Model) -> None:
    """The table in the module's docstring lists every field, and each value is as described there."""
    documented = re.findall(r"^\| `(\w+)` \| (?!of polygons)", str(evaluation.__doc__), re.MULTILINE)
    side = 2 * SIZE
    assert localization.predictions
    for item in localization.predictions:
        assert list(item) == documented
        image = localization.dataset.folder / item["file_name"]
        assert image in localization.dataset.files["test"]
        assert image.stem == item["image_id"]
        assert item["category_id"] == 1
        assert 0.001 <= item["score"] <= 1
        left, top, width, height = item["bbox"]
        assert min(left, top) > -1
        assert max(left + width, top + height) < side + 1
        assert min(width, height) > 0
        assert len(item["keypoints"]) == 4 * 3
        assert all(0 <= confidence <= 1 for confidence in item["keypoints"][2::3])


@pytest.mark.slow
def test_metrics_json_fits_its_schema(localization: Model) -> None:
    """The documented model reads it, and the file holds nothing else."""
    content = json.loads((localization.trained.folder / "metrics.json").read_text())
    assert content == localization.evaluated.metrics.as_dict()
    metrics = Metrics.model_validate(content, strict=True)
    described = Metrics.model_json_schema(by_alias=True)
    assert content.keys() <= described["properties"].keys()
    assert metrics.as_dict() == content
    assert metrics.version == 2
    assert metrics.test is not None
    assert metrics.test.pose is not None


@pytest.mark.slow
def test_sheets_of_predictions_and_of_the_worst_cases_are_drawn(localization: Model) -> None:
    """Both files exist and are 1280 pixels wide."""
    from PIL import Image

    for name in ("predictions.png", "worst.png"):
        with Image.open(localization.evaluated.folder / name) as sheet:
            assert sheet.width == 1280


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_torn_weights_leave_the_epochs_and_the_reason(localization: Model, tmp_path: Path) -> None:
    """Nothing could be measured; metrics.json gives the reason, and the error is returned."""
    trained = localization.in_another_folder(tmp_path)
    trained.best.write_bytes(trained.best.read_bytes()[:1000])
    evaluated = localization.evaluate(trained)
    assert evaluated.metrics.as_dict().keys() == {"schema", "best_epoch", "epochs", "missing"}
    assert evaluated.missing is not None
    assert str(trained.best.parent) in evaluated.missing.state
    assert str(tmp_path) not in evaluated.metrics.as_dict()["missing"]
    assert json.loads((trained.folder / "metrics.json").read_text()) == evaluated.metrics.as_dict()


@pytest.mark.slow
def test_a_failed_split_does_not_affect_the_other(localization: Model, tmp_path: Path) -> None:
    """Without the images of the test split, the validation metrics are complete and no sheet is drawn."""
    trained = localization.in_another_folder(tmp_path)
    gone = tmp_path / "data.yaml"
    described = read_yaml(localization.dataset.data_file)
    gone.write_text(json.dumps({**described, "test": str(tmp_path / "nowhere.txt")}))  # JSON is YAML
    evaluated = localization.evaluate(trained, replace(localization.dataset, data_file=gone))
    measured = evaluated.metrics.as_dict()
    assert measured["validation"]["box"] == localization.evaluated.metrics.as_dict()["validation"]["box"]
    assert "test" not in measured
    assert "the test: " in measured["missing"]


@pytest.mark.slow
def test_an_image_damaged_after_the_check_is_left_out_by_name(localization: Model, tmp_path: Path) -> None:
    """The test split is measured without it, and metrics.json and the error name it."""
    folder = tmp_path / "data"
    shutil.copytree(localization.dataset.folder, folder)
    dataset = check_dataset(folder, localization.experiment, tmp_path / "scratch", md5="0" * 32)
    (folder / "images/test/test-3.png").write_bytes(b"")
    evaluated = localization.evaluate(localization.in_another_folder(tmp_path), dataset)
    measured = evaluated.metrics.as_dict()
    assert measured["missing"] == "test: left out images/test/test-3.png: it has no bytes"
    assert (measured["test"]["images"], measured["test"]["corners"]["objects"]) == (11, 11)
    assert measured["validation"] == localization.evaluated.metrics.as_dict()["validation"]
    assert evaluated.missing is not None
    predictions = json.loads((evaluated.folder / "predictions.json").read_text())
    assert {"images/test/test-3.png"}.isdisjoint(item["file_name"] for item in predictions)
    assert (evaluated.folder / "worst.png").is_file()


@pytest.mark.slow
def test_a_torn_results_csv_does_not_affect_the_metrics(localization: Model, tmp_path: Path) -> None:
    """The best epoch is unknown; best.pt is measured."""
    trained = localization.in_another_folder(tmp_path)
    (trained.folder / "results.csv").write_text("epoch,time\n")
    evaluated = localization.evaluate(trained)
    assert "best_epoch" not in evaluated.metrics.as_dict()
    assert evaluated.metrics.as_dict()["test"] == localization.evaluated.metrics.as_dict()["test"]
    assert "reading results.csv" in evaluated.metrics.as_dict()["missing"]


@pytest.mark.slow
def test_a_failed_plot_does_not_affect_the_metrics(
    localization: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics plots while it measures: the plot is named as missing, and the others are drawn."""
    from ultralytics.utils import metrics

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no fonts here")

    monkeypatch.setattr(metrics, "plot_pr_curve", refuse)
    evaluated = localization.evaluate(localization.in_another_folder(tmp_path))
    assert evaluated.metrics.as_dict()["test"] == localization.evaluated.metrics.as_dict()["test"]
    missing = evaluated.metrics.as_dict()["missing"]
    assert missing == "; ".join(f"drawing {head}PR_curve.png: OSError: no fonts here" for head in ("Box", "Pose"))
    assert (evaluated.folder / "BoxF1_curve.png").is_file()
    assert (evaluated.folder / "worst.png").is_file()


@pytest.mark.slow
def test_a_model_without_predictions_is_measured(localization: Model, tmp_path: Path) -> None:
    """No metric is missing: no object was found, and the sheets are drawn."""
    import torch
    from ultralytics.utils.patches import torch_load

    trained = localization.in_another_folder(tmp_path)
    checkpoint = torch_load(trained.best, map_location="cpu")
    for parameter in checkpoint["model"].parameters():
        parameter.data.zero_()
    for convolutions in checkpoint["model"].model[-1].cv3:
        convolutions[-1].bias.data.fill_(-60000)  # no class anywhere
    torch.save(checkpoint, trained.best)
    evaluated = localization.evaluate(trained)
    assert evaluated.missing is None
    assert evaluated.metrics.as_dict()["test"]["corners"] == {"objects": 12, "found": 0}
    assert json.loads((evaluated.folder / "predictions.json").read_text()) == []
    assert (evaluated.folder / "worst.png").is_file()


@pytest.mark.slow
def test_ctrl_c_while_images_are_drawn_does_not_affect_the_metrics(
    localization: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt ends the evaluation; metrics.json holds what was measured before."""
    from PIL import Image

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    trained = localization.in_another_folder(tmp_path)
    (trained.folder / "metrics.json").unlink()
    monkeypatch.setattr(Image.Image, "quantize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        localization.evaluate(trained)
    content = json.loads((trained.folder / "metrics.json").read_text())
    assert content["test"] == localization.evaluated.metrics.as_dict()["test"]


# ── matching ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SQUARE = [[0, 0, 2], [40, 0, 2], [40, 10, 2], [0, 10, 2]]


def detection(left: float, top: float, score: float = 1.0, category: int = 0, shift: float = 0.0) -> Detection:
    """Return an object of 40 x 10 pixels; its corners are `shift` pixels to the right of its box."""
    corners = np.array(SQUARE, dtype=float) + np.array([left + shift, top, 0])
    return Detection(category, np.array([left, top, left + 40, top + 10], dtype=float), corners, score)


def test_each_object_is_matched_once_and_the_surest_prediction_first() -> None:
    """Of two predictions on one label, only the surer one matches; the label without a prediction has none."""
    one, two = detection(0, 0), detection(100, 0)
    sure, unsure, elsewhere = detection(4, 0, 0.9), detection(1, 0, 0.6), detection(50, 50, 0.5)
    assert match([one, two], [sure, unsure, elsewhere]) == [(one, sure), (two, None)]
    assert match([], [sure]) == []
    assert match([one], [detection(0, 0, 0.9, category=1)]) == [(one, None)]
    assert match([one], [detection(25, 0, 0.9)]) == [(one, None)]  # an IoU of 15/65


def test_corner_errors_are_those_of_the_found_objects_and_count_them() -> None:
    """One corner has no label, and one object is not found; 3 and 5 pixels of 10 are 30 and 50 %."""
    hidden = detection(0, 0)
    hidden.corners[0] = 0  # a corner without a label is 0 0 0 in a label file
    matches = (
        Match(hidden, detection(0, 0, 0.9, shift=3.0)),
        Match(detection(100, 0), detection(100, 0, 0.9, shift=5.0)),
        Match(detection(200, 0), None),
    )
    compared = ImageMatches(
        Path("a.jpg"), matches, (detection(0, 0, 0.9), detection(100, 0, 0.9), detection(300, 0, 0.4))
    )
    assert (compared.missed, compared.false) == (1, 1)
    figures = corner_errors([compared])
    assert figures == {
        "objects": 3, "found": 2, "mean_px": pytest.approx(29 / 7, abs=1e-3), "median_px": 5.0, "p95_px": 5.0,
        "mean_relative": 0.4,
    }  # fmt: skip
    assert corner_errors([ImageMatches(Path("a.jpg"), matches[2:], ())]) == {"objects": 1, "found": 0}


def test_images_are_identified_by_their_path_and_read_upright(tmp_path: Path) -> None:
    """Same name with two suffixes, a rotated image (EXIF), a byte order mark, no folder `images`."""
    from PIL import Image

    image = Image.new("RGB", (100, 50), "grey")
    exif = Image.Exif()
    exif[274] = 6  # shown upright, it is 50 wide and 100 high
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.8 0.1\n0 0.50 0.5 0.8 0.1\n")  # the same twice
    files = (tmp_path / "a.jpg", tmp_path / "a.png")
    dataset = Dataset(tmp_path, tmp_path / "data.yaml", "", {"test": 2}, {0: "door"}, {"test": files})
    item = {"image_id": "a", "category_id": 1, "score": 0.9}
    predictions = [
        {**item, "file_name": "a.jpg", "bbox": [5, 45, 40, 10]},
        {**item, "file_name": "a.png", "bbox": [10, 22.5, 80, 5]},
        {**item, "file_name": "a.png", "bbox": [10, 22.5, 80, 5], "score": 0.2},
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    compared = compare(dataset, tmp_path / "predictions.json")
    assert [(len(one.matches), one.missed, one.false) for one in compared] == [(1, 0, 0), (1, 0, 0)]
    boxes = [each.label.box.round(6).tolist() for one in compared for each in one.matches]
    assert boxes == [[5, 45, 45, 55], [10, 22.5, 90, 27.5]]
    draw_worst(compared, tmp_path / "worst.png", corners=False)
    assert (tmp_path / "worst.png").is_file()


def tiny_dataset(folder: Path, files: dict[str, Any], label: str) -> Dataset:
    """Write images by name, with the arguments of Pillow's `save` or as bytes, each with the label."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(label)
    paths = tuple(folder / name for name in files)
    return Dataset(folder, folder / "data.yaml", "", {"test": len(paths)}, {0: "plate"}, {"test": paths})


def saved(image: Any, form: str, **options: Any) -> bytes:
    """Return an image in a format of Pillow."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turning(orientation: int) -> Any:
    """Return EXIF data with an orientation."""
    from PIL import Image

    exif = Image.Exif()
    exif[274] = orientation
    return exif


def plate(depth: int = 8) -> Any:
    """Return an image of 80 x 40 pixels that is dark on its left and bright on its right side."""
    from PIL import Image

    pixels = np.repeat(np.repeat(np.array([[40, 220]]), 40, axis=0), 40, axis=1)
    return Image.fromarray(pixels.astype(np.uint8) if depth == 8 else (pixels * 257).astype(np.uint16))


UPRIGHT = "0 0.5 0.25 1 0.5 0 0 2 1 0 2 1 0.5 2 0 0.5 2"
"""The upper half of an image, and its corners."""


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_objects_are_measured_in_pixels_of_the_image_that_training_reads(
    tmp_path: Path, form: str, orientation: int
) -> None:
    """For each format and orientation, a label of the upper half lies in the upper half of the upright image."""
    dataset = tiny_dataset(tmp_path, {"a": saved(plate().convert("RGB"), form, exif=turning(orientation))}, UPRIGHT)
    (dataset.folder / "a").rename(tmp_path / f"a.{form.lower()}")
    dataset = replace(dataset, files={"test": (tmp_path / f"a.{form.lower()}",)})
    (tmp_path / "predictions.json").write_text("[]")
    ((one,),) = (image.matches for image in compare(dataset, tmp_path / "predictions.json"))
    width, height = (40, 80) if orientation in {6, 8} else (80, 40)
    assert one.label.box.tolist() == [0, 0, width, height / 2]
    assert one.label.corners[2, :2].tolist() == [width, height / 2]


def test_sheets_show_images_as_training_reads_them(tmp_path: Path) -> None:
    """Images of 16 bits, with damaged EXIF data or an orientation give the same sheets as their plain twins."""
    bad_exif = turning(1).tobytes()[:-9]
    variants = {
        "plain": saved(plate().convert("RGB"), "PNG"),
        "deep": saved(plate(16), "PNG"),
        "damaged": saved(plate().convert("RGB"), "PNG", exif=bad_exif),
        "turned": saved(plate().transpose(2).convert("RGB"), "PNG", exif=turning(6)),  # turned by 90 degrees
    }
    sheets = {}
    for name, content in variants.items():
        folder = tmp_path / name
        folder.mkdir()
        dataset = tiny_dataset(folder, {"a.png": content}, UPRIGHT)
        (folder / "predictions.json").write_text("[]")
        compared = compare(dataset, folder / "predictions.json")
        draw_worst(compared, folder / "worst.png", corners=True)
        draw_predictions(compared, folder / "predictions.png")
        sheets[name] = (folder / "worst.png").read_bytes(), (folder / "predictions.png").read_bytes()
    assert len(set(sheets.values())) == 1


def test_an_unreadable_image_costs_no_other_image_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named and left out of the figures; if it is lost later, its tile holds the reason."""
    content = saved(plate().convert("RGB"), "PNG")
    dataset = tiny_dataset(tmp_path, {"a.png": content, "b.png": content[:99], "c.png": content}, UPRIGHT)
    found = {
        "category_id": 1,
        "score": 0.9,
        "bbox": [0, 0, 80, 20],
        "keypoints": [0, 0, 1, 80, 0, 1, 80, 20, 1, 0, 20, 1],
    }
    predictions = [{**found, "file_name": name, "image_id": name[0]} for name in ("a.png", "c.png")]
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    compared = compare(dataset, tmp_path / "predictions.json")
    assert corner_errors(compared) == {
        "objects": 2, "found": 2, "mean_px": 0.0, "median_px": 0.0, "p95_px": 0.0, "mean_relative": 0.0,
    }  # fmt: skip
    assert "b.png cannot be read" in capsys.readouterr().out
    (tmp_path / "c.png").unlink()
    draw_worst(compared, tmp_path / "worst.png", corners=True)
    draw_predictions(compared, tmp_path / "predictions.png")
    assert (tmp_path / "worst.png").is_file()
    assert (tmp_path / "predictions.png").is_file()


@pytest.mark.parametrize(
    ("visible", "caption"),
    [((2, 2, 2, 2), "3.0 px, 30 % of height"), ((2, 0, 0, 0), "3.0 px"), ((0, 0, 0, 0), "no corner labelled")],
)
def test_a_caption_names_what_could_be_measured(tmp_path: Path, visible: tuple[int, ...], caption: str) -> None:
    """Without two corners of a side there is no height; without a corner there is no distance either."""
    (tmp_path / "a.png").write_bytes(saved(plate(), "PNG"))
    label = detection(0, 0)
    label.corners[:, 2] = visible
    one = Match(label, detection(0, 0, 0.9, shift=3.0))
    assert _close_up(one, ImageMatches(tmp_path / "a.png", [one], []))[0] == f"{caption}: a.png"


def test_cases_without_a_measure_come_after_the_measured_ones() -> None:
    """An object whose corners are all unlabelled is not among the worst."""
    unlabelled = detection(0, 0)
    unlabelled.corners[:] = 0
    matches = [
        Match(unlabelled, detection(0, 0, 0.9)), Match(detection(0, 0), detection(0, 0, 0.9, shift=1.0)),
        Match(detection(0, 0), detection(0, 0, 0.9, shift=3.0)), Match(detection(0, 0), None),
    ]  # fmt: skip
    assert sorted(matches, key=_badness) == matches
