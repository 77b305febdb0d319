"""Download the wheels that step 2 installs on Kaggle, for sessions without a network.

Guarantees: every wheel has a hash that `uv.lock` lists. Exceptions are packages published only as source: the source's
hash is checked, the wheel is built here, and the hash of the built wheel is recorded; and uv itself, which is
downloaded without a hash check. The folder, attached as a dataset, contains everything that step 2 needs, uv included.
Cannot: build a package that needs a compiler: its wheel would fit this platform only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from pathlib import Path

from packaging.markers import Marker

from lib.errors import InstallError
from lib.kaggle.install import WHEELS, export, find_uv, lock_hash, parse, run_installer

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux_2_5_x86_64", "manylinux1_x86_64", "linux_x86_64")  # fmt: skip
"""Platform tags of the wheels that Kaggle's machines accept."""


def gather_wheels(root: Path, folder: Path, *, python: str = "3.12") -> list[Path]:
    """Download all wheels for a host with that Python version into `folder` and return them. Raises `InstallError`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WHEELS).unlink(missing_ok=True)
    host = {
        "python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "sys_platform": "linux", "platform_system": "Linux",
        "platform_machine": "x86_64", "os_name": "posix",
    }  # fmt: skip
    pins = {
        f"{name}=={version}": hashes
        for name, version, marker, hashes in parse(export(root))
        if not marker or Marker(marker).evaluate(host)
    }
    sources = _sources(root) & pins.keys()
    target = ["--python-version", python, *(word for name in PLATFORMS for word in ("--platform", name))]
    _download(folder, {pin: pins[pin] for pin in pins.keys() - sources}, "--only-binary=:all:", *target)
    for pin in sources:
        pins[pin] = [f"sha256:{_build(folder, pin, pins[pin])}"]
    _pip_download(folder, "--only-binary=:all:", *target, "uv")
    _write_requirements(folder, pins)
    # written last: step 2 ignores a folder without this file, so an incomplete folder is never used
    (folder / WHEELS).write_text(json.dumps({"lock": lock_hash(root), "python": python}), encoding="utf-8")
    return list(folder.glob("*.whl"))


def _sources(root: Path) -> set[str]:
    """Return the pins (`name==version`) of `uv.lock` that are published only as source."""
    packages = tomllib.loads((root / "uv.lock").read_text(encoding="utf-8"))["package"]
    return {f"{item['name']}=={item['version']}" for item in packages if item.get("sdist") and not item.get("wheels")}


def _download(folder: Path, pins: dict[str, list[str]], *words: str) -> None:
    """Download the pinned packages into `folder`, with their hashes checked."""
    _write_requirements(folder, pins)
    _pip_download(folder, "--require-hashes", *words, "-r", "requirements.txt")


def _write_requirements(folder: Path, pins: dict[str, list[str]]) -> None:
    lines = (" \\\n    --hash=".join([pin, *hashes]) for pin, hashes in sorted(pins.items()))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _pip_download(folder: Path, *words: str) -> None:
    pip = [*find_uv(), "tool", "run", "--quiet", "pip"]
    run_installer([*pip, "download", "--quiet", "--no-deps", "-d", ".", *words], folder)


def _build(folder: Path, pin: str, hashes: list[str]) -> str:
    """Build a wheel from checked source and return its hash. Raises `InstallError` if it fits one platform only."""
    work = folder / "source"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _download(work, {pin: hashes}, "--no-binary=:all:")
        (source,) = [path for path in work.iterdir() if path.name != "requirements.txt"]
        run_installer([*find_uv(), "build", "--quiet", "--wheel", "--out-dir", str(work / "out"), str(source)], work)
        (wheel,) = (work / "out").glob("*.whl")
        if not wheel.name.endswith("-none-any.whl"):
            raise InstallError(
                f"{pin} is published only as source, and builds for one platform only ({wheel.name}).",
                remedy="run `python -m lib wheels` on a machine like Kaggle's, with the same Python.",
            )
        wheel.replace(folder / wheel.name)
        return hashlib.sha256((folder / wheel.name).read_bytes()).hexdigest()
    finally:
        shutil.rmtree(work, ignore_errors=True)
