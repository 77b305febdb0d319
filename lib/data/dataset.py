"""Fetch the dataset that the experiment names, and check that the experiment can train on it.

Guarantees: the dataset has the hash that the commit's `.dvc` file records. It is stored outside the clone, because the
whole clone becomes the run's output on Kaggle. The tracked `data.yaml` is never changed: training reads a copy with
lists of absolute paths, all of them inside the dataset's folder, no matter on which machine `data.yaml` was written.
One report lists every error that would stop training, everything that training would skip silently, and every image
whose exact bytes are both trained on and evaluated on.

Cannot: prove that every image decodes. As in ultralytics, each header is read, PNG checksums are verified and the
end of each JPEG is checked; damage in the middle of a JPEG is not detected. Duplicates are found by equal bytes only:
a re-encoded image counts as a different image.

Google Drive serves thousands of small images slowly. An attached Kaggle dataset with a copy of the DVC remote (its
folder `files/md5`) is therefore read first, as an additional DVC remote. The hash of each object is checked; objects
that the copy lacks come from the default remote.

A train image that is also in val or test is an error: model selection (val) or the final metrics (test) would reward
memorization. A val image that is also in test is only a warning: a small dataset may be too small for three splits.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.data.findings import Findings, Issue
from lib.data.images import check_copies, check_images
from lib.data.labels import KEYPOINT, LabelFormat, LabelledImage, check_labels, label_path
from lib.data.splits import SPLITS, find_images, is_image, list_files
from lib.errors import DatasetError, RemoteError
from lib.escape import visible
from lib.experiment.load import read_yaml
from lib.experiment.schema import Experiment
from lib.remotes.pull import pull_objects
from lib.session import Session

INPUTS = Path("/kaggle/input")
MIRRORS = ("*/files/md5", "*/*/files/md5", "datasets/*/*/files/md5", "datasets/*/*/*/files/md5")
"""Glob patterns for a copy of a DVC remote, at the top of an attached dataset or in one of its folders."""


@dataclass(frozen=True)
class Dataset:
    """A checked dataset on this machine.

    `data_file` is the `data.yaml` that training reads; `md5` is DVC's hash of the folder; `counts` maps each split
    (`train`, `val`, `test`) to its number of images; `names` maps class numbers to class names; `warnings` holds report
    lines for issues that do not stop training; `polygons` is true if the labels hold outlines instead of boxes; `files`
    holds the images of each split, sorted by name.
    """

    folder: Path
    data_file: Path
    md5: str
    counts: dict[str, int]
    names: dict[int, str]
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    polygons: bool = False

    def describe(self, show: Callable[[object], str] = visible) -> str:
        """Return a one-line summary of the dataset: for the log, or with class names as `show` writes them."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"{counts} images; classes: {', '.join(map(show, self.names.values()))}; MD5 {self.md5}"

    def show_warnings(self) -> str:
        """Return the warnings of the check as lines for the log."""
        return "\n".join(["Checked; warnings:", *self.warnings]) if self.warnings else "Checked; nothing was found."


@dataclass(frozen=True)
class DvcFile:
    """The content of a dataset's `.dvc` file: DVC's hash of the folder, its size in bytes and its number of files."""

    md5: str
    size: int | None
    files: int | None


def read_pointer(root: Path, experiment: Experiment) -> DvcFile:
    """Read the `.dvc` file of the experiment's dataset in the clone at `root`. Raises `DatasetError`."""
    target = root / f"{experiment.dataset}.dvc"
    if not target.is_file():
        raise DatasetError(
            f"dataset is {experiment.dataset!r}, and the commit has no {experiment.dataset}.dvc.",
            state="nothing was pulled or trained.",
            remedy=f"run `dvc add {experiment.dataset} && dvc push`, commit {target.name}, push and render again.",
        )
    try:
        out = read_yaml(target, DatasetError)["outs"][0]
        return DvcFile(str(out["md5"]), out.get("size"), out.get("nfiles"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise DatasetError(
            f"{target}: it holds no hash of a folder.", remedy=f"run `dvc add {experiment.dataset}` and commit it."
        ) from None


def pull_dataset(session: Session, *, inputs: Path = INPUTS) -> Dataset:
    """Pull the experiment's dataset with DVC into the scratch folder, check it and return it.

    `inputs` is the folder of Kaggle's attached datasets: copies of the DVC remote there are read first. Raises
    `DatasetError` if the pull fails or the dataset does not fit the module.
    """
    experiment, scratch = session.experiment, session.scratch
    pointer, name = read_pointer(session.root, experiment), f"{experiment.dataset}.dvc"
    try:
        texts = {name: (session.root / name).read_text(encoding="utf-8")}
        mirrors = sorted({found.parent.parent for pattern in MIRRORS for found in inputs.glob(pattern)})
        title = f"Pulling {experiment.dataset}"
        place = pull_objects(session.root, scratch / "dataset", texts, session.credentials, title, mirrors)
    except RemoteError as error:
        raise DatasetError(
            f"`dvc pull {name}` failed: {error.what}",
            remedy="ensure the DVC remote is accessible and internet is on in the Kaggle settings; "
            f"run `dvc pull {name}` in a clone and inspect its errors.",
        ) from error
    return check_dataset(place / experiment.dataset, experiment, scratch, md5=pointer.md5)


def check_dataset(folder: Path, experiment: Experiment, scratch: Path, *, md5: str) -> Dataset:
    """Check the dataset in `folder` for the experiment and write the `data.yaml` that training reads into `scratch`.

    Raises one `DatasetError` that lists all errors.
    """
    folder = folder.resolve()
    tracked = folder / "data.yaml"
    if not tracked.is_file():
        raise DatasetError(
            f"data.yaml not found: {tracked} does not exist.",
            remedy="put data.yaml at the top of the dataset's folder (Ultralytics' YOLO format), "
            f"`dvc add {experiment.dataset}`, push and commit.",
        )
    values = read_yaml(tracked, DatasetError)
    findings, about = Findings(), experiment.about
    names = _check_names(values, findings)
    keypoints = _check_keypoints(values, experiment, findings)
    inside = list_files(folder)
    splits = {split: find_images(folder, inside, values, split, findings) for split in SPLITS}
    images = check_images([image for found in splits.values() for image in found], findings)
    check_copies(images, findings)
    polygons = about.task == "segment"
    form = LabelFormat(len(names), keypoints, bool(about.keypoints), experiment.training.image_size, polygons)
    check_labels(images, form, names, findings)
    _check_strays(folder, inside, images, findings)
    warnings = findings.lines(stops=False)
    if errors := findings.count(stops=True):
        lines = [f"{tracked}: the dataset has {errors} error{'s' * (errors > 1)}.", *findings.lines(stops=True)]
        raise DatasetError(
            "\n".join([*lines, *(["Warnings, which stop nothing:", *warnings] if warnings else [])]),
            remedy=f"correct the dataset, `dvc add {experiment.dataset}`, `dvc push`, commit and render again.",
        )
    data_file = scratch / f"data-{experiment.module}.yaml"
    files = {split: tuple(Path(image.path) for image in found) for split, found in splits.items()}
    _write_portable(data_file, folder, values, names, files)
    counts = {split: len(found) for split, found in files.items()}
    return Dataset(folder, data_file, md5, counts, names, files, tuple(warnings), polygons)


# ---------------------------------------------------------------------------------------------------- data.yaml


def _check_names(values: dict[str, Any], findings: Findings) -> dict[int, str]:
    """Return {class number: name} as ultralytics reads it; empty, with a finding, if the classes are invalid."""
    names, number = values.get("names"), values.get("nc")
    count = _whole_number(number)
    if names is None and count:
        names = [f"class_{index}" for index in range(count)]  # the names that ultralytics generates
    if isinstance(names, list):
        names = dict(enumerate(names))
    named: dict[int, str] = {}
    if isinstance(names, dict):
        with contextlib.suppress(TypeError, ValueError):
            named = {int(key): str(name) for key, name in names.items()}
    if number is not None and not count:
        problem = f"nc is {number!r}: it must be the number of classes"
    elif not names:
        problem = "names is missing: the classes by number"
    elif not isinstance(names, dict):
        problem = f"names is {names!r}: it must map class numbers to names"
    elif sorted(named) != list(range(len(names))):
        problem = f"names has the numbers {', '.join(map(str, names))}: they must be 0 to {len(names) - 1}"
    elif count and count != len(named):
        problem = f"nc is {number!r}, and names has {len(named)} classes"
    else:
        return dict(sorted(named.items()))
    findings.add(Issue.DESCRIPTION, "data.yaml", problem)
    return {}


def _whole_number(value: object) -> int:
    """Return a positive whole number, which may be written as 2, 2.0 or "2"; 0 for any other value."""
    try:
        number = float(str(value))
    except ValueError:
        return 0
    return int(number) if number >= 1 and number % 1 == 0 else 0


def _check_keypoints(values: dict[str, Any], experiment: Experiment, findings: Findings) -> int:
    """Check the keypoint keys of `data.yaml` and return the number of keypoints a label line has."""
    about, shape, order = experiment.about, values.get("kpt_shape"), values.get("flip_idx")
    needed = about.keypoints
    if about.task == "segment":
        if shape:  # ultralytics would parse a polygon with the same number of columns as a box with keypoints
            text = f"kpt_shape is {shape!r}: {about.name} has outlines and no keypoints; leave it out"
            findings.add(Issue.DESCRIPTION, "data.yaml", text)
        return 0
    if not needed:  # only boxes are trained, but the labels may still contain keypoints
        match shape:
            case [int(count), 3] if count > 0:
                return count
        return 0
    if shape != [needed, KEYPOINT]:
        text = f"kpt_shape is {shape!r}: {about.name} needs [{needed}, {KEYPOINT}]"
        findings.add(Issue.DESCRIPTION, "data.yaml", text)
    if order and not (isinstance(order, list) and sorted(map(str, order)) == sorted(map(str, range(needed)))):
        text = f"flip_idx is {order!r}: it must name each of the {needed} keypoints once"
        findings.add(Issue.DESCRIPTION, "data.yaml", text)
    return needed


# ---------------------------------------------------------------------------------------------------- paths


def _write_portable(
    data_file: Path, folder: Path, values: dict[str, Any], names: dict[int, str], files: dict[str, tuple[Path, ...]]
) -> None:
    """Write the `data.yaml` that training reads: the tracked values, with lists of absolute paths of this machine."""
    portable = {key: value for key, value in values.items() if key not in {"download", "validation", "nc"}}
    portable |= {"path": str(folder), "names": names}
    data_file.parent.mkdir(parents=True, exist_ok=True)
    for split, paths in files.items():
        listed = data_file.with_name(f"{data_file.stem}-{split}.txt").resolve()
        listed.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        portable[split] = str(listed)
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # ultralytics parses YAML 1.1, where an unquoted class name `no` would become False
    with data_file.open("w", encoding="utf-8") as file:
        yaml.dump(portable, file)


# ---------------------------------------------------------------------------------------------------- images


def _check_strays(folder: Path, inside: dict[str, None], images: Sequence[LabelledImage], findings: Findings) -> None:
    """Report images that belong to no split, and label files without an image.

    A `.txt` file counts as a label file if an image's label would be in its folder, or below any folder `labels`.
    """
    used = {image.name for image in images}
    found = [name for name in inside if is_image(name)]
    top = f"{folder}{os.sep}"
    labels = {label_path(f"{top}{name}").removeprefix(top) for name in found}
    label_folders = {posixpath.dirname(label) for label in labels}
    for name in found:
        if name not in used:
            findings.add(Issue.UNUSED, name, "no split of data.yaml holds it")
    for name in inside:
        place, _, file = name.rpartition("/")
        is_label = file.endswith(".txt") and (place in label_folders or "labels" in place.split("/"))
        if is_label and name not in labels and file != "classes.txt":  # labelling tools leave this file there
            findings.add(Issue.ORPHAN, name, "there is no image of this name")
