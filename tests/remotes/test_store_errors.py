"""Test how errors of Google Drive's and S3's clients are explained; the emulators raise the usual ones elsewhere."""

from __future__ import annotations

import errno
import json

import httplib2
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from googleapiclient.errors import HttpError
from oauth2client.client import AccessTokenRefreshError, HttpAccessTokenRefreshError
from pydrive2.fs.spec import GDriveAuthError

from lib.remotes.store_errors import explain


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


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


KEYS = "AWS_SECRET_ACCESS_KEY"


def s3_refusal(code: str, status: int, message: str = "", **headers: str) -> Exception:
    """Return s3fs's error for a reply of S3."""
    about = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    reply = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": about}
    return raised_from(OSError(errno.EIO, message), ClientError(reply, "PutObject"))


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("SlowDown", 503, "Please reduce your request rate."),
        ("SlowDown", 429, "Please reduce your request rate."),
        ("ServiceUnavailable", 503, "Service is unable to handle request."),
        ("RequestTimeout", 400, "Your socket connection to the server was not read from or written to within …"),
        ("InternalError", 500, "We encountered an internal error. Please try again."),
        ("SlowDownWrite", 503, "Resource requested is unwritable, please reduce your request rate"),
        ("503", 503, "Service Unavailable"),
        ("GatewayTimeout", 504, ""),
    ],
)  # fmt: skip
def test_s3s_overload_passes_by_itself(code: str, status: int, message: str) -> None:
    """The code decides, or the status of a code that is not known; nothing is blamed on the keys."""
    answer = explain(s3_refusal(code, status, message, **{"retry-after": "7"}))
    assert (answer.is_transient, answer.is_account, answer.after) == (True, False, 7)
    assert answer.remedy.startswith("wait some minutes")
    assert f"{message or 'no reason given'} ({code})." in answer.what


@pytest.mark.parametrize(
    ("code", "status", "message", "remedy"),
    [
        ("AccessDenied", 403, "Access Denied", "let these keys list"),
        ("403", 403, "Forbidden", "let these keys list"),
        ("NoSuchBucket", 404, "The specified bucket does not exist", "the bucket's name"),
        ("InvalidAccessKeyId", 403, "The AWS Access Key Id you provided does not exist in our records.", KEYS),
        ("SignatureDoesNotMatch", 403, "The request signature we calculated does not match the signature …", KEYS),
        ("ExpiredToken", 400, "The provided token has expired.", f"{KEYS}): keys with a session token end"),
        ("RequestTimeTooSkewed", 403, "The difference between the request time and the current time …", "clock"),
        ("PermanentRedirect", 301, "The bucket you are attempting to access must be addressed using …", "region"),
        ("301", 301, "Moved Permanently", "region"),
        ("AuthorizationHeaderMalformed", 400, "The authorization header is malformed; the region 'us-east-1' is …",
         "region"),
        ("XMinioStorageFull", 507, "Storage backend has reached its minimum free drive threshold.", "free space"),
        ("QuotaExceeded", 403, "The quota set for the bucket is exceeded", "free space"),
        ("NotImplemented", 501, "A header you provided implies functionality that is not implemented", "that knows"),
        ("InvalidRequest", 400, "Something else.", "fix the cause"),
    ],
)  # fmt: skip
def test_a_refusal_of_s3_that_stays_has_the_remedy_of_its_code(
    code: str, status: int, message: str, remedy: str
) -> None:
    """A status of 5xx is no overload where the code says more."""
    answer = explain(s3_refusal(code, status, message))
    assert remedy in answer.remedy
    assert (answer.is_transient, answer.is_account, answer.reason) == (False, KEYS in remedy, code)
    assert message in answer.what


def test_missing_keys_and_a_cut_connection_of_s3_are_told_apart() -> None:
    """Only the connection comes back by itself."""
    assert explain(NoCredentialsError()).is_account
    broken = explain(raised_from(OSError("broken"), EndpointConnectionError(endpoint_url="http://x")))
    assert (broken.is_transient, "internet" in broken.remedy) == (True, True)
