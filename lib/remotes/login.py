"""Make `secrets.json` in a dialog: ask for each account's key, sign in to Google, check each key with its service.

Guarantees: no value is shown, neither in the dialog nor in an error. The file is private (mode 600), is written whole
or stays as it was, and never lies where Git would commit it. Cannot: see whether an OAuth app is in state "Testing",
unless Google reports it with the token.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from getpass import GetPassWarning
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click

from lib.errors import CredentialsError, HostError, RemoteError
from lib.process import run_command
from lib.remotes.accounts import DRIVE_SCOPE, SECONDS, Account, check_drive, check_github, check_wandb, unreachable
from lib.remotes.clone import find_git_remote, find_remotes
from lib.remotes.credentials import DRIVE_NAMES, TOKEN_URI, Credentials, make_credentials, read_secrets, write_private

AUTH_URI = "https://accounts.google.com/o/oauth2/auth"


# ── signing in to Google ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class OAuthClient:
    """The user's own OAuth client, of type Desktop app, with the fields of its JSON that are used."""

    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    auth_uri: str = AUTH_URI
    token_uri: str = TOKEN_URI


def read_google_file(path: Path) -> dict[str, Any]:
    """Return the entry of `secrets.json` for a JSON file of Google's console.

    The file is a service account's key, or an OAuth client of type Desktop app, with which the user signs in. Raises
    `CredentialsError` for anything else, and the errors of `sign_in`.
    """
    content = read_secrets(path, remedy="download the JSON from Google's console, and name that file.")
    if content.get("type") == "service_account":
        return {"GDRIVE_SERVICE_ACCOUNT": content}
    given = content.get("installed")
    given = given if isinstance(given, dict) else {}
    client = OAuthClient(**{each.name: str(given[each.name]) for each in fields(OAuthClient) if given.get(each.name)})
    wrong = ""
    if not client.client_id or not client.client_secret:
        wrong = "an OAuth client of type Web application" if "web" in content else "neither an OAuth client nor a key"
    for uri in map(urlsplit, (client.auth_uri, client.token_uri)):
        # the client's secret and the user's tokens are sent there
        if uri.scheme != "https" and uri.hostname not in ("127.0.0.1", "localhost"):
            wrong = f"an OAuth client that signs in at {uri.geturl()}, which is not https"
    if wrong:
        raise CredentialsError(
            f"{path} is {wrong}.",
            state="nobody was signed in.",
            remedy="Google Cloud Console → APIs & Services → Credentials → Create → OAuth client ID → Desktop app; "
            "download its JSON.",
        )
    return {"GDRIVE_USER_CREDENTIALS": sign_in(client)}


def sign_in(client: OAuthClient, *, seconds: float = 600) -> dict[str, str]:
    """Sign the user in to Google in the browser and return the five fields of `GDRIVE_USER_CREDENTIALS`.

    The redirect arrives over loopback. Its code is useless without the verifier, which never leaves this process
    (PKCE). Raises `CredentialsError` when the user or Google refuses, `RemoteError` when Google cannot be reached.
    """
    from google_auth_oauthlib.flow import Flow
    from oauthlib.oauth2 import OAuth2Error
    from requests import RequestException

    hide = Credentials(github_token=client.client_secret).redact
    flow = Flow.from_client_config({"installed": asdict(client)}, [DRIVE_SCOPE])
    flow.oauth2session.max_redirects = 0  # a redirect would carry the client's secret to another host
    query = _receive_redirect(flow, seconds)
    if not query:
        raise _not_signed_in(f"no reply came from the browser within {seconds:.0f} s")
    try:
        token = flow.fetch_token(
            authorization_response=f"https://127.0.0.1/?{query}",  # oauthlib accepts no other scheme
            include_client_id=True,  # in the form: `redact` does not know the encoded secret of a Basic header
            timeout=SECONDS,
        )
    except OAuth2Error as error:
        raise _not_signed_in(f"Google returns no tokens: {hide(str(error)).strip()}") from None
    except Warning:  # oauthlib's report of another scope than the requested one
        raise _not_signed_in("the permission for Google Drive was not given", "tick its box") from None
    except RequestException as error:
        raise unreachable("Google", hide(f"{type(error).__name__}: {error}")) from None
    if not token.get("refresh_token") or not token.get("expires_at"):
        raise _not_signed_in("Google returns no refresh token", "remove the app's access in your Google account first")
    _warn_of_testing(token)
    return {
        "access_token": token["access_token"],
        "refresh_token": token["refresh_token"],
        "client_id": client.client_id,
        "client_secret": client.client_secret,
        "token_expiry": f"{datetime.fromtimestamp(token['expires_at'], UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _receive_redirect(flow: Any, seconds: float) -> str:  # noqa: ANN401  google_auth_oauthlib has no types
    """Open Google's page in the browser and return the query of its redirect to loopback; "" if none arrives in time.

    `InstalledAppFlow.run_local_server` takes the first request for the redirect, and any web page can send one.
    """
    state = query = ""

    class Redirect(BaseHTTPRequestHandler):
        timeout = 2  # browsers open connections that they never use

        def log_message(self, *_: object) -> None:
            """Log nothing: the requested URL contains the authorization code."""

        def do_GET(self) -> None:  # the name that http.server requires
            """Accept only the redirect with our state."""
            nonlocal query
            received = urlsplit(self.path).query
            if parse_qs(received).get("state") != [state]:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            query = received
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"Continue in the terminal; this page may be closed.")

    with HTTPServer(("127.0.0.1", 0), Redirect) as server:
        port, end = server.server_port, time.monotonic() + seconds
        flow.redirect_uri = f"http://127.0.0.1:{port}/"
        # without prompt=consent Google returns a refresh token only at the first consent
        page, state = flow.authorization_url(prompt="consent")
        print(
            f"Agree in the browser. If none opens, open this address:\n\n  {page}\n\n"
            f"A browser on another machine reaches this one by: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE",
            flush=True,
        )
        # in a thread: a browser in the terminal (w3m) does not return before its redirect was answered
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
        while not query and (left := end - time.monotonic()) > 0:
            server.timeout = left
            server.handle_request()
    return query


def _not_signed_in(
    what: str, remedy: str = "sign in with the account that owns the folder and agree"
) -> CredentialsError:
    return CredentialsError(f"{what}.", state="nobody was signed in.", remedy=f"{remedy}; then try again.")


def _warn_of_testing(token: Mapping[str, Any]) -> None:
    lifetime = str(token.get("refresh_token_expires_in"))
    if lifetime.isdigit():
        what = f"Google ends this refresh token after {int(lifetime) / 86400:.0f} days, for the app is in state Testing"
    else:
        what = "if the OAuth app is in state Testing, this refresh token ends after 7 days"
    where = "Google Cloud Console → Google Auth Platform → Audience → Publish app"
    print(f"Warning: {what}: publish it ({where}), then sign in again.")


# ── making the file ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Raise `HostError` if a prompt finds no terminal, or one that would show what is typed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", GetPassWarning)
            yield
    except (GetPassWarning, click.Abort) as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise
        shows = isinstance(error, GetPassWarning)
        raise HostError(
            "this terminal cannot hide what is typed." if shows else "there is nobody at the terminal to ask.",
            state="accounts that were accepted before are in the file.",
            remedy="run `python -m lib credentials` in another terminal, or write secrets.json by hand.",
        ) from None


@_terminal()
def make_secrets(file: Path, *, client: Path | None = None) -> list[Account]:
    """Make or complete `secrets.json` with the user, check each account, and return the accepted accounts.

    `client` is the JSON file of the user's OAuth client or of a service account's key; without it, the user is asked
    for one. In a clone, the accounts are checked against its DVC remote and its `origin`. Existing values stay in the
    file unless the user replaces them. The file is written after each account, so that Ctrl-C loses none.

    Raises `CredentialsError` when Git would commit the file, or when it contains something other than credentials;
    `HostError` when there is no terminal to ask at, or when the file cannot be written.
    """
    file = file.resolve()
    _refuse_to_commit(file)
    made = _SecretsFile(file)
    origin, folder, others = _find_places()
    given = [client] if client else []
    accounts = (
        made.obtain(
            DRIVE_NAMES, lambda: _ask_drive(given), lambda credentials: check_drive(credentials, folder, others),
            "a Google Drive can be neither pulled from nor published to", replace=client is not None,
        ),
        made.obtain(
            ("GITHUB_TOKEN",), lambda: _ask_key("GITHUB_TOKEN", "scope `repo`; fine-grained: Contents, read and write"),
            lambda credentials: check_github(credentials, origin),
            "nothing can be published to GitHub, and no private repository cloned",
        ),
        made.obtain(
            ("WANDB_API_KEY",), lambda: _ask_key("WANDB_API_KEY", "from your W&B user settings"), check_wandb,
            "curves are recorded offline",
        ),
    )  # fmt: skip
    if made.values:
        file.chmod(0o600)  # also when nothing was written: the existing file may be readable by others
        print(f"{file} holds {', '.join(made.values)}; only you can read it. Make a private Kaggle dataset of it "
              "(docs/setup.md).")  # fmt: skip
    else:
        print(f"{file} was not written: no account was given.")
    return [account for account in accounts if account is not None]


class _SecretsFile:
    """The `secrets.json` that is made, with its values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        remedy = "correct it, move it away, or name another."
        self.values = read_secrets(path, remedy=remedy) if path.exists() else {}
        make_credentials(self.values, str(path))

    def obtain(
        self,
        names: tuple[str, ...],
        ask: Callable[[], dict[str, Any]],
        check: Callable[[Credentials], Account],
        without: str,
        *,
        replace: bool = False,
    ) -> Account | None:
        """Read one account from the file or from the user, until its service accepts it or the user skips it.

        Returns None for an account that was skipped, rejected or not checked.
        """
        account: Account | None = None
        present = next((name for name in names if name in self.values), None)
        if present and not replace:
            with _shown("It stays in the file.", CredentialsError, RemoteError):
                account = check(make_credentials(self.values, str(self.path)))
                print(f"{account}.")
            if not click.confirm(f"{present} is in {self.path}. Replace it?"):
                return account
        while True:
            with _shown("It is not taken; try again, or skip it.", CredentialsError, RemoteError):
                new = ask()
                if not new:
                    print(f"{present} stays as it is." if present else f"Skipped: {without}.")
                    return account
                values = {name: value for name, value in self.values.items() if name not in names} | new
                credentials = make_credentials(values, "what was given")
                account = None
                with _shown("It is kept, but was not checked.", RemoteError):
                    account = check(credentials)
                    print(f"{account}.")
                self.write(values)
                return account

    def write(self, values: dict[str, Any]) -> None:
        """Replace the file's content. Raises `HostError` when it cannot be written."""
        try:
            write_private(self.path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            raise HostError(
                f"{self.path} cannot be written: {error.strerror}.",
                state="an older file of that name is as it was.",
                remedy="name a file in a folder of yours: `python -m lib credentials FILE`.",
            ) from None
        self.values = values


@contextlib.contextmanager
def _shown(then: str, *kinds: type[CredentialsError | RemoteError]) -> Iterator[None]:
    """Print an error of these kinds instead of raising it."""
    try:
        yield
    except kinds as error:
        print(f"{error}\n{then}")


def _ask(question: str, *, hidden: bool = False) -> str:
    return str(click.prompt(question, default="", show_default=False, hide_input=hidden)).strip()


def _ask_key(name: str, hint: str) -> dict[str, Any]:
    value = _ask(f"{name} ({hint}; not shown; Enter skips)", hidden=True)
    return {name: value} if value else {}


def _ask_drive(given: list[Path]) -> dict[str, Any]:
    """Return a Drive account's key, from the given file (used once) or from the user; an empty one means skipped."""
    path = str(given.pop()) if given else _ask(
        "Google Drive: path of your OAuth client's JSON (type Desktop app) or of a service account's key "
        "(`type` to type the client's id and secret; Enter skips)"
    )  # fmt: skip
    if not path:
        return {}
    if path != "type":
        return read_google_file(Path(path).expanduser())
    client = OAuthClient(_ask("Client id"), _ask("Client secret (not shown)", hidden=True))
    return {"GDRIVE_USER_CREDENTIALS": sign_in(client)} if client.client_id and client.client_secret else {}


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


def _find_places() -> tuple[str, str | None, list[str]]:
    """Return the URL of this clone's `origin`, the id of the Drive folder to publish to, and those to pull from."""
    origin, folder, others = "", None, []
    with contextlib.suppress(RemoteError):
        origin = find_git_remote(Path.cwd())
    try:
        default, *_ = used = find_remotes(Path.cwd())
        folders = [urlsplit(remote.url).netloc for remote in used if remote.kind == "gdrive"]
        folder = folders.pop(0) if default.kind == "gdrive" else None
        others = sorted({*folders} - {folder})
        for remote in used:
            if remote.kind != "gdrive":
                print(f"The DVC remote {remote.name} here is {remote.url}, not a Google Drive. "
                      "Add keys of S3 by hand (docs/setup.md).")  # fmt: skip
    except RemoteError:
        print("No DVC remote is configured here: the Drive account is checked without its folder.")
    return origin, folder, others
