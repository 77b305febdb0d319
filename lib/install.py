"""Step 2: exactly what `uv.lock` says, over the host's own torch and CUDA; standard library only.

Hybrid strategy: torch, torchvision, numpy and everything that hangs on them stay as the host has them; every other
locked package is installed, with its hash checked, into a folder of its own that comes first on the path. The host's
packages are never written to: replacing one under the running kernel would break it. Training's workers see the
same folder by way of PYTHONPATH. Where everything locked is installed already, nothing is done.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lib.errors import InstallError  # standard library only, too

HARDWARE = ("torch", "torchvision", "numpy")
TIMEOUT = 900  # seconds


def install(root: Path, overlay: Path) -> str:
    """Make the packages that `uv.lock` in `root` names importable; gives one line on what was done.

    `overlay` is the folder to install into when something is missing. Raises `InstallError`, and when one of the
    host's own hardware packages is another one afterwards.
    """
    requirements = _export(root)
    before = {name: _version(name) for name in HARDWARE}
    if _satisfied(requirements):
        return f"everything in uv.lock is installed; torch {before['torch']} is used as it is."
    if before["torch"] is None:
        raise InstallError(
            "this machine has no torch to install over.",
            state="nothing was installed.",
            remedy="run `uv sync` in the project, or use Kaggle's image.",
        )
    file = overlay.with_name("requirements.txt")
    overlay.mkdir(parents=True, exist_ok=True)
    file.write_text(requirements, encoding="utf-8")
    _run(
        [*_uv(), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(overlay), "--no-deps",
         "--require-hashes", "-r", str(file)],
        root,
    )  # fmt: skip
    sys.path.insert(0, str(overlay))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(overlay), os.environ.get("PYTHONPATH", "")]))
    importlib.invalidate_caches()
    after = {name: _version(name) for name in HARDWARE}
    if after != before:
        raise InstallError(f"the host's own packages changed: {before} became {after}.")
    count = len(_names(requirements))
    return f"{count} packages from uv.lock installed over the host's torch {before['torch']}, which stays as it was."


def _export(root: Path) -> str:
    """Give the locked requirements with hashes, without torch and what only torch needs."""
    command = [*_uv(), "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--no-header"]
    command += ["--prune", "torch", "--prune", "torchvision", "--no-emit-package", "numpy"]
    return _run(command, root)


def _names(requirements: str) -> dict[str, str]:
    """Give version by name of the requirements that apply to this machine."""
    found = {}
    for line in requirements.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)\s*(?:;\s*([^\\]+?))?\s*\\?$", line)
        if match and _applies(match[3]):
            found[match[1]] = match[2]
    return found


def _applies(marker: str | None) -> bool:
    if marker is None:
        return True
    try:
        from packaging.markers import Marker
    except ImportError:  # a bare Python: install rather than guess
        return True
    return bool(Marker(marker).evaluate())


def _satisfied(requirements: str) -> bool:
    return all(_version(name) == version for name, version in _names(requirements).items())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _uv() -> list[str]:
    """Find uv: Kaggle's image has it; elsewhere it is installed beside this Python."""
    found = shutil.which("uv")
    if found:
        return [found]
    if _version("uv") is None:
        _run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], Path.cwd())
    return [sys.executable, "-m", "uv"]


def _run(command: list[str], cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"`{' '.join(command[:3])} …` failed: {error}") from error
    if done.returncode:
        raise InstallError(
            f"`{' '.join(command[:3])} …` failed with status {done.returncode}:\n{done.stderr.strip()[-3000:]}",
            state="the host's own packages are as they were.",
            remedy="turn internet on in the Kaggle settings and run the notebook again.",
        )
    return done.stdout
