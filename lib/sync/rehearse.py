"""Try on both remotes what a publication will need, before anything costs time; leave nothing behind.

Guarantees: what a run does to its refs is done to refs of the same kinds, on the run's own repository: a run's ref is
created, forced and deleted, a question is asked, a checkpoint's branch is created, moved and deleted, and a run's
branch is created. `git push --dry-run` would run no server-side hooks and not check write permission. The commits are
unsigned and named like a run's, and hold files of the names that a run publishes, one of them of the largest size. On
the DVC remote an object is declared, stored, verified by its identity and deleted. A rehearsal that dies leaves a run's
ref, which is recovered like any other, and branches, which `recover` or the next rehearsal deletes.
Cannot: promise that the same is still allowed hours later, or try a limit for all files of a push together.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from lib.errors import CommandError, DvcPushError, GitPushError, RunError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync.lock import CHECKPOINTS, RunLock
from lib.sync.publication import Say
from lib.sync.record import ASKS, RUNS, DeclaredCopy, RunRecord
from lib.sync.refs import ANY, Refs, RefUpdate, as_sync_errors
from lib.sync.remotes import Remotes, file_of, open_remotes
from lib.sync.stores.base import md5_of, mismatch

T = TypeVar("T")
BRANCHES = "kaggle-train-rehearsal-"
"""Prefix of the throw-away branches: it begins like published ones, so that the host's rules for those apply."""
LARGEST = 2 * 2**20
"""Bytes of the largest file that a publication puts into Git: larger ones must be objects."""


@dataclass(frozen=True)
class Rehearsed:
    """The result for each remote: a line to show, or the error in which a publication would end."""

    git: str | SyncError
    dvc: str | RunError
    room: int | None
    """Bytes that can still be stored on the DVC remote; None if it does not report this."""


def rehearse(
    root: Path,
    credentials: Credentials | None = None,
    *,
    names: Sequence[str] = ("artifacts/rehearsal.bin",),
    title: str = "Rehearsal of a publication",
    say: Say = print,
) -> Rehearsed:
    """Do what a run will do, without its content, take it back, and ask how much room is left.

    `names` are paths of files as a run commits them, the first one in the largest size, and `title` the first line of
    its messages. Raises `SyncError` if one of the remotes cannot be opened at all.
    """
    with open_remotes(root, credentials or Credentials()) as remotes, tempfile.TemporaryDirectory() as place:
        rehearsal = _Rehearsal(remotes, Path(place), say)
        git = rehearsal.run(names, title)
        room = None if rehearsal.error else rehearsal.attempt(remotes.store.room)
        return Rehearsed(git, rehearsal.error or rehearsal.line, room)


def delete_rehearsals(refs: Refs, own: str = "") -> None:
    """Delete the branches of the rehearsal `own`, and of those that have ended: their runs' refs are gone."""
    places = ("refs/heads/", CHECKPOINTS)
    listed = refs.list_refs(*(f"{place}{BRANCHES}*" for place in (*places, RUNS)))
    for ref, commit in listed.items():
        name = next((ref.removeprefix(place) for place in places if ref.startswith(f"{place}{BRANCHES}")), "")
        if name and (name == own or f"{RUNS}{name}" not in listed):
            with contextlib.suppress(GitPushError):  # another rehearsal deletes it right now
                refs.push(RefUpdate(ref, commit, None))


class _Rehearsal:
    """One call of `rehearse`: the steps of a publication and of its rollback, in four pushes."""

    def __init__(self, remotes: Remotes, place: Path, say: Say) -> None:
        self._remotes, self._refs, self._store, self._place = remotes, remotes.refs, remotes.store, place
        self._lock = RunLock(remotes.refs, f"{BRANCHES}{secrets.token_hex(8)}", say=say)
        self._copies: tuple[DeclaredCopy, ...] = ()
        """The copy that may exist."""
        self.line = f"{self._store.name}: can be read; writing was not tried, since the Git remote rejects pushes"
        self.error: RunError | None = None
        """The first error of the DVC remote."""

    def run(self, names: Sequence[str], title: str) -> str | SyncError:
        """Take a run, publish an object and branches, and roll all back; return the Git remote's result."""
        lock, branch = self._lock, f"refs/heads/{self._lock.name}"
        try:
            record = lock.take()
            with as_sync_errors("preparing a publication"):
                delete_rehearsals(self._refs)
                first, second = self._make_commits(names, title)
                source = self._place / "object"
                source.write_bytes(secrets.token_bytes(32))
                declared = self.attempt(lambda: self._declare(record, source)) or ()
                question = RefUpdate(f"{ASKS}{lock.name}", ANY, self._refs.write_question())
                lock.push(record.but(publishing=declared), RefUpdate(lock.checkpoint, None, first), question)
                self.attempt(lambda: self._create(declared, source))
                self.attempt(self._delete)
                moved, published = RefUpdate(lock.checkpoint, first, second), RefUpdate(branch, None, second)
                lock.push(record.but(undo=self._copies), moved, published)
                self._push_end(record, *(RefUpdate(ref, second, None) for ref in (lock.checkpoint, branch)))
        except SyncError as error:
            self.attempt(self._remotes.repositories)
            if lock.record is not None:
                for act in (partial(self._push_end, lock.record), partial(delete_rehearsals, self._refs, lock.name)):
                    with contextlib.suppress(SyncError, CommandError, OSError):  # the first error is the one shown
                        act()
            return error
        finally:
            lock.release()
        return (
            f"{self._refs.url}: branches, {RUNS}* and {ASKS}* can be created, moved and deleted, and files of up to "
            f"{LARGEST // 2**20} MiB committed; whether all of a run's files fit its quota is the host's to say"
        )

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Run a step on the DVC remote and keep its error: the Git remote is tried all the same."""
        try:
            return step()
        except RunError as error:
            self.error = self.error or error
        except OSError as error:
            self.error = self.error or DvcPushError(
                f"{self._store.name} cannot be used ({type(error).__name__}: {error}).",
                remedy="let this account read, write and delete files there, free some space, and run the same again.",
            )
        return None

    # ── the DVC remote ─────────────────────────────────────────────────────────────────────────────────────────────

    def _declare(self, record: RunRecord, source: Path) -> tuple[DeclaredCopy, ...]:
        """Return a copy to try, unless nothing could delete it: `limits` has then tried a file of its own."""
        store, limits = self._store, self._store.limits(file_of(record, self._lock.name, 0, "probe"))
        self._remotes.claim(record.repository)
        others = ", ".join(sorted(self._remotes.repositories() - {record.repository}))
        shared = f"another repository publishes there too ({others})" if others else ""
        self.line = "; ".join(filter(None, (f"{store.name}: files can be created and deleted", limits, shared)))
        if limits:
            return ()
        oid, size, (identity,) = md5_of(source), source.stat().st_size, store.new_identities(1)
        return (DeclaredCopy(oid=oid, size=size, identity=identity, store=store.address()),)

    def _create(self, declared: tuple[DeclaredCopy, ...], source: Path) -> None:
        self._copies = declared
        for copy in declared:
            path = self._store.path_of(copy.oid)
            self._store.create(path, source, copy.identity)
            if fault := mismatch(copy.oid, copy.size, self._store.verify(path, copy.identity)):
                raise DvcPushError(
                    f"{self._store.name}: an object that was just stored {fault}.",
                    remedy="check the remote's address, and that nothing else changes its files.",
                )

    def _delete(self) -> None:
        for copy in self._copies:
            self._store.delete_provably(self._store.path_of(copy.oid), copy.identity)
        self._copies = ()

    # ── the Git remote ─────────────────────────────────────────────────────────────────────────────────────────────

    def _make_commits(self, names: Sequence[str], title: str) -> tuple[str, str]:
        """Make two commits as checkpoints are, each on top of the one before, with these files."""
        files = {name: self._place / str(number) for number, name in enumerate(names)}
        for file in files.values():  # no text that could be read as a `.dvc` file or a record
            file.write_text(f"made by a rehearsal: {secrets.token_hex(8)}\n", encoding="utf-8")
        files[names[0]].write_bytes(secrets.token_bytes(LARGEST))
        date, head = datetime.now(UTC).isoformat(), self._refs.head()
        first = self._refs.build_commit(head, files, f"{title} [skip ci]\n", date)
        return first, self._refs.build_commit(head, files, f"{title}, moved [skip ci]\n", date, parent=first)

    def _push_end(self, record: RunRecord, *gone: RefUpdate) -> None:
        """Delete these branches, and the run's ref unless it lists a copy that could not be deleted."""
        self._lock.push(record.but(publishing=(), undo=self._copies) if self._copies else None, *gone)
