"""Explain the errors of DVC remotes: the tables of what Google Drive and S3 refuse.

Guarantees: publishing, pulling, preflight and the account check explain an error alike, and agree on which errors are
transient. Cannot: redact the text that a service or its client supplies; the caller does; or explain what DVC reports
without its cause.
"""

from __future__ import annotations

import errno
import http.client
import json
import re
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus

from lib.errors import causes
from lib.remotes.answers import Answer, seconds_of

_LONG = 60.0  # seconds; Drive counts its limits by the minute
_WAIT = (
    "wait some minutes, and start fewer sessions at a time (Drive's rate limit, or trouble on its side; a user may "
    "upload 750 GB a day)"
)
_FREE_SPACE = "free space in that Google account, also in its trash, which counts"
_SHARED_DRIVE = (
    "put the folder into a shared drive, or use GDRIVE_USER_CREDENTIALS: a service account has no storage of its own"
)
_SHARE = "let the account write to the folder (share it as Editor; in a shared drive, as Content manager)"
_NEW_KEY = (
    "put new GDRIVE_USER_CREDENTIALS (`python -m lib credentials` makes them) or a new GDRIVE_SERVICE_ACCOUNT key into "
    "secrets.json, which a command reads with --secrets FILE (refresh tokens of an OAuth app in state Testing end in "
    "7 days: publish the app)"
)
_SCOPE = (
    "make new GDRIVE_USER_CREDENTIALS with `python -m lib credentials`: these were made for another app, or without "
    "the right to all of Drive (scope drive)"
)
_ENABLE = "enable the Google Drive API: Google Cloud Console → APIs & Services → Library, in the app's project"
_ADMINISTRATOR = (
    "ask the administrator of that Google Workspace to allow this app (Admin console → Security → API controls), or "
    "use an account outside of it"
)
_FULL_DRIVE = "delete files from that shared drive, also from its trash, which counts, or use another one"
_REMEDIES: Mapping[str | int, str] = {
    "userRateLimitExceeded": _WAIT,
    "rateLimitExceeded": _WAIT,
    "dailyLimitExceeded": "wait until midnight in California, or raise the quota of the app's project: Google Cloud "
    "Console → APIs & Services → Google Drive API → Quotas",
    "accessNotConfigured": _ENABLE,
    "SERVICE_DISABLED": _ENABLE,
    "storageQuotaExceeded": _FREE_SPACE,
    "quotaExceeded": _FREE_SPACE,
    "teamDriveFileLimitExceeded": _FULL_DRIVE,
    "teamDriveHierarchyTooDeep": "name a folder closer to the top of the shared drive in .dvc/config",
    "numChildrenInNonRootLimitExceeded": "name another folder in .dvc/config: this one holds as many items as Drive "
    "allows",
    "activeItemCreationLimitExceeded": "delete files that this Google account has made, also from its trash, or use "
    "another account: it has made as many items as Drive allows",
    "uploadTooLarge": "make the file smaller: Drive does not accept it",
    "insufficientPermissions": _SCOPE,
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": _SCOPE,
    "appNotAuthorizedToFile": _SCOPE,
    "insufficientFilePermissions": _SHARE,
    "forbidden": _SHARE,
    "teamDriveMembershipRequired": "make the account a member of the shared drive, as Content manager",
    "domainPolicy": _ADMINISTRATOR,
    "cannotDownloadAbusiveFile": "ask Google for a review on the file's page in Drive: it takes the file for malware "
    "or spam; or replace the file",
    "downloadQuotaExceeded": "wait a day, or make a copy of the file: it was downloaded too often",
    HTTPStatus.UNAUTHORIZED: _NEW_KEY,
    HTTPStatus.NOT_FOUND: "let the account open the folder of .dvc/config, or check its id there",
    HTTPStatus.FORBIDDEN: f"see Drive's reason above; if it is about rights, {_SHARE}",
}
"""What to do about a refusal, by Drive's reason or else by the HTTP status; `_WAIT` passes by itself."""
_SIGN_IN: Mapping[str, str] = {
    "rate_limit_exceeded|temporarily_unavailable|internal_failure": _WAIT,
    "short-lived token|reasonable timeframe": "set this machine's clock: the sign-in of a service account holds its "
    "time",
    "(deleted|disabled|invalid|unauthorized)_client": "make a new OAuth client in the app's project and sign in with "
    "it (`python -m lib credentials`), or put a new GDRIVE_SERVICE_ACCOUNT key into secrets.json: Google does not know "
    "this one",
    "admin_policy_enforced|access_denied|org_internal": _ADMINISTRATOR,
    "": _NEW_KEY,
}
"""What to do about a refused sign-in, by phrases of Google's answer: `invalid_grant` and all others need a new key."""


_S3_KEYS = "put valid keys into secrets.json or the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
_S3_WAIT = "wait some minutes, and start fewer sessions at a time (S3's rate limit, or trouble on its side)"
_S3: Mapping[str, str] = {
    "SlowDown.*|Throttl.*|RequestLimitExceeded|ServiceUnavailable|InternalError|RequestTimeout": _S3_WAIT,
    "InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken": _S3_KEYS,
    "ExpiredToken|TokenRefreshRequired": f"{_S3_KEYS}: keys with a session token end after some hours",
    "RequestTimeTooSkewed|RequestExpired": "set this machine's clock: S3 refuses requests of another time",
    "PermanentRedirect|TemporaryRedirect|AuthorizationHeaderMalformed|301": "name the region of the bucket, or its "
    "service's endpointurl (`dvc remote modify NAME region REGION`), and commit .dvc/config",
    "AccessDenied|AllAccessDisabled|AccountProblem|403": "let these keys list the bucket, and get, put and delete its "
    "objects",
    "NoSuchBucket|InvalidBucketName": "check the bucket's name in .dvc/config",
    ".*Quota.*|.*StorageFull": "free space in the bucket or raise its quota",
    "NotImplemented|501": "use a service that knows this request",
}
"""What to do about a refusal of S3, by the whole of its code, or by the HTTP status that stands for it after `HEAD`."""
UNKNOWN = "check the file and the folder named above"
"""What to do about an error of neither service."""


def explain(error: BaseException) -> Answer:
    """Return what happened and what to do, for an error of Google's or S3's client or of DVC's around it."""
    return _explain_s3(error) or _explain_drive(error) or Answer(f"{type(error).__name__}: {error}", UNKNOWN)


def _explain_s3(error: BaseException) -> Answer | None:
    from aiohttp import ClientPayloadError
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as NoConnection

    for cause in causes(error):
        if isinstance(cause, ClientError):
            reply, about = cause.response.get("Error", {}), cause.response.get("ResponseMetadata", {})
            code, why = str(reply.get("Code", "")), reply.get("Message") or "no reason given"
            status = int(about.get("HTTPStatusCode") or 0)
            remedy = next((_S3[codes] for codes in _S3 if re.fullmatch(codes, code)), "")
            remedy = remedy or (_S3_WAIT if _is_overload(status) else "fix the cause named above")
            return Answer(
                f"S3 refused {cause.operation_name}: {why} ({code}).",
                remedy,
                patience=_LONG if remedy == _S3_WAIT else 0.0,
                is_account=remedy.startswith(_S3_KEYS),
                status=status,
                reason=code,
                after=seconds_of(about.get("HTTPHeaders", {}).get("retry-after")),
            )
        if isinstance(cause, NoCredentialsError):
            return Answer("no S3 keys were found.", _S3_KEYS, is_account=True)
        if isinstance(cause, (HTTPClientError, NoConnection, ClientPayloadError)):
            return Answer(f"the connection to S3 broke ({cause}).", "check that internet is on", _LONG)
        if isinstance(cause, BotoCoreError):
            return Answer(f"{type(cause).__name__}: {cause}", "check the remote's settings in .dvc/config")
    return None


def _explain_drive(error: BaseException) -> Answer | None:
    from googleapiclient.errors import HttpError
    from oauth2client.client import AccessTokenRefreshError
    from pydrive2.auth import AuthError
    from pydrive2.fs.spec import GDriveAuthError

    for cause in causes(error):
        if isinstance(cause, HttpError):
            return _explain_refusal(int(cause.resp.status), cause.content, cause.resp.get("retry-after"))
        if isinstance(cause, AccessTokenRefreshError):
            return _explain_sign_in(int(getattr(cause, "status", None) or 0), str(cause))
        if _is_cut(cause):
            what = f"Google Drive cannot be reached: the connection broke ({type(cause).__name__}: {cause})."
            return Answer(what, "check that internet is on", _LONG)
    if any(isinstance(cause, (AuthError, GDriveAuthError)) for cause in causes(error)):
        # the client's text is left out: it may quote a key that it cannot read
        return Answer("Google Drive cannot be signed in to with these credentials.", _NEW_KEY, is_account=True)
    return None


def _explain_sign_in(status: int, text: str) -> Answer:
    remedy = next(remedy for phrases, remedy in _SIGN_IN.items() if re.search(phrases, text))
    if _is_overload(status) or remedy == _WAIT:
        return Answer(f"Google cannot be reached: {text}.", _WAIT, _LONG)
    return Answer(f"Google rejects the Drive account ({text}).", remedy, is_account=True)


def _explain_refusal(status: int, content: bytes, retry_after: str | None) -> Answer:
    reason, message = _read_refusal(status, content)
    remedy = _WAIT if _is_overload(status) else _REMEDIES.get(reason) or _REMEDIES.get(status, "mend the cause above")
    if reason.startswith("cannotModify"):
        remedy = "let the account change that file, or remove the restriction on it or on its shared drive"
    if message.startswith("Service Accounts do not have storage quota"):
        remedy = _SHARED_DRIVE
    return Answer(
        f"Google Drive {'cannot be reached' if remedy == _WAIT else 'refuses'}: {message}"
        f"{f' ({reason})' if reason else ''}.",
        remedy,
        patience=_LONG if remedy == _WAIT else 0.0,
        is_account=remedy in (_NEW_KEY, _SCOPE),
        status=status,
        reason=reason,
        after=seconds_of(retry_after),
    )


def _read_refusal(status: int, content: bytes) -> tuple[str, str]:
    """Return Drive's reason and message; a front end's page has neither."""
    try:
        reply = json.loads(content)["error"]
        named = [*reply.get("errors", ()), *reply.get("details", ())]
        return next((str(each["reason"]) for each in named if "reason" in each), ""), str(reply["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", f"HTTP {status}"


def _is_overload(status: int) -> bool:
    passing = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    return status in passing or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _is_cut(error: BaseException) -> bool:
    """Return whether the connection broke or could not be made."""
    from httplib2 import HttpLib2Error

    kinds = (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, http.client.HTTPException, HttpLib2Error)
    no_route = isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
    return isinstance(error, kinds) or no_route
