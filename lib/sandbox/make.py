"""Make a sandbox: everything that a run needs, on this machine, without accounts or a network.

Guarantees: the notebook uses a sandbox exactly as it uses GitHub and Google Drive. Making a sandbox again keeps its
branches and objects; the project's current state becomes the next commit on `main`. Cannot: use the datasets or the
DVC configuration of the project itself.

A sandbox is a folder with a bare Git repository (`origin.git`) that is seeded with the project's current files, a
folder that is the DVC remote (`dvc-remote`), and a dataset that is drawn by the project or given by the user, tracked
with DVC and pushed to that remote.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lib.errors import CommandError, SandboxError
from lib.experiment.schema import Experiment
from lib.process import run_command
from lib.remotes.dvc_config import edit_config
from lib.sandbox.dataset import CLASSES, draw_dataset
from lib.sandbox.sheet import draw_contact_sheet

REMOTE = "sandbox"


@dataclass(frozen=True)
class Sandbox:
    """A complete sandbox: the repository to clone, its DVC remote, the commit to train, the dataset's contact sheet."""

    origin: Path
    remote: Path
    commit: str
    sheet: Path


def make_sandbox(project: Path, folder: Path, experiment: Experiment, data: Path | None = None) -> Sandbox:
    """Make the sandbox in `folder`, or update an existing one, and return it.

    `data` is the folder of a dataset in YOLO format, with `data.yaml` at its top; it replaces the drawn dataset. Raises
    `SandboxError` or `DatasetError`.
    """
    folder = folder.resolve()
    origin, remote, seed = folder / "origin.git", folder / "dvc-remote", folder / "seed"
    if data is not None and not (data / "data.yaml").is_file():
        raise SandboxError(
            f"--data is {data}: there is no data.yaml in it.",
            remedy="name the folder of a dataset in YOLO format, with data.yaml at its top.",
        )
    if data is None and experiment.module not in CLASSES:
        raise SandboxError(
            f"there is no drawn dataset for {experiment.module}, only for {' and '.join(CLASSES)}.",
            remedy="give a dataset in YOLO format with --data DIR.",
        )
    try:
        remote.mkdir(parents=True, exist_ok=True)
        if not (origin / "HEAD").is_file():
            run_command(["git", "init", "--quiet", "--bare", "--initial-branch=main", origin])
            for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
                run_command(["git", "--git-dir=.", "config", key, "true"], cwd=origin)
        if not (seed / ".git").is_dir():
            shutil.rmtree(seed, ignore_errors=True)
            # of the user's settings, these would leave out files, run programs, or rename the remote
            own = [word for key in ("core.excludesFile", "core.hooksPath") for word in ("-c", f"{key}={os.devnull}")]
            run_command(["git", "clone", "--quiet", "--origin", "origin", *own, origin, seed])
        _copy_project(project, seed)
        _configure_dvc(seed, remote)
        _put_dataset(seed, experiment, data)
        commit = _commit(seed)
    except CommandError as error:
        raise SandboxError(
            f"the sandbox in {folder} could not be made: {error}",
            remedy=f"remove {folder} if it is damaged (branches published there go with it) and run again.",
        ) from error
    sheet = folder / f"dataset-{experiment.module}.png"
    draw_contact_sheet(seed / experiment.dataset, sheet)
    return Sandbox(origin, remote, commit, sheet)


def _copy_project(project: Path, seed: Path) -> None:
    """Copy the project's current files that Git tracks or does not ignore to the seed; delete files it lacks."""
    listed = run_command(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=project
    ).output.split("\0")  # fmt: skip
    # a `.dvc` file of a dataset on another remote would make every `dvc pull` here fail
    wanted = {name for name in listed if name and not name.endswith(".dvc") and (project / name).is_file()}
    tracked = run_command(["git", "ls-files", "-z"], cwd=seed).output.split("\0")
    for name in tracked:
        if name and name not in wanted and not name.endswith((".dvc", ".gitignore")):
            (seed / name).unlink(missing_ok=True)
    for name in wanted:
        target = seed / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, target)


def _configure_dvc(seed: Path, remote: Path) -> None:
    """Write a `.dvc/config` whose only remote is the sandbox's folder; the project's own remotes are left out."""
    (seed / ".dvc").mkdir(exist_ok=True)
    (seed / ".dvc" / "config").unlink(missing_ok=True)
    with edit_config(seed / ".dvc", "repo") as config:
        config |= {"core": {"remote": REMOTE, "analytics": False}, "remote": {REMOTE: {"url": str(remote)}}}
    (seed / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")


def _put_dataset(seed: Path, experiment: Experiment, data: Path | None) -> None:
    """Track the experiment's dataset with DVC and push it.

    An existing drawn dataset of the same seed is kept; a dataset of the user is copied again each time.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    target = seed / experiment.dataset
    source = f"drawn with seed {experiment.seed}" if data is None else f"copied from {data.resolve()}"
    note = seed / ".git" / f"dataset-{experiment.module}"
    if not (target.is_dir() and note.is_file() and note.read_text(encoding="utf-8") == source and data is None):
        note.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        if data is None:
            draw_dataset(target, experiment.module, seed=experiment.seed)
        else:
            try:
                shutil.copytree(data, target)
            except OSError as error:  # also `shutil.Error`, a list of them
                first = error.args[0][0] if isinstance(error, shutil.Error) else (data, target, error)
                raise SandboxError(
                    f"--data is {data}: {first[0]} cannot be copied: {first[2]}",
                    remedy="mend that file, or take it out of the folder.",
                ) from error
        note.write_text(source, encoding="utf-8")
    try:
        with Repo(str(seed)) as repo:
            repo.scm_context.quiet = True  # hides the hint to run `git add`, which `_commit` does
            repo.add([str(target)])
            repo.push(targets=[f"{target}.dvc"])
    except (DvcException, OSError) as error:
        raise SandboxError(
            f"the sandbox's dataset could not be tracked with DVC: {error}",
            remedy=f"remove {seed.parent} and run again.",
        ) from error


def _commit(seed: Path) -> str:
    own = ["git", "-c", "user.name=Sandbox", "-c", "user.email=sandbox@localhost", "-c", "commit.gpgsign=false"]
    run_command(["git", "add", "--all"], cwd=seed)
    if run_command(["git", "status", "--porcelain"], cwd=seed).output.strip():
        run_command([*own, "commit", "--quiet", "--no-verify", "-m", "The current state of the project"], cwd=seed)
    run_command(["git", "push", "--quiet", "--no-verify", "origin", "HEAD:refs/heads/main"], cwd=seed)
    return run_command(["git", "rev-parse", "HEAD"], cwd=seed).output.strip()
