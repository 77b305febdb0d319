"""Write DVC's configuration of a clone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.errors import RemoteError


@contextlib.contextmanager
def edit_config(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the settings of `config.local` in the folder `.dvc`, and write them after the block, in UTF-8.

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
        with Utf8Config(str(folder), validate=False).edit("local") as local:
            yield local
    except (DvcException, OSError) as error:
        raise unusable(error) from error


def unusable(error: Exception) -> RemoteError:
    """Return the error for a DVC configuration that cannot be used."""
    remedy = "run `dvc remote list` in a clone and correct what it names."
    return RemoteError(f".dvc/config cannot be used: {error}", remedy=remedy)
