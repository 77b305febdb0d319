"""Read an experiment from its YAML file and apply overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lib.errors import ExperimentError
from lib.experiment.modules import MODULES, find_module
from lib.experiment.schema import Experiment, UnsuitableError

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
        set_value(values, key, value)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        complaints = [_complaint(problem) for problem in error.errors()]
        raise ExperimentError(
            f"{where}: {'; '.join(complaints)}.",
            state="nothing was started.",
            remedy=f"correct {where} (every key is explained in lib/experiment/schema.py) and run it again.",
        ) from None
    if module and experiment.module != find_module(module).name:
        raise ExperimentError(
            f"{where}: module is {experiment.module!r}, and {module!r} was asked for.",
            state="nothing was started.",
            remedy=f"name an experiment of {module}, for instance {MODULES[module].baseline}.",
        )
    return experiment


def read_yaml(path: Path) -> dict[str, Any]:
    """Read an experiment file without checking its keys. Raises `ExperimentError` if it is not a YAML mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        there = sorted(found.name for found in path.parent.glob("*.yaml"))
        meant = difflib.get_close_matches(path.name, there, n=1)
        listed = f"the experiments in {path.parent} are: {', '.join(there) or 'none'}."
        hint = f"did you mean {(path.parent / meant[0]).as_posix()}?" if meant else listed
        raise ExperimentError(f"{path}: there is no such file.", state="nothing was started.", remedy=hint)
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError, KeyError) as error:  # the last two: an invalid date or number
        told = re.sub(r"\s+", " ", str(error)).split(" To suppress this check")[0]
        raise ExperimentError(
            f"{path}: this is no YAML: {told}",
            state="nothing was started.",
            remedy="correct the line named above; experiments/001_det_baseline.yaml shows the form.",
        ) from None
    if not isinstance(values, dict):
        raise ExperimentError(
            f"{path}: an experiment is a mapping of keys to values, this is {type(values).__name__}.",
            state="nothing was started.",
            remedy="start from a copy of experiments/001_det_baseline.yaml.",
        )
    return values


def read_value(name: str, text: str) -> Any:  # noqa: ANN401
    """Read the value of `-p NAME VALUE` as YAML: 3 is a number, true a boolean, null is None."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, KeyError):  # the last two: an invalid date or number
        raise ExperimentError(
            f"-p {name} {text!r}: this is no YAML value.", state="nothing was written.", remedy="put it in quotes."
        ) from None


def set_value(values: dict[str, Any], dotted: str, value: object) -> None:
    """Set the value of a dotted key; create missing sections on its path and copy existing ones."""
    *path, key = dotted.split(".")
    for part in path:
        inner = values.get(part, {})
        if not isinstance(inner, Mapping):
            return  # not a section: validation will report it
        values[part] = dict(inner)  # a copy: the notebook's own mapping must not change
        values = values[part]
    values[key] = value


def _complaint(problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    """Return one problem as a sentence: the key, its value, the allowed values, and the likely intended key."""
    location = _location(problem["loc"])
    key = ".".join(location)
    value = problem["input"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UnsuitableError):
        return str(cause)
    if problem["type"] == "extra_forbidden" and location == [MATRIX]:
        return f"{MATRIX} makes many experiments of this one, for `python -m lib sweep`; here it should not stand"
    if problem["type"] == "extra_forbidden":
        section: Any = Experiment
        for part in location[:-1]:
            section = section.model_fields[part].annotation
        known = list(section.model_fields)
        meant = difflib.get_close_matches(location[-1], known, n=1) or _elsewhere(location[-1])
        hint = f"did you mean {meant[0]}?" if meant else f"known here: {', '.join(known)}"
        return f"{key} is no key of an experiment ({key}: {value!r}); {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing; it must be given"
    allowed = problem["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("valid tuple", "valid list")
    return f"{key} is {value!r}: it {allowed}" if allowed.startswith("should") else f"{key} is {value!r}: {allowed}"


def _location(parts: tuple[int | str, ...]) -> list[str]:
    """Return the keys of a location, without the union types that pydantic appends after the last key."""
    section: Any = Experiment
    keys_of_it = []
    for part in parts:
        inside = isinstance(section, type) and issubclass(section, BaseModel)
        if not inside and not isinstance(part, int):
            break
        keys_of_it.append(str(part))
        if not inside:
            continue
        field = section.model_fields.get(str(part))
        section = field.annotation if field else None
    return keys_of_it


def _elsewhere(key: str) -> list[str]:
    """Return the dotted keys of any section with a similar last word."""
    dotted = {name.rpartition(".")[2]: name for name in keys()}
    return [dotted[name] for name in difflib.get_close_matches(key, list(dotted), n=1)]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keys() -> Iterator[str]:
    """Yield every dotted key of an experiment: `name`, `training.epochs`, …."""
    yield from meanings()


def meanings() -> dict[str, str]:
    """Return the description of every key, by dotted key, in the order of the models."""
    return {key: meaning for key, meaning, _ in fields()}


def fields(
    section: type[BaseModel] = Experiment, prefix: str = "", marks: tuple[Any, ...] = ()
) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield the dotted key, the description and the metadata of every field; its sections' metadata come first."""
    for name, field in section.model_fields.items():
        inner, both = field.annotation, (*marks, *field.metadata)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.", both)
        else:
            yield prefix + name, " ".join((field.description or "").split()), both
