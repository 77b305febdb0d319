"""Configure DVC and Git for this run's remotes (steps 3 and 4 of the notebook).

Guarantees: no credential is left where it could be published. Credentials stay in private files outside the clone and
in environment variables; only paths are written into the clone.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lib.errors import CommandError, CredentialsError, RemoteError
from lib.process import Completed, run_command
from lib.remotes import repository
from lib.remotes.answers import patiently
from lib.remotes.credentials import Credentials, without_user
from lib.remotes.git_answers import because, explain_error


def find_dvc_remote(root: Path) -> str:
    """Return the URL of the repository's default DVC remote. Raises `RemoteError` if it has none."""
    _, _, url = _read_config(root)
    return url


def _read_config(root: Path) -> tuple[Any, str, str]:
    """Return the repository's DVC configuration, and the name and URL of its default remote. Raises `RemoteError`."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        config = Config(Repo.find_dvc_dir(str(root)))
    except DvcException as error:
        raise RemoteError(
            f".dvc/config cannot be used: {error}", remedy="run `dvc remote list` in a clone and correct what it names."
        ) from error
    name = config["core"].get("remote")
    if name not in config["remote"]:
        raise RemoteError(
            "the repository names no default DVC remote in .dvc/config.",
            state="nothing was pulled or trained.",
            remedy="`dvc remote add -d storage gdrive://<folder id>`, commit .dvc/config, push, render again.",
        )
    return config, name, str(config["remote"][name]["url"])


def configure_dvc(root: Path, scratch: Path, credentials: Credentials) -> str:
    """Configure DVC's cache in `scratch` and the credentials of the default remote; return a line about the remote.

    Google Drive's credentials are written to a private file in `scratch`; those of S3 go into this process's
    environment, where DVC reads them. Only paths are written into the clone (`.dvc/config.local`, which Git ignores).
    Raises `RemoteError` if the repository has no default remote, `CredentialsError` if Google Drive's credentials are
    missing.
    """
    config, name, url = _read_config(root)
    with config.edit("local") as local:
        local["cache"]["dir"] = str(scratch / "dvc-cache")
        if url.startswith("gdrive://"):
            # otherwise, with a missing or revoked token, DVC waits for a browser forever
            os.environ["GDRIVE_NON_INTERACTIVE"] = "1"
            os.environ.pop("GDRIVE_CREDENTIALS_DATA", None)  # DVC would use it instead of the file
            file = scratch / "credentials" / "gdrive.json"
            credentials.write_drive_file(file)
            is_service = credentials.service_account is not None
            key = "gdrive_service_account_json_file_path" if is_service else "gdrive_user_credentials_file"
            # set for both kinds of account: .dvc/config may have been written for the other kind
            local["remote"][name] = {"gdrive_use_service_account": is_service, key: str(file)}
    if url.startswith("s3://") and credentials.s3:
        os.environ.pop("AWS_SESSION_TOKEN", None)  # a token of another key would make this key invalid
        os.environ.update(credentials.s3)
    return f"DVC remote: {name} at {url}"


@contextlib.contextmanager
def set_up_copy(root: Path, credentials: Credentials) -> Iterator[tuple[Path, Path]]:
    """Yield a copy of the clone at `root`, configured like a session's clone, and the copy's scratch folder.

    The copy uses the remotes of the commit and the given credentials. The original clone and its user's configuration
    stay unchanged. The copy and its scratch folder are deleted after the block.
    """
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        copy, scratch = Path(folder) / "clone", Path(folder) / "scratch"
        run_command(["git", "clone", "--quiet", root, copy])
        run_command(["git", "remote", "set-url", "origin", find_git_remote(root)], cwd=copy)
        configure_dvc(copy, scratch, credentials)
        yield copy, scratch


@contextlib.contextmanager
def clone_with(root: Path, credentials: Credentials) -> Iterator[Path]:
    """Yield a clone that can reach the DVC remote: `root`, or a configured copy if credentials for it are given."""
    if not (credentials.drive or credentials.service_account or credentials.s3):
        yield root
        return
    with set_up_copy(root, credentials) as (copy, _):
        yield copy


def find_git_remote(root: Path) -> str:
    """Return the URL of the clone's `origin`, unchanged. Raises `RemoteError` if there is none."""
    found = run_command(["git", "remote", "get-url", "origin"], cwd=root, check=False)  # unchanged: not redacted
    if found.status != 0:
        raise RemoteError(
            f"{root} has no Git remote `origin`.",
            state="nothing was pulled or trained.",
            remedy="`git remote add origin https://github.com/YOU/REPOSITORY.git`.",
        )
    return found.output.strip()


def configure_git(root: Path, credentials: Credentials) -> str:
    """Check that the Git remote answers with the run's token; return a line about the remote.

    The token exists only in the environment of each command. Raises `CredentialsError` when publishing needs a token
    and none is given, `RemoteError` when the remote cannot be read.
    """
    url = find_git_remote(root)
    shown = without_user(url)
    if urlsplit(url).scheme in ("http", "https") and not credentials.github_token:
        raise CredentialsError(
            f"publishing to {shown} needs a token, and {credentials.source} has no GITHUB_TOKEN.",
            state="nothing was pulled or trained.",
            remedy="add GITHUB_TOKEN (scope `repo`) to secrets.json and run again.",
        )
    environment = credentials.git_environment(url)

    def ask() -> Completed:
        words = ["git", "ls-remote", "origin", "HEAD"]  # its HEAD may name a branch that is not there
        return run_command(words, cwd=root, env=environment, timeout=120, redact=credentials.redact)

    try:
        patiently(ask, explain_error, repository.PAUSES)
    except CommandError as error:
        answer = explain_error(error)
        raise RemoteError(
            f"the Git remote {shown} cannot be read{because(answer)}: {error.what}",
            state="nothing was pulled or trained.",
            remedy=answer.remedy,
        ) from error
    return f"Git remote: {shown}{' (with GITHUB_TOKEN)' if environment else ''}"
