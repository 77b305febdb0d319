"""The rendered notebook on a machine like Kaggle's, with its folders and mounts, and another torch than the lock's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, run_git

from lib.sandbox.dataset import draw_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "--map-root-user", "true"], capture_output=True).returncode != 0,
        reason="this machine has no mount namespaces",
    ),
]

CANARY = "fedcba9876543210_yranac_phg"[::-1]  # reversed: this file itself is in the clone
SECRETS = Path("input/datasets/somebody/kaggle-training-secrets/secrets.json")
ENTER = """
set -e
root=$1 kaggle=$2; shift 2
mount -t tmpfs none "$root"
for path in /*; do
  if [ -L "$path" ]; then cp -P "$path" "$root$path"
  elif [ -d "$path" ]; then mkdir "$root$path"; mount --rbind "$path" "$root$path"
  fi
done
mkdir -p "$root/kaggle"
mount --bind "$kaggle" "$root/kaggle"
exec chroot "$root" "$@"
"""
"""Run a command on this file system with our folder as `/kaggle`, which no other process sees."""


@dataclass(frozen=True)
class Session:
    """The result of a session on that machine."""

    kaggle: Path
    origin: Path
    host: Path
    before: dict[str, str]
    output: str
    status: int

    @property
    def log(self) -> str:
        """The output of the run."""
        return (self.kaggle / "working/run.log").read_text()


def state(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a folder, except Python's bytecode."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def install(python: Path, *packages: str) -> None:
    """Install packages into the host, as Kaggle does in its image."""
    uv = shutil.which("uv")
    assert uv
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True, timeout=600)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Run the rendered notebook of detection for one epoch, in a kernel of the host's Python."""
    folder = tmp_path_factory.mktemp("session")
    host, kaggle = folder / "host", folder / "kaggle"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(host)], check=True)
    python = host / "bin/python"
    install(python, "torch==2.13.0", "numpy<2.4", "ipykernel", "setuptools")
    install(python, "--no-deps", "torchvision==0.28.0")
    kernel = folder / "jupyter/kernels/host"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "host", "language": "python"}))

    for name in ("working", "tmp", SECRETS.parent):
        (kaggle / name).mkdir(parents=True)
    (kaggle / SECRETS).write_text(json.dumps({"GITHUB_TOKEN": CANARY}))
    draw_dataset(folder / "data", "detection", counts={"train": 16, "val": 8, "test": 8})
    made = ["--folder", str(folder / "sandbox"), "--data", str(folder / "data"), "--json"]
    command = [sys.executable, "-m", "lib", "sandbox", "detection", *made]
    sandbox = json.loads(
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    seed = folder / "sandbox/seed"
    rendered = subprocess.run(
        [sys.executable, "render.py", "detection", "--experiment", "experiments/000_det_sandbox.yaml",
         "--output", str(folder / "rendered"), "--accelerator", "none", "-p", "repository", sandbox["repository"],
         "-p", "commit", sandbox["commit"], "-p", "epochs", "1"],
        cwd=seed, capture_output=True, text=True,
    )  # fmt: skip
    assert rendered.returncode == 0, rendered.stderr
    (notebook,) = (folder / "rendered").glob("*.ipynb")
    before = state(host)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"JUPYTER_PATH": str(folder / "jupyter"), "PYTHONDONTWRITEBYTECODE": "1", "WANDB_MODE": "offline"}
    root = folder / "root"
    root.mkdir()
    run = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(kaggle / "out.ipynb"),
        "-k",
        "host",
        "--cwd",
        "/kaggle/working",
    ]
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", ENTER, "sh", str(root), str(kaggle), *run],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    return Session(kaggle, Path(sandbox["repository"]), host, before, done.stdout + done.stderr, done.returncode)


def test_a_run_on_that_machine_is_published(session: Session) -> None:
    """The run creates one branch and ends with the summary."""
    assert session.status == 0, session.output[-5000:]
    heads = run_git("for-each-ref", "--format=%(refname)", "refs/heads/kaggle-train-*", cwd=session.origin).splitlines()
    assert len(heads) == 1
    assert "is trained and published" in session.log


def test_the_hosts_packages_are_unchanged(session: Session) -> None:
    """The run uses the host's torch and the lock's ultralytics, and the host's files are the same byte for byte."""
    assert ", torch 2.13.0" in session.log.partition("9/10: ")[2]  # printed by the training's subprocess
    assert state(session.host) == session.before


def test_the_runs_output_has_no_credential_cache_or_dataset(session: Session) -> None:
    """Files in /kaggle/working may become public."""
    working = session.kaggle / "working"
    files = [path for path in working.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    names = {path.relative_to(working).as_posix() for path in files}
    assert not [name for name in names if "/.dvc/cache/" in name or name.endswith(".cache")]
    assert {name for name in names if name.startswith("origin/data/")} == {
        "origin/data/detection.dvc",
        "origin/data/.gitignore",
    }
    assert not [name for name in names if "credentials" in name and not name.endswith(".py")]
    weights = [name for name in names if name.endswith(".pt")]
    assert {Path(name).name for name in weights} == {"best.pt", "last.pt"}


def test_the_attached_secrets_stay_out_of_the_notebook(session: Session) -> None:
    """The token is in neither the notebook nor its output."""
    assert CANARY not in (session.kaggle / "out.ipynb").read_text()
    assert CANARY not in session.output
