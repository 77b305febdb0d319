"""Find the images of each split that a `data.yaml` names.

Guarantees: every image found is inside the dataset's folder, also if `data.yaml` was written on another machine. A
split or list entry that matches no file is reported. Cannot: find files outside the dataset: DVC does not pull them.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

from lib.data.findings import Findings, Issue
from lib.data.labels import LabelledImage, label_path
from lib.data.reader import is_image

SPLITS = ("train", "val", "test")


def list_files(folder: Path) -> dict[str, None]:
    """Return the relative paths of all files and folders in `folder`, sorted, without hidden ones."""
    found = {"."}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        found.update(posixpath.normpath(f"{inside}/{name}") for name in [*folders, *files] if not name.startswith("."))
    return dict.fromkeys(sorted(found))


def find_images(
    folder: Path, inside: dict[str, None], values: dict[str, Any], split: str, findings: Findings
) -> list[LabelledImage]:
    """Return all images of a split, from folders and from text files of paths; report what cannot be found."""
    key = "validation" if split == "val" and "val" not in values else split  # ultralytics accepts both
    given = values.get(key)
    wanted = given if isinstance(given, list) else [given]
    root = values.get("path")
    names = []
    for place in wanted or [None]:
        if not isinstance(place, str) or not place.strip():
            text = f"{split} is {given!r}: it must be a folder of images relative to data.yaml, a list of folders, or"
            findings.add(Issue.SPLIT, "data.yaml", f"{text} a text file of paths")
            continue
        found = _find_inside(inside, root if isinstance(root, str) else "", place)
        if found is None:
            base = f" (path is {root!r})" if root not in (None, "", ".") else ""
            text = f"{split} is {place!r}{base}: there is no such folder or list in {folder.name}"
            findings.add(Issue.SPLIT, "data.yaml", text)
            continue
        if _is_foreign(place):
            findings.add(Issue.FOREIGN, "data.yaml", f"{split} is {place!r}, taken as {found}")
        if (folder / found).is_dir():
            images = [name for name in inside if is_image(name) and (found == "." or name.startswith(f"{found}/"))]
        else:
            images = _read_list(folder, inside, found, findings)
        if not images:
            findings.add(Issue.SPLIT, "data.yaml", f"{split} is {place!r}: there is no image in it")
        names += images
    top = f"{folder}{os.sep}"
    labels = [(name, label_path(name)) for name in sorted(names)]
    return [LabelledImage(split, f"{top}{name}", name, f"{top}{label}", label) for name, label in labels]


def _find_inside(inside: dict[str, None], base: str, given: str) -> str | None:
    """Return the path inside the dataset that a path of `data.yaml` refers to; None if there is none.

    `given` may be relative to this folder, to a folder above it (`../train/images`, as Roboflow writes) or to `base`,
    or absolute on another machine. The longest suffix that exists in the dataset is returned. A relative path is never
    shortened: `a/images` does not match `images`. Nothing outside the dataset is found: on Kaggle only the files that
    DVC pulled exist.
    """
    given, base = given.strip().replace("\\", "/"), base.replace("\\", "/")
    shortest = 1 if _is_foreign(given) else len(_parts(given))
    parts = _parts(given if _is_foreign(given) else posixpath.join(base, given))
    suffixes = ("/".join(parts[start:]) or "." for start in range(len(parts) - shortest + 1))
    return next((suffix for suffix in suffixes if suffix in inside), None)


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath(path).split("/") if part not in {"", ".", ".."}]


def _is_foreign(path: str) -> bool:
    return path.startswith("/") or path[1:3] in {":/", ":\\"}


def _read_list(folder: Path, inside: dict[str, None], name: str, findings: Findings) -> list[str]:
    """Return the images that a text file lists, by paths relative to the file or to the dataset."""
    try:
        lines = (folder / name).read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        findings.add(Issue.LISTED, name, f"it is not a list of paths ({type(error).__name__})")
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image = _find_inside(inside, posixpath.dirname(name), line)
        if image is None or not is_image(image):
            text = "there is no such file" if image is None else "ultralytics reads no such images"
            findings.add(Issue.LISTED, f"{name}:{number}", f"{line.strip()}: {text}")
            continue
        if _is_foreign(line):
            findings.add(Issue.FOREIGN, f"{name}:{number}", f"{line.strip()}, taken as {image}")
        found.append(image)
    return found
