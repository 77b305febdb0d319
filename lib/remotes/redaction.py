"""Hide keys in text: the project's only redactor; standard library only.

Guarantees: a known key is hidden in every form in which programs print it: whole, line by line, as Python's `repr`, in
JSON, URLs, HTML, and base64, also as a part of `user:key`. Known are the keys that are given, and those in the places
from which the clients of a run read theirs. Cannot: recognise a key that is in none of them, like the short-lived token
that a client obtains, unless it is the login of a URL, or one of fewer than `SHORTEST` characters, which would be
replaced inside ordinary text.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

from lib.remotes.addresses import SLASHED

SHORTEST = 6
LONG = 20  # characters of a user in a URL that is a token
LARGEST = 2**18  # bytes of a file that is searched for keys
WORDS = {"default", "disabled", "enabled", "password"}
"""Values of settings that are no keys."""
_NAME = r"(?:keys?|tokens?|secrets?|passw(?:or)?d|passphrase|credentials?(?:_data)?|_pat)"
_VARIABLE = re.compile(rf"{_NAME}$", re.IGNORECASE)
_SETTING = re.compile(
    rf"""(?<![\w.-])[\w.-]{{0,80}}?{_NAME}["']?\s*[:=]\s*"""
    r"""(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|(?=([^\r\n]*))([^\s;,"'{}\[]+))""",
    re.IGNORECASE,
)
_HEADER = re.compile(r"authorization:\s*\w+\s+([\w+/=.~-]+)", re.IGNORECASE)
_LOGIN = re.compile(r"://([^/\s:@]*)(?::([^/\s]*))?@")
_NETRC = re.compile(r"\b(?:password|account)\s+(\S+)")
_NAMED_FILE = re.compile(
    r"""(?:credentials_file|json_file_path|credentialpath|configpath|keyfile|store\s+--file)\s*=?\s*["']?([^\s"']+)"""
)


def redactor(keys: Iterable[str | None]) -> Callable[[str], str]:
    """Return a function that replaces these keys, and those of this machine's clients, by `***`."""
    known = {part for key in (*keys, *keys_of_this_machine()) if key for part in _parts(key)}
    known -= WORDS
    plain = {form for key in known for form in _forms(key)}
    cores = {core for key in known for core in _base64_of(key)}
    # longest first: if a key contains another, replacing the shorter one first would show the rest
    ordered = sorted(plain, key=len, reverse=True)

    def redact(text: str) -> str:
        for core in cores:
            if core in text:  # with what was encoded together with it
                text = re.sub(rf"[\w+/-]*{re.escape(core)}[\w+/=-]*", "***", text)
        for form in ordered:
            text = text.replace(form, "***")
        return _LOGIN.sub(_hide_login, SLASHED.sub("://***@", text))

    return redact


def _hide_login(found: re.Match[str]) -> str:
    """Return a login in a URL without its password, or without a token in place of a user."""
    user, password = found.groups()
    if password:
        return f"://{user}:***@"
    return "://***@" if len(user) >= LONG else found[0]


# ── forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parts(key: str) -> Iterator[str]:
    """Yield a key and, of several lines, each line: an error may show one of them."""
    lines = [line.strip() for line in re.split(r"[\r\n]|\\n", key)]
    yield from (part for part in {key.strip(), *lines} if len(part) >= SHORTEST and not part.startswith("-----"))


def _forms(key: str) -> set[str]:
    encoded = {json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]}
    encoded |= {json.dumps(form)[1:-1] for form in encoded}  # as text in JSON
    forms = {key, repr(key)[1:-1], ascii(key)[1:-1], repr(key.encode())[2:-1], html.escape(key), *encoded}
    forms |= {form.replace("/", r"\/") for form in encoded} | {key.replace("\\", "\\\\").replace("'", r"\'")}
    urls = {quote(key, safe=""), quote(key), quote_plus(key)}
    return forms | urls | {re.sub("%..", lambda found: found[0].lower(), url) for url in urls}


def _base64_of(key: str) -> Iterator[str]:
    """Yield the characters by which base64 contains a key, at each of the three places where it may begin in a text."""
    for shift, start in enumerate((0, 2, 3)):
        data = b"\0" * shift + key.encode()
        core = base64.b64encode(data).decode()[start : len(data) * 8 // 6]  # without what the text around it decides
        if len(core) > SHORTEST:
            yield from {core, core.translate(str.maketrans("+/", "-_"))}


# ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def keys_of_this_machine() -> set[str]:
    """Return every key in the environment and in the files from which the clients of a run read theirs."""
    found, files = set[str](), list(_files())
    for name, value in os.environ.items():
        named = _read(Path(value)) if _VARIABLE.search(name) and value.startswith("/") else ""
        text = named or value  # KAGGLE_API_TOKEN may be the path of a file
        found.update(_keys_in(text))
        if _VARIABLE.search(name) and not text.lstrip().startswith("{"):
            found.add(text)
    for file in files:
        text = _read(file)
        found.update(_keys_in(text), _NETRC.findall(text) if "netrc" in file.name else ())
        if file.name.startswith("access_token"):
            found.add(text)
        for other in _NAMED_FILE.findall(text):
            found.update(_keys_in(_read(file.parent / Path(other).expanduser())))
    return found


def _keys_in(text: str) -> Iterator[str]:
    """Yield the values of settings in JSON, INI or YAML whose names are those of keys, and the logins in URLs."""
    for quoted, single, rest, word in _SETTING.findall(text):
        yield from filter(None, (single, rest.strip(), word))
        with contextlib.suppress(ValueError):
            yield json.loads(f'"{quoted}"', strict=False)
    yield from SLASHED.findall(text)
    for user, password in _LOGIN.findall(text):
        alone = user if not password and len(user) >= LONG else ""
        yield from filter(None, (password, unquote(password), alone, unquote(alone)))
    for sent in _HEADER.findall(text):
        yield sent
        with contextlib.suppress(ValueError):
            yield base64.b64decode(sent, validate=True).decode().partition(":")[2]


def _files() -> Iterator[Path]:
    """Yield the files that may hold keys of Git, DVC, W&B, Kaggle, Google, AWS, pip and uv."""

    def given(name: str, *otherwise: Path) -> tuple[Path, ...]:
        return (Path(os.environ[name]),) if os.environ.get(name) else otherwise

    home = Path(os.path.expanduser("~"))  # noqa: PTH111  `Path.home` raises without a home
    (config,) = given("XDG_CONFIG_HOME", home / ".config")
    yield from given("NETRC", home / ".netrc", home / "_netrc")
    for folder in {*given("KAGGLE_CONFIG_DIR"), home / ".kaggle", config / "kaggle", home / ".config/kaggle"}:
        yield from (folder / name for name in ("kaggle.json", "access_token", "access_token.txt", "credentials.json"))
    for folder in given("WANDB_CONFIG_DIR", config / "wandb"):
        yield from (folder / name for name in ("settings", "credentials.json"))
    yield from (home / ".git-credentials", config / "git/credentials", config / "git/config")
    yield from given("GIT_CONFIG_GLOBAL", home / ".gitconfig")
    yield from given("GIT_CONFIG_SYSTEM", Path("/etc/gitconfig"))
    yield from (folder / "hosts.yml" for folder in given("GH_CONFIG_DIR", config / "gh"))
    yield config / "glab-cli/config.yml"
    here = Path(os.environ.get("PWD", ""))  # the folder itself may be gone
    with contextlib.suppress(OSError):
        here = Path.cwd()
    for folder in (here, *here.parents):
        yield from (folder / name for name in (".git/config", ".dvc/config", ".dvc/config.local"))
    yield from (folder / "config" for folder in given("DVC_GLOBAL_CONFIG_DIR", config / "dvc"))
    yield from (folder / "config" for folder in given("DVC_SYSTEM_CONFIG_DIR", Path("/etc/xdg/dvc")))
    yield from given("AWS_SHARED_CREDENTIALS_FILE", home / ".aws/credentials")
    yield from given("AWS_CONFIG_FILE", home / ".aws/config")
    yield from (*(home / ".aws").glob("*/cache/*.json"), *(home / ".cache/pydrive2fs").glob("*/*.json"))
    yield from given("GOOGLE_APPLICATION_CREDENTIALS", config / "gcloud/application_default_credentials.json")
    yield from given("PIP_CONFIG_FILE", Path("/etc/pip.conf"), config / "pip/pip.conf", home / ".pip/pip.conf")
    yield from given("UV_CONFIG_FILE", Path("/etc/uv/uv.toml"), config / "uv/uv.toml")


def _read(file: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if file.is_file() and file.stat().st_size <= LARGEST:
            return file.read_text(encoding="utf-8-sig", errors="replace")
    return ""
