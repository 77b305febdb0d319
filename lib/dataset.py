"""Fetch the dataset that the experiment names, and check that it is what the experiment needs.

Guarantees: what is trained on has the hash that the commit's `.dvc` file names; it lies outside of the clone, since all
of that becomes the run's output on Kaggle; the tracked `data.yaml` is never changed: training reads a copy with
absolute paths.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.commands import limit_silence
from lib.credentials import Credentials
from lib.errors import DatasetError
from lib.experiment import Experiment

PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Dataset:
    """A dataset on this machine.

    `data_file` is the `data.yaml` that training reads; `md5` is DVC's hash of the folder; `counts` are pictures by
    split (`train`, `val`, `test`); `names` are the classes by number.
    """

    folder: Path
    data_file: Path
    md5: str
    counts: dict[str, int]
    names: dict[int, str]

    def pictures(self, split: str) -> list[Path]:
        """Give a split's pictures in order of their names."""
        return _pictures(self.folder, _read(self.folder / "data.yaml"), split)

    def describe(self) -> str:
        """Give one line for people."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"{counts} pictures; classes: {', '.join(self.names.values())}; MD5 {self.md5}"


@dataclass(frozen=True)
class Pointer:
    """What a commit's `.dvc` file says of a dataset: DVC's hash of the folder, its bytes and its files."""

    file: Path
    md5: str
    size: int | None
    files: int | None


def read_pointer(root: Path, experiment: Experiment) -> Pointer:
    """Read the `.dvc` file of the experiment's dataset in the clone at `root`. Raises `DatasetError`."""
    target = root / f"{experiment.dataset}.dvc"
    if not target.is_file():
        raise DatasetError(
            f"dataset is {experiment.dataset!r}, and the commit has no {experiment.dataset}.dvc.",
            state="nothing was pulled or trained.",
            remedy=f"run `dvc add {experiment.dataset} && dvc push`, commit {target.name}, push and render again.",
        )
    try:
        out = _read(target)["outs"][0]
        return Pointer(target, str(out["md5"]), out.get("size"), out.get("nfiles"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise DatasetError(
            f"{target}: it names no hash of a folder.", remedy=f"run `dvc add {experiment.dataset}` and commit it."
        ) from None


def pull_dataset(root: Path, experiment: Experiment, scratch: Path, credentials: Credentials) -> Dataset:
    """Pull the dataset that the clone at `root` names with DVC, into `scratch`, and check it.

    Raises `DatasetError` when the remote does not give it or it is not what the module needs.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    pointer = read_pointer(root, experiment)
    limit_silence()
    try:
        place = _make_workspace(root, scratch / "dataset")
        target = place / f"{experiment.dataset}.dvc"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pointer.file, target)
        with Repo(str(place)) as repo:
            repo.pull(targets=[str(target)], force=True)
    except (DvcException, OSError) as error:
        raise DatasetError(
            credentials.redact(f"`dvc pull {experiment.dataset}.dvc` failed: {type(error).__name__}: {error}"),
            state="nothing was trained.",
            remedy="ensure the DVC remote is accessible and internet is on in the Kaggle settings; "
            f"run `dvc pull {experiment.dataset}.dvc` in a clone and inspect its errors.",
        ) from error
    return check_dataset(place / experiment.dataset, experiment, scratch, md5=pointer.md5)


def _make_workspace(root: Path, place: Path) -> Path:
    """Give a DVC workspace without Git that has the remotes and the cache of the clone at `root`."""
    from dvc.repo import Repo

    (place / ".dvc").mkdir(parents=True, exist_ok=True)
    (place / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    with Repo(str(root)) as clone, Repo(str(place)) as workspace, workspace.config.edit("local") as local:
        local["core"] = {"remote": clone.config["core"]["remote"]}
        local["remote"] = {name: dict(remote) for name, remote in clone.config["remote"].items()}
        local["cache"] = {"dir": clone.cache.local_cache_dir}
    return place


def check_dataset(folder: Path, experiment: Experiment, scratch: Path, *, md5: str) -> Dataset:
    """Check the dataset in `folder` for the experiment and write the `data.yaml` that training reads into `scratch`.

    Raises one `DatasetError` that lists everything that is wrong.
    """
    tracked = folder / "data.yaml"
    if not tracked.is_file():
        raise DatasetError(
            f"data.yaml not found: {tracked} is not there.",
            state="nothing was trained.",
            remedy="put data.yaml at the top of the dataset's folder (Ultralytics' YOLO format), "
            f"`dvc add {experiment.dataset}`, push and commit.",
        )
    values = _read(tracked)
    wrong = _complaints(folder, values, experiment)
    if wrong:
        raise DatasetError(
            f"{tracked}: {'; '.join(wrong)}.",
            state="nothing was trained.",
            remedy=f"correct the dataset, `dvc add {experiment.dataset}`, `dvc push`, commit and render again.",
        )
    names = values["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else {int(key): str(name) for key, name in names.items()}
    data_file = scratch / f"data-{experiment.module}.yaml"
    _write(data_file, {**values, "path": str(folder.resolve())})
    counts = {split: len(_pictures(folder, values, split)) for split in ("train", "val", "test")}
    return Dataset(folder, data_file, md5, counts, names)


def _complaints(folder: Path, values: dict[str, Any], experiment: Experiment) -> list[str]:
    wrong = []
    if not isinstance(values.get("names"), dict | list) or not values["names"]:
        wrong.append("names is missing: the classes by number")
    for split in ("train", "val", "test"):
        if not isinstance(values.get(split), str):
            wrong.append(f"{split} is {values.get(split)!r}: it must be a folder of pictures relative to data.yaml")
        elif not _pictures(folder, values, split):
            wrong.append(f"{split} is {values[split]!r}: there is no picture in it")
    keypoints = experiment.about.keypoints
    if keypoints:
        if (values.get("kpt_shape") or [None])[0] != keypoints:
            wrong.append(f"kpt_shape is {values.get('kpt_shape')!r}: {experiment.module} needs [{keypoints}, 3]")
        elif sorted(values.get("flip_idx") or range(keypoints)) != list(range(keypoints)):
            wrong.append(f"flip_idx is {values['flip_idx']!r}: it must name each of the {keypoints} keypoints once")
    return wrong


def _pictures(folder: Path, values: dict[str, Any], split: str) -> list[Path]:
    base = folder / str(values.get("path") or ".") / str(values[split])
    return sorted(path for path in base.rglob("*") if path.suffix.lower() in PICTURES)


def _read(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: this is no YAML: {error}", remedy="correct the file.") from None
    if not isinstance(values, dict):
        raise DatasetError(f"{path}: it holds no mapping of keys to values.", remedy="correct the file.")
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    from ruamel.yaml import YAML

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
