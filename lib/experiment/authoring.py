"""Tools to write experiments: derive one from another, explain each value, and write the JSON schema for editors.

Guarantees: a new experiment is valid and never overwrites another file. Every explanation of a key comes from the
models of `lib/experiment/schema.py`.

Cannot: express in the schema a rule on two keys, such as flips and the module; loading the experiment checks it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from operator import attrgetter
from pathlib import Path
from typing import Any

from lib.errors import ExperimentError, did_you_mean
from lib.experiment.load import FROM_VALUES, MATRIX, SHORTCUTS, as_yaml, load_experiment, read_value, read_yaml
from lib.experiment.schema import ALWAYS, KEYS, Experiment
from lib.tables import as_text, make_table

SCHEMA = "schema.json"
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA}\n"
"""The first line of every experiment file; editors find the schema by it."""
Parameters = Iterable[tuple[str, str]]
"""The names and values of `-p`, as typed."""


def typed(parameters: Parameters) -> dict[str, Any]:
    """Return the values of `-p` by dotted key. Raises `ExperimentError` for an unknown key."""
    given = {SHORTCUTS.get(name, name): (name, text) for name, text in parameters}
    for key in given:
        if key not in KEYS:
            raise ExperimentError(
                f"-p {key}: an experiment has no such key.",
                state="nothing was written.",
                remedy=did_you_mean(key, [*SHORTCUTS, *KEYS], f"known are: {', '.join(KEYS)}."),
            )
    return {key: read_value(*words) for key, words in given.items()}


def _load(file: Path, given: Mapping[str, Any]) -> Experiment:
    """Load an experiment with some values overridden."""
    return load_experiment(read_yaml(file), given, where=f"{'-p, or ' if given else ''}{file}")


# ── new experiment ──────────────────────────────────────────────────────────────────────────────────────────────────


def new_experiment(project: Path, name: str, source: Path, parameters: Parameters) -> tuple[Path, Experiment]:
    """Write a new experiment called `name`: the text of `source` with some values overridden.

    It gets the next free number of its module. Raises `ExperimentError` if the result is not a valid experiment, or if
    its file already exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ExperimentError(
            f"NAME is {name!r}: it may hold letters, digits, '_' and '-', and must begin with a letter or digit.",
            state="nothing was written.",
            remedy="choose another NAME; the number and the module are prepended to it.",
        )
    given = typed(parameters)
    old, draft = _load(source, {}), _load(source, given)
    folder, short = project / "experiments", draft.about.short
    taken = [re.match(rf"(\d+)_{short}_", path.name) for path in folder.glob("*.yaml")]
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    network = draft.model.architecture.replace("-", "_")
    changes = ", ".join(f"{key} {as_yaml(value)}" for key, value in given.items())
    description = f"As {old.name}{changes and ', with '}{changes}."
    given = {"name": f"exp{number:03}_{network}_{name}", "description": description, **given}
    experiment = _load(source, given)
    file = folder / f"{number:03}_{short}_{name}.yaml"
    text = _text(source, given)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:  # another process has just created it
        raise ExperimentError(
            f"{file} already exists.", state="nothing was written.", remedy="run the same command again."
        ) from None
    return file, experiment


def _text(source: Path, given: Mapping[str, Any]) -> str:
    """Return the text of an experiment file with some values changed; everything else, comments too, is kept."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    # null is written as `null`, as in every experiment; the library would leave the value empty
    yaml.representer.yaml_representers = yaml.representer.yaml_representers | {
        type(None): lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    }
    lines = source.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    document = yaml.load("".join(line for line in lines if not line.startswith(SCHEMA_LINE.partition("=")[0])))
    for dotted, value in given.items():
        *path, key = dotted.split(".")
        section = document
        for part in path:
            if part not in section:
                section[part] = CommentedMap()
                section.yaml_set_comment_before_after_key(part, before="\n")
            section = section[part]
        if isinstance(value, list):
            value = CommentedSeq(value)  # noqa: PLW2901
            value.fa.set_flow_style()
        if key in section:
            section[key] = value
        else:  # below the name, or before the section's last key, which owns the empty line after the section
            section.insert(max(len(section) - 1, 0) if path else 1, key, value)
    stream = StringIO()
    yaml.dump(document, stream)
    return SCHEMA_LINE + stream.getvalue().rstrip("\n") + "\n"


# ── explained values ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Explained:
    """A value of an experiment, with its origin and meaning."""

    key: str
    value: Any
    origin: str
    """`line 7` (of the file), `-p`, or `default` (of the models)."""
    argument: str
    """The ultralytics train argument set from the value; in brackets if derived from it; empty if there is none."""
    meaning: str


def explain(file: Path, parameters: Parameters = ()) -> list[Explained]:
    """Return every value of an experiment file, with `parameters` applied. Raises `ExperimentError`."""
    given = typed(parameters)
    experiment = _load(file, given)
    origins = {key: f"line {line}" for key, line in _lines(file).items()} | dict.fromkeys(given, "-p")
    return [
        Explained(
            name, attrgetter(name)(experiment), origins.get(name, "default"),
            f"({key.argument})" if key.derived else key.argument, key.meaning,
        )
        for name, key in KEYS.items()
    ]  # fmt: skip


def _lines(file: Path) -> dict[str, int]:
    """Return the line number of every key of a file, by dotted key."""
    from ruamel.yaml import YAML

    def walk(section: Any, prefix: str, above: int) -> Iterator[tuple[str, int]]:  # noqa: ANN401  ruamel's CommentedMap
        places = section.lc.data or {}
        for key, value in section.items():
            line = places[key][0] + 1 if key in places else above  # a key merged by `<<` has no line of its own here
            yield f"{prefix}{key}", line
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.", line)

    return dict(walk(YAML().load(file.read_text(encoding="utf-8-sig")), "", 1))


def show_explained(explained: Iterable[Explained]) -> str:
    """Return the explained values as a text table."""
    rows = [(each.key, as_yaml(each.value), each.origin, each.argument, each.meaning) for each in explained]
    table = make_table(("Key", "Value", "From", "Ultralytics", "Meaning"), rows, ruled=False)
    always = ", ".join(f"{name} {as_yaml(value)}" for name, value in ALWAYS.items())
    text = as_text(table, max(110, shutil.get_terminal_size((160, 0)).columns))
    return f"{text}\n\n(…): derived from the value and the machine. Always: {always}."


# ── JSON schema ─────────────────────────────────────────────────────────────────────────────────────────────────────


def schema() -> dict[str, Any]:
    """Return the JSON schema of an experiment."""
    # draft-07 is the version that every editor supports; pydantic's output is also valid in it
    made = {"$schema": "http://json-schema.org/draft-07/schema#", **Experiment.model_json_schema()}
    made["properties"][MATRIX] = {
        "type": "object",
        "description": "For `python -m lib sweep`: lists of values by dotted key, an experiment for each combination.",
        "propertyNames": {"enum": [key for key in KEYS if key not in FROM_VALUES]},
        "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True},
        "minProperties": 1,
    }
    return made


def write_schema(project: Path) -> Path:
    """Write the JSON schema into the project's `experiments/` and return its path."""
    file = project / "experiments" / SCHEMA
    file.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
    return file
