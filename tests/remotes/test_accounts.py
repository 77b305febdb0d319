"""Claims on `python -m lib credentials` and on the checks of accounts, by the real clients against loopback."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import drive_emulator
import pytest
import wandb
import wandb_emulator
from conftest import ROOT, run_git
from drive_emulator import CANARIES, DriveEmulator, client_pointed_at, name_remote
from loopback import Answer, LoopbackHandler, LoopbackServer
from wandb_emulator import WandbEmulator

import lib.remotes.credentials
from lib.errors import CredentialsError, HostError, RemoteError, RunError
from lib.remotes import accounts, login
from lib.remotes.accounts import check_drive, check_github, check_wandb
from lib.remotes.credentials import DRIVE_FIELDS, Credentials, load_credentials
from lib.remotes.login import OAuthClient, ask_hidden, make_secrets, read_google_file, sign_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Google's own client

TOKEN = "ghp_canary-github-token"
USERS_DRIVE = Credentials(drive=CANARIES, source="the test")
WITH_TOKEN = Credentials(github_token=TOKEN, source="the test")
WITH_KEY = Credentials(wandb_api_key=wandb_emulator.KEY, source="the test")


@pytest.fixture(scope="module", autouse=True)
def _no_threads_of_wandb() -> Iterator[None]:
    """End what the W&B client has started in this process: other tests fork."""
    yield
    import wandb

    wandb.teardown()


def shown(error: BaseException) -> str:
    """Give all that a traceback shows of an error."""
    return "".join(traceback.format_exception(error))


def assert_no_canary(*texts: str, more: tuple[str, ...] = ()) -> None:
    """Check that no value is in any of the texts."""
    values = (*drive_emulator.SECRETS, TOKEN, wandb_emulator.KEY, "ya29.canary", "1//canary", "4/canary", *more)
    assert not [value for text in texts for value in values if value in text]


# ── Google Drive ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveEmulator]:
    """Give a Drive whose tokens come from loopback too."""
    with DriveEmulator() as drive, client_pointed_at(drive):
        monkeypatch.setattr(lib.remotes.credentials, "TOKEN_URI", f"{drive.url}/token")
        yield drive


@pytest.fixture
def robot(drive: DriveEmulator) -> Credentials:
    """Give a service account."""
    return Credentials(service_account=drive.make_service_account(), source="the test")


def test_a_drive_account_is_said_with_its_owner_and_quota(drive: DriveEmulator) -> None:
    """And the folder is written to, with nothing left in it."""
    drive.capacity = 15 * 10**9
    account = check_drive(USERS_DRIVE, drive.root_id)
    assert str(account) == f"Google Drive: {drive_emulator.USER}; 0.0 of 15.0 GB used; folder remote can be written to"
    assert drive.files() == {}
    assert drive.count("^POST /upload") == 1


def test_the_token_is_renewed_even_where_the_old_one_still_lives(drive: DriveEmulator) -> None:
    """A refresh token that is dead would be found an hour later."""
    drive._refresh.clear()
    with pytest.raises(CredentialsError, match="invalid_grant") as caught:
        check_drive(USERS_DRIVE)
    assert "Testing" in caught.value.remedy
    assert_no_canary(shown(caught.value))


def test_a_wrong_client_is_refused(drive: DriveEmulator) -> None:
    """The client's secret belongs to another one."""
    wrong = Credentials(drive={**CANARIES, "client_secret": "GOCSPX-of-another"}, source="the test")
    with pytest.raises(CredentialsError, match="invalid_client") as caught:
        check_drive(wrong)
    assert_no_canary(shown(caught.value), more=("GOCSPX-of-another",))


def test_without_a_drive_account_the_error_says_what_is_missing() -> None:
    """Nobody is asked."""
    with pytest.raises(CredentialsError, match="GDRIVE_USER_CREDENTIALS"):
        check_drive(WITH_TOKEN)


@pytest.mark.parametrize(
    ("disturb", "remedy"),
    [
        (lambda drive: setattr(drive, "enabled", False), "enable the Google Drive API"),
        (lambda drive: setattr(drive, "capacity", 0), "free space"),
        (lambda drive: drive.add_fault("^POST /upload", "forbidden"), "as Editor"),
        (lambda drive: drive.trash(drive.root_id), "trash"),
        (lambda drive: drive._items.pop(drive.root_id), "check its id"),
        (lambda drive: drive.add_fault("^GET /drive/v2/about", "forbidden"), "as Editor"),
    ],
    ids=["no API", "full", "read only", "in the trash", "no folder", "closed"],
)
def test_a_folder_that_cannot_be_used_is_no_refusal_of_the_account(
    drive: DriveEmulator, disturb: Callable[[DriveEmulator], object], remedy: str
) -> None:
    """Another key would not mend it."""
    disturb(drive)
    with pytest.raises(RemoteError) as caught:
        check_drive(USERS_DRIVE, drive.root_id)
    assert remedy in caught.value.remedy
    assert_no_canary(shown(caught.value))


def test_a_file_is_no_folder(drive: DriveEmulator) -> None:
    """Its id was copied in place of the folder's."""
    with pytest.raises(RemoteError, match="no folder"):
        check_drive(USERS_DRIVE, drive.put("folder/file", b"x"))


def test_where_only_the_trash_is_allowed_the_probe_goes_there(drive: DriveEmulator) -> None:
    """As for most members of a shared drive."""
    drive.add_fault("^DELETE", "forbidden")
    check_drive(USERS_DRIVE, drive.root_id)
    assert drive.files() == {}
    assert drive.count("/trash") == 1


def test_a_probe_that_cannot_be_deleted_is_named(drive: DriveEmulator) -> None:
    """The user can remove it."""
    drive.add_fault("^DELETE|/trash", "forbidden", 9)
    with pytest.raises(RemoteError) as caught:
        check_drive(USERS_DRIVE, drive.root_id)
    (name,) = drive.files()
    assert name in caught.value.what


@pytest.mark.parametrize("request_line", ["POST /token", "GET /drive/v2/about"])
@pytest.mark.parametrize("kind", ["cut", "unavailable", "too many"])
def test_a_drive_that_has_trouble_is_unreachable_and_not_a_refusal(
    drive: DriveEmulator, monkeypatch: pytest.MonkeyPatch, request_line: str, kind: drive_emulator.Kind
) -> None:
    """The key may be as good as any."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    drive.add_fault(request_line, kind, 99)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        check_drive(USERS_DRIVE)
    assert_no_canary(shown(caught.value))


def test_a_drive_that_says_nothing_is_given_up(drive: DriveEmulator) -> None:
    """In the time given."""
    drive.latency = 5
    started = time.monotonic()
    with pytest.raises(RemoteError, match="cannot be reached"):
        check_drive(USERS_DRIVE, seconds=0.3)
    assert time.monotonic() - started < 3


def test_a_service_account_signs_in_and_writes(drive: DriveEmulator, robot: Credentials) -> None:
    """The emulator verifies the signature."""
    account = check_drive(robot, drive.root_id)
    assert account.who == "robot@project.iam.gserviceaccount.com"
    assert drive.files() == {}


def test_a_service_account_without_storage_is_told_of_shared_drives(drive: DriveEmulator, robot: Credentials) -> None:
    """Signing in works, and only an upload finds out."""
    drive.service_quota = False
    with pytest.raises(RemoteError, match="do not have storage quota") as caught:
        check_drive(robot, drive.root_id)
    assert "shared drive" in caught.value.remedy


@pytest.mark.parametrize("how", ["another key", "deleted", "no key"])
def test_a_service_accounts_key_that_is_refused_is_not_shown(drive: DriveEmulator, how: str) -> None:
    """Nor a line of it."""
    old = drive.make_service_account()
    if how == "another key":
        drive.make_service_account()
    elif how == "deleted":
        drive._services.clear()
    else:
        old["private_key"] = "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5IGtleSBsaW5lIG9uZQ==\n-----END PRIVATE KEY-----\n"
    with pytest.raises(CredentialsError) as caught:
        check_drive(Credentials(service_account=old, source="the test"))
    assert "key" in caught.value.remedy
    assert_no_canary(shown(caught.value), more=tuple(old["private_key"].splitlines()[1:-1]))


# ── GitHub ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Hub(LoopbackServer[Never]):
    """The API of a GitHub Enterprise server with one repository; without `is_github`, of another kind of host."""

    is_github: bool = True
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"X-OAuth-Scopes": "repo, workflow"})
    may_push: bool = True
    is_private: bool = True
    latency: float = 0
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(_HubHandler)


class _HubHandler(LoopbackHandler):
    service: Hub
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:  # noqa: N802  the name that http.server looks for
        """Answer as GitHub does."""
        hub = self.service
        hub.asked.append(self.path)
        hub.tokens.append(self.headers.get("Authorization"))
        time.sleep(hub.latency)
        content: Any = {"message": "Not Found"}
        status = 404
        if hub.status != 200:
            status = hub.status
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, content = 401, {"message": "Bad credentials"}
        elif self.path == "/api/v3/repos/owner/name":
            status, content = 200, {"private": hub.is_private, "permissions": {"push": hub.may_push}}
        elif self.path == "/api/v3/user":
            status, content = 200, {"login": "a-user"}
        headers = hub.headers | {"X-GitHub-Request-Id": "1:2"} if hub.is_github else {}
        self.send(Answer(status if hub.is_github else 404, json.dumps(content).encode(), headers))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Give a host."""
    with Hub() as hub:
        yield hub


def repository(hub: Hub) -> str:
    """Give the address of its one repository."""
    return f"{hub.url}/owner/name.git"


def test_a_token_that_may_push_is_said_with_its_user_scopes_and_end(hub: Hub) -> None:
    """And the token goes by header alone."""
    hub.headers["GitHub-Authentication-Token-Expiration"] = "2026-12-31 00:00:00 UTC"
    account = check_github(WITH_TOKEN, repository(hub))
    assert str(account) == (
        "GitHub: a-user; may push to owner/name; scopes: repo, workflow; the token ends on 2026-12-31 00:00:00 UTC"
    )
    assert hub.asked == ["/api/v3/repos/owner/name", "/api/v3/user"]


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("https://github.com/o/r.git", ("https://api.github.com", "o/r")),
        ("https://user:token@github.com/o/r/", ("https://api.github.com", "o/r")),
        ("git@github.com:o/r.git", ("https://api.github.com", "o/r")),
        ("ssh://git@github.com/o/r", ("https://api.github.com", "o/r")),
        ("https://git.example.com:8443/o/r.x", ("https://git.example.com:8443/api/v3", "o/r.x")),
        ("https://gitlab.com/group/sub/r.git", None),
        ("/srv/git/o/r.git", None),
        ("../r", None),
        ("file:///o/r", None),
        ("", None),
    ],
)
def test_the_api_is_where_the_repository_is(url: str, api: tuple[str, str] | None) -> None:
    """GitHub's own has a host of its own."""
    assert accounts._github_api(url) == api


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"status": 401}, "refuses GITHUB_TOKEN"),
        ({"status": 404}, "shows no repository owner/name"),
        ({"status": 403}, "refuses GITHUB_TOKEN"),
        ({"status": 403, "headers": {"X-GitHub-SSO": "required; url=https://x"}}, "single sign-on"),
        ({"may_push": False}, "may not push"),
        ({"headers": {"X-OAuth-Scopes": "gist"}}, "may not push"),
        ({"headers": {"X-OAuth-Scopes": ""}}, "may not push"),
        ({"headers": {"X-OAuth-Scopes": "public_repo"}}, "may not push"),
    ],
)
def test_a_token_that_may_not_push_is_refused(hub: Hub, change: dict[str, Any], match: str) -> None:
    """Before a GPU is rented for hours."""
    vars(hub).update(change)
    with pytest.raises(CredentialsError, match=match) as caught:
        check_github(WITH_TOKEN, repository(hub))
    assert caught.value.remedy
    assert_no_canary(shown(caught.value))


def test_a_public_repository_needs_the_smaller_scope(hub: Hub) -> None:
    """And a fine-grained token has none."""
    hub.is_private, hub.headers = False, {"X-OAuth-Scopes": "public_repo"}
    assert check_github(WITH_TOKEN, repository(hub)).who == "a-user"


@pytest.mark.parametrize(
    "change",
    [{"status": 503}, {"status": 429}, {"status": 403, "headers": {"X-RateLimit-Remaining": "0"}}, {"latency": 3}],
    ids=["trouble", "too many", "rate limit", "silent"],
)
def test_a_host_that_has_trouble_is_unreachable_and_not_a_refusal(hub: Hub, change: dict[str, Any]) -> None:
    """The token may be as good as any."""
    vars(hub).update(change)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        check_github(WITH_TOKEN, repository(hub), seconds=0.5)
    assert_no_canary(shown(caught.value))


def test_a_host_that_is_away_is_unreachable() -> None:
    """Nobody listens there."""
    with Hub() as hub:
        pass
    with pytest.raises(RemoteError, match="cannot be reached"):
        check_github(WITH_TOKEN, repository(hub))


def test_a_repository_that_moved_is_told_and_the_token_not_sent_on(hub: Hub) -> None:
    """A redirect may lead anywhere."""
    with Hub() as elsewhere:
        vars(hub).update(status=301, headers={"Location": f"{elsewhere.url}/api/v3/repos/owner/name"})
        with pytest.raises(RemoteError, match="has moved"):
            check_github(WITH_TOKEN, repository(hub))
        assert elsewhere.asked == []


def test_another_kind_of_host_is_asked_by_git(hub: Hub) -> None:
    """It refuses here, and git says so."""
    hub.is_github = False
    with pytest.raises((CredentialsError, RemoteError), match="ls-remote") as caught:
        check_github(WITH_TOKEN, repository(hub))
    assert any("info/refs" in line for line in hub.asked)
    assert_no_canary(shown(caught.value))


def test_a_repository_in_a_folder_needs_no_token(tmp_path: Path) -> None:
    """Git alone is asked."""
    run_git("init", "--quiet", "--bare", tmp_path / "origin.git", cwd=tmp_path)
    account = check_github(Credentials(), str(tmp_path / "origin.git"))
    assert account.who == str(tmp_path / "origin.git")
    with pytest.raises(RemoteError):
        check_github(Credentials(), str(tmp_path / "nothing.git"))


def test_without_a_token_github_is_not_asked(hub: Hub) -> None:
    """The error says what is missing."""
    with pytest.raises(CredentialsError, match="GITHUB_TOKEN"):
        check_github(Credentials(), repository(hub))
    assert hub.asked == []


def test_without_a_repository_the_tokens_user_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a clone there is nothing to push to."""
    monkeypatch.setattr(accounts, "GITHUB", f"{hub.url}/api/v3")
    assert check_github(WITH_TOKEN).who == "a-user"


# ── W&B ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbEmulator]:
    """Give a W&B."""
    with WandbEmulator() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        yield service


def test_a_key_is_said_with_its_user(service: WandbEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the real client, which stores it nowhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert str(check_wandb(WITH_KEY)) == "W&B: a-user; user@example.com; teams: a-team"
    assert not (tmp_path / "netrc").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and wandb_emulator.KEY in path.read_text()]


@pytest.mark.parametrize("key", ["x" * 40, "too-short", wandb_emulator.KEY[:-1]])
def test_a_key_that_is_refused_is_told_and_not_shown(service: WandbEmulator, key: str) -> None:
    """Whether the client or the service refuses it."""
    with pytest.raises(CredentialsError, match="refuses WANDB_API_KEY") as caught:
        check_wandb(Credentials(wandb_api_key=key, source="the test"))
    assert_no_canary(shown(caught.value), more=(key,))


def test_without_a_key_the_service_is_not_asked(service: WandbEmulator) -> None:
    """Curves stay offline."""
    with pytest.raises(CredentialsError, match="has no WANDB_API_KEY"):
        check_wandb(WITH_TOKEN)
    assert service.requests == []


@pytest.mark.parametrize("trouble", ["slow", "503", "away"])
def test_a_wandb_that_has_trouble_is_unreachable_and_not_a_refusal(
    service: WandbEmulator, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The key may be as good as any; and it is given up in time."""
    if trouble == "slow":
        service.latency = 5
    elif trouble == "503":
        service.status = 503
    else:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        check_wandb(WITH_KEY, seconds=1)
    assert time.monotonic() - started < 4
    assert_no_canary(shown(caught.value))


TRACK = """
import os, sys, time
from pathlib import Path
from lib.remotes.credentials import Credentials
from lib.experiment.load import load_experiment
from lib.session import Session
from lib.train import tracking
import wandb
init, api = wandb.init, wandb.Api
def quick(**words):  # waits seconds for the service where a run waits up to a minute
    if words["mode"] == "online":
        words["settings"].init_timeout = 2.0
    return init(**words)
wandb.init, wandb.Api = quick, lambda timeout: api(timeout=1)
started = time.monotonic()
experiment = load_experiment("experiments/001_det_baseline.yaml")
given = Credentials(wandb_api_key=os.environ.pop("GIVEN"))
folder = Path(sys.argv[1])
found = tracking.configure_tracking(Session(folder, folder, folder, experiment, given))
recorder = tracking.Recorder(found)
recorder.log({"epoch": 1.0})
recorder.log_plots(Path(sys.argv[1]))
recorder.close()
tracking.finish_tracking(found, "finished", {"branch": "x"})
print(f"training goes on after {time.monotonic() - started:.0f} s", flush=True)
"""


@pytest.mark.parametrize("trouble", ["refused", "away", "ailing"])
def test_training_goes_on_without_wandb(tmp_path: Path, trouble: str) -> None:
    """A refused key, a service that is away or opens no runs: recorded offline, in a process as it is on Kaggle.

    The notebook's kernel has a W&B client as well, whose service a process that it starts would share.
    """
    wandb.setup().ensure_service()
    assert os.environ["WANDB_SERVICE"]
    with WandbEmulator() as service:
        service.keys = {wandb_emulator.KEY} if trouble == "ailing" else set()
        url = "http://127.0.0.1:9" if trouble == "away" else service.url
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_MODE": "online", "HOME": str(tmp_path)}
        environment["GIVEN"] = wandb_emulator.KEY  # not an argument: W&B keeps those
        done = subprocess.run(
            [sys.executable, "-c", TRACK, tmp_path / "run"],
            cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training goes on after" in done.stdout
    assert "Warning: W&B does not answer" in done.stdout
    assert "recorded offline" in done.stdout
    assert list(tmp_path.glob("run/wandb/offline-run-*/*.wandb")), done.stdout + done.stderr
    assert_no_canary(done.stdout, done.stderr)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]  # its logs too, and whatever it keeps at home
    assert [path for path in left if wandb_emulator.KEY.encode() in path.read_bytes()] == []


# ── signing in to Google ──────────────────────────────────────────────────────────────────────────────────────────────


def browse(url: str) -> None:
    """Be the user's browser: follow Google's pages back to the client."""

    def follow() -> None:
        with contextlib.suppress(HTTPError), urlopen(url, timeout=10) as page:
            page.read()

    threading.Thread(target=follow, daemon=True).start()


@dataclass
class User:
    """Who sits at the terminal: answers by what a question begins with, in their order; and all that was said."""

    answers: dict[str, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def ask(self, question: str) -> str:
        """Answer; Enter where nothing else was prepared."""
        self.asked.append(question)
        for beginning, answers in self.answers.items():
            if beginning in question and answers:
                return answers.pop(0)
        return ""

    @property
    def screen(self) -> str:
        """All that could be seen."""
        return "\n".join((*self.said, *self.asked))


@pytest.fixture
def client(drive: DriveEmulator) -> OAuthClient:
    """Give the user's own OAuth client."""
    return OAuthClient(CANARIES["client_id"], CANARIES["client_secret"], f"{drive.url}/auth", f"{drive.url}/token")


def test_signing_in_gives_the_five_fields_and_they_work(drive: DriveEmulator, client: OAuthClient) -> None:
    """With PKCE, a state, a scope, and a refresh token: the emulator insists."""
    said: list[str] = []
    fields = sign_in(client, say=said.append, open_browser=browse, seconds=10)
    assert tuple(fields) == DRIVE_FIELDS
    assert_no_canary("\n".join(said), repr(client), more=tuple(fields[name] for name in DRIVE_FIELDS[:2]))
    assert "Testing" in said[-1]
    drive.expire()
    assert check_drive(Credentials(drive=fields)).who == drive_emulator.USER


def test_an_app_in_testing_is_told_when_google_says_so(drive: DriveEmulator, client: OAuthClient) -> None:
    """Its refresh tokens end after seven days."""
    drive.consent = "of an app in Testing"
    said: list[str] = []
    sign_in(client, say=said.append, open_browser=browse, seconds=10)
    assert "ends this refresh token after 7 days" in said[-1]


@pytest.mark.parametrize(
    ("consent", "match"),
    [
        ("refused", "access_denied"),
        ("without Drive", "permission for Google Drive was not given"),
        ("without a refresh token", "no refresh token"),
    ],
)
def test_a_consent_that_is_not_enough_is_told(
    drive: DriveEmulator, client: OAuthClient, consent: drive_emulator.Consent, match: str
) -> None:
    """Nothing is written that would fail on Kaggle."""
    drive.consent = consent
    with pytest.raises(CredentialsError, match=match) as caught:
        sign_in(client, say=str, open_browser=browse, seconds=10)
    assert_no_canary(shown(caught.value))


def test_a_wrong_client_secret_is_told_and_not_shown(drive: DriveEmulator, client: OAuthClient) -> None:
    """Google says it when the tokens are fetched."""
    wrong = OAuthClient(client.id, "GOCSPX-of-another", client.auth_uri, client.token_uri)
    with pytest.raises(CredentialsError, match="invalid_client") as caught:
        sign_in(wrong, say=str, open_browser=browse, seconds=10)
    assert_no_canary(shown(caught.value), more=("GOCSPX-of-another",))


def test_google_away_while_the_tokens_are_fetched_is_told(drive: DriveEmulator, client: OAuthClient) -> None:
    """The user can try again."""
    drive.add_fault("POST /token", "cut", 9)
    with pytest.raises(RemoteError, match="cannot be reached"):
        sign_in(client, say=str, open_browser=browse, seconds=10)


def test_a_user_who_does_not_answer_ends_the_waiting(client: OAuthClient) -> None:
    """And the port is given back."""
    pages: list[str] = []
    with pytest.raises(CredentialsError, match="no answer came"):
        sign_in(client, say=str, open_browser=pages.append, seconds=0.2)
    back = parse_qs(urlsplit(pages[0]).query)["redirect_uri"][0]
    with pytest.raises(OSError, match="refused"):
        urlopen(back, timeout=2)


def test_another_pages_answer_is_not_taken(drive: DriveEmulator, client: OAuthClient) -> None:
    """Without the state that was sent, a code of somebody else's could be slipped in."""
    statuses: list[int] = []

    def interfere(url: str) -> None:
        back = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        for wrong in ("favicon.ico", "?code=evil", "?code=evil&state=wrong", "?error=access_denied&state="):
            with pytest.raises(HTTPError) as caught:
                urlopen(Request(f"{back}{wrong}"), timeout=5)
            statuses.append(caught.value.code)
        browse(url)

    assert sign_in(client, say=str, open_browser=interfere, seconds=10)["client_id"] == CANARIES["client_id"]
    assert statuses == [404] * 4


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"web": {"client_id": "a", "client_secret": "GOCSPX-canary"}}, "Web application"),
        ({"installed": {"client_id": "a"}}, "no OAuth client"),
        ({"installed": "GOCSPX-canary"}, "no OAuth client"),
        ({"anything": 1}, "no OAuth client"),
        (["GOCSPX-canary"], "not an object"),
        ({"installed": {"client_id": "a", "client_secret": "GOCSPX-canary", "token_uri": "http://evil.org"}}, "https"),
    ],
)
def test_another_file_than_googles_is_told_without_its_text(tmp_path: Path, content: object, match: str) -> None:
    """The user may name any file."""
    path = tmp_path / "client.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CredentialsError, match=match) as caught:
        read_google_file(path)
    assert "GOCSPX-canary" not in shown(caught.value)
    assert str(path) in str(caught.value)


# ── making the file ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Place:
    """A clone whose remotes are on loopback, and where the file is to be."""

    folder: Path
    drive: DriveEmulator
    hub: Hub
    wandb: WandbEmulator

    @property
    def file(self) -> Path:
        """Outside of the clone."""
        return self.folder / "secrets.json"

    @property
    def clone(self) -> Path:
        """With an origin and a DVC remote."""
        return self.folder / "clone"

    @property
    def client(self) -> Path:
        """The OAuth client's JSON."""
        path = self.folder / "client_secret.json"
        path.write_text(json.dumps(self.drive.oauth_client()), encoding="utf-8")
        return path

    def make(self, user: User, **words: Any) -> list[str]:
        """Run the command; give the accounts that were let in."""
        words = {"root": self.clone, "file": self.file, **words}
        made = make_secrets(ask=user.ask, ask_hidden=user.ask, say=user.said.append, open_browser=browse, **words)
        return [account.service for account in made]

    def values(self) -> dict[str, Any]:
        """Give what stands in the file."""
        values: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return values


@pytest.fixture
def place(tmp_path: Path, drive: DriveEmulator, hub: Hub, service: WandbEmulator) -> Place:
    """Give one."""
    place = Place(tmp_path, drive, hub, service)
    place.clone.mkdir()
    run_git("init", "--quiet", "--template=", cwd=place.clone)
    run_git("remote", "add", "origin", repository(hub), cwd=place.clone)
    name_remote(place.clone, drive)
    return place


def full_user(**more: list[str]) -> User:
    """Give a user who has the two keys."""
    return User({"GITHUB_TOKEN (": [TOKEN], "WANDB_API_KEY (": [wandb_emulator.KEY], **more})


def test_the_file_is_made_checked_private_and_read_by_a_run(place: Place) -> None:
    """All three accounts; no value is seen; the folder of the clone's own DVC remote was written to."""
    user = full_user()
    assert place.make(user, client=place.client) == ["Google Drive", "GitHub", "W&B"]
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o600
    credentials = load_credentials(str(place.file))
    assert (credentials.github_token, credentials.wandb_api_key) == (TOKEN, wandb_emulator.KEY)
    assert tuple(credentials.drive or ()) == DRIVE_FIELDS
    assert_no_canary(user.screen, repr(credentials), more=tuple((credentials.drive or {}).values())[:2])
    assert "folder remote can be written to" in user.screen
    assert "may push to owner/name" in user.screen
    assert "7 days" in user.screen
    assert place.drive.files() == {}
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []


def test_every_account_may_be_skipped_and_what_will_not_work_is_said(place: Place) -> None:
    """Enter three times: no file."""
    user = User()
    assert place.make(user) == []
    assert not place.file.exists()
    for lost in ("neither pulled from nor published to", "nothing can be published", "recorded offline"):
        assert lost in user.screen


def test_the_client_may_be_typed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id and secret, where its JSON was not kept."""
    monkeypatch.setattr(OAuthClient, "auth_uri", f"{place.drive.url}/auth")
    typed: list[OAuthClient] = []

    def sign(client: OAuthClient, **_: Any) -> dict[str, str]:
        typed.append(client)
        return dict(CANARIES)

    monkeypatch.setattr(login, "sign_in", sign)
    user = User({"Drive: path": ["type"], "Client id": [CANARIES["client_id"]],
                 "Client secret": [CANARIES["client_secret"]]})  # fmt: skip
    assert place.make(user) == ["Google Drive"]
    assert (typed[0].id, typed[0].secret) == (CANARIES["client_id"], CANARIES["client_secret"])
    assert_no_canary(user.screen)


def test_a_service_accounts_key_is_taken_in_place_of_a_client(place: Place) -> None:
    """And replaces the user's account, for only one can be used."""
    place.file.write_text(json.dumps({"GDRIVE_USER_CREDENTIALS": CANARIES}), encoding="utf-8")
    key = place.folder / "key.json"
    key.write_text(json.dumps(place.drive.make_service_account()), encoding="utf-8")
    user = User({"Replace it?": ["y"], "Drive: path": [str(key)]})
    assert place.make(user) == ["Google Drive"]
    assert list(place.values()) == ["GDRIVE_SERVICE_ACCOUNT"]
    secret = place.values()["GDRIVE_SERVICE_ACCOUNT"]["private_key"].splitlines()
    assert_no_canary(user.screen, more=tuple(secret))


def test_what_stands_in_the_file_stays_unless_it_is_replaced(place: Place) -> None:
    """It is checked all the same; keys that are not asked for are kept too."""
    old = {"GITHUB_TOKEN": TOKEN, "WANDB_API_KEY": wandb_emulator.KEY, "GDRIVE_USER_CREDENTIALS": CANARIES,
           "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "canary/aws"}  # fmt: skip
    place.file.write_text(json.dumps(old), encoding="utf-8")
    place.file.chmod(0o644)
    user = User()
    assert place.make(user) == ["Google Drive", "GitHub", "W&B"]
    assert place.values() == old
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o600
    assert len(user.asked) == 3
    assert_no_canary(user.screen, more=("canary/aws",))


def test_a_refused_key_is_asked_for_again(place: Place) -> None:
    """And is never written."""
    user = User({"GITHUB_TOKEN (": ["ghp_mistyped-canary", "ghp_canary…", TOKEN], "WANDB_API_KEY (": ["x" * 40]})
    assert place.make(user) == ["GitHub"]
    assert place.values() == {"GITHUB_TOKEN": TOKEN}
    assert user.screen.count("refuses GITHUB_TOKEN") == 1
    assert user.screen.count("GITHUB_TOKEN is no plain text") == 1
    assert "refuses WANDB_API_KEY" in user.screen
    assert_no_canary(user.screen, more=("ghp_mistyped-canary", "x" * 40, "ghp_canary…"))


def test_a_key_that_cannot_be_checked_is_kept(place: Place) -> None:
    """The service may be away for an hour; the key is good."""
    place.hub.status = 503
    user = User({"GITHUB_TOKEN (": [TOKEN]})
    assert place.make(user) == []
    assert place.values() == {"GITHUB_TOKEN": TOKEN}
    assert "was not checked" in user.screen


def test_a_file_that_is_no_clients_is_told_and_asked_for_again(place: Place) -> None:
    """A wrong path costs nothing."""
    user = User({"Drive: path": ["/nowhere.json", str(place.client)]})
    assert place.make(user) == ["Google Drive"]
    assert "/nowhere.json: it cannot be read" in user.screen


def test_an_interruption_keeps_what_was_obtained(place: Place) -> None:
    """Signing in again costs more than typing."""

    class Impatient(User):
        def ask(self, question: str) -> str:
            if question.startswith("GITHUB_TOKEN"):
                raise KeyboardInterrupt
            return super().ask(question)

    with pytest.raises(KeyboardInterrupt):
        place.make(Impatient(), client=place.client)
    assert list(place.values()) == ["GDRIVE_USER_CREDENTIALS"]


def test_nobody_at_the_terminal_ends_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not ask for ever."""

    def ask(_: str) -> str:
        raise EOFError

    with pytest.raises(HostError, match="nobody"):
        make_secrets(place.file, root=place.clone, ask=ask, ask_hidden=ask, say=str)


def test_a_terminal_that_would_show_what_is_typed_is_not_used() -> None:
    """Without a terminal Python's own falls back to showing it."""
    code = (
        "from lib.remotes.login import ask_hidden\ntry: ask_hidden('?')\nexcept Exception as e: print(type(e).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, input="canary\n",
        capture_output=True, text=True, start_new_session=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "HostError"
    assert callable(ask_hidden)


def test_a_file_that_git_would_commit_is_refused_before_anything_is_asked(place: Place) -> None:
    """Unless .gitignore names it, and it is not tracked already."""
    file = place.clone / "secrets.json"
    user = full_user()
    with pytest.raises(CredentialsError, match="does not ignore it"):
        place.make(user, file=file)
    (place.clone / ".gitignore").write_text("secrets.json\n", encoding="utf-8")
    file.write_text("{}", encoding="utf-8")
    run_git("add", "--force", "secrets.json", cwd=place.clone)
    with pytest.raises(CredentialsError, match="does not ignore it"):
        place.make(user, file=file)
    assert user.asked == []
    run_git("rm", "--quiet", "--cached", "secrets.json", cwd=place.clone)
    assert place.make(user, file=file) == ["GitHub", "W&B"]
    assert "secrets.json" not in run_git("status", "--porcelain", "--untracked-files=all", cwd=place.clone)


@pytest.mark.parametrize("text", ["no JSON", '{"GITHUB_TOKEN": 5}', '{"SOMETHING": "ghp_canary-github-token"}'])
def test_a_file_that_holds_something_else_is_left_alone(place: Place, text: str) -> None:
    """It may be another program's."""
    place.file.write_text(text, encoding="utf-8")
    with pytest.raises(CredentialsError) as caught:
        place.make(full_user(), client=place.client)
    assert place.file.read_text(encoding="utf-8") == text
    assert_no_canary(shown(caught.value))


def test_a_folder_that_cannot_be_written_is_told(place: Place) -> None:
    """Not as a traceback."""
    (place.folder / "file").touch()
    with pytest.raises(RunError) as caught:
        place.make(full_user(), file=place.folder / "file" / "secrets.json")
    assert "cannot be written" in str(caught.value)


def test_outside_of_a_clone_the_accounts_are_checked_without_their_places(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, no repository."""
    monkeypatch.setattr(accounts, "GITHUB", f"{place.hub.url}/api/v3")
    outside = place.folder / "outside"
    outside.mkdir()
    user = full_user()
    assert place.make(user, root=outside, client=place.client) == ["Google Drive", "GitHub", "W&B"]
    assert "without its folder" in user.screen
