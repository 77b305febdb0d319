"""Step 2: install exactly the packages of `uv.lock`, over the host's own torch and CUDA; standard library only.

Guarantees: torch, torchvision, numpy and the packages that only they need (CUDA, Triton) stay the host's. Every other
locked package is installed, with its hash checked, into a separate folder that comes first on the path. The host's
packages are never written to. The hardware packages are compared before and after the installation: every file's path,
size and modification time, and the hashes in each package's RECORD. The folder appears only when it is complete, by a
rename, and is reused while lock, Python and platform are the same.

Cannot: replace a package that the running kernel has already imported from the host. This process keeps the host's
version, and the report lists it if the lock has another version; worker processes get the lock's version.

Training's workers find the folder through PYTHONPATH. Without a network the packages come from a folder of wheels
(`wheels.py`). If every locked package is already installed, nothing is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lib.errors import CommandError, InstallError  # standard library only, too
from lib.process import CommandFailed, CommandTimedOut, run_command
from lib.progress import showing
from lib.remotes.credentials import Credentials

HARDWARE = ("torch", "torchvision", "numpy")
HANGS_ON_THEM = ("nvidia-", "triton", "cuda-")
TIMEOUT = 900  # seconds
INPUTS = Path("/kaggle/input")
WHEELS = "kaggle-training-wheels.json"
"""Marks a folder of wheels and records its lock and its Python version."""
STAMP = "kaggle-training.json"
UNCHANGED = "the host's own packages are unchanged."
CAUSES: Iterable[tuple[str, str]] = (
    ("No space left", "free some space and run again."),
    ("Permission denied|Read-only file system", "name a folder that can be written with -p working DIR and run again."),
    (
        "unexpected argument|unrecognized subcommand|Required uv version|unsupported schema version",
        "this uv is too old for uv.lock: `pip install --upgrade uv` (or `uv self update`), and run again.",
    ),
    (
        "No module named '?pip|externally-managed-environment",
        "uv is missing, and this Python has no pip that can install it: install uv, and run again.",
    ),
    (
        "[Hh]ash mismatch|DO NOT MATCH THE HASHES",
        "a package is not the one in uv.lock: make the wheels anew (`python -m lib wheels`), or correct the mirror.",
    ),
    ("parse `uv.lock`|lockfile .* needs to be updated", "run `uv lock` in the project, commit uv.lock, render again."),
    (
        "network was disabled|error sending request|from versions: none|took longer|[Cc]onnection|[Tt]imed out",
        "turn internet on in the Kaggle settings, or attach the dataset that `python -m lib wheels` makes; run again.",
    ),
    (
        "no version of|[Nn]o matching distribution|was not found in the|with a matching|No solution found",
        "use a registry that has the package, or attach the wheels that `python -m lib wheels` makes for this uv.lock.",
    ),
)
"""What an installer's message means, as a pattern and the remedy; the first that matches counts."""
OTHERWISE = "correct what the message names, or attach the dataset that `python -m lib wheels` makes; run again."


def install(root: Path, overlay: Path, *, inputs: Path = INPUTS) -> str:
    """Make the packages of `uv.lock` in `root` importable and return a report of what was done.

    `overlay` is the folder to install into if a package is missing; `inputs` is searched for a folder of wheels. Raises
    `InstallError`, also if one of the host's hardware packages has changed afterwards.
    """
    _check_python(root)
    stamp = json.dumps({"lock": lock_hash(root), "python": sys.version, "platform": sys.platform})
    if (overlay / STAMP).is_file() and (overlay / STAMP).read_text(encoding="utf-8") == stamp:
        _activate(overlay)
        return f"Everything in uv.lock was installed in this session already, over torch {_version('torch')}."
    wheels = find_wheels(root, inputs)
    requirements = (wheels / "requirements.txt").read_text(encoding="utf-8") if wheels else export(root)
    wanted = _wanted(requirements)
    if all(_version(name) == version for name, version in wanted.items()):
        return f"Everything in uv.lock is installed; torch {_version('torch')} is used as it is."
    if _version("torch") is None:
        raise InstallError(
            "this machine has no torch to install over.",
            state="nothing was installed.",
            remedy="run `uv sync` in the project, or use Kaggle's image.",
        )
    before = _hardware()
    with showing(f"Installing {len(wanted)} packages"):
        _fill(overlay, requirements, wheels, stamp)
    if _hardware() != before:
        raise InstallError(
            "the host's own torch, or what belongs to it, changed while packages were installed.",
            state="it is not known what is installed there now.",
            remedy="restart the session and run the notebook again.",
        )
    kept = _kept_by_the_kernel(wanted)
    _activate(overlay)
    source = f"the wheels in {wheels}" if wheels else "the registry"
    report = f"{len(wanted)} packages from uv.lock installed from {source}; the host's torch {_version('torch')} and "
    report += f"the {len(before) - 1} packages that belong to it are unchanged, byte for byte."
    return report + (f"\nAlready imported by the kernel, and kept in it: {', '.join(kept)}." if kept else "")


def _check_python(root: Path) -> None:
    text = (root / "uv.lock").read_text(encoding="utf-8")
    found = re.search(r'^requires-python = ">=(\d+)\.(\d+), <(\d+)\.(\d+)"', text, re.MULTILINE)
    low, high = [(int(found[i]), int(found[i + 1])) for i in (1, 3)] if found else [(0, 0), (99, 0)]
    if not low <= sys.version_info[:2] < high:
        raise InstallError(
            f"this is Python {sys.version.split()[0]}, and uv.lock covers {low[0]}.{low[1]} up to below "
            f"{high[0]}.{high[1]}.",
            state="nothing was installed.",
            remedy="choose an environment with such a Python (Kaggle: Session options → Environment), or widen "
            "requires-python in pyproject.toml and run `uv lock`.",
        )


def lock_hash(root: Path) -> str:
    """Return the SHA-256 hash of `uv.lock`."""
    return hashlib.sha256((root / "uv.lock").read_bytes()).hexdigest()


def _fill(overlay: Path, requirements: str, wheels: Path | None, stamp: str) -> None:
    """Install into a temporary folder and rename it to `overlay`, so that a partial installation is never used."""
    part, file = overlay.with_name(f"{overlay.name}.part"), overlay.with_name("requirements.txt")
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    try:
        for old in (part, overlay):  # left by another lock, or by a session that was killed here
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)
        file.write_text(requirements, encoding="utf-8")
        command = [
            *find_uv(source), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(part),
            "--no-deps", "--require-hashes", *source, "-r", str(file),
        ]  # fmt: skip
        run_installer(command, part)
        (part / STAMP).write_text(stamp, encoding="utf-8")
        part.rename(overlay)
    except OSError as error:
        raise InstallError(
            f"{overlay} could not be filled: {error.strerror or error}.",
            state=UNCHANGED,
            remedy="free some space there and run the notebook again.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _activate(overlay: Path) -> None:
    """Put the folder before the host's packages on the import path of this process and its children."""
    if str(overlay) not in sys.path:
        sys.path.insert(0, str(overlay))
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(overlay))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(overlay), *others])
    importlib.invalidate_caches()


def _packages() -> Iterator[tuple[str, importlib.metadata.Distribution]]:
    """Yield name and description of every package on the path; one whose metadata cannot be read is passed over."""
    for package in importlib.metadata.distributions():
        try:
            name, version = package.metadata["Name"], package.version
        except Exception:  # noqa: BLE001, S112  which one depends on the damage and on Python's version
            continue
        if name and version:
            yield _plain(name), package


def _hardware() -> dict[str, str]:
    """Return a fingerprint, by name, of each host package that must not change."""
    found = {}
    for name, package in _packages():
        if name in HARDWARE or name.startswith(HANGS_ON_THEM):
            digest = hashlib.sha256((package.read_text("RECORD") or "").encode())
            for file in package.files or ():
                with contextlib.suppress(OSError):  # a file of the list may be missing
                    status = Path(str(file.locate())).stat()
                    if file.suffix != ".pyc":  # importing a module writes these files
                        digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
            found[name] = digest.hexdigest()
    return found


def _kept_by_the_kernel(wanted: Mapping[str, str]) -> list[str]:
    """Return the packages that this process has imported in another version than the locked one."""
    modules = {module.partition(".")[0] for module in sys.modules}
    kept = {
        f"{name} {package.version} (locked: {wanted[name]})"
        for name, package in _packages()
        if name in wanted and package.version != wanted[name] and modules & _modules_of(package)
    }
    return sorted(kept)


def _modules_of(package: importlib.metadata.Distribution) -> set[str]:
    """Return the names by which a package's modules are imported."""
    declared = (package.read_text("top_level.txt") or "").split()
    return set(declared) or {file.parts[0].removesuffix(".py") for file in package.files or () if file.suffix == ".py"}


# ── requirements ───────────────────────────────────────────────────────────────────────────────────────────────────


def export(root: Path) -> str:
    """Return the locked requirements with hashes, without torch, torchvision, what only they need, and numpy."""
    command = [*find_uv(), "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--no-header"]
    command += ["--no-annotate", "--prune", "torch", "--prune", "torchvision", "--no-emit-package", "numpy"]
    return run_installer(command, root)


def parse(requirements: str) -> list[tuple[str, str, str, list[str]]]:
    """Return name, version, marker (empty if there is none) and hashes of every requirement."""
    pattern = r"^([\w.-]+)==([^\s;\\]+) *(?:; *([^\\\n]+?))? *\\?$((?:\n +--hash=.*)*)"
    found = re.findall(pattern, requirements, re.MULTILINE)
    return [(name, version, marker, re.findall(r"--hash=(\S+)", hashes)) for name, version, marker, hashes in found]


def _wanted(requirements: str) -> dict[str, str]:
    """Return {name: version} of the requirements that apply to this machine."""
    try:
        from packaging.markers import Marker
    except ImportError:  # a bare Python without `packaging`: assume that every requirement applies
        return {name: version for name, version, *_ in parse(requirements)}
    found = parse(requirements)
    return {name: version for name, version, marker, _ in found if not marker or Marker(marker).evaluate()}


def _version(name: str) -> str | None:
    with contextlib.suppress(Exception):  # the package is missing, or its metadata cannot be read
        return importlib.metadata.version(name) or None
    return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ── sources: wheels and uv ─────────────────────────────────────────────────────────────────────────────────────────


def find_wheels(root: Path, inputs: Path) -> Path | None:
    """Return the attached folder of wheels that was made for this lock and this Python; None if there is none."""
    wanted = {"lock": lock_hash(root), "python": ".".join(map(str, sys.version_info[:2]))}
    for marker in sorted((*inputs.glob(f"*/{WHEELS}"), *inputs.glob(f"datasets/*/*/{WHEELS}"))):
        try:
            made_for = json.loads(marker.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if {key: made_for.get(key) for key in wanted} == wanted:
            return marker.parent
        print(f"{marker.parent} is not used: its wheels are for another uv.lock or Python ({made_for.get('python')}).")
    return None


def find_uv(source: Sequence[str] = ()) -> list[str]:
    """Return the command that runs uv; if it is missing, install it into this Python first, with the options `source`.

    Kaggle's image has it.
    """
    found = shutil.which("uv")
    if found:
        return [found]
    if _version("uv") is None:
        run_installer([sys.executable, "-m", "pip", "install", "--quiet", *source, "uv"], Path.cwd())
    return [sys.executable, "-m", "uv"]


def run_installer(command: list[str], cwd: Path) -> str:
    """Run uv or pip and return its standard output. Raises `InstallError`."""
    shown = f"`{' '.join(Path(word).name for word in command[:3])} …`"
    try:
        return run_command(command, cwd=cwd, timeout=TIMEOUT, redact=Credentials().redact).output
    except CommandTimedOut:
        what = f"{shown} took longer than {TIMEOUT} s."
    except CommandFailed as failed:
        if "Failed to initialize cache" in failed.answer.errors and "--no-cache" not in command:
            return run_installer([*command, "--no-cache"], cwd)  # of a home that cannot be written to
        what = f"{shown} failed with status {failed.answer.status}:\n{failed.answer.errors.strip()[-3000:]}"
    except CommandError as error:
        raise InstallError(error.what, state=UNCHANGED, remedy=error.remedy) from None
    remedy = next((remedy for pattern, remedy in CAUSES if re.search(pattern, what)), OTHERWISE)
    raise InstallError(what, state=UNCHANGED, remedy=remedy)
