"""Measure the best weights on the validation and the test split.

Guarantees: every figure was measured here, with `best.pt`; one that could not be measured is absent, never 0.0, and the
file says why. The weights are only read.

`train/metrics.json` is a `Metrics`, below. `test/predictions.json` is a list, one entry a predicted object:

| field | meaning |
| --- | --- |
| `image_id` | the picture's file name without its ending |
| `file_name` | its path below the dataset's folder, with slashes: this names it for certain |
| `category_id` | the class's number, from 1 as in COCO |
| `bbox` | left, top, width and height in pixels of the upright picture |
| `score` | between 0 and 1; everything from 0.001 on is listed |
| `segmentation` | of polygons: the mask as COCO's run lengths, in pixels of the picture |
| `keypoints` | localization: top-left, top-right, bottom-right, bottom-left, each x, y (pixels) and a confidence |
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lib.data.dataset import Dataset
from lib.errors import EvaluationError
from lib.experiment.schema import Experiment
from lib.progress import Bar
from lib.results.matching import compare, corner_errors, file_name
from lib.results.sheets import draw_predictions, draw_worst
from lib.train.launch import Trained

HEADS = {"box": "B", "mask": "M", "pose": "P"}
"""The heads of ultralytics' networks, and the letter by which its figures name each: `metrics/mAP50(B)`."""
PICTURE_SIDE = 1280  # pixels; pictures go into Git, weights do not


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Head(_Section):
    """What ultralytics measures of boxes, masks or poses; between 0 and 1."""

    precision: float
    recall: float
    map50: float = Field(alias="mAP50")
    """Mean average precision at an IoU (of masks for masks; poses: OKS) of 0.5."""
    map50_95: float = Field(alias="mAP50-95")
    """The mean of those from 0.5 to 0.95 in steps of 0.05."""


class Corners(_Section):
    """How far predicted corners are off. OKS, which mAP of poses rests on, forgives too much on four corners."""

    objects: int
    """Labelled objects of the split."""
    found: int
    """Those of them with a prediction (score 0.25, IoU 0.5 or more); the others are in no figure below."""
    mean_px: float | None = None
    """Over all labelled corners of found objects: the mean distance in pixels of the original picture."""
    median_px: float | None = None
    p95_px: float | None = None
    """95 of 100 corners are nearer than this."""
    mean_relative: float | None = None
    """The mean over objects of their corners' mean distance, as a share of the mean of their left and right sides."""


class Split(_Section):
    """What was measured on one split."""

    images: int
    box: Head | None = None
    mask: Head | None = None
    pose: Head | None = None
    corners: Corners | None = None


class Metrics(_Section):
    """The content of `metrics.json`; what was not measured is absent."""

    version: int = Field(default=2, alias="schema")
    best_epoch: int | None = None
    """The epoch that `best.pt` is of, from 1."""
    epochs: int | None = None
    """Epochs that were trained."""
    validation: Split | None = None
    """`best.pt` on the split that chose it."""
    test: Split | None = None
    missing: str | None = None
    """Why something is absent."""


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
            f"{split}/{part}/{name}": value
            for split in ("validation", "test")
            for part in (*HEADS, "corners")
            for name, value in self.metrics.get(split, {}).get(part, {}).items()
        }


def evaluate(experiment: Experiment, dataset: Dataset, trained: Trained, *, device: str) -> Evaluated:
    """Validate `best.pt` on the `val` and `test` splits; write `train/metrics.json` and everything in `test/`.

    What fails is given back as `missing`, and the rest is measured all the same.
    """
    folder = trained.folder.parent / "test"
    shutil.rmtree(folder, ignore_errors=True)  # what an evaluation before this one left is not this one's
    folder.mkdir(parents=True)
    scratch = dataset.data_file.parent / "validation"
    measured: dict[str, Any] = {}
    attempt = _Attempts(folder.parent, scratch, dataset.folder)

    def write() -> dict[str, Any]:
        metrics = Metrics.model_validate(measured | ({"missing": "; ".join(attempt.failed)} if attempt.failed else {}))
        content = metrics.model_dump(mode="json", by_alias=True, exclude_none=True)
        (trained.folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return content

    def measure(split: str, key: str, target: Path, *, plots: bool = False) -> None:
        results = _validate(experiment, dataset, trained, split, target, device, plots=plots)
        measured[key] = {"images": dataset.counts[split], **_heads(results)}

    def measure_corners() -> None:
        measured["test"]["corners"] = corner_errors(compare(dataset, folder / "predictions.json"))

    def draw() -> None:
        compared = compare(dataset, folder / "predictions.json")
        draw_predictions(compared, folder / "predictions.png")
        draw_worst(compared, folder / "worst.png", corners=experiment.about.keypoints > 0)

    attempt("reading results.csv", lambda: measured.update(_epochs(trained.folder / "results.csv")))
    attempt("validation", lambda: measure("val", "validation", scratch))
    shutil.rmtree(scratch, ignore_errors=True)
    attempt("the test", lambda: measure("test", "test", folder, plots=True))
    if "validation" in measured and "test" not in measured:
        attempt("the test without plots", lambda: measure("test", "test", folder))
    if "test" in measured:
        if experiment.about.keypoints:
            attempt("measuring corners", measure_corners)
        write()  # no picture costs a figure
        attempt("drawing predictions", draw)
    attempt("drawing the training's pictures", lambda: to_png(trained.folder))
    attempt("drawing the test's pictures", lambda: to_png(folder))
    content = write()
    return Evaluated(folder, content, _missing(content["missing"], trained) if attempt.failed else None)


class _Attempts:
    """Does one thing after the other; one that fails is kept and said, without the `places` of this machine."""

    def __init__(self, *places: Path) -> None:
        self._places = places
        self.failed: list[str] = []

    def __call__(self, what: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # noqa: BLE001  whatever fails here, the weights must be published
            told = " ".join(f"{type(error).__name__}: {error}".split())
            for place in self._places:
                told = told.replace(f"{place}{os.sep}", "")
            self.failed.append(f"{what}: {told}")
            traceback.print_exc()
            print(f"Warning: {what} failed: {told}", flush=True)


def _missing(why: str, trained: Trained) -> EvaluationError:
    return EvaluationError(
        f"not everything could be measured: {why}",
        state=f"the weights are in {trained.best.parent}, and what was measured is in metrics.json.",
        remedy="read the log above the error; the weights can be validated again with `yolo val`.",
    )


def _validate(
    experiment: Experiment, dataset: Dataset, trained: Trained, split: str, folder: Path, device: str, *, plots: bool
) -> Mapping[str, Any]:
    """Give ultralytics' figures of a split; plots, and the test split's predictions, are left in `folder`."""
    from ultralytics.models import YOLO

    task = experiment.about.task
    model = YOLO(str(trained.best), task=task)
    bar = Bar(f"Measuring best.pt on {split}")

    def end_batch(validator: Any) -> None:  # noqa: ANN401  ultralytics has no types
        bar.total = len(validator.dataloader)
        bar.show(validator.batch_i + 1)

    model.add_callback("on_val_batch_end", end_batch)
    measured = model.val(
        data=str(dataset.data_file),
        split=split,
        imgsz=experiment.training.image_size,
        batch=trained.batch_size or experiment.training.batch_size,
        workers=experiment.hardware.num_workers,
        device=device.partition(",")[0],
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
        plots=plots,
        save_json=split == "test",
        validator=_validator(model.task_map[task]["validator"], dataset),
    )
    bar.end(f"Measured best.pt on {split}: {dataset.counts[split]} pictures")
    if split == "test" and not (folder / "predictions.json").is_file():
        (folder / "predictions.json").write_text("[]\n", encoding="utf-8")  # the library writes none for no prediction
    results: Mapping[str, Any] = measured.results_dict
    return results


def _validator(base: Any, dataset: Dataset) -> Any:  # noqa: ANN401  ultralytics has no types
    """Give a task's validator with pictures that are named for certain, and without its second opinion."""

    class Validator(base):  # type: ignore[misc]
        def pred_to_json(self, predn: dict[str, Any], pbatch: dict[str, Any]) -> None:
            before = len(self.jdict)
            super().pred_to_json(predn, pbatch)
            picture = Path(pbatch["im_file"])
            named = {"image_id": picture.stem, "file_name": file_name(dataset, picture)}
            for item, number in zip(self.jdict[before:], predn["cls"].tolist(), strict=True):
                item.update(named, category_id=int(number) + 1)
                if "keypoints" in item:
                    item["keypoints"] = [round(value, 3) for value in item["keypoints"]]  # it goes into Git

        def eval_json(self, stats: dict[str, Any]) -> dict[str, Any]:
            return stats

    return Validator


def _heads(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Sort ultralytics' `metrics/mAP50(B)` by head and name; a head that it did not measure is left out."""
    names = [field.alias or name for name, field in Head.model_fields.items()]
    found = {head: {name: results.get(f"metrics/{name}({letter})") for name in names} for head, letter in HEADS.items()}
    return {
        head: {name: round(float(value), 5) for name, value in values.items() if value is not None}
        for head, values in found.items()
        if any(value is not None for value in values.values())
    }


def _epochs(results: Path) -> dict[str, int]:
    """Find the best epoch as the trainer does: by mAP50-95, all heads added; the later of equals."""
    with results.open(encoding="utf-8", newline="") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    scores = [sum(float(value) for key, value in row.items() if key.startswith("metrics/mAP50-95(")) for row in rows]
    best = max(range(len(rows)), key=lambda index: (scores[index], index))
    return {"best_epoch": int(rows[best]["epoch"]), "epochs": int(rows[-1]["epoch"])}


def to_png(folder: Path) -> None:
    """Turn the library's JPEG mosaics into PNG of a size that suits Git."""
    from PIL import Image

    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            image.quantize(256).save(path.with_suffix(".png"), optimize=True)
        path.unlink()
