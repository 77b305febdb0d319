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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    longest = session.experiment.training.image_size
    old, top = (session.scratch / f"{kind}-{session.experiment.module}" for kind in ("checked", "prepared"))
    wanted = {image for split in SPLITS for image in dataset.files[split]}
    works = [
        _Work(link, (top / link.relative_to(old.absolute())).absolute(), image)
        for link, image in dataset.links.items()
        if image in wanted
    ]
    sizes = (shrunk(dataset.sizes[work.image], longest) for work in works)
    size = sum(width * height * dataset.channels for width, height in sizes)
    reason = "hardware.prepare_images is never"
    if session.experiment.hardware.prepare_images == "auto":
        reason = _lack_of_room(session.scratch, size)
    shutil.rmtree(top, ignore_errors=True)
    if not reason:
        try:
            seconds = _prepare_all(dataset, works, longest, size)
        except OSError as error:  # the disk is full all the same
            shutil.rmtree(top, ignore_errors=True)
            reason = f"the arrays cannot be written ({error})"
    if reason:
        print(f"Images are decoded anew in every epoch: {reason}.")
        return replace(dataset, prepared=Prepared(reason=reason))
    made = replace(dataset, links={work.target: work.image for work in works}, data_file=top / "data.yaml")
    write_description(made, SPLITS)
    return replace(dataset, prepared=Prepared(len(works), size, seconds, made.data_file))


class _Work(NamedTuple):
    """An image to prepare: its checked link, the link that the array will be beside, and the file."""

    checked: Path
    target: Path
    image: Path


def _prepare_all(dataset: Dataset, works: list[_Work], longest: int, size: int) -> float:
    """Prepare the images, whose arrays have `size` bytes, and return the seconds that it took."""
    begun, problems, bar = time.monotonic(), [], Bar("Preparing images", len(works))
    # OpenCV decodes and shrinks without Python's lock; after an error no thread goes on writing
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        prepare = partial(_prepare, longest=longest, channels=dataset.channels)
        for number, (image, problem) in enumerate(pool.map(prepare, works), 1):
            bar.show(number)
            if problem:
                problems.append(f"    {image.relative_to(dataset.folder).as_posix()}: {problem}")
    seconds = time.monotonic() - begun
    done = f"{len(works)} images: {file_size(size)} in {duration(seconds)} ({len(works) / seconds:.0f} images/s)"
    bar.end("" if problems else f"Prepared {done}")
    if problems:
        raise DatasetError(
            "\n".join([f"{len(problems)} images cannot be read:", *sorted(problems)]),
            remedy="remove them from the dataset, or save them again as JPEG or PNG, `dvc add`, `dvc push`, commit.",
        )
    return seconds


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


def _prepare(work: _Work, *, longest: int, channels: int) -> tuple[Path, str]:
    """Write an image's array, with links to the image and its label; return the image and why it cannot be read."""
    import cv2
    import numpy as np

    try:
        pixels = read_image(work.image, channels)
    except UnreadableImage as error:
        return work.image, str(error)
    size = Size(pixels.shape[1], pixels.shape[0])
    if (wanted := shrunk(size, longest)) != (size.width, size.height):
        pixels = np.atleast_3d(cv2.resize(pixels, wanted, interpolation=cv2.INTER_LINEAR))
    for source, target in ((work.checked, work.target), (_label(work.checked), _label(work.target))):
        if source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink())
    array = work.target.with_suffix(".npy")
    np.save(array, np.ascontiguousarray(pixels), allow_pickle=False)
    # the library does not use an array that is older than its image, whose time may be in the future
    newest = max(work.image.stat().st_mtime_ns, array.stat().st_mtime_ns)
    os.utime(array, ns=(newest, newest))
    return work.image, ""


def _label(image: Path) -> Path:
    return Path(label_path(str(image)))
