"""Pull files from their DVC remotes, and find those that a pull would not find.

Guarantees: DVC decides where an object is (the remote of the output, the layout of DVC 2, the source of an import), for
`pull_objects` and `find_missing` alike. Copies of the default remote in attached datasets are read first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.errors import RemoteError
from lib.process import limit_silence
from lib.progress import showing
from lib.remotes.credentials import Credentials, without_user

JOBS = 16  # parallel downloads: DVC sends three requests per file, and Drive accepts some 200 per second


def pull_objects(
    root: Path, place: Path, pointers: Mapping[str, str], credentials: Credentials, what: str,
    mirrors: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """Pull the files that the `.dvc` files in `pointers` (text by path) name into the folder `place`; return `place`.

    `place` becomes a DVC workspace with the remotes and the cache of the clone at `root`. `what` is the title of the
    progress bar. `mirrors` are attached copies of the DVC remote, which are read first. Raises `RemoteError`.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    limit_silence()
    try:
        _make_workspace(root, place, pointers, mirrors)
        targets = [str(place / name) for name in pointers]
        with Repo(str(place)) as repo:
            cache = str(repo.cache.local_cache_dir)
            outs = [out for target in targets for stage in repo.stage.collect(target) for out in stage.outs]
            before, total = _bytes_in(cache), sum(out.meta.size or 0 for out in outs)
            # DVC shows no progress without a terminal: measure the growth of its cache
            with showing(what, total, lambda: _bytes_in(cache) - before):
                if mirrors:
                    _fetch_listings(repo, outs)
                lines = [_fetch_from(repo, number, mirror, targets) for number, mirror in enumerate(mirrors)]
                repo.pull(targets=targets, force=True, jobs=JOBS)
    except (DvcException, OSError) as error:
        raise RemoteError(credentials.redact(f"{type(error).__name__}: {error}")) from error
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return place


def find_missing(root: Path, pointers: Mapping[str, str], redact: Callable[[str], str]) -> dict[str, str]:
    """Return {path: what to do} for the outputs of the `.dvc` files in `pointers` that `dvc pull` would not find.

    Only a folder's listing is looked for, not its files. Raises `RemoteError` if a place cannot be asked.
    """
    from dvc.repo import Repo

    missing = {}
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        place = Path(folder).resolve()
        try:
            _make_workspace(root, place, pointers)
            with Repo(str(place)) as repo:
                data = repo.index.data["repo"]
                for out in repo.index.outs:
                    if not _is_there(data, out):
                        path = Path(out.fs_path).relative_to(place).as_posix()
                        missing[path] = _remedy(path, out.stage)
        except Exception as error:  # each kind of remote has errors of its own
            raise RemoteError(
                redact(f"{', '.join(pointers)} cannot be looked up ({type(error).__name__}: {error})."),
                remedy="run `dvc pull` of it in a fresh clone, and correct what DVC names: the remote, its credentials "
                "or the repository that it was imported from.",
            ) from error
    return missing


def _is_there(data: Any, out: Any) -> bool:  # noqa: ANN401  dvc_data.index.DataIndex, dvc.output.Output
    if not data.storage_map.remote_exists(data[out.index_key[1]], refresh=True):
        return False
    if out.stage.is_repo_import:  # so far only the source's `.dvc` file was looked for
        from dvc_data.index import DataIndexDirError

        source = out.stage.deps[0]
        try:
            source.fs.ls(source.fs_path)
        except (DataIndexDirError, FileNotFoundError):
            return False
    return True


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


def _fetch_listings(repo: Any, outs: Sequence[Any]) -> None:  # noqa: ANN401  dvc.repo.Repo, dvc.output.Output
    """Fetch the listings of folders from their remotes, verified: those of a copy may be stale or damaged."""
    for out in outs:
        with contextlib.suppress(Exception):  # the pull that follows reports the error
            oid = out.hash_info.value
            remote = repo.cloud.get_remote_odb(out.remote, hash_name=out.hash_name)
            if oid.endswith(".dir"):
                out.cache.add(remote.oid_to_path(oid), remote.fs, oid, verify=True)


def _fetch_from(repo: Any, number: int, mirror: Path, targets: Sequence[str]) -> str:  # noqa: ANN401  dvc.repo.Repo
    """Fetch what an attached copy has into DVC's cache and return a line about it.

    The default remote supplies the rest later.
    """
    from dvc.exceptions import DvcException
    from dvc_objects.errors import ObjectFormatError

    logging.disable(logging.ERROR)  # DVC would log every single file that the copy lacks
    try:
        count = repo.fetch(targets=targets, remote=f"attached-{number}", jobs=JOBS)
    except (DvcException, ObjectFormatError, OSError):
        return f"{mirror} holds a part of the files; the rest came from the DVC remote."
    finally:
        logging.disable(logging.NOTSET)
    return f"{count} files came from {mirror}." if count else f"{mirror} holds none of the files."


def _make_workspace(root: Path, place: Path, pointers: Mapping[str, str], mirrors: Sequence[Path] = ()) -> None:
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


def _bytes_in(folder: str) -> int:
    """Return the total size of the files below a folder, in bytes; the folder may change meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{place}/{name}").st_size
    return size
