"""Train one experiment; the only file that imports ultralytics to train.

Guarantees: the values trained with are the experiment's, each under the name ultralytics gives it; nothing is installed
and nothing but the asked-for weights is downloaded; older results in the same place are moved aside.
"""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.errors import TrainingError, WeightsError
from lib.experiment import Experiment


@dataclass(frozen=True)
class Trained:
    """What a training left: its folder (`train/`), its two checkpoints, and how long it took in seconds."""

    folder: Path
    best: Path
    last: Path
    seconds: float


def prepare_library(scratch: Path) -> None:
    """Set ultralytics up for a run, before its first import: settings of its own, no installs, no other trackers."""
    config = scratch / "ultralytics"
    config.mkdir(parents=True, exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"] = str(config)
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_VERBOSE"] = "true"
    # lib/tracking.py writes the one W&B run; the library's own integrations would open more
    from ultralytics import settings

    trackers = dict.fromkeys(("clearml", "comet", "dvc", "mlflow", "neptune", "raytune", "tensorboard", "wandb"), False)
    known = {name: value for name, value in trackers.items() if name in settings}
    settings.update({**known, "sync": False, "weights_dir": str(config / "weights"), "runs_dir": str(config / "runs")})


def find_weights(experiment: Experiment, root: Path) -> Path | str | None:
    """Say what a training starts from: a file, the address of one that must be downloaded, or None for random weights.

    Raises `WeightsError` for a file that is not there.
    """
    resume, pretrained = experiment.model.resume_from, experiment.model.pretrained
    if resume is not None:
        return _existing("model.resume_from", resume, root)
    if pretrained is False:
        return None
    if isinstance(pretrained, str):
        return _existing("model.pretrained", pretrained, root)
    from ultralytics.utils.downloads import attempt_download_asset

    here = _published_weights(experiment)
    given = inspect.signature(attempt_download_asset).parameters
    address = f"https://github.com/{given['repo'].default}/releases/download/{given['release'].default}/{here.name}"
    return here if here.is_file() else address


def _published_weights(experiment: Experiment) -> Path:
    from ultralytics import settings

    return Path(settings["weights_dir"]) / f"{experiment.model.architecture}.pt"


def fetch_weights(experiment: Experiment, root: Path) -> Path | None:
    """Give the weights a training starts from: a file, or None for random ones.

    Raises `WeightsError` when they cannot be downloaded or are not there.
    """
    found = find_weights(experiment, root)
    if not isinstance(found, str):
        return found
    from ultralytics.utils.downloads import attempt_download_asset

    wanted = _published_weights(experiment)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = Path(attempt_download_asset(str(wanted)))
    except Exception as error:  # noqa: BLE001  the library raises what its HTTP client raises
        found, cause = wanted, f": {type(error).__name__}: {error}"
    else:
        cause = ""
    if not found.is_file():
        raise WeightsError(
            f"the published weights {wanted.name} could not be downloaded{cause}.",
            state="nothing was trained.",
            remedy="turn internet on in the Kaggle settings, or attach the file as a dataset and give its path as "
            "model.pretrained, or train from random weights with pretrained: false.",
        )
    return found


def _existing(key: str, given: str, root: Path) -> Path:
    path = root / given  # an absolute path stays what it is
    if not path.is_file():
        raise WeightsError(
            f"{key} is {given!r}: {path} is not there.",
            state="nothing was trained.",
            remedy="attach the checkpoint as a Kaggle dataset and give its path below /kaggle/input, or null.",
        )
    return path


def ultralytics_arguments(experiment: Experiment) -> dict[str, Any]:
    """Give the experiment's values under the names of ultralytics' train arguments."""
    training, hardware = experiment.training, experiment.hardware
    return {
        "epochs": training.epochs,
        "batch": training.batch_size,
        "imgsz": training.image_size,
        "lr0": training.learning_rate,
        "lrf": training.final_learning_rate_ratio,
        "cos_lr": training.cosine_schedule,
        "optimizer": training.optimizer,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "warmup_epochs": training.warmup_epochs,
        # warm-up of biases starts far above a small learning rate by default; here every rate starts at 0
        "warmup_bias_lr": 0.0,
        "nbs": training.nominal_batch_size,
        "patience": training.patience,
        "workers": hardware.num_workers,
        "amp": hardware.mixed_precision,
        "seed": experiment.seed,
        "deterministic": True,
        **experiment.augmentation.model_dump(),
    }


def train(
    experiment: Experiment,
    data_file: Path,
    weights: Path | None,
    root: Path,
    *,
    device: str,
    callbacks: Mapping[str, Callable[[Any], None]],
) -> Trained:
    """Train into `artifacts/{module}/{name}/train` below `root`.

    `device` is `cpu` or GPU numbers (`0,1`). Raises `TrainingError`; what was trained until then stays in its folder.
    """
    import torch
    from ultralytics.models import YOLO

    folder = root / experiment.artifacts
    keep_earlier(folder)
    resuming = experiment.model.resume_from is not None
    source = str(weights) if resuming else f"{experiment.model.architecture}.yaml"
    model = YOLO(source, task=experiment.about.task)
    for event, callback in callbacks.items():
        model.add_callback(event, callback)
    # DDP workers are new processes: they find this package as this process did
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    started = time.monotonic()
    try:
        model.train(
            data=str(data_file),
            # said as it is: on resuming, the library would go on writing where the checkpoint was made
            save_dir=str(folder / "train"),
            exist_ok=True,
            device=device,
            pretrained=str(weights) if weights is not None else False,
            plots=True,
            resume=resuming,
            **ultralytics_arguments(experiment),
        )
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"CUDA out of memory: training.batch_size is {experiment.training.batch_size}, "
            f"training.image_size {experiment.training.image_size}: {str(error).splitlines()[0]}",
            state=f"what was trained until then is in {folder}.",
            remedy="reduce training.batch_size, or set hardware.multi_gpu: false, and render again.",
        ) from error
    except Exception as error:
        raise TrainingError(
            f"training failed: {type(error).__name__}: {error}",
            state=f"what was trained until then is in {folder}.",
            remedy="read the log above the error; a smaller batch_size and a single GPU are the first things to try.",
        ) from error
    seconds = time.monotonic() - started
    weights_folder = folder / "train" / "weights"
    trained = Trained(folder / "train", weights_folder / "best.pt", weights_folder / "last.pt", seconds)
    for checkpoint in (trained.best, trained.last):
        if not checkpoint.is_file():
            raise TrainingError(f"training ended without {checkpoint}.", remedy="read the log above the error.")
    return trained


def keep_earlier(folder: Path) -> Path | None:
    """Move what an earlier run left in `folder` beside it, so that no unpublished model is written over."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    stamp = datetime.fromtimestamp(folder.stat().st_mtime, UTC).strftime("%Y%m%d-%H%M%S")
    aside = folder.with_name(f"{folder.name}.until-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.until-{stamp}-{number}")
    shutil.move(folder, aside)
    print(f"What an earlier run left in {folder} is kept in {aside}.", flush=True)
    return aside


def free_gpu_memory() -> str:
    """Give back what this process holds on the GPUs; one line on what is left."""
    gc.collect()
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU to clear."
    torch.cuda.empty_cache()
    held = sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))
    return f"GPU cache cleared; {held / 2**20:.0f} MiB are still reserved."
