"""The accounts a run may need, read once, never shown: Google Drive or S3, GitHub, W&B.

`repr`, `str` and every error here hide the values; `redact` removes them, also in the forms in which clients send
them, from any text. Cannot: protect a value that another program prints past `redact`, nor know the short-lived tokens
that a client gets for one.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from lib.errors import CredentialsError

DRIVE_FIELDS = ("access_token", "refresh_token", "client_id", "client_secret", "token_expiry")
SERVICE_FIELDS = ("type", "client_email", "client_id", "private_key_id", "private_key")
"""What Google's client reads of a service account's key; the file as downloaded holds more."""
DRIVE_NAMES = ("GDRIVE_USER_CREDENTIALS", "GDRIVE_SERVICE_ACCOUNT")
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_NAMES = (*S3_KEYS, "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
ACCOUNTS = (DRIVE_NAMES, ("WANDB_API_KEY",), ("GITHUB_TOKEN",), S3_NAMES)
"""The keys of `secrets.json` by the account they belong to."""
NAMES = tuple(name for names in ACCOUNTS for name in names)
TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  an address
SHORTEST_SECRET = 6  # shorter values would blot out ordinary text


GIT_TOKEN = "KAGGLE_TRAINING_GIT_TOKEN"  # noqa: S105  a variable's name
GIT_HELPER = f'!f() {{ test "$1" = get && printf "username=x-access-token\\npassword=%s\\n" "${GIT_TOKEN}"; }}; f'
"""Answers git's question for an account from the environment, in the form of `git-credential(1)`."""


@dataclass(frozen=True, repr=False)
class Credentials:
    """What `secrets.json` holds; an account that is not given is None."""

    github_token: str | None = None
    wandb_api_key: str | None = None
    drive: Mapping[str, str] | None = None
    """The five fields of the users' `GDRIVE_USER_CREDENTIALS`."""
    service_account: Mapping[str, str] | None = None
    """`GDRIVE_SERVICE_ACCOUNT`, in place of `drive`: the key as Google gives it."""
    s3: Mapping[str, str] | None = None
    """Those of the four `AWS_*` that are given."""
    source: str = "nowhere"
    _hidden: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        secret = [self.github_token, self.wandb_api_key]
        if self.drive:
            secret += [self.drive[name] for name in ("access_token", "refresh_token", "client_secret")]
        if self.service_account:
            key = self.service_account["private_key"]
            # a client's error may show a line of the key alone
            secret += [key, *(line for line in key.splitlines() if not line.startswith("-----"))]
        if self.s3:
            secret += [self.s3.get("AWS_SECRET_ACCESS_KEY"), self.s3.get("AWS_SESSION_TOKEN")]
        forms: set[str] = set()
        for value in filter(None, secret):
            forms |= {value, quote(value, safe=""), json.dumps(value)[1:-1]}
        # as HTTP's basic authentication sends them: git its token, wandb its key
        accounts = (("x-access-token", self.github_token), ("api", self.wandb_api_key))
        forms |= {_basic(user, value) for user, value in accounts if value}
        # longest first: a value may contain another
        hidden = sorted((form for form in forms if len(form) >= SHORTEST_SECRET), key=len, reverse=True)
        object.__setattr__(self, "_hidden", tuple(hidden))

    def __repr__(self) -> str:
        accounts = {
            "GDRIVE_USER_CREDENTIALS": self.drive,
            "GDRIVE_SERVICE_ACCOUNT": self.service_account,
            "WANDB_API_KEY": self.wandb_api_key,
            "GITHUB_TOKEN": self.github_token,
            "AWS_ACCESS_KEY_ID": self.s3,
        }
        given = [name for name, value in accounts.items() if value is not None]
        return f"Credentials({', '.join(given) or 'none'} from {self.source})"

    def redact(self, text: str) -> str:
        """Give the text with every credential replaced by `***`."""
        for value in self._hidden:
            text = text.replace(value, "***")
        return text

    def git_environment(self, url: str) -> dict[str, str]:
        """Give the environment in which one git command may speak to `url`.

        The token stands in the environment: an argument can be read by every process of the machine, a URL or
        `.git/config` stays behind. git gives it to this host alone, when that asks for it (`gitcredentials(7)`): a
        header would be sent on to whatever the host redirects to. Nothing is added for other URLs than http(s).
        """
        if not self.github_token or urlsplit(url).scheme not in ("http", "https"):
            return {}
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        settings = (
            ("credential.helper", ""),  # no other account, and nobody who would keep this one
            (f"credential.{host}.helper", GIT_HELPER),
            (f"http.{host}/.extraHeader", ""),  # what a CI's checkout has left would be a second account
        )
        numbered = {
            f"GIT_CONFIG_{word}_{number}": text
            for number, setting in enumerate(settings)
            for word, text in zip(("KEY", "VALUE"), setting, strict=True)
        }
        return {"GIT_CONFIG_COUNT": str(len(settings)), **numbered, GIT_TOKEN: self.github_token}

    def drive_content(self) -> dict[str, Any]:
        """Give what Google's client reads: a service account's key, or the five fields completed to ten.

        The form of the ten is that of oauth2client's `OAuth2Credentials.to_json`. Raises `CredentialsError` without
        an account.
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
        """Write `drive_content` to a private file (mode 600). Raises `CredentialsError` without a Drive account."""
        write_private(path, json.dumps(self.drive_content()))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (mode 600), whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        # made private, then written, then put in its place: an older file of other rights is replaced with it
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _basic(user: str, secret: str) -> str:
    return base64.b64encode(f"{user}:{secret}".encode()).decode()


def load_credentials(path: str = "", *, inputs: Path = Path("/kaggle/input")) -> Credentials:
    """Read the credentials of a run.

    `path` names `secrets.json`; empty, it is looked for in both mounts of a Kaggle dataset below `inputs`
    (`<slug>/` and `datasets/<owner>/<slug>/`). An account that the file does not give is taken from the environment
    variables of the same names. Raises one `CredentialsError` that lists everything missing from or malformed in them.
    """
    file = Path(path) if path else _find(inputs)
    values: dict[str, Any] = {}
    if file is not None:
        values = read_secrets(file)
    for names in ACCOUNTS:
        # never half of an account from here and half from there: the two would be of different owners
        if not any(name in values for name in names):
            values |= _from_environment(names)
    return make_credentials(values, str(file) if file is not None else "the environment")


def make_credentials(values: Mapping[str, Any], source: str) -> Credentials:
    """Check what `secrets.json` holds. Raises one `CredentialsError` that lists all that is wrong, without a value."""
    wrong = [complaint for name in values for complaint in _check(name, values[name])]
    if all(name in values for name in DRIVE_NAMES):
        wrong.append(f"{' and '.join(DRIVE_NAMES)} are both there, and only one account can be used: keep one")
    if any(name in values for name in S3_NAMES):
        wrong += [f"{name} is missing, {' and '.join(S3_KEYS)} are one key" for name in S3_KEYS if name not in values]
    if wrong:
        raise CredentialsError(
            f"{source}: {'; '.join(wrong)}.",
            state="nothing was started; no value is shown here.",
            remedy="correct the keys named above (the form is shown in the README, Prerequisites) and run again.",
        )
    drive = values.get("GDRIVE_USER_CREDENTIALS")
    service = values.get("GDRIVE_SERVICE_ACCOUNT")
    return Credentials(
        github_token=values.get("GITHUB_TOKEN"),
        wandb_api_key=values.get("WANDB_API_KEY"),
        drive={name: drive[name] for name in DRIVE_FIELDS} | {"token_expiry": _utc(drive["token_expiry"])}
        if drive
        else None,
        service_account={name: value for name, value in service.items() if isinstance(value, str)} if service else None,
        s3={name: values[name] for name in S3_NAMES if name in values} or None,
        source=source,
    )


def _find(inputs: Path) -> Path | None:
    for pattern in ("secrets.json", "*/secrets.json", "datasets/*/*/secrets.json"):
        found = sorted(inputs.glob(pattern))
        if found:
            return found[0]
    return None


ATTACH = "attach the Kaggle dataset that holds secrets.json, or name the file with -p secrets PATH."


def read_secrets(file: Path, remedy: str = ATTACH) -> dict[str, Any]:
    """Read the keys of `secrets.json` as they stand. Raises `CredentialsError` where it is no JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CredentialsError(f"{file}: it cannot be read: {error.strerror}.", remedy=remedy) from None
    except (ValueError, RecursionError):
        # the decoder's own message quotes the text, which holds the secrets
        raise CredentialsError(f"{file}: this is no JSON.", remedy="correct the file; it is not shown here.") from None
    if not isinstance(values, dict):
        raise CredentialsError(f"{file}: it holds {type(values).__name__}, not an object.", remedy=remedy)
    return values


def _from_environment(names: tuple[str, ...]) -> dict[str, Any]:
    given: dict[str, Any] = {name: os.environ[name] for name in names if os.environ.get(name)}
    if names == S3_NAMES and not all(name in given for name in S3_KEYS):
        return {}  # a region, or half a key: DVC's own business
    for name in set(DRIVE_NAMES) & set(given):
        try:
            given[name] = json.loads(given[name])
        except (ValueError, RecursionError):
            given[name] = None
    return given


def _check(name: str, value: object) -> list[str]:
    if name not in NAMES:
        return [f"{name} is no key of it (known: {', '.join(NAMES)})"]
    if name in DRIVE_NAMES:
        fields = DRIVE_FIELDS if name == "GDRIVE_USER_CREDENTIALS" else SERVICE_FIELDS
        if not isinstance(value, dict):
            return [f"{name} is no object of {', '.join(fields)}"]
        wrong = [key for key in fields if not isinstance(value.get(key), str) or not value[key]]
        complaints = [f"{name}.{key} is missing or empty" for key in wrong]
        for key, (fits, form) in _FORMS[name].items():
            if key not in wrong and not fits(value[key]):
                complaints.append(f"{name}.{key} is no {form}")
        return complaints
    # what else may not stand in a header of HTTP would be refused late, or shown by the client's error
    if (
        not isinstance(value, str)
        or not value
        or value != value.strip()
        or not (value.isascii() and value.isprintable())
    ):
        return [f"{name} is no plain text without spaces around it"]
    return []


def _utc(text: str) -> str | None:
    """Give a time in the one form that Google's client reads; it takes any other for "never expires"."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _is_private_key(text: str) -> bool:
    lines = text.strip().splitlines()
    try:
        return (
            lines[0] == "-----BEGIN PRIVATE KEY-----"
            and lines[-1] == "-----END PRIVATE KEY-----"
            and bool(base64.b64decode("".join(lines[1:-1]), validate=True))
        )
    except ValueError:
        return False


_FORMS: Mapping[str, Mapping[str, tuple[Callable[[str], object], str]]] = {
    "GDRIVE_USER_CREDENTIALS": {"token_expiry": (_utc, "time like 2026-01-31T12:00:00Z")},
    "GDRIVE_SERVICE_ACCOUNT": {
        "type": (lambda text: text == "service_account", '"service_account", so this is another kind of file'),
        "private_key": (_is_private_key, "private key in PEM form, as the downloaded file has it"),
    },
}
"""What a field must be besides not empty, and how to say so."""
