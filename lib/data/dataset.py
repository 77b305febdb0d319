"""Fetch the dataset that the experiment names, and check that it is what the experiment needs.

Guarantees: what is trained on has the hash that the commit's `.dvc` file names; it lies outside of the clone, since all
of that becomes the run's output on Kaggle; the tracked `data.yaml` is never changed: training reads a copy with
absolute paths, every one of them inside the dataset's folder, wherever `data.yaml` was written. Everything that would
stop training, or that training would leave out without a word, is told at once in one report; so is every picture that
is both trained on and measured on, byte for byte.

Thousands of small pictures come slowly from Google Drive. A Kaggle dataset that holds a copy of the DVC remote (its
folder `files/md5`) is asked first, as one more DVC remote: each object's hash is checked, and what it lacks comes from
the default remote.

Not guaranteed: that every picture decodes. The header of each is read, PNG's checksums are verified and a JPEG's end is
looked for, as ultralytics does; damage in the middle of a JPEG shows in no header. A picture that was saved anew is
another picture: only equal bytes are found in two splits.

A picture of train that stands in val or test is an error: the first would choose, the second praise, what was learnt by
heart. One of val that stands in test is a warning: a small dataset may have no third part to give.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.data.findings import Findings, Kind
from lib.data.images import check_copies, check_pictures
from lib.data.labels import KEYPOINT, Form, Picture, check_labels, label_path
from lib.data.splits import SPLITS, Split, find_split, is_picture, list_files
from lib.errors import DatasetError, RemoteError
from lib.experiment.schema import Experiment
from lib.remotes.credentials import Credentials
from lib.remotes.pull import pull_objects, read_mapping

INPUTS = Path("/kaggle/input")
MIRRORS = ("*/files/md5", "*/*/files/md5", "datasets/*/*/files/md5", "datasets/*/*/*/files/md5")
"""Where a copy of a DVC remote lies in an attached dataset, or in a folder of it."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on this machine.

    `data_file` is the `data.yaml` that training reads; `md5` is DVC's hash of the folder; `counts` are pictures by
    split (`train`, `val`, `test`); `names` are the classes by number; `warnings` are lines on what training can live
    with; `polygons` says whether labels hold outlines in place of boxes.
    """

    folder: Path
    data_file: Path
    md5: str
    counts: dict[str, int]
    names: dict[int, str]
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    polygons: bool = False

    def pictures(self, split: str) -> list[Path]:
        """Give a split's pictures in order of their names."""
        return list(self.files[split])

    def describe(self) -> str:
        """Give one line for people."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"{counts} pictures; classes: {', '.join(self.names.values())}; MD5 {self.md5}"

    def show_warnings(self) -> str:
        """Give what was found and does not stop the run, in lines for people."""
        return "\n".join(["Checked; warnings:", *self.warnings]) if self.warnings else "Checked; nothing was found."


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
        out = read_mapping(target)["outs"][0]
        return Pointer(target, str(out["md5"]), out.get("size"), out.get("nfiles"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise DatasetError(
            f"{target}: it names no hash of a folder.", remedy=f"run `dvc add {experiment.dataset}` and commit it."
        ) from None


def pull_dataset(
    root: Path, experiment: Experiment, scratch: Path, credentials: Credentials, *, inputs: Path = INPUTS
) -> Dataset:
    """Pull the dataset that the clone at `root` names with DVC, into `scratch`, and check it.

    `inputs` is where Kaggle's datasets are attached: copies of the DVC remote there are asked first. Raises
    `DatasetError` when the remote does not give it or it is not what the module needs.
    """
    pointer, name = read_pointer(root, experiment), f"{experiment.dataset}.dvc"
    try:
        texts = {name: pointer.file.read_text(encoding="utf-8")}
        place = pull_objects(
            root, scratch / "dataset", texts, credentials, f"Pulling {experiment.dataset}", find_mirrors(inputs)
        )
    except RemoteError as error:
        raise DatasetError(
            f"`dvc pull {name}` failed: {error.what}",
            state="nothing was trained.",
            remedy="ensure the DVC remote is accessible and internet is on in the Kaggle settings; "
            f"run `dvc pull {name}` in a clone and inspect its errors.",
        ) from error
    return check_dataset(place / experiment.dataset, experiment, scratch, md5=pointer.md5)


def find_mirrors(inputs: Path = INPUTS) -> list[Path]:
    """Give the attached copies of DVC remotes."""
    return sorted({found.parent.parent for pattern in MIRRORS for found in inputs.glob(pattern)})


def check_dataset(folder: Path, experiment: Experiment, scratch: Path, *, md5: str) -> Dataset:
    """Check the dataset in `folder` for the experiment and write the `data.yaml` that training reads into `scratch`.

    Raises one `DatasetError` that lists everything that is wrong.
    """
    folder = folder.resolve()
    tracked = folder / "data.yaml"
    if not tracked.is_file():
        raise DatasetError(
            f"data.yaml not found: {tracked} is not there.",
            state="nothing was trained.",
            remedy="put data.yaml at the top of the dataset's folder (Ultralytics' YOLO format), "
            f"`dvc add {experiment.dataset}`, push and commit.",
        )
    values = read_mapping(tracked)
    findings = Findings()
    names = _check_names(values, findings)
    keypoints = _check_keypoints(values, experiment, findings)
    inside = list_files(folder)
    splits = {split: find_split(folder, inside, values, split, findings) for split in SPLITS}
    pictures = [picture for split in splits.values() for picture in split.pictures]
    pictures = check_pictures(pictures, findings)
    check_copies(pictures, findings)
    polygons = experiment.about.task == "segment"
    form = Form(len(names), keypoints, bool(experiment.about.keypoints), experiment.training.image_size, polygons)
    check_labels(pictures, form, names, findings)
    _check_strays(folder, inside, pictures, findings)
    _stop_on_errors(tracked, experiment, findings)
    data_file = scratch / f"data-{experiment.module}.yaml"
    _write_portable(data_file, folder, values, names, splits)
    files = {split: tuple(Path(picture.path) for picture in found.pictures) for split, found in splits.items()}
    counts = {split: len(found) for split, found in files.items()}
    return Dataset(folder, data_file, md5, counts, names, files, tuple(findings.lines(stops=False)), polygons)


def _stop_on_errors(tracked: Path, experiment: Experiment, findings: Findings) -> None:
    errors = findings.count(stops=True)
    if not errors:
        return
    warnings = findings.lines(stops=False)
    raise DatasetError(
        "\n".join(
            [
                f"{tracked}: the dataset has {errors} error{'s' * (errors > 1)}.",
                *findings.lines(stops=True),
                *(["Warnings, which stop nothing:", *warnings] if warnings else []),
            ]
        ),
        state="nothing was trained.",
        remedy=f"correct the dataset, `dvc add {experiment.dataset}`, `dvc push`, commit and render again.",
    )


# ---------------------------------------------------------------------------------------------------- data.yaml


def _check_names(values: dict[str, Any], findings: Findings) -> dict[int, str]:
    """Give the classes by number, as ultralytics takes them; none where they cannot be."""

    def complain(text: str) -> dict[int, str]:
        findings.add(Kind.DESCRIPTION, "data.yaml", text)
        return {}

    names, number = values.get("names"), values.get("nc")
    count = _whole_number(number)
    if number is not None and not count:
        return complain(f"nc is {number!r}: it must be the number of classes")
    if names is None and count:
        names = [f"class_{index}" for index in range(count)]  # as ultralytics calls them
    if not isinstance(names, dict | list) or not names:
        return complain(
            f"names is {names!r}: it must give the classes by number"
            if names
            else "names is missing: the classes by number"
        )
    try:
        named = {int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    except (TypeError, ValueError):
        named = {}
    if sorted(named) != list(range(len(names))):
        return complain(f"names has the numbers {', '.join(map(str, names))}: they must be 0 to {len(names) - 1}")
    if count and count != len(named):
        return complain(f"nc is {number!r}, and names has {len(named)} classes")
    return dict(sorted(named.items()))


def _whole_number(value: object) -> int:
    """Give a number above 0 that may be written as 2, 2.0 or "2"; 0 for everything else."""
    try:
        number = float(str(value))
    except ValueError:
        return 0
    return int(number) if number >= 1 and number % 1 == 0 else 0


def _check_keypoints(values: dict[str, Any], experiment: Experiment, findings: Findings) -> int:
    """Give the number of keypoints that a label has."""
    needed, shape, order = experiment.about.keypoints, values.get("kpt_shape"), values.get("flip_idx")
    if experiment.about.task == "segment":
        if shape:  # ultralytics would take a polygon of as many columns for a box with keypoints
            told = f"kpt_shape is {shape!r}: {experiment.module} has outlines and no keypoints; leave it out"
            findings.add(Kind.DESCRIPTION, "data.yaml", told)
        return 0
    if not needed:  # boxes alone are trained, from labels that may have keypoints all the same
        poses = isinstance(shape, list) and len(shape) == 2 and shape[1] == KEYPOINT  # noqa: PLR2004
        return shape[0] if isinstance(shape, list) and poses and isinstance(shape[0], int) and shape[0] > 0 else 0
    if shape != [needed, KEYPOINT]:
        findings.add(
            Kind.DESCRIPTION,
            "data.yaml",
            f"kpt_shape is {shape!r}: {experiment.module} needs [{needed}, {KEYPOINT}]",
        )
    if order and not (
        isinstance(order, list) and {*map(str, order)} == {*map(str, range(needed))} and len(order) == needed
    ):
        told = f"flip_idx is {order!r}: it must name each of the {needed} keypoints once"
        findings.add(Kind.DESCRIPTION, "data.yaml", told)
    return needed


# ---------------------------------------------------------------------------------------------------- paths


def _write_portable(
    data_file: Path, folder: Path, values: dict[str, Any], names: dict[int, str], splits: dict[str, Split]
) -> None:
    """Write the `data.yaml` that training reads: the tracked one's values, with paths that hold on this machine."""
    portable = {key: value for key, value in values.items() if key not in {"download", "validation", "nc"}}
    portable |= {"path": str(folder), "names": names}
    data_file.parent.mkdir(parents=True, exist_ok=True)
    for split, found in splits.items():
        if found.listed:
            paths = data_file.with_name(f"{data_file.stem}-{split}.txt")
            paths.write_text("".join(f"{picture.path}\n" for picture in found.pictures), encoding="utf-8")
            portable[split] = str(paths.resolve())
        else:
            places = [posixpath.normpath(f"{folder}/{name}") for name in found.folders]
            portable[split] = places[0] if len(places) == 1 else places
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # ultralytics reads this one: a class named `no` would be False if it were not quoted
    with data_file.open("w", encoding="utf-8") as file:
        yaml.dump(portable, file)


# ---------------------------------------------------------------------------------------------------- pictures


def _check_strays(folder: Path, inside: dict[str, None], pictures: Sequence[Picture], findings: Findings) -> None:
    """Note pictures that no split holds, and labels without a picture, where labels and pictures of splits stand."""
    used = {picture.name for picture in pictures}
    found = [name for name in inside if is_picture(name)]
    top = f"{folder}{os.sep}"
    labels = {label_path(f"{top}{name}").removeprefix(top) for name in found}
    label_folders = {posixpath.dirname(label) for label in labels}
    for name in found:
        if name not in used:
            findings.add(Kind.UNUSED, name, "no split of data.yaml holds it")
    for name in inside:
        place, _, file = name.rpartition("/")
        is_label = file.endswith(".txt") and (place in label_folders or "labels" in place.split("/"))
        if is_label and name not in labels and file != "classes.txt":  # what labelling tools leave there
            findings.add(Kind.ORPHAN, name, "there is no picture of this name")
