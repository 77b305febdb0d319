"""Map the keys of an experiment to the train arguments of ultralytics, as the fields of its models are marked."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from lib.experiment.schema import KEYS, Experiment

ALWAYS: Mapping[str, Any] = {
    # the default bias warm-up starts far above a small learning rate; here every rate starts at 0
    "warmup_bias_lr": 0.0,
    "deterministic": True,
}
"""Arguments that an experiment cannot change."""


def ultralytics_arguments(experiment: Experiment) -> dict[str, Any]:
    """Return the values that are passed to ultralytics unchanged, by the names of its train arguments."""
    passed = {name: key.argument for name, key in KEYS.items() if key.argument and not key.derived}
    return {argument: attrgetter(name)(experiment) for name, argument in passed.items()} | {**ALWAYS}
