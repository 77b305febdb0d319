"""Read and write DVC's configuration, of a clone or of a workspace without Git."""

from __future__ import annotations

import configparser
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lib.errors import RemoteError
from lib.remotes.addresses import refuse_slash, without_user

CONFIG = ".dvc/config"
"""The committed part of DVC's configuration."""
COPY = "attached-"
"""Prefix of the DVC remotes that are attached copies of another one, in a workspace."""


@contextlib.contextmanager
def edit_config(folder: Path, level: str = "local") -> Iterator[dict[str, Any]]:
    """Yield the settings of `config.local` in the folder `.dvc`, and write them after the block, in UTF-8.

    With the level `repo`, those of `config`.

    DVC itself reads UTF-8, but writes ASCII alone. Raises `RemoteError` if they cannot be read or written.
    """
    from configobj import ConfigObj  # type: ignore[import-untyped]
    from dvc.config import Config, _pack_named
    from dvc.exceptions import DvcException

    class Utf8Config(Config):  # type: ignore[misc]
        def _save_config(self, level: str, conf_dict: dict[str, Any]) -> None:
            file = Path(self.files[level])
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as opened:
                ConfigObj(_pack_named(conf_dict), encoding="utf-8").write(opened)

    try:
        with Utf8Config(str(folder), validate=False).edit(level) as settings:
            yield settings
    except (DvcException, OSError) as error:
        raise unusable(error) from error


def unusable(error: Exception) -> RemoteError:
    """Return the error for a DVC configuration that cannot be used."""
    remedy = "run `dvc remote list` in a clone and correct what it names."
    return RemoteError(f".dvc/config cannot be used: {error}", remedy=remedy)


def chain_of(config: Any, name: str) -> list[str]:  # noqa: ANN401  dvc.config.Config
    """Return a DVC remote and those to which `remote://` leads from it. Raises `RemoteError` if it leads nowhere.

    DVC itself would follow a circle until Python's stack is full.
    """
    chain = [name.lower()]  # DVC ignores case in names
    while chain[-1] in config["remote"]:
        key, address = f"remote.{chain[-1]}.url", str(config["remote"][chain[-1]]["url"])
        refuse_slash(f"{key} in .dvc/config", address, f"dvc remote modify {chain[-1]} url URL")
        url = urlsplit(address)
        if url.scheme != "remote":
            break
        base = url.netloc.lower()
        if base in chain or base not in config["remote"]:
            wrong = "leads back to itself" if base in chain else "names no remote"
            raise RemoteError(
                f".dvc/config: {key} is {without_user(url.geturl())}, which {wrong}.",
                remedy=f"`dvc remote modify {chain[-1]} url URL` with a storage's address, and commit .dvc/config.",
            )
        chain.append(base)
    return chain


def make_workspace(root: Path, place: Path, pointers: Mapping[str, str], mirrors: Sequence[Path] = ()) -> None:
    """Create a DVC workspace without Git: the `.dvc` files, the clone's remotes and cache, and the mirrors."""
    from dvc.repo import Repo

    (place / ".dvc").mkdir(parents=True, exist_ok=True)
    with Repo(str(root)) as clone, edit_config(place / ".dvc") as local:
        remotes = clone.config["remote"] | {f"{COPY}{n}": {"url": str(path)} for n, path in enumerate(mirrors)}
        local["core"] = {"no_scm": True, "remote": clone.config["core"]["remote"]}
        # by default DVC caches the replies of most stores without checking their hashes
        local["remote"] = {name: {**remote, "verify": True} for name, remote in remotes.items()}
        local["cache"] = {"dir": clone.cache.local_cache_dir}
        named = re.findall(r"^[ -]*remote: *(\S+)$", "\n".join(pointers.values()), re.MULTILINE)
        for name in (clone.config["core"]["remote"], *named):
            chain_of(clone.config, name)
    for name, text in pointers.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")


def default_address(text: str) -> str:
    """Return the address of the default remote in the text of a `.dvc/config`; empty without one."""
    config = configparser.RawConfigParser(strict=False)

    def place(name: str) -> str:
        remote = next(config[part] for part in config.sections() if f'remote "{name}"'.lower() in part.lower())
        address = " at ".join(remote[key] for key in ("url", "endpointurl") if key in remote)
        base = urlsplit(remote.get("url", ""))  # remote://base/folder
        return f"{address}, {base.netloc} is {place(base.netloc)}" if base.scheme == "remote" else address

    try:
        config.read_string(text)
        return place(config.get("core", "remote"))
    except (configparser.Error, StopIteration, RecursionError):
        return ""
