"""Test `python -m lib credentials` and the checks of accounts with the real clients, against services on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Never
from urllib.parse import parse_qs, urlsplit

import click
import drive_emulator
import pytest
import requests
import wandb
import wandb_emulator
from conftest import ROOT, run_git
from drive_emulator import CANARIES, DriveEmulator, client_pointed_at, name_remote
from loopback import Answer, LoopbackHandler, LoopbackServer
from wandb_emulator import WandbEmulator

import lib.remotes.credentials
from lib.errors import CredentialsError, HostError, RemoteError, RunError
from lib.remotes import accounts
from lib.remotes.accounts import check_drive, check_github, check_wandb
from lib.remotes.credentials import DRIVE_FIELDS, Credentials, load_credentials
from lib.remotes.login import OAuthClient, make_secrets, read_google_file, sign_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Google's own client

TOKEN = "ghp_canary-github-token"
USERS_DRIVE = Credentials(drive=CANARIES, source="the test")
WITH_TOKEN = Credentials(github_token=TOKEN, source="the test")
WITH_KEY = Credentials(wandb_api_key=wandb_emulator.KEY, source="the test")


@pytest.fixture(scope="module", autouse=True)
def _no_threads_of_wandb() -> Iterator[None]:
    """Stop the threads of the W&B client in this process: other tests fork."""
    yield
    import wandb

    wandb.teardown()


def shown(error: BaseException) -> str:
    """Return everything that a traceback shows of an error."""
    return "".join(traceback.format_exception(error))


def assert_no_canary(*texts: str, more: tuple[str, ...] = ()) -> None:
    """Check that no secret is in any of the texts."""
    values = (*drive_emulator.SECRETS, TOKEN, wandb_emulator.KEY, "ya29.canary", "1//canary", "4/canary", *more)
    assert not [value for text in texts for value in values if value in text]


# ── Google Drive ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveEmulator]:
    """Yield a Drive that also issues the tokens, and whose user agrees in the browser."""
    with DriveEmulator() as drive, client_pointed_at(drive):
        monkeypatch.setattr(lib.remotes.credentials, "TOKEN_URI", f"{drive.url}/token")
        monkeypatch.setattr("webbrowser.open", browse)
        monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the emulator has no https
        monkeypatch.setattr(accounts, "PAUSES", (0.01, 0.01))
        yield drive


@pytest.fixture
def robot(drive: DriveEmulator) -> Credentials:
    """Return a service account."""
    return Credentials(service_account=drive.make_service_account(), source="the test")


def test_a_drive_account_is_shown_with_its_owner_and_quota(drive: DriveEmulator) -> None:
    """The check writes to the folder and leaves nothing in it."""
    drive.capacity = 15 * 10**9
    account = check_drive(USERS_DRIVE, drive.root_id)
    assert str(account) == f"Google Drive: {drive_emulator.USER}; 0.0 of 15.0 GB used; folder remote can be written to"
    assert drive.files() == {}
    assert drive.count("^POST /upload") == 1


def test_the_token_is_renewed_even_if_the_old_one_is_valid(drive: DriveEmulator) -> None:
    """Otherwise a revoked refresh token would be noticed an hour later."""
    drive._refresh.clear()
    with pytest.raises(CredentialsError, match="invalid_grant") as caught:
        check_drive(USERS_DRIVE)
    assert "Testing" in caught.value.remedy
    assert_no_canary(shown(caught.value))


def test_a_wrong_client_is_rejected(drive: DriveEmulator) -> None:
    """The secret belongs to another client."""
    wrong = Credentials(drive={**CANARIES, "client_secret": "GOCSPX-of-another"}, source="the test")
    with pytest.raises(CredentialsError, match="invalid_client") as caught:
        check_drive(wrong)
    assert_no_canary(shown(caught.value), more=("GOCSPX-of-another",))


def test_without_a_drive_account_the_error_names_the_missing_key() -> None:
    """No service is called."""
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
    ids=["no API", "full", "read only", "in the trash", "no folder", "no access"],
)
def test_an_unusable_folder_does_not_mean_that_the_account_is_rejected(
    drive: DriveEmulator, disturb: Callable[[DriveEmulator], object], remedy: str
) -> None:
    """Another key would not help."""
    disturb(drive)
    with pytest.raises(RemoteError) as caught:
        check_drive(USERS_DRIVE, drive.root_id)
    assert remedy in caught.value.remedy
    assert_no_canary(shown(caught.value))


def test_the_id_of_a_file_is_rejected_as_a_folder(drive: DriveEmulator) -> None:
    """The user may have copied a file's id instead of the folder's."""
    with pytest.raises(RemoteError, match="not a folder"):
        check_drive(USERS_DRIVE, drive.put("folder/file", b"x"))


def test_the_probe_goes_to_the_trash_if_deleting_is_forbidden(drive: DriveEmulator) -> None:
    """Most members of a shared drive may only move files to the trash."""
    drive.add_fault("^DELETE", "forbidden")
    check_drive(USERS_DRIVE, drive.root_id)
    assert drive.files() == {}
    assert drive.count("/trash") == 1


def test_a_probe_that_cannot_be_deleted_is_named_in_the_error(drive: DriveEmulator) -> None:
    """The user can then delete it."""
    drive.add_fault("^DELETE|/trash", "forbidden", 9)
    with pytest.raises(RemoteError) as caught:
        check_drive(USERS_DRIVE, drive.root_id)
    (name,) = drive.files()
    assert name in caught.value.what


@pytest.mark.parametrize("request_line", ["POST /token", "GET /drive/v2/about"])
@pytest.mark.parametrize("kind", ["cut", "unavailable", "too many"])
def test_trouble_of_drive_does_not_mean_that_the_account_is_rejected(
    drive: DriveEmulator, monkeypatch: pytest.MonkeyPatch, request_line: str, kind: drive_emulator.Kind
) -> None:
    """The key may be valid."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    drive.add_fault(request_line, kind, 99)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        check_drive(USERS_DRIVE)
    assert_no_canary(shown(caught.value))


def test_a_drive_that_does_not_reply_is_given_up(drive: DriveEmulator) -> None:
    """The check ends within its time limit."""
    drive.latency = 5
    started = time.monotonic()
    with pytest.raises(RemoteError, match="cannot be reached"):
        check_drive(USERS_DRIVE, seconds=0.3)
    assert time.monotonic() - started < 3


def test_a_service_account_signs_in_and_writes(drive: DriveEmulator, robot: Credentials) -> None:
    """The emulator verifies the account's signature."""
    account = check_drive(robot, drive.root_id)
    assert account.who == "robot@project.iam.gserviceaccount.com"
    assert drive.files() == {}


def test_the_remedy_for_a_service_account_without_storage_is_a_shared_drive(
    drive: DriveEmulator, robot: Credentials
) -> None:
    """Signing in works; only an upload shows the problem."""
    drive.service_quota = False
    with pytest.raises(RemoteError, match="do not have storage quota") as caught:
        check_drive(robot, drive.root_id)
    assert "shared drive" in caught.value.remedy


@pytest.mark.parametrize("how", ["another key", "deleted", "no key"])
def test_a_rejected_key_of_a_service_account_is_not_shown(drive: DriveEmulator, how: str) -> None:
    """No line of the key is shown either."""
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
    message: str = ""
    times: int = 10**6
    """The requests that are answered with `status`, before all others succeed."""
    wait: dict[str, str] = field(default_factory=dict)
    """The headers of such an answer."""
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(_HubHandler)


class _HubHandler(LoopbackHandler):
    service: Hub
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:  # noqa: N802  the name that http.server requires
        """Reply as GitHub does."""
        hub = self.service
        self.read_body()
        hub.asked.append(self.path)
        hub.tokens.append(self.headers.get("Authorization"))
        time.sleep(hub.latency)
        content: Any = {"message": "Not Found"}
        status, more = 404, dict[str, str]()
        if hub.status != 200 and len(hub.asked) <= hub.times:
            status, content, more = hub.status, {"message": hub.message}, hub.wait
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, content = 401, {"message": "Bad credentials"}
        elif self.path == "/api/v3/repos/owner/name":
            status, content = 200, {"private": hub.is_private, "permissions": {"push": hub.may_push}}
        elif self.path == "/api/v3/user":
            status, content = 200, {"login": "a-user"}
        headers = hub.headers | more | {"X-GitHub-Request-Id": "1:2"} if hub.is_github else {}
        self.send(Answer(status if hub.is_github else 404, json.dumps(content).encode(), headers))

    do_POST = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yield a GitHub host."""
    monkeypatch.setattr(accounts, "PAUSES", (0.01, 0.01))
    with Hub() as hub:
        yield hub


def repository(hub: Hub) -> str:
    """Return the URL of its one repository."""
    return f"{hub.url}/owner/name.git"


def test_a_token_that_may_push_is_shown_with_its_user_scopes_and_expiry(hub: Hub) -> None:
    """The token is sent in a header, not in the URL."""
    hub.headers["GitHub-Authentication-Token-Expiration"] = "2026-12-31 00:00:00 UTC"
    account = check_github(WITH_TOKEN, repository(hub))
    assert str(account) == (
        "GitHub: a-user; may push to owner/name; scopes: repo, workflow; the token expires on 2026-12-31 00:00:00 UTC"
    )
    assert hub.asked == ["/api/v3/repos/owner/name", "/api/v3/user"]


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("https://github.com/o/r.git", ("https://api.github.com", "o/r")),
        ("https://user:token@github.com/o/r/", ("https://api.github.com", "o/r")),
        ("git@github.com:o/r.git", ("https://api.github.com", "o/r")),
        ("ssh://git@github.com/o/r", ("https://api.github.com", "o/r")),
        ("org-12@github.com:o/r.git", ("https://api.github.com", "o/r")),
        ("ssh://git@ssh.github.com:443/o/r.git", ("https://api.github.com", "o/r")),
        ("https://git.example.com:8443/o/r.x", ("https://git.example.com:8443/api/v3", "o/r.x")),
        ("https://gitlab.com/group/sub/r.git", None),
        ("/srv/git/o/r.git", None),
        ("../r", None),
        ("file:///o/r", None),
        ("", None),
    ],
)
def test_the_api_is_on_the_repositorys_host(url: str, api: tuple[str, str] | None) -> None:
    """Only github.com has its API on another host."""
    assert accounts._github_api(url) == api


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"status": 401}, "rejects the token"),
        ({"status": 404}, "shows no such repository"),
        ({"status": 403, "headers": {"X-GitHub-SSO": "required; url=https://x"}}, "single sign-on"),
        ({"may_push": False}, "may not push"),
        ({"headers": {"X-OAuth-Scopes": "gist"}}, "may not push"),
        ({"headers": {"X-OAuth-Scopes": ""}}, "may not push"),
        ({"headers": {"X-OAuth-Scopes": "public_repo"}}, "may not push"),
    ],
)
def test_a_token_that_may_not_push_is_rejected(hub: Hub, change: dict[str, Any], match: str) -> None:
    """The error comes before a GPU is used for hours."""
    vars(hub).update(change)
    with pytest.raises(CredentialsError, match=match) as caught:
        check_github(WITH_TOKEN, repository(hub))
    assert caught.value.remedy
    assert_no_canary(shown(caught.value))


def test_a_public_repository_needs_only_the_scope_public_repo(hub: Hub) -> None:
    """The scope `repo` is required for a private repository alone."""
    hub.is_private, hub.headers = False, {"X-OAuth-Scopes": "public_repo"}
    assert check_github(WITH_TOKEN, repository(hub)).who == "a-user"


@pytest.mark.parametrize(
    "change",
    [
        {"status": 503},
        {"status": 429},
        {"status": 403},
        {"status": 403, "headers": {"X-RateLimit-Remaining": "0"}},
        {"status": 403, "message": "You have exceeded a secondary rate limit. Please wait a few minutes."},
        {"status": 403, "wait": {"Retry-After": "400"}},
        {"latency": 3},
    ],
    ids=["unavailable", "too many", "no reason", "rate limit", "secondary limit", "a longer wait", "silent"],
)
def test_trouble_of_the_host_does_not_mean_that_the_token_is_rejected(hub: Hub, change: dict[str, Any]) -> None:
    """The token may be valid."""
    vars(hub).update(change)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        check_github(WITH_TOKEN, repository(hub), seconds=0.5)
    assert_no_canary(shown(caught.value))


@pytest.mark.parametrize(
    "change", [{"status": 503}, {"status": 403, "wait": {"Retry-After": "1"}}], ids=["503", "secondary limit"]
)
def test_trouble_of_the_host_that_passes_is_waited_for(hub: Hub, change: dict[str, Any]) -> None:
    """The answer to the next request counts."""
    vars(hub).update(change, times=1)
    assert check_github(WITH_TOKEN, repository(hub)).who == "a-user"


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("the `org` organization has an IP allow list enabled, and 13.5.4.5 is not permitted to access this resource.",
         "another token does not help"),
        ("Repository access blocked: Access to this repository has been disabled by GitHub staff.", "ask its owner"),
        ("Resource not accessible by personal access token", "Contents, write"),
    ],
)  # fmt: skip
def test_a_rule_of_the_organization_does_not_mean_that_the_token_is_rejected(
    hub: Hub, message: str, remedy: str
) -> None:
    """The remedy is that of the cause."""
    vars(hub).update(status=403, message=message)
    with pytest.raises(RemoteError) as caught:
        check_github(WITH_TOKEN, repository(hub))
    assert remedy in caught.value.remedy


def test_a_host_that_refuses_connections_is_unreachable() -> None:
    """No server listens at the address."""
    with Hub() as hub:
        pass
    with pytest.raises(RemoteError, match="cannot be reached"):
        check_github(WITH_TOKEN, repository(hub))


def test_a_redirect_is_reported_and_the_token_is_not_sent_to_its_target(hub: Hub) -> None:
    """A redirect may lead to any host."""
    with Hub() as elsewhere:
        vars(hub).update(status=301, headers={"Location": f"{elsewhere.url}/api/v3/repos/owner/name"})
        with pytest.raises(RemoteError, match="has moved"):
            check_github(WITH_TOKEN, repository(hub))
        assert elsewhere.asked == []


def test_a_login_in_netrc_does_not_replace_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A client would send the host's login from ~/.netrc instead."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    assert check_github(WITH_TOKEN, repository(hub)).who == "a-user"
    assert hub.tokens == [f"Bearer {TOKEN}"] * 2


def test_another_kind_of_host_is_checked_with_git(hub: Hub) -> None:
    """This host rejects the token, and git reports it."""
    hub.is_github = False
    with pytest.raises((CredentialsError, RemoteError), match="ls-remote") as caught:
        check_github(WITH_TOKEN, repository(hub))
    assert any("info/refs" in line for line in hub.asked)
    assert_no_canary(shown(caught.value))


def test_a_repository_in_a_folder_needs_no_token(tmp_path: Path) -> None:
    """Only git is run."""
    run_git("init", "--quiet", "--bare", tmp_path / "origin.git", cwd=tmp_path)
    account = check_github(Credentials(), str(tmp_path / "origin.git"))
    assert account.who == str(tmp_path / "origin.git")
    with pytest.raises(RemoteError):
        check_github(Credentials(), str(tmp_path / "nothing.git"))


def test_without_a_token_github_is_not_called(hub: Hub) -> None:
    """The error names the missing key."""
    with pytest.raises(CredentialsError, match="GITHUB_TOKEN"):
        check_github(Credentials(), repository(hub))
    assert hub.asked == []


def test_without_a_repository_the_tokens_user_is_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a clone there is no repository to push to."""
    monkeypatch.setattr(accounts, "GITHUB", f"{hub.url}/api/v3")
    assert check_github(WITH_TOKEN).who == "a-user"


# ── W&B ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbEmulator]:
    """Yield a W&B server."""
    with WandbEmulator() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        yield service


def test_a_wandb_key_is_shown_with_its_user(
    service: WandbEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real client makes the request, and stores the key nowhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert str(check_wandb(WITH_KEY)) == "W&B: a-user; user@example.com; teams: a-team"
    assert not (tmp_path / "netrc").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and wandb_emulator.KEY in path.read_text()]


@pytest.mark.parametrize("entity", [None, "a-user", "a-team"])
def test_a_wandb_entity_of_the_keys_user_is_accepted(service: WandbEmulator, entity: str | None) -> None:
    """The user itself is one, and each of its teams."""
    assert check_wandb(WITH_KEY, entity).who == "a-user"


def test_a_wandb_entity_of_somebody_else_is_reported(service: WandbEmulator) -> None:
    """The key is right: the entity must change, or the team's members."""
    with pytest.raises(RemoteError, match=r"wandb\.entity is their-team") as caught:
        check_wandb(WITH_KEY, "their-team")
    assert "a-team, a-user" in caught.value.remedy


@pytest.mark.parametrize("key", ["x" * 40, "too-short", wandb_emulator.KEY[:-1]])
def test_a_rejected_wandb_key_is_reported_and_not_shown(service: WandbEmulator, key: str) -> None:
    """Either the client or the service rejects it."""
    with pytest.raises(CredentialsError, match="rejects WANDB_API_KEY") as caught:
        check_wandb(Credentials(wandb_api_key=key, source="the test"))
    assert_no_canary(shown(caught.value), more=(key,))


def test_without_a_wandb_key_the_service_is_not_called(service: WandbEmulator) -> None:
    """Curves are recorded offline."""
    with pytest.raises(CredentialsError, match="has no WANDB_API_KEY"):
        check_wandb(WITH_TOKEN)
    assert service.requests == []


@pytest.mark.parametrize("trouble", ["slow", "503", "away"])
def test_trouble_of_wandb_does_not_mean_that_the_key_is_rejected(
    service: WandbEmulator, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The key may be valid; the check ends within its time limit."""
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
def quick(**words):  # waits seconds for the service; a run waits up to a minute
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
print(f"training continues after {time.monotonic() - started:.0f} s", flush=True)
"""


@pytest.mark.parametrize("trouble", ["refused", "away", "ailing"])
def test_training_continues_without_wandb(tmp_path: Path, trouble: str) -> None:
    """Curves are recorded offline if the key is rejected, or the service is unreachable or creates no runs.

    The test runs in a subprocess, as on Kaggle: the notebook's kernel has a W&B client too, whose service its
    subprocesses would share.
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
    assert "training continues after" in done.stdout
    assert "Warning: W&B does not answer" in done.stdout
    assert "recorded offline" in done.stdout
    assert list(tmp_path.glob("run/wandb/offline-run-*/*.wandb")), done.stdout + done.stderr
    assert_no_canary(done.stdout, done.stderr)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]  # including its logs and its files in HOME
    assert [path for path in left if wandb_emulator.KEY.encode() in path.read_bytes()] == []


# ── signing in to Google ──────────────────────────────────────────────────────────────────────────────────────────────


def browse(url: str) -> None:
    """Follow Google's pages back to the client, as the user's browser does."""
    requests.get(url, timeout=10)


@pytest.fixture
def client(drive: DriveEmulator) -> OAuthClient:
    """Return the user's own OAuth client."""
    return OAuthClient(CANARIES["client_id"], CANARIES["client_secret"], f"{drive.url}/auth", f"{drive.url}/token")


def test_signing_in_returns_five_valid_fields(
    drive: DriveEmulator, client: OAuthClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """The emulator requires PKCE, a state, the scope, and the request for a refresh token."""
    fields = sign_in(client, seconds=10)
    screen = capsys.readouterr().out
    assert tuple(fields) == DRIVE_FIELDS
    assert_no_canary(screen, repr(client), more=tuple(fields[name] for name in DRIVE_FIELDS[:2]))
    assert "Testing" in screen.splitlines()[-1]
    drive.expire()
    assert check_drive(Credentials(drive=fields)).who == drive_emulator.USER


def test_the_page_can_be_opened_on_another_machine(
    client: OAuthClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without a browser prints the page and the command that forwards its port."""
    pages: list[str] = []
    monkeypatch.setattr("webbrowser.open", pages.append)
    with pytest.raises(CredentialsError):
        sign_in(client, seconds=0.2)
    screen = capsys.readouterr().out
    port = urlsplit(parse_qs(urlsplit(pages[0]).query)["redirect_uri"][0]).port
    assert pages[0] in screen
    assert f"ssh -L {port}:127.0.0.1:{port} " in screen


def test_an_app_in_testing_is_reported_if_google_reports_it(
    drive: DriveEmulator, client: OAuthClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refresh tokens of such an app end after seven days."""
    drive.consent = "of an app in Testing"
    sign_in(client, seconds=10)
    assert "ends this refresh token after 7 days" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("consent", "match"),
    [
        ("refused", "access_denied"),
        ("without Drive", "permission for Google Drive was not given"),
        ("without a refresh token", "no refresh token"),
    ],
)
def test_an_insufficient_consent_is_rejected(
    drive: DriveEmulator, client: OAuthClient, consent: drive_emulator.Consent, match: str
) -> None:
    """No credentials are returned that would fail on Kaggle."""
    drive.consent = consent
    with pytest.raises(CredentialsError, match=match) as caught:
        sign_in(client, seconds=10)
    assert_no_canary(shown(caught.value))


def test_a_wrong_client_secret_is_reported_and_not_shown(drive: DriveEmulator, client: OAuthClient) -> None:
    """Google reports it when the tokens are requested."""
    wrong = replace(client, client_secret="GOCSPX-of-another")
    with pytest.raises(CredentialsError, match="invalid_client") as caught:
        sign_in(wrong, seconds=10)
    assert_no_canary(shown(caught.value), more=("GOCSPX-of-another",))


def test_a_broken_connection_to_the_token_endpoint_is_reported(drive: DriveEmulator, client: OAuthClient) -> None:
    """The user can try again."""
    drive.add_fault("POST /token", "cut", 9)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        sign_in(client, seconds=10)
    assert_no_canary(shown(caught.value))


def test_the_client_secret_does_not_follow_a_redirect(client: OAuthClient) -> None:
    """A redirect of the token request may lead to any host."""
    with Hub() as hub, Hub() as elsewhere:
        vars(hub).update(status=307, headers={"Location": f"{elsewhere.url}/token"})
        with pytest.raises(RemoteError, match="cannot be reached"):
            sign_in(replace(client, token_uri=f"{hub.url}/token"), seconds=10)
        assert hub.asked == ["/token"]
        assert elsewhere.asked == []


def test_waiting_for_the_browser_ends_after_the_time_limit(
    client: OAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is closed afterwards."""
    pages: list[str] = []
    monkeypatch.setattr("webbrowser.open", pages.append)
    with pytest.raises(CredentialsError, match="no reply came"):
        sign_in(client, seconds=0.2)
    back = parse_qs(urlsplit(pages[0]).query)["redirect_uri"][0]
    with pytest.raises(requests.ConnectionError, match="refused"):
        requests.get(back, timeout=2)


def test_a_request_of_another_page_is_not_accepted(
    drive: DriveEmulator, client: OAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check of the state, any web page could supply the code of another account, or end the sign-in."""
    statuses: list[int] = []

    def interfere(url: str) -> None:
        back = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        wrong = ("favicon.ico", "?code=evil", "?code=evil&state=wrong", "?error=access_denied&state=")
        statuses.extend(requests.get(f"{back}{path}", timeout=5).status_code for path in wrong)
        browse(url)

    monkeypatch.setattr("webbrowser.open", interfere)
    assert sign_in(client, seconds=10)["client_id"] == CANARIES["client_id"]
    assert statuses == [404] * 4


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"web": {"client_id": "a", "client_secret": "GOCSPX-canary"}}, "Web application"),
        ({"installed": {"client_id": "a"}}, "neither an OAuth client"),
        ({"installed": "GOCSPX-canary"}, "neither an OAuth client"),
        ({"anything": 1}, "neither an OAuth client"),
        (["GOCSPX-canary"], "not a JSON object"),
        ({"installed": {"client_id": "a", "client_secret": "GOCSPX-canary", "token_uri": "http://evil.org"}}, "https"),
    ],
)
def test_a_file_that_is_not_googles_is_rejected_without_showing_it(tmp_path: Path, content: object, match: str) -> None:
    """The user may name any file."""
    path = tmp_path / "client.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CredentialsError, match=match) as caught:
        read_google_file(path)
    assert "GOCSPX-canary" not in shown(caught.value)
    assert str(path) in str(caught.value)


# ── making the file ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class User:
    """The user at the terminal, and everything that the terminal showed.

    `answers` holds the answers to the questions that contain a text, in order; every other answer is Enter.
    """

    answers: dict[str, list[str]] = field(default_factory=dict)
    screen: str = ""
    asked: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """The questions whose answers the terminal did not show."""

    def ask(self, question: str) -> str:
        """Answer a question."""
        self.asked.append(question)
        for text, answers in self.answers.items():
            if text in question and answers:
                return answers.pop(0)
        return ""

    def ask_hidden(self, question: str) -> str:
        """Answer a question whose answer the terminal does not show."""
        self.hidden.append(question)
        return self.ask(question)


@dataclass
class Place:
    """A clone whose remotes are on loopback, and the path of the file to make."""

    folder: Path
    drive: DriveEmulator
    hub: Hub
    wandb: WandbEmulator
    monkeypatch: pytest.MonkeyPatch

    @property
    def file(self) -> Path:
        """Return a path outside of the clone."""
        return self.folder / "secrets.json"

    @property
    def clone(self) -> Path:
        """Return the clone, which has an origin and a DVC remote."""
        return self.folder / "clone"

    @property
    def client(self) -> Path:
        """Write and return the OAuth client's JSON."""
        path = self.folder / "client_secret.json"
        path.write_text(json.dumps(self.drive.oauth_client()), encoding="utf-8")
        return path

    def make(
        self, user: User, *, file: Path | None = None, client: Path | None = None, root: Path | None = None
    ) -> list[str]:
        """Make the file with this user, and return the services that accepted their account."""
        self.monkeypatch.setattr(click.termui, "visible_prompt_func", user.ask)
        self.monkeypatch.setattr(click.termui, "hidden_prompt_func", user.ask_hidden)
        self.monkeypatch.chdir(root or self.clone)
        terminal = io.StringIO()  # unlike capsys not closed afterwards: DVC's logger keeps it
        try:
            with contextlib.redirect_stdout(terminal):
                return [account.service for account in make_secrets(file or self.file, client=client)]
        finally:
            user.screen = "\n".join((terminal.getvalue(), *user.asked))

    def values(self) -> dict[str, Any]:
        """Return the content of the file."""
        values: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return values


@pytest.fixture
def place(
    tmp_path: Path, drive: DriveEmulator, hub: Hub, service: WandbEmulator, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Return a clone and its services."""
    place = Place(tmp_path, drive, hub, service, monkeypatch)
    place.clone.mkdir()
    run_git("init", "--quiet", "--template=", cwd=place.clone)
    run_git("remote", "add", "origin", repository(hub), cwd=place.clone)
    name_remote(place.clone, drive)
    return place


def full_user(**more: list[str]) -> User:
    """Return a user who has the two keys."""
    return User({"GITHUB_TOKEN (": [TOKEN], "WANDB_API_KEY (": [wandb_emulator.KEY], **more})


def test_the_file_is_made_checked_and_private_and_a_run_can_read_it(place: Place) -> None:
    """It has all three accounts; no value was shown; the folder of the clone's DVC remote was written to."""
    user = full_user()
    assert place.make(user, client=place.client) == ["Google Drive", "GitHub", "W&B"]
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o600
    credentials = load_credentials(str(place.file))
    assert (credentials.github_token, credentials.wandb_api_key) == (TOKEN, wandb_emulator.KEY)
    assert tuple(credentials.drive or ()) == DRIVE_FIELDS
    assert_no_canary(user.screen, repr(credentials), more=tuple((credentials.drive or {}).values())[:2])
    assert [question.partition(" ")[0] for question in user.hidden] == ["GITHUB_TOKEN", "WANDB_API_KEY"]
    assert "folder remote can be written to" in user.screen
    assert "may push to owner/name" in user.screen
    assert "7 days" in user.screen
    assert place.drive.files() == {}
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_outputs_name_is_read_and_never_written_to(place: Place) -> None:
    """The default remote is a folder of this machine; the dataset is on a Drive that may be shared to read."""
    config, folder = place.clone / ".dvc/config", place.folder / "storage"
    text = config.read_text().replace("storage", "datasets").replace("= datasets", "= storage")
    config.write_text(f"{text}['remote \"storage\"']\n    url = {folder}\n")
    out = f"outs:\n- md5: {'a' * 32}\n  hash: md5\n  path: data\n"
    (place.clone / "data.dvc").write_text(f"{out}  remote: datasets\n")
    before, user = len(place.drive.requests), full_user()
    assert "Google Drive" in place.make(user, client=place.client)
    assert "folder remote can be read" in user.screen
    assert f"The DVC remote storage here is {folder}" in user.screen
    assert not [line for line in place.drive.requests[before:] if "upload" in line]
    (place.clone / "data.dvc").write_text(out)
    place.make(again := full_user(), client=place.client)
    assert "can be read" not in again.screen


def test_every_account_may_be_skipped_and_the_consequence_is_shown(place: Place) -> None:
    """Three times Enter makes no file."""
    user = User()
    assert place.make(user) == []
    assert not place.file.exists()
    for lost in ("neither pulled from nor published to", "nothing can be published", "recorded offline"):
        assert lost in user.screen


def test_the_client_may_be_typed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user types its id and its secret, if its JSON was not kept."""
    addresses = (f"{place.drive.url}/auth", f"{place.drive.url}/token")
    monkeypatch.setattr(OAuthClient.__init__, "__defaults__", addresses)
    user = User({"Drive: path": ["type"], "Client id": [CANARIES["client_id"]],
                 "Client secret": [CANARIES["client_secret"]]})  # fmt: skip
    assert place.make(user) == ["Google Drive"]
    made = place.values()["GDRIVE_USER_CREDENTIALS"]
    assert (made["client_id"], made["client_secret"]) == (CANARIES["client_id"], CANARIES["client_secret"])
    assert user.hidden[0].startswith("Client secret")
    assert_no_canary(user.screen)


def test_a_service_accounts_key_replaces_the_users_account(place: Place) -> None:
    """Only one Drive account can be used."""
    place.file.write_text(json.dumps({"GDRIVE_USER_CREDENTIALS": CANARIES}), encoding="utf-8")
    key = place.folder / "key.json"
    key.write_text(json.dumps(place.drive.make_service_account()), encoding="utf-8")
    user = User({"Replace it?": ["y"], "Drive: path": [str(key)]})
    assert place.make(user) == ["Google Drive"]
    assert list(place.values()) == ["GDRIVE_SERVICE_ACCOUNT"]
    secret = place.values()["GDRIVE_SERVICE_ACCOUNT"]["private_key"].splitlines()
    assert_no_canary(user.screen, more=tuple(secret))


def test_values_in_the_file_are_checked_and_stay_unless_they_are_replaced(place: Place) -> None:
    """Keys that the dialog does not ask for stay too."""
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


def test_a_rejected_key_is_asked_for_again(place: Place) -> None:
    """It is never written."""
    user = User({"GITHUB_TOKEN (": ["ghp_mistyped-canary", "ghp_canary…", TOKEN], "WANDB_API_KEY (": ["x" * 40]})
    assert place.make(user) == ["GitHub"]
    assert place.values() == {"GITHUB_TOKEN": TOKEN}
    assert user.screen.count("rejects the token") == 1
    assert user.screen.count("GITHUB_TOKEN is not plain text") == 1
    assert "rejects WANDB_API_KEY" in user.screen
    assert_no_canary(user.screen, more=("ghp_mistyped-canary", "x" * 40, "ghp_canary…"))


def test_a_key_that_cannot_be_checked_is_kept(place: Place) -> None:
    """The key may be valid, while the service is unreachable for an hour."""
    place.hub.status = 503
    user = User({"GITHUB_TOKEN (": [TOKEN]})
    assert place.make(user) == []
    assert place.values() == {"GITHUB_TOKEN": TOKEN}
    assert "was not checked" in user.screen


def test_after_a_wrong_path_of_the_client_the_user_is_asked_again(place: Place) -> None:
    """The error names the path."""
    user = User({"Drive: path": ["/nowhere.json", str(place.client)]})
    assert place.make(user) == ["Google Drive"]
    assert "/nowhere.json: it cannot be read" in user.screen


def test_an_interruption_keeps_the_accounts_that_were_accepted(place: Place) -> None:
    """Signing in again costs more than typing."""

    class Impatient(User):
        def ask(self, question: str) -> str:
            if question.startswith("GITHUB_TOKEN"):
                raise KeyboardInterrupt
            return super().ask(question)

    with pytest.raises(click.Abort):
        place.make(Impatient(), client=place.client)
    assert list(place.values()) == ["GDRIVE_USER_CREDENTIALS"]


def test_without_a_terminal_the_dialog_ends(place: Place) -> None:
    """It does not ask for ever."""

    class Nobody(User):
        def ask(self, question: str) -> str:  # noqa: ARG002
            raise EOFError

    with pytest.raises(HostError, match="nobody"):
        place.make(Nobody())


def test_a_terminal_that_would_show_a_key_is_not_used(tmp_path: Path) -> None:
    """Without a terminal, Python's own `getpass` falls back to showing what is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "lib", "credentials", tmp_path / "secrets.json"], cwd=ROOT, input="\ncanary\n",
        capture_output=True, text=True, start_new_session=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Skipped: a Google Drive" in done.stdout
    assert "Error: this terminal cannot hide what is typed." in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert not (tmp_path / "secrets.json").exists()


def test_a_file_that_git_would_commit_is_rejected_before_the_dialog(place: Place) -> None:
    """.gitignore must name the file, and Git must not track it."""
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
def test_a_file_with_other_content_is_left_unchanged(place: Place, text: str) -> None:
    """It may belong to another program."""
    place.file.write_text(text, encoding="utf-8")
    with pytest.raises(CredentialsError) as caught:
        place.make(full_user(), client=place.client)
    assert place.file.read_text(encoding="utf-8") == text
    assert_no_canary(shown(caught.value))


def test_a_folder_that_cannot_be_written_is_reported(place: Place) -> None:
    """The user sees a message, not a traceback."""
    (place.folder / "file").touch()
    with pytest.raises(RunError) as caught:
        place.make(full_user(), file=place.folder / "file" / "secrets.json")
    assert "cannot be written" in str(caught.value)


def test_outside_of_a_clone_the_accounts_are_checked_without_remotes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no folder and no repository to check."""
    monkeypatch.setattr(accounts, "GITHUB", f"{place.hub.url}/api/v3")
    outside = place.folder / "outside"
    outside.mkdir()
    user = full_user()
    assert place.make(user, root=outside, client=place.client) == ["Google Drive", "GitHub", "W&B"]
    assert "without its folder" in user.screen
