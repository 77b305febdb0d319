"""Roll back or finish publications that did not end.

Guarantees: every intent is tried, whatever fails for another; a call may be interrupted and repeated. Cannot: settle
an intent that has moved recently, or one that another version of this project wrote; both are counted as left.
"""

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
    """Roll back or finish every intent of a dead process of this clone, or that is silent for `older_than` seconds.

    Silent means that its ref has not moved. Time is measured by this process alone: an intent of another owner that is
    seen for the first time is only noted, and settled by a later call. Return the number of intents that are left.
    Raises the error of the first one that could not be settled, after trying all.
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
