from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import run_git

from lib.credentials import DRIVE_FIELDS, Credentials, load_credentials
from lib.errors import CredentialsError, RunError
from lib.sync.refs import Move, Refs

DRIVE = {
    "access_token": "ya29.a0-access/Tok+en=",
    "refresh_token": "1//0g-refresh_Tok",
    "client_id": "123-abc.apps.googleusercontent.com",
    "client_secret": 'GOCSPX-se cret"quote',
    "token_expiry": "2025-01-02T03:04:05Z",
}
SECRETS: dict[str, Any] = {
    "GDRIVE_USER_CREDENTIALS": DRIVE,
    "WANDB_API_KEY": "0123456789abcdef-wandb",
    "GITHUB_TOKEN": "ghp_git/Hub+Token&1",
}
HIDDEN = [DRIVE["access_token"], DRIVE["refresh_token"], DRIVE["client_secret"], SECRETS["WANDB_API_KEY"],
          SECRETS["GITHUB_TOKEN"]]  # fmt: skip
HEADER = base64.b64encode(f"x-access-token:{SECRETS['GITHUB_TOKEN']}".encode()).decode()


def write_secrets(path: Path, content: object = SECRETS) -> Path:
    """Write a `secrets.json`, from text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    """All three accounts."""
    return load_credentials(str(write_secrets(tmp_path / "secrets.json")))


def refusal(path: Path) -> str:
    """Give all that is shown of a file that must be refused, its traceback included."""
    with pytest.raises(CredentialsError) as caught:
        load_credentials(str(path))
    return "".join(traceback.format_exception(caught.value))


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_three_accounts_are_read(credentials: Credentials, tmp_path: Path) -> None:
    """Each value arrives as it stands in the file, the Drive account with its five fields."""
    assert credentials.github_token == SECRETS["GITHUB_TOKEN"]
    assert credentials.wandb_api_key == SECRETS["WANDB_API_KEY"]
    assert credentials.drive == DRIVE
    assert credentials.source == str(tmp_path / "secrets.json")


def test_more_fields_of_the_drive_account_do_no_harm(tmp_path: Path) -> None:
    """Google's own file holds more than the five."""
    path = write_secrets(tmp_path / "s.json", {"GDRIVE_USER_CREDENTIALS": {**DRIVE, "scopes": ["drive"]}})
    assert load_credentials(str(path)).drive == DRIVE


@pytest.mark.parametrize("mount", ["my-secrets", "datasets/somebody/my-secrets", "."])
def test_the_file_is_found_in_every_mount_of_a_kaggle_dataset(tmp_path: Path, mount: str) -> None:
    """Kaggle mounts a dataset in two ways, and other datasets stand beside it."""
    write_secrets(tmp_path / "pictures" / "data.json", "{}")
    path = write_secrets(tmp_path / mount / "secrets.json")
    credentials = load_credentials(inputs=tmp_path)
    assert credentials.github_token == SECRETS["GITHUB_TOKEN"]
    assert Path(credentials.source) == path


def test_the_environment_fills_what_the_file_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file wins where both give a value."""
    monkeypatch.setenv("GITHUB_TOKEN", "from-environment")
    monkeypatch.setenv("WANDB_API_KEY", "from-environment")
    path = write_secrets(tmp_path / "secrets.json", {"GITHUB_TOKEN": "from-the-file"})
    credentials = load_credentials(str(path))
    assert (credentials.github_token, credentials.wandb_api_key) == ("from-the-file", "from-environment")


def test_the_environment_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is not Kaggle has no file; the Drive account is JSON there."""
    monkeypatch.setenv("GDRIVE_USER_CREDENTIALS", json.dumps(DRIVE))
    credentials = load_credentials(inputs=tmp_path / "nowhere")
    assert credentials.drive == DRIVE
    assert credentials.source == "the environment"


def test_nothing_given_is_no_error(tmp_path: Path) -> None:
    """The sandbox needs no account."""
    credentials = load_credentials(inputs=tmp_path)
    assert (credentials.github_token, credentials.wandb_api_key, credentials.drive) == (None, None, None)
    assert "none" in repr(credentials)


# ── refusing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_that_is_missing_or_malformed_is_told_in_one_error_without_a_value(tmp_path: Path) -> None:
    """Four mistakes cost one attempt; whoever reads the log learns no value."""
    drive = {**DRIVE, "client_secret": "", "token_expiry": 17}
    del drive["refresh_token"]
    values = {
        "GDRIVE_USER_CREDENTIALS": drive,
        "WANDB_API_KEY": f"{SECRETS['WANDB_API_KEY']}\n",
        "GITHUB_TOKEN": [SECRETS["GITHUB_TOKEN"]],
        "GITHUB_TOKN": SECRETS["GITHUB_TOKEN"],
    }
    path = write_secrets(tmp_path / "secrets.json", values)
    shown = refusal(path)
    for part in (
        str(path),
        "GDRIVE_USER_CREDENTIALS.refresh_token",
        "GDRIVE_USER_CREDENTIALS.client_secret",
        "GDRIVE_USER_CREDENTIALS.token_expiry",
        "WANDB_API_KEY",
        "GITHUB_TOKEN is",
        "GITHUB_TOKN",
        "What to do: ",
    ):
        assert part in shown
    assert "access_token" not in shown.split("is no key")[0]
    for value in HIDDEN:
        assert value not in shown


@pytest.mark.parametrize("field", DRIVE_FIELDS)
def test_each_of_the_five_drive_fields_must_be_there(tmp_path: Path, field: str) -> None:
    """The missing one alone is named."""
    drive = {name: value for name, value in DRIVE.items() if name != field}
    shown = refusal(write_secrets(tmp_path / "secrets.json", {"GDRIVE_USER_CREDENTIALS": drive}))
    named = [name for name in DRIVE_FIELDS if f"GDRIVE_USER_CREDENTIALS.{name} " in shown]
    assert named == [field]


@pytest.mark.parametrize("value", ["", " ", None, 5, [], {}, " token", "token\n", "to\nken"])
def test_a_token_is_plain_text(tmp_path: Path, value: object) -> None:
    """A line break at its end would end a header early, and an empty one is a mistake."""
    assert "GITHUB_TOKEN is" in refusal(write_secrets(tmp_path / "secrets.json", {"GITHUB_TOKEN": value}))


@pytest.mark.parametrize("value", ["text", None, [], {}, 3])
def test_a_drive_account_that_is_no_object_is_told(tmp_path: Path, value: object) -> None:
    """Pasted as text it is the usual mistake."""
    shown = refusal(write_secrets(tmp_path / "secrets.json", {"GDRIVE_USER_CREDENTIALS": value}))
    assert "GDRIVE_USER_CREDENTIALS" in shown


def test_a_malformed_drive_account_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is not taken for none."""
    monkeypatch.setenv("GDRIVE_USER_CREDENTIALS", json.dumps(DRIVE)[:-5])
    with pytest.raises(CredentialsError) as caught:
        load_credentials(inputs=tmp_path)
    shown = "".join(traceback.format_exception(caught.value))
    assert "GDRIVE_USER_CREDENTIALS" in shown
    assert DRIVE["access_token"] not in shown


@pytest.mark.parametrize(
    "text", ['{"GITHUB_TOKEN": "ghp_git/Hub+Token&1",}', "ghp_git/Hub+Token&1", "", '["ghp_git/Hub+Token&1"]']
)
def test_a_file_that_is_no_json_object_is_told_without_its_text(tmp_path: Path, text: str) -> None:
    """A decoder's message quotes what it could not read: it is not shown."""
    path = write_secrets(tmp_path / "secrets.json", text)
    shown = refusal(path)
    assert str(path) in shown
    assert "ghp_git" not in shown


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    """A file saved by another program may be of any encoding."""
    path = tmp_path / "secrets.json"
    path.write_bytes(b'{"GITHUB_TOKEN": "\xff\xfe"}')
    assert str(path) in refusal(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    """A wrong path, or a folder."""
    path = tmp_path / name
    shown = refusal(path)
    assert str(path) in shown
    assert "What to do: " in shown


# ── hiding ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_text_form_of_the_credentials_shows_a_value(credentials: Credentials) -> None:
    """Neither what a notebook prints nor what a traceback with its variables shows."""

    def fail(held: Credentials) -> None:
        raise RuntimeError(f"with {held} and {held!r}")

    with pytest.raises(RuntimeError) as caught:
        fail(credentials)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown = [repr(credentials), str(credentials), f"{credentials}", f"{[credentials]}", "".join(told.format())]
    for text in shown:
        assert "Credentials(" in text
        for value in HIDDEN:
            assert value not in text


def test_the_text_form_names_the_accounts_that_are_given(tmp_path: Path) -> None:
    """What is there can be said, and where it came from."""
    path = write_secrets(tmp_path / "secrets.json", {"WANDB_API_KEY": SECRETS["WANDB_API_KEY"]})
    shown = repr(load_credentials(str(path)))
    assert "WANDB_API_KEY" in shown
    assert str(path) in shown
    assert "GITHUB_TOKEN" not in shown


@pytest.mark.parametrize("value", HIDDEN)
@pytest.mark.parametrize(
    "send",
    [str, lambda value: quote(value, safe=""), lambda value: json.dumps({"key": value})],
    ids=["plain", "url", "json"],
)
def test_redacting_removes_every_form_of_a_value(credentials: Credentials, value: str, send: Any) -> None:
    """As it is, as a URL carries it and as JSON writes it; the text around it stays."""
    text = f"fatal: {send(value)} was refused"
    redacted = credentials.redact(text)
    assert send(value).strip('{}"') not in redacted
    assert value not in redacted
    assert redacted.startswith("fatal: ")
    assert redacted.endswith(" was refused")
    assert "***" in redacted


def test_redacting_removes_the_header_that_git_sends(credentials: Credentials) -> None:
    """`GIT_CURL_VERBOSE` prints it."""
    assert HEADER not in credentials.redact(f"> Authorization: Basic {HEADER}\n")


def test_redacting_leaves_no_rest_of_a_value_that_holds_another() -> None:
    """The longer one goes first."""
    credentials = Credentials(github_token="secret-one", wandb_api_key="secret-one-and-more")
    assert credentials.redact("a secret-one-and-more b secret-one c") == "a *** b *** c"


def test_redacting_leaves_ordinary_text_alone(credentials: Credentials) -> None:
    """Without accounts too."""
    for text in ("", "everything up-to-date", "détaché ***"):
        assert credentials.redact(text) == text
        assert Credentials().redact(text) == text


# ── giving ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    ["/srv/git/origin.git", "file:///srv/origin.git", "git@github.com:o/r.git", "ssh://git@github.com/o/r.git", "../o"],
)
def test_the_token_is_for_http_alone(credentials: Credentials, url: str) -> None:
    """Another door has its own key."""
    assert credentials.git_environment(url) == {}


def test_without_a_token_nothing_is_added() -> None:
    """A public repository is read without one."""
    assert Credentials().git_environment("https://github.com/o/r.git") == {}


@pytest.mark.parametrize(
    ("url", "others"),
    [
        (
            "https://github.com/owner/repo.git",
            ["https://example.com/owner/repo.git", "http://github.com/owner/repo.git", "https://github.com:8443/o/r",
             "https://github.com.evil.org/o/r", "https://api.github.com/o/r"],
        ),
        ("https://git.example.com:8443/o/r", ["https://git.example.com/o/r", "https://git.example.com:9000/o/r"]),
        ("http://127.0.0.1:3000/o/r", ["http://127.0.0.1:3001/o/r", "http://127.0.0.1/o/r"]),
        ("http://[::1]:3000/o/r", ["http://[::1]/o/r"]),
        ("https://User@GitHub.com/o/r", ["https://User@example.com/o/r"]),
    ],
    ids=["github", "port", "address", "ipv6", "user"],
)  # fmt: skip
def test_git_sends_the_token_to_that_host_alone(
    credentials: Credentials, tmp_path: Path, url: str, others: list[str]
) -> None:
    """Git itself is asked what it would send: a redirect or a submodule elsewhere gets nothing."""
    environment = {**os.environ, **credentials.git_environment(url)}

    def header(address: str) -> str:
        command = ["git", "config", "--get-urlmatch", "http.extraHeader", address]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        ).stdout

    assert header(url).strip() == f"Authorization: Basic {HEADER}"
    for other in others:
        assert header(other) == ""


def test_the_token_is_never_an_argument_nor_in_the_clone(
    credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only git commands that speak to the remote have it, in their environment; an error does not show it."""
    log, clone = tmp_path / "log", tmp_path / "clone"
    recorder = tmp_path / "bin" / "git"
    recorder.parent.mkdir()
    recorder.write_text(
        f'#!/bin/sh\necho "ARGUMENTS $*" >> {log}\necho "HEADER $1 $GIT_CONFIG_VALUE_0" >> {log}\n'
        f'exec {shutil.which("git")} "$@"\n',
        encoding="utf-8",
    )
    recorder.chmod(0o755)
    clone.mkdir()
    run_git("init", "--quiet", "--template=", cwd=clone)
    run_git("remote", "add", "origin", "http://127.0.0.1:9/o/r.git", cwd=clone)  # nobody listens there
    monkeypatch.setenv("PATH", str(recorder.parent), prepend=os.pathsep)
    refs = Refs(clone, credentials)
    shown = []
    for speak in (refs.list_refs, refs.read_intents, lambda: refs.push(Move("refs/heads/x", None, "0" * 39 + "1"))):
        with pytest.raises(RunError) as caught:
            speak()
        shown.append(str(caught.value))
    lines = log.read_text(encoding="utf-8").splitlines()
    given = {line.split()[1] for line in lines if line.startswith("HEADER") and HEADER in line}
    assert given == {"ls-remote", "fetch", "push"}
    files = [path.read_text("latin-1") for path in clone.rglob("*") if path.is_file()]
    for form in (HEADER, SECRETS["GITHUB_TOKEN"]):
        for text in (*(line for line in lines if line.startswith("ARGUMENTS")), *shown, *files):
            assert form not in text


# ── the file of Google's client ───────────────────────────────────────────────────────────────────────────────────────


def test_the_drive_file_is_private_and_holds_ten_fields(credentials: Credentials, tmp_path: Path) -> None:
    """The five that were given, completed by five that never change; its folder is made."""
    path = tmp_path / "scratch" / "drive.json"
    credentials.write_drive_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    values = json.loads(path.read_text(encoding="utf-8"))
    assert {name: values[name] for name in DRIVE_FIELDS} == DRIVE
    assert sorted(set(values) - set(DRIVE_FIELDS)) == ["_class", "_module", "invalid", "token_uri", "user_agent"]


def test_the_drive_file_becomes_private_where_an_open_one_stood(credentials: Credentials, tmp_path: Path) -> None:
    """A file that is there keeps its mode unless it is set."""
    path = tmp_path / "drive.json"
    path.write_text("x" * 5000, encoding="utf-8")
    path.chmod(0o644)
    credentials.write_drive_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text(encoding="utf-8"))["client_id"] == DRIVE["client_id"]


def test_googles_client_reads_the_drive_file(credentials: Credentials, tmp_path: Path) -> None:
    """The very classes that pydrive2 uses, both ways in."""
    from oauth2client.client import OAuth2Credentials
    from oauth2client.file import Storage

    path = tmp_path / "drive.json"
    credentials.write_drive_file(path)
    for read in (OAuth2Credentials.from_json(path.read_text(encoding="utf-8")), Storage(str(path)).get()):
        assert isinstance(read, OAuth2Credentials)
        assert (read.access_token, read.refresh_token) == (DRIVE["access_token"], DRIVE["refresh_token"])
        assert (read.client_id, read.client_secret) == (DRIVE["client_id"], DRIVE["client_secret"])
        assert read.token_expiry.isoformat() == "2025-01-02T03:04:05"
        assert read.token_uri == "https://oauth2.googleapis.com/token"
        assert not read.invalid


def test_without_a_drive_account_no_drive_file_is_written(tmp_path: Path) -> None:
    """The error says what is needed for it."""
    path = tmp_path / "drive.json"
    with pytest.raises(CredentialsError, match="GDRIVE_USER_CREDENTIALS"):
        Credentials(github_token="token").write_drive_file(path)
    assert not path.exists()
