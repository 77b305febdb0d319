"""Read an experiment from its YAML file and apply overrides."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lib.errors import ExperimentError, RunError, did_you_mean
from lib.experiment.modules import MODULES, find_module
from lib.experiment.schema import KEYS, Experiment

SHORTCUTS: Mapping[str, str] = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "learning_rate": "training.learning_rate",
    "resume_from": "model.resume_from",
}
"""Keys that `-p` and the notebook also accept by their last word."""
MATRIX = "sweep"
"""The key that turns one file into many experiments; see `lib/experiment/matrix.py`."""
FROM_VALUES = ("name", "module", "description")
"""Keys that cannot be swept, because the experiments of a sweep are named after their values."""


def load_experiment(
    source: Path | str | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    module: str = "",
    where: str = "the notebook's experiment",
) -> Experiment:
    """Return the experiment of a YAML file, or of its content as stored in a rendered notebook.

    `overrides` are values by dotted key (`{"training.epochs": 3}`) that replace those of the file. `module` is the
    required module; empty allows any. `where` is the name of a content in errors. Raises `ExperimentError`, which names
    the file and, for every problem, the key, its value and the allowed values.
    """
    if isinstance(source, Mapping):
        values = dict(source)
    else:
        where, values = str(source), read_yaml(Path(source))
    for key, value in (overrides or {}).items():
        _set_value(values, key, value)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        complaints = [_complaint(problem) for problem in error.errors()]
        raise ExperimentError(
            f"{where}: {'; '.join(complaints)}.",
            remedy=f"correct {where} (every key is explained in lib/experiment/schema.py) and run it again.",
        ) from None
    if module and experiment.module != find_module(module).name:
        raise ExperimentError(
            f"{where}: module is {experiment.module!r}, but {module!r} was requested.",
            remedy=f"choose an experiment of {module}, for example {MODULES[module].baseline}.",
        )
    return experiment


def by_key(shortcuts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the notebook's shortcut parameters by dotted key; None leaves the experiment's value."""
    return {SHORTCUTS[name]: value for name, value in shortcuts.items() if value is not None}


def read_yaml(path: Path, error: type[RunError] = ExperimentError, typ: str = "safe") -> dict[str, Any]:
    """Read a YAML file that maps keys to values, without checking the keys. Raises `error` if it cannot be read.

    With `typ` "base", every value is the text that was written.
    """
    if not path.is_file():
        others = sorted(found.name for found in path.parent.glob("*.yaml"))
        listed = f"the YAML files in {path.parent} are: {', '.join(others) or 'none'}."
        remedy = did_you_mean(path.name, others, listed, lambda name: path.with_name(name).as_posix())
        raise error(f"{path}: there is no such file.", remedy=remedy)
    try:
        values = _parse(path.read_text(encoding="utf-8-sig"), typ)
    except ValueError as problem:
        raise error(
            f"{path}: this is not YAML: {problem}", remedy="correct what is named above; save the file as UTF-8."
        ) from None
    if not isinstance(values, dict):
        raise error(
            f"{path}: it must map keys to values, and holds a value of type {type(values).__name__}.",
            remedy="correct the file; experiments/001_det_baseline.yaml is an example of an experiment.",
        )
    return values


def read_value(name: str, text: str) -> Any:  # noqa: ANN401
    """Read the value of `-p NAME VALUE` by the type of the key: text as it is given, anything else as YAML.

    For a number 3 is a number, for a text it is "3"; null is None where the key may be null. Quotes around a text are
    removed. Raises `ExperimentError` if it is no YAML value.
    """
    key, readings = KEYS[SHORTCUTS.get(name, name)], list[Any]()
    for read in (_parse, str, partial(_parse, typ="base")):  # `base` reads the words of a list as texts
        with contextlib.suppress(ValueError):
            value = read(text)
            # YAML would end an unquoted text at " #"
            readings.append(text if isinstance(value, str) and text[:1] not in ("'", '"') else value)
    for value in readings:
        if key.holds(value):
            return value
    if len(readings) == 1:
        raise ExperimentError(
            f"-p {name} {text!r}: this is not a YAML value.", state="nothing was written.", remedy="put it in quotes."
        )
    return readings[0]


def as_yaml(value: object) -> str:
    """Return a value as it is written in an experiment file, in one line; text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _parse(text: str, typ: str = "safe") -> Any:  # noqa: ANN401
    """Parse YAML. Raises `ValueError` with the reason in one line, also for an invalid date or number."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ=typ, pure=True).load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (YAMLError, ValueError, KeyError) as error:
        raise ValueError(re.sub(r"\s+", " ", str(error)).split(" To suppress this check")[0]) from None


def _set_value(values: dict[str, Any], dotted: str, value: object) -> None:
    """Set the value of a dotted key; create missing sections on its path and copy existing ones."""
    *path, key = dotted.split(".")
    for part in path:
        inner = values.get(part, {})
        if not isinstance(inner, Mapping):
            return  # not a section: validation will report it
        values[part] = dict(inner)  # a copy: the notebook's own mapping must not change
        values = values[part]
    values[key] = value


def _complaint(problem: ErrorDetails) -> str:
    """Return one problem as a sentence: the key, its value, the allowed values, and the likely intended key."""
    location, value = _location(problem["loc"]), problem["input"]
    key = ".".join(location)
    allowed = problem["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("valid tuple", "valid list")
    if not location:  # a rule on several keys, which its message names
        return allowed
    if problem["type"] == "extra_forbidden" and location == [MATRIX]:
        return f"{MATRIX} turns a file into many experiments, for `python -m lib sweep`; here it is not allowed"
    if problem["type"] == "extra_forbidden":
        section: Any = Experiment
        for part in location[:-1]:
            section = section.model_fields[part].annotation
        known, elsewhere = section.model_fields, {name.rpartition(".")[2]: name for name in KEYS}
        hint = did_you_mean(location[-1], elsewhere, f"known here: {', '.join(known)}", elsewhere.__getitem__)
        hint = did_you_mean(location[-1], known, hint)
        return f"{key} is not a key of an experiment ({key}: {value!r}); {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing; it is required"
    return f"{key} is {value!r}: it {allowed}" if allowed.startswith("should") else f"{key} is {value!r}: {allowed}"


def _location(parts: Iterable[int | str]) -> list[str]:
    """Return the keys of a location, without the union types that pydantic appends after the last key."""
    location = list[str]()
    for part in parts:
        if isinstance(part, int) or ".".join(location) not in KEYS:
            location.append(str(part))
    return location


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
