"""Report a run: `run.json` for machines, the model card `README.md` for people, and the summary in the notebook.

Guarantees: every reported value was read from this run; nothing is filled in by assumption. Credentials do not appear,
nor do paths of this machine that mean nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lib.data.dataset import Dataset
from lib.escape import code, markdown, visible
from lib.experiment.schema import Experiment
from lib.files import write_whole
from lib.progress import duration
from lib.results.evaluate import Evaluated
from lib.results.record import SCHEMA, DatasetRecord, MachineRecord, PreparedRecord, RunRecord, StartRecord
from lib.session import Session
from lib.sync import LARGEST, Publication, RunLock
from lib.tables import as_text, make_table
from lib.train.export import Exported
from lib.train.launch import Trained
from lib.train.tracking import Tracking
from lib.train.weights import StartingPoint

LIBRARIES = ("ultralytics", "torch", "torchvision", "numpy", "dvc", "wandb", "opencv-python")
IMAGES = {
    "test/predictions.png": "Predictions on the test split",
    "test/worst.png": "The worst test images",
    "train/results.png": "Training curves",
    "test/BoxPR_curve.png": "Box precision and recall on the test split",
}
"""The images shown of a run: their paths below the artifacts' folder, and their captions."""
METRICS_HEADERS = ("Split", "Head", "Images", "Precision", "Recall", "mAP50", "mAP50-95")
"""The headers of a table whose rows are `Metrics.rows()`."""
NOT_PUBLISHED = frozenset({"run.log"})
SHOWN_WIDTH = 900  # pixels of an image in the notebook
MODEL_CARD = Path(__file__).with_name("model_card.md")
"""The template of `README.md`, for `str.format`."""


@dataclass(frozen=True)
class Results:
    """What the steps of a run returned."""

    dataset: Dataset
    start: StartingPoint
    tracking: Tracking
    trained: Trained
    evaluated: Evaluated
    exported: Exported


def write_report(session: Session, results: Results) -> None:
    """Write `run.json` and `README.md` into the artifacts' folder."""
    experiment, folder, trained, dataset = session.experiment, session.artifacts, results.trained, results.dataset
    weights, host, lock = results.start.weights, session.host, session.root / "uv.lock"
    lacks = {"reason": trained.reason, "missing": "; ".join(_missing(results))}
    record = RunRecord(
        version=SCHEMA,
        state=trained.state,
        branch=session.branch,
        repository=session.repository,
        commit=session.commit,
        experiment=experiment.model_dump(mode="json"),
        dataset=DatasetRecord(path=experiment.dataset, md5=dataset.md5, images=dataset.counts, names=dataset.names),
        prepared=PreparedRecord(
            images=dataset.prepared.images,
            bytes=dataset.prepared.bytes,
            seconds=round(dataset.prepared.seconds, 1),
            reused=dataset.prepared.reused,
            reason=dataset.prepared.reason,
        ),
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
        seconds={"training": round(trained.seconds, 1), **_durations(session.steps)},
        exported=tuple(file.relative_to(folder).as_posix() for file in results.exported.files),
        wandb=results.tracking.address,
        **{key: text for key, text in lacks.items() if text},
    )
    record.write(folder / "run.json")
    write_whole(folder / "README.md", _model_card(session, results, record))


def _missing(results: Results) -> list[str]:
    """Return one text for each part of a complete run that this run lacks."""
    return [error.what for error in (results.evaluated.missing, results.exported.missing) if error]


def _remarks(results: Results) -> list[str]:
    """Return one sentence for each way in which this run differs from a complete run."""
    ends = dict.fromkeys(("stopped", "interrupted"), "The training was") | {"failed": "The training failed:"}
    end = [f"{ends[results.trained.state]} {results.trained.reason}."] if results.trained.state in ends else []
    return end + [f"Something is missing: {what}" for what in _missing(results)]


def _durations(steps: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the duration of each step but the last, whose end is unknown, in seconds, by title."""
    return {title: round(stop - start, 1) for (title, start), (_, stop) in pairwise(steps)}


def _model_card(session: Session, results: Results, record: RunRecord) -> str:
    trained, metrics, address = results.trained, results.evaluated.metrics, results.tracking.address
    remarks = [f"**{markdown(remark)}**" for remark in _remarks(results)]
    images = [f"### {title}\n\n![{title}]({path})" for path, title in _images(session.artifacts)]
    rows = [METRICS_HEADERS, ["---"] * len(METRICS_HEADERS), *metrics.rows()]
    exported = ", ".join(f"`{file.name}`" for file in results.exported.files)
    return MODEL_CARD.read_text(encoding="utf-8").format(
        session=session,
        results=results,
        description="\n\n".join([session.experiment.description, *remarks]),
        epochs="?" if metrics.epochs is None else metrics.epochs,
        hardware=markdown(session.host.describe().partition(": ")[2]),
        duration=duration(trained.seconds),
        best="" if metrics.best_epoch is None else f"; the best epoch is {metrics.best_epoch}",
        metrics="\n".join(f"| {' | '.join(cells)} |" for cells in rows),
        images="\n\n".join(images),
        exported=f", next to {exported}" if exported else "",
        dataset=results.dataset.describe(markdown),
        wandb=address if address.startswith("http") else code(address),  # it holds a command to copy
        start=_start(session.experiment, results.start),
        libraries=", ".join(f"{name} {version}" for name, version in record.versions.items()),
    )


def _start(experiment: Experiment, start: StartingPoint) -> str:
    model, after = experiment.model, f", after epoch {start.epoch}" if start.epoch else ""
    if model.resume_from:
        return f"{code(model.resume_from)}{after or ': its weights'}"
    if after:
        return f"the checkpoint of an earlier session{after}"
    if isinstance(model.pretrained, str):
        return f"the weights {code(model.pretrained)}"
    return "the architecture's published weights" if model.pretrained else "random weights"


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
    """Return the publication of a run: weights and large files by DVC, everything else in its folder by Git."""
    experiment, trained, folder = session.experiment, results.trained, session.experiment.artifacts
    files = [path for path in (trained.best, trained.last, *results.exported.files) if path.is_file()]
    # Git hosts limit the size of files, GitHub to 100 MB; the rehearsal has tried this size
    large = (path for path in sorted(session.artifacts.rglob("*")) if path.stat().st_size > LARGEST)
    files += [path for path in large if path.is_file() and path not in files and path.name not in NOT_PUBLISHED]
    state = f" ({trained.state})" if trained.state != "finished" else ""
    figures = ", ".join(
        f"{name} {value:.3f}" for name, value in results.evaluated.metrics.flat().items() if name.endswith("/mAP50")
    )
    return Publication(
        root=session.root,
        branch=session.branch,
        message=f"{experiment.about.title}: {experiment.name}{state}\n\n{figures}\n\nTrained from {session.commit}.\n",
        folder=folder,
        objects=tuple(f"{folder}/{file.relative_to(session.artifacts).as_posix()}" for file in files),
        stamp=session.started,
        leave_out=NOT_PUBLISHED,
        hold=hold,
        keeps_checkpoint=trained.state != "finished",
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _images(folder: Path) -> list[tuple[str, str]]:
    """Return the path and the title of each image that exists in a run's folder."""
    return [(path, title) for path, title in IMAGES.items() if (folder / path).is_file()]


def show_summary(session: Session, results: Results) -> None:
    """Print the summary of a published run: its state, metrics, step times, branch and files."""
    experiment, folder, trained, end = session.experiment, session.artifacts, results.trained, time.time()
    how = {"finished": "is trained and", "failed": "has failed and is"}.get(trained.state, f"is {trained.state} and")
    print(f"{experiment.about.title} ({experiment.name}) {how} published.\n")
    for remark in map(visible, _remarks(results)):
        print(f"Warning: {remark[0].lower()}{remark[1:]}")
    show_metrics(results.evaluated)
    times = {**_durations([*session.steps, ("", end)]), "Together": end - session.steps[0][1]}
    rows = [(title, duration(seconds)) for title, seconds in times.items()]
    print(as_text(make_table(("Step", "Time"), rows, title="Where the time went")))
    images = "\n           ".join(str(folder / path) for path, _ in _images(folder))
    print(
        f"Branch:    {session.branch}\n"
        f"W&B:       {results.tracking.address}\n"
        f"Card:      {folder / 'README.md'}\n"
        f"Images:    {images or 'none'}\n\n"
        f"To bring the model to a clone of {session.repository}:\n"
        f"  git fetch origin {session.branch}\n"
        f"  git checkout {session.branch}\n"
        "  dvc pull\n"
        f"It is then {experiment.artifacts}/train/weights/best.pt. Or, without leaving the branch that you are on:\n"
        f"  python -m lib fetch {session.branch}",
        flush=True,
    )


def show_metrics(evaluated: Evaluated) -> None:
    """Print the metrics as a table, and the corner errors on the test split."""
    print(as_text(make_table(METRICS_HEADERS, evaluated.metrics.rows(), title="Metrics of best.pt")))
    corners = evaluated.metrics.test and evaluated.metrics.test.corners
    if corners:
        pixels = {"mean": corners.mean_px, "median": corners.median_px, "95 of 100 within": corners.p95_px}
        off = ", ".join(f"{name} {value:.1f} px" for name, value in pixels.items() if value is not None)
        print(f"Corners on test: {corners.found} of {corners.objects} objects found{off and '; off by: '}{off}")


def show_images(session: Session) -> None:
    """Display a run's images in the notebook, each below its caption."""
    from IPython.display import Image, Markdown, display

    folder = session.artifacts
    for path, title in _images(folder):
        display(Markdown(f"**{title}**"), Image(filename=str(folder / path), width=SHOWN_WIDTH, alt=title))
