"""A whole run in a repository of a user: an old DVC remote, LFS, ignore rules, a chained and a relative remote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_git
from test_run import WEIGHTS, render

from lib.experiment.load import load_experiment
from lib.sandbox.dataset import draw_dataset
from lib.sandbox.make import make_sandbox

SMALL = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", module="detection")
CONFIG = """[core]
    remote = storage
    analytics = false
['remote "base"']
    url = ../../../../dvc-remote
['remote "storage"']
    url = remote://base/models
"""
"""The relative path is right from a clone that lies as deep in the sandbox as a run's."""
RULES = {
    ".dvc/config": CONFIG,
    ".gitignore": "weights/\nartifacts/\n*.pt*\n",
    ".dvcignore": "*.pt\n",
    ".gitattributes": "*.png filter=lfs diff=lfs merge=lfs -text\n",
}


def make_old(sandbox: Path) -> tuple[Path, Path, str]:
    """Make a sandbox whose repository is old; return its Git remote, a clone of a user, and the commit."""
    data = sandbox.parent / "data"
    draw_dataset(data, "detection", counts={"train": 2, "val": 1, "test": 1}, size=64)
    made = make_sandbox(ROOT, sandbox, SMALL, data)
    mine = sandbox / "clones/mine/origin"
    mine.parent.mkdir(parents=True)
    run_git("clone", "--quiet", made.origin, mine, cwd=sandbox)
    for name, text in RULES.items():
        file = mine / name
        before = file.read_text() if file.exists() and name != ".dvc/config" else ""
        file.write_text(before + text)
    pointer = mine / f"{SMALL.dataset}.dvc"
    pointer.write_text(pointer.read_text().replace("  hash: md5\n", ""))
    shutil.move(made.remote / "files/md5", made.remote / "models")
    shutil.rmtree(made.remote / "files")
    run_git("commit", "--quiet", "--all", "--message=old", cwd=mine)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=mine)
    return made.origin, mine, run_git("rev-parse", "HEAD", cwd=mine)


def lib(clone: Path, *words: str) -> str:
    """Run a command of this project in a clone; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lib", *words]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_in_an_old_repository_is_published_and_a_stranger_pulls_it(tmp_path: Path) -> None:
    """Preflight is green before, `check` after; the branch has images and `dvc pull` brings weights and dataset."""
    sandbox = tmp_path / "sandbox"
    origin, mine, commit = make_old(sandbox)
    table = lib(mine, "preflight", "experiments/000_det_sandbox.yaml")
    assert "ok       dataset" in table
    given = {"repository": origin, "commit": commit, "training.image_size": 64}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    run = render("detection", sandbox, *words, epochs=1)
    assert run.status == 0, run.output[-5000:]
    (ref,) = (ref for ref in run.refs() if "kaggle-train-" in ref)
    theirs = sandbox / "clones/theirs/origin"
    theirs.parent.mkdir(parents=True)
    run_git("clone", "--quiet", "--branch", ref.removeprefix("refs/heads/"), origin, theirs, cwd=sandbox)
    subprocess.run([sys.executable, "-m", "dvc", "pull"], cwd=theirs, check=True, capture_output=True)
    for name in WEIGHTS:
        assert (theirs / run.artifacts / name).stat().st_size > 100_000
    assert (theirs / SMALL.dataset / "data.yaml").is_file()
    assert (theirs / run.artifacts / "train/results.png").read_bytes().startswith(b"\x89PNG")
    assert "Nothing is wrong" in lib(theirs, "check")
