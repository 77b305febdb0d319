"""Expand a sweep: one experiment file becomes an experiment for each combination of values."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.errors import ExperimentError
from lib.experiment.load import FROM_VALUES, MATRIX, as_yaml, load_experiment, read_yaml
from lib.experiment.schema import Experiment


def read_sweep(files: Sequence[Path], given: Mapping[str, Any]) -> list[Experiment]:
    """Return the experiments of these files, in the order of the files.

    `given` are values by dotted key that override those of each file. A file with a `sweep` (lists of values by dotted
    key) becomes one experiment for each combination. Raises `ExperimentError`, also when two experiments would be
    published under one name.
    """
    found: dict[str, tuple[Experiment, Path]] = {}
    for file in files:
        for experiment in _expand(file, given):
            title = title_of(experiment)
            if title in found:
                raise ExperimentError(
                    f"{file}: its experiment {title} is also one of {found[title][1]}.",
                    remedy="give each experiment a name of its own.",
                )
            found[title] = experiment, file
    return [experiment for experiment, _ in found.values()]


def title_of(experiment: Experiment) -> str:
    """Return the unique key of an experiment, `module/slug`, from which its branch names derive."""
    return f"{experiment.module}/{experiment.slug}"


def require_own_name(experiment: Experiment, file: Path, folder: Path) -> None:
    """Raise `ExperimentError` if the experiment of `file` and another one in `folder` would share their branches.

    A copy of an experiment outside of `folder`, under the same name, is a variant of that experiment. Files in `folder`
    that cannot be read are passed over.
    """
    is_inside = file.resolve().parent == folder.resolve()
    for other in sorted(folder.glob("*.yaml")):
        namesakes = []
        with contextlib.suppress(ExperimentError):
            namesakes = [each for each in _expand(other, {}) if each.key == experiment.key]
        for each in namesakes:
            if each.name != experiment.name or (is_inside and other.resolve() != file.resolve()):
                raise ExperimentError(
                    f"{file}: the experiment {experiment.name} and {each.name} of {other} have the same branches "
                    f"(kaggle-train-{experiment.key}-…), and the same checkpoint.",
                    remedy="give one of them a name that differs in letters or digits.",
                )


def _expand(file: Path, given: Mapping[str, Any]) -> Iterator[Experiment]:
    values = read_yaml(file)
    if MATRIX not in values:
        yield load_experiment(values, given, where=str(file))
        return
    matrix = values.pop(MATRIX)
    if problem := _problem_of(matrix, given):
        raise ExperimentError(
            f"{file}: {problem}.", remedy="write it like `sweep: {training.learning_rate: [0.001, 0.003]}`."
        )
    base = load_experiment(values, given, where=str(file))
    for choice in itertools.product(*matrix.values()):
        chosen = dict(zip(matrix, choice, strict=True))
        choices = ", ".join(f"{key} {as_yaml(value)}" for key, value in chosen.items())
        name = "-".join([base.name, *(re.sub(r"[^A-Za-z0-9.]+", "-", as_yaml(value)).strip("-.") for value in choice)])
        own = {"name": name, "description": f"{base.description} With {choices}.".lstrip()}
        yield load_experiment(base.model_dump(mode="json"), {**chosen, **own}, where=f"{file}, with {choices}")


def _problem_of(matrix: object, given: Mapping[str, Any]) -> str:
    """Return what is wrong with a matrix, or ""; its keys and values are checked later, with each combination."""
    if not isinstance(matrix, dict) or not matrix:
        return f"{MATRIX} is {matrix!r}: it should be a mapping of keys to lists of values"
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            return f"{MATRIX}.{key} is {values!r}: it should be a list of values"
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            return f"{MATRIX}.{key} is {values!r}: each value may be named only once"
        if key in FROM_VALUES:
            return f"{MATRIX}.{key}: {key} cannot be swept, because the experiments are named after their values"
        if key in given:
            return f"{MATRIX}.{key}: -p sets the same key"
    return ""
