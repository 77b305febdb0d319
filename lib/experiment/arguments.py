"""Map the keys of an experiment to the train arguments of ultralytics, as the fields of its models are marked."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from lib.experiment.load import fields
from lib.experiment.schema import Experiment, Ultralytics

_MARKED = {
    key: (mark.argument or key.rpartition(".")[2], mark.derived)
    for key, _, marks in fields()
    for mark in marks
    if isinstance(mark, Ultralytics)
}

ARGUMENTS: Mapping[str, str] = {key: name for key, (name, derived) in _MARKED.items() if not derived}
"""Keys with values that are passed to ultralytics unchanged, mapped to the names of the train arguments."""

WORKED_OUT: Mapping[str, str] = {key: name for key, (name, derived) in _MARKED.items() if derived}
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
