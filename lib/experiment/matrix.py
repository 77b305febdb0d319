"""Expand a sweep: one experiment file becomes an experiment for each combination of values."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.errors import ExperimentError
from lib.experiment.load import FROM_VALUES, MATRIX, load_experiment, read_yaml, set_value
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
                    state="nothing was started.",
                    remedy="give each experiment a name of its own.",
                )
            found[title] = experiment, file
    return [experiment for experiment, _ in found.values()]


def title_of(experiment: Experiment) -> str:
    """Return the unique key of an experiment, `module/slug`, from which its branch names derive."""
    return f"{experiment.module}/{experiment.slug}"


def _expand(file: Path, given: Mapping[str, Any]) -> Iterator[Experiment]:
    values = read_yaml(file)
    if MATRIX not in values:
        yield load_experiment(values, given, where=str(file))
        return
    matrix = values.pop(MATRIX)
    _check_matrix(file, matrix, given)
    base = load_experiment(values, given, where=str(file))
    for choice in itertools.product(*matrix.values()):
        chosen = dict(zip(matrix, choice, strict=True))
        told = ", ".join(f"{key} {_word(value)}" for key, value in chosen.items())
        name = "-".join([base.name, *(re.sub(r"[^A-Za-z0-9.]+", "-", _word(value)).strip("-.") for value in choice)])
        own = {"name": name, "description": f"{base.description} With {told}.".lstrip()}
        content = base.model_dump(mode="json")
        for key, value in {**chosen, **own}.items():
            set_value(content, key, value)
        yield load_experiment(content, where=f"{file}, with {told}")


def _check_matrix(file: Path, matrix: object, given: Mapping[str, Any]) -> None:
    """Raise `ExperimentError` for a malformed matrix; its keys and values are checked later, with each combination."""
    wrong = ""
    if not isinstance(matrix, dict) or not matrix:
        wrong = f"{MATRIX} is {matrix!r}: it should be a mapping of keys to lists of values"
    else:
        for key, values in matrix.items():
            if not isinstance(values, list) or not values:
                wrong = f"{MATRIX}.{key} is {values!r}: it should be a list of values"
            elif len({json.dumps(value, default=str) for value in values}) < len(values):
                wrong = f"{MATRIX}.{key} is {values!r}: each value is named once"
            elif key in FROM_VALUES:
                wrong = f"{MATRIX}.{key}: {key} cannot be swept, the experiments are named after their values"
            elif key in given:
                wrong = f"{MATRIX}.{key}: the same key is given by -p"
            if wrong:
                break
    if wrong:
        raise ExperimentError(
            f"{file}: {wrong}.",
            state="nothing was started.",
            remedy="write it like `sweep: {training.learning_rate: [0.001, 0.003]}`.",
        )


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
