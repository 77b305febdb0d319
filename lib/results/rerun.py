"""Render a published run again, with the notebook, commit and experiment that its branch and `run.json` name.

Guarantees: the remote's URL is the only input from the local checkout; no existing part of the checkout is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib.errors import RenderError
from lib.experiment.modules import find_module
from lib.experiment.schema import Experiment
from lib.kaggle.kernel import kernel_metadata, pushing_user, refuse_retired
from lib.kaggle.notebook import (
    SOURCES,
    Rendered,
    bake,
    configured_user,
    parameters,
    read_notebook,
    write_rendered,
)
from lib.remotes.addresses import public_url
from lib.remotes.clone import find_git_remote
from lib.remotes.credentials import Credentials
from lib.results.estimate import hours_to_push
from lib.results.published import read_published
from lib.results.record import RunRecord
from lib.sync import Refs

BAKED = ("module", "experiment", "repository", "commit", "accelerator")


@dataclass(frozen=True)
class Rerun:
    """A published run that is rendered again: its files, its record, the kernel's owner.

    `needed` is the number of GPU hours without which its session would leave nothing; 0: not known.
    """

    rendered: Rendered
    record: RunRecord
    user: str
    needed: float


def rerun(
    root: Path, branch: str, credentials: Credentials, folder: Path | None, user: str, dataset: str,
    *, accelerator: str = "", push: bool = False, resume: bool = False, anyway: bool = False,
) -> Rerun:  # fmt: skip
    """Render the run that published `branch` into `folder`.

    Without a `folder`, it is `build/BRANCH` of the checkout; without an `accelerator`, that of the run. Raises
    `BranchError` if the branch is missing or its record unreadable, `RenderError` if its notebook cannot be used, or
    with `push` if Kaggle cannot run it, `GitPushError` if the Git remote does not answer, and with `push`,
    `KaggleError` as `hours_to_push` does.
    """
    url = find_git_remote(root)
    refs = Refs(root, credentials)
    run = read_published(refs, branch)
    record = run.record
    about = find_module(str(record.experiment["module"]))
    sources = refs.read_files(run.ref, *SOURCES, commit=record.commit)
    notebook = read_notebook(sources) if SOURCES[0] in sources else None
    lacking = [name for name in BAKED if not notebook or name not in parameters(notebook)]
    if lacking:
        raise RenderError(
            f"{SOURCES[0]} of commit {record.commit[:12]} is missing or has no parameter {', '.join(lacking)}.",
            remedy=f"check that commit out and render the experiment of {branch}'s run.json by hand.",
        )
    accelerator = accelerator or record.machine.accelerator
    refuse_retired(accelerator, push=push)
    repository = public_url(url)
    user = pushing_user(user, repository) if push else user or configured_user()
    values = (about.name, record.experiment, repository, record.commit, accelerator)
    experiment = Experiment.model_construct(**record.experiment)  # an old one may not be valid any more
    needed = hours_to_push(root, credentials, experiment, accelerator, resume=resume, anyway=anyway) if push else 0.0
    kernel = kernel_metadata(about, experiment.key, accelerator, user, dataset)
    baked = bake(notebook, dict(zip(BAKED, values, strict=True)))
    return Rerun(write_rendered(folder or root / "build" / record.branch, about, baked, kernel), record, user, needed)
