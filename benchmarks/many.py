"""Create remotes with many published runs, for `rollback.py` and `check.py`."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = "artifacts/detection/exp001/train/weights"


def make_origin(folder: Path, remote: str) -> Path:
    """Make a bare Git repository with one commit that names `remote` as its DVC remote."""
    origin = folder / "origin.git"
    origin.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in remote:
        Path(remote).mkdir()
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", origin], check=True)
    for key in ("allowFilter", "allowAnySHA1InWant"):
        subprocess.run(["git", "config", f"uploadpack.{key}", "true"], cwd=origin, check=True)
    config = f"[core]\n    remote = storage\n    analytics = false\n['remote \"storage\"']\n    url = {remote}\n"
    ignored = "/config.local\n/tmp\n/cache\n"
    files = {".dvc/config": config, ".dvc/.gitignore": ignored, ".dvcignore": ""}
    _import(origin, _commit("refs/heads/main", "code", "", files))
    return origin


def _commit(ref: str, message: str, parent: str, files: dict[str, str]) -> str:
    """Return one commit in the format of `git fast-import`."""
    lines = [f"commit {ref}", "committer Bench <bench@example.com> 1700000000 +0000", f"data {len(message)}", message]
    lines += [f"from {parent}"] if parent else []
    for path, text in files.items():
        lines += [f"M 100644 inline {path}", f"data {len(text.encode())}", text]
    return "\n".join(lines) + "\n"


def _import(origin: Path, text: str) -> None:
    subprocess.run(["git", "fast-import", "--quiet"], cwd=origin, input=text.encode(), check=True)


def publish_many(origin: Path, runs: range, put: Callable[[str, bytes], object], objects: int = 2) -> None:
    """Publish a branch with `objects` small weights files for each number, as finished runs do."""

    def commits() -> Iterator[str]:
        for run in runs:
            files = {}
            for number in range(objects):
                data = f"run {run}, file {number}".encode()
                md5 = hashlib.md5(data).hexdigest()
                put(f"files/md5/{md5[:2]}/{md5[2:]}", data)
                name = f"{number}.pt"
                text = f"outs:\n- md5: {md5}\n  size: {len(data)}\n  hash: md5\n  path: {name}\n"
                files[f"{FOLDER}/{name}.dvc"] = text
            yield _commit(f"refs/heads/kaggle-train-detection-exp001-{run:06d}", "Trained", "refs/heads/main^0", files)

    _import(origin, "".join(commits()))


def put_into(storage: Path) -> Callable[[str, bytes], object]:
    """Return a function that stores a file in a folder."""

    def put(path: str, data: bytes) -> None:
        file = storage / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    return put


def clone(origin: Path, path: Path) -> Path:
    """Create a shallow clone, as on Kaggle, and return its path."""
    command = ["git", "clone", "--quiet", "--depth=1", "--branch=main", f"file://{origin}", str(path)]
    subprocess.run(command, check=True)
    return path
