"""Hold a run: its ref on the Git remote is the lock and the journal of the session that trains it.

Guarantees: every push of a run is a compare-and-swap of its ref, so that a session which was taken over publishes
nothing more. The holder pushes only to answer a question, which another session asks by creating a second ref.
Cannot: know at once whether a silent holder on another machine is dead; an asker waits one lease by its own clock.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import math
import os
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from lib.errors import RunHeldError, TakenOverError
from lib.sync.publication import Say
from lib.sync.record import ASKS, LEASE, RUNS, STOPS, RunRecord, Stop, read_stop, short_name
from lib.sync.refs import ANY, RefMovedError, Refs, RefUpdate, SeenRun, as_sync_errors

POLL = 60.0  # seconds between two looks for a question; a tenth of a shorter lease
CHECKPOINTS = "refs/heads/kaggle-checkpoint-"


class RunLock:
    """The lock of the run `name`, for a session in the clone of `refs`; `lease` is in seconds.

    `full_name` tells apart runs whose names are shortened to the same ref. The session's identity belongs to one taking
    of the ref: a lock that was released can be taken again, as another session.
    """

    def __init__(self, refs: Refs, name: str, *, full_name: str = "", lease: float = LEASE, say: Say = print) -> None:
        self.refs, self.name, self._full_name = refs, short_name(name), full_name or name
        self._lease, self._pause, self._say = lease, min(5.0, lease / 20), say
        self.ref, self._ask = f"{RUNS}{self.name}", f"{ASKS}{self.name}"
        self.stop_ref = f"{STOPS}{self.name}"
        """The ref by which a person stops the run; it stays until the run is published, or trained again."""
        self.stop: Stop | None = None
        """What a person wants of this session; None: to go on."""
        self._stop_commit: str | None = None
        self.checkpoint = f"{CHECKPOINTS}{self.name}"
        """The ref of the run's checkpoint branch, which only the holder moves."""
        self.record: RunRecord | None = None
        """What the run's ref holds; None: it is not ours."""
        self._commit: str | None = None
        self._tried: list[str] = []
        """Every commit that this session may have moved the run's ref to."""
        self._taken_over = False
        self._pushing = threading.RLock()  # the poller, the checkpoints and the publication move the ref
        self._ended = threading.Event()
        self._folder = refs.private / "runs"
        self._file: IO[str] | None = None
        self._seen: str | None = None
        """The commit at which the run's ref of another session was seen first."""
        self._asked = math.inf
        """The monotonic time at which it was first seen together with a question."""
        self.holder_lives = False
        """Whether the ref of another session has moved since it was seen first."""

    # ── taking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def try_take(self) -> bool:
        """Take the run if that is possible at once, else ask its holder; return whether it is held.

        Raises `RunHeldError` for a ref that can never be taken over, `TakenOverError` if this session was taken over,
        and `SyncError`.
        """
        self.confirm()
        if self.record is not None:
            return True
        with as_sync_errors(f"taking the run {self._full_name}"):
            run = self.refs.read_runs(self.name).get(self.name)
            # read after the run's ref: an answer deletes the question, and moves the ref from where it was seen; the
            # push that has created the ref may have created the identity, too
            seen = self.refs.list_refs(self._ask, self.refs.identity_ref)
            identity, is_asked = seen.get(self.refs.identity_ref), self._ask in seen
            older = RefUpdate(self.stop_ref, ANY, None)  # a stop counts for the session that it finds
            if run is None:
                # of the first two sessions of a repository, one creates the identity, and the other must try again
                return self._take(None, identity, older) or (identity is None and self.try_take())
            if self.seize(run, identity, older, is_asked=is_asked):
                self._say(f"{self.ref}: its session is dead, and this one takes over.")
            elif not self.holder_lives and not is_asked:
                ask(self.refs, [self._ask])
                self._asked = time.monotonic()  # from here on the ref as seen and the question are there together
            return self.record is not None

    def take(self) -> RunRecord:
        """Take the run, after waiting one lease since the first question for an answer, and return its record.

        Raises `RunHeldError` if the holder answers, and `TakenOverError` if this session was taken over.
        """
        reported = False
        while not self.try_take():
            if self.holder_lives:
                self._seen, self._asked, self.holder_lives = None, math.inf, False  # it is asked again the next time
                raise RunHeldError(
                    f"another session is training {self._full_name} and is alive.",
                    state="nothing was trained here; the other session continues.",
                    remedy="wait for it to end, or stop it and run this again; an experiment with another name may be "
                    "trained at the same time.",
                )
            if not reported:
                reported = True
                self._say(f"Another session holds {self.name}; asking whether it lives, for at most its lease …")
            time.sleep(self._pause)
        return self.held()

    def seize(self, run: SeenRun, identity: str | None, *updates: RefUpdate, is_asked: bool) -> bool:
        """Take over a run whose session is dead, together with the other updates; return whether done.

        It is dead if its process in this clone has ended, or if its ref has not moved for one lease since it was seen
        first together with a question (`is_asked`). Raises `RunHeldError` for a ref that can never be taken over.
        """
        self._check_is_ours(run, identity)
        if self._is_dead_here(run):
            return self._take(run, identity, *updates)
        self.holder_lives = self._seen not in (None, run.commit)
        if self.holder_lives:
            return False
        # a question that was answered does not count for the next one
        self._seen, self._asked = run.commit, min(self._asked, time.monotonic()) if is_asked else math.inf
        return time.monotonic() - self._asked >= run.lease and self._take(run, identity, *updates)

    def _check_is_ours(self, run: SeenRun, identity: str | None) -> None:
        """Raise `RunHeldError` for a ref that this session can never take over."""
        if run.record is None:
            what = "was written by another version of this project"
        elif identity is None or run.record.repository != short(identity):
            what = "belongs to another repository, and was copied here by `git push --mirror`"
        elif run.record.name != self._full_name:
            what = f"is held by {run.record.name}, whose name is shortened to the same ref"
        else:
            return
        raise RunHeldError(
            f"{self.ref} {what}.",
            state="nothing was changed.",
            remedy="wait for that session to end, or use another name. If no session uses the ref any more, delete it: "
            f"`git push origin :{self.ref}`.",
        )

    def _take(self, old: SeenRun | None, identity: str | None, *others: RefUpdate) -> bool:
        """Write our record over `old`, or create the ref; return False if another session was faster."""
        updates = [RefUpdate(self._ask, ANY, None), *others]
        if identity is None:
            identity = self.refs.write_file("identity", secrets.token_hex(20), "Identity of this repository")
            updates.append(RefUpdate(self.refs.identity_ref, None, identity))
        record = RunRecord(
            name=self._full_name,
            repository=short(identity),
            session=secrets.token_hex(8),
            lease=self._lease,
            undo=old.record.declared if old and old.record else (),
        )
        if self._lock_file() and self._file is not None:  # else a session of this clone hangs, or has just begun
            self._file.write(self._mark(record.session))
            self._file.flush()
        self._commit, self._tried = old.commit if old else None, []
        try:
            self.push(record, *updates)
        except (TakenOverError, RefMovedError):
            self._taken_over = False
            return False
        finally:
            if self.record is None:
                self._unlock_file()
        self._seen, self._asked, self._ended = None, math.inf, threading.Event()
        self.stop = self._stop_commit = None
        threading.Thread(target=self._answer, args=(self._ended,), name=f"lock of {self.name}", daemon=True).start()
        atexit.register(self.release)
        return True

    # ── the lock file: a dead session of the same clone is recognised at once ──────────────────────────────────────

    def _lock_file(self) -> bool:
        """Lock this clone's file of the run, which the system unlocks when this process dies."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / self.name).open("a+", encoding="utf-8")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._unlock_file()
                return False
        return True

    def _unlock_file(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # closing is not enough if a worker process has inherited the file
            self._file.close()
            self._file = None

    def _mark(self, session: str) -> str:
        """Return the line of a session in the lock file; in a copy of the clone it counts for nothing."""
        assert self._file is not None
        return f"{session} {os.fstat(self._file.fileno()).st_ino}\n"

    def _is_dead_here(self, run: SeenRun) -> bool:
        """Return whether the holder was a session of this clone whose process has ended."""
        if not (self._folder / self.name).exists() or not self._lock_file():
            return False
        assert self._file is not None
        assert run.record is not None
        self._file.seek(0)
        is_dead = self._mark(run.record.session) in self._file.read()
        if not is_dead:
            self._unlock_file()
        return is_dead

    # ── holding ────────────────────────────────────────────────────────────────────────────────────────────────────

    def confirm(self) -> Stop | None:
        """Return the stop that a person wants, if any. Raises `TakenOverError` if the run was taken over."""
        if self._taken_over:
            raise TakenOverError(
                f"another session has taken over {self._full_name}, since this one did not answer within its lease.",
                state="this session changes nothing more on the remotes; its files stay on this machine.",
                remedy="let the other session finish.",
            )
        return self.stop

    def held(self) -> RunRecord:
        """Return what the run's ref holds, which must have been taken. Raises `TakenOverError` if it is not ours."""
        record = self.record
        self.confirm()
        assert record is not None, "the run is held"
        return record

    def reread(self, *others: str) -> dict[str, str]:
        """Return {ref: commit} of the run's ref and of others; raise `TakenOverError` unless the run is ours."""
        with self._pushing:
            seen = self.refs.list_refs(self.ref, *others)
            if seen.get(self.ref) not in self._tried:
                self._lose()
            self.confirm()
            self._commit = seen[self.ref]
            return seen

    def push(self, record: RunRecord | None, *updates: RefUpdate) -> None:
        """Move the run's ref to `record`, or delete it, together with the other updates; all or nothing.

        What a failed push did is read from the remote, never from Git's message: its client may have sent the push
        twice, and reports a lost race for one that has happened. Raises `TakenOverError` if the ref is another
        session's, `RefMovedError` if it is ours and another ref has moved, and `GitPushError` if the host refuses the
        push or does not answer: then it may still happen, until the run's ref is moved by another push.
        """
        with self._pushing:
            self.confirm()
            gone = [] if record else [RefUpdate(self._ask, ANY, None)]
            new = self.refs.write_record(record) if record else None
            self._tried += [new] if new else []  # before the push: it may happen although its answer is lost
            self.refs.push_patiently(
                lambda: (RefUpdate(self.ref, self._commit, new), *updates, *gone),
                lambda: self._has_happened(new, updates),
            )
            self._commit, self.record = new, record
            if record is None:
                if self._file is not None:  # its lines name sessions that no ref names any more
                    with contextlib.suppress(OSError):
                        Path(self._file.name).unlink()
                self._end()

    def _has_happened(self, new: str | None, updates: tuple[RefUpdate, ...]) -> bool:
        """Return whether a failed push of the run's ref to `new` has happened; False: it can be repeated."""
        commit = self.refs.list_refs(self.ref).get(self.ref)
        if commit == new and new is not None:
            return True
        found = self.refs.list_refs(*(update.ref for update in updates)) if updates else {}
        created = [update for update in updates if update.new]
        # it was deleted by this push if what that creates is there, or else, if all that it deletes is gone
        is_there = all(found.get(update.ref) == update.new for update in created or updates)
        if commit is None and (created or new is None) and is_there:
            return True
        if commit != self._commit and commit not in self._tried:
            self._lose()
            self.confirm()
        self._commit = commit  # an earlier push, whose answer was lost, may have happened meanwhile
        for update in updates:
            if update.old != ANY and found.get(update.ref) != update.old:
                raise RefMovedError(update.ref)
        return False

    def _answer(self, ended: threading.Event) -> None:
        """Look for a question and a stop until the lock ends; answer the question by moving the run's ref."""
        while not ended.wait(min(POLL, self._lease / 10)):
            with contextlib.suppress(Exception), self._pushing:  # a failed look is repeated after the pause
                if self.record is None:
                    continue
                seen = self.reread(self._ask, self.stop_ref)
                if self._ask in seen:
                    self.push(self.record, RefUpdate(self._ask, ANY, None))
                if (commit := seen.get(self.stop_ref)) and commit != self._stop_commit:
                    texts = self.refs.read_files(self.stop_ref, "stop.json", commit=commit)
                    self.stop, self._stop_commit = read_stop(texts.get("stop.json", "")), commit
                    then = {"publish": "publishes what it has", "discard": "publishes nothing"}[self.stop.action]
                    self._say(f"This run was asked to stop: it ends after the epoch under way, and {then}.")

    def _lose(self) -> None:
        if self.record is not None:
            self._say(f"Warning: another session has taken over {self._full_name}; this one stops.")
        self._taken_over, self.record = True, None
        self._end()

    def release(self) -> None:
        """Release the run, unless its ref lists copies that must still be deleted; on failure others take it over."""
        with contextlib.suppress(Exception), self._pushing:
            if self.record is not None and not self.record.declared:
                self.push(None)
        self._end()

    def _end(self) -> None:
        self.record = None
        self._ended.set()
        atexit.unregister(self.release)
        self._unlock_file()


def ask(refs: Refs, questions: Iterable[str]) -> None:
    """Create these refs, which ask runs whether they live, in one push. Raises `GitPushError` if the host refuses."""
    wanted, question = set(questions), refs.write_question()
    refs.push_patiently(
        lambda: (RefUpdate(ref, ANY, question) for ref in sorted(wanted)),
        lambda: wanted <= refs.list_refs(*wanted).keys(),  # another session asks at the same moment
    )


def short(identity: str) -> str:
    """Return a repository's identity as it stands in records and in the names of files."""
    return identity[:16]
