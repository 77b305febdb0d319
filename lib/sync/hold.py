"""Hold a run: one session trains an experiment; other sessions stop, or take over from a dead one.

Guarantees: the Git remote holds `refs/runs/<name>` from the run's start to its end, rewritten every fifth of its lease.
Each commit push of the run moves this ref too: a session whose lease expired and was taken over is fenced, and its next
push is rejected. Cannot: see at once whether a holder is alive; only its moving ref shows that, timed by the
observer's own clock.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.errors import GitPushError, RunHeldError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import Owner, Run
from lib.sync.lease import Lease
from lib.sync.publication import Say
from lib.sync.refs import Refs, RefUpdate, RefusedByHostError

RUN_PLACES = ("refs/runs/", "refs/heads/kaggle-runs/")
"""Prefixes of the run refs; the second is for hosts that accept only branches and tags. Readers always read both."""


class RunLock:
    """The hold on the run `name` for the session in the clone at `root`; `lease` is in seconds.

    `noted` is earlier output of `git ls-remote` for runs and its time (monotonic), from before the clone existed: a
    session whose ref has not moved since then has been silent since then.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        credentials: Credentials,
        *,
        lease: float = journal.LEASE,
        noted: tuple[str, float] = ("", 0.0),
        say: Say = print,
    ) -> None:
        self.name, self._length, self._say = name, lease, say
        self._refs = Refs(root, credentials)
        self._me = Owner(journal.clone_name(self._refs.private / "clone"), journal.process_name(os.getpid()))
        self._lease: Lease | None = None
        refs = [line.split("\t") for line in noted[0].splitlines()]
        mine = [(commit, noted[1]) for commit, ref in refs if ref in [f"{place}{name}" for place in RUN_PLACES]]
        self._seen: tuple[str, float] | None = mine[0] if mine else None
        """Another session's commit, and the monotonic time at which it was first seen."""
        self._holder_lives = False
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch_holder, name=f"watching {name}", daemon=True)

    def watch(self) -> bool:
        """Take the run if it is free or its session is dead, else watch it until `take`; return whether it is held."""
        held = self._try()
        if not held:
            self._watcher.start()
        return held

    def take(self) -> None:
        """Take the run, after waiting for an unrenewed lease to expire. Raises `RunHeldError` if it is renewed."""
        self._stop_watching()
        self._holder_lives, reported = False, False
        while not self._try():
            if self._holder_lives:
                raise RunHeldError(
                    f"another session is training {self.name} and is alive.",
                    state="nothing was trained here; the other session continues.",
                    remedy="wait for it to end, or stop it and run this again; an experiment with another name may be "
                    "trained at the same time.",
                )
            if not reported:
                reported = True
                self._say(f"Another session holds {self.name}; waiting for it to renew, at most for its lease …")
            time.sleep(self._pause)

    def _stop_watching(self) -> None:
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()

    @property
    def _pause(self) -> float:
        return min(5.0, self._length / 20)

    def _watch_holder(self) -> None:
        while not self._stop.wait(self._pause):
            with contextlib.suppress(Exception):  # a failed read is repeated after the pause
                for ref, commit in self._run_refs().items():
                    self._lease_left(ref, commit)

    def _run_refs(self) -> dict[str, str]:
        return self._refs.list_refs(*(f"{place}{self.name}" for place in RUN_PLACES))

    def _try(self) -> bool:
        """Take the run unless another session may still be alive; return whether it is held."""
        if self._lease is not None:
            return True
        refs = self._run_refs()
        for ref, commit in refs.items():
            if self._lease_left(ref, commit) > 0:
                return False
            self._say(f"{ref} was not renewed within its lease: its session is dead, and this one takes over.")
        return self._take(refs)

    def _lease_left(self, ref: str, commit: str) -> float:
        """Return the seconds until another session's lease expires; 0 if that session is dead."""
        now = time.monotonic()
        if self._seen is None or self._seen[0] != commit:
            self._holder_lives = self._seen is not None  # the ref has moved since an earlier read
            self._seen = (commit, now)
        texts = self._refs.read_files(ref, "intent.json")
        record = journal.read_run(texts.get("intent.json", ""))
        if record is None:  # written by another version: its lease is unknown
            return self._seen[1] + journal.LEASE - now
        if record.owner == self._me or record.owner.is_dead_here(self._me.clone):
            return 0.0
        return max(0.0, self._seen[1] + record.lease - now)

    def _take(self, refs: dict[str, str]) -> bool:
        """Write our record over `refs`, or create one if there are none; return False if another session was faster."""
        run = Run(journal.new_intent_id(), "running", self.name, self._refs.head(), self._me, (), lease=self._length)
        places: Mapping[str, str | None] = refs or dict.fromkeys(f"{place}{self.name}" for place in RUN_PLACES)
        refused: RefusedByHostError | None = None
        for ref, commit in places.items():
            lease = Lease(self._refs, ref, run, commit)
            try:
                lease.__enter__()
            except GitPushError as error:
                # read before the message is judged: Git reports a lost race as a refusal by the host, too
                if self._run_refs() != refs:
                    return False  # another session was faster
                if not isinstance(error, RefusedByHostError):
                    raise
                refused = error
                continue
            self._lease = lease
            atexit.register(self.release)
            return True
        assert refused is not None
        raise refused

    @contextlib.contextmanager
    def renewal(self, refs: Refs) -> Iterator[RefUpdate]:
        """Yield the update of the run's ref for a commit push from `refs`; take the run again if it was released."""
        self.take()
        assert self._lease is not None
        try:
            with self._lease.renewal(refs) as update:
                yield update
        except GitPushError as error:
            self._explain(error)
            raise

    def _explain(self, error: GitPushError) -> None:
        """Set the error's remedy if the push was rejected because another session has taken the run over."""
        with contextlib.suppress(GitPushError):
            assert self._lease is not None
            self._lease.reread()
            return
        error.remedy = f"another session has taken over {self.name}, since this lease had expired: let it finish."

    def release(self) -> None:
        """Release the run; if the remote cannot be reached, others take the run over when its lease has expired."""
        self._stop_watching()
        lease, self._lease = self._lease, None
        atexit.unregister(self.release)
        if lease is not None:
            with contextlib.suppress(Exception):
                lease.end()
            lease.__exit__()
