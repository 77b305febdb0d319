"""A ref that this process answers for, renewed while the process lives."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Self

from lib.errors import GitPushError
from lib.sync import intent as journal
from lib.sync.intent import Intent, Run
from lib.sync.refs import Move, Refs

# The intents that a thread of this process answers for right now.
ALIVE: set[str] = set()


class Lease:
    """A ref that this process answers for: rewritten every two minutes, given up when that fails for too long.

    Used as a context: enters by writing the record over `old` (None creates the ref).
    """

    def __init__(self, refs: Refs, ref: str, record: Intent, old: str | None) -> None:
        self._refs, self.ref, self._record, self._old = refs, ref, record, old
        self._length, self._renewal = journal.LEASE, journal.RENEWAL
        if isinstance(record, Run):
            self._length, self._renewal = record.lease, record.lease / 5
        self.commit = self._tried = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {ref}", daemon=True)
        self._renewed = 0.0
        self._moving = threading.Lock()

    def __enter__(self) -> Self:
        ALIVE.add(self._record.id)
        try:
            self._renewed = time.monotonic()
            self._move(self._old, self._refs.write_intent(self._record))
        except BaseException:
            ALIVE.discard(self._record.id)
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        ALIVE.discard(self._record.id)

    def join(self) -> None:
        """Stop renewing, so that nothing moves the ref but the caller."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def end(self, *moves: Move, after: Intent | None = None) -> None:
        """Make the push that ends the lease: these moves, and the ref goes with them or tells what comes `after`."""
        self.join()  # before its commit is read: a renewal may be on its way
        self.confirm()
        rest = self._refs.write_intent(after) if after else None
        self._refs.push(*moves, Move(self.ref, self._commit_on_remote(), rest))

    def confirm(self) -> None:
        """Raise `GitPushError` unless the ref is ours for certain: the last renewal is younger than the lease."""
        patience = self._length - self._renewal
        if time.monotonic() - self._renewed < patience:
            return
        raise GitPushError(
            f"{self.ref} could not be renewed on {self._refs.url} for {patience:.0f} s.",
            state="others may take this publication for dead; nothing more is uploaded or deleted by it.",
            remedy="check the network and run sync_outputs() again.",
        )

    def reread(self) -> None:
        """Raise `GitPushError` unless the ref stands on the remote as we wrote it, now."""
        self.confirm()
        with self._moving:
            if self._refs.list_refs(self.ref).get(self.ref) in (self.commit, self._tried or self.commit):
                return
        raise GitPushError(
            f"{self.ref} was taken over by somebody else.",
            state="nothing more is deleted by this process.",
            remedy="let the other finish, or run `python -m lib recover`.",
        )

    @contextlib.contextmanager
    def moved_along(self, refs: Refs) -> Iterator[Move]:
        """Give the move that renews the ref in a push made from `refs`; nothing else moves it meanwhile."""
        with self._moving:
            self.confirm()
            began, old = time.monotonic(), self._commit_on_remote()
            self._record = self._record.renewed()
            self._tried = refs.write_intent(self._record)
            yield Move(self.ref, old, self._tried)
            self.commit, self._tried, self._renewed = self._tried, "", began

    def _renew(self) -> None:
        while not self._stop.wait(self._renewal):
            began = time.monotonic()
            # a failed renewal is tried again in two minutes; `confirm` says when it is too late
            with contextlib.suppress(Exception), self._moving:
                self._record = self._record.renewed()
                self._move(self._commit_on_remote(), self._refs.write_intent(self._record))
                self._renewed = began

    def _commit_on_remote(self) -> str:
        """Give our newest commit there: the one tried last counts if its push happened and nobody could say so."""
        if self._tried and self._refs.list_refs(self.ref).get(self.ref) == self._tried:
            self.commit = self._tried
        return self.commit

    def _move(self, old: str | None, new: str) -> None:
        """Move the ref; a push whose answer was lost counts when the remote says that it happened."""
        self._tried = new
        try:
            self._refs.push(Move(self.ref, old, new))
        except GitPushError:
            if self._refs.list_refs(self.ref).get(self.ref) != new:
                raise
        self.commit, self._tried = new, ""
