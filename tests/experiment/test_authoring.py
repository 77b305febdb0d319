"""New experiments derived from existing ones, explanations of their values, and the JSON schema for editors."""

from __future__ import annotations

import json
import re
import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from lib.cli.app import app
from lib.errors import ExperimentError
from lib.experiment.authoring import SCHEMA_LINE, explain, new_experiment, schema, show_explained
from lib.experiment.load import MATRIX, load_experiment, read_value, read_yaml
from lib.experiment.matrix import require_own_name
from lib.experiment.modules import MODULES
from lib.experiment.schema import ALWAYS, KEYS, ultralytics_arguments

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
BASELINE = ROOT / "experiments/001_det_baseline.yaml"
SMALL = """\
name: a  # short
module: detection
dataset: data/detection
model: {architecture: yolo11n}
training:
  epochs: 2  # few
  batch_size: 4

  learning_rate: 1e-3
wandb:
  tags: [one]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with the experiments of this one."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    for name in ("render.py", "uv.lock"):
        (folder / name).touch()
    return folder


def new(project: Path, source: Path, *parameters: tuple[str, str], name: str = "other") -> str:
    """Return the text of a new experiment."""
    file, experiment = new_experiment(project, name, source, parameters)
    assert load_experiment(file) == experiment
    return file.read_text(encoding="utf-8")


def refusals(values: Any) -> list[str]:
    """Return the errors of a JSON schema validator for these values."""
    return [error.message for error in Draft7Validator(schema()).iter_errors(values)]


# ── a new experiment ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_new_experiment_equals_its_source_line_by_line(project: Path, source: Path) -> None:
    """Only name and description differ: comments, empty lines, numbers and null are kept as written."""
    old, text = source.read_text(encoding="utf-8").splitlines(), new(project, source).splitlines()
    changed = [(before, after) for before, after in zip(old, text, strict=True) if before != after]
    architecture = load_experiment(source).model.architecture.replace("-", "_")
    assert [after for _, after in changed] == [
        f"name: exp002_{architecture}_other",
        f"description: As {load_experiment(source).name}.",
    ]


def test_given_values_are_changed_and_described(project: Path) -> None:
    """A value is given by its key or its shortcut; the description names the change, and the comment is kept."""
    text = new(project, BASELINE, ("epochs", "30"), ("model.architecture", "yolo11m"), ("wandb.tags", "[a, b]"))
    assert "name: exp002_yolo11m_other\n" in text
    message = 'training.epochs 30, model.architecture yolo11m, wandb.tags ["a", "b"]'
    assert f"description: As exp001_yolo11s_baseline, with {message}.\n" in text
    assert re.search(r"^  architecture: yolo11m +# yolo11n, s, m, l or x$", text, re.MULTILINE)
    assert "  tags: [a, b]\n" in text


def test_a_given_name_and_description_are_kept(project: Path) -> None:
    """Name and description can be given like other values."""
    text = new(project, BASELINE, ("name", "mine"), ("description", "'Why: because.'"))
    assert "name: mine\n" in text
    assert YAML(typ="safe", pure=True).load(text)["description"] == "Why: because."


def test_null_is_a_value(project: Path, tmp_path: Path) -> None:
    """A given null replaces the value of the source."""
    source = tmp_path / "old.yaml"
    source.write_text(BASELINE.read_text().replace("max_hours: 11.0", "max_hours: 3.5"), encoding="utf-8")
    assert re.search(r"max_hours: null +# stop after", new(project, source, ("session.max_hours", "null")))


def test_a_key_missing_in_the_source_is_added_to_its_section(project: Path, tmp_path: Path) -> None:
    """The section is created if it is missing, and the schema line is added."""
    source = tmp_path / "old.yaml"
    source.write_text(SMALL, encoding="utf-8")
    given = (("seed", "4"), ("training.patience", "7"), ("hardware.num_workers", "2"), ("hardware.multi_gpu", "false"))
    assert new(project, source, *given) == SCHEMA_LINE + SMALL.replace(
        "name: a  # short\n",
        "name: exp002_yolo11n_other # short\nseed: 4\ndescription: As a, with seed 4, training.patience 7, "
        "hardware.num_workers 2, hardware.multi_gpu false.\n",
    ).replace("\n\n  learning_rate", "\n\n  patience: 7\n  learning_rate") + (
        "\nhardware:\n  multi_gpu: false\n  num_workers: 2\n"
    )


def test_each_module_is_numbered_separately(project: Path) -> None:
    """The number follows the highest of the module; gaps are not filled, and no file is overwritten."""
    folder = project / "experiments"
    shutil.copy(BASELINE, folder / "007_det_x.yaml")
    shutil.copy(BASELINE, folder / "draft_det_x.yaml")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    made = [new_experiment(project, "x", BASELINE, ())[0].name for _ in range(2)]
    made.append(new_experiment(project, "x", ROOT / "experiments/000_loc_sandbox.yaml", ())[0].name)
    assert made == ["008_det_x.yaml", "009_det_x.yaml", "002_loc_x.yaml"]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("name", "source", "given", "expected"),
    [
        ("a/b", "001_det_baseline", (), "NAME is 'a/b'"),
        ("", "001_det_baseline", (), "NAME is ''"),
        ("x" * 64, "001_det_baseline", (), "name is 'exp002_yolo11s_xxx"),
        ("x", "001_det_baselin", (), "did you mean"),
        ("x", "001_det_baseline", (("epoch", "3"),), "did you mean epochs?"),
        ("x", "001_det_baseline", (("epochs", "[3"),), "-p epochs '[3': this is not a YAML value"),
        ("x", "001_loc_baseline", (("augmentation.fliplr", "0.5"),), "mirrored text"),
        ("x", "001_det_baseline", (("training.epochs.x", "3"),), "-p training.epochs.x: an experiment has no such key"),
    ],
)
def test_an_invalid_experiment_is_not_written(
    project: Path, name: str, source: str, given: tuple[tuple[str, str], ...], expected: str
) -> None:
    """The error names the invalid value; the folder stays unchanged."""
    before = sorted(path.name for path in (project / "experiments").iterdir())
    with pytest.raises(ExperimentError) as caught:
        new_experiment(project, name, project / f"experiments/{source}.yaml", given)
    assert expected in str(caught.value)
    assert sorted(path.name for path in (project / "experiments").iterdir()) == before


def test_the_command_prints_the_file_and_the_next_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`new` prints the new file, and a next command that can be run as printed."""
    monkeypatch.chdir(project)
    words = ["new", "longer", "--from", "experiments/001_loc_baseline.yaml", "-p", "epochs", "300"]
    message = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert message == (
        "experiments/002_loc_longer.yaml: exp002_yolo11s_pose_longer\n"
        "Next: uv run render.py localization --experiment experiments/002_loc_longer.yaml\n"
    )
    assert load_experiment(project / "experiments/002_loc_longer.yaml").training.epochs == 300


# ── what each value means ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_key_has_a_meaning() -> None:
    """Every key of the models has a description."""
    assert [name for name, key in KEYS.items() if len(key.meaning) < 10] == []


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_value_is_explained_as_training_uses_it(file: Path) -> None:
    """The explained arguments and values are exactly those that ultralytics receives."""
    experiment, explained = load_experiment(file), explain(file)
    assert [each.key for each in explained] == list(KEYS)
    assert all(each.value == attrgetter(each.key)(experiment) for each in explained)
    message = {each.argument: each.value for each in explained if each.argument and not each.argument.startswith("(")}
    assert message | {**ALWAYS} == ultralytics_arguments(experiment)


def test_the_origin_of_each_value_is_shown(tmp_path: Path) -> None:
    """The origin is a line of the file, `-p`, or the default."""
    file = tmp_path / "x.yaml"
    file.write_text(SMALL.replace("  tags: [one]", "  <<: {enabled: false}"), encoding="utf-8")
    origins = {each.key: each.origin for each in explain(file, [("epochs", "3"), ("session.max_hours", "null")])}
    lines = {"name": 1, "model.architecture": 4, "training.learning_rate": 9, "wandb.enabled": 10}
    assert {key: origins[key] for key in lines} == {key: f"line {line}" for key, line in lines.items()}
    assert (origins["training.epochs"], origins["session.max_hours"]) == ("-p", "-p")
    assert (origins["training.momentum"], origins["wandb.tags"]) == ("default", "default")


def test_the_table_shows_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row shows key, value, origin, argument and meaning, square brackets included."""
    monkeypatch.setenv("COLUMNS", "300")
    rows = {row.split()[0]: row.split(maxsplit=4) for row in show_explained(explain(BASELINE)).splitlines() if row}
    assert set(KEYS) <= set(rows)
    line = BASELINE.read_text().splitlines().index("  learning_rate: 0.001") + 1
    assert rows["training.learning_rate"][1:4] == ["0.001", "line", str(line)]
    assert rows["training.learning_rate"][4].split(maxsplit=1) == ["lr0", KEYS["training.learning_rate"].meaning]
    assert '["detection", "yolo11s", "baseline"]' in show_explained(explain(BASELINE))


def test_explain_accepts_the_values_that_rendering_accepts() -> None:
    """An invalid experiment causes the same error as in rendering."""
    message = CliRunner().invoke(app, ["explain", str(BASELINE), "-p", "epochs", "7"], catch_exceptions=False).output
    assert re.search(r"^training\.epochs +7 +-p +epochs ", message, re.MULTILINE)
    with pytest.raises(ExperimentError, match=r"-p, or .*: training\.epochs is 0"):
        explain(BASELINE, [("epochs", "0")])


# ── the schema ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_committed_schema_matches_the_models(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m lib schema` writes the committed file: a valid schema that describes every key."""
    written = project / "experiments/schema.json"
    written.unlink()
    monkeypatch.chdir(project)
    assert CliRunner().invoke(app, ["schema"], catch_exceptions=False).output == f"{written}\n"
    committed = (ROOT / "experiments/schema.json").read_text(encoding="utf-8")
    assert written.read_text(encoding="utf-8") == committed, "run `python -m lib schema` and commit its file"
    Draft7Validator.check_schema(json.loads(committed))
    sections = [json.loads(committed), *json.loads(committed)["$defs"].values()]
    assert all(section["description"] for section in sections)
    message = {name for each in sections for name, key in each["properties"].items() if "description" in key}
    assert message == {key.rpartition(".")[2] for key in KEYS} | {MATRIX}


def test_the_schema_describes_a_matrix() -> None:
    """Editors complete the keys of a matrix, and mark values that are not lists."""
    values = read_yaml(BASELINE)
    for matrix, is_one in (
        ({"training.epochs": [1, 2], "seed": [0]}, True),
        ({"training.epoch": [1]}, False),
        ({"name": ["a"]}, False),
        ({"seed": 3}, False),
        ({"seed": []}, False),
        ({}, False),
    ):
        assert Draft7Validator(schema()).is_valid({**values, MATRIX: matrix}) is is_one, matrix


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_names_the_schema_and_conforms_to_it(file: Path) -> None:
    """The first line of each file names the schema, and the file is valid."""
    text = file.read_text(encoding="utf-8")
    assert text.startswith(SCHEMA_LINE)
    assert (file.parent / SCHEMA_LINE.strip().partition("$schema=")[2]).is_file()
    assert refusals(YAML(typ="safe", pure=True).load(text)) == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epoch", 3, "'epoch' was unexpected"),
        ("epochs", "3", "'3' is not of type 'integer'"),
        ("epochs", 0, "0 is less than the minimum of 1"),
        ("learning_rate", 0, "0 is less than or equal to the minimum of 0"),
        ("image_size", 650, "650 is not a multiple of 32"),
        ("optimizer", "auto", "'auto' is not one of"),
        ("epochs", None, "None is not of type 'integer'"),
    ],
)
def test_the_schema_rejects_what_loading_rejects(key: str, value: Any, expected: str) -> None:
    """An editor marks the mistakes that loading would reject."""
    values = YAML(typ="safe", pure=True).load(BASELINE.read_text(encoding="utf-8"))
    values["training"][key] = value
    assert any(expected in each for each in refusals(values)), refusals(values)
    with pytest.raises(ExperimentError, match=f"training.{key}"):
        load_experiment(values)


def test_an_editor_completes_modules_and_networks() -> None:
    """The schema lists all modules and architectures."""
    properties = schema()["properties"]
    assert properties["module"]["enum"] == list(MODULES)
    networks = schema()["$defs"]["Model"]["properties"]["architecture"]["enum"]
    assert {load_experiment(file).model.architecture for file in EXPERIMENTS} <= set(networks)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "1234567", "1234567"),
        ("name", "5e12345", "5e12345"),
        ("description", "lr: 0.1 # as before", "lr: 0.1 # as before"),
        ("description", "[3", "[3"),
        ("description", "'quoted'", "quoted"),
        ("wandb.entity", "12", "12"),
        ("wandb.entity", "null", None),
        ("wandb.tags", "[1, two]", ["1", "two"]),
        ("model.pretrained", "false", False),
        ("model.pretrained", "12.pt", "12.pt"),
        ("epochs", "3", 3),
        ("epochs", "three", "three"),  # which validation rejects by its name
        ("training.learning_rate", "1e-3", 0.001),
        ("session.max_hours", "null", None),
    ],
)
def test_a_value_is_read_by_the_type_of_its_key(key: str, text: str, value: object) -> None:
    """A text stays a text, whatever it looks like."""
    found = read_value(key, text)
    assert (found, type(found)) == (value, type(value))


def test_an_experiment_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """An editor on Windows writes one."""
    file = tmp_path / "x.yaml"
    file.write_text(BASELINE.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_experiment(file) == load_experiment(BASELINE)
    assert [each.key for each in explain(file)] == list(KEYS)


@pytest.mark.parametrize(
    ("name", "place", "refused"),
    [
        ("exp001_yolo11s_baseline", "experiments/999_det_x.yaml", True),
        ("Exp001-yolo11s.baseline", "experiments/999_det_x.yaml", True),
        ("Exp001-yolo11s.baseline", "x.yaml", True),
        ("exp001_yolo11s_baseline", "x.yaml", False),  # a variant of the same experiment
        ("exp001_yolo11s_baseline_2", "experiments/999_det_x.yaml", False),
    ],
)
def test_an_experiment_shares_its_branches_with_no_other(project: Path, name: str, place: str, refused: bool) -> None:
    """Names that differ in case and punctuation only would share branch, hold and checkpoint."""
    (project / "experiments/000_broken.yaml").write_text("not: [an, experiment")
    file = project / place
    file.write_text(BASELINE.read_text().replace("name: exp001_yolo11s_baseline", f"name: {name}"))
    caught = ""
    try:
        require_own_name(load_experiment(file), file, project / "experiments")
    except ExperimentError as error:
        caught = str(error)
    assert ("001_det_baseline.yaml have the same branches (kaggle-train-detection-exp001-" in caught) == refused
    assert bool(caught) == refused


def test_the_experiments_of_the_project_share_no_branches() -> None:
    """Each has a name of its own."""
    for file in EXPERIMENTS:
        require_own_name(load_experiment(file), file, ROOT / "experiments")
