"""Pull files from their DVC remotes; copies of the default remote in attached datasets are read first."""

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
from lib.remotes.places import make_workspace

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
        make_workspace(root, place, pointers, mirrors)
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


def _bytes_in(folder: str) -> int:
    """Return the total size of the files below a folder, in bytes; the folder may change meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{place}/{name}").st_size
    return size
