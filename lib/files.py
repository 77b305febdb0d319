"""Write a file that is complete or absent, whatever happens while it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `file`, which is created; rename it to `file` if the block succeeds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)  # left by a process that was killed
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text file, complete or not at all; create its folder."""
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")
