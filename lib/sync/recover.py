"""Roll back or finish publications that did not end.

Guarantees: every intent is tried, even if recovering another one fails; a call may be interrupted and repeated. Cannot:
recover an intent that has moved recently, or one that another version of this project wrote; both are counted as left.
"""

from __future__ import annotations

from pathlib import Path

from lib.errors import SyncError
from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.publication import Say
from lib.sync.remotes import open_remotes


def recover(
    root: Path, credentials: Credentials | None = None, *, older_than: float = journal.LEASE, say: Say = print
) -> int:
    """Roll back or finish every publication whose process is dead; return the number of intents that are left.

    A process is dead if it was one of this clone and has ended, or if its intent has not moved for `older_than`
    seconds. Time is measured by this process alone: an intent of another owner that is seen for the first time is only
    noted, and recovered by a later call. After trying all, raises the first error.
    """
    credentials = credentials or Credentials()
    with open_remotes(root, credentials) as remotes:
        try:
            return remotes.recover_all(older_than, say)
        except OSError as error:
            raise SyncError(
                credentials.redact(f"recovering stopped: {type(error).__name__}: {error}"),
                state="each publication that is not recovered yet has an intent on the Git remote.",
                remedy="free some space if the disk is full, check the DVC remote, and run the same again.",
            ) from error
