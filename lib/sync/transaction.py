"""Publishing, undoing and recovering; the protocol stands in the package's docstring.

All the difficulty is in `_Transaction.undo`: it is the same for an owner whose upload failed and for a stranger who
finds a dead machine's intent, it may die after any line and be run again, and it deletes only what it must.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from lib.credentials import Credentials
from lib.errors import DvcPushError, GitPushError, InDoubt, RunError, SyncError
from lib.sync import intent as journal
from lib.sync.intent import Intent, Owner, StoredObject
from lib.sync.objects import Objects, damaged, open_objects
from lib.sync.refs import INTENTS, Move, Refs, SeenIntent

CHECKPOINTS = "refs/heads/kaggle-checkpoint-*"
EVERYTHING = ("refs/heads/*", "refs/tags/*")
SIDE_BY_SIDE = 4  # uploads at once: Drive takes two or three new files a second
PATIENCE = 2 * journal.LEASE  # how long to wait for somebody else's undoing: it is dead or done by then


@dataclass(frozen=True)
class Publication:
    """What becomes visible together.

    `root` is the clone; `folder` holds everything to publish, and `objects` those of its files that go to the DVC
    remote; both are relative to `root` with forward slashes. `stamp` is the run's time (UTC, aware): with the content
    it is all that the commit depends on, so that a retry builds the same one.
    """

    root: Path
    branch: str
    message: str
    folder: str
    objects: tuple[str, ...]
    stamp: datetime
    leave_out: frozenset[str] = frozenset()
    """Names of files in `folder` that stay on this machine."""


@dataclass(frozen=True)
class Published:
    """A publication that is visible."""

    branch: str
    commit: str
    uploaded: int
    """Bytes that had to be sent; what stood on the remote already was not."""
    before: bool = False
    """Whether it had been published by an earlier call."""


Say = Callable[[str], object]


def sync_outputs(run: Publication, credentials: Credentials | None = None, *, say: Say = print) -> Published:
    """Publish all of a run, or nothing of it; the models stay where they are in both cases.

    May be called again after any failure, and publishes once. Raises `DvcPushError` or `GitPushError` when a remote
    refused (everything is undone), `SyncError` when this machine stopped it, `InDoubt` when the answer to the last
    push was lost and the Git remote cannot be asked: then nothing is deleted, and `recover()` or another call settles
    it. Clean-up that failed too is told in the notes of the error that came first.
    """
    credentials = credentials or Credentials()
    with _signals_as_exceptions(), _opened(run.root, credentials) as vault:
        return _Publishing(vault, run, say).publish()


def recover(
    root: Path, credentials: Credentials | None = None, *, older_than: float = journal.LEASE, say: Say = print
) -> int:
    """Settle every intent on the Git remote that is this clone's or has not moved for `older_than` seconds.

    Time is measured by this process alone: what is seen for the first time now is only noted, and settled by a later
    call. Give the number of intents that are left. Raises the error of the first one that could not be settled, after
    trying all.
    """
    with _opened(root, credentials or Credentials()) as vault:
        return vault.recover(older_than, say)


@contextlib.contextmanager
def _opened(root: Path, credentials: Credentials) -> Iterator[_Vault]:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        objects = open_objects(repo)
        try:
            yield _Vault(repo, Refs(root, credentials), objects, credentials.redact)
        finally:
            objects.close()


# What this process has seen on any Git remote: (url, ref) → commit and when it was first seen there, monotonic.
_SEEN: dict[tuple[str, str], tuple[str, float]] = {}
# The intents that a thread of this process answers for right now.
_ALIVE: set[str] = set()


class _Vault:
    """Both remotes, and the undoing that every role shares."""

    def __init__(self, repo: Any, refs: Refs, objects: Objects, redact: Callable[[str], str]) -> None:  # noqa: ANN401
        self.repo, self.refs, self.objects, self.redact = repo, refs, objects, redact
        name = refs.private / "clone"
        if not name.exists():
            refs.private.mkdir(parents=True, exist_ok=True)
            name.write_text(f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}", encoding="utf-8")
        self.me = Owner(name.read_text(encoding="utf-8"), journal.process_name(os.getpid()))

    def recover(self, older_than: float, say: Say) -> int:
        """Settle what may be settled; see `recover()`."""
        left, first = 0, None
        now = time.monotonic()
        for seen in self.refs.read_intents():
            key = (self.refs.url, seen.ref)
            commit, since = _SEEN.get(key, ("", now))
            if commit != seen.commit:
                since = now
                _SEEN[key] = (seen.commit, now)
            if seen.record is None:
                say(f"{seen.ref} was written by another version of this project and is left alone.")
                left += 1
            elif self._is_settleable(seen.record, since, now, older_than):
                try:
                    if self.undo(seen):
                        say(f"Settled {seen.ref}: the unfinished publication of {seen.record.branch} is undone.")
                except Exception as error:  # noqa: BLE001  the others are settled all the same
                    first = first or error
                    left += 1
            else:
                left += 1
        if first is not None:
            raise first
        return left

    def _is_settleable(self, record: Intent, since: float, now: float, older_than: float) -> bool:
        if record.id in _ALIVE:
            return False
        mine = record.owner == self.me  # an earlier attempt of this process, given up
        return mine or record.owner.is_dead_here(self.me.clone) or now - since >= older_than

    def undo(self, seen: SeenIntent) -> bool:
        """Undo an unfinished publication; whether an intent was there to undo.

        False means that it was settled by somebody else, or committed: the branch decides. Raises `GitPushError` or
        `DvcPushError` where a remote cannot be reached; the intent then stands, and the same may be called again.
        """
        if seen.record is None:
            raise SyncError(
                f"{seen.ref} was written by another version of this project.",
                state="it is left alone.",
                remedy="update this project and run `python -m lib recover`.",
            )
        record = seen.record.marked(self.me)
        with _Lease(self.refs, seen.ref, record, seen.commit) as mark:
            # From here on the owner's commit push is refused whole. Publications that are still uploading are read
            # before the branches: one that commits in between is then seen as an intent, and else as a branch.
            others = [item for item in self.refs.read_intents() if item.ref != seen.ref]
            named = self.refs.named_objects(*EVERYTHING)
            # a directory's listing goes first: clients take it as proof that its files are there
            for item in sorted(record.objects, key=lambda item: not item.oid.endswith(".dir")):
                kept = item.oid in named or any(
                    other.record is None or (other.record.state == "uploading" and other.record.names(item.oid))
                    for other in others
                )
                if not kept:
                    self._delete_new(item, mark)
            mark.close_by(Move(seen.ref, mark.commit, None))
        _SEEN.pop((self.refs.url, seen.ref), None)
        return True

    def _delete_new(self, item: StoredObject, mark: _Lease) -> None:
        for identity in self.objects.look([item.oid]).get(item.oid, {}):
            if identity not in item.before:
                mark.confirm()
                self.objects.delete(item.oid, identity)
        left = set(self.objects.look([item.oid]).get(item.oid, {})) - set(item.before)
        if left:
            raise DvcPushError(
                f"{self.objects.name} still has {item.oid} after deleting it.",
                state="the intent stands on the Git remote.",
                remedy="run `python -m lib recover` again in a minute.",
            )


class _Lease:
    """A ref that this process answers for: rewritten every two minutes, given up when that fails for too long.

    Used as a context: enters by writing the record over `old` (None creates the ref).
    """

    def __init__(self, refs: Refs, ref: str, record: Intent, old: str | None) -> None:
        self._refs, self.ref, self._record, self._old = refs, ref, record, old
        self.commit = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {ref}", daemon=True)
        self._renewed = 0.0

    def __enter__(self) -> Self:
        _ALIVE.add(self._record.id)
        try:
            self._renewed = time.monotonic()
            self.commit = self._refs.write_intent(self._record)
            self._refs.push(Move(self.ref, self._old, self.commit))
        except BaseException:
            _ALIVE.discard(self._record.id)
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        _ALIVE.discard(self._record.id)

    def join(self) -> None:
        """Stop renewing, so that nothing moves the ref but the caller."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def close_by(self, *moves: Move) -> None:
        """Make the push that ends the lease."""
        self.join()
        self.confirm()
        self._refs.push(*moves)

    def confirm(self) -> None:
        """Raise `GitPushError` unless the ref is ours for certain: the last renewal is younger than the lease."""
        if time.monotonic() - self._renewed < journal.LEASE - journal.RENEWAL:
            return
        raise GitPushError(
            f"{self.ref} could not be renewed on {self._refs.url} for {journal.LEASE - journal.RENEWAL:.0f} s.",
            state="others may take this publication for dead; nothing more is uploaded or deleted by it.",
            remedy="check the network and run sync_outputs() again.",
        )

    def _renew(self) -> None:
        while not self._stop.wait(journal.RENEWAL):
            began = time.monotonic()
            record = self._record.renewed()
            # a failed renewal is tried again in two minutes; `confirm` says when it is too late
            with contextlib.suppress(Exception):
                commit = self._refs.write_intent(record)
                try:
                    self._refs.push(Move(self.ref, self.commit, commit))
                except GitPushError:
                    # the push may have happened and only its answer be lost
                    if self._refs.list_refs(self.ref).get(self.ref) != commit:
                        continue
                self._record, self.commit, self._renewed = record, commit, began


class _Publishing:
    """One call of `sync_outputs`."""

    def __init__(self, vault: _Vault, run: Publication, say: Say) -> None:
        self.vault, self.run, self.say = vault, run, say
        self.ref = ""
        self.uploaded = 0
        self._head = f"refs/heads/{run.branch}"
        self._committed = False
        self._local = _LocalChanges(run)

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
            standing = self.vault.refs.list_refs(self._head).get(self._head)
            if standing is not None:
                return self._published_before(standing)
            self.vault.recover(journal.LEASE, say)
            say(f"Phase 2: DVC push ({_mebibytes(sum(item.size for item, _ in sources))} to {self.vault.objects.name})")
            step = "DVC push"
            intent = self._plan([item for item, _ in sources])
            self.ref = f"{INTENTS}{intent.id}"
            with _Lease(self.vault.refs, self.ref, intent, None) as lease:
                self._listen(intent)
                self._upload(sources, lease)
                self._verify([item for item, _ in sources])
                say("Phase 3: Git staging (artifacts + .dvc files)")
                step = "Git staging"
                commit = self._stage()
                say(f"Phase 4: Git push (create branch {run.branch})")
                step = "Git push"
                lease.join()
                self._commit(lease, commit)
        except InDoubt:
            raise
        except BaseException as error:
            if self._committed:  # Ctrl-C in the very push that decided: there is nothing to undo
                say(f"{run.branch} is published.")
                raise
            self._undo(error, step)
        return Published(run.branch, commit, self.uploaded)

    # ── the steps ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_files(self) -> None:
        for name in self.run.objects:
            path = self.run.root / name
            if not path.is_file() or path.stat().st_size == 0:
                raise SyncError(
                    f"{path} is missing or empty.", remedy="train again, or correct the publication's list."
                )

    def _published_before(self, standing: str) -> Published:
        """Tell a retry that it has succeeded already, or that the name belongs to another run."""
        if self._stage() != standing:
            raise GitPushError(
                f"the branch {self.run.branch} is there already, with other content.",
                remedy="publish under another name: a new run has a new time stamp.",
            )
        self.say(f"{self.run.branch} is published already, with all of this run; there is nothing to do.")
        return Published(self.run.branch, standing, 0, before=True)

    def _plan(self, items: Sequence[StoredObject]) -> Intent:
        """Probe and adopt: give the intent that says what stood there before."""
        oids = [item.oid for item in items]
        standing = self.vault.objects.look(oids)
        # Branches before intents: a checkpoint that moves in between is then seen as an intent that is cleaning.
        checkpoints = self.vault.refs.list_refs(CHECKPOINTS)
        moving = self.vault.refs.named_objects(CHECKPOINTS) if checkpoints else set()
        others = [seen.record for seen in self.vault.refs.read_intents() if seen.record is not None]

        def stays(oid: str, identity: str) -> bool:
            return oid not in moving and not any(other.may_delete(oid, identity) for other in others)

        return Intent(
            id=journal.new_intent_id(),
            state="uploading",
            branch=self.run.branch,
            base=self._base(),
            owner=self.vault.me,
            objects=tuple(
                replace(item, before=tuple(i for i in standing.get(item.oid, {}) if stays(item.oid, i)))
                for item in items
            ),
        )

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
                and seen.record.state in ("aborting", "cleaning")
                and any(seen.record.names(item.oid) for item in intent.objects)
            ]
            if not busy:
                return
            if not told:
                self.say("Another run is cleaning up objects of the same content; waiting for it.")
                told = True
            self.vault.recover(journal.LEASE, self.say)
            if time.monotonic() > deadline:
                raise DvcPushError(
                    f"{busy[0].ref} has been cleaning up the same objects for {PATIENCE:.0f} s.",
                    remedy="run `python -m lib recover`, then sync_outputs() again.",
                )
            time.sleep(pause)
            pause = min(2 * pause, 10)

    def _upload(self, sources: Sequence[tuple[StoredObject, Path]], lease: _Lease) -> None:
        """Probe again and send what is missing, side by side; a directory's listing after its files."""
        there = self.vault.objects.look([item.oid for item, _ in sources])
        missing = [(item, path) for item, path in {s[0].oid: s for s in sources}.values() if item.oid not in there]
        with _progress(sum(item.size for item, _ in missing)) as progress:
            for listings in (False, True):
                batch = [(item, path) for item, path in missing if item.oid.endswith(".dir") == listings]
                with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="upload") as pool:
                    lease.confirm()
                    jobs = [pool.submit(self._send, item, path, progress) for item, path in batch]
                    try:
                        for job in as_completed(jobs):
                            job.result()
                            lease.confirm()
                    except BaseException:
                        pool.shutdown(wait=True, cancel_futures=True)
                        raise
        self.uploaded = sum(item.size for item, _ in missing)

    def _send(self, item: StoredObject, path: Path, progress: Callable[[int], object]) -> None:
        before = path.stat()
        self.vault.objects.upload(item.oid, path, progress)
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
                    remedy="remove that damaged copy by hand if it is older than this run, then publish again.",
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
        return self.vault.refs.build_commit(self._base(), files, run.message, run.stamp.isoformat())

    def _base(self) -> str:
        import git

        with git.Repo(self.run.root) as repo:
            return repo.head.commit.hexsha

    def _commit(self, lease: _Lease, commit: str) -> None:
        """Make the one push that decides; when its answer is lost, ask the remote."""
        moves = (Move(self._head, None, commit), Move(self.ref, lease.commit, None))
        try:
            lease.close_by(*moves)
        except BaseException as error:
            try:
                standing = self.vault.refs.list_refs(self._head).get(self._head)
            except RunError as unreachable:
                raise InDoubt(
                    f"the answer to the last push was lost, and {self.vault.refs.url} cannot be asked: "
                    f"{self.run.branch} is published, or it is not.\n{error}",
                    state="everything is kept: the models here, the objects on the DVC remote, the intent "
                    f"{self.ref} on the Git remote if it was not published.",
                    remedy="when the Git remote answers, run sync_outputs() again, or `python -m lib recover`.",
                ) from unreachable
            self._committed = standing == commit
            if not (self._committed and isinstance(error, Exception)):
                raise

    # ── undoing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _undo(self, error: BaseException, step: str) -> NoReturn:
        """Undo everything, whatever fails on the way, and raise the first error with what is true now."""
        failures: list[str] = []
        for attempt in (self._undo_remotely, self._local.undo):
            try:
                attempt()
            except Exception as trouble:  # noqa: BLE001  each is tried, and the first error is the one shown
                failures.append(self.vault.redact(f"{type(trouble).__name__}: {trouble}"))
        models = ", ".join(self.run.objects)
        if failures:
            state = (
                f"it is not published, and undoing it could not be finished: {'; '.join(failures)}. "
                f"The models are in place: {models}. `python -m lib recover` finishes it."
            )
        else:
            state = f"everything is undone: no branch, no new object, no .dvc file. The models are in place: {models}."
        raise _told(error, step, state, self.vault.redact) from error

    def _undo_remotely(self) -> None:
        if not self.ref:
            return
        for seen in self.vault.refs.read_intents():
            if seen.ref == self.ref:
                self.vault.undo(seen)


def _told(error: BaseException, step: str, state: str, redact: Callable[[str], str]) -> BaseException:
    """Give the error to raise: the first one, with the step it broke and the state after undoing."""
    if not isinstance(error, Exception):
        return type(error)(*error.args, state) if isinstance(error, KeyboardInterrupt) else error
    if isinstance(error, RunError):
        kind: type[SyncError] = type(error) if isinstance(error, SyncError) else SyncError
        if step == "DVC push" and kind is SyncError:
            kind = DvcPushError
        what, remedy = error.what, error.remedy
    else:
        kind = {"DVC push": DvcPushError, "Git push": GitPushError}.get(step, SyncError)
        what = redact(f"{type(error).__name__}: {error}")
        remedy = ""
    hint = {
        DvcPushError: "check that the Google Drive credentials are valid and the folder is writable, then run sync_outputs() again.",  # noqa: E501
        GitPushError: "verify GITHUB_TOKEN and the network, then run sync_outputs() again.",
    }.get(kind, "mend the cause named above and run sync_outputs() again.")
    what = what if what.startswith(f"{step} failed") else f"{step} failed: {what}"
    return kind(what, state=state, remedy=remedy or hint)


class _LocalChanges:
    """What a publication writes into the work tree: `.dvc` files and ignore lines; undone by bytes."""

    def __init__(self, run: Publication) -> None:
        self._run = run
        self._before: dict[Path, bytes | None] = {}

    def add_to_dvc(self, repo: Any) -> list[tuple[StoredObject, Path]]:  # noqa: ANN401  dvc.repo.Repo
        """Let DVC hash the objects and write their `.dvc` files; nothing is copied into its cache."""
        for name in self._run.objects:
            path = self._run.root / name
            for file in (path.with_name(path.name + ".dvc"), path.parent / ".gitignore"):
                self._before[file] = file.read_bytes() if file.exists() else None
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
        for file, content in self._before.items():
            if content is None:
                file.unlink(missing_ok=True)
            elif file.read_bytes() != content:
                file.write_bytes(content)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """Show bytes, rate and time left while uploading; one line when there is nothing to send."""
    from tqdm import tqdm

    lock = threading.Lock()
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="  uploading", disable=total == 0,
              mininterval=5) as bar:  # fmt: skip

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


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
