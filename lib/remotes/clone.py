"""Configure DVC and Git for this run's remotes (steps 3 and 4 of the notebook).

Guarantees: no credential is left where it could be published. Credentials stay in private files outside the clone and
in environment variables; only paths are written into the clone.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lib.errors import CommandError, CredentialsError, RemoteError
from lib.process import run_command
from lib.remotes import repository
from lib.remotes.addresses import without_user
from lib.remotes.answers import patiently
from lib.remotes.credentials import Credentials
from lib.remotes.dvc_config import chain_of, edit_config, unusable
from lib.remotes.git_answers import because, explain_error
from lib.remotes.repository import origin_of


class DvcRemote(NamedTuple):
    """A DVC remote: its name, DVC's name of its kind, and its URL without a login; `remote://` is resolved in both."""

    name: str
    kind: str
    url: str


def find_remotes(root: Path, dataset: str = "") -> list[DvcRemote]:
    """Return the DVC remotes that are used: the default one first, then those that outputs name, or `dataset` alone.

    What cannot be read or opened is left out, since only some outputs need it. Raises `RemoteError` if the default
    remote is missing or cannot be used.
    """
    from dvc.repo import Repo
    from dvc.repo.index import Index

    config, default = _read_config(root)
    others, known = set(), _open_all(config)
    with Repo(str(root)) as repo:
        for out in Index.from_repo(repo, onerror=lambda *_: None).outs:
            if out.remote and (not dataset or out.fs_path == str(Path(repo.root_dir, dataset))):
                others.add(str(out.remote).lower())
    return [_resolve(config, default), *(known[name] for name in sorted(others - {default}) if name in known)]


def _open_all(config: Any) -> dict[str, DvcRemote]:  # noqa: ANN401  dvc.config.Config
    """Return every DVC remote of the configuration, by name, that this machine can open."""
    found = {}
    for name in config["remote"]:
        with contextlib.suppress(RemoteError):  # its client is not installed
            found[name] = _resolve(config, name)
    return found


def _read_config(root: Path) -> tuple[Any, str]:
    """Return the repository's DVC configuration, and the name of its default remote. Raises `RemoteError`."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        config = Config(Repo.find_dvc_dir(str(root)))
    except DvcException as error:
        raise unusable(error) from error
    name = str(config["core"].get("remote")).lower()  # DVC ignores case in names
    if name not in config["remote"]:
        known, given = sorted(config["remote"]), config["core"].get("remote")
        command = "dvc remote default NAME" if known else "dvc remote add -d storage gdrive://<folder id>"
        raise RemoteError(
            f"the repository names no default DVC remote in .dvc/config: core.remote is {given!r}, and it has "
            f"{', '.join(known) or 'no remote'}.",
            state="nothing was pulled or trained.",
            remedy=f"`{command}`, commit .dvc/config, push, render again.",
        )
    return config, name


def _resolve(config: Any, name: str) -> DvcRemote:  # noqa: ANN401  dvc.config.Config
    """Return a DVC remote as DVC resolves it. Raises `RemoteError`."""
    from dvc.exceptions import DvcException
    from dvc.fs import get_cloud_fs, get_fs_config

    chain_of(config, name)
    try:
        kind = get_cloud_fs(config, name=name)[0].protocol
        return DvcRemote(name, str(kind), without_user(str(get_fs_config(config, name=name)["url"])))
    except (DvcException, ImportError) as error:
        raise unusable(error) from error


def require_committed(root: Path) -> str:
    """Return a note on the addresses of used DVC remotes that this machine replaces; empty if there are none.

    A run's clone has the commit's `.dvc/config` alone, neither `.dvc/config.local` nor a user's or a machine's own
    configuration. Raises `RemoteError` if an address, or which remote is the default one, is only there.
    """
    from dvc.config import Config
    from dvc.config_schema import RelPath
    from dvc.exceptions import DvcException

    home = root.resolve() / ".dvc"
    if not home.is_dir():
        return ""
    text = run_command(["git", "show", "HEAD:./.dvc/config"], cwd=root, check=False)
    try:
        here = Config(str(home))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config"
            file.write_text(text.output if text.status == 0 else "", encoding="utf-8")
            there = Config._load_paths(Config.load_file(str(file)), str(home / "config"))  # noqa: SLF001
    except DvcException as error:
        raise unusable(error) from error

    def addresses(config: Any, names: Iterable[str]) -> dict[str, str | None]:  # noqa: ANN401  dvc.config.Config
        keys = [(name, key) for name in names for key in ("url", "endpointurl")]
        found = {f"remote.{name}.{key}": config["remote"].get(name, {}).get(key) for name, key in keys}
        return {"core.remote": config.get("core", {}).get("remote")} | found

    every = addresses(here, here["remote"])
    if every == addresses(there, here["remote"]) and not any(isinstance(each, RelPath) for each in every.values()):
        return ""  # without opening the repository, which takes longer than rendering
    used = [name for remote in find_remotes(root) for name in chain_of(here, remote.name)]
    mine, committed = addresses(here, used), addresses(there, used)
    other = ", ".join(key for key, value in mine.items() if value != committed[key])
    if any(value and not committed[key] for key, value in mine.items()):
        raise RemoteError(
            f"the commit's .dvc/config lacks what this machine sets elsewhere: {other}.",
            remedy="set it without --local and --global (`dvc remote add -d NAME URL`, `dvc remote modify NAME url "
            "URL`), commit .dvc/config and push: a run's clone has nothing else.",
        )
    notes = [f"a run uses the commit's .dvc/config, where {other} differs from this machine's"] if other else []
    if relative := ", ".join(key for key, value in committed.items() if isinstance(value, RelPath)):
        notes.append(f"{relative} is relative: a run looks for it from its own clone, not from this one")
    return "; ".join(notes)


def configure_dvc(root: Path, scratch: Path, credentials: Credentials) -> str:
    """Configure DVC's cache in `scratch` and the credentials of every remote; return lines about those that are used.

    Google Drive's credentials are written to a private file in `scratch`; those of S3 go into this process's
    environment, where DVC reads them. Only paths are written into the clone (`.dvc/config.local`, which Git ignores).
    Raises `RemoteError` if the repository has no default remote, `CredentialsError` if that is on Google Drive and the
    credentials are missing.
    """
    config, _ = _read_config(root)
    used = find_remotes(root)
    every = _open_all(config).values()  # outputs of other branches, which `check` asks for, may name the rest
    drives = [remote.name for remote in every if remote.kind == "gdrive"]
    given = credentials.drive or credentials.service_account
    settings: dict[str, Any] = {}
    if drives:
        os.environ.pop("GDRIVE_CREDENTIALS_DATA", None)  # DVC would use it instead of the file
    if used[0].kind == "gdrive" or (drives and given):
        file = scratch / "credentials" / "gdrive.json"
        credentials.write_drive_file(file)
        is_service = credentials.service_account is not None
        key = "gdrive_service_account_json_file_path" if is_service else "gdrive_user_credentials_file"
        # set for both kinds of account: .dvc/config may have been written for the other kind
        settings = {"gdrive_use_service_account": is_service, key: str(file)}
    with edit_config(root / ".dvc") as local:
        local["cache"]["dir"] = str(scratch / "dvc-cache")
        for each in drives if settings else ():
            local["remote"][each] = local["remote"].get(each, {}) | settings
    if credentials.s3 and any(remote.kind == "s3" for remote in every):
        # a token of another key would make this key invalid, and a profile would replace it
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
            os.environ.pop(name, None)
        file = scratch / "credentials" / "aws"
        credentials.write_s3_file(file, {each["profile"] for each in config["remote"].values() if each.get("profile")})
        os.environ.update({**credentials.s3, "AWS_SHARED_CREDENTIALS_FILE": str(file)})
    return "\n".join(f"DVC remote: {remote.name} at {remote.url}" for remote in used)


@contextlib.contextmanager
def set_up_copy(root: Path, credentials: Credentials) -> Iterator[tuple[Path, Path]]:
    """Yield a copy of the clone at `root`, configured like a session's clone, and the copy's scratch folder.

    The copy uses the remotes of the commit, as the original's `.dvc/config.local` changes them, and the given
    credentials. The original clone and its user's configuration stay unchanged. The copy and its scratch folder are
    deleted after the block.
    """
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        copy, scratch = Path(folder) / "clone", Path(folder) / "scratch"
        settings = ("--origin", "origin", "-c", f"core.hooksPath={os.devnull}")  # the user's may say otherwise
        run_command(["git", "clone", "--quiet", *settings, root, copy])
        words = ["git", "remote", "set-url", "origin", find_git_remote(root)]
        run_command(words, cwd=copy, redact=credentials.redact)
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
    except DvcException as error:
        raise unusable(error) from error
    with edit_config(there) as local:
        merge(local, {"core": meaning.get("core", {}), "remote": meaning.get("remote", {})})
        for remote in local["remote"].values():
            remote.update({key: str(value) for key, value in remote.items() if isinstance(value, str)})


@contextlib.contextmanager
def clone_with(root: Path, credentials: Credentials) -> Iterator[Path]:
    """Yield a clone that can reach the DVC remote: `root`, or a configured copy if credentials for it are given."""
    if not (credentials.drive or credentials.service_account or credentials.s3):
        yield root
        return
    with set_up_copy(root, credentials) as (copy, _):
        yield copy


def find_git_remote(root: Path) -> str:
    """Return the URL of the clone's `origin`, a path as an absolute one. Raises `RemoteError` if there is none."""
    found = origin_of(root)
    if not found:
        raise RemoteError(
            f"{root} has no Git remote `origin`.",
            state="nothing was pulled or trained.",
            remedy="`git remote add origin https://github.com/YOU/REPOSITORY.git`.",
        )
    return found


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
