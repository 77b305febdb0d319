"""One experiment, complete and frozen; and what a module (detection, localization) is.

`MODULES` is the only place that knows the modules: a new entry, with a baseline of its own in `experiments/`, is a new
module everywhere.

An `Experiment` that exists is valid: every key is known, every type right, every value possible for its module. What
cannot be checked here: that the dataset, the weights and the GPUs it asks for are there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from lib.errors import ExperimentError

Task = Literal["detect", "segment", "pose"]
"""What ultralytics can be asked for here: the tasks whose labels `lib/data/labels.py` reads."""
SUFFIXES: Mapping[Task, str] = {"detect": "", "segment": "-seg", "pose": "-pose"}
"""What ultralytics appends to the name of an architecture."""
SIZES = "nsmlx"


@dataclass(frozen=True)
class Module:
    """What is trained, and all that sets it apart from the other modules."""

    name: str
    number: int
    short: str
    """Its mark in the names of its experiments: `001_{short}_baseline.yaml`."""
    task: Task
    keypoints: int = 0
    """Keypoints of an object; 0 where none are trained."""
    never_mirrored: str = ""
    """Why a mirrored picture would teach something wrong; empty where one may flip pictures."""

    @property
    def title(self) -> str:
        """As the users call it: `Module 1: Detection`."""
        return f"Module {self.number}: {self.name.capitalize()}"

    @property
    def notebook(self) -> str:
        """The name of its rendered notebook, without an ending."""
        return f"train_module_{self.number}_{self.name}"

    @property
    def baseline(self) -> str:
        """The experiment that is rendered where none is named, below the project's folder."""
        return f"experiments/001_{self.short}_baseline.yaml"

    @property
    def architectures(self) -> list[str]:
        """The networks it may train, the smallest first."""
        return [f"yolo11{size}{SUFFIXES[self.task]}" for size in SIZES]

    def small(self, project: Path) -> Path:
        """Give the experiment for a sandbox: its small one, or the baseline of a module that has none."""
        file = project / f"experiments/000_{self.short}_sandbox.yaml"
        return file if file.is_file() else project / self.baseline


MODULES: Mapping[str, Module] = {
    module.name: module
    for module in (
        Module(name="detection", number=1, short="det", task="detect"),
        Module(
            name="localization",
            number=3,
            short="loc",
            task="pose",
            keypoints=4,
            never_mirrored="flipping makes mirrored text: nobody could read the ID, and its corners would keep their "
            "names (flip_idx 0 1 2 3) on the wrong sides",
        ),
    )
}

if TYPE_CHECKING:
    ModuleName = str
    Architecture = str
else:  # the names that the modules have
    ModuleName = Literal[tuple(MODULES)]
    Architecture = Literal[tuple(dict.fromkeys(name for module in MODULES.values() for name in module.architectures))]


def find_module(name: str) -> Module:
    """Give a module by name. Raises `ExperimentError` for one that is not known."""
    if name in MODULES:
        return MODULES[name]
    meant = difflib.get_close_matches(name, list(MODULES), n=1)
    raise ExperimentError(
        f"module is {name!r}; it may be {', '.join(MODULES)}.",
        state="nothing was started.",
        remedy=f"did you mean {meant[0]}?" if meant else "choose one of them and run the same command again.",
    )


SHORTCUTS: Mapping[str, str] = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "learning_rate": "training.learning_rate",
    "resume_from": "model.resume_from",
}
"""Keys that `-p` and the notebook also take by their last word."""
MATRIX = "sweep"
"""The key of a file that makes many experiments of one; see `lib/sweep/sweep.py`."""
FROM_VALUES = ("name", "module", "description")
"""Keys that cannot be swept: the experiments of a sweep are named after their values."""
Share = Annotated[float, Field(ge=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class _Section(BaseModel):
    # strict: "16" is not 16 and `yes` is not true; a run must not start on a guess
    # what stands below a key explains it, here, in editors and in `python -m lib explain`
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Model(_Section):
    """The network and what it starts from."""

    architecture: Architecture
    """The network, by ultralytics' name: `yolo11n|s|m|l|x`, with `-pose` for keypoints and `-seg` for outlines."""
    pretrained: bool | str = True
    """true: the published weights of the architecture; false: random ones; or the path of a `.pt` file."""
    resume_from: str | None = None
    """The path of a `last.pt` whose training goes on, in the repository or absolute; null starts a new one."""

    @field_validator("pretrained", "resume_from")
    @classmethod
    def _names_a_checkpoint(cls, value: bool | str | None) -> bool | str | None:
        if isinstance(value, str) and not value.endswith(".pt"):
            raise ValueError("a path must end in .pt")
        return value


class Training(_Section):
    """The optimisation. Rates are per step, lengths in epochs."""

    epochs: int = Field(ge=1, le=10_000)
    """How often every training picture is seen."""
    batch_size: int = Field(ge=1, le=4096)
    """Pictures a step, over all GPUs together."""
    learning_rate: float = Field(gt=0, le=1)
    """The rate after warm-up; it falls to `final_learning_rate_ratio` times this."""
    final_learning_rate_ratio: float = Field(default=0.01, gt=0, le=1)
    """What is left of the learning rate at the end, as a share of it."""
    cosine_schedule: bool = False
    """The rate falls along a cosine; false: along a line."""
    optimizer: Literal["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSProp"] = "AdamW"
    """Always named: with ultralytics' `auto` the learning rate would be ignored."""
    momentum: float = Field(default=0.937, ge=0, lt=1)
    """SGD's momentum, or the first beta of Adam and its kind."""
    weight_decay: float = Field(default=0.0005, ge=0, le=1)
    """How strongly weights are drawn towards 0."""
    warmup_epochs: float = Field(default=3.0, ge=0)
    """Epochs in which the learning rate rises from 0."""
    nominal_batch_size: int = Field(default=64, ge=1, le=4096)
    """Gradients of smaller batches are accumulated up to this many pictures before a step."""
    patience: int = Field(default=20, ge=0)
    """Epochs without improvement after which training stops; 0 never stops early."""
    image_size: int = Field(default=640, ge=32, le=4096, multiple_of=32)
    """Side of the square picture in pixels."""
    min_batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Out of memory, the batch is halved and training goes on, down to this many pictures; null stops with an error."""


class Hardware(_Section):
    """How the machine is used."""

    multi_gpu: bool = True
    """DDP over all GPUs of the machine; false uses one."""
    num_workers: int = Field(default=4, ge=0, le=64)
    """Processes that load pictures, per GPU."""
    mixed_precision: bool = True
    """Half precision where it is safe (AMP); on a CPU it has no effect."""
    stall_minutes: float = Field(default=15.0, gt=0)
    """Without a finished batch for this long a training hangs: it is ended, and goes on with one GPU if it had more."""


class Augmentation(_Section):
    """What is done to training pictures, by ultralytics' names and units."""

    hsv_h: Share = 0.015
    """Hue is shifted by up to this share of the colour circle."""
    hsv_s: Share = 0.7
    """Saturation is changed by up to this share."""
    hsv_v: Share = 0.4
    """Brightness is changed by up to this share."""
    degrees: Degrees = 0.0
    """Turned by up to this many degrees, either way."""
    translate: Share = 0.1
    """Moved by up to this share of the picture's side."""
    scale: float = Field(default=0.5, ge=0, lt=1)
    """Made larger or smaller by up to this share."""
    shear: Degrees = 0.0
    """Sheared by up to this many degrees."""
    perspective: float = Field(default=0.0, ge=0, le=0.001)
    """How far the picture is tilted in space."""
    flipud: Share = 0.0
    """The share of pictures turned upside down by mirroring; 0 where a mirrored thing is another one (text)."""
    fliplr: Share = 0.0
    """The share of pictures mirrored left to right; 0 where a mirrored thing is another one (text)."""
    bgr: Share = 0.0
    """The share of pictures whose red and blue are exchanged."""
    mosaic: Share = 1.0
    """The share of pictures put together from four."""
    close_mosaic: int = Field(default=10, ge=0)
    """Epochs at the end that are trained without mosaics."""
    mixup: Share = 0.0
    """The share of pictures laid over another one."""
    cutmix: Share = 0.0
    """The share of pictures with a part of another one in them."""


class Session(_Section):
    """How a run uses the time that its machine has."""

    max_hours: float | None = Field(default=11.0, gt=0)
    """Training ends with the last epoch that fits, counted from the notebook's start; the rest of Kaggle's 12 hours is
    for evaluation and publication. null: no limit."""
    checkpoint_minutes: float | None = Field(default=30.0, gt=0)
    """How often what is trained leaves the machine, from the first epoch on. null: only at the end, where it is
    not finished."""
    resume: Literal["auto", "never", "always"] = "auto"
    """An earlier session's checkpoint of this experiment: go on with it, and stop where experiment, code or dataset
    differ; never: start over; always: go on, whatever differs."""
    lease_minutes: float = Field(default=10.0, gt=0)
    """A session without a sign of life for this long is dead: another one of the same experiment may take over."""
    on_failure: Literal["publish", "keep"] = "publish"
    """A training that fails half-way: publish its newest checkpoint, marked as failed, or keep it on the machine."""


class Wandb(_Section):
    """Where curves are kept. Without a key the run is recorded offline."""

    enabled: bool = True
    """Whether curves are recorded at all."""
    project: str = Field(default="kaggle-training", pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    """The W&B project that the run is kept in."""
    entity: str | None = None
    """The user or team whose project it is; null: the owner of the key."""
    tags: Annotated[tuple[str, ...], Strict(False)] = ()
    """What the run can be found by there."""


class Experiment(_Section):
    """One complete training, as its YAML says it."""

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")
    """Stands as it is in `artifacts/{module}/{name}`, in lower case with dashes in the branch's name."""
    module: ModuleName
    """What is trained."""
    description: str = ""
    """What the experiment is for; stands on the model card."""
    dataset: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")
    """A folder in the repository that DVC tracks (`<dataset>.dvc` stands beside it) and that holds `data.yaml`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of all random numbers: the same seed on the same kind of machine trains the same weights."""
    model: Model
    training: Training
    hardware: Hardware = Hardware()
    augmentation: Augmentation = Augmentation()
    session: Session = Session()
    export: Annotated[tuple[Literal["onnx", "torchscript"], ...], Strict(False)] = ()
    """Formats that `best.pt` is published in as well: `train/weights/best.onnx`, `best.torchscript`."""
    wandb: Wandb = Wandb()

    @field_validator("name")
    @classmethod
    def _makes_a_branch_name(cls, name: str) -> str:
        # git refuses `..` and a trailing `.lock` in the name of a ref
        if ".." in name or name.lower().endswith(".lock"):
            raise ValueError("a name holds no '..' and does not end in '.lock'")
        return name

    @field_validator("export")
    @classmethod
    def _names_each_once(cls, export: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(export)) < len(export):
            raise ValueError("each format is named once")
        return export

    @field_validator("dataset")
    @classmethod
    def _stays_inside_the_repository(cls, dataset: str) -> str:
        if ".." in Path(dataset).parts:
            raise ValueError("the dataset is a folder inside the repository, without '..'")
        return dataset.rstrip("/")

    @model_validator(mode="after")
    def _suits_its_module(self) -> Self:
        module = MODULES[self.module]
        wrong = []
        wanted = self.model.architecture.partition("-")[0] + SUFFIXES[module.task]
        if self.model.architecture != wanted:
            wrong.append(f"model.architecture is {self.model.architecture!r}: {self.module} needs {wanted}")
        if module.never_mirrored:
            for key in ("fliplr", "flipud"):
                value = getattr(self.augmentation, key)
                if value > 0:
                    wrong.append(
                        f"augmentation.{key} is {value!r}: {module.never_mirrored}; only 0.0 is allowed for "
                        f"{self.module}"
                    )
        if wrong:
            raise _UnsuitableError("; ".join(wrong))
        return self

    @property
    def about(self) -> Module:
        """The module this experiment trains."""
        return MODULES[self.module]

    @property
    def slug(self) -> str:
        """The name as it stands in branch names: lower case, dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def artifacts(self) -> str:
        """The folder of everything this experiment makes, inside the repository."""
        return f"artifacts/{self.module}/{self.name}"


class _UnsuitableError(ValueError):
    """Values that are possible, but not for this module."""


def load_experiment(
    source: Path | str | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    module: str = "",
    where: str = "the notebook's experiment",
) -> Experiment:
    """Give the experiment of a YAML file, or of its content as a rendered notebook carries it.

    `overrides` are values by dotted key (`{"training.epochs": 3}`) that win over the file's.
    `module` is the one it must be of; empty, it may be of any. `where` is what errors call a content.
    Raises `ExperimentError` naming the file and, for everything that is wrong in it, key, value and what is allowed.
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
            remedy=f"correct {where} (every key is explained in lib/experiment/schema.py) and run the same command again.",
        ) from None
    if module and experiment.module != find_module(module).name:
        raise ExperimentError(
            f"{where}: module is {experiment.module!r}, and {module!r} was asked for.",
            state="nothing was started.",
            remedy=f"name an experiment of {module}, for instance {MODULES[module].baseline}.",
        )
    return experiment


def read_yaml(path: Path) -> dict[str, Any]:
    """Give the content of an experiment's file, not checked yet. Raises `ExperimentError` for one that has none."""
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
    except (YAMLError, ValueError, KeyError) as error:  # the last two: a date or number that is none
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
    """Read the value of `-p NAME VALUE` as a file would be: 3 is a number, true a truth value, null nothing."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, KeyError):  # the last two: a date or number that is none
        raise ExperimentError(
            f"-p {name} {text!r}: this is no YAML value.", state="nothing was written.", remedy="put it in quotes."
        ) from None


def set_value(values: dict[str, Any], dotted: str, value: object) -> None:
    """Set the value of a dotted key; sections on the way are made, and copied where they are there."""
    *path, key = dotted.split(".")
    for part in path:
        inner = values.get(part, {})
        if not isinstance(inner, Mapping):
            return  # no section to set a value in: validation names it
        values[part] = dict(inner)  # a copy: the mapping handed in by a notebook stays as it was
        values = values[part]
    values[key] = value


def _complaint(problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    """One sentence on one thing that is wrong: key, value, what is allowed, and the key that was meant."""
    location = _location(problem["loc"])
    key = ".".join(location)
    value = problem["input"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, _UnsuitableError):
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
    """Give the keys of a location; behind a value pydantic names the types of the union that it tried."""
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
    """Give the dotted keys of other sections that are called nearly the same."""
    dotted = {name.rpartition(".")[2]: name for name in keys()}
    return [dotted[name] for name in difflib.get_close_matches(key, list(dotted), n=1)]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the values of nested mappings by dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keys() -> Iterator[str]:
    """Every key of an experiment, dotted: `name`, `training.epochs`, …."""
    yield from meanings()


def meanings(section: type[BaseModel] = Experiment, prefix: str = "") -> dict[str, str]:
    """Give what every key means, by its dotted name, in the order of the models."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= meanings(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = " ".join((field.description or "").split())
    return found
