"""Read and hide the credentials of a run's accounts: Google Drive or S3, GitHub, W&B, and addresses for messages.

Guarantees: `repr`, `str` and every error of this module hide the values. `redact` removes them from any text, by
`redaction.py`. Cannot: hide a value that another program prints without `redact`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lib.errors import CredentialsError
from lib.files import replacing
from lib.process import git_settings, remove_at_end
from lib.remotes.redaction import redactor

DRIVE_FIELDS = ("access_token", "refresh_token", "client_id", "client_secret", "token_expiry")
SERVICE_FIELDS = ("type", "client_email", "client_id", "private_key_id", "private_key")
"""The fields of a service account's key that Google's client reads; the downloaded file has more."""
DRIVE_NAMES = ("GDRIVE_USER_CREDENTIALS", "GDRIVE_SERVICE_ACCOUNT")
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_NAMES = (*S3_KEYS, "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
MESSAGES = "NOTIFY_URLS"
ACCOUNTS = (DRIVE_NAMES, ("WANDB_API_KEY",), ("GITHUB_TOKEN",), S3_NAMES, (MESSAGES,))
"""The keys of `secrets.json`, grouped by account."""
NAMES = tuple(name for names in ACCOUNTS for name in names)
SECRETS = (
    "access_token",
    "refresh_token",
    "client_secret",
    "private_key",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""What is secret in an account of several fields."""
SHORTEST_PART = 8
"""Characters of a part of an address that is hidden; shorter ones are words such as `general`."""
TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  a URL
GIT_TOKEN = "KAGGLE_TRAINING_GIT_TOKEN"  # noqa: S105  the name of an environment variable
GIT_HELPER = f'!f() {{ test "$1" = get && printf "username=x-access-token\\npassword=%s\\n" "${GIT_TOKEN}"; }}; f'
"""A Git credential helper that reads the token from the environment; `git-credential(1)` defines its output."""


@dataclass(frozen=True, repr=False)
class Credentials:
    """The content of `secrets.json`; an account that is not given is None."""

    github_token: str | None = None
    wandb_api_key: str | None = None
    drive: Mapping[str, str] | None = None
    """The five fields of `GDRIVE_USER_CREDENTIALS`."""
    service_account: Mapping[str, str] | None = None
    """The key in `GDRIVE_SERVICE_ACCOUNT`, as downloaded from Google; an alternative to `drive`."""
    s3: Mapping[str, str] | None = None
    """The given keys of the four `AWS_*` keys."""
    notify_urls: tuple[str, ...] = ()
    """The addresses of Apprise to which messages about the run are sent; each holds its own key."""
    source: str = "nowhere"

    @cached_property
    def _redact(self) -> Callable[[str], str]:
        accounts = (self.drive or {}, self.service_account or {}, self.s3 or {})
        keys = [value for account in accounts for name, value in account.items() if name in SECRETS]
        parts = [part for url in self.notify_urls for part in _secret_parts(url)]
        return redactor([self.github_token, self.wandb_api_key, *keys, *parts])

    def __repr__(self) -> str:
        accounts = {
            "GDRIVE_USER_CREDENTIALS": self.drive,
            "GDRIVE_SERVICE_ACCOUNT": self.service_account,
            "WANDB_API_KEY": self.wandb_api_key,
            "GITHUB_TOKEN": self.github_token,
            "AWS_ACCESS_KEY_ID": self.s3,
            MESSAGES: self.notify_urls or None,
        }
        given = [name for name, value in accounts.items() if value is not None]
        return f"Credentials({', '.join(given) or 'none'} from {self.source})"

    def redact(self, text: str) -> str:
        """Return `text` with every credential, also those of the machine's own clients, replaced by `***`."""
        return self._redact(text)

    def git_environment(self, url: str) -> dict[str, str]:
        """Return the environment that authenticates one git command to `url`.

        The token is passed in the environment, because every process of the machine can read an argument, and a URL or
        `.git/config` persists. Git sends the token only to this host, when the host asks for it (`gitcredentials(7)`);
        a header would also be sent to the target of a redirect. URLs other than http(s) get an empty environment.
        """
        if not self.github_token or urlsplit(url).scheme not in ("http", "https"):
            return {}
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        settings = (
            ("credential.helper", ""),  # disable other helpers: they may supply another account or store this token
            (f"credential.{host}.helper", GIT_HELPER),
            (f"http.{host}/.extraHeader", ""),  # a header left by a CI checkout would add a second account
        )
        return {**git_settings(settings), GIT_TOKEN: self.github_token}

    def drive_content(self) -> dict[str, Any]:
        """Return the mapping that Google's client reads: a service account's key, or the five fields completed to ten.

        The ten fields have the form of oauth2client's `OAuth2Credentials.to_json`. Raises `CredentialsError` without a
        Drive account.
        """
        if self.service_account is not None:
            return dict(self.service_account)
        if self.drive is None:
            raise CredentialsError(
                f"the DVC remote is a Google Drive, and {self.source} has no GDRIVE_USER_CREDENTIALS.",
                state="nothing was pulled or trained.",
                remedy="add GDRIVE_USER_CREDENTIALS, or GDRIVE_SERVICE_ACCOUNT, to secrets.json "
                "(`python -m lib credentials` helps) and run again.",
            )
        return {
            **self.drive,
            "token_uri": TOKEN_URI,
            "user_agent": None,
            "invalid": False,
            "_module": "oauth2client.client",
            "_class": "OAuth2Credentials",
        }

    def write_drive_file(self, path: Path) -> None:
        """Write the Drive account to a private file (mode 600), which is removed when this process ends.

        Raises `CredentialsError` without a Drive account.
        """
        content = self.drive_content()
        remove_at_end(path)
        write_private(path, json.dumps(content))

    def write_s3_file(self, path: Path, profiles: Iterable[str]) -> None:
        """Write the keys of S3 as these profiles to a private file like that of Drive, which the AWS clients read."""
        keys = "".join(f"{name.lower()} = {value}\n" for name, value in (self.s3 or {}).items())
        remove_at_end(path)
        write_private(path, "".join(f"[{profile}]\n{keys}" for profile in sorted(profiles)))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (mode 600), whole or not at all; create its folder."""
    # created private and then renamed: this also replaces an older file with wider permissions
    with replacing(path) as part, open(part, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def load_credentials(path: str = "", *, inputs: Path = Path("/kaggle/input")) -> Credentials:
    """Read the credentials of a run from `secrets.json` and from the environment.

    `path` names `secrets.json`. If it is empty, the file is searched for below `inputs`, in both mount paths of an
    attached dataset (`<slug>/` and `datasets/<owner>/<slug>/`). An account that the file lacks is read from the
    environment variables of the same names. Raises one `CredentialsError` that lists every missing or malformed entry.
    """
    mounts = ("secrets.json", "*/secrets.json", "datasets/*/*/secrets.json")
    attached = (file for mount in mounts for file in sorted(inputs.glob(mount)))
    file = Path(path) if path else next(attached, None)
    values = read_secrets(file) if file else {}
    for names in ACCOUNTS:
        # read each account wholly from the file or wholly from the environment: halves may belong to different owners
        if not any(name in values for name in names):
            values |= _from_environment(names)
    return make_credentials(values, str(file or "the environment"))


def make_credentials(values: Mapping[str, Any], source: str) -> Credentials:
    """Check the values of `secrets.json` and return the credentials.

    Raises one `CredentialsError` that lists every problem and shows no value.
    """
    wrong = [complaint for name in values for complaint in _check(name, values[name])]
    if all(name in values for name in DRIVE_NAMES):
        wrong.append(f"{' and '.join(DRIVE_NAMES)} are both given, and only one account can be used: keep one")
    if any(name in values for name in S3_NAMES):
        wrong += [
            f"{name} is missing: {' and '.join(S3_KEYS)} belong together" for name in S3_KEYS if name not in values
        ]
    if wrong:
        raise CredentialsError(
            f"{source}: {'; '.join(wrong)}.",
            state="nothing was started; no value is shown here.",
            remedy="correct the keys named above (the form is shown in docs/setup.md) and run again.",
        )
    drive, service = (values.get(name) for name in DRIVE_NAMES)
    if drive:
        drive = {name: drive[name] for name in DRIVE_FIELDS} | {"token_expiry": _utc(drive["token_expiry"])}
    if service:
        service = {name: value for name, value in service.items() if isinstance(value, str)}
    s3 = {name: values[name] for name in S3_NAMES if name in values} or None
    urls = tuple(_addresses(values.get(MESSAGES, ())))
    return Credentials(values.get("GITHUB_TOKEN"), values.get("WANDB_API_KEY"), drive, service, s3, urls, source)


ATTACH = "attach the Kaggle dataset that holds secrets.json, or name the file with -p secrets PATH."


def read_secrets(file: Path, remedy: str = ATTACH) -> dict[str, Any]:
    """Read `secrets.json` without checking its keys. Raises `CredentialsError` if it is not a JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CredentialsError(f"{file}: it cannot be read: {error.strerror}.", remedy=remedy) from None
    except (ValueError, RecursionError):
        # drop the decoder's error: it holds the text, and so the secrets
        raise CredentialsError(
            f"{file}: it is not valid JSON.", remedy="correct the file; it is not shown here."
        ) from None
    if not isinstance(values, dict):
        raise CredentialsError(f"{file}: it contains {type(values).__name__}, not a JSON object.", remedy=remedy)
    return values


def _from_environment(names: tuple[str, ...]) -> dict[str, Any]:
    given: dict[str, Any] = {name: os.environ[name] for name in names if os.environ.get(name)}
    if names == S3_NAMES and not all(name in given for name in S3_KEYS):
        return {}  # a region or half a key alone is left to DVC
    for name in set(DRIVE_NAMES) & set(given):
        with contextlib.suppress(ValueError, RecursionError):  # the check rejects text
            given[name] = json.loads(given[name])
    return given


def _check(name: str, value: object) -> Iterator[str]:
    """Yield what is wrong with one value of `secrets.json`, without showing it."""
    if name not in NAMES:
        shown = name if re.fullmatch("[A-Z][A-Z_]{1,39}", name) else "a key"  # a token may stand in the key's place
        yield f"{shown} is not a known key ({', '.join(NAMES)})"
    elif name in DRIVE_NAMES:
        fields = DRIVE_FIELDS if name == "GDRIVE_USER_CREDENTIALS" else SERVICE_FIELDS
        if not isinstance(value, dict):
            yield f"{name} is not an object with {', '.join(fields)}"
            return
        for key in fields:
            text = value.get(key)
            if not isinstance(text, str) or not text:
                yield f"{name}.{key} is missing or empty"
            elif key in _FORMS and not _FORMS[key][0](text):
                yield f"{name}.{key} is not {_FORMS[key][1]}"
    elif name == MESSAGES:
        given = _addresses(value) if isinstance(value, str | list) else [value]
        if not all(isinstance(url, str) and "://" in url for url in given):
            yield f"{name} is not a list of addresses like ntfy://TOPIC"
    # a character that HTTP headers forbid would fail late, or the client's error would show the value
    elif not isinstance(value, str) or not re.fullmatch("[!-~]([ -~]*[!-~])?", value) or value[0] in "'\"":
        yield f"{name} is not plain text, or has spaces or quotes around it"


def _addresses(value: Any) -> list[Any]:  # noqa: ANN401  of secrets.json
    """Return the addresses of a list, or of a text in which spaces, lines or commas lie between them."""
    if isinstance(value, str):
        return re.split(r"[\s,]+(?=[a-zA-Z][\w+.-]*://)", value.strip())
    return list(value)


def _secret_parts(url: str) -> Iterator[str]:
    """Yield an address and those of its parts that may be keys: services put theirs at any place."""
    yield url
    for part in re.split(r"[/:@?&=]+", url.partition("://")[2]):
        if len(part) >= SHORTEST_PART and not re.fullmatch(r"[\w-]+(\.[\w-]+)+", part):  # a host is none
            yield from {part, unquote(part)}


def _utc(text: str) -> str | None:
    """Return a time in the one format that Google's client parses; None if `text` is not a time.

    The client takes any other format for "never expires".
    """
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _is_private_key(text: str) -> bool:
    match text.strip().splitlines():
        case ["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----"]:
            with contextlib.suppress(ValueError):
                return bool(base64.b64decode("".join(lines), validate=True))
    return False


_FORMS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "token_expiry": (_utc, "a time like 2026-01-31T12:00:00Z"),
    "type": (lambda text: text == "service_account", '"service_account": this is another kind of file'),
    "private_key": (_is_private_key, "a private key in PEM form, as in the downloaded file"),
}
"""Further checks of a Drive account's fields that are not empty: the test, and its wording in an error."""
