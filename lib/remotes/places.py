"""Ask DVC where the objects of `.dvc` files are.

Guarantees: DVC decides, as in `dvc pull`: by the remote of the output, the layout of DVC 2, the source of an import,
and all of its configuration. The workspace in which `find_missing` asks is the one in which `pull_objects` pulls.
Cannot: look for each file of a folder; its listing stands for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.errors import RemoteError
from lib.remotes.credentials import without_user


def find_missing(root: Path, pointers: Mapping[str, str], redact: Callable[[str], str]) -> dict[str, str]:
    """Return {path: what to do} for the outputs of the `.dvc` files in `pointers` that `dvc pull` would not find.

    Only a folder's listing is looked for, not its files. Raises `RemoteError` if a place cannot be asked.
    """
    from dvc.repo import Repo

    missing = {}
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        place = Path(folder).resolve()
        try:
            make_workspace(root, place, pointers)
            with Repo(str(place)) as repo:
                for out in repo.index.outs:
                    if not _is_there(repo, out):
                        path = Path(out.fs_path).relative_to(place).as_posix()
                        missing[path] = _remedy(path, out.stage)
        except Exception as error:  # each kind of remote has errors of its own
            raise RemoteError(
                redact(f"{', '.join(pointers)} cannot be looked up ({type(error).__name__}: {error})."),
                remedy="run `dvc pull` of it in a fresh clone, and correct what DVC names: the remote, its credentials "
                "or the repository that it was imported from.",
            ) from error
    return missing


def _is_there(repo: Any, out: Any) -> bool:  # noqa: ANN401  dvc.repo.Repo, dvc.output.Output
    from dvc.exceptions import OutputNotFoundError

    data = repo.index.data["repo"]
    if not data.storage_map.remote_exists(data[out.index_key[1]], refresh=True):
        return False
    if not out.stage.is_repo_import:
        return True
    # so far only the `.dvc` file was looked for in the repository that it was imported from
    source = out.stage.deps[0]
    there = source.fs.repo
    try:
        outs = there.find_outs_by_path(there.fs.join(there.root_dir, source.def_path), strict=False)
    except OutputNotFoundError:
        return True  # Git has it
    return all(_is_there(there, each) for each in outs)


def _remedy(path: str, stage: Any) -> str:  # noqa: ANN401  dvc.stage.Stage
    if stage.is_repo_import:
        source = without_user(str(stage.deps[0].def_repo["url"]))
        return f"it was imported: run `dvc push` in a clone of {source}, or `dvc update {path}.dvc`, and commit that"
    return f"run `dvc push {path}` in a clone that has it, and check the remote's address"


def find_pointer(root: Path, path: str) -> str:
    """Return the text of a `.dvc` file for the output at `path` of the clone, which `dvc.lock` may name; else empty."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.utils.serialize import dumps_yaml

    try:
        with Repo(str(root)) as repo:
            (out,) = repo.find_outs_by_path(str(root / path))
            return str(dumps_yaml({"outs": [{**out.dumpd(), "path": Path(path).name}]}))
    except (DvcException, ValueError):
        return ""


def make_workspace(root: Path, place: Path, pointers: Mapping[str, str], mirrors: Sequence[Path] = ()) -> None:
    """Create a DVC workspace without Git: the `.dvc` files, the clone's remotes and cache, and the mirrors."""
    from dvc.config import Config
    from dvc.repo import Repo

    (place / ".dvc").mkdir(parents=True, exist_ok=True)
    with Repo(str(root)) as clone, Config(str(place / ".dvc")).edit("local") as local:
        remotes = clone.config["remote"] | {f"attached-{n}": {"url": str(path)} for n, path in enumerate(mirrors)}
        local["core"] = {"no_scm": True, "remote": clone.config["core"]["remote"]}
        # by default DVC caches the replies of most stores without checking their hashes
        local["remote"] = {name: {**remote, "verify": True} for name, remote in remotes.items()}
        local["cache"] = {"dir": clone.cache.local_cache_dir}
    for name, text in pointers.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
