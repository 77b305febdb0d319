"""Open both remotes of a clone; roll back publications that did not finish, and clean up after those that did.

Guarantees: `Remotes.recover` fences the owner first and deletes the intent last; between the two it deletes only copies
that were not stored before and that no branch, tag or uploading intent names. It may be interrupted after any line and
repeated. Cannot: know what another repository on the same DVC remote needs; there it deletes nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.errors import CommandError, DvcPushError, GitPushError, RunError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import Intent, Owner, StoredObject
from lib.sync.lease import ALIVE, Lease
from lib.sync.publication import Say
from lib.sync.refs import INTENT_PLACES, Refs, RefusedByHostError, SeenIntent
from lib.sync.stores.base import Objects, open_objects

CHECKPOINTS = "refs/heads/kaggle-checkpoint-*"
EVERYTHING = ("refs/heads/*", "refs/tags/*")
OWNER, PROBE = "owner-", "probe-"  # marks on the DVC remote: the repository that may delete there; a test write


@contextlib.contextmanager
def open_remotes(root: Path, credentials: Credentials) -> Iterator[Remotes]:
    """Yield the `Remotes` of the clone at `root`, with both remotes open. Raises `SyncError` if that fails."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with contextlib.ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo(str(root)))
            objects = open_objects(repo)
            stack.callback(_close, objects)
            remotes = Remotes(repo, Refs(root, credentials), objects, credentials.redact)
        except (CommandError, DvcException, OSError) as error:
            cause = error.what if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            raise SyncError(
                credentials.redact(f"{root} cannot be published from: {cause}"),
                state="nothing was changed.",
                remedy="run the command in a clone that Git and DVC can open, and free some space if the disk is full.",
            ) from error
        yield remotes


def _close(objects: Objects) -> None:
    # a failure to close must neither hide an earlier error nor make a success doubtful
    with contextlib.suppress(Exception):
        objects.close()


# What this process has seen on any Git remote: (url, ref) → commit and the monotonic time it was first seen there.
_SEEN: dict[tuple[str, str], tuple[str, float]] = {}


class Remotes:
    """Both remotes of a clone, and the rollback that owners, retries and other machines share."""

    def __init__(self, repo: Any, refs: Refs, objects: Objects, redact: Callable[[str], str]) -> None:  # noqa: ANN401
        self.repo, self.refs, self.objects, self.redact = repo, refs, objects, redact
        self.kept_because = ""
        """Why nothing is deleted from the DVC remote; empty where deleting is allowed."""
        self.me = Owner(journal.clone_name(refs.private / "clone"), journal.process_name(os.getpid()))

    def head(self) -> str:
        """Return the clone's HEAD commit, on which a publication is built."""
        import git

        with git.Repo(self.refs.root) as repo:
            return str(repo.head.commit.hexsha)

    def recover_all(self, older_than: float, say: Say) -> int:
        """Recover every intent that may be recovered, and return how many are left.

        Raises the first error, after trying all of them.
        """
        left, first = 0, None
        for seen in self.refs.read_intents():
            if seen.record is None:
                say(f"{seen.ref} was written by another version of this project and is left alone.")
                left += 1
            elif not self.may_recover(seen, older_than):
                left += 1
            else:
                try:
                    if self.recover(seen):
                        say(f"Recovered {seen.ref}: {_outcome(seen.record, self.kept_because)}")
                except Exception as error:  # noqa: BLE001  the other intents are still recovered
                    first = first or error
                    left += 1
        if first is not None:
            raise first
        return left

    def may_recover(self, seen: SeenIntent, older_than: float = journal.LEASE) -> bool:
        """Return whether the intent is ours, or its owner is dead: its process ended, or silent for `older_than` s.

        The silence is timed from the moment at which this process first sees the intent's commit: the clocks of two
        machines are never compared. Always False for an unreadable intent, and for one that a thread of this process
        owns right now.
        """
        now, key = time.monotonic(), (self.refs.url, seen.ref)
        commit, since = _SEEN.get(key, ("", now))
        if commit != seen.commit:
            since = now
            _SEEN[key] = (seen.commit, now)
        if seen.record is None or seen.record.id in ALIVE:
            return False
        owner = seen.record.owner  # ours: an earlier attempt of this process, which was given up
        return owner == self.me or owner.is_dead_here(self.me.clone) or now - since >= older_than

    @contextlib.contextmanager
    def declare(self, intent: Intent, say: Say, note: Callable[[str], object] = str) -> Iterator[Lease]:
        """Create the intent in the first place that the host accepts, and yield its lease.

        `note` receives each ref before it is tried. Creating the intent also proves that the token may write.
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
                        # the second place is a branch: the user can change the rules for branches
                        raise GitPushError(f"{first.what}\n{error.what}", remedy=error.remedy) from error
                    first = error
                else:
                    break
            if first is not None:
                say(f"The Git host refuses {INTENT_PLACES[0]}; the intent is stored as the branch {ref}.")
            yield lease

    def claim(self, label: str, say: Say) -> None:
        """Prove that the DVC remote accepts writes, and mark it as this repository's if it has no owner yet.

        Deleting, which a rollback needs, is tried too: the test write is deleted again. `label` is the id of the intent
        that is responsible for it.
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
                owners = self._owners()  # two first publications may have marked it at the same time
            self.objects.unmark(PROBE + label)
        except OSError as error:
            raise DvcPushError(
                f"{self.objects.name} is not writable ({type(error).__name__}: {error}).",
                remedy="make it writable, free some space on it, and run sync_outputs() again.",
            ) from error
        if self._keep_for(owners.difference(roots)):
            say(f"Note: {self.kept_because}. If this publication fails, its objects stay there.")

    def _owners(self) -> set[str]:
        return {name.removeprefix(OWNER) for name in self.objects.marks() if name.startswith(OWNER)}

    def is_foreign(self) -> bool:
        """Return whether the DVC remote may hold objects of another repository, which no ref of ours names."""
        return self._keep_for(self._owners().difference(self.refs.roots()))

    def _keep_for(self, others: Collection[str]) -> bool:
        """Set `kept_because` if the remote is marked as another repository's; return whether it is."""
        marked = f"{self.objects.name} is marked as that of the repository with the first commit"
        self.kept_because = f"{marked} {min(others)}" if others else ""
        return bool(others)

    def recover(self, seen: SeenIntent) -> bool:
        """Roll back an unfinished publication, or clean up after a committed one; return whether the intent was there.

        False means that another process recovered or committed it: the branch shows which. Raises `SyncError` if a
        remote cannot be reached or the intent is taken over; the intent then remains, and the call may be repeated.
        """
        assert seen.record is not None, "an intent of another version is never touched"
        record = seen.record.marked(self.me)
        with contextlib.ExitStack() as stack:
            try:
                lease = stack.enter_context(Lease(self.refs, seen.ref, record, seen.commit))
            except GitPushError:
                if self.refs.list_refs(seen.ref).get(seen.ref) == seen.commit:
                    raise
                return False
            # From here on the owner is fenced: its commit push is rejected as a whole. Publications that are still
            # uploading are read before the branches: one that commits between the two reads is seen as an intent, one
            # that committed before them as a branch. In the other order both reads could miss it.
            others = [item for item in self.refs.read_intents() if item.ref != seen.ref]
            named = self._with_parts(self.refs.named_objects(*EVERYTHING), record)
            try:
                self.objects.unmark(PROBE + record.id)
                for item in record.objects:
                    self.objects.discard(item.oid, record.id)
                to_delete = [i for i in record.to_delete if i.oid not in named and not _named_by(others, i.oid)]
                if to_delete and not self.is_foreign():
                    self._delete_new(to_delete, lease, others)
            except OSError as error:
                raise DvcPushError(
                    f"{self.objects.name}: objects could not be deleted ({type(error).__name__}: {error}).",
                    state=f"{seen.ref} stays on the Git remote.",
                    remedy="run `python -m lib recover` when the DVC remote answers.",
                ) from error
            try:
                lease.end()
            except GitPushError:
                if seen.ref in self.refs.list_refs(seen.ref):
                    raise
        _SEEN.pop((self.refs.url, seen.ref), None)
        return True

    def _with_parts(self, named: set[str], record: Intent) -> set[str]:
        """Return `named` and the files in its directory listings; read them only if an object to delete is unnamed."""
        if all(item.oid in named for item in record.to_delete):
            return named
        listings = self.objects.look([oid for oid in sorted(named) if oid.endswith(".dir")])
        return named.union(*(self.parts_of(oid) for oid in listings))

    def parts_of(self, listing: str) -> set[str]:
        """Return the objects that a directory listing names (DVC's `.dir` objects are JSON, read by DVC).

        Raises `DvcPushError` for a listing that cannot be read: the objects that it names must be kept.
        """
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        try:
            tree = Tree.load(self.repo.cloud.get_remote_odb(), HashInfo("md5", listing))
        except Exception as error:
            raise DvcPushError(
                f"{self.objects.name}: the listing {listing} of a folder cannot be read ({type(error).__name__}).",
                state="nothing was deleted, since the listing may name the objects to delete.",
                remedy="run the same command again in a minute.",
            ) from error
        return {info.value for _, (_, info) in tree.iteritems()}

    def _delete_new(self, to_delete: Sequence[StoredObject], lease: Lease, others: Sequence[SeenIntent]) -> None:
        """Delete every copy that was not stored before; right before each, check that the intent is still ours."""
        new = self._new_copies(to_delete)
        unreadable = [other.ref for other in others if other.record is None]
        if new and unreadable:
            raise SyncError(
                f"{', '.join(unreadable)} was written by another version of this project, and may name {new[0][0]}.",
                state=f"the object and {lease.ref} are kept.",
                remedy="update this project, then run `python -m lib recover`.",
            )
        for oid, identity in new:
            lease.reread()
            self.objects.delete(oid, identity)
        if new and (left := self._new_copies(to_delete)):
            raise DvcPushError(
                f"{self.objects.name} still has {left[0][0]} after deleting it.",
                state="the intent stays on the Git remote.",
                remedy="run `python -m lib recover` again in a minute.",
            )

    def _new_copies(self, items: Sequence[StoredObject]) -> list[tuple[str, str]]:
        """Return (object, identity) of every copy that was not stored before: directory listings first, then files.

        Clients take a listing as proof that its files are there.
        """
        stored = self.objects.look([item.oid for item in items])
        first = sorted(items, key=lambda item: not item.oid.endswith(".dir"))
        return [(item.oid, key) for item in first for key in stored.get(item.oid, {}) if key not in item.before]


def _named_by(others: Sequence[SeenIntent], oid: str) -> bool:
    """Return whether a publication that may still commit names the object, even if its lease has expired."""
    return any(
        other.record is not None and other.record.state == "uploading" and other.record.names(oid) for other in others
    )


def _outcome(record: Intent, kept: str) -> str:
    done = (
        f"{record.branch} is published, and the objects that it replaced are deleted"
        if record.state == "cleaning"
        else f"the unfinished publication of {record.branch} is rolled back"
    )
    return f"{done}; its objects stay, since {kept}." if kept else f"{done}."
