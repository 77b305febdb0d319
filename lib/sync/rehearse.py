"""Try on both remotes what a publication will need, before anything costs time; leave nothing behind.

Guarantees: a run's ref is taken and released, and a branch with a commit of a run's own kind is created, moved and
deleted, because `git push --dry-run` runs no server-side hooks and does not check write permission. On the DVC remote
an object is declared, stored, verified by its identity and deleted. A rehearsal that dies leaves a run's ref, which is
recovered like any other, and a branch, which the next rehearsal deletes.
Cannot: promise that the same is still allowed hours later.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lib.errors import DvcPushError, GitPushError, RunError
from lib.remotes.credentials import Credentials
from lib.sync.checkpoints import md5_of
from lib.sync.lock import RunLock
from lib.sync.publication import Say
from lib.sync.record import RUNS, DeclaredCopy
from lib.sync.refs import RefUpdate
from lib.sync.remotes import Remotes, file_of, open_remotes

BRANCHES = "kaggle-train-rehearsal-"
"""Prefix of the throw-away branches: it begins like published ones, so that the host's rules for those apply."""


@dataclass(frozen=True)
class Rehearsed:
    """The result for each remote: a line to show, or the error in which a publication would end."""

    git: str | GitPushError
    dvc: str | RunError
    room: int | None
    """Bytes that can still be stored on the DVC remote; None if it does not report this."""
    missing: tuple[str, ...] = ()
    """The wanted objects that are not on the DVC remote."""


def rehearse(
    root: Path, credentials: Credentials | None = None, *, wanted: Sequence[str] = (), say: Say = print
) -> Rehearsed:
    """Run a publication without content, and check whether the objects `wanted` (hex MD5) are on the DVC remote.

    Raises `SyncError` if one of the remotes cannot be opened at all.
    """
    with open_remotes(root, credentials or Credentials()) as remotes, tempfile.TemporaryDirectory() as place:
        source = Path(place) / "object"
        source.write_bytes(secrets.token_bytes(32))
        lock = RunLock(remotes.refs, f"{BRANCHES}{secrets.token_hex(8)}", say=say)
        dvc: str | RunError | None = None
        try:
            lock.take()
            dvc = _publish_nothing(remotes, lock, source)
            git: str | GitPushError = f"{remotes.refs.url}: branches and {RUNS}* can be created, moved and deleted"
        except GitPushError as error:
            git = error
        finally:
            lock.release()
        dvc = dvc or _try_reading(remotes)
        if isinstance(dvc, RunError):
            return Rehearsed(git, dvc, None)
        there = remotes.store.look(wanted)
        return Rehearsed(git, dvc, remotes.store.room(), tuple(oid for oid in wanted if oid not in there))


def _publish_nothing(remotes: Remotes, lock: RunLock, source: Path) -> str | RunError:
    """Declare, store, verify and delete an object while a branch is created, moved and deleted.

    Returns the DVC remote's result; raises `GitPushError` for the Git remote's.
    """
    refs, store, record = remotes.refs, remotes.store, lock.record
    assert record is not None, "the run is held"
    branch, oid = f"refs/heads/{lock.name}", md5_of(source)
    first, second = _make_commits(remotes, source)
    dvc: str | RunError
    copies: tuple[DeclaredCopy, ...] = ()
    try:
        remotes.claim(record.repository)
        identity = store.new_identities(1)[0]
        copies = (DeclaredCopy(oid=oid, size=source.stat().st_size, identity=identity, store=store.address()),)
        dvc = ""
    except (RunError, OSError) as error:
        dvc = _as_error(remotes, error)
    try:
        lock.push(record.but(publishing=copies), RefUpdate(branch, None, first))
        if copies:
            probe = file_of(record, lock.name, 0, "probe")
            dvc = _try_object(remotes, copies[0], source, record.repository, probe)
        lock.push(record.but(undo=copies), RefUpdate(branch, first, second))
        if copies and _delete(remotes, copies[0]):
            copies = ()
        lock.push(record.but(undo=copies) if copies else None, RefUpdate(branch, second, None))
    except GitPushError:
        for commit in (first, second):
            with contextlib.suppress(GitPushError):  # the first error is the one to raise
                refs.push(RefUpdate(branch, commit, None))
        raise
    return dvc


def _try_object(remotes: Remotes, copy: DeclaredCopy, source: Path, repository: str, probe: str) -> str | RunError:
    """Store an object and ask for it; return the line to show, or what is wrong."""
    store, path = remotes.store, remotes.store.path_of(copy.oid)
    try:
        kept = store.limits(probe)
        store.create(path, source, copy.identity)
        if not kept and store.verify(path, copy.identity) is None:
            raise DvcPushError(
                f"{store.name}: an object that was just stored is not there.",
                remedy="check the remote's address, and that nothing else deletes its files.",
            )
        others = ", ".join(sorted(remotes.repositories() - {repository}))
    except (RunError, OSError) as error:
        return _as_error(remotes, error)
    shared = f"another repository publishes there too ({others})" if others else ""
    return "; ".join(filter(None, (f"{store.name}: files can be created and deleted", kept, shared)))


def _delete(remotes: Remotes, copy: DeclaredCopy) -> bool:
    """Delete the object; return whether it is certainly gone."""
    path = remotes.store.path_of(copy.oid)
    try:
        remotes.store.delete(path, copy.identity)
        return remotes.store.verify(path, copy.identity) is None
    except (RunError, OSError):
        return False


def _as_error(remotes: Remotes, error: BaseException) -> RunError:
    if isinstance(error, RunError):
        return error
    return DvcPushError(
        f"{remotes.store.name} is not writable ({type(error).__name__}: {error}).",
        remedy="make it writable, free some space on it, and run the same again.",
    )


def _try_reading(remotes: Remotes) -> str | RunError:
    """Check only that the DVC remote can be read: without a run's ref nothing may be written to it."""
    try:
        remotes.repositories()
    except (RunError, OSError) as error:
        return _as_error(remotes, error)
    return f"{remotes.store.name}: can be read; writing was not tried, since the Git remote rejects pushes"


def _make_commits(remotes: Remotes, source: Path) -> tuple[str, str]:
    """Make two commits as checkpoints are, each on top of the one before; delete branches of dead rehearsals."""
    refs = remotes.refs
    listed = refs.list_refs(f"refs/heads/{BRANCHES}*", f"{RUNS}{BRANCHES}*")
    for ref, commit in listed.items():
        name = ref.removeprefix("refs/heads/")
        if name != ref and f"{RUNS}{name}" not in listed:
            with contextlib.suppress(GitPushError):  # another rehearsal deletes it right now
                refs.push(RefUpdate(ref, commit, None))
    files, date = {"artifacts/rehearsal.bin": source}, datetime.now(UTC).isoformat()
    first = refs.build_commit(refs.head(), files, "Rehearsal of a publication [skip ci]\n", date)
    return first, refs.build_commit(refs.head(), files, "Rehearsal, moved [skip ci]\n", date, parent=first)
