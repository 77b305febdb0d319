"""Render a published run again, with the notebook, commit and experiment that its branch and `run.json` name.

Guarantees: the remote's URL is the only input from the local checkout; no existing part of the checkout is changed.
"""

from __future__ import annotations

from pathlib import Path

from lib.errors import RenderError
from lib.experiment.modules import find_module
from lib.kaggle.notebook import (
    SOURCES,
    Rendered,
    bake,
    kernel_metadata,
    parameters,
    public_url,
    read_notebook,
    write_rendered,
)
from lib.remotes.clone import find_git_remote
from lib.remotes.credentials import Credentials
from lib.results.published import read_published
from lib.results.record import RunRecord
from lib.sync import Refs

BAKED = ("module", "experiment", "repository", "commit", "accelerator")


def rerun(
    root: Path, branch: str, credentials: Credentials, folder: Path | None, user: str, dataset: str
) -> tuple[Rendered, RunRecord]:
    """Render the run that published `branch` into `folder`, ready for Kaggle; return it with the run's record.

    Without a `folder`, it is `build/BRANCH` of the checkout. Raises `BranchError` if the branch is missing or its
    record unreadable, `RenderError` if its notebook cannot be used, `GitPushError` if the Git remote does not answer.
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
    accelerator = record.machine.accelerator
    values = (about.name, record.experiment, public_url(url), record.commit, accelerator)
    kernel = kernel_metadata(about, accelerator, user, dataset)
    baked = bake(notebook, dict(zip(BAKED, values, strict=True)))
    return write_rendered(folder or root / "build" / record.branch, about, baked, kernel), record
