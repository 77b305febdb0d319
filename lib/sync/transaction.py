"""Publishing, undoing and recovering; the protocol stands in the package's docstring.

All the difficulty is in `Vault.settle`: it is the same for an owner whose upload failed and for a stranger who
finds a dead machine's intent, it may die after any line and be run again, and it deletes only what it must.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from lib.errors import CommandError, DvcPushError, GitPushError, InDoubt, RunError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import Intent, Owner, Run, StoredObject
from lib.sync.refs import INTENT_PLACES, Move, Refs, RefusedByHostError, SeenIntent
from lib.sync.stores.base import Objects, damaged, open_objects

CHECKPOINTS = "refs/heads/kaggle-checkpoint-*"
EVERYTHING = ("refs/heads/*", "refs/tags/*")
SIDE_BY_SIDE = 4  # uploads at once: Drive takes two or three new files a second
PATIENCE = 2 * journal.LEASE  # how long to wait for somebody else's undoing: it is dead or done by then
OWNER, PROBE = "owner-", "probe-"  # marks on the DVC remote: the repository that may delete there; a proof of writing


class Hold(Protocol):
    """What a publication needs of the run that it is of; see `lib.sync.hold`."""

    def moved_along(self, refs: Refs) -> contextlib.AbstractContextManager[Move]:
        """Give the move that the commit push makes as well."""


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
    supersedes: tuple[str, ...] = ()
    """Branches that this one takes the place of, in the same push: they are gone when it is visible, and after them
    the objects that nothing else names. With `branch` itself among them the branch moves."""
    hold: Hold | None = None
    """The run that this is of: the commit push is refused where another session has taken it over."""


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


def recover(
    root: Path, credentials: Credentials | None = None, *, older_than: float = journal.LEASE, say: Say = print
) -> int:
    """Settle every intent on the Git remote that is this clone's or has not moved for `older_than` seconds.

    Time is measured by this process alone: what is seen for the first time now is only noted, and settled by a later
    call. Give the number of intents that are left. Raises the error of the first one that could not be settled, after
    trying all.
    """
    credentials = credentials or Credentials()
    with open_vault(root, credentials) as vault:
        try:
            return vault.recover(older_than, say)
        except OSError as error:
            raise SyncError(
                credentials.redact(f"recovering stopped: {type(error).__name__}: {error}"),
                state="what is not settled yet stands on the Git remote as an intent.",
                remedy="free some space if the disk is full, check the DVC remote, and run the same again.",
            ) from error


@contextlib.contextmanager
def open_vault(root: Path, credentials: Credentials) -> Iterator[Vault]:
    """Open both remotes of the clone at `root`. Raises `SyncError` where that cannot be done."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with contextlib.ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo(str(root)))
            objects = open_objects(repo)
            stack.callback(_close, objects)
            vault = Vault(repo, Refs(root, credentials), objects, credentials.redact)
        except (CommandError, DvcException, OSError) as error:
            told = error.what if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            raise SyncError(
                credentials.redact(f"{root} cannot be published from: {told}"),
                state="nothing was changed.",
                remedy="run it in a clone with Git and DVC set up, whose disk is not full.",
            ) from error
        yield vault


def _close(objects: Objects) -> None:
    # what closing cannot do is no reason to hide an error, or to doubt a success
    with contextlib.suppress(Exception):
        objects.close()


# What this process has seen on any Git remote: (url, ref) → commit and when it was first seen there, monotonic.
_SEEN: dict[tuple[str, str], tuple[str, float]] = {}
# The intents that a thread of this process answers for right now.
_ALIVE: set[str] = set()


class Vault:
    """Both remotes, and the undoing that every role shares."""

    def __init__(self, repo: Any, refs: Refs, objects: Objects, redact: Callable[[str], str]) -> None:  # noqa: ANN401
        self.repo, self.refs, self.objects, self.redact = repo, refs, objects, redact
        self.keeps = ""
        """Why nothing was deleted from the DVC remote, if that is so."""
        self.me = Owner(journal.clone_name(refs.private / "clone"), journal.process_name(os.getpid()))

    def head(self) -> str:
        """Give the clone's own commit, which a publication is built on."""
        import git

        with git.Repo(self.refs.root) as repo:
            return str(repo.head.commit.hexsha)

    def recover(self, older_than: float, say: Say) -> int:
        """Settle what may be settled; see `recover()`."""
        left, first = 0, None
        for seen in self.refs.read_intents():
            if seen.record is None:
                say(f"{seen.ref} was written by another version of this project and is left alone.")
                left += 1
            elif not self.may_settle(seen, older_than):
                left += 1
            else:
                try:
                    if self.settle(seen):
                        say(f"Settled {seen.ref}: {_outcome(seen.record, self.keeps)}")
                except Exception as error:  # noqa: BLE001  the others are settled all the same
                    first = first or error
                    left += 1
        if first is not None:
            raise first
        return left

    def may_settle(self, seen: SeenIntent, older_than: float = journal.LEASE) -> bool:
        """Whether the intent is ours, its process has ended on this machine, or it has not moved for so many seconds.

        An intent that is seen for the first time is only noted: two machines' clocks are never compared.
        """
        now, key = time.monotonic(), (self.refs.url, seen.ref)
        commit, since = _SEEN.get(key, ("", now))
        if commit != seen.commit:
            since = now
            _SEEN[key] = (seen.commit, now)
        if seen.record is None or seen.record.id in _ALIVE:
            return False
        owner = seen.record.owner  # ours: an earlier attempt of this process, given up
        return owner == self.me or owner.is_dead_here(self.me.clone) or now - since >= older_than

    @contextlib.contextmanager
    def declare(self, intent: Intent, say: Say, note: Callable[[str], object] = str) -> Iterator[Lease]:
        """Create the intent where the host takes it; `note` is told the ref before it is tried.

        This proves too that the token may write.
        """
        with contextlib.ExitStack() as stack:
            first: RefusedByHostError | None = None
            for place in INTENT_PLACES:
                ref = f"{place}{intent.id}"
                note(ref)
                try:
                    lease = stack.enter_context(Lease(self.refs, ref, intent, None))
                except RefusedByHostError as error:
                    if first is not None:
                        # the second place is a branch: its rules are what the user can change
                        raise GitPushError(f"{first.what}\n{error.what}", remedy=error.remedy) from error
                    first = error
                else:
                    break
            if first is not None:
                say(f"The Git host refuses {INTENT_PLACES[0]}; the intent is the branch {ref} for now.")
            yield lease

    def claim(self, label: str, say: Say) -> None:
        """Prove that the DVC remote takes writes, and mark it as this repository's if nobody has.

        What undoing will need is tried too: the proof is removed again. `label` is the intent that answers for it.
        """
        roots = self.refs.roots()
        if not roots:
            raise GitPushError(
                f"{self.refs.url} has no branch that a run could have been trained from.",
                remedy="push the branch that was trained from, then publish again.",
            )
        try:
            self.objects.mark(PROBE + label)
            owners = self._owners()
            if not owners:
                self.objects.mark(OWNER + min(roots))
                owners = self._owners()  # two first publications may have marked it at once
            self.objects.unmark(PROBE + label)
        except OSError as error:
            raise DvcPushError(
                f"{self.objects.name} takes no writes ({type(error).__name__}: {error}).",
                remedy="make it writable, free some space on it, and run sync_outputs() again.",
            ) from error
        if self._keep_for(owners.difference(roots)):
            say(f"Note: {self.keeps}. Should this publication fail, its objects stay there.")

    def _owners(self) -> set[str]:
        return {name.removeprefix(OWNER) for name in self.objects.marks() if name.startswith(OWNER)}

    def is_foreign(self) -> bool:
        """Whether another repository's objects may lie on the DVC remote, which no ref of ours could name."""
        return self._keep_for(self._owners().difference(self.refs.roots()))

    def _keep_for(self, others: Collection[str]) -> bool:
        """Note for which other repositories nothing is deleted; whether there is one."""
        told = f"{self.objects.name} is marked as that of the repository with the first commit"
        self.keeps = f"{told} {min(others)}" if others else ""
        return bool(others)

    def settle(self, seen: SeenIntent) -> bool:
        """Undo an unfinished publication, or clean up after a committed one; whether an intent was there to settle.

        False means that it was settled by somebody else, or committed: the branch decides. Raises `SyncError` where a
        remote cannot be reached or the mark is lost; the intent then stands, and the same may be called again.
        """
        assert seen.record is not None, "an intent of another version is never touched"
        record = seen.record.marked(self.me)
        with contextlib.ExitStack() as stack:
            try:
                mark = stack.enter_context(Lease(self.refs, seen.ref, record, seen.commit))
            except GitPushError:
                if self.refs.list_refs(seen.ref).get(seen.ref) == seen.commit:
                    raise
                return False
            # From here on the owner's commit push is refused whole. Publications that are still uploading are read
            # before the branches: one that commits in between is then seen as an intent, and else as a branch.
            others = [item for item in self.refs.read_intents() if item.ref != seen.ref]
            named = self._with_parts(self.refs.named_objects(*EVERYTHING), record)
            try:
                self.objects.unmark(PROBE + record.id)
                for item in record.objects:
                    self.objects.discard(item.oid, record.id)
                doomed = [i for i in record.doomed if i.oid not in named and not _named_by(others, i.oid)]
                if doomed and not self.is_foreign():
                    self._delete_new(doomed, mark, others)
            except OSError as error:
                raise DvcPushError(
                    f"{self.objects.name}: objects could not be deleted ({type(error).__name__}: {error}).",
                    state=f"{seen.ref} stands on the Git remote.",
                    remedy="run `python -m lib recover` when the DVC remote answers.",
                ) from error
            try:
                mark.end()
            except GitPushError:
                if seen.ref in self.refs.list_refs(seen.ref):
                    raise
        _SEEN.pop((self.refs.url, seen.ref), None)
        return True

    def _with_parts(self, named: set[str], record: Intent) -> set[str]:
        """Add the files that the named listings of folders hold; read only where something doomed is unnamed."""
        if all(item.oid in named for item in record.doomed):
            return named
        listings = self.objects.look([oid for oid in sorted(named) if oid.endswith(".dir")])
        return named.union(*(self.parts_of(oid) for oid in listings))

    def parts_of(self, listing: str) -> set[str]:
        """Give the objects that the listing of a folder names (DVC's `.dir` objects are JSON, read by DVC).

        Raises `DvcPushError` for a listing that cannot be read: what it names must be kept.
        """
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        try:
            tree = Tree.load(self.repo.cloud.get_remote_odb(), HashInfo("md5", listing))
        except Exception as error:
            raise DvcPushError(
                f"{self.objects.name}: the listing {listing} of a folder cannot be read ({type(error).__name__}).",
                state="nothing was deleted, since it may name what would be.",
                remedy="run the same again in a minute.",
            ) from error
        return {info.value for _, (_, info) in tree.iteritems()}

    def _delete_new(self, doomed: Sequence[StoredObject], mark: Lease, others: Sequence[SeenIntent]) -> None:
        """Delete every copy that was not there before, asking right before each whether the mark is still ours."""
        new = self._new_copies(doomed)
        unreadable = [other.ref for other in others if other.record is None]
        if new and unreadable:
            raise SyncError(
                f"{', '.join(unreadable)} was written by another version of this project, and may name {new[0][0]}.",
                state=f"the object and {mark.ref} are kept.",
                remedy="update this project, then run `python -m lib recover`.",
            )
        for oid, identity in new:
            mark.reread()
            self.objects.delete(oid, identity)
        if new and (left := self._new_copies(doomed)):
            raise DvcPushError(
                f"{self.objects.name} still has {left[0][0]} after deleting it.",
                state="the intent stands on the Git remote.",
                remedy="run `python -m lib recover` again in a minute.",
            )

    def _new_copies(self, items: Sequence[StoredObject]) -> list[tuple[str, str]]:
        """Give name and identity of what was not there before; a directory's listing first, then its files.

        Clients take the listing as proof that the files are there.
        """
        standing = self.objects.look([item.oid for item in items])
        first = sorted(items, key=lambda item: not item.oid.endswith(".dir"))
        return [(item.oid, key) for item in first for key in standing.get(item.oid, {}) if key not in item.before]


def _named_by(others: Sequence[SeenIntent], oid: str) -> bool:
    """Whether a publication that may still commit names the object, whatever its lease."""
    return any(
        other.record is not None and other.record.state == "uploading" and other.record.names(oid) for other in others
    )


def _outcome(record: Intent, kept: str) -> str:
    done = (
        f"{record.branch} is published, and what it took the place of is deleted"
        if record.state == "cleaning"
        else f"the unfinished publication of {record.branch} is undone"
    )
    return f"{done}; its objects stay, since {kept}." if kept else f"{done}."


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
        _ALIVE.add(self._record.id)
        try:
            self._renewed = time.monotonic()
            self._move(self._old, self._refs.write_intent(self._record))
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
