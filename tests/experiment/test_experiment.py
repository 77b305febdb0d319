from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from lib.errors import ExperimentError
from lib.experiment.load import load_experiment
from lib.experiment.modules import MODULES
from lib.experiment.schema import Experiment

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))

DETECTION: dict[str, Any] = {
    "name": "exp007",
    "module": "detection",
    "dataset": "data/detection",
    "model": {"architecture": "yolo11n"},
    "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.001},
}
LOCALIZATION: dict[str, Any] = {**DETECTION, "module": "localization", "model": {"architecture": "yolo11n-pose"}}

NUMERIC_KEYS = (
    "seed",
    "training.epochs",
    "training.batch_size",
    "training.learning_rate",
    "training.final_learning_rate_ratio",
    "training.momentum",
    "training.weight_decay",
    "training.warmup_epochs",
    "training.nominal_batch_size",
    "training.patience",
    "training.image_size",
    "hardware.num_workers",
    "augmentation.hsv_h",
    "augmentation.degrees",
    "augmentation.translate",
    "augmentation.scale",
    "augmentation.perspective",
    "augmentation.fliplr",
    "augmentation.mosaic",
    "augmentation.close_mosaic",
)

Write = Callable[..., Path]


def changed(base: dict[str, Any], **values: object) -> dict[str, Any]:
    """Return a copy with values set by key; `__` replaces the dot between section and key."""
    new = copy.deepcopy(base)
    for dotted, value in values.items():
        *path, key = dotted.split("__")
        inner = new
        for part in path:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return new


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes an experiment file from its content or its text."""

    def write_file(content: dict[str, Any] | str, name: str = "007_det.yaml") -> Path:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            stream = StringIO()
            YAML(typ="safe", pure=True).dump(content, stream)
            path.write_text(stream.getvalue(), encoding="utf-8")
        return path

    return write_file


def refusal(source: Path | dict[str, Any]) -> str:
    """Return the message with which the loader rejects an experiment."""
    with pytest.raises(ExperimentError) as caught:
        load_experiment(source)
    return str(caught.value)


# ── what loads ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_of_the_repository_loads(path: Path) -> None:
    """Each file of experiments/ is valid, and its name contains the abbreviation of its module."""
    experiment = load_experiment(path)
    assert experiment.about.short == path.stem.split("_")[1]


def test_the_repository_has_a_baseline_of_every_module() -> None:
    """The baseline of each module exists and trains that module."""
    for module in MODULES.values():
        assert load_experiment(ROOT / module.baseline).about is module


def test_a_small_file_is_completed_with_defaults(write: Write) -> None:
    """Five keys are enough for an experiment."""
    experiment = load_experiment(write(DETECTION))
    assert (experiment.training.epochs, experiment.training.optimizer) == (2, "AdamW")
    assert experiment.augmentation.fliplr == 0.0


def test_a_number_with_an_exponent_is_a_number(write: Write) -> None:
    """`1e-3`, which is text in YAML 1.1, is read as a number."""
    path = write(changed(DETECTION))
    path.write_text(path.read_text(encoding="utf-8").replace("0.001", "1e-3"), encoding="utf-8")
    assert "1e-3" in path.read_text(encoding="utf-8")
    assert load_experiment(path).training.learning_rate == 0.001


def test_a_whole_number_is_a_valid_rate(write: Write) -> None:
    """`momentum: 0` is valid without a decimal point."""
    assert load_experiment(write(changed(DETECTION, training__momentum=0))).training.momentum == 0.0


def test_a_mapping_loads_as_its_file_does(write: Write) -> None:
    """A rendered notebook, which holds its experiment as a mapping, loads the same experiment."""
    assert load_experiment(DETECTION) == load_experiment(write(DETECTION))


def test_overrides_do_not_change_the_given_mapping() -> None:
    """Overrides are applied to a copy, at every level."""
    mapping = copy.deepcopy(DETECTION)
    experiment = load_experiment(mapping, {"training.epochs": 9, "name": "other", "hardware.multi_gpu": False})
    assert mapping == DETECTION
    assert (experiment.training.epochs, experiment.name, experiment.hardware.multi_gpu) == (9, "other", False)


def test_an_override_wins_also_with_null(write: Write) -> None:
    """An override replaces the file's value, also by null; other values are kept."""
    path = write(DETECTION)
    experiment = load_experiment(path, {"training.epochs": 3, "session.max_hours": None, "seed": 5})
    assert (experiment.training.epochs, experiment.training.batch_size, experiment.seed) == (3, 4, 5)
    assert experiment.session.max_hours is None


@pytest.mark.parametrize("override", ["training.epoch", "trainin.epochs", "epochs"])
def test_an_override_of_an_unknown_key_is_rejected(write: Write, override: str) -> None:
    """Overrides are checked like the file."""
    with pytest.raises(ExperimentError, match=override.split(".", maxsplit=1)[0]):
        load_experiment(write(DETECTION), {override: 3})


def test_an_override_does_not_hide_an_invalid_section(write: Write) -> None:
    """`hardware: 7` is rejected, also if a parameter sets a key of hardware."""
    with pytest.raises(ExperimentError, match="hardware is 7"):
        load_experiment(write(changed(DETECTION, hardware=7)), {"hardware.num_workers": 2})


def test_an_experiment_cannot_be_changed() -> None:
    """A loaded experiment is frozen."""
    experiment = load_experiment(DETECTION)
    with pytest.raises(ValidationError, match="frozen"):
        experiment.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        experiment.training.epochs = 3  # type: ignore[misc]


def test_the_tags_of_an_experiment_cannot_be_changed() -> None:
    """A loaded experiment is frozen at every level, and can be hashed."""
    experiment = load_experiment(changed(DETECTION, wandb__tags=["a"]))
    assert hash(experiment) == hash(load_experiment(changed(DETECTION, wandb__tags=["a"])))


# ── rejected files ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"training__epoch": 3}, ["training.epoch", "3", "did you mean epochs?"]),
        ({"epochs": 3}, ["epochs", "3", "did you mean training.epochs?"]),
        ({"training__fliprl": 0.5}, ["training.fliprl", "0.5", "did you mean augmentation.fliplr?"]),
        ({"hardware__zzqqxx": 1}, ["hardware.zzqqxx", "multi_gpu", "num_workers", "mixed_precision"]),
        ({"training__epochs": "16"}, ["training.epochs", "'16'", "valid integer"]),
        ({"training__epochs": 1.5}, ["training.epochs", "1.5", "valid integer"]),
        ({"training__epochs": True}, ["training.epochs", "True", "valid integer"]),
        ({"training__cosine_schedule": "yes"}, ["training.cosine_schedule", "'yes'", "valid boolean"]),
        ({"training": None}, ["training", "None", "dictionary"]),
        ({"training__epochs": 0}, ["training.epochs", "0", "greater than or equal to 1"]),
        ({"training__learning_rate": 0}, ["training.learning_rate", "0", "greater than 0"]),
        ({"training__learning_rate": float("nan")}, ["training.learning_rate", "nan", "finite"]),
        ({"training__momentum": 1.0}, ["training.momentum", "1.0", "less than 1"]),
        ({"training__image_size": 650}, ["training.image_size", "650", "multiple of 32"]),
        ({"training__optimizer": "auto"}, ["training.optimizer", "'auto'", "'SGD'", "'AdamW'"]),
        ({"model__architecture": "yolov8n"}, ["model.architecture", "'yolov8n'", "yolo11"]),
        ({"model__pretrained": "weights.txt"}, ["model.pretrained", "'weights.txt'", ".pt"]),
        ({"model__pretrained": 5}, ["model.pretrained", "5", "boolean", "string"]),
        ({"model__resume_from": "last.ckpt"}, ["model.resume_from", "'last.ckpt'", ".pt"]),
        ({"module": "counting"}, ["module", "'counting'", "'detection'", "'localization'"]),
        ({"export": ["onnx", "tflite"]}, ["export.1", "'tflite'", "'onnx' or 'torchscript'"]),
        ({"export": "onnx"}, ["export", "'onnx'", "list"]),
        ({"export": ["onnx", "onnx"]}, ["export", "each format may be named only once"]),
        ({"wandb__tags": "one"}, ["wandb.tags", "'one'", "list"]),
        ({"wandb__tags": ["one", 2]}, ["wandb.tags.1", "2", "string"]),
        ({"wandb__tags": ["x" * 65]}, ["wandb.tags.0", "at most 64 characters"]),
        ({"hardware__prepare_images": "always"}, ["hardware.prepare_images", "'always'", "'auto' or 'never'"]),
        ({"seed": -1}, ["seed", "-1", "greater than or equal to 0"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_reported_with_file_key_value_and_allowed_values(
    write: Write, values: dict[str, Any], expected: list[str]
) -> None:
    """The message names the file, the key, its value and the allowed values."""
    path = write(changed(DETECTION, **values))
    message = refusal(path)
    for part in (str(path), *expected):
        assert part in message
    assert "State: nothing was started." in message
    assert "What to do: " in message


@pytest.mark.parametrize("key", ["name", "module", "dataset", "model", "training"])
def test_a_missing_key_is_named(write: Write, key: str) -> None:
    """A required key that is missing is named."""
    message = refusal(write({name: value for name, value in DETECTION.items() if name != key}))
    assert f"{key} is missing" in message


def test_a_missing_key_of_a_section_is_named_with_its_section(write: Write) -> None:
    """A missing key of a section is named with its section."""
    assert "training.epochs is missing" in refusal(write(changed(DETECTION, training={"batch_size": 4})))


@pytest.mark.parametrize("key", ["str", "bool", "model__bool", "1", "_names_a_checkpoint", "name.epochs"])
def test_an_unknown_key_of_any_name_is_reported(write: Write, key: str) -> None:
    """No key name confuses the code that writes the message."""
    assert f"{key.replace('__', '.')} is not a key of an experiment" in refusal(write(changed(DETECTION, **{key: 1})))


def test_a_key_that_is_not_text_is_reported(write: Write) -> None:
    """A number as a key, which YAML allows, is reported."""
    values: dict[Any, Any] = {**DETECTION, 7: "seven"}
    assert "7" in refusal(write(values))


def test_all_mistakes_are_reported_in_one_error(write: Write) -> None:
    """One error names all mistakes of a file."""
    values = changed(
        DETECTION, training__epochs=0, training__batch_size="16", augmentation__flip=1, module="x", dataset="../data"
    )
    del values["name"]
    message = refusal(write(values))
    for key in ("training.epochs", "training.batch_size", "augmentation.flip", "module is 'x'", "dataset", "name is"):
        assert key in message


def test_all_values_that_do_not_suit_the_module_are_reported_in_one_error(write: Write) -> None:
    """One error names the architecture, both flips and an ordinary mistake."""
    values = changed(LOCALIZATION, augmentation__fliplr=0.5, augmentation__flipud=0.25)
    values["model"]["architecture"] = "yolo11n"
    message = refusal(write(values))
    for key in ("model.architecture", "augmentation.fliplr", "augmentation.flipud"):
        assert key in message


@pytest.mark.parametrize("key", ["fliplr", "flipud"])
@pytest.mark.parametrize("value", [0.5, 1, 1e-9])
def test_localization_is_never_trained_on_mirrored_text(write: Write, key: str, value: float) -> None:
    """Flips above 0 are rejected with the reason."""
    message = refusal(write(changed(LOCALIZATION, **{f"augmentation__{key}": value})))
    assert f"augmentation.{key} is " in message
    assert "mirrored text" in message


def test_localization_accepts_only_zero_flips_and_detection_any(write: Write) -> None:
    """A mirrored door is still a door."""
    zero = load_experiment(write(changed(LOCALIZATION, augmentation__fliplr=0, augmentation__flipud=0.0)))
    assert zero.augmentation.fliplr == zero.augmentation.flipud == 0.0
    half = load_experiment(write(changed(DETECTION, augmentation__fliplr=0.5, augmentation__flipud=1.0)))
    assert (half.augmentation.fliplr, half.augmentation.flipud) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("base", "architecture", "meant"),
    [(DETECTION, "yolo11s-pose", "yolo11s"), (LOCALIZATION, "yolo11m", "yolo11m-pose")],
    ids=["detection", "localization"],
)
def test_the_architecture_must_suit_the_module(
    write: Write, base: dict[str, Any], architecture: str, meant: str
) -> None:
    """An architecture of another task is rejected, and the suitable one is named."""
    message = refusal(write(changed(base, model__architecture=architecture)))
    assert f"model.architecture is '{architecture}': {base['module']} needs {meant}" in message


@pytest.mark.parametrize("dataset", ["../data", "data/../../secret", "/etc", "data/..", "~/data", ".git", "", "a\nb"])
def test_a_dataset_is_a_folder_of_the_repository(write: Write, dataset: str) -> None:
    """A path that leaves the repository is rejected."""
    message = refusal(write(changed(DETECTION, dataset=dataset)))
    assert f"dataset is {dataset!r}" in message


def test_a_missing_file_is_reported_with_the_most_similar_one(write: Write) -> None:
    """A misspelt file name is answered with the right one."""
    there = write(DETECTION, "001_det_baseline.yaml")
    write(DETECTION, "009_loc_other.yaml")
    message = refusal(there.with_name("001_det_baselin.yaml"))
    assert "001_det_baselin.yaml: there is no such file" in message
    assert f"did you mean {there}?" in message


def test_a_missing_file_without_a_similar_one_is_reported_with_all_files(write: Write) -> None:
    """Only file names are compared: a long common folder does not make two files similar."""
    there = [write(DETECTION, name) for name in ("001_det.yaml", "002_loc.yaml")]
    message = refusal(there[0].with_name("qqqqqqqqqqqqqqqq.yaml"))
    assert "did you mean" not in message
    for path in there:
        assert path.name in message


def test_a_file_in_a_missing_folder_is_reported(tmp_path: Path) -> None:
    """A missing folder causes the same error, without a suggestion."""
    assert "there is no such file" in refusal(tmp_path / "nowhere" / "001.yaml")


def test_a_key_given_twice_is_an_error(write: Write) -> None:
    """A repeated key is an error, with the file and the key in one sentence."""
    path = write("name: one\nname: two\n")
    message = refusal(path)
    assert str(path) in message
    assert "name" in message
    assert "duplicate" in message.lower()
    assert "\nname" not in message  # one sentence


@pytest.mark.parametrize(
    "text",
    ["name: [1, 2\n", "\tname: x\n", "a: b: c\n", "name: !!python/object:os.system x\n", "name: \x00\n", "[" * 3000],
    ids=["bracket", "tab", "colons", "tag", "null", "nesting"],
)
def test_a_file_that_is_not_yaml_is_reported(write: Write, text: str) -> None:
    """The error names the file, and nothing of the file is executed."""
    path = write(text)
    assert f"{path}: this is not YAML" in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["seed: !!int sixteen\n", "description: 2024-13-45\n", "seed: !!bool maybe\n", "seed: !!float many\n"],
    ids=["int", "date", "bool", "float"],
)
def test_a_value_that_yaml_cannot_build_is_reported_with_its_file(write: Write, text: str) -> None:
    """An invalid date or number in well-formed YAML is reported with its file."""
    path = write(text)
    assert str(path) in refusal(path)


def test_a_binary_file_is_reported(write: Write) -> None:
    """An image under the name of an experiment is reported with its path."""
    path = write("")
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert f"{path}: this is not YAML" in refusal(path)


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a\n- b\n", "list"), ("just text\n", "str")])
def test_a_file_that_is_not_a_mapping_is_reported(write: Write, text: str, kind: str) -> None:
    """An empty file, a list and plain text are reported with their type."""
    path = write(text)
    message = refusal(path)
    assert f"{path}: it must map keys to values, and holds a value of type {kind}" in message


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ["exp001_yolo11s_baseline", "A", "a.b.c", "Exp--7__x", "x" * 64, "1.lock.2", "e-1_", "HEAD", "a@{b"]


@pytest.mark.parametrize("name", NAMES)
def test_an_accepted_name_makes_a_valid_branch_name(name: str) -> None:
    """Git accepts the branch of each accepted name; other names are rejected before the run."""
    try:
        experiment = load_experiment(changed(DETECTION, name=name))
    except ExperimentError as error:
        assert f"name is {name!r}" in str(error)  # noqa: PT017  either outcome is right, but not any error
        return
    assert_makes_a_branch(experiment)


def assert_makes_a_branch(experiment: Experiment) -> None:
    """Assert that Git accepts the branch's name, and that the folder's name is one plain folder."""
    for name in (experiment.slug, experiment.name):
        branch = f"kaggle-train-{experiment.module}-{name}"
        done = subprocess.run(["git", "check-ref-format", "--branch", branch], check=False, capture_output=True)
        assert done.returncode == 0, branch
    assert experiment.slug
    assert experiment.slug == experiment.slug.lower()
    assert Path(experiment.artifacts).parts == ("artifacts", experiment.module, experiment.name)


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_any_name_makes_a_valid_branch_name_or_is_rejected(name: str) -> None:
    """Any generated name either makes a valid branch name or is rejected."""
    try:
        experiment = load_experiment(changed(DETECTION, name=name))
    except ExperimentError:
        return
    assert_makes_a_branch(experiment)


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "../x", "a..b", "x.lock", "X.LOCK", "-a", "a-", "é", "x" * 65, "a\n", "a:b", "a~1", "a^"]
)
def test_a_name_that_cannot_be_a_branch_is_rejected(name: str) -> None:
    """A name that Git rejects, or that leaves `artifacts/`, is rejected."""
    assert f"name is {name!r}" in refusal(changed(DETECTION, name=name))


# ── anything ──────────────────────────────────────────────────────────────────────────────────────────────────────────

anything = st.one_of(
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.dates(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(NUMERIC_KEYS), anything, st.sampled_from([DETECTION, LOCALIZATION]))
def test_any_value_of_a_numeric_key_loads_or_is_rejected(key: str, value: object, base: dict[str, Any]) -> None:
    """A value either loads as the given number or is rejected; no other exception is raised."""
    try:
        experiment = load_experiment(changed(base, **{key.replace(".", "__"): value}))
    except ExperimentError as error:
        assert key in str(error)  # noqa: PT017  either outcome is right, but not any error
        return
    loaded: Any = experiment
    for part in key.split("."):
        loaded = getattr(loaded, part)
    assert loaded == value
    assert not isinstance(loaded, bool)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.text(alphabet="abelmnorstfix:[]{}!&*#'\"-.,0123456789 \n\t", max_size=60))
def test_any_text_as_a_file_is_rejected_with_an_experiment_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Any text either loads or causes an `ExperimentError`."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    assert str(path) in refusal(path)
