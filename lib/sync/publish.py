"""Publish a run's objects and branch; roll everything back if a step fails. The package docstring is the protocol.

Guarantees: the first error is the one raised, and a repeated call publishes once. `Remotes.recover` does the rollback:
the same code serves an owner whose upload failed and another machine that finds a dead machine's intent; it may be
interrupted after any line and repeated, and it deletes only what it must. Cannot: know whether the commit push happened
if its answer was lost and the Git remote cannot be read; then nothing is deleted (`InDoubt`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from types import FrameType
from typing import Self

from lib.errors import DvcPushError, GitPushError, InDoubt, RunError, SyncError
from lib.progress import Bar, file_size
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import Intent, StoredObject
from lib.sync.lease import Lease
from lib.sync.publication import Publication, Published, Say
from lib.sync.refs import RefUpdate, SeenIntent
from lib.sync.remotes import CHECKPOINTS, PROBE, Remotes, open_remotes
from lib.sync.stores.base import damaged
from lib.sync.tree import Source, build_commit, hash_objects

CONCURRENT_UPLOADS = 4  # Drive accepts two or three new files a second
LONGEST_WAIT = 2 * journal.LEASE  # seconds for another process's rollback: it has died or ended by then


def sync_outputs(
    run: Publication, credentials: Credentials | None = None, *, say: Say = print, progress: bool = True
) -> Published:
    """Publish all of a run, or nothing of it; the model files stay in place in both cases.

    `say` receives a line for each step; `progress` shows a bar of the uploaded bytes.

    May be called again after any failure, and publishes once. Raises `DvcPushError` or `GitPushError` if a remote
    refused (everything is rolled back), `SyncError` if the cause is on this machine, and `InDoubt` if the answer to the
    commit push was lost and the Git remote cannot be read: then nothing is deleted, and `recover()` or another call
    resolves the doubt. The first error is the one raised; its state reports a rollback that failed as well.
    """
    credentials = credentials or Credentials()
    with _signals_as_exceptions(), open_remotes(run.root, credentials) as remotes:
        return _Publishing(remotes, run, say, progress=progress).publish()


class _Publishing:
    """One call of `sync_outputs`."""

    def __init__(self, remotes: Remotes, run: Publication, say: Say, *, progress: bool) -> None:
        self.remotes, self.run, self.say, self._shows_progress = remotes, run, say, progress
        self.ref = ""
        self.commit = ""
        self.uploaded = 0
        self._head = f"refs/heads/{run.branch}"
        self._old: dict[str, str] = {}
        """{ref: commit} of this publication's branch and of those that it supersedes, as read from the remote."""
        self._pushed = False
        self._intent: Intent | None = None
        self._stored_before_upload: dict[str, set[str]] = {}
        self._objects: dict[str, StoredObject] = {}
        """The object of each path in `run.objects`."""

    def publish(self) -> Published:
        """Run the steps of the protocol; roll everything back if one of them fails."""
        run, say = self.run, self.say
        step = "preparing"
        try:
            self._check_files()
            say("Phase 1: DVC add (track models)")
            step = "DVC add"
            sources = hash_objects(run)
            self._objects = {name: item for name, (item, *_) in zip(run.objects, sources, strict=True)}
            step = "reading the Git remote"
            self._old = self.remotes.refs.list_refs(self._head, *(f"refs/heads/{name}" for name in run.supersedes))
            if self._head in self._old and self._is_published(self._old[self._head]):
                return Published(run.branch, self._old[self._head], 0, before=True)
            self._recover_others()
            size = file_size(sum(source.item.size for source in sources))
            say(f"Phase 2: DVC push ({size} to {self.remotes.objects.name})")
            step = "DVC push"
            intent = self._plan([source.item for source in sources])
            with self.remotes.declare(intent, say, self._set_ref) as lease:
                self._intent = intent
                self.remotes.claim(intent.id, say)
                self._listen(intent)
                self._upload(sources, intent.id, lease)
                self._verify([source.item for source in sources])
                say("Phase 3: Git staging (artifacts + .dvc files)")
                step = "Git staging"
                self.commit = self._stage()
                say(f"Phase 4: Git push ({'move' if self._head in self._old else 'create'} branch {run.branch})")
                step = "Git push"
                self._pushed = True
                replaced = [RefUpdate(ref, commit, None) for ref, commit in self._old.items() if ref != self._head]
                after = intent.committed() if intent.superseded else None
                head = RefUpdate(self._head, self._old.get(self._head), self.commit)
                with run.hold.renewal(self.remotes.refs) if run.hold else contextlib.nullcontext() as held:
                    lease.end(head, *replaced, *([held] if held else ()), after=after)
        except BaseException as error:  # noqa: BLE001  raised again by _roll_back, unless only the answer was lost
            self._roll_back(error, step)
        self._clean_up()
        return Published(run.branch, self.commit, self.uploaded)

    # ── the steps ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_files(self) -> None:
        for name in self.run.objects:
            path = self.run.find(name)
            if not path.is_file() or path.stat().st_size == 0:
                raise SyncError(
                    f"{path} is missing or empty.", remedy="train again, or correct the publication's list."
                )

    def _is_published(self, commit: str) -> bool:
        """Return whether an earlier call has pushed `commit`. Raises `GitPushError` if another run owns the branch."""
        if self._stage() == commit:
            self.say(f"{self.run.branch} is published already, with all of this run; there is nothing to do.")
            return True
        if self.run.branch in self.run.supersedes:
            return False
        raise GitPushError(
            f"the branch {self.run.branch} exists already, with other content.",
            remedy="publish under another name: a new run has a new time stamp.",
        )

    def _recover_others(self) -> None:
        """Recover the intents of dead owners; a failure here does not stop this publication."""
        try:
            self.remotes.recover_all(journal.LEASE, self.say)
        except (RunError, OSError) as error:
            self.say(f"Warning: an unfinished publication could not be recovered: {self._summary(error)}")

    def _plan(self, items: Sequence[StoredObject]) -> Intent:
        """Probe and adopt: return the intent, which records the copies that were stored before."""
        oids = [item.oid for item in items]
        stored = self.remotes.objects.look(oids)
        # Branches before intents: a checkpoint branch that moves in between is then seen as a `cleaning` intent.
        checkpoints = self.remotes.refs.list_refs(CHECKPOINTS)
        moving = self.remotes.refs.named_objects(CHECKPOINTS) if checkpoints else set()
        others = [seen.record for seen in self.remotes.refs.read_intents() if seen.record is not None]
        replaced = self.remotes.refs.published_objects(*self._old).values() if self._old else ()
        # only what the replaced commits published: a .dvc file elsewhere in their trees belongs to the user
        inside = f"{self.run.folder}/"
        published = {item.oid for items in replaced for path, item in items.items() if path.startswith(inside)}
        superseded = published.difference(oids)

        def is_kept(oid: str, identity: str) -> bool:
            return oid not in moving and not any(other.may_delete(oid, identity) for other in others)

        return Intent(
            id=journal.new_intent_id(),
            state="uploading",
            branch=self.run.branch,
            base=self.remotes.head(),
            owner=self.remotes.me,
            objects=tuple(
                replace(item, before=tuple(i for i in stored.get(item.oid, {}) if is_kept(item.oid, i)))
                for item in items
            ),
            superseded=tuple(sorted(superseded)),
        )

    def _set_ref(self, ref: str) -> None:
        self.ref = ref

    def _listen(self, intent: Intent) -> None:
        """Wait until no other publication is deleting one of our objects; if its owner is dead, finish its cleanup."""
        deadline = time.monotonic() + LONGEST_WAIT
        pause = 0.2
        reported = False
        while True:
            busy = [
                seen
                for seen in self.remotes.refs.read_intents()
                if seen.record is not None
                and seen.record.id != intent.id
                and any(seen.record.is_deleting(item.oid) for item in intent.objects)
            ]
            if not busy:
                return
            if not reported:
                self.say("Another run is cleaning up objects of the same content; waiting for it.")
                reported = True
            self._recover_others()
            if time.monotonic() > deadline:
                raise DvcPushError(
                    f"{busy[0].ref} has been cleaning up the same objects for {LONGEST_WAIT:.0f} s.",
                    remedy="run `python -m lib recover`, then sync_outputs() again.",
                )
            time.sleep(pause)
            pause = min(2 * pause, 10)

    def _upload(self, sources: Sequence[Source], label: str, lease: Lease) -> None:
        """Probe again and upload the missing objects concurrently."""
        stored = self.remotes.objects.look([source.item.oid for source in sources])
        self._stored_before_upload = {item.oid: set(stored.get(item.oid, {})) for item, *_ in sources}
        unique = {source.item.oid: source for source in sources}
        missing = [source for oid, source in unique.items() if oid not in stored]
        size = sum(source.item.size for source in missing)
        with (
            _Progress(size, shown=self._shows_progress) as progress,
            ThreadPoolExecutor(CONCURRENT_UPLOADS, thread_name_prefix="upload") as pool,
        ):
            lease.confirm()
            jobs = [pool.submit(self._send, source, label, progress) for source in missing]
            try:
                for job in as_completed(jobs):
                    job.result()
                    lease.confirm()
            except BaseException:
                progress.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self.uploaded = size

    def _send(self, source: Source, label: str, progress: _Progress) -> None:
        self.remotes.objects.upload(source.item.oid, source.path, label, progress)
        after = source.path.stat()
        if (after.st_mtime_ns, after.st_size) != (source.written, source.item.size):
            raise SyncError(
                f"{source.path} was written to while it was published.",
                remedy="stop the process that writes it and publish again.",
            )

    def _verify(self, items: Sequence[StoredObject]) -> None:
        stored = self.remotes.objects.look([item.oid for item in items])
        for item in items:
            fault = damaged(item, stored.get(item.oid, {}))
            if fault:
                raise DvcPushError(
                    f"{self.remotes.objects.name} has no correct copy of {item.oid}: {fault}.",
                    remedy="publish again; a damaged copy that is older than this run must be deleted by hand first.",
                )

    def _stage(self) -> str:
        """Build the publication's commit: every file of the folder, with `.dvc` files in place of the objects."""
        return build_commit(self.remotes.refs, self.remotes.head(), self.run, self._objects)

    # ── rolling back ───────────────────────────────────────────────────────────────────────────────────────────────

    def _roll_back(self, error: BaseException, step: str) -> None:
        """Roll everything back, even if some of it fails, and raise the first error with the resulting state.

        Returns only if there is nothing to roll back: the commit push had happened, and only its answer was lost.
        """
        failures: list[str] = []
        try:
            published = self._roll_back_remotes()
        except Exception as second:  # noqa: BLE001  the first error is the one shown
            if self._pushed and not self._is_fenced():
                raise self._in_doubt(error, second) from error
            published = False
            failures.append(self._summary(second))
        if published:
            if isinstance(error, Exception):
                return
            self.say(f"{self.run.branch} is published.")
            raise error
        models = ", ".join(self.run.objects)
        if failures:
            state = (
                f"the run is not published, and its rollback could not be finished: {'; '.join(failures)}. "
                f"The models are in place: {models}. `python -m lib recover` finishes the rollback."
            )
        else:
            kept = self.remotes.kept_because
            objects = f"but what was uploaded stays, since {kept}" if kept else "no new object"
            state = f"everything is rolled back: no branch, {objects}, no .dvc file. The models are in place: {models}."
        raise _with_state(error, step, state, self.remotes.redact) from error

    def _roll_back_remotes(self) -> bool:
        """Roll back our intent, or wait for a machine that already does; return whether it was committed after all."""
        if not self.ref:
            return False
        deadline = time.monotonic() + LONGEST_WAIT
        while True:
            seen = next((seen for seen in self.remotes.refs.read_intents() if seen.ref == self.ref), None)
            if seen is not None and seen.record is not None and seen.record.state == "cleaning":
                return True
            if seen is None:
                # Read only now: once the intent is marked or gone, a commit push that arrives late is rejected.
                head = self.remotes.refs.list_refs(self._head).get(self._head)
                if self._pushed and head == self.commit:
                    return True
                self._roll_back_late_uploads()
                return False
            if self.remotes.may_recover(seen):
                self.remotes.recover(seen)
            elif time.monotonic() >= deadline:
                raise GitPushError(f"{self.ref} is being rolled back by another machine.", remedy="let it finish.")
            else:
                time.sleep(1)

    def _roll_back_late_uploads(self) -> None:
        """Delete the copies that we uploaded after another machine had rolled us back.

        Our lease had expired for that machine, and its rollback could not see these copies.
        """
        if self._intent is None:
            return  # nothing was written
        self.remotes.objects.unmark(PROBE + self._intent.id)
        if not self._stored_before_upload:
            return  # nothing was uploaded
        stored = self.remotes.objects.look([item.oid for item in self._intent.objects])
        late = []
        for item in self._intent.objects:
            identities, earlier = stored.get(item.oid, {}).keys(), self._stored_before_upload[item.oid]
            if identities - earlier - set(item.before):
                late.append(replace(item, before=tuple(sorted(identities & earlier | set(item.before)))))
        if late:
            again = replace(self._intent, id=journal.new_intent_id(), objects=tuple(late)).marked(self.remotes.me)
            ref = f"{self.ref.rpartition('/')[0]}/{again.id}"
            with Lease(self.remotes.refs, ref, again, None) as declared:
                declared.join()
            self.remotes.recover(SeenIntent(ref, declared.commit, again))

    def _clean_up(self) -> None:
        """Delete the objects that only the replaced commits named; on failure a later session or `recover` does."""
        if self._intent is None or not self._intent.superseded:
            return
        try:
            for seen in self.remotes.refs.read_intents():
                if seen.ref == self.ref:
                    self.remotes.recover(seen)
        except (RunError, OSError) as error:
            self.say(f"Warning: published, but not cleaned up: {self._summary(error)}. A later run does this.")

    def _is_fenced(self) -> bool:
        """Return whether the intent is certainly `aborting`, so that our commit push can no longer succeed."""
        with contextlib.suppress(Exception):
            for seen in self.remotes.refs.read_intents():
                if seen.ref == self.ref and seen.record is not None:
                    return seen.record.state == "aborting"
        return False

    def _in_doubt(self, error: BaseException, second: Exception) -> InDoubt:
        remedy = second.remedy if isinstance(second, GitPushError) else ""
        return InDoubt(
            f"the last push ended in an error, and {self.remotes.refs.url} can be neither read nor rolled back: "
            f"{self.run.branch} may or may not be published.\n{self._summary(error)}\n{self._summary(second)}",
            state="everything is kept: the models here, the objects on the DVC remote, and the intent "
            f"{self.ref} on the Git remote if the run was not published.",
            remedy=f"{remedy} When the Git remote answers, publish again, or run `python -m lib recover`.".lstrip(),
        )

    def _summary(self, error: BaseException) -> str:
        what = error.what if isinstance(error, RunError) else str(error)
        return self.remotes.redact(f"{type(error).__name__}: {what}")


def _with_state(error: BaseException, step: str, state: str, redact: Callable[[str], str]) -> BaseException:
    """Return the error to raise: the first error, with the step that failed and the state after the rollback."""
    if not isinstance(error, Exception):
        error.add_note(state)
        return error
    kind: type[SyncError] = DvcPushError if step == "DVC push" else SyncError
    what, remedy = redact(f"{type(error).__name__}: {error}"), ""
    if isinstance(error, RunError):
        kind = (
            GitPushError if isinstance(error, GitPushError) else type(error) if isinstance(error, SyncError) else kind
        )
        what, remedy = error.what, error.remedy
    if kind is DvcPushError:
        remedy = remedy or "check that the Drive credentials are valid and the folder is writable, then publish again."
    if kind is not GitPushError:  # its message already names what was pushed
        what = f"{step} failed: {what}"
    return kind(what, state=state, remedy=remedy or "fix the cause named above and run sync_outputs() again.")


class _Progress:
    """Progress bar (bytes, rate, time left) of all uploads together; also stops the uploads in progress."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._bar = Bar("  uploading", total, is_bytes=True) if total and shown else None
        self._done = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.end("  uploading: stopped" if kind else "")

    def __call__(self, count: int) -> None:
        if self._stopped.is_set():
            raise SyncError("the upload was stopped, since another upload failed.")
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.show(self._done)

    def stop(self) -> None:
        """Stop every upload: its next progress call raises `SyncError`."""
        self._stopped.set()


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM while publishing, so that it is rolled back like any failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
