"""Own a ref on the Git remote: a thread renews it while this process lives.

Guarantees: `confirm` raises before a process that waits for the whole lease may take the ref over; `end` replaces
only our own commit. Cannot: protect a process that sleeps past its lease between a check and the request after it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Self

from lib.errors import GitPushError
from lib.sync import intent as journal
from lib.sync.intent import Intent, Run
from lib.sync.refs import Refs, RefUpdate

# Ids of the records that a thread of this process owns right now.
ALIVE: set[str] = set()


class Lease:
    """A ref that this process owns, rewritten every fifth of its lease; given up when renewing fails for too long.

    An intent is rewritten every two minutes. Used as a context manager: entering it writes the record over `old` (None
    creates the ref).
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
        self._pushing = threading.Lock()

    def __enter__(self) -> Self:
        ALIVE.add(self._record.id)
        try:
            self._renewed = time.monotonic()
            self._push(self._old, self._refs.write_intent(self._record))
        except BaseException:
            ALIVE.discard(self._record.id)
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        ALIVE.discard(self._record.id)

    def join(self) -> None:
        """Stop renewing, so that from now on only the caller moves the ref."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def end(self, *updates: RefUpdate, after: Intent | None = None) -> None:
        """Push these updates and the end of the lease atomically: the ref is deleted, or rewritten as `after`."""
        self.join()  # before the commit is read: a renewal in progress may still change it
        self.confirm()
        last = self._refs.write_intent(after) if after else None
        self._refs.push(*updates, RefUpdate(self.ref, self._commit_on_remote(), last))

    def confirm(self) -> None:
        """Raise `GitPushError` unless the ref is certainly ours.

        That is certain as long as the last renewal began less than the lease minus one renewal period ago.
        """
        limit = self._length - self._renewal
        if time.monotonic() - self._renewed < limit:
            return
        raise GitPushError(
            f"{self.ref} could not be renewed on {self._refs.url} for {limit:.0f} s.",
            state="its lease is about to expire; this publication uploads and deletes nothing more.",
            remedy="check the network and run sync_outputs() again.",
        )

    def reread(self) -> None:
        """Read the ref from the remote; raise `GitPushError` unless it still is the commit that we wrote."""
        self.confirm()
        with self._pushing:
            if self._refs.list_refs(self.ref).get(self.ref) in (self.commit, self._tried or self.commit):
                return
        raise GitPushError(
            f"{self.ref} was taken over by another process.",
            state="this process deletes nothing more.",
            remedy="let the other process finish, or run `python -m lib recover`.",
        )

    @contextlib.contextmanager
    def renewal(self, refs: Refs) -> Iterator[RefUpdate]:
        """Yield the update that renews the ref within a push made from `refs`; no other renewal runs meanwhile."""
        with self._pushing:
            self.confirm()
            began, old = time.monotonic(), self._commit_on_remote()
            self._record = self._record.renewed()
            self._tried = refs.write_intent(self._record)
            yield RefUpdate(self.ref, old, self._tried)
            self.commit, self._tried, self._renewed = self._tried, "", began

    def _renew(self) -> None:
        while not self._stop.wait(self._renewal):
            began = time.monotonic()
            # A failed renewal is retried after one renewal period; `confirm` raises when it is too late.
            with contextlib.suppress(Exception), self._pushing:
                self._record = self._record.renewed()
                self._push(self._commit_on_remote(), self._refs.write_intent(self._record))
                self._renewed = began

    def _commit_on_remote(self) -> str:
        """Return our newest commit on the remote: also the last one tried, if only the answer to its push was lost."""
        if self._tried and self._refs.list_refs(self.ref).get(self.ref) == self._tried:
            self.commit = self._tried
        return self.commit

    def _push(self, old: str | None, new: str) -> None:
        """Move the ref; a push whose answer was lost counts if the remote shows the new commit."""
        self._tried = new
        try:
            self._refs.push(RefUpdate(self.ref, old, new))
        except GitPushError:
            if self._refs.list_refs(self.ref).get(self.ref) != new:
                raise
        self.commit, self._tried = new, ""
