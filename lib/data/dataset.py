"""Fetch the dataset that the experiment names, and check that the experiment can train on it.

Guarantees: the dataset has the hash that the commit's `.dvc` file records. It is stored outside the clone, because the
whole clone becomes the run's output on Kaggle. Training reads nothing but what was checked: a folder of links to the
images of the splits and their labels, and a `data.yaml` with the checked keys, no matter on which machine the tracked
one was written. Arrays (`a.npy` beside `a.jpg`, which ultralytics reads in the image's place), label caches and other
files of the dataset never reach it, and the dataset is never changed. One report lists every error that would stop
training, everything that training would skip silently, and every image whose exact bytes are both trained on and
evaluated on.

Cannot: detect damage with which an image still decodes (`reader.py`). Duplicates are found by equal bytes only: a
re-encoded image counts as a different image.

Google Drive serves thousands of small images slowly. An attached Kaggle dataset with a copy of the DVC remote (its
folder `files/md5`) is therefore read first, as an additional DVC remote. The hash of each object is checked; objects
that the copy lacks come from the remote that the dataset is on.

A train image that is also in val or test is an error: model selection (val) or the final metrics (test) would reward
memorization. A val image that is also in test is only a warning: a small dataset may be too small for three splits.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib.data.findings import Findings, Issue
from lib.data.images import check_copies, check_images, read_sizes
from lib.data.labels import KEYPOINT, LabelFormat, LabelledImage, check_labels, label_path
from lib.data.pull import find_pointer, pull_objects
from lib.data.reader import COLOUR, Size, is_image
from lib.data.splits import SPLITS, find_images, list_files
from lib.errors import DatasetError, RemoteError
from lib.escape import visible
from lib.experiment.load import read_yaml
from lib.experiment.schema import Experiment
from lib.session import Session

INPUTS = Path("/kaggle/input")
MIRRORS = ("*/files/md5", "*/*/files/md5", "datasets/*/*/files/md5", "datasets/*/*/*/files/md5")
"""Glob patterns for a copy of a DVC remote, at the top of an attached dataset or in one of its folders."""

ACCESS = "ensure the DVC remote is accessible and internet is on in the Kaggle settings"
POSE_KEYS = ("flip_idx", "kpt_names", "kpt_oks_sigmas")
"""Keys of `data.yaml` that training reads for keypoints alone."""


@dataclass(frozen=True)
class Prepared:
    """The images that were decoded before training: their number, the bytes of their arrays, and the seconds it took.

    `data_file` is the `data.yaml` that training reads; None, with the reason, if nothing was prepared. `reused` is true
    if an earlier run decoded them.
    """

    images: int = 0
    bytes: int = 0
    seconds: float = 0.0
    data_file: Path | None = None
    reason: str = ""
    reused: bool = False


@dataclass(frozen=True)
class Dataset:
    """A checked dataset on this machine.

    `data_file` is the `data.yaml` for training and evaluation, and `keys` holds those of its keys that name no images;
    `md5` is DVC's hash of the folder; `counts` maps each split (`train`, `val`, `test`) to its number of images;
    `names` maps class numbers to class names; `warnings` holds report lines for issues that do not stop training;
    `polygons` is true if the labels hold outlines instead of boxes, `boxes` if only boxes are trained; `channels` is
    the number of channels that images are read with; `files` holds the images of each split, sorted by name; `sizes`
    holds their sizes; `links` maps the links that are read to them; `prepared` says what training reads in the images'
    place.
    """

    folder: Path
    data_file: Path
    md5: str
    counts: dict[str, int]
    names: dict[int, str]
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict, repr=False)
    polygons: bool = False
    boxes: bool = False
    channels: int = COLOUR
    sizes: dict[Path, Size] = field(default_factory=dict, repr=False)
    links: dict[Path, Path] = field(default_factory=dict, repr=False)
    prepared: Prepared = Prepared()

    @property
    def training_file(self) -> Path:
        """Return the `data.yaml` that training reads."""
        return self.prepared.data_file or self.data_file

    def describe(self, show: Callable[[object], str] = visible) -> str:
        """Return a one-line summary of the dataset: for the log, or with class names as `show` writes them."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"{counts} images; classes: {', '.join(map(show, self.names.values()))}; MD5 {self.md5}"

    def show_warnings(self) -> str:
        """Return the warnings of the check as lines for the log."""
        return "\n".join(["Checked; warnings:", *self.warnings]) if self.warnings else "Checked; nothing was found."


@dataclass(frozen=True)
class DvcFile:
    """A dataset's `.dvc` file: DVC's hash of the folder, its size in bytes, its number of files, and the text."""

    md5: str
    size: int | None
    files: int | None
    text: str


def read_pointer(root: Path, experiment: Experiment) -> DvcFile:
    """Return the `.dvc` file of the experiment's dataset in the clone at `root`. Raises `DatasetError`.

    For an output of a pipeline this is what `dvc.lock` says.
    """
    from ruamel.yaml import YAML

    target = root / f"{experiment.dataset}.dvc"
    text = target.read_text(encoding="utf-8") if target.is_file() else find_pointer(root, experiment.dataset)
    if not text:
        raise DatasetError(
            f"dataset is {experiment.dataset!r}, and the commit has no {experiment.dataset}.dvc.",
            state="nothing was pulled or trained.",
            remedy=f"run `dvc add {experiment.dataset} && dvc push`, commit {target.name}, push and render again.",
        )
    found = read_yaml(target, DatasetError) if target.is_file() else YAML(typ="safe", pure=True).load(text)
    try:
        out = found["outs"][0]
        return DvcFile(str(out["md5"]), out.get("size"), out.get("nfiles"), text)
    except (KeyError, IndexError, TypeError, AttributeError):
        name = experiment.dataset
        if "version_id" in text:
            again = f"`dvc remove {name}.dvc`, `dvc add {name}`"  # DVC keeps the list of versions otherwise
            remedy = f"`dvc remote add -d` a remote without version_aware, then {again}, `dvc push`, and commit."
            raise DatasetError(f"{target}: its files are on a version_aware DVC remote.", remedy=remedy) from None
        command = f"dvc update {name}.dvc" if "\ndeps:" in f"\n{text}" else f"dvc add {name}"
        remedy = f"run `{command}` and commit it."
        raise DatasetError(f"{target}: it holds no hash of a folder.", remedy=remedy) from None


def find_mirrors(inputs: Path) -> list[Path]:
    """Return the copies of DVC remotes in the attached datasets below `inputs`."""
    return sorted({found.parent.parent for pattern in MIRRORS for found in inputs.glob(pattern)})


def pull_dataset(session: Session, *, inputs: Path = INPUTS) -> Dataset:
    """Pull the experiment's dataset with DVC into the scratch folder, check it and return it.

    `inputs` is the folder of Kaggle's attached datasets: copies of the DVC remote there are read first. Raises
    `DatasetError` if the pull fails or the dataset does not fit the module.
    """
    experiment, scratch = session.experiment, session.scratch
    pointer, name = read_pointer(session.root, experiment), f"{experiment.dataset}.dvc"
    try:
        title = f"Pulling {experiment.dataset}"
        place = pull_objects(
            session.root, scratch / "dataset", {name: pointer.text}, session.credentials, title, find_mirrors(inputs)
        )
    except RemoteError as error:
        raise DatasetError(
            f"`dvc pull {name}` failed: {error.what}",
            remedy=f"{error.remedy.rstrip('.') or ACCESS}; run `dvc pull {name}` in a clone and inspect its errors.",
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
    if isinstance(values.get("names"), list | dict):  # YAML takes 12e3 for a number
        values["names"] = read_yaml(tracked, DatasetError, "base")["names"]
    names = check_names(values, findings)
    shape = _check_keypoints(values, experiment, findings)
    channels = _check_channels(values, findings)
    inside = list_files(folder)
    splits = {split: find_images(folder, inside, values, split, findings) for split in SPLITS}
    images = check_images([image for found in splits.values() for image in found], channels, findings)
    check_copies(images, findings)
    polygons = about.task == "segment"
    form = LabelFormat(len(names), shape[0], bool(about.keypoints), experiment.training.image_size, polygons, shape[1])
    check_labels(images, form, names, findings)
    _check_strays(inside, images, findings)
    warnings = findings.lines(stops=False)
    if errors := findings.count(stops=True):
        lines = [f"{tracked}: the dataset has {errors} error{'s' * (errors > 1)}.", *findings.lines(stops=True)]
        raise DatasetError(
            "\n".join([*lines, *(["Warnings, which stop nothing:", *warnings] if warnings else [])]),
            remedy=f"correct the dataset, `dvc add {experiment.dataset}`, `dvc push`, commit and render again.",
        )
    files = {split: tuple(Path(image.path) for image in found) for split, found in splits.items()}
    links = _link(scratch / f"checked-{experiment.module}", images)
    keys: dict[str, Any] = {"path": str(folder), "names": names, "channels": channels}
    if shape[0]:
        keys |= {"kpt_shape": list(shape)}
        keys |= {key: values[key] for key in POSE_KEYS if about.keypoints and values.get(key)}
    counts = {split: len(found) for split, found in files.items()}
    dataset = Dataset(
        folder, scratch / f"data-{experiment.module}.yaml", md5, counts, names, files, tuple(warnings), keys,
        polygons=polygons, boxes=about.task == "detect", channels=channels,
        sizes={Path(image.path): Size(image.width, image.height) for image in images},
        links={link: image for image, link in links.items()},
    )  # fmt: skip
    write_description(dataset, SPLITS)
    return dataset


def write_description(dataset: Dataset, splits: Sequence[str]) -> None:
    """Write the `data.yaml` of a dataset, and the lists of the images of these splits."""
    from ruamel.yaml import YAML

    lists = {split: str(_write_list(dataset, split)) for split in splits}
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # ultralytics parses YAML 1.1, where an unquoted class name `no` would become False
    with dataset.data_file.open("w", encoding="utf-8") as opened:
        yaml.dump(dataset.keys | lists, opened)


def leave_out_unreadable(dataset: Dataset, split: str) -> tuple[Dataset, list[str]]:
    """Leave out images of a split that can no longer be read; return the dataset, and each image with the reason.

    Otherwise one damaged file would cost the figures of all others.
    """
    sizes = read_sizes(map(str, dataset.files[split]), dataset.channels)
    problems = {
        image: f"{image.relative_to(dataset.folder).as_posix()}: {problem}"
        for image in dataset.files[split]
        if (problem := sizes[str(image)][1])
    }
    if problems:
        left = tuple(image for image in dataset.files[split] if image not in problems)
        files, counts = dataset.files | {split: left}, dataset.counts | {split: len(left)}
        dataset = replace(dataset, files=files, counts=counts)
        _write_list(dataset, split)
    return dataset, list(problems.values())


# ---------------------------------------------------------------------------------------------------- data.yaml


def check_names(values: dict[str, Any], findings: Findings) -> dict[int, str]:
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


def keypoint_shape(values: dict[str, Any]) -> tuple[int, int]:
    """Return the number of keypoints of a label line and the columns of each, from `kpt_shape`; none if invalid."""
    match values.get("kpt_shape"):
        case [int(count), 2 | 3 as columns] if count > 0 and not isinstance(count, bool):
            return count, int(columns)
    return 0, KEYPOINT


def _check_keypoints(values: dict[str, Any], experiment: Experiment, findings: Findings) -> tuple[int, int]:
    """Check the keypoint keys of `data.yaml` and return the `keypoint_shape` that label lines have.

    Boxes may be trained from labels with keypoints, which `kpt_shape` then describes.
    """
    about, found, wrong = experiment.about, keypoint_shape(values), list[str]()
    shape, order, sigmas = (values.get(key) for key in ("kpt_shape", "flip_idx", "kpt_oks_sigmas"))
    if about.keypoints:
        needed = about.keypoints, KEYPOINT
        if found != needed:
            wrong.append(f"kpt_shape is {shape!r}: {about.name} needs {list(needed)}")
        found = needed
    elif "kpt_shape" in values and (about.task == "segment" or not found[0]):
        # with an empty value training would end; of a polygon, ultralytics might take corners for keypoints
        has = "has outlines and no keypoints; leave it out"
        if about.task == "detect":
            has = "trains no keypoints; leave it out, or write [number, 3] if label lines hold keypoints"
        wrong.append(f"kpt_shape is {shape!r}: {about.name} {has}")
        found = 0, KEYPOINT
    numbers = order if isinstance(order, list) and all(type(number) is int for number in order) else None
    if "flip_idx" in values and (numbers is None or (numbers and sorted(numbers) != list(range(found[0])))):
        wrong.append(f"flip_idx is {order!r}: it must name each of the {found[0]} keypoints once, or be left out")
    if about.keypoints and sigmas is not None:
        positive = isinstance(sigmas, list) and all(type(each) in {int, float} and each > 0 for each in sigmas)
        if not positive or len(sigmas) != found[0]:
            wrong.append(f"kpt_oks_sigmas is {sigmas!r}: it must be {found[0]} positive numbers")
    for text in wrong:
        findings.add(Issue.DESCRIPTION, "data.yaml", text)
    return found


def _check_channels(values: dict[str, Any], findings: Findings) -> int:
    """Return the number of channels that images are read with."""
    given = values.get("channels", COLOUR)
    if not (count := _whole_number(given)):
        text = f"channels is {given!r}: it must be 3, 1 for grey images, or the number of an image's bands"
        findings.add(Issue.DESCRIPTION, "data.yaml", text)
    return count or COLOUR


# ---------------------------------------------------------------------------------------------------- training's copy


def _link(top: Path, images: Sequence[LabelledImage]) -> dict[Path, Path]:
    """Fill the folder `top` with links to the images and their labels; return each image's link.

    A link has the image's path below the dataset, without characters that a list of paths cannot hold. No two links
    differ in their extension alone, so that each has a label and room for an array (`.npy`) of its own.
    """
    shutil.rmtree(top, ignore_errors=True)
    links: dict[Path, Path] = {}
    taken = set()
    for image in images:
        path = Path(image.path)
        if path in links:
            continue
        stem, dot, extension = "".join(c if c.isprintable() else "_" for c in image.name).rpartition(".")
        while stem in taken:
            stem += "_"
        taken.add(stem)
        # below a folder `images`, so that no folder above counts as the one that `label_path` replaces
        links[path] = (top / "images" / f"{stem}{dot}{extension}").absolute()
        for link, target in ((links[path], image.path), (Path(label_path(str(links[path]))), image.label)):
            if os.path.isfile(target):  # noqa: PTH113  faster
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
    return links


def _write_list(dataset: Dataset, split: str) -> Path:
    """Write the list of a split's images that training reads."""
    listed = dataset.data_file.with_name(f"{dataset.data_file.stem}-{split}.txt").resolve()
    listed.parent.mkdir(parents=True, exist_ok=True)
    links = {image: link for link, image in dataset.links.items()}
    listed.write_text("".join(f"{links.get(image, image)}\n" for image in dataset.files[split]), encoding="utf-8")
    return listed


# ---------------------------------------------------------------------------------------------------- images


def _check_strays(inside: dict[str, None], images: Sequence[LabelledImage], findings: Findings) -> None:
    """Report images that belong to no split, and label files without an image.

    A `.txt` file counts as a label file if an image's label would be in its folder, or below any folder `labels`.
    """
    used = {image.name for image in images}
    found = [name for name in inside if is_image(name)]
    labels = {label_path(name) for name in found}
    label_folders = {posixpath.dirname(label) for label in labels}
    for name in found:
        if name not in used:
            findings.add(Issue.UNUSED, name, "no split of data.yaml holds it")
    for name in inside:
        place, _, file = name.rpartition("/")
        is_label = file.lower().endswith(".txt") and (place in label_folders or "labels" in place.split("/"))
        if is_label and name not in labels and file != "classes.txt":  # labelling tools leave this file there
            text = (
                "there is no image of this name" if file.endswith(".txt") else "only a label that ends in .txt is read"
            )
            findings.add(Issue.ORPHAN, name, text)
