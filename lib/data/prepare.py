"""Prepare the images of a training: decode each one once, shrunk to the size that the training reads.

Ultralytics decodes and shrinks every image again in every epoch, on Kaggle with four vCPU for two GPUs. It reads an
array of the same name (`a.npy` beside `a.jpg`) in an image's place, so that arrays with the pixels that it would have
after shrinking give the same batches, byte for byte.

Guarantees: train and val alone are prepared, for training alone: evaluation, predictions and all that writes
coordinates read the images themselves. The arrays lie in a folder of their own in the scratch folder, beside links to
the checked images and labels. A damaged image is found and named here, before the GPU waits.

Cannot: keep the size that the library reports for an image (`ori_shape`): it is that of the array. Validation during
training uses it only to scale boxes, those of labels and predictions alike.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from lib.data.dataset import Dataset, Prepared, write_description
from lib.data.labels import label_path
from lib.data.reader import Size, UnreadableImage, read_image
from lib.errors import DatasetError
from lib.progress import Bar, duration, file_size
from lib.session import Session

SPLITS = ("train", "val")
SHARE = 0.5  # of the free memory, which keeps the arrays between epochs, and of the free disk


def prepare_images(session: Session, dataset: Dataset) -> Dataset:
    """Prepare the images of train and val, and return the dataset with the `data.yaml` that training then reads.

    Nothing is prepared if the experiment says so (`hardware.prepare_images`), or if the arrays would not fit; the
    returned dataset has the reason. Raises one `DatasetError` that names every image that cannot be read.
    """
    begun, longest = time.monotonic(), session.experiment.training.image_size
    links = {link: image for link, image in dataset.links.items() if image in _images(dataset)}
    size = sum(_bytes(dataset, image, longest) for image in links.values())
    reason = "hardware.prepare_images is never"
    if session.experiment.hardware.prepare_images == "auto":
        reason = _lack_of_room(session.scratch, size)
    if reason:
        print(f"Images are decoded anew in every epoch: {reason}.")
        return replace(dataset, prepared=Prepared(reason=reason))
    top = session.scratch / f"prepared-{session.experiment.module}"
    shutil.rmtree(top, ignore_errors=True)
    old = dataset.data_file.with_name(f"checked-{session.experiment.module}")
    moved = {link: (top / link.relative_to(old)).absolute() for link in links}
    problems, bar = {}, Bar("Preparing images", len(links))
    with ThreadPool(os.cpu_count()) as pool:  # OpenCV decodes and shrinks without Python's lock
        work = partial(_prepare, longest=longest, channels=dataset.channels)
        for number, (image, problem) in enumerate(pool.imap_unordered(work, _pairs(links, moved)), 1):
            bar.show(number)
            if problem:
                problems[image.relative_to(dataset.folder).as_posix()] = problem
    seconds = time.monotonic() - begun
    bar.end(
        f"Prepared {len(links)} images: {file_size(size)} in {duration(seconds)} ({len(links) / seconds:.0f} images/s)"
    )
    if problems:
        raise DatasetError(
            f"{len(problems)} images cannot be read:\n"
            + "\n".join(f"    {name}: {problem}" for name, problem in sorted(problems.items())),
            remedy="remove them from the dataset, or save them again as JPEG or PNG, `dvc add`, `dvc push`, commit.",
        )
    prepared = replace(
        dataset, links={moved[link]: image for link, image in links.items()}, data_file=top / "data.yaml"
    )
    write_description(prepared, SPLITS)
    return replace(dataset, prepared=Prepared(len(links), size, seconds, prepared.data_file))


def _images(dataset: Dataset) -> set[Path]:
    return {image for split in SPLITS for image in dataset.files[split]}


def _bytes(dataset: Dataset, image: Path, longest: int) -> int:
    width, height = shrunk(dataset.sizes[image], longest)
    return width * height * dataset.channels


def shrunk(size: Size, longest: int) -> tuple[int, int]:
    """Return width and height after ultralytics' `load_image`, which rounds up; a smaller image is left as it is."""
    ratio = longest / max(size.width, size.height)
    if ratio >= 1:
        return size.width, size.height
    return min(math.ceil(size.width * ratio), longest), min(math.ceil(size.height * ratio), longest)


def _lack_of_room(scratch: Path, size: int) -> str:
    """Return why arrays of that many bytes would not fit; empty if they do."""
    import psutil

    free = {"memory": psutil.virtual_memory().available, "disk": shutil.disk_usage(scratch).free}
    for what, count in free.items():
        if size > SHARE * count:
            return f"they would need {file_size(size)}, more than half of the {file_size(count)} of free {what}"
    return ""


def _pairs(links: dict[Path, Path], moved: dict[Path, Path]) -> Iterable[tuple[Path, Path, Path]]:
    return ((link, moved[link], image) for link, image in links.items())


def _prepare(paths: tuple[Path, Path, Path], *, longest: int, channels: int) -> tuple[Path, str]:
    """Write an image's array, with links to the image and its label; return the image and why it cannot be read."""
    import cv2
    import numpy as np

    checked, link, image = paths
    try:
        pixels = read_image(image, channels)
    except UnreadableImage as error:
        return image, str(error)
    size = Size(pixels.shape[1], pixels.shape[0])
    if (wanted := shrunk(size, longest)) != (size.width, size.height):
        pixels = np.atleast_3d(cv2.resize(pixels, wanted, interpolation=cv2.INTER_LINEAR))
    for source, target in ((checked, link), (_label(checked), _label(link))):
        if source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink())
    array = link.with_suffix(".npy")
    np.save(array, np.ascontiguousarray(pixels), allow_pickle=False)
    # the library does not use an array that is older than its image, whose time may be in the future
    newest = max(image.stat().st_mtime_ns, array.stat().st_mtime_ns)
    os.utime(array, ns=(newest, newest))
    return image, ""


def _label(image: Path) -> Path:
    return Path(label_path(str(image)))
