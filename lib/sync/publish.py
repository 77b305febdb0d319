"""Publish a run's objects and branch; roll everything back if a step fails. docs/sync-protocol.md is the protocol.

Guarantees: the first error is the one raised, and a repeated call publishes once. Copies are declared in the run's ref
before they are stored, so that their owner and any other machine roll back the same. Cannot: know whether the commit
push happened if its answer was lost and the Git remote cannot be read; then nothing is deleted (`InDoubt`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from lib.errors import DvcPushError, GitPushError, InDoubt, RunError, RunHeldError, SyncError, TakenOverError
from lib.process import interrupts
from lib.progress import counting, file_size
from lib.remotes.credentials import Credentials
from lib.remotes.repository import StoredObject
from lib.sync.lock import RunLock
from lib.sync.publication import Publication, Published, Say
from lib.sync.record import LEASE, DeclaredCopy
from lib.sync.recover import Recovery
from lib.sync.refs import ANY, RefUpdate
from lib.sync.remotes import AT_ONCE, Remotes, open_remotes
from lib.sync.stores.base import Progress, StoredCopy, mismatch
from lib.sync.tree import Source, build_commit, hash_objects

SHORTEST_WAIT = 0.2  # seconds between two looks at a copy of another publication, at first
LONGEST_WAIT = 2 * LEASE  # seconds for another publication of the same content: it has died or ended by then


def sync_outputs(
    run: Publication, credentials: Credentials | None = None, *, say: Say = print, progress: bool = True
) -> Published:
    """Publish all of a run, or nothing of it; the model files stay in place in both cases.

    `say` receives a line for each step; `progress` shows a bar of the uploaded bytes. May be called again after any
    failure, and publishes once.

    Raises `DvcPushError` or `GitPushError` if a remote refused (everything is rolled back), `SyncError` if the cause is
    on this machine, `RunHeldError` if another session publishes the same, and `InDoubt` if the answer to the commit
    push was lost and the Git remote cannot be read: then nothing is deleted, and `recover()` or another call resolves
    the doubt. The error's state reports a rollback that failed as well.
    """
    with interrupts(signal.SIGTERM), open_remotes(run.root, credentials or Credentials()) as remotes:
        lock = run.hold or RunLock(remotes.refs, run.branch, say=say)
        try:
            return _Publishing(remotes, lock, run, say, shows_progress=progress).publish()
        finally:
            if run.hold is None:
                lock.release()


class _Publishing:
    """One call of `sync_outputs`."""

    def __init__(self, remotes: Remotes, lock: RunLock, run: Publication, say: Say, *, shows_progress: bool) -> None:
        self.remotes, self.lock, self.run, self.say = remotes, lock, run, say
        self._recovery = Recovery(remotes, say)
        self._shows_progress = shows_progress
        self._head = f"refs/heads/{run.branch}"
        self._step = "preparing"
        self._commit = self._repository = ""
        self._objects: dict[str, StoredObject] = {}
        """The object of each path in `run.objects`."""
        self._sources: dict[str, Source] = {}
        """The file of each object."""
        self._declared: dict[str, DeclaredCopy] = {}
        self._stopped = threading.Event()
        self._pushed = False
        """Whether a commit push was sent and may still happen: until the run's ref is moved again."""

    def publish(self) -> Published:
        """Run the steps of the protocol; roll everything back if one of them fails."""
        run, store, uploaded = self.run, self.remotes.store, 0
        try:
            self._begin("DVC add", "Phase 1: DVC add (track models)")
            found = hash_objects(run)
            self._objects = {name: source.item for name, source in zip(run.objects, found, strict=True)}
            self._sources = {source.item.oid: source for source in found}
            self._begin("reading the Git remote")
            if published := self._find_published():
                return published
            self.lock.take()
            self.remotes.roll_back(self.lock, self.say)  # what earlier attempts left
            self._begin("DVC push", f"Phase 2: DVC push ({file_size(self._size())} to {store.name})")
            self._declare()
            stored = self._upload()
            uploaded = sum(item.size for oid, item in self._declared.items() if stored[oid].identity == item.identity)
            self._begin("Git staging", "Phase 3: Git staging (artifacts + .dvc files)")
            self._commit = build_commit(self.remotes.refs, run, self._objects)
            self._verify(stored)
            self._begin("Git push", f"Phase 4: Git push (create branch {run.branch})")
            self._push()
        except BaseException as error:  # noqa: BLE001  raised again by _roll_back, unless only the answer was lost
            self._roll_back(error)
        self._clean_up()
        return Published(run.branch, self._commit, uploaded)

    # ── the steps ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, step: str, line: str = "") -> None:
        self._step = step
        if line:
            self.say(line)

    def _find_published(self) -> Published | None:
        """Return what an earlier call has pushed. Raises `GitPushError` if another run owns the branch."""
        commit = self.remotes.refs.list_refs(self._head).get(self._head)
        if commit is None:
            return None
        if build_commit(self.remotes.refs, self.run, self._objects) != commit:
            raise GitPushError(
                f"the branch {self.run.branch} exists already, with other content.",
                remedy="publish under another name: a new run has a new time stamp.",
            )
        self.say(f"{self.run.branch} is published already, with all of this run; there is nothing to do.")
        return Published(self.run.branch, commit, 0, before=True)

    def _size(self) -> int:
        return sum(source.item.size for source in self._sources.values())

    def _declare(self) -> None:
        """Write the identities of the copies into the run's ref, before they exist."""
        store, record = self.remotes.store, self.lock.held()
        self._repository = record.repository
        if not store.keeps_twins:
            self.remotes.claim(record.repository)
            if kept := self.remotes.kept_because(self.lock):
                self.say(f"Note: {kept}. If this publication fails, its objects stay there.")
        identities, address = store.new_identities(len(self._sources)), store.address()
        self._declared = {
            oid: DeclaredCopy(oid=oid, size=source.item.size, identity=identity, store=address)
            for (oid, source), identity in zip(self._sources.items(), identities, strict=True)
        }
        self.lock.push(record.but(publishing=tuple(self._declared.values())))

    def _upload(self) -> dict[str, StoredCopy]:
        """Store every object and return the copy of each that this publication relies on.

        Where a path holds one copy, objects are stored one after another in order of name: publications that wait for
        each other's objects in any other order could wait for ever.
        """
        workers = AT_ONCE if self.remotes.store.keeps_twins else 1
        with (
            counting("  uploading", self._size()) if self._shows_progress else contextlib.nullcontext(int) as add,
            ThreadPoolExecutor(workers, thread_name_prefix="upload") as pool,
        ):
            jobs = {oid: pool.submit(self._store, self._sources[oid], add) for oid in sorted(self._sources)}
            try:
                for job in as_completed(jobs.values()):
                    job.result()
                    self.lock.confirm()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return {oid: job.result() for oid, job in jobs.items()}

    def _store(self, source: Source, add: Progress) -> StoredCopy:
        """Store an object, or wait for a copy that can be relied on."""
        item, deadline, pause = source.item, time.monotonic() + LONGEST_WAIT, SHORTEST_WAIT
        while (copy := self._try_to_store(source, add)) is None:
            if time.monotonic() > deadline:
                raise DvcPushError(
                    f"another publication has been storing {item.oid} for {LONGEST_WAIT:.0f} s.",
                    remedy="run `python -m lib recover`, then sync_outputs() again.",
                )
            if pause == SHORTEST_WAIT:
                self.say("Another run is publishing an object of the same content; waiting for it.")
            time.sleep(pause)
            pause = min(2 * pause, 10)
        after = source.path.stat()
        if (after.st_mtime_ns, after.st_size) != (source.written, item.size):
            raise SyncError(
                f"{source.path} was written to while it was published.",
                remedy="stop the process that writes it and publish again.",
            )
        self._check_copy(item, copy)
        return copy

    def _try_to_store(self, source: Source, add: Progress) -> StoredCopy | None:
        """Return our copy of an object, or the one that is there; None if another run may still delete that one."""

        def progress(count: int) -> None:
            if self._stopped.is_set():
                raise SyncError("the upload was stopped, since another upload failed.")
            if count:  # the bar appears with the first byte
                add(count)

        progress(0)
        store, oid = self.remotes.store, source.item.oid
        path = store.path_of(oid)
        copies = [] if store.keeps_twins else store.find(path)
        if not copies:
            return store.create(path, source.path, self._declared[oid].identity, progress)
        if self._is_declared_by_others(copies[0]):
            return None
        # looked at once more: the run that declared it may have ended between the two reads, and taken it along
        return store.verify(path, copies[0].identity)

    def _is_declared_by_others(self, copy: StoredCopy) -> bool:
        """Return whether another run of this repository may still delete the copy; that run is recovered if dead."""
        names = [
            name
            for name, run in self.remotes.refs.read_runs().items()
            if name != self.lock.name and run.record
            if copy.identity in (declared.identity for declared in run.record.declared)
        ]
        if names:
            self._recovery.look(names)
        return bool(names)

    def _check_copy(self, item: StoredObject, copy: StoredCopy | None) -> None:
        fault = mismatch(item.oid, item.size, copy)
        if fault:
            raise DvcPushError(
                f"{self.remotes.store.name} has no correct copy of {item.oid}: its copy {fault}.",
                remedy="publish again; a damaged copy that is older than this run must be deleted by hand first.",
            )

    def _verify(self, stored: dict[str, StoredCopy]) -> None:
        """Ask for every copy once more, by its identity, where a path holds one copy: another may have replaced it."""
        store = self.remotes.store
        for oid, source in self._sources.items() if not store.keeps_twins else ():
            self._check_copy(source.item, store.verify(store.path_of(oid), stored[oid].identity))

    def _push(self) -> None:
        """Make the branch visible: create it, and delete checkpoint, run's ref and stop, in one atomic push."""
        lock, record = self.lock, self.lock.held()
        # some hosts refuse every push that names a checkpoint branch, even one that is not there. After this look a
        # session that takes the run over finds every copy that it has to delete
        gone = [ref for ref in lock.reread(lock.checkpoint) if ref == lock.checkpoint and not self.run.keeps_checkpoint]
        self._pushed = True
        lock.push(
            record.but(publishing=()) if record.undo else None,
            RefUpdate(self._head, None, self._commit),
            # a stop that came too late stops nothing any more, nor the next session
            *(RefUpdate(ref, ANY, None) for ref in (lock.stop_ref, *gone)),
        )

    def _clean_up(self) -> None:
        """Delete the files of the run's last checkpoint; on failure `recover` does."""
        if self.run.hold is None:
            return  # a publication without a run has no checkpoint
        try:
            self.remotes.sweep(self._repository, self.lock.name)
        except (RunError, OSError) as error:
            self.say(f"Warning: published, but not cleaned up: {self._summary(error)}. A later run does this.")

    # ── rolling back ───────────────────────────────────────────────────────────────────────────────────────────────

    def _roll_back(self, error: BaseException) -> None:
        """Roll everything back, even if some of it fails, and raise the first error with the resulting state.

        Returns only if there is nothing to roll back: the commit push had happened, and only its answer was lost.
        """
        models, published = ", ".join(self.run.objects), False
        try:
            published = self._roll_back_remotes()
        except Exception as second:  # noqa: BLE001  the first error is the one shown
            if self._pushed:
                remedy = f"{second.remedy} " if isinstance(second, GitPushError) and second.remedy else ""
                raise InDoubt(
                    f"the last push ended in an error, and {self.remotes.refs.url} can be neither read nor rolled back:"
                    f" {self.run.branch} may or may not be published.\n{self._summary(error)}\n{self._summary(second)}",
                    state="everything is kept: the models here, the objects on the DVC remote, and the run's ref "
                    f"{self.lock.ref} on the Git remote if the run was not published.",
                    remedy=f"{remedy}When the Git remote answers, publish again, or run `python -m lib recover`.",
                ) from error
            state = (
                f"the run is not published, and its rollback could not be finished: {self._summary(second)}. "
                f"The models are in place: {models}. `python -m lib recover` finishes the rollback."
            )
        else:
            kept = self.remotes.kept
            objects = f"but what was uploaded stays, since {kept}" if kept else "no new object"
            state = f"everything is rolled back: no branch, {objects}, no .dvc file. The models are in place: {models}."
        if published:
            if isinstance(error, Exception):
                return
            state = f"{self.run.branch} is published."
            self.say(state)
        if isinstance(error, Exception):
            raise self._explained(error, state)
        error.add_note(state)
        raise error

    def _roll_back_remotes(self) -> bool:
        """Move the run's ref, which rejects a late commit push, and delete what was stored.

        Returns whether the commit push has happened after all.
        """
        if self.lock.record is not None:
            try:
                if self._pushed:
                    self.lock.push(self.lock.held())
                    self._pushed = False
                self.remotes.roll_back(self.lock, self.say, last=self.run.hold is None)
            except TakenOverError:
                pass
            else:
                return False
        # our ref is gone: by our commit push, or because another session has taken the run over, with its list
        if self._pushed and self.remotes.refs.list_refs(self._head).get(self._head) == self._commit:
            return True
        if self.remotes.store.keeps_twins and not self._pushed:
            self.remotes.delete(self._declared.values(), self.lock, self.say)
        elif self._declared:
            self.remotes.kept = "the session that has taken the run over deletes it or relies on it"
        return False

    def _explained(self, error: Exception, state: str) -> RunError:
        """Return the error to raise: the first one, with the step that failed and the state after the rollback."""
        if isinstance(error, (SyncError, RunHeldError)):
            shown: RunError = error
        else:
            kind = DvcPushError if self._step == "DVC push" else SyncError
            shown = kind(error.what, remedy=error.remedy) if isinstance(error, RunError) else kind(self._summary(error))
            shown.__cause__ = error
        if not isinstance(shown, GitPushError):  # its message already names what was pushed
            shown.what = f"{self._step} failed: {shown.what}"
        if isinstance(shown, DvcPushError):
            otherwise = "check that the Drive credentials are valid and the folder is writable, then publish again."
        else:
            otherwise = "fix the cause named above and run sync_outputs() again."
        shown.state, shown.remedy = state, shown.remedy or otherwise
        return shown

    def _summary(self, error: BaseException) -> str:
        what = error.what if isinstance(error, RunError) else str(error)
        return self.remotes.redact(f"{type(error).__name__}: {what}")
