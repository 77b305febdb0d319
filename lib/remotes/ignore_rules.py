"""Make paths visible that the ignore rules of a repository hide from DVC.

Guarantees: Git and DVC decide what is hidden, as in a stranger's clone: by the rules of the repository alone. Lines are
only added, at the end of files. Cannot: see rules of a folder whose files were not given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lib.process import run_command

RULES = (".gitignore", ".dvcignore", ".gitattributes")


def rule_files(paths: Sequence[str]) -> set[str]:
    """Return the paths of all files whose rules can apply to these folders and files, whether they exist or not."""
    folders = {folder for path in paths for folder in _parents(f"{path}/.")}
    return {f"{folder}/{name}".removeprefix("./") for folder in folders for name in RULES}


class Rules:
    """The ignore and attribute files of a commit, {path: text}, and what is added to them."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts
        self.changed: dict[str, str] = {}
        """{path: text} of the files that are added or changed."""

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
