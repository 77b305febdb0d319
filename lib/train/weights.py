"""Choose and load what a training starts from: a checkpoint to resume, given or published weights, or random ones.

Guarantees: nothing but the requested weights is downloaded; a checkpoint is read before anything is trained.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from lib.errors import WeightsError
from lib.experiment.schema import Experiment, ultralytics_arguments
from lib.session import Session


@dataclass(frozen=True)
class StartingPoint:
    """The starting point of a training."""

    weights: Path | None
    """A file, or None for random weights."""
    epoch: int = 0
    """Completed epochs of the checkpoint that this training resumes; 0 for a new training."""
    run_path: str = ""
    """The W&B run that the training continues."""
    note: str = ""
    """A remark for the user."""

    def describe(self) -> str:
        """Return a line or two for the user."""
        begins = f"resumes after epoch {self.epoch} of" if self.epoch else "starts from"
        return f"Training {begins} {self.weights or 'random weights'}.{self.note and ' '}{self.note}"


def find_weights(session: Session) -> Path | str | None:
    """Return what a training starts from: a file, the URL of a file to download, or None for random weights.

    Raises `WeightsError` for a missing file.
    """
    model = session.experiment.model
    key = "pretrained" if model.resume_from is None else "resume_from"
    given: bool | str = getattr(model, key)
    if isinstance(given, str):
        path = session.root / given  # an absolute path stays unchanged
        if not path.is_file():
            raise WeightsError(
                f"model.{key} is {given!r}: {path} is not there.",
                remedy="attach the checkpoint as a Kaggle dataset and give its path below /kaggle/input, or null.",
            )
        return path
    if not given:
        return None
    from ultralytics.utils.downloads import attempt_download_asset

    here = _published_weights(session.experiment)
    library = inspect.signature(attempt_download_asset).parameters
    address = f"https://github.com/{library['repo'].default}/releases/download/{library['release'].default}/{here.name}"
    return here if here.is_file() else address


def _published_weights(experiment: Experiment) -> Path:
    from ultralytics import settings

    return Path(settings["weights_dir"]) / f"{experiment.model.architecture}.pt"


def fetch_weights(session: Session, checkpoint: Path | None = None) -> StartingPoint:
    """Return the starting point of a training; download the published weights if needed.

    `checkpoint` was left by an earlier session of the experiment; if given, it is the starting point. A checkpoint to
    resume from is validated before anything is trained.

    Raises `WeightsError` if weights are missing or cannot be downloaded, or if a checkpoint is torn or belongs to
    another model.
    """
    experiment = session.experiment
    if checkpoint is not None:
        return _look_into(checkpoint, experiment, "the checkpoint of an earlier session")
    found = find_weights(session)
    if experiment.model.resume_from is not None and isinstance(found, Path):
        return _look_into(found, experiment, f"model.resume_from is {experiment.model.resume_from!r}")
    if not isinstance(found, str):
        return StartingPoint(found)
    from ultralytics.utils.downloads import attempt_download_asset

    wanted = _published_weights(experiment)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    try:
        weights = Path(attempt_download_asset(str(wanted)))
        weights.stat()  # the library may return the path of a file that is not there
    except Exception as error:  # noqa: BLE001  the library passes on any exception of its HTTP client
        raise WeightsError(
            f"the published weights {wanted.name} could not be downloaded: {type(error).__name__}: {error}.",
            remedy="turn internet on in the Kaggle settings, or attach the file as a dataset and give its path as "
            "model.pretrained, or train from random weights with pretrained: false.",
        ) from None
    return StartingPoint(weights)


def _look_into(path: Path, experiment: Experiment, shown: str) -> StartingPoint:
    """Return the starting point that a checkpoint makes possible; raise `WeightsError` if it makes none possible."""
    from ultralytics.utils.patches import torch_load

    def refuse(what: str) -> WeightsError:
        return WeightsError(
            f"{shown}: {what}.",
            remedy="give the last.pt of an interrupted training of this experiment, or null and session.resume: never "
            "to start a new one.",
        )

    try:
        checkpoint = torch_load(path, map_location="cpu")
        model = checkpoint.get("ema") or checkpoint["model"]
        arguments = dict(checkpoint["train_args"])
        facts = (arguments["task"], Path(model.yaml["yaml_file"]).stem)
        done = int(checkpoint["epoch"]) + 1
    except Exception as error:
        raise refuse(
            f"it is damaged, or not a checkpoint of an ultralytics model ({type(error).__name__}: {error})"
        ) from error
    wanted = (experiment.about.task, experiment.model.architecture)
    if facts != wanted:
        raise refuse(f"it is of {facts[1]} ({facts[0]}), the experiment is of {wanted[1]} ({wanted[0]})")
    if done == 0 or checkpoint.get("optimizer") is None:
        return StartingPoint(
            path, note="Its training was finished (it has no optimizer): a new one starts from its weights."
        )
    if done >= experiment.training.epochs:
        raise refuse(f"it has completed {done} epochs, and training.epochs is {experiment.training.epochs}")
    now = ultralytics_arguments(experiment)
    changed = [f"{key} {arguments[key]} → {value}" for key, value in now.items() if arguments.get(key, value) != value]
    note = f"The experiment's values are used where the checkpoint's differ: {', '.join(changed)}." if changed else ""
    return StartingPoint(path, done, str(arguments.get("project") or ""), note)


def epochs_behind(checkpoint: Path) -> int:
    """Return the number of completed epochs in a `last.pt`; 0 for a finished model, which cannot be resumed.

    Raises the reader's exceptions for a torn file.
    """
    from ultralytics.utils.patches import torch_load

    content = torch_load(checkpoint, map_location="cpu")
    return int(content["epoch"]) + 1 if content.get("optimizer") is not None else 0
