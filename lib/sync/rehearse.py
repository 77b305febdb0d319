"""Try on both remotes what a publication will need, before anything costs time; leave nothing behind.

Guarantees: a real intent and a real branch are pushed and deleted again, because `git push --dry-run` runs no
server-side hooks and does not check write permission. The branch points at the run's own commit, so the host's CI has
nothing new to build. On the DVC remote a mark is written and deleted. A rehearsal that dies leaves an intent, which is
recovered like any other, and a branch, which the next rehearsal deletes.
Cannot: promise that the same is still allowed hours later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import DvcPushError, GitPushError, RunError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import Intent
from lib.sync.lease import Lease
from lib.sync.publication import Say
from lib.sync.refs import RefUpdate
from lib.sync.remotes import Remotes, open_remotes

BRANCHES = "kaggle-train-rehearsal-"
"""Prefix of the throw-away branches: it begins like published ones, so that the host's rules for those apply."""


@dataclass(frozen=True)
class Rehearsed:
    """The result for each remote: a line to show, or the error in which a publication would end."""

    git: str | GitPushError
    dvc: str | RunError
    room: int | None
    """Bytes that can still be stored on the DVC remote; None if it does not report this."""
    missing: tuple[str, ...] = ()
    """The wanted objects that are not on the DVC remote."""


def rehearse(
    root: Path, credentials: Credentials | None = None, *, wanted: Sequence[str] = (), say: Say = print
) -> Rehearsed:
    """Run a publication without content, and check whether the objects `wanted` (hex MD5) are on the DVC remote.

    Raises `SyncError` if one of the remotes cannot be opened at all.
    """
    with open_remotes(root, credentials or Credentials()) as remotes:
        label = journal.new_intent_id()
        intent = Intent(label, "uploading", f"{BRANCHES}{label}", remotes.head(), remotes.me, ())
        dvc: str | RunError | None = None
        try:
            with remotes.declare(intent, say) as lease:
                dvc = _try_dvc(remotes, label, say)
                _try_branch(remotes, lease, intent)
            place = lease.ref.removesuffix(label)
            git: str | GitPushError = f"{remotes.refs.url}: branches and intents ({place}) can be created and deleted"
        except GitPushError as error:
            git = error
        dvc = dvc or _try_reading(remotes)
        if isinstance(dvc, RunError):
            return Rehearsed(git, dvc, None)
        there = remotes.objects.look(wanted)
        return Rehearsed(git, dvc, remotes.objects.room(), tuple(oid for oid in wanted if oid not in there))


def _try_dvc(remotes: Remotes, label: str, say: Say) -> str | RunError:
    try:
        remotes.claim(label, say)
    except GitPushError:
        raise
    except RunError as error:
        return error
    return "; ".join(filter(None, (f"{remotes.objects.name}: files can be created and deleted", remotes.kept_because)))


def _try_reading(remotes: Remotes) -> str | RunError:
    """Check only that the DVC remote can be read: without an intent nothing may be written to it."""
    try:
        remotes.objects.marks()
    except (RunError, OSError) as error:
        return error if isinstance(error, RunError) else DvcPushError(f"{remotes.objects.name}: {error}.")
    return f"{remotes.objects.name}: can be read; writing was not tried, since the Git remote rejects pushes"


def _try_branch(remotes: Remotes, lease: Lease, intent: Intent) -> None:
    """Create the branch, then delete it together with the intent; also delete the branches of dead rehearsals."""
    branch = f"refs/heads/{intent.branch}"
    for ref, commit in remotes.refs.list_refs(f"refs/heads/{BRANCHES}*").items():
        with contextlib.suppress(GitPushError):  # a live rehearsal may be deleting its own branch right now
            remotes.refs.push(RefUpdate(ref, commit, None))
    try:
        remotes.refs.push(RefUpdate(branch, None, intent.base))
        lease.end(RefUpdate(branch, intent.base, None))
    except GitPushError:
        for update in (RefUpdate(lease.ref, lease.commit, None), RefUpdate(branch, intent.base, None)):
            with contextlib.suppress(GitPushError):  # the first error is the one to raise
                remotes.refs.push(update)
        raise
