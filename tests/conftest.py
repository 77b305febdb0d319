"""Shared fixtures and helpers: both remotes of a run in one folder, clones of them, and an isolated environment.

`stores` is a bare Git repository, a folder as DVC remote, and a clone with a trained run in it. No test reads the
user's Git configuration, accounts or caches, and nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT, *sorted(path for path in Path(__file__).parent.glob("[!_.]*") if path.is_dir()), Path(__file__).parent)
"""The folders whose modules a test may import: the project, and those of the tests."""
SEARCHED = os.pathsep.join(map(str, FOLDERS))
"""These folders as the PYTHONPATH of a subprocess."""
sys.path[:0] = [str(folder) for folder in FOLDERS if str(folder) not in sys.path]

# subprocesses may write torch's bytecode: otherwise a machine without any compiles it in every process anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

tqdm.monitor_interval = 0  # its thread would not survive the forks of test_sync_faults.py

RUN = "artifacts/detection/exp001"
WEIGHTS = (f"{RUN}/train/weights/best.pt", f"{RUN}/train/weights/last.pt")
SMALL_FILES = (f"{RUN}/train/args.yaml", f"{RUN}/train/results.png", f"{RUN}/test/metrics.json")
"""The clone's `.gitignore` ignores `results.png`."""


def run_git(*arguments: str | Path, cwd: Path) -> str:
    """Run a git command that must succeed, and return its output."""
    command = ["git", *map(str, arguments)]
    completed = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    return completed.stdout.strip()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], object]) -> None:
    """Wait until another thread or process has made the condition true; a minute is far more than it takes."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def processes_with(variable: bytes) -> list[int]:
    """Return the PIDs of the processes whose environment contains `NAME=value`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def assert_no_secret(error: BaseException, secrets: tuple[str, ...], *folders: Path) -> None:
    """Check that neither the error, nor one that it was raised for, nor a file of the folders contains a credential."""
    shown = "".join(traceback.format_exception(error)).encode()
    for folder in folders:
        shown += b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret.encode() in shown]


def copy_project(target: Path) -> None:
    """Copy this project's work tree, except for ignored files, into the Git repository `target`, and commit it."""
    for name in run_git("ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    run_git("add", "--all", cwd=target)
    run_git("commit", "--quiet", "--message=project", cwd=target)


def parameters_of(notebook: Path) -> dict[str, object]:
    """Return the parameters of a notebook with their final values, by executing its parameter cells."""
    import nbformat

    values: dict[str, object] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if set(cell.metadata.get("tags", [])) & {"parameters", "injected-parameters"}:
            exec(cell.source, values)
    values.pop("__builtins__", None)
    return values


@dataclass(frozen=True)
class Stores:
    """A Git remote, a DVC remote, and a clone with a run that is not published yet."""

    folder: Path
    origin: Path
    storage: Path
    clone: Path

    def clone_again(self, name: str = "other", *, branch: str = "main") -> Path:
        """Return a new clone, like that of another machine."""
        path = self.folder / name
        run_git("clone", "--quiet", "--branch", branch, self.origin, path, cwd=self.folder)
        return path

    def refs(self) -> dict[str, str]:
        """Return the commit of every ref of the Git remote, except the main branch and the repository's identity."""
        lines = run_git("for-each-ref", "--format=%(refname) %(objectname)", cwd=self.origin).splitlines()
        found = dict(line.split() for line in lines)
        found.pop("refs/heads/main", None)
        return {ref: commit for ref, commit in found.items() if not ref.startswith("refs/kaggle/repository-")}

    def runs(self) -> list[str]:
        """Return the refs of runs under way."""
        return [ref for ref in self.refs() if ref.startswith("refs/runs/")]

    def objects(self) -> dict[str, bytes]:
        """Return the bytes of every file of the DVC remote, temporary ones too, except the marks that name it."""
        marks = ("kaggle-training-repository-", "kaggle-training-store")
        files = (path for path in self.storage.rglob("*") if path.is_file() and not path.name.startswith(marks))
        return {path.relative_to(self.storage).as_posix(): path.read_bytes() for path in files}

    def object_path(self, md5: str) -> Path:
        """Return the path of an object on the DVC remote."""
        return self.storage / "files" / "md5" / md5[:2] / md5[2:]

    def write_hook(self, name: str, script: str) -> None:
        """Write a hook of the Git remote as a shell script; a failing `pre-receive` refuses the push."""
        hook = self.origin / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        hook.chmod(0o755)

    def remove_hook(self, name: str) -> None:
        """Delete a hook of the Git remote."""
        (self.origin / "hooks" / name).unlink()


def write_run(clone: Path, *, seed: int = 0) -> None:
    """Write the files of a training: two weights files and small ones; the same seed writes the same bytes."""
    generator = random.Random(seed)
    for name in WEIGHTS:
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(5000))
    for name in SMALL_FILES:
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name} {seed}\n".encode())


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """Return both remotes, and a clone with a run that is not published yet."""
    return make_stores(tmp_path)


def make_stores(folder: Path) -> Stores:
    """Make both remotes in a folder, and a clone with a run that is not published yet."""
    stores = Stores(folder, folder / "origin.git", folder / "storage", folder / "clone")
    run_git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", stores.origin, cwd=folder)
    with (stores.origin / "config").open("a", encoding="utf-8") as config:
        config.write("[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n")
    stores.storage.mkdir()
    run_git("clone", "--quiet", stores.origin, stores.clone, cwd=folder)
    (stores.clone / ".dvc").mkdir()
    files = {
        ".dvc/config": f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {stores.storage}\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvcignore": "",
        ".gitignore": "*.png\n",
        "code.py": "print('train')\n",
    }
    for name, text in files.items():
        (stores.clone / name).write_text(text, encoding="utf-8")
    run_git("add", "--all", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=code", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    write_run(stores.clone)
    return stores


def write_tiny_model(path: Path, *, seed: int = 0, channels: int = 3) -> Path:
    """Write weights of an untrained model of four corners; the confidence of every prediction is about a half."""
    import torch
    from ultralytics.nn.tasks import PoseModel

    torch.manual_seed(seed)
    model: Any = PoseModel("yolo11n-pose.yaml", ch=channels, nc=1, data_kpt_shape=(4, 3), verbose=False)
    model.names, model.args = {0: "container_id"}, {"task": "pose"}
    for scores in model.model[-1].cv3:
        torch.nn.init.zeros_(scores[-1].bias)
    torch.save({"model": model, "train_args": model.args}, path)
    return path


SWEEPS = pytest.StashKey[Counter[str]]()
"""Counts of the fault sweeps of this process; see `fault_sweeps.py`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that make the fault sweeps exhaustive."""
    parser.addoption("--full", action="store_true", help="fault sweeps: break every call instead of every 16th")
    parser.addoption("--retry-all", action="store_true", help="fault sweeps: also repeat retries in equal worlds")


def pytest_configure(config: pytest.Config) -> None:
    """Start the counts at 0."""
    config.stash[SWEEPS] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of a pytest-xdist worker to the controller."""
    counts, output = session.config.stash[SWEEPS], getattr(session.config, "workeroutput", None)
    if output is not None:
        output["sweeps"] = dict(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a pytest-xdist worker; one that died has none."""
    node.config.stash[SWEEPS].update(getattr(node, "workeroutput", {}).get("sweeps", {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the total as the last line."""
    if config.stash[SWEEPS] and not hasattr(config, "workeroutput"):
        from fault_sweeps import Sweeps

        config.get_terminal_writer().line(Sweeps.of(config).line())


@pytest.fixture(scope="session", autouse=True)
def _no_traces_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolate the tests from the user's configuration, accounts and caches."""
    folder = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("GIT_", "DVC_", "WANDB_", "GDRIVE_", "KAGGLE_")) or name == "GITHUB_TOKEN":
                patch.delenv(name)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "A User")
            patch.setenv(f"GIT_{role}_EMAIL", "user@example.com")
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        patch.setenv("GIT_TERMINAL_PROMPT", "0")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "dvc"))
        patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(folder / "dvc-global"))
        patch.setenv("DVC_SYSTEM_CONFIG_DIR", str(folder / "dvc-system"))
        patch.setenv("KAGGLE_TRAINING_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        # its log goes for ever to the streams of its first import: in a test those are closed when the test ends
        import_module("dvc")
        yield
