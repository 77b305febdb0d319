"""The accounts themselves: make `secrets.json`, and ask each service whether it takes what stands in it.

Guarantees: no value is shown, by `say` or by an error; the file is private (mode 600), whole or as it was, and never
where Git would commit it. A check leaves nothing behind and gives up a service that is silent. `CredentialsError` says
that a service refuses a key, `RemoteError` that it cannot be reached, or not used with this key as things stand.

Cannot: know what a fine-grained GitHub token may do, for GitHub tells its owner's rights; see whether an OAuth app is
in state "Testing", unless Google says so with the token. A probe file stays in the Drive folder if the connection
breaks between making and deleting it; the error names it.
"""

from __future__ import annotations

import contextlib
import getpass
import hmac
import http.client
import json
import queue
import re
import secrets
import threading
import urllib.error
import urllib.request
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lib.errors import CommandError, CredentialsError, HostError, RemoteError, RunError
from lib.process import limit_silence, run_command
from lib.remotes.clone import find_dvc_remote, find_git_remote
from lib.remotes.credentials import DRIVE_NAMES, TOKEN_URI, Credentials, make_credentials, read_secrets, write_private

DRIVE_SCOPE = "https://www.googleapis.com/auth/drive"
AUTH_URI = "https://accounts.google.com/o/oauth2/auth"
SECONDS = 30.0  # without an answer, before a service counts as unreachable
LONGEST_ANSWER = 2**20  # bytes
UNCHANGED = "nothing was changed there."

Say = Callable[[str], object]
Ask = Callable[[str], str]


@dataclass(frozen=True)
class Account:
    """An account that a service has let in: whose it is, and what else is worth a line."""

    service: str
    who: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join((f"{self.service}: {self.who}", *self.details))


# ── Google Drive ──────────────────────────────────────────────────────────────────────────────────────────────────────


def check_drive(credentials: Credentials, folder: str | None = None, *, seconds: float = SECONDS) -> Account:
    """Get a fresh token and say whose Drive it opens; with a folder's id, write a small file there and delete it.

    Raises `CredentialsError` where Google refuses, `RemoteError` where it cannot be reached, has no Drive API for this
    app, or the folder cannot be written to.
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
    except Exception as error:  # noqa: BLE001  whatever the cryptography library raises; its message may quote the key
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
    # only a file that is really made proves it: quota and a shared drive's rules are asked then
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
            # in a shared drive most members may put away, and only managers destroy
            files.trash(fileId=made["id"], supportsAllDrives=True).execute(num_retries=2)
    except Exception as error:  # noqa: BLE001  whatever it was, the file is there
        raise RemoteError(
            f"the file {name} was made in gdrive://{folder}, and cannot be deleted ({type(error).__name__}).",
            state="that file is left there.",
            remedy="delete it by hand; let the account delete too (a run that fails takes back what it uploaded).",
        ) from None
    return f"folder {about['title']} can be written to"


@contextlib.contextmanager
def _google_told(credentials: Credentials) -> Iterator[None]:
    """Turn what Google's client raises into an error that says what to do."""
    from googleapiclient.errors import HttpError
    from httplib2 import HttpLib2Error
    from oauth2client.client import AccessTokenRefreshError

    try:
        yield
    except AccessTokenRefreshError as error:
        # the cause is not kept: it may hold what was sent
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
    """Ask the host of a repository whether the token may push to it; a host that is no GitHub, for its refs alone.

    Without an address GitHub is asked whose token it is. Raises `CredentialsError` where there is no token, or the host
    refuses it or its right to push; `RemoteError` where the host cannot be reached.
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
    scopes = answer.headers.get("x-oauth-scopes", "")  # of a classic token; others have none
    end = answer.headers.get("github-authentication-token-expiration")
    details = [f"scopes: {scopes}" if scopes else "", f"the token ends on {end}" if end else ""]
    if name:
        _require_push(credentials, told, name, scopes)
        details.insert(0, f"may push to {name}")
        told = _ask_api(credentials, f"{api}/user", seconds).content
    # an app's token is nobody's
    return Account("GitHub", str(told.get("login") or "a token without a user"), tuple(filter(None, details)))


def _require_push(credentials: Credentials, repository: Mapping[str, Any], name: str, scopes: str) -> None:
    enough = {"repo"} if repository.get("private") else {"repo", "public_repo"}
    is_classic = bool(scopes) or str(credentials.github_token).startswith("ghp_")
    may_push = repository.get("permissions", {}).get("push")  # of the user, whatever the token's scopes
    if not may_push or (is_classic and not enough & set(scopes.split(", "))):
        raise CredentialsError(
            f"GITHUB_TOKEN of {credentials.source} may not push to {name}.",
            state=UNCHANGED,
            remedy="make one with the scope `repo` (fine-grained: Contents, read and write, for this repository) by an "
            "account that may push, and put it into secrets.json.",
        )


GITHUB = "https://api.github.com"


def _github_api(url: str) -> tuple[str, str] | None:
    """Give the API's address and `owner/name` for a repository's address; None for what no GitHub has."""
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
    headers: Mapping[str, str]  # their names in lower case
    content: Mapping[str, Any]

    @property
    def is_github(self) -> bool:
        return any(name.startswith("x-github-") for name in self.headers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow nothing: the library would send the token along to any host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Let the answer be the answer."""


def _ask_api(credentials: Credentials, address: str, seconds: float) -> _Answer:
    headers = {"Authorization": f"Bearer {credentials.github_token}", "Accept": "application/vnd.github+json"}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310  http or https, by `_github_api`
    try:
        try:
            reply = urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            reply = error  # an answer like any other
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
    """Give the repository, or raise what its absence means."""
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
    """Ask for the refs of a repository, the way a clone begins."""
    shown = credentials.redact(re.sub(r"://[^/@]*@", "://", url))
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
    """Ask W&B (`WANDB_BASE_URL`, or where its client looks by itself) whose key it is.

    Raises `CredentialsError` where there is no key or W&B refuses it, `RemoteError` where it cannot be reached.
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
    except Exception as error:  # noqa: BLE001  one class for a refusal and for silence; the answer in it tells
        told = credentials.redact(str(error.__cause__ or error))
        answer = getattr(error.__cause__, "response", None)  # of the server; there is none where it gave none
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


# ── signing in to Google ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, repr=False)
class OAuthClient:
    """The user's own OAuth client, of type Desktop app."""

    id: str
    secret: str
    auth_uri: str = AUTH_URI
    token_uri: str = TOKEN_URI

    def __repr__(self) -> str:
        return f"OAuthClient({self.id})"


def read_google_file(path: Path) -> OAuthClient | dict[str, Any]:
    """Read a JSON of Google's console: an OAuth client of type Desktop app, or a service account's key.

    Raises `CredentialsError` for anything else.
    """
    content = read_secrets(path, remedy="download the JSON from Google's console, and name that file.")
    if content.get("type") == "service_account":
        return content
    client = content.get("installed")
    if not isinstance(client, dict) or not all(
        isinstance(client.get(name), str) and client[name] for name in ("client_id", "client_secret")
    ):
        kind = "of type Web application" if "web" in content else "no OAuth client and no service account's key"
        raise CredentialsError(
            f"{path} is {kind}.",
            state="nobody was signed in.",
            remedy="Google Cloud Console → APIs & Services → Credentials → Create → OAuth client ID → Desktop app; "
            "download its JSON.",
        )
    uris = [str(client.get(name) or uri) for name, uri in (("auth_uri", AUTH_URI), ("token_uri", TOKEN_URI))]
    for uri in uris:
        # the client's secret and the user's tokens go there
        if urlsplit(uri).scheme != "https" and urlsplit(uri).hostname not in ("127.0.0.1", "localhost"):
            raise CredentialsError(
                f"{path} names {uri} to sign in at, which is not https.",
                state="nobody was signed in.",
                remedy="download the JSON anew from Google's console.",
            )
    return OAuthClient(client["client_id"], client["client_secret"], *uris)


def sign_in(
    client: OAuthClient,
    *,
    say: Say = print,
    open_browser: Callable[[str], object] = webbrowser.open,
    seconds: float = 600,
) -> dict[str, str]:
    """Let the user agree in the browser, and give the five fields of `GDRIVE_USER_CREDENTIALS`.

    The answer comes back over loopback, is taken only with the state that was sent, and is worth nothing without the
    verifier that never left this process (PKCE). Raises `CredentialsError` where the user or Google refuses,
    `RemoteError` where Google cannot be reached.
    """
    import httplib2
    from oauth2client.client import FlowExchangeError, OAuth2WebServerFlow

    state = secrets.token_urlsafe(32)
    hide = Credentials(github_token=client.secret).redact
    with _redirect(state) as (address, answers):
        flow = OAuth2WebServerFlow(
            client.id,
            client_secret=client.secret,
            scope=DRIVE_SCOPE,
            redirect_uri=address,
            auth_uri=client.auth_uri,
            token_uri=client.token_uri,
            pkce=True,
            access_type="offline",
            prompt="consent",  # without it Google gives a refresh token the first time alone
        )
        page = flow.step1_get_authorize_url(state=state)
        port = urlsplit(address).port
        say(f"Agree in the browser. If none opens, open this address:\n\n  {page}\n")
        say(f"A browser on another machine reaches this one by: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE")
        open_browser(page)
        try:
            answer = answers.get(timeout=seconds)
        except queue.Empty:
            raise _not_signed_in(f"no answer came from the browser within {seconds:.0f} s") from None
    if "code" not in answer:
        raise _not_signed_in(f"Google says {_word(answer.get('error'))}")
    try:
        given = flow.step2_exchange(answer["code"], http=httplib2.Http(timeout=SECONDS))
    except FlowExchangeError as error:
        raise _not_signed_in(f"Google gives no tokens ({hide(str(error))})") from None
    except (OSError, httplib2.HttpLib2Error, http.client.HTTPException) as error:
        raise _unreachable("Google", hide(f"{type(error).__name__}: {error}")) from None
    told = given.token_response
    if DRIVE_SCOPE not in str(told.get("scope", "")).split():
        raise _not_signed_in("the permission for Google Drive was not given", "tick its box")
    if not given.refresh_token or given.token_expiry is None:
        raise _not_signed_in("Google gives no refresh token", "take the app's access back in your Google account first")
    _warn_of_testing(told, say)
    return {
        "access_token": given.access_token,
        "refresh_token": given.refresh_token,
        "client_id": client.id,
        "client_secret": client.secret,
        "token_expiry": f"{given.token_expiry:%Y-%m-%dT%H:%M:%SZ}",
    }


def _warn_of_testing(told: Mapping[str, Any], say: Say) -> None:
    remedy = "publish it (Google Cloud Console → Google Auth Platform → Audience → Publish app), then sign in again."
    end = told.get("refresh_token_expires_in")
    if str(end).isdigit():
        days = round(int(str(end)) / 86400)
        say(f"Warning: Google ends this refresh token after {days} days, for the app is in state Testing: {remedy}")
    else:
        say(f"Warning: if the OAuth app is in state Testing, this refresh token ends after 7 days: {remedy}")


def _word(text: object) -> str:
    """Give an error's code if it is one; a page can send anything."""
    return text if isinstance(text, str) and re.fullmatch(r"[a-z_]{1,60}", text) else "something unknown"


def _not_signed_in(
    what: str, remedy: str = "sign in with the account that owns the folder and agree"
) -> CredentialsError:
    return CredentialsError(f"{what}.", state="nobody was signed in.", remedy=f"{remedy}; then try again.")


@contextlib.contextmanager
def _redirect(state: str) -> Iterator[tuple[str, queue.Queue[dict[str, str]]]]:
    """Listen on loopback for the browser that comes back with this state; its address, and what it brings."""
    answers: queue.Queue[dict[str, str]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS  # browsers open connections that they never use

        def log_message(self, *_: object) -> None:
            """Stay quiet: the address holds the code."""

        def do_GET(self) -> None:  # the name that http.server looks for
            """Take the answer that was asked for; a page elsewhere could send another one."""
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            is_ours = hmac.compare_digest(query.get("state", "").encode(), state.encode())
            if is_ours:
                answers.put(query)
            self.send_response(HTTPStatus.OK if is_ours else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"Go on in the terminal; this page may be closed." if is_ours else b"Nothing is here.")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), name="redirect", daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", answers
    finally:
        server.shutdown()
        server.server_close()


# ── making the file ───────────────────────────────────────────────────────────────────────────────────────────────────


def ask_hidden(question: str) -> str:
    """Ask at the terminal without showing the answer. Raises `HostError` where it would be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(question)
        except getpass.GetPassWarning:
            raise HostError(
                "this terminal cannot hide what is typed.",
                remedy="run `python -m lib credentials` in another terminal, or write secrets.json by hand.",
            ) from None


def make_secrets(
    file: Path,
    *,
    client: Path | None = None,
    root: Path | None = None,
    ask: Ask = input,
    ask_hidden: Ask = ask_hidden,
    say: Say = print,
    open_browser: Callable[[str], object] = webbrowser.open,
) -> list[Account]:
    """Make or complete `secrets.json` with the user, and check each account; give those that were let in.

    `client` is the JSON of the user's OAuth client, or a service account's key; without it, it is asked for. `root` is
    a clone: its DVC remote and its origin are what the accounts are checked against. What stands in the file stays
    unless the user replaces it. The file is written after each account, so that Ctrl-C loses none.

    Raises `CredentialsError` where the file would be committed, or holds something else than credentials; `HostError`
    where nobody can be asked, or the file cannot be written.
    """
    file = file.resolve()
    _refuse_to_commit(file)
    values = read_secrets(file, remedy="correct it, move it away, or name another.") if file.exists() else {}
    make_credentials(values, str(file))
    talk = _Talk(ask, ask_hidden, say)
    origin, folder = _places(root, say)
    given = [client] if client else []
    accounts = [
        _obtain(
            file, values, talk, DRIVE_NAMES, lambda: _get_drive(talk, given, open_browser),
            lambda credentials: check_drive(credentials, folder),
            "a Google Drive can be neither pulled from nor published to", replace=client is not None,
        ),
        _obtain(
            file, values, talk, ("GITHUB_TOKEN",),
            lambda: talk.hidden("GITHUB_TOKEN", "scope `repo`; fine-grained: Contents, read and write"),
            lambda credentials: check_github(credentials, origin),
            "nothing can be published to GitHub, and no private repository cloned",
        ),
        _obtain(
            file, values, talk, ("WANDB_API_KEY",),
            lambda: talk.hidden("WANDB_API_KEY", "from your W&B user settings"),
            check_wandb,
            "curves are recorded offline",
        ),
    ]  # fmt: skip
    if values:
        file.chmod(0o600)  # also where nothing was written
        say(f"{file} holds {', '.join(values)}; only you can read it. Make a private Kaggle dataset of it (README).")
    else:
        say(f"{file} was not written: no account was given.")
    return [account for account in accounts if account is not None]


@dataclass(frozen=True)
class _Talk:
    """The user."""

    ask: Ask
    ask_hidden: Ask
    say: Say

    def agrees(self, question: str) -> bool:
        return self._answer(self.ask, f"{question} [y/N] ").lower() in ("y", "yes")

    def text(self, question: str) -> str:
        return self._answer(self.ask, f"{question}: ")

    def hidden(self, name: str, hint: str) -> dict[str, Any]:
        value = self._answer(self.ask_hidden, f"{name} ({hint}; not shown; Enter skips): ")
        return {name: value} if value else {}

    def _answer(self, ask: Ask, question: str) -> str:
        try:
            return ask(question).strip()
        except EOFError:
            raise HostError(
                "there is nobody at the terminal to ask.",
                state="what was asked for before is in the file.",
                remedy="run `python -m lib credentials` in a terminal, or write secrets.json by hand.",
            ) from None


def _obtain(
    file: Path,
    values: dict[str, Any],
    talk: _Talk,
    names: tuple[str, ...],
    get: Callable[[], dict[str, Any]],
    check: Callable[[Credentials], Account],
    without: str,
    *,
    replace: bool = False,
) -> Account | None:
    """Get one account from the file or the user until its service takes it, or the user skips it."""
    standing = [name for name in names if name in values]
    account: Account | None = None
    if standing and not replace:
        with _told(talk.say, "It stays in the file."):
            account = check(make_credentials(values, str(file)))
            talk.say(f"{account}.")
        if not talk.agrees(f"{standing[0]} is in {file}. Replace it?"):
            return account
    while True:
        with _told(talk.say, "It is not taken; try again, or skip it."):
            new = get()
            if not new:
                talk.say(f"{standing[0]} stays as it is." if standing else f"Skipped: {without}.")
                return account
            candidate = {name: value for name, value in values.items() if name not in names} | new
            credentials = make_credentials(candidate, "what was given")
            account = None
            with _told(talk.say, "It is kept, but was not checked.", (RemoteError,)):
                account = check(credentials)
                talk.say(f"{account}.")
            values.clear()
            values.update(candidate)
            _write(file, values)
            return account


def _write(file: Path, values: Mapping[str, Any]) -> None:
    try:
        write_private(file, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise HostError(
            f"{file} cannot be written: {error.strerror}.",
            state="an older file of that name is as it was.",
            remedy="name a file in a folder of yours: `python -m lib credentials FILE`.",
        ) from None


@contextlib.contextmanager
def _told(say: Say, then: str, kinds: tuple[type[RunError], ...] = (CredentialsError, RemoteError)) -> Iterator[None]:
    """Say an error, and go on."""
    try:
        yield
    except kinds as error:
        say(f"{error}\n{then}")


def _get_drive(talk: _Talk, given: list[Path], open_browser: Callable[[str], object]) -> dict[str, Any]:
    """Get a Drive account: from the file named beforehand, once, or as the user says."""
    if given:
        path = str(given.pop())
    else:
        path = talk.text(
            "Google Drive: path of your OAuth client's JSON (type Desktop app) or of a service account's key "
            "(`type` to type the client's id and secret; Enter skips)"
        )
    if not path:
        return {}
    client: OAuthClient | dict[str, Any]
    if path == "type":
        name, secret = talk.text("Client id"), talk.hidden("Client secret", "of the same client")
        if not name or not secret:
            return {}
        client = OAuthClient(name, secret["Client secret"])
    else:
        client = read_google_file(Path(path).expanduser())
    if isinstance(client, dict):
        return {"GDRIVE_SERVICE_ACCOUNT": client}
    return {"GDRIVE_USER_CREDENTIALS": sign_in(client, say=talk.say, open_browser=open_browser)}


def _refuse_to_commit(file: Path) -> None:
    """Raise `CredentialsError` where the file lies in a Git work tree that does not ignore it."""
    if not any((folder / ".git").exists() for folder in file.parents):
        return
    home = next(folder for folder in file.parents if folder.is_dir())
    # a file that is tracked already counts as not ignored
    if run_command(["git", "check-ignore", "--quiet", "--", file], cwd=home, check=False).status != 0:
        raise CredentialsError(
            f"{file} lies in a Git work tree that does not ignore it: the next commit could publish it.",
            state="nothing was asked or written.",
            remedy=f"name a file elsewhere, or add {file.name} to .gitignore (if it is tracked: `git rm --cached` it).",
        )


def _places(root: Path | None, say: Say) -> tuple[str, str | None]:
    """Give the address of the clone's origin and the id of its Drive folder, to check the accounts against."""
    root, origin = root or Path.cwd(), ""
    with contextlib.suppress(RemoteError):
        origin = find_git_remote(root, Credentials())
    folder = None
    try:
        _, url = find_dvc_remote(root)
        folder = urlsplit(url).netloc or None if url.startswith("gdrive://") else None
        if not url.startswith("gdrive://"):
            say(f"The DVC remote here is {url}, no Google Drive. Keys of S3 go into the file by hand (README).")
    except RemoteError:
        say("No DVC remote is configured here: the Drive account is checked without its folder.")
    return origin, folder
