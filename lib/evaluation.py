"""Measure the best weights on the validation and the test split, and draw what they predict.

Guarantees: every figure was measured here, with `best.pt`; one that could not be measured is absent, never 0.0.

`metrics.json` (schema 1): `best_epoch` and `epochs` count from 1; `validation` and `test` each hold `images` and, for
`box` and (localization) `pose`, `precision`, `recall`, `mAP50` and `mAP50-95` between 0 and 1.

`predictions.json` is a list, one entry a predicted object: `image_id` (file name without ending), `file_name`,
`category_id` (from 1, as in COCO), `bbox` [x, y, width, height] in pixels from the top-left corner, `score`, and for
localization `keypoints`, four times x, y in pixels and a confidence, in the order top-left, top-right, bottom-right,
bottom-left.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.dataset import Dataset
from lib.errors import EvaluationError
from lib.experiment import Experiment
from lib.training import Trained

METRICS = ("precision", "recall", "mAP50", "mAP50-95")
HEADS = {"box": "B", "pose": "P"}
PICTURE_SIDE = 1280  # pixels; pictures go into Git, weights do not


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left: its folder (`test/`) and the content of `metrics.json`."""

    folder: Path
    metrics: dict[str, Any]
    missing: EvaluationError | None = None
    """Why something could not be measured; to be raised when everything else is saved."""

    def flat(self) -> dict[str, float]:
        """Give the measured values by one name each: `test/box/mAP50`."""
        return {
            f"{split}/{head}/{name}": value
            for split in ("validation", "test")
            for head in HEADS
            for name, value in self.metrics.get(split, {}).get(head, {}).items()
        }


def evaluate(experiment: Experiment, dataset: Dataset, trained: Trained, *, device: str) -> Evaluated:
    """Validate `best.pt` on the `val` and `test` splits; write `train/metrics.json` and everything in `test/`.

    Raises `EvaluationError`; the weights are not touched by it.
    """
    from ultralytics.models import YOLO

    folder = trained.folder.parent / "test"
    scratch = dataset.data_file.parent / "validation"
    model = YOLO(str(trained.best), task=experiment.about.task)
    metrics: dict[str, Any] = {"schema": 1, **_epochs(trained.folder / "results.csv")}
    try:
        for split, key, target in (("val", "validation", scratch), ("test", "test", folder)):
            measured = model.val(
                data=str(dataset.data_file),
                split=split,
                imgsz=experiment.training.image_size,
                batch=experiment.training.batch_size,
                workers=experiment.hardware.num_workers,
                device=device.partition(",")[0],
                project=str(target.parent),
                name=target.name,
                exist_ok=True,
                plots=split == "test",
                save_json=split == "test",
                validator=_validator(experiment.about.task),
            )
            metrics[key] = {"images": dataset.counts[split], **_heads(measured.results_dict)}
    except Exception as error:
        raise EvaluationError(
            f"validating {trained.best} failed: {type(error).__name__}: {error}",
            state=f"the weights are in {trained.best.parent}.",
            remedy="read the log above the error; the weights can be validated again with `yolo val`.",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (trained.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draw_predictions(dataset, folder / "predictions.json", folder / "predictions.png")
    for place in (trained.folder, folder):
        to_png(place)
    return Evaluated(folder, metrics)


def _validator(task: str) -> Any:  # noqa: ANN401  ultralytics has no types
    """Give the task's validator without its second opinion: one way of measuring for both splits."""
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.models.yolo.pose import PoseValidator

    base: Any = {"detect": DetectionValidator, "pose": PoseValidator}[task]

    class Validator(base):  # type: ignore[misc]
        def eval_json(self, stats: dict[str, Any]) -> dict[str, Any]:
            return stats

    return Validator


def _heads(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Sort ultralytics' `metrics/mAP50(B)` by head and name; what it did not measure is left out."""
    sorted_out = {}
    for head, letter in HEADS.items():
        found = {name: results.get(f"metrics/{name}({letter})") for name in METRICS}
        values = {name: round(float(value), 5) for name, value in found.items() if value is not None}
        if values:
            sorted_out[head] = values
    return sorted_out


def _epochs(results: Path) -> dict[str, int]:
    """Find the best epoch as the trainer does: by mAP50-95, box and pose added; the later of equals."""
    with results.open(encoding="utf-8", newline="") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    scores = [
        sum(float(row[key]) for key in ("metrics/mAP50-95(B)", "metrics/mAP50-95(P)") if row.get(key)) for row in rows
    ]
    best = max(range(len(rows)), key=lambda index: (scores[index], index))
    return {"best_epoch": int(rows[best]["epoch"]), "epochs": int(rows[-1]["epoch"])}


def draw_predictions(dataset: Dataset, predictions: Path, picture: Path, *, most: int = 12) -> None:
    """Draw up to `most` test pictures: the labels in white, what was predicted in colour with its score."""
    from PIL import Image, ImageDraw, ImageFont

    found: dict[str, list[dict[str, Any]]] = {}
    for item in json.loads(predictions.read_text(encoding="utf-8")):
        found.setdefault(str(item["image_id"]), []).append(item)
    pictures = dataset.pictures("test")
    chosen = pictures[:: max(1, len(pictures) // most)][:most]
    columns = min(4, len(chosen))
    cell, header = 1280 // max(2, columns), 28
    size = max(2, columns) * cell, header + math.ceil(len(chosen) / columns) * cell
    sheet = Image.new("RGB", size, (24, 26, 30))
    font = ImageFont.load_default(13)
    ImageDraw.Draw(sheet).text(
        (8, 6), f"{len(chosen)} of {len(pictures)} test pictures: labels white, predictions in colour with their score",
        fill="white", font=font,
    )  # fmt: skip
    for index, path in enumerate(chosen):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scale = min(cell / image.width, cell / image.height)
        tile = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        draw = ImageDraw.Draw(tile)
        for box, corners in _labels(path, tile.width, tile.height):
            draw.rectangle(box, outline="white", width=3)
            _draw_corners(draw, corners, ("white",) * len(corners), 4)
        for item in sorted(found.get(path.stem, []), key=lambda item: item["score"]):
            if item["score"] < 0.25:  # noqa: PLR2004  ultralytics' own threshold for showing a prediction
                continue
            x, y, width, height = (value * scale for value in item["bbox"])
            draw.rectangle((x, y, x + width, y + height), outline="#ff5a36", width=2)
            label = f"{item['score']:.2f}"
            draw.rectangle((x, max(0, y - 16), x + 8 * len(label) + 4, max(16, y)), fill="#ff5a36")
            draw.text((x + 3, max(0, y - 15)), label, fill="black", font=font)
            points = item.get("keypoints") or []
            corners = [(points[k] * scale, points[k + 1] * scale) for k in range(0, len(points), 3)]
            _draw_corners(draw, corners, ("#ff3b30", "#34c759", "#0a84ff", "#ffd60a"), 3)
        left, top = index % columns * cell, header + index // columns * cell
        sheet.paste(tile, (left + (cell - tile.width) // 2, top + (cell - tile.height) // 2))
    sheet.quantize(256).save(picture, optimize=True)  # it goes into Git


def _draw_corners(draw: Any, corners: list[tuple[float, float]], colours: tuple[str, ...], radius: int) -> None:  # noqa: ANN401
    if not corners:
        return
    draw.line([*corners, corners[0]], fill=colours[0], width=1)
    for (x, y), colour in zip(corners, colours, strict=False):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="black")


def _labels(picture: Path, width: int, height: int) -> list[tuple[tuple[float, ...], list[tuple[float, float]]]]:
    """Read a picture's YOLO labels as boxes and corners in pixels of a picture of this size."""
    parts = list(picture.parts)
    # ultralytics finds labels by the same rule: the last folder `images` becomes `labels`
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    file = Path(*parts).with_suffix(".txt")
    labels: list[tuple[tuple[float, ...], list[tuple[float, float]]]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        _, x, y, w, h, *rest = (float(word) for word in line.split())
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        labels.append((box, [(rest[k] * width, rest[k + 1] * height) for k in range(0, len(rest) - 1, 3)]))
    return labels


def to_png(folder: Path) -> None:
    """Turn the library's JPEG mosaics into PNG of a size that suits Git."""
    from PIL import Image

    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            image.quantize(256).save(path.with_suffix(".png"), optimize=True)
        path.unlink()
