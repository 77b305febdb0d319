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


def refusal(status: int, reason: str, message: str = "A message.", **headers: str) -> HttpError:
    """Return the client's error for a reply of Drive."""
    content = {"error": {"message": message, "errors": [{"reason": reason}]}}
    return HttpError(httplib2.Response({"status": status, **headers}), json.dumps(content).encode())


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
        (refusal(403, "rateLimitExceeded"), True),
        (refusal(500, "backendError"), True),
        (refusal(429, "accessNotConfigured"), True),
        (refusal(403, "dailyLimitExceeded"), False),
        (refusal(403, "storageQuotaExceeded"), False),
        (refusal(401, "authError"), False),
        (HttpAccessTokenRefreshError("unavailable", status=503), True),
        (HttpAccessTokenRefreshError("invalid_grant", status=400), False),
        (AccessTokenRefreshError("invalid_grant"), False),
        (HttpAccessTokenRefreshError("rate_limit_exceeded", status=403), True),
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


@pytest.mark.parametrize(
    ("reason", "message", "remedy"),
    [
        ("storageQuotaExceeded", "The user's Drive storage quota has been exceeded.", "free space"),
        ("storageQuotaExceeded", "Service Accounts do not have storage quota. Leverage …", "into a shared drive"),
        ("dailyLimitExceeded", "Daily Limit Exceeded", "midnight"),
        ("accessNotConfigured", "Google Drive API has not been used in project 1 or it is disabled.", "enable the"),
        ("insufficientPermissions", "Insufficient Permission: Request had insufficient authentication scopes.",
         "scope drive"),
        ("appNotAuthorizedToFile", "The user has not granted the app 1 write access to the file 2.", "scope drive"),
        ("insufficientFilePermissions", "The user does not have sufficient permissions for this file.", "as Editor"),
        ("domainPolicy", "The domain administrators have disabled Drive apps.", "administrator"),
        ("teamDriveFileLimitExceeded", "The file limit for this shared drive was exceeded.", "from that shared drive"),
        ("teamDriveHierarchyTooDeep", "The shared drive hierarchy depth will exceed the limit.", "closer to the top"),
        ("numChildrenInNonRootLimitExceeded", "The limit for this folder's number of children was exceeded.",
         "another folder"),
        ("activeItemCreationLimitExceeded", "This account has exceeded the creation limit of 500 million items.",
         "another account"),
        ("teamDriveMembershipRequired", "The attempted action requires shared drive membership.", "a member"),
        ("cannotModifyInheritedTeamDrivePermission", "Cannot update or delete an inherited permission.", "restriction"),
        ("cannotDownloadAbusiveFile", "This file has been identified as malware or spam.", "review"),
        ("downloadQuotaExceeded", "The download quota for this file has been exceeded.", "wait a day"),
        ("someNewReason", "Something else.", "see Drive's reason"),
    ],
)  # fmt: skip
def test_a_refusal_that_stays_has_the_remedy_of_its_reason(reason: str, message: str, remedy: str) -> None:
    """All are answered with 403; sharing the folder helps after one of them."""
    trouble = explain(refusal(403, reason, message))
    assert remedy in trouble.remedy
    assert ("as Editor" in trouble.remedy) == (reason in ("insufficientFilePermissions", "someNewReason"))
    assert (trouble.is_transient, trouble.status, trouble.reason) == (False, 403, reason)
    assert trouble.is_account == ("scope drive" in remedy)
    assert message in trouble.what


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("invalid_grant: Token has been expired or revoked.", "7 days"),
        ("invalid_grant: Invalid JWT Signature.", "GDRIVE_SERVICE_ACCOUNT key"),
        ("invalid_grant: Invalid JWT: Token must be a short-lived token and in a reasonable timeframe.", "clock"),
        ("deleted_client: The OAuth client was deleted.", "a new OAuth client"),
        ("admin_policy_enforced", "administrator"),
    ],
)  # fmt: skip
def test_a_refused_sign_in_has_the_remedy_of_its_cause(text: str, remedy: str) -> None:
    """A wrong clock is not mended by another key."""
    trouble = explain(HttpAccessTokenRefreshError(text, status=400))
    assert trouble.is_account
    assert remedy in trouble.remedy


def test_the_reason_of_a_disabled_api_is_read_from_its_details() -> None:
    """Google's newer services write the reason there."""
    content = {
        "error": {"code": 403, "message": "Disabled.", "details": [{"@type": "x"}, {"reason": "SERVICE_DISABLED"}]}
    }
    trouble = explain(HttpError(httplib2.Response({"status": 403}), json.dumps(content).encode()))
    assert "enable the Google Drive API" in trouble.remedy


def test_the_time_that_drive_asks_for_is_read() -> None:
    """The next request waits that long."""
    assert explain(refusal(429, "rateLimitExceeded", **{"retry-after": "30"})).after == 30
