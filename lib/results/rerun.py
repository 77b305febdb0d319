"""Render a published run again, with the notebook, commit and experiment that its branch and `run.json` name.

Guarantees: the remote's URL is the only input from the local checkout; no existing part of the checkout is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

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
from lib.results.published import PublishedRun, read_published
from lib.sync import Refs

BAKED = ("module", "experiment", "repository", "commit", "accelerator")


class _Gpu(BaseModel):
    name: str


class _Machine(BaseModel):
    gpus: list[_Gpu]

    @property
    def accelerator(self) -> str:
        """Return the Kaggle accelerator to request for similar GPUs."""
        if not self.gpus:
            return "none"
        return "p100" if "P100" in self.gpus[0].name else "t4x2"


class RunRecord(BaseModel):
    """The part of `run.json` that is needed to repeat a run; other keys are ignored."""

    branch: str
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    experiment: dict[str, Any]
    machine: _Machine
    versions: dict[str, str]

    @property
    def resumed_from(self) -> str | None:
        """Return the checkpoint that the run resumed from, as its experiment names it; None if there was none."""
        checkpoint = self.experiment.get("model", {}).get("resume_from")
        return str(checkpoint) if checkpoint else None


def rerun(
    root: Path, branch: str, credentials: Credentials, folder: Path | None, user: str, dataset: str
) -> tuple[Rendered, RunRecord]:
    """Render the run that published `branch` into `folder`, ready for Kaggle; return it with the run's record.

    Without a `folder`, it is `build/BRANCH` of the checkout. Raises `BranchError` if the branch or its record is
    missing, `RenderError` if its record or notebook cannot be used, `GitPushError` if the Git remote does not answer.
    """
    url = find_git_remote(root, credentials)
    refs = Refs(root, credentials)
    run = read_published(refs, branch)
    record = _check_record(run)
    about = find_module(str(record.experiment.get("module")))
    sources = refs.read_files(run.ref, *SOURCES, commit=record.commit)
    notebook = read_notebook(sources) if SOURCES[0] in sources else None
    lacking = [name for name in BAKED if not notebook or name not in parameters(notebook)]
    if lacking:
        raise RenderError(
            f"{SOURCES[0]} of commit {record.commit[:12]} is missing or has no parameter {', '.join(lacking)}.",
            state="nothing was written.",
            remedy=f"check that commit out and render the experiment of {branch}'s run.json by hand.",
        )
    accelerator = record.machine.accelerator
    values = (about.name, record.experiment, public_url(url), record.commit, accelerator)
    kernel = kernel_metadata(about, accelerator, user, dataset)
    baked = bake(notebook, dict(zip(BAKED, values, strict=True)), accelerator)
    return write_rendered(folder or root / "build" / record.branch, about, baked, kernel), record


def _check_record(run: PublishedRun) -> RunRecord:
    try:
        return RunRecord.model_validate(run.record)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3]]
        raise RenderError(
            f"{run.branch} cannot be run again: {run.folder}/run.json: {'; '.join(problems)}.",
            state="nothing was written.",
            remedy="choose a branch that a run has published.",
        ) from None
