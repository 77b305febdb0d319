"""Build a publication's commit from the bytes on disk, whatever rules the repository has for its own files.

Guarantees: every small file is in the commit byte for byte, in a stranger's `git clone` as well; `dvc pull` in that
clone brings every object, even below paths that the repository ignores. The clone's own files are only read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lib.errors import SyncError
from lib.remotes.ignore_rules import Rules, rule_files
from lib.remotes.repository import StoredObject
from lib.sync.publication import Publication
from lib.sync.refs import Refs

RAW = "* -filter -text -ident -working-tree-encoding"
"""The attributes of the published folder: a checkout writes its files as they are in the commit."""


class Source(NamedTuple):
    """An object of a publication, and the file that it was hashed from."""

    item: StoredObject
    path: Path
    written: int
    """The file's modification time in nanoseconds, read before the file was hashed."""


def hash_objects(run: Publication) -> list[Source]:
    """Hash the objects of the publication as DVC does. Raises `SyncError` for one that is missing or empty."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.hash import hash_file

    found = []
    for name in run.objects:
        path = run.find(name)
        if not path.is_file() or path.stat().st_size == 0:
            raise SyncError(f"{path} is missing or empty.", remedy="train again, or correct the publication's list.")
        before = path.stat()
        _, digest = hash_file(str(path), LocalFileSystem(), "md5")
        found.append(Source(StoredObject(oid=str(digest.value), size=before.st_size), path, before.st_mtime_ns))
    return found


def build_commit(
    refs: Refs, run: Publication, objects: Mapping[str, StoredObject], *, parent: str | None = None
) -> str:
    """Build the commit HEAD plus the publication and return it; the same content makes the same commit.

    Its parent is `parent`, or HEAD. `objects` holds the object at each path of which the commit gets a `.dvc` file.
    """
    from dvc.utils.serialize import dumps_yaml

    base = refs.head()
    files = {name: path for name, path in run.files().items() if name not in run.objects}
    names = rule_files([run.folder, *objects])
    own = {name: files[name].read_text(encoding="utf-8") for name in names & files.keys()}
    rules = Rules(refs.read_texts(base, names) | own)
    rules.append(f"{run.folder}/.gitattributes", RAW)
    rules.unhide(list(objects))
    for name, item in objects.items():  # as `dvc add` does
        path = PurePosixPath(name)
        rules.append(f"{path.parent}/.gitignore", f"/{path.name}")
        output = {"md5": item.oid, "size": item.size, "hash": "md5", "path": path.name}
        rules.changed[f"{name}.dvc"] = dumps_yaml({"outs": [output]})
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as place:
        for number, (name, text) in enumerate(rules.changed.items()):
            files[name] = Path(place) / str(number)
            files[name].write_text(text, encoding="utf-8")
        return refs.build_commit(base, files, run.message, run.stamp.isoformat(), parent=parent)
