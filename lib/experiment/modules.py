"""The modules: the kinds of model that can be trained, each with a notebook of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib.errors import ExperimentError, did_you_mean

Task = Literal["detect", "segment", "pose"]
"""The supported tasks of ultralytics: those with labels that `lib/data/labels.py` can read."""

SUFFIXES: Mapping[Task, str] = {"detect": "", "segment": "-seg", "pose": "-pose"}
"""The suffix that ultralytics appends to the name of an architecture, by task."""

SIZES = "nsmlx"


@dataclass(frozen=True)
class Module:
    """A kind of model, with everything that distinguishes it from the other modules."""

    name: str
    number: int
    short: str
    """The abbreviation in the file names of its experiments: `001_{short}_baseline.yaml`."""
    task: Task
    keypoints: int = 0
    """The number of keypoints of an object; 0 if the module trains none."""
    never_mirrored: str = ""
    """Why training on mirrored images would be wrong; empty if images may be flipped."""

    @property
    def title(self) -> str:
        """The title for users: `Module 1: Detection`."""
        return f"Module {self.number}: {self.name.capitalize()}"

    @property
    def notebook(self) -> str:
        """The file name of its rendered notebook, without the extension."""
        return f"train_module_{self.number}_{self.name}"

    @property
    def baseline(self) -> str:
        """The default experiment to render, relative to the project's folder."""
        return f"experiments/001_{self.short}_baseline.yaml"

    @property
    def architectures(self) -> list[str]:
        """The architectures that it may train, smallest first."""
        return [f"yolo11{size}{SUFFIXES[self.task]}" for size in SIZES]

    def small(self, project: Path) -> Path:
        """Return the experiment for a sandbox: the module's small experiment, or its baseline if it has none."""
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
            never_mirrored="flipping makes mirrored text: the ID could not be read, and its corners would keep their "
            "names (flip_idx 0 1 2 3) on the wrong sides",
        ),
    )
}


def find_module(name: str) -> Module:
    """Return the module called `name`. Raises `ExperimentError` for an unknown name."""
    if name in MODULES:
        return MODULES[name]
    raise ExperimentError(
        f"module is {name!r}; it may be {', '.join(MODULES)}.",
        remedy=did_you_mean(name, MODULES, "choose one of them and run the same command again."),
    )
