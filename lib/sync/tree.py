"""Build a publication's commit from the bytes on disk, whatever rules the repository has for its own files.

Guarantees: every small file is in the commit byte for byte, in a stranger's `git clone` as well; `dvc pull` in that
clone brings every object, even below paths that the repository ignores. The clone's own files are only read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lib.errors import SyncError
from lib.process import run_command
from lib.remotes.repository import StoredObject
from lib.sync.publication import Publication
from lib.sync.refs import Refs

RAW = "* -filter -text -ident -working-tree-encoding"
"""The attributes of the published folder: a checkout writes its files as they are in the commit."""
RULES = (".gitignore", ".dvcignore", ".gitattributes")


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
    rules = _Rules(refs, base, files, [run.folder, *objects])
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


class _Rules:
    """The ignore and attribute files of the coming commit: those of its base, those that are published, and changes."""

    def __init__(self, refs: Refs, base: str, files: Mapping[str, Path], paths: Sequence[str]) -> None:
        folders = {folder for path in paths for folder in _parents(f"{path}/.")}
        names = [f"{folder}/{name}".removeprefix("./") for folder in sorted(folders) for name in RULES]
        self._texts = refs.read_texts(base, names)
        self._texts |= {name: files[name].read_text(encoding="utf-8") for name in names if name in files}
        self.changed: dict[str, str] = {}
        """{path: text} of the files that the publication adds or changes."""

    def append(self, path: str, *lines: str) -> None:
        """Add lines at the end of a file, where they take precedence; lines that are the last ones stay the last."""
        text, added = self._texts.get(path, ""), "".join(f"{line}\n" for line in lines)
        if not text.endswith(added):
            self._texts[path] = self.changed[path] = text + "\n" * bool(text and not text.endswith("\n")) + added

    def unhide(self, objects: Sequence[str]) -> None:
        """Make the `.dvc` files and the objects visible to DVC, which skips ignored paths without an error.

        Git and DVC decide by the last matching line of the deepest file: each ignore file on the way gets exceptions.
        """
        for suffix, kind in ((".dvc", ".gitignore"), (".dvc", ".dvcignore"), ("", ".dvcignore")):
            for path in self._hidden([f"{name}{suffix}" for name in objects], kind):
                for folder in _parents(path):
                    file = f"{folder}/{kind}".removeprefix("./")
                    if file in self._texts:
                        self.append(file, *_exceptions(path, folder))

    def _hidden(self, paths: Sequence[str], kind: str) -> list[str]:
        """Return the paths that the files named `kind` hide in a clone."""
        from dvc.fs import LocalFileSystem
        from dvc.ignore import DvcIgnoreFilter

        texts = {name: text for name, text in self._texts.items() if PurePosixPath(name).name == kind}
        if not texts:
            return []
        with tempfile.TemporaryDirectory(prefix="kaggle-training-") as place:
            root = Path(place)
            for name, text in texts.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text, encoding="utf-8")
            if kind == ".dvcignore":
                ignore = DvcIgnoreFilter(LocalFileSystem(), place)
                return [path for path in paths if ignore.is_ignored_file(str(root / path))]
            run_command(["git", "init", "--quiet", "--template=", root])
            # the user's own excludes file is not in a stranger's clone
            words = ["git", "-c", "core.excludesFile=", "check-ignore", "--no-index", "-z", "--stdin"]
            shown = run_command(words, cwd=root, text="".join(f"{path}\0" for path in paths), check=False).output
            return shown.split("\0")[:-1]


def _parents(path: str) -> list[str]:
    """Return the folders above a path, from the root (`.`) down."""
    return [str(folder) for folder in reversed(PurePosixPath(path).parents)]


def _exceptions(path: str, folder: str) -> Iterator[str]:
    """Yield the lines that make a path visible, for an ignore file in `folder`: each folder on the way, then itself."""
    inside = PurePosixPath(path).relative_to(folder)
    for parent in reversed(inside.parents):
        if parent != PurePosixPath("."):
            yield f"!/{_literal(str(parent))}/"
    yield f"!/{_literal(str(inside))}"


def _literal(path: str) -> str:
    """Return a pattern that matches only this path."""
    return "".join(f"\\{character}" if character in "*?[]\\! #" else character for character in path)
