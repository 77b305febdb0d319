"""Choose and load what a training starts from: a checkpoint to resume, given or published weights, or random ones.

Guarantees: nothing but the requested weights is downloaded; every file is read before anything is trained, as training
reads it, and compared with what will be trained: task, architecture, keypoints, and, once the dataset is known, image
channels and the classes by number, name and order.
"""

from __future__ import annotations

import inspect
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.dataset import Dataset
from lib.errors import WeightsError
from lib.escape import visible
from lib.experiment.schema import Experiment, ultralytics_arguments
from lib.session import Session

RESUMABLE = (
    "give the last.pt of an interrupted training of this experiment, or null and session.resume: never to start a new "
    "one."
)
STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull` where it comes from"),
    (b"outs:", "the .dvc file of DVC", "run `dvc pull` where it comes from"),
    (b"<", "a web page", "download the file itself, not the page that shows it, and look whether that needs a sign-in"),
    (b"{", "a JSON text, such as a server's error", "download it again"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
)
"""What a file that is not a checkpoint often is: its first bytes, its kind, and the remedy."""
OWN = "give a file that ultralytics has written (best.pt, last.pt)"
STATE = {"SGD": "momentum_buffer", "NAdam": "mu_product", "RMSProp": "square_avg"}
"""What these optimizers of torch cannot resume without; the others need `exp_avg_sq`."""
LEAST_FIT = 0.5  # share of the network; with less, training would start from random values after all


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
                f"model.{key} is {given!r}: {path} is not a file.",
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


def fetch_weights(session: Session, checkpoint: Path | None = None, dataset: Dataset | None = None) -> StartingPoint:
    """Return the starting point of a training; download the published weights if needed.

    `checkpoint` was left by an earlier session of the experiment; if given, it is the starting point. Every file is
    read, and compared with the experiment and the dataset.

    Raises `WeightsError` if weights are missing, cannot be downloaded, cannot be read, or belong to another model.
    """
    found = find_weights(session) if checkpoint is None else checkpoint
    return read_start(session, _download(session) if isinstance(found, str) else found, dataset, checkpoint)


def _download(session: Session) -> Path:
    from ultralytics.utils.downloads import attempt_download_asset

    wanted = _published_weights(session.experiment)
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
    return weights


def read_start(
    session: Session, path: Path | None, dataset: Dataset | None = None, checkpoint: Path | None = None
) -> StartingPoint:
    """Return the starting point that a file makes possible; None is random weights.

    Raises `WeightsError` if it makes none possible.
    """
    if path is None:
        return StartingPoint(None)
    experiment, model = session.experiment, session.experiment.model
    resumes = checkpoint is not None or model.resume_from is not None
    shown, remedy = f"model.resume_from is {model.resume_from!r}", RESUMABLE
    if checkpoint is not None:
        shown = "the checkpoint of an earlier session"
    elif not resumes:
        own = isinstance(model.pretrained, str)
        shown = f"model.pretrained is {model.pretrained!r}" if own else f"the published weights {path}"
        remedy = (
            f"give a .pt file of {model.architecture}, or true for the published weights, or false for random ones."
            if own else f"remove {path} and run again, or train from random weights with pretrained: false."
        )  # fmt: skip
    try:
        saved, content = _read(path)
        if resumes:
            _compare(saved, experiment, dataset)
            return _resume(path, content, experiment)
        return StartingPoint(path, note=_fit(saved, experiment, dataset))
    except _RefusedError as refused:
        raise WeightsError(f"{shown}: {refused}.", remedy=f"{refused.first}{remedy}") from refused.__cause__


class _RefusedError(Exception):
    """The reason why training cannot start from a file, and the remedy to try first."""

    def __init__(self, what: str, first: str = "") -> None:
        self.first = f"{first}; or " if first else ""
        super().__init__(what)


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model in a file, as training reads it, and the file's whole content."""
    import torch
    from ultralytics.nn.tasks import load_checkpoint

    with path.open("rb") as file:
        head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        raise _RefusedError("it is empty", "copy it again")
    for start, kind, first in STARTS:
        if head.startswith(start):
            raise _RefusedError(f"it is not a checkpoint, but {kind}", first)
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise _RefusedError(f"it is damaged: it was cut off after {path.stat().st_size} bytes", "copy it again")
    try:
        model, content = load_checkpoint(str(path))
        values = [value for value in model.state_dict().values() if value.is_floating_point()]
    except Exception as error:
        cause = visible(f"{type(error).__name__}: {error}".splitlines()[0].partition(". Use ")[0])
        text = f"it is damaged, or not a checkpoint of an ultralytics model ({cause})"
        if "references types outside" in cause:  # the library's words for a file without a model in it
            text = "it is not a checkpoint of an ultralytics model, but holds no network, as a bare state dict does"
        raise _RefusedError(text, OWN) from error
    if not isinstance(getattr(model, "yaml", None), dict) or not isinstance(getattr(model, "names", None), dict | list):
        what = f"it is not a checkpoint of an ultralytics model, but holds a {type(model).__name__}"
        raise _RefusedError(what, OWN)
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise _RefusedError("its weights hold NaN or infinite values")
    return model, content


def _compare(saved: Any, experiment: Experiment, dataset: Dataset | None) -> None:  # noqa: ANN401
    """Refuse a model that is not the one to train; a new training needs only the layers that fit (`_fit`)."""
    facts, wanted = (_architecture(saved), saved.task), (experiment.model.architecture, experiment.about.task)
    if facts != wanted:
        raise _RefusedError("it is of {} ({}), the experiment is of {} ({})".format(*facts, *wanted))
    points = (saved.yaml.get("kpt_shape") or [0])[0]
    if experiment.about.task == "pose" and points != experiment.about.keypoints:
        raise _RefusedError(f"it has {points} keypoints, the experiment has {experiment.about.keypoints}")
    if dataset is None:
        return
    given, channels = saved.yaml.get("channels", saved.yaml.get("ch", 3)), dataset.channels
    if given != channels:
        raise _RefusedError(f"it is for images of {given} channels, data.yaml has channels: {channels}")
    if (classes := _classes(saved)) != (own := _classes_for(dataset)):
        raise _RefusedError(f"its classes are {_shown(classes)}, the dataset's are {_shown(own)}")


def _fit(saved: Any, experiment: Experiment, dataset: Dataset | None) -> str:  # noqa: ANN401
    """Return a remark on weights of another model; refuse them if less than `LEAST_FIT` of the network fits."""
    from ultralytics.models import YOLO
    from ultralytics.utils.torch_utils import intersect_dicts

    architecture = experiment.model.architecture
    model: Any = YOLO(f"{architecture}.yaml", task=experiment.about.task).model
    network = model.state_dict()
    fitting = sum(value.numel() for value in intersect_dicts(saved.state_dict(), network).values())
    share = fitting / sum(value.numel() for value in network.values())
    about = f"it is of {_architecture(saved)} ({saved.task}): {share:.0%} of {architecture} can start from it"
    if share < LEAST_FIT:
        raise _RefusedError(about)
    classes, own = _classes(saved), _classes_for(dataset) if dataset else {}
    if classes != own and sorted(classes.values()) == sorted(own.values()):
        return f"Its classes have another order ({_shown(classes)}): the scores start from those of another class."
    return (
        f"{about[0].upper()}{about[1:]}; the rest starts from random values."
        if saved.task != experiment.about.task
        else ""
    )


def _architecture(saved: Any) -> str:  # noqa: ANN401
    return Path(str(saved.yaml.get("yaml_file", "an unknown network"))).stem


def _classes(saved: Any) -> dict[int, str]:  # noqa: ANN401
    names = saved.names
    return {
        int(number): str(name)
        for number, name in (names if isinstance(names, dict) else dict(enumerate(names))).items()
    }


def _classes_for(dataset: Dataset) -> dict[int, str]:
    """Return the classes of a model that is trained on the dataset: ultralytics gives ImageNet's codes their names."""
    from ultralytics.nn.autobackend import check_class_names

    return dict(check_class_names(dataset.names))


def _shown(classes: dict[int, str]) -> str:
    listed = [f"{number} {visible(name)}" for number, name in classes.items()]
    return f"{len(listed)} ({', '.join(listed[:10])}{', …' * (len(listed) > 10)})"  # noqa: PLR2004


def _resume(path: Path, content: dict[str, Any], experiment: Experiment) -> StartingPoint:
    try:
        arguments, done = dict(content["train_args"]), int(content["epoch"]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise _RefusedError(f"it is not the checkpoint of a training ({type(error).__name__}: {error})") from error
    if done == 0 or content.get("optimizer") is None:
        return StartingPoint(
            path, note="Its training was finished (it has no optimizer): a new one starts from its weights."
        )
    optimizer, rows = experiment.training.optimizer, content.get("train_results") or {}
    state = next(iter(content["optimizer"].get("state", {}).values()), None)
    if state is not None and STATE.get(optimizer, "exp_avg_sq") not in state:
        raise _RefusedError(
            f"it has the state of another optimizer ({', '.join(state)}) than training.optimizer, {optimizer}",
            "set training.optimizer to that of its training, or start anew from its weights (model.pretrained)",
        )
    lengths = {len(rows.get(name) or ()) for name in ("epoch", "time")}
    if len(lengths) > 1 or not min(lengths) or "fitness" not in (content.get("train_metrics") or {}):
        raise _RefusedError(
            "it lacks the curves of its training (train_results, train_metrics)",
            "start anew from its weights (model.pretrained)",
        )
    if done >= experiment.training.epochs:
        raise _RefusedError(f"it has completed {done} epochs, and training.epochs is {experiment.training.epochs}")
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
