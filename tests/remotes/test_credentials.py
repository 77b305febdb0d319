from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git
from drive_emulator import DriveEmulator, client_pointed_at, name_remote, write_sitecustomize

from lib.errors import CredentialsError, RunError
from lib.remotes.clone import configure_dvc
from lib.remotes.credentials import DRIVE_FIELDS, GIT_TOKEN, Credentials, load_credentials
from lib.sync import Publication, sync_outputs
from lib.sync.refs import Refs, RefUpdate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Google's own client

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
KEY_LINES = [
    base64.b64encode(f"canary key line {number:032d}".encode()).decode() for number in range(3)
] + ["Y2FuYXJ5"]  # fmt: skip
SERVICE = {
    "type": "service_account",
    "project_id": "project",
    "private_key_id": "0123abcd",
    "private_key": "\n".join(["-----BEGIN PRIVATE KEY-----", *KEY_LINES, "-----END PRIVATE KEY-----", ""]),
    "client_email": "robot@project.iam.gserviceaccount.com",
    "client_id": "1000",
    "token_uri": "https://oauth2.googleapis.com/token",
}
S3 = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret",
    "AWS_SESSION_TOKEN": "canary-session//token",
    "AWS_DEFAULT_REGION": "eu-central-1",
}
HIDDEN = [DRIVE["access_token"], DRIVE["refresh_token"], DRIVE["client_secret"], SECRETS["WANDB_API_KEY"],
          SECRETS["GITHUB_TOKEN"]]  # fmt: skip
HEADER = base64.b64encode(f"x-access-token:{SECRETS['GITHUB_TOKEN']}".encode()).decode()


def write_secrets(path: Path, content: object = SECRETS) -> Path:
    """Write a `secrets.json`; text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _no_keys_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's own S3 keys from the environment of the tests, and restore it afterwards."""
    for name in (*S3, "AWS_PROFILE", "GDRIVE_NON_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    """Return all three accounts."""
    return load_credentials(str(write_secrets(tmp_path / "secrets.json")))


def refusal(path: Path) -> str:
    """Return everything that is shown when a file is rejected, with the traceback."""
    with pytest.raises(CredentialsError) as caught:
        load_credentials(str(path))
    return "".join(traceback.format_exception(caught.value))


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_three_accounts_are_read(credentials: Credentials, tmp_path: Path) -> None:
    """Each value is the one in the file; the Drive account has its five fields."""
    assert credentials.github_token == SECRETS["GITHUB_TOKEN"]
    assert credentials.wandb_api_key == SECRETS["WANDB_API_KEY"]
    assert credentials.drive == DRIVE
    assert credentials.source == str(tmp_path / "secrets.json")


def test_more_fields_of_the_drive_account_are_ignored(tmp_path: Path) -> None:
    """Google's own file has more than the five fields."""
    path = write_secrets(tmp_path / "s.json", {"GDRIVE_USER_CREDENTIALS": {**DRIVE, "scopes": ["drive"]}})
    assert load_credentials(str(path)).drive == DRIVE


@pytest.mark.parametrize("mount", ["my-secrets", "datasets/somebody/my-secrets", "."])
def test_the_file_is_found_in_every_mount_of_a_kaggle_dataset(tmp_path: Path, mount: str) -> None:
    """Kaggle mounts a dataset in two ways, next to other datasets."""
    write_secrets(tmp_path / "pictures" / "data.json", "{}")
    path = write_secrets(tmp_path / mount / "secrets.json")
    credentials = load_credentials(inputs=tmp_path)
    assert credentials.github_token == SECRETS["GITHUB_TOKEN"]
    assert Path(credentials.source) == path


def test_the_environment_supplies_the_accounts_that_the_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file takes precedence if both have an account."""
    monkeypatch.setenv("GITHUB_TOKEN", "from-environment")
    monkeypatch.setenv("WANDB_API_KEY", "from-environment")
    path = write_secrets(tmp_path / "secrets.json", {"GITHUB_TOKEN": "from-the-file"})
    credentials = load_credentials(str(path))
    assert (credentials.github_token, credentials.wandb_api_key) == ("from-the-file", "from-environment")


def test_the_environment_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Kaggle there may be no file; the Drive account is JSON in a variable."""
    monkeypatch.setenv("GDRIVE_USER_CREDENTIALS", json.dumps(DRIVE))
    credentials = load_credentials(inputs=tmp_path / "nowhere")
    assert credentials.drive == DRIVE
    assert credentials.source == "the environment"


def test_no_credentials_at_all_are_accepted(tmp_path: Path) -> None:
    """The sandbox needs no account."""
    credentials = load_credentials(inputs=tmp_path)
    assert (credentials.github_token, credentials.wandb_api_key, credentials.drive) == (None, None, None)
    assert "none" in repr(credentials)


def test_a_service_account_and_s3_keys_are_read(tmp_path: Path) -> None:
    """The service account replaces the user's Drive account; S3 keys are independent of both."""
    credentials = load_credentials(str(write_secrets(tmp_path / "s.json", {"GDRIVE_SERVICE_ACCOUNT": SERVICE, **S3})))
    assert credentials.service_account == SERVICE
    assert credentials.s3 == S3
    assert credentials.drive is None
    assert "GDRIVE_SERVICE_ACCOUNT, AWS_ACCESS_KEY_ID from" in repr(credentials)


def test_an_account_is_never_combined_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its halves would belong to different owners."""
    monkeypatch.setenv("GDRIVE_SERVICE_ACCOUNT", json.dumps(SERVICE))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    two = {name: S3[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    path = write_secrets(tmp_path / "secrets.json", {"GDRIVE_USER_CREDENTIALS": DRIVE, **two})
    credentials = load_credentials(str(path))
    assert (credentials.drive, credentials.service_account, credentials.s3) == (DRIVE, None, two)


def test_the_environments_service_account_and_s3_keys_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are redacted too; half an S3 key is left to DVC."""
    monkeypatch.setenv("GDRIVE_SERVICE_ACCOUNT", json.dumps(SERVICE))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3["AWS_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    credentials = load_credentials(inputs=tmp_path)
    assert (credentials.service_account, credentials.s3) == (SERVICE, None)
    for name, value in S3.items():
        monkeypatch.setenv(name, value)
    assert load_credentials(inputs=tmp_path).s3 == S3


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00.123456", "2026-01-31T12:00:00Z"),
        ("2026-01-31 14:00:00+02:00", "2026-01-31T12:00:00Z"),
    ],
)
def test_a_token_expiry_of_another_format_is_converted_for_googles_client(
    tmp_path: Path, written: str, read: str
) -> None:
    """The client would read another format as "never", and use an expired token."""
    drive = {**DRIVE, "token_expiry": written}
    found = load_credentials(str(write_secrets(tmp_path / "s.json", {"GDRIVE_USER_CREDENTIALS": drive}))).drive
    assert found == {**DRIVE, "token_expiry": read}


# ── rejecting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_error_lists_everything_missing_or_malformed_without_a_value(tmp_path: Path) -> None:
    """Four mistakes cost one attempt, and the log shows no value."""
    drive = {**DRIVE, "client_secret": "", "token_expiry": 17}
    del drive["refresh_token"]
    values = {
        "GDRIVE_USER_CREDENTIALS": drive,
        "WANDB_API_KEY": f"{SECRETS['WANDB_API_KEY']}\n",
        "GITHUB_TOKEN": [SECRETS["GITHUB_TOKEN"]],
        "GITHUB_TOKN": SECRETS["GITHUB_TOKEN"],
        SECRETS["GITHUB_TOKEN"]: "GITHUB_TOKEN",
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
        "a key is not a known key",
        "What to do: ",
    ):
        assert part in shown
    assert "access_token" not in shown.split("is not a known key")[0]
    for value in HIDDEN:
        assert value not in shown


@pytest.mark.parametrize("field", DRIVE_FIELDS)
def test_each_of_the_five_drive_fields_is_required(tmp_path: Path, field: str) -> None:
    """The error names only the missing field."""
    drive = {name: value for name, value in DRIVE.items() if name != field}
    shown = refusal(write_secrets(tmp_path / "secrets.json", {"GDRIVE_USER_CREDENTIALS": drive}))
    named = [name for name in DRIVE_FIELDS if f"GDRIVE_USER_CREDENTIALS.{name} " in shown]
    assert named == [field]


@pytest.mark.parametrize(
    "value", ["", " ", None, 5, [], {}, " token", '"token"', "token\n", "to\nken", "to\0ken", "token…"]
)
def test_a_token_must_be_plain_text(tmp_path: Path, value: object) -> None:
    """A line break at its end would end a header early; an empty token is a mistake."""
    assert "GITHUB_TOKEN is" in refusal(write_secrets(tmp_path / "secrets.json", {"GITHUB_TOKEN": value}))


@pytest.mark.parametrize("value", ["soon", "3599", "1767225600.5", "31.01.2026", "0001-01-01T00:00:00+14:00"])
def test_a_token_expiry_that_is_not_a_time_is_rejected(tmp_path: Path, value: str) -> None:
    """The error shows the required format."""
    drive = {**DRIVE, "token_expiry": value}
    shown = refusal(write_secrets(tmp_path / "secrets.json", {"GDRIVE_USER_CREDENTIALS": drive}))
    assert "GDRIVE_USER_CREDENTIALS.token_expiry is not a time like" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_key": ""}, ".private_key is missing"),
        ({"private_key": None}, ".private_key is missing"),
        ({"private_key": "\n".join(KEY_LINES)}, ".private_key is not a private key in PEM form"),
        ({"private_key": SERVICE["private_key"].replace("\n", " ")}, ".private_key is not a private key"),
        (
            {"private_key": SERVICE["private_key"].replace("Y2FuYXJ5\n", "Y2FuYXJ\n")},
            ".private_key is not a private key",
        ),
        ({"type": "authorized_user"}, ".type is not"),
        ({"client_email": 5}, ".client_email is missing"),
    ],
)
def test_a_malformed_service_account_is_rejected(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """The error comes before any sign-in, and shows no line of the key."""
    shown = refusal(write_secrets(tmp_path / "secrets.json", {"GDRIVE_SERVICE_ACCOUNT": {**SERVICE, **change}}))
    assert f"GDRIVE_SERVICE_ACCOUNT{message}" in shown
    assert not [line for line in KEY_LINES if line in shown]


@pytest.mark.parametrize("name", ["GDRIVE_SERVICE_ACCOUNT", "GDRIVE_USER_CREDENTIALS"])
def test_a_drive_account_pasted_as_text_is_rejected(tmp_path: Path, name: str) -> None:
    """It must be an object; in the environment its JSON may be text in turn."""
    shown = refusal(write_secrets(tmp_path / "secrets.json", {name: json.dumps(SERVICE)}))
    assert f"{name} is not an object" in shown
    assert not [line for line in KEY_LINES if line in shown]


def test_two_drive_accounts_are_rejected(tmp_path: Path) -> None:
    """The owner of the files must not be a guess."""
    both = {"GDRIVE_SERVICE_ACCOUNT": SERVICE, "GDRIVE_USER_CREDENTIALS": DRIVE}
    shown = refusal(write_secrets(tmp_path / "secrets.json", both))
    assert "GDRIVE_USER_CREDENTIALS and GDRIVE_SERVICE_ACCOUNT are both given" in shown


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_an_s3_key_is_rejected(tmp_path: Path, missing: str) -> None:
    """Both halves must come from the same place."""
    values = {name: value for name, value in S3.items() if name != missing}
    shown = refusal(write_secrets(tmp_path / "secrets.json", values))
    assert f"{missing} is missing" in shown
    assert not [value for value in (S3["AWS_SECRET_ACCESS_KEY"], S3["AWS_SESSION_TOKEN"]) if value in shown]


@pytest.mark.parametrize("value", ["text", None, [], {}, 3])
def test_a_drive_account_that_is_not_an_object_is_rejected(tmp_path: Path, value: object) -> None:
    """Pasting it as text is the usual mistake."""
    shown = refusal(write_secrets(tmp_path / "secrets.json", {"GDRIVE_USER_CREDENTIALS": value}))
    assert "GDRIVE_USER_CREDENTIALS" in shown


def test_a_malformed_drive_account_in_the_environment_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is not ignored."""
    monkeypatch.setenv("GDRIVE_USER_CREDENTIALS", json.dumps(DRIVE)[:-5])
    with pytest.raises(CredentialsError) as caught:
        load_credentials(inputs=tmp_path)
    shown = "".join(traceback.format_exception(caught.value))
    assert "GDRIVE_USER_CREDENTIALS" in shown
    assert DRIVE["access_token"] not in shown


@pytest.mark.parametrize(
    "text", ['{"GITHUB_TOKEN": "ghp_git/Hub+Token&1",}', "ghp_git/Hub+Token&1", "", '["ghp_git/Hub+Token&1"]']
)
def test_a_file_that_is_not_a_json_object_is_rejected_without_its_text(tmp_path: Path, text: str) -> None:
    """A decoder's message quotes the text, so it is not shown."""
    path = write_secrets(tmp_path / "secrets.json", text)
    shown = refusal(path)
    assert str(path) in shown
    assert "ghp_git" not in shown


def test_a_file_of_another_encoding_is_rejected(tmp_path: Path) -> None:
    """Another program may have saved the file in any encoding."""
    path = tmp_path / "secrets.json"
    path.write_bytes(b'{"GITHUB_TOKEN": "\xff\xfe"}')
    assert str(path) in refusal(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_rejected(tmp_path: Path, name: str) -> None:
    """The path is wrong, or is that of a folder."""
    path = tmp_path / name
    shown = refusal(path)
    assert str(path) in shown
    assert "What to do: " in shown


# ── hiding ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_text_form_of_the_credentials_shows_a_value(credentials: Credentials) -> None:
    """Neither a notebook's output nor a traceback with its variables shows one."""

    def fail(held: Credentials) -> None:
        raise RuntimeError(f"with {held} and {held!r}")

    with pytest.raises(RuntimeError) as caught:
        fail(credentials)
    stack = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown = [repr(credentials), str(credentials), f"{credentials}", f"{[credentials]}", "".join(stack.format())]
    for text in shown:
        assert "Credentials(" in text
        for value in HIDDEN:
            assert value not in text


def test_the_text_form_names_the_given_accounts(tmp_path: Path) -> None:
    """It names their source too."""
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
    """A value may appear as it is, as in a URL, or as in JSON; the text around it stays."""
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


@pytest.mark.parametrize(
    "value", [SERVICE["private_key"], *KEY_LINES, S3["AWS_SECRET_ACCESS_KEY"], S3["AWS_SESSION_TOKEN"]]
)
@pytest.mark.parametrize("send", [str, repr, json.dumps, lambda value: quote(value, safe="")])
def test_redacting_removes_a_service_accounts_and_s3_keys_whole_and_by_the_line(
    tmp_path: Path, value: str, send: Any
) -> None:
    """A private key may appear as it is, as in JSON or Python, or one line of it alone."""
    credentials = load_credentials(str(write_secrets(tmp_path / "s.json", {"GDRIVE_SERVICE_ACCOUNT": SERVICE, **S3})))
    redacted = credentials.redact(f"bad key: {send(value)} in the file")
    hidden = (*KEY_LINES, S3["AWS_SECRET_ACCESS_KEY"], S3["AWS_SESSION_TOKEN"])
    assert not [text for text in hidden for form in (text, quote(text, safe="")) if form in redacted]
    assert redacted.startswith("bad key: ")
    assert redacted.endswith(" in the file")
    for shown in (repr(credentials), str(credentials)):
        assert not [text for text in hidden if text in shown]


def test_redacting_leaves_no_rest_of_a_value_that_contains_another() -> None:
    """The longer value is replaced first."""
    credentials = Credentials(github_token="secret-one", wandb_api_key="secret-one-and-more")
    assert credentials.redact("a secret-one-and-more b secret-one c") == "a *** b *** c"


def test_redacting_leaves_ordinary_text_unchanged(credentials: Credentials) -> None:
    """The text stays unchanged without any account too."""
    for text in ("", "everything up-to-date", "détaché ***"):
        assert credentials.redact(text) == text
        assert Credentials().redact(text) == text


# ── giving ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    ["/srv/git/origin.git", "file:///srv/origin.git", "git@github.com:o/r.git", "ssh://git@github.com/o/r.git", "../o"],
)
def test_the_token_is_used_for_http_only(credentials: Credentials, url: str) -> None:
    """Other protocols have their own keys."""
    assert credentials.git_environment(url) == {}


def test_without_a_token_the_environment_is_empty() -> None:
    """A public repository is read without a token."""
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
def test_git_sends_the_token_only_to_that_host(
    credentials: Credentials, tmp_path: Path, url: str, others: list[str]
) -> None:
    """Git itself reports what it would send: a redirect or a submodule on another host gets nothing."""
    environment = {**os.environ, **credentials.git_environment(url)}

    def account(address: str) -> str:
        environment["GIT_ASKPASS"] = "false"
        return subprocess.run(
            ["git", "credential", "fill"], input=f"url={address}\n\n",
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    given = account(url.replace("User@", ""))
    assert "username=x-access-token\n" in given
    assert f"password={SECRETS['GITHUB_TOKEN']}\n" in given
    for other in others:
        assert SECRETS["GITHUB_TOKEN"] not in account(other)


def test_the_token_is_never_an_argument_nor_in_the_clone(
    credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only git commands that use the remote have it, in their environment; an error does not show it."""
    log, clone = tmp_path / "log", tmp_path / "clone"
    recorder = tmp_path / "bin" / "git"
    recorder.parent.mkdir()
    recorder.write_text(
        f'#!/bin/sh\necho "ARGUMENTS $*" >> {log}\necho "TOKEN $* ${GIT_TOKEN}" >> {log}\n'
        f'exec {shutil.which("git")} "$@"\n',
        encoding="utf-8",
    )
    recorder.chmod(0o755)
    clone.mkdir()
    run_git("init", "--quiet", "--template=", cwd=clone)
    run_git("remote", "add", "origin", "http://127.0.0.1:9/o/r.git", cwd=clone)  # nobody listens there
    monkeypatch.setenv("PATH", str(recorder.parent), prepend=os.pathsep)
    monkeypatch.setattr("lib.remotes.repository.PAUSES", ())
    refs = Refs(clone, credentials)
    shown = []
    for speak in (
        refs.list_refs,
        refs.read_runs,
        lambda: refs.push(RefUpdate("refs/heads/x", None, "0" * 39 + "1")),
    ):
        with pytest.raises(RunError) as caught:
            speak()
        shown.append(str(caught.value))
    lines = log.read_text(encoding="utf-8").splitlines()
    shown_with = [line.split()[1:] for line in lines if line.startswith("TOKEN") and SECRETS["GITHUB_TOKEN"] in line]
    given = {next(word for word in words if word[0] != "-" and "=" not in word) for words in shown_with}
    assert given == {"ls-remote", "fetch", "push"}
    files = [path.read_text("latin-1") for path in clone.rglob("*") if path.is_file()]
    for form in (HEADER, SECRETS["GITHUB_TOKEN"]):
        for text in (*(line for line in lines if line.startswith("ARGUMENTS")), *shown, *files):
            assert form not in text


# ── the file of Google's client ───────────────────────────────────────────────────────────────────────────────────────


def test_the_drive_file_is_private_and_has_ten_fields(credentials: Credentials, tmp_path: Path) -> None:
    """Five constant fields complete the five given ones; the file's folder is created."""
    path = tmp_path / "scratch" / "drive.json"
    credentials.write_drive_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    values = json.loads(path.read_text(encoding="utf-8"))
    assert {name: values[name] for name in DRIVE_FIELDS} == DRIVE
    assert sorted(set(values) - set(DRIVE_FIELDS)) == ["_class", "_module", "invalid", "token_uri", "user_agent"]


def test_a_drive_file_that_others_could_read_becomes_private(credentials: Credentials, tmp_path: Path) -> None:
    """An existing file would keep its mode."""
    path = tmp_path / "drive.json"
    path.write_text("x" * 5000, encoding="utf-8")
    path.chmod(0o644)
    credentials.write_drive_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text(encoding="utf-8"))["client_id"] == DRIVE["client_id"]


ENDS = {
    "return": "pass",
    "error": "raise ValueError",
    "exit": "os._exit(1)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGKILL after a fork": "os.fork() or time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)",
    "by itself": "remove_now(); assert not path.exists()",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_drive_file_is_removed_however_the_process_ends(tmp_path: Path, end: str) -> None:
    """A sandbox's scratch folder outlives its run, and so would the account in it; two files are removed as well."""
    secrets = write_secrets(tmp_path / "secrets.json")
    script = f"""
import os, signal, time
from pathlib import Path
from lib.process import remove_now
from lib.remotes.credentials import load_credentials
for name in ("other", "gdrive"):
    path = Path({str(tmp_path)!r}) / "a folder" / f"{{name}}.json"
    load_credentials({str(secrets)!r}).write_drive_file(path)
assert path.is_file()
{ENDS[end]}
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "AssertionError" not in done.stderr
    while list((tmp_path / "a folder").iterdir()):  # the helper notices the end at once, but runs by itself
        time.sleep(0.01)


def test_googles_client_reads_the_drive_file(credentials: Credentials, tmp_path: Path) -> None:
    """The classes are those of pydrive2, for both kinds of account."""
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
    """The error names the missing key."""
    path = tmp_path / "drive.json"
    with pytest.raises(CredentialsError, match="GDRIVE_USER_CREDENTIALS"):
        Credentials(github_token="token").write_drive_file(path)
    assert not path.exists()


# ── pointing DVC at its remote ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def drive() -> Iterator[DriveEmulator]:
    """Yield a Drive."""
    with DriveEmulator() as drive, client_pointed_at(drive):
        yield drive


def settings(clone: Path) -> dict[str, Any]:
    """Return the settings of the default remote, as DVC reads them."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        return dict(repo.config["remote"]["storage"])


def test_dvc_signs_in_with_a_service_account_and_our_store_publishes_with_it(
    stores: Stores, drive: DriveEmulator, tmp_path: Path
) -> None:
    """The clone is configured as in step 3; a second machine pulls with `dvc pull` in a subprocess."""
    key = drive.make_service_account()
    path = write_secrets(tmp_path / "secrets.json", {"GDRIVE_SERVICE_ACCOUNT": key})
    credentials = load_credentials(str(path))
    scratch = tmp_path / "scratch"
    name_remote(stores.clone, drive)
    assert configure_dvc(stores.clone, scratch, credentials) == f"DVC remote: storage at gdrive://{drive.root_id}"
    written = scratch / "credentials" / "gdrive.json"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert json.loads(written.read_text(encoding="utf-8")) == key
    run = Publication(stores.clone, "kaggle-train-x", "Training\n", RUN, WEIGHTS, datetime(2025, 1, 2, tzinfo=UTC))
    assert sync_outputs(run, credentials, say=str).uploaded == 10_000
    assert sum(name.startswith("files/") for name in drive.files()) == 2
    other = stores.clone_again(branch="kaggle-train-x")
    name_remote(other, drive)
    configure_dvc(other, tmp_path / "scratch-2", credentials)
    environment = {**os.environ, "PYTHONPATH": str(write_sitecustomize(tmp_path / "site", drive))}
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=other, check=True, env=environment)
    for name in WEIGHTS:
        assert (other / name).read_bytes() == (stores.clone / name).read_bytes()
    private = [line for line in key["private_key"].splitlines() if not line.startswith("-")]
    for place in (stores.clone, stores.origin, other):
        text = "".join(file.read_text("latin-1") for file in place.rglob("*") if file.is_file())
        assert not [line for line in private if line in text]


def test_a_service_account_with_a_rejected_key_is_reported_without_the_key(
    stores: Stores, drive: DriveEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's client signs in, through our store."""
    monkeypatch.setattr("lib.sync.stores.gdrive.PAUSES", (0.0,))
    key = drive.make_service_account()
    drive.make_service_account()  # another key took its place
    credentials = load_credentials(str(write_secrets(tmp_path / "secrets.json", {"GDRIVE_SERVICE_ACCOUNT": key})))
    name_remote(stores.clone, drive)
    configure_dvc(stores.clone, tmp_path / "scratch", credentials)
    run = Publication(stores.clone, "kaggle-train-x", "Training\n", RUN, WEIGHTS, datetime(2025, 1, 2, tzinfo=UTC))
    with pytest.raises(RunError, match="Google rejects the Drive account") as caught:
        sync_outputs(run, credentials, say=str)
    shown = "".join(traceback.format_exception(caught.value))
    assert not [line for line in key["private_key"].splitlines()[1:-1] if line in shown]


def test_the_users_account_takes_precedence_over_repository_and_environment(
    stores: Stores, drive: DriveEmulator, credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.dvc/config` may be written for the other kind of account, and DVC prefers the variable to the file."""
    monkeypatch.setenv("GDRIVE_CREDENTIALS_DATA", "{}")
    name_remote(stores.clone, drive)
    with (stores.clone / ".dvc" / "config").open("a", encoding="utf-8") as config:
        config.write("    gdrive_use_service_account = true\n")
    configure_dvc(stores.clone, tmp_path / "scratch", credentials)
    found = settings(stores.clone)
    assert "GDRIVE_CREDENTIALS_DATA" not in os.environ
    assert found["gdrive_use_service_account"] is False
    assert found["gdrive_user_credentials_file"] == str(tmp_path / "scratch" / "credentials" / "gdrive.json")


def test_a_drive_remote_without_an_account_is_rejected_before_the_pull(
    stores: Stores, drive: DriveEmulator, tmp_path: Path
) -> None:
    """The error names both kinds of account."""
    name_remote(stores.clone, drive)
    with pytest.raises(CredentialsError, match="GDRIVE_USER_CREDENTIALS") as caught:
        configure_dvc(stores.clone, tmp_path / "scratch", Credentials())
    assert "GDRIVE_SERVICE_ACCOUNT" in caught.value.remedy


@pytest.mark.parametrize("given", [S3, {name: S3[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}])
def test_s3_keys_go_into_the_environment_and_not_into_the_clone(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """The environment of this process loses what another key has left there."""
    for name in S3:
        monkeypatch.setenv(name, "another's")
    path = write_secrets(tmp_path / "secrets.json", given)
    config = stores.clone / ".dvc" / "config"
    config.write_text(config.read_text(encoding="utf-8").replace(str(stores.storage), "s3://bucket/dvc"), "utf-8")
    configure_dvc(stores.clone, tmp_path / "scratch", load_credentials(str(path)))
    from botocore.session import Session

    found = Session().get_credentials()
    assert (found.access_key, found.secret_key) == (S3["AWS_ACCESS_KEY_ID"], S3["AWS_SECRET_ACCESS_KEY"])
    assert found.token == given.get("AWS_SESSION_TOKEN")
    text = "".join(file.read_text("latin-1") for file in (stores.clone / ".dvc").rglob("*") if file.is_file())
    assert S3["AWS_SECRET_ACCESS_KEY"] not in text


def test_s3_keys_are_left_unchanged_if_the_remote_is_not_s3(stores: Stores, tmp_path: Path) -> None:
    """A folder needs no key."""
    configure_dvc(stores.clone, tmp_path / "scratch", Credentials(s3=S3))
    assert "AWS_ACCESS_KEY_ID" not in os.environ
