"""A published run, rendered once more: its own notebook, commit and experiment, as its branch and `run.json` name them.

Guarantees: nothing comes from the checkout at hand but the remote's address; nothing of the checkout is touched.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from lib.credentials import Credentials
from lib.errors import RenderError
from lib.experiment import find_module
from lib.remotes import find_git_remote
from lib.rendering import Rendered, bake, kernel_metadata, parameters, public_url, read_notebook, write_rendered
from lib.sync import Refs

BAKED = ("module", "experiment", "repository", "commit", "accelerator")


class _Gpu(BaseModel):
    name: str


class _Machine(BaseModel):
    gpus: list[_Gpu]

    @property
    def accelerator(self) -> str:
        """What Kaggle is asked for to get the like."""
        if not self.gpus:
            return "none"
        return "p100" if "P100" in self.gpus[0].name else "t4x2"


class RunRecord(BaseModel):
    """What `run.json` says of how a run was made; the rest of the file is passed by."""

    branch: str
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    experiment: dict[str, Any]
    machine: _Machine
    versions: dict[str, str]

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that the run went on from, as its experiment names it."""
        checkpoint = self.experiment.get("model", {}).get("resume_from")
        return str(checkpoint) if checkpoint else None


def rerun(
    root: Path, branch: str, credentials: Credentials, folder: Path | None, user: str, dataset: str
) -> tuple[Rendered, RunRecord]:
    """Render the run that published `branch` into `folder` (None: `build/BRANCH` of the checkout), ready for Kaggle.

    Raises `RenderError` where the branch, its record or its notebook is missing or cannot be used, `GitPushError` where
    the Git remote does not answer.
    """
    url = find_git_remote(root, credentials)
    refs = Refs(root, credentials)
    ref = _find_branch(refs, branch.removeprefix("origin/"))
    record = _read_record(refs, ref)
    about = find_module(str(record.experiment.get("module")))
    source = refs.read_files(ref, "notebooks/train.py", commit=record.commit).get("notebooks/train.py", "")
    notebook = read_notebook(source)
    lacking = [name for name in BAKED if not source or name not in parameters(notebook)]
    if lacking:
        raise RenderError(
            f"notebooks/train.py of commit {record.commit[:12]} is missing or has no parameter {', '.join(lacking)}.",
            state="nothing was written.",
            remedy=f"check that commit out and render the experiment of {branch}'s run.json by hand.",
        )
    accelerator = record.machine.accelerator
    values = (about.name, record.experiment, public_url(url), record.commit, accelerator)
    kernel = kernel_metadata(about, accelerator, user, dataset)
    baked = bake(notebook, dict(zip(BAKED, values, strict=True)), accelerator)
    return write_rendered(folder or root / "build" / record.branch, about, baked, kernel), record


def _find_branch(refs: Refs, branch: str) -> str:
    ref = f"refs/heads/{branch}"
    names = [found.removeprefix("refs/heads/") for found in refs.list_refs("refs/heads/kaggle-train-*")]
    if branch in names:
        return ref
    meant = difflib.get_close_matches(branch, names, n=3)
    newest = sorted(names, key=lambda name: name[-len("YYYYMMDD-HHMMSS") :])[-3:]
    raise RenderError(
        f"{refs.url} has no branch {branch!r} of a finished run.",
        state="nothing was written.",
        remedy=f"{'did you mean' if meant else 'the newest are'}: {', '.join(meant or newest[::-1]) or 'none'}.",
    )


def _read_record(refs: Refs, ref: str) -> RunRecord:
    """Read the `run.json` that the branch was published with; it may hold those of other runs as well."""
    name, problems = ref.removeprefix("refs/heads/"), []
    for path, text in refs.read_files(ref, "artifacts/*/run.json").items():
        try:
            record = RunRecord.model_validate_json(text)
        except ValidationError as error:
            problems += [f"{path}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3]]
            continue
        if record.branch == name:
            return record
    raise RenderError(
        f"{name} has no run.json of its own that can be read{': ' if problems else ''}{'; '.join(problems)}.",
        state="nothing was written.",
        remedy="choose a branch that a run has published.",
    )
