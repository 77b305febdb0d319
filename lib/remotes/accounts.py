"""Check the accounts of `secrets.json` with their services: Google Drive, GitHub and W&B.

Guarantees: no error shows a value, and no redirect carries a token to another host. A check leaves nothing behind and
gives up on a service that does not reply. `CredentialsError` means that a service rejects a key; `RemoteError` means
that the service cannot be reached, or cannot be used with this key at present.

Cannot: determine the rights of a fine-grained GitHub token, because GitHub reports its owner's rights. A probe file
stays in the Drive folder if the connection breaks between creating and deleting it; the error names the file.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lib.errors import CommandError, CredentialsError, RemoteError
from lib.process import run_command
from lib.remotes import git_answers
from lib.remotes.addresses import public_url, without_user
from lib.remotes.answers import Answer, Patience, patiently, seconds_of
from lib.remotes.credentials import Credentials
from lib.remotes.git_answers import because
from lib.remotes.store_errors import explain

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

DRIVE_SCOPE = "https://www.googleapis.com/auth/drive"
GITHUB = "https://api.github.com"
SECONDS = 30.0  # without a reply, after which a service counts as unreachable
PAUSES = (1.0, 2.0, 4.0)  # seconds before a request is repeated: a check waits less than a publication
UNCHANGED = "nothing was changed there."


@dataclass(frozen=True)
class Account:
    """An account that a service has accepted: its owner and details to show."""

    service: str
    who: str
    details: tuple[str, ...] = ()
    """What is known about the account; an empty text is not shown."""

    def __str__(self) -> str:
        return "; ".join(filter(None, (f"{self.service}: {self.who}", *self.details)))


def rejected(what: str, remedy: str) -> CredentialsError:
    """Return the error for a key that a service rejects or that is missing; `what` must be redacted."""
    return CredentialsError(what, state=UNCHANGED, remedy=remedy)


def unreachable(service: str, what: str) -> RemoteError:
    """Return the error for a service that cannot be reached; `what` must be redacted."""
    return RemoteError(
        f"{service} cannot be reached: {what}",
        state="the key was not checked.",
        remedy="check the network (on Kaggle: internet is on), then try again in some minutes.",
    )


# ── Google Drive ──────────────────────────────────────────────────────────────────────────────────────────────────────


def check_drive(
    credentials: Credentials, folder: str | None = None, others: Sequence[str] = (), *, seconds: float = SECONDS
) -> Account:
    """Check the Drive account with a fresh token; with a folder's id, also write and delete a small file there.

    `others` are ids of folders that are only read.

    Returns the account with its owner. Raises `CredentialsError` when Google rejects the account, and `RemoteError`
    when Google cannot be reached, the Drive API is not enabled for this app, or the folder is not writable.
    """
    import httplib2
    from googleapiclient.discovery import build
    from googleapiclient.errors import HttpError
    from oauth2client.client import AccessTokenRefreshError

    google = _google_credentials(credentials)
    try:
        patiently(lambda: google.refresh(httplib2.Http(timeout=seconds)), explain, PAUSES)
        http_client = google.authorize(httplib2.Http(timeout=seconds))
        with build("drive", "v2", http=http_client, cache_discovery=False) as drive:
            wanted = "user(emailAddress),quotaBytesUsed,quotaBytesTotal,quotaType"
            about = drive.about().get(fields=wanted).execute(num_retries=2)
            files = drive.files()
            details = [_quota(about), _write_probe(files, folder) if folder else ""]
            details += [f"folder {_open_folder(files, each)['title']} can be read" for each in others]
    except (OSError, httplib2.HttpLib2Error, http.client.HTTPException, HttpError, AccessTokenRefreshError) as error:
        found = explain(error)
        # drop the cause: it may contain the request with its credentials
        raise (CredentialsError if found.is_account else RemoteError)(
            f"{credentials.source}: {credentials.redact(found.what)}",
            state=UNCHANGED,
            remedy=f"{found.remedy}; then try again.",
        ) from None
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
        raise rejected(
            f"{credentials.source}: GDRIVE_SERVICE_ACCOUNT.private_key cannot be read ({type(error).__name__}).",
            "put the service account's key into secrets.json as Google's console downloads it.",
        ) from None


def _quota(about: Mapping[str, Any]) -> str:
    used, total = (int(about.get(name) or 0) / 1e9 for name in ("quotaBytesUsed", "quotaBytesTotal"))
    is_limited = total and about.get("quotaType") != "UNLIMITED"
    return f"{used:.1f} of {total:.1f} GB used" if is_limited else f"{used:.1f} GB used"


def _open_folder(files: Any, folder: str) -> Mapping[str, Any]:  # noqa: ANN401  googleapiclient has no types
    """Return what Drive knows of a folder. Raises `RemoteError` if that is no folder, or in the trash."""
    found = files.get(fileId=folder, fields="title,mimeType,labels(trashed)", supportsAllDrives=True)
    about: Mapping[str, Any] = found.execute(num_retries=2)
    if about["mimeType"] != "application/vnd.google-apps.folder" or about["labels"]["trashed"]:
        raise RemoteError(
            f"gdrive://{folder} is {'in the trash' if about['labels']['trashed'] else 'not a folder'}.",
            state=UNCHANGED,
            remedy="name another folder in .dvc/config, or take it out of Drive's trash.",
        )
    return about


def _write_probe(files: Any, folder: str) -> str:  # noqa: ANN401
    from googleapiclient.http import MediaInMemoryUpload

    about = _open_folder(files, folder)
    # only creating a file proves write access: Drive checks quota and a shared drive's rules at that moment
    name = f"check-of-kaggle-training-{secrets.token_hex(4)}"
    body = {"title": name, "parents": [{"id": folder}]}
    media = MediaInMemoryUpload(b"made by a check; may be deleted", "text/plain", resumable=True)
    made = files.insert(body=body, media_body=media, supportsAllDrives=True, fields="id").execute(num_retries=2)
    # in a shared drive most members may move a file to the trash; only managers may delete it
    for remove in (files.delete, files.trash):
        try:
            remove(fileId=made["id"], supportsAllDrives=True).execute(num_retries=2)
        except Exception as error:  # noqa: BLE001  after any error the file still exists
            cause = type(error).__name__
        else:
            return f"folder {about['title']} can be written to"
    raise RemoteError(
        f"the file {name} was created in gdrive://{folder} and cannot be deleted ({cause}).",
        state="that file remains there.",
        remedy="delete it by hand, and let the account delete files: a failed run deletes what it uploaded.",
    )


# ── GitHub ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_github(credentials: Credentials, url: str = "", *, seconds: float = SECONDS) -> Account:
    """Check that the token may push to the repository at `url`; on a host other than GitHub, only that it may read.

    Without a URL, only the token's owner is read from GitHub. Raises `CredentialsError` when there is no token, or the
    host rejects it or denies it the right to push; `RemoteError` when the host cannot be reached.
    """
    place = _github_api(url) if url else (GITHUB, "")
    if place is None:
        return _check_git(credentials, url, seconds)
    if not credentials.github_token:
        raise rejected(
            f"{credentials.source} has no GITHUB_TOKEN.",
            "add GITHUB_TOKEN (scope `repo`) to secrets.json: `python -m lib credentials` helps.",
        )
    api, name = place
    reply, about = _get(credentials, f"{api}/repos/{name}" if name else f"{api}/user", seconds)
    if api != GITHUB and not any(header.lower().startswith("x-github-") for header in reply.headers):
        return _check_git(credentials, url, seconds)
    if reply.status_code != HTTPStatus.OK or not about:
        raise _explain_reply(reply, about, name)
    scopes = reply.headers.get("X-OAuth-Scopes", "")  # only classic tokens report scopes
    end = reply.headers.get("GitHub-Authentication-Token-Expiration")
    if name:
        _require_push(credentials, about, name, scopes)
        _, about = _get(credentials, f"{api}/user", seconds)
    return Account(
        "GitHub",
        str(about.get("login") or "a token without a user"),  # a GitHub App's token has no user
        (name and f"may push to {name}", scopes and f"scopes: {scopes}", f"the token expires on {end}" if end else ""),
    )


def _github_api(url: str) -> tuple[str, str] | None:
    """Return the API's base URL and `owner/name` for a repository's URL; None if no GitHub host can have it."""
    parts = urlsplit(public_url(url))
    name = re.fullmatch(r"/([\w.-]+/[\w.-]+?)(?:\.git)?/?", parts.path)
    if parts.scheme not in ("http", "https") or not parts.hostname or not name:
        return None
    return (GITHUB if parts.hostname == "github.com" else f"{parts.scheme}://{parts.netloc}/api/v3"), name[1]


def _get(credentials: Credentials, address: str, seconds: float) -> tuple[Response, Mapping[str, Any]]:
    """Return the reply to a request with the token, and its JSON object; an empty one if it has none."""
    import requests

    def authorize(request: PreparedRequest) -> PreparedRequest:
        # a function, since requests would replace a plain header with the host's login from ~/.netrc
        request.headers["Authorization"] = f"Bearer {credentials.github_token}"
        return request

    headers, patience = {"Accept": "application/vnd.github+json"}, Patience(PAUSES)
    while True:
        try:
            reply = requests.get(address, headers=headers, auth=authorize, timeout=seconds, allow_redirects=False)
        except requests.RequestException as error:
            what = credentials.redact(f"{type(error).__name__}: {error}")
            raise unreachable(urlsplit(address).netloc, what) from None
        try:
            content = reply.json()
        except ValueError:
            content = None
        about = content if isinstance(content, dict) else {}
        answer = _meaning(reply, about)
        if reply.ok or not patience.wait(answer.patience, answer.after):
            return reply, about


def _meaning(reply: Response, about: Mapping[str, Any]) -> Answer:
    """Return what a refusal of GitHub's API means: its message is worded as those to Git are."""
    after, says = seconds_of(reply.headers.get("Retry-After")), [str(about.get("message", ""))]
    says += ["SAML enforcement"] * ("X-GitHub-SSO" in reply.headers)
    is_limit = bool(after) or reply.headers.get("X-RateLimit-Remaining") == "0"
    says += ["rate limit exceeded"] * (is_limit and reply.status_code == HTTPStatus.FORBIDDEN)
    return replace(git_answers.explain(f"{'; '.join(says)} error: {reply.status_code}"), after=after)


def _explain_reply(reply: Response, about: Mapping[str, Any], name: str) -> CredentialsError | RemoteError:
    """Return the error that GitHub's reply means."""
    status, answer = reply.status_code, _meaning(reply, about)
    if reply.is_redirect:
        return RemoteError(
            f"{name} has moved.",
            state=UNCHANGED,
            remedy="`git remote set-url origin` with the new address, then render again.",
        )
    if answer.is_transient or status == HTTPStatus.OK:
        return unreachable("GitHub", f"it replied {status}{because(answer)}.")
    kind = CredentialsError if answer.is_account or status == HTTPStatus.NOT_FOUND else RemoteError
    return kind(
        f"GitHub refuses {name or 'the request'}{because(answer)}: HTTP {status}.",
        state=UNCHANGED,
        remedy=answer.remedy,
    )


def _require_push(credentials: Credentials, repository: Mapping[str, Any], name: str, scopes: str) -> None:
    enough = {"repo"} if repository.get("private") else {"repo", "public_repo"}
    is_classic = bool(scopes) or str(credentials.github_token).startswith("ghp_")
    may_push = repository.get("permissions", {}).get("push")  # the user's right, regardless of the token's scopes
    if not may_push or (is_classic and not enough & set(scopes.split(", "))):
        raise rejected(
            f"GITHUB_TOKEN of {credentials.source} may not push to {name}.",
            "make one with the scope `repo` (fine-grained: Contents, read and write, for this repository) by an "
            "account that may push, and put it into secrets.json.",
        )


def _check_git(credentials: Credentials, url: str, seconds: float) -> Account:
    """Check with `git ls-remote` that a repository can be read; write access is not checked."""
    shown = credentials.redact(without_user(url))
    environment = credentials.git_environment(url)
    words = ["git", "ls-remote", "--", url]
    ask = partial(run_command, words, env=environment, timeout=seconds, redact=credentials.redact)
    try:
        patiently(ask, git_answers.explain_error, PAUSES)
    except CommandError as error:
        answer = git_answers.explain_error(error)
        kind = CredentialsError if answer.is_account else RemoteError
        what = f"{shown} cannot be read{because(answer)} with {credentials.source}: {error.what}"
        raise kind(what, state=UNCHANGED, remedy=answer.remedy) from None
    return Account("Git", shown, ("can be read; only a push shows whether it can be written to",))


# ── W&B ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_wandb(credentials: Credentials, entity: str | None = None, *, seconds: float = SECONDS) -> Account:
    """Check the W&B key, and that its user may record runs in `entity`; return its account.

    The server is that of W&B's client: `WANDB_BASE_URL`, or what `wandb login --host` has written. Raises
    `CredentialsError` when there is no key or W&B rejects it, `RemoteError` when W&B cannot be reached or `entity` is
    of somebody else.
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
        own = {who, str(viewer.entity), *viewer.teams}
    except Exception as error:  # noqa: BLE001  a rejection and a timeout are one class; the response tells them apart
        what = credentials.redact(str(error.__cause__ or error))
        reply = getattr(error.__cause__, "response", None)  # the server's reply, if there was one
        is_key = isinstance(error, wandb.errors.AuthenticationError) and error.__cause__ is None
        is_rejected = getattr(reply, "http_status", 0) in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        if is_key or is_rejected or "invalid credentials" in what:
            raise rejected(
                f"W&B rejects WANDB_API_KEY of {credentials.source}: {what}",
                "copy the key anew from your W&B user settings into secrets.json, or leave it out.",
            ) from None
        raise unreachable("W&B", what) from None
    if entity and entity not in own:
        raise RemoteError(
            f"W&B: wandb.entity is {entity}, and {who} is no member of such a team.",
            state="curves are recorded offline.",
            remedy=f"name one of {', '.join(sorted(own - {'None'}))} as wandb.entity, or null for the account's own "
            "default; or have the user invited to that team.",
        )
    return Account("W&B", who, (mail, teams and f"teams: {teams}"))
