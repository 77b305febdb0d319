"""Ask where the objects of `.dvc` files are, each file of a folder included.

Guarantees: DVC decides, as in `dvc pull`: by the remote of the output, the layout of DVC 2, the source of an import,
and all of its configuration. The workspace in which `find_missing` asks is the one in which `pull_objects` pulls.
Cannot: see that a file is damaged, or look for each file on a `version_aware` remote.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import RemoteError, RunError
from lib.escape import visible
from lib.remotes.addresses import without_user
from lib.remotes.dvc_config import COPY, make_workspace
from lib.remotes.store_errors import UNKNOWN, explain
from lib.sync.stores.base import open_object_store

SHOWN = 5  # missing files that are named


class Missing(NamedTuple):
    """What of an output `dvc pull` would not find, and what to do."""

    what: str
    remedy: str


def find_missing(
    root: Path, pointers: Mapping[str, str], redact: Callable[[str], str], mirrors: Sequence[Path] = ()
) -> dict[str, Missing]:
    """Return {path: what is missing} for the outputs of the `.dvc` files in `pointers` that cannot be pulled whole.

    `mirrors` are attached copies of DVC remotes. Raises `RemoteError` if a place cannot be asked.
    """
    from dvc.repo import Repo

    missing = {}
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        place = Path(folder).resolve()
        try:
            make_workspace(root, place, pointers, mirrors)
            with Repo(str(place)) as repo:
                copies = [repo.cloud.get_remote(f"{COPY}{number}").odb for number, _ in enumerate(mirrors)]
                for out in repo.index.outs:
                    if lacking := _find_lacking(repo, out, copies):
                        path = Path(out.fs_path).relative_to(place).as_posix()
                        missing[path] = Missing(_show(lacking), _remedy(path, out.stage))
        except RunError:
            raise
        except Exception as error:  # each kind of remote has errors of its own
            answer = explain(error)
            advice = "" if answer.remedy == UNKNOWN else f"{answer.remedy}; or "
            raise RemoteError(
                redact(f"{', '.join(pointers)} cannot be looked up: {answer.what.rstrip('.')}."),
                remedy=f"{advice}run `dvc pull` of it in a fresh clone, and correct what DVC names: the remote, its "
                "credentials or the repository that it was imported from.",
            ) from error
    return missing


def _find_lacking(repo: Any, out: Any, copies: Sequence[Any], path: str = "") -> list[str]:  # noqa: ANN401  DVC's types
    """Return the paths of the files that neither the output's remote nor a copy has.

    The MD5 of the output, if its listing or its only file is missing. With `path`, only what is below it counts.
    """
    from dvc.exceptions import OutputNotFoundError
    from dvc_data.hashfile.tree import Tree

    oid, data = out.hash_info.value, repo.index.data["repo"]
    is_import = out.stage.is_repo_import
    if is_import or (remote := repo.cloud.get_remote(out.remote)).fs.version_aware or remote.worktree:
        if not data.storage_map.remote_exists(data[out.index_key[1]], refresh=True):
            return [oid]
        if not is_import:
            return []
        # so far only the `.dvc` file was looked for in the repository that it was imported from
        source = out.stage.deps[0]
        there = source.fs.repo
        path = there.fs.join(there.root_dir, source.def_path)
        try:
            outs = there.find_outs_by_path(path, strict=False)
        except OutputNotFoundError:
            return []  # Git has it
        return [name for each in outs for name in _find_lacking(there, each, copies, path)]
    odbs = [repo.cloud.get_remote_odb(out.remote, hash_name=out.hash_name), *copies]
    names = {oid: oid}
    if out.hash_info.isdir:
        listing: Any = None
        for odb in odbs:
            with contextlib.suppress(FileNotFoundError):
                listing = listing or Tree.load(odb, out.hash_info)
        if listing is None:
            return [oid]
        below = out.fs.relparts(path, out.fs_path) if path not in ("", out.fs_path) else ()
        names = {info.value: "/".join(key) for key, (_, info) in listing.filter(below).iteritems()}
    for odb in odbs:
        present = _present(odb, names)
        names = {oid: name for oid, name in names.items() if oid not in present}
    return sorted(names.values())


def _present(odb: Any, oids: Collection[str]) -> set[str]:  # noqa: ANN401  DVC's object database
    """Return which of the objects a DVC remote has."""
    if not oids:
        return set()
    if odb.fs.protocol not in ("local", "gdrive"):
        return set(odb.oids_exist(list(oids)))  # lists the remote if that takes fewer requests than one an object
    # DVC would read every file in a folder, and ask Drive for each one
    with contextlib.closing(open_object_store(odb)) as store:
        return set(store.look(oids))


def _show(lacking: Sequence[str]) -> str:
    named = ", ".join(map(visible, lacking[:SHOWN])) + " …" * (len(lacking) > SHOWN)
    if len(lacking) == 1:
        return f"{named} is not on the DVC remote"
    return f"{len(lacking)} files are not on the DVC remote: {named}"


def _remedy(path: str, stage: Any) -> str:  # noqa: ANN401  dvc.stage.Stage
    if stage.is_repo_import:
        source = without_user(str(stage.deps[0].def_repo["url"]))
        return f"it was imported: run `dvc push` in a clone of {source}, or `dvc update {path}.dvc`, and commit that"
    return f"run `dvc push {path}` in a clone that has it, and check the remote's address"
