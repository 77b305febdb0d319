"""Explain the errors of Google Drive's client: the one table of what Drive refuses.

Guarantees: the account check and the DVC store explain an error alike, and agree on which errors are transient.
Cannot: redact the text that Google or its client supplies; the caller does.
"""

from __future__ import annotations

import errno
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from lib.errors import causes

_WAIT = "wait some minutes (Drive's rate limit, or trouble on its side)"
_FREE_SPACE = (
    "free space in that Google account, also in its trash, which counts (a service account has no storage of its own: "
    "put its folder into a shared drive)"
)
_NEW_KEY = (
    "put new GDRIVE_USER_CREDENTIALS (`python -m lib credentials` makes them) or a new GDRIVE_SERVICE_ACCOUNT key into "
    "secrets.json (refresh tokens of an OAuth app in state Testing end after 7 days: publish the app)"
)
_REMEDIES: Mapping[str | int, str] = {
    "userRateLimitExceeded": _WAIT,
    "rateLimitExceeded": _WAIT,
    "accessNotConfigured": "enable the Google Drive API: Google Cloud Console → APIs & Services → Library, in the "
    "app's project",
    "storageQuotaExceeded": _FREE_SPACE,
    "quotaExceeded": _FREE_SPACE,
    "teamDriveFileLimitExceeded": "delete files from that shared drive, also from its trash, which counts",
    HTTPStatus.UNAUTHORIZED: _NEW_KEY,
    HTTPStatus.FORBIDDEN: "let the account write to the folder (share it as Editor)",
    HTTPStatus.NOT_FOUND: "let the account open the folder of .dvc/config, or check its id there",
}
"""What to do about a refusal, by Drive's reason or else by the HTTP status."""


@dataclass(frozen=True)
class Trouble:
    """What happened and what to do about it."""

    what: str
    remedy: str
    is_account: bool = False
    """Whether Google rejects the account itself."""
    is_transient: bool = False
    """Whether the same request may succeed a little later."""
    status: int = 0
    """The HTTP status of Drive's reply, if there was one."""
    reason: str = ""
    """The reason in Drive's reply, if there was one."""


def explain(error: BaseException) -> Trouble:
    """Return what happened and what to do, for an error of Google's client or of DVC's around it."""
    from googleapiclient.errors import HttpError
    from oauth2client.client import AccessTokenRefreshError
    from pydrive2.auth import AuthError
    from pydrive2.fs.spec import GDriveAuthError

    for cause in causes(error):
        if isinstance(cause, HttpError):
            return _explain_refusal(int(cause.resp.status), cause.content)
        if isinstance(cause, AccessTokenRefreshError):
            if _is_overload(int(getattr(cause, "status", None) or 0)):
                return Trouble(f"Google cannot be reached: {cause}.", _WAIT, is_transient=True)
            return Trouble(f"Google rejects the Drive account ({cause}).", _NEW_KEY, is_account=True)
        if _is_cut(cause):
            what = f"Google Drive cannot be reached: the connection broke ({type(cause).__name__}: {cause})."
            return Trouble(what, "check that internet is on", is_transient=True)
    if any(isinstance(cause, (AuthError, GDriveAuthError)) for cause in causes(error)):
        # the client's text is left out: it may quote a key that it cannot read
        return Trouble("Google Drive cannot be signed in to with these credentials.", _NEW_KEY, is_account=True)
    return Trouble(f"{type(error).__name__}: {error}", "check the file and the folder named above")


def _explain_refusal(status: int, content: bytes) -> Trouble:
    try:
        reply = json.loads(content)["error"]
        reason, message = str(reply["errors"][0]["reason"]), str(reply["message"])
    except (ValueError, KeyError, TypeError, IndexError):  # a front end's page instead of Drive's reply
        reason, message = "", f"HTTP {status}"
    default = _WAIT if _is_overload(status) else "mend the cause named above"
    remedy = _REMEDIES.get(reason) or _REMEDIES.get(status, default)
    is_transient = remedy == _WAIT
    what = f"{message} ({reason})" if reason else message
    return Trouble(
        f"Google Drive {'cannot be reached' if is_transient else 'refuses'}: {what}.",
        remedy,
        is_account=status == HTTPStatus.UNAUTHORIZED,
        is_transient=is_transient,
        status=status,
        reason=reason,
    )


def _is_overload(status: int) -> bool:
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _is_cut(error: BaseException) -> bool:
    """Return whether the connection broke or could not be made."""
    from httplib2 import HttpLib2Error

    kinds = (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, http.client.HTTPException, HttpLib2Error)
    no_route = isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
    return isinstance(error, kinds) or no_route
