"""Map the keys of an experiment to the train arguments of ultralytics."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from lib.experiment.schema import Augmentation, Experiment

ARGUMENTS: Mapping[str, str] = {
    "seed": "seed",
    "training.epochs": "epochs",
    "training.batch_size": "batch",
    "training.learning_rate": "lr0",
    "training.final_learning_rate_ratio": "lrf",
    "training.cosine_schedule": "cos_lr",
    "training.optimizer": "optimizer",
    "training.momentum": "momentum",
    "training.weight_decay": "weight_decay",
    "training.warmup_epochs": "warmup_epochs",
    "training.nominal_batch_size": "nbs",
    "training.patience": "patience",
    "training.image_size": "imgsz",
    "hardware.num_workers": "workers",
    "hardware.mixed_precision": "amp",
    **{f"augmentation.{name}": name for name in Augmentation.model_fields},
}
"""Keys with values that are passed to ultralytics unchanged, mapped to the names of the train arguments."""


WORKED_OUT: Mapping[str, str] = {
    "dataset": "data",
    "model.architecture": "model",
    "model.pretrained": "pretrained",
    "model.resume_from": "resume",
    "hardware.multi_gpu": "device",
}
"""Keys from which `train` derives an argument, together with the state of the machine."""


ALWAYS: Mapping[str, Any] = {
    # the default bias warm-up starts far above a small learning rate; here every rate starts at 0
    "warmup_bias_lr": 0.0,
    "deterministic": True,
}
"""Arguments that an experiment cannot change."""


def ultralytics_arguments(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment's values by the names of ultralytics' train arguments."""
    return {argument: attrgetter(key)(experiment) for key, argument in ARGUMENTS.items()} | {**ALWAYS}
