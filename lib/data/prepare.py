"""Prepare the images of a training: decode each one once, shrunk to the size that the training reads.

Ultralytics decodes and shrinks every image again in every epoch, on Kaggle with four vCPU for two GPUs. It reads an
array of the same name (`a.npy` beside `a.jpg`) in an image's place, so that arrays with the pixels that it would have
after shrinking give the same batches, byte for byte.

Guarantees: train and val alone are prepared, for training alone: evaluation, predictions and all that writes
coordinates read the images themselves. The arrays lie in a folder of their own in the scratch folder, beside links to
the checked images and labels. A damaged image is found and named here, before the GPU waits. Arrays that an earlier run
on this machine kept (`arrays.py`) are reused if they are of the same dataset, by DVC's hash, and of the same pixels.

Cannot: keep the size that the library reports for an image (`ori_shape`): it is that of the array. Validation during
training uses it only to scale boxes, those of labels and predictions alike.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lib.data import reader
from lib.data.arrays import open_cache
from lib.data.dataset import Dataset, Prepared, write_description
from lib.data.labels import label_path
from lib.data.reader import Size, UnreadableImage, read_image
from lib.errors import DatasetError
from lib.progress import Bar, duration, file_size
from lib.session import Session

SPLITS = ("train", "val")
SHARE = 0.5  # of the free memory, which keeps the arrays between epochs, and of the free disk
LATER = 2**32  # seconds since the epoch, in 2106: the library does not read an array that is older than its image


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
    shutil.rmtree(top, ignore_errors=True)
    prepared = Prepared(reason="hardware.prepare_images is never")
    if session.experiment.hardware.prepare_images == "auto":
        try:
            prepared = _make_arrays(session.scratch, dataset, works, longest)
        except OSError as error:  # the disk is full all the same
            prepared = Prepared(reason=f"the arrays cannot be written ({error})")
    if prepared.reason:
        shutil.rmtree(top, ignore_errors=True)
        print(f"Images are decoded anew in every epoch: {prepared.reason}.")
        return replace(dataset, prepared=prepared)
    made = replace(dataset, links={work.target: work.image for work in works}, data_file=top / "data.yaml")
    write_description(made, SPLITS)
    return replace(dataset, prepared=replace(prepared, data_file=made.data_file))


class _Work(NamedTuple):
    """An image to prepare: its checked link, the link that the array will be beside, and the file."""

    checked: Path
    target: Path
    image: Path

    @property
    def array(self) -> Path:
        """Return the path of the array."""
        return self.target.with_suffix(".npy")


def _make_arrays(scratch: Path, dataset: Dataset, works: list[_Work], longest: int) -> Prepared:
    """Reuse or write the arrays, with links to the images and labels; return what was made, or the reason why not."""
    import psutil

    sizes = (shrunk(dataset.sizes[work.image], longest) for work in works)
    size = sum(width * height * dataset.channels for width, height in sizes)
    if reason := _lack_of("memory", size, psutil.virtual_memory().available):
        return Prepared(reason=reason)
    cache, key = open_cache(scratch), _key(dataset, longest)
    arrays = {work.image.relative_to(dataset.folder).as_posix(): work.array for work in works}
    for work in works:
        _link(work)
    with cache.locked():
        begun = time.monotonic()
        if cache.reuse(key, arrays):
            seconds = time.monotonic() - begun
            print(f"Reused {len(works)} prepared images of an earlier run: {file_size(size)}")
            return Prepared(len(works), size, seconds, reused=True)
        cache.make_room(size)
        if reason := _lack_of("disk", size, shutil.disk_usage(scratch).free):
            return Prepared(reason=reason)
        seconds = _prepare_all(dataset, works, longest, size)
        if dataset.md5:
            cache.keep(key, arrays)
    return Prepared(len(works), size, seconds)


def _key(dataset: Dataset, longest: int) -> str:
    """Return the key of a dataset's arrays: a hash of all that decides their pixels.

    The code that decodes images is part of it, so that no change of it can be forgotten; so are the features of the CPU
    that OpenCV uses.
    """
    import cv2
    import PIL

    code = [Path(file).read_bytes().hex() for file in (reader.__file__, __file__)]
    used = [cv2.__version__, cv2.getCPUFeaturesLine(), PIL.__version__, importlib.metadata.version("ultralytics")]
    return hashlib.sha256(repr([dataset.md5, longest, dataset.channels, *used, *code]).encode()).hexdigest()


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


def _lack_of(what: str, size: int, free: int) -> str:
    """Return why arrays of that many bytes would not fit into the free memory or disk; empty if they do."""
    if size <= SHARE * free:
        return ""
    return f"they would need {file_size(size)}, more than half of the {file_size(free)} of free {what}"


def _link(work: _Work) -> None:
    """Link to an image and its label beside the image's array."""
    for source, target in ((work.checked, work.target), (_label(work.checked), _label(work.target))):
        if source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink())


def _prepare(work: _Work, *, longest: int, channels: int) -> tuple[Path, str]:
    """Write an image's array; return the image and why it cannot be read."""
    import cv2
    import numpy as np

    try:
        pixels = read_image(work.image, channels)
    except UnreadableImage as error:
        return work.image, str(error)
    size = Size(pixels.shape[1], pixels.shape[0])
    if (wanted := shrunk(size, longest)) != (size.width, size.height):
        pixels = np.atleast_3d(cv2.resize(pixels, wanted, interpolation=cv2.INTER_LINEAR))
    np.save(work.array, np.ascontiguousarray(pixels), allow_pickle=False)
    os.utime(work.array, (LATER, LATER))
    return work.image, ""


def _label(image: Path) -> Path:
    return Path(label_path(str(image)))
