"""Test how errors of Google Drive's client are explained; the Drive emulator raises the usual ones in other tests."""

from __future__ import annotations

import errno
import json

import httplib2
import pytest
from googleapiclient.errors import HttpError
from oauth2client.client import AccessTokenRefreshError, HttpAccessTokenRefreshError
from pydrive2.fs.spec import GDriveAuthError

from lib.remotes.drive_errors import explain


def refusal(status: int, reason: str) -> HttpError:
    """Return the client's error for a reply of Drive."""
    content = {"error": {"message": "A message.", "errors": [{"reason": reason}]}}
    return HttpError(httplib2.Response({"status": status}), json.dumps(content).encode())


def raised_from(error: Exception, cause: Exception) -> Exception:
    """Return the error after it was raised from its cause."""
    error.__cause__ = cause
    return error


def raised_during(error: Exception, handled: Exception) -> Exception:
    """Return the error after it was raised while another one was being handled."""
    error.__context__ = handled
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (refusal(403, "userRateLimitExceeded"), True),
        (refusal(500, "backendError"), True),
        (refusal(403, "storageQuotaExceeded"), False),
        (refusal(401, "authError"), False),
        (HttpAccessTokenRefreshError("unavailable", status=503), True),
        (HttpAccessTokenRefreshError("invalid_grant", status=400), False),
        (AccessTokenRefreshError("invalid_grant"), False),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (raised_from(GDriveAuthError("Failed to authenticate"), ConnectionResetError()), True),
        (raised_during(ConnectionResetError(), refusal(403, "storageQuotaExceeded")), True),
        (raised_during(refusal(403, "storageQuotaExceeded"), ConnectionResetError()), False),
    ],
)
def test_only_errors_that_may_pass_are_transient(error: Exception, transient: bool) -> None:
    """The error itself decides, not one that was being handled when it was raised."""
    assert explain(error).is_transient == transient


@pytest.mark.parametrize(
    "error",
    [
        refusal(401, "authError"),
        AccessTokenRefreshError("invalid_grant"),
        raised_from(GDriveAuthError("Failed to authenticate"), ValueError("canary key line")),
    ],
)
def test_a_rejected_account_needs_new_credentials(error: Exception) -> None:
    """The remedy names both kinds of account; a key that the client cannot read is not shown."""
    trouble = explain(error)
    assert trouble.is_account
    assert "GDRIVE_USER_CREDENTIALS" in trouble.remedy
    assert "GDRIVE_SERVICE_ACCOUNT" in trouble.remedy
    assert "canary" not in trouble.what


def test_a_full_shared_drive_is_not_a_full_account() -> None:
    """A shared drive has a limit of files; the account's own space does not matter."""
    trouble = explain(refusal(403, "teamDriveFileLimitExceeded"))
    assert "shared drive" in trouble.remedy
    assert "account" not in trouble.remedy
    assert (trouble.status, trouble.reason) == (403, "teamDriveFileLimitExceeded")
