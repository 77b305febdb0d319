"""Pull files from the DVC remote; copies of the remote in attached datasets are read first."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.errors import RemoteError
from lib.process import limit_silence
from lib.progress import showing
from lib.remotes.credentials import Credentials

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
        _make_workspace(root, place, mirrors)
        for name, text in pointers.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, encoding="utf-8")
        targets = [str(place / name) for name in pointers]
        with Repo(str(place)) as repo:
            cache = str(repo.cache.local_cache_dir)
            outs = [out for target in targets for stage in repo.stage.collect(target) for out in stage.outs]
            before, total = _bytes_in(cache), sum(out.meta.size or 0 for out in outs)
            # DVC shows no progress without a terminal: measure the growth of its cache
            with showing(what, total, lambda: _bytes_in(cache) - before):
                if mirrors:
                    _fetch_listings(repo, [out.hash_info.value for out in outs])
                lines = [_fetch_from(repo, number, mirror, targets) for number, mirror in enumerate(mirrors)]
                repo.pull(targets=targets, force=True, jobs=JOBS)
    except (DvcException, OSError) as error:
        raise RemoteError(credentials.redact(f"{type(error).__name__}: {error}")) from error
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return place


def _fetch_listings(repo: Any, objects: Sequence[str]) -> None:  # noqa: ANN401  dvc.repo.Repo
    """Fetch the listings of folders from the default remote, verified: those of a copy may be stale or damaged."""
    with contextlib.suppress(Exception):  # the pull that follows reports the error
        remote = repo.cloud.get_remote_odb()
        for oid in objects:
            if oid.endswith(".dir"):
                repo.cache.local.add(remote.oid_to_path(oid), remote.fs, oid, verify=True)


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


def _make_workspace(root: Path, place: Path, mirrors: Sequence[Path]) -> None:
    """Create a DVC workspace without Git: the remotes and the cache of the clone at `root`, and the mirrors."""
    from dvc.config import Config
    from dvc.repo import Repo

    (place / ".dvc").mkdir(parents=True, exist_ok=True)
    with Repo(str(root)) as clone, Config(str(place / ".dvc")).edit("local") as local:
        remotes, name = clone.config["remote"], clone.config["core"]["remote"]
        read = {name: remotes[name]} | {f"attached-{number}": {"url": str(path)} for number, path in enumerate(mirrors)}
        local["core"] = {"no_scm": True, "remote": name}
        # by default DVC caches the replies of most stores without checking their hashes
        local["remote"] = {**remotes, **{each: {**remote, "verify": True} for each, remote in read.items()}}
        local["cache"] = {"dir": clone.cache.local_cache_dir}


def _bytes_in(folder: str) -> int:
    """Return the total size of the files below a folder, in bytes; the folder may change meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{place}/{name}").st_size
    return size
