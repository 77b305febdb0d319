"""The schema of an experiment: one complete, frozen training configuration.

`lib/experiment/modules.py` defines the modules (detection, localization): a new entry in its `MODULES`, with a
baseline in `experiments/`, adds a module everywhere.

Guarantees: an `Experiment` object is valid. Every key is known, every type is right, and every value is possible for
its module. Cannot: check that the requested dataset, weights and GPUs are available.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from lib.experiment.modules import MODULES, SUFFIXES, Module

if TYPE_CHECKING:
    ModuleName = str
    Architecture = str
else:  # the names defined in MODULES
    ModuleName = Literal[tuple(MODULES)]
    Architecture = Literal[tuple(dict.fromkeys(name for module in MODULES.values() for name in module.architectures))]


Share = Annotated[float, Field(ge=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]


@dataclass(frozen=True)
class Ultralytics:
    """Mark a field, or every field of a section, as a train argument of ultralytics."""

    argument: str = ""
    """The argument's name; empty if it is the field's own name."""
    derived: bool = False
    """Whether `train` derives the argument from the value and the state of the machine."""


class _Section(BaseModel):
    # strict: "16" is not 16 and `yes` is not true; a run must not start on a guess
    # the string below a field is its description, here, in editors and in `python -m lib explain`
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Model(_Section):
    """The network and what it starts from."""

    architecture: Annotated[Architecture, Ultralytics("model", derived=True)]
    """The network, by ultralytics' name: `yolo11n|s|m|l|x`, with `-pose` for keypoints and `-seg` for outlines."""
    pretrained: Annotated[bool | str, Ultralytics(derived=True)] = True
    """true: the published weights of the architecture; false: random ones; or the path of a `.pt` file."""
    resume_from: Annotated[str | None, Ultralytics("resume", derived=True)] = None
    """The path of a `last.pt` to resume, in the repository or absolute; null starts a new training."""

    @field_validator("pretrained", "resume_from")
    @classmethod
    def _names_a_checkpoint(cls, value: bool | str | None) -> bool | str | None:
        if isinstance(value, str) and not value.endswith(".pt"):
            raise ValueError("a path must end in .pt")
        return value


class Training(_Section):
    """The optimisation. Rates are per step, lengths in epochs."""

    epochs: Annotated[int, Ultralytics()] = Field(ge=1, le=10_000)
    """How often every training image is seen."""
    batch_size: Annotated[int, Ultralytics("batch")] = Field(ge=1, le=4096)
    """Images a step, over all GPUs together."""
    learning_rate: Annotated[float, Ultralytics("lr0")] = Field(gt=0, le=1)
    """The rate after warm-up; it falls to `final_learning_rate_ratio` times this."""
    final_learning_rate_ratio: Annotated[float, Ultralytics("lrf")] = Field(default=0.01, gt=0, le=1)
    """The final learning rate, as a share of `learning_rate`."""
    cosine_schedule: Annotated[bool, Ultralytics("cos_lr")] = False
    """Whether the rate falls along a cosine; false: linearly."""
    optimizer: Annotated[Literal["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSProp"], Ultralytics()] = "AdamW"
    """There is no `auto`: ultralytics would ignore the learning rate with it."""
    momentum: Annotated[float, Ultralytics()] = Field(default=0.937, ge=0, lt=1)
    """SGD's momentum, or the first beta of Adam and its variants."""
    weight_decay: Annotated[float, Ultralytics()] = Field(default=0.0005, ge=0, le=1)
    """How strongly weights are pulled towards 0."""
    warmup_epochs: Annotated[float, Ultralytics()] = Field(default=3.0, ge=0)
    """Epochs in which the learning rate rises from 0."""
    nominal_batch_size: Annotated[int, Ultralytics("nbs")] = Field(default=64, ge=1, le=4096)
    """Gradients of smaller batches are accumulated up to this many images before a step."""
    patience: Annotated[int, Ultralytics()] = Field(default=20, ge=0)
    """Epochs without improvement after which training stops; 0 never stops early."""
    image_size: Annotated[int, Ultralytics("imgsz")] = Field(default=640, ge=32, le=4096, multiple_of=32)
    """Side of the square image in pixels."""
    deterministic: Annotated[bool, Ultralytics()] = True
    """Only operations with the same result each time; false is faster on GPUs, and a training cannot be repeated."""
    min_batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Out of memory, training resumes with half the batch, down to this many images; null stops with an error."""


class Hardware(_Section):
    """How the machine is used."""

    multi_gpu: Annotated[bool, Ultralytics("device", derived=True)] = True
    """DDP over all GPUs of the machine; false uses one."""
    num_workers: Annotated[int, Ultralytics("workers")] = Field(default=4, ge=0, le=64)
    """Processes that load images, per GPU; at most the machine's cores divided by its GPUs: two a GPU on Kaggle."""
    mixed_precision: Annotated[bool, Ultralytics("amp")] = True
    """Half precision where it is safe (AMP); no effect on a CPU."""
    stall_minutes: float = Field(default=15.0, gt=0)
    """A training hangs when no batch ends for this long: it is stopped, and resumed on one GPU if it had more."""
    prepare_images: Literal["auto", "never"] = "auto"
    """Decode and shrink the images once instead of in every epoch, if half of the free memory and disk hold them."""


class Augmentation(_Section):
    """Changes of the training images, by ultralytics' names and units."""

    hsv_h: Share = 0.015
    """Hue is shifted by up to this share of the colour circle."""
    hsv_s: Share = 0.7
    """Saturation is changed by up to this share."""
    hsv_v: Share = 0.4
    """Brightness is changed by up to this share."""
    degrees: Degrees = 0.0
    """Rotated by up to this many degrees, either way."""
    translate: Share = 0.1
    """Moved by up to this share of the image's side."""
    scale: float = Field(default=0.5, ge=0, lt=1)
    """Scaled up or down by up to this share."""
    shear: Degrees = 0.0
    """Sheared by up to this many degrees."""
    perspective: float = Field(default=0.0, ge=0, le=0.001)
    """How far the image is tilted in space."""
    flipud: Share = 0.0
    """The share of images mirrored top to bottom; 0 where mirroring changes the meaning (text)."""
    fliplr: Share = 0.0
    """The share of images mirrored left to right; 0 where mirroring changes the meaning (text)."""
    bgr: Share = 0.0
    """The share of images whose red and blue are exchanged."""
    mosaic: Share = 1.0
    """The share of images composed of four."""
    close_mosaic: int = Field(default=10, ge=0)
    """Final epochs that are trained without mosaics."""
    mixup: Share = 0.0
    """The share of images blended with another one."""
    cutmix: Share = 0.0
    """The share of images in which a part is replaced by another one."""


class Session(_Section):
    """How a run uses the time of its machine."""

    max_hours: float | None = Field(default=11.0, gt=0)
    """Training ends with the last epoch that fits, counted from the notebook's start; the rest of Kaggle's 12 hours is
    for evaluation and publication. null: no limit."""
    checkpoint_minutes: float | None = Field(default=30.0, gt=0)
    """How often a checkpoint is uploaded, from the first epoch on. null: only at the end of an unfinished training."""
    resume: Literal["auto", "never", "always"] = "auto"
    """What to do with an earlier session's checkpoint of this experiment. auto: resume it, and stop if experiment, code
    or dataset differ; never: start over; always: resume it, whatever differs."""
    lease_minutes: float = Field(default=10.0, gt=0)
    """A session that does not answer for this long is dead: another one of the same experiment takes over."""
    on_failure: Literal["publish", "keep"] = "publish"
    """When training fails half-way: publish its newest checkpoint, marked as failed, or keep it on the machine."""


class Wandb(_Section):
    """Where curves are recorded. Without a key the run is recorded offline."""

    enabled: bool = True
    """Whether curves are recorded at all."""
    project: str = Field(default="kaggle-training", pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    """The W&B project of the run."""
    entity: str | None = None
    """The user or team that owns the project; null: the owner of the key."""
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Strict(False)] = ()
    """Tags by which the run can be found, each of at most 64 characters."""


class Experiment(_Section):
    """One complete training, as its YAML describes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")
    """The folder in `artifacts/{module}/`; in branch names in lower case with dashes, so that names must differ in
    letters or digits."""
    module: ModuleName
    """The kind of model to train."""
    description: str = ""
    """What the experiment is for; shown on the model card."""
    dataset: Annotated[str, Ultralytics("data", derived=True)] = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")
    """A folder in the repository that DVC tracks (with `<dataset>.dvc` next to it) and that holds `data.yaml`."""
    seed: Annotated[int, Ultralytics()] = Field(default=0, ge=0, lt=2**31)
    """Seed of all random numbers: with the same seed and kind of machine, the trained weights are the same."""
    model: Model
    training: Training
    hardware: Hardware = Hardware()
    augmentation: Annotated[Augmentation, Ultralytics()] = Augmentation()
    session: Session = Session()
    export: Annotated[tuple[Literal["onnx", "torchscript"], ...], Strict(False)] = ()
    """Further formats in which `best.pt` is published: `train/weights/best.onnx`, `best.torchscript`."""
    wandb: Wandb = Wandb()

    @field_validator("name")
    @classmethod
    def _makes_a_branch_name(cls, name: str) -> str:
        # git rejects `..` and a trailing `.lock` in the name of a ref
        if ".." in name or name.lower().endswith(".lock"):
            raise ValueError("a name must not contain '..' or end in '.lock'")
        return name

    @field_validator("export")
    @classmethod
    def _names_each_once(cls, export: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(export)) < len(export):
            raise ValueError("each format may be named only once")
        return export

    @field_validator("dataset")
    @classmethod
    def _stays_inside_the_repository(cls, dataset: str) -> str:
        if ".." in Path(dataset).parts:
            raise ValueError("the dataset must be a folder inside the repository, without '..'")
        return dataset.rstrip("/")

    @model_validator(mode="after")
    def _suits_its_module(self) -> Self:
        module, wrong = self.about, []
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
            raise ValueError("; ".join(wrong))
        return self

    @property
    def about(self) -> Module:
        """The module that this experiment trains."""
        return MODULES[self.module]

    @property
    def slug(self) -> str:
        """The name as used in branch names: lower case with dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def key(self) -> str:
        """The experiment's unique name, `{module}-{slug}`, from which its branch names derive."""
        return f"{self.module}-{self.slug}"

    @property
    def artifacts(self) -> str:
        """The folder of all outputs of this experiment, relative to the repository."""
        return f"artifacts/{self.module}/{self.name}"


class Key(NamedTuple):
    """A key of an experiment: its description, and the train argument of ultralytics that is set from its value."""

    meaning: str
    argument: str
    """Empty if the value is no train argument."""
    derived: bool
    """Whether `train` derives the argument from the value and the state of the machine."""
    kind: Any
    """The type of its value, without limits."""
    strict: bool
    """Whether only a value of this very type is one; a tuple may be given as a list."""

    def holds(self, value: object) -> bool:
        """Return whether a value has the key's type."""
        try:
            TypeAdapter(self.kind, config=ConfigDict(strict=self.strict)).validate_python(value)
        except ValidationError:
            return False
        return True


def _keys(section: type[BaseModel], prefix: str = "", default: Ultralytics | None = None) -> Iterator[tuple[str, Key]]:
    for name, field in section.model_fields.items():
        mark = next((each for each in field.metadata if isinstance(each, Ultralytics)), default)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.", mark)
        else:
            argument = mark.argument or name if mark else ""
            meaning, strict = " ".join((field.description or "").split()), Strict(False) not in field.metadata
            yield prefix + name, Key(meaning, argument, bool(mark and mark.derived), field.annotation, strict)


KEYS: Mapping[str, Key] = dict(_keys(Experiment))
"""Every key of an experiment (`name`, `training.epochs`, …), in the order of the models."""

ALWAYS: Mapping[str, Any] = {
    # the default bias warm-up starts far above a small learning rate; here every rate starts at 0
    "warmup_bias_lr": 0.0,
}
"""Train arguments of ultralytics that an experiment cannot change."""


def ultralytics_arguments(experiment: Experiment) -> dict[str, Any]:
    """Return the values that are passed to ultralytics unchanged, by the names of its train arguments."""
    passed = {name: key.argument for name, key in KEYS.items() if key.argument and not key.derived}
    return {argument: attrgetter(name)(experiment) for name, argument in passed.items()} | {**ALWAYS}


def _require_identity(values: dict[str, Any]) -> dict[str, Any]:
    training = values.get("training")
    is_known = isinstance(training, dict) and {"epochs", "image_size"} <= training.keys()
    if not is_known or not {"module", "name"} <= values.keys():
        raise ValueError("module, name, training.epochs or training.image_size is missing")
    return values


ExperimentValues = Annotated[dict[str, Any], AfterValidator(_require_identity)]
"""The values of an experiment in a published record, which may be of an earlier or a later version of this schema."""
