"""Write the reports of a run: `run.json` for machines and the model card `README.md` for people.

Guarantees: every reported value was read from this run; nothing is filled in by assumption. Credentials do not appear,
nor do paths of this machine that mean nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.dataset import Dataset
from lib.experiment.schema import Experiment
from lib.files import write_whole
from lib.progress import duration
from lib.results.evaluate import Evaluated
from lib.results.record import SCHEMA, DatasetRecord, MachineRecord, RunRecord, StartRecord
from lib.session import Session
from lib.sync import Publication, RunLock
from lib.train.checkpoints import checkpoint_branch
from lib.train.export import Exported
from lib.train.launch import Trained
from lib.train.tracking import Tracking
from lib.train.weights import StartingPoint

LIBRARIES = ("ultralytics", "torch", "torchvision", "numpy", "dvc", "wandb", "opencv-python")
IMAGES = {
    "test/predictions.png": "Predictions on the test split",
    "test/worst.png": "The worst test pictures",
    "train/results.png": "Training curves",
    "test/BoxPR_curve.png": "Box precision and recall on the test split",
}
"""The images shown of a run: their paths below the artifacts' folder, and their captions."""
METRICS_HEADERS = ("Split", "Head", "Images", "Precision", "Recall", "mAP50", "mAP50-95")
"""The headers of a table whose rows are `Metrics.rows()`."""
MODEL_CARD = Path(__file__).with_name("model_card.md")
"""The template of `README.md`, for `str.format`."""
Steps = Sequence[tuple[str, float]]
"""Each step's title and its start in seconds since the epoch, in order."""


@dataclass(frozen=True)
class Results:
    """What the steps of a run returned."""

    dataset: Dataset
    start: StartingPoint
    tracking: Tracking
    trained: Trained
    evaluated: Evaluated
    exported: Exported


def write_report(session: Session, results: Results) -> dict[str, Any]:
    """Write `run.json` and `README.md` into the artifacts' folder; return the content of `run.json`."""
    experiment, folder, trained, dataset = session.experiment, session.artifacts, results.trained, results.dataset
    weights, host, lock = results.start.weights, session.host, session.root / "uv.lock"
    lacks = {"reason": trained.reason, "missing": "; ".join(list_missing(results))}
    record = RunRecord(
        version=SCHEMA,
        state=trained.state,
        branch=session.branch,
        repository=session.repository,
        commit=session.commit,
        experiment=experiment.model_dump(mode="json"),
        dataset=DatasetRecord(path=experiment.dataset, md5=dataset.md5, images=dataset.counts, names=dataset.names),
        lock=hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        versions=_versions(),
        machine=MachineRecord(
            kaggle=host.on_kaggle,
            system=f"{platform.system()} {platform.machine()}",
            gpus=host.gpus,
            device=trained.device,
        ),
        batch_size=trained.batch_size,
        start=StartRecord(weights=weights.name if weights else None, epoch=results.start.epoch),
        seed=experiment.seed,
        started=session.started,
        seconds={"training": round(trained.seconds, 1), **durations(session.steps)},
        exported=tuple(file.relative_to(folder).as_posix() for file in results.exported.files),
        wandb=results.tracking.address,
        **{key: text for key, text in lacks.items() if text},
    )
    record.write(folder / "run.json")
    write_whole(folder / "README.md", _model_card(session, results, record))
    return record.as_dict()


def list_missing(results: Results) -> list[str]:
    """Return one text for each part of a complete run that this run lacks."""
    return [error.what for error in (results.evaluated.missing, results.exported.missing) if error]


def durations(steps: Steps, end: float | None = None) -> dict[str, float]:
    """Return the duration of each step in seconds, by title; the last step is omitted without an `end`."""
    ends = [start for _, start in steps[1:]] + ([end] if end is not None else [])
    return {title: round(stop - start, 1) for (title, start), stop in zip(steps, ends, strict=False)}


def _model_card(session: Session, results: Results, record: RunRecord) -> str:
    trained, metrics = results.trained, results.evaluated.metrics
    notes = [f"**The training {describe_end(trained)}.**"] if trained.state != "finished" else []
    notes += [f"**Something is missing: {what}**" for what in list_missing(results)]
    images = [f"### {title}\n\n![{title}]({path})" for path, title in list_images(session.artifacts)]
    rows = [METRICS_HEADERS, ["---"] * len(METRICS_HEADERS), *metrics.rows()]
    exported = ", ".join(f"`{file.name}`" for file in results.exported.files)
    return MODEL_CARD.read_text(encoding="utf-8").format(
        session=session,
        experiment=session.experiment,
        training=session.experiment.training,
        trained=trained,
        tracking=results.tracking,
        description="\n\n".join([session.experiment.description, *notes]),
        epochs="?" if metrics.epochs is None else metrics.epochs,
        hardware=session.host.describe().partition(": ")[2],
        duration=duration(trained.seconds),
        best="" if metrics.best_epoch is None else f"; the best epoch is {metrics.best_epoch}",
        metrics="\n".join(f"| {' | '.join(cells)} |" for cells in rows),
        images="\n\n".join(images),
        exported=f", beside them {exported}" if exported else "",
        dataset=results.dataset.describe(),
        start=_start(session.experiment, results.start),
        libraries=", ".join(f"{name} {version}" for name, version in record.versions.items()),
    )


def describe_end(trained: Trained) -> str:
    """Return how an unfinished training ended, as a phrase to put after the word "training"."""
    return f"was {trained.reason}" if trained.state == "interrupted" else f"failed: {trained.reason}"


def _start(experiment: Experiment, start: StartingPoint) -> str:
    if start.epoch and not experiment.model.resume_from:
        return f"the checkpoint of an earlier session, after epoch {start.epoch}"
    if experiment.model.resume_from:
        after = f", after epoch {start.epoch}" if start.epoch else ": its weights"
        return f"`{experiment.model.resume_from}`{after}"
    if isinstance(experiment.model.pretrained, str):
        return f"the weights `{experiment.model.pretrained}`"
    return "the architecture's published weights" if experiment.model.pretrained else "random weights"


def describe_run(session: Session) -> str:
    """Return a description of the coming run for the user: experiment, device, commit and branch."""
    from io import StringIO

    from ruamel.yaml import YAML

    experiment, text = session.experiment, StringIO()
    writer = YAML(typ="safe", pure=True)
    for name in ("default_flow_style", "sort_base_mapping_type_on_output"):
        setattr(writer, name, False)
    writer.dump(experiment.model_dump(mode="json"), text)
    return (
        f"{experiment.about.title} on {session.device}; {session.host.describe()}\n"
        f"Code: commit {session.commit} of {session.repository}\n"
        f"Will be published as: {session.branch}\n\n{text.getvalue().rstrip()}"
    )


def publication(session: Session, results: Results, hold: RunLock) -> Publication:
    """Return the publication of a run: the weights by DVC, everything else in its artifacts' folder by Git."""
    experiment, trained, folder = session.experiment, results.trained, session.experiment.artifacts
    files = (trained.best, trained.last, *results.exported.files)
    state = f" ({trained.state})" if trained.state != "finished" else ""
    figures = ", ".join(
        f"{name} {value:.3f}" for name, value in results.evaluated.metrics.flat().items() if name.endswith("/mAP50")
    )
    return Publication(
        root=session.root,
        branch=session.branch,
        message=f"{experiment.about.title}: {experiment.name}{state}\n\n{figures}\n\nTrained from {session.commit}.\n",
        folder=folder,
        objects=tuple(f"{folder}/train/weights/{file.name}" for file in files if file.is_file()),
        stamp=session.started,
        leave_out=frozenset({"run.log"}),
        supersedes=(checkpoint_branch(experiment),) if trained.state == "finished" else (),
        hold=hold,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def list_images(folder: Path) -> list[tuple[str, str]]:
    """Return the path and the title of each image that exists in a run's folder."""
    return [(path, title) for path, title in IMAGES.items() if (folder / path).is_file()]
