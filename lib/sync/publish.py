"""Publishing, undoing and recovering; the protocol stands in the package's docstring.

All the difficulty is in `Vault.settle`: it is the same for an owner whose upload failed and for a stranger who
finds a dead machine's intent, it may die after any line and be run again, and it deletes only what it must.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from lib.errors import DvcPushError, GitPushError, InDoubt, RunError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import Intent, StoredObject
from lib.sync.lease import Lease
from lib.sync.publication import Publication, Published, Say
from lib.sync.refs import Move, SeenIntent
from lib.sync.stores.base import damaged
from lib.sync.vault import CHECKPOINTS, PROBE, Vault, open_vault

SIDE_BY_SIDE = 4  # uploads at once: Drive takes two or three new files a second
PATIENCE = 2 * journal.LEASE  # how long to wait for somebody else's undoing: it is dead or done by then


def sync_outputs(
    run: Publication, credentials: Credentials | None = None, *, say: Say = print, progress: bool = True
) -> Published:
    """Publish all of a run, or nothing of it; the models stay where they are in both cases.

    `say` is told each step, `progress` shows a bar of what is uploaded.

    May be called again after any failure, and publishes once. Raises `DvcPushError` or `GitPushError` when a remote
    refused (everything is undone), `SyncError` when this machine stopped it, `InDoubt` when the answer to the last
    push was lost and the Git remote cannot be asked: then nothing is deleted, and `recover()` or another call settles
    it. The error that came first is the one raised; clean-up that failed too is told in its state.
    """
    credentials = credentials or Credentials()
    with _signals_as_exceptions(), open_vault(run.root, credentials) as vault:
        return _Publishing(vault, run, say, progress=progress).publish()


class _Publishing:
    """One call of `sync_outputs`."""

    def __init__(self, vault: Vault, run: Publication, say: Say, *, progress: bool) -> None:
        self.vault, self.run, self.say, self._shows = vault, run, say, progress
        self.ref = ""
        self.commit = ""
        self.uploaded = 0
        self._head = f"refs/heads/{run.branch}"
        self._old: dict[str, str] = {}
        """Commit by ref of what stands where this publication will, or is superseded by it."""
        self._pushed = False
        self._intent: Intent | None = None
        self._stood: dict[str, set[str]] = {}
        self._local = _LocalChanges(run, vault.refs.private)

    def publish(self) -> Published:
        """Go through the protocol, and undo it all when a step fails."""
        run, say = self.run, self.say
        step = "preparing"
        try:
            self._check_files()
            say("Phase 1: DVC add (track models)")
            step = "DVC add"
            sources = self._local.add_to_dvc(self.vault.repo)
            step = "asking the Git remote"
            self._old = self.vault.refs.list_refs(self._head, *(f"refs/heads/{name}" for name in run.supersedes))
            if self._head in self._old and self._is_published(self._old[self._head]):
                self._local.keep()
                return Published(run.branch, self._old[self._head], 0, before=True)
            self._settle_others()
            say(f"Phase 2: DVC push ({_mebibytes(sum(item.size for item, _ in sources))} to {self.vault.objects.name})")
            step = "DVC push"
            intent = self._plan([item for item, _ in sources])
            with self.vault.declare(intent, say, self._note_ref) as lease:
                self._intent = intent
                self.vault.claim(intent.id, say)
                self._listen(intent)
                self._upload(sources, intent.id, lease)
                self._verify([item for item, _ in sources])
                say("Phase 3: Git staging (artifacts + .dvc files)")
                step = "Git staging"
                self.commit = self._stage()
                say(f"Phase 4: Git push ({'move' if self._head in self._old else 'create'} branch {run.branch})")
                step = "Git push"
                self._pushed = True
                taken = [Move(ref, commit, None) for ref, commit in self._old.items() if ref != self._head]
                after = intent.committed() if intent.superseded else None
                head = Move(self._head, self._old.get(self._head), self.commit)
                with run.hold.moved_along(self.vault.refs) if run.hold else contextlib.nullcontext() as held:
                    lease.end(head, *taken, *([held] if held else ()), after=after)
        except BaseException as error:  # noqa: BLE001  raised again by _undo, unless only the answer was lost
            self._undo(error, step)
        self._local.keep()
        self._clean_up()
        return Published(run.branch, self.commit, self.uploaded)

    # ── the steps ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_files(self) -> None:
        for name in self.run.objects:
            path = self.run.root / name
            if not path.is_file() or path.stat().st_size == 0:
                raise SyncError(
                    f"{path} is missing or empty.", remedy="train again, or correct the publication's list."
                )

    def _is_published(self, standing: str) -> bool:
        """Whether an earlier call has succeeded. Raises `GitPushError` where the name belongs to another run."""
        if self._stage() == standing:
            self.say(f"{self.run.branch} is published already, with all of this run; there is nothing to do.")
            return True
        if self.run.branch in self.run.supersedes:
            return False
        raise GitPushError(
            f"the branch {self.run.branch} is there already, with other content.",
            remedy="publish under another name: a new run has a new time stamp.",
        )

    def _settle_others(self) -> None:
        """Settle what the dead have left; what cannot be settled now does not stop this publication."""
        try:
            self.vault.recover(journal.LEASE, self.say)
        except (RunError, OSError) as error:
            self.say(f"Warning: an unfinished publication could not be settled: {self._short(error)}")

    def _plan(self, items: Sequence[StoredObject]) -> Intent:
        """Probe and adopt: give the intent that says what stood there before."""
        oids = [item.oid for item in items]
        standing = self.vault.objects.look(oids)
        # Branches before intents: a checkpoint that moves in between is then seen as an intent that is cleaning.
        checkpoints = self.vault.refs.list_refs(CHECKPOINTS)
        moving = self.vault.refs.named_objects(CHECKPOINTS) if checkpoints else set()
        others = [seen.record for seen in self.vault.refs.read_intents() if seen.record is not None]
        replaced = self.vault.refs.published_objects(*self._old).values() if self._old else ()
        superseded = {item.oid for outputs in replaced for item in outputs.values()}.difference(oids)

        def stays(oid: str, identity: str) -> bool:
            return oid not in moving and not any(other.may_delete(oid, identity) for other in others)

        return Intent(
            id=journal.new_intent_id(),
            state="uploading",
            branch=self.run.branch,
            base=self.vault.head(),
            owner=self.vault.me,
            objects=tuple(
                replace(item, before=tuple(i for i in standing.get(item.oid, {}) if stays(item.oid, i)))
                for item in items
            ),
            superseded=tuple(sorted(superseded)),
        )

    def _note_ref(self, ref: str) -> None:
        self.ref = ref

    def _listen(self, intent: Intent) -> None:
        """Wait for whoever may be about to delete an object of ours; take over from those that died at it."""
        deadline = time.monotonic() + PATIENCE
        pause = 0.2
        told = False
        while True:
            busy = [
                seen
                for seen in self.vault.refs.read_intents()
                if seen.record is not None
                and seen.record.id != intent.id
                and any(seen.record.is_deleting(item.oid) for item in intent.objects)
            ]
            if not busy:
                return
            if not told:
                self.say("Another run is cleaning up objects of the same content; waiting for it.")
                told = True
            self._settle_others()
            if time.monotonic() > deadline:
                raise DvcPushError(
                    f"{busy[0].ref} has been cleaning up the same objects for {PATIENCE:.0f} s.",
                    remedy="run `python -m lib recover`, then sync_outputs() again.",
                )
            time.sleep(pause)
            pause = min(2 * pause, 10)

    def _upload(self, sources: Sequence[tuple[StoredObject, Path]], label: str, lease: Lease) -> None:
        """Probe again and send what is missing, side by side; a directory's listing after its files."""
        there = self.vault.objects.look([item.oid for item, _ in sources])
        self._stood = {item.oid: set(there.get(item.oid, {})) for item, _ in sources}
        missing = [(item, path) for item, path in {s[0].oid: s for s in sources}.values() if item.oid not in there]
        with _Progress(sum(item.size for item, _ in missing), shown=self._shows) as progress:
            for listings in (False, True):
                batch = [(item, path) for item, path in missing if item.oid.endswith(".dir") == listings]
                with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="upload") as pool:
                    lease.confirm()
                    jobs = [pool.submit(self._send, item, path, label, progress) for item, path in batch]
                    try:
                        for job in as_completed(jobs):
                            job.result()
                            lease.confirm()
                    except BaseException:
                        progress.stop()
                        pool.shutdown(wait=True, cancel_futures=True)
                        raise
        self.uploaded = sum(item.size for item, _ in missing)

    def _send(self, item: StoredObject, path: Path, label: str, progress: _Progress) -> None:
        before = path.stat()
        self.vault.objects.upload(item.oid, path, label, progress)
        after = path.stat()
        if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, item.size):
            raise SyncError(
                f"{path} was written while it was published.", remedy="end what writes it and publish again."
            )

    def _verify(self, items: Sequence[StoredObject]) -> None:
        standing = self.vault.objects.look([item.oid for item in items])
        for item in items:
            fault = damaged(item, standing.get(item.oid, {}))
            if fault:
                raise DvcPushError(
                    f"{self.vault.objects.name} does not hold {item.oid} as it should: {fault}.",
                    remedy="publish again; a damaged copy that is older than this run must be removed by hand first.",
                )

    def _stage(self) -> str:
        """Build the publication's commit: every file of the folder, `.dvc` files in place of the objects."""
        root, run = self.run.root, self.run
        large = {root / name for name in run.objects}
        files = sorted(
            path.relative_to(root).as_posix()
            for path in (root / run.folder).rglob("*")
            if path.is_file() and path not in large and path.name not in run.leave_out
        )
        return self.vault.refs.build_commit(self.vault.head(), files, run.message, run.stamp.isoformat())

    # ── undoing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _undo(self, error: BaseException, step: str) -> None:
        """Undo everything, whatever fails on the way, and raise the first error with what is true now.

        Returns when there is nothing to undo: the last push had happened, and only its answer was lost.
        """
        failures: list[str] = []
        try:
            published = self._undo_remotely()
        except Exception as trouble:  # noqa: BLE001  the first error is the one shown
            if self._pushed and not self._is_fenced():
                raise self._in_doubt(error, trouble) from error
            published = False
            failures.append(self._short(trouble))
        if published:
            if isinstance(error, Exception):
                return
            self._local.keep()
            self.say(f"{self.run.branch} is published.")
            raise error
        try:
            self._local.undo()
        except Exception as trouble:  # noqa: BLE001
            failures.append(self._short(trouble))
        models = ", ".join(self.run.objects)
        if failures:
            state = (
                f"it is not published, and undoing it could not be finished: {'; '.join(failures)}. "
                f"The models are in place: {models}. `python -m lib recover` finishes it."
            )
        else:
            kept = f"but what was uploaded stays, since {self.vault.keeps}" if self.vault.keeps else "no new object"
            state = f"everything is undone: no branch, {kept}, no .dvc file. The models are in place: {models}."
        raise _told(error, step, state, self.vault.redact) from error

    def _undo_remotely(self) -> bool:
        """Undo our intent, or wait for who is undoing it already; whether it turns out to be committed."""
        if not self.ref:
            return False
        deadline = time.monotonic() + PATIENCE
        while True:
            seen = next((seen for seen in self.vault.refs.read_intents() if seen.ref == self.ref), None)
            if seen is not None and seen.record is not None and seen.record.state == "cleaning":
                return True
            if seen is None:
                # only now: a push that arrives late is refused once the intent is marked or gone
                standing = self.vault.refs.list_refs(self._head).get(self._head)
                if self._pushed and standing == self.commit:
                    return True
                self._undo_late_uploads()
                return False
            if self.vault.may_settle(seen):
                self.vault.settle(seen)
            elif time.monotonic() >= deadline:
                raise GitPushError(f"{self.ref} is being undone by another machine.", remedy="let it finish.")
            else:
                time.sleep(1)

    def _undo_late_uploads(self) -> None:
        """Remove what we uploaded after somebody else had undone us, taking us for dead: they could not see it."""
        if self._intent is None:
            return  # nothing was written
        self.vault.objects.unmark(PROBE + self._intent.id)
        if not self._stood:
            return  # nothing was uploaded
        standing = self.vault.objects.look([item.oid for item in self._intent.objects])
        late = [
            replace(item, before=tuple(sorted(standing[item.oid].keys() & self._stood[item.oid] | set(item.before))))
            for item in self._intent.objects
            if standing.get(item.oid, {}).keys() - self._stood[item.oid] - set(item.before)
        ]
        if late:
            again = replace(self._intent, id=journal.new_intent_id(), objects=tuple(late)).marked(self.vault.me)
            ref = f"{self.ref.rpartition('/')[0]}/{again.id}"
            with Lease(self.vault.refs, ref, again, None) as declared:
                declared.join()
            self.vault.settle(SeenIntent(ref, declared.commit, again))

    def _clean_up(self) -> None:
        """Delete what the branches that are gone had; what cannot be done now, the next session or `recover` does."""
        if self._intent is None or not self._intent.superseded:
            return
        try:
            for seen in self.vault.refs.read_intents():
                if seen.ref == self.ref:
                    self.vault.settle(seen)
        except (RunError, OSError) as trouble:
            self.say(f"Warning: published, but not cleaned up after: {self._short(trouble)}. A later run does that.")

    def _is_fenced(self) -> bool:
        """Whether the intent is certainly marked, so that our last push cannot happen any more."""
        with contextlib.suppress(Exception):
            for seen in self.vault.refs.read_intents():
                if seen.ref == self.ref and seen.record is not None:
                    return seen.record.state == "aborting"
        return False

    def _in_doubt(self, error: BaseException, trouble: Exception) -> InDoubt:
        remedy = trouble.remedy if isinstance(trouble, GitPushError) else ""
        return InDoubt(
            f"the last push ended in an error, and {self.vault.refs.url} does not let itself be asked or undone: "
            f"{self.run.branch} is published, or it is not.\n{self._short(error)}\n{self._short(trouble)}",
            state="everything is kept: the models here, the objects on the DVC remote, and the intent "
            f"{self.ref} on the Git remote if it was not published.",
            remedy=f"{remedy} When the Git remote answers, publish again, or run `python -m lib recover`.".lstrip(),
        )

    def _short(self, error: BaseException) -> str:
        told = error.what if isinstance(error, RunError) else str(error)
        return self.vault.redact(f"{type(error).__name__}: {told}")


def _told(error: BaseException, step: str, state: str, redact: Callable[[str], str]) -> BaseException:
    """Give the error to raise: the first one, with the step it broke and the state after undoing."""
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
    if kind is not GitPushError:  # which says itself what was pushed
        what = f"{step} failed: {what}"
    return kind(what, state=state, remedy=remedy or "mend the cause named above and run sync_outputs() again.")


class _LocalChanges:
    """What a publication writes into the work tree: `.dvc` files and ignore lines; undone by bytes.

    What stood there before is kept in the clone's `.git` until the publication has ended, so that a later call can
    still undo what one that died or was left in doubt has written.
    """

    def __init__(self, run: Publication, private: Path) -> None:
        self._run = run
        self._note = private / f"before-{run.branch}.json"

    def add_to_dvc(self, repo: Any) -> list[tuple[StoredObject, Path]]:  # noqa: ANN401  dvc.repo.Repo
        """Let DVC hash the objects and write their `.dvc` files; nothing is copied into its cache."""
        if not self._note.exists():
            paths = [self._run.root / name for name in self._run.objects]
            files = {
                file for path in paths for file in (path.with_name(path.name + ".dvc"), path.parent / ".gitignore")
            }
            before = {str(file): file.read_bytes().hex() if file.exists() else None for file in sorted(files)}
            part = self._note.with_suffix(".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(before), encoding="utf-8")
            part.replace(self._note)
        repo.scm_context.quiet = True  # without the advice to `git add`: the publication's own index does that
        stages = repo.add([str(self._run.root / name) for name in self._run.objects], no_commit=True)
        found = {}
        for stage in stages:
            for out in stage.outs:
                path = Path(out.fs_path)
                found[path] = StoredObject(out.hash_info.value, path.stat().st_size)
        return [(found[self._run.root / name], self._run.root / name) for name in self._run.objects]

    def undo(self) -> None:
        """Put every file back to what it was."""
        if not self._note.exists():
            return
        for name, content in json.loads(self._note.read_text(encoding="utf-8")).items():
            file = Path(name)
            if content is None:
                file.unlink(missing_ok=True)
            elif not file.exists() or file.read_bytes().hex() != content:
                file.write_bytes(bytes.fromhex(content))
        self._note.unlink()

    def keep(self) -> None:
        """End the publication with its files in place."""
        with contextlib.suppress(OSError):  # it is published, whatever becomes of the note
            self._note.unlink(missing_ok=True)


class _Progress:
    """Bytes, rate and time left of all uploads together; also the way to stop those that are under way."""

    def __init__(self, total: int, *, shown: bool) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc="  uploading",
            disable=total == 0 or not shown,
            mininterval=5,
        )
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, count: int) -> None:
        if self._stopped.is_set():
            raise SyncError("the upload was stopped, since another one failed.")
        with self._lock:
            self._bar.update(count)

    def stop(self) -> None:
        """Let every upload end at its next block."""
        self._stopped.set()


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM into an exception while publishing, so that it is undone like any failure."""
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


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
