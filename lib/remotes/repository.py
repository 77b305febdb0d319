"""The checkout of this project that a command works in."""

from __future__ import annotations

from pathlib import Path

from lib.errors import SandboxError


def find_project(start: Path) -> Path:
    """Give the checkout that `start` lies in. Raises `SandboxError` outside of one."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "render.py").is_file() and (folder / "uv.lock").is_file():
            return folder
    raise SandboxError(
        f"{start} lies in no checkout of this project, and no repository was named.",
        state="nothing was started.",
        remedy="run the notebook inside a clone, or name a repository with -p repository URL.",
    )
