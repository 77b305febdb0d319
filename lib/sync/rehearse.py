"""Try on both remotes what a publication will need, before anything costs time; nothing of it stays.

A real intent and a real branch are pushed and removed again: a dry run asks no hook of the host, and a token may read
and not write. The branch stands at the run's own commit, so there is nothing to build for the host's CI. On the DVC
remote a mark is made and removed. Whoever dies in the middle leaves an intent, which is settled as any other, and a
branch, which the next rehearsal removes. Cannot: promise that the same is still allowed hours later.
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
from lib.sync.refs import Move
from lib.sync.vault import Vault, open_vault

BRANCHES = "kaggle-train-rehearsal-"
"""How throw-away branches begin: as published ones, so that the host's rules for those apply."""


@dataclass(frozen=True)
class Rehearsed:
    """What came out for each remote: a line for people, or the error that a publication would end in."""

    git: str | GitPushError
    dvc: str | RunError
    room: int | None
    """Bytes that the DVC remote may still take; None where it does not say."""
    missing: tuple[str, ...] = ()
    """Which of the asked-for objects are not on the DVC remote."""


def rehearse(
    root: Path, credentials: Credentials | None = None, *, wanted: Sequence[str] = (), say: Say = print
) -> Rehearsed:
    """Go through a publication of nothing, and look for the objects `wanted` (MD5, hex) on the DVC remote.

    Raises `SyncError` where one of the remotes cannot be opened at all.
    """
    with open_vault(root, credentials or Credentials()) as vault:
        label = journal.new_intent_id()
        intent = Intent(label, "uploading", f"{BRANCHES}{label}", vault.head(), vault.me, ())
        dvc: str | RunError | None = None
        try:
            with vault.declare(intent, say) as lease:
                dvc = _try_dvc(vault, label, say)
                _try_branch(vault, lease, intent)
            place = lease.ref.removesuffix(label)
            git: str | GitPushError = f"{vault.refs.url}: branches and intents ({place}) can be made and removed"
        except GitPushError as error:
            git = error
        dvc = dvc or _try_reading(vault)
        if isinstance(dvc, RunError):
            return Rehearsed(git, dvc, None)
        there = vault.objects.look(wanted)
        return Rehearsed(git, dvc, vault.objects.room(), tuple(oid for oid in wanted if oid not in there))


def _try_dvc(vault: Vault, label: str, say: Say) -> str | RunError:
    try:
        vault.claim(label, say)
    except GitPushError:
        raise
    except RunError as error:
        return error
    return f"{vault.objects.name}: files can be made and removed" + (f"; {vault.keeps}" if vault.keeps else "")


def _try_reading(vault: Vault) -> str | RunError:
    """Say at least whether it can be read, where no intent could answer for more."""
    try:
        vault.objects.marks()
    except (RunError, OSError) as error:
        return error if isinstance(error, RunError) else DvcPushError(f"{vault.objects.name}: {error}.")
    return f"{vault.objects.name}: can be read; writing was not tried, since the Git remote refuses"


def _try_branch(vault: Vault, lease: Lease, intent: Intent) -> None:
    """Make the branch, and let it go together with the intent; what dead rehearsals left goes too."""
    branch = f"refs/heads/{intent.branch}"
    for ref, commit in vault.refs.list_refs(f"refs/heads/{BRANCHES}*").items():
        with contextlib.suppress(GitPushError):  # somebody else's, who is removing it this moment
            vault.refs.push(Move(ref, commit, None))
    try:
        vault.refs.push(Move(branch, None, intent.base))
        lease.end(Move(branch, intent.base, None))
    except GitPushError:
        for moves in ((Move(lease.ref, lease.commit, None),), (Move(branch, intent.base, None),)):
            with contextlib.suppress(GitPushError):  # the first error is the one to show
                vault.refs.push(*moves)
        raise
