"""Measure the best weights on the validation and the test split.

Guarantees: every figure was measured here, with `best.pt`; a figure that could not be measured is absent, never 0.0,
and the file gives the reason. The weights are only read.

`train/metrics.json` holds a `Metrics` (`lib/results/record.py`). `test/predictions.json` is a list with one entry per
predicted object:

| field | meaning |
| --- | --- |
| `image_id` | the image's file name without its extension |
| `file_name` | its path below the dataset's folder, with slashes; this identifies the image uniquely |
| `category_id` | the class's number, from 1 as in COCO |
| `bbox` | left, top, width and height in pixels of the upright image |
| `score` | between 0 and 1; every prediction from 0.001 on is listed |
| `segmentation` | of polygons: the mask in COCO's run-length encoding, in pixels of the image |
| `keypoints` | localization: top-left, top-right, bottom-right, bottom-left, each x, y (pixels) and a confidence |
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lib.data.dataset import Dataset, leave_out_unreadable
from lib.errors import EvaluationError
from lib.escape import visible
from lib.progress import Bar
from lib.results.matching import compare, corner_errors, file_name
from lib.results.record import SCHEMA, Metrics
from lib.results.sheets import draw_predictions, draw_worst
from lib.session import Session
from lib.train.curves import best_epoch, read_curves
from lib.train.launch import Trained
from lib.train.plots import guarded_plots

HEADS = {"B": "box", "M": "mask", "P": "pose"}
"""The heads of ultralytics' networks by the letter that marks each in its metric names: `metrics/mAP50(B)`."""
IMAGE_SIDE = 1280  # pixels; images are committed to Git, unlike weights


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation: its folder (`test/`) and the content of `metrics.json`."""

    folder: Path
    metrics: Metrics
    missing: EvaluationError | None = None
    """Why something could not be measured; the error to raise after everything else is saved."""


def evaluate(session: Session, dataset: Dataset, trained: Trained) -> Evaluated:
    """Validate `best.pt` on the `val` and `test` splits; write `train/metrics.json` and everything in `test/`.

    A failure is returned as `missing`; everything else is still measured.
    """
    experiment, folder = session.experiment, trained.folder.parent / "test"
    shutil.rmtree(folder, ignore_errors=True)  # files of an earlier evaluation must not pass for this one's
    folder.mkdir(parents=True)
    scratch = dataset.data_file.parent / "validation"
    measured, failed = dict[str, Any](), list[str]()
    note = partial(_note, failed, (folder.parent, scratch, dataset.folder))
    attempt = partial(_attempt, note)
    for split in ("val", "test"):
        dataset, problems = leave_out_unreadable(dataset, split)
        failed += [f"{split}: left out {problem}" for problem in problems]
    print("".join(f"Warning: {problem}\n" for problem in failed), end="", flush=True)
    validate = partial(_validate, session, dataset, trained)

    def write() -> Metrics:
        missing = {"missing": "; ".join(failed)} if failed else {}
        metrics = Metrics.model_validate({"schema": SCHEMA, **measured, **missing})
        metrics.write(trained.folder / "metrics.json")
        return metrics

    with attempt("reading results.csv"):
        measured |= _epochs(trained.folder / "results.csv")
    with attempt("validation"):
        measured["validation"] = validate("val", scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    with attempt("the test"), guarded_plots(note):
        measured["test"] = validate("test", folder, plots=True)
    if "test" in measured:
        if experiment.about.keypoints:
            with attempt("measuring corners"):
                measured["test"]["corners"] = corner_errors(compare(dataset, folder / "predictions.json"))
        write()  # written first: a failed drawing must not cost a figure
        with attempt("drawing predictions"):
            compared = compare(dataset, folder / "predictions.json")
            draw_predictions(compared, folder / "predictions.png")
            draw_worst(compared, folder / "worst.png", corners=experiment.about.keypoints > 0)
    with attempt("drawing the training's images"):
        to_png(trained.folder)
    with attempt("drawing the test's images"):
        to_png(folder)
    metrics = write()
    error = EvaluationError(
        f"not everything could be measured: {metrics.missing}",
        state=f"the weights are in {trained.best.parent}, and what was measured is in metrics.json.",
        remedy="read the log above the error; the weights can be validated again with `yolo val`.",
    )
    return Evaluated(folder, metrics, error if metrics.missing else None)


@contextlib.contextmanager
def _attempt(note: Callable[[str, str], None], what: str) -> Iterator[None]:
    """Print and note a failure of the block."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  no failure here may keep the weights from being published
        traceback.print_exc()
        note(what, f"{type(error).__name__}: {error}")


def _note(failed: list[str], places: Sequence[Path], what: str, cause: str) -> None:
    """Print a failure and add it to `failed`, without the paths `places` of this machine."""
    message = visible(" ".join(cause.split()))
    for place in places:
        message = message.replace(f"{place}{os.sep}", "")
    failed.append(f"{what}: {message}")
    print(f"Warning: {what} failed: {message}", flush=True)


def _validate(
    session: Session, dataset: Dataset, trained: Trained, split: str, folder: Path, *, plots: bool = False
) -> dict[str, Any]:
    """Return the figures of a split; write plots, and the test split's predictions, into `folder`."""
    from ultralytics.models import YOLO

    experiment, task = session.experiment, session.experiment.about.task
    model = YOLO(str(trained.best), task=task)
    bar = Bar(f"Measuring best.pt on {split}")

    def end_batch(validator: Any) -> None:  # noqa: ANN401  ultralytics is untyped
        bar.total = len(validator.dataloader)
        bar.show(validator.batch_i + 1)

    model.add_callback("on_val_batch_end", end_batch)
    measured = model.val(
        data=str(dataset.data_file),
        split=split,
        imgsz=experiment.training.image_size,
        batch=trained.batch_size or experiment.training.batch_size,
        workers=experiment.hardware.num_workers,
        device=session.device.partition(",")[0],
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
        plots=plots,
        save_json=split == "test",
        validator=_validator(model.task_map[task]["validator"], dataset),
    )
    bar.end(f"Measured best.pt on {split}: {dataset.counts[split]} images")
    if split == "test" and not (folder / "predictions.json").is_file():
        (folder / "predictions.json").write_text("[]\n", encoding="utf-8")  # the library writes none for an empty list
    return {"images": dataset.counts[split], **_heads(measured.results_dict)}


def _validator(base: Any, dataset: Dataset) -> Any:  # noqa: ANN401  ultralytics is untyped
    """Return a task's validator class that names images uniquely and skips the library's second evaluation."""

    class Validator(base):  # type: ignore[misc]
        def pred_to_json(self, predn: dict[str, Any], pbatch: dict[str, Any]) -> None:
            before = len(self.jdict)
            super().pred_to_json(predn, pbatch)
            image = Path(pbatch["im_file"])
            named = {"image_id": image.stem, "file_name": file_name(dataset, image)}
            for item, number in zip(self.jdict[before:], predn["cls"].tolist(), strict=True):
                item.update(named, category_id=int(number) + 1)
                if "keypoints" in item:
                    item["keypoints"] = [round(value, 3) for value in item["keypoints"]]  # it is committed to Git

        def eval_json(self, stats: dict[str, Any]) -> dict[str, Any]:
            return stats

    return Validator


def _heads(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return ultralytics' figures (`metrics/mAP50(B)`) by head and name; omit heads that were not measured."""
    found: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        if named := re.fullmatch(r"metrics/(.+)\(([BMP])\)", key):
            found.setdefault(HEADS[named[2]], {})[named[1]] = round(float(value), 5)
    return found


def _epochs(results: Path) -> dict[str, int]:
    """Return the best epoch and the number of epochs."""
    curves = read_curves(results.read_text(encoding="utf-8"))
    best = best_epoch(curves)
    return {"best_epoch": int(curves["epoch"][best]), "epochs": int(curves["epoch"][-1])}


def to_png(folder: Path) -> None:
    """Convert the library's JPEG mosaics to PNG images small enough for Git."""
    from PIL import Image

    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
            image.quantize(256).save(path.with_suffix(".png"), optimize=True)
        path.unlink()
