"""Roll back publications that did not finish, and clean up after those that did."""

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


OWNER, PROBE = "owner-", "probe-"  # marks on the DVC remote: the repository that may delete there; a proof of writing


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
        if seen.record is None or seen.record.id in ALIVE:
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
