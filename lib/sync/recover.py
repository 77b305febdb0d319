"""Roll back publications that did not end, and delete what dead sessions left on the DVC remote.

Guarantees: a run is taken over only if its process in this clone has ended, or if it did not answer within its lease;
every run is tried, even if recovering another one fails; a call may be interrupted and repeated. Checkpoints stay, and
so do stops: what a person has stopped is not begun again, except by a session that `take`s the run.
Cannot: recover a run of another repository or of another version of this project; both are reported.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection
from pathlib import Path

from lib.errors import GitPushError, RunError, RunHeldError
from lib.remotes.credentials import Credentials
from lib.sync import lock as locks
from lib.sync.lock import RunLock, short
from lib.sync.publication import Say
from lib.sync.record import ASKS, Stop
from lib.sync.refs import ANY, EARLIER, RefUpdate, SeenRun, as_sync_errors
from lib.sync.rehearse import delete_rehearsals
from lib.sync.remotes import Remotes, open_remotes


def recover(
    root: Path, credentials: Credentials | None = None, *, run: str = "", patience: float | None = None,
    say: Say = print,
) -> int:  # fmt: skip
    """Roll back every publication whose session is dead, or that of one `run`; return the number of runs left.

    Asks every run whether it lives, and waits one lease for its answer, or at most `patience` seconds; with a patience
    of 0 nobody is asked, and only dead sessions of this clone are recovered. After trying all, raises the first error.
    """
    credentials = credentials or Credentials()
    state = "each publication that is not recovered yet has a ref refs/runs/* on the Git remote."
    with open_remotes(root, credentials) as remotes, as_sync_errors("recovering", credentials.redact, state):
        recovery = Recovery(remotes, say)
        limit, names = math.inf if patience is None else patience, [run] if run else None
        end, is_told = time.monotonic() + limit, patience == 0
        while (waiting := recovery.look(names, ask=patience != 0)) and time.monotonic() < end:
            if not is_told:
                is_told, longest = True, min(limit, max(recovery.left[name].lease for name in waiting))
                say(f"Waiting for at most {longest:.0f} s for an answer of {', '.join(sorted(waiting))} …")
            names = list(recovery.left)  # whoever begins later is alive
            time.sleep(min([5.0, *(run.lease / 20 for run in recovery.left.values())]))
        for ref in remotes.refs.list_refs(*(f"{place}*" for place in EARLIER)):
            say(f"{ref} was written by an earlier version of this project and is left alone; its `recover` ends it.")
        delete_rehearsals(remotes.refs)
        if recovery.identity is not None:
            remotes.sweep(short(recovery.identity), run)
        if recovery.error is not None:
            raise recovery.error
        return len(recovery.left)


def discard(root: Path, credentials: Credentials, lock: RunLock, say: Say = print) -> None:
    """Take the run unless it is held; delete its checkpoint and its ref, and publish nothing.

    The same push leaves a stop, so that nothing begins the run anew by itself. May be repeated after any failure.
    Raises `RunHeldError` or `TakenOverError` if another session holds it, and `SyncError` if a remote does not answer.
    """
    with open_remotes(root, credentials) as remotes, as_sync_errors("discarding", credentials.redact):
        record = lock.take()
        remotes.roll_back(lock, say)  # what a failed publication left
        stop = RefUpdate(lock.stop_ref, ANY, remotes.refs.write_stop(Stop(action="discard")))
        gone = [RefUpdate(ref, ANY, None) for ref in lock.reread(lock.checkpoint) if ref == lock.checkpoint]
        lock.push(lock.held() if lock.held().declared else None, stop, *gone)
        remotes.sweep(record.repository, lock.name)


class Recovery:
    """Asks runs whether they live, and recovers those that do not answer."""

    def __init__(self, remotes: Remotes, say: Say) -> None:
        self._remotes, self._say = remotes, say
        self._locks: dict[str, RunLock] = {}
        """{run: its lock}, which knows since when the run has been silent."""
        self._told: set[str] = set()
        """The runs that cannot be recovered here: nobody waits for them."""
        self.left: dict[str, SeenRun] = {}
        """The runs that are still there and may be dead, or that can never be recovered here."""
        self.error: Exception | None = None
        """The first error."""
        self.identity: str | None = None
        """The repository's identity."""

    def look(self, names: Collection[str] | None = None, *, ask: bool = True) -> list[str]:
        """Read all runs, or those of these names, and recover the dead ones; return those whose answer may come."""
        refs = self._remotes.refs
        runs = {name: run for name, run in refs.read_runs().items() if names is None or name in names}
        # after the runs: a question that is answered in between does not count, and the identity may be as new as a run
        asked = refs.list_refs(f"{ASKS}*", refs.identity_ref)
        self.identity = asked.pop(refs.identity_ref, None)
        self.left, waiting = {}, []
        for name, run in runs.items():
            full_name = run.record.name if run.record else name
            new = RunLock(refs, name, full_name=full_name, lease=run.lease, say=self._say)
            lock = self._locks.setdefault(name, new)
            if not self._recover(lock, run, is_asked=f"{ASKS}{name}" in asked):
                self.left[name] = run
                waiting += [name] * (name not in self._told and not lock.holder_lives)
        unasked = [f"{ASKS}{name}" for name in waiting if f"{ASKS}{name}" not in asked]
        if ask and unasked:
            locks.ask(refs, unasked)
        orphans = [ref for ref in asked if ask and names is None and ref.removeprefix(ASKS) not in runs]
        if orphans:
            with contextlib.suppress(GitPushError):  # its asker may have deleted it
                refs.push(*(RefUpdate(ref, asked[ref], None) for ref in orphans))
        return waiting

    def _recover(self, lock: RunLock, run: SeenRun, *, is_asked: bool) -> bool:
        """Recover a run whose session is dead; return False if it may be alive or cannot be recovered here."""
        try:
            if not lock.seize(run, self.identity, is_asked=is_asked):
                return False
            self._remotes.roll_back(lock, self._say, last=True)
            if lock.record is not None:  # it lists copies that only another clone can delete
                self._told.add(run.name)
                return False
        except RunHeldError as error:
            if run.name not in self._told:
                self._told.add(run.name)
                self._say(f"{error.what} It is left alone. {error.remedy}")
            return False
        except (RunError, OSError) as error:
            self.error = self.error or error
            self._told.add(run.name)
            # its ref may be ours now, of a session that has ended: the next look takes it over at once
            del self._locks[run.name]
            return False
        finally:
            lock.release()
        self._say(f"Recovered {lock.ref}: its session is dead, and what it had not published is rolled back.")
        return True
