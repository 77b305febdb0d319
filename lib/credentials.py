"""The three accounts a run may need, read once, never shown.

`repr`, `str` and every error here hide the values; `redact` removes them, also in the forms in which clients send
them, from any text. Cannot: protect a value that another program prints past `redact`.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from lib.errors import CredentialsError

DRIVE_FIELDS = ("access_token", "refresh_token", "client_id", "client_secret", "token_expiry")
NAMES = ("GDRIVE_USER_CREDENTIALS", "WANDB_API_KEY", "GITHUB_TOKEN")
SHORTEST_SECRET = 6  # shorter values would blot out ordinary text


@dataclass(frozen=True, repr=False)
class Credentials:
    """What `secrets.json` holds; an account that is not given is None."""

    github_token: str | None = None
    wandb_api_key: str | None = None
    drive: Mapping[str, str] | None = None
    """The five fields of the users' `GDRIVE_USER_CREDENTIALS`."""
    source: str = "nowhere"
    _hidden: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        secret = [self.github_token, self.wandb_api_key]
        if self.drive:
            secret += [self.drive[name] for name in ("access_token", "refresh_token", "client_secret")]
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
        given = [
            name
            for name, value in zip(NAMES, (self.drive, self.wandb_api_key, self.github_token), strict=True)
            if value is not None
        ]
        return f"Credentials({', '.join(given) or 'none'} from {self.source})"

    def redact(self, text: str) -> str:
        """Give the text with every credential replaced by `***`."""
        for value in self._hidden:
            text = text.replace(value, "***")
        return text

    def git_environment(self, url: str) -> dict[str, str]:
        """Give the environment in which one git command may speak to `url`.

        The token goes into a header by way of the environment: an argument can be read by every process of the
        machine, a URL or `.git/config` stays behind. Nothing is added for other URLs than http(s).
        """
        if not self.github_token or urlsplit(url).scheme not in ("http", "https"):
            return {}
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return {
            "GIT_CONFIG_COUNT": "1",
            # for this host alone: a redirect elsewhere must not carry the token along
            "GIT_CONFIG_KEY_0": f"http.{host}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {_basic('x-access-token', self.github_token)}",
        }

    def write_drive_file(self, path: Path) -> None:
        """Write the five fields, completed to what Google's client reads, to a private file (mode 600).

        The form is that of oauth2client's `OAuth2Credentials.to_json`. Raises `CredentialsError` without them.
        """
        if self.drive is None:
            raise CredentialsError(
                f"the DVC remote is a Google Drive, and {self.source} has no GDRIVE_USER_CREDENTIALS.",
                state="nothing was pulled or trained.",
                remedy="add GDRIVE_USER_CREDENTIALS to secrets.json (README, Prerequisites) and run again.",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        complete = {
            **self.drive,
            "token_uri": "https://oauth2.googleapis.com/token",
            "user_agent": None,
            "invalid": False,
            "_module": "oauth2client.client",
            "_class": "OAuth2Credentials",
        }
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)
        # made private, then written, then put in its place: an older file of other rights is replaced with it
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(complete, file)
        part.replace(path)


def _basic(user: str, secret: str) -> str:
    return base64.b64encode(f"{user}:{secret}".encode()).decode()


def load_credentials(path: str = "", *, inputs: Path = Path("/kaggle/input")) -> Credentials:
    """Read the credentials of a run.

    `path` names `secrets.json`; empty, it is looked for in both mounts of a Kaggle dataset below `inputs`
    (`<slug>/` and `datasets/<owner>/<slug>/`). What it does not give is taken from the environment variables of the
    same names. Raises one `CredentialsError` that lists everything missing from or malformed in the file.
    """
    file = Path(path) if path else _find(inputs)
    values: dict[str, Any] = {}
    if file is not None:
        values = _read(file)
    for name in NAMES:
        if name not in values and os.environ.get(name):
            values[name] = _from_environment(name, os.environ[name])
    source = str(file) if file is not None else "the environment"
    wrong = [complaint for name in values for complaint in _check(name, values[name])]
    if wrong:
        raise CredentialsError(
            f"{source}: {'; '.join(wrong)}.",
            state="nothing was started; no value is shown here.",
            remedy="correct the keys named above (the form is shown in the README, Prerequisites) and run again.",
        )
    drive = values.get("GDRIVE_USER_CREDENTIALS")
    return Credentials(
        github_token=values.get("GITHUB_TOKEN"),
        wandb_api_key=values.get("WANDB_API_KEY"),
        drive={name: drive[name] for name in DRIVE_FIELDS} if drive else None,
        source=source,
    )


def _find(inputs: Path) -> Path | None:
    for pattern in ("secrets.json", "*/secrets.json", "datasets/*/*/secrets.json"):
        found = sorted(inputs.glob(pattern))
        if found:
            return found[0]
    return None


def _read(file: Path) -> dict[str, Any]:
    remedy = "attach the Kaggle dataset that holds secrets.json, or name the file with -p secrets PATH."
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CredentialsError(f"{file}: it cannot be read: {error.strerror}.", remedy=remedy) from None
    except ValueError:
        # the decoder's own message quotes the text, which holds the secrets
        raise CredentialsError(f"{file}: this is no JSON.", remedy="correct the file; it is not shown here.") from None
    if not isinstance(values, dict):
        raise CredentialsError(f"{file}: it holds {type(values).__name__}, not an object.", remedy=remedy)
    return values


def _from_environment(name: str, value: str) -> Any:  # noqa: ANN401  JSON
    if name != "GDRIVE_USER_CREDENTIALS":
        return value
    try:
        return json.loads(value)
    except ValueError:
        return None


def _check(name: str, value: object) -> list[str]:
    if name not in NAMES:
        return [f"{name} is no key of it (known: {', '.join(NAMES)})"]
    if name == "GDRIVE_USER_CREDENTIALS":
        if not isinstance(value, dict):
            return [f"{name} is no object of {', '.join(DRIVE_FIELDS)}"]
        return [
            f"{name}.{key} is missing or empty"
            for key in DRIVE_FIELDS
            if not isinstance(value.get(key), str) or not value[key]
        ]
    if not isinstance(value, str) or not value.strip() or value != value.strip() or "\n" in value:
        return [f"{name} is no plain text without spaces around it"]
    return []
