"""Tests of the sandbox: it is made once, kept, and holds only what a run needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_git

from lib.cli.options import find_project
from lib.errors import SandboxError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.sandbox.make import Sandbox, make_sandbox

DETECTION = load_experiment(ROOT / "experiments/000_det_sandbox.yaml")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a project with a few files, one ignored, one not committed, and its own DVC remote."""
    folder = tmp_path / "project"
    run_git("init", "--quiet", "--initial-branch=main", folder, cwd=tmp_path)
    files = {"render.py": "", "uv.lock": "", "lib/a.py": "A = 1\n", ".gitignore": "/build/\n", "build/out": "x"}
    files |= {"data/other.dvc": "outs: []\n", ".dvc/config": "[core]\n    remote = drive\n"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    run_git("add", "--all", cwd=folder)
    run_git("commit", "--quiet", "--message=project", cwd=folder)
    (folder / "new.py").write_text("not committed yet\n")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Make a dataset of three images, as a user's own."""
    from lib.sandbox.dataset import draw_dataset

    draw_dataset(tmp_path / "tiny", "detection", counts={"train": 1, "val": 1, "test": 1}, size=64)
    return tmp_path / "tiny"


def make(project: Path, data: Path, experiment: Experiment = DETECTION) -> Sandbox:
    """Make the sandbox next to the project's folder."""
    return make_sandbox(project, project.parent / "sandbox", experiment, data)


def tree(sandbox: Sandbox) -> list[str]:
    """Return the files of the sandbox's newest commit."""
    return run_git("ls-tree", "-r", "--name-only", "main", cwd=sandbox.origin).splitlines()


@pytest.mark.parametrize("name", ["runs, 2026", "a # b", 'the "best"'])
def test_its_folder_may_have_any_name(project: Path, tiny: Path, tmp_path: Path, name: str) -> None:
    """DVC's configuration has characters of its own."""
    sandbox = make_sandbox(project, tmp_path / name, DETECTION, tiny)
    assert sandbox.remote == tmp_path / name / "dvc-remote"
    assert any(sandbox.remote.rglob("*.dir"))


def test_it_holds_the_current_state_of_the_project(project: Path, tiny: Path) -> None:
    """Uncommitted files are included, ignored files are not, and only its own DVC remote is configured."""
    sandbox = make(project, tiny)
    assert tree(sandbox) == [
        ".dvc/.gitignore", ".dvc/config", ".gitignore", "data/.gitignore", "data/detection.dvc",
        "lib/a.py", "new.py", "render.py", "uv.lock",
    ]  # fmt: skip
    assert str(sandbox.remote) in run_git("show", "main:.dvc/config", cwd=sandbox.origin)
    assert sandbox.commit == run_git("rev-parse", "main", cwd=sandbox.origin)


def test_the_users_own_git_settings_do_not_change_it(
    project: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may leave out files, rename the remote, refuse bare repositories or run programs."""
    ignored, settings = project.parent / "ignored", project.parent / "gitconfig"
    ignored.write_text("lib/\ndata/\n")
    settings.write_text(
        f"[core]\nexcludesFile = {ignored}\nhooksPath = /nowhere\n[clone]\ndefaultRemoteName = upstream\n"
        "[safe]\nbareRepository = explicit\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    sandbox = make(project, tiny)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    assert {"lib/a.py", "data/detection.dvc"} <= set(tree(sandbox))


def test_a_file_of_the_users_dataset_that_cannot_be_copied_is_named(project: Path, tiny: Path) -> None:
    """It need not be one of the images."""
    (tiny / "old.jpg").symlink_to("gone.jpg")
    with pytest.raises(SandboxError, match=r"old\.jpg cannot be copied"):
        make(project, tiny)


def test_dvc_pull_in_any_clone_downloads_the_dataset(project: Path, tiny: Path, tmp_path: Path) -> None:
    """Only the clone is needed."""
    sandbox = make(project, tiny)
    clone = tmp_path / "clone"
    run_git("clone", "--quiet", sandbox.origin, clone, cwd=tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, check=True)
    for path in tiny.rglob("*.*"):
        assert (clone / "data/detection" / path.relative_to(tiny)).read_bytes() == path.read_bytes()


def test_it_is_kept_when_it_is_made_again(project: Path, tiny: Path) -> None:
    """Without a change the commit stays the same; with a changed and a deleted file it gets one more; branches stay."""
    first = make(project, tiny)
    run_git("branch", "kaggle-train-x", "main", cwd=first.origin)
    assert make(project, tiny).commit == first.commit
    (project / "lib/a.py").write_text("A = 2\n")
    (project / "new.py").unlink()
    second = make(project, tiny)
    assert run_git("rev-parse", "main^", cwd=second.origin) == first.commit
    assert run_git("show", "main:lib/a.py", cwd=second.origin) == "A = 2"
    assert "new.py" not in tree(second)
    assert run_git("rev-parse", "kaggle-train-x", cwd=second.origin) == first.commit


def test_the_user_s_checkout_is_not_changed(project: Path, tiny: Path) -> None:
    """Status and branches stay the same."""
    before = run_git("status", "--porcelain", cwd=project), run_git("for-each-ref", cwd=project)
    make(project, tiny)
    assert (run_git("status", "--porcelain", cwd=project), run_git("for-each-ref", cwd=project)) == before


def test_the_sheet_shows_the_dataset(project: Path, tiny: Path) -> None:
    """The contact sheet is an image of the dataset."""
    from PIL import Image

    with Image.open(make(project, tiny).sheet) as sheet:
        assert sheet.width > 500


def test_a_folder_without_a_dataset_is_rejected(project: Path, tmp_path: Path) -> None:
    """Nothing is made."""
    with pytest.raises(SandboxError, match=r"no data\.yaml"):
        make(project, tmp_path)
    assert not (tmp_path / "sandbox").exists()


def test_outside_of_a_checkout_the_project_is_not_found(tmp_path: Path) -> None:
    """The error names the remedy."""
    with pytest.raises(SandboxError) as caught:
        find_project(tmp_path)
    assert "-p repository URL" in caught.value.remedy


def test_the_project_is_found_from_any_of_its_folders() -> None:
    """Jupyter starts the notebook in the notebook's folder."""
    assert find_project(ROOT / "notebooks") == ROOT
