"""The names that ultralytics gives an experiment's keys."""

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
"""Keys of an experiment whose values are train arguments of ultralytics as they stand, with their names there."""


WORKED_OUT: Mapping[str, str] = {
    "dataset": "data",
    "model.architecture": "model",
    "model.pretrained": "pretrained",
    "model.resume_from": "resume",
    "hardware.multi_gpu": "device",
}
"""Keys from which `train` works an argument out, together with what it finds on the machine."""


ALWAYS: Mapping[str, Any] = {
    # warm-up of biases starts far above a small learning rate by default; here every rate starts at 0
    "warmup_bias_lr": 0.0,
    "deterministic": True,
}
"""Arguments that are no choice of an experiment."""


def ultralytics_arguments(experiment: Experiment) -> dict[str, Any]:
    """Give the experiment's values under the names of ultralytics' train arguments."""
    return {argument: attrgetter(key)(experiment) for key, argument in ARGUMENTS.items()} | {**ALWAYS}
