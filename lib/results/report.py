"""Write the reports of a run: `run.json` for machines and the model card `README.md` for people.

Guarantees: every reported value was read from this run; nothing is filled in by assumption. Credentials do not appear,
nor do paths of this machine that mean nothing elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.data.dataset import Dataset
from lib.experiment.schema import Experiment
from lib.progress import duration
from lib.results.evaluate import HEADS, Evaluated
from lib.session import Session
from lib.sync import Publication, RunLock
from lib.train.checkpoints import checkpoint_branch
from lib.train.export import Exported
from lib.train.launch import Trained
from lib.train.tracking import Tracking
from lib.train.weights import StartingPoint

LIBRARIES = ("ultralytics", "torch", "torchvision", "numpy", "dvc", "wandb", "opencv-python")
PICTURES = {
    "test/predictions.png": "Predictions on the test split",
    "test/worst.png": "The worst test pictures",
    "train/results.png": "Training curves",
    "test/BoxPR_curve.png": "Box precision and recall on the test split",
}
"""The images shown of a run: their paths below the artifacts' folder, and their captions."""
HEADERS = {"precision": "Precision", "recall": "Recall", "mAP50": "mAP50", "mAP50-95": "mAP50-95"}
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
    weights = results.start.weights
    run = {
        "schema": 2,
        "state": trained.state,
        "branch": session.branch,
        "repository": session.repository,
        "commit": session.commit,
        "experiment": experiment.model_dump(mode="json"),
        "dataset": {"path": experiment.dataset, "md5": dataset.md5, "pictures": dataset.counts, "names": dataset.names},
        "lock": _sha256(session.root / "uv.lock"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "kaggle": session.host.on_kaggle,
            "system": f"{platform.system()} {platform.machine()}",
            "gpus": [asdict(gpu) for gpu in session.host.gpus],
            "device": trained.device,
        },
        "batch_size": trained.batch_size,
        "start": {"weights": weights.name if weights else None, "epoch": results.start.epoch},
        "seed": experiment.seed,
        "started": session.started.isoformat(),
        "seconds": {"training": round(trained.seconds, 1), **durations(session.steps)},
        "exported": [file.relative_to(folder).as_posix() for file in results.exported.files],
        "wandb": results.tracking.address,
    }
    told = {"reason": trained.reason, "missing": "; ".join(list_missing(results))}
    run |= {key: text for key, text in told.items() if text}
    (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    card = _model_card(session, results, run)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return run


def list_missing(results: Results) -> list[str]:
    """Return one text for each part of a complete run that this run lacks."""
    return [error.what for error in (results.evaluated.missing, results.exported.missing) if error]


def durations(steps: Steps, end: float | None = None) -> dict[str, float]:
    """Return the duration of each step in seconds, by title; the last step is omitted without an `end`."""
    ends = [start for _, start in steps[1:]] + ([end] if end is not None else [])
    return {title: round(stop - start, 1) for (title, start), stop in zip(steps, ends, strict=False)}


def _model_card(session: Session, results: Results, run: dict[str, Any]) -> str:
    experiment, trained, metrics = session.experiment, results.trained, results.evaluated.metrics
    hardware = session.host.describe().partition(": ")[2]
    pictures = list_images(session.artifacts)
    shown = "\n\n".join(f"### {title}\n\n![{title}]({path})" for path, title in pictures)
    title = f"{experiment.about.title}: {experiment.name}"
    settings = experiment.training
    optimizer = (
        f"{settings.optimizer}, learning rate {settings.learning_rate}, batch {trained.batch_size}, "
        f"{settings.image_size} px, seed {experiment.seed}"
    )
    notes = [f"**The training {describe_end(trained)}.**"] if trained.state != "finished" else []
    notes += [f"**Something is missing: {what}**" for what in list_missing(results)]
    best = f"; the best epoch is {metrics['best_epoch']}" if "best_epoch" in metrics else ""
    return f"""# {title}

{chr(10).join([experiment.description, *(f"{chr(10)}{note}" for note in notes)])}

`{experiment.model.architecture}`, trained for {metrics.get("epochs", "?")} of {settings.epochs} epochs on {hardware}
in {duration(trained.seconds)}{best}.

## Metrics

{metrics_table(metrics)}

Measured with `train/weights/best.pt`. `test/predictions.json` holds every prediction on the test split.

## Pictures

{shown}

## Get the model

```bash
{chr(10).join(commands_to_get(session.branch))}
```

The weights are then at `{experiment.artifacts}/train/weights/best.pt`{_beside(results.exported)}. Without a checkout:
`uv run python -m lib fetch {session.branch}` brings all of it into `build/models/`.

## How it was made

| | |
| --- | --- |
| Code | commit `{session.commit}` of {session.repository} |
| Dataset | `{experiment.dataset}`, {results.dataset.describe()} |
| Start | {_start(experiment, results.start)} |
| Optimizer | {optimizer} |
| Libraries | {", ".join(f"{name} {version}" for name, version in run["versions"].items())} |
| Started | {session.started:%Y-%m-%d %H:%M:%S} UTC |
| W&B | {run["wandb"]} |

`run.json` holds all of it for a machine to read. The weights were trained with Ultralytics YOLO, under AGPL-3.0.
"""


def _beside(exported: Exported) -> str:
    return f", beside them {', '.join(f'`{file.name}`' for file in exported.files)}" if exported.files else ""


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


def metrics_table(metrics: dict[str, Any]) -> str:
    """Return the metrics as a Markdown table with one row per split and head."""
    rows = ["| Split | Head | Images | " + " | ".join(HEADERS.values()) + " |", "| --- " * (3 + len(HEADERS)) + "|"]
    rows += [f"| {' | '.join(cells)} |" for cells in metric_rows(metrics)]
    return "\n".join(rows)


def metric_rows(metrics: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table cells of each measured split and head: split, head, images, then the metrics of `HEADERS`."""
    for split in ("validation", "test"):
        for head in HEADS:
            values = metrics.get(split, {}).get(head)
            if values:
                cells = [f"{values[key]:.3f}" if key in values else "not measured" for key in HEADERS]
                yield [split, head, str(metrics[split]["images"]), *cells]


def commands_to_get(branch: str) -> list[str]:
    """Return the three commands that fetch a model into any clone."""
    return [f"git fetch origin {branch}", f"git checkout {branch}", "dvc pull"]


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
        f"{name} {value:.3f}" for name, value in results.evaluated.flat().items() if name.endswith("/mAP50")
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
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def list_images(folder: Path) -> list[tuple[str, str]]:
    """Return the path and the title of each image that exists in a run's folder."""
    return [(path, title) for path, title in PICTURES.items() if (folder / path).is_file()]
