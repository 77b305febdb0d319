"""The kinds of model that can be trained, each a notebook of its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
