"""Find the checkout of this project that a command works in."""

from __future__ import annotations

from pathlib import Path

from lib.errors import SandboxError


def find_project(start: Path) -> Path:
    """Return the root of the checkout that contains `start`. Raises `SandboxError` outside of a checkout."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "render.py").is_file() and (folder / "uv.lock").is_file():
            return folder
    raise SandboxError(
        f"{start} lies in no checkout of this project, and no repository was named.",
        state="nothing was started.",
        remedy="run the notebook inside a clone, or name a repository with -p repository URL.",
    )
