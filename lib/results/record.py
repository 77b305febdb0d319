"""The typed content of `run.json` and `metrics.json`, the two records that a run publishes.

Guarantees: `write` and the reader use the same models, so a record is read back as it was written. Files of every
earlier version are readable: a key that they lack has its default, and `as_dict` leaves it out. Unknown keys are
ignored. `parse` reports an invalid value with its key, on one line.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from lib.experiment.load import flat
from lib.experiment.schema import ExperimentValues
from lib.files import write_whole
from lib.kaggle.host import Gpu
from lib.train.launch import State

SCHEMA = 2
"""The version of both formats. Files that name no version have version 1."""


Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], text: str | bytes) -> Model:
    """Return the record in a JSON text. Raises `ValueError` with the first invalid keys."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        found = (": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()[:3])
        raise ValueError("; ".join(found)) from None


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class _Record(_Section):
    version: int = Field(default=1, alias="schema")

    def as_dict(self) -> dict[str, Any]:
        """Return the recorded values as JSON-serializable values, by their keys in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def write(self, file: Path) -> None:
        """Write the record to a JSON file."""
        write_whole(file, json.dumps(self.as_dict(), indent=2) + "\n")


# ── run.json ────────────────────────────────────────────────────────────────────────────────────────────────────────


class DatasetRecord(_Section):
    """The dataset that a run was trained on."""

    path: str = ""
    md5: str = ""
    images: dict[str, int] = Field(default={}, alias="pictures")
    """Number of images, by split."""
    names: dict[int, str] = {}
    """Class names, by class number."""


class PreparedRecord(_Section):
    """The images that were decoded before training; none if `reason` says why."""

    images: int = 0
    bytes: int = 0
    """The size of the arrays."""
    seconds: float = 0.0
    reused: bool = False
    """Whether an earlier run on the same machine decoded them."""
    reason: str = ""


class MachineRecord(_Section):
    """The machine of a run."""

    kaggle: bool = False
    system: str = ""
    gpus: tuple[Gpu, ...] = ()
    device: str = ""
    """The device in use at the end of training: `cpu` or GPU numbers."""

    @property
    def accelerator(self) -> str:
        """Return the Kaggle accelerator to request for similar GPUs."""
        if not self.gpus:
            return "none"
        return "p100" if "P100" in self.gpus[0].name else "t4x2"


class StartRecord(_Section):
    """The starting point of a training: the name of a weights file (None: random weights), and its completed epochs."""

    weights: str | None = None
    epoch: int = 0


class RunRecord(_Record):
    """The content of `run.json`: what a run was made from, and how it ended."""

    state: State = "finished"
    branch: str
    repository: str = ""
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    experiment: ExperimentValues
    dataset: DatasetRecord = DatasetRecord()
    prepared: PreparedRecord = PreparedRecord()
    lock: str | None = None
    """The SHA-256 of `uv.lock`."""
    versions: dict[str, str] = {}
    """Versions of Python and of the libraries that matter to the result."""
    machine: MachineRecord
    batch_size: int | None = None
    """Images per step at the end of training."""
    start: StartRecord = StartRecord()
    seed: int | None = None
    started: Annotated[datetime, PlainSerializer(datetime.isoformat)] | None = None
    seconds: dict[str, float] = {}
    """The duration of the training and of each step."""
    exported: tuple[str, ...] = ()
    wandb: str = ""
    """The URL of the W&B run, or the reason why there is none."""
    reason: str = ""
    """Why the training was stopped, was interrupted or failed."""
    missing: str = ""
    """What a complete run has and this run lacks."""

    @property
    def resumed_from(self) -> str | None:
        """Return the checkpoint that the run resumed from, as its experiment names it; None if there was none."""
        checkpoint = self.experiment.get("model", {}).get("resume_from")
        return str(checkpoint) if checkpoint else None


# ── metrics.json ────────────────────────────────────────────────────────────────────────────────────────────────────


class Head(_Section):
    """Ultralytics' metrics of boxes, masks or poses, each between 0 and 1; None if not measured."""

    precision: float | None = None
    recall: float | None = None
    map50: float | None = Field(default=None, alias="mAP50")
    """Mean average precision at an IoU of 0.5 (of masks for masks; for poses, OKS in place of IoU)."""
    map50_95: float | None = Field(default=None, alias="mAP50-95")
    """The mean of the mean average precisions at 0.5 to 0.95 in steps of 0.05."""


class Corners(_Section):
    """The distances of predicted corners from their labels.

    The mAP of poses is not enough: it is based on OKS, which is too lenient on four corners.
    """

    objects: int
    """Labelled objects of the split."""
    found: int
    """Labelled objects with a prediction (score 0.25, IoU 0.5 or more); other objects count in no figure below."""
    mean_px: float | None = None
    """Mean distance over all labelled corners of found objects, in pixels of the original image."""
    median_px: float | None = None
    p95_px: float | None = None
    """The 95th percentile of the distances."""
    mean_relative: float | None = None
    """Mean over objects of the mean corner distance, as a share of the mean of the object's left and right sides."""


class Split(_Section):
    """The figures measured on one split."""

    images: int
    box: Head | None = None
    mask: Head | None = None
    pose: Head | None = None
    corners: Corners | None = None


class Metrics(_Record):
    """The content of `metrics.json`; figures that were not measured are absent."""

    best_epoch: int | None = None
    """The epoch that produced `best.pt`, from 1."""
    epochs: int | None = None
    """Number of trained epochs."""
    validation: Split | None = None
    """`best.pt` on the split by which it was selected."""
    test: Split | None = None
    missing: str | None = None
    """Why a figure is absent."""

    def flat(self) -> dict[str, float]:
        """Return the measured values by their full names, such as `test/box/mAP50`."""
        return {key.replace(".", "/"): value for key, value in flat(self.as_dict()) if key.count(".") == 2}  # noqa: PLR2004

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table row per split and head: split, head, number of images, then the metrics of `Head`."""
        return [
            (split, head, str(measured.images), *("not measured" if x is None else f"{x:.3f}" for _, x in values))
            for split, measured in self if isinstance(measured, Split)
            for head, values in measured if isinstance(values, Head)
        ]  # fmt: skip
