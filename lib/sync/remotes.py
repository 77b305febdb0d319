"""Open both remotes of a clone; delete what ended publications and replaced checkpoints left on the DVC remote.

Guarantees: an object's copy is deleted only by the identity that a run's ref declares, after that ref was moved (a late
commit push is then rejected), and only if no branch, tag or pull request names the object. A checkpoint's file is
deleted only if it was listed, *then* its session was seen not to hold the run, *then* the checkpoint branch was seen
not to name it: in this order that stays true for ever. Both may be interrupted after any line and repeated.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lib.errors import DvcPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.remotes.repository import outputs_of
from lib.sync.lock import CHECKPOINTS, RunLock
from lib.sync.publication import Say
from lib.sync.record import DeclaredCopy, RunRecord
from lib.sync.refs import Refs, as_sync_errors
from lib.sync.stores.base import FLAT, Store, StoredCopy, notice, open_store

AT_ONCE = 4
"""Uploads and deletions: Drive accepts two or three new files a second."""
EVERYTHING = ("refs/heads/*", "refs/tags/*", "refs/exps/*", "refs/pull/*/head", "refs/merge-requests/*/head")
"""Refs that name objects: those of runs, of people, of `dvc exp push`, and of pull requests of GitHub and GitLab."""
REPOSITORY, CHECKPOINT = f"{FLAT}repository-", f"{FLAT}checkpoint-"
"""Prefixes of flat files: the mark of a repository that publishes there, and a file of a checkpoint."""


@contextlib.contextmanager
def open_remotes(root: Path, credentials: Credentials) -> Iterator[Remotes]:
    """Yield the `Remotes` of the clone at `root`, with both remotes open. Raises `SyncError` if that fails."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    with contextlib.ExitStack() as stack:
        with as_sync_errors(f"opening {root} and its remotes", credentials.redact):
            try:
                repo, refs = stack.enter_context(Repo(str(root))), Refs(root, credentials)
            except NotDvcRepoError:
                remedy = "run `dvc init` and `dvc remote add -d storage gdrive://<folder id>` in it, and commit .dvc."
                raise SyncError(f"{root} is not set up for DVC.", state="nothing was changed.", remedy=remedy) from None
            store = open_store(repo)
        try:
            yield Remotes(repo, refs, store, credentials.redact)
        finally:
            # a failure to close must neither hide an earlier error nor make a success doubtful
            with contextlib.suppress(Exception):
                store.close()


class Remotes:
    """Both remotes of a clone, and the deletions that owners, retries and other machines share."""

    def __init__(self, repo: Any, refs: Refs, store: Store, redact: Callable[[str], str]) -> None:  # noqa: ANN401
        self.repo, self.refs, self.store, self.redact = repo, refs, store, redact
        self.kept = ""
        """Why what was to be deleted last stays; empty if it does not."""

    def claim(self, repository: str) -> None:
        """Mark the DVC remote as one that this repository publishes to; the mark needs no identity."""
        name = f"{REPOSITORY}{repository}"
        if name not in self.store.flat(name):
            with notice() as file:
                self.store.create(name, file, self.store.new_identities(1)[0])

    def kept_because(self, lock: RunLock) -> str:
        """Return why nothing may be deleted under objects' paths; empty if it may.

        Where copies lie side by side, each publication has its own. Elsewhere another repository, whose refs are not
        read here, may rely on the one copy of an object.
        """
        if self.store.keeps_twins:
            return ""
        if self.repositories() - {lock.held().repository}:
            return f"{self.store.name} is shared with another repository ({REPOSITORY}*)"
        # if this process dies, its probe is swept like a file of a checkpoint
        return self.store.limits(file_of(lock.held(), lock.name, 0, "probe"))

    def repositories(self) -> set[str]:
        """Return the identities of the repositories that publish to the DVC remote."""
        return {name.removeprefix(REPOSITORY) for name in self.store.flat(REPOSITORY)}

    # ── copies of objects ──────────────────────────────────────────────────────────────────────────────────────────

    def roll_back(self, lock: RunLock, say: Say, *, last: bool = False) -> None:
        """Delete every copy that the run's ref declares, then drop the list, or the ref itself if this is the `last`.

        Raises `TakenOverError` if the run is another session's: that session has the list.
        """
        record = lock.held()
        if record.publishing:
            record = record.but(publishing=(), undo=record.declared)
            lock.push(record)  # from here on a commit push that was sent earlier is rejected
        left = tuple(copy for copy in record.undo if copy.store != self.store.address()) if record.undo else ()
        if left:
            say(f"Note: {lock.ref} names copies on another DVC remote, {left[0].store}; `python -m lib recover` in a "
                "clone that uses it deletes them.")  # fmt: skip
        self.delete([copy for copy in record.undo if copy not in left], lock, say)
        if last and not left:
            lock.push(None)
        elif record.undo != left:
            lock.push(record.but(undo=left))

    def delete(self, copies: Iterable[DeclaredCopy], lock: RunLock, say: Say) -> None:
        """Delete these copies, unless something names their objects. Without twins, `lock` must still be held."""
        copies = list(copies)
        if not copies:
            return
        try:
            for copy in copies:  # what a killed upload has left, whatever happens to the copy
                self.store.delete_part(self.store.path_of(copy.oid), copy.identity)
            self.kept = self.kept_because(lock)
            if self.kept:
                say(f"Note: what was stored stays, since {self.kept}.")
                return
            named = self._named(copies, say)
            for copy in copies:
                if copy.oid in named:
                    continue
                if not self.store.keeps_twins:
                    lock.reread()
                self.store.delete(self.store.path_of(copy.oid), copy.identity)
        except OSError as error:
            raise DvcPushError(
                f"{self.store.name}: objects could not be deleted ({type(error).__name__}: {error}).",
                state="the run's ref on the Git remote still lists them.",
                remedy="run `python -m lib recover` when the DVC remote answers.",
            ) from error

    def _named(self, copies: Iterable[DeclaredCopy], say: Say) -> set[str]:
        """Return the objects that a ref names, with the files of its directory listings."""
        named = self.refs.named_objects(*EVERYTHING)
        wanted = {copy.oid for copy in copies} - named
        if wanted:
            for listing in sorted(self.store.look(oid for oid in named if oid.endswith(".dir"))):
                try:
                    named |= self.parts_of(listing)
                except DvcPushError as error:
                    say(f"Note: {error.what} What was stored stays, since the listing may name it.")
                    return named | wanted
        return named

    def parts_of(self, listing: str) -> set[str]:
        """Return the objects that a directory listing names (DVC's `.dir` objects are JSON, read by DVC).

        Raises `DvcPushError` for a listing that cannot be read: the objects that it names must be kept.
        """
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        try:
            tree = Tree.load(self.repo.cloud.get_remote_odb(), HashInfo("md5", listing))
        except Exception as error:
            texts = self.refs.read_files_of_all(EVERYTHING, "*.dvc").values()
            found = {file for files in texts for file in files.items()}
            names = {path for path, text in found if listing in (item.oid for _, item in outputs_of(path, text))}
            raise DvcPushError(
                f"{self.store.name}: the listing {listing} of a folder, which "
                f"{', '.join(sorted(names)) or 'an earlier commit'} names, cannot be read "
                f"({type(error).__name__}).",
                remedy="run the same command again in a minute; `dvc push` that file from a clone that has the folder.",
            ) from error
        return {info.value for _, (_, info) in tree.iteritems()}

    # ── files of checkpoints ───────────────────────────────────────────────────────────────────────────────────────

    def sweep(self, repository: str, run: str = "") -> None:
        """Delete the files of a repository's runs, or of one run, that no checkpoint will ever name again."""
        copies = [(name, copy.identity) for name, copies in self.waste(repository, run).items() for copy in copies]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sweep") as pool:
            list(pool.map(lambda copy: self.store.delete(*copy), copies))

    def waste(self, repository: str, run: str = "") -> dict[str, list[StoredCopy]]:
        """Return {name: copies} of the files of a repository's runs, or of one, that no checkpoint will ever name."""
        begin = f"{CHECKPOINT}{repository}-"
        parts = re.compile(rf"{re.escape(begin)}(.+)-([0-9a-f]{{16}})-\d+-\w+\.\w+")
        listed = self.store.flat(begin + (f"{run}-" if run else ""))
        found = {name: match.groups() for name in listed if (match := parts.fullmatch(name)) and run in ("", match[1])}
        if not found:
            return {}
        holders = self.refs.read_runs(run)  # after the listing
        named = self.named_files(run)  # after the holders
        held = {(name, holder.record.session) for name, holder in holders.items() if holder.record}
        unknown = {name for name, holder in holders.items() if not holder.record}  # another version holds these
        return {
            name: listed[name]
            for name, of in found.items()
            if name not in named and of not in held and of[0] not in unknown
        }

    def named_files(self, run: str = "") -> set[str]:
        """Return the names of the files that checkpoint branches name now."""
        texts = self.refs.read_files_of_all(f"{CHECKPOINTS}{run}*", "*/checkpoint.json")
        return {file["name"] for files in texts.values() for file in named_by(files)}


def file_of(record: RunRecord, run: str, number: int, name: str) -> str:
    """Return the name of a flat file of a session; it is swept once the session has ended."""
    return f"{CHECKPOINT}{record.repository}-{run}-{record.session}-{number}-{name}"


def named_by(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the entries of `files` in the texts of these `checkpoint.json`; earlier versions have none."""
    found: list[dict[str, Any]] = []
    for text in texts.values():
        with contextlib.suppress(ValueError, AttributeError):  # a file of the user's with the same name
            found += json.loads(text).get("files", ())
    return found
