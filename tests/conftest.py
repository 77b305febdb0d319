"""What the tests share: both remotes of a run in one folder, clones of them, and an environment of their own.

`stores` is a bare Git repository, a folder as DVC remote, and a clone with a trained run in it. Nothing reads the
user's Git configuration, accounts or caches, and nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT, *sorted(path for path in Path(__file__).parent.glob("[!_.]*") if path.is_dir()), Path(__file__).parent)
"""The folders whose modules a test may import: the project, and what the tests share."""
SEARCHED = os.pathsep.join(map(str, FOLDERS))
"""The same for a process that a test starts, as PYTHONPATH."""
sys.path[:0] = [str(folder) for folder in FOLDERS if str(folder) not in sys.path]

# what a test starts reads torch's bytecode, which a machine without any would else compile for every process anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

tqdm.monitor_interval = 0  # its thread would not survive the forks of test_sync_faults.py

RUN = "artifacts/detection/exp001"
WEIGHTS = (f"{RUN}/train/weights/best.pt", f"{RUN}/train/weights/last.pt")
SMALL_FILES = (f"{RUN}/train/args.yaml", f"{RUN}/train/results.png", f"{RUN}/test/metrics.json")
"""`results.png` is named by the clone's `.gitignore`."""


def run_git(*words: str | Path, cwd: Path) -> str:
    """Give what a git command printed; it must succeed."""
    command = ["git", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_with(variable: bytes) -> list[int]:
    """Return the numbers of the processes whose environment holds `NAME=value`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def copy_project(target: Path) -> None:
    """Copy what Git tracks or does not ignore of this project, as it stands, into a checkout of its own."""
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
    """A Git remote, a DVC remote, and a clone of both that holds a run which is not published yet."""

    folder: Path
    origin: Path
    storage: Path
    clone: Path

    def clone_again(self, name: str = "other", *, branch: str = "main") -> Path:
        """Give one more clone, as another machine would have it."""
        path = self.folder / name
        run_git("clone", "--quiet", "--branch", branch, self.origin, path, cwd=self.folder)
        return path

    def refs(self) -> dict[str, str]:
        """Give every ref of the Git remote but the main branch, and the commit it stands at."""
        lines = run_git("for-each-ref", "--format=%(refname) %(objectname)", cwd=self.origin).splitlines()
        found = dict(line.split() for line in lines)
        found.pop("refs/heads/main", None)
        return found

    def root(self) -> str:
        """Give the first commit of the repository, which names it."""
        return run_git("rev-list", "--max-parents=0", "main", cwd=self.origin)

    def intents(self) -> list[str]:
        """Give the refs of publications that are not finished."""
        return [ref for ref in self.refs() if ref.startswith("refs/intents/")]

    def objects(self) -> dict[str, bytes]:
        """Give every file of the DVC remote, temporary ones too, and its bytes; but for the mark of its owner."""
        if not self.storage.is_dir():
            return {}
        owner = self.storage / f"kaggle-training-owner-{self.root()}"
        files = (path for path in self.storage.rglob("*") if path.is_file() and path != owner)
        return {path.relative_to(self.storage).as_posix(): path.read_bytes() for path in files}

    def object_path(self, md5: str) -> Path:
        """Give the path under which DVC keeps an object."""
        return self.storage / "files" / "md5" / md5[:2] / md5[2:]

    def write_hook(self, name: str, script: str) -> None:
        """Let the Git remote run a shell script; `pre-receive` may refuse a push by failing."""
        hook = self.origin / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        hook.chmod(0o755)

    def remove_hook(self, name: str) -> None:
        """Let the Git remote take every push again."""
        (self.origin / "hooks" / name).unlink()


def write_run(clone: Path, *, seed: int = 0) -> None:
    """Write what a training leaves: two weights files and small ones; the same seed gives the same bytes."""
    chance = random.Random(seed)
    for name in WEIGHTS:
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(5000))
    for name in SMALL_FILES:
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name} {seed}\n".encode())


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """Both remotes, and a clone with a run that is not published yet."""
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


def write_tiny_model(path: Path, *, seed: int = 0) -> Path:
    """Write weights of a model of four corners that nobody has trained, and that is half sure of everything."""
    import torch
    from ultralytics.nn.tasks import PoseModel

    torch.manual_seed(seed)
    model: Any = PoseModel("yolo11n-pose.yaml", nc=1, data_kpt_shape=(4, 3), verbose=False)
    model.names, model.args = {0: "container_id"}, {"task": "pose"}
    for scores in model.model[-1].cv3:
        torch.nn.init.zeros_(scores[-1].bias)
    torch.save({"model": model, "train_args": model.args}, path)
    return path


SWEEPS = pytest.StashKey[Counter[str]]()
"""What the fault sweeps of this process have tried and found; see `fault_sweeps.py`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer what the fault sweeps leave out."""
    parser.addoption("--full", action="store_true", help="fault sweeps: break every call, and not every third")
    parser.addoption("--retry-all", action="store_true", help="fault sweeps: retry in equal worlds again, too")


def pytest_configure(config: pytest.Config) -> None:
    """Count from 0."""
    config.stash[SWEEPS] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a process of pytest-xdist has counted to the one that prints."""
    counts, output = session.config.stash[SWEEPS], getattr(session.config, "workeroutput", None)
    if output is not None:
        output["sweeps"] = dict(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what it has counted; one that died has not."""
    node.config.stash[SWEEPS].update(getattr(node, "workeroutput", {}).get("sweeps", {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the sum as the last line of all."""
    if config.stash[SWEEPS] and not hasattr(config, "workeroutput"):
        from fault_sweeps import Sweeps

        config.get_terminal_writer().line(Sweeps.of(config).line())


@pytest.fixture(scope="session", autouse=True)
def _no_traces_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's configuration and accounts out of every test, and every test out of the user's caches."""
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
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        yield
