"""Configure DVC and Git for this run's remotes (steps 3 and 4 of the notebook).

Guarantees: no credential is left where it could be published. Credentials stay in private files outside the clone and
in environment variables; only paths are written into the clone.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lib.errors import CommandError, CredentialsError, RemoteError
from lib.process import run_command
from lib.remotes import repository
from lib.remotes.answers import patiently
from lib.remotes.credentials import Credentials, without_user
from lib.remotes.git_answers import because, explain_error


def find_dvc_remote(root: Path) -> str:
    """Return the URL of the repository's default DVC remote. Raises `RemoteError` if it has none."""
    config, name = _read_config(root)
    return _resolve(config, name)[1]


def dvc_remote_kinds(root: Path) -> set[str]:
    """Return DVC's names of the kinds of the repository's DVC remotes, `remote://` resolved. Raises `RemoteError`."""
    config, _ = _read_config(root)
    return {_resolve(config, name)[0] for name in config["remote"]}


def _read_config(root: Path) -> tuple[Any, str]:
    """Return the repository's DVC configuration, and the name of its default remote. Raises `RemoteError`."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        config = Config(Repo.find_dvc_dir(str(root)))
    except DvcException as error:
        raise _unusable(error) from error
    name = str(config["core"].get("remote")).lower()  # DVC ignores case in names
    if name not in config["remote"]:
        raise RemoteError(
            "the repository names no default DVC remote in .dvc/config.",
            state="nothing was pulled or trained.",
            remedy="`dvc remote add -d storage gdrive://<folder id>`, commit .dvc/config, push, render again.",
        )
    return config, name


def _resolve(config: Any, name: str) -> tuple[str, str]:  # noqa: ANN401  dvc.config.Config
    """Return the kind and the URL of a DVC remote as DVC resolves them. Raises `RemoteError`."""
    from dvc.exceptions import DvcException
    from dvc.fs import get_cloud_fs, get_fs_config

    try:
        return str(get_cloud_fs(config, name=name)[0].protocol), str(get_fs_config(config, name=name)["url"])
    except DvcException as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> RemoteError:
    remedy = "run `dvc remote list` in a clone and correct what it names."
    return RemoteError(f".dvc/config cannot be used: {error}", remedy=remedy)


def configure_dvc(root: Path, scratch: Path, credentials: Credentials) -> str:
    """Configure DVC's cache in `scratch` and the credentials of every remote; return a line about the default remote.

    Google Drive's credentials are written to a private file in `scratch`; those of S3 go into this process's
    environment, where DVC reads them. Only paths are written into the clone (`.dvc/config.local`, which Git ignores).
    Raises `RemoteError` if the repository has no default remote, `CredentialsError` if that is on Google Drive and the
    credentials are missing.
    """
    config, name = _read_config(root)
    kinds = {each: _resolve(config, each)[0] for each in config["remote"]}
    drives = [each for each, kind in kinds.items() if kind == "gdrive"]
    given = credentials.drive or credentials.service_account
    with config.edit("local") as local:
        local["cache"]["dir"] = str(scratch / "dvc-cache")
        if drives:
            # otherwise, with a missing or revoked token, DVC waits for a browser forever
            os.environ["GDRIVE_NON_INTERACTIVE"] = "1"
            os.environ.pop("GDRIVE_CREDENTIALS_DATA", None)  # DVC would use it instead of the file
        if kinds[name] == "gdrive" or (drives and given):
            file = scratch / "credentials" / "gdrive.json"
            credentials.write_drive_file(file)
            is_service = credentials.service_account is not None
            key = "gdrive_service_account_json_file_path" if is_service else "gdrive_user_credentials_file"
            for each in drives:
                # set for both kinds of account: .dvc/config may have been written for the other kind
                settings = {"gdrive_use_service_account": is_service, key: str(file)}
                local["remote"][each] = local["remote"].get(each, {}) | settings
    if "s3" in kinds.values() and credentials.s3:
        os.environ.pop("AWS_SESSION_TOKEN", None)  # a token of another key would make this key invalid
        os.environ.update(credentials.s3)
    return f"DVC remote: {name} at {_resolve(config, name)[1]}"


@contextlib.contextmanager
def set_up_copy(root: Path, credentials: Credentials) -> Iterator[tuple[Path, Path]]:
    """Yield a copy of the clone at `root`, configured like a session's clone, and the copy's scratch folder.

    The copy uses the remotes of the commit, as the original's `.dvc/config.local` changes them, and the given
    credentials. The original clone and its user's configuration stay unchanged. The copy and its scratch folder are
    deleted after the block.
    """
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        copy, scratch = Path(folder) / "clone", Path(folder) / "scratch"
        run_command(["git", "clone", "--quiet", root, copy])
        run_command(["git", "remote", "set-url", "origin", find_git_remote(root)], cwd=copy)
        _keep_meaning(root, copy)
        configure_dvc(copy, scratch, credentials)
        yield copy, scratch


def _keep_meaning(root: Path, copy: Path) -> None:
    """Write what the commit's DVC configuration and the clone's `.dvc/config.local` mean at `root` into the copy.

    A relative path would name another place there.
    """
    from dvc.config import Config, merge
    from dvc.exceptions import DvcException

    here, there = root.resolve() / ".dvc", copy / ".dvc"
    try:
        meaning = Config.load_file(str(there / "config")) if (there / "config").is_file() else {}
        # DVC resolves paths by the place of the file that it is told
        meaning = Config._load_paths(meaning, str(here / "config"))  # noqa: SLF001
        merge(meaning, Config(str(here), validate=False).load_one("local"))
        with Config(str(there), validate=False).edit("local") as local:
            merge(local, {"core": meaning.get("core", {}), "remote": meaning.get("remote", {})})
            for remote in local["remote"].values():
                remote.update({key: str(value) for key, value in remote.items() if isinstance(value, str)})
    except DvcException as error:
        raise _unusable(error) from error


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
    words = ["git", "ls-remote", "origin", "HEAD"]  # its HEAD may name a branch that is not there
    ask = partial(run_command, words, cwd=root, env=environment, timeout=120, redact=credentials.redact)
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
