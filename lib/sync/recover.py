"""Settle what publications have left that did not end."""

from __future__ import annotations

from pathlib import Path

from lib.errors import SyncError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.publication import Say
from lib.sync.vault import open_vault


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
