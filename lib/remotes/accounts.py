"""Check the accounts of `secrets.json` with their services: Google Drive, GitHub and W&B.

Guarantees: no error shows a value. A check leaves nothing behind and gives up on a service that does not answer.
`CredentialsError` means that a service rejects a key; `RemoteError` means that the service cannot be reached, or
cannot be used with this key at present.

Cannot: determine the rights of a fine-grained GitHub token, because GitHub reports its owner's rights. A probe file
stays in the Drive folder if the connection breaks between creating and deleting it; the error names the file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from lib.errors import CommandError, CredentialsError, RemoteError, RunError
from lib.process import limit_silence, run_command
from lib.remotes.credentials import Credentials, without_user

DRIVE_SCOPE = "https://www.googleapis.com/auth/drive"
SECONDS = 30.0  # without a reply, after which a service counts as unreachable
LONGEST_ANSWER = 2**20  # bytes
UNCHANGED = "nothing was changed there."

Say = Callable[[str], object]
Ask = Callable[[str], str]


@dataclass(frozen=True)
class Account:
    """An account that a service has accepted: its owner and details to show."""

    service: str
    who: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join((f"{self.service}: {self.who}", *self.details))


# ── Google Drive ──────────────────────────────────────────────────────────────────────────────────────────────────────


def check_drive(credentials: Credentials, folder: str | None = None, *, seconds: float = SECONDS) -> Account:
    """Check the Drive account with a fresh token; with a folder's id, also write and delete a small file there.

    Returns the account with its owner. Raises `CredentialsError` when Google rejects the account, and `RemoteError`
    when Google cannot be reached, the Drive API is not enabled for this app, or the folder is not writable.
    """
    import httplib2
    from googleapiclient.discovery import build

    limit_silence()
    with _google_told(credentials):
        google = _google_credentials(credentials)
        google.refresh(httplib2.Http(timeout=seconds))
        http = google.authorize(httplib2.Http(timeout=seconds))
        with build("drive", "v2", http=http, cache_discovery=False) as drive:
            wanted = "user(emailAddress),quotaBytesUsed,quotaBytesTotal,quotaType"
            about = drive.about().get(fields=wanted).execute(num_retries=2)
            details = [_quota(about)]
            if folder is not None:
                details.append(_write_once(drive.files(), folder))
    return Account("Google Drive", str(about.get("user", {}).get("emailAddress", "unknown")), tuple(details))


def _google_credentials(credentials: Credentials) -> Any:  # noqa: ANN401  oauth2client has no types
    from oauth2client.client import OAuth2Credentials
    from oauth2client.service_account import ServiceAccountCredentials

    content = credentials.drive_content()
    if credentials.service_account is None:
        return OAuth2Credentials.from_json(json.dumps(content))
    try:
        return ServiceAccountCredentials.from_json_keyfile_dict(content, [DRIVE_SCOPE])
    except Exception as error:  # noqa: BLE001  any error of the cryptography library; its message may quote the key
        raise CredentialsError(
            f"{credentials.source}: GDRIVE_SERVICE_ACCOUNT.private_key cannot be read ({type(error).__name__}).",
            state=UNCHANGED,
            remedy="put the service account's key into secrets.json as Google's console downloads it.",
        ) from None


def _quota(about: Mapping[str, Any]) -> str:
    used = int(about.get("quotaBytesUsed") or 0)
    if about.get("quotaType") == "UNLIMITED" or not about.get("quotaBytesTotal"):
        return f"{used / 1e9:.1f} GB used"
    return f"{used / 1e9:.1f} of {int(about['quotaBytesTotal']) / 1e9:.1f} GB used"


def _write_once(files: Any, folder: str) -> str:  # noqa: ANN401  googleapiclient has no types
    from googleapiclient.errors import HttpError
    from googleapiclient.http import MediaInMemoryUpload

    found = files.get(fileId=folder, fields="title,mimeType,labels(trashed)", supportsAllDrives=True)
    about = found.execute(num_retries=2)
    if about["mimeType"] != "application/vnd.google-apps.folder" or about["labels"]["trashed"]:
        raise RemoteError(
            f"gdrive://{folder} is {'in the trash' if about['labels']['trashed'] else 'no folder'}.",
            state=UNCHANGED,
            remedy="name another folder in .dvc/config, or take it out of Drive's trash.",
        )
    # only creating a file proves write access: Drive checks quota and a shared drive's rules at that moment
    name = f"check-of-kaggle-training-{secrets.token_hex(4)}"
    body = {"title": name, "parents": [{"id": folder}]}
    media = MediaInMemoryUpload(b"made by a check; may be deleted", "text/plain", resumable=True)
    request = files.insert(body=body, media_body=media, supportsAllDrives=True, fields="id")
    made = None
    while made is None:
        _, made = request.next_chunk(num_retries=2)
    try:
        try:
            files.delete(fileId=made["id"], supportsAllDrives=True).execute(num_retries=2)
        except HttpError as error:
            if error.resp.status != HTTPStatus.FORBIDDEN:
                raise
            # in a shared drive most members may move a file to the trash; only managers may delete it
            files.trash(fileId=made["id"], supportsAllDrives=True).execute(num_retries=2)
    except Exception as error:  # noqa: BLE001  after any error the file still exists
        raise RemoteError(
            f"the file {name} was made in gdrive://{folder}, and cannot be deleted ({type(error).__name__}).",
            state="that file is left there.",
            remedy="delete it by hand; let the account delete too (a run that fails takes back what it uploaded).",
        ) from None
    return f"folder {about['title']} can be written to"


@contextlib.contextmanager
def _google_told(credentials: Credentials) -> Iterator[None]:
    """Convert the exceptions of Google's client into errors with a remedy."""
    from googleapiclient.errors import HttpError
    from httplib2 import HttpLib2Error
    from oauth2client.client import AccessTokenRefreshError

    try:
        yield
    except AccessTokenRefreshError as error:
        # drop the cause: it may contain the request with its credentials
        if _is_trouble_of_theirs(int(getattr(error, "status", None) or 0)):
            raise _unreachable("Google", credentials.redact(str(error))) from None
        raise CredentialsError(
            f"Google refuses the Drive account of {credentials.source}: {credentials.redact(str(error))}.",
            state=UNCHANGED,
            remedy="make a new key of the service account (Google Cloud Console → IAM → Service Accounts → Keys)."
            if credentials.service_account
            else "sign in again: `python -m lib credentials`. Refresh tokens of an OAuth app in state Testing end "
            "after 7 days: publish the app.",
        ) from None
    except HttpError as error:
        raise _drive_refusal(error, credentials) from None
    except (OSError, HttpLib2Error, http.client.HTTPException) as error:
        raise _unreachable("Google", credentials.redact(f"{type(error).__name__}: {error}")) from None


def _drive_refusal(error: Any, credentials: Credentials) -> RunError:  # noqa: ANN401  googleapiclient has no types
    try:
        told = json.loads(error.content)["error"]
        reason, message = str(told["errors"][0]["reason"]), credentials.redact(str(told["message"]))
    except (ValueError, KeyError, TypeError, IndexError):
        reason, message = "", f"HTTP {error.resp.status}"
    status = int(error.resp.status)
    if _is_trouble_of_theirs(status) or reason in ("userRateLimitExceeded", "rateLimitExceeded"):
        return _unreachable("Google Drive", message)
    if status == HTTPStatus.UNAUTHORIZED:
        return CredentialsError(
            f"Google Drive refuses the account of {credentials.source}: {message}.",
            state=UNCHANGED,
            remedy="sign in again: `python -m lib credentials`.",
        )
    remedy = "share the folder with this account as Editor, or check its id in .dvc/config."
    if reason == "accessNotConfigured":
        remedy = "enable the Google Drive API: Google Cloud Console → APIs & Services → Library, in the app's project."
    elif reason in ("storageQuotaExceeded", "quotaExceeded") and credentials.service_account:
        remedy = "put the folder into a shared drive: a service account has no storage of its own."
    elif reason in ("storageQuotaExceeded", "quotaExceeded", "teamDriveFileLimitExceeded"):
        remedy = "free space in that Google account, also in its trash, which counts."
    return RemoteError(f"Google Drive refuses: {message} ({reason or status}).", state=UNCHANGED, remedy=remedy)


def _is_trouble_of_theirs(status: int) -> bool:
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _unreachable(service: str, what: str) -> RemoteError:
    return RemoteError(
        f"{service} cannot be reached: {what}",
        state="the key was not checked.",
        remedy="check the network (on Kaggle: internet is on), then try again in some minutes.",
    )


# ── GitHub ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_github(credentials: Credentials, url: str = "", *, seconds: float = SECONDS) -> Account:
    """Check that the token may push to the repository at `url`; on a host other than GitHub, only that it may read.

    Without a URL, only the token's owner is read from GitHub. Raises `CredentialsError` when there is no token, or the
    host rejects it or denies it the right to push; `RemoteError` when the host cannot be reached.
    """
    place = _github_api(url) if url else (GITHUB, "")
    if place is None:
        return _ask_git(credentials, url, seconds)
    if not credentials.github_token:
        raise CredentialsError(
            f"{credentials.source} has no GITHUB_TOKEN.",
            state=UNCHANGED,
            remedy="add GITHUB_TOKEN (scope `repo`) to secrets.json: `python -m lib credentials` helps.",
        )
    api, name = place
    answer = _ask_api(credentials, f"{api}/repos/{name}" if name else f"{api}/user", seconds)
    if not answer.is_github and api != GITHUB:
        return _ask_git(credentials, url, seconds)
    told = _github_told(answer, name)
    scopes = answer.headers.get("x-oauth-scopes", "")  # only classic tokens report scopes
    end = answer.headers.get("github-authentication-token-expiration")
    details = [f"scopes: {scopes}" if scopes else "", f"the token ends on {end}" if end else ""]
    if name:
        _require_push(credentials, told, name, scopes)
        details.insert(0, f"may push to {name}")
        told = _ask_api(credentials, f"{api}/user", seconds).content
    # a GitHub App's token has no user
    return Account("GitHub", str(told.get("login") or "a token without a user"), tuple(filter(None, details)))


def _require_push(credentials: Credentials, repository: Mapping[str, Any], name: str, scopes: str) -> None:
    enough = {"repo"} if repository.get("private") else {"repo", "public_repo"}
    is_classic = bool(scopes) or str(credentials.github_token).startswith("ghp_")
    may_push = repository.get("permissions", {}).get("push")  # the user's right, regardless of the token's scopes
    if not may_push or (is_classic and not enough & set(scopes.split(", "))):
        raise CredentialsError(
            f"GITHUB_TOKEN of {credentials.source} may not push to {name}.",
            state=UNCHANGED,
            remedy="make one with the scope `repo` (fine-grained: Contents, read and write, for this repository) by an "
            "account that may push, and put it into secrets.json.",
        )


GITHUB = "https://api.github.com"


def _github_api(url: str) -> tuple[str, str] | None:
    """Return the API's base URL and `owner/name` for a repository's URL; None if no GitHub host can have it."""
    ssh = re.fullmatch(r"(?:ssh://)?git@([^:/]+)[:/](.+)", url)
    parts = urlsplit(f"https://{ssh[1]}/{ssh[2]}" if ssh else url)
    name = re.fullmatch(r"/([\w.-]+/[\w.-]+?)(?:\.git)?/?", parts.path)
    if parts.scheme not in ("http", "https") or not parts.hostname or not name:
        return None
    host = parts.netloc.rpartition("@")[2]
    return (GITHUB if parts.hostname == "github.com" else f"{parts.scheme}://{host}/api/v3"), name[1]


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    content: Mapping[str, Any]

    @property
    def is_github(self) -> bool:
        return any(name.startswith("x-github-") for name in self.headers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the token to whatever host the redirect names."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow no redirect, so that the 3xx reply itself is reported."""


def _ask_api(credentials: Credentials, address: str, seconds: float) -> _Answer:
    headers = {"Authorization": f"Bearer {credentials.github_token}", "Accept": "application/vnd.github+json"}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310  http(s) only, by `_github_api`
    try:
        try:
            reply = urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            reply = error  # an error status is evaluated like any other reply
        with reply:
            content, status = reply.read(LONGEST_ANSWER), int(reply.status)
            headers = {name.lower(): value for name, value in reply.headers.items()}
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        what = credentials.redact(f"{address}: {type(error).__name__}: {reason}")
        raise _unreachable(urlsplit(address).netloc, what) from None
    try:
        told = json.loads(content)
    except ValueError:
        told = None
    return _Answer(status, headers, told if isinstance(told, dict) else {})


def _github_told(answer: _Answer, name: str) -> Mapping[str, Any]:
    """Return the content of GitHub's reply, or raise the error that its status means."""
    if answer.status == HTTPStatus.OK and answer.content:
        return answer.content
    is_limit = answer.status == HTTPStatus.FORBIDDEN and answer.headers.get("x-ratelimit-remaining") == "0"
    if is_limit or _is_trouble_of_theirs(answer.status) or answer.status == HTTPStatus.OK:
        raise _unreachable("GitHub", f"it answered {answer.status}{' (its rate limit)' if is_limit else ''}.")
    if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
        raise RemoteError(
            f"{name} has moved.",
            state=UNCHANGED,
            remedy="`git remote set-url origin` with the new address, then render again.",
        )
    what, remedy = "refuses GITHUB_TOKEN", "make a new one: this one is wrong, has ended or was taken back."
    if "x-github-sso" in answer.headers:
        what = "wants GITHUB_TOKEN to be authorized for the organization's single sign-on"
        remedy = "GitHub → Settings → Developer settings → Personal access tokens → Configure SSO."
    elif answer.status == HTTPStatus.NOT_FOUND:
        what = f"shows no repository {name} to GITHUB_TOKEN"
        remedy = "check the address, and that the token has the scope `repo` or was made for this repository."
    raise CredentialsError(f"GitHub {what} (HTTP {answer.status}).", state=UNCHANGED, remedy=remedy)


def _ask_git(credentials: Credentials, url: str, seconds: float) -> Account:
    """Check with `git ls-remote` that a repository can be read; write access is not checked."""
    shown = credentials.redact(without_user(url))
    environment = credentials.git_environment(url)
    try:
        run_command(["git", "ls-remote", "--", url], env=environment, timeout=seconds, redact=credentials.redact)
    except CommandError as error:
        refused = r"Authentication failed|could not read Username|Permission denied|returned error: 40[13]"
        if not re.search(refused, error.what):
            raise _unreachable(shown, error.what) from None
        raise CredentialsError(
            f"{shown} refuses the token of {credentials.source}: {error.what}",
            state=UNCHANGED,
            remedy="make a new token that may read and write this repository, and put it into secrets.json.",
        ) from None
    return Account("Git", shown, ("can be read; whether it can be written to, only a push tells",))


# ── W&B ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_wandb(credentials: Credentials, *, seconds: float = SECONDS) -> Account:
    """Check the W&B key and return its account.

    The server is `WANDB_BASE_URL`, or the default of W&B's client. Raises `CredentialsError` when there is no key or
    W&B rejects it, `RemoteError` when W&B cannot be reached.
    """
    if not credentials.wandb_api_key:
        raise CredentialsError(
            f"{credentials.source} has no WANDB_API_KEY.",
            state="curves are recorded offline.",
            remedy="add it to secrets.json, or leave it out.",
        )
    import wandb

    try:
        viewer = wandb.Api(api_key=credentials.wandb_api_key, timeout=max(1, round(seconds))).viewer
        who, mail, teams = str(viewer.username), str(viewer.email or ""), ", ".join(viewer.teams)
    except Exception as error:  # noqa: BLE001  a rejection and a timeout are one class; the response tells them apart
        told = credentials.redact(str(error.__cause__ or error))
        answer = getattr(error.__cause__, "response", None)  # the server's response, if there was one
        status = int(getattr(answer, "http_status", 0))
        is_key = isinstance(error, wandb.errors.AuthenticationError) and error.__cause__ is None
        is_refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or "invalid credentials" in told
        if is_key or is_refused:
            raise CredentialsError(
                f"W&B refuses WANDB_API_KEY of {credentials.source}: {told}",
                state=UNCHANGED,
                remedy="copy the key anew from your W&B user settings into secrets.json, or leave it out.",
            ) from None
        raise _unreachable("W&B", told) from None
    return Account("W&B", who, tuple(filter(None, (mail, f"teams: {teams}" if teams else ""))))
