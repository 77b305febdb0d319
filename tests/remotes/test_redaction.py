"""Every key is hidden, wherever a client reads it from and in whatever form it is printed."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from conftest import run_git

from lib.remotes.credentials import Credentials
from lib.remotes.redaction import redactor

KEY = "c4nary/K+y=1//0g_Zz"
ENCODED = base64.b64encode(f"me:{KEY}".encode()).decode()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a user whose machine holds no key yet."""
    for name in os.environ:
        if name.startswith(("AWS_", "XDG_", "NETRC", "PIP_", "UV_", "DVC_", "WANDB_", "GIT_CONFIG")):
            monkeypatch.delenv(name)
    (tmp_path / "clone").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        ascii,
        json.dumps,
        lambda key: json.dumps(json.dumps({"key": key})),
        lambda key: json.dumps(key).replace("/", "\\/"),
        lambda key: quote(key, safe=""),
        quote_plus,
        lambda key: re.sub("%..", lambda found: found[0].lower(), quote(key, safe="")),
        html.escape,
        lambda key: repr(key.encode()),
        *(
            lambda key, user=user, encode=encode: encode(f"{user}{key}".encode()).decode()
            for user in ("", "x", "api:", "x-access-token:", "someone-else:")
            for encode in (base64.b64encode, base64.urlsafe_b64encode)
        ),
        lambda key: base64.b64encode(f"{key}:x-oauth-basic".encode()).decode(),
    ],
)
@pytest.mark.parametrize(
    "key", [KEY, 'it\'s "quoted" <&> \\ é', "one-line-0123\nsecond-line-456\r\n", "ghp_0123456789abcdef"]
)
def test_a_key_is_hidden_in_every_form(key: str, show: Callable[[str], str]) -> None:
    """Whole, by the line, quoted, in a URL, in JSON, and in base64 together with any user; the text around it stays."""
    shown = redactor([key])(f"before: {show(key)} after")
    for part in filter(None, (line.strip() for line in key.splitlines())):
        assert part not in shown
        assert show(part).strip("'\"") not in shown
    assert "***" in shown
    assert shown.startswith("before: ")
    assert shown.endswith(" after")


FILES = {
    ".netrc": f"machine api.wandb.ai\n  login user\n  password {KEY}\n",
    ".kaggle/kaggle.json": json.dumps({"username": "me", "key": KEY}),
    ".kaggle/access_token": f"{KEY}\nsecond\n",
    ".config/kaggle/access_token.txt": f"\ufeff{KEY}\r\n",
    ".kaggle/credentials.json": json.dumps({"refresh_token": KEY}),
    ".config/wandb/credentials.json": json.dumps({"credentials": {"https://w": {"access_token": KEY}}}),
    ".git-credentials": f"https://me:{quote(KEY, safe='')}@github.com\n",
    ".gitconfig": f'[http "https://github.com/"]\n\textraheader = AUTHORIZATION: basic {ENCODED}\n',
    ".config/git/config": f'[credential]\n\thelper = "!f() {{ echo username=me; echo password={KEY}; }}; f"\n',
    "clone/.git/config": f'[remote "origin"]\n\turl = https://{quote(KEY, safe="")}@github.com/me/x.git\n',
    ".config/gh/hosts.yml": f"github.com:\n    oauth_token: {KEY}\n    user: me\n",
    "clone/.dvc/config.local": f"['remote \"storage\"']\n    secret_access_key = {KEY}\n",
    ".config/dvc/config": f"['remote \"storage\"']\n    gdrive_client_secret = {KEY}\n",
    ".aws/credentials": f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {KEY}\n",
    ".aws/config": f"[profile x]\naws_session_token={KEY}\n",
    ".aws/sso/cache/1.json": json.dumps({"accessToken": KEY}),
    ".cache/pydrive2fs/1/default.json": json.dumps({"refresh_token": KEY, "user_agent": None}),
    ".config/gcloud/application_default_credentials.json": json.dumps({"private_key": f"-----BEGIN\n{KEY}\n"}),
    ".config/pip/pip.conf": f"[global]\nindex-url = https://me:{quote(KEY, safe='')}@mirror/simple\n",
    ".config/uv/uv.toml": f'[[index]]\nurl = "https://me:{quote(KEY, safe="")}@mirror/simple"\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_key_in_a_file_of_a_client_is_hidden(home: Path, name: str) -> None:
    """Without being given: the client reads the file by itself, and its error may show the key."""
    file = home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FILES[name], encoding="utf-8")
    assert Credentials().redact(f"error: {KEY} is wrong") == "error: *** is wrong"
    assert ENCODED not in Credentials().redact(f"Authorization: Basic {ENCODED}")


def test_a_file_that_a_configuration_names_is_read_too(home: Path) -> None:
    """The store of Git's credentials, and the account's file of DVC's Drive remote."""
    (home / "store").write_text("https://me:first-of-two@github.com\n")
    (home / "drive.json").write_text(json.dumps({"refresh_token": KEY}))
    run_git("init", "--quiet", cwd=home / "clone")
    run_git("config", "credential.helper", f"store --file={home}/store", cwd=home / "clone")
    (home / "clone/.dvc").mkdir()
    (home / "clone/.dvc/config").write_text("['remote \"s\"']\n    gdrive_user_credentials_file = ../../drive.json\n")
    assert Credentials().redact(f"{KEY} first-of-two") == "*** ***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, KEY) for name in ("GITHUB_TOKEN", "GH_TOKEN", "WANDB_API_KEY", "KAGGLE_KEY", "KAGGLE_API_TOKEN")),
        *((name, KEY) for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DVC_STUDIO_TOKEN", "HOST_PASSWORD")),
        ("UV_INDEX_MINE_PASSWORD", KEY),
        ("KAGGLE_API_TOKEN", f"{KEY}\r\n"),
        ("GDRIVE_CREDENTIALS_DATA", json.dumps({"refresh_token": KEY})),
        ("GDRIVE_USER_CREDENTIALS", json.dumps({"client_secret": KEY})),
        ("PIP_INDEX_URL", f"https://me:{quote(KEY, safe='')}@mirror/simple"),
        ("HTTPS_PROXY", f"http://me:{quote(KEY, safe='')}@proxy:3128"),
        ("GIT_CONFIG_VALUE_0", f"AUTHORIZATION: basic {ENCODED}"),
    ],
)
def test_a_key_in_the_environment_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """By the names that clients read, and any other name of a key."""
    monkeypatch.setenv(name, value)
    assert Credentials().redact(f"error: {KEY} is wrong") == "error: *** is wrong"


def test_a_variable_may_name_a_file_with_the_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kaggle client takes a token or its path."""
    (home / "token").write_text(f"{KEY}\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "token"))
    assert Credentials().redact(f"error: {KEY} in {home}/token") == f"error: *** in {home}/token"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:hunter2@git.example.com/a/b", "https://me:***@git.example.com/a/b"),
        ("https://me:hun@ter2@git.example.com/a/b", "https://me:***@git.example.com/a/b"),
        ("https://me:hun/t@er/2@git.example.com/a/b", "https://***@git.example.com/a/b"),
        ("http://git.example.com:8080/@me/a", "http://git.example.com:8080/@me/a"),
        ("https://glpat_0123456789abcdefghij@git.example.com/a", "https://***@git.example.com/a"),
        ("ssh://git@git.example.com:22/a", "ssh://git@git.example.com:22/a"),
    ],
)
def test_a_login_in_an_address_is_hidden_wherever_it_comes_from(url: str, shown: str) -> None:
    """Git may have it from a file that no client names: an included one, or that of another worktree."""
    assert Credentials().redact(f"fatal: unable to access '{url}/': 403") == f"fatal: unable to access '{shown}/': 403"


def test_settings_that_are_no_keys_are_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of hosts, users and branches stay readable; so does what only sounds like a key."""
    (home / ".netrc").write_text("machine github.com login somebody\n")
    (home / ".gitconfig").write_text("[credential]\n\thelper = store\n[user]\n\tname = somebody\n")
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://mirror.example.com/simple\n")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("OTHER_KEY", "short")
    text = "https://somebody@github.com/somebody/x: store, short, default, mirror.example.com"
    assert Credentials().redact(text) == text
    assert os.environ["OTHER_KEY"] == "short"
