"""Try on both remotes what a publication will need, before anything costs time; leave nothing behind.

Guarantees: a run's ref and a question to it are created and deleted, and a branch with a commit of a run's own kind is
created, moved and deleted, because `git push --dry-run` runs no server-side hooks and does not check write permission.
On the DVC remote an object is declared, stored, verified by its identity and deleted. A rehearsal that dies leaves a
run's ref, which is recovered like any other, and a branch, which the next rehearsal deletes.
Cannot: promise that the same is still allowed hours later.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lib.errors import DvcPushError, GitPushError, RunError
from lib.remotes.credentials import Credentials
from lib.sync.checkpoints import md5_of
from lib.sync.lock import RunLock
from lib.sync.publication import Say
from lib.sync.record import ASKS, RUNS, DeclaredCopy, RunRecord
from lib.sync.refs import ANY, RefUpdate
from lib.sync.remotes import Remotes, file_of, open_remotes
from lib.sync.stores.base import mismatch

BRANCHES = "kaggle-train-rehearsal-"
"""Prefix of the throw-away branches: it begins like published ones, so that the host's rules for those apply."""


@dataclass(frozen=True)
class Rehearsed:
    """The result for each remote: a line to show, or the error in which a publication would end."""

    git: str | GitPushError
    dvc: str | RunError
    room: int | None
    """Bytes that can still be stored on the DVC remote; None if it does not report this."""


def rehearse(root: Path, credentials: Credentials | None = None, *, say: Say = print) -> Rehearsed:
    """Run a publication without content, and ask how much room is left.

    Raises `SyncError` if one of the remotes cannot be opened at all.
    """
    with open_remotes(root, credentials or Credentials()) as remotes, tempfile.TemporaryDirectory() as place:
        source = Path(place) / "object"
        source.write_bytes(secrets.token_bytes(32))
        rehearsal = _Rehearsal(remotes, source, say)
        git = rehearsal.run()
        if rehearsal.error is None:
            rehearsal.attempt(rehearsal.look)
        return Rehearsed(git, rehearsal.error or rehearsal.line, rehearsal.room)


class _Rehearsal:
    """One call of `rehearse`: the steps of a publication and of its rollback, in four pushes."""

    def __init__(self, remotes: Remotes, source: Path, say: Say) -> None:
        self._remotes, self._refs, self._store, self._source = remotes, remotes.refs, remotes.store, source
        self._lock = RunLock(remotes.refs, f"{BRANCHES}{secrets.token_hex(8)}", say=say)
        self._branch = f"refs/heads/{self._lock.name}"
        self._copies: tuple[DeclaredCopy, ...] = ()
        """The copy that may exist."""
        self.line = f"{self._store.name}: can be read; writing was not tried, since the Git remote rejects pushes"
        self.error: RunError | None = None
        """The first error of the DVC remote."""
        self.room: int | None = None

    def run(self) -> str | GitPushError:
        """Take a run, publish an object and a branch, and roll both back; return the Git remote's result."""
        lock, branch = self._lock, self._branch
        try:
            lock.take()
            record = lock.held()
            self._delete_old_branches()
            first, second = self._make_commits()
            self.attempt(lambda: self._declare(record))
            question = RefUpdate(f"{ASKS}{lock.name}", ANY, self._refs.write_question())
            lock.push(record.but(publishing=self._copies), RefUpdate(branch, None, first), question)
            self.attempt(self._create)
            lock.push(record.but(undo=self._copies), RefUpdate(branch, first, second))
            self.attempt(self._delete)
            lock.push(self._left(record), RefUpdate(branch, second, None))
        except GitPushError as error:
            self.attempt(self._remotes.repositories)
            self._clean_up()
            return error
        finally:
            lock.release()
        return f"{self._refs.url}: branches, {RUNS}* and {ASKS}* can be created, moved and deleted"

    def attempt(self, step: Callable[[], object]) -> None:
        """Run a step on the DVC remote and keep its error: the Git remote is tried all the same."""
        try:
            step()
        except RunError as error:
            self.error = self.error or error
        except OSError as error:
            self.error = self.error or DvcPushError(
                f"{self._store.name} cannot be used ({type(error).__name__}: {error}).",
                remedy="let this account read, write and delete files there, free some space, and run the same again.",
            )

    # ── the DVC remote ─────────────────────────────────────────────────────────────────────────────────────────────

    def _declare(self, record: RunRecord) -> None:
        """Prepare a copy, unless nothing could delete it: `limits` has then tried a file with a name of its own."""
        store, limits = self._store, self._store.limits(file_of(record, self._lock.name, 0, "probe"))
        self._remotes.claim(record.repository)
        others = ", ".join(sorted(self._remotes.repositories() - {record.repository}))
        if not limits:
            oid, size, (identity,) = md5_of(self._source), self._source.stat().st_size, store.new_identities(1)
            self._copies = (DeclaredCopy(oid=oid, size=size, identity=identity, store=store.address()),)
        shared = f"another repository publishes there too ({others})" if others else ""
        self.line = "; ".join(filter(None, (f"{store.name}: files can be created and deleted", limits, shared)))

    def _create(self) -> None:
        for copy in self._copies:
            path = self._store.path_of(copy.oid)
            self._store.create(path, self._source, copy.identity)
            if fault := mismatch(copy.oid, copy.size, self._store.verify(path, copy.identity)):
                raise DvcPushError(
                    f"{self._store.name}: an object that was just stored {fault}.",
                    remedy="check the remote's address, and that nothing else changes its files.",
                )

    def _delete(self) -> None:
        for copy in self._copies:
            path = self._store.path_of(copy.oid)
            self._store.delete(path, copy.identity)
            if self._store.verify(path, copy.identity) is not None:
                raise DvcPushError(
                    f"{self._store.name}: an object was deleted and is still there.",
                    remedy="let this account delete files there: publishing rolls back what has failed.",
                )
        self._copies = ()

    def look(self) -> None:
        """Ask how much room is left."""
        self.room = self._store.room()

    # ── the Git remote ─────────────────────────────────────────────────────────────────────────────────────────────

    def _delete_old_branches(self) -> None:
        """Delete the branches of rehearsals that have died: their runs' refs are gone."""
        listed = self._refs.list_refs(f"refs/heads/{BRANCHES}*", f"{RUNS}{BRANCHES}*")
        for ref, commit in listed.items():
            name = ref.removeprefix("refs/heads/")
            if name != ref and f"{RUNS}{name}" not in listed:
                with contextlib.suppress(GitPushError):  # another rehearsal deletes it right now
                    self._refs.push(RefUpdate(ref, commit, None))

    def _make_commits(self) -> tuple[str, str]:
        """Make two commits as checkpoints are, each on top of the one before."""
        files, date = {"artifacts/rehearsal.bin": self._source}, datetime.now(UTC).isoformat()
        head = self._refs.head()
        first = self._refs.build_commit(head, files, "Rehearsal of a publication [skip ci]\n", date)
        return first, self._refs.build_commit(head, files, "Rehearsal, moved [skip ci]\n", date, parent=first)

    def _left(self, record: RunRecord) -> RunRecord | None:
        """Return the record to leave: it lists what could not be deleted, and is None without that."""
        return record.but(publishing=(), undo=self._copies) if self._copies else None

    def _clean_up(self) -> None:
        """Delete what there is after an error of the Git remote; what cannot be deleted stays in the run's ref."""
        if self._lock.record is not None:
            self.attempt(self._delete)
            with contextlib.suppress(GitPushError):  # the first error is the one shown
                self._lock.push(self._left(self._lock.record))
            with contextlib.suppress(GitPushError):
                self._refs.push(RefUpdate(self._branch, ANY, None))
