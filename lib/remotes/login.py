"""Make `secrets.json`: ask for each account's key, sign in to Google, and check every key with its service.

Guarantees: no value is shown, by `say` or by an error. The file is private (mode 600), is written whole or stays as it
was, and never lies where Git would commit it. Cannot: see whether an OAuth app is in state "Testing", unless Google
reports it with the token.
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
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lib.errors import CredentialsError, HostError, RemoteError, RunError
from lib.process import run_command
from lib.remotes.accounts import (
    DRIVE_SCOPE,
    SECONDS,
    Account,
    Ask,
    Say,
    _unreachable,
    check_drive,
    check_github,
    check_wandb,
)
from lib.remotes.clone import find_dvc_remote, find_git_remote
from lib.remotes.credentials import DRIVE_NAMES, TOKEN_URI, Credentials, make_credentials, read_secrets, write_private

AUTH_URI = "https://accounts.google.com/o/oauth2/auth"


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
    """Read a JSON file of Google's console: an OAuth client of type Desktop app, or a service account's key.

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
        # the client's secret and the user's tokens are sent to this URL
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
    """Sign the user in to Google in the browser and return the five fields of `GDRIVE_USER_CREDENTIALS`.

    The reply arrives over loopback. It is accepted only with the `state` that was sent, and it is useless without the
    verifier, which never leaves this process (PKCE). Raises `CredentialsError` when the user or Google refuses,
    `RemoteError` when Google cannot be reached.
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
            prompt="consent",  # otherwise Google returns a refresh token only at the first consent
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
    """Return an OAuth error code if `text` has that form: any web page can send this value."""
    return text if isinstance(text, str) and re.fullmatch(r"[a-z_]{1,60}", text) else "something unknown"


def _not_signed_in(
    what: str, remedy: str = "sign in with the account that owns the folder and agree"
) -> CredentialsError:
    return CredentialsError(f"{what}.", state="nobody was signed in.", remedy=f"{remedy}; then try again.")


@contextlib.contextmanager
def _redirect(state: str) -> Iterator[tuple[str, queue.Queue[dict[str, str]]]]:
    """Listen on loopback for the browser's redirect with this state; yield the URL and a queue of the parameters."""
    answers: queue.Queue[dict[str, str]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS  # browsers open connections that they never use

        def log_message(self, *_: object) -> None:
            """Log nothing: the requested URL contains the authorization code."""

        def do_GET(self) -> None:  # the name that http.server requires
            """Accept only the redirect with our state: any web page could send a request to this port."""
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


def ask_hidden(question: str) -> str:
    """Read an answer from the terminal without echo. Raises `HostError` when the terminal cannot hide it."""
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
    """Make or complete `secrets.json` with the user, check each account, and return the accepted accounts.

    `client` is the JSON file of the user's OAuth client or of a service account's key; without it, the user is asked
    for one. `root` is a clone; the accounts are checked against its DVC remote and its `origin`. Existing values stay
    in the file unless the user replaces them. The file is written after each account, so that Ctrl-C loses none.

    Raises `CredentialsError` when Git would commit the file, or when it contains something other than credentials;
    `HostError` when there is no terminal to ask at, or when the file cannot be written.
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
        file.chmod(0o600)  # also when nothing was written: the existing file may be readable by others
        say(
            f"{file} holds {', '.join(values)}; only you can read it. "
            "Make a private Kaggle dataset of it (docs/setup.md)."
        )
    else:
        say(f"{file} was not written: no account was given.")
    return [account for account in accounts if account is not None]


@dataclass(frozen=True)
class _Talk:
    """The dialog with the user."""

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
    """Read one account from the file or from the user, until its service accepts it or the user skips it.

    Returns None for an account that was skipped, rejected or not checked.
    """
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
    """Report an error of these kinds through `say` instead of raising it."""
    try:
        yield
    except kinds as error:
        say(f"{error}\n{then}")


def _get_drive(talk: _Talk, given: list[Path], open_browser: Callable[[str], object]) -> dict[str, Any]:
    """Return a Drive account's key, from the given file (used once) or from the user; an empty one means skipped."""
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
    """Raise `CredentialsError` when the file lies in a Git work tree that does not ignore it."""
    if not any((folder / ".git").exists() for folder in file.parents):
        return
    home = next(folder for folder in file.parents if folder.is_dir())
    # `git check-ignore` reports a tracked file as not ignored: it would be committed too
    if run_command(["git", "check-ignore", "--quiet", "--", file], cwd=home, check=False).status != 0:
        raise CredentialsError(
            f"{file} lies in a Git work tree that does not ignore it: the next commit could publish it.",
            state="nothing was asked or written.",
            remedy=f"name a file elsewhere, or add {file.name} to .gitignore (if it is tracked: `git rm --cached` it).",
        )


def _places(root: Path | None, say: Say) -> tuple[str, str | None]:
    """Return the URL of the clone's `origin` and the id of its Drive folder, used to check the accounts."""
    root, origin = root or Path.cwd(), ""
    with contextlib.suppress(RemoteError):
        origin = find_git_remote(root, Credentials())
    folder = None
    try:
        _, url = find_dvc_remote(root)
        folder = urlsplit(url).netloc or None if url.startswith("gdrive://") else None
        if not url.startswith("gdrive://"):
            say(f"The DVC remote here is {url}, no Google Drive. Keys of S3 go into the file by hand (docs/setup.md).")
    except RemoteError:
        say("No DVC remote is configured here: the Drive account is checked without its folder.")
    return origin, folder
