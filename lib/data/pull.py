"""Pull files from their DVC remotes; copies of any of them in attached datasets are read first.

Guarantees: DVC decides what belongs to an output and checks it out. From copies and from Google Drive the files are
fetched here: from Drive by one request a file and one a folder of objects, where DVC sends 3.5 a file. What cannot be
fetched so is DVC's to fetch, and to report; no file whose MD5 is wrong enters its cache.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lib.errors import DvcPushError, RemoteError
from lib.process import limit_silence
from lib.progress import file_size, showing
from lib.remotes.credentials import Credentials
from lib.remotes.dvc_config import COPY, make_workspace
from lib.remotes.store_errors import UNKNOWN, explain
from lib.sync.stores.base import Store, md5_of, mismatch, open_object_store
from lib.sync.stores.places import find_missing

JOBS = 16  # parallel downloads of DVC, which sends three requests per file; Drive accepts some 200 per second
AT_ONCE = 32  # parallel downloads from Drive; its store lowers their number while it refuses some


def pull_objects(
    root: Path, place: Path, pointers: Mapping[str, str], credentials: Credentials, what: str,
    mirrors: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """Pull the files that the `.dvc` files in `pointers` (text by path) name into the folder `place`; return `place`.

    `place` becomes a DVC workspace with the remotes and the cache of the clone at `root`. `what` is the title of the
    progress bar. `mirrors` are attached copies of DVC remotes, which are read first. Raises `RemoteError`.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    limit_silence()
    total = 0
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
                lines = [_fetch_from(repo, number, mirror, outs) for number, mirror in enumerate(mirrors)]
                complete = [_fetch_from_drive(repo, out) for out in outs]
                if all(complete):
                    repo.checkout(targets=targets, force=True)
                else:
                    repo.pull(targets=targets, force=True, jobs=JOBS)
    except (DvcException, OSError) as error:
        answer = explain(error)
        what, remedies = answer.what, [answer.remedy] * (answer.remedy != UNKNOWN)
        if not remedies and isinstance(error, DvcException):
            # DVC logs what a remote refuses, and raises the number of files
            missing = find_missing(root, pointers, credentials.redact, mirrors)
            what = "; ".join([what, *(f"{path}: {each.what}" for path, each in missing.items())])
            remedies = [each.remedy for each in missing.values()]
        # twice: they are in DVC's cache, and may be copied from there
        if total and (free := shutil.disk_usage(place).free) < 2 * total:
            what = f"{what}; {file_size(free)} are free in {place}, and the files have {file_size(total)}"
            remedies.append("free some space, or name a folder on another disk.")
        raise RemoteError(credentials.redact(what), remedy="; ".join(remedies)) from error
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return place


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


def _fetch_from(repo: Any, number: int, mirror: Path, outs: Sequence[Any]) -> str:  # noqa: ANN401  DVC's types
    """Fetch what an attached copy has, by name: whichever remote an output is on. Return a line about it.

    DVC would fetch an output with a remote of its own from there. The remotes supply the rest later.
    """
    cache, odb = str(repo.cache.local_cache_dir), repo.cloud.get_remote_odb(f"{COPY}{number}")
    before = _bytes_in(cache)
    complete = [_fetch_output(odb, out) for out in outs]
    if not (size := _bytes_in(cache) - before):
        return f"{mirror} holds none of the files that are needed."
    return f"{file_size(size)} came from {mirror}{'' if all(complete) else '; the rest comes from the DVC remote'}."


def _fetch_from_drive(repo: Any, out: Any) -> bool:  # noqa: ANN401  DVC's types
    """Fetch what DVC's cache lacks of an output on Google Drive; return whether the cache has all of it."""
    if not out.hash_info or out.stage.is_repo_import:
        return False  # without a hash, or in another repository
    odb = repo.cloud.get_remote_odb(out.remote, hash_name=out.hash_name)
    return odb.fs.protocol == "gdrive" and _fetch_output(odb, out)


def _fetch_output(odb: Any, out: Any) -> bool:  # noqa: ANN401  DVC's types
    """Fetch what DVC's cache lacks of an output from a DVC remote; return whether the cache has all of it."""
    from dvc_data.hashfile.tree import Tree

    if not out.hash_info or out.hash_name != "md5":
        return False  # another layout
    try:
        with contextlib.closing(open_object_store(odb)) as store:
            if not _fetch(store, out.cache, [out.hash_info.value]):
                return False
            if not out.hash_info.isdir:
                return True
            tree = Tree.load(out.cache, out.hash_info)
            return _fetch(store, out.cache, {info.value for _, (_, info) in tree.iteritems()})
    except (DvcPushError, OSError):
        return False  # DVC meets the same error, and reports it


def _fetch(store: Store, cache: Any, oids: Iterable[str]) -> bool:  # noqa: ANN401  dvc_data's LocalHashFileDB
    """Fetch the objects that the cache lacks; return whether it has all."""
    lacking = [oid for oid in oids if not cache.exists(oid)]
    found = store.look(lacking)
    ids = {oid: copy.identity for oid in lacking for copy in found.get(oid, ()) if not mismatch(oid, -1, copy)}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool:
        jobs = [pool.submit(_fetch_one, store, cache, oid, identity) for oid, identity in ids.items()]
        try:
            return all(job.result() for job in jobs) and len(ids) == len(lacking)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # while Drive does not answer, each would be repeated for a minute
            raise


def _fetch_one(store: Store, cache: Any, oid: str, identity: str) -> bool:  # noqa: ANN401
    """Fetch one object into the cache; return whether its MD5 is right."""
    path = Path(cache.oid_to_path(oid))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        store.read(store.path_of(oid), identity, part)
        right = md5_of(part) == oid.removesuffix(".dir")
        if right:
            part.replace(path)
            cache.protect(path)  # DVC reads no protected file again to verify it
        return right
    finally:
        part.unlink(missing_ok=True)


def _bytes_in(folder: str) -> int:
    """Return the total size of the files below a folder, in bytes; the folder may change meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{place}/{name}").st_size
    return size
