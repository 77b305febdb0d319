"""Steps 3 and 4: point DVC and Git at this run's remotes, without leaving a credential where it could be published."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from lib.commands import run_command
from lib.credentials import Credentials
from lib.errors import CommandError, CredentialsError, RemoteError


def configure_dvc(root: Path, scratch: Path, credentials: Credentials) -> str:
    """Give DVC a cache in `scratch` and, where the default remote is a Google Drive, its credentials there too.

    One line on the remote. Raises `RemoteError` where the repository names none, `CredentialsError` where its
    credentials are missing. Only paths are written into the clone (`.dvc/config.local`, which Git ignores).
    """
    from dvc.config import ConfigError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            name = repo.config["core"].get("remote")
            if not name or name not in repo.config["remote"]:
                raise RemoteError(
                    "the repository names no default DVC remote in .dvc/config.",
                    state="nothing was pulled or trained.",
                    remedy="`dvc remote add -d storage gdrive://<folder id>`, commit .dvc/config, push, render again.",
                )
            url = str(repo.config["remote"][name]["url"])
            with repo.config.edit("local") as local:
                local["cache"]["dir"] = str(scratch / "dvc-cache")
                if url.startswith("gdrive://"):
                    # without this a missing or revoked token would wait for a browser for ever
                    os.environ["GDRIVE_NON_INTERACTIVE"] = "1"
                    file = scratch / "credentials" / "gdrive.json"
                    credentials.write_drive_file(file)
                    local["remote"][name] = {"gdrive_user_credentials_file": str(file)}
    except (ConfigError, DvcException) as error:
        raise RemoteError(
            f".dvc/config cannot be used: {error}", remedy="run `dvc remote list` in a clone and correct what it names."
        ) from error
    return f"DVC remote: {name} at {url}"


def configure_git(root: Path, credentials: Credentials) -> str:
    """Ask the Git remote once with the run's token; one line on it.

    The token stays in the environment of each command. Raises `CredentialsError` where publishing would need a token
    that is not given, `RemoteError` where the remote does not answer.
    """
    url = run_command(["git", "remote", "get-url", "origin"], cwd=root, redact=credentials.redact).output.strip()
    if urlsplit(url).scheme in ("http", "https") and not credentials.github_token:
        raise CredentialsError(
            f"publishing to {url} needs a token, and {credentials.source} has no GITHUB_TOKEN.",
            state="nothing was pulled or trained.",
            remedy="add GITHUB_TOKEN (scope `repo`) to secrets.json and run again.",
        )
    environment = credentials.git_environment(url)
    try:
        run_command(
            ["git", "ls-remote", "--exit-code", "origin", "HEAD"],
            cwd=root, env=environment, timeout=120, redact=credentials.redact,
        )  # fmt: skip
    except CommandError as error:
        raise RemoteError(
            f"the Git remote {url} does not answer: {error.what}",
            state="nothing was pulled or trained.",
            remedy="check that GITHUB_TOKEN is not expired and has the `repo` scope, and that internet is on.",
        ) from error
    return f"Git remote: {url}{' (with GITHUB_TOKEN)' if environment else ''}"
